package dataplane

import (
	"crypto/ed25519"
	"encoding/json"
	"strings"
	"testing"

	"github.com/go-jose/go-jose/v4"

	"github.com/sluicegate/sluice/internal/mcptest"
	policyv1 "github.com/sluicegate/sluice/proto/gen/sluice/policy/v1"
)

// withTokens lets callers show tokens of one issuer, and returns what signs them.
func (w *world) withTokens(t testing.TB) (bearer func(claims string) []string) {
	t.Helper()
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	set, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: public}}})
	if err != nil {
		t.Fatal(err)
	}
	w.routePolicy = &policyv1.Policies{JwtAuth: &policyv1.JwtAuth{Providers: []*policyv1.JwtProvider{
		{Issuer: "https://issuer.test", Jwks: &policyv1.Jwks{Source: &policyv1.Jwks_Inline{Inline: string(set)}}},
	}}}
	return func(claims string) []string {
		signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.EdDSA, Key: private}, nil)
		if err != nil {
			t.Fatal(err)
		}
		signed, err := signer.Sign([]byte(`{"iss":"https://issuer.test","exp":4102444800,` + claims + `}`))
		if err != nil {
			t.Fatal(err)
		}
		token, err := signed.CompactSerialize()
		if err != nil {
			t.Fatal(err)
		}
		return []string{"Authorization", "Bearer " + token}
	}
}

// ask is a raw request of a method at a revision, with headers of its own.
func (p *testProxy) ask(t testing.TB, version, session, method, name, params string, headers ...string) answer {
	t.Helper()
	if version != "2026-07-28" {
		return p.post(t, session, `{"jsonrpc":"2.0","id":7,"method":"`+method+`","params":{`+params+`}}`, headers...)
	}
	if params != "" {
		params += ","
	}
	headers = append([]string{"MCP-Protocol-Version", version, "Mcp-Method", method}, headers...)
	if name != "" {
		headers = append(headers, "Mcp-Name", name)
	}
	return p.post(t, "", `{"jsonrpc":"2.0","id":7,"method":"`+method+`","params":{`+params+`"_meta":{"io.modelcontextprotocol/protocolVersion":"`+version+
		`","io.modelcontextprotocol/clientInfo":{"name":"raw","version":"1"},"io.modelcontextprotocol/clientCapabilities":{}}}}`, headers...)
}

func scoped(r *policyv1.AuthorizationRule, scope string) *policyv1.AuthorizationRule {
	r.Scope = scope
	return r
}

func require(expr string) *policyv1.AuthorizationRule {
	return &policyv1.AuthorizationRule{Rule: &policyv1.AuthorizationRule_Require{Require: expr}}
}

// Who lacks scope is told which, over everything that can be called.
func TestStepUp(t *testing.T) {
	t.Parallel()
	for _, version := range []string{"2025-11-25", "2026-07-28"} {
		for _, n := range []int{1, 2} {
			w, a, _ := two(t, version, mcptest.Options{})
			w.targets = w.targets[:n]
			bearer := w.withTokens(t)
			for _, target := range w.targets {
				w.policies[target.Name] = authorization(
					scoped(require(`has(mcp.tool) && mcp.tool.name != "echo" || "write" in scopes`), "write"),
					scoped(require(`!(has(mcp.resource) && mcp.resource.name == "test://static/two") || "audit" in scopes`), "audit"),
					deny(`has(mcp.tool) && mcp.tool.name == "add"`))
			}
			p := w.start(t)
			none, reads, writes := []string(nil), bearer(`"sub":"s","scope":"read"`), bearer(`"sub":"s","scope":"read write","scp":["audit"]`)
			prefix, uri := "", ""
			if n == 2 {
				prefix, uri = "a_", "a+"
			}
			for _, tt := range []struct {
				method, name, param string
				scope               string
			}{
				{"tools/call", prefix + "echo", `"name":"%","arguments":{"text":"hi"}`, "write"},
				{"prompts/get", prefix + "plain", `"name":"%"`, "write"},
				{"resources/read", uri + "test://static/two", `"uri":"%"`, "write audit"},
				{"completion/complete", prefix + "greet", `"ref":{"type":"ref/prompt","name":"%"},"argument":{"name":"name","value":"a"}`, "write"},
				{"completion/complete", uri + "test://item/{id}", `"ref":{"type":"ref/resource","uri":"%"},"argument":{"name":"id","value":"a"}`, "write"},
				{"subscriptions/listen", uri + "test://static/two", `"notifications":{"resourceSubscriptions":["%"]}`, "write audit"},
				{"resources/subscribe", uri + "test://static/two", `"uri":"%"`, "write audit"},
			} {
				if version == "2026-07-28" && tt.method == "resources/subscribe" || version != "2026-07-28" && tt.method == "subscriptions/listen" {
					continue
				}
				params := strings.ReplaceAll(tt.param, "%", tt.name)
				header := tt.name
				if strings.HasPrefix(tt.method, "completion") || strings.HasPrefix(tt.method, "subscriptions") {
					header = ""
				}
				sessions := map[string]string{}
				for who, headers := range map[string][]string{"none": none, "reads": reads, "writes": writes} {
					if version != "2026-07-28" {
						sessions[who] = p.initialize(t, version, headers...)
					}
				}
				before := len(a.Requests())
				got := p.ask(t, version, sessions["none"], tt.method, header, params, none...)
				if want := `Bearer scope="` + tt.scope + `"`; got.status != 401 || got.header.Get("WWW-Authenticate") != want || !strings.Contains(got.body, `"error"`) {
					t.Errorf("%s, %d targets: %s without a token: %d %v %s, want %s", version, n, tt.method, got.status, got.header["Www-Authenticate"], got.body, want)
				}
				got = p.ask(t, version, sessions["reads"], tt.method, header, params, reads...)
				if want := `Bearer error="insufficient_scope", scope="` + tt.scope + `"`; got.status != 403 || got.header.Get("WWW-Authenticate") != want || !strings.Contains(got.body, `"id":7,"error"`) {
					t.Errorf("%s, %d targets: %s with a token: %d %v %s, want %s", version, n, tt.method, got.status, got.header["Www-Authenticate"], got.body, want)
				}
				for _, r := range a.Requests()[before:] {
					if r.Header.Get("Mcp-Method") == tt.method {
						t.Errorf("%s: the target saw %s", version, tt.method)
					}
				}
				if tt.method == "subscriptions/listen" {
					continue // it would not end
				}
				if got := p.ask(t, version, sessions["writes"], tt.method, header, params, writes...); got.status != 200 || strings.Contains(got.body, `"error"`) {
					t.Errorf("%s, %d targets: %s with the scope: %d %s", version, n, tt.method, got.status, got.body)
				}
			}
			session := ""
			if version != "2026-07-28" {
				session = p.initialize(t, version)
			}
			list := p.ask(t, version, session, "tools/list", "", "")
			if !strings.Contains(list.body, `"`+prefix+`echo"`) || strings.Contains(list.body, `"`+prefix+`add"`) {
				t.Errorf("%s, %d targets: what more scope opens is listed, what nothing opens is not: %s", version, n, list.body)
			}
			for _, name := range []string{"add", "echx"} { // a name that does not exist has no scope
				if got := p.ask(t, version, session, "tools/call", prefix+name, `"name":"`+prefix+name+`"`); got.status != 200 || !strings.Contains(got.body, "Unknown tool") {
					t.Errorf("%s, %d targets: %s: %d %s", version, n, name, got.status, got.body)
				}
			}
			waitFor(t, "the rule in the log", func() bool { return strings.Contains(p.lines.String(), "mcpAuthorization.rules[0] require") })
		}
	}
}

// Refusals are explained whatever they are about, where the policy lets them.
func TestExplainEverything(t *testing.T) {
	for _, version := range []string{"2025-11-25", "2026-07-28"} {
		srv := mcptest.NewServer(t, mcptest.Options{Stateless: version == "2026-07-28"})
		for _, explain := range []bool{true, false} {
			w := behind("only=" + srv.URL)
			w.policies["only"] = authorization(deny("true"))
			w.policies["only"].McpAuthorization.ExplainDenials = explain
			p := w.start(t)
			session := ""
			if version != "2026-07-28" {
				session = p.initialize(t, version)
			}
			for _, tt := range []struct{ method, name, params, noun string }{
				{"tools/call", "echo", `"name":"echo"`, `tool \"echo\"`},
				{"prompts/get", "plain", `"name":"plain"`, `prompt \"plain\"`},
				{"resources/read", "test://static/one", `"uri":"test://static/one"`, `resource \"test://static/one\"`},
				{"resources/subscribe", "", `"uri":"test://static/one"`, `resource \"test://static/one\"`},
				{"completion/complete", "", `"ref":{"type":"ref/prompt","name":"plain"},"argument":{"name":"a","value":""}`, `prompt \"plain\"`},
				{"completion/complete", "", `"ref":{"type":"ref/resource","uri":"test://static/one"},"argument":{"name":"a","value":""}`, `resource \"test://static/one\"`},
				{"completion/complete", "", `"ref":{"type":"ref/resource","uri":"test://item/{id}"},"argument":{"name":"a","value":""}`, `template \"test://item/{id}\"`},
				{"tasks/get", "t1", `"taskId":"t1"`, `task \"t1\"`},
				{"tasks/cancel", "t1", `"taskId":"t1"`, `task \"t1\"`},
				{"x/unknown", "", `"a":1`, `method \"x/unknown\"`},
			} {
				if version == "2026-07-28" && tt.method == "resources/subscribe" {
					continue
				}
				before := len(srv.Requests())
				got := p.ask(t, version, session, tt.method, tt.name, tt.params)
				told := strings.Contains(got.body, tt.noun+` is refused by`) && strings.Contains(got.body, "mcpAuthorization.rules[0] deny")
				if told != explain || !strings.Contains(got.body, `"error"`) || strings.Contains(got.body, "rules[0]") != explain {
					t.Errorf("%s, explain %v: %s: %d %s", version, explain, tt.method, got.status, got.body)
				}
				for _, r := range srv.Requests()[before:] {
					if m := r.Header.Get("Mcp-Method"); m == tt.method {
						t.Errorf("the target saw %s", m)
					}
				}
			}
			if version == "2026-07-28" {
				s := p.open(t, "POST", "", strings.Replace(listenAll, "%", "test://", 1), "MCP-Protocol-Version", version, "Mcp-Method", "subscriptions/listen")
				first := mustJSON(<-s.msgs)
				if !strings.Contains(first, "acknowledged") || strings.Contains(first, "resourceSubscriptions") || strings.Contains(first, "rules[0] deny") != explain {
					t.Errorf("explain %v: acknowledged %s", explain, first)
				}
			}
		}
	}
}
