package controlplane

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/sluicegate/sluice/controlplane/xds"
	"github.com/sluicegate/sluice/internal/mtls"
	"github.com/sluicegate/sluice/internal/resource"
	adminv1 "github.com/sluicegate/sluice/proto/gen/sluice/admin/v1"
	fleetv1 "github.com/sluicegate/sluice/proto/gen/sluice/fleet/v1"
	xdsv1 "github.com/sluicegate/sluice/proto/gen/sluice/xds/v1"
)

// running is a control plane of a test, and its first admin's client.
type running struct {
	adminv1.AdminClient
	t     testing.TB
	dir   string
	at    Addresses
	log   *lines
	stop  func() // and wait
	token string
}

// lines collects a log.
type lines struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// start runs a control plane on dir until the test ends or stop is called.
func start(t testing.TB, dir string, allow ...string) *running {
	t.Helper()
	r := &running{t: t, dir: dir, log: &lines{}}
	ctx, cancel := context.WithCancel(context.Background())
	ready, done := make(chan Addresses, 1), make(chan error, 1)
	c := Config{DataDir: dir, AdminAddr: "127.0.0.1:0", XDSAddr: "127.0.0.1:0", OpsAddr: "127.0.0.1:0", Allow: allow,
		Log: slog.New(slog.NewTextHandler(r.log, nil)), Ready: func(a Addresses) { ready <- a }}
	go func() { done <- Run(ctx, c) }()
	select {
	case r.at = <-ready:
	case err := <-done:
		t.Fatalf("Run: %v", err)
	}
	r.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	t.Cleanup(r.stop)
	text, err := os.ReadFile(filepath.Join(dir, "admin.token"))
	if err != nil {
		t.Fatal(err)
	}
	r.token = strings.TrimSpace(string(text))
	r.AdminClient = r.client(r.token)
	return r
}

// client returns the admin API as seen with a token.
func (r *running) client(token string) adminv1.AdminClient {
	r.t.Helper()
	bearer := func(ctx context.Context) context.Context {
		return metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token)
	}
	conn, err := grpc.NewClient(r.at.Admin, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithUnaryInterceptor(func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
			return invoke(bearer(ctx), method, req, reply, cc, opts...)
		}),
		grpc.WithStreamInterceptor(func(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, open grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
			return open(bearer(ctx), desc, cc, method, opts...)
		}))
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { conn.Close() })
	return adminv1.NewAdminClient(conn)
}

// load reads a configuration as the CLI does.
func load(t testing.TB, yaml string) resource.Set {
	t.Helper()
	set, diagnostics := resource.Load([]resource.File{{Name: "test.yaml", Data: []byte(yaml)}}, func(string) (string, bool) { return "", false })
	if resource.Failed(diagnostics) {
		t.Fatalf("load: %s", resource.Format(diagnostics[0]))
	}
	return set
}

// applyRequest is an Apply of a configuration.
func applyRequest(t testing.TB, yaml string) *adminv1.ApplyRequest {
	t.Helper()
	set := load(t, yaml)
	return &adminv1.ApplyRequest{Objects: set.Objects, Single: set.Single}
}

// apply pushes a configuration and expects it to be taken.
func (r *running) apply(yaml string, change ...func(*adminv1.ApplyRequest)) *adminv1.ApplyResponse {
	r.t.Helper()
	req := applyRequest(r.t, yaml)
	for _, c := range change {
		c(req)
	}
	resp, err := r.Apply(r.t.Context(), req)
	if err != nil {
		r.t.Fatalf("apply: %v%s", err, diagnosticsOf(err))
	}
	return resp
}

func diagnosticsOf(err error) string {
	var text strings.Builder
	for _, detail := range status.Convert(err).Details() {
		if d, ok := detail.(*adminv1.Diagnostics); ok {
			for _, one := range d.GetDiagnostics() {
				text.WriteString("\n\t" + resource.Format(one))
			}
		}
	}
	return text.String()
}

func forTenant(name string) func(*adminv1.ApplyRequest) {
	return func(r *adminv1.ApplyRequest) { r.Tenant = name }
}

func (r *running) createTenant(name string, grants ...string) {
	r.t.Helper()
	if _, err := r.CreateTenant(r.t.Context(), &adminv1.CreateTenantRequest{Name: name, Grants: grants}); err != nil {
		r.t.Fatal(err)
	}
}

func keys(changes []*adminv1.Change) []string {
	var all []string
	for _, c := range changes {
		all = append(all, fmt.Sprintf("%s %s/%s", strings.TrimPrefix(c.GetOp().String(), "OP_"), c.GetKind(), c.GetName()))
	}
	slices.Sort(all)
	return all
}

// edge is a proxy as the control plane sees one: it joins, subscribes and answers, and builds nothing.
type edge struct {
	t        testing.TB
	id       string
	identity *mtls.Identity
	conn     *grpc.ClientConn
	fleet    fleetv1.FleetClient

	mu      sync.Mutex
	names   map[string]string // resources held, with their versions
	commits map[string]int64  // by tenant
	refuse  map[string]string // name → reason
	hold    bool              // answer nothing
	waiting []func()
	send    func(*discovery.DeltaDiscoveryRequest) error
	ended   chan error
}

// join enrols a proxy with a fresh token of a group.
func (r *running) join(group, name string) *edge {
	r.t.Helper()
	created, err := r.CreateToken(r.t.Context(), &adminv1.CreateTokenRequest{Type: adminv1.CreateTokenRequest_TYPE_JOIN, Group: group})
	if err != nil {
		r.t.Fatal(err)
	}
	e := &edge{t: r.t}
	e.identity, err = mtls.NewIdentity(r.t.Context(), "", issuer(r.at.XDS, created.GetToken(), name))
	if err != nil {
		r.t.Fatal(err)
	}
	e.id = e.identity.ID().Proxy
	return e
}

func issuer(address, text, name string) mtls.Issuer {
	return func(ctx context.Context, csr []byte) (mtls.Certificates, error) {
		token, err := mtls.ParseJoinToken(text)
		if err != nil {
			return mtls.Certificates{}, err
		}
		conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(credentials.NewTLS(token.ClientConfig())))
		if err != nil {
			return mtls.Certificates{}, err
		}
		defer conn.Close()
		got, err := fleetv1.NewFleetClient(conn).Join(ctx, &fleetv1.JoinRequest{Token: text, Csr: csr, Name: name})
		if err != nil {
			return mtls.Certificates{}, err
		}
		return mtls.Certificates{Chain: got.GetCertificates(), Roots: got.GetRoots()}, nil
	}
}

// connect opens the stream of a proxy and answers on it until the connection ends.
func (e *edge) connect(address string) *edge {
	e.t.Helper()
	var err error
	e.conn, err = grpc.NewClient(address, grpc.WithTransportCredentials(credentials.NewTLS(e.identity.ClientConfig())))
	if err != nil {
		e.t.Fatal(err)
	}
	e.t.Cleanup(func() { e.conn.Close() })
	e.fleet = fleetv1.NewFleetClient(e.conn)
	stream, err := discovery.NewAggregatedDiscoveryServiceClient(e.conn).DeltaAggregatedResources(e.t.Context())
	if err != nil {
		e.t.Fatal(err)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	ended := make(chan error, 1)
	e.names, e.commits, e.ended = map[string]string{}, map[string]int64{}, ended
	var sending sync.Mutex
	e.send = func(r *discovery.DeltaDiscoveryRequest) error {
		sending.Lock()
		defer sending.Unlock()
		return stream.Send(r)
	}
	for _, kind := range []string{xds.SecretType, xds.ConfigType} {
		if err := e.send(&discovery.DeltaDiscoveryRequest{TypeUrl: kind, Node: &corev3.Node{Id: e.id}, ResourceNamesSubscribe: []string{"*"}}); err != nil && err != io.EOF {
			e.t.Fatal(err)
		}
	}
	go func() {
		for {
			resp, err := stream.Recv()
			if err != nil {
				ended <- err
				return
			}
			e.take(resp)
		}
	}()
	return e
}

// take stores what came and answers it: with a NACK where a resource is to be refused.
func (e *edge) take(resp *discovery.DeltaDiscoveryResponse) {
	e.mu.Lock()
	defer e.mu.Unlock()
	answer := &discovery.DeltaDiscoveryRequest{TypeUrl: resp.GetTypeUrl(), ResponseNonce: resp.GetNonce()}
	var refusals []*anypb.Any
	commits := map[string]int64{}
	for _, res := range resp.GetResources() {
		e.names[res.GetName()] = res.GetVersion()
		config := &xdsv1.Config{}
		if resp.GetTypeUrl() == xds.ConfigType {
			if err := res.GetResource().UnmarshalTo(config); err != nil {
				e.t.Error(err)
			}
		}
		if c := config.GetCommit(); c != nil {
			name, _, _ := strings.Cut(res.GetName(), "/")
			commits[name] = c.GetRevision()
		}
		if reason, ok := e.refuse[res.GetName()]; ok {
			packed, err := anypb.New(&xdsv1.Refusal{Type: resp.GetTypeUrl(), Name: res.GetName(), Version: res.GetVersion(), Reason: reason})
			if err != nil {
				e.t.Error(err)
			}
			refusals = append(refusals, packed)
		}
	}
	for _, name := range resp.GetRemovedResources() {
		delete(e.names, name)
	}
	if len(refusals) > 0 {
		answer.ErrorDetail = &rpcstatus.Status{Code: int32(codes.InvalidArgument), Message: "refused", Details: refusals}
	}
	send := func() {
		maps.Copy(e.commits, commits)
		e.send(answer) //nolint:errcheck // the stream's end is seen by its reader
	}
	if e.hold {
		e.waiting = append(e.waiting, send)
		return
	}
	send()
}

// release answers what was held back.
func (e *edge) release() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.hold = false
	for _, send := range e.waiting {
		send()
	}
	e.waiting = nil
}

func (e *edge) set(change func()) {
	e.mu.Lock()
	defer e.mu.Unlock()
	change()
}

// version returns the version of a resource that the proxy holds, or "".
func (e *edge) version(name string) string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.names[name]
}

// holds returns the names that the proxy has of a tenant, of all tenants if that is empty.
func (e *edge) holds(tenant string) []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	var names []string
	for name := range e.names {
		if tenant == "" || strings.HasPrefix(name, tenant+"/") {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// serving waits until the proxy has taken a revision.
func (e *edge) serving(tenant string, revision int64) {
	e.t.Helper()
	eventually(e.t, fmt.Sprintf("%s serves revision %d of %s", e.id, revision, tenant), func() bool {
		e.mu.Lock()
		defer e.mu.Unlock()
		return e.commits[tenant] >= revision
	})
}

func eventually(t testing.TB, what string, holds func() bool) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for !holds() {
		if time.Now().After(deadline) {
			t.Fatalf("not within 10 s: %s", what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// wait follows a revision as `apply --wait` does, and returns the last message.
func (r *running) wait(resp *adminv1.ApplyResponse, tenant string) *adminv1.StatusResponse {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), 15*time.Second)
	defer cancel()
	stream, err := r.Status(ctx, &adminv1.StatusRequest{Tenant: tenant, Revision: resp.GetRevision(), Wait: true, Expected: resp.GetConnected()})
	if err != nil {
		r.t.Fatal(err)
	}
	for {
		m, err := stream.Recv()
		if err != nil {
			r.t.Fatalf("wait for revision %d: %v", resp.GetRevision(), err)
		}
		if m.GetDone() {
			return m
		}
	}
}

func loadTry(yaml string) ([]*adminv1.Object, string) {
	set, diagnostics := resource.Load([]resource.File{{Name: "test.yaml", Data: []byte(yaml)}}, func(string) (string, bool) { return "", false })
	if resource.Failed(diagnostics) {
		return nil, resource.Format(diagnostics[0])
	}
	return set.Objects, ""
}

func renewer(fleet fleetv1.FleetClient) mtls.Issuer {
	return func(ctx context.Context, csr []byte) (mtls.Certificates, error) {
		got, err := fleet.Renew(ctx, &fleetv1.RenewRequest{Csr: csr})
		return mtls.Certificates{Chain: got.GetCertificates(), Roots: got.GetRoots()}, err
	}
}
