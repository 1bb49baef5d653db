package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	adminv1 "github.com/sluicegate/sluice/proto/gen/sluice/admin/v1"
)

type deleteOptions struct {
	connection
	outcome
	comment    string
	ifRevision int64
}

func deleteCommand(env Env) *cobra.Command {
	var opt deleteOptions
	cmd := &cobra.Command{
		Use:               "delete KIND NAME",
		Short:             "Remove one object",
		Args:              func(cmd *cobra.Command, args []string) error { return cobra.ExactArgs(2)(cmd, parted(args)) },
		ValidArgsFunction: completeKinds,
		RunE: func(cmd *cobra.Command, args []string) error {
			args = parted(args)
			return remove(cmd.Context(), env, opt, args[0], args[1])
		},
	}
	opt.connection.flags(cmd)
	opt.outcome.flags(cmd)
	cmd.Flags().StringVar(&opt.comment, "comment", "", "why, for the log")
	cmd.Flags().Int64Var(&opt.ifRevision, "if-revision", 0, "only if the tenant's head is this revision")
	return cmd
}

func remove(ctx context.Context, env Env, opt deleteOptions, kind, name string) error {
	if err := opt.check(); err != nil {
		return err
	}
	client, closeConn, err := opt.dial(env)
	if err != nil {
		return err
	}
	defer closeConn()
	resp, err := client.Delete(ctx, &adminv1.DeleteRequest{
		Tenant: opt.tenant, Kind: singular(kind), Name: name, IfRevision: opt.ifRevision, Comment: opt.comment,
	})
	if err != nil {
		return refusal(env, err)
	}
	return opt.tell(ctx, env, client, opt.tenant, resp, fmt.Sprintf("revision %d: %s", resp.Revision, count(len(resp.Changes), "change")))
}
