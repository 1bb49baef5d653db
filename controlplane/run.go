// Package controlplane stores what operators want, derives from it what proxies are given, and streams that to them.
//
// The data's way: api (who asks, is it valid) → publish.go (derive, validate, commit, publish) → merge (pure) → store →
// xds (to the proxies). [Run] joins them.
package controlplane

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"

	"github.com/sluicegate/sluice/controlplane/api"
	"github.com/sluicegate/sluice/controlplane/store"
	"github.com/sluicegate/sluice/controlplane/tenant"
	"github.com/sluicegate/sluice/controlplane/xds"
	"github.com/sluicegate/sluice/internal/mtls"
	"github.com/sluicegate/sluice/internal/policy"
	"github.com/sluicegate/sluice/internal/telemetry"
)

// Default addresses.
const (
	DefaultAdminAddr = "127.0.0.1:7070"
	DefaultXDSAddr   = "127.0.0.1:7071"
	DefaultOpsAddr   = "127.0.0.1:7074"
)

const drainTime = 5 * time.Second // for admin calls that are under way at shutdown

// Config of a control plane. The zero value of each field but DataDir will do.
type Config struct {
	// Where all state is: store.db, cluster.key, ca/, and what others need from it: admin.token (0600), ca.pem. Made if
	// it is not there. One process at a time.
	DataDir string
	// Addresses to listen on, `host:port`. If empty, the defaults above. Port 0: any.
	AdminAddr, XDSAddr, OpsAddr string
	// Local powers of the tenant `default`, as internal/policy.ParseGrants takes them. If nil they stay as they are, which
	// is none in a new DataDir; if empty they are taken away.
	Allow []string
	// Key that seals secrets: 32 bytes in base64, readable by the owner alone. If empty, DataDir/cluster.key, which is made.
	ClusterKeyFile string
	// If nil, slog.Default().
	Log *slog.Logger
	// Called once when everything serves. May be nil.
	Ready func(Addresses)
}

// Addresses that a control plane listens on, as bound. As JSON it is what stands behind `ready` on stdout.
type Addresses struct {
	Admin string `json:"admin"`
	XDS   string `json:"xds"`
	Ops   string `json:"ops"`
	// Always empty: it is proxies that have listeners.
	Listeners []string `json:"listeners"`
}

// Run serves until ctx ends, and then returns nil once all calls under way are answered or drainTime is over. An
// error before Ready was called means that nothing was served.
func Run(ctx context.Context, c Config) error {
	if c.DataDir == "" {
		return errors.New("a data directory is needed (--data-dir)")
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	grants, err := policy.ParseGrants(c.Allow)
	if err != nil {
		return fmt.Errorf("--allow: %w", err)
	}
	if c.Allow != nil {
		c.Allow = append([]string{}, grants.Words()...)
	}
	if err := os.MkdirAll(c.DataDir, 0o700); err != nil {
		return err
	}
	if emptied(c.DataDir) {
		return fmt.Errorf("%s is empty, and was not: put a backup of it there, or remove it to begin with nothing", filepath.Join(c.DataDir, "store.db"))
	}
	s, err := store.OpenBolt(filepath.Join(c.DataDir, "store.db"))
	if err != nil {
		return err
	}
	return errors.Join(run(ctx, c, s), s.Close())
}

// emptied tells whether dir's store lost all that it held: the CA is made once it holds something.
func emptied(dir string) bool {
	file, err := os.Stat(filepath.Join(dir, "store.db"))
	if err != nil || file.Size() > 0 {
		return false
	}
	_, err = os.Stat(filepath.Join(dir, "ca", "ca.crt"))
	return err == nil
}

// run is Run with an open store.
func run(ctx context.Context, c Config, s store.Store) error {
	p, err := newPlane(ctx, c, s)
	if err != nil {
		return err
	}
	if err := p.listen(c); err != nil {
		return err
	}
	defer p.closeListeners()

	// The loop outlives the servers: what they took in, it answers.
	loopCtx, stopLoop := context.WithCancel(context.WithoutCancel(ctx))
	var loop errgroup.Group
	loop.Go(func() error { p.publisher.run(loopCtx); return nil })
	defer func() { stopLoop(); loop.Wait() }() //nolint:errcheck // always nil

	// Everything is loaded and published before anybody is served: a proxy must never take "not loaded yet" for "removed".
	if err := p.publisher.load(ctx); err != nil {
		return fmt.Errorf("load %s: %w", c.DataDir, err)
	}
	if err := p.bootstrap(ctx, c); err != nil {
		return err
	}
	return p.serve(ctx, c)
}

// plane is a control plane's parts.
type plane struct {
	log       *slog.Logger
	registry  *tenant.Registry
	identity  *mtls.Identity
	issue     mtls.Issuer
	publisher *publisher
	api       *api.Server
	server    *xds.Server
	meter     *meter

	admin, xds, ops net.Listener
}

func newPlane(ctx context.Context, c Config, s store.Store) (*plane, error) {
	keyFile := c.ClusterKeyFile
	if keyFile == "" {
		keyFile = filepath.Join(c.DataDir, "cluster.key")
	}
	vault, err := tenant.OpenVault(ctx, s, keyFile, c.ClusterKeyFile == "")
	if err != nil {
		return nil, err
	}
	ca, err := mtls.OpenCA(filepath.Join(c.DataDir, "ca"), "")
	if err != nil {
		return nil, err
	}
	registry, err := tenant.OpenRegistry(ctx, s, nil)
	if err != nil {
		return nil, err
	}
	p := &plane{log: c.Log, registry: registry}
	p.issue = func(_ context.Context, csr []byte) (mtls.Certificates, error) {
		return ca.Sign(mtls.Request{CSR: csr, Hosts: p.hosts()})
	}
	p.server = xds.New(xds.Config{Identify: p.identify, Log: c.Log})
	p.meter = newMeter(p)
	p.publisher = &publisher{
		store: s, vault: vault, server: p.server, keys: newKeyFetcher(c.Log, time.Now), log: c.Log, now: time.Now, meter: p.meter,
		requests: make(chan *request), done: make(chan struct{}),
	}
	p.api, err = api.New(api.Config{Store: s, Registry: registry, Vault: vault, CA: ca, Publisher: p.publisher,
		Fleet: proxies{p.server}, Log: c.Log})
	if err != nil {
		return nil, err
	}
	return p, writeCA(c.DataDir, ca)
}

// identify tells the xDS server who is at the other end, from the certificate alone.
func (p *plane) identify(ctx context.Context) (xds.Peer, error) {
	peer, err := mtls.PeerFromContext(ctx)
	if err != nil {
		return xds.Peer{}, err
	}
	if err := p.registry.Admit(peer.ID.Group, peer.ID.Proxy); err != nil {
		return xds.Peer{}, err
	}
	return xds.Peer{ID: peer.ID.Proxy, Group: peer.ID.Group, Expires: peer.Certificate.NotAfter}, nil
}

func (p *plane) listen(c Config) (err error) {
	for _, l := range []struct {
		flag, addr, fallback string
		into                 *net.Listener
	}{
		{"--admin-addr", c.AdminAddr, DefaultAdminAddr, &p.admin},
		{"--xds-addr", c.XDSAddr, DefaultXDSAddr, &p.xds},
		{"--ops-addr", c.OpsAddr, DefaultOpsAddr, &p.ops},
	} {
		if l.addr == "" {
			l.addr = l.fallback
		}
		if *l.into, err = net.Listen("tcp", l.addr); err != nil {
			p.closeListeners()
			return fmt.Errorf("%s: %w", l.flag, err)
		}
	}
	return nil
}

func (p *plane) closeListeners() {
	for _, l := range []net.Listener{p.admin, p.xds, p.ops} {
		if l != nil {
			l.Close()
		}
	}
}

// bootstrap makes what every installation has: the tenant `default` and a first admin token. It ends what a deletion of a tenant
// that was cut short left behind.
func (p *plane) bootstrap(ctx context.Context, c Config) error {
	gone := func(name string) bool { _, ok := p.publisher.View(name); return !ok }
	if err := p.registry.RevokeTenants(ctx, gone); err != nil {
		return err
	}
	view, ok := p.publisher.View(tenant.Default)
	if !ok || c.Allow != nil && !slices.Equal(view.Grants, c.Allow) {
		grants := slices.Clone(c.Allow)
		_, err := p.publisher.Submit(ctx, api.Edit{Tenant: tenant.Default, Actor: "controlplane", Comment: "start with --allow",
			Plan: func(context.Context, api.World) ([]api.Change, error) {
				return []api.Change{{Tenant: tenant.Default, Create: !ok, Grants: &grants}}, nil
			}})
		if err != nil {
			return err
		}
	}
	return p.registry.Bootstrap(ctx, c.DataDir)
}

// serve opens the three ports and waits for the end.
func (p *plane) serve(ctx context.Context, c Config) error {
	var err error
	if p.identity, err = mtls.NewIdentity(ctx, "", p.issue); err != nil {
		return err
	}
	secure := grpc.Creds(credentials.NewTLS(p.identity.ServerConfig()))
	adminOptions := []grpc.ServerOption{grpc.ConnectionTimeout(10 * time.Second),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 10 * time.Second, PermitWithoutStream: true})}
	if !loopback(p.admin) {
		adminOptions = append(adminOptions, secure)
	}
	admin := p.api.Admin(adminOptions...)
	fleet := p.api.Proxies(p.server.Register, append(xds.ServerOptions(), secure)...)
	registry := telemetry.NewRegistry()
	registry.MustRegister(p.meter)

	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return accept(admin, p.admin) })
	group.Go(func() error { return accept(fleet, p.xds) })
	group.Go(func() error { return telemetry.Ops{Ready: ready, Registry: registry}.Serve(ctx, p.ops) })
	group.Go(func() error { p.publisher.refreshKeys(ctx); return nil })
	group.Go(func() error {
		select {
		case <-ctx.Done():
			return nil
		case <-p.publisher.done:
			return p.publisher.broken
		}
	})
	group.Go(func() error {
		report := func(err error) { p.log.Warn("renew the control plane's certificate", "err", err) }
		if err := p.identity.Keep(ctx, p.issue, report); ctx.Err() == nil {
			return err
		}
		return nil
	})
	group.Go(func() error {
		<-ctx.Done()
		p.server.Close()
		drain(admin, fleet)
		return nil
	})
	addresses := Addresses{Admin: p.admin.Addr().String(), XDS: p.xds.Addr().String(), Ops: p.ops.Addr().String(), Listeners: []string{}}
	p.log.Info("control plane serves", "admin", addresses.Admin, "xds", addresses.XDS, "ops", addresses.Ops, "tenants", len(p.publisher.Views()))
	if c.Ready != nil {
		c.Ready(addresses)
	}
	return group.Wait()
}

// accept serves until the server is stopped, which may be before it began.
func accept(g *grpc.Server, l net.Listener) error {
	if err := g.Serve(l); !errors.Is(err, grpc.ErrServerStopped) {
		return err
	}
	return nil
}

// ready is asked once the ports are open, and they open when all is loaded.
func ready() (string, error) { return "ok", nil }

// drain ends both servers: calls under way are answered, streams end so that proxies look for another control plane.
func drain(admin, fleet *grpc.Server) {
	graceful := make(chan struct{})
	go func() {
		defer close(graceful)
		admin.GracefulStop()
	}()
	fleet.Stop()
	select {
	case <-graceful:
	case <-time.After(drainTime):
		admin.Stop()
		<-graceful
	}
}

func loopback(l net.Listener) bool {
	addr, ok := l.Addr().(*net.TCPAddr)
	return ok && addr.IP.IsLoopback()
}

// hosts are the names on the control plane's certificate, for clients that check names: those of the admin port.
func (p *plane) hosts() []string {
	hosts := []string{"localhost", "127.0.0.1", "::1"}
	if name, err := os.Hostname(); err == nil {
		hosts = append(hosts, name)
	}
	addr, ok := p.admin.Addr().(*net.TCPAddr)
	if !ok || addr.IP.IsLoopback() {
		return hosts
	}
	if !addr.IP.IsUnspecified() {
		return append(hosts, addr.IP.String())
	}
	all, err := net.InterfaceAddrs()
	if err != nil {
		return hosts
	}
	for _, a := range all {
		if network, ok := a.(*net.IPNet); ok && !network.IP.IsLoopback() {
			hosts = append(hosts, network.IP.String())
		}
	}
	return hosts
}
