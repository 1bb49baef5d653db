package cli

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	adminv1 "github.com/sluicegate/sluice/proto/gen/sluice/admin/v1"
)

type diffOptions struct {
	connection
	source
	output
	set string
}

func diffCommand(env Env) *cobra.Command {
	var opt diffOptions
	cmd := &cobra.Command{
		Use:   "diff -f FILE",
		Short: "Show what apply would change",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return diff(cmd.Context(), env, opt) },
	}
	opt.connection.flags(cmd)
	opt.source.flags(cmd)
	opt.output.flag(cmd)
	cmd.Flags().StringVar(&opt.set, "set", defaultSet, "set that the files are the whole content of")
	return cmd
}

func diff(ctx context.Context, env Env, opt diffOptions) error {
	set, err := opt.load(env)
	if err != nil {
		return err
	}
	client, closeConn, err := opt.dial(env)
	if err != nil {
		return err
	}
	defer closeConn()
	resp, err := client.Diff(ctx, &adminv1.ApplyRequest{Tenant: opt.tenant, Set: opt.set, Single: set.Single, Objects: set.Objects, DryRun: true})
	if err != nil {
		return refusal(env, err)
	}
	printDiagnostics(env.Stderr, resp.Diagnostics)
	return opt.print(env.Stdout, plain(resp.Changes), func(w io.Writer) error {
		printChanges(w, resp.Changes)
		if len(resp.Changes) == 0 {
			fmt.Fprintf(w, "no changes; revision %d\n", resp.Revision)
		}
		return nil
	})
}
