package systemtest

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/modelcontextprotocol/go-sdk/auth"
	"github.com/modelcontextprotocol/go-sdk/mcp"
	"github.com/modelcontextprotocol/go-sdk/oauthex"

	"github.com/sluicegate/sluice/internal/mcptest"
)

// authorizer is an authorization server with the code flow (RFC 6749, 7636, 8414, 8707) whose user agrees to all. It
// issues tokens for the resource that the client names, and for no other.
type authorizer struct {
	t   *testing.T
	key signer
	url string

	mu     sync.Mutex            // guards what is below
	codes  map[string]url.Values // what was asked for
	scopes []string              // of each authorization
}

func newAuthorizer(t *testing.T) *authorizer {
	a := &authorizer{t: t, key: newSigner(t, "as"), codes: map[string]url.Values{}}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /.well-known/oauth-authorization-server", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprintf(w, `{"issuer":%q,"authorization_endpoint":"%[2]s/authorize","token_endpoint":"%[2]s/token","jwks_uri":"%[2]s/jwks",`+
			`"response_types_supported":["code"],"code_challenge_methods_supported":["S256"],"token_endpoint_auth_methods_supported":["client_secret_post"]}`, a.url, a.url)
	})
	mux.HandleFunc("GET /jwks", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, a.key.jwks(t)) })
	mux.HandleFunc("GET /authorize", a.authorize)
	mux.HandleFunc("POST /token", a.token)
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	a.url = server.URL
	return a
}

func (a *authorizer) authorize(w http.ResponseWriter, r *http.Request) {
	asked := r.URL.Query()
	if asked.Get("client_id") != "agent" || asked.Get("code_challenge_method") != "S256" || asked.Get("resource") == "" {
		http.Error(w, "invalid_request", http.StatusBadRequest)
		return
	}
	code := rand.Text()
	a.mu.Lock()
	a.codes[code] = asked
	a.scopes = append(a.scopes, asked.Get("scope"))
	a.mu.Unlock()
	http.Redirect(w, r, asked.Get("redirect_uri")+"?"+url.Values{"code": {code}, "state": {asked.Get("state")}}.Encode(), http.StatusFound)
}

func (a *authorizer) token(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	asked := a.codes[r.FormValue("code")]
	delete(a.codes, r.FormValue("code"))
	a.mu.Unlock()
	sum := sha256.Sum256([]byte(r.FormValue("code_verifier")))
	w.Header().Set("Content-Type", "application/json")
	if asked == nil || asked.Get("code_challenge") != base64.RawURLEncoding.EncodeToString(sum[:]) || r.FormValue("resource") != asked.Get("resource") || r.FormValue("client_secret") != clientSecret {
		w.WriteHeader(http.StatusBadRequest)
		fmt.Fprint(w, `{"error":"invalid_grant"}`)
		return
	}
	fmt.Fprintf(w, `{"access_token":%q,"token_type":"Bearer","expires_in":3600,"scope":%q}`, a.issue(asked.Get("resource"), asked.Get("scope")), asked.Get("scope"))
}

func (a *authorizer) issue(resource, scope string) string {
	return a.key.sign(a.t, map[string]any{"iss": a.url, "sub": "ada", "aud": resource, "scope": scope, "exp": time.Now().Add(time.Hour).Unix()})
}

func (a *authorizer) asked() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.scopes)
}

// user is the browser: it goes where it is sent, and comes back with the code.
func (a *authorizer) user(ctx context.Context, args *auth.AuthorizationArgs) (*auth.AuthorizationResult, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, args.URL, nil)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	_ = resp.Body.Close()
	back, err := resp.Location()
	if err != nil {
		return nil, errors.New("the authorization server did not send the user back: " + resp.Status)
	}
	return &auth.AuthorizationResult{Code: back.Query().Get("code"), State: back.Query().Get("state")}, nil
}

// A client that knows nothing but the endpoint's URL finds out by itself where to get a token, for what and with which
// scopes, and asks for more when a tool needs more. The control plane knows nothing of the issuer but its name.
func TestClientFindsItsIssuer(t *testing.T) {
	f := newFleet(t, 1, "private-network")
	a := newAuthorizer(t)
	srv := mcptest.NewServer(t, mcptest.Options{})
	f.apply(fmt.Sprintf(`binds:
- port: %d
  listeners:
  - routes:
    - name: found
      matches: [{path: {pathPrefix: /mcp}}]
      policies: {mcpAuthentication: {issuer: %[2]q, scopes: [tools], resourceMetadata: {resourceName: Tools}}}
      backends: [{backend: b}]
    - name: named
      matches: [{path: {pathPrefix: /named}}]
      policies: {mcpAuthentication: {issuer: %[2]q, resource: "https://mcp.example.com/named"}}
      backends: [{backend: b}]
backends:
- name: b
  mcp:
    policies:
      mcpAuthorization:
        rules: [{require: '!has(mcp.tool) || mcp.tool.name != "add" || "admin" in scopes', scope: admin}]
    targets: [{name: t, mcp: {host: %[3]q}}]
`, f.port, a.url, srv.URL))

	handler, err := auth.NewAuthorizationCodeHandler(&auth.AuthorizationCodeHandlerConfig{
		PreregisteredClient:      &oauthex.ClientCredentials{ClientID: "agent", ClientSecretAuth: &oauthex.ClientSecretAuth{ClientSecret: clientSecret}},
		RedirectURL:              "http://127.0.0.1:1/back",
		AuthorizationCodeFetcher: a.user,
	})
	if err != nil {
		t.Fatal(err)
	}
	endpoint := f.endpoint(0, "/mcp")
	agent, err := mcp.NewClient(&mcp.Implementation{Name: "agent", Version: "1"}, nil).
		Connect(t.Context(), &mcp.StreamableClientTransport{Endpoint: endpoint, OAuthHandler: handler}, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer agent.Close()
	call := func(name string, arguments map[string]any) string {
		t.Helper()
		result, err := agent.CallTool(t.Context(), &mcp.CallToolParams{Name: name, Arguments: arguments})
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		text, _ := result.Content[0].(*mcp.TextContent)
		return text.Text
	}
	if got := call("echo", map[string]any{"text": "hi"}); got != "hi" {
		t.Errorf("echo: %s", got)
	}
	if got := a.asked(); !slices.Equal(got, []string{"tools"}) {
		t.Errorf("scopes that were asked for: %q", got)
	}
	if got := call("add", map[string]any{"a": 1, "b": 2}); got != "3" {
		t.Errorf("add, which needs more: %s", got)
	}
	if got := a.asked(); len(got) != 2 || got[1] != "tools admin" && got[1] != "admin tools" {
		t.Errorf("scopes that were asked for then: %q", got)
	}

	// The same document at the other place; and a token is good for one resource alone.
	for path, want := range map[string]string{
		"/.well-known/oauth-protected-resource/mcp":   endpoint,
		"/.well-known/oauth-protected-resource/named": "https://mcp.example.com/named",
	} {
		got := (&session{}).do(t, http.MethodGet, f.endpoint(0, path), "")
		var document struct {
			Resource string
			Issuers  []string `json:"authorization_servers"`
		}
		if err := json.Unmarshal([]byte(got.body), &document); err != nil || document.Resource != want || !slices.Equal(document.Issuers, []string{a.url}) {
			t.Errorf("%s: %d %s", path, got.status, got.body)
		}
	}
	for token, want := range map[string]int{
		a.issue(endpoint, "tools"): http.StatusOK, a.issue(endpoint, "other"): http.StatusForbidden,
		a.issue(f.endpoint(0, "/named"), "tools"): http.StatusUnauthorized, a.issue("https://mcp.example.com/named", "tools"): http.StatusUnauthorized,
	} {
		if got := knock(t, endpoint, as(token)); got.status != want {
			t.Errorf("%d, want %d: %v %s", got.status, want, got.header, got.body)
		}
	}
}
