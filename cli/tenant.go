package cli

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	adminv1 "github.com/sluicegate/sluice/proto/gen/sluice/admin/v1"
)

func tenantCommand(env Env) *cobra.Command {
	cmd := &cobra.Command{Use: "tenant", Short: "Create tenants and grant them local powers", Args: cobra.NoArgs, RunE: usage}
	cmd.AddCommand(tenantCreate(env), tenantAllow(env), tenantList(env), tenantDelete(env))
	return cmd
}

// usage is what a command with subcommands does when none is named.
func usage(cmd *cobra.Command, _ []string) error {
	cmd.SetOut(cmd.ErrOrStderr())
	_ = cmd.Usage()
	return &codedError{code: Invalid}
}

func tenantCreate(env Env) *cobra.Command {
	var conn connection
	var allow []string
	cmd := &cobra.Command{
		Use:   "create NAME",
		Short: "Create a tenant; prints its name",
		Args:  cobra.ExactArgs(1),
		RunE: conn.run(env, func(ctx context.Context, client adminv1.AdminClient, args []string) error {
			resp, err := client.CreateTenant(ctx, &adminv1.CreateTenantRequest{Name: args[0], Grants: grants(allow)})
			if err != nil {
				return refusal(env, err)
			}
			fmt.Fprintln(env.Stdout, resp.Name)
			return nil
		}),
	}
	conn.platformFlags(cmd)
	cmd.Flags().StringSliceVar(&allow, "allow", nil, "local powers, as `GRANTS`: private-network, stdio=npx, file=/etc/sluice/acme/*, env=ACME_*, identity=aws (the proxies' own at aws, gcp or azure), metadata; * is all but metadata")
	return cmd
}

func tenantAllow(env Env) *cobra.Command {
	var conn connection
	cmd := &cobra.Command{
		Use:     "allow NAME GRANTS",
		Short:   "Replace a tenant's local powers; prints them",
		Example: "  sluice tenant allow acme private-network,stdio=npx,file=/etc/sluice/acme/*,env=ACME_*,identity=aws\n  sluice tenant allow acme \"\"",
		Args:    cobra.ExactArgs(2),
		RunE: conn.run(env, func(ctx context.Context, client adminv1.AdminClient, args []string) error {
			resp, err := client.AllowTenant(ctx, &adminv1.AllowTenantRequest{Name: args[0], Grants: grants(strings.Split(args[1], ","))})
			if err != nil {
				return refusal(env, err)
			}
			fmt.Fprintln(env.Stdout, strings.Join(resp.Grants, ","))
			return nil
		}),
	}
	conn.platformFlags(cmd)
	return cmd
}

func tenantList(env Env) *cobra.Command {
	var conn connection
	var out output
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the tenants",
		Args:  cobra.NoArgs,
		RunE: conn.run(env, func(ctx context.Context, client adminv1.AdminClient, _ []string) error {
			resp, err := client.ListTenants(ctx, &adminv1.ListTenantsRequest{})
			if err != nil {
				return err
			}
			return out.print(env.Stdout, plain(resp.Tenants), func(w io.Writer) error {
				return rows(w, "NAME REVISION GRANTS", func(row func(...any)) {
					for _, t := range resp.Tenants {
						row(t.Name, t.Revision, or(strings.Join(t.Grants, ","), "-"))
					}
				})
			})
		}),
	}
	conn.platformFlags(cmd)
	out.flag(cmd)
	return cmd
}

func tenantDelete(env Env) *cobra.Command {
	var conn connection
	var yes bool
	cmd := &cobra.Command{
		Use:   "delete NAME --yes",
		Short: "Delete a tenant with all it owns, its log and its secrets",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if !yes {
				return &codedError{Invalid, fmt.Errorf("sluice: deleting tenant %s cannot be undone; say --yes", args[0])}
			}
			client, closeConn, err := conn.dial(env)
			if err != nil {
				return err
			}
			defer closeConn()
			_, err = client.DeleteTenant(cmd.Context(), &adminv1.DeleteTenantRequest{Name: args[0]})
			return err
		},
	}
	conn.platformFlags(cmd)
	cmd.Flags().BoolVar(&yes, "yes", false, "do it")
	return cmd
}

func grants(list []string) []string {
	var out []string
	for _, g := range list {
		if g = strings.TrimSpace(g); g != "" {
			out = append(out, g)
		}
	}
	return out
}
