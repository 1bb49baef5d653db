package systemtest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"os"
	"strings"
	"testing"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"github.com/sluicegate/sluice/internal/mcptest"
)

// These tests want servers that interop/run.sh starts, and are skipped without them: verifiers that are not ours.

func wants(t *testing.T, variable string) string {
	t.Helper()
	v := os.Getenv(variable)
	if v == "" {
		t.Skipf("%s names no server; interop/run.sh starts one", variable)
	}
	return v
}

// verifiedBy lets in what an S3 server takes as it came: method, host, path, query, headers and body. First the request
// is changed by tamper.
func verifiedBy(t *testing.T, s3 string, tamper func(*http.Request, []byte) []byte) func(http.Handler) http.Handler {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			body, err := io.ReadAll(r.Body)
			if err != nil {
				t.Error(err)
			}
			ask := r.Clone(r.Context())
			ask.RequestURI = ""
			ask.URL.Scheme, ask.URL.Host = "http", strings.TrimPrefix(s3, "http://")
			ask.Host = r.Host
			sent := tamper(ask, body)
			ask.Body, ask.ContentLength = io.NopCloser(bytes.NewReader(sent)), int64(len(sent))
			resp, err := http.DefaultTransport.RoundTrip(ask)
			if err != nil {
				t.Error(err)
				return
			}
			defer resp.Body.Close()
			answer, _ := io.ReadAll(resp.Body)
			// POST of `?uploads` is an operation of S3 and succeeds; GET and DELETE of an object that is not there do not, after the
			// signature was found good.
			good := resp.StatusCode == http.StatusOK || r.Method != http.MethodPost && (resp.StatusCode == http.StatusNotFound || resp.StatusCode == http.StatusNoContent)
			if !good {
				t.Logf("%s: %d %.200s", r.Method, resp.StatusCode, answer)
				w.WriteHeader(http.StatusForbidden)
				return
			}
			r.Body = io.NopCloser(bytes.NewReader(body))
			next.ServeHTTP(w, r)
		})
	}
}

// The signatures of requests through the proxy are good for an S3 server that is not ours, and nothing of a request can
// be changed under one. SLUICE_S3 is its URL, with the bucket `mcp`; the keys are AKINTEROP and secret-interop.
func TestSignaturesAtS3(t *testing.T) {
	s3 := wants(t, "SLUICE_S3")
	f := newFleet(t, 1, "private-network")
	var routes, backends strings.Builder
	add := func(name, keys string, tamper func(*http.Request, []byte) []byte) {
		srv := mcptest.NewServer(t, mcptest.Options{Wrap: verifiedBy(t, s3, tamper)})
		host := strings.TrimSuffix(srv.URL, "/mcp") + "/mcp/an%20object?uploads"
		fmt.Fprintf(&routes, "    - name: %[1]s\n      matches: [{path: {pathPrefix: /%[1]s}}]\n      backends: [{backend: %[1]s}]\n", name)
		fmt.Fprintf(&backends, "- name: %s\n  mcp:\n    targets:\n    - name: t\n      mcp: {host: %q}\n      policies:\n        requestHeaderModifier: {set: {x-team: blue}}\n        backendAuth: {aws: {%s, region: eu-west-1, serviceName: s3}}\n", name, host, keys)
	}
	const keys = "accessKeyId: AKINTEROP, secretAccessKey: secret-interop"
	same := func(_ *http.Request, b []byte) []byte { return b }
	add("good", keys, same)
	add("wrong-key", "accessKeyId: AKINTEROP, secretAccessKey: secret-intero", same)
	add("unknown-key", "accessKeyId: AKOTHER, secretAccessKey: secret-interop", same)
	add("body", keys, func(_ *http.Request, b []byte) []byte { return append(b, ' ') })
	add("body-and-hash", keys, func(r *http.Request, b []byte) []byte {
		r.Header.Set("X-Amz-Content-Sha256", "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a") // of {}
		return []byte("{}")
	})
	add("header", keys, func(r *http.Request, b []byte) []byte { r.Header.Set("X-Team", "red"); return b })
	add("query", keys, func(r *http.Request, b []byte) []byte { r.URL.RawQuery += "&x=1"; return b })
	add("path", keys, func(r *http.Request, b []byte) []byte { r.URL.Path, r.URL.RawPath = "/mcp/other", ""; return b })
	add("host", keys, func(r *http.Request, b []byte) []byte { r.Host = "example.com"; return b })
	f.apply(fmt.Sprintf("binds:\n- port: %d\n  listeners:\n  - routes:\n%sbackends:\n%s", f.port, routes.String(), backends.String()))

	url := f.endpoint(0, "/good")
	s := handshake(t, url, nil)
	if got := s.text(t, url, "echo", `{"text":"hi"}`); got != "hi" {
		t.Errorf("echo: %s", got)
	}
	if got := s.sees(t, url, "header", "Authorization"); !strings.HasPrefix(got, "AWS4-HMAC-SHA256 Credential=AKINTEROP/") {
		t.Errorf("Authorization: %s", got)
	}
	if got := s.do(t, "DELETE", url, ""); got.status >= 300 {
		t.Errorf("DELETE: %d %s", got.status, got.body)
	}
	for _, path := range []string{"/wrong-key", "/unknown-key", "/body", "/body-and-hash", "/header", "/query", "/path", "/host"} {
		if got := knock(t, f.endpoint(0, path), nil); got.status != 502 || !strings.Contains(got.body, "refused the proxy's credentials (403)") {
			t.Errorf("%s: %d %s", path, got.status, got.body)
		}
	}
}

// Tokens of a certified OAuth server, for each way to authenticate. SLUICE_OIDC is the issuer of interop/oidc_provider.mjs
// and SLUICE_OIDC_KEY the file of its client's key.
func TestClientsAtOidcProvider(t *testing.T) {
	issuer, key := wants(t, "SLUICE_OIDC"), wants(t, "SLUICE_OIDC_KEY")
	jwk, err := os.ReadFile(key)
	if err != nil {
		t.Fatal(err)
	}
	var keys jose.JSONWebKeySet
	if err := json.Unmarshal([]byte(fetch(t, issuer+"/jwks")), &keys); err != nil {
		t.Fatal(err)
	}
	const resource = "https://api.example.com"
	srv := mcptest.NewServer(t, mcptest.Options{Wrap: func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			var claims struct {
				jwt.Claims
				Client string `json:"client_id"`
				Scope  string `json:"scope"`
			}
			token, err := jwt.ParseSigned(strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer "), []jose.SignatureAlgorithm{jose.RS256, jose.ES256})
			if err == nil {
				err = token.Claims(&keys, &claims)
			}
			if err != nil || !claims.Audience.Contains(resource) || claims.Scope != "read" {
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
			r.Header.Set("X-Client", claims.Client)
			next.ServeHTTP(w, r)
		})
	}})
	f := newFleet(t, 1, "private-network,file")
	const secret = `clientSecret: "a client secret & more: 0123456789"`
	var routes, backends strings.Builder
	clients := map[string]string{
		"basic": "clientId: basic, " + secret,
		"post":  "clientId: post, authMethod: client_secret_post, " + secret,
		"jwt":   fmt.Sprintf("clientId: jwt, assertionAudience: %q, privateKey: {file: %q}", issuer, key),
		"bad":   "clientId: basic, clientSecret: another",
		"badly": "clientId: jwt, privateKey: '" + otherKey(t, jwk) + "'",
	}
	for name, client := range clients {
		fmt.Fprintf(&routes, "    - name: %[1]s\n      matches: [{path: {pathPrefix: /%[1]s}}]\n      backends: [{backend: %[1]s}]\n", name)
		fmt.Fprintf(&backends, "- name: %s\n  mcp:\n    targets:\n    - name: t\n      mcp: {host: %q}\n      policies: {backendAuth: {oauth: {tokenUrl: \"%s/token\", %s, scopes: [read], resource: %q}}}\n", name, srv.URL, issuer, client, resource)
	}
	f.apply(fmt.Sprintf("binds:\n- port: %d\n  listeners:\n  - routes:\n%sbackends:\n%s", f.port, routes.String(), backends.String()))
	for name := range clients {
		url := f.endpoint(0, "/"+name)
		if strings.HasPrefix(name, "bad") {
			if got := knock(t, url, nil); got.status != 502 || !strings.Contains(got.body, "could not obtain its credential") {
				t.Errorf("%s: %d %s", name, got.status, got.body)
			}
			continue
		}
		if got := handshake(t, url, nil).sees(t, url, "header", "X-Client"); got != name {
			t.Errorf("the target sees the client %q, want %q", got, name)
		}
	}
	until(t, "the log tells why", func() bool { return strings.Contains(f.proxies[0].stderr.String(), "invalid_client") })
	if log := f.proxies[0].stderr.String(); strings.Contains(log, "0123456789") {
		t.Errorf("the log tells the secret:\n%s", log)
	}
}

// otherKey is a key of the same id that the server does not know.
func otherKey(t *testing.T, jwk []byte) string {
	var known jose.JSONWebKey
	if err := json.Unmarshal(jwk, &known); err != nil {
		t.Fatal(err)
	}
	other := newSigner(t, known.KeyID)
	b, err := json.Marshal(jose.JSONWebKey{Key: other.key, KeyID: known.KeyID, Algorithm: "ES256"})
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func fetch(t *testing.T, url string) string {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%s: %d %s %v", url, resp.StatusCode, b, err)
	}
	return string(b)
}

// Token exchange at an OAuth server library (zitadel/oidc): its user signs in there, the proxy verifies his token and
// exchanges it, and the target asks the server who shows the new one. SLUICE_OP is the issuer, without a slash at its end.
func TestExchangeAtIssuer(t *testing.T) {
	issuer := wants(t, "SLUICE_OP")
	idToken := signIn(t, issuer)
	srv := mcptest.NewServer(t, mcptest.Options{Wrap: func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			ask, err := http.NewRequestWithContext(r.Context(), http.MethodGet, issuer+"/userinfo", nil)
			if err != nil {
				t.Error(err)
				return
			}
			ask.Header.Set("Authorization", r.Header.Get("Authorization"))
			resp, err := http.DefaultClient.Do(ask)
			if err != nil {
				t.Error(err)
				return
			}
			defer resp.Body.Close()
			var user struct{ Sub string }
			if resp.StatusCode != http.StatusOK || json.NewDecoder(resp.Body).Decode(&user) != nil || strings.Contains(r.Header.Get("Authorization"), idToken) {
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
			r.Header.Set("X-Subject", user.Sub)
			next.ServeHTTP(w, r)
		})
	}})
	f := newFleet(t, 1, "private-network")
	f.apply(fmt.Sprintf(`mcp:
  port: %d
  policies:
    jwtAuth: {issuer: "%s/", audiences: [web], jwks: {url: "%[2]s/keys"}}
  targets:
  - name: t
    mcp: {host: %[3]q}
    policies:
      backendAuth:
        tokenExchange:
          tokenUrl: %[2]s/oauth/token
          clientId: web
          clientSecret: secret
          subjectTokenType: urn:ietf:params:oauth:token-type:id_token
          requestedTokenType: urn:ietf:params:oauth:token-type:access_token
          scopes: [openid, profile]
`, f.port, issuer, srv.URL))
	until(t, "the key set is there", func() bool { return knock(t, f.url(0), as(idToken)).status != 503 })
	if got := handshake(t, f.url(0), as(idToken)).sees(t, f.url(0), "header", "X-Subject"); got != "id1" {
		t.Errorf("the target sees %q", got)
	}
	if got := knock(t, f.url(0), nil); got.status != 401 {
		t.Errorf("without a token: %d %s", got.status, got.body)
	}
}

// signIn is the code flow of the server's example user, as a browser goes it.
func signIn(t *testing.T, issuer string) (idToken string) {
	t.Helper()
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	const back = "http://localhost:9999/auth/callback"
	browser := &http.Client{Jar: jar, CheckRedirect: func(r *http.Request, _ []*http.Request) error {
		if strings.HasPrefix(r.URL.String(), back) {
			return http.ErrUseLastResponse
		}
		return nil
	}}
	resp, err := browser.Get(issuer + "/auth?" + url.Values{"client_id": {"web"}, "redirect_uri": {back}, "response_type": {"code"}, "scope": {"openid profile"}, "state": {"s"}}.Encode())
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	id := resp.Request.URL.Query().Get("authRequestID")
	form := url.Values{"id": {id}, "username": {"test-user@localhost"}, "password": {"verysecure"}}
	if resp, err = browser.PostForm(issuer+"/login/username", form); err != nil {
		t.Fatal(err)
	}
	page, _ := io.ReadAll(resp.Body)
	resp.Body.Close()
	to, err := resp.Location()
	if err != nil {
		t.Fatalf("signing in: %d %s", resp.StatusCode, page)
	}
	exchange, err := http.NewRequestWithContext(t.Context(), http.MethodPost, issuer+"/oauth/token", strings.NewReader(url.Values{"grant_type": {"authorization_code"}, "code": {to.Query().Get("code")}, "redirect_uri": {back}}.Encode()))
	if err != nil {
		t.Fatal(err)
	}
	exchange.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	exchange.SetBasicAuth("web", "secret")
	if resp, err = browser.Do(exchange); err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var tokens struct {
		ID string `json:"id_token"`
	}
	if err := json.NewDecoder(resp.Body).Decode(&tokens); err != nil || tokens.ID == "" {
		t.Fatalf("no id token: %v", err)
	}
	return tokens.ID
}
