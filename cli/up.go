package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/sluicegate/sluice/cli/demo"
	"github.com/sluicegate/sluice/controlplane"
	"github.com/sluicegate/sluice/dataplane"
	"github.com/sluicegate/sluice/internal/resource"
	adminv1 "github.com/sluicegate/sluice/proto/gen/sluice/admin/v1"
)

type upOptions struct {
	file, dataDir, adminAddr, xdsAddr, opsAddr, bind string
	verbose                                          bool
}

func upCommand(env Env) *cobra.Command {
	var opt upOptions
	cmd := &cobra.Command{
		Use:   "up [-f FILE]",
		Short: "Start both planes in one process, with one proxy",
		Long: "Start a control plane and one proxy in one process, all on loopback. With -f the file is the configuration of the\n" +
			"tenant `default`: a good change to it is applied as it is saved, a bad one is reported. Without -f it starts demo MCP\n" +
			"servers and says what to try. The tenant `default` gets every local power (stdio commands, files, private addresses).\n\n" +
			"Prints `ready` and a JSON object {admin, xds, ops, listeners} on stdout once it serves.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return up(cmd.Context(), env, opt) },
	}
	f := cmd.Flags()
	f.StringVarP(&opt.file, "file", "f", "", "configuration, watched")
	f.StringVar(&opt.dataDir, "data-dir", "", "where state is kept (default: $SLUICE_DATA_DIR, or "+"~/.local/share/sluice)")
	f.StringVar(&opt.adminAddr, "admin-addr", "127.0.0.1:7070", "address of the admin port")
	f.StringVar(&opt.xdsAddr, "xds-addr", "127.0.0.1:7071", "address of the xDS port")
	f.StringVar(&opt.opsAddr, "ops-addr", "127.0.0.1:7072", "address of the operations port: /healthz, /readyz, /metrics")
	f.StringVar(&opt.bind, "bind", "127.0.0.1", "host part of every listener")
	f.BoolVarP(&opt.verbose, "verbose", "v", false, "log more")
	_ = cmd.MarkFlagFilename("file", "yaml", "yml")
	return cmd
}

// up runs the planes side by side: the control plane first, then the configuration, then a proxy that joins it as any
// other would. Whatever ends first ends the rest.
func up(ctx context.Context, env Env, opt upOptions) error {
	if opt.dataDir == "" {
		opt.dataDir = defaultDataDir(env)
	}
	log := logger(env.Stderr, opt.verbose)
	group, ctx := errgroup.WithContext(ctx)

	planeReady := make(chan controlplane.Addresses, 1)
	group.Go(func() error {
		return controlplane.Run(ctx, controlplane.Config{
			DataDir: opt.dataDir, AdminAddr: opt.adminAddr, XDSAddr: opt.xdsAddr,
			OpsAddr: "127.0.0.1:0", // the one that is told is the proxy's
			Allow:   []string{"*"},
			Log:     log,
			Ready:   func(a controlplane.Addresses) { planeReady <- a },
		})
	})
	group.Go(func() error {
		var plane controlplane.Addresses
		select {
		case plane = <-planeReady:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		conn := connection{admin: adminURL(plane.Admin), token: "@" + filepath.Join(opt.dataDir, "admin.token"), ca: filepath.Join(opt.dataDir, "ca.pem")}
		config, err := configure(ctx, env, opt, conn)
		if err != nil {
			return err
		}
		join, err := joinToken(ctx, env, conn)
		if err != nil {
			return err
		}
		group.Go(func() error { return config.watch(ctx, env, log) })
		return dataplane.Run(ctx, dataplane.Config{
			XDSAddr: plane.XDS, JoinToken: join, DataDir: filepath.Join(opt.dataDir, "proxy"), OpsAddr: opt.opsAddr, Bind: opt.bind,
			Name: "up", Log: log, Version: version(),
			Ready: func(a dataplane.Addresses) {
				printReady(env.Stdout, readyLine{Admin: plane.Admin, XDS: plane.XDS, Ops: a.Ops, Listeners: a.Listeners})
				if opt.file == "" {
					printDemo(env.Stderr, a.Listeners)
				}
			},
		})
	})
	err := group.Wait()
	if errors.Is(err, context.Canceled) {
		return nil // asked to stop
	}
	return err
}

// configuration is what `up` applies, and applies again when its file changes.
type configuration struct {
	connection
	file string // empty: the demo, which does not change
	last string
}

// configure applies the first time; what is wrong then ends `up`.
func configure(ctx context.Context, env Env, opt upOptions, conn connection) (*configuration, error) {
	c := &configuration{connection: conn, file: opt.file}
	if opt.file != "" {
		data, err := os.ReadFile(opt.file)
		if err != nil {
			return nil, &codedError{Invalid, fmt.Errorf("sluice: %w", err)}
		}
		c.last = string(data)
		return c, c.apply(ctx, env, resource.File{Name: opt.file, Data: data})
	}
	notes, err := demo.ServeNotes(ctx)
	if err != nil {
		return nil, err
	}
	program, err := os.Executable()
	if err != nil {
		return nil, err
	}
	demoEnv := env
	demoEnv.Getenv = func(name string) (string, bool) {
		switch name {
		case "NOTES_URL":
			return notes, true
		case "SLUICE":
			return program, true
		}
		return env.Getenv(name)
	}
	return c, c.apply(ctx, demoEnv, resource.File{Name: "demo", Data: demo.Config})
}

func (c *configuration) apply(ctx context.Context, env Env, file resource.File) error {
	set, diagnostics := resource.Load([]resource.File{file}, env.Getenv)
	printDiagnostics(env.Stderr, diagnostics)
	if hasErrors(diagnostics) {
		return &codedError{code: Invalid}
	}
	client, closeConn, err := c.dial(env)
	if err != nil {
		return err
	}
	defer closeConn()
	resp, err := client.Apply(ctx, &adminv1.ApplyRequest{Set: "default", Single: set.Single, Objects: set.Objects, Comment: "sluice up"})
	if err != nil {
		return refusal(env, err)
	}
	printDiagnostics(env.Stderr, resp.Diagnostics)
	return nil
}

// watch applies the file again whenever its content changes. Polling, once a second, sees editors that replace the file
// and mounted volumes, where notifications do not.
func (c *configuration) watch(ctx context.Context, env Env, log *slog.Logger) error {
	if c.file == "" {
		return nil
	}
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		data, err := os.ReadFile(c.file)
		if err != nil || string(data) == c.last {
			continue // an editor may be between removing and writing
		}
		c.last = string(data)
		if err := c.apply(ctx, env, resource.File{Name: c.file, Data: data}); err != nil {
			log.Error("the changed configuration is not applied; the last good one goes on", "file", c.file, "err", message(err))
			continue
		}
		log.Info("configuration applied", "file", c.file)
	}
}

func joinToken(ctx context.Context, env Env, conn connection) (string, error) {
	client, closeConn, err := conn.dial(env)
	if err != nil {
		return "", err
	}
	defer closeConn()
	resp, err := client.CreateToken(ctx, &adminv1.CreateTokenRequest{Type: adminv1.CreateTokenRequest_TYPE_JOIN, Uses: 1, Name: "sluice up"})
	if err != nil {
		return "", err
	}
	return resp.Token, nil
}

func adminURL(address string) string {
	host, _, _ := strings.Cut(address, ":")
	if loopback(host) || strings.HasPrefix(address, "[::1]") {
		return "http://" + address
	}
	return "https://" + address
}

func printDemo(w io.Writer, listeners []string) {
	endpoint := "http://127.0.0.1:3000/mcp"
	if len(listeners) > 0 {
		endpoint = "http://" + listeners[0] + "/mcp"
	}
	fmt.Fprintf(w, `
Two demo MCP servers, notes (over HTTP) and clock (over stdio), are one endpoint now: %[1]s

In another terminal, with bin on your PATH:
  sluice mcp list --url %[1]s
  sluice mcp call notes_add --arguments '{"text": "remember the milk"}' --url %[1]s
  sluice mcp call clock_now --url %[1]s
  sluice mcp call notes_wipe --url %[1]s      # refused: a policy denies it
  sluice explain target notes                 # which policy, and where it comes from
  sluice proxies

Any MCP client can use the same URL. Your own configuration: sluice up -f FILE (see README.md).
Stop with Ctrl-C.
`, endpoint)
}
