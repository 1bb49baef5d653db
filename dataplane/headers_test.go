package dataplane

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/sluicegate/sluice/internal/mcptest"
	policyv1 "github.com/sluicegate/sluice/proto/gen/sluice/policy/v1"
	xdsv1 "github.com/sluicegate/sluice/proto/gen/sluice/xds/v1"
)

// set is a modifier that sets headers: a value that begins with "=" is an expression.
func set(kv ...string) *policyv1.HeaderModifier {
	m := &policyv1.HeaderModifier{Set: map[string]*policyv1.Value{}}
	for i := 0; i < len(kv); i += 2 {
		v := &policyv1.Value{Kind: &policyv1.Value_Value{Value: kv[i+1]}}
		if expression, ok := strings.CutPrefix(kv[i+1], "="); ok {
			v.Kind = &policyv1.Value_Expression{Expression: expression}
		}
		m.Set[kv[i]] = v
	}
	return m
}

// witness notes what messages come with which values of a header.
type witness struct {
	mu   sync.Mutex
	seen map[string][]string // method of the message, or of HTTP where there is none → the header's values
}

func (n *witness) wrap(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		r.Body = io.NopCloser(bytes.NewReader(body))
		var message struct{ Method string }
		_ = json.Unmarshal(body, &message)
		key := message.Method
		if r.Method != http.MethodPost {
			key = r.Method
		} else if key == "" {
			key = "response"
		}
		n.mu.Lock()
		value := r.Header.Get("X-Method") + " " + r.Header.Get("X-Text")
		if !slices.Contains(n.seen[key], value) {
			n.seen[key] = append(n.seen[key], value)
		}
		n.mu.Unlock()
		h.ServeHTTP(w, r)
	})
}

// Every message carries the values that are its own, also where it is not the client's: the probe for eras, the list
// that a call needs, the session that is begun later, a client's answer, the stream, and the end.
func TestHeaderValuesOfEachMessage(t *testing.T) {
	for _, version := range []string{"2025-11-25", "2026-07-28"} {
		t.Run(version, func(t *testing.T) {
			seen := &witness{seen: map[string][]string{}}
			w, _, _ := two(t, version, mcptest.Options{Wrap: seen.wrap})
			for _, target := range w.targets {
				w.policies[target.Name] = authorization(allow("true"))
				w.policies[target.Name].RequestHeaderModifier = set("X-Method", "=mcp.method", "X-Text", `=has(mcp.tool) && has(mcp.tool.arguments.text) ? mcp.tool.arguments.text : "-"`)
			}
			p := w.start(t)
			cli := mcptest.Connect(t, p.URL, mcptest.ClientOptions{Version: version})
			if got := cli.Call(t, "a_echo", map[string]any{"text": "hi"}); got != "hi" {
				t.Fatalf("echo = %q", got)
			}
			cli.ToolNames(t)
			checkPrompts(t, cli)
			checkURIs(t, cli)
			if got := cli.Call(t, "a-b_elicit", nil); got != "Hello, Ada!" {
				t.Errorf("elicit = %q", got)
			}
			want := []string{"tools/call", "tools/list", "prompts/get", "resources/read", "completion/complete", "server/discover"}
			if version != "2026-07-28" {
				session := p.initialize(t, version)
				if got := p.do(t, http.MethodDelete, session, ""); got.status != http.StatusNoContent {
					t.Errorf("DELETE: %d", got.status)
				}
				want = append(want[:5], "initialize", "notifications/initialized", "response", "GET", "DELETE")
			}
			seen.mu.Lock()
			defer seen.mu.Unlock()
			for method, values := range seen.seen {
				own := method
				if method == "response" || method == "GET" || method == "DELETE" {
					own = ""
				}
				for _, v := range values {
					if v != own+" -" && v != "tools/call hi" {
						t.Errorf("%s came with %q", method, v)
					}
				}
			}
			for _, method := range want {
				if len(seen.seen[method]) == 0 {
					t.Errorf("the targets saw no %s", method)
				}
			}
			if !slices.Contains(seen.seen["tools/call"], "tools/call hi") {
				t.Errorf("calls came with %q", seen.seen["tools/call"])
			}
		})
	}
}

// The rule for responseHeaderModifier: what one target answered carries its own, what several answered together what
// they have in common, and what the proxy answers itself nothing.
func TestWhichAnswersCarryHeaders(t *testing.T) {
	for _, version := range []string{"2025-11-25", "2026-07-28"} {
		for _, tt := range []struct {
			name, a, b          string // values of X-From; "" is no policy, b "-" is no second target
			one, other, several string // what answers of a, of b, and of both carry
		}{
			{"one target", "a", "-", "a", "", "a"},
			{"the same for both", "shared", "shared", "shared", "shared", "shared"},
			{"each its own", "a", "b", "a", "b", ""},
			{"one of two", "a", "", "a", "", ""},
			{"none", "", "", "", "", ""},
		} {
			t.Run(version+", "+tt.name, func(t *testing.T) {
				w, _, _ := two(t, version, mcptest.Options{})
				for i, value := range []string{tt.a, tt.b} {
					if value != "" && value != "-" {
						w.policies[w.targets[i].Name] = &policyv1.Policies{ResponseHeaderModifier: set("X-From", value)}
					}
				}
				prefix := "a_"
				if tt.b == "-" {
					w.targets, prefix = w.targets[:1], ""
				}
				p := w.start(t)
				session := ""
				if version != "2026-07-28" {
					begun := p.post(t, "", initializeRequest(version))
					session = begun.header.Get("Mcp-Session-Id")
					if got := begun.header.Get("X-From"); got != tt.several {
						t.Errorf("initialize carries %q, want %q", got, tt.several)
					}
					if got := p.post(t, session, `{"jsonrpc":"2.0","method":"notifications/initialized"}`); got.status != 202 || got.header.Get("X-From") != tt.several {
						t.Errorf("a notification: %d carries %q, want %q", got.status, got.header.Get("X-From"), tt.several)
					}
					if got := p.call(t, version, session, "ping", "", "").header.Get("X-From"); got != "" {
						t.Errorf("ping carries %q, though no target was asked", got)
					}
					stream := p.open(t, http.MethodGet, session, "")
					if got := stream.resp.Header.Get("X-From"); got != tt.several {
						t.Errorf("the stream carries %q, want %q", got, tt.several)
					}
				} else if got := p.call(t, version, "", "server/discover", "", "").header.Get("X-From"); got != tt.several {
					t.Errorf("discover carries %q, want %q", got, tt.several)
				}
				for name, want := range map[string]string{"a": tt.one, "a-b": tt.other} {
					if name == "a-b" && tt.b == "-" {
						continue
					}
					own := prefix
					if name == "a-b" {
						own = "a-b_"
					}
					for _, tool := range []string{"count", "fail", "error", "log"} { // a result, one with isError, an error of JSON-RPC, a stream
						got := p.call(t, version, session, "tools/call", own+tool, `"name":"`+own+tool+`","arguments":{"n":2}`)
						if got.header.Get("X-From") != want {
							t.Errorf("%s of %s: %d %s carries %q, want %q", tool, name, got.status, got.body, got.header.Get("X-From"), want)
						}
					}
				}
				for _, list := range []string{"tools/list", "prompts/list", "resources/list"} {
					for range 2 { // the second may come from the cache
						if got := p.call(t, version, session, list, "", "").header.Get("X-From"); got != tt.several {
							t.Errorf("%s carries %q, want %q", list, got, tt.several)
						}
					}
				}
				if prefix != "" {
					if got := p.call(t, version, session, "tools/call", "nobody_x", `"name":"nobody_x"`); got.header.Get("X-From") != "" {
						t.Errorf("an unknown name carries %q", got.header.Get("X-From"))
					}
				}
			})
		}
	}
}

func initializeRequest(version string) string {
	return `{"jsonrpc":"2.0","id":0,"method":"initialize","params":{"protocolVersion":"` + version + `","capabilities":{},"clientInfo":{"name":"raw","version":"1"}}}`
}

// A refusal says nothing that an answer for what does not exist would not say; so it has no headers of the target either.
func TestRefusalsCarryNoHeaders(t *testing.T) {
	srv := mcptest.NewServer(t, mcptest.Options{})
	w := behind("a=" + srv.URL)
	w.policies["a"] = authorization(deny(`has(mcp.tool) && mcp.tool.name == "echo"`), deny(`has(mcp.resource) && mcp.resource.name == "test://static/two"`))
	w.policies["a"].ResponseHeaderModifier = set("X-From", "a")
	p := w.start(t)
	session := p.initialize(t, "2025-11-25")
	for params, method := range map[string]string{
		`"name":"echo"`: "tools/call", `"name":"nobody"`: "tools/call", `"uri":"test://static/two"`: "resources/read", `"uri":"test://static/none"`: "resources/read",
	} {
		if got := p.call(t, "2025-11-25", session, method, "", params); got.header.Get("X-From") != "" || !strings.Contains(got.body, `"error"`) {
			t.Errorf("%s: %s carries %q", params, got.body, got.header.Get("X-From"))
		}
	}
	if got := p.call(t, "2025-11-25", session, "tools/call", "", `"name":"count"`); got.header.Get("X-From") != "a" {
		t.Errorf("what is admitted carries %q", got.header.Get("X-From"))
	}
	srv.Close()
	if got := p.call(t, "2025-11-25", session, "tools/call", "", `"name":"count"`); got.header.Get("X-From") != "" || got.status < 500 {
		t.Errorf("a target that is gone: %d, carries %q", got.status, got.header.Get("X-From"))
	}
}

// A value that cannot be had refuses the request before the target sees it, on that target alone, and says where.
func TestValueThatCannotBeHad(t *testing.T) {
	t.Parallel()
	for _, version := range []string{"2025-11-25", "2026-07-28"} {
		for _, direction := range []string{"request", "response"} {
			t.Run(version+" "+direction, func(t *testing.T) {
				w, _, _ := two(t, version, mcptest.Options{})
				m := set("X-Ok", "yes", "X-Path", `=has(mcp.tool) ? mcp.tool.arguments.path : "-"`)
				field := "requestHeaderModifier.set.X-Path"
				w.policies["a"] = &policyv1.Policies{RequestHeaderModifier: m}
				if direction == "response" {
					w.policies["a"], field = &policyv1.Policies{ResponseHeaderModifier: m}, "responseHeaderModifier.set.X-Path"
				}
				p := w.start(t)
				session := ""
				if version != "2026-07-28" {
					session = p.initialize(t, version)
				}
				call := func(name, arguments string) answer {
					return p.call(t, version, session, "tools/call", name, `"name":"`+name+`","arguments":`+arguments)
				}
				if got := call("a_count", `{"path":"/ok"}`); got.status != 200 || !strings.Contains(got.body, `"text":"1"`) {
					t.Fatalf("%d %s", got.status, got.body)
				}
				for arguments, says := range map[string]string{
					`{"pth":"s3cret"}`:           field + `: the expression reads a key that is not there`,
					`{"path":["s3cret"]}`:        "not a string",
					`{"path":"s3cret\r\nX-E:1"}`: "line break",
					`{"path":"a","Path":"b"}`:    "arguments",
					`{"path":"a","path":"b"}`:    "arguments",
				} {
					got := call("a_count", arguments)
					wantStatus, code := 500, "-32603"
					if says == "arguments" {
						wantStatus, code = 400, "-32600"
					}
					if got.status != wantStatus || !strings.Contains(got.body, says) || !strings.Contains(got.body, code) || code == "-32603" && !strings.Contains(got.body, field) {
						t.Errorf("%s: %d %s, want %q", arguments, got.status, got.body, says)
					}
					if strings.Contains(got.body, "s3cret") || got.header.Get("X-Ok") != "" || got.header.Get("X-E") != "" {
						t.Errorf("%s: %v %s", arguments, got.header, got.body)
					}
				}
				if got := call("a_count", `{"path":"/ok"}`); !strings.Contains(got.body, `"text":"2"`) {
					t.Errorf("the target was reached in between: %s", got.body)
				}
				if got := call("a-b_count", `{}`); got.status != 200 {
					t.Errorf("the other target: %d %s", got.status, got.body)
				}
				waitFor(t, "the log names the field", func() bool { return strings.Contains(p.lines.String(), field) })
				if lines := p.lines.String(); strings.Contains(lines, "s3cret") {
					t.Errorf("the log names what was read:\n%s", lines)
				}
			})
		}
	}
}

// Children send no headers, and what they answer has them all the same.
func TestHeadersOfChildren(t *testing.T) {
	t.Parallel()
	cmd := mcptest.Stdio("serve")
	for _, version := range []string{"2025-11-25", "2026-07-28"} {
		t.Run(version, func(t *testing.T) {
			w := behind()
			w.targets = append(w.targets, &xdsv1.Target{Backend: "default/backend/tools", Name: "child", Transport: &xdsv1.Target_Stdio{
				Stdio: &xdsv1.StdioTransport{Cmd: cmd.Path, Args: cmd.Args, Env: cmd.Env}}})
			w.policies["child"] = &policyv1.Policies{ResponseHeaderModifier: set("X-Tool", `=has(mcp.tool) ? mcp.tool.name + " of " + mcp.tool.target : mcp.method`)}
			p := w.start(t)
			session := ""
			if version != "2026-07-28" {
				session = p.initialize(t, version)
			}
			got := map[string]string{}
			got["count"] = p.call(t, version, session, "tools/call", "count", `"name":"count"`).header.Get("X-Tool")
			got["list"] = p.call(t, version, session, "tools/list", "", "").header.Get("X-Tool")
			if diff := cmp.Diff(map[string]string{"count": "count of child", "list": "tools/list"}, got); diff != "" {
				t.Errorf("X-Tool (-want +got):\n%s", diff)
			}
		})
	}
}

// What a target is told of a request is not to be answered to another from the cache.
func TestHeaderValuesAndCachedLists(t *testing.T) {
	for expression, want := range map[string]int{`"same"`: 1, `apiKey.id`: 2, `request.headers["x-team"]`: 2} {
		t.Run(expression, func(t *testing.T) {
			srv := mcptest.NewServer(t, mcptest.Options{Stateless: true, Caching: func(_ context.Context, _ mcp.Request, c *mcp.Cacheable) {
				c.TTLMs, c.CacheScope = 60_000, "public"
			}})
			w := behind("a=" + srv.URL).withKeys()
			w.targets[0].ProtocolVersions = []string{"2026-07-28"}
			w.policies["a"] = &policyv1.Policies{RequestHeaderModifier: set("X-Who", "="+expression)}
			p := w.start(t)
			for _, who := range [][]string{alice, alice, bob, bob} {
				body := `{"jsonrpc":"2.0","id":7,"method":"tools/list","params":{"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{}}}}`
				got := p.post(t, "", body, append([]string{"MCP-Protocol-Version", "2026-07-28", "Mcp-Method", "tools/list", "X-Team", "blue"}, who...)...)
				if got.status != 200 {
					t.Fatalf("%d %s", got.status, got.body)
				}
			}
			if n := countMethod(srv.Requests(), "POST"); n != want {
				t.Errorf("%d requests, want %d", n, want)
			}
		})
	}
}

// One header that the operator writes is one header.
func TestUserAgent(t *testing.T) {
	var seen []string
	srv := mcptest.NewServer(t, mcptest.Options{Wrap: func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			seen = append(seen, fmt.Sprint(r.Header["User-Agent"]))
			h.ServeHTTP(w, r)
		})
	}})
	w := behind("a=" + srv.URL)
	w.policies["a"] = &policyv1.Policies{RequestHeaderModifier: set("User-Agent", "acme/1")}
	w.start(t).post(t, "", initializeRequest("2025-11-25"))
	if want := []string{"[acme/1]"}; !slices.Equal(seen, want) {
		t.Errorf("User-Agent %v, want %v", seen, want)
	}
}
