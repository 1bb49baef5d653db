package cli

import (
	"context"
	"io"
	"time"

	"github.com/spf13/cobra"

	adminv1 "github.com/sluicegate/sluice/proto/gen/sluice/admin/v1"
)

type logOptions struct {
	connection
	output
	limit int32
}

func logCommand(env Env) *cobra.Command {
	var opt logOptions
	cmd := &cobra.Command{
		Use:   "log",
		Short: "Show the revisions, newest first",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return showLog(cmd.Context(), env, opt) },
	}
	opt.connection.flags(cmd)
	opt.output.flag(cmd)
	cmd.Flags().Int32VarP(&opt.limit, "limit", "n", 100, "how many")
	return cmd
}

func showLog(ctx context.Context, env Env, opt logOptions) error {
	client, closeConn, err := opt.dial(env)
	if err != nil {
		return err
	}
	defer closeConn()
	resp, err := client.Log(ctx, &adminv1.LogRequest{Tenant: opt.tenant, Limit: opt.limit})
	if err != nil {
		return err
	}
	return opt.print(env.Stdout, plain(resp.Entries), func(w io.Writer) error {
		return rows(w, "REVISION TIME ACTOR CHANGES COMMENT", func(row func(...any)) {
			for _, e := range resp.Entries {
				row(e.Revision, e.Time.AsTime().Local().Format(time.DateTime), e.Actor, len(e.Changes), e.Comment)
			}
		})
	})
}
