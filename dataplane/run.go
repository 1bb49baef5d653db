// Package dataplane is a proxy: it takes its configuration from a control plane, or after a restart without one from its
// disk, and serves MCP clients by it. [Run] wires the packages below; serve.go is the request path.
package dataplane

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"

	"github.com/sluicegate/sluice/dataplane/bridge/newclient"
	"github.com/sluicegate/sluice/dataplane/listener"
	"github.com/sluicegate/sluice/dataplane/mcp"
	"github.com/sluicegate/sluice/dataplane/peers"
	"github.com/sluicegate/sluice/dataplane/snapshot"
	"github.com/sluicegate/sluice/dataplane/upstream"
	"github.com/sluicegate/sluice/dataplane/xds"
	"github.com/sluicegate/sluice/internal/mtls"
	"github.com/sluicegate/sluice/internal/telemetry"
)

// Config of a proxy.
type Config struct {
	// XDSAddr is the control plane's xDS port. Required.
	XDSAddr string
	// JoinToken is `sluice token create --type join`'s, or @FILE with it; used only while DataDir holds no identity, or
	// one of another control plane.
	JoinToken string
	// DataDir holds identity.pem, proxy.key and the last good configuration. Required; made if it is not there.
	DataDir string
	// OpsAddr is the operations port's. If empty, 127.0.0.1:7072; `off` for none.
	OpsAddr string
	// PeersAddr is the port on which other proxies of the group forward what this one owns. If empty, the next port at the host of
	// OpsAddr; `off` for none: then what lives on this proxy can be reached here alone.
	PeersAddr string
	// Bind is the host part of every listener. If empty, 127.0.0.1.
	Bind string
	// Name is what to call the proxy when it joins. If empty, the host's name.
	Name string
	// DiskKeyFile holds the key that seals the last good configuration. If empty, DataDir/proxy.key.
	DiskKeyFile string
	// MaxStale is how long configuration from disk may serve without a control plane. If zero, 24 h; if negative, for ever.
	MaxStale time.Duration
	// Fresh starts without the last good configuration: beside its control plane a proxy would serve what is older, and
	// only for a moment.
	Fresh bool
	// Drain is how long requests may still run once the proxy is told to stop. If zero, 30 s.
	Drain time.Duration
	// AccessLog gets a JSON line for each call. If nil, os.Stderr; io.Discard for none.
	AccessLog io.Writer
	// Version of the program, for reports.
	Version string
	// If nil, nothing is logged.
	Log *slog.Logger
	// Ready is called once, when the proxy serves a configuration, be it from disk, or knows that it has none. May be nil.
	Ready func(Addresses)

	// handlers is the request path. If nil, serve.go's.
	handlers func(proxyParts) func(port uint16) http.Handler
}

// Addresses are those of a proxy's sockets, as bound.
type Addresses struct {
	// Ops is empty if there is no operations port.
	Ops       string
	Listeners []string
}

// heapFloor is held and never written, so that it is address space and no memory. Without it a proxy, whose live heap is
// a few MiB, would collect garbage every 4 MiB, which is after some hundred calls. Unlike a larger GOGC it costs the same
// whatever the heap grows to: garbage of at most its size.
const heapFloor = 16 << 20

// Run serves until ctx ends; then it drains and returns nil. What makes a proxy useless from the start, e.g. a join token
// that is not good, is an error; a control plane that is away is not.
func Run(ctx context.Context, cfg Config) error {
	if cfg.XDSAddr == "" || cfg.DataDir == "" {
		return errors.New("a proxy needs the control plane's xDS address (--xds-addr) and a data directory (--data-dir)")
	}
	cfg.OpsAddr = cmp.Or(cfg.OpsAddr, "127.0.0.1:7072")
	cfg.Bind = cmp.Or(cfg.Bind, "127.0.0.1")
	cfg.Drain = cmp.Or(cfg.Drain, 30*time.Second)
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.AccessLog == nil {
		cfg.AccessLog = os.Stderr
	}
	if cfg.Name == "" {
		cfg.Name, _ = os.Hostname() // without one, the control plane makes one up
	}
	if cfg.Ready == nil {
		cfg.Ready = func(Addresses) {}
	}
	if cfg.handlers == nil {
		cfg.handlers = handlers
	}
	held, err := lock(ctx, cfg.DataDir)
	if err != nil {
		return err
	}
	defer held.Close()
	ops, err := openOps(cfg.OpsAddr)
	if err != nil {
		return err
	}
	between, err := openPeers(cfg)
	if err != nil {
		return err
	}
	p := &process{cfg: cfg, started: time.Now(), registry: telemetry.NewRegistry(), ops: ops, between: between, ask: make(chan struct{}, 1), news: make(chan struct{}, 1)}
	floor := make([]byte, heapFloor)
	defer runtime.KeepAlive(floor)
	return p.run(ctx)
}

func openOps(address string) (net.Listener, error) {
	if address == "off" {
		return nil, nil
	}
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("operations port: %w (choose another with --ops-addr, or off)", err)
	}
	return l, nil
}

// openPeers opens the port for peers. Beside its control plane a proxy is alone.
func openPeers(cfg Config) (net.Listener, error) {
	address := cfg.PeersAddr
	if address == "" {
		host, port, err := net.SplitHostPort(cfg.OpsAddr)
		number, numberErr := strconv.Atoi(port)
		switch {
		case cfg.Fresh || cfg.OpsAddr == "off":
			return nil, nil
		case err != nil || numberErr != nil:
			return nil, fmt.Errorf("operations port %q: no host and port number", cfg.OpsAddr)
		case number > 0:
			number++
		}
		address = net.JoinHostPort(host, strconv.Itoa(number))
	}
	if address == "off" {
		return nil, nil
	}
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("port for other proxies: %w (choose another with --peers-addr, or off)", err)
	}
	return l, nil
}

// process is a running proxy.
type process struct {
	cfg      Config
	started  time.Time
	registry *prometheus.Registry
	ops      net.Listener  // nil: none
	between  net.Listener  // for other proxies; nil: none
	ask      chan struct{} // holds one: the control plane is to be asked for peers
	news     chan struct{} // holds one: there is something to report

	identity   *mtls.Identity
	calls      *telemetry.Calls
	store      *snapshot.Store
	upstreams  *upstream.Manager
	newClients *newclient.Bridge
	listeners  *listener.Manager
	client     *xds.Client
	peers      *peers.Peers // nil: none

	state atomic.Pointer[string] // why it is not ready; nil: it is
}

// proxyParts are what the request path is made of.
type proxyParts struct {
	Store     *snapshot.Store
	Upstreams *upstream.Manager
	// NewClients is closed before Upstreams. If nil, the multiplexer has its own.
	NewClients *newclient.Bridge
	// Transport reaches a target. If nil, Upstreams does.
	Transport func(*snapshot.Target) upstream.Transport
	// Found is told what a target speaks. If nil, nobody is.
	Found func(t *snapshot.Target, versions []string)
	// Failed is told why a target's answer is of no use. If nil, nobody is.
	Failed func(t *snapshot.Target, err error)
	Calls  *telemetry.Calls
	Log    *slog.Logger
	// ProxyID names this proxy in sessions that live here.
	ProxyID string
	// Peers are the other proxies. Nil: none can be asked.
	Peers *peers.Peers
	// Loopback is true if listeners are bound to a loopback address.
	Loopback bool
}

// run lives in three stages: what must be there before anything is served, what runs while it serves, and the end.
func (p *process) run(ctx context.Context) error {
	// What runs beside the requests goes on until they have ended.
	running, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	group, running := errgroup.WithContext(running)
	p.notReady("starting")
	if p.ops != nil {
		group.Go(func() error { return telemetry.Ops{Ready: p.ready, Registry: p.registry}.Serve(running, p.ops) })
	}
	starting, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	context.AfterFunc(running, func() { cancel(context.Cause(running)) })
	err := p.start(starting)
	if err == nil {
		p.goAll(running, group)
		select {
		case <-ctx.Done():
		case <-running.Done(): // something ended that must not
		}
		p.notReady("stopping")
		draining, drained := context.WithTimeout(context.WithoutCancel(ctx), p.cfg.Drain)
		p.listeners.Close()
		if p.peers != nil {
			p.peers.Drain(draining)
		}
		drained()
		closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		err = errors.Join(p.newClients.Close(closing), p.upstreams.Close(closing))
		cancel()
	}
	stop()
	if failed := group.Wait(); failed != nil && !errors.Is(failed, context.Canceled) {
		err = errors.Join(err, failed)
	}
	if p.calls != nil {
		p.calls.Close()
	}
	if ctx.Err() != nil && errors.Is(err, context.Cause(ctx)) {
		return nil // stopped while it was starting
	}
	return err
}

// start brings the proxy to where it can serve: its identity, then what is on disk.
func (p *process) start(ctx context.Context) (err error) {
	p.notReady("joining the control plane")
	if p.identity, err = openIdentity(ctx, p.cfg); err != nil {
		return err
	}
	disk, err := snapshot.OpenDisk(p.cfg.DataDir, p.cfg.DiskKeyFile)
	if err != nil {
		return err
	}
	p.notReady("waiting for a first configuration")
	lines := p.cfg.AccessLog
	if lines == io.Discard {
		lines = nil
	}
	p.calls = telemetry.NewCalls(p.registry, lines)
	p.upstreams = upstream.New(upstream.Config{Log: p.cfg.Log})
	p.newClients = newclient.New(newclient.Config{
		Transport: p.upstreams.Transport, ProxyID: p.identity.ID().Proxy, Log: p.cfg.Log, Limits: mcp.Limits{Bytes: maxBody},
	})
	var handler func(port uint16) http.Handler
	p.listeners = listener.New(listener.Config{
		Host: p.cfg.Bind, Drain: p.cfg.Drain, Log: p.cfg.Log,
		Handler: func(port uint16) http.Handler { return handler(port) },
		TLS:     func(port uint16, name string) *snapshot.Listener { return p.store.Load().Server(port, name) },
	})
	p.store = snapshot.New(snapshot.Config{Bind: p.listeners.Bind, Disk: disk, MaxStale: p.cfg.MaxStale, Loopback: loopback(p.cfg.Bind), Log: p.cfg.Log})
	p.store.Subscribe(p.follow)
	if p.between != nil {
		p.peers = peers.New(peers.Config{Identity: p.identity, Log: p.cfg.Log, Refresh: p.askForPeers, Base: p.listeners.Context(),
			Handler: func(port uint16) http.Handler { return handler(port) }})
	}
	handler = p.cfg.handlers(proxyParts{
		Store: p.store, Upstreams: p.upstreams, Found: p.found, Failed: p.upstreams.Failed, NewClients: p.newClients, Calls: p.calls, Log: p.cfg.Log, Peers: p.peers,
		ProxyID: p.identity.ID().Proxy, Loopback: loopback(p.cfg.Bind),
	})
	p.client = xds.New(xds.Config{
		Dial: p.dial, Store: p.store, Proxy: p.identity.ID().Proxy, Group: p.identity.ID().Group, Log: p.cfg.Log,
		Committed: newMetrics(p.registry, p.store, func() bool { return p.client.State().Connected }).committed,
	})
	if p.cfg.Fresh {
		return nil
	}
	restored, err := p.store.Restore()
	if err != nil {
		p.cfg.Log.Error("last good configuration on disk is damaged", "err", err)
	}
	if restored {
		p.cfg.Log.Warn("serving the last good configuration from disk")
		p.becomeReady()
	}
	return nil
}

func (p *process) goAll(ctx context.Context, group *errgroup.Group) {
	group.Go(func() error { return p.store.Run(ctx) })
	group.Go(func() error { return p.client.Run(ctx) })
	group.Go(func() error {
		return p.identity.Keep(ctx, p.renew, func(err error) { p.cfg.Log.Error("certificate not renewed", "err", err) })
	})
	group.Go(func() error { return p.report(ctx) })
	if p.peers != nil {
		group.Go(func() error { return p.peers.Serve(ctx, p.between) })
	}
	group.Go(func() error {
		select {
		case <-p.client.Synced():
			if p.state.Load() != nil {
				p.becomeReady()
			}
		case <-ctx.Done():
		}
		return nil
	})
}

// follow is called after each swap.
func (p *process) follow(old, now *snapshot.Index) {
	p.upstreams.Retain(slices.Collect(now.Targets()))
	p.listeners.Follow(now)
	for t := range old.Tenants() {
		if now.Tenant(t.Name) == nil {
			p.calls.Forget(t.Name, "")
		}
	}
}

func (p *process) askForPeers() { nudge(p.ask) }

// found notes what a target speaks, for the next report, which comes soon.
func (p *process) found(t *snapshot.Target, versions []string) {
	p.upstreams.Found(t, versions)
	nudge(p.news)
}

// nudge makes who waits for the channel go on, now or when he comes to it.
func nudge(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

func (p *process) peersAddr() string {
	if p.between == nil {
		return ""
	}
	return p.between.Addr().String()
}

func (p *process) notReady(why string) { p.state.Store(&why) }

func (p *process) becomeReady() {
	p.state.Store(nil)
	p.cfg.Ready(p.addresses())
}

func (p *process) addresses() Addresses {
	a := Addresses{Listeners: p.listeners.Addresses()}
	if p.ops != nil {
		a.Ops = p.ops.Addr().String()
	}
	return a
}

// ready is for /readyz: stale is ready.
func (p *process) ready() (string, error) {
	if why := p.state.Load(); why != nil {
		return "", errors.New(*why)
	}
	for t := range p.store.Load().Tenants() {
		if t.Stale {
			return "stale", nil
		}
	}
	return "ok", nil
}

func (p *process) dial() (*grpc.ClientConn, error) {
	return dial(p.cfg.XDSAddr, p.identity.ClientConfig())
}

// window is how much the control plane may send that is not read yet.
const window = 2 << 20

func dial(address string, config *tls.Config) (*grpc.ClientConn, error) {
	return grpc.NewClient(address,
		grpc.WithTransportCredentials(credentials.NewTLS(config)),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(64<<20)), // a chunk is 512 KiB, but a resource may be larger
		// Room for a few chunks on a long way. With a window that gRPC finds out by itself, each push would cost the control
		// plane a ping of every proxy.
		grpc.WithStaticStreamWindowSize(window),
		grpc.WithStaticConnWindowSize(window),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 30 * time.Second, Timeout: 15 * time.Second}),
	)
}

func loopback(host string) bool {
	if host == "localhost" {
		return true
	}
	addr, err := netip.ParseAddr(host)
	return err == nil && addr.IsLoopback()
}
