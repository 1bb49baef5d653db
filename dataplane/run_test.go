package dataplane

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/sluicegate/sluice/dataplane/listener"
	"github.com/sluicegate/sluice/dataplane/peers"
	"github.com/sluicegate/sluice/dataplane/snapshot"
	"github.com/sluicegate/sluice/internal/mtls"
	fleetv1 "github.com/sluicegate/sluice/proto/gen/sluice/fleet/v1"
	xdsv1 "github.com/sluicegate/sluice/proto/gen/sluice/xds/v1"
)

// controlPlane is a small one of this test's own: joins, reports and one revision for whoever connects.
type controlPlane struct {
	fleetv1.UnimplementedFleetServer
	discoveryv3.UnimplementedAggregatedDiscoveryServiceServer
	t    *testing.T
	ca   *mtls.CA
	addr string
	stop func()

	mu      sync.Mutex // guards what is below
	tokens  map[[32]byte]bool
	joins   int
	reports []*fleetv1.ReportRequest
	answers []*discoveryv3.DeltaDiscoveryRequest
	config  map[string]*xdsv1.Config // what is pushed, by name
	peers   []*fleetv1.Peer
}

// startControlPlane listens on addr with the CA of dir.
func startControlPlane(t *testing.T, dir, addr string) *controlPlane {
	t.Helper()
	ca, err := mtls.OpenCA(dir, "")
	if err != nil {
		t.Fatal(err)
	}
	c := &controlPlane{t: t, ca: ca, tokens: map[[32]byte]bool{}, config: map[string]*xdsv1.Config{}}
	identity, err := mtls.NewIdentity(t.Context(), "", func(_ context.Context, csr []byte) (mtls.Certificates, error) {
		return ca.Sign(mtls.Request{CSR: csr})
	})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer(grpc.Creds(credentials.NewTLS(identity.ServerConfig())))
	fleetv1.RegisterFleetServer(server, c)
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(server, c)
	done := make(chan struct{})
	go func() { defer close(done); server.Serve(l) }()
	c.addr = l.Addr().String()
	c.stop = sync.OnceFunc(func() { server.Stop(); <-done })
	t.Cleanup(c.stop)
	return c
}

func (c *controlPlane) token() string {
	t := mtls.NewJoinToken(c.ca.Pin())
	c.mu.Lock()
	defer c.mu.Unlock()
	c.tokens[t.Hash()] = true
	return t.Encode()
}

func (c *controlPlane) Join(_ context.Context, r *fleetv1.JoinRequest) (*fleetv1.CertificateResponse, error) {
	token, err := mtls.ParseJoinToken(r.GetToken())
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.tokens[token.Hash()] {
		return nil, status.Error(codes.Unauthenticated, "the join token was used up")
	}
	delete(c.tokens, token.Hash())
	c.joins++
	return c.sign(r.GetCsr(), mtls.ID{Group: "default", Proxy: r.GetName()})
}

func (c *controlPlane) sign(csr []byte, id mtls.ID) (*fleetv1.CertificateResponse, error) {
	certs, err := c.ca.Sign(mtls.Request{CSR: csr, ID: id})
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	return &fleetv1.CertificateResponse{Certificates: certs.Chain, Roots: certs.Roots, Identity: id.String()}, nil
}

func (c *controlPlane) Renew(ctx context.Context, r *fleetv1.RenewRequest) (*fleetv1.CertificateResponse, error) {
	p, err := mtls.PeerFromContext(ctx)
	if err != nil && !errors.Is(err, mtls.ErrExpired) {
		return nil, status.Error(codes.Unauthenticated, err.Error())
	}
	return c.sign(r.GetCsr(), mtls.ID{Group: p.ID.Group, Proxy: p.ID.Proxy})
}

func (c *controlPlane) Report(ctx context.Context, r *fleetv1.ReportRequest) (*fleetv1.ReportResponse, error) {
	if _, err := mtls.PeerFromContext(ctx); err != nil {
		return nil, status.Error(codes.Unauthenticated, err.Error())
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.reports = append(c.reports, r)
	return &fleetv1.ReportResponse{Interval: durationpb.New(time.Second), Peers: c.peers, PeersVersion: fmt.Sprint(len(c.peers))}, nil
}

func (c *controlPlane) DeltaAggregatedResources(s grpc.BidiStreamingServer[discoveryv3.DeltaDiscoveryRequest, discoveryv3.DeltaDiscoveryResponse]) error {
	p, err := mtls.PeerFromContext(s.Context())
	if err != nil {
		return status.Error(codes.Unauthenticated, err.Error())
	}
	for range 2 {
		r, err := s.Recv()
		if err != nil {
			return err
		}
		if r.GetNode().GetId() != p.ID.Proxy || r.GetNode().GetCluster() != p.ID.Group {
			return status.Errorf(codes.PermissionDenied, "%s says it is %v", p.ID, r.GetNode())
		}
	}
	response, err := c.revision()
	if err != nil {
		return err
	}
	if err := s.Send(response); err != nil {
		return err
	}
	for {
		r, err := s.Recv()
		if err != nil {
			return err
		}
		c.mu.Lock()
		c.answers = append(c.answers, r)
		c.mu.Unlock()
	}
}

func (c *controlPlane) revision() (*discoveryv3.DeltaDiscoveryResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var digest [32]byte
	r := &discoveryv3.DeltaDiscoveryResponse{TypeUrl: snapshot.ConfigType, Nonce: "1"}
	add := func(name string, config *xdsv1.Config) error {
		body, err := proto.MarshalOptions{Deterministic: true}.Marshal(config)
		if err != nil {
			return err
		}
		version := strconv.Itoa(len(body))
		if config.GetCommit() == nil {
			for i, b := range sha256.Sum256([]byte(snapshot.ConfigType + "\x00" + name + "\x00" + version)) {
				digest[i] ^= b
			}
		}
		r.Resources = append(r.Resources, &discoveryv3.Resource{Name: name, Version: version, Resource: &anypb.Any{TypeUrl: snapshot.ConfigType, Value: body}})
		return nil
	}
	for name, config := range c.config {
		if err := add(name, config); err != nil {
			return nil, err
		}
	}
	return r, add("default/commit/default", &xdsv1.Config{Resource: &xdsv1.Config_Commit{Commit: &xdsv1.Commit{Revision: 4, Digest: digest[:]}}})
}

// serve makes the tenant default listen on a port, with one route.
func (c *controlPlane) serve(port int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.config["default/tenant/default"] = &xdsv1.Config{Resource: &xdsv1.Config_TenantInfo{TenantInfo: &xdsv1.TenantInfo{}}}
	c.config["default/listener/l"] = &xdsv1.Config{Resource: &xdsv1.Config_Listener{Listener: &xdsv1.Listener{Port: uint32(port)}}}
	c.config["default/route/r"] = &xdsv1.Config{Resource: &xdsv1.Config_Route{Route: &xdsv1.Route{Listener: "default/listener/l"}}}
}

// running is a proxy process of this test, as far as a goroutine can be one.
type running struct {
	t     *testing.T
	ready chan Addresses
	done  chan error
	stop  context.CancelFunc
}

func startProxy(t *testing.T, cfg Config) *running {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	r := &running{t: t, ready: make(chan Addresses, 1), done: make(chan error, 1), stop: stop}
	cfg.Ready = func(a Addresses) { r.ready <- a }
	cfg.OpsAddr, cfg.Name, cfg.AccessLog = "127.0.0.1:0", "p", io.Discard
	cfg.Log = slog.New(slog.NewTextHandler(t.Output(), nil))
	// What serves is not this test's matter, but which revision does.
	revisions := func(p proxyParts) func(uint16) http.Handler {
		return func(port uint16) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				found, err := p.Store.Load().Route(port, r)
				if err != nil {
					http.Error(w, err.Error(), http.StatusNotFound)
					return
				}
				json.NewEncoder(w).Encode(map[string]any{"route": found.Name, "revision": found.Tenant.Revision, "stale": found.Tenant.Stale, "proxy": p.ProxyID})
			})
		}
	}
	if cfg.handlers == nil {
		cfg.handlers = revisions
	}
	go func() { r.done <- Run(ctx, cfg) }()
	t.Cleanup(func() { r.end() })
	return r
}

func (r *running) wait() Addresses {
	r.t.Helper()
	select {
	case a := <-r.ready:
		return a
	case err := <-r.done:
		r.t.Fatalf("Run() = %v before it was ready", err)
	case <-time.After(10 * time.Second):
		r.t.Fatal("not ready after 10 s")
	}
	return Addresses{}
}

func (r *running) end() error {
	r.stop()
	select {
	case err, ok := <-r.done:
		if ok {
			close(r.done)
		}
		return err
	case <-time.After(10 * time.Second):
		r.t.Error("the proxy does not stop")
		return nil
	}
}

func fetch(t *testing.T, url string) (int, string) {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 5 * time.Second}
	resp, err := client.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, strings.TrimSpace(string(body))
}

func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !holds(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
	}
}

func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// TestLifeOfAProxy: it joins, serves and reports; restarted without its control plane it serves from disk within a second
// and says so; and it is confirmed when the control plane is back.
func TestLifeOfAProxy(t *testing.T) {
	caDir, dataDir := t.TempDir(), t.TempDir()
	cp := startControlPlane(t, caDir, "127.0.0.1:0")
	port := freePort(t)
	cp.serve(port)
	url := "http://127.0.0.1:" + strconv.Itoa(port) + "/"

	p := startProxy(t, Config{XDSAddr: cp.addr, JoinToken: cp.token(), DataDir: dataDir})
	a := p.wait()
	if len(a.Listeners) != 1 || a.Listeners[0] != "127.0.0.1:"+strconv.Itoa(port) || a.Ops == "" {
		t.Errorf("addresses %+v", a)
	}
	if code, body := fetch(t, url); code != 200 || body != `{"proxy":"p","revision":4,"route":"r","stale":false}` {
		t.Errorf("served %d %s", code, body)
	}
	if code, body := fetch(t, "http://"+a.Ops+"/readyz"); code != 200 || body != "ok" {
		t.Errorf("/readyz: %d %s", code, body)
	}
	if _, body := fetch(t, "http://"+a.Ops+"/metrics"); !strings.Contains(body, `sluice_active_revision{tenant="default"} 4`) || !strings.Contains(body, "sluice_control_plane_connected 1") {
		t.Error("/metrics tells neither revision nor connection")
	}
	eventually(t, "ACK and report", func() bool {
		cp.mu.Lock()
		defer cp.mu.Unlock()
		return len(cp.answers) == 1 && cp.answers[0].GetErrorDetail() == nil && len(cp.reports) > 0
	})
	cp.mu.Lock()
	report := cp.reports[len(cp.reports)-1]
	cp.mu.Unlock()
	if len(report.GetTenants()) != 1 || report.GetTenants()[0].GetRevision() != 4 || report.GetTenants()[0].GetStale() || report.GetOps() != a.Ops || len(report.GetListeners()) != 1 {
		t.Errorf("report %v", report)
	}
	eventually(t, "configuration on disk", func() bool { _, err := os.Stat(filepath.Join(dataDir, "config.sealed")); return err == nil })
	if err := p.end(); err != nil {
		t.Errorf("Run() = %v", err)
	}
	cp.stop()

	start := time.Now()
	p = startProxy(t, Config{XDSAddr: cp.addr, DataDir: dataDir})
	a = p.wait()
	if took := time.Since(start); took > time.Second {
		t.Errorf("ready after %v, want within 1 s", took)
	}
	if code, body := fetch(t, url); code != 200 || !strings.Contains(body, `"stale":true`) || !strings.Contains(body, `"revision":4`) {
		t.Errorf("from disk: %d %s", code, body)
	}
	if code, body := fetch(t, "http://"+a.Ops+"/readyz"); code != 200 || body != "stale" {
		t.Errorf("/readyz: %d %s", code, body)
	}
	cp = startControlPlane(t, caDir, cp.addr)
	cp.serve(port)
	eventually(t, "confirmed", func() bool { _, body := fetch(t, url); return strings.Contains(body, `"stale":false`) })
	eventually(t, "report", func() bool {
		cp.mu.Lock()
		defer cp.mu.Unlock()
		return len(cp.reports) > 0 && !cp.reports[len(cp.reports)-1].GetTenants()[0].GetStale()
	})
	if cp.joins != 0 {
		t.Error("joined again with an identity on disk")
	}
}

// TestStopDrainsForwarded: what other proxies have forwarded ends as what clients have sent: standing streams at once, calls in their time, on
// targets that are still there.
func TestStopDrainsForwarded(t *testing.T) {
	cp := startControlPlane(t, t.TempDir(), "127.0.0.1:0")
	cp.serve(freePort(t))
	begun, stopping := make(chan struct{}, 2), make(chan struct{})
	p := startProxy(t, Config{XDSAddr: cp.addr, JoinToken: cp.token(), DataDir: t.TempDir(), PeersAddr: "127.0.0.1:0",
		handlers: func(parts proxyParts) func(uint16) http.Handler {
			return func(uint16) http.Handler {
				return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					begun <- struct{}{}
					select {
					case <-listener.Draining(r.Context()):
					case <-r.Context().Done():
						return
					}
					if r.Method == http.MethodGet {
						return
					}
					<-stopping // the stream has ended
					fmt.Fprint(w, "done")
				})
			}
		}})
	p.wait()
	var address string
	eventually(t, "the address for peers", func() bool {
		cp.mu.Lock()
		defer cp.mu.Unlock()
		for _, r := range cp.reports {
			address = r.GetPeersAddr()
		}
		return address != ""
	})
	identity, err := mtls.NewIdentity(t.Context(), "", func(_ context.Context, csr []byte) (mtls.Certificates, error) {
		return cp.ca.Sign(mtls.Request{CSR: csr, ID: mtls.ID{Group: "default", Proxy: "q"}})
	})
	if err != nil {
		t.Fatal(err)
	}
	peer := peers.New(peers.Config{Identity: identity})
	t.Cleanup(peer.Close)
	peer.Set(map[string]string{"p": address})
	cp.mu.Lock()
	cp.peers = []*fleetv1.Peer{{Proxy: "q", Address: "127.0.0.1:1"}}
	cp.mu.Unlock()
	forward := func(method string) <-chan error {
		over := make(chan error, 1)
		go func() {
			w := httptest.NewRecorder()
			err := peer.Forward(w, httptest.NewRequest(method, "/mcp", nil), 3000, "p", nil)
			if err == nil && method == http.MethodPost && w.Body.String() != "done" {
				err = fmt.Errorf("%d %s", w.Code, w.Body)
			}
			over <- err
		}()
		<-begun
		return over
	}
	stream, call := forward(http.MethodGet), forward(http.MethodPost)
	p.stop()
	if err := <-stream; err != nil {
		t.Errorf("the stream: %v", err)
	}
	close(stopping)
	if err := <-call; err != nil {
		t.Errorf("the call: %v", err)
	}
	if err := p.end(); err != nil {
		t.Error(err)
	}
}

func TestJoin(t *testing.T) {
	cp, other := startControlPlane(t, t.TempDir(), "127.0.0.1:0"), startControlPlane(t, t.TempDir(), "127.0.0.1:0")
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte(cp.token()+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name, token, err string
	}{
		{"from a file", "@" + file, ""},
		{"none", "", "sluice token create"},
		{"unknown", mtls.NewJoinToken(cp.ca.Pin()).Encode(), "used up"},
		{"of another control plane", other.token(), "another key"},
		{"damaged", cp.token()[:50], "join token"},
		{"no such file", "@/no/such/file", "no such file"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := startProxy(t, Config{XDSAddr: cp.addr, JoinToken: tt.token, DataDir: t.TempDir()})
			if tt.err == "" {
				p.wait()
				return
			}
			select {
			case err := <-p.done:
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Errorf("Run() = %v, want an error with %q", err, tt.err)
				}
				p.done <- err
			case <-time.After(10 * time.Second):
				t.Error("Run() goes on")
			}
		})
	}
}

// TestJoinWaits: proxies and control plane may start in any order.
func TestJoinWaits(t *testing.T) {
	dir := t.TempDir()
	cp := startControlPlane(t, dir, "127.0.0.1:0")
	token := cp.token()
	cp.stop()
	p := startProxy(t, Config{XDSAddr: cp.addr, JoinToken: token, DataDir: t.TempDir()})
	time.Sleep(300 * time.Millisecond)
	again := startControlPlane(t, dir, cp.addr)
	again.mu.Lock()
	again.tokens = cp.tokens
	again.mu.Unlock()
	if a := p.wait(); len(a.Listeners) != 0 {
		t.Errorf("addresses %+v of a proxy that has nothing to serve", a)
	}
}

// TestJoinsAnew: a token of another control plane wins over the identity of the one before.
func TestJoinsAnew(t *testing.T) {
	dataDir := t.TempDir()
	first, second := startControlPlane(t, t.TempDir(), "127.0.0.1:0"), startControlPlane(t, t.TempDir(), "127.0.0.1:0")
	p := startProxy(t, Config{XDSAddr: first.addr, JoinToken: first.token(), DataDir: dataDir})
	p.wait()
	p.end()
	p = startProxy(t, Config{XDSAddr: second.addr, JoinToken: second.token(), DataDir: dataDir})
	p.wait()
	if second.joins != 1 {
		t.Errorf("%d joins at the second control plane, want 1", second.joins)
	}
}

func TestRunNeeds(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	for _, tt := range []struct {
		cfg Config
		err string
	}{
		{Config{}, "--xds-addr"},
		{Config{XDSAddr: "x"}, "--data-dir"},
		{Config{XDSAddr: "x", DataDir: t.TempDir(), OpsAddr: taken.Addr().String()}, "--ops-addr"},
	} {
		if err := Run(t.Context(), tt.cfg); err == nil || !strings.Contains(err.Error(), tt.err) {
			t.Errorf("Run(%+v) = %v, want an error with %q", tt.cfg, err, tt.err)
		}
	}
}

func TestOneProxyInADataDirectory(t *testing.T) {
	c := startControlPlane(t, t.TempDir(), "127.0.0.1:0")
	cfg := Config{XDSAddr: c.addr, DataDir: t.TempDir(), JoinToken: c.token()}
	first := startProxy(t, cfg)
	first.wait()
	second := cfg
	second.OpsAddr = "off"
	if err := Run(t.Context(), second); err == nil || !strings.Contains(err.Error(), "in use by another proxy") {
		t.Errorf("a second proxy: %v", err)
	}
	// The first is not disturbed, and leaves the directory to the next.
	first.end()
	startProxy(t, cfg).wait()
}
