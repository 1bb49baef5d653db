package policy

import (
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	policyv1 "github.com/sluicegate/sluice/proto/gen/sluice/policy/v1"
	xdsv1 "github.com/sluicegate/sluice/proto/gen/sluice/xds/v1"
)

// gate is a rule that a scope opens.
func gate(r *policyv1.AuthorizationRule, scope string) *policyv1.AuthorizationRule {
	r.Scope = scope
	return r
}

// holding is who shows a token with scopes.
func holding(scope string) *Principal {
	return &Principal{ID: "jwt:i\x00s", Claims: map[string]any{"sub": "s", "scope": scope}}
}

func TestScopes(t *testing.T) {
	for name, tt := range map[string]struct {
		claims map[string]any
		want   string
	}{
		"separated by blanks": {map[string]any{"scope": "a b  a"}, "a b"},
		"scp":                 {map[string]any{"scp": "a b"}, "a b"},
		"scp as a list":       {map[string]any{"scp": []any{"a", "b", 7}}, "a b"},
		"scope as a list":     {map[string]any{"scope": []any{"a"}}, "a"},
		"both":                {map[string]any{"scope": "a b", "scp": []any{"b", "c"}}, "a b c"},
		"of another type":     {map[string]any{"scope": true, "scp": map[string]any{"a": 1}}, ""},
		"none":                {map[string]any{"sub": "x"}, ""},
		"no token":            {nil, ""},
	} {
		c := toolCall("echo", "{}")
		c.Principal = &Principal{Claims: tt.claims}
		got := strings.Join(scopesOf(c.Principal), " ")
		if got != tt.want {
			t.Errorf("%s: %q, want %q", name, got, tt.want)
		}
		for _, s := range []string{"a", "b", "c"} {
			held := mustTarget(t, authz(allow(`"`+s+`" in scopes`))).Admit(c).Allowed
			if held != strings.Contains(tt.want, s) {
				t.Errorf("%s: %s in scopes is %v", name, s, held)
			}
		}
	}
	if !mustTarget(t, authz(allow("size(scopes) == 0"))).Admit(toolCall("echo", "{}")).Allowed {
		t.Error("scopes of nobody are no empty list")
	}
}

func TestStepUp(t *testing.T) {
	type rules = []*policyv1.AuthorizationRule
	write := func() *policyv1.AuthorizationRule { return gate(require(`"write" in scopes`), "write") }
	apiKey := &Principal{ID: "key:k", APIKey: map[string]any{"id": "k"}}
	for _, tt := range []struct {
		name   string
		rules  rules
		who    *Principal
		want   string // the scopes; "-": refused, "+": admitted
		listed bool
	}{
		{"no token", rules{write()}, nil, "write", true},
		{"a token without scopes", rules{write()}, holding(""), "write", true},
		{"a token with it", rules{write()}, holding("read write"), "+", true},
		{"an API key", rules{write()}, apiKey, "write", true},
		{"a deny comes first", rules{write(), deny("mcp.tool.name == 'echo'")}, holding(""), "-", false},
		{"a require without scope", rules{write(), require("jwt.sub == 'root'")}, holding(""), "-", false},
		{"two requires", rules{write(), gate(require(`"audit" in scopes`), "audit")}, holding(""), "write audit", true},
		{"the second of two", rules{write(), gate(require(`"audit" in scopes`), "audit")}, holding("write"), "audit", true},
		{"several in one", rules{gate(require(`"a" in scopes && "b" in scopes`), " b  a b ")}, holding("a"), "b a", true},
		{"an allow", rules{gate(allow(`"write" in scopes`), "write")}, holding("read"), "write", true},
		{"another allow is true", rules{gate(allow(`"write" in scopes`), "write"), allow("true")}, holding("read"), "+", true},
		{"an allow of another tool", rules{gate(allow(`mcp.tool.name == "other" && "write" in scopes`), "write")}, holding("read"), "-", false},
		{"one of several allows", rules{gate(allow(`mcp.tool.name == "other" && "x" in scopes`), "x"), gate(allow(`mcp.tool.name == "echo" && "write" in scopes`), "write")}, holding(""), "write", true},
		{"several allows", rules{gate(allow(`"x" in scopes`), "x"), gate(allow(`"y" in scopes`), "y")}, holding(""), "x y", true},
		{"an allow without scope that is false", rules{write(), allow("jwt.sub == 'root'")}, holding(""), "-", false},
		{"what scope does not help", rules{gate(require(`"write" in scopes && jwt.sub == "root"`), "write")}, holding(""), "-", false},
		{"who has it, and is kept out", rules{gate(require(`"write" in scopes && jwt.sub == "root"`), "write")}, holding("write"), "-", false},
		{"nobody might be root", rules{gate(require(`"write" in scopes && jwt.sub == "root"`), "write")}, nil, "write", true},
		{"scopes by claims", rules{gate(require(`jwt.scope == "write"`), "write")}, holding("read"), "write", true},
		{"scopes by claims, held", rules{gate(require(`jwt.scope == "other"`), "write")}, holding("write"), "-", false},
		{"an argument", rules{gate(require(`mcp.tool.arguments.x < 5 || "write" in scopes`), "write")}, holding(""), "write", true},
		{"an argument that is fine", rules{gate(require(`mcp.tool.arguments.x < 10 || "write" in scopes`), "write")}, holding(""), "+", true},
		{"an argument that no scope helps", rules{gate(require(`mcp.tool.arguments.x < 5 && "write" in scopes`), "write")}, holding(""), "-", true},
		{"an error", rules{gate(require(`jwt.none == 1 || "write" in scopes`), "write")}, holding(""), "write", true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			target := mustTarget(t, authz(tt.rules...))
			c := toolCall("echo", `{"x":7}`)
			c.Principal = tt.who
			v := target.Admit(c)
			got := strings.Join(v.Scopes, " ")
			switch {
			case v.Allowed && v.Scopes == nil:
				got = "+"
			case v.Scopes == nil:
				got = "-"
			}
			if got != tt.want || v.Invalid != nil {
				t.Errorf("Admit: %+v, want %q", v, tt.want)
			}
			if !v.Allowed && v.Rule == "" {
				t.Error("refused by nothing")
			}
			if v := target.AdmitList(c); v.Allowed != tt.listed || v.Scopes != nil {
				t.Errorf("AdmitList: %+v, want %v", v, tt.listed)
			}
		})
	}
}

// Each level decides by itself; what one refuses for good no scope of another opens.
func TestStepUpOfLevels(t *testing.T) {
	p := authz(gate(require(`"a" in scopes`), "a"))
	p.EnforcedAuthorization = []*xdsv1.EnforcedAuthorization{
		{Level: "platform", Authorization: &policyv1.McpAuthorization{ExplainDenials: true, Rules: []*policyv1.AuthorizationRule{deny("mcp.tool.name == 'rm'")}}},
		{Level: "tenant/t", Authorization: &policyv1.McpAuthorization{Rules: []*policyv1.AuthorizationRule{gate(require(`"b" in scopes`), "b")}}},
	}
	target := mustTarget(t, p)
	for name, want := range map[string]Verdict{
		"rm":   {Rule: "platform mcpAuthorization.rules[0] deny", Explain: true},
		"echo": {Rule: "tenant/t mcpAuthorization.rules[0] require", Scopes: []string{"b", "a"}},
	} {
		if diff := cmp.Diff(want, target.Admit(toolCall(name, "{}"))); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

func TestScopeThatDoesNothing(t *testing.T) {
	for name, tt := range map[string]struct {
		rule *policyv1.AuthorizationRule
		want string
	}{
		"deny":         {gate(deny(`!("a" in scopes)`), "a"), "does nothing on a deny"},
		"blank":        {gate(require(`"a" in scopes`), "  "), "is blank"},
		"no scope":     {gate(require(`"a" in scopes`), "a\"b"), "is no scope"},
		"not ASCII":    {gate(require(`"a" in scopes`), "grün"), "is no scope"},
		"reads no one": {gate(require(`mcp.tool.name == "a"`), "a"), "neither scopes nor jwt"},
	} {
		errs := FieldErrors(func() error { _, err := CompileTarget(authz(tt.rule), HTTP, Resolver{}); return err }())
		if len(errs) != 1 || errs[0].Field != "policies.mcpAuthorization.rules[0].scope" || !strings.Contains(errs[0].Reason, tt.want) {
			t.Errorf("%s: %v, want one with %q", name, errs, tt.want)
		}
	}
}

func TestScopeChallenge(t *testing.T) {
	for _, tt := range []struct {
		who      *Principal
		metadata string
		status   int
		want     string
	}{
		{holding(""), "", http.StatusForbidden, `Bearer error="insufficient_scope", scope="a b"`},
		{holding(""), "https://h/.well-known/x", http.StatusForbidden, `Bearer error="insufficient_scope", scope="a b", resource_metadata="https://h/.well-known/x"`},
		{nil, "", http.StatusUnauthorized, `Bearer scope="a b"`},
		{&Principal{ID: "key:k"}, "", http.StatusUnauthorized, `Bearer scope="a b"`},
	} {
		status, challenge := ScopeChallenge(tt.who, []string{"a", "b"}, tt.metadata)
		if status != tt.status || challenge != tt.want {
			t.Errorf("%d %s, want %d %s", status, challenge, tt.status, tt.want)
		}
	}
}
