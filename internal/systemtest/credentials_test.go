package systemtest

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"github.com/sluicegate/sluice/internal/mcptest"
)

// tokenIssuer is a token endpoint that believes nothing: it checks the client's secret and the subject's signature, and
// what it issues is checked by the target.
type tokenIssuer struct {
	t       *testing.T
	own     signer // of what it issues
	callers signer // of subject tokens
	url     string
	issued  atomic.Int32
	down    atomic.Bool
}

const clientSecret = "cl1ent-s3cret"

func newIssuer(t *testing.T, callers signer) *tokenIssuer {
	a := &tokenIssuer{t: t, own: newSigner(t, "as"), callers: callers}
	server := httptest.NewServer(a)
	t.Cleanup(server.Close)
	a.url = server.URL + "/token"
	return a
}

func (a *tokenIssuer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	refuse := func(status int, code string) {
		w.WriteHeader(status)
		fmt.Fprintf(w, `{"error":%q,"error_description":"no to %s"}`, code, r.PostForm.Get("subject_token"))
	}
	id, secret, _ := r.BasicAuth()
	if err := r.ParseForm(); err != nil || a.down.Load() {
		refuse(http.StatusServiceUnavailable, "temporarily_unavailable")
		return
	}
	if id != "gateway" || secret != clientSecret {
		refuse(http.StatusUnauthorized, "invalid_client")
		return
	}
	subject := id
	if r.PostForm.Get("grant_type") != "client_credentials" {
		token, err := jwt.ParseSigned(r.PostForm.Get("subject_token"), []jose.SignatureAlgorithm{jose.ES256})
		var given jwt.Claims
		if err == nil {
			err = token.Claims(a.callers.key.Public(), &given)
		}
		if err != nil || given.ValidateWithLeeway(jwt.Expected{Time: time.Now()}, 0) != nil {
			refuse(http.StatusBadRequest, "invalid_grant")
			return
		}
		subject = given.Subject
	}
	a.issued.Add(1)
	fmt.Fprintf(w, `{"access_token":%q,"token_type":"Bearer","issued_token_type":"urn:ietf:params:oauth:token-type:access_token","expires_in":3600}`,
		a.own.sign(a.t, jwt.Claims{Issuer: "as", Subject: subject, Audience: jwt.Audience{r.PostForm.Get("audience")}, Expiry: jwt.NewNumericDate(time.Now().Add(time.Hour))}))
}

// guard lets in who shows a token of the issuer for the audience, and tells the MCP server his subject.
func (a *tokenIssuer) guard(audience string) func(http.Handler) http.Handler {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			token, err := jwt.ParseSigned(strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer "), []jose.SignatureAlgorithm{jose.ES256})
			var given jwt.Claims
			if err == nil {
				err = token.Claims(a.own.key.Public(), &given)
			}
			if err != nil || !given.Audience.Contains(audience) {
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
			r.Header.Set("X-Subject", given.Subject)
			next.ServeHTTP(w, r)
		})
	}
}

// Tokens obtained for targets, over real processes: each caller has his own, one target's trouble is no other's, and
// nothing tells a secret.
func TestObtainedCredentials(t *testing.T) {
	callers := newSigner(t, "k1")
	issuer := newIssuer(t, callers)
	broken := newIssuer(t, callers)
	broken.own = issuer.own
	broken.down.Store(true)
	mine := mcptest.NewServer(t, mcptest.Options{Wrap: issuer.guard("mine")})
	shared := mcptest.NewServer(t, mcptest.Options{Wrap: issuer.guard("shared")})
	sse := mcptest.NewServer(t, mcptest.Options{SSE: true, Wrap: issuer.guard("shared")})
	stateless := mcptest.NewServer(t, mcptest.Options{Stateless: true, Wrap: issuer.guard("mine")})
	basic := mcptest.NewServer(t, mcptest.Options{Wrap: func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if user, password, _ := r.BasicAuth(); user != "u" || password != "p4ss word" {
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
			next.ServeHTTP(w, r)
		})
	}})
	f := newFleet(t, 1, "private-network")
	client := func(issuer *tokenIssuer) string {
		return fmt.Sprintf("tokenUrl: %q, clientId: gateway, clientSecret: %s", issuer.url, clientSecret)
	}
	var routes, backends strings.Builder
	for _, target := range [][3]string{
		{"mine", fmt.Sprintf("mcp: {host: %q}", mine.URL), "oauthTokenExchange: {" + client(issuer) + ", audience: mine}"},
		{"stateless", fmt.Sprintf("mcp: {host: %q}", stateless.URL), "tokenExchange: {client: {" + client(issuer) + "}, audience: mine}"},
		{"shared", fmt.Sprintf("mcp: {host: %q}", shared.URL), "oauth: {" + client(issuer) + ", audience: shared, scopes: [a, b]}"},
		{"sse", fmt.Sprintf("sse: {host: %q}", sse.URL), "oauth: {" + client(issuer) + ", audience: shared, scopes: [a, b]}"},
		{"broken", fmt.Sprintf("mcp: {host: %q}", shared.URL), "oauth: {" + client(broken) + ", audience: shared}"},
		{"basic", fmt.Sprintf("mcp: {host: %q}", basic.URL), "basic: {username: u, password: p4ss word}"},
	} {
		fmt.Fprintf(&routes, "    - name: %[1]s\n      matches: [{path: {pathPrefix: /%[1]s}}]\n      backends: [{backend: %[1]s}]\n", target[0])
		fmt.Fprintf(&backends, "- name: %[1]s\n  mcp:\n    targets:\n    - name: %[1]s\n      %[2]s\n      policies: {backendAuth: {%[3]s}}\n", target[0], target[1], target[2])
	}
	config := fmt.Sprintf("binds:\n- port: %d\n  listeners:\n  - policies:\n      jwtAuth: {issuer: \"https://issuer.example.com\", audiences: [sluice], jwks: '%s'}\n    routes:\n%sbackends:\n%s", f.port, callers.jwks(t), routes.String(), backends.String())
	f.apply(config)
	ada, bob := callers.sign(t, claims("ada")), callers.sign(t, claims("bob"))

	for _, path := range []string{"/mine", "/stateless"} {
		for range 2 {
			for subject, token := range map[string]string{"ada": ada, "bob": bob} {
				url := f.endpoint(0, path)
				if got := handshake(t, url, as(token)).sees(t, url, "header", "X-Subject"); got != subject {
					t.Errorf("%s: the target sees %s, want %s", path, got, subject)
				}
			}
		}
		got := knock(t, f.endpoint(0, path), nil)
		if r := got.reply(t); got.status != 401 || r.Error == nil || r.Error.Code != -32600 || got.header.Get("Www-Authenticate") == "" {
			t.Errorf("%s without a token: %d %s", path, got.status, got.body)
		}
	}
	if url := f.endpoint(0, "/shared"); handshake(t, url, nil).sees(t, url, "header", "X-Subject") != "gateway" {
		t.Error("the target does not see the gateway")
	}
	if url := f.endpoint(0, "/sse"); handshake(t, url, nil).text(t, url, "echo", `{"text":"hi"}`) != "hi" { // past the guard, with each request
		t.Error("sse")
	}
	if n := issuer.issued.Load(); n != 3 { // ada's, bob's and the gateway's: two targets with one configuration share
		t.Errorf("%d tokens were issued", n)
	}
	if got := handshake(t, f.endpoint(0, "/basic"), nil).text(t, f.endpoint(0, "/basic"), "echo", `{"text":"hi"}`); got != "hi" {
		t.Errorf("basic: %s", got)
	}

	got := knock(t, f.endpoint(0, "/broken"), nil)
	if got.status != 502 || !strings.Contains(got.body, `target \"broken\": the proxy could not obtain its credential`) || strings.Contains(got.body, broken.url) {
		t.Errorf("broken: %d %s", got.status, got.body)
	}
	// Compiled anew, all goes on with what it had.
	f.apply(strings.Replace(config, "/basic}", "/basic}, headers: [{name: x, value: {exact: y}}]", 1))
	if got := handshake(t, f.endpoint(0, "/mine"), as(ada)).sees(t, f.endpoint(0, "/mine"), "header", "X-Subject"); got != "ada" || issuer.issued.Load() != 3 {
		t.Errorf("after a push: %s, %d tokens", got, issuer.issued.Load())
	}
	broken.down.Store(false)
	until(t, "the broken one recovers", func() bool { return knock(t, f.endpoint(0, "/broken"), nil).status != 502 })

	logs := f.proxies[0].stderr.String() + f.plane.stderr.String() + f.must("status", "-o", "json") + f.must("get", "-o", "json")
	for _, secret := range []string{clientSecret, "p4ss", ada, bob} {
		if strings.Contains(logs, secret) {
			t.Errorf("%.8s… is told", secret)
		}
	}
	if !strings.Contains(logs, "temporarily_unavailable") {
		t.Error("no log tells why the broken one was")
	}
}

// The proxy's own identity at a cloud is for those who were granted it.
func TestIdentitiesAreGuarded(t *testing.T) {
	f := newFleet(t, 1, "private-network,metadata")
	target := func(auth string) string {
		return fmt.Sprintf("mcp:\n  port: %d\n  targets:\n  - name: t\n    mcp: {host: https://mcp.example.com}\n    policies: {backendAuth: {%s}}\n", f.port, auth)
	}
	for auth, grant := range map[string]string{
		"aws: {serviceName: s3, region: eu-west-1}": "identity=aws", "gcp: {}": "identity=gcp", "gcp: {type: idToken}": "identity=gcp",
		"azure: {implicit: {}}": "identity=azure", "azure: {explicitConfig: {managedIdentity: {}}}": "identity=azure",
	} {
		if got := f.refused(t, target(auth)); !strings.Contains(got, "sluice.yaml:6:") || !strings.Contains(got, grant) {
			t.Errorf("%s: %s", auth, got)
		}
	}
	f.must("tenant", "allow", "default", "private-network,identity=gcp")
	f.must("apply", "-f", write(t, "sluice.yaml", target("gcp: {}")), "--wait", "--timeout", "30s")
	if got := f.refused(t, target("azure: {implicit: {}}")); !strings.Contains(got, "identity=azure") {
		t.Errorf("another cloud: %s", got)
	}
	f.must("tenant", "allow", "default", "private-network")
	until(t, "the proxy ends what is no longer allowed", func() bool { return strings.Contains(f.must("status"), "identity=gcp") })
}
