// Command sluice-controlplane is the control plane alone, for images that need no more.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/sluicegate/sluice/controlplane"
	"github.com/sluicegate/sluice/internal/telemetry"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "sluice-controlplane:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	var c controlplane.Config
	var logFormat, logLevel string
	flags := flag.NewFlagSet("sluice-controlplane", flag.ExitOnError) // exits with 2
	flags.StringVar(&c.DataDir, "data-dir", "", "directory of all state; made if it is not there")
	flags.StringVar(&c.AdminAddr, "admin-addr", controlplane.DefaultAdminAddr, "address of the admin API; TLS unless it is a loopback address")
	flags.StringVar(&c.XDSAddr, "xds-addr", controlplane.DefaultXDSAddr, "address for proxies; mutual TLS")
	flags.StringVar(&c.OpsAddr, "ops-addr", controlplane.DefaultOpsAddr, "address of health, metrics and profiles")
	flags.StringVar(&c.ClusterKeyFile, "cluster-key-file", "", "key that seals secrets (default: cluster.key in the data directory, made if it is not there)")
	flags.Func("allow", "local powers of the tenant default, as `GRANTS`: private-network, stdio=npx, file=/etc/sluice/*, env=SVC_*, identity=aws (the proxies' own at aws, gcp or azure), metadata; * is all but metadata (default: as before, none at first)", func(text string) error {
		for grant := range strings.SplitSeq(text, ",") {
			if grant = strings.TrimSpace(grant); grant != "" {
				c.Allow = append(c.Allow, grant)
			}
		}
		if c.Allow == nil {
			c.Allow = []string{} // --allow= takes them away
		}
		return nil
	})
	flags.StringVar(&logFormat, "log-format", "text", "text or json")
	flags.StringVar(&logLevel, "log-level", "info", "debug, info, warn or error")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() > 0 {
		return fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	var err error
	if c.Log, err = telemetry.NewLogger(os.Stderr, logFormat, logLevel); err != nil {
		return err
	}
	c.Ready = func(a controlplane.Addresses) {
		line, err := json.Marshal(a)
		if err != nil {
			panic(err) // strings always encode
		}
		fmt.Printf("ready %s\n", line)
	}
	return controlplane.Run(ctx, c)
}
