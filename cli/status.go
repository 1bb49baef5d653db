package cli

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	adminv1 "github.com/sluicegate/sluice/proto/gen/sluice/admin/v1"
)

type statusOptions struct {
	connection
	output
	revision int64
}

func statusCommand(env Env) *cobra.Command {
	var opt statusOptions
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Tell what became of a revision: who serves it, who refused it and why",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return showStatus(cmd.Context(), env, opt) },
	}
	opt.connection.flags(cmd)
	opt.output.flag(cmd)
	cmd.Flags().Int64Var(&opt.revision, "revision", 0, "revision (default: the head)")
	return cmd
}

func showStatus(ctx context.Context, env Env, opt statusOptions) error {
	client, closeConn, err := opt.dial(env)
	if err != nil {
		return err
	}
	defer closeConn()
	stream, err := client.Status(ctx, &adminv1.StatusRequest{Tenant: opt.tenant, Revision: opt.revision})
	if err != nil {
		return err
	}
	s, err := stream.Recv()
	if err != nil {
		return err
	}
	return opt.print(env.Stdout, plainOne(s), func(w io.Writer) error {
		fmt.Fprintf(w, "tenant %s, revision %d (head %d): %d of %d connected proxies serve it\n", s.Tenant, s.Revision, s.Head, s.Serving, s.Total)
		if len(s.Lagging) > 0 {
			fmt.Fprintf(w, "lagging: %s\n", list(s.Lagging))
		}
		if len(s.Disconnected) > 0 {
			fmt.Fprintf(w, "not connected: %s\n", list(s.Disconnected))
		}
		if len(s.Objects) == 0 {
			return nil
		}
		fmt.Fprintln(w)
		return rows(w, "OBJECT STATE PROXIES REASON", func(row func(...any)) {
			for _, o := range s.Objects {
				row(o.Object, o.State, list(o.Proxies), o.Reason)
			}
		})
	})
}
