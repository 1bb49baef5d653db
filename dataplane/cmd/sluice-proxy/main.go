// Command sluice-proxy is a proxy alone, the thin program for edges: it links neither the control plane nor its stores.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"syscall"

	"github.com/sluicegate/sluice/dataplane"
	"github.com/sluicegate/sluice/internal/telemetry"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // a second signal ends at once
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
	case err != nil:
		fmt.Fprintln(os.Stderr, "sluice-proxy:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	cfg := dataplane.Config{Version: version(), AccessLog: stderr}
	flags := flag.NewFlagSet("sluice-proxy", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.StringVar(&cfg.XDSAddr, "xds-addr", "127.0.0.1:7071", "`address` of the control plane's xDS port")
	flags.StringVar(&cfg.JoinToken, "join-token", "", "`token` of sluice token create --type join, or @FILE with it; for the first start")
	flags.StringVar(&cfg.DataDir, "data-dir", "", "`directory` of the identity and the last good configuration (required)")
	flags.StringVar(&cfg.OpsAddr, "ops-addr", "127.0.0.1:7072", "`address` of the operations port, off for none")
	flags.StringVar(&cfg.PeersAddr, "peers-addr", "", "`address` for other proxies of the group, which forward what lives here, off for none; if empty, the next port at the host of ops-addr")
	flags.StringVar(&cfg.Bind, "bind", "127.0.0.1", "`host` part of every listener")
	flags.StringVar(&cfg.Name, "name", "", "`name` to join under; if empty, the host's")
	flags.StringVar(&cfg.DiskKeyFile, "disk-key-file", "", "`file` with the key that seals the last good configuration; if empty, proxy.key in the data directory")
	flags.DurationVar(&cfg.MaxStale, "max-stale", 0, "how long configuration from disk may serve without a control plane; 0 for 24h, negative for ever")
	flags.DurationVar(&cfg.Drain, "drain", 0, "how long requests may still run after SIGTERM; 0 for 30s")
	logFormat := flags.String("log-format", "text", "text or json")
	logLevel := flags.String("log-level", "info", "debug, info, warn or error")
	accessLog := flags.Bool("access-log", true, "write a JSON line for each call to stderr")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() > 0 {
		return fmt.Errorf("unexpected argument %q: all settings are flags, see -help", flags.Arg(0))
	}
	if !*accessLog {
		cfg.AccessLog = io.Discard
	}
	var err error
	if cfg.Log, err = telemetry.NewLogger(stderr, *logFormat, *logLevel); err != nil {
		return err
	}
	cfg.Ready = func(a dataplane.Addresses) {
		line, _ := json.Marshal(map[string]any{"admin": "", "xds": cfg.XDSAddr, "ops": a.Ops, "listeners": a.Listeners})
		fmt.Fprintf(stdout, "ready %s\n", strings.TrimSpace(string(line)))
	}
	return dataplane.Run(ctx, cfg)
}

// version is what the toolchain recorded: a tag, or a commit.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok || info.Main.Version == "" {
		return "(devel)"
	}
	return info.Main.Version
}
