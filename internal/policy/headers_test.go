package policy

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const tenSet = `{"requestHeaderModifier":{"set":{%s}}}`

// caller calls echo, with a secret in each place that an expression can read.
func caller(method string, kind ItemKind, arguments string) *Call {
	r, _ := http.NewRequest(http.MethodPost, "http://gateway.test/mcp", nil)
	r.Header.Set("X-Text", "s3cret")
	r.RemoteAddr = "192.0.2.7:4242"
	return &Call{
		Principal: &Principal{Claims: map[string]any{"sub": "ada", "team": "s3cret", "n": int64(7), "broken": "a\r\nX-Evil: 1"}},
		Tenant:    "acme", Method: method, Target: "search", HTTP: r, Kind: kind, Name: "echo", Arguments: []byte(arguments),
	}
}

func TestHeaderValues(t *testing.T) {
	toolCall := caller("tools/call", Tool, `{"path":"s3cret","n":1}`)
	for _, tt := range []struct {
		expression string
		call       *Call
		want       string // else
		err        string // what the client reads
	}{
		{`jwt.sub`, toolCall, "ada", ""},
		{`tenant + "/" + mcp.tool.target + "/" + mcp.tool.name`, toolCall, "acme/search/echo", ""},
		{`mcp.tool.arguments.path`, toolCall, "s3cret", ""},
		{`source.address`, toolCall, "192.0.2.7", ""},
		{`request.headers["x-text"]`, toolCall, "s3cret", ""},
		{`mcp.method`, toolCall, "tools/call", ""},
		{`mcp.method`, &Call{}, "", ""},
		{`has(mcp.tool) ? mcp.tool.name : "-"`, caller("initialize", None, ""), "-", ""},
		{`has(jwt.sub) ? string(jwt.sub) : "anonymous"`, &Call{}, "anonymous", ""},
		{`mcp.tool.name`, caller("initialize", None, ""), "", "reads mcp.tool, and the call is about something else; ask has(mcp.tool) first"},
		{`jwt.email`, toolCall, "", "reads a key that is not there"},
		{`jwt.sub`, &Call{}, "", "reads a key that is not there"},
		{`jwt[request.headers["x-text"]]`, toolCall, "", "reads a key that is not there"},
		{`string(int(request.headers["x-text"]))`, toolCall, "", "converts a value that has no such form"},
		{`string(1 / (int(jwt.n) - 7))`, toolCall, "", "divides by zero"},
		{`jwt.team + mcp.tool.arguments.n`, toolCall, "", "applies a function to a value of another type"},
		{`jwt.n`, toolCall, "", "gives a int, not a string"},
		{`request.path`, &Call{}, "", "reads request"},
		{`jwt.broken`, toolCall, "", "line break"},
		{`jwt.team + "\n"`, toolCall, "", "line break"},
		{`" " + jwt.team`, toolCall, "", "blank at an end"},
		{`mcp.tool.arguments.path`, caller("tools/call", Tool, `{"path":"a","path":"b"}`), "", "arguments"},
		{`mcp.tool.arguments.path`, caller("tools/call", Tool, `{"path":"a","Path":"b"}`), "", "arguments"},
		{`mcp.tool.arguments.path`, caller("tools/call", Tool, `{"path":"a"`), "", "arguments"},
	} {
		target, err := CompileTarget(parse(t, fmt.Sprintf(`{"requestHeaderModifier":{"set":{"X-A":{"value":"1"},"X-V":{"expression":%q}}}}`, tt.expression)), HTTP, Resolver{})
		if err != nil {
			t.Fatalf("%s: %v", tt.expression, err)
		}
		h := http.Header{"X-V": {"old"}}
		err = target.Outgoing(context.Background(), &Outbound{Method: http.MethodPost, Header: h, Call: tt.call})
		if tt.err == "" {
			if err != nil || h.Get("X-V") != tt.want {
				t.Errorf("%s: %q, %v; want %q", tt.expression, h.Get("X-V"), err, tt.want)
			}
			continue
		}
		value, ok := errors.AsType[*ValueError](err)
		if !ok || !strings.Contains(err.Error(), tt.err) {
			t.Errorf("%s: %v, want %q", tt.expression, err, tt.err)
			continue
		}
		if invalid := tt.err == "arguments"; (value.Invalid != nil) != invalid || !invalid && value.Field != "requestHeaderModifier.set.X-V" {
			t.Errorf("%s: %+v", tt.expression, value)
		}
		if strings.Contains(err.Error(), "s3cret") || strings.Contains(err.Error(), "Evil") {
			t.Errorf("%s: the error shows what was read: %v", tt.expression, err)
		}
		if diff := cmp.Diff(http.Header{"X-V": {"old"}}, h); diff != "" {
			t.Errorf("%s: half applied:\n%s", tt.expression, diff)
		}
	}
}

// Headers that come from elsewhere are shared with other requests: adding must not write into them.
func TestAddLeavesSharedValuesAlone(t *testing.T) {
	target := mustTarget(t, parse(t, `{"requestHeaderModifier":{"add":{"X-A":{"value":"mine"}}}}`))
	shared := append(make([]string, 0, 4), "one")
	for range 2 {
		h := http.Header{"X-A": shared}
		if err := outgoing(target, h, nil, nil); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff([]string{"one", "mine"}, h["X-A"]); diff != "" {
			t.Error(diff)
		}
	}
	if extra := shared[:2][1]; extra != "" {
		t.Errorf("the shared array has %q", extra)
	}
}

func TestProtectedHeaders(t *testing.T) {
	for name, refused := range map[string][2]bool{ // of requests, of responses
		"X-Any": {false, false}, "Authorization": {false, false}, "Cookie": {false, false}, "Set-Cookie": {false, false}, "User-Agent": {false, false},
		"Cache-Control": {false, false}, "Retry-After": {false, false}, "X-Forwarded-For": {false, false}, "Traceparent": {false, false},
		"connection": {true, true}, "keep-alive": {true, true}, "te": {true, true}, "upgrade": {true, true}, "trailer": {true, true},
		"proxy-authorization": {true, true}, "transfer-encoding": {true, true}, "content-length": {true, true}, "content-encoding": {true, true}, "content-type": {true, true},
		"host": {true, true}, "accept": {true, true}, "accept-encoding": {true, true}, "last-event-id": {true, true}, "expect": {true, true},
		"mcp-session-id": {true, true}, "mcp-protocol-version": {true, true}, "mcp-method": {true, true}, "mcp-name": {true, true}, "mcp-param-x": {true, true}, "sluice-x": {true, true},
		"www-authenticate": {false, true}, "access-control-allow-origin": {false, true}, "vary": {false, true}, "x-accel-redirect": {false, true}, "x-sendfile": {false, true},
		"bad name": {true, true}, "a:b": {true, true}, "": {true, true},
	} {
		for i, kind := range []string{"requestHeaderModifier", "responseHeaderModifier"} {
			for _, block := range []string{fmt.Sprintf(`"set":{%q:{"value":"x"}}`, name), fmt.Sprintf(`"add":{%q:{"value":"x"}}`, name), fmt.Sprintf(`"remove":[%q]`, name)} {
				_, err := CompileTarget(parse(t, fmt.Sprintf(`{%q:{%s}}`, kind, block)), HTTP, Resolver{})
				if (err != nil) != refused[i] {
					t.Errorf("%s %s: %v", kind, block, err)
				}
				if n := len(FieldErrors(err)); n > 1 {
					t.Errorf("%s %s is told %d times: %v", kind, block, n, err)
				}
			}
		}
	}
}

func TestExpressionsRefusedAtCompile(t *testing.T) {
	for expression, reason := range map[string]string{
		`mcp.tool.annotations.readOnlyHint ? "r" : "w"`: "which only rules may",
		`response.code`:         "undeclared",
		`mcp.tool`:              "not string",
		`1 + 1`:                 "not string",
		`mcp.method ==`:         "",
		``:                      "empty",
		`mcp.prompt.arguments`:  "undefined field",
		`request.body`:          "undefined field",
		`jwt.sub.matches("(x")`: "",
	} {
		for _, kind := range []string{"requestHeaderModifier", "responseHeaderModifier"} {
			_, err := CompileTarget(parse(t, fmt.Sprintf(`{%q:{"set":{"X-V":{"expression":%q}}}}`, kind, expression)), HTTP, Resolver{})
			found := FieldErrors(err)
			if len(found) == 0 || found[0].Field != "policies."+kind+".set.X-V.expression" || !strings.Contains(found[0].Reason, reason) {
				t.Errorf("%s: %v, want %q", expression, err, reason)
			}
		}
	}
}

func TestRefusesOthers(t *testing.T) {
	for expression, want := range map[string]string{
		`mcp.tool.name`:           "initialize",
		`mcp.tool.name + jwt.sub`: "initialize",
		`mcp.method == "initialize" || mcp.method == "server/discover" ? "-" : mcp.tool.name`:                     "notifications",
		`mcp.method.startsWith("tools/") ? mcp.tool.name : "-"`:                                                   "tools/list",
		`mcp.method.startsWith("prompts/") ? mcp.prompt.name : mcp.method.contains("/call") ? mcp.tool.name : ""`: "",
		`has(mcp.tool) ? mcp.tool.name : "-"`:                                                                     "",
		`has(mcp.tool.arguments.path) ? mcp.tool.arguments.path : "-"`:                                            "initialize",
		`jwt.sub`:      "",
		`request.path`: "",
		`mcp.tool.na`:  "",
	} {
		if got := RefusesOthers(expression); got != want {
			t.Errorf("RefusesOthers(%s) = %q, want %q", expression, got, want)
		}
	}
}

func TestSameResponse(t *testing.T) {
	compile := func(policies string) *Target { return mustTarget(t, parse(t, policies)) }
	none, a := compile(`{}`), compile(`{"responseHeaderModifier":{"set":{"X-A":{"value":"1"},"X-B":{"value":"2"}}},"requestHeaderModifier":{"set":{"X":{"value":"1"}}}}`)
	again, b := compile(`{"responseHeaderModifier":{"set":{"X-B":{"value":"2"},"X-A":{"value":"1"}}}}`), compile(`{"responseHeaderModifier":{"set":{"X-A":{"value":"2"}}}}`)
	for _, tt := range []struct {
		a, b *Target
		want bool
	}{{none, nil, true}, {a, again, true}, {a, b, false}, {a, none, false}, {nil, b, false}} {
		if got := SameResponse(tt.a, tt.b); got != tt.want {
			t.Errorf("SameResponse(%+v, %+v) = %t", tt.a, tt.b, got)
		}
	}
}
