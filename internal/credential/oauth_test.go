package credential

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/google/go-cmp/cmp"
)

// open dials anything, as a tenant with all grants would.
var open = Scope{Tenant: "t", Dial: (&net.Dialer{}).DialContext, Identity: (&net.Dialer{}).DialContext}

// serve runs a token endpoint and returns its URL.
func serve(t *testing.T, h http.HandlerFunc) string {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s.URL + "/token"
}

func answer(w http.ResponseWriter, body string) {
	w.Header().Set("Content-Type", "application/json")
	fmt.Fprint(w, body)
}

func TestClientAuthentication(t *testing.T) {
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	ecKey, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	_, edKey, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8 := func(k any) string {
		b, err := x509.MarshalPKCS8PrivateKey(k)
		if err != nil {
			t.Fatal(err)
		}
		return string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: b}))
	}
	jwk, err := json.Marshal(jose.JSONWebKey{Key: ecKey, KeyID: "own", Algorithm: "ES384"})
	if err != nil {
		t.Fatal(err)
	}
	assertions := func(key, id, alg, audience string) *Assertions {
		a, err := NewAssertions(key, id, alg, audience)
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	for _, tt := range []struct {
		name   string
		client Client
		key    crypto.PublicKey // that the assertion must verify with
		kid    string
		alg    jose.SignatureAlgorithm
		aud    string // empty: the endpoint
		basic  string
		form   url.Values // beside grant_type and the assertion
	}{
		{name: "basic, form-encoded", client: Client{ID: "a:b", Method: SecretBasic, Secret: "s&c ret"}, basic: "a%3Ab:s%26c+ret", form: url.Values{}},
		{name: "post", client: Client{ID: "c", Method: SecretPost, Secret: "s"}, form: url.Values{"client_id": {"c"}, "client_secret": {"s"}}},
		{name: "none", client: Client{ID: "c", Method: NoClientAuth}, form: url.Values{"client_id": {"c"}}},
		{name: "RSA in PEM", client: Client{ID: "c", Method: PrivateKeyJWT, Signer: assertions(pkcs8(rsaKey), "k1", "", "")}, key: &rsaKey.PublicKey, kid: "k1", alg: jose.RS256},
		{name: "PS256", client: Client{ID: "c", Method: PrivateKeyJWT, Signer: assertions(pkcs8(rsaKey), "", "PS256", "https://issuer")}, key: &rsaKey.PublicKey, alg: jose.PS256, aud: "https://issuer"},
		{name: "EC as JWK", client: Client{ID: "c", Method: PrivateKeyJWT, Signer: assertions(string(jwk), "", "", "")}, key: &ecKey.PublicKey, kid: "own", alg: jose.ES384},
		{name: "Ed25519", client: Client{ID: "c", Method: PrivateKeyJWT, Signer: assertions(pkcs8(edKey), "", "", "")}, key: edKey.Public(), alg: jose.EdDSA},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var got *http.Request
			tt.client.TokenURL = serve(t, func(w http.ResponseWriter, r *http.Request) {
				if err := r.ParseForm(); err != nil {
					t.Error(err)
				}
				got = r
				answer(w, `{"access_token":"tok","token_type":"bearer","expires_in":60}`)
			})
			var s Store
			if token := mustGet(t, &s, open.ClientCredentials(tt.client, url.Values{"scope": {"a b"}})); token != "tok" {
				t.Errorf("token %q", token)
			}
			user, password, _ := got.BasicAuth()
			if b := user + ":" + password; tt.basic != "" && b != tt.basic || tt.basic == "" && b != ":" {
				t.Errorf("basic %q", b)
			}
			form := got.PostForm
			if form.Get("grant_type") != "client_credentials" || form.Get("scope") != "a b" || got.Header.Get("Content-Type") != "application/x-www-form-urlencoded" {
				t.Errorf("form %v", form)
			}
			form.Del("grant_type")
			form.Del("scope")
			if tt.key == nil {
				if diff := cmp.Diff(tt.form, form); diff != "" {
					t.Errorf("form (-want +got):\n%s", diff)
				}
				return
			}
			if form.Get("client_assertion_type") != "urn:ietf:params:oauth:client-assertion-type:jwt-bearer" || form.Get("client_id") != "c" {
				t.Errorf("form %v", form)
			}
			parsed, err := jwt.ParseSigned(form.Get("client_assertion"), []jose.SignatureAlgorithm{tt.alg})
			if err != nil {
				t.Fatal(err)
			}
			var claims jwt.Claims
			if err := parsed.Claims(tt.key, &claims); err != nil {
				t.Fatal(err)
			}
			aud := tt.aud
			if aud == "" {
				aud = tt.client.TokenURL
			}
			if err := claims.ValidateWithLeeway(jwt.Expected{Issuer: "c", Subject: "c", AnyAudience: jwt.Audience{aud}, Time: time.Now()}, 0); err != nil {
				t.Error(err)
			}
			if claims.ID == "" || time.Until(claims.Expiry.Time()) > 5*time.Minute || parsed.Headers[0].KeyID != tt.kid {
				t.Errorf("claims %+v, kid %q", claims, parsed.Headers[0].KeyID)
			}
		})
	}
}

func TestExchange(t *testing.T) {
	var asked atomic.Int32
	endpoint := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if err := r.ParseForm(); err != nil {
			t.Error(err)
		}
		asked.Add(1)
		if r.PostForm.Get("grant_type") == "client_credentials" {
			answer(w, `{"access_token":"actor","token_type":"bearer","expires_in":600}`)
			return
		}
		want := url.Values{
			"grant_type": {"urn:ietf:params:oauth:grant-type:token-exchange"}, "subject_token": r.PostForm["subject_token"], "subject_token_type": {"urn:x"},
			"actor_token": {"actor"}, "actor_token_type": {"urn:y"}, "audience": {"api"}, "client_id": {"c"},
		}
		if diff := cmp.Diff(want, r.PostForm); diff != "" {
			t.Errorf("form (-want +got):\n%s", diff)
		}
		answer(w, `{"access_token":"for-`+r.PostForm.Get("subject_token")+`","issued_token_type":"urn:z","token_type":"N_A","expires_in":"600"}`)
	})
	var s Store
	client := Client{TokenURL: endpoint, ID: "c", Method: NoClientAuth}
	compile := func() *Exchange {
		return open.Exchange(client, url.Values{"audience": {"api"}, "subject_token_type": {"urn:x"}}, Actor{Source: open.ClientCredentials(client, nil), Type: "urn:y"}, &s)
	}
	for range 2 { // compiled anew, it goes on with what there is
		x := compile()
		for _, tt := range [][3]string{{"ann", "t1", "for-t1"}, {"bob", "t2", "for-t2"}, {"ann", "t3", "for-t3"}, {"bob", "t1", "for-t1"}, {"ann", "t1", "for-t1"}} {
			if got := mustGet(t, &s, x.Source(tt[0], tt[1])); got != tt[2] {
				t.Errorf("%v: %s", tt, got)
			}
		}
	}
	if n := asked.Load(); n != 5 { // the actor's, and four pairs of principal and token
		t.Errorf("%d requests", n)
	}
}

func TestHostileEndpoints(t *testing.T) {
	const secret, subject = "cl1ent-s3cret", "subj3ct-token"
	var elsewhere atomic.Int32
	other := serve(t, func(http.ResponseWriter, *http.Request) { elsewhere.Add(1) })
	huge := strings.Repeat("a", maxAnswer)
	for _, tt := range []struct {
		name    string
		handler http.HandlerFunc
		want    string // empty: a token
	}{
		{"HTML", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "<html>Sign in</html>") }, "no JSON"},
		{"HTML error", func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "<html>", http.StatusBadGateway) }, "answered 502 without an OAuth error"},
		{"redirect", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, other, http.StatusTemporaryRedirect) }, "redirect, which is not followed"},
		{"huge", func(w http.ResponseWriter, _ *http.Request) { answer(w, `{"access_token":"`+huge+huge+`"}`) }, "larger than any token"},
		{"long token", func(w http.ResponseWriter, _ *http.Request) {
			answer(w, `{"access_token":"`+huge[:maxTokenSize+1]+`"}`)
		}, "a token of 65537 bytes"},
		{"cut off", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "1000")
			fmt.Fprint(w, `{"access_token":`)
		}, "unexpected EOF"},
		{"nothing", func(w http.ResponseWriter, _ *http.Request) { answer(w, `{}`) }, "without an access_token"},
		{"null", func(w http.ResponseWriter, _ *http.Request) { answer(w, `null`) }, "without an access_token"},
		{"line break", func(w http.ResponseWriter, _ *http.Request) { answer(w, `{"access_token":"a\r\nX-Evil: 1"}`) }, "line break"},
		{"blank", func(w http.ResponseWriter, _ *http.Request) { answer(w, `{"access_token":"a b"}`) }, "blank"},
		{"not ASCII", func(w http.ResponseWriter, _ *http.Request) { answer(w, `{"access_token":"ä"}`) }, "no token may hold"},
		{"another type", func(w http.ResponseWriter, _ *http.Request) { answer(w, `{"access_token":"a","token_type":"DPoP"}`) }, `type "DPoP"`},
		{"expired", func(w http.ResponseWriter, _ *http.Request) { answer(w, `{"access_token":"a","expires_in":0}`) }, "expired on arrival"},
		{"long expired", func(w http.ResponseWriter, _ *http.Request) { answer(w, `{"access_token":"a","expires_in":-3600}`) }, "expired on arrival"},
		{"no number", func(w http.ResponseWriter, _ *http.Request) { answer(w, `{"access_token":"a","expires_in":"soon"}`) }, "no number of seconds"},
		{"NaN", func(w http.ResponseWriter, _ *http.Request) { answer(w, `{"access_token":"a","expires_in":"NaN"}`) }, "no number of seconds"},
		{"an object", func(w http.ResponseWriter, _ *http.Request) { answer(w, `{"access_token":"a","expires_in":{}}`) }, "no number of seconds"},
		{"a string", func(w http.ResponseWriter, _ *http.Request) { answer(w, `{"access_token":"a","expires_in":" 60 "}`) }, ""},
		{"a fraction", func(w http.ResponseWriter, _ *http.Request) { answer(w, `{"access_token":"a","expires_in":59.5}`) }, ""},
		{"for ever", func(w http.ResponseWriter, _ *http.Request) { answer(w, `{"access_token":"a","expires_in":1e300}`) }, ""},
		{"longer than numbers", func(w http.ResponseWriter, _ *http.Request) { answer(w, `{"access_token":"a","expires_in":1e400}`) }, ""},
		{"not told", func(w http.ResponseWriter, _ *http.Request) { answer(w, `{"access_token":"a","expires_in":null}`) }, ""},
		{"an echo", func(w http.ResponseWriter, r *http.Request) {
			_ = r.ParseForm()
			w.WriteHeader(http.StatusBadRequest)
			b, _ := json.Marshal(map[string]string{"error": "invalid_grant", "error_description": "bad\n\x1b[31m " + r.PostForm.Get("subject_token") + r.PostForm.Get("client_secret") + huge[:10000]})
			answer(w, string(b))
		}, "answered 400, invalid_grant: bad [31m [redacted][redacted]aaa"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			client := Client{TokenURL: serve(t, tt.handler), ID: "c", Method: SecretPost, Secret: secret}
			var s Store
			token, err := s.Get(t.Context(), open.Exchange(client, nil, Actor{}, &s).Source("p", subject))
			if tt.want == "" {
				if err != nil || token.Reveal() != "a" {
					t.Errorf("%v, %v", token.Reveal(), err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("%v, want …%s…", err, tt.want)
			}
			text := fmt.Sprintf("%v %+v %#v", err, err, err)
			if strings.Contains(text, secret) || strings.Contains(text, subject) || strings.ContainsAny(err.Error(), "\r\n\x1b") || len(err.Error()) > 1000 {
				t.Errorf("unfit for a log line: %s", text)
			}
		})
	}
	if elsewhere.Load() > 0 {
		t.Error("a redirect was followed with the client's secret")
	}
}

func TestEndpointBeyondGrants(t *testing.T) {
	scope := Scope{Tenant: "t", Dial: func(context.Context, string, string) (net.Conn, error) { return nil, errors.New("not granted") }}
	var s Store
	_, err := s.Get(t.Context(), scope.ClientCredentials(Client{TokenURL: "http://127.0.0.1:1/token?key=s3cret", ID: "c", Method: NoClientAuth}, nil))
	if err == nil || !strings.Contains(err.Error(), "token endpoint http://127.0.0.1:1/token: not granted") || strings.Contains(err.Error(), "s3cret") {
		t.Errorf("%v", err)
	}
}
