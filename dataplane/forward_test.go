package dataplane

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/sluicegate/sluice/dataplane/listener"
	"github.com/sluicegate/sluice/dataplane/peers"
	"github.com/sluicegate/sluice/internal/mcptest"
	"github.com/sluicegate/sluice/internal/mtls"
	policyv1 "github.com/sluicegate/sluice/proto/gen/sluice/policy/v1"
	xdsv1 "github.com/sluicegate/sluice/proto/gen/sluice/xds/v1"
)

// group is several proxies that serve one world, behind a balancer that gives each request to the next one.
type group struct {
	proxies []*testProxy
	between []*peerPort
	URL     string // of the balancer
}

// peerPort is a proxy's port for others.
type peerPort struct {
	*peers.Peers
	addr    string
	stop    func()
	serving atomic.Int64 // requests that came by it
}

// authority signs the identities of a test's proxies.
type authority struct{ ca *mtls.CA }

func newAuthority(t testing.TB) authority {
	t.Helper()
	ca, err := mtls.OpenCA(t.TempDir(), "test")
	if err != nil {
		t.Fatal(err)
	}
	return authority{ca}
}

func (a authority) identity(t testing.TB, groupName, proxy string) *mtls.Identity {
	t.Helper()
	i, err := mtls.NewIdentity(t.Context(), "", func(_ context.Context, csr []byte) (mtls.Certificates, error) {
		return a.ca.Sign(mtls.Request{CSR: csr, ID: mtls.ID{Group: groupName, Proxy: proxy}})
	})
	if err != nil {
		t.Fatal(err)
	}
	return i
}

func newGroup(t testing.TB, w *world, n int) *group {
	t.Helper()
	g, a := &group{}, newAuthority(t)
	addresses := map[string]string{}
	for i := range n {
		id := fmt.Sprintf("proxy-%d", i+1)
		p := w.startAs(t, id, "127.0.0.1:0")
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		port := &peerPort{addr: l.Addr().String()}
		port.Peers = peers.New(peers.Config{Identity: a.identity(t, "edge", id), Wait: w.peersWait, Log: slog.New(slog.DiscardHandler), Handler: func(number uint16) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				port.serving.Add(1)
				defer port.serving.Add(-1)
				p.handler(number).ServeHTTP(w, r)
			})
		}})
		p.parts.Peers = port.Peers
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan struct{})
		go func() {
			defer close(done)
			_ = port.Serve(ctx, l)
		}()
		port.stop = func() {
			cancel()
			_ = l.Close()
			<-done
			port.Close()
		}
		t.Cleanup(port.stop)
		addresses[id] = port.addr
		g.proxies, g.between = append(g.proxies, p), append(g.between, port)
	}
	for _, port := range g.between {
		port.Set(addresses)
	}
	var turn atomic.Uint64
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		g.proxies[turn.Add(1)%uint64(n)].handler(testPort).ServeHTTP(w, r)
	}))
	t.Cleanup(func() {
		front.CloseClientConnections()
		front.Close()
	})
	g.URL = front.URL + "/mcp"
	return g
}

// Every request to the other proxy: sessions whose parts live on one of them work all the same, what targets ask included.
func TestRoundRobin(t *testing.T) {
	t.Parallel()
	child := mcptest.Stdio("serve")
	for name, target := range map[string]*xdsv1.Target{
		"stdio":   {Transport: &xdsv1.Target_Stdio{Stdio: &xdsv1.StdioTransport{Cmd: child.Path, Args: child.Args, Env: child.Env}}},
		"sse":     {Transport: &xdsv1.Target_Sse{Sse: endpointOf(mcptest.NewServer(t, mcptest.Options{SSE: true}).URL)}},
		"bridged": {Transport: &xdsv1.Target_Mcp{Mcp: endpointOf(statelessOnly(t))}},
		"http":    {Transport: &xdsv1.Target_Mcp{Mcp: endpointOf(mcptest.NewServer(t, mcptest.Options{}).URL)}},
	} {
		t.Run(name, func(t *testing.T) {
			w := behind()
			target.Name, target.Backend = "it", "default/backend/tools"
			w.targets = append(w.targets, target)
			g := newGroup(t, w, 2)
			cli := mcptest.Connect(t, g.URL, mcptest.ClientOptions{Version: "2025-11-25"})
			for range 3 {
				for tool, want := range map[string]string{"elicit": "Hello, Ada!", "sample": "model: Paris", "roots": "file:///work"} {
					if got := cli.Call(t, tool, nil); got != want {
						t.Errorf("%s = %q, want %q", tool, got, want)
					}
				}
			}
			params := &mcp.CallToolParams{Name: "progress", Arguments: map[string]any{"n": 3}}
			params.SetProgressToken("p")
			if _, err := cli.CallTool(t.Context(), params); err != nil {
				t.Fatal(err)
			}
			cli.Await(t, "notifications/progress", 3)
			if err := cli.Subscribe(t.Context(), &mcp.SubscribeParams{URI: "test://watched"}); err != nil {
				t.Fatal(err)
			}
			waitFor(t, "an update", func() bool {
				cli.Call(t, "touch", nil)
				for _, n := range cli.Notifications() {
					if n.Method == "notifications/resources/updated" {
						return true
					}
				}
				return false
			})
			ctx, cancel := context.WithCancel(t.Context())
			over := make(chan error, 1)
			go func() {
				long := &mcp.CallToolParams{Name: "progress", Arguments: map[string]any{"n": 10_000, "ms": 100}}
				long.SetProgressToken("long")
				_, err := cli.CallTool(ctx, long)
				over <- err
			}()
			cli.Await(t, "notifications/progress", 5)
			cancel() // sends notifications/cancelled, to the other proxy
			<-over
			if got := cli.Call(t, "echo", map[string]any{"text": "on"}); got != "on" {
				t.Errorf("after a cancel: %q", got)
			}
		})
	}
}

// The same for clients without sessions: a call that waits for its client's answers goes on where it waits.
func TestRoundRobinParked(t *testing.T) {
	t.Parallel()
	child := mcptest.Stdio("serve")
	seen := &posts{}
	for name, target := range map[string]*xdsv1.Target{
		"stdio": {Transport: &xdsv1.Target_Stdio{Stdio: &xdsv1.StdioTransport{Cmd: child.Path, Args: child.Args, Env: child.Env}}, ProtocolVersions: []string{"2025-11-25"}},
		"sse":   {Transport: &xdsv1.Target_Sse{Sse: endpointOf(mcptest.NewServer(t, mcptest.Options{SSE: true}).URL)}, ProtocolVersions: []string{"2025-11-25"}},
		"http":  {Transport: &xdsv1.Target_Mcp{Mcp: endpointOf(mcptest.NewServer(t, mcptest.Options{Wrap: seen.wrap}).URL)}},
	} {
		t.Run(name, func(t *testing.T) {
			w := behind()
			target.Name, target.Backend = "it", "default/backend/tools"
			w.targets = append(w.targets, target)
			g := newGroup(t, w, 2)
			cli := mcptest.Connect(t, g.URL, mcptest.ClientOptions{Version: "2026-07-28"})
			for range 3 {
				for tool, want := range map[string]string{"elicit": "Hello, Ada!", "sample": "model: Paris", "roots": "file:///work"} {
					if got := cli.Call(t, tool, nil); got != want {
						t.Errorf("%s = %q, want %q", tool, got, want)
					}
				}
			}
			key, state := g.proxies[0].asked(t)
			calls := len(seen.with(`"tools/call"`))
			if got := g.proxies[1].retry(t, accepted(key), state); got.status != 200 || textOf(t, got) != "Hello, Ada!" {
				t.Errorf("%d %s", got.status, got.body)
			}
			key, state = g.proxies[0].asked(t)
			g.between[1].Set(map[string]string{"proxy-1": "127.0.0.1:1"}) // where nobody listens
			got := g.proxies[1].retry(t, accepted(key), state)
			if got.status != 503 || !strings.Contains(got.body, "proxy-1") || !strings.Contains(got.body, "-32603") {
				t.Errorf("the proxy that has the call is gone: %d %s", got.status, got.body)
			}
			if got := g.proxies[0].retry(t, accepted(key), state); textOf(t, got) != "Hello, Ada!" {
				t.Errorf("where the call waits: %d %s", got.status, got.body)
			}
			if n := len(seen.with(`"tools/call"`)) - calls; name == "http" && n != 1 {
				t.Errorf("the target was called %d times, want the one that waited", n)
			}
		})
	}
}

// The owner applies every policy to a retry, so the proxy that it comes to applies none.
func TestRetryElsewhereTakesTokensOnce(t *testing.T) {
	w := behind(mcptest.NewServer(t, mcptest.Options{}).URL)
	w.policies["only"] = limits(perHour(2, ""))
	g := newGroup(t, w, 2)
	key, state := g.proxies[0].asked(t)
	if got := g.proxies[1].retry(t, accepted(key), state); textOf(t, got) != "Hello, Ada!" {
		t.Fatalf("%d %s", got.status, got.body)
	}
	for _, want := range []int{200, 200, 429} {
		if got := g.proxies[1].stateless(t, "tools/call", "echo", `"name":"echo","arguments":{"text":"hi"}`); got.status != want {
			t.Errorf("%d %s, want %d", got.status, got.body, want)
		}
	}
}

// The owner knows the client as if he had come himself: by his own credentials and his own address. What a peer says beside does not
// count.
func TestForwardedCaller(t *testing.T) {
	t.Parallel()
	w := behind()
	w.stdioTarget("it", "serve")
	w.routePolicy = &policyv1.Policies{ApiKey: &policyv1.ApiKeyAuth{Mode: policyv1.JwtAuth_MODE_STRICT, Keys: []*policyv1.ApiKey{
		{Key: &policyv1.Credential{Source: &policyv1.Credential_Secret{Secret: "default/secret/ada"}}},
		{Key: &policyv1.Credential{Source: &policyv1.Credential_Secret{Secret: "default/secret/bob"}}},
	}}}
	w.secrets = map[string]string{"ada": "key-of-ada", "bob": "key-of-bob"}
	w.policies["it"] = &policyv1.Policies{McpAuthorization: &policyv1.McpAuthorization{Rules: []*policyv1.AuthorizationRule{
		{Rule: &policyv1.AuthorizationRule_Allow{Allow: `source.address == "127.0.0.1" && !("sluice-forwarded-source" in request.headers)`}}}}}
	g := newGroup(t, w, 2)
	ada := []string{"Authorization", "Bearer key-of-ada"}
	session := g.proxies[0].initialize(t, "2025-11-25", ada...)
	call := `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"echo","arguments":{"text":"hi"}}}`
	other := g.proxies[1]
	if a := other.post(t, session, call, ada...); a.status != 200 || !strings.Contains(a.body, `"hi"`) {
		t.Errorf("through the other proxy: %d %s", a.status, a.body)
	}
	if a := other.post(t, session, call, append(ada, "Sluice-Forwarded-Source", "10.9.9.9:1", "Sluice-Forwarded-Port", "1")...); a.status != 200 {
		t.Errorf("headers of the inside, from outside: %d %s", a.status, a.body)
	}
	for _, key := range []string{"key-of-bob", "none"} {
		if a := other.post(t, session, call, "Authorization", "Bearer "+key); a.status == 200 {
			t.Errorf("another caller in ada's session: %d %s", a.status, a.body)
		}
	}
	waitFor(t, "both lines", func() bool {
		return strings.Contains(other.lines.String(), `"owner":"proxy-1"`) && strings.Contains(g.proxies[0].lines.String(), `"peer":"proxy-2"`)
	})
}

// Only proxies of the group come in on the port for peers, and each is who its certificate says.
func TestPeersPort(t *testing.T) {
	w := behind(mcptest.NewServer(t, mcptest.Options{}).URL)
	g := newGroup(t, w, 2)
	a := newAuthority(t) // of another fleet
	for name, id := range map[string]*mtls.Identity{"another fleet": a.identity(t, "edge", "proxy-2"), "another fleet's group": a.identity(t, "core", "proxy-9")} {
		stranger := peers.New(peers.Config{Identity: id, Handler: w.start(t).handler})
		stranger.Set(map[string]string{"proxy-1": g.between[0].addr})
		r := httptest.NewRequest(http.MethodPost, "/mcp", nil)
		if err := stranger.Forward(httptest.NewRecorder(), r, testPort, "proxy-1", []byte("{}")); err == nil {
			t.Errorf("%s was let in", name)
		}
	}
	// The address of proxy-1 is that of proxy-2: the certificate decides.
	g.between[0].Set(map[string]string{"proxy-3": g.between[1].addr})
	r := httptest.NewRequest(http.MethodPost, "/mcp", nil)
	if err := g.between[0].Forward(httptest.NewRecorder(), r, testPort, "proxy-3", []byte("{}")); err == nil || !strings.Contains(err.Error(), "not proxy proxy-3") {
		t.Errorf("a proxy that is another: %v", err)
	}
	resp, err := http.Get("http://" + g.between[1].addr + "/mcp")
	if err == nil {
		_ = resp.Body.Close()
		if resp.StatusCode == 200 {
			t.Error("plain HTTP was served")
		}
	}
}

// An owner that is lost while it streams an answer leaves an error in the stream: some clients wait for ever when a stream just breaks.
func TestOwnerLostInStream(t *testing.T) {
	w := behind()
	w.stdioTarget("it", "serve")
	g := newGroup(t, w, 2)
	session := g.proxies[0].initialize(t, "2025-11-25")
	stream := func(method, body, accept string) *bufio.Reader {
		req, err := http.NewRequestWithContext(t.Context(), method, g.proxies[1].URL, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header = http.Header{"Accept": {accept}, "Content-Type": {"application/json"}, "Mcp-Session-Id": {session}}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = resp.Body.Close() })
		return bufio.NewReader(resp.Body)
	}
	call := stream(http.MethodPost, `{"jsonrpc":"2.0","id":"7","method":"tools/call","params":{"name":"progress","arguments":{"n":10000,"ms":20},"_meta":{"progressToken":"p"}}}`,
		"application/json, text/event-stream")
	standing := stream(http.MethodGet, "", "text/event-stream")
	for line := ""; !strings.Contains(line, "notifications/progress"); {
		var err error
		if line, err = call.ReadString('\n'); err != nil {
			t.Fatal(err)
		}
	}
	g.between[0].stop()
	rest, err := io.ReadAll(call)
	if err != nil {
		t.Errorf("the call's stream broke off: %v", err)
	}
	last := rest[bytes.LastIndex(rest, []byte("data: ")):]
	for _, want := range []string{`"id":"7"`, `-32603`, `proxy-1`} {
		if !bytes.Contains(last, []byte(want)) {
			t.Errorf("the last event lacks %s: %s", want, last)
		}
	}
	if rest, err := io.ReadAll(standing); err == nil {
		t.Errorf("the standing stream ended as if all were well: %s", rest)
	}
}

// A request is forwarded once, and one whose owner is lost ends in an error that says so; nothing is run in its stead.
func TestOwnerLost(t *testing.T) {
	w := behind()
	w.stdioTarget("it", "serve")
	g := newGroup(t, w, 2)
	session := g.proxies[0].initialize(t, "2025-11-25")
	call := func(name, args string) string {
		return `{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"` + name + `","arguments":` + args + `}}`
	}
	started := make(chan answer, 1)
	go func() {
		defer func() { _ = recover() }()
		req, _ := http.NewRequest(http.MethodPost, g.proxies[1].URL, strings.NewReader(call("slow", `{"ms":30000}`)))
		req.Header = http.Header{"Accept": {"application/json, text/event-stream"}, "Content-Type": {"application/json"}, "Mcp-Session-Id": {session}}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			started <- answer{status: -1}
			return
		}
		defer resp.Body.Close()
		body := make([]byte, 4096)
		n, _ := resp.Body.Read(body)
		started <- answer{status: resp.StatusCode, body: string(body[:n])}
	}()
	waitFor(t, "the call at the child", func() bool {
		return len(g.proxies[0].post(t, session, call("count", `{}`)).body) > 0
	})
	before := g.proxies[0].post(t, session, call("count", `{}`)).body
	g.between[0].stop()
	select {
	case a := <-started:
		if a.status == 200 && strings.Contains(a.body, `"done"`) {
			t.Errorf("a call whose owner is gone came to an end: %d %s", a.status, a.body)
		}
	case <-time.After(10 * time.Second):
		t.Error("the client still waits for an owner that is gone")
	}
	a := g.proxies[1].post(t, session, call("count", `{}`))
	if a.status != 503 && a.status != 502 || !strings.Contains(a.body, "-32603") || !strings.Contains(a.body, "proxy-1") || !strings.Contains(a.body, `"id":7`) {
		t.Errorf("%d %s", a.status, a.body)
	}
	if after := g.proxies[0].post(t, session, call("count", `{}`)).body; after == before {
		t.Errorf("the counter stands still: %s", after)
	} else if got, want := countOf(t, after), countOf(t, before)+1; got != want {
		t.Errorf("the target was called %d times, want %d", got, want)
	}
	// Both take the other for the owner: that ends after one step.
	g2 := newGroup(t, w, 2)
	g2.proxies[0].parts.ProxyID = "proxy-9"
	session = g2.proxies[1].initialize(t, "2025-11-25")
	g2.between[0].Set(map[string]string{"proxy-2": g2.between[1].addr})
	g2.proxies[1].parts.ProxyID = "proxy-8"
	if a := g2.proxies[0].post(t, session, call("count", `{}`)); a.status != 503 || !strings.Contains(a.body, "try again") {
		t.Errorf("%d %s", a.status, a.body)
	}
}

// A machine that dies closes no connection: what waits for it is told all the same.
func TestOwnerFrozen(t *testing.T) {
	w := behind()
	w.stdioTarget("it", "serve")
	g := newGroup(t, w, 2)
	wire := newCable(t, g.between[0].addr)
	g.between[1].Set(map[string]string{"proxy-1": wire.addr})
	session := g.proxies[0].initialize(t, "2025-11-25")
	over := make(chan answer, 1)
	g.proxies[1].open(t, http.MethodGet, session, "")
	standing := g.between[0].serving.Load()
	go func() {
		over <- g.proxies[1].post(t, session, `{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"slow","arguments":{"ms":600000}}}`)
	}()
	waitFor(t, "the forwarded call", func() bool { return g.between[0].serving.Load() == standing+1 })
	wire.cut()
	if a := <-over; a.status != 502 || !strings.Contains(a.body, "proxy-1") || !strings.Contains(a.body, "may have processed") {
		t.Errorf("%d %s", a.status, a.body)
	}
	waitFor(t, "the owner to let the standing stream go", func() bool { return g.between[0].serving.Load() <= standing })
}

// cable carries bytes to an address until it is cut; then both ends hear nothing more.
type cable struct {
	addr    string
	carried atomic.Int64
	broken  chan struct{}
}

func newCable(t *testing.T, to string) *cable {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := &cable{addr: l.Addr().String(), broken: make(chan struct{})}
	carry := func(from, to net.Conn) {
		buf := make([]byte, 4<<10)
		for {
			n, err := from.Read(buf)
			select {
			case <-c.broken:
				return
			default:
			}
			if n > 0 {
				c.carried.Add(int64(n))
				_, _ = to.Write(buf[:n])
			}
			if err != nil {
				_ = to.Close()
				return
			}
		}
	}
	var ends []net.Conn
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			near, err := l.Accept()
			if err != nil {
				return
			}
			far, err := net.Dial("tcp", to)
			if err != nil {
				_ = near.Close()
				continue
			}
			ends = append(ends, near, far)
			go carry(near, far)
			go carry(far, near)
		}
	}()
	t.Cleanup(func() {
		_ = l.Close()
		<-done
		for _, end := range ends {
			_ = end.Close()
		}
	})
	return c
}

func (c *cable) cut() { close(c.broken) }

func countOf(t *testing.T, body string) (n int) {
	t.Helper()
	at := strings.Index(body, `"text":"`)
	if _, err := fmt.Sscanf(body[at+len(`"text":"`):], "%d", &n); at < 0 || err != nil {
		t.Fatalf("no count in %s: %v", body, err)
	}
	return n
}

// A proxy that stops ends the standing streams that it forwards, so that their clients go elsewhere; the owner is none the worse for it. And
// a client that leaves is no lost owner.
func TestForwarderAndItsClients(t *testing.T) {
	w := behind()
	w.stdioTarget("it", "serve")
	g := newGroup(t, w, 2)
	session := g.proxies[0].initialize(t, "2025-11-25")
	sockets := listener.New(listener.Config{})
	request := func(ctx context.Context, method, body string) <-chan struct{} {
		r := httptest.NewRequest(method, g.proxies[1].URL, strings.NewReader(body)).WithContext(ctx)
		r.Header = http.Header{"Accept": {"application/json, text/event-stream"}, "Content-Type": {"application/json"}, "Mcp-Session-Id": {session}}
		over := make(chan struct{})
		go func() {
			defer close(over)
			g.proxies[1].handler(testPort).ServeHTTP(httptest.NewRecorder(), r)
		}()
		return over
	}
	ctx, leave := context.WithCancel(t.Context())
	stream := request(sockets.Context(), http.MethodGet, "")
	call := request(ctx, http.MethodPost, `{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"slow","arguments":{"ms":600000}}}`)
	waitFor(t, "both at the owner", func() bool { return g.between[0].serving.Load() == 2 })
	sockets.Close()
	<-stream
	leave()
	<-call
	waitFor(t, "both lines", func() bool { return strings.Count(g.proxies[1].lines.String(), `"owner":"proxy-1"`) == 2 })
	if lines := g.proxies[1].lines.String(); strings.Contains(lines, "was lost") || !strings.Contains(lines, `"outcome":"canceled"`) {
		t.Errorf("a client that leaves is told of as\n%s", lines)
	}
}

// A listener that wants client certificates serves what is forwarded; whose certificate it was, no proxy takes on another's word: a rule
// that asks for it fails, one that refuses by it too.
func TestForwardedCertificate(t *testing.T) {
	for name, tt := range map[string]struct {
		rule              *policyv1.AuthorizationRule
		itself, byAnother bool
	}{
		"no rule asks": {require(`request.scheme == "https"`), true, true},
		"require":      {require(`source.subjectCn == "ci"`), true, false},
		"deny":         {&policyv1.AuthorizationRule{Rule: &policyv1.AuthorizationRule_Deny{Deny: `has(source.certificate) && source.subjectCn == "stolen"`}}, true, false},
	} {
		t.Run(name, func(t *testing.T) {
			cert, key := certificate(t, "mcp.example.com")
			w := behind()
			w.secrets = map[string]string{"cert": cert, "key": key}
			secret := func(name string) *policyv1.Credential {
				return &policyv1.Credential{Source: &policyv1.Credential_Secret{Secret: "default/secret/" + name}}
			}
			w.listener.Hostnames = []string{"mcp.example.com"}
			w.listener.Tls = &xdsv1.ListenerTls{Cert: secret("cert"), Key: secret("key"), Root: secret("cert")}
			w.stdioTarget("it", "serve")
			w.policies["it"] = authorization(tt.rule)
			g := newGroup(t, w, 2)
			caller := &x509.Certificate{Subject: pkix.Name{CommonName: "ci"}, SerialNumber: big.NewInt(1)}
			post := func(p *testProxy, session, body string) *httptest.ResponseRecorder {
				r := httptest.NewRequest(http.MethodPost, "https://mcp.example.com/mcp", strings.NewReader(body))
				r.Header = http.Header{"Accept": {"application/json, text/event-stream"}, "Content-Type": {"application/json"}}
				if session != "" {
					r.Header.Set("Mcp-Session-Id", session)
				}
				r.TLS = &tls.ConnectionState{HandshakeComplete: true, ServerName: "mcp.example.com",
					PeerCertificates: []*x509.Certificate{caller}, VerifiedChains: [][]*x509.Certificate{{caller}}}
				a := httptest.NewRecorder()
				p.handler(testPort).ServeHTTP(a, r)
				return a
			}
			hello := post(g.proxies[0], "", `{"jsonrpc":"2.0","id":0,"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{},"clientInfo":{"name":"raw","version":"1"}}}`)
			session := hello.Header().Get("Mcp-Session-Id")
			if session == "" {
				t.Fatalf("initialize: %d %s", hello.Code, hello.Body)
			}
			for _, c := range []struct {
				by   *testProxy
				want bool
			}{{g.proxies[0], tt.itself}, {g.proxies[1], tt.byAnother}} {
				a := post(c.by, session, echo("echo", "hi"))
				if served := strings.Contains(a.Body.String(), `"text":"hi"`); a.Code != 200 || served != c.want {
					t.Errorf("by %s: %d %s", c.by.parts.ProxyID, a.Code, a.Body)
				}
			}
		})
	}
}

// certificate is a self-signed one and its key, PEM.
func certificate(t *testing.T, name string) (cert, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{name}, NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})), string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}))
}
