package dataplane

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sluicegate/sluice/internal/mcptest"
	policyv1 "github.com/sluicegate/sluice/proto/gen/sluice/policy/v1"
	"google.golang.org/protobuf/types/known/durationpb"
)

// intercept is an MCP server whose answers to tools/call a test replaces, once told to.
type intercept struct {
	*mcptest.Server
	f atomic.Pointer[http.HandlerFunc]
}

func newIntercept(t *testing.T, o mcptest.Options) *intercept {
	i := &intercept{}
	o.Wrap = func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method != http.MethodPost {
				next.ServeHTTP(w, r)
				return
			}
			body, _ := io.ReadAll(r.Body)
			if f := i.f.Load(); f != nil && strings.Contains(string(body), `"tools/call"`) {
				(*f)(w, r)
				return
			}
			r.Body = io.NopCloser(strings.NewReader(string(body)))
			next.ServeHTTP(w, r)
		})
	}
	i.Server = mcptest.NewServer(t, o)
	return i
}

func (i *intercept) answer(f http.HandlerFunc) { i.f.Store(&f) }

func TestTargetsThatAreNoMCP(t *testing.T) {
	for _, tt := range []struct {
		name    string
		handler http.HandlerFunc
		status  int
		body    []string
		not     string
	}{
		{"an error page", page(500, "text/html", "<h1>secret stack trace</h1>"), 502, []string{"-32603", `target \"a\"`, "500", "text/html"}, "secret"},
		{"a login page", page(200, "text/html", "<form>"), 502, []string{"-32603", "is its URL that of an MCP endpoint?"}, "<form>"},
		{"its credentials refused", page(401, "text/plain", "who are you"), 502, []string{"-32603", "refused the proxy's credentials (401)"}, "who are you"},
		{"forbidden", page(403, "application/json", `{"jsonrpc":"2.0","id":7,"error":{"code":1,"message":"no"}}`), 502, []string{"-32603", "(403)"}, `"no"`},
		{"a redirect", page(302, "text/html", ""), 502, []string{"redirects are not followed"}, ""},
		{"overloaded", page(429, "text/plain", "slow down"), 429, []string{"-32603", "overloaded"}, "slow down"},
		{"a JSON-RPC error with a status", page(400, "application/json", `{"jsonrpc":"2.0","id":7,"error":{"code":-32602,"message":"its own words"}}`), 400, []string{"its own words"}, ""},
		{"an odd error code", page(200, "application/json", `{"jsonrpc":"2.0","id":7,"error":{"code":0,"message":"zero"}}`), 200, []string{`{"jsonrpc":"2.0","id":7,"error":{"code":0,"message":"zero"}}`}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			srv := newIntercept(t, mcptest.Options{})
			p := behind("a=" + srv.URL).start(t)
			id := p.initialize(t, "2025-11-25")
			srv.answer(tt.handler)
			got := p.post(t, id, echo("echo", "x"))
			if got.status != tt.status {
				t.Errorf("status %d, want %d", got.status, tt.status)
			}
			for _, part := range tt.body {
				if !strings.Contains(got.body, part) {
					t.Errorf("body %s lacks %q", got.body, part)
				}
			}
			if tt.not != "" && strings.Contains(got.body, tt.not) {
				t.Errorf("body %s shows the target's own %q", got.body, tt.not)
			}
			if tt.status == 429 && got.header.Get("Retry-After") != "9" {
				t.Errorf("Retry-After is gone: %v", got.header)
			}
			if got.header.Get("Set-Cookie") != "" || got.header.Get("Server") != "" || got.header.Get("Mcp-Session-Id") != "" {
				t.Errorf("the target's headers show: %v", got.header)
			}
		})
	}
}

func page(status int, kind, body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		h := w.Header()
		h.Set("Content-Type", kind)
		h.Set("Retry-After", "9")
		h.Set("Set-Cookie", "a=b")
		h.Set("Server", "evil")
		h.Set("Mcp-Session-Id", "stolen")
		h.Set("Location", "http://169.254.169.254/")
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	}
}

// Under passthrough a refused token is the client's, who must hear of it.
func TestPassthroughRefused(t *testing.T) {
	srv := newIntercept(t, mcptest.Options{})
	w := behind("a=" + srv.URL)
	w.policies["a"] = &policyv1.Policies{BackendAuth: &policyv1.BackendAuth{Method: &policyv1.BackendAuth_Passthrough{Passthrough: &policyv1.PassthroughAuth{}}}}
	p := w.start(t)
	id := p.initialize(t, "2025-11-25")
	srv.answer(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("WWW-Authenticate", `Bearer error="invalid_token"`)
		w.WriteHeader(401)
	})
	got := p.post(t, id, echo("echo", "x"))
	if got.status != 401 || got.header.Get("WWW-Authenticate") != `Bearer error="invalid_token"` {
		t.Errorf("%d %v", got.status, got.header)
	}
}

// What a client must not send on, and what it must.
func TestHeadersAcross(t *testing.T) {
	srv := mcptest.NewServer(t, mcptest.Options{})
	w := behind("a=" + srv.URL)
	w.targets[0].ForwardHeaders = []string{"x-asked-for"}
	p := w.start(t)
	id := p.initialize(t, "2025-11-25")
	got := p.post(t, id, echo("echo", "x"), "Authorization", "Bearer mine", "Cookie", "c=1", "X-Forwarded-For", "1.2.3.4", "X-Other", "1",
		"X-Asked-For", "yes", "Traceparent", "00-1", "Accept-Language", "de", "MCP-Protocol-Version", "2025-11-25", "Proxy-Authorization", "x")
	if got.status != 200 {
		t.Fatalf("%d %s", got.status, got.body)
	}
	requests := srv.Requests()
	h := requests[len(requests)-1].Header
	for _, name := range []string{"Authorization", "Cookie", "X-Forwarded-For", "X-Other", "Proxy-Authorization", "Origin"} {
		if h.Get(name) != "" {
			t.Errorf("%s went to the target: %v", name, h)
		}
	}
	for name, want := range map[string]string{"X-Asked-For": "yes", "Traceparent": "00-1", "Accept-Language": "de", "Mcp-Protocol-Version": "2025-11-25"} {
		if h.Get(name) != want {
			t.Errorf("%s = %q, want %q", name, h.Get(name), want)
		}
	}
	if sent := h.Get("Mcp-Session-Id"); sent == "" || sent == id {
		t.Errorf("session %q", sent)
	}
}

// An answer that breaks off must not look whole.
func TestBrokenAnswer(t *testing.T) {
	srv := newIntercept(t, mcptest.Options{})
	p := behind("a=" + srv.URL).start(t)
	id := p.initialize(t, "2025-11-25")
	srv.answer(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Content-Length", "1000")
		_, _ = io.WriteString(w, `{"jsonrpc":"2.0","id":7,"result":{"content":[`)
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	})
	req, _ := http.NewRequest(http.MethodPost, p.URL, strings.NewReader(echo("echo", "x")))
	req.Header = http.Header{"Content-Type": {"application/json"}, "Accept": {"application/json, text/event-stream"}, "Mcp-Session-Id": {id}}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return // cut before the head: as good
	}
	defer resp.Body.Close()
	if b, err := io.ReadAll(resp.Body); err == nil {
		t.Errorf("the answer ended as if it were whole: %s", b)
	}
}

// A client that leaves has cancelled in the stateless era, and has not in the session era.
func clientLeaves(t *testing.T) {
	for _, version := range []string{"2025-11-25", "2026-07-28"} {
		t.Run(version, func(t *testing.T) {
			var ended, finished atomic.Int32
			srv := newIntercept(t, mcptest.Options{Stateless: version == "2026-07-28"})
			started, release := make(chan struct{}), make(chan struct{})
			srv.answer(func(w http.ResponseWriter, r *http.Request) {
				close(started)
				select {
				case <-r.Context().Done():
					ended.Add(1)
				case <-release:
					finished.Add(1)
				}
			})
			p := behind("a=" + srv.URL).start(t)
			session := ""
			headers := http.Header{"Content-Type": {"application/json"}, "Accept": {"application/json, text/event-stream"}}
			body := echo("echo", "x")
			if version == "2026-07-28" {
				for k, v := range map[string]string{"MCP-Protocol-Version": version, "Mcp-Method": "tools/call", "Mcp-Name": "echo"} {
					headers.Set(k, v)
				}
				body = `{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"echo","_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{}}}}`
			} else {
				session = p.initialize(t, version)
				headers.Set("Mcp-Session-Id", session)
			}
			ctx, cancel := context.WithCancel(t.Context())
			req, _ := http.NewRequestWithContext(ctx, http.MethodPost, p.URL, strings.NewReader(body))
			req.Header = headers
			go func() { <-started; cancel() }()
			if resp, err := http.DefaultClient.Do(req); err == nil {
				resp.Body.Close()
			}
			if session != "" { // the proxy has seen him leave, and serves others
				waitFor(t, "another request", func() bool { return p.post(t, session, `{"jsonrpc":"2.0","id":8,"method":"ping"}`).status == 200 })
				close(release)
			}
			waitFor(t, "the target to see an end", func() bool { return ended.Load()+finished.Load() == 1 })
			if cancelled := ended.Load() == 1; cancelled != (version == "2026-07-28") {
				t.Errorf("the target saw its request cancelled: %v", cancelled)
			}
		})
	}
}

func TestTimeout(t *testing.T) {
	srv := newIntercept(t, mcptest.Options{})
	w := behind("a=" + srv.URL)
	w.targets[0].Timeout = durationpb.New(200 * time.Millisecond)
	p := w.start(t)
	id := p.initialize(t, "2025-11-25")
	srv.answer(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	if got := p.post(t, id, echo("echo", "x")); got.status != 504 || !strings.Contains(got.body, `target \"a\" did not answer in time`) {
		t.Errorf("no head: %d %s", got.status, got.body)
	}
	srv.answer(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	})
	if got := p.post(t, id, echo("echo", "x")); !strings.Contains(got.body, "did not answer in time") || !strings.Contains(got.body, `"id":7`) {
		t.Errorf("a head and nothing more: %d %q", got.status, got.body)
	}
}

// A target that does not answer initialize is asked whether it has the other era, but not while the client waits, whose time is over.
// Who comes next gets to it.
func TestTimeoutOfInitialize(t *testing.T) {
	release := make(chan struct{})
	discovered := make(chan bool, 8)
	target := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var asked struct {
			ID     json.RawMessage
			Method string
		}
		body, _ := io.ReadAll(r.Body) // to its end, or nobody sees that the proxy has left
		_ = json.Unmarshal(body, &asked)
		switch asked.Method {
		case "server/discover":
			select {
			case <-release:
				discovered <- r.Context().Err() == nil
			case <-r.Context().Done():
				discovered <- false
				return
			}
			w.Header().Set("Content-Type", "application/json")
			fmt.Fprintf(w, `{"jsonrpc":"2.0","id":%s,"result":{"resultType":"complete","supportedVersions":["2026-07-28"],`+
				`"capabilities":{"tools":{}},"serverInfo":{"name":"s","version":"1"},"ttlMs":0,"cacheScope":"private"}}`, asked.ID)
		default: // of the session era
			<-r.Context().Done()
		}
	}))
	defer target.Close()
	w := behind("a=" + target.URL)
	w.targets[0].Timeout = durationpb.New(time.Second)
	p := w.start(t)
	got := p.post(t, "", `{"jsonrpc":"2.0","id":0,"method":"initialize","params":{"protocolVersion":"2025-06-18","capabilities":{},"clientInfo":{"name":"raw","version":"1"}}}`)
	if got.status != 504 || !strings.Contains(got.body, `target \"a\" did not answer in time`) {
		t.Errorf("%d %s", got.status, got.body)
	}
	close(release)
	if !<-discovered {
		t.Fatal("the client waited until the probe had timed out, too")
	}
	waitFor(t, "a session over the bridge", func() bool {
		return p.post(t, "", `{"jsonrpc":"2.0","id":0,"method":"initialize","params":{"protocolVersion":"2025-06-18","capabilities":{},"clientInfo":{"name":"raw","version":"1"}}}`).status == 200
	})
}

// Requests before MCP: who is not a client at all.
func TestRefusedRequests(t *testing.T) {
	srv := mcptest.NewServer(t, mcptest.Options{JSON: true})
	p := behind("a=" + srv.URL).start(t)
	id := p.initialize(t, "2025-11-25")
	for _, tt := range []struct {
		name, method, body string
		headers            []string
		status             int
		want               string
	}{
		{"no JSON type", "POST", listTools, []string{"Content-Type", "text/plain"}, 415, "application/json"},
		{"a site's page", "POST", listTools, []string{"Origin", "https://evil.example"}, 403, "Origin"},
		{"its preflight", "OPTIONS", "", []string{"Origin", "https://evil.example", "Access-Control-Request-Method", "POST"}, 403, "Origin"},
		{"our own preflight", "OPTIONS", "", []string{"Origin", "http://localhost:5173", "Access-Control-Request-Method", "POST"}, 204, ""},
		{"Accept of one type", "POST", listTools, []string{"Accept", "application/json"}, 406, "text/event-stream"},
		{"no message", "POST", `{"jsonrpc":"2.0"}`, nil, 400, "-32600"},
		{"no JSON", "POST", `{"jsonrpc":`, nil, 400, "-32700"},
		{"a method of HTTP", "PUT", "", nil, 405, ""},
		{"a key in two cases", "POST", `{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"echo","Name":"danger"}}`, nil, 400, "-32600"},
		{"an unknown version", "POST", listTools, []string{"MCP-Protocol-Version", "1999-01-01"}, 400, "not supported"},
		{"a batch", "POST", "[" + listTools + "]", nil, 400, "batch"},
		{"a response to nothing", "POST", `{"jsonrpc":"2.0","id":"nothing","result":{}}`, nil, 202, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := p.do(t, tt.method, id, tt.body, tt.headers...)
			if got.status != tt.status || !strings.Contains(got.body, tt.want) {
				t.Errorf("%d %s, want %d %q", got.status, got.body, tt.status, tt.want)
			}
		})
	}
}

// On a loopback port only loopback names can be meant, unless the route says which it serves.
func TestHost(t *testing.T) {
	target := mcptest.NewServer(t, mcptest.Options{})
	anyName, named := behind(target.URL).start(t), behind(target.URL)
	named.hosts = []string{"tools.example", "*.tools.example"}
	p := named.start(t)
	for _, tt := range []struct {
		proxy *testProxy
		host  string
		want  int
	}{
		{anyName, "127.0.0.1:3000", 200}, {anyName, "localhost:3000", 200}, {anyName, "[::1]:3000", 200},
		{anyName, "rebound.example", 403}, {anyName, "tools.example", 403},
		{p, "tools.example:3000", 200}, {p, "eu.tools.example", 200},
		{p, "rebound.example", 404}, {p, "127.0.0.1:3000", 404},
	} {
		body := `{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-06-18","capabilities":{},"clientInfo":{"name":"t","version":"1"}}}`
		req := httptest.NewRequest("POST", "/mcp", strings.NewReader(body))
		req.Host = tt.host
		req.Header.Set("Content-Type", "application/json")
		req.Header.Set("Accept", "application/json, text/event-stream")
		rec := httptest.NewRecorder()
		tt.proxy.handler(testPort).ServeHTTP(rec, req)
		if rec.Code != tt.want {
			t.Errorf("Host %s: %d %s, want %d", tt.host, rec.Code, rec.Body, tt.want)
		}
	}
}

// Batches of 2025-03-26 reach targets one by one; each request gets its answer, whatever becomes of the others.
func TestBatch(t *testing.T) {
	for _, n := range []int{1, 2} {
		for _, json := range []bool{true, false} {
			t.Run(fmt.Sprintf("%d targets, JSON %v", n, json), func(t *testing.T) {
				w, a, _ := two(t, "2025-03-26", mcptest.Options{JSON: json})
				w.targets = w.targets[:n]
				p := w.start(t)
				id := p.initialize(t, "2025-03-26")
				tool := map[int]string{1: "echo", 2: "a_echo"}[n]
				one := strings.Replace(echo(tool, "one"), `"id":7`, `"id":"x"`, 1)
				got := p.post(t, id, `[`+one+`,{"jsonrpc":"2.0","id":8,"method":"ping"},{"jsonrpc":"2.0","method":"notifications/roots/list_changed"},`+
					`{"jsonrpc":"2.0","id":9,"method":"tools/call","params":{"name":"nobody_x"}}]`)
				if got.status != 200 || !strings.HasPrefix(got.header.Get("Content-Type"), "text/event-stream") {
					t.Fatalf("%d %v", got.status, got.header)
				}
				for _, want := range []string{`"id":"x"`, `"one"`, `{"jsonrpc":"2.0","id":8,"result":{}}`, `"id":9`, `-32602`} {
					if !strings.Contains(got.body, want) {
						t.Errorf("the answer lacks %s:\n%s", want, got.body)
					}
				}
				if n := strings.Count(got.body, "data: {"); n != 3 {
					t.Errorf("%d answers, want 3:\n%s", n, got.body)
				}
				if got := p.post(t, id, `[{"jsonrpc":"2.0","method":"notifications/roots/list_changed"}]`); got.status != 202 {
					t.Errorf("notifications alone: %d %s", got.status, got.body)
				}
				_ = a
			})
		}
	}
}

// A stateless client gets to a target with sessions. The other way round, a target is told by name, with what it speaks;
// clients of both eras fall back on that.
func TestOtherEra(t *testing.T) {
	sessions := mcptest.NewServer(t, mcptest.Options{})
	t.Run("stateless client", func(t *testing.T) { // over a bridge
		p := behind("old=" + sessions.URL).start(t)
		if got := p.call(t, "2026-07-28", "", "tools/list", "", ""); got.status != 200 || !strings.Contains(got.body, `"resultType":"complete"`) {
			t.Errorf("%d %s", got.status, got.body)
		}
	})
	t.Run("configured", func(t *testing.T) {
		w := behind("old=" + sessions.URL)
		w.targets[0].ProtocolVersions = []string{"2025-06-18"}
		before := len(sessions.Requests())
		got := w.start(t).call(t, "2026-07-28", "", "tools/list", "", "")
		if got.status != 200 {
			t.Errorf("%d %s", got.status, got.body)
		}
		for _, r := range sessions.Requests()[before:] {
			if v := r.Header.Get("Mcp-Protocol-Version"); v != "" && v != "2025-06-18" {
				t.Errorf("a %s at version %s: what is configured is not probed", r.Method, v)
			}
		}
	})
}

// statelessOnly is a server that takes no initialize, as 2026-07-28 has it.
func statelessOnly(t *testing.T) string {
	srv := mcptest.NewServer(t, mcptest.Options{Stateless: true, Wrap: func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			body, _ := io.ReadAll(r.Body)
			if strings.Contains(string(body), `"initialize"`) {
				w.Header().Set("Content-Type", "application/json")
				w.WriteHeader(404)
				_, _ = io.WriteString(w, `{"jsonrpc":"2.0","id":0,"error":{"code":-32601,"message":"Method not found"}}`)
				return
			}
			r.Body = io.NopCloser(strings.NewReader(string(body)))
			next.ServeHTTP(w, r)
		})
	}})
	return srv.URL
}
