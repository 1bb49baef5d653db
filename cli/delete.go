package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	adminv1 "github.com/sluicegate/sluice/proto/gen/sluice/admin/v1"
)

func deleteCommand(env Env) *cobra.Command {
	var conn connection
	var comment string
	var ifRevision int64
	cmd := &cobra.Command{
		Use:               "delete KIND NAME",
		Short:             "Remove one object",
		Args:              cobra.ExactArgs(2),
		ValidArgsFunction: completeKinds,
		RunE: func(cmd *cobra.Command, args []string) error {
			return remove(cmd.Context(), env, conn, &adminv1.DeleteRequest{
				Tenant: conn.tenant, Kind: singular(args[0]), Name: args[1], IfRevision: ifRevision, Comment: comment,
			})
		},
	}
	conn.flags(cmd)
	cmd.Flags().StringVar(&comment, "comment", "", "why, for the log")
	cmd.Flags().Int64Var(&ifRevision, "if-revision", 0, "only if the tenant's head is this revision")
	return cmd
}

func remove(ctx context.Context, env Env, conn connection, req *adminv1.DeleteRequest) error {
	client, closeConn, err := conn.dial(env)
	if err != nil {
		return err
	}
	defer closeConn()
	resp, err := client.Delete(ctx, req)
	if err != nil {
		return refusal(env, err)
	}
	printChanges(env.Stdout, resp.Changes)
	fmt.Fprintf(env.Stdout, "revision %d\n", resp.Revision)
	return nil
}
