package systemtest

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/sluicegate/sluice/internal/mcptest"
)

// family is one backend of two targets: `heir` has no policies, `own` has what a test gives it. It is the promise of the
// seeds: a group's policies are inherited, and a target's replace them.
type family struct {
	*fleet
	servers map[string]*mcptest.Server
	above   map[string]string // what was applied last to platform and tenant
}

func newFamily(t *testing.T, version string, secure bool) *family {
	w := &family{fleet: newFleet(t, 1, "private-network"), servers: map[string]*mcptest.Server{}, above: map[string]string{}}
	for _, name := range []string{"heir", "own"} {
		w.servers[name] = mcptest.NewServer(t, mcptest.Options{Stateless: version == "2026-07-28", TLS: secure})
	}
	return w
}

// serve applies a configuration with these policies, each as YAML in braces, at the levels. Platform and tenant are
// documents of their own.
func (w *family) serve(t *testing.T, levels map[string]string) {
	t.Helper()
	at := func(level string) string {
		if levels[level] == "" {
			return ""
		}
		return levels[level] + ", "
	}
	w.apply(fmt.Sprintf(`binds:
- port: %d
  listeners:
  - {%sname: l, routes: [{%sname: r, backends: [{backend: b}]}]}
backends:
- name: b
  mcp: {%sfailureMode: failOpen, targets: [{name: heir, mcp: {host: %q}}, {%sname: own, mcp: {host: %q}}]}
`, w.port, at("listener"), at("route"), at("backend"), w.servers["heir"].URL, at("target"), w.servers["own"].URL))
	for _, level := range []string{"platform", "tenant"} {
		if w.above[level] == levels[level] {
			continue
		}
		w.above[level] = levels[level]
		w.must("apply", "-f", write(t, level+".yaml", fmt.Sprintf("kind: %s\nname: %s\nspec: {%s}\n", strings.ToUpper(level[:1])+level[1:], level, levels[level])), "--wait", "--timeout", "30s")
	}
}

// came is the header that a target got with a call.
func (w *family) came(t *testing.T, c *mcptest.Client, target, header string) string {
	t.Helper()
	got, err := c.TryCall(t.Context(), target+"_header", map[string]any{"name": header})
	if err != nil {
		return "error: " + err.Error()
	}
	return got
}

// A target's policy replaces its group's whole, whether it is wider or narrower, and nobody else's.
func TestInheritance(t *testing.T) {
	bothEras(t, func(t *testing.T, version string) {
		t.Run("authorization", func(t *testing.T) {
			w := newFamily(t, version, false)
			only := `policies: {mcpAuthorization: {rules: ['has(mcp.tool) && mcp.tool.name == "echo"']}}`
			all := `policies: {mcpAuthorization: {rules: ['true']}}`
			for _, tt := range []struct {
				name, group, target string
				heir, own           bool // whether it may do more than echo
			}{
				{"wider than its group", only, all, false, true},
				{"narrower than its group", all, only, true, false},
				{"as its group", only, "", false, false},
			} {
				for _, level := range []string{"backend", "route", "listener", "tenant", "platform"} {
					w.serve(t, map[string]string{level: tt.group, "target": tt.target})
					c := client(t, w.url(0), "", version)
					names := c.ToolNames(t)
					for target, wide := range map[string]bool{"heir": tt.heir, "own": tt.own} {
						if !slices.Contains(names, target+"_echo") || slices.Contains(names, target+"_add") != wide {
							t.Errorf("%s (%s): of %s is listed %v", tt.name, level, target, names)
						}
						if got := c.Call(t, target+"_echo", map[string]any{"text": "hi"}); got != "hi" {
							t.Errorf("%s (%s): %s echoes %q", tt.name, level, target, got)
						}
						if _, err := c.TryCall(t.Context(), target+"_add", map[string]any{"a": 1, "b": 2}); (err == nil) != wide {
							t.Errorf("%s (%s): %s_add: %v", tt.name, level, target, err)
						}
					}
				}
			}
		})
		t.Run("credentials and headers", func(t *testing.T) {
			w := newFamily(t, version, false)
			group := `policies: {backendAuth: {key: group-key}, requestHeaderModifier: {set: {X-Team: group, X-Zone: eu}}}`
			for _, tt := range []struct {
				name, target                   string
				authorization, team, zone, own string // what `own` gets
			}{
				{"as its group", "", "Bearer group-key", "group", "eu", ""},
				{"a credential of its own", `policies: {backendAuth: {key: own-key}}`, "Bearer own-key", "group", "eu", ""},
				{"a header of its own drops the group's", `policies: {requestHeaderModifier: {set: {X-Team: own}}}`, "Bearer group-key", "own", "", ""},
				{"both", `policies: {backendAuth: {key: {value: own-key, location: {header: {name: X-Own}}}}, requestHeaderModifier: {set: {X-Zone: us}}}`, "", "", "us", "own-key"},
			} {
				w.serve(t, map[string]string{"backend": group, "target": tt.target})
				c := client(t, w.url(0), "", version)
				for header, want := range map[string]string{"Authorization": tt.authorization, "X-Team": tt.team, "X-Zone": tt.zone, "X-Own": tt.own} {
					if got := w.came(t, c, "own", header); got != want {
						t.Errorf("%s: own got %s %q, want %q", tt.name, header, got, want)
					}
				}
				for header, want := range map[string]string{"Authorization": "Bearer group-key", "X-Team": "group", "X-Zone": "eu", "X-Own": ""} {
					if got := w.came(t, c, "heir", header); got != want {
						t.Errorf("%s: heir got %s %q, want %q", tt.name, header, got, want)
					}
				}
			}
		})
		t.Run("TLS", func(t *testing.T) {
			w := newFamily(t, version, true)
			other := newAuthority(t)
			strict := fmt.Sprintf("policies: {backendTLS: {root: %q}}", other.pem)
			for _, tt := range []struct {
				name, group, target string
				heir, own           bool // whether it can be reached
			}{
				{"laxer than its group", strict, `policies: {backendTLS: {insecure: true}}`, false, true},
				{"stricter than its group", `policies: {backendTLS: {insecure: true}}`, strict, true, false},
			} {
				w.serve(t, map[string]string{"backend": tt.group, "target": tt.target})
				for target, reached := range map[string]bool{"heir": tt.heir, "own": tt.own} {
					got := caller{url: w.url(0), host: "127.0.0.1", era: version}.request(t, `"x"`, "tools/call", target+"_echo", fmt.Sprintf(`"name":"%s_echo","arguments":{"text":"hi"}`, target))
					if got.says("hi") != reached || !reached && !strings.Contains(got.body, "signed by an authority that is not in backendTLS.root") {
						t.Errorf("%s: %s: %d %s", tt.name, target, got.status, got.body)
					}
				}
			}
		})
	})
}

// What a level enforces, no level below it lifts; of two that enforce one kind the outermost wins; enforced authorization
// is and-ed with what the levels below say. explain says where it came from.
func TestEnforced(t *testing.T) {
	bothEras(t, func(t *testing.T, version string) {
		t.Run("authorization", func(t *testing.T) {
			w := newFamily(t, version, false)
			no := func(tool string) string {
				return fmt.Sprintf(`enforced: {mcpAuthorization: {rules: [{deny: 'has(mcp.tool) && mcp.tool.name == "%s"'}]}}`, tool)
			}
			w.serve(t, map[string]string{"platform": no("add"), "tenant": no("count"), "route": no("big"), "target": `policies: {mcpAuthorization: {rules: ['true']}}`})
			c := client(t, w.url(0), "", version)
			names := c.ToolNames(t)
			for _, target := range []string{"heir", "own"} {
				for tool, arguments := range map[string]map[string]any{"echo": {"text": "hi"}, "add": {"a": 1, "b": 2}, "count": {}, "big": {"bytes": 1}} {
					want := tool == "echo"
					if got := slices.Contains(names, target+"_"+tool); got != want {
						t.Errorf("%s_%s listed: %v", target, tool, got)
					}
					if _, err := c.TryCall(t.Context(), target+"_"+tool, arguments); want && err != nil || !want && err == nil {
						t.Errorf("%s_%s: %v", target, tool, err)
					}
				}
			}
			// And the other way: an enforced allow does not let in what the target refuses.
			w.serve(t, map[string]string{"platform": `enforced: {mcpAuthorization: {rules: ['true']}}`, "target": `policies: {mcpAuthorization: {rules: ['false']}}`})
			c = client(t, w.url(0), "", version)
			if _, err := c.TryCall(t.Context(), "own_echo", map[string]any{"text": "hi"}); err == nil {
				t.Error("an enforced allow lifts a target's refusal")
			}
			if got := c.Call(t, "heir_echo", map[string]any{"text": "hi"}); got != "hi" {
				t.Errorf("heir echoes %q", got)
			}
		})
		t.Run("the outermost wins", func(t *testing.T) {
			w := newFamily(t, version, false)
			block := func(word, value string) string {
				return fmt.Sprintf(`%s: {backendAuth: {key: %[2]s-key}, requestHeaderModifier: {set: {X-Team: %[2]s}}, responseHeaderModifier: {set: {X-From: %[2]s}}}`, word, value)
			}
			levels := []string{"platform", "tenant", "listener", "route", "backend", "target"}
			for i, outer := range levels {
				set := map[string]string{"target": block("policies", "mine")}
				if i == len(levels)-1 {
					continue // nothing is below a target
				}
				for _, level := range levels[i:5] {
					set[level] = block("enforced", level)
				}
				w.serve(t, set)
				c := client(t, w.url(0), "", version)
				for _, target := range []string{"heir", "own"} {
					if got := w.came(t, c, target, "Authorization"); got != "Bearer "+outer+"-key" {
						t.Errorf("enforced by %s and below: %s got the credential %q", outer, target, got)
					}
					if got := w.came(t, c, target, "X-Team"); got != outer {
						t.Errorf("enforced by %s and below: %s got X-Team %q", outer, target, got)
					}
				}
				said := caller{url: w.url(0), host: "127.0.0.1", era: version}.request(t, `"x"`, "tools/call", "own_echo", `"name":"own_echo","arguments":{"text":"hi"}`)
				if got := said.header.Get("X-From"); got != outer || !said.says("hi") {
					t.Errorf("enforced by %s and below: the answer says %q: %d %s", outer, got, said.status, said.body)
				}
				var e struct {
					Policies map[string]struct{ From string }
				}
				if err := json.Unmarshal([]byte(w.must("explain", "target", "own", "-o", "json")), &e); err != nil {
					t.Fatal(err)
				}
				for _, kind := range []string{"backendAuth", "requestHeaderModifier", "responseHeaderModifier"} {
					if got := e.Policies[kind].From; !strings.HasPrefix(got, outer) {
						t.Errorf("explain says that %s is from %q, want %s", kind, got, outer)
					}
				}
			}
		})
		t.Run("TLS", func(t *testing.T) {
			w := newFamily(t, version, true)
			w.serve(t, map[string]string{"platform": fmt.Sprintf("enforced: {backendTLS: {root: %q}}", newAuthority(t).pem), "target": `policies: {backendTLS: {insecure: true}}`})
			got := knock(t, w.url(0), nil)
			if got.status < 500 || strings.Contains(got.body, `"result"`) {
				t.Errorf("a target lifts the root that the platform enforces: %d %s", got.status, got.body)
			}
			roots := string(w.servers["heir"].CA) + string(w.servers["own"].CA)
			w.serve(t, map[string]string{"tenant": fmt.Sprintf("enforced: {backendTLS: {root: %q}}", roots), "backend": `enforced: {backendTLS: {minVersion: "1.3"}}`, "target": fmt.Sprintf("policies: {backendTLS: {root: %q}}", newAuthority(t).pem)})
			c := client(t, w.url(0), "", version)
			for _, target := range []string{"heir", "own"} {
				if got := c.Call(t, target+"_echo", map[string]any{"text": "hi"}); got != "hi" {
					t.Errorf("%s echoes %q", target, got)
				}
			}
		})
	})
}
