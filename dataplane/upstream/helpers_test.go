package upstream

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/sluicegate/sluice/dataplane/snapshot"
	"github.com/sluicegate/sluice/internal/mcptest"
	"github.com/sluicegate/sluice/internal/policy"
	"google.golang.org/protobuf/types/known/durationpb"

	policyv1 "github.com/sluicegate/sluice/proto/gen/sluice/policy/v1"
	xdsv1 "github.com/sluicegate/sluice/proto/gen/sluice/xds/v1"
)

// target makes a snapshot's target with the given transport and policies, in a tenant with the given grants.
func target(t testing.TB, kind policy.Transport, cfg *xdsv1.Target, p *policyv1.Policies, grants ...string) *snapshot.Target {
	t.Helper()
	if len(grants) == 0 {
		grants = []string{"*"}
	}
	g, err := policy.ParseGrants(grants)
	if err != nil {
		t.Fatal(err)
	}
	compiled, err := policy.CompileTarget(&xdsv1.EffectivePolicy{Policies: p}, kind, policy.Resolver{})
	if err != nil {
		t.Fatal(err)
	}
	cfg.Name = "one"
	return &snapshot.Target{Name: "one", Resource: "acme/target/tools/one", Tenant: &snapshot.Owner{Name: "acme", Grants: g},
		Config: cfg, Policy: compiled, Digest: compiled.Digest()}
}

func httpConfig(t testing.TB, raw string) *xdsv1.HttpTransport {
	t.Helper()
	u, err := url.Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	port, err := strconv.Atoi(u.Port())
	if err != nil {
		t.Fatal(err)
	}
	return &xdsv1.HttpTransport{Tls: u.Scheme == "https", Host: u.Hostname(), Port: uint32(port), Path: u.RequestURI()}
}

func httpTarget(t testing.TB, url string, p *policyv1.Policies) *snapshot.Target {
	return target(t, policy.HTTP, &xdsv1.Target{Transport: &xdsv1.Target_Mcp{Mcp: httpConfig(t, url)}}, p)
}

func sseTarget(t testing.TB, url string, p *policyv1.Policies) *snapshot.Target {
	return target(t, policy.SSE, &xdsv1.Target{Transport: &xdsv1.Target_Sse{Sse: httpConfig(t, url)}}, p)
}

func stdioTarget(t testing.TB, mode string, change func(*xdsv1.StdioTransport)) *snapshot.Target {
	cmd := mcptest.Stdio(mode)
	c := &xdsv1.StdioTransport{Cmd: cmd.Path, Args: cmd.Args, Env: cmd.Env}
	if change != nil {
		change(c)
	}
	return target(t, policy.Stdio, &xdsv1.Target{Transport: &xdsv1.Target_Stdio{Stdio: c}}, nil)
}

// manager makes a manager that is closed with the test.
func manager(t testing.TB, change func(*Config)) *Manager {
	t.Helper()
	cfg := Config{StopGrace: 500 * time.Millisecond}
	if testing.Verbose() {
		cfg.Log = slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	if change != nil {
		change(&cfg)
	}
	m := New(cfg)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := m.Close(ctx); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return m
}

// limited is a context that a hanging test runs out of.
func limited(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func post(body string) *Request {
	return &Request{Method: http.MethodPost, Body: []byte(body), Header: http.Header{
		"Content-Type": {"application/json"}, "Accept": {"application/json, text/event-stream"}}}
}

// text reads a whole answer.
func text(t testing.TB, res *Response) string {
	t.Helper()
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatalf("body: %v after %.200q", err, b)
	}
	return string(b)
}

// handler serves a transport over real HTTP, so that real clients can be its callers: what mux does, less the mux.
type handler struct {
	tr   Transport
	init []byte // given with each request of a session, as mux does
}

func (h *handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		http.Error(w, err.Error(), 400)
		return
	}
	header := http.Header{}
	for _, name := range []string{"Content-Type", "Accept", "Mcp-Session-Id", "Mcp-Protocol-Version", "Mcp-Method", "Mcp-Name", "Last-Event-Id"} {
		if v := r.Header.Values(name); v != nil {
			header[name] = v
		}
	}
	res, err := h.tr.Do(r.Context(), &Request{Method: r.Method, Header: header, Body: body, Initialize: h.init})
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	defer res.Body.Close()
	for k, v := range res.Header {
		w.Header()[k] = v
	}
	w.WriteHeader(res.Status)
	rc := http.NewResponseController(w)
	rc.Flush()
	b := make([]byte, 32<<10)
	for {
		n, err := res.Body.Read(b)
		if _, werr := w.Write(b[:n]); werr != nil || err != nil {
			return
		}
		rc.Flush()
	}
}

func contains(t testing.TB, what string, err error, parts ...string) {
	t.Helper()
	if err == nil {
		t.Fatalf("%s: no error, want one with %q", what, parts)
	}
	for _, p := range parts {
		if !strings.Contains(err.Error(), p) {
			t.Errorf("%s: error %q, want %q in it", what, err, p)
		}
	}
}

func duration(d time.Duration) *durationpb.Duration { return durationpb.New(d) }
