package controlplane

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/sluicegate/sluice/controlplane/xds"
	adminv1 "github.com/sluicegate/sluice/proto/gen/sluice/admin/v1"
	fleetv1 "github.com/sluicegate/sluice/proto/gen/sluice/fleet/v1"
)

func TestWaitTellsTheFleet(t *testing.T) {
	r := start(t, t.TempDir())
	a, b := r.join("", "edge"), r.join("", "edge")
	if a.id != "edge" || b.id != "edge-2" {
		t.Errorf("ids %s and %s", a.id, b.id)
	}
	a.connect(r.at.XDS)
	b.connect(r.at.XDS)
	eventually(t, "two proxies are connected", func() bool {
		resp, err := r.ListProxies(t.Context(), &adminv1.ListProxiesRequest{})
		return err == nil && len(resp.GetProxies()) == 2 && resp.GetProxies()[0].GetConnected() && resp.GetProxies()[1].GetConnected()
	})
	resp := r.apply(tools)
	if diff := cmp.Diff([]string{"edge", "edge-2"}, resp.GetConnected()); diff != "" {
		t.Fatalf("connected (-want +got):\n%s", diff)
	}
	if got := r.wait(resp, ""); got.GetServing() != 2 || got.GetTotal() != 2 || len(got.GetRefused()) != 0 {
		t.Errorf("all serve: %v", got)
	}
	a.serving("default", resp.GetRevision())
	if names := a.holds("default"); !slices.Contains(names, "default/session-keys") || !slices.Contains(names, "default/target/mcp/search") {
		t.Errorf("the proxy holds %v", names)
	}

	b.set(func() { b.refuse = map[string]string{"default/target/mcp/files": "no such host"} })
	resp = r.apply(strings.ReplaceAll(tools, "files.example.com", "docs.example.com"))
	got := r.wait(resp, "")
	if got.GetServing() > 1 || len(got.GetRefused()) != 1 || // a refusal ends the wait, even before the other has answered got.GetRefused()[0].GetProxy() != "edge-2" ||
		got.GetRefused()[0].GetObject() != "target/mcp/files" || got.GetRefused()[0].GetReason() != "no such host" {
		t.Errorf("one refuses: %v", got)
	}
	if len(got.GetObjects()) != 1 || got.GetObjects()[0].GetState() != "Refused" {
		t.Errorf("objects: %v", got.GetObjects())
	}

	// One that answers late keeps the wait open until it does.
	b.set(func() { b.refuse = nil })
	a.set(func() { a.hold = true })
	resp = r.apply(tools)
	time.AfterFunc(150*time.Millisecond, a.release)
	before := time.Now()
	if got := r.wait(resp, ""); got.GetServing() != 2 || time.Since(before) < 100*time.Millisecond {
		t.Errorf("one answers late: %v after %s", got, time.Since(before))
	}

	// A revoked proxy is out at once and does not come back.
	if _, err := r.RevokeProxy(t.Context(), &adminv1.RevokeProxyRequest{Name: b.id}); err != nil {
		t.Fatal(err)
	}
	if err := <-b.ended; err == nil {
		t.Error("the stream of a revoked proxy ended well")
	}
	b.connect(r.at.XDS)
	if err := <-b.ended; status.Code(err) != codes.PermissionDenied {
		t.Errorf("a revoked proxy connects again: %v", err)
	}
	if _, err := b.fleet.Renew(t.Context(), &fleetv1.RenewRequest{}); status.Code(err) != codes.PermissionDenied {
		t.Errorf("a revoked proxy renews: %v", err)
	}
}

func TestGroupsSeeTheirTenantsAlone(t *testing.T) {
	r := start(t, t.TempDir())
	r.createTenant("acme")
	if _, err := r.PutGroup(t.Context(), &adminv1.PutGroupRequest{Name: "edge", Tenants: []string{"acme"}}); err != nil {
		t.Fatal(err)
	}
	r.apply(tools)
	r.apply(tools, forTenant("acme"))
	edge, other := r.join("edge", "e").connect(r.at.XDS), r.join("", "d").connect(r.at.XDS)
	edge.serving("acme", 2)
	other.serving("default", 2)
	for e, foreign := range map[string][]string{"edge": edge.holds("default"), "default": other.holds("acme")} {
		if len(foreign) > 0 {
			t.Errorf("a proxy of group %s holds %v", e, foreign)
		}
	}
	// What a proxy reports of tenants that it does not serve is nobody's business.
	report := &fleetv1.ReportRequest{Targets: []*fleetv1.TargetReport{{Target: "acme/target/mcp/search", Error: "down"}, {Target: "default/target/mcp/search", Error: "forged"}}}
	if _, err := edge.fleet.Report(t.Context(), report); err != nil {
		t.Fatal(err)
	}
	if got := r.wait(&adminv1.ApplyResponse{Revision: 2}, "acme"); len(got.GetObjects()) != 1 || got.GetObjects()[0].GetState() != "Degraded" || got.GetObjects()[0].GetObject() != "target/mcp/search" {
		t.Errorf("status of acme: %v", got.GetObjects())
	}
	if got := r.wait(&adminv1.ApplyResponse{Revision: 2}, "default"); len(got.GetObjects()) != 0 {
		t.Errorf("status of default holds another group's report: %v", got.GetObjects())
	}
	// A tenant that moves to the group moves there, and leaves the other.
	if _, err := r.PutGroup(t.Context(), &adminv1.PutGroupRequest{Name: "edge", Tenants: nil}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("both tenants in one place: %v", err)
	}
	r.apply(strings.ReplaceAll(tools, "3000", "3001"), forTenant("acme"))
	if _, err := r.PutGroup(t.Context(), &adminv1.PutGroupRequest{Name: "edge", Tenants: nil}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the tenant moves", func() bool { return len(edge.holds("")) == 0 && len(other.holds("acme")) > 0 })
	if _, err := r.DeleteTenant(t.Context(), &adminv1.DeleteTenantRequest{Name: "acme"}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a deleted tenant is gone", func() bool { return len(other.holds("acme")) == 0 })
	if _, err := r.Log(t.Context(), &adminv1.LogRequest{Tenant: "acme"}); status.Code(err) != codes.NotFound {
		t.Errorf("log of a deleted tenant: %v", err)
	}
	// One of the same name is another: other session keys, a log of its own.
	before := other.version("default/session-keys")
	r.createTenant("acme")
	eventually(t, "the new tenant is there", func() bool { return len(other.holds("acme")) > 0 })
	if log, err := r.Log(t.Context(), &adminv1.LogRequest{Tenant: "acme"}); err != nil || len(log.GetEntries()) != 1 {
		t.Errorf("log of the new tenant: %v, %v", log, err)
	}
	if before == "" || other.version("default/session-keys") != before {
		t.Error("another tenant's session keys changed")
	}
}

// A proxy that comes back after a restart of the control plane holds what it held, and nothing is sent or removed for it.
func TestRestartIsNoChange(t *testing.T) {
	dir := t.TempDir()
	r := start(t, dir)
	resp := r.apply(tools)
	e := r.join("", "e").connect(r.at.XDS)
	e.serving("default", resp.GetRevision())
	before := map[string]string{}
	e.set(func() {
		for name, version := range e.names {
			before[name] = version
		}
	})
	r.stop()
	<-e.ended
	r = start(t, dir)
	e.connect(r.at.XDS)
	e.serving("default", resp.GetRevision())
	after := map[string]string{}
	e.set(func() {
		for name, version := range e.names {
			after[name] = version
		}
	})
	if diff := cmp.Diff(before, after); diff != "" {
		t.Errorf("after a restart (-before +after):\n%s", diff)
	}
}

func TestPortsAreGuarded(t *testing.T) {
	r := start(t, t.TempDir())
	e := r.join("", "e")
	stranger := credentials.NewTLS(&tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13}) //nolint:gosec // the test is about the server's side
	for name, creds := range map[string]credentials.TransportCredentials{"no certificate": stranger} {
		conn, err := grpc.NewClient(r.at.XDS, grpc.WithTransportCredentials(creds))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		stream, err := discovery.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(t.Context())
		if err == nil {
			stream.Send(&discovery.DeltaDiscoveryRequest{TypeUrl: xds.ConfigType}) //nolint:errcheck // Recv tells
			_, err = stream.Recv()
		}
		if status.Code(err) != codes.Unauthenticated {
			t.Errorf("%s: stream: %v", name, err)
		}
		if _, err := fleetv1.NewFleetClient(conn).Report(t.Context(), &fleetv1.ReportRequest{}); status.Code(err) != codes.Unauthenticated {
			t.Errorf("%s: report: %v", name, err)
		}
		if _, err := fleetv1.NewFleetClient(conn).Join(t.Context(), &fleetv1.JoinRequest{Token: "x"}); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: join with nonsense: %v", name, err)
		}
	}
	// The proxy's certificate opens no admin port, and it renews under its own name alone.
	e.connect(r.at.XDS)
	old := e.identity.NotAfter()
	if err := e.identity.Renew(t.Context(), renewer(e.fleet)); err != nil {
		t.Fatal(err)
	}
	if e.identity.ID().Proxy != e.id || e.identity.NotAfter().Before(old) {
		t.Errorf("renewed to %s until %s", e.identity.ID(), e.identity.NotAfter())
	}
	if _, err := r.client("").ListTenants(t.Context(), &adminv1.ListTenantsRequest{}); status.Code(err) != codes.Unauthenticated {
		t.Errorf("admin call without a token: %v", err)
	}
	issued, err := r.IssueCertificates(t.Context(), &adminv1.IssueCertificatesRequest{Count: 2})
	if err != nil || len(issued.GetCertificates()) != 2 {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(issued.GetRoot()))
	pair, err := tls.X509KeyPair([]byte(issued.GetCertificates()[1].GetCertificate()), []byte(issued.GetCertificates()[1].GetKey()))
	if err != nil {
		t.Fatal(err)
	}
	conn, err := grpc.NewClient(r.at.XDS, grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{RootCAs: roots, Certificates: []tls.Certificate{pair}, ServerName: "localhost", MinVersion: tls.VersionTLS13})))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := fleetv1.NewFleetClient(conn).Report(t.Context(), &fleetv1.ReportRequest{}); err != nil {
		t.Errorf("a client with an issued certificate: %v", err)
	}
}

// Off loopback the admin port speaks TLS, under the built-in CA, whose certificate lies in ca.pem.
func TestAdminPortOffLoopbackIsTLS(t *testing.T) {
	dir := t.TempDir()
	ctx, cancel := context.WithCancel(t.Context())
	ready, done := make(chan Addresses, 1), make(chan error, 1)
	go func() {
		done <- Run(ctx, Config{DataDir: dir, AdminAddr: "0.0.0.0:0", XDSAddr: "127.0.0.1:0", OpsAddr: "127.0.0.1:0",
			Log: slog.New(slog.DiscardHandler), Ready: func(a Addresses) { ready <- a }})
	}()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	r := &running{t: t, at: <-ready}
	_, port, _ := strings.Cut(r.at.Admin[strings.LastIndex(r.at.Admin, ":"):], ":")
	r.at.Admin = "127.0.0.1:" + port
	text, err := os.ReadFile(filepath.Join(dir, "admin.token"))
	if err != nil {
		t.Fatal(err)
	}
	token := strings.TrimSpace(string(text))
	if _, err := r.client(token).ListTenants(t.Context(), &adminv1.ListTenantsRequest{}); status.Code(err) != codes.Unavailable {
		t.Errorf("in clear: %v", err)
	}
	pem, err := os.ReadFile(filepath.Join(dir, "ca.pem"))
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	conn, err := grpc.NewClient(r.at.Admin, grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS13})))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	authorized := metadata.AppendToOutgoingContext(t.Context(), "authorization", "Bearer "+token)
	if _, err := adminv1.NewAdminClient(conn).ListTenants(authorized, &adminv1.ListTenantsRequest{}); err != nil {
		t.Errorf("over TLS: %v", err)
	}
}
