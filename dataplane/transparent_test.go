package dataplane

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/sluicegate/sluice/internal/mcptest"
	policyv1 "github.com/sluicegate/sluice/proto/gen/sluice/policy/v1"
	xdsv1 "github.com/sluicegate/sluice/proto/gen/sluice/xds/v1"
)

// guarded is a target that is a protected resource: it takes tokens that begin with "good", and those of a JWT's form.
type guarded struct {
	*mcptest.Server
	// at is the path of its metadata, and challenge what its 401 says; %s is its origin.
	at, challenge, document string
	served                  http.HandlerFunc // in place of the document; nil: that
	asked                   atomic.Int64     // for the document

	mu    sync.Mutex
	lists []string // guarded by mu; tokens with which tools were listed
}

func (g *guarded) listed() []string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Clone(g.lists)
}

const wellKnown = "/.well-known/oauth-protected-resource"

func newGuarded(t *testing.T, o mcptest.Options) *guarded {
	g := &guarded{
		at: wellKnown + "/mcp", challenge: `Bearer realm="x, y", Resource_Metadata = "%s` + wellKnown + `/mcp", scope="a b"`,
		document: "{ \"x_odd\" : 1e400,\n\"resource\": \"%s/mcp\", \"authorization_servers\" :[\"https://as.example\"], \"signed_metadata\":\"e.y.J\" }",
	}
	o.Wrap = func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			origin := "http://" + r.Host
			token, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
			switch good := strings.HasPrefix(token, "good") || strings.Count(token, ".") == 2; {
			case r.URL.RequestURI() == g.at:
				g.asked.Add(1)
				if token != "" {
					t.Errorf("a token went to the metadata: %q", token)
				}
				if g.served != nil {
					g.served(w, r)
					return
				}
				w.Header().Set("Content-Type", "application/json")
				_, _ = io.WriteString(w, strings.ReplaceAll(g.document, "%s", origin))
			case r.URL.Path != "/mcp":
				http.NotFound(w, r)
			case strings.HasPrefix(token, "good-but"):
				w.Header().Set("WWW-Authenticate", strings.ReplaceAll(g.challenge, "%s", origin)+`, error="insufficient_scope"`)
				w.Header().Set("Content-Type", "application/json")
				w.WriteHeader(403)
				_, _ = io.WriteString(w, `{"jsonrpc":"2.0","id":7,"error":{"code":-32001,"message":"no"}}`)
			case !good:
				w.Header().Set("WWW-Authenticate", strings.ReplaceAll(g.challenge, "%s", origin))
				w.Header().Set("Content-Type", "application/json")
				w.WriteHeader(401)
				_, _ = io.WriteString(w, `{"jsonrpc":"2.0","id":null,"error":{"code":-32001,"message":"no"}}`)
			default:
				body, _ := io.ReadAll(r.Body)
				if strings.Contains(string(body), `"tools/list"`) {
					g.mu.Lock()
					g.lists = append(g.lists, token)
					g.mu.Unlock()
				}
				r.Body = io.NopCloser(bytes.NewReader(body))
				next.ServeHTTP(w, r)
			}
		})
	}
	g.Server = mcptest.NewServer(t, o)
	return g
}

func unverified() *policyv1.Policies {
	return &policyv1.Policies{BackendAuth: &policyv1.BackendAuth{Method: &policyv1.BackendAuth_Passthrough{Passthrough: &policyv1.PassthroughAuth{Unverified: true}}}}
}

// inFront is a proxy that is transparent for the target.
func (g *guarded) inFront(t *testing.T) *testProxy {
	w := behind(g.URL)
	w.policies["only"] = unverified()
	return w.start(t)
}

func token(value string) []string { return []string{"Authorization", "Bearer " + value} }

func jwt(iss, sub, rest string) []string {
	part := func(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }
	return token(part(`{"alg":"RS256"}`) + "." + part(`{"iss":"`+iss+`","sub":"`+sub+`","x":"`+rest+`"}`) + "." + part("no signature"))
}

const clientInit = `{"jsonrpc":"2.0","id":7,"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{},"clientInfo":{"name":"raw","version":"1"}}}`

// get asks the proxy for a path.
func (p *testProxy) get(t *testing.T, path string, headers ...string) answer {
	own := *p
	own.URL = strings.TrimSuffix(p.URL, "/mcp") + path
	return own.do(t, http.MethodGet, "", "", headers...)
}

// The target's refusal reaches clients of both eras, over both bridges too, with the proxy's own URL of its metadata.
func TestTransparentChallenge(t *testing.T) {
	for _, stateless := range []bool{false, true} {
		for _, version := range []string{"2025-11-25", "2026-07-28"} {
			for name, tt := range map[string]struct {
				token  []string
				status int
				more   string
			}{
				"no token": {nil, 401, ""}, "a bad token": {token("bad"), 401, ""}, "a weak token": {token("good-but-weak"), 403, `, error="insufficient_scope"`},
			} {
				t.Run(fmt.Sprintf("stateless target %v, %s, %s", stateless, version, name), func(t *testing.T) {
					p := newGuarded(t, mcptest.Options{Stateless: stateless}).inFront(t)
					var got answer
					if version == "2025-11-25" {
						got = p.post(t, "", clientInit, tt.token...)
					} else {
						got = p.ask(t, version, "", "tools/call", "echo", `"name":"echo","arguments":{"text":"x"}`, tt.token...)
					}
					origin := strings.TrimSuffix(p.URL, "/mcp")
					want := `Bearer realm="x, y", Resource_Metadata = "` + origin + wellKnown + `/mcp", scope="a b"` + tt.more
					if got.status != tt.status || got.header.Get("WWW-Authenticate") != want {
						t.Errorf("%d %q, want %d %q\n%s", got.status, got.header.Get("WWW-Authenticate"), tt.status, want, got.body)
					}
					if log := p.lines.String(); strings.Contains(log+got.body, "good-but") || strings.Contains(log, "bad\"") {
						t.Errorf("the token shows: %s %s", got.body, log)
					}
				})
			}
		}
	}
}

// A good token gets to the target in all four cells, and nothing of it anywhere else.
func TestTransparentCall(t *testing.T) {
	for _, stateless := range []bool{false, true} {
		for _, version := range []string{"2025-11-25", "2026-07-28"} {
			t.Run(fmt.Sprintf("stateless target %v, %s", stateless, version), func(t *testing.T) {
				p := newGuarded(t, mcptest.Options{Stateless: stateless}).inFront(t)
				cli := mcptest.Connect(t, p.URL, mcptest.ClientOptions{Version: version, Header: http.Header{"Authorization": {"Bearer good-one"}}})
				if got := cli.Call(t, "header", map[string]any{"name": "Authorization"}); got != "Bearer good-one" {
					t.Errorf("the target got %q", got)
				}
				if got := cli.Call(t, "elicit", nil); got != "Hello, Ada!" {
					t.Errorf("elicit: %q", got)
				}
				if log := p.lines.String(); strings.Contains(log, "good-one") {
					t.Errorf("the token shows in the log: %s", log)
				}
			})
		}
	}
}

// The document is the target's, but for what would lead clients past the proxy.
func TestTransparentMetadata(t *testing.T) {
	for _, tt := range []struct {
		name                    string
		at, challenge, document string
		path                    string // asked for
		want                    string // of the body; %s is the proxy's origin, %t the target's
	}{
		{name: "as it is", want: "{ \"x_odd\" : 1e400,\n\"resource\": \"%s/mcp\", \"authorization_servers\" :[\"https://as.example\"] }"},
		{name: "at the root", at: wellKnown, challenge: `Bearer`, document: `{"resource":"%s"}`, want: `{"resource":"%s/mcp"}`},
		{name: "at a place of its own", at: "/custom/location.json?x=1", challenge: `Basic realm="r", bearer resource_metadata="%s/custom/location.json?x=1"`, want: `"resource": "%s/mcp"`},
		{name: "a relative place is none", at: wellKnown + "/mcp", challenge: `Bearer resource_metadata="/custom"`, want: `"resource": "%s/mcp"`},
		{name: "another origin is not asked", at: wellKnown + "/mcp", challenge: `Bearer resource_metadata="http://169.254.169.254/latest"`, want: `"resource": "%s/mcp"`},
		{name: "another user's origin", at: wellKnown + "/mcp", challenge: `Bearer resource_metadata="http://u:p@127.0.0.1/x"`, want: `"resource": "%s/mcp"`},
		{name: "another's resource", document: `{"resource":"https://evil.example/mcp"}`, want: `{"resource":"https://evil.example/mcp"}`},
		{name: "a neighbour's resource", document: `{"resource":"%s/mc"}`, want: `{"resource":"%t/mc"}`},
		{name: "without a path", path: wellKnown, want: `"resource": "%s`},
	} {
		for _, first := range []bool{true, false} { // a challenge is heard before, or is not
			t.Run(fmt.Sprintf("%s, challenged %v", tt.name, first), func(t *testing.T) {
				g := newGuarded(t, mcptest.Options{})
				set := func(field *string, value string) {
					if value != "" {
						*field = value
					}
				}
				set(&g.at, tt.at)
				set(&g.challenge, tt.challenge)
				set(&g.document, tt.document)
				p := g.inFront(t)
				if first {
					p.post(t, "", clientInit)
				}
				path := tt.path
				if path == "" {
					path = wellKnown + "/mcp"
				}
				got := p.get(t, path, token("good-secret")...)
				want := strings.NewReplacer("%s", strings.TrimSuffix(p.URL, "/mcp"), "%t", strings.TrimSuffix(g.URL, "/mcp")).Replace(tt.want)
				if got.status != 200 || !strings.Contains(got.body, want) || got.header.Get("Content-Type") != "application/json" {
					t.Errorf("%d %s, want %s", got.status, got.body, want)
				}
				if got.header.Get("Access-Control-Allow-Origin") != "*" || got.header.Get("Cache-Control") != "no-store" {
					t.Errorf("headers %v", got.header)
				}
			})
		}
	}
}

// Clients of HTTP+SSE are refused before their stream, which has no place for a 401.
func TestTransparentSSE(t *testing.T) {
	for _, stateless := range []bool{false, true} {
		w := behind(newGuarded(t, mcptest.Options{Stateless: stateless}).URL)
		w.policies["only"], w.ssePath = unverified(), "/sse"
		p := w.start(t)
		url := strings.TrimSuffix(p.URL, "/mcp") + "/sse"
		got := p.get(t, "/sse", "Accept", "text/event-stream")
		if want := `Resource_Metadata = "` + strings.TrimSuffix(p.URL, "/mcp") + wellKnown + `/sse"`; got.status != 401 || !strings.Contains(got.header.Get("WWW-Authenticate"), want) {
			t.Errorf("%d %v, want 401 and %s", got.status, got.header, want)
		}
		cli := mcptest.Connect(t, url, mcptest.ClientOptions{SSE: true, Header: http.Header{"Authorization": {"Bearer good-one"}}})
		if got := cli.Call(t, "header", map[string]any{"name": "Authorization"}); got != "Bearer good-one" {
			t.Errorf("the target got %q", got)
		}
	}
}

// Behind what terminates TLS, clients are told the URL that they reach it by.
func TestTransparentResource(t *testing.T) {
	g := newGuarded(t, mcptest.Options{})
	w := behind(g.URL)
	w.policies["only"] = unverified()
	w.policies["only"].GetBackendAuth().GetPassthrough().Resource = "https://mcp.example.com/github"
	p := w.start(t)
	got := p.post(t, "", clientInit)
	if want := `"https://mcp.example.com` + wellKnown + `/github"`; got.status != 401 || !strings.Contains(got.header.Get("WWW-Authenticate"), want) {
		t.Errorf("%d %v, want 401 and %s", got.status, got.header, want)
	}
	if got := p.get(t, wellKnown+"/github"); got.status != 200 || !strings.Contains(got.body, `"resource": "https://mcp.example.com/github"`) {
		t.Errorf("%d %s", got.status, got.body)
	}
}

// What is no document is told with the way out; nothing else is asked.
func TestTransparentMetadataRefused(t *testing.T) {
	for _, tt := range []struct {
		name   string
		served http.HandlerFunc
		want   string
	}{
		{"none", page(404, "text/html", "secret"), `shows no metadata of a protected resource (RFC 9728), which clients need to get a token for it; asked for /.well-known/oauth-protected-resource/mcp (404), /.well-known/oauth-protected-resource (404)`},
		{"a redirect", page(302, "text/html", "secret"), "(302)"},
		{"a page", page(200, "text/html", "<secret>"), "(no JSON object)"},
		{"twice the same", page(200, "application/json", `{"resource":"a","resource":"secret"}`), "(no JSON object)"},
		{"cases mixed", page(200, "application/json", `{"resource":"a","Resource":"secret"}`), "(no JSON object)"},
		{"too large", page(200, "application/json", `{"secret":"`+strings.Repeat("x", 300<<10)+`"}`), "(more than 262144 bytes)"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			g := newGuarded(t, mcptest.Options{})
			g.served = tt.served
			p := g.inFront(t)
			got := p.get(t, wellKnown+"/mcp")
			if got.status != 502 || !strings.Contains(got.body, tt.want) || strings.Contains(got.body, "secret") {
				t.Errorf("%d %s, want %q", got.status, got.body, tt.want)
			}
		})
	}
	g := newGuarded(t, mcptest.Options{})
	p := g.inFront(t)
	g.Close()
	if got := p.get(t, wellKnown+"/mcp"); got.status != 502 || !strings.Contains(got.body, "cannot be reached") {
		t.Errorf("a target that is down: %d %s", got.status, got.body)
	}
}

// The document is kept for a while, and read anew once the target has refused somebody: it may say something else now.
func TestTransparentMetadataKept(t *testing.T) {
	g := newGuarded(t, mcptest.Options{})
	p := g.inFront(t)
	for range 3 {
		p.get(t, wellKnown+"/mcp")
	}
	if n := g.asked.Load(); n != 1 {
		t.Errorf("asked %d times", n)
	}
	p.post(t, "", clientInit)
	p.get(t, wellKnown+"/mcp")
	if n := g.asked.Load(); n != 2 {
		t.Errorf("asked %d times after a challenge", n)
	}
}

// Two tokens are two callers, though nobody here knows whose they are.
func TestTransparentTokensShareNothing(t *testing.T) {
	t.Run("lists", func(t *testing.T) {
		for _, stateless := range []bool{false, true} {
			for _, version := range []string{"2025-11-25", "2026-07-28"} {
				o := cacheable(true)
				o.Stateless = stateless
				g := newGuarded(t, o)
				w := behind(g.URL)
				w.policies["only"], w.targets[0].ListCache = unverified(), durationpb.New(time.Minute)
				p := w.start(t)
				sessions := map[string]string{}
				for _, who := range []string{"good-a", "good-a", "good-b"} {
					if version == "2025-11-25" && sessions[who] == "" {
						sessions[who] = p.initialize(t, version, token(who)...)
					}
					got := p.ask(t, version, sessions[who], "tools/list", "", "", token(who)...)
					if got.status != 200 || !strings.Contains(got.body, `"echo`) {
						t.Errorf("%d %s", got.status, got.body)
					}
					if version == "2026-07-28" && !strings.Contains(got.body, `"cacheScope":"private"`) {
						t.Errorf("others may be given it: %s", got.body)
					}
				}
				if diff := cmp.Diff([]string{"good-a", "good-b"}, g.listed()); diff != "" {
					t.Errorf("stateless target %v, %s: who was listed tools (-want +got):\n%s", stateless, version, diff)
				}
			}
		}
	})
	t.Run("pooled sessions", func(t *testing.T) {
		g := newGuarded(t, mcptest.Options{})
		w := behind(g.URL)
		w.policies["only"] = unverified()
		w.targets[0].SessionScope = sharedByCaller
		p := w.start(t)
		session := func(who string) string {
			got := p.ask(t, "2026-07-28", "", "tools/call", "session", `"name":"session","arguments":{}`, token(who)...)
			if got.status != 200 {
				t.Fatalf("%d %s", got.status, got.body)
			}
			return got.body
		}
		a, b := session("good-a"), session("good-b")
		if a != session("good-a") {
			t.Errorf("one caller's calls do not share a session")
		}
		if a == b {
			t.Errorf("two callers share a session at the target: %s", a)
		}
	})
	t.Run("parked calls", func(t *testing.T) {
		p := newGuarded(t, mcptest.Options{}).inFront(t)
		ask := func(params string, who string) answer {
			return p.post(t, "", `{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"elicit","arguments":{},`+params+
				`"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientInfo":{"name":"raw","version":"1"},"io.modelcontextprotocol/clientCapabilities":{"elicitation":{}}}}}`,
				append(token(who), "MCP-Protocol-Version", "2026-07-28", "Mcp-Method", "tools/call", "Mcp-Name", "elicit")...)
		}
		parked := ask("", "good-a")
		_, state, ok := strings.Cut(parked.body, `"requestState":"`)
		if state, _, _ = strings.Cut(state, `"`); !ok || parked.status != 200 {
			t.Fatalf("%d %s", parked.status, parked.body)
		}
		_, key, _ := strings.Cut(parked.body, `"inputRequests":{"`)
		key, _, _ = strings.Cut(key, `"`)
		retry := `"requestState":"` + state + `","inputResponses":{"` + key + `":{"action":"accept","content":{"name":"Eve"}}},`
		if got := ask(retry, "good-b"); !strings.Contains(got.body, "Invalid requestState") {
			t.Errorf("another caller's retry: %d %s", got.status, got.body)
		}
		if got := ask(retry, "good-a"); !strings.Contains(got.body, "Hello, Eve!") {
			t.Errorf("the caller's own retry: %d %s", got.status, got.body)
		}
	})
}

// A session goes on with another token if the target takes it, and the token is not about somebody else.
func TestTransparentSessionGoesOn(t *testing.T) {
	alices, renewed, bobs := jwt("https://as", "alice", "1"), jwt("https://as", "alice", "2"), jwt("https://as", "bob", "1")
	for _, stateless := range []bool{false, true} {
		for _, tt := range []struct {
			name         string
			first, later []string
			want         int
		}{
			{"the same", token("good-1"), token("good-1"), 200},
			{"renewed", token("good-1"), token("good-2"), 200},
			{"a token that the target refuses", token("good-1"), token("bad"), 401},
			{"a token with too little scope", token("good-1"), token("good-but-weak"), 403},
			{"none", token("good-1"), nil, 401},
			{"a renewed JWT", alices, renewed, 200},
			{"another's JWT", alices, bobs, 404},
			{"another issuer's JWT", alices, jwt("https://other", "alice", "1"), 404},
			{"no JWT any more", alices, token("good-1"), 404},
		} {
			t.Run(fmt.Sprintf("%s, stateless target %v", tt.name, stateless), func(t *testing.T) {
				g := newGuarded(t, mcptest.Options{Stateless: stateless})
				p := g.inFront(t)
				id := p.initialize(t, "2025-11-25", tt.first...)
				for range 2 { // what was found out is remembered
					if got := p.post(t, id, `{"jsonrpc":"2.0","id":7,"method":"ping"}`, tt.later...); got.status != tt.want {
						t.Errorf("answered here: %d %s, want %d", got.status, got.body, tt.want)
					}
					if got := p.post(t, id, echo("echo", "x"), tt.later...); got.status != tt.want {
						t.Errorf("answered by the target: %d %s, want %d", got.status, got.body, tt.want)
					}
				}
				if got := p.do(t, http.MethodDelete, id, "", tt.later...); (got.status == 204) != (tt.want == 200) {
					t.Errorf("DELETE: %d %s", got.status, got.body)
				}
				if got := p.post(t, id, echo("echo", "x"), tt.first...); (got.status == 404) != (tt.want == 200) {
					t.Errorf("after DELETE: %d %s", got.status, got.body)
				}
				if strings.Contains(p.lines.String(), "good-1") {
					t.Error("the token shows in the log")
				}
			})
		}
	}
}

// What is not one bearer token goes nowhere.
func TestTransparentCredentials(t *testing.T) {
	g := newGuarded(t, mcptest.Options{})
	p := g.inFront(t)
	for _, tt := range []struct {
		headers []string
		want    int
	}{
		{[]string{"Authorization", "Basic Z29vZDpnb29k"}, 401}, // the target never sees it, and says so
		{[]string{"Authorization", "Bearer"}, 400},
		{[]string{"Authorization", "Bearer "}, 400},
	} {
		if got := p.post(t, "", clientInit, tt.headers...); got.status != tt.want {
			t.Errorf("%v: %d %s, want %d", tt.headers, got.status, got.body, tt.want)
		}
	}
	req, _ := http.NewRequestWithContext(t.Context(), http.MethodPost, p.URL, strings.NewReader(clientInit))
	req.Header = http.Header{"Authorization": {"Bearer good-a", "Bearer good-b"}, "Content-Type": {"application/json"}, "Accept": {"application/json, text/event-stream"}}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != 400 {
		t.Errorf("two tokens: %d", resp.StatusCode)
	}
	var sent []string
	for _, r := range g.Requests() {
		sent = append(sent, r.Header.Values("Authorization")...)
	}
	if diff := cmp.Diff([]string(nil), sent); diff != "" {
		t.Errorf("the target got (-want +got):\n%s", diff)
	}
}

// A configuration that validation would have refused does not serve the target, and sends it nothing.
func TestTransparentNeedsItsOwnRoute(t *testing.T) {
	for name, change := range map[string]func(*world){
		"two targets":               func(w *world) { w.add("other", w.targets[0].GetTransport().(*xdsv1.Target_Mcp)) },
		"authentication of its own": func(w *world) { w.withKeys() },
	} {
		t.Run(name, func(t *testing.T) {
			g := newGuarded(t, mcptest.Options{})
			w := behind(g.URL)
			w.policies["only"] = unverified()
			change(w)
			p := w.start(t)
			got := p.post(t, "", clientInit, alice...)
			if got.status < 500 || !strings.Contains(got.body, "alone on a route") {
				t.Errorf("%d %s", got.status, got.body)
			}
			for _, r := range g.Requests() {
				if r.Header.Get("Authorization") != "" {
					t.Errorf("the target got %v", r.Header)
				}
			}
			if got := p.get(t, wellKnown+"/mcp"); got.status == 200 {
				t.Errorf("metadata: %s", got.body)
			}
		})
	}
}
