package policy

import (
	"crypto/tls"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func mustRoute(t testing.TB, text string) *Route {
	t.Helper()
	rt, err := CompileRoute(parse(t, text), Resolver{})
	if err != nil {
		t.Fatal(err)
	}
	return rt
}

func TestAllowOrigin(t *testing.T) {
	some := mustRoute(t, `{"cors":{"allowOrigins":["https://app.example.com","https://*.wild.example","http://dev.example:8080"]}}`)
	any := mustRoute(t, `{"cors":{"allowOrigins":["*"]}}`)
	for _, tt := range []struct {
		origin, host    string
		tls, loopback   bool
		none, some, any bool // allowed by no policy, some, any
	}{
		{origin: "", host: "api.example", none: true, some: true, any: true},
		{origin: "https://evil.example", host: "api.example", any: true},
		{origin: "null", host: "api.example", any: true},
		{origin: "http://api.example", host: "api.example", none: true, some: true, any: true},
		{origin: "https://api.example", host: "api.example", none: true, some: true, any: true},
		{origin: "https://api.example", host: "api.example", tls: true, none: true, some: true, any: true},
		{origin: "http://api.example", host: "api.example", tls: true, any: true},
		{origin: "http://api.example:3000", host: "api.example:3000", none: true, some: true, any: true},
		{origin: "http://API.example:3000", host: "api.EXAMPLE:3000", none: true, some: true, any: true},
		{origin: "http://api.example:3001", host: "api.example:3000", any: true},
		{origin: "http://[::1]:3000", host: "[::1]:3000", none: true, some: true, any: true},
		{origin: "http://localhost:6274", host: "localhost:3000", any: true},
		{origin: "http://localhost:6274", host: "localhost:3000", loopback: true, none: true, some: true, any: true},
		{origin: "http://127.0.0.1:6274", host: "localhost:3000", loopback: true, none: true, some: true, any: true},
		{origin: "http://[::1]:6274", host: "localhost:3000", loopback: true, none: true, some: true, any: true},
		{origin: "http://evil.example", host: "localhost:3000", loopback: true, any: true},
		{origin: "http://localhost.evil.example", host: "localhost:3000", loopback: true, any: true},
		{origin: "null", host: "localhost:3000", loopback: true, any: true},
		{origin: "https://app.example.com", host: "api.example", some: true, any: true},
		{origin: "https://app.example.com:443", host: "api.example", some: true, any: true},
		{origin: "https://app.example.com:8443", host: "api.example", any: true},
		{origin: "http://app.example.com", host: "api.example", any: true},
		{origin: "https://app.example.com.evil", host: "api.example", any: true},
		{origin: "https://xapp.example.com", host: "api.example", any: true},
		{origin: "https://a.wild.example", host: "api.example", some: true, any: true},
		{origin: "https://a.b.wild.example", host: "api.example", some: true, any: true},
		{origin: "https://wild.example", host: "api.example", any: true},
		{origin: "https://.wild.example", host: "api.example", any: true},
		{origin: "https://evilwild.example", host: "api.example", any: true},
		{origin: "http://dev.example:8080", host: "api.example", some: true, any: true},
		{origin: "https://user@api.example", host: "api.example"},
		{origin: "https://api.example/", host: "api.example"},
		{origin: "https://*.wild.example", host: "api.example"},
		{origin: "nonsense", host: "nonsense"},
	} {
		r := httptest.NewRequest("POST", "/mcp", nil)
		r.Host = tt.host
		if tt.origin != "" {
			r.Header.Set("Origin", tt.origin)
		}
		if tt.tls {
			r.TLS = &tls.ConnectionState{}
		}
		got := [3]bool{(*Route)(nil).AllowOrigin(r, tt.loopback), some.AllowOrigin(r, tt.loopback), any.AllowOrigin(r, tt.loopback)}
		if want := [3]bool{tt.none, tt.some, tt.any}; got != want {
			t.Errorf("%+v: allowed %v (no policy, some, any), want %v", tt, got, want)
		}
	}
	r := httptest.NewRequest("POST", "/mcp", nil)
	r.Header["Origin"] = []string{"http://example.com", "http://evil.example"}
	if any.AllowOrigin(r, true) {
		t.Error("two origins are allowed")
	}
}

func TestPreflight(t *testing.T) {
	const requested = "content-type, Mcp-Method, mcp-protocol-version,authorization, x-key, x-other"
	for _, tt := range []struct {
		name, policies, origin string
		status                 int
		want                   map[string]string
	}{
		{"no cors, other site", `{}`, "https://app.example", 403, map[string]string{"Access-Control-Allow-Origin": ""}},
		{"no cors, own origin", `{}`, "http://api.example", 204, map[string]string{"Access-Control-Allow-Origin": "http://api.example"}},
		{"any", `{"cors":{"allowOrigins":["*"]}}`, "https://app.example", 204, map[string]string{
			"Access-Control-Allow-Origin": "*", "Access-Control-Allow-Credentials": "", "Access-Control-Allow-Methods": "GET, POST, DELETE, OPTIONS", "Access-Control-Max-Age": "3600",
			"Access-Control-Allow-Headers": "content-type, Mcp-Method, mcp-protocol-version, authorization"}},
		{"listed, with credentials", `{"cors":{"allowOrigins":["https://app.example"],"allowCredentials":true,"allowMethods":["POST"],"allowHeaders":["X-Other"],"maxAge":"60s"}}`, "https://app.example", 204, map[string]string{
			"Access-Control-Allow-Origin": "https://app.example", "Access-Control-Allow-Credentials": "true", "Access-Control-Allow-Methods": "POST", "Access-Control-Max-Age": "60",
			"Access-Control-Allow-Headers": "content-type, Mcp-Method, mcp-protocol-version, x-other"}},
		{"credentials, own origin not listed", `{"cors":{"allowOrigins":["https://app.example"],"allowCredentials":true}}`, "http://api.example", 204, map[string]string{"Access-Control-Allow-Credentials": ""}},
		{"any header", `{"cors":{"allowOrigins":["https://app.example"],"allowHeaders":["*"]}}`, "https://app.example", 204, map[string]string{
			"Access-Control-Allow-Headers": "content-type, Mcp-Method, mcp-protocol-version, authorization, x-key, x-other"}},
		{"the route's own credential header", `{"cors":{"allowOrigins":["*"]},"apiKey":{"mode":"MODE_STRICT","location":{"header":{"name":"X-Key"}},"keys":[{"key":{"value":"k"}}]}}`, "https://app.example", 204, map[string]string{
			"Access-Control-Allow-Headers": "content-type, Mcp-Method, mcp-protocol-version, authorization, x-key"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := httptest.NewRequest("OPTIONS", "http://api.example/mcp", nil)
			r.Header = http.Header{"Origin": {tt.origin}, "Access-Control-Request-Method": {"POST"}, "Access-Control-Request-Headers": {requested}}
			w := httptest.NewRecorder()
			if !mustRoute(t, tt.policies).Preflight(w, r, false) {
				t.Fatal("not handled")
			}
			if w.Code != tt.status {
				t.Errorf("status %d, want %d", w.Code, tt.status)
			}
			if !strings.Contains(strings.Join(w.Header().Values("Vary"), ","), "Origin") {
				t.Errorf("Vary: %q", w.Header().Values("Vary"))
			}
			for name, want := range tt.want {
				if got := w.Header().Get(name); got != want {
					t.Errorf("%s: %q, want %q", name, got, want)
				}
			}
		})
	}
	var rt *Route
	w := httptest.NewRecorder()
	if rt.Preflight(w, httptest.NewRequest("POST", "/", nil), true) || len(w.Header()) > 0 {
		t.Error("POST was taken for a preflight")
	}
	if !rt.Preflight(w, httptest.NewRequest("OPTIONS", "/", nil), true) || w.Code != 204 || w.Header().Get("Allow") == "" {
		t.Errorf("plain OPTIONS: %d %v", w.Code, w.Header())
	}
}

func TestResponseHeaders(t *testing.T) {
	rt := mustRoute(t, `{"cors":{"allowOrigins":["https://app.example"],"exposeHeaders":["X-Cost"]}}`)
	r := httptest.NewRequest("POST", "http://api.example/mcp", nil)
	h := http.Header{}
	rt.ResponseHeaders(h, r, false)
	if diff := cmp.Diff(http.Header{"Vary": {"Origin"}}, h); diff != "" {
		t.Errorf("without origin (-want +got):\n%s", diff)
	}
	r.Header.Set("Origin", "https://app.example")
	h = http.Header{}
	rt.ResponseHeaders(h, r, false)
	want := http.Header{"Vary": {"Origin"}, "Access-Control-Allow-Origin": {"https://app.example"}, "Access-Control-Expose-Headers": {"Mcp-Session-Id, MCP-Protocol-Version, WWW-Authenticate, X-Cost"}}
	if diff := cmp.Diff(want, h); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	r.Header.Set("Origin", "https://evil.example")
	h = http.Header{}
	rt.ResponseHeaders(h, r, false)
	if h.Get("Access-Control-Allow-Origin") != "" {
		t.Error("another site may read")
	}
}

func TestCorsRefused(t *testing.T) {
	for text, field := range map[string]string{
		`{"cors":{"allowOrigins":["*"],"allowCredentials":true}}`:                                 "policies.cors.allowOrigins[0]",
		`{"cors":{"allowOrigins":["null"],"allowCredentials":true}}`:                              "policies.cors.allowOrigins[0]",
		`{"cors":{"allowOrigins":["https://a","app.example.com"]}}`:                               "policies.cors.allowOrigins[1]",
		`{"cors":{"allowOrigins":["https://app.example.com/x"]}}`:                                 "policies.cors.allowOrigins[0]",
		`{"cors":{"allowOrigins":["https://app*.example.com"]}}`:                                  "policies.cors.allowOrigins[0]",
		`{"cors":{"allowOrigins":["https://app.*.com"]}}`:                                         "policies.cors.allowOrigins[0]",
		`{"cors":{"allowMethods":["GE T"]}}`:                                                      "policies.cors.allowMethods[0]",
		`{"cors":{"allowHeaders":["X\nY"]}}`:                                                      "policies.cors.allowHeaders[0]",
		`{"cors":{"exposeHeaders":["a,b"]}}`:                                                      "policies.cors.exposeHeaders[0]",
		`{"cors":{"maxAge":"-1s"}}`:                                                               "policies.cors.maxAge",
		`{"cors":{"allowOrigins":["https://a.b"],"allowCredentials":true,"exposeHeaders":["*"]}}`: "policies.cors.exposeHeaders",
	} {
		_, err := CompileRoute(parse(t, text), Resolver{})
		if all := FieldErrors(err); len(all) != 1 || all[0].Field != field {
			t.Errorf("%s: %v, want one at %s", text, err, field)
		}
	}
}
