package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/sluicegate/sluice/cli/demo"
	"github.com/sluicegate/sluice/controlplane"
	"github.com/sluicegate/sluice/dataplane"
	"github.com/sluicegate/sluice/internal/resource"
	adminv1 "github.com/sluicegate/sluice/proto/gen/sluice/admin/v1"
)

type upOptions struct {
	logging
	file, dataDir, adminAddr, xdsAddr, opsAddr, bind string
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
		RunE: func(cmd *cobra.Command, _ []string) error {
			if cmd.Flags().Changed("file") && opt.file == "" { // a variable that is not set; the demo is for who gives no -f
				return &codedError{Invalid, errors.New("sluice: -f names no file")}
			}
			return up(cmd.Context(), env, opt)
		},
	}
	f := cmd.Flags()
	f.StringVarP(&opt.file, "file", "f", "", "configuration, watched")
	f.StringVar(&opt.dataDir, "data-dir", "", "where state is kept (default: $SLUICE_DATA_DIR, or ~/.local/share/sluice)")
	f.StringVar(&opt.adminAddr, "admin-addr", controlplane.DefaultAdminAddr, "address of the admin port")
	f.StringVar(&opt.xdsAddr, "xds-addr", controlplane.DefaultXDSAddr, "address of the xDS port")
	f.StringVar(&opt.opsAddr, "ops-addr", "127.0.0.1:7072", "address of the operations port: /healthz, /readyz, /metrics")
	f.StringVar(&opt.bind, "bind", "127.0.0.1", "host part of every listener")
	opt.logging.flags(cmd)
	_ = cmd.MarkFlagFilename("file", "yaml", "yml")
	return cmd
}

// up runs the planes side by side: the control plane first, then the configuration, then a proxy that joins it as any
// other would. Whatever ends first ends the rest.
func up(parent context.Context, env Env, opt upOptions) error {
	if opt.dataDir == "" {
		opt.dataDir = defaultDataDir(env)
	}
	log, err := opt.logger(env)
	if err != nil {
		return err
	}
	config, err := newConfiguration(env, opt.file)
	if err != nil {
		return err // before anything is started or made
	}
	group, ctx := errgroup.WithContext(parent)

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
		config.connection = connection{
			admin: adminURL(plane.Admin), token: "@" + filepath.Join(opt.dataDir, "admin.token"), ca: filepath.Join(opt.dataDir, "ca.pem"),
		}
		revision, err := config.first(ctx, env)
		if err != nil {
			return err
		}
		join, err := joinToken(ctx, env, config.connection)
		if err != nil {
			return err
		}
		group.Go(func() error { return config.watch(ctx, env, log) })
		return dataplane.Run(ctx, dataplane.Config{
			XDSAddr: reachable(plane.XDS), JoinToken: join, DataDir: filepath.Join(opt.dataDir, "proxy"), OpsAddr: opt.opsAddr, Bind: opt.bind,
			Name: "up", Log: log, AccessLog: env.Stderr, Version: version(), Fresh: true,
			Ready: func(proxy dataplane.Addresses) {
				group.Go(func() error { return announce(ctx, env, opt, config, revision, plane, proxy) })
			},
		})
	})
	err = group.Wait()
	if parent.Err() != nil && (errors.Is(err, context.Canceled) || status.Code(err) == codes.Canceled) {
		return nil // asked to stop
	}
	return err
}

// announce says that all is served, or what is not. With no listener at all there is nothing to stay for.
func announce(ctx context.Context, env Env, opt upOptions, config *configuration, revision int64, plane controlplane.Addresses, proxy dataplane.Addresses) error {
	refused, err := config.refusals(ctx, env, revision)
	if err != nil {
		return err
	}
	noListener := false
	for _, r := range refused {
		fmt.Fprintf(env.Stderr, "sluice: not served: %s\n", refusalText(r))
		noListener = noListener || len(proxy.Listeners) == 0 && strings.HasPrefix(r.Object, "listener/")
	}
	if noListener {
		way := "free the port, or choose another in " + opt.file
		if config.demo() {
			way = "free the port, or choose another: SLUICE_DEMO_PORT=3001 sluice up"
		}
		return &codedError{Refused, fmt.Errorf("sluice: no listener could be opened; %s", way)}
	}
	printReady(env.Stdout, readyLine{Admin: plane.Admin, XDS: plane.XDS, Ops: proxy.Ops, Listeners: proxy.Listeners})
	switch {
	case config.kept:
		fmt.Fprintf(env.Stderr, "Serving what is stored in %s, revision %d. To serve a file: sluice up -f FILE.\n", opt.dataDir, revision)
	case config.demo():
		printDemo(env, opt, plane, proxy.Listeners)
	}
	return nil
}

// demoFile is what the demo's objects have as their file.
const demoFile = "demo"

// configuration is what `up` applies, and applies again when its file changes.
type configuration struct {
	connection
	file string // empty: the demo, which does not change
	last string // content of the file that was applied or refused
	kept bool   // nothing was applied: what is stored is not the demo's
}

func (c *configuration) demo() bool { return c.file == "" }

// newConfiguration reads the file, and checks it as far as that is possible before there is a control plane.
func newConfiguration(env Env, file string) (*configuration, error) {
	c := &configuration{file: file}
	if c.demo() {
		return c, nil
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, &codedError{Invalid, fmt.Errorf("sluice: %w", err)}
	}
	c.last = string(data)
	set, diagnostics := resource.Load([]resource.File{{Name: file, Data: data}}, env.Getenv)
	if resource.Failed(diagnostics) {
		diagnostics = alsoWrong(set.Objects, diagnostics)
	} else {
		diagnostics = controlplane.Validate(set.Objects, set.Single)
	}
	if resource.Failed(diagnostics) {
		printDiagnostics(env.Stderr, diagnostics)
		return nil, &codedError{code: Invalid}
	}
	return c, nil
}

// first applies for the first time, and returns the tenant's head then.
func (c *configuration) first(ctx context.Context, env Env) (int64, error) {
	if !c.demo() {
		return c.apply(ctx, env, resource.File{Name: c.file, Data: []byte(c.last)})
	}
	if revision, err := c.keep(ctx, env); err != nil || c.kept {
		return revision, err
	}
	notes, err := demo.ServeNotes(ctx)
	if err != nil {
		return 0, err
	}
	program, err := os.Executable()
	if err != nil {
		return 0, err
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
	return c.apply(ctx, demoEnv, resource.File{Name: demoFile, Data: demo.Config})
}

// keep looks whether somebody has applied a configuration of their own: the demo does not replace it.
func (c *configuration) keep(ctx context.Context, env Env) (int64, error) {
	client, closeConn, err := c.dial(env)
	if err != nil {
		return 0, err
	}
	defer closeConn()
	stored, err := client.List(ctx, &adminv1.ListRequest{})
	if err != nil {
		return 0, err
	}
	for _, o := range stored.Objects {
		c.kept = c.kept || o.Set == defaultSet && o.Source.GetFile() != demoFile
	}
	return stored.Revision, nil
}

// apply returns the tenant's head afterwards.
func (c *configuration) apply(ctx context.Context, env Env, file resource.File) (int64, error) {
	set, diagnostics := resource.Load([]resource.File{file}, env.Getenv)
	printDiagnostics(env.Stderr, diagnostics)
	if resource.Failed(diagnostics) {
		return 0, &codedError{code: Invalid}
	}
	client, closeConn, err := c.dial(env)
	if err != nil {
		return 0, err
	}
	defer closeConn()
	resp, err := client.Apply(ctx, &adminv1.ApplyRequest{Set: defaultSet, Single: set.Single, Objects: set.Objects, Comment: "sluice up"})
	if err != nil {
		return 0, refusal(env, err)
	}
	printDiagnostics(env.Stderr, resp.Diagnostics)
	return resp.Revision, nil
}

// refusals waits until the proxy serves a revision, and returns what it refused of it.
func (c *configuration) refusals(ctx context.Context, env Env, revision int64) ([]*adminv1.ProxyRefusal, error) {
	client, closeConn, err := c.dial(env)
	if err != nil {
		return nil, err
	}
	defer closeConn()
	waiting, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	stream, err := client.Status(waiting, &adminv1.StatusRequest{Revision: revision, Wait: true})
	if err != nil {
		return nil, err
	}
	var refused []*adminv1.ProxyRefusal
	for {
		s, err := stream.Recv()
		switch {
		case err == nil:
			refused = s.Refused
		case errors.Is(err, io.EOF), ctx.Err() == nil && waiting.Err() != nil:
			return refused, nil
		default:
			return nil, err
		}
	}
}

const pollInterval = 500 * time.Millisecond

// watch applies the file again whenever its content changes. Polling sees editors that replace the file and mounted
// volumes, where notifications do not. A content is applied once it was read twice: not while it is being written.
func (c *configuration) watch(ctx context.Context, env Env, log *slog.Logger) error {
	if c.demo() {
		return nil
	}
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	seen := c.last
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		data, err := os.ReadFile(c.file)
		if err != nil {
			continue // an editor may be between removing and writing
		}
		settled := string(data) == seen
		seen = string(data)
		if !settled || seen == c.last {
			continue
		}
		c.last = seen
		revision, err := c.apply(ctx, env, resource.File{Name: c.file, Data: data})
		if err != nil {
			attrs := []any{"file", c.file}
			if coded, ok := errors.AsType[*codedError](err); !ok || coded.err != nil {
				attrs = append(attrs, "err", message(err))
			}
			log.Error("the changed configuration is not applied; the last good one goes on", attrs...)
			continue
		}
		log.Info("configuration applied", "file", c.file, "revision", revision)
	}
}

// joinToken is good for the join that follows, which a proxy that has joined before does not need.
func joinToken(ctx context.Context, env Env, conn connection) (string, error) {
	client, closeConn, err := conn.dial(env)
	if err != nil {
		return "", err
	}
	defer closeConn()
	resp, err := client.CreateToken(ctx, &adminv1.CreateTokenRequest{
		Type: adminv1.CreateTokenRequest_TYPE_JOIN, Uses: 1, Ttl: durationpb.New(time.Minute), Name: "sluice up",
	})
	if err != nil {
		return "", err
	}
	return resp.Token, nil
}

func adminURL(address string) string {
	address = reachable(address)
	if host, _, err := net.SplitHostPort(address); err == nil && loopback(host) {
		return "http://" + address
	}
	return "https://" + address
}

// reachable turns an address that is listened on into one to dial. What listens on all addresses has TLS on the loopback
// one too, and its certificate names that.
func reachable(address string) string {
	bound, err := netip.ParseAddrPort(address)
	if err != nil || !bound.Addr().IsUnspecified() {
		return address
	}
	return netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), bound.Port()).String()
}

func printDemo(env Env, opt upOptions, plane controlplane.Addresses, listeners []string) {
	endpoint := "http://127.0.0.1:3000/mcp"
	if len(listeners) > 0 {
		endpoint = "http://" + listeners[0] + "/mcp"
	}
	settings := ""
	if url := adminURL(plane.Admin); url != defaultAdmin {
		settings += "  export SLUICE_ADMIN=" + url + "\n"
	}
	if opt.dataDir != defaultDataDir(env) {
		if dir, err := filepath.Abs(opt.dataDir); err == nil {
			settings += "  export SLUICE_DATA_DIR=" + dir + "\n"
		}
	}
	fmt.Fprintf(env.Stderr, `
Two demo MCP servers, notes (over HTTP) and clock (over stdio), are one endpoint now: %[1]s

In another terminal, with bin on your PATH:
%[2]s  sluice mcp list --url %[1]s
  sluice mcp call notes_add --arguments '{"text": "remember the milk"}' --url %[1]s
  sluice mcp call clock_now --url %[1]s
  sluice mcp call notes_wipe --url %[1]s      # refused: a policy denies it
  sluice explain target notes                 # which policy, and where it comes from
  sluice proxies

Any MCP client can use the same URL. Your own configuration: sluice up -f FILE (see README.md).
Stop with Ctrl-C.
`, endpoint, settings)
}
