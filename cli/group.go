package cli

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	adminv1 "github.com/sluicegate/sluice/proto/gen/sluice/admin/v1"
)

func groupCommand(env Env) *cobra.Command {
	cmd := &cobra.Command{Use: "group", Short: "Say which tenants a group of proxies serves", Args: cobra.NoArgs, RunE: usage}
	cmd.AddCommand(groupSet(env), groupList(env), groupDelete(env))
	return cmd
}

func groupSet(env Env) *cobra.Command {
	var conn connection
	cmd := &cobra.Command{
		Use:   "set NAME TENANT...",
		Short: "Create a group or replace its tenants; prints its name",
		Args:  cobra.MinimumNArgs(1),
		RunE: conn.run(env, func(ctx context.Context, client adminv1.AdminClient, args []string) error {
			resp, err := client.PutGroup(ctx, &adminv1.PutGroupRequest{Name: args[0], Tenants: args[1:]})
			if err != nil {
				return refusal(env, err)
			}
			fmt.Fprintln(env.Stdout, resp.Name)
			return nil
		}),
	}
	conn.platformFlags(cmd)
	return cmd
}

func groupList(env Env) *cobra.Command {
	var conn connection
	var out output
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the groups",
		Args:  cobra.NoArgs,
		RunE: conn.run(env, func(ctx context.Context, client adminv1.AdminClient, _ []string) error {
			resp, err := client.ListGroups(ctx, &adminv1.ListGroupsRequest{})
			if err != nil {
				return err
			}
			return out.print(env.Stdout, plain(resp.Groups), func(w io.Writer) error {
				return rows(w, "NAME TENANTS", func(row func(...any)) {
					for _, g := range resp.Groups {
						row(g.Name, or(strings.Join(g.Tenants, ","), "-"))
					}
				})
			})
		}),
	}
	conn.platformFlags(cmd)
	out.flag(cmd)
	return cmd
}

func groupDelete(env Env) *cobra.Command {
	var conn connection
	cmd := &cobra.Command{
		Use:   "delete NAME",
		Short: "Delete a group; its proxies then serve nothing",
		Args:  cobra.ExactArgs(1),
		RunE: conn.run(env, func(ctx context.Context, client adminv1.AdminClient, args []string) error {
			_, err := client.DeleteGroup(ctx, &adminv1.DeleteGroupRequest{Name: args[0]})
			return err
		}),
	}
	conn.platformFlags(cmd)
	return cmd
}
