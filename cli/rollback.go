package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	adminv1 "github.com/sluicegate/sluice/proto/gen/sluice/admin/v1"
)

type rollbackOptions struct {
	connection
	outcome
	to      int64
	comment string
}

func rollbackCommand(env Env) *cobra.Command {
	var opt rollbackOptions
	cmd := &cobra.Command{
		Use:   "rollback --to REVISION",
		Short: "Bring back an earlier revision, as a new one",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return rollback(cmd.Context(), env, opt) },
	}
	opt.connection.flags(cmd)
	cmd.Flags().Int64Var(&opt.to, "to", 0, "revision whose content to bring back")
	_ = cmd.MarkFlagRequired("to")
	opt.outcome.flags(cmd)
	cmd.Flags().StringVar(&opt.comment, "comment", "", "why, for the log")
	return cmd
}

func rollback(ctx context.Context, env Env, opt rollbackOptions) error {
	if err := opt.check(); err != nil {
		return err
	}
	client, closeConn, err := opt.dial(env)
	if err != nil {
		return err
	}
	defer closeConn()
	resp, err := client.Rollback(ctx, &adminv1.RollbackRequest{Tenant: opt.tenant, To: opt.to, Comment: opt.comment})
	if err != nil {
		return refusal(env, err)
	}
	return opt.tell(ctx, env, client, opt.tenant, resp, fmt.Sprintf("revision %d has the content of revision %d", resp.Revision, opt.to))
}
