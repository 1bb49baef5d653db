package cli

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	adminv1 "github.com/sluicegate/sluice/proto/gen/sluice/admin/v1"
)

type rollbackOptions struct {
	connection
	to      int64
	wait    string
	timeout time.Duration
	strict  bool
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
	waitFlag(cmd, &opt.wait, &opt.timeout)
	cmd.Flags().BoolVar(&opt.strict, "strict", false, "with --wait: fail if a known proxy is disconnected")
	cmd.Flags().StringVar(&opt.comment, "comment", "", "why, for the log")
	return cmd
}

func rollback(ctx context.Context, env Env, opt rollbackOptions) error {
	percent, err := parseWait(opt.wait)
	if err != nil {
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
	printDiagnostics(env.Stderr, resp.Diagnostics)
	printChanges(env.Stdout, resp.Changes)
	fmt.Fprintf(env.Stdout, "revision %d has the content of revision %d\n", resp.Revision, opt.to)
	if opt.wait == "" {
		return nil
	}
	return wait(ctx, env, client, waitFor{
		tenant: opt.tenant, revision: resp.Revision, expected: resp.Connected, disconnected: resp.Disconnected,
		percent: percent, strict: opt.strict, timeout: opt.timeout,
	})
}
