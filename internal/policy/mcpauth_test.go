package policy

import (
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/google/go-cmp/cmp"
)

// protected compiles mcpAuthentication of https://idp.test; rest are more fields of it, or kinds behind `}`.
func protected(t testing.TB, e *Endpoint, rest string) *Route {
	t.Helper()
	set := jwks(t, jose.JSONWebKey{Key: &keys().ec.PublicKey})
	rt, err := CompileRoute(parse(t, fmt.Sprintf(`{"mcpAuthentication":{"providers":[{"issuer":"https://idp.test","jwks":{"inline":%q}}]%s}}`, set, rest)), Resolver{Endpoint: e})
	if err != nil {
		t.Fatal(err)
	}
	return rt
}

func known(port uint16) *Endpoint { return &Endpoint{Port: port, HostKnown: true} }

func at(url, token string) *http.Request {
	r := httptest.NewRequest(http.MethodPost, url, nil)
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	return r
}

// Tokens are for this resource, whatever name the client used for it.
func TestTokensForTheResource(t *testing.T) {
	mcpPath := &Endpoint{Port: 3000, HostKnown: true, Path: func(string) string { return "/mcp" }}
	const configured = `,"resource":"https://mcp.example.com/mcp"`
	for _, tt := range []struct {
		name   string
		rt     *Route
		url    string
		aud    any
		status int // 0 is let in
	}{
		{"the URL", protected(t, known(3000), ""), "http://mcp.test:3000/mcp", "http://mcp.test:3000/mcp", 0},
		{"one of several", protected(t, known(3000), ""), "http://mcp.test:3000/mcp", []string{"x", "http://mcp.test:3000/mcp"}, 0},
		{"in another case, with a final slash", protected(t, known(3000), ""), "http://MCP.test:3000/mcp", "HTTP://mcp.TEST:3000/mcp/", 0},
		{"the standard port", protected(t, known(80), ""), "http://mcp.test/mcp", "http://mcp.test:80/mcp", 0},
		{"another path's case", protected(t, known(3000), ""), "http://mcp.test:3000/mcp", "http://mcp.test:3000/MCP", 401},
		{"another host", protected(t, known(3000), ""), "http://mcp.test:3000/mcp", "http://other.test:3000/mcp", 401},
		{"another port of the Host header", protected(t, known(3000), ""), "http://mcp.test:4000/mcp", "http://mcp.test:4000/mcp", 401},
		{"another scheme", protected(t, known(3000), ""), "http://mcp.test:3000/mcp", "https://mcp.test:3000/mcp", 401},
		{"the root alone", protected(t, known(3000), ""), "http://mcp.test:3000/mcp", "http://mcp.test:3000", 401},
		{"the route, below its path", protected(t, mcpPath, ""), "http://mcp.test:3000/mcp/deep", "http://mcp.test:3000/mcp", 0},
		{"no audience", protected(t, known(3000), ""), "http://mcp.test:3000/mcp", nil, 401},
		{"an audience that is no string", protected(t, known(3000), ""), "http://mcp.test:3000/mcp", 7, 401},
		{"a host that the client chooses", protected(t, &Endpoint{Port: 3000}, ""), "http://mcp.test:3000/mcp", "http://mcp.test:3000/mcp", 503},
		{"no endpoint", protected(t, nil, ""), "http://mcp.test:3000/mcp", "http://mcp.test:3000/mcp", 503},
		{"configured", protected(t, nil, configured), "http://any.test/x", "https://mcp.example.com/mcp", 0},
		{"configured, with the standard port", protected(t, nil, configured), "http://any.test/x", "https://MCP.example.com:443/mcp", 0},
		{"configured, and the URL", protected(t, known(80), configured), "http://any.test/x", "http://any.test/x", 401},
		{"configured, a query behind it", protected(t, known(80), configured), "http://any.test/x", "https://mcp.example.com/mcp?x", 401},
	} {
		token := sign(t, jose.ES256, keys().ec, "", claimsAt(time.Now(), mustJSON(map[string]any{"aud": tt.aud})))
		for range 2 { // the second time from the cache
			p, err := tt.rt.Authenticate(at(tt.url, token))
			refused, _ := errors.AsType[*AuthError](err)
			switch {
			case tt.status == 0 && (err != nil || p.Name != "ada"):
				t.Errorf("%s: %v, %v", tt.name, p, err)
			case tt.status != 0 && (refused == nil || refused.Status != tt.status):
				t.Errorf("%s: %v, %v", tt.name, p, err)
			}
		}
	}
}

// One token is not cached for a resource that it is not for.
func TestTokensOfTwoPaths(t *testing.T) {
	rt := protected(t, known(80), "")
	token := sign(t, jose.ES256, keys().ec, "", claimsAt(time.Now(), `{"aud":"http://mcp.test/a"}`))
	for path, ok := range map[string]bool{"/a": true, "/b": false} {
		for range 2 {
			if _, err := rt.Authenticate(at("http://mcp.test"+path, token)); (err == nil) != ok {
				t.Errorf("%s: %v", path, err)
			}
		}
	}
}

func TestChallenges(t *testing.T) {
	const resource = `,"resource":"https://mcp.example.com/mcp"`
	const place = `Bearer resource_metadata="https://mcp.example.com/.well-known/oauth-protected-resource/mcp"`
	token := func(changes ...string) string {
		return sign(t, jose.ES256, keys().ec, "", claimsAt(time.Now(), append([]string{`{"aud":"https://mcp.example.com/mcp"}`}, changes...)...))
	}
	scopes := protected(t, nil, resource+`,"scopes":["a","b"]`)
	for _, tt := range []struct {
		name   string
		rt     *Route
		r      *http.Request
		status int
		want   string
	}{
		{"nothing shown", protected(t, nil, resource), at("http://x/", ""), 401, place},
		{"nothing shown, scopes", scopes, at("http://x/", ""), 401, place + `, scope="a b"`},
		{"expired", scopes, at("http://x/", token(`{"exp":1}`)), 401, place + `, scope="a b", error="invalid_token", error_description="the token has expired"`},
		{"a scope is missing", scopes, at("http://x/", token(`{"scope":"a c"}`)), 403, place + `, scope="a b", error="insufficient_scope", error_description="the token lacks a scope"`},
		{"scopes as a list", scopes, at("http://x/", token(`{"scp":["a","b"]}`)), 0, ""},
		{"scopes in both", scopes, at("http://x/", token(`{"scp":["a"],"scope":"b x"}`)), 0, ""},
		{"without resource", protected(t, known(3000), ""), at("http://mcp.test:3000/mcp", ""), 401, `Bearer resource_metadata="http://mcp.test:3000/.well-known/oauth-protected-resource/mcp"`},
		{"the root", protected(t, known(3000), ""), at("http://mcp.test:3000/", ""), 401, `Bearer resource_metadata="http://mcp.test:3000/.well-known/oauth-protected-resource"`},
		{"a path that would break out", protected(t, known(3000), ""), at("http://mcp.test:3000/%22,x=%22", ""), 401, `Bearer resource_metadata="http://mcp.test:3000/.well-known/oauth-protected-resource/%22,x=%22"`},
	} {
		_, err := tt.rt.Authenticate(tt.r)
		refused, _ := errors.AsType[*AuthError](err)
		switch {
		case tt.status == 0:
			if err != nil {
				t.Errorf("%s: %v", tt.name, err)
			}
		case refused == nil:
			t.Errorf("%s: %v", tt.name, err)
		default:
			if diff := cmp.Diff([]any{tt.status, tt.want}, []any{refused.Status, refused.Challenge}); diff != "" {
				t.Errorf("%s (-want +got):\n%s", tt.name, diff)
			}
		}
	}
	optional := protected(t, nil, resource+`,"mode":"MODE_OPTIONAL"`)
	if p, err := optional.Authenticate(at("http://x/", "")); p != nil || err != nil {
		t.Errorf("optional: %v, %v", p, err)
	}
	if got := scopes.ResourceMetadata(at("http://x/", "")); got != "https://mcp.example.com/.well-known/oauth-protected-resource/mcp" {
		t.Error(got)
	}
	if got := (*Route)(nil).ResourceMetadata(at("http://x/", "")); got != "" {
		t.Error(got)
	}
	secure := at("http://mcp.test:3000/mcp", "")
	secure.TLS = &tls.ConnectionState{}
	if got := protected(t, known(3000), "").ResourceMetadata(secure); !strings.HasPrefix(got, "https://mcp.test:3000/") {
		t.Error(got)
	}
}

// A level's jwtAuth is not lifted by another's mcpAuthentication: a token has to be good for both.
func TestTokensForBoth(t *testing.T) {
	set := jwks(t, jose.JSONWebKey{Key: &keys().ec.PublicKey})
	rt := protected(t, nil, fmt.Sprintf(`,"resource":"https://mcp.example.com/mcp"},"jwtAuth":{"mode":"MODE_STRICT","providers":[{"issuer":"https://idp.test","audiences":["sluice"],"jwks":{"inline":%q}}]`, set))
	for aud, ok := range map[string]bool{
		`["sluice","https://mcp.example.com/mcp"]`: true, `["sluice"]`: false, `["https://mcp.example.com/mcp"]`: false,
	} {
		_, err := rt.Authenticate(at("http://x/", sign(t, jose.ES256, keys().ec, "", claimsAt(time.Now(), `{"aud":`+aud+`}`))))
		refused, _ := errors.AsType[*AuthError](err)
		if (err == nil) != ok || !ok && (refused == nil || !strings.HasPrefix(refused.Challenge, "Bearer resource_metadata=")) {
			t.Errorf("%s: %v, %+v", aud, err, refused)
		}
	}
}

func TestMetadataDocument(t *testing.T) {
	for _, tt := range []struct {
		name string
		rt   *Route
		path string
		want string // "" is none
	}{
		{"as it was asked for", protected(t, known(3000), ""), "/mcp",
			`{"authorization_servers":["https://idp.test"],"bearer_methods_supported":["header"],"resource":"http://mcp.test:3000/mcp"}`},
		{"the root", protected(t, known(3000), ""), "", `{"authorization_servers":["https://idp.test"],"bearer_methods_supported":["header"],"resource":"http://mcp.test:3000"}`},
		{"configured", protected(t, nil, `,"resource":"https://mcp.example.com/mcp","scopes":["a"],"resourceMetadata":{"resourceName":"Tools","authorization_servers":["https://front.test"],"jwks_uri":"https://x/"}`), "/other",
			`{"authorization_servers":["https://front.test"],"bearer_methods_supported":["header"],"jwks_uri":"https://x/","resource":"https://mcp.example.com/mcp","resource_name":"Tools","scopes_supported":["a"]}`},
		{"a resource among the members", protected(t, nil, `,"resourceMetadata":{"resource":"https://m.test"}`), "",
			`{"authorization_servers":["https://idp.test"],"bearer_methods_supported":["header"],"resource":"https://m.test"}`},
		{"a host that the client chooses", protected(t, &Endpoint{Port: 1}, ""), "/mcp", ""},
		{"no resource", mustRoute(t, `{}`), "/mcp", ""},
	} {
		got := tt.rt.Metadata(at("http://mcp.test:3000/x", ""), tt.path)
		if tt.want != "" && !json.Valid(got) {
			t.Errorf("%s: %s", tt.name, got)
		}
		if diff := cmp.Diff(tt.want, string(got)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, diff)
		}
	}
}

func TestMcpAuthenticationRefused(t *testing.T) {
	const provider = `"providers":[{"issuer":"https://idp.test","jwks":{"inline":"{}"}}]`
	for rest, want := range map[string]string{
		`"resource":"mcp.example.com"`:            "policies.mcpAuthentication.resource",
		`"resource":"https://mcp.example.com/?x"`: "policies.mcpAuthentication.resource",
		`"resource":"https://u@mcp.example.com/"`: "policies.mcpAuthentication.resource",
		`"scopes":["a b"]`:                        "policies.mcpAuthentication.scopes[0]",
		`"scopes":[""]`:                           "policies.mcpAuthentication.scopes[0]",
		`"resourceMetadata":{"resource":7}`:       "policies.mcpAuthentication.resourceMetadata.resource",
		`"resource":"https://a.test","resourceMetadata":{"resource":"https://b"}`: "policies.mcpAuthentication.resourceMetadata.resource",
		`"resourceMetadata":{"scopesSupported":"a"}`:                              "policies.mcpAuthentication.resourceMetadata.scopesSupported",
		`"resourceMetadata":{"a_b":1,"aB":2}`:                                     "policies.mcpAuthentication.resourceMetadata.a_b",
	} {
		_, err := CompileRoute(parse(t, `{"mcpAuthentication":{`+provider+`,`+rest+`}}`), Resolver{})
		if !slices.ContainsFunc(FieldErrors(err), func(e *FieldError) bool { return e.Field == want }) {
			t.Errorf("%s: %v, want %s", rest, err, want)
		}
	}
	if _, err := CompileRoute(parse(t, `{"mcpAuthentication":{}}`), Resolver{}); err == nil {
		t.Error("no providers, and nobody minds")
	}
}
