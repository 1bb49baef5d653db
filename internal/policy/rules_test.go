package policy

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	policyv1 "github.com/sluicegate/sluice/proto/gen/sluice/policy/v1"
	xdsv1 "github.com/sluicegate/sluice/proto/gen/sluice/xds/v1"
)

func allow(e string) *policyv1.AuthorizationRule {
	return &policyv1.AuthorizationRule{Rule: &policyv1.AuthorizationRule_Allow{Allow: e}}
}
func deny(e string) *policyv1.AuthorizationRule {
	return &policyv1.AuthorizationRule{Rule: &policyv1.AuthorizationRule_Deny{Deny: e}}
}
func require(e string) *policyv1.AuthorizationRule {
	return &policyv1.AuthorizationRule{Rule: &policyv1.AuthorizationRule_Require{Require: e}}
}

func authz(rules ...*policyv1.AuthorizationRule) *xdsv1.EffectivePolicy {
	return &xdsv1.EffectivePolicy{Policies: &policyv1.Policies{McpAuthorization: &policyv1.McpAuthorization{Rules: rules}}}
}

func mustTarget(t testing.TB, p *xdsv1.EffectivePolicy) *Target {
	t.Helper()
	target, err := CompileTarget(p, HTTP, Resolver{})
	if err != nil {
		t.Fatal(err)
	}
	return target
}

func toolCall(name, arguments string) *Call {
	return &Call{Tenant: "default", Method: "tools/call", Target: "files", Kind: Tool, Name: name, Arguments: []byte(arguments)}
}

var (
	admin = &Principal{ID: "jwt:i\x00ada", Claims: map[string]any{"sub": "ada", "roles": []any{"dev", "admin"}, "level": int64(7), "score": 1.5}}
	guest = &Principal{ID: "jwt:i\x00bob", Claims: map[string]any{"sub": "bob", "roles": []any{}}}
)

func TestAdmit(t *testing.T) {
	const list, call, both, neither = 1, 2, 3, 0
	type rules = []*policyv1.AuthorizationRule
	echo := toolCall("echo", `{"x":1,"path":"/tmp/a","deep":{"list":[1,2.5,"s",null,true]}}`)
	as := func(p *Principal, c *Call) *Call { n := *c; n.Principal = p; return &n }
	with := func(c *Call, f func(*Call)) *Call { n := *c; f(&n); return &n }
	prompt := &Call{Method: "prompts/get", Target: "files", Kind: Prompt, Name: "greet"}
	resource := &Call{Method: "resources/read", Target: "files", Kind: Resource, Name: "file:///etc/x"}

	for _, tt := range []struct {
		name  string
		rules rules
		call  *Call
		want  int
	}{
		{"true", rules{allow("true")}, echo, both},
		{"false", rules{allow("false")}, echo, neither},
		{"blank around", rules{allow("  true\n")}, echo, both},
		{"no token", rules{allow("has(jwt.sub)")}, echo, neither},
		{"token", rules{allow("has(jwt.sub)")}, as(admin, echo), both},
		{"the page's admin rule", rules{allow(`has(jwt.sub) && "admin" in jwt.roles`)}, as(admin, echo), both},
		{"the page's admin rule, guest", rules{allow(`has(jwt.sub) && "admin" in jwt.roles`)}, as(guest, echo), neither},
		{"the page's admin rule, anonymous", rules{allow(`has(jwt.sub) && "admin" in jwt.roles`)}, echo, neither},
		{"numbers of claims", rules{allow(`jwt.level > 6 && jwt.level == 7.0 && jwt.score < 2`)}, as(admin, echo), both},

		{"an error in allow does not match", rules{allow("jwt.sub == 'ada'"), allow("mcp.tool.name == 'echo'")}, echo, both},
		{"an error in deny refuses", rules{allow("true"), deny("jwt.sub == 'x'")}, echo, neither},
		{"an error in require refuses", rules{allow("true"), require("jwt.sub == 'x'")}, echo, neither},
		{"deny beats allow", rules{allow("true"), deny("mcp.tool.name == 'echo'")}, echo, neither},
		{"deny of another", rules{deny("mcp.tool.name == 'other'")}, echo, both},
		{"require", rules{require("mcp.tool.target == 'files'")}, echo, both},
		{"require and allow", rules{require("mcp.tool.target == 'files'"), allow("false")}, echo, neither},
		{"no bool", rules{allow("jwt.sub")}, as(admin, echo), neither},
		{"no bool in deny", rules{deny("jwt.sub")}, as(admin, echo), neither},

		{"argument", rules{allow("mcp.tool.arguments.x == 1")}, echo, both},
		{"wrong argument is listed", rules{allow("mcp.tool.arguments.x == 2")}, echo, list},
		{"absent argument is listed", rules{allow("mcp.tool.arguments.y == 2")}, echo, list},
		{"denied argument is listed", rules{deny("mcp.tool.arguments.path.startsWith('/tmp')")}, echo, list},
		{"other argument", rules{deny("mcp.tool.arguments.path.startsWith('/etc')")}, echo, both},
		{"required argument is listed", rules{require("mcp.tool.arguments.path.startsWith('/etc')")}, echo, list},
		{"has argument", rules{deny("has(mcp.tool.arguments.x)")}, echo, list},
		{"has absent argument", rules{deny("has(mcp.tool.arguments.z)")}, echo, both},
		{"argument and name", rules{allow("mcp.tool.arguments.x == 1 && mcp.tool.name == 'other'")}, echo, neither},
		{"name and argument", rules{allow("mcp.tool.name == 'echo' && mcp.tool.arguments.x == 3")}, echo, list},
		{"deep", rules{allow("mcp.tool.arguments.deep.list.exists(e, e == 2.5) && mcp.tool.arguments['deep']['list'][2] == 's'")}, echo, both},
		{"all over unknown", rules{allow("mcp.tool.arguments.all(k, k != 'x')")}, echo, list},
		{"index by unknown", rules{allow("{'a': true}[mcp.tool.arguments.path]")}, echo, list},
		{"size of unknown", rules{allow("size(mcp.tool.arguments) == 3 && mcp.tool.arguments.size() == 3")}, echo, both},
		{"unknown in a list", rules{allow("mcp.tool.name in [mcp.tool.arguments.path, 'echo']")}, echo, both},
		{"unknown or error", rules{allow("mcp.tool.arguments.x == 5 || jwt.sub == 'x'")}, echo, list},
		{"ternary", rules{allow("mcp.tool.arguments.x == 5 ? true : mcp.tool.name == 'echo'")}, echo, both},
		{"dyn of unknown", rules{allow("dyn(mcp.tool.arguments).x == 5")}, echo, list},
		{"has arguments", rules{allow("has(mcp.tool.arguments)")}, echo, both},
		{"no arguments", rules{allow("size(mcp.tool.arguments) == 0")}, with(echo, func(c *Call) { c.Arguments = nil }), both},
		{"shadowed name reads no argument", rules{allow("[{'tool': {'arguments': 2}}].all(mcp, mcp.tool.arguments == 1)")}, echo, neither},

		{"annotation", rules{allow("mcp.tool.annotations.readOnlyHint")}, with(echo, func(c *Call) { c.Annotations = []byte(`{"readOnlyHint":true}`) }), both},
		{"absent annotations are an error", rules{deny("mcp.tool.annotations.destructiveHint")}, echo, neither},
		{"absent annotation is an error", rules{deny("mcp.tool.annotations.destructiveHint")}, with(echo, func(c *Call) { c.Annotations = []byte(`{}`) }), neither},
		{"has annotations", rules{allow("has(mcp.tool.annotations)")}, echo, neither},
		{"broken annotations are an error", rules{deny("size(mcp.tool.annotations) == 0")}, with(echo, func(c *Call) { c.Annotations = []byte(`{`) }), neither},

		{"prompt", rules{allow("mcp.prompt.name == 'greet' && mcp.prompt.target == 'files'")}, prompt, both},
		{"tool rule on a prompt", rules{allow("mcp.tool.name == 'greet'")}, prompt, neither},
		{"tool rule in deny on a prompt is in error", rules{deny("mcp.tool.name == 'greet'")}, prompt, neither},
		{"has(mcp.tool) on a prompt", rules{deny("has(mcp.tool) && mcp.tool.name == 'greet'")}, prompt, both},
		{"argument rule on a prompt", rules{deny("has(mcp.tool) && mcp.tool.arguments.x == 1")}, prompt, both},
		{"resource", rules{allow("mcp.resource.name.startsWith('file:///etc/')")}, resource, both},
		{"template", rules{allow("has(mcp.resource)")}, &Call{Method: "completion/complete", Kind: Template, Name: "file:///{p}"}, both},
		{"task", rules{allow("mcp.task.name == 't1'")}, &Call{Method: "tasks/get", Kind: Task, Name: "t1"}, both},
		{"unknown method", rules{allow("mcp.method == 'x/y'")}, &Call{Method: "x/y", Kind: None}, both},
		{"unknown method, item rule", rules{allow("has(mcp.tool)")}, &Call{Method: "x/y", Kind: None}, neither},
		{"method of a tool", rules{allow("mcp.method == 'tools/call'")}, echo, both},
		{"other method of a tool", rules{allow("mcp.method == 'tools/list'")}, echo, neither},
		{"method of a resource is for the call to tell", rules{deny("mcp.method == 'resources/read'")}, resource, list},

		{"tenant", rules{allow("tenant == 'default'")}, echo, both},
		{"name too long", rules{allow("true")}, with(echo, func(c *Call) { c.Name = strings.Repeat("x", maxNameSize+1) }), neither},
	} {
		t.Run(tt.name, func(t *testing.T) {
			target := mustTarget(t, authz(tt.rules...))
			got := 0
			if target.AdmitList(tt.call).Allowed {
				got |= list
			}
			if target.Admit(tt.call).Allowed {
				got |= call
			}
			if got != tt.want {
				t.Errorf("admitted %02b (bit 0: list, bit 1: call), want %02b", got, tt.want)
			}
		})
	}
}

func TestAdmitRequest(t *testing.T) {
	r := httptest.NewRequest("POST", "http://Api.Example.com/mcp/a?x=1", nil)
	r.RemoteAddr = "[::ffff:10.1.2.3]:4711"
	r.Header = http.Header{"X-Team": {"a", "b"}, "Mcp-Name": {"echo"}}
	for rule, want := range map[string]bool{
		`request.method == "POST" && request.scheme == "http" && request.host == "api.example.com"`: true,
		`request.path == "/mcp/a" && request.pathAndQuery == "/mcp/a?x=1"`:                          true,
		`request.uri == "http://api.example.com/mcp/a?x=1"`:                                         true,
		`request.headers["x-team"] == "a, b" && request.headers["X-Team"] == "a, b"`:                true,
		`"X-TEAM" in request.headers && !("x-other" in request.headers)`:                            true,
		`request.headers["x-other"] == ""`:                                                          false,
		`"mcp-name" in request.headers || request.headers["Mcp-Name"] == "echo"`:                    false,
		`request.headers.exists(k, k == "x-team") && size(request.headers) == 1`:                    true,
		`request.headers == {"x-team": "a, b"}`:                                                     true,
		`source.address == "10.1.2.3" && source.port == 4711`:                                       true,
		`cidr("10.0.0.0/8").containsIP(source.address)`:                                             true,
		`cidr("192.168.0.0/16").containsIP(source.address)`:                                         false,
	} {
		target := mustTarget(t, authz(allow(rule)))
		c := toolCall("echo", "{}")
		c.HTTP = r
		if got := target.Admit(c).Allowed; got != want {
			t.Errorf("%s: %v, want %v", rule, got, want)
		}
		c.HTTP = nil
		if target.Admit(c).Allowed {
			t.Errorf("%s: allowed without a request", rule)
		}
	}
}

func TestEnforcedIsAnded(t *testing.T) {
	p := authz(allow("true"))
	p.From = map[string]string{"mcpAuthorization": "target/files"}
	p.EnforcedAuthorization = []*xdsv1.EnforcedAuthorization{
		{Level: "platform", Authorization: &policyv1.McpAuthorization{Rules: []*policyv1.AuthorizationRule{deny("mcp.tool.name == 'rm'")}}},
		{Level: "tenant/t", Authorization: &policyv1.McpAuthorization{ExplainDenials: true, Rules: []*policyv1.AuthorizationRule{allow("mcp.tool.name.startsWith('r')")}}},
	}
	target := mustTarget(t, p)
	for name, want := range map[string]Verdict{
		"rm":   {Rule: "platform mcpAuthorization.rules[0] deny"},
		"echo": {Rule: "tenant/t mcpAuthorization: no allow rule matches", Explain: true},
		"read": {Allowed: true, Rule: "target/files mcpAuthorization.rules[0] allow"},
	} {
		if diff := cmp.Diff(want, target.Admit(toolCall(name, "{}"))); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

func TestNoPolicyAdmits(t *testing.T) {
	for _, target := range []*Target{nil, mustTarget(t, nil), mustTarget(t, &xdsv1.EffectivePolicy{})} {
		if !target.Admit(toolCall("x", "")).Allowed || !target.AdmitList(toolCall("x", "")).Allowed {
			t.Error("refused without a policy")
		}
	}
}

func TestArgumentsMustBeStrict(t *testing.T) {
	target := mustTarget(t, authz(deny("has(mcp.tool.arguments.name) && mcp.tool.arguments.name == 'danger'")))
	for arguments, invalid := range map[string]bool{
		`{"name":"safe"}`:                 false,
		`{"x":1,"X":2}`:                   false, // nobody reads them
		`{"name":"safe","name":"danger"}`: true,
		`{"name":"safe","Name":"danger"}`: true,
		`{"Name":"danger"}`:               true,
		`{"NAME":"danger"}`:               true,
		`{"o":{"nAme":1}}`:                true,
		`{"n\u0061me":"safe","name":"x"}`: true,
		`[]`:                              true,
		`{"a":1}x`:                        true,
		"{\"a\":\"\xff\"}":                true,
		`{"a":"\ud800"}`:                  true,
		`{"a":1e999}`:                     true,
		`{"a":01}`:                        true,
		strings.Repeat(`{"a":`, 100) + `1` + strings.Repeat("}", 100): true,
	} {
		v := target.Admit(toolCall("t", arguments))
		if (v.Invalid != nil) != invalid || v.Allowed == invalid {
			t.Errorf("%.80s: %+v, want invalid %v", arguments, v, invalid)
		}
	}
	kelvin := mustTarget(t, authz(deny("has(mcp.tool.arguments.key)")))
	if v := kelvin.Admit(toolCall("t", "{\"\u212Aey\":1}")); v.Invalid == nil {
		t.Errorf("Kelvin sign: %+v, want invalid", v)
	}
	if v := mustTarget(t, authz(allow("true"))).Admit(toolCall("t", "{")); v.Invalid != nil || !v.Allowed {
		t.Errorf("arguments that no rule reads: %+v", v)
	}
	big := toolCall("t", `{"a":"`+strings.Repeat("x", maxArgumentsSize)+`"}`)
	if v := target.Admit(big); v.Invalid == nil {
		t.Error("oversized arguments were read")
	}
}

func TestRulesThatDoNotCompile(t *testing.T) {
	for rule, want := range map[string]string{
		"":                                    "is empty",
		"jwt.sub ==":                          "Syntax error: something is missing at the end, at character 11 of",
		"jwt.sub = 'a'":                       "Syntax error: `=` is nothing that CEL knows",
		"jwt.sub == 'a' 'b'":                  "Syntax error: `'b'` cannot stand here, at character 16 of",
		"jwt.sub == 'a":                       "Syntax error",
		"nobody.sub == 'x'":                   "variables are jwt, apiKey",
		"mcp.tol.name == 'x'":                 "undefined field 'tol'",
		"mcp.tool.result == 'x'":              "undefined field 'result'",
		"mcp.sessionId == 'x'":                "undefined field 'sessionId'",
		"response.code == 200":                "undeclared reference to 'response'",
		"request.body == 'x'":                 "undefined field 'body'",
		"mcp.tool.name":                       "not bool",
		"mcp.tool.name == 1":                  "no matching overload",
		"mcp.tool.name.matches('(')":          "invalid matches argument",
		"mcp == mcp":                          "`mcp` is no value by itself",
		"dyn(mcp.tool).name == 'x'":           "`mcp.tool` is no value by itself",
		"[request].exists(r, r.path == 'x')":  "`request` is no value by itself",
		"[1].exists(i, mcp.tool == mcp.tool)": "`mcp.tool` is no value by itself",
		"mcp['tool'].name == 'x'":             "no matching overload",
		"1 + 1":                               "not bool",
		"duration('x') > duration('1s')":      "duration",
	} {
		_, err := CompileTarget(authz(allow("true"), allow(rule)), HTTP, Resolver{})
		fields := FieldErrors(err)
		if len(fields) == 0 || fields[0].Field != "policies.mcpAuthorization.rules[1]" || !strings.Contains(fields[0].Reason, want) {
			t.Errorf("%q: %v, want one with %q", rule, err, want)
		}
	}
	if _, err := CompileTarget(authz(), HTTP, Resolver{}); err == nil || !strings.Contains(err.Error(), "policies.mcpAuthorization.rules: is empty") {
		t.Errorf("no rules: %v", err)
	}
	if _, err := CompileTarget(authz(&policyv1.AuthorizationRule{}), HTTP, Resolver{}); err == nil {
		t.Error("a rule of no kind compiled")
	}
}

func TestReads(t *testing.T) {
	for rule, want := range map[string]string{
		"true":                                   "",
		"has(jwt.sub)":                           "jwt principal",
		"'jwt' == 'jwt.sub'":                     "",
		"apiKey.team == 'a'":                     "apiKey principal",
		"request.path == '/'":                    "request principal",
		"source.port == 1":                       "source principal",
		"tenant == 'x'":                          "tenant",
		"mcp.tool.name == 'x'":                   "",
		"has(mcp.tool)":                          "",
		"has(mcp.tool.arguments.x)":              "mcp.tool.arguments arguments",
		"mcp.tool.arguments['x'] == 1":           "mcp.tool.arguments arguments",
		"size(mcp.tool.arguments) == 1":          "mcp.tool.arguments arguments",
		"{'a': [mcp.tool.arguments.x]}.a == [1]": "mcp.tool.arguments arguments",
		"[1].all(x, x == mcp.tool.arguments.y)":  "mcp.tool.arguments arguments",
		"[1].all(mcp, mcp == 1)":                 "",
		"[{'sub': 1}].all(jwt, jwt.sub == 1)":    "",
		"[1].all(jwt, .jwt.sub == 'a')":          "jwt principal",
		"[jwt].all(jwt, jwt.sub == 'a')":         "jwt principal",
		"mcp.tool.annotations.readOnlyHint":      "mcp.tool.annotations",
		"mcp.method == 'x'":                      "mcp.method",
		"true || jwt.sub == 'a'":                 "jwt principal",
	} {
		target := mustTarget(t, authz(allow(rule)))
		var got []string
		for _, v := range sortedKeys(roots) {
			if len(target.Reads(v)) > 0 {
				got = append(got, v)
			}
		}
		if target.ReadsArguments() {
			got = append(got, "arguments")
		}
		if target.ReadsPrincipal() {
			got = append(got, "principal")
		}
		if strings.Join(got, " ") != want {
			t.Errorf("%s reads %q, want %q", rule, got, want)
		}
	}
}

// A rule must not burn the proxy, whatever a client sends.
func TestCostLimit(t *testing.T) {
	var list strings.Builder
	list.WriteString(`{"l":[0`)
	for i := range 200 {
		fmt.Fprintf(&list, ",%d", i)
	}
	list.WriteString(`]}`)
	const nested = "mcp.tool.arguments.l.all(a, mcp.tool.arguments.l.all(b, mcp.tool.arguments.l.all(c, a + b + c >= 0)))"
	for _, r := range []*policyv1.AuthorizationRule{deny("!" + nested), require(nested), allow(nested)} {
		if mustTarget(t, authz(r)).Admit(toolCall("t", list.String())).Allowed {
			t.Errorf("%v: admitted by a rule that was stopped", r)
		}
	}
	if !mustTarget(t, authz(allow(nested))).Admit(toolCall("t", `{"l":[1,2,3]}`)).Allowed {
		t.Error("a small input was stopped")
	}
}

var tenRules = authz(
	deny("mcp.tool.name == 'delete_all'"),
	deny("mcp.tool.name.startsWith('admin_') && !('admin' in jwt.roles)"),
	deny("has(jwt.suspended) && jwt.suspended"),
	require("has(jwt.sub)"),
	require("jwt.level > 3"),
	require("tenant == 'default'"),
	allow("mcp.tool.target == 'other'"),
	allow("mcp.tool.name in ['a', 'b', 'c']"),
	allow("jwt.sub == 'nobody'"),
	allow("'admin' in jwt.roles && mcp.tool.name == 'echo'"),
)

func authenticated() *Principal {
	p := *admin
	p.jwt = toCEL(p.Claims)
	return &p
}

func TestTenRulesAllocateLittle(t *testing.T) {
	target := mustTarget(t, tenRules)
	c := toolCall("echo", `{"x":1}`)
	c.Principal = authenticated()
	if n := testing.AllocsPerRun(100, func() { target.Admit(c) }); n > 10 {
		t.Errorf("ten rules cost %v allocations, want at most 10", n)
	}
}

// Arguments are read once for all rules, and made once.
func TestTenRulesOverArgumentsAllocateLittle(t *testing.T) {
	target := mustTarget(t, tenRulesOverArguments())
	c := toolCall("echo", `{"path":"/tmp/a","tags":["a","b"],"n":1}`)
	if v := target.Admit(c); !v.Allowed {
		t.Fatalf("refused by %s", v.Rule)
	}
	if n := testing.AllocsPerRun(100, func() { target.Admit(c) }); n > 16 {
		t.Errorf("ten rules over arguments cost %v allocations, want at most 16", n)
	}
}

// A task of a known tool is for who may call the tool, and whom the rules do not keep from the task itself.
func TestTaskOfTool(t *testing.T) {
	for _, tt := range []struct {
		name  string
		rules []*policyv1.AuthorizationRule
		tool  string
		want  bool
	}{
		{"of an allowed tool", []*policyv1.AuthorizationRule{allow(`mcp.tool.name == "work"`)}, "work", true},
		{"of another", []*policyv1.AuthorizationRule{allow(`mcp.tool.name == "work"`)}, "other", false},
		{"of nobody knows what", []*policyv1.AuthorizationRule{allow(`mcp.tool.name == "work"`)}, "", false},
		{"tasks do not widen tools", []*policyv1.AuthorizationRule{allow(`mcp.tool.name == "work"`), allow(`has(mcp.task)`)}, "other", false},
		{"but allow what nobody knows", []*policyv1.AuthorizationRule{allow(`mcp.tool.name == "work"`), allow(`has(mcp.task)`)}, "", true},
		{"denied by its tool", []*policyv1.AuthorizationRule{allow(`true`), deny(`has(mcp.tool) && mcp.tool.name == "work"`)}, "work", false},
		{"denied itself", []*policyv1.AuthorizationRule{allow(`true`), deny(`has(mcp.task) && mcp.task.name == "t"`)}, "work", false},
		{"denied by method", []*policyv1.AuthorizationRule{allow(`true`), deny(`mcp.method == "tasks/cancel"`)}, "work", false},
		{"required of tools", []*policyv1.AuthorizationRule{require(`mcp.tool.name == "work"`)}, "work", true},
		{"arguments are over", []*policyv1.AuthorizationRule{require(`mcp.tool.arguments.x == 1`), deny(`mcp.tool.arguments.y == 2`)}, "work", true},
		{"annotations", []*policyv1.AuthorizationRule{require(`mcp.tool.annotations.readOnlyHint`)}, "work", true},
		{"both there", []*policyv1.AuthorizationRule{require(`mcp.tool.target == "a" && (!has(mcp.task) || mcp.task.target == "a")`)}, "work", true},
	} {
		target, err := CompileTarget(authz(tt.rules...), HTTP, Resolver{})
		if err != nil {
			t.Fatalf("%s: %v", tt.name, err)
		}
		c := &Call{Kind: Task, Name: "t", Tool: tt.tool, Target: "a", Method: "tasks/cancel", Annotations: []byte(`{"readOnlyHint":true}`)}
		if got := target.Admit(c); got.Allowed != tt.want {
			t.Errorf("%s: %+v", tt.name, got)
		}
	}
}
