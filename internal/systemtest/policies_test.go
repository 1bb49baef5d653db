package systemtest

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4/jwt"

	"github.com/sluicegate/sluice/internal/mcptest"
)

func rename(from, by, to string) error {
	data, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	if err := os.WriteFile(by, data, 0o600); err != nil {
		return err
	}
	return os.Rename(by, to)
}

// claims are good ones of a subject.
func claims(subject string) jwt.Claims {
	return jwt.Claims{Issuer: "https://issuer.example.com", Subject: subject, Audience: jwt.Audience{"sluice"}, Expiry: jwt.NewNumericDate(time.Now().Add(time.Hour))}
}

// Who gets in, by each mode, source and place of jwtAuth and apiKey; and one backend behind two routes that say the
// opposite of each other.
func TestRoutePolicies(t *testing.T) {
	srv := mcptest.NewServer(t, mcptest.Options{})
	f := newFleet(t, 1, "private-network,file=*")
	key, other, next := newSigner(t, "k1"), newSigner(t, "k1"), newSigner(t, "k2")
	file := write(t, "jwks.json", key.jwks(t))
	var served atomic.Pointer[string]
	served.Store(new(key.jwks(t)))
	issuer := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, *served.Load()) }))
	defer issuer.Close()
	hash := sha256.Sum256([]byte("key-hashed"))
	jwtAuth := func(mode, jwks string) string {
		return fmt.Sprintf(`jwtAuth: {mode: %s, issuer: "https://issuer.example.com", audiences: [sluice], jwks: %s}`, mode, jwks)
	}
	inline := "'" + key.jwks(t) + "'"
	var routes strings.Builder
	for _, r := range [][2]string{
		{"strict", jwtAuth("strict", inline)},
		{"optional", jwtAuth("optional", inline)},
		{"permissive", jwtAuth("permissive", inline)},
		{"by-url", jwtAuth("strict", fmt.Sprintf("{url: %q}", issuer.URL))},
		{"by-file", jwtAuth("strict", fmt.Sprintf("{file: %q}", file))},
		{"keys", `apiKey: {mode: strict, keys: [{key: key-plain, metadata: {id: plain}}, {keyHash: "sha256:` + hex.EncodeToString(hash[:]) + `", metadata: {id: hashed}}]}`},
		{"key-header", `apiKey: {mode: strict, location: {header: {name: X-Api-Key}}, keys: [{key: key-plain}]}`},
		{"key-query", `apiKey: {mode: strict, location: {queryParameter: {name: k}}, keys: [{key: key-plain}]}`},
		{"deny", `mcpAuthorization: {rules: ['false']}`},
		{"allow", `mcpAuthorization: {rules: ['true']}`},
	} {
		fmt.Fprintf(&routes, "    - name: %[1]s\n      matches: [{path: {pathPrefix: /%[1]s}}]\n      policies: {%[2]s}\n      backends: [{backend: tools}]\n", r[0], r[1])
	}
	f.apply(fmt.Sprintf("binds:\n- port: %d\n  listeners:\n  - routes:\n%sbackends:\n- name: tools\n  mcp:\n    targets:\n    - name: one\n      mcp: {host: %q}\n",
		f.port, routes.String(), srv.URL))

	good := key.sign(t, claims("ada"))
	expired := claims("ada")
	expired.Expiry = jwt.NewNumericDate(time.Now().Add(-time.Hour))
	bad := map[string]string{"forged": other.sign(t, claims("ada")), "expired": key.sign(t, expired), "none": unsigned(t, claims("ada")), "text": "x"}
	for _, tt := range []struct {
		path   string
		header http.Header
		want   int
	}{
		{"/strict", nil, 401}, {"/strict", as(good), 200}, {"/strict", as(bad["forged"]), 401}, {"/strict", as(bad["expired"]), 401}, {"/strict", as(bad["none"]), 401}, {"/strict", as(bad["text"]), 401},
		{"/strict", http.Header{"Authorization": {"Bearer " + good, "Bearer " + bad["forged"]}}, 401},
		{"/optional", nil, 200}, {"/optional", as(good), 200}, {"/optional", as(bad["forged"]), 401}, {"/optional", as(bad["none"]), 401},
		{"/permissive", nil, 200}, {"/permissive", as(good), 200}, {"/permissive", as(bad["forged"]), 200}, {"/permissive", as(bad["none"]), 200},
		{"/by-url", nil, 401}, {"/by-url", as(good), 200}, {"/by-url", as(bad["forged"]), 401},
		{"/by-file", nil, 401}, {"/by-file", as(good), 200}, {"/by-file", as(next.sign(t, claims("ada"))), 401},
		{"/keys", nil, 401}, {"/keys", as("key-plain"), 200}, {"/keys", as("key-hashed"), 200}, {"/keys", as("key-other"), 401}, {"/keys", as(hex.EncodeToString(hash[:])), 401},
		{"/key-header", as("key-plain"), 401}, {"/key-header", http.Header{"X-Api-Key": {"key-plain"}}, 200},
		{"/key-query", as("key-plain"), 401}, {"/key-query?k=key-plain", nil, 200}, {"/key-query?k=key-plai", nil, 401}, {"/key-query?k=x&k=key-plain", nil, 401},
		{"/nowhere", nil, 404},
	} {
		got := knock(t, f.endpoint(0, tt.path), tt.header)
		if got.status != tt.want {
			t.Errorf("%s with %v: %d %s, want %d", tt.path, tt.header, got.status, got.body, tt.want)
		}
		if got.status == 401 && got.header.Get("Www-Authenticate") == "" {
			t.Errorf("%s: 401 without a challenge", tt.path)
		}
	}

	t.Run("opposite routes", func(t *testing.T) {
		allowed, denied := handshake(t, f.endpoint(0, "/allow"), nil), handshake(t, f.endpoint(0, "/deny"), nil)
		if got := allowed.text(t, f.endpoint(0, "/allow"), "echo", `{"text":"hi"}`); got != "hi" {
			t.Errorf("through the route that allows: %q", got)
		}
		if names := denied.tools(t, f.endpoint(0, "/deny")); len(names) > 0 {
			t.Errorf("through the route that denies: %v", names)
		}
		if got := denied.call(t, f.endpoint(0, "/deny"), "echo", `{"text":"hi"}`).reply(t); got.Error == nil || got.Error.Code != -32602 {
			t.Errorf("through the route that denies: %+v", got)
		}
		// A session is its backend's, not its route's: at the other route that one's policy holds.
		if got := allowed.call(t, f.endpoint(0, "/deny"), "echo", `{"text":"hi"}`); strings.Contains(got.body, `"hi"`) {
			t.Errorf("a session taken to the route that denies: %d %s", got.status, got.body)
		}
	})

	t.Run("a session is its principal's", func(t *testing.T) {
		url := f.endpoint(0, "/optional")
		mine := handshake(t, url, as(good))
		if got := mine.text(t, url, "echo", `{"text":"hi"}`); got != "hi" {
			t.Fatalf("its own caller: %q", got)
		}
		for who, header := range map[string]http.Header{"anonymous": nil, "another subject": as(key.sign(t, claims("eve")))} {
			stolen := &session{id: mine.id, header: header}
			unknown := &session{id: "no-such-session", header: header}
			for _, method := range []string{"POST", "GET", "DELETE"} {
				body := ""
				if method == "POST" {
					body = `{"jsonrpc":"2.0","id":7,"method":"tools/list"}`
				}
				a, b := stolen.do(t, method, url, body), unknown.do(t, method, url, body)
				if a.status != 404 || a.body != b.body || b.status != a.status {
					t.Errorf("%s with a stolen session, %s: %d %s; one that never was: %d %s", who, method, a.status, a.body, b.status, b.body)
				}
			}
		}
		renewed := claims("ada")
		renewed.Expiry = jwt.NewNumericDate(time.Now().Add(2 * time.Hour))
		if got := (&session{id: mine.id, header: as(key.sign(t, renewed))}).text(t, url, "echo", `{"text":"hi"}`); got != "hi" {
			t.Errorf("the same caller with a new token: %q", got)
		}
	})

	t.Run("key file rotated", func(t *testing.T) {
		replace(t, file, next.jwks(t))
		url := f.endpoint(0, "/by-file")
		until(t, "the new key is good", func() bool { return knock(t, url, as(next.sign(t, claims("ada")))).status == 200 })
		if got := knock(t, url, as(good)); got.status != 401 {
			t.Errorf("the old key: %d, want 401", got.status)
		}
	})
}

// What a browser sees.
func TestBrowsers(t *testing.T) {
	srv := mcptest.NewServer(t, mcptest.Options{})
	f := newFleet(t, 1, "private-network")
	f.apply(fmt.Sprintf(`binds:
- port: %d
  listeners:
  - routes:
    - policies:
        cors: {allowOrigins: ["https://app.example.com", "https://*.tools.example.com"], allowCredentials: true}
        apiKey: {mode: strict, keys: [{key: k}]}
      backends:
      - mcp: {targets: [{name: one, mcp: {host: %q}}]}
`, f.port, srv.URL))
	url := f.url(0)
	header := func(kv ...string) http.Header {
		h := http.Header{}
		for i := 0; i < len(kv); i += 2 {
			h.Add(kv[i], kv[i+1])
		}
		return h
	}
	preflight := func(origin string) answer {
		return (&session{header: header("Origin", origin, "Access-Control-Request-Method", "POST", "Access-Control-Request-Headers", "content-type,mcp-session-id,mcp-protocol-version,authorization")}).do(t, "OPTIONS", url, "")
	}
	for _, origin := range []string{"https://app.example.com", "https://a.tools.example.com", "http://localhost:5173"} {
		got := preflight(origin) // without a key: a browser shows none
		if got.status != 204 || got.header.Get("Access-Control-Allow-Origin") != origin {
			t.Errorf("preflight of %s: %d %v", origin, got.status, got.header)
		}
		for _, name := range []string{"mcp-session-id", "mcp-protocol-version", "authorization"} {
			if !strings.Contains(got.header.Get("Access-Control-Allow-Headers"), name) {
				t.Errorf("preflight of %s does not allow %s: %v", origin, name, got.header)
			}
		}
		got = knock(t, url, header("Origin", origin, "Authorization", "Bearer k"))
		if got.status != 200 || got.header.Get("Access-Control-Allow-Origin") != origin || !strings.Contains(got.header.Get("Access-Control-Expose-Headers"), "Mcp-Session-Id") {
			t.Errorf("initialize of %s: %d %v", origin, got.status, got.header)
		}
		// A page must be able to read that it needs a key.
		if got := knock(t, url, header("Origin", origin)); got.status != 401 || got.header.Get("Access-Control-Allow-Origin") != origin {
			t.Errorf("initialize of %s without a key: %d %v", origin, got.status, got.header)
		}
	}
	for _, origin := range []string{"https://evil.example.com", "https://app.example.com.evil.org", "http://app.example.com", "https://tools.example.com", "null", "https://localhost.evil.org", "file://", ""} {
		if got := preflight(origin); got.status != 403 || got.header.Get("Access-Control-Allow-Origin") != "" {
			t.Errorf("preflight of %q: %d %v", origin, got.status, got.header)
		}
		if got := knock(t, url, header("Origin", origin, "Authorization", "Bearer k")); got.status != 403 || got.header.Get("Access-Control-Allow-Origin") != "" {
			t.Errorf("initialize of %q: %d %v", origin, got.status, got.header)
		}
	}
	for host, want := range map[string]int{"evil.example.com": 403, "localhost": 200, "127.0.0.1": 200, "localhost.evil.org": 403, "[::1]:99": 200, "a.localhost:1": 200} {
		req := (&session{header: as("k")}).request(t, "POST", url, initialize)
		req.Host = host
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("Host %s: %d, want %d", host, resp.StatusCode, want)
		}
	}
	if len(srv.Requests()) == 0 {
		t.Error("the target was never asked")
	}
}

// Each source and place of a credential, what headers go across, and what a target may not be told.
func TestTargetPolicies(t *testing.T) {
	srv := mcptest.NewServer(t, mcptest.Options{})
	dir := t.TempDir()
	file := filepath.Join(dir, "key")
	if err := os.WriteFile(file, []byte("from-file\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("SVC_KEY", "from-env")
	f := newFleet(t, 1, "private-network,env=SVC_*,file="+dir+"/*")
	f.must("apply", "-f", write(t, "secret.yaml", "kind: Secret\nname: search\nspec: {value: from-secret}\n"))
	target := func(name, rest string) string {
		return fmt.Sprintf("          - name: %s\n            mcp: {host: %q}\n%s", name, srv.URL, rest)
	}
	policies := func(block string) string { return "            policies:\n              " + block + "\n" }
	config := func(targets ...string) string {
		return fmt.Sprintf("binds:\n- port: %d\n  listeners:\n  - routes:\n    - backends:\n      - mcp:\n          targets:\n%s", f.port, strings.Join(targets, ""))
	}
	f.apply(config(
		target("value", policies("backendAuth: {key: from-value}")),
		target("secret", policies("backendAuth: {key: {secret: search}}")),
		target("file", policies(fmt.Sprintf("backendAuth: {key: {file: %q}}", file))),
		target("env", policies("backendAuth: {key: {env: SVC_KEY}}")),
		target("header", policies("backendAuth: {key: {value: {secret: search}, location: {header: {name: X-Key}}}}")),
		target("query", policies("backendAuth: {key: {value: {secret: search}, location: {queryParameter: {name: token}}}}")),
		target("cookie", policies("backendAuth: {key: {value: {secret: search}, location: {cookie: {name: sid}}}}")),
		target("modified", "            forwardHeaders: [X-Asked]\n"+policies(`requestHeaderModifier: {add: {x-added: "1"}, set: {x-set: "2", x-both: "3"}, remove: [x-both]}
              responseHeaderModifier: {set: {x-answer: "yes", cache-control: no-store}}`)),
	))
	url := f.url(0)
	s := handshake(t, url, http.Header{"Authorization": {"Bearer mine"}, "Cookie": {"c=mine"}, "X-Forwarded-For": {"1.2.3.4"}, "X-Forwarded-Host": {"h"}, "Forwarded": {"for=1"},
		"X-Real-Ip": {"1.2.3.4"}, "Proxy-Authorization": {"Basic x"}, "X-Asked": {"asked"}, "X-Other": {"other"}, "X-Set": {"forged"}, "X-Key": {"forged"},
		"Traceparent": {"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}, "Accept-Language": {"de"}})
	for name, want := range map[string]string{"value": "Bearer from-value", "secret": "Bearer from-secret", "file": "Bearer from-file", "env": "Bearer from-env",
		"header": "", "query": "", "cookie": "", "modified": ""} {
		if got := s.sees(t, url, name+"_header", "Authorization"); got != want {
			t.Errorf("%s got the credential %q, want %q", name, got, want)
		}
	}
	if got := s.sees(t, url, "header_header", "X-Key"); got != "from-secret" {
		t.Errorf("X-Key is %q", got)
	}
	if got := s.sees(t, url, "cookie_header", "Cookie"); got != "sid=from-secret" {
		t.Errorf("Cookie is %q", got)
	}
	s.call(t, url, "query_count", `{}`)
	if got := last(t, srv, "POST").URL; !strings.Contains(got, "token=from-secret") {
		t.Errorf("the URL is %q", got)
	}
	for name, want := range map[string]string{"X-Added": "1", "X-Set": "2", "X-Both": "", "X-Asked": "asked", "X-Other": "", "Cookie": "", "X-Forwarded-For": "", "X-Forwarded-Host": "",
		"Forwarded": "", "X-Real-Ip": "", "Proxy-Authorization": "", "X-Key": "", "Accept-Language": "de",
		"Traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "Origin": "", "Mcp-Protocol-Version": "2025-11-25"} {
		if got := s.sees(t, url, "modified_header", name); got != want {
			t.Errorf("%s went to the target as %q, want %q", name, got, want)
		}
	}
	if got := s.sees(t, url, "modified_header", "Mcp-Session-Id"); got == "" || got == s.id {
		t.Errorf("the target was sent the session %q", got)
	}
	if got := s.call(t, url, "modified_echo", `{"text":"hi"}`); got.header.Get("X-Answer") != "yes" || got.header.Get("Cache-Control") != "no-store" {
		t.Errorf("the answer's headers: %v", got.header)
	}
	if got := s.call(t, url, "value_echo", `{"text":"hi"}`); got.header.Get("X-Answer") != "" {
		t.Errorf("another target's answer has the header: %v", got.header)
	}

	replace(t, file, "rotated\n")
	until(t, "the file's new key is sent", func() bool { return s.sees(t, url, "file_header", "Authorization") == "Bearer rotated" })
	f.must("apply", "-f", write(t, "secret.yaml", "kind: Secret\nname: search\nspec: {value: new-secret}\n"), "--wait")
	if got := s.sees(t, url, "secret_header", "Authorization"); got != "Bearer new-secret" {
		t.Errorf("after the Secret changed: %q", got)
	}

	for _, tt := range []struct{ block, says string }{
		{`requestHeaderModifier: {set: {Mcp-Session-Id: x}}`, "Mcp-Session-Id"},
		{`requestHeaderModifier: {remove: [content-length]}`, "Content-Length"},
		{`requestHeaderModifier: {add: {Transfer-Encoding: x}}`, "Transfer-Encoding"},
		{`requestHeaderModifier: {set: {Host: x}}`, "Host"},
		{`responseHeaderModifier: {set: {Connection: close}}`, "Connection"},
		{`responseHeaderModifier: {set: {x: "a\nb"}}`, "line break"},
		{`backendAuth: {key: {env: OTHER_KEY}}`, "env=OTHER_KEY"},
		{`backendAuth: {key: {file: /etc/passwd}}`, "file=/etc/passwd"},
		{`backendAuth: {key: {file: "` + dir + `/../passwd"}}`, "grant"},
		{`backendAuth: {key: {secret: nope}}`, "nope"},
		{`backendAuth: {key: x, env: NAME}`, "env"},
		{`jwtAuth: {issuer: x, jwks: '{"keys":[]}'}`, "jwtAuth"},
		{`cors: {allowOrigins: ["*"]}`, "cors"},
		{`mcpAuthorization: {rules: []}`, "rules"},
		{`mcpAuthorization: {rules: ['response.code == 1']}`, "response"},
		{`ai: {promptGuard: [{regex: {deny: [{pattern: "("}]}}]}`, "promptGuard"},
	} {
		if got := f.refused(t, config(target("one", policies(tt.block)))); !strings.Contains(got, tt.says) || !strings.Contains(got, "sluice.yaml:") {
			t.Errorf("%s: refused with\n%swhich lacks %q or its place", tt.block, got, tt.says)
		}
	}
	if got := s.sees(t, url, "env_header", "Authorization"); got != "Bearer from-env" {
		t.Errorf("what was refused changed something: %q", got)
	}
	if names := s.tools(t, url); !slices.Contains(names, "value_echo") {
		t.Errorf("tools are %v", names)
	}
}
