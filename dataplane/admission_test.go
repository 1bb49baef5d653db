package dataplane

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/sluicegate/sluice/internal/mcptest"
	policyv1 "github.com/sluicegate/sluice/proto/gen/sluice/policy/v1"
)

func allow(expr string) *policyv1.AuthorizationRule {
	return &policyv1.AuthorizationRule{Rule: &policyv1.AuthorizationRule_Allow{Allow: expr}}
}

func deny(expr string) *policyv1.AuthorizationRule {
	return &policyv1.AuthorizationRule{Rule: &policyv1.AuthorizationRule_Deny{Deny: expr}}
}

func authorization(rules ...*policyv1.AuthorizationRule) *policyv1.Policies {
	return &policyv1.Policies{McpAuthorization: &policyv1.McpAuthorization{Rules: rules}}
}

// call is a raw request of a method at a revision, with what the stateless era wants.
func (p *testProxy) call(t *testing.T, version, session, method, name, params string) answer {
	t.Helper()
	if version != "2026-07-28" {
		return p.post(t, session, `{"jsonrpc":"2.0","id":7,"method":"`+method+`","params":{`+params+`}}`)
	}
	if params != "" {
		params += ","
	}
	headers := []string{"MCP-Protocol-Version", version, "Mcp-Method", method}
	if name != "" {
		headers = append(headers, "Mcp-Name", name)
	}
	return p.post(t, "", `{"jsonrpc":"2.0","id":7,"method":"`+method+`","params":{`+params+`"_meta":{"io.modelcontextprotocol/protocolVersion":"`+version+
		`","io.modelcontextprotocol/clientInfo":{"name":"raw","version":"1"},"io.modelcontextprotocol/clientCapabilities":{}}}}`, headers...)
}

// What a rule refuses is not listed, and calling it reads byte for byte like calling what does not exist.
func TestRefusalHidesExistence(t *testing.T) {
	for _, version := range []string{"2025-06-18", "2025-11-25", "2026-07-28"} {
		for _, n := range []int{1, 2} {
			t.Run(fmt.Sprintf("%s with %d targets", version, n), func(t *testing.T) {
				w, _, _ := two(t, version, mcptest.Options{})
				w.targets = w.targets[:n]
				for _, target := range w.targets {
					w.policies[target.Name] = authorization(deny(`has(mcp.tool) && mcp.tool.name == "echo"`),
						deny(`has(mcp.prompt) && mcp.prompt.name == "greet"`), deny(`has(mcp.resource) && mcp.resource.name == "test://static/two"`))
				}
				p := w.start(t)
				session, prefix, uri := "", "", ""
				if n == 2 {
					prefix, uri = "a-b_", "a-b+"
				}
				if version != "2026-07-28" {
					session = p.initialize(t, version)
				}
				calls := []struct{ method, refused, missing, allowed, param string }{
					{"tools/call", prefix + "echo", prefix + "echx", prefix + "count", `"name":"%s","arguments":{}`},
					{"prompts/get", prefix + "greet", prefix + "greex", prefix + "plain", `"name":"%s"`},
					{"resources/read", uri + "test://static/two", uri + "test://static/twx", uri + "test://static/one", `"uri":"%s"`},
				}
				for _, c := range calls {
					ask := func(name string) answer {
						a := p.call(t, version, session, c.method, name, fmt.Sprintf(c.param, name))
						a.body = strings.ReplaceAll(a.body, name, "NAME")
						return a
					}
					refused, missing, allowed := ask(c.refused), ask(c.missing), ask(c.allowed)
					if refused.body != missing.body || refused.status != missing.status {
						t.Errorf("%s: refused\n%d %s\nbut what does not exist\n%d %s", c.method, refused.status, refused.body, missing.status, missing.body)
					}
					if refused.header.Get("Content-Type") != missing.header.Get("Content-Type") || refused.header.Get("Cache-Control") != missing.header.Get("Cache-Control") {
						t.Errorf("%s: headers differ: %v, %v", c.method, refused.header, missing.header)
					}
					if allowed.status != 200 || strings.Contains(allowed.body, `"error"`) {
						t.Errorf("%s %s: %d %s", c.method, c.allowed, allowed.status, allowed.body)
					}
					if n == 2 && c.method != "resources/read" { // nor does a target's name show
						other := ask("nobody_echo")
						if other.body != refused.body || other.status != refused.status {
							t.Errorf("%s of a target that does not exist: %d %s", c.method, other.status, other.body)
						}
					}
				}
				cli := mcptest.Connect(t, p.URL, mcptest.ClientOptions{Version: version})
				names := cli.ToolNames(t)
				if slices.Contains(names, prefix+"echo") || !slices.Contains(names, prefix+"count") {
					t.Errorf("listed: %v", names)
				}
			})
		}
	}
}

// Rules over annotations see the target's last list, also where nobody has listed yet.
func TestAnnotations(t *testing.T) {
	for _, version := range []string{"2025-11-25", "2026-07-28"} {
		srv := mcptest.NewServer(t, mcptest.Options{Stateless: version == "2026-07-28"})
		w := behind(srv.URL)
		w.policies["only"] = authorization(allow(`mcp.tool.annotations.readOnlyHint`))
		p := w.start(t)
		session := ""
		if version != "2026-07-28" {
			session = p.initialize(t, version)
		}
		if got := p.call(t, version, session, "tools/call", "echo", `"name":"echo","arguments":{"text":"hi"}`); !strings.Contains(got.body, `"hi"`) {
			t.Errorf("%s: a read-only tool: %d %s", version, got.status, got.body)
		}
		if got := p.call(t, version, session, "tools/call", "add", `"name":"add","arguments":{"a":1,"b":2}`); !strings.Contains(got.body, "Unknown tool: add") {
			t.Errorf("%s: another tool: %d %s", version, got.status, got.body)
		}
	}
}

func TestExplainDenials(t *testing.T) {
	srv := mcptest.NewServer(t, mcptest.Options{})
	w := behind(srv.URL)
	w.policies["only"] = authorization(deny(`mcp.tool.arguments.text == "no"`))
	w.policies["only"].McpAuthorization.ExplainDenials = true
	p := w.start(t)
	id := p.initialize(t, "2025-11-25")
	if got := p.post(t, id, echo("echo", "no")); !strings.Contains(got.body, `tool \"echo\" is refused by`) || !strings.Contains(got.body, "-32602") {
		t.Errorf("refused: %d %s", got.status, got.body)
	}
	if got := p.post(t, id, echo("echo", "yes")); !strings.Contains(got.body, `"yes"`) {
		t.Errorf("allowed: %d %s", got.status, got.body)
	}
	twice := `{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"echo","arguments":{"text":"yes","Text":"no"}}}`
	if got := p.post(t, id, twice); got.status != 400 || !strings.Contains(got.body, "-32600") {
		t.Errorf("a key in two cases: %d %s", got.status, got.body)
	}
}

// Two callers of one target see what is theirs, though one list is cached.
func TestAdmissionComesAfterTheCache(t *testing.T) {
	srv := mcptest.NewServer(t, mcptest.Options{Stateless: true})
	w := behind(srv.URL).withKeys()
	w.policies["only"] = authorization(allow(`mcp.tool.name == "count" || apiKey.id == "alice"`))
	p := w.start(t)
	list := func(key []string) string {
		return p.post(t, "", `{"jsonrpc":"2.0","id":7,"method":"tools/list","params":{"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{}}}}`,
			append([]string{"MCP-Protocol-Version", "2026-07-28", "Mcp-Method", "tools/list"}, key...)...).body
	}
	for range 2 {
		if got := list(alice); !strings.Contains(got, `"echo"`) {
			t.Errorf("alice sees %s", got)
		}
		if got := list(bob); strings.Contains(got, `"echo"`) || !strings.Contains(got, `"count"`) {
			t.Errorf("bob sees %s", got)
		}
	}
}
