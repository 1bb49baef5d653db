package dataplane

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/sluicegate/sluice/internal/mcptest"
	policyv1 "github.com/sluicegate/sluice/proto/gen/sluice/policy/v1"
)

// cacheable are servers whose results anyone may cache for a minute, as they say.
func cacheable(json bool) mcptest.Options {
	return mcptest.Options{Stateless: true, JSON: json, Caching: func(_ context.Context, _ mcp.Request, c *mcp.Cacheable) {
		c.TTLMs, c.CacheScope = 60_000, "public"
	}}
}

func requestHeader(expression string) *policyv1.Policies {
	return &policyv1.Policies{RequestHeaderModifier: &policyv1.HeaderModifier{Set: map[string]*policyv1.Value{"x-caller": {Kind: &policyv1.Value_Expression{Expression: expression}}}}}
}

// What depends on who calls may not be handed on by caches, whatever the target says; what depends on the time is not kept.
func TestCacheScope(t *testing.T) {
	t.Parallel()
	passthrough := &policyv1.Policies{BackendAuth: &policyv1.BackendAuth{Method: &policyv1.BackendAuth_Passthrough{Passthrough: &policyv1.PassthroughAuth{}}}}
	for _, tt := range []struct {
		name     string
		policies *policyv1.Policies
		forward  []string
		keys     bool
		scope    string
		passing  bool
	}{
		{"nothing", nil, nil, false, "public", false},
		{"rules over names", authorization(allow(`!has(mcp.tool) || mcp.tool.name != "add"`)), nil, false, "public", false},
		{"rules over the caller", authorization(deny(`has(jwt.sub)`)), nil, false, "private", false},
		{"rules over scopes", authorization(deny(`"x" in scopes`)), nil, false, "private", false},
		{"rules over the source", authorization(allow(`source.address == "127.0.0.1"`)), nil, false, "private", false},
		{"rules over the request", authorization(allow(`request.path == "/mcp"`)), nil, false, "private", false},
		{"rules over the time", authorization(allow(`request.startTime > timestamp("2020-01-01T00:00:00Z")`)), nil, false, "private", true},
		{"a caller who was let in", nil, nil, true, "private", false},
		{"passthrough", passthrough, nil, false, "private", false},
		{"a header of the caller", requestHeader(`has(jwt.sub) ? "known" : "anonymous"`), nil, false, "private", false},
		{"a header of the request", requestHeader(`request.method`), nil, false, "private", false},
		{"a header of the tenant", requestHeader(`tenant`), nil, false, "public", false},
		{"a forwarded header", nil, []string{"x-user"}, false, "private", false},
	} {
		for _, json := range []bool{true, false} {
			for _, n := range []int{1, 2} {
				t.Run(fmt.Sprintf("%s, JSON %v, %d targets", tt.name, json, n), func(t *testing.T) {
					one, other := mcptest.NewServer(t, cacheable(json)), mcptest.NewServer(t, cacheable(json))
					w := behind("a="+one.URL, "b="+other.URL)
					if w.targets = w.targets[:n]; tt.keys {
						w.withKeys()
					}
					last := w.targets[n-1] // one is enough
					w.policies[last.Name], last.ForwardHeaders = tt.policies, tt.forward
					p := w.start(t)
					uri := "test://static/one"
					if n == 2 {
						uri = last.Name + "+" + uri
					}
					for _, c := range []struct{ method, name, params string }{
						{"tools/list", "", ""}, {"prompts/list", "", ""}, {"resources/list", "", ""}, {"resources/templates/list", "", ""},
						{"tools/list", "", ""}, // once more, from the cache
						{"server/discover", "", ""}, {"resources/read", uri, `"uri":"` + uri + `"`},
					} {
						got := p.ask(t, "2026-07-28", "", c.method, c.name, c.params, alice...)
						if got.status != 200 || strings.Count(got.body, `"cacheScope":"`+tt.scope+`"`) != 1 || strings.Count(got.body, "cacheScope") != 1 {
							t.Errorf("%s: %d %s, want it %s", c.method, got.status, got.body, tt.scope)
						}
						isList := strings.HasSuffix(c.method, "/list")
						if kept := strings.Contains(got.body, `"ttlMs":60000`); isList && kept == tt.passing || strings.Contains(got.body, `"ttlMs":0`) != (isList && tt.passing) {
							t.Errorf("%s: %s, want it kept: %v", c.method, got.body, !tt.passing)
						}
						if c.method == "tools/list" && !strings.Contains(got.body, `echo"`) || c.method == "resources/read" && !strings.Contains(got.body, "content of test://static/one") {
							t.Errorf("%s: %s", c.method, got.body)
						}
					}
				})
			}
		}
	}
}

// The proxy keeps a list for whom the request was made, and for nobody whose request would have been another.
func TestListsAreNotShared(t *testing.T) {
	for _, tt := range []struct {
		name     string
		policies *policyv1.Policies
		forward  []string
		one, two []string // headers of two requests
		shared   bool
	}{
		{"nothing", nil, nil, []string{"X-User", "a"}, []string{"X-User", "b"}, true},
		{"a forwarded header", nil, []string{"x-user"}, []string{"X-User", "a"}, []string{"X-User", "b"}, false},
		{"a forwarded header that is the same", nil, []string{"x-user"}, []string{"X-User", "a"}, []string{"X-User", "a"}, true},
		{"a header by the request's", requestHeader(`request.headers["x-user"]`), nil, []string{"X-User", "a"}, []string{"X-User", "b"}, false},
		{"a header by the request's that is the same", requestHeader(`request.headers["x-user"]`), nil, []string{"X-User", "a", "X-Other", "1"}, []string{"X-User", "a", "X-Other", "2"}, true},
		{"a header by the time", requestHeader(`string(request.startTime)`), nil, nil, nil, false},
		{"languages", nil, nil, []string{"Accept-Language", "de"}, []string{"Accept-Language", "fr"}, false},
	} {
		for _, rules := range []bool{false, true} {
			for _, n := range []int{1, 2} {
				t.Run(fmt.Sprintf("%s, rules %v, %d targets", tt.name, rules, n), func(t *testing.T) {
					one, other := mcptest.NewServer(t, cacheable(true)), mcptest.NewServer(t, cacheable(true))
					w := behind("a="+one.URL, "b="+other.URL)
					w.targets = w.targets[:n]
					policies := &policyv1.Policies{RequestHeaderModifier: tt.policies.GetRequestHeaderModifier()}
					if rules {
						policies.McpAuthorization = authorization(allow("true")).McpAuthorization
					}
					w.policies["a"], w.targets[0].ForwardHeaders = policies, tt.forward
					p := w.start(t)
					seen := func(method string) (total int) {
						for _, r := range one.Requests() {
							if r.Header.Get("Mcp-Method") == method {
								total++
							}
						}
						return total
					}
					p.ask(t, "2026-07-28", "", "prompts/list", "", "", tt.one...) // the era is probed
					want := 2
					if tt.shared {
						want = 1
					}
					for _, headers := range [][]string{tt.one, tt.two} {
						if got := p.ask(t, "2026-07-28", "", "tools/list", "", "", headers...); got.status != 200 || !strings.Contains(got.body, `echo"`) {
							t.Fatalf("%d %s", got.status, got.body)
						}
					}
					if got := seen("tools/list"); got != want {
						t.Errorf("the target was asked %d times, want %d", got, want)
					}
					if !rules || strings.Contains(tt.name, "time") {
						return
					}
					// Nor does a call of one rest on the other's list: what the lists above taught is enough for each.
					name := map[int]string{1: "echo", 2: "a_echo"}[n]
					for _, headers := range [][]string{tt.one, tt.two} {
						if got := p.ask(t, "2026-07-28", "", "tools/call", name, `"name":"`+name+`","arguments":{"text":"hi"}`, headers...); !strings.Contains(got.body, `"hi"`) {
							t.Fatalf("%d %s", got.status, got.body)
						}
					}
					if got := seen("tools/list"); got != want {
						t.Errorf("after two calls the target was asked %d times, want %d", got, want)
					}
				})
			}
		}
	}
}
