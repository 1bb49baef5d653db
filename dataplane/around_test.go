package dataplane

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/sluicegate/sluice/internal/mcptest"
	policyv1 "github.com/sluicegate/sluice/proto/gen/sluice/policy/v1"
	xdsv1 "github.com/sluicegate/sluice/proto/gen/sluice/xds/v1"
)

func protectedResource(t *testing.T, resource string) *policyv1.Policies {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	set, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: key.Public()}}})
	if err != nil {
		t.Fatal(err)
	}
	return &policyv1.Policies{McpAuthentication: &policyv1.McpAuthentication{Resource: resource, Scopes: []string{"tools"}, Providers: []*policyv1.JwtProvider{{
		Issuer: "https://idp.test", Jwks: &policyv1.Jwks{Source: &policyv1.Jwks_Inline{Inline: string(set)}},
	}}}}
}

// Who shows no token to a target that takes one exchanged for it is told where to get one, as by the route itself.
func TestChallengeOfTokenExchange(t *testing.T) {
	for _, version := range []string{"2025-11-25", "2026-07-28"} {
		srv := mcptest.NewServer(t, mcptest.Options{Stateless: version == "2026-07-28"})
		for challenge, route := range map[string]*policyv1.Policies{
			`Bearer resource_metadata="https://mcp.example.com/.well-known/oauth-protected-resource/mcp", scope="tools"`: protectedResource(t, "https://mcp.example.com/mcp"),
			"Bearer": nil,
		} {
			w := behind(srv.URL)
			if w.routePolicy = route; route != nil {
				route.McpAuthentication.Mode = policyv1.JwtAuth_MODE_OPTIONAL // the route lets in who shows none
			}
			w.policies["only"] = &policyv1.Policies{BackendAuth: &policyv1.BackendAuth{Method: &policyv1.BackendAuth_TokenExchange{TokenExchange: &policyv1.TokenExchange{
				Client: &policyv1.OauthClient{TokenUrl: "http://127.0.0.1:9/", ClientId: "c", AuthMethod: "none"}, Audience: "a"}}}}
			p := w.start(t)
			got := p.ask(t, "2026-07-28", "", "tools/list", "", "")
			if version != "2026-07-28" {
				got = p.post(t, "", `{"jsonrpc":"2.0","id":0,"method":"initialize","params":{"protocolVersion":"`+version+`","capabilities":{},"clientInfo":{"name":"raw","version":"1"}}}`)
			}
			if got.status != 401 || got.header.Get("Www-Authenticate") != challenge || !strings.Contains(got.body, "-32600") {
				t.Errorf("%s: %d %q %s, want %q", version, got.status, got.header.Get("Www-Authenticate"), got.body, challenge)
			}
		}
	}
}

// The documents about protected resources are for everybody, at both places.
func TestResourceMetadata(t *testing.T) {
	srv := mcptest.NewServer(t, mcptest.Options{})
	const known = "/.well-known/oauth-protected-resource"
	unnamed, named := behind(srv.URL), behind(srv.URL)
	unnamed.routePolicy, named.routePolicy = protectedResource(t, ""), protectedResource(t, "https://mcp.example.com/mcp")
	for _, tt := range []struct {
		name, path string
		w          *world
		status     int
		resource   string
	}{
		{"of a path", known + "/mcp", unnamed, 200, "http://127.0.0.1:3000/mcp"},
		{"of a path with a slash", known + "/mcp/", unnamed, 200, "http://127.0.0.1:3000/mcp/"},
		{"of the root", known, unnamed, 200, "http://127.0.0.1:3000"},
		{"of the root with a slash", known + "/", unnamed, 200, "http://127.0.0.1:3000"},
		{"named, of its path", known + "/mcp", named, 200, "https://mcp.example.com/mcp"},
		{"named, of the root: the only one", known, named, 200, "https://mcp.example.com/mcp"},
		{"named, of another path", known + "/other", named, 401, ""},
		{"another name that begins so", known + "s/mcp", unnamed, 401, ""},
		{"no resource at all", known + "/mcp", behind(srv.URL), 404, ""},
	} {
		p := tt.w.start(t)
		p.URL = strings.TrimSuffix(p.URL, "/mcp") + tt.path
		got := p.do(t, http.MethodGet, "", "", "Origin", "https://page.example.org")
		if tt.status != 200 {
			// It is the endpoint's own business then: the page is a stranger there, and nobody is let in without a token.
			if got.header.Get("Access-Control-Allow-Origin") == "*" || got.status == 200 {
				t.Errorf("%s: %d %v %s", tt.name, got.status, got.header, got.body)
			}
			continue
		}
		var document struct {
			Resource             string
			AuthorizationServers []string `json:"authorization_servers"`
			ScopesSupported      []string `json:"scopes_supported"`
		}
		if err := json.Unmarshal([]byte(got.body), &document); err != nil || got.status != 200 || document.Resource != tt.resource ||
			fmt.Sprint(document.AuthorizationServers, document.ScopesSupported) != "[https://idp.test] [tools]" {
			t.Errorf("%s: %d %s", tt.name, got.status, got.body)
		}
		if h := got.header; h.Get("Access-Control-Allow-Origin") != "*" || h.Get("Content-Type") != "application/json" {
			t.Errorf("%s: %v", tt.name, h)
		}
		preflight := p.do(t, http.MethodOptions, "", "", "Origin", "https://page.example.org", "Access-Control-Request-Method", "GET", "Access-Control-Request-Headers", "mcp-protocol-version")
		if preflight.status != 204 || preflight.header.Get("Access-Control-Allow-Origin") != "*" || preflight.header.Get("Access-Control-Allow-Headers") != "*" {
			t.Errorf("%s: preflight %d %v", tt.name, preflight.status, preflight.header)
		}
		if post := p.post(t, "", "{}"); post.status != 405 || post.header.Get("Allow") != "GET, HEAD, OPTIONS" {
			t.Errorf("%s: POST %d", tt.name, post.status)
		}
	}

	p := unnamed.start(t)
	if got := p.post(t, "", "{}"); got.status != 401 || got.header.Get("Www-Authenticate") != `Bearer resource_metadata="`+strings.TrimSuffix(p.URL, "/mcp")+known+`/mcp", scope="tools"` {
		t.Errorf("without a token: %d %v", got.status, got.header)
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, strings.TrimSuffix(p.URL, "/mcp")+known, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Host = "evil.example.org"
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if resp.StatusCode != 403 {
		t.Errorf("by a name that is bound to this machine: %d", resp.StatusCode)
	}
}

func limits(all ...*policyv1.RateLimit) *policyv1.Policies {
	return &policyv1.Policies{LocalRateLimit: &policyv1.LocalRateLimit{Limits: all}}
}

func perHour(n uint32, key string) *policyv1.RateLimit {
	return &policyv1.RateLimit{MaxTokens: n, FillInterval: durationpb.New(time.Hour), Key: key}
}

// What costs a token: each request, once, also where two targets share the limit.
func TestRateLimitOfSeveral(t *testing.T) {
	t.Parallel()
	for _, version := range []string{"2025-03-26", "2025-11-25", "2026-07-28"} {
		t.Run(version, func(t *testing.T) {
			w, _, _ := two(t, version, mcptest.Options{})
			const tokens = 6
			for _, target := range w.targets {
				w.policies[target.Name] = limits(perHour(tokens, ""))
			}
			p := w.start(t)
			left, session := tokens, ""
			if version != "2026-07-28" {
				session = p.initialize(t, version) // and a notification, which is free
				left--
				if got := p.post(t, session, `{"jsonrpc":"2.0","id":1,"method":"ping"}`); got.status != 200 {
					t.Errorf("ping: %d %s", got.status, got.body)
				}
				if got := p.post(t, session, `{"jsonrpc":"2.0","method":"notifications/roots/list_changed"}`); got.status != 202 {
					t.Errorf("a notification: %d %s", got.status, got.body)
				}
			}
			if version == "2025-03-26" {
				got := p.post(t, session, `[{"jsonrpc":"2.0","id":1,"method":"tools/list"},{"jsonrpc":"2.0","id":2,"method":"prompts/list"},{"jsonrpc":"2.0","method":"notifications/roots/list_changed"}]`)
				if got.status != 200 || strings.Contains(got.body, `"error":{"code"`) {
					t.Errorf("a batch: %d %s", got.status, got.body)
				}
				left -= 2
			}
			for ; left > 0; left-- {
				method, name, params := "tools/list", "", ""
				if left%2 == 0 {
					method, name, params = "tools/call", "a_echo", `"name":"a_echo","arguments":{"text":"hi"}`
				}
				if got := p.call(t, version, session, method, name, params); got.status != 200 || strings.Contains(got.body, `"error":{"code"`) {
					t.Fatalf("%s with %d tokens left: %d %s", method, left, got.status, got.body)
				}
			}
			for _, c := range [][3]string{{"tools/list", "", ""}, {"tools/call", "a-b_echo", `"name":"a-b_echo","arguments":{"text":"hi"}`}, {"tools/call", "a_nobody", `"name":"a_nobody"`}} {
				got := p.call(t, version, session, c[0], c[1], c[2])
				if got.status != 429 || got.header.Get("Retry-After") != "600" || !strings.Contains(got.body, `"code":-32600`) || !strings.Contains(got.body, `"id":7`) {
					t.Errorf("%s %s without a token: %d %v %s", c[0], c[1], got.status, got.header, got.body)
				}
			}
			if version == "2025-03-26" {
				if got := p.post(t, session, `[{"jsonrpc":"2.0","id":1,"method":"tools/list"}]`); !strings.Contains(got.body, "too many requests") {
					t.Errorf("a batch without a token: %s", got.body)
				}
			}
			if session != "" {
				if got := p.do(t, http.MethodDelete, session, ""); got.status != 204 {
					t.Errorf("DELETE: %d", got.status)
				}
			}
			waitFor(t, "the log says which limit", func() bool {
				return strings.Contains(p.lines.String(), `"verdict":"deny","rule":"localRateLimit.limits[0]"`)
			})
		})
	}
}

// One target over a limit of its own costs the others nothing where the backend may go on without it.
func TestRateLimitOfOneTarget(t *testing.T) {
	const version = "2026-07-28"
	w, _, _ := two(t, version, mcptest.Options{})
	w.backend.FailureMode = xdsv1.Backend_FAILURE_MODE_FAIL_OPEN
	w.policies["a"] = limits(perHour(1, ""))
	p := w.start(t)
	if got := p.call(t, version, "", "tools/list", "", ""); !strings.Contains(got.body, `"a_echo"`) || !strings.Contains(got.body, `"a-b_echo"`) {
		t.Fatalf("first: %s", got.body)
	}
	if got := p.call(t, version, "", "tools/list", "", ""); got.status != 200 || strings.Contains(got.body, `"a_echo"`) || !strings.Contains(got.body, `"a-b_echo"`) || !strings.Contains(got.body, "too many requests") {
		t.Errorf("second: %d %s", got.status, got.body)
	}
	w.backend.FailureMode = xdsv1.Backend_FAILURE_MODE_FAIL_CLOSED
	p.apply(t, w)
	if got := p.call(t, version, "", "tools/list", "", ""); got.status != 429 || got.header.Get("Retry-After") == "" {
		t.Errorf("closed: %d %s", got.status, got.body)
	}
}

func TestRateLimitKeys(t *testing.T) {
	const version = "2026-07-28"
	srv := mcptest.NewServer(t, mcptest.Options{Stateless: true})
	w := behind(srv.URL)
	w.policies["only"] = limits(perHour(1, `has(mcp.tool) ? mcp.tool.name : ""`))
	p := w.start(t)
	echo := func(name string) answer {
		return p.call(t, version, "", "tools/call", name, `"name":"`+name+`","arguments":{"text":"hi","ms":0}`)
	}
	for _, step := range []struct {
		tool   string
		status int
	}{{"echo", 200}, {"echo", 429}, {"count", 200}, {"count", 429}, {"echo", 429}} {
		if got := echo(step.tool); got.status != step.status {
			t.Errorf("%s: %d, want %d: %s", step.tool, got.status, step.status, got.body)
		}
	}
	// A change of something else leaves the buckets alone.
	w.targets[0].ForwardHeaders = []string{"x-any"}
	p.apply(t, w)
	if got := echo("echo"); got.status != 429 {
		t.Errorf("after a change of configuration: %d", got.status)
	}
	w.policies["only"] = limits(perHour(5, `string(mcp.tool.arguments.n)`))
	p.apply(t, w)
	if got := p.call(t, version, "", "tools/list", "", ""); got.status != 500 || !strings.Contains(got.body, "localRateLimit.limits[0].key") {
		t.Errorf("a key that fails: %d %s", got.status, got.body)
	}
	if got := p.call(t, version, "", "tools/call", "echo", `"name":"echo","arguments":{"n":1,"n":2}`); got.status != 400 {
		t.Errorf("arguments that cannot be read: %d %s", got.status, got.body)
	}
}

func TestTimeoutPolicy(t *testing.T) {
	// The target's work is not over when the proxy gives up, so it must end some time: a server waits for it.
	const short, long = 80 * time.Millisecond, 1500
	for _, version := range []string{"2025-11-25", "2026-07-28"} {
		for _, jsonAnswers := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, JSON %v", version, jsonAnswers), func(t *testing.T) {
				srv := mcptest.NewServer(t, mcptest.Options{Stateless: version == "2026-07-28", JSON: jsonAnswers})
				w := behind("slow="+srv.URL, "other="+srv.URL)
				for _, target := range w.targets {
					target.ProtocolVersions = []string{version}
				}
				p := w.start(t)
				session := ""
				if version != "2026-07-28" {
					session = p.initialize(t, version)
				}
				call := func(ms int) answer {
					session := session
					if session != "" { // the one before it is still under way at the target
						session = p.initialize(t, version)
					}
					return p.call(t, version, session, "tools/call", "slow_slow", fmt.Sprintf(`"name":"slow_slow","arguments":{"ms":%d}`, ms))
				}
				late := func(what string, got answer) {
					t.Helper()
					if !strings.Contains(got.body, `target \"slow\" did not answer in time`) || got.status != 504 && !strings.Contains(got.body, "event: message") {
						t.Errorf("%s: %d %s", what, got.status, got.body)
					}
				}
				w.policies["slow"] = &policyv1.Policies{Timeout: &policyv1.Timeout{RequestTimeout: durationpb.New(short)}}
				p.apply(t, w)
				var over atomic.Bool
				ctx, cancel := context.WithCancel(t.Context())
				var open sync.WaitGroup
				if session != "" {
					open.Go(func() {
						req, _ := http.NewRequestWithContext(ctx, http.MethodGet, p.URL, nil)
						req.Header.Set("Accept", "text/event-stream")
						req.Header.Set("Mcp-Session-Id", session)
						if resp, err := http.DefaultClient.Do(req); err == nil {
							_, _ = io.Copy(io.Discard, resp.Body)
							_ = resp.Body.Close()
						}
						over.Store(true)
					})
				}
				late("requestTimeout", call(long))
				if over.Load() {
					t.Error("the stream of GET is bounded too")
				}
				cancel()
				open.Wait()

				w.policies["slow"] = &policyv1.Policies{Timeout: &policyv1.Timeout{BackendRequestTimeout: durationpb.New(short)}}
				p.apply(t, w)
				if jsonAnswers {
					late("backendRequestTimeout", call(long))
				}
				// The target's own is the most specific.
				w.targets[0].Timeout = durationpb.New(time.Minute)
				w.policies["slow"] = &policyv1.Policies{Timeout: &policyv1.Timeout{RequestTimeout: durationpb.New(short), BackendRequestTimeout: durationpb.New(short)}}
				p.apply(t, w)
				if got := call(200); !strings.Contains(got.body, "done") {
					t.Errorf("the target's own timeout: %d %s", got.status, got.body)
				}
			})
		}
	}
}

// failing answers with a status as long as there are some left, and counts the messages with a word.
type failing struct {
	left  atomic.Int32
	seen  atomic.Int32
	word  string
	reply func(w http.ResponseWriter)
}

func (f *failing) wrap(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		r.Body = io.NopCloser(bytes.NewReader(body))
		if bytes.Contains(body, []byte(f.word)) {
			f.seen.Add(1)
			if f.left.Add(-1) >= 0 {
				f.reply(w)
				return
			}
		}
		h.ServeHTTP(w, r)
	})
}

// A read is sent again, a call never once the target has seen it.
func TestRetryPolicy(t *testing.T) {
	for name, reply := range map[string]func(http.ResponseWriter){
		"503":               func(w http.ResponseWriter) { http.Error(w, "not now", http.StatusServiceUnavailable) },
		"broken connection": func(http.ResponseWriter) { panic(http.ErrAbortHandler) },
	} {
		for _, version := range []string{"2025-11-25", "2026-07-28"} {
			t.Run(name+", "+version, func(t *testing.T) {
				read, call := &failing{word: `"resources/read"`, reply: reply}, &failing{word: `"tools/call"`, reply: reply}
				srv := mcptest.NewServer(t, mcptest.Options{Stateless: version == "2026-07-28", Wrap: func(h http.Handler) http.Handler { return read.wrap(call.wrap(h)) }})
				w := behind(srv.URL)
				w.targets[0].ProtocolVersions = []string{version}
				w.policies["only"] = &policyv1.Policies{Retry: &policyv1.Retry{Attempts: 2, Backoff: durationpb.New(time.Millisecond)}}
				p := w.start(t)
				session := ""
				if version != "2026-07-28" {
					session = p.initialize(t, version)
				}
				read.left.Store(2)
				if got := p.call(t, version, session, "resources/read", "test://static/one", `"uri":"test://static/one"`); got.status != 200 || read.seen.Load() != 3 {
					t.Errorf("a read: %d after %d tries: %s", got.status, read.seen.Load(), got.body)
				}
				read.left.Store(100)
				if got := p.call(t, version, session, "resources/read", "test://static/one", `"uri":"test://static/one"`); got.status < 500 || read.seen.Load() < 6 {
					t.Errorf("a read of a target that stays down: %d after %d tries in all", got.status, read.seen.Load())
				}
				call.left.Store(1)
				if got := p.call(t, version, session, "tools/call", "echo", `"name":"echo","arguments":{"text":"hi"}`); got.status < 500 || call.seen.Load() != 1 {
					t.Errorf("a call: %d after %d tries: %s", got.status, call.seen.Load(), got.body)
				}
			})
		}
	}
}

// At most so many calls run; what a call waits for is none of them.
func TestConcurrencyOfTarget(t *testing.T) {
	const version = "2025-11-25"
	arrived, release := make(chan struct{}, 8), make(chan struct{})
	hold := func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			body, _ := io.ReadAll(r.Body)
			r.Body = io.NopCloser(bytes.NewReader(body))
			if bytes.Contains(body, []byte("hold on")) {
				arrived <- struct{}{}
				<-release
			}
			h.ServeHTTP(w, r)
		})
	}
	srv := mcptest.NewServer(t, mcptest.Options{Wrap: hold})
	w := behind(srv.URL)
	w.targets[0].Concurrency = &xdsv1.Concurrency{Max: 1}
	p := w.start(t)
	cli := mcptest.Connect(t, p.URL, mcptest.ClientOptions{Version: version})
	if got := cli.Call(t, "elicit", nil); got != "Hello, Ada!" {
		t.Errorf("a call that asks the client: %q", got)
	}
	session := p.initialize(t, version)
	echo := func(text string) answer {
		return p.call(t, version, session, "tools/call", "echo", `"name":"echo","arguments":{"text":"`+text+`"}`)
	}
	var running sync.WaitGroup
	running.Go(func() {
		if got := echo("hold on"); !strings.Contains(got.body, "hold on") {
			t.Errorf("the first call: %d %s", got.status, got.body)
		}
	})
	<-arrived
	if got := echo("second"); got.status != 503 || got.header.Get("Retry-After") == "" || !strings.Contains(got.body, `target \"only\" is busy`) {
		t.Errorf("the second call: %d %s", got.status, got.body)
	}
	w.targets[0].Concurrency.Wait = durationpb.New(time.Minute)
	p.apply(t, w)
	running.Go(func() {
		if got := echo("third"); !strings.Contains(got.body, "third") {
			t.Errorf("a call that waits: %d %s", got.status, got.body)
		}
	})
	close(release)
	running.Wait()
}
