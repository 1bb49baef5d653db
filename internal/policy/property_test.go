package policy

import (
	"fmt"
	"math/rand/v2"
	"net/http/httptest"
	"slices"
	"testing"
	"time"

	policyv1 "github.com/sluicegate/sluice/proto/gen/sluice/policy/v1"
	xdsv1 "github.com/sluicegate/sluice/proto/gen/sluice/xds/v1"
)

// generator writes random rules that are true, false, in error, or depend on arguments.
type generator struct{ *rand.Rand }

func (g generator) pick(choices ...string) string { return choices[g.IntN(len(choices))] }

func (g generator) value(depth int) string {
	if depth == 0 {
		return g.pick("1", "2", "'a'", "'echo'", "null", "true", "mcp.tool.name", "mcp.tool.target", "tenant", "jwt.sub", "jwt.none",
			"mcp.tool.arguments.x", "mcp.tool.arguments.y", "mcp.tool.arguments['l']", "mcp.tool.arguments.o.x", "mcp.tool.annotations.h", "apiKey.team")
	}
	switch g.IntN(7) {
	case 0:
		return fmt.Sprintf("dyn(%s)", g.value(depth-1))
	case 1:
		return fmt.Sprintf("(%s ? dyn(%s) : dyn(%s))", g.boolean(depth-1), g.value(depth-1), g.value(depth-1))
	case 2:
		return fmt.Sprintf("dyn([dyn(%s), dyn(%s)])[dyn(%s)]", g.value(depth-1), g.value(depth-1), g.pick("0", "1", "mcp.tool.arguments.x", "5"))
	case 3:
		return fmt.Sprintf("dyn({'a': dyn(%s), 'echo': dyn(%s)})[dyn(%s)]", g.value(depth-1), g.value(depth-1), g.value(0))
	case 4:
		return fmt.Sprintf("dyn(size(dyn(%s)))", g.value(depth-1))
	case 5:
		return fmt.Sprintf("dyn(mcp.tool.arguments.l.map(e, dyn(%s)))", g.value(depth-1))
	}
	return g.value(0)
}

func (g generator) boolean(depth int) string {
	if depth == 0 {
		return g.pick("true", "false", "has(jwt.sub)", "has(jwt.none)", "jwt.admin", "has(mcp.tool)", "has(mcp.prompt)", "has(mcp.tool.arguments)", "has(mcp.tool.arguments.x)",
			"has(mcp.tool.arguments.o.x)", "mcp.tool.name == 'echo'", "mcp.tool.name in ['a', 'b']", "mcp.method == 'tools/call'", "mcp.prompt.name == 'x'",
			"mcp.tool.arguments.x == 1", "size(mcp.tool.arguments) > 1", "'x' in mcp.tool.arguments", "mcp.tool.arguments == {'x': 1}", "mcp.tool.annotations.h == 1",
			"'a' in scopes", "'b' in scopes", "mcp.resource.name == 'echo'", "mcp.resource.name.startsWith('test://')", "has(mcp.task)", "mcp.task.name == 'a'", "a2a.skill == 'echo'", "has(a2a.skill)", "a2a.method.startsWith('message/')", "has(a2a.method)", "a2a.target == 'files'",
			"request.startTime.getHours('Europe/Berlin') == 1", "has(source.certificate)", "source.subjectCn == 'ci'", "mcp.tool.name.matches('^e')")
	}
	switch g.IntN(9) {
	case 0:
		return fmt.Sprintf("!(%s)", g.boolean(depth-1))
	case 1, 2:
		return fmt.Sprintf("(%s && %s)", g.boolean(depth-1), g.boolean(depth-1))
	case 3, 4:
		return fmt.Sprintf("(%s || %s)", g.boolean(depth-1), g.boolean(depth-1))
	case 5:
		return fmt.Sprintf("(%s ? %s : %s)", g.boolean(depth-1), g.boolean(depth-1), g.boolean(depth-1))
	case 6:
		return fmt.Sprintf("dyn(%s) %s dyn(%s)", g.value(depth-1), g.pick("==", "!=", "<", ">="), g.value(depth-1))
	case 7:
		return fmt.Sprintf("%s.%s(e, dyn(e) == dyn(%s) || %s)", g.pick("[1, 2]", "mcp.tool.arguments.l", "mcp.tool.arguments", "jwt.roles", "[mcp.tool.arguments.x, 'a']"),
			g.pick("all", "exists", "exists_one"), g.value(depth-1), g.boolean(0))
	}
	return fmt.Sprintf("dyn(%s) in dyn(%s)", g.value(depth-1), g.pick("[1, 'a', 'echo']", "mcp.tool.arguments.l", "mcp.tool.arguments", "jwt.roles", "{'a': 1}"))
}

func (g generator) rules() []*policyv1.AuthorizationRule {
	var out []*policyv1.AuthorizationRule
	for range 1 + g.IntN(3) {
		e := g.boolean(g.IntN(4))
		scope := ""
		if g.IntN(4) == 0 {
			e, scope = fmt.Sprintf("(%s) && ('a' in scopes || jwt.admin)", e), g.pick("a", "b", "a b")
		}
		switch g.IntN(3) {
		case 0:
			out = append(out, gate(allow(e), scope))
		case 1:
			out = append(out, deny(e))
		default:
			out = append(out, gate(require(e), scope))
		}
	}
	return out
}

func TestNotListedIsNotCallable(t *testing.T) {
	g := generator{rand.New(rand.NewPCG(1, 2))}
	arguments := []string{``, `{}`, `{"x":1}`, `{"x":2,"y":"a"}`, `{"x":"echo","l":[1,2,"a"]}`, `{"x":0,"y":1,"l":[],"o":{"x":1}}`, `{"o":{},"l":{"x":1}}`, `{"x":true,"l":[null]}`}
	principals := []*Principal{nil, admin, guest, {ID: "k", APIKey: map[string]any{"team": "a"}}, {Claims: map[string]any{"admin": true, "roles": []any{"a"}}}, holding("a"), holding("a b")}
	kinds := []struct {
		kind    ItemKind
		methods []string
		names   []string
	}{
		{Tool, []string{"tools/call"}, []string{"echo", "a", "other"}},
		{Prompt, []string{"prompts/get", "completion/complete"}, []string{"echo", "a"}},
		{Resource, []string{"resources/read", "resources/subscribe", "completion/complete"}, []string{"test://a", "TEST://%61", "echo"}},
		{Template, []string{"completion/complete"}, []string{"test://{a}"}},
		{Task, []string{"tasks/get", "tasks/cancel", "tasks/result"}, []string{"a", "b"}},
		{Agent, []string{"message/send", "message/stream", "SendMessage"}, []string{"echo", "a"}},
	}
	var hidden, shown, exact, gated, compiled int
	for range 2500 {
		p := authz(g.rules()...)
		if g.IntN(3) == 0 {
			p.EnforcedAuthorization = []*xdsv1.EnforcedAuthorization{{Level: "platform", Authorization: &policyv1.McpAuthorization{Rules: g.rules()}}}
		}
		target, err := CompileTarget(p, HTTP, Resolver{})
		if err != nil { // e.g. a bool in a list of strings; compiled counts those that do
			continue
		}
		compiled++
		kind := kinds[max(0, g.IntN(len(kinds)+4)-4)] // mostly tools
		c := toolCall(g.pick(kind.names...), "")
		c.Kind, c.Principal, c.Start = kind.kind, principals[g.IntN(len(principals))], time.Unix(int64(g.IntN(1<<30)), 0)
		c.HTTP = httptest.NewRequest("POST", "http://a/mcp", nil)
		if c.Kind == Task && g.IntN(2) == 0 {
			c.Tool = g.pick("echo", "a", "other")
		}
		if g.IntN(2) == 0 {
			c.Annotations = []byte(`{"h":1}`)
		}
		listed := target.AdmitList(c).Allowed
		if listed {
			shown++
		} else {
			hidden++
		}
		callOnly := target.ReadsArguments() || c.Kind != Tool && len(target.Reads("mcp.method")) > 0 || c.Kind == Agent && len(target.Reads("a2a.method")) > 0 || hasScope(p)
		if !callOnly {
			exact++
		}
		for i, a := range arguments {
			c.Arguments, c.Method = []byte(a), kind.methods[i%len(kind.methods)]
			v := target.Admit(c)
			callable := v.Allowed
			if v.Scopes != nil {
				gated++
				if callable || !listed || !hasScope(p) {
					t.Fatalf("%+v (listed %v, %v, %+v):\n%v", v, listed, c.Kind, c.Principal, p)
				}
			}
			if callable && !listed {
				t.Fatalf("callable with %s though not listed (%v, %+v):\n%v", a, c.Kind, c.Principal, p)
			}
			if !callOnly && callable != listed {
				t.Fatalf("listed %v, callable %v with %s though no rule reads arguments:\n%v", listed, callable, a, p)
			}
		}
	}
	if compiled < 1200 || hidden < 300 || shown < 300 || exact < 150 || gated < 50 {
		t.Errorf("%d compiled, %d hidden, %d shown, %d without arguments, %d gated: too few to mean anything", compiled, hidden, shown, exact, gated)
	}
}

func hasScope(p *xdsv1.EffectivePolicy) bool {
	all := p.GetPolicies().GetMcpAuthorization().GetRules()
	for _, e := range p.GetEnforcedAuthorization() {
		all = append(all, e.GetAuthorization().GetRules()...)
	}
	return slices.ContainsFunc(all, func(r *policyv1.AuthorizationRule) bool { return r.GetScope() != "" })
}
