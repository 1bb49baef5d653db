package policy

import "testing"

func TestWhatRequestsDependOn(t *testing.T) {
	for text, want := range map[string]struct{ caller, request bool }{
		`{}`: {},
		`{"requestHeaderModifier":{"set":{"x":{"value":"jwt.sub"}}}}`:                        {},
		`{"requestHeaderModifier":{"set":{"x":{"expression":"tenant"}}}}`:                    {},
		`{"requestHeaderModifier":{"set":{"x":{"expression":"jwt.sub"}}}}`:                   {true, false},
		`{"requestHeaderModifier":{"add":{"x":{"expression":"scopes[0]"}}}}`:                 {true, false},
		`{"requestHeaderModifier":{"set":{"x":{"expression":"source.address"}}}}`:            {true, true},
		`{"requestHeaderModifier":{"set":{"x":{"expression":"request.headers['x']"}}}}`:      {true, true},
		`{"requestHeaderModifier":{"set":{"x":{"expression":"string(request.startTime)"}}}}`: {true, true},
		`{"requestHeaderModifier":{"set":{"x":{"expression":"mcp.method"}}}}`:                {true, true},
		`{"responseHeaderModifier":{"set":{"x":{"expression":"jwt.sub"}}}}`:                  {},
		`{"backendAuth":{"passthrough":{}}}`:                                                 {true, false},
		`{"backendAuth":{"key":{"credentials":[{"credential":{"value":"v"}}]}}}`:             {},
		`{"mcpAuthorization":{"rules":[{"allow":"has(jwt.sub)"}]}}`:                          {},
	} {
		target := mustTarget(t, parse(t, text))
		if target.PerCaller() != want.caller || target.PerRequest() != want.request {
			t.Errorf("%s: caller %v, request %v", text, target.PerCaller(), target.PerRequest())
		}
	}
	one := mustTarget(t, parse(t, `{"requestHeaderModifier":{"set":{"x":{"expression":"jwt.sub"},"y":{"value":"1"}}}}`))
	ada, bob := toolCall("echo", ""), toolCall("echo", "")
	ada.Principal, bob.Principal = admin, guest
	if one.Varying(ada) == one.Varying(bob) {
		t.Errorf("%q, %q", one.Varying(ada), one.Varying(bob))
	}
	if none := (*Target)(nil); none.PerCaller() || none.PerRequest() || none.ReadsTime() || none.Varying(ada) != "" {
		t.Error("the absence of a policy depends on something")
	}
}
