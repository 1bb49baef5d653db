package policy

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protojson"

	policyv1 "github.com/sluicegate/sluice/proto/gen/sluice/policy/v1"
	xdsv1 "github.com/sluicegate/sluice/proto/gen/sluice/xds/v1"
)

// parse reads policies in the proto's JSON form.
func parse(t testing.TB, text string) *xdsv1.EffectivePolicy {
	t.Helper()
	p := &policyv1.Policies{}
	if err := protojson.Unmarshal([]byte(text), p); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	return &xdsv1.EffectivePolicy{Policies: p}
}

var testResolver = Resolver{
	Secret: func(name string) ([]byte, error) {
		switch name {
		case "t/secret/a":
			return []byte("s3cret\n"), nil
		case "t/secret/split":
			return []byte("s3cret\r\nX-Evil: 1"), nil
		}
		return nil, fmt.Errorf("not found")
	},
	Env: func(name string) (string, error) { return "from-" + name, nil },
}

func outgoing(t *Target, h http.Header, u *url.URL, p *Principal) error {
	return t.Outgoing(context.Background(), &Outbound{Method: http.MethodPost, Header: h, URL: u, Call: &Call{Principal: p}})
}

func TestOutgoing(t *testing.T) {
	for _, tt := range []struct {
		name, policies string
		principal      *Principal
		want           http.Header // of a request that has X-Old: 1 and Cookie: a=1; k=2
		query          string
	}{
		{"nothing", `{}`, nil, http.Header{"X-Old": {"1"}, "Cookie": {"a=1; k=2"}}, "q=1"},
		{"add, set, remove in order", `{"requestHeaderModifier":{"add":{"x-old":{"value":"2"},"X-Gone":{"value":"1"},"X-Set":{"value":"0"}},"set":{"X-Set":{"value":"3"}},"remove":["x-gone","Cookie"]}}`, nil,
			http.Header{"X-Old": {"1", "2"}, "X-Set": {"3"}}, "q=1"},
		{"key", `{"backendAuth":{"key":{"credentials":[{"credential":{"secret":"t/secret/a"}}]}}}`, nil,
			http.Header{"X-Old": {"1"}, "Cookie": {"a=1; k=2"}, "Authorization": {"Bearer s3cret"}}, "q=1"},
		{"a modifier does not replace the credential", `{"requestHeaderModifier":{"set":{"Authorization":{"value":"x"}},"remove":["authorization"]},"backendAuth":{"key":{"credentials":[{"credential":{"env":"K"}}]}}}`, nil,
			http.Header{"X-Old": {"1"}, "Cookie": {"a=1; k=2"}, "Authorization": {"Bearer from-K"}}, "q=1"},
		{"all places", `{"backendAuth":{"key":{"credentials":[
			{"credential":{"value":"h"},"location":{"header":{"name":"x-key","prefix":"Key "}}},
			{"credential":{"value":"a b"},"location":{"queryParameter":{"name":"k"}}},
			{"credential":{"value":"c"},"location":{"cookie":{"name":"k"}}}]}}}`, nil,
			http.Header{"X-Old": {"1"}, "X-Key": {"Key h"}, "Cookie": {"a=1; k=c"}}, "k=a+b&q=1"},
		{"passthrough", `{"backendAuth":{"passthrough":{}}}`, &Principal{Token: NewSecret("tok")},
			http.Header{"X-Old": {"1"}, "Cookie": {"a=1; k=2"}, "Authorization": {"Bearer tok"}}, "q=1"},
		{"passthrough elsewhere", `{"backendAuth":{"passthrough":{"location":{"header":{"name":"X-Token"}}}}}`, &Principal{Token: NewSecret("tok")},
			http.Header{"X-Old": {"1"}, "Cookie": {"a=1; k=2"}, "X-Token": {"tok"}}, "q=1"},
		{"passthrough of an API key's owner", `{"backendAuth":{"passthrough":{}}}`, &Principal{ID: "key:x"}, http.Header{"X-Old": {"1"}, "Cookie": {"a=1; k=2"}}, "q=1"},
		{"passthrough of a token that nobody verified", `{"backendAuth":{"passthrough":{}}}`, &Principal{Token: NewSecret("tok"), Unverified: true},
			http.Header{"X-Old": {"1"}, "Cookie": {"a=1; k=2"}}, "q=1"},
		{"unverified passthrough", `{"backendAuth":{"passthrough":{"unverified":true}}}`, &Principal{Token: NewSecret("tok"), Unverified: true},
			http.Header{"X-Old": {"1"}, "Cookie": {"a=1; k=2"}, "Authorization": {"Bearer tok"}}, "q=1"},
		{"unverified passthrough of a verified token", `{"backendAuth":{"passthrough":{"unverified":true}}}`, &Principal{Token: NewSecret("tok")},
			http.Header{"X-Old": {"1"}, "Cookie": {"a=1; k=2"}}, "q=1"},
		{"passthrough of nobody", `{"backendAuth":{"passthrough":{}}}`, nil, http.Header{"X-Old": {"1"}, "Cookie": {"a=1; k=2"}}, "q=1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			target, err := CompileTarget(parse(t, tt.policies), HTTP, testResolver)
			if err != nil {
				t.Fatal(err)
			}
			h := http.Header{"X-Old": {"1"}, "Cookie": {"a=1; k=2"}}
			u := &url.URL{Path: "/mcp", RawQuery: "q=1"}
			if err := outgoing(target, h, u, tt.principal); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, h); diff != "" {
				t.Errorf("headers (-want +got):\n%s", diff)
			}
			if u.RawQuery != tt.query {
				t.Errorf("query %q, want %q", u.RawQuery, tt.query)
			}
			if p := target.Passthrough(); p != strings.Contains(tt.policies, "passthrough") {
				t.Errorf("Passthrough() = %v", p)
			}
		})
	}
}

func TestOutgoingFailsClosed(t *testing.T) {
	unknown, err := CompileTarget(parse(t, `{"backendAuth":{"key":{"credentials":[{"credential":{"file":"/f"}}]}}}`), HTTP, testResolver)
	if err != nil {
		t.Fatal(err)
	}
	h := http.Header{}
	if err := outgoing(unknown, h, nil, nil); err == nil || len(h) > 0 {
		t.Errorf("unknown credential: %v, %v", err, h)
	}
	query, err := CompileTarget(parse(t, `{"backendAuth":{"key":{"credentials":[{"credential":{"value":"v"},"location":{"queryParameter":{"name":"k"}}}]}}}`), HTTP, testResolver)
	if err != nil {
		t.Fatal(err)
	}
	if err := outgoing(query, h, nil, nil); err == nil {
		t.Error("a credential for the URL was dropped")
	}
	var none *Target
	if err := outgoing(none, h, nil, nil); err != nil || len(h) > 0 {
		t.Errorf("no policy: %v %v", err, h)
	}
}

func TestResponse(t *testing.T) {
	for _, transport := range []Transport{HTTP, SSE, Stdio} {
		target, err := CompileTarget(parse(t, `{"responseHeaderModifier":{"add":{"X-A":{"value":"2"}},"set":{"Cache-Control":{"value":"no-store"}},"remove":["Server"]},"requestHeaderModifier":{"set":{"X":{"value":"1"}}}}`), transport, Resolver{})
		if err != nil {
			t.Fatal(err)
		}
		h := http.Header{"X-A": {"1"}, "Server": {"u"}}
		if err := target.Response(h, nil); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(http.Header{"X-A": {"1", "2"}, "Cache-Control": {"no-store"}}, h); diff != "" {
			t.Errorf("%v (-want +got):\n%s", transport, diff)
		}
		out := http.Header{}
		if err := outgoing(target, out, nil, nil); err != nil {
			t.Fatal(err)
		}
		if sent := out.Get("X") != ""; sent == (transport == Stdio) {
			t.Errorf("%v: requestHeaderModifier applied %v", transport, sent)
		}
	}
}

func TestRefusedAtCompile(t *testing.T) {
	const key = `"key":{"credentials":[{"credential":{"value":"v"}}]}`
	for _, tt := range []struct {
		policies  string
		transport Transport
		field     string
		reason    string
	}{
		{`{"requestHeaderModifier":{"set":{"Content-Length":{"value":"1"}}}}`, HTTP, "policies.requestHeaderModifier.set.Content-Length", "framing"},
		{`{"requestHeaderModifier":{"add":{"transfer-encoding":{"value":"x"}}}}`, HTTP, "policies.requestHeaderModifier.add.transfer-encoding", "framing"},
		{`{"requestHeaderModifier":{"set":{"Host":{"value":"x"}}}}`, HTTP, "policies.requestHeaderModifier.set.Host", "address"},
		{`{"requestHeaderModifier":{"remove":["connection"]}}`, HTTP, "policies.requestHeaderModifier.remove", "connection"},
		{`{"requestHeaderModifier":{"set":{"mcp-session-id":{"value":"x"}}}}`, HTTP, "policies.requestHeaderModifier.set.mcp-session-id", "protocol"},
		{`{"responseHeaderModifier":{"set":{"MCP-Protocol-Version":{"value":"x"}}}}`, HTTP, "policies.responseHeaderModifier.set.MCP-Protocol-Version", "protocol"},
		{`{"responseHeaderModifier":{"set":{"X-A":{"value":"a\r\nX-B: 1"}}}}`, HTTP, "policies.responseHeaderModifier.set.X-A", "line break"},
		{`{"responseHeaderModifier":{"set":{"X A":{"value":"a"}}}}`, HTTP, "policies.responseHeaderModifier.set.X A", "no header name"},
		{`{"responseHeaderModifier":{"set":{"X-A":{"value":"1"},"x-a":{"value":"2"}}}}`, HTTP, "policies.responseHeaderModifier.set.x-a", "same header"},

		{`{"backendAuth":{}}`, HTTP, "policies.backendAuth", "no method"},
		{`{"backendAuth":{"key":{}}}`, HTTP, "policies.backendAuth.key", "no credential"},
		{`{"backendAuth":{"key":{"credentials":[{}]}}}`, HTTP, "policies.backendAuth.key", "no source"},
		{`{"backendAuth":{"key":{"credentials":[{"credential":{"secret":"t/secret/b"}}]}}}`, HTTP, "policies.backendAuth.key", `secret "t/secret/b": not found`},
		{`{"backendAuth":{"key":{"credentials":[{"credential":{"secret":"t/secret/split"}}]}}}`, HTTP, "policies.backendAuth.key", "cannot carry"},
		{`{"backendAuth":{"key":{"credentials":[{"credential":{"value":""}}]}}}`, HTTP, "policies.backendAuth.key", "is empty"},
		{`{"backendAuth":{"key":{"credentials":[{"credential":{"value":"a;b"},"location":{"cookie":{"name":"k"}}}]}}}`, HTTP, "policies.backendAuth.key", "cannot carry"},
		{`{"backendAuth":{"key":{"credentials":[{"credential":{"value":"a"},"location":{"header":{"name":"Mcp-Name"}}}]}}}`, HTTP, "policies.backendAuth.key.location.header.name", "protocol"},
		{`{"backendAuth":{"key":{"credentials":[{"credential":{"value":"a"}},{"credential":{"value":"b"},"location":{"header":{"name":"authorization"}}}]}}}`, HTTP, "policies.backendAuth.key.credentials[1].location", "another credential"},
		{`{"backendAuth":{` + key + `}}`, Stdio, "policies.backendAuth.env", "is needed on a stdio target"},
		{`{"backendAuth":{` + key + `,"env":"TOKEN"}}`, HTTP, "policies.backendAuth.env", "stdio child"},
		{`{"backendAuth":{` + key + `,"env":"A=B"}}`, Stdio, "policies.backendAuth.env", "no environment variable"},
		{`{"backendAuth":{` + key + `,"env":"SLUICE_TOKEN"}}`, Stdio, "policies.backendAuth.env", "SLUICE_*"},
		{`{"backendAuth":{"passthrough":{},"env":"T"}}`, Stdio, "policies.backendAuth.passthrough", "stdio child"},
		{`{"backendAuth":{"passthrough":{"resource":"https://h/mcp"}}}`, HTTP, "policies.backendAuth.passthrough.resource", "without unverified"},
		{`{"backendAuth":{"passthrough":{"unverified":true,"resource":"h/mcp"}}}`, HTTP, "policies.backendAuth.passthrough.resource", "no http or https URL"},
		{`{"backendAuth":{"passthrough":{"unverified":true}}}`, Stdio, "policies.backendAuth.passthrough", "stdio child"},
		{`{"backendAuth":{"passthrough":{"unverified":true}}}`, SSE, "policies.backendAuth.passthrough.unverified", "streamable HTTP"},
		{`{"backendAuth":{"passthrough":{"unverified":true}}}`, A2A, "policies.backendAuth.passthrough.unverified", "streamable HTTP"},
		{`{"backendAuth":{"passthrough":{}}}`, Stdio, "policies.backendAuth.passthrough", "stdio child"},
		{`{"backendAuth":{"key":{"credentials":[{"credential":{"value":"a"},"location":{"cookie":{"name":"k"}}}]},"env":"T"}}`, Stdio, "policies.backendAuth.key.location", "HTTP request"},
	} {
		_, err := CompileTarget(parse(t, tt.policies), tt.transport, testResolver)
		found := FieldErrors(err)
		if len(found) != 1 || found[0].Field != tt.field || !strings.Contains(found[0].Reason, tt.reason) {
			t.Errorf("%s on %v: %v, want %s: …%s…", tt.policies, tt.transport, err, tt.field, tt.reason)
		}
		if err != nil && strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%s: the error shows the secret: %v", tt.policies, err)
		}
	}
}

func TestAllErrorsAtOnce(t *testing.T) {
	_, err := CompileTarget(parse(t, `{"requestHeaderModifier":{"set":{"Host":{"value":"x"},"Te":{"value":"y"}}},"mcpAuthorization":{"rules":[{"allow":"("},{"deny":"x"}]}}`), HTTP, Resolver{})
	var fields []string
	for _, e := range FieldErrors(err) {
		if len(fields) == 0 || fields[len(fields)-1] != e.Field {
			fields = append(fields, e.Field)
		}
	}
	want := []string{"policies.mcpAuthorization.rules[0]", "policies.mcpAuthorization.rules[1]", "policies.requestHeaderModifier.set.Host", "policies.requestHeaderModifier.set.Te"}
	if diff := cmp.Diff(want, fields); diff != "" {
		t.Errorf("fields (-want +got):\n%s\n%v", diff, err)
	}
}

func TestChildEnv(t *testing.T) {
	p := parse(t, `{"backendAuth":{"key":{"credentials":[{"credential":{"secret":"t/secret/a"}}]},"env":"API_KEY"},"backendTLS":{"insecure":true}}`)
	target, err := CompileTarget(p, Stdio, testResolver)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"API_KEY=s3cret"}, target.ChildEnv()); diff != "" {
		t.Errorf("ChildEnv (-want +got):\n%s", diff)
	}
	h := http.Header{}
	if err := outgoing(target, h, nil, nil); err != nil || len(h) > 0 {
		t.Errorf("on stdio Outgoing wrote %v, %v", h, err)
	}
	if target.TLS() != nil {
		t.Error("TLS on stdio")
	}
}

func TestDigest(t *testing.T) {
	seen := map[string]string{}
	for _, text := range []string{`{}`, `{"mcpAuthorization":{"rules":[{"allow":"true"}]}}`, `{"mcpAuthorization":{"rules":[{"deny":"true"}]}}`, `{"requestHeaderModifier":{"set":{"A":{"value":"1"}}}}`} {
		a, b := mustTarget(t, parse(t, text)), mustTarget(t, parse(t, text))
		if a.Digest() != b.Digest() {
			t.Errorf("%s: two digests", text)
		}
		if other, twice := seen[a.Digest()]; twice {
			t.Errorf("%s and %s share a digest", text, other)
		}
		seen[a.Digest()] = text
	}
	enforced := &xdsv1.EffectivePolicy{EnforcedAuthorization: []*xdsv1.EnforcedAuthorization{{Level: "platform", Authorization: &policyv1.McpAuthorization{Rules: []*policyv1.AuthorizationRule{allow("true")}}}}}
	if _, twice := seen[mustTarget(t, enforced).Digest()]; twice {
		t.Error("enforced authorization does not change the digest")
	}
}

func TestSecretShowsNowhere(t *testing.T) {
	s := NewSecret("hunter2")
	p := &Principal{ID: "x", Token: s}
	var log strings.Builder
	logger := slog.New(slog.NewJSONHandler(&log, nil))
	logger.Info("m", "secret", s, "principal", p)
	slog.New(slog.NewTextHandler(&log, nil)).Info("m", "secret", s, "principal", p, "ptr", &s)
	asJSON, err := json.Marshal(map[string]any{"s": s, "p": s})
	if err != nil {
		t.Fatal(err)
	}
	log.Write(asJSON)
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d", "%T"} {
		fmt.Fprintf(&log, verb+" "+verb+" "+verb, s, &s, p)
	}
	if strings.Contains(log.String(), "hunter2") || strings.Contains(log.String(), fmt.Sprintf("%x", "hunter2")) {
		t.Errorf("shown: %s", log.String())
	}
	if s.Reveal() != "hunter2" {
		t.Error("not revealed")
	}
}
