package credential

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
)

// lonely is a machine that has no identity anywhere, whatever the one that runs the test has.
func lonely(t *testing.T) string {
	home := t.TempDir()
	for _, name := range []string{
		"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_ROLE_ARN", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_FULL_URI",
		"AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_CA_BUNDLE", "GOOGLE_APPLICATION_CREDENTIALS", "CLOUDSDK_CONFIG", "GCE_METADATA_HOST",
		"AWS_EC2_METADATA_SERVICE_ENDPOINT", "AZURE_CLIENT_ID", "AZURE_TENANT_ID", "AZURE_CLIENT_SECRET", "AZURE_FEDERATED_TOKEN_FILE", "IDENTITY_ENDPOINT", "IDENTITY_HEADER", "MSI_ENDPOINT", "IMDS_ENDPOINT",
	} {
		t.Setenv(name, "")
		os.Unsetenv(name) // Setenv restores it
	}
	t.Setenv("HOME", home)
	t.Setenv("AWS_CONFIG_FILE", filepath.Join(home, "none"))
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", filepath.Join(home, "none"))
	return home
}

// dialMetadata brings what is meant for the clouds' metadata address to a server of the test, and nothing else anywhere.
func dialMetadata(server *httptest.Server) DialFunc {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		if address != "169.254.169.254:80" {
			return nil, fmt.Errorf("dialled %s", address)
		}
		return (&net.Dialer{}).DialContext(ctx, network, server.Listener.Addr().String())
	}
}

func refuseDial(_ context.Context, _, address string) (net.Conn, error) {
	return nil, fmt.Errorf("dialled %s beside the identity's", address)
}

// securityTokenService answers as AWS STS does, and remembers what it was asked.
type securityTokenService struct {
	mu    sync.Mutex
	asked []url.Values
	auth  []string
	life  time.Duration
	fail  string // an error code
}

func (s *securityTokenService) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	_ = r.ParseForm()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked, s.auth = append(s.asked, r.PostForm), append(s.auth, r.Header.Get("Authorization"))
	w.Header().Set("Content-Type", "text/xml")
	if s.fail != "" {
		w.WriteHeader(http.StatusForbidden)
		fmt.Fprintf(w, `<ErrorResponse><Error><Type>Sender</Type><Code>%s</Code><Message>no, %s</Message></Error></ErrorResponse>`, s.fail, r.PostForm.Get("WebIdentityToken"))
		return
	}
	action := r.PostForm.Get("Action")
	fmt.Fprintf(w, `<%[1]sResponse><%[1]sResult><Credentials><AccessKeyId>ASIA%[2]d</AccessKeyId><SecretAccessKey>S</SecretAccessKey><SessionToken>T%[2]d</SessionToken><Expiration>%[3]s</Expiration></Credentials></%[1]sResult></%[1]sResponse>`,
		action, len(s.asked), time.Now().Add(s.life).UTC().Format(time.RFC3339))
}

func TestAssumeRole(t *testing.T) {
	lonely(t)
	sts := &securityTokenService{life: time.Hour}
	server := httptest.NewServer(sts)
	defer server.Close()
	var s Store
	compile := func() *AWS {
		return open.AWS("eu-west-1", server.URL, &AWSKeys{"AKID", "SECRET", ""}, nil, &s)
	}
	role := func(name, team string) *AWSRole {
		return &AWSRole{ARN: "arn:aws:iam::123456789012:role/r", SessionName: name, ExternalID: "ext", Duration: 15 * time.Minute, Tags: map[string]string{"team": team, "a": "b"}}
	}
	keys := func(r *AWSRole) string {
		t.Helper()
		k, err := compile().Keys(t.Context(), r)
		if err != nil {
			t.Fatal(err)
		}
		return k.keys.AccessKeyID + "/" + k.keys.SessionToken
	}
	if a, again, b, c := keys(role("ann", "x")), keys(role("ann", "x")), keys(role("bob", "x")), keys(role("ann", "y")); a != again || a == b || a == c || b == c {
		t.Errorf("sessions %s %s %s %s", a, again, b, c)
	}
	if len(sts.asked) != 3 {
		t.Fatalf("asked %d times", len(sts.asked))
	}
	got := sts.asked[0]
	for name, want := range map[string]string{"Action": "AssumeRole", "RoleArn": "arn:aws:iam::123456789012:role/r", "RoleSessionName": "ann", "ExternalId": "ext", "DurationSeconds": "900",
		"Tags.member.1.Key": "a", "Tags.member.1.Value": "b", "Tags.member.2.Key": "team", "Tags.member.2.Value": "x"} {
		if got.Get(name) != want {
			t.Errorf("%s = %q, want %q", name, got.Get(name), want)
		}
	}
	if !strings.HasPrefix(sts.auth[0], "AWS4-HMAC-SHA256 Credential=AKID/") || !strings.Contains(sts.auth[0], "/eu-west-1/sts/aws4_request") {
		t.Errorf("Authorization: %s", sts.auth[0])
	}
	if k, err := compile().Keys(t.Context(), nil); err != nil || k.keys.AccessKeyID != "AKID" {
		t.Errorf("without a role: %v", err)
	}

	sts.fail = "AccessDenied"
	if _, err := compile().Keys(t.Context(), role("eve", "x")); err == nil || err.Error() != "sts:AssumeRole: AccessDenied: no," {
		t.Errorf("%v", err)
	}
	keys(role("ann", "x")) // which has nothing to do with eve
}

func TestWebIdentity(t *testing.T) {
	lonely(t)
	sts := &securityTokenService{life: time.Hour}
	server := httptest.NewServer(sts)
	defer server.Close()
	var s Store
	web := &AWSWebIdentity{RoleARN: "arn:aws:iam::123456789012:role/r", Token: "oidc-t0ken", SessionName: "sluice"}
	a := open.AWS("eu-west-1", server.URL, nil, web, &s)
	k, err := a.Keys(t.Context(), nil)
	if err != nil || k.keys.AccessKeyID != "ASIA1" {
		t.Fatalf("%v", err)
	}
	if got := sts.asked[0]; got.Get("Action") != "AssumeRoleWithWebIdentity" || got.Get("WebIdentityToken") != "oidc-t0ken" || got.Get("RoleSessionName") != "sluice" || sts.auth[0] != "" {
		t.Errorf("asked %v, %q", got, sts.auth[0])
	}
	// A role on top of it is assumed with its keys.
	if k, err = a.Keys(t.Context(), &AWSRole{ARN: "arn:aws:iam::123456789012:role/s", SessionName: "n"}); err != nil || k.keys.AccessKeyID != "ASIA2" || !strings.Contains(sts.auth[1], "Credential=ASIA1/") {
		t.Errorf("%v, %v", sts.auth, err)
	}
	sts.fail = "InvalidIdentityToken"
	_, err = open.AWS("eu-west-1", server.URL, nil, &AWSWebIdentity{RoleARN: web.RoleARN, Token: "other-t0ken", SessionName: "sluice"}, &s).Keys(t.Context(), nil)
	if err == nil || !strings.Contains(err.Error(), "InvalidIdentityToken") || strings.Contains(err.Error(), "t0ken") {
		t.Errorf("%v", err)
	}
}

func TestAmbientAWS(t *testing.T) {
	lonely(t)
	imds := http.NewServeMux()
	imds.HandleFunc("PUT /latest/api/token", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Aws-Ec2-Metadata-Token-Ttl-Seconds", "300")
		fmt.Fprint(w, "session")
	})
	imds.HandleFunc("GET /latest/meta-data/iam/security-credentials/{role...}", func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.Header.Get("X-Aws-Ec2-Metadata-Token") != "session":
			w.WriteHeader(http.StatusUnauthorized)
		case r.PathValue("role") == "":
			fmt.Fprint(w, "machine")
		default:
			fmt.Fprintf(w, `{"Code":"Success","Type":"AWS-HMAC","AccessKeyId":"ASIAIMDS","SecretAccessKey":"S","Token":"T","Expiration":%q}`, time.Now().Add(time.Hour).UTC().Format(time.RFC3339))
		}
	})
	server := httptest.NewServer(imds)
	defer server.Close()
	t.Setenv("AWS_REGION", "eu-north-1")
	var s Store
	a := Scope{Tenant: "t", Dial: refuseDial, Identity: dialMetadata(server)}.AWS("", "", nil, nil, &s)
	k, err := a.Keys(t.Context(), nil)
	if err != nil || k.keys.AccessKeyID != "ASIAIMDS" || k.Expires.IsZero() {
		t.Fatalf("%v", err)
	}
	if region, err := a.Region(); err != nil || region != "eu-north-1" {
		t.Errorf("%s, %v", region, err)
	}
	os.Unsetenv("AWS_REGION")
	if _, err := a.Region(); err == nil {
		t.Error("no region, no error")
	}
}

// googleKey is a service account's file whose token endpoint is at uri.
func googleKey(t *testing.T, uri string) (file string, public *rsa.PublicKey) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)})
	b, err := json.Marshal(map[string]string{"type": "service_account", "client_email": "sa@p.iam.gserviceaccount.com", "private_key": string(text), "private_key_id": "1", "token_uri": uri})
	if err != nil {
		t.Fatal(err)
	}
	return string(b), &key.PublicKey
}

func TestGoogleServiceAccount(t *testing.T) {
	lonely(t)
	var public *rsa.PublicKey
	var claims struct {
		jwt.Claims
		Scope  string `json:"scope"`
		Target string `json:"target_audience"`
	}
	uri := serve(t, func(w http.ResponseWriter, r *http.Request) {
		_ = r.ParseForm()
		parsed, err := jwt.ParseSigned(r.PostForm.Get("assertion"), []jose.SignatureAlgorithm{jose.RS256})
		if err == nil {
			claims.Scope, claims.Target = "", ""
			err = parsed.Claims(public, &claims)
		}
		if err != nil {
			t.Error(err)
		}
		if claims.Target != "" {
			answer(w, `{"id_token":"`+unsignedJWT(t, claims.Target)+`"}`)
			return
		}
		answer(w, `{"access_token":"ya29","token_type":"Bearer","expires_in":3599}`)
	})
	var file string
	file, public = googleKey(t, uri)
	var s Store
	if got := mustGet(t, &s, open.GCP(GCP{JSON: file, Scopes: []string{"a", "b"}})); got != "ya29" || claims.Scope != "a b" || claims.Issuer != "sa@p.iam.gserviceaccount.com" {
		t.Errorf("%s for %+v", got, claims)
	}
	id, err := s.Get(t.Context(), open.GCP(GCP{JSON: file, Audience: "https://api"}))
	if err != nil || claims.Target != "https://api" || strings.Count(id.Reveal(), ".") != 2 || time.Until(id.Expires) < 50*time.Minute {
		t.Errorf("id token until %v for %+v: %v", id.Expires, claims, err)
	}
}

// unsignedJWT is a token for an hour, signed by nobody who matters.
func unsignedJWT(t *testing.T, audience string) string {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.RS256, Key: key}, nil)
	if err != nil {
		t.Fatal(err)
	}
	text, err := jwt.Signed(signer).Claims(jwt.Claims{Audience: jwt.Audience{audience}, Expiry: jwt.NewNumericDate(time.Now().Add(time.Hour))}).Serialize()
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func TestGoogleWorkloadIdentity(t *testing.T) {
	home := lonely(t)
	subject := filepath.Join(home, "subject")
	if err := os.WriteFile(subject, []byte("oidc-token"), 0o600); err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /sts", func(w http.ResponseWriter, r *http.Request) {
		_ = r.ParseForm()
		if r.PostForm.Get("subject_token") != "oidc-token" || r.PostForm.Get("audience") != "//iam/pool" {
			t.Errorf("STS was asked %v", r.PostForm)
		}
		answer(w, `{"access_token":"federated","issued_token_type":"urn:ietf:params:oauth:token-type:access_token","token_type":"Bearer","expires_in":3600}`)
	})
	mux.HandleFunc("POST /sa/{action}", func(w http.ResponseWriter, r *http.Request) {
		var ask struct{ Audience string }
		_ = json.NewDecoder(r.Body).Decode(&ask)
		switch {
		case r.Header.Get("Authorization") != "Bearer federated":
			w.WriteHeader(http.StatusForbidden)
		case strings.HasSuffix(r.PathValue("action"), ":generateIdToken"):
			answer(w, `{"token":"`+unsignedJWT(t, ask.Audience)+`"}`)
		default:
			answer(w, `{"accessToken":"impersonated","expireTime":"`+time.Now().Add(time.Hour).UTC().Format(time.RFC3339)+`"}`)
		}
	})
	server := httptest.NewServer(mux)
	defer server.Close()
	file := func(impersonate string) string {
		b, err := json.Marshal(map[string]any{"type": "external_account", "audience": "//iam/pool", "subject_token_type": "urn:ietf:params:oauth:token-type:jwt", "token_url": server.URL + "/sts",
			"credential_source": map[string]string{"file": subject}, "service_account_impersonation_url": impersonate})
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	var s Store
	if got := mustGet(t, &s, open.GCP(GCP{JSON: file(""), Scopes: []string{cloudPlatform}})); got != "federated" {
		t.Errorf("got %s", got)
	}
	as := server.URL + "/sa/x@p:generateAccessToken"
	if got := mustGet(t, &s, open.GCP(GCP{JSON: file(as), Scopes: []string{cloudPlatform}})); got != "impersonated" {
		t.Errorf("got %s", got)
	}
	id := mustGet(t, &s, open.GCP(GCP{JSON: file(as), Audience: "https://api"}))
	var claims jwt.Claims
	if parsed, err := jwt.ParseSigned(id, []jose.SignatureAlgorithm{jose.RS256}); err != nil || parsed.UnsafeClaimsWithoutVerification(&claims) != nil || !claims.Audience.Contains("https://api") {
		t.Errorf("id token %s: %v", id, err)
	}
	if _, err := s.Get(t.Context(), open.GCP(GCP{JSON: file(""), Audience: "https://api"})); err == nil || !strings.Contains(err.Error(), "impersonates no service account") {
		t.Errorf("%v", err)
	}
}

func TestAmbientGoogle(t *testing.T) {
	lonely(t)
	mux := http.NewServeMux()
	mux.HandleFunc("GET /computeMetadata/v1/instance/service-accounts/default/{what}", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Metadata-Flavor", "Google")
		switch {
		case r.Header.Get("Metadata-Flavor") != "Google":
			w.WriteHeader(http.StatusForbidden)
		case r.PathValue("what") == "identity":
			fmt.Fprint(w, unsignedJWT(t, r.FormValue("audience")))
		default:
			answer(w, `{"access_token":"gce-`+r.FormValue("scopes")+`","token_type":"Bearer","expires_in":1800}`)
		}
	})
	server := httptest.NewServer(mux)
	defer server.Close()
	scope := Scope{Tenant: "t", Dial: refuseDial, Identity: dialMetadata(server)}
	var s Store
	if got := mustGet(t, &s, scope.GCP(GCP{Scopes: []string{"x", "y"}})); got != "gce-x,y" {
		t.Errorf("got %s", got)
	}
	if id, err := s.Get(t.Context(), scope.GCP(GCP{Audience: "https://api"})); err != nil || id.Expires.IsZero() {
		t.Errorf("id token: %v", err)
	}
	// A file goes before the machine.
	uri := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		answer(w, `{"access_token":"file","token_type":"Bearer","expires_in":60}`)
	})
	file, _ := googleKey(t, uri)
	path := filepath.Join(t.TempDir(), "adc.json")
	if err := os.WriteFile(path, []byte(file), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("GOOGLE_APPLICATION_CREDENTIALS", path)
	var fresh Store
	if got := mustGet(t, &fresh, open.GCP(GCP{Scopes: []string{"x"}})); got != "file" {
		t.Errorf("got %s", got)
	}
}

func TestAzureManagedIdentity(t *testing.T) {
	lonely(t)
	var asked []string
	imds := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Metadata") != "true" {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		asked = append(asked, r.URL.Path+"?"+r.URL.Query().Get("resource")+"&"+r.URL.Query().Get("client_id"))
		answer(w, fmt.Sprintf(`{"access_token":"msi-%d","expires_in":"3600","expires_on":"%d","resource":"x","token_type":"Bearer"}`, len(asked), time.Now().Add(time.Hour).Unix()))
	}))
	defer imds.Close()
	scope := Scope{Tenant: "t", Dial: refuseDial, Identity: dialMetadata(imds)}
	var s Store
	for _, a := range []Azure{{Managed: &AzureManaged{}}, {Managed: &AzureManaged{ClientID: "user"}}, {Own: true}} {
		a.Scopes = []string{"https://api/.default"}
		token, err := s.Get(t.Context(), scope.Azure(a))
		if err != nil || !strings.HasPrefix(token.Reveal(), "msi-") || time.Until(token.Expires) < 50*time.Minute {
			t.Errorf("%+v: %v", a, err)
		}
	}
	if len(asked) < 2 || asked[0] != "/metadata/identity/oauth2/token?https://api&" || asked[1] != "/metadata/identity/oauth2/token?https://api&user" {
		t.Errorf("asked %q", asked)
	}
}

// entra answers as Microsoft Entra's token endpoint does.
func entra(t *testing.T, token func(form url.Values) (status int, body string)) (authority string, scope Scope) {
	mux := http.NewServeMux()
	var server *httptest.Server
	mux.HandleFunc("GET /tenant/v2.0/.well-known/openid-configuration", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, `{"token_endpoint":"`+server.URL+`/tenant/oauth2/v2.0/token","authorization_endpoint":"`+server.URL+`/a","issuer":"`+server.URL+`/tenant/v2.0"}`)
	})
	mux.HandleFunc("POST /tenant/oauth2/v2.0/token", func(w http.ResponseWriter, r *http.Request) {
		_ = r.ParseForm()
		status, body := token(r.PostForm)
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		fmt.Fprint(w, body)
	})
	server = httptest.NewTLSServer(mux)
	t.Cleanup(server.Close)
	trusted = server.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs
	t.Cleanup(func() { trusted = nil })
	return server.URL, open
}

func TestAzureClientSecret(t *testing.T) {
	lonely(t)
	const secret = "az-s3cret"
	var asked atomic.Int32
	authority, scope := entra(t, func(form url.Values) (int, string) {
		asked.Add(1)
		if form.Get("client_secret") != secret {
			return 401, `{"error":"invalid_client","error_description":"AADSTS7000215: Invalid client secret ` + form.Get("client_secret") + `"}`
		}
		if form.Get("grant_type") != "client_credentials" || form.Get("client_id") != "app" || !strings.Contains(form.Get("scope"), "https://api/.default") {
			t.Errorf("form %v", form)
		}
		return 200, `{"access_token":"entra","token_type":"Bearer","expires_in":3599}`
	})
	var s Store
	source := func(secret string) *Source {
		return scope.Azure(Azure{Secret: &AzureSecret{"tenant", "app", secret, authority}, Scopes: []string{"https://api/.default"}})
	}
	if got := mustGet(t, &s, source(secret)); got != "entra" {
		t.Errorf("got %s", got)
	}
	first, err := s.Get(t.Context(), source(secret))
	if err != nil || asked.Load() != 1 {
		t.Errorf("asked %d times, %v", asked.Load(), err)
	}
	if !s.Reject(source(secret), first) || mustGet(t, &s, source(secret)) != "entra" || asked.Load() != 2 {
		t.Errorf("the SDK's cache brought the token back that was refused: asked %d times", asked.Load())
	}
	_, err = s.Get(t.Context(), source("wr0ng"))
	if err == nil || !strings.Contains(err.Error(), "AADSTS7000215") || strings.Contains(err.Error(), "wr0ng") || strings.Contains(err.Error(), "\n") {
		t.Errorf("%v", err)
	}
}

func TestAzureWorkloadIdentity(t *testing.T) {
	lonely(t)
	authority, scope := entra(t, func(form url.Values) (int, string) {
		return 200, `{"access_token":"for-` + form.Get("client_assertion") + `","token_type":"Bearer","expires_in":3599}`
	})
	var s Store
	if got := mustGet(t, &s, scope.Azure(Azure{Assertion: &AzureAssertion{"tenant", "app", "federated", authority}, Scopes: []string{"https://api/.default"}})); got != "for-federated" {
		t.Errorf("got %s", got)
	}
}
