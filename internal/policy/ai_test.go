package policy

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sluicegate/sluice/internal/guard"
)

func TestAiRefused(t *testing.T) {
	webhook := func(more string) string {
		return `{"ai":{"promptGuard":{"request":[{"webhook":{` + more + `}}]}}}`
	}
	moderation := func(more string) string {
		return `{"ai":{"promptGuard":{"response":[{"regex":{"rules":[{"builtin":"ssn"}]}},{"openAIModeration":{` + more + `}}]}}}`
	}
	for _, tt := range []struct{ policies, field, reason string }{
		{`{"ai":{"promptGuard":{"request":[{}]}}}`, "policies.ai.promptGuard.request[0]", "none of regex"},
		{`{"ai":{"promptGuard":{"request":[{"regex":{}}]}}}`, "policies.ai.promptGuard.request[0].regex.rules", "empty"},
		{`{"ai":{"promptGuard":{"request":[{"regex":{"rules":[{}]}}]}}}`, "policies.ai.promptGuard.request[0].regex.rules[0]", "neither"},
		{`{"ai":{"promptGuard":{"request":[{"regex":{"action":"drop","rules":[{"builtin":"ssn"}]}}]}}}`, "policies.ai.promptGuard.request[0].regex.action", "neither reject nor mask"},
		{`{"ai":{"promptGuard":{"request":[{"regex":{"rules":[{"builtin":"ssn"},{"pattern":"(?=x)"}]}}]}}}`, "policies.ai.promptGuard.request[0].regex.rules[1].pattern", "no RE2"},
		{`{"ai":{"promptGuard":{"request":[{"regex":{"rules":[{"pattern":"x{2000}"}]}}]}}}`, "policies.ai.promptGuard.request[0].regex.rules[0].pattern", "beyond what RE2 takes"},
		{`{"ai":{"promptGuard":{"request":[{"regex":{"rules":[{"pattern":"x*"}]}}]}}}`, "policies.ai.promptGuard.request[0].regex.rules[0].pattern", "empty string"},
		{`{"ai":{"promptGuard":{"request":[{"regex":{"rules":[{"builtin":"passport"}]}}]}}}`, "policies.ai.promptGuard.request[0].regex.rules[0].builtin", "`caSin`, `creditCard`"},
		{`{"ai":{"promptGuard":{"request":[{"rejection":{},"regex":{"rules":[{"builtin":"ssn"}]}}]}}}`, "policies.ai.promptGuard.request[0].rejection.message", "empty"},
		{webhook(``), "policies.ai.promptGuard.request[0].webhook.url", "missing"},
		{webhook(`"url":"ftp://x"`), "policies.ai.promptGuard.request[0].webhook.url", "no http or https"},
		{webhook(`"url":"https://u:p@x"`), "policies.ai.promptGuard.request[0].webhook.url", "credential"},
		{webhook(`"url":"https://x","timeout":"0s"`), "policies.ai.promptGuard.request[0].webhook.timeout", "5m"},
		{webhook(`"url":"http://x","tls":{}`), "policies.ai.promptGuard.request[0].webhook.tls", "https://"},
		{webhook(`"url":"https://x","tls":{"minVersion":"1.1"}`), "policies.ai.promptGuard.request[0].webhook.tls.minVersion", "no TLS version"},
		{webhook(`"url":"https://x","headers":{"Host":{"value":"y"}}`), "policies.ai.promptGuard.request[0].webhook.headers.Host", "address"},
		{webhook(`"url":"https://x","headers":{"X-A":{"expression":"jwt."}}`), "policies.ai.promptGuard.request[0].webhook.headers.X-A.expression", ""},
		{webhook(`"url":"https://x","headers":{"authorization":{"value":"y"}},"credential":{"value":"k"}`), "policies.ai.promptGuard.request[0].webhook.headers.Authorization", "keep one"},
		{webhook(`"url":"https://x","credential":{"secret":"t/secret/nope"}`), "policies.ai.promptGuard.request[0].webhook.credential", "not found"},
		{moderation(``), "policies.ai.promptGuard.response[1].openAIModeration.credential", "without a key"},
		{moderation(`"url":"http://x","categories":[""]`), "policies.ai.promptGuard.response[1].openAIModeration.categories[0]", "empty"},
		{moderation(`"url":"x"`), "policies.ai.promptGuard.response[1].openAIModeration.url", "no http or https"},
		{`{"ai":{"modelAliases":{"a*b*":"c"}}}`, "policies.ai.modelAliases.a*b*", "more than one"},
		{`{"ai":{"modelAliases":{"a":"c*"}}}`, "policies.ai.modelAliases.a", "holds a *"},
		{`{"ai":{"modelAliases":{"a":""}}}`, "policies.ai.modelAliases.a", "empty"},
	} {
		for _, r := range []Resolver{testResolver, {Runtime: NewRuntime(), Secret: testResolver.Secret}} {
			_, err := CompileTarget(parse(t, tt.policies), HTTP, r)
			found := FieldErrors(err)
			if len(found) != 1 || found[0].Field != tt.field || !strings.Contains(found[0].Reason, tt.reason) {
				t.Errorf("%s: %v, want %s: …%s…", tt.policies, err, tt.field, tt.reason)
			}
		}
	}
	for _, good := range []string{`{"ai":{}}`, `{"ai":{"promptGuard":{}}}`, webhook(`"url":"http://h:1/p?q=1"`), moderation(`"credential":{"value":"k"}`)} {
		if _, err := CompileTarget(parse(t, good), Stdio, testResolver); err != nil {
			t.Errorf("%s: %v", good, err)
		}
	}
}

func TestAiNeeds(t *testing.T) {
	p := parse(t, `{"ai":{"promptGuard":{"request":[{"webhook":{"url":"http://10.0.0.1/x"}}],"response":[{"regex":{}},{"openAIModeration":{"url":"http://localhost:1"}},{"openAIModeration":{}}]}}}`)
	if diff := cmp.Diff(map[string]string{
		"promptGuard.request[0].webhook.url": "http://10.0.0.1/x", "promptGuard.response[1].openAIModeration.url": "http://localhost:1",
	}, AiNeeds(p.GetPolicies().GetAi())); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func compiledAi(t *testing.T, ai string) *Target {
	t.Helper()
	target, err := CompileTarget(parse(t, `{"ai":`+ai+`}`), HTTP, Resolver{})
	if err != nil {
		t.Fatal(err)
	}
	return target
}

func TestFillArguments(t *testing.T) {
	target := compiledAi(t, `{"defaults":{"region":"eu","limit":10,"big":1e300,"both":1},"overrides":{"tenant":"acme","opts":{"a":[1,null,true,"<>"]},"both":2},
		"modelAliases":{"gpt-4*":"large","gpt-4-mini":"small","*":"any","claude-*-fast":"quick"}}`)
	all := func(string) bool { return true }
	only := func(names ...string) func(string) bool {
		return func(n string) bool {
			for _, x := range names {
				if x == n {
					return true
				}
			}
			return false
		}
	}
	for _, tt := range []struct {
		in       string
		declared func(string) bool
		want     string // "": an error
	}{
		{`{}`, only("region"), `{"region":"eu"}`},
		{``, only("region"), `{"region":"eu"}`},
		{`null`, only("region"), `{"region":"eu"}`},
		{``, only(), ``},
		{`[1]`, all, `[1]`},
		{` { "region" : "us" , "n":1e400 } `, only("region", "limit"), ` {"limit":10, "region" : "us" , "n":1e400 } `},
		{`{"tenant":"evil","x":9007199254740993}`, only("tenant"), `{"tenant":"acme","x":9007199254740993}`},
		{`{"tenant":"evil","tenan\u0074":"evil2"}`, only("tenant"), `{"tenant":"acme","tenan\u0074":"acme"}`},
		{`{"x":1}`, all, `{"both":2,"opts":{"a":[1,null,true,"<>"]},"tenant":"acme","big":1e+300,"limit":10,"region":"eu","x":1}`},
		{`{"Tenant":"evil"}`, only("tenant"), "!"},
		{`{"Tenant":"evil"}`, only("limit"), `{"limit":10,"Tenant":"evil"}`},
		{`{"model":"gpt-4-mini"}`, only(), `{"model":"small"}`},
		{`{"model":"gpt-4o"}`, only(), `{"model":"large"}`},
		{`{"model":"claude-3-fast"}`, only(), `{"model":"quick"}`},
		{`{"model":"other","m":{"model":"x"}}`, only(), `{"model":"any","m":{"model":"x"}}`},
		{`{"model":["gpt-4"],"x":{"y":1}}`, only(), `{"model":["gpt-4"],"x":{"y":1}}`},
		{`{"model":7}`, only(), `{"model":7}`},
		{`{"mod\u0065l":"gp\u0074-4o"}`, only(), `{"mod\u0065l":"large"}`},
	} {
		got, err := target.FillArguments([]byte(tt.in), tt.declared)
		if tt.want == "!" {
			if err == nil {
				t.Errorf("%s: %s, want an error", tt.in, got)
			}
			continue
		}
		if err != nil || string(got) != tt.want {
			t.Errorf("%s: %s, %v\nwant %s", tt.in, got, err, tt.want)
		}
	}
	if diff := cmp.Diff([]string{"both", "opts", "tenant", "big", "limit", "region"}, target.Filled()); diff != "" {
		t.Errorf("filled (-want +got):\n%s", diff)
	}
	if target := compiledAi(t, `{}`); target.Fills() || target.Guards(ToTarget) || target.Guards(ToClient) {
		t.Error("an empty policy does something")
	}
}

func TestFillSampling(t *testing.T) {
	target := compiledAi(t, `{"defaults":{"temperature":0.5,"region":"eu"},"overrides":{"maxTokens":100},"modelAliases":{"claude*":"house-model"}}`)
	for _, tt := range []struct{ in, want string }{
		{`{"id":1,"method":"sampling/createMessage","params":{"messages":[],"maxTokens":1000000,"modelPreferences":{"hints":[{"name":"claude-x"},{"name":"gpt"}]}}}`,
			`{"id":1,"method":"sampling/createMessage","params":{"temperature":0.5,"messages":[],"maxTokens":100,"modelPreferences":{"hints":[{"name":"house-model"},{"name":"gpt"}]}}}`},
		{`{"id":1,"method":"elicitation/create","params":{"message":"createMessage"}}`, `{"id":1,"method":"elicitation/create","params":{"message":"createMessage"}}`},
		{`{"id":2,"result":{"resultType":"input_required","inputRequests":{"a":{"method":"sampling/createMessage","params":{"maxTokens":7}},"b":{"method":"roots/list"}},"requestState":"s"}}`,
			`{"id":2,"result":{"resultType":"input_required","inputRequests":{"a":{"method":"sampling/createMessage","params":{"temperature":0.5,"maxTokens":100}},"b":{"method":"roots/list"}},"requestState":"s"}}`},
		{`{"id":2,"result":{"content":[{"type":"text","text":"createMessage"}]}}`, `{"id":2,"result":{"content":[{"type":"text","text":"createMessage"}]}}`},
		{`{"id":1,"method":"sampling\u002fcreateMessage","params":{}}`, `{"id":1,"method":"sampling\u002fcreateMessage","params":{"maxTokens":100,"temperature":0.5}}`},
	} {
		got, err := target.FillSampling([]byte(tt.in))
		if err != nil || string(got) != tt.want {
			t.Errorf("%s:\n%s, %v\nwant\n%s", tt.in, got, err, tt.want)
		}
	}
}

// A default cannot carry past a guard what the guard would refuse.
func TestGuardSeesWhatIsFilledIn(t *testing.T) {
	target := compiledAi(t, `{"defaults":{"note":"my password"},"promptGuard":{"request":[{"regex":{"rules":[{"pattern":"password"}]}}]}}`)
	args, err := target.FillArguments(nil, func(string) bool { return true })
	if err != nil {
		t.Fatal(err)
	}
	message := append(append([]byte(`{"id":1,"method":"tools/call","params":{"name":"x","arguments":`), args...), `}}`...)
	_, _, err = target.Guard(t.Context(), &Call{}, ToTarget, message, guard.FromClient("tools/call"))
	g, ok := errors.AsType[*GuardError](err)
	if !ok || g.Rule != "policies.ai.promptGuard.request[0].regex.rules[0]" || g.Message != "refused by policies.ai.promptGuard.request[0]" {
		t.Errorf("got %v", err)
	}
}

func TestRejectionMessage(t *testing.T) {
	target := compiledAi(t, `{"promptGuard":{"request":[{"regex":{"rules":[{"pattern":"a"}]}},{"rejection":{"message":"No cards, please."},"regex":{"rules":[{"builtin":"ssn"},{"builtin":"creditCard"}]}}]}}`)
	message := []byte(`{"method":"tools/call","params":{"arguments":{"n":"4111111111111111"}}}`)
	_, _, err := target.Guard(t.Context(), &Call{}, ToTarget, message, guard.FromClient("tools/call"))
	g, ok := errors.AsType[*GuardError](err)
	if !ok || g.Message != "No cards, please." || g.Place != "policies.ai.promptGuard.request[1]" || g.Rule != g.Place+".regex.rules[1]" || g.Undecided {
		t.Errorf("got %#v", err)
	}
	if strings.Contains(err.Error(), "4111") {
		t.Errorf("the error tells what was found: %v", err)
	}
}
