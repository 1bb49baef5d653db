package dataplane

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/sluicegate/sluice/dataplane/bridge/newclient"
	"github.com/sluicegate/sluice/dataplane/snapshot"
	"github.com/sluicegate/sluice/dataplane/upstream"
	"github.com/sluicegate/sluice/internal/telemetry"
	policyv1 "github.com/sluicegate/sluice/proto/gen/sluice/policy/v1"
	xdsv1 "github.com/sluicegate/sluice/proto/gen/sluice/xds/v1"
)

// world is the configuration of one backend behind one route, as a control plane would push it.
type world struct {
	targets     []*xdsv1.Target
	backend     xdsv1.Backend
	policies    map[string]*policyv1.Policies // by target
	routePolicy *policyv1.Policies
	hosts       []string          // of the route
	secrets     map[string]string // by name
	ttl         time.Duration
	ssePath     string              // of the route
	listener    xdsv1.Listener      // its port is testPort
	keys        []*xdsv1.SessionKey // nil: one
	peersWait   time.Duration       // how long a proxy of a group waits for another; 0: as ever
}

// behind is a world of streamable HTTP targets, in the order of names: "a=http://…", or the URL alone for one target.
func behind(targets ...string) *world {
	w := &world{policies: map[string]*policyv1.Policies{}}
	for _, t := range targets {
		name, to, ok := strings.Cut(t, "=")
		if !ok {
			name, to = "only", t
		}
		w.add(name, &xdsv1.Target_Mcp{Mcp: endpointOf(to)})
	}
	return w
}

func (w *world) add(name string, target *xdsv1.Target_Mcp) *xdsv1.Target {
	t := &xdsv1.Target{Backend: "default/backend/tools", Index: uint32(len(w.targets)), Name: name, Transport: target}
	w.targets = append(w.targets, t)
	return t
}

func endpointOf(raw string) *xdsv1.HttpTransport {
	u, err := url.Parse(raw)
	if err != nil {
		panic(err)
	}
	port, err := strconv.Atoi(u.Port())
	if err != nil {
		panic(err)
	}
	path := u.Path
	if path == "" {
		path = "/"
	}
	return &xdsv1.HttpTransport{Tls: u.Scheme == "https", Host: u.Hostname(), Port: uint32(port), Path: path}
}

const testPort = 3000

// update is the whole world as one revision.
func (w *world) update(revision int64) snapshot.Update {
	u := snapshot.Update{Tenant: "default", Revision: revision}
	set := func(typ, name string, m proto.Message) {
		body, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
		if err != nil {
			panic(err)
		}
		u.Set = append(u.Set, snapshot.Resource{Type: typ, Name: name, Version: fmt.Sprintf("%x", body), Body: body})
	}
	config := func(name string, c *xdsv1.Config) { set(snapshot.ConfigType, name, c) }
	policy := func(name string, p *policyv1.Policies) string {
		if p == nil {
			return ""
		}
		config(name, &xdsv1.Config{Resource: &xdsv1.Config_EffectivePolicy{EffectivePolicy: &xdsv1.EffectivePolicy{Policies: p}}})
		return name
	}
	info := &xdsv1.TenantInfo{Grants: []string{"private-network", "stdio=*", "env=*"}}
	if w.ttl > 0 {
		info.SessionTtl = durationpb.New(w.ttl)
	}
	config("default/tenant/default", &xdsv1.Config{Resource: &xdsv1.Config_TenantInfo{TenantInfo: info}})
	listens := proto.CloneOf(&w.listener)
	listens.Port = testPort
	config("default/listener/main", &xdsv1.Config{Resource: &xdsv1.Config_Listener{Listener: listens}})
	config("default/route/main", &xdsv1.Config{Resource: &xdsv1.Config_Route{Route: &xdsv1.Route{
		Listener: "default/listener/main", Hostnames: w.hosts, Backends: []*xdsv1.WeightedBackend{{Backend: "default/backend/tools"}},
		EffectivePolicy: policy("default/policy/route", w.routePolicy), SsePath: w.ssePath,
	}}})
	config("default/backend/tools", &xdsv1.Config{Resource: &xdsv1.Config_Backend{Backend: proto.CloneOf(&w.backend)}})
	for _, t := range w.targets {
		config("default/target/tools/"+t.Name, &xdsv1.Config{Resource: &xdsv1.Config_Target{Target: t}})
		config("default/binding/main/tools/"+t.Name, &xdsv1.Config{Resource: &xdsv1.Config_Binding{Binding: &xdsv1.Binding{
			Route: "default/route/main", Target: "default/target/tools/" + t.Name, EffectivePolicy: policy("default/policy/"+t.Name, w.policies[t.Name]),
		}}})
	}
	for name, value := range w.secrets {
		set(snapshot.SecretType, "default/secret/"+name, &xdsv1.Secret{Secret: &xdsv1.Secret_Value{Value: []byte(value)}})
	}
	set(snapshot.SecretType, "default/session-keys", &xdsv1.Secret{Secret: &xdsv1.Secret_SessionKeys{SessionKeys: &xdsv1.SessionKeys{
		Keys: w.sessionKeys(),
	}}})
	return u
}

func (w *world) sessionKeys() []*xdsv1.SessionKey {
	if w.keys != nil {
		return w.keys
	}
	return []*xdsv1.SessionKey{sessionKey(1)}
}

func sessionKey(n byte) *xdsv1.SessionKey {
	return &xdsv1.SessionKey{Id: []byte{'k', 'e', 'y', '0' + n}, Key: bytes.Repeat([]byte{41 + n}, 32)}
}

// testProxy is a proxy that serves a world on a loopback port.
type testProxy struct {
	*proxy
	URL   string
	store *snapshot.Store
	// Lines are the access log.
	lines *lockedBuffer

	last snapshot.Update
}

// start serves the world until the test ends. Proxies of one world are a fleet: they share its keys.
func (w *world) start(t testing.TB) *testProxy { return w.startAs(t, "proxy-1", "127.0.0.1:0") }

func (w *world) startAs(t testing.TB, id, addr string) *testProxy {
	t.Helper()
	log := slog.New(slog.NewTextHandler(&testLog{t: t}, &slog.HandlerOptions{Level: slog.LevelWarn}))
	p := &testProxy{store: snapshot.New(snapshot.Config{Loopback: true, Log: log}), lines: &lockedBuffer{}}
	upstreams := upstream.New(upstream.Config{Log: log})
	calls := telemetry.NewCalls(telemetry.NewRegistry(), p.lines)
	bridged := newclient.New(newclient.Config{Transport: upstreams.Transport, ProxyID: id, Log: log})
	p.proxy = newProxy(proxyParts{Store: p.store, Upstreams: upstreams, NewClients: bridged, Calls: calls, Log: log, ProxyID: id, Loopback: true})
	p.apply(t, w)
	server := httptest.NewUnstartedServer(p.handler(testPort))
	if addr != "127.0.0.1:0" {
		l, err := listenAt(addr)
		if err != nil {
			t.Fatal(err)
		}
		_ = server.Listener.Close()
		server.Listener = l
	}
	server.Start()
	t.Cleanup(func() {
		server.CloseClientConnections()
		server.Close()
		closing, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err := bridged.Close(closing); err != nil {
			t.Errorf("closing the bridge: %v", err)
		}
		_ = upstreams.Close(closing)
		calls.Close()
	})
	p.URL = server.URL + "/mcp"
	return p
}

// apply pushes the world anew.
func (p *testProxy) apply(t testing.TB, w *world) {
	t.Helper()
	u := w.update(p.last.Revision + 1)
	named := map[string]bool{}
	for _, r := range u.Set {
		named[r.Name] = true
	}
	for _, r := range p.last.Set {
		if !named[r.Name] {
			u.Removed = append(u.Removed, snapshot.Key{Type: r.Type, Name: r.Name})
		}
	}
	refused, err := p.store.Apply(u)
	if err != nil || len(refused) > 0 {
		t.Fatalf("the store refuses the configuration: %v %v", refused, err)
	}
	p.last = u
}

// testLog shows a failing test what was logged.
type testLog struct {
	t    testing.TB
	mu   sync.Mutex
	over bool
}

func (l *testLog) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.over {
		l.t.Cleanup(func() {})
		l.t.Log(strings.TrimSpace(string(b)))
	}
	return len(b), nil
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.b.Len() < 1<<20 { // a tool may send many
		l.b.Write(p)
	}
	return len(p), nil
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// answer is what a raw request got.
type answer struct {
	status int
	header http.Header
	body   string
}

// post sends one raw message; session "" is none. Stateless headers are the caller's.
func (p *testProxy) post(t testing.TB, session, body string, headers ...string) answer {
	t.Helper()
	return p.do(t, http.MethodPost, session, body, headers...)
}

func (p *testProxy) do(t testing.TB, method, session, body string, headers ...string) answer {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, p.URL, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Accept", "application/json, text/event-stream")
	if method == http.MethodPost {
		req.Header.Set("Content-Type", "application/json")
	}
	if session != "" {
		req.Header.Set("Mcp-Session-Id", session)
	}
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatalf("%s: the answer broke off: %v", body, err)
	}
	return answer{resp.StatusCode, resp.Header, string(b)}
}

// initialize begins a raw session and returns its id.
func (p *testProxy) initialize(t testing.TB, version string, headers ...string) string {
	t.Helper()
	a := p.post(t, "", `{"jsonrpc":"2.0","id":0,"method":"initialize","params":{"protocolVersion":"`+version+`","capabilities":{},"clientInfo":{"name":"raw","version":"1"}}}`, headers...)
	id := a.header.Get("Mcp-Session-Id")
	if a.status != 200 || id == "" {
		t.Fatalf("initialize: %d %s", a.status, a.body)
	}
	if n := p.post(t, id, `{"jsonrpc":"2.0","method":"notifications/initialized"}`, headers...); n.status != 202 {
		t.Fatalf("initialized: %d %s", n.status, n.body)
	}
	return id
}

// TestServeForTools serves real targets for a tool that is started by hand, such as the conformance suite:
//
//	SLUICE_TEST_SERVE="127.0.0.1:9000 http://localhost:9001" go test ./dataplane -run TestServeForTools -timeout 0
func TestServeForTools(t *testing.T) {
	args := strings.Fields(os.Getenv("SLUICE_TEST_SERVE"))
	if len(args) < 2 {
		t.Skip("SLUICE_TEST_SERVE is not set")
	}
	p := behind(args[1:]...).startAs(t, "proxy-1", args[0])
	fmt.Println("serving", p.URL)
	select {}
}

func listenAt(addr string) (net.Listener, error) { return net.Listen("tcp", addr) }
