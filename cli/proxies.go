package cli

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	adminv1 "github.com/sluicegate/sluice/proto/gen/sluice/admin/v1"
)

type proxiesOptions struct {
	connection
	output
}

func proxiesCommand(env Env) *cobra.Command {
	var opt proxiesOptions
	cmd := &cobra.Command{
		Use:   "proxies",
		Short: "List the proxies and what they serve",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return proxies(cmd.Context(), env, opt) },
	}
	opt.connection.flags(cmd)
	opt.output.flag(cmd)
	revoke := &cobra.Command{
		Use:   "revoke NAME",
		Short: "End a proxy's connection and refuse its certificate from now on",
		Args:  cobra.ExactArgs(1),
		RunE: opt.run(env, func(ctx context.Context, client adminv1.AdminClient, args []string) error {
			_, err := client.RevokeProxy(ctx, &adminv1.RevokeProxyRequest{Name: args[0]})
			return err
		}),
	}
	opt.platformFlags(revoke)
	cmd.AddCommand(revoke)
	return cmd
}

func proxies(ctx context.Context, env Env, opt proxiesOptions) error {
	client, closeConn, err := opt.dial(env)
	if err != nil {
		return err
	}
	defer closeConn()
	resp, err := client.ListProxies(ctx, &adminv1.ListProxiesRequest{Tenant: opt.tenant})
	if err != nil {
		return err
	}
	return opt.print(env.Stdout, plain(resp.Proxies), func(w io.Writer) error {
		return rows(w, "NAME GROUP STATE SEEN SERVES VERSION LISTENERS", func(row func(...any)) {
			for _, p := range resp.Proxies {
				row(p.Name, p.Group, state(p), ago(p.LastSeen), serves(p.Revisions), or(p.Version, "-"), or(strings.Join(p.Listeners, ","), "-"))
			}
		})
	})
}

func state(p *adminv1.Proxy) string {
	switch {
	case p.Revoked:
		return "revoked"
	case !p.Connected:
		return "disconnected"
	case p.Stale:
		return "stale"
	}
	return "connected"
}

func serves(revisions map[string]int64) string {
	if len(revisions) > 3 {
		return count(len(revisions), "tenant")
	}
	var parts []string
	for _, t := range slices.Sorted(maps.Keys(revisions)) {
		parts = append(parts, fmt.Sprintf("%s@%d", t, revisions[t]))
	}
	return or(strings.Join(parts, ","), "-")
}
