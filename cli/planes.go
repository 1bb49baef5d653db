package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/sluicegate/sluice/cli/demo"
	"github.com/sluicegate/sluice/controlplane"
	"github.com/sluicegate/sluice/dataplane"
	"github.com/sluicegate/sluice/internal/policy"
	"github.com/sluicegate/sluice/internal/telemetry"
)

// readyLine is what a server prints on stdout once it serves, after the word `ready`.
type readyLine struct {
	Admin     string   `json:"admin"`
	XDS       string   `json:"xds"`
	Ops       string   `json:"ops"`
	Listeners []string `json:"listeners"`
}

func printReady(w io.Writer, r readyLine) {
	if r.Listeners == nil {
		r.Listeners = []string{}
	}
	data, err := json.Marshal(r)
	if err != nil {
		panic(err) // strings always marshal
	}
	fmt.Fprintf(w, "ready %s\n", data)
}

func controlPlaneCommand(env Env) *cobra.Command {
	var config controlplane.Config
	var logs logging
	cmd := &cobra.Command{
		Use:     "controlplane",
		Aliases: []string{"control-plane"},
		Short:   "Start a control plane",
		Long:    "Start a control plane. Prints `ready` and a JSON object {admin, xds, ops, listeners} on stdout once it serves.\nThe first admin token lies in DIR/admin.token.",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if config.DataDir == "" {
				config.DataDir = defaultDataDir(env)
			}
			if _, err := policy.ParseGrants(config.Allow); err != nil {
				return &codedError{Invalid, fmt.Errorf("sluice: --allow: %w", err)}
			}
			var err error
			if config.Log, err = logs.logger(env); err != nil {
				return err
			}
			config.Ready = func(a controlplane.Addresses) {
				printReady(env.Stdout, readyLine{Admin: a.Admin, XDS: a.XDS, Ops: a.Ops})
			}
			return controlplane.Run(cmd.Context(), config)
		},
	}
	f := cmd.Flags()
	f.StringVar(&config.DataDir, "data-dir", "", "where state is kept (default: $SLUICE_DATA_DIR, or ~/.local/share/sluice)")
	f.StringVar(&config.AdminAddr, "admin-addr", controlplane.DefaultAdminAddr, "address of the admin port; TLS unless on loopback")
	f.StringVar(&config.XDSAddr, "xds-addr", controlplane.DefaultXDSAddr, "address of the xDS port, for proxies")
	f.StringVar(&config.OpsAddr, "ops-addr", controlplane.DefaultOpsAddr, "address of the operations port: /healthz, /readyz, /metrics")
	f.StringSliceVar(&config.Allow, "allow", nil, "local powers of the tenant default, as `GRANTS`: private-network, stdio=npx, file=/etc/sluice/*, env=SVC_*, identity=aws (the proxies' own at aws, gcp or azure), metadata; * is all but metadata (default: as before, none at first)")
	f.StringVar(&config.ClusterKeyFile, "cluster-key-file", "", "key that seals stored secrets (default: cluster.key in the data directory)")
	logs.flags(cmd)
	return cmd
}

func proxyCommand(env Env) *cobra.Command {
	var config dataplane.Config
	var logs logging
	var calls bool
	cmd := &cobra.Command{
		Use:   "proxy",
		Short: "Start a proxy",
		Long: "Start a proxy. At its first start it joins with a token; from then on its certificate, which it renews, is enough.\n" +
			"Prints `ready` and a JSON object {admin, xds, ops, listeners} on stdout once it serves.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if config.DataDir == "" {
				config.DataDir = filepath.Join(defaultDataDir(env), "proxy")
			}
			var err error
			if config.Log, err = logs.logger(env); err != nil {
				return err
			}
			config.Version, config.AccessLog = version(), env.Stderr
			if !calls {
				config.AccessLog = io.Discard
			}
			config.Ready = func(a dataplane.Addresses) {
				printReady(env.Stdout, readyLine{XDS: config.XDSAddr, Ops: a.Ops, Listeners: a.Listeners})
			}
			return dataplane.Run(cmd.Context(), config)
		},
	}
	f := cmd.Flags()
	f.StringVar(&config.XDSAddr, "xds-addr", "127.0.0.1:7071", "address of the control plane's xDS port")
	f.StringVar(&config.JoinToken, "join-token", "", "`TOKEN` that sluice token create --type join has made, or @FILE; for the first start")
	f.StringVar(&config.DataDir, "data-dir", "", "where the certificate and the last good configuration are kept (default: proxy in $SLUICE_DATA_DIR)")
	f.StringVar(&config.OpsAddr, "ops-addr", "127.0.0.1:7072", "`ADDRESS` of the operations port: /healthz, /readyz, /metrics; off for none")
	f.StringVar(&config.PeersAddr, "peers-addr", "", "`ADDRESS` for other proxies of the group, which forward what lives here; off for none (default: the next port at the host of --ops-addr)")
	f.StringVar(&config.Bind, "bind", "127.0.0.1", "host part of every listener")
	f.StringVar(&config.Name, "name", "", "what to call it (default: the host's name)")
	f.StringVar(&config.DiskKeyFile, "disk-key-file", "", "key that seals the last good configuration (default: proxy.key in the data directory)")
	f.DurationVar(&config.MaxStale, "max-stale", 0, "how long to serve without a control plane after a restart (default 24h; negative: no limit)")
	f.DurationVar(&config.Drain, "drain", 0, "how long requests may still run once it is told to stop (default 30s)")
	f.BoolVar(&calls, "access-log", true, "write a JSON line for each call to stderr")
	logs.flags(cmd)
	return cmd
}

// demoServerCommand is the stdio server of the demo, which `sluice up` starts as a child.
func demoServerCommand(Env) *cobra.Command {
	return &cobra.Command{
		Use: "demo-server", Hidden: true, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return demo.ServeClock(cmd.Context()) },
	}
}

// logging is how a server logs, to stderr.
type logging struct{ format, level string }

func (l *logging) flags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&l.format, "log-format", "text", "text or json")
	cmd.Flags().StringVar(&l.level, "log-level", "info", "debug, info, warn or error")
	_ = cmd.RegisterFlagCompletionFunc("log-format", cobra.FixedCompletions([]string{"text", "json"}, cobra.ShellCompDirectiveNoFileComp))
	_ = cmd.RegisterFlagCompletionFunc("log-level", cobra.FixedCompletions([]string{"debug", "info", "warn", "error"}, cobra.ShellCompDirectiveNoFileComp))
}

func (l *logging) logger(env Env) (*slog.Logger, error) {
	log, err := telemetry.NewLogger(env.Stderr, l.format, l.level)
	if err != nil {
		return nil, &codedError{Invalid, fmt.Errorf("sluice: %w", err)}
	}
	return log, nil
}
