package policy

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/google/go-cmp/cmp"

	policyv1 "github.com/sluicegate/sluice/proto/gen/sluice/policy/v1"
	xdsv1 "github.com/sluicegate/sluice/proto/gen/sluice/xds/v1"
)

// keys are made once: RSA keys take their time.
var keys = sync.OnceValue(func() (k struct {
	rsa, rsa2 *rsa.PrivateKey
	ec        *ecdsa.PrivateKey
	ed        ed25519.PrivateKey
	oct       []byte
}) {
	k.rsa, _ = rsa.GenerateKey(rand.Reader, 2048)
	k.rsa2, _ = rsa.GenerateKey(rand.Reader, 2048)
	k.ec, _ = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	_, k.ed, _ = ed25519.GenerateKey(rand.Reader)
	k.oct = []byte("0123456789abcdef0123456789abcdef")
	return k
})

func jwks(t testing.TB, keys ...jose.JSONWebKey) string {
	t.Helper()
	b, err := json.Marshal(jose.JSONWebKeySet{Keys: keys})
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func sign(t testing.TB, alg jose.SignatureAlgorithm, key any, kid, claims string) string {
	t.Helper()
	s, err := jose.NewSigner(jose.SigningKey{Algorithm: alg, Key: jose.JSONWebKey{Key: key, KeyID: kid}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	signed, err := s.Sign([]byte(claims))
	if err != nil {
		t.Fatal(err)
	}
	token, err := signed.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// raw makes a token by hand, for what no signer would sign.
func raw(header, claims string, sign func(input []byte) []byte) string {
	b64 := base64.RawURLEncoding.EncodeToString
	input := b64([]byte(header)) + "." + b64([]byte(claims))
	return input + "." + b64(sign([]byte(input)))
}

func hs256(key []byte) func([]byte) []byte {
	return func(input []byte) []byte {
		m := hmac.New(sha256.New, key)
		m.Write(input)
		return m.Sum(nil)
	}
}

func rs256(key *rsa.PrivateKey) func([]byte) []byte {
	return func(input []byte) []byte {
		sum := sha256.Sum256(input)
		s, err := rsa.SignPKCS1v15(rand.Reader, key, crypto.SHA256, sum[:])
		if err != nil {
			panic(err)
		}
		return s
	}
}

func claimsAt(now time.Time, changes ...string) string {
	m := map[string]any{"iss": "https://idp.test", "aud": "sluice", "sub": "ada", "exp": now.Add(time.Hour).Unix(), "level": 7, "roles": []string{"admin"}}
	for _, c := range changes {
		var more map[string]any
		if err := json.Unmarshal([]byte(c), &more); err != nil {
			panic(err)
		}
		for k, v := range more {
			if m[k] = v; v == nil {
				delete(m, k)
			}
		}
	}
	b, _ := json.Marshal(m)
	return string(b)
}

func jwtPolicy(mode policyv1.JwtAuth_Mode, providers ...*policyv1.JwtProvider) *xdsv1.EffectivePolicy {
	return &xdsv1.EffectivePolicy{Policies: &policyv1.Policies{JwtAuth: &policyv1.JwtAuth{Mode: mode, Providers: providers}}}
}

func inline(issuer, set string, audiences ...string) *policyv1.JwtProvider {
	return &policyv1.JwtProvider{Issuer: issuer, Audiences: audiences, Jwks: &policyv1.Jwks{Source: &policyv1.Jwks_Inline{Inline: set}}}
}

func request(token string) *http.Request {
	r := httptest.NewRequest("POST", "/mcp", nil)
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	return r
}

func TestJWT(t *testing.T) {
	k, now := keys(), time.Now()
	set := jwks(t,
		jose.JSONWebKey{Key: &k.rsa.PublicKey, KeyID: "r", Algorithm: "RS256", Use: "sig"},
		jose.JSONWebKey{Key: &k.ec.PublicKey, KeyID: "e"},
		jose.JSONWebKey{Key: k.ed.Public(), KeyID: "d"},
		jose.JSONWebKey{Key: k.oct, KeyID: "o"},
		jose.JSONWebKey{Key: &k.rsa2.PublicKey, KeyID: "enc", Use: "enc"},
		jose.JSONWebKey{Key: &k.rsa2.PublicKey, KeyID: "p", Algorithm: "PS256"},
	)
	provider := inline("https://idp.test", set, "other", "sluice")
	provider.RequiredClaims = []string{"level"}
	rt := func(mode policyv1.JwtAuth_Mode) *Route {
		out, err := CompileRoute(jwtPolicy(mode, provider), Resolver{})
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	strict, optional, permissive := rt(policyv1.JwtAuth_MODE_STRICT), rt(policyv1.JwtAuth_MODE_UNSPECIFIED), rt(policyv1.JwtAuth_MODE_PERMISSIVE)
	publicDER, _ := x509.MarshalPKIXPublicKey(&k.rsa.PublicKey)
	publicPEM := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: publicDER})
	good := sign(t, jose.RS256, k.rsa, "r", claimsAt(now))
	parts := strings.Split(good, ".")

	for _, tt := range []struct {
		name, token string
		ok          bool
	}{
		{"RS256", good, true},
		{"ES256", sign(t, jose.ES256, k.ec, "e", claimsAt(now)), true},
		{"EdDSA", sign(t, jose.EdDSA, k.ed, "d", claimsAt(now)), true},
		{"HS256 by the symmetric key", sign(t, jose.HS256, k.oct, "o", claimsAt(now)), true},
		{"no kid", sign(t, jose.ES256, k.ec, "", claimsAt(now)), true},
		{"list of audiences", sign(t, jose.ES256, k.ec, "e", claimsAt(now, `{"aud":["x","sluice"]}`)), true},
		{"expired within leeway", sign(t, jose.ES256, k.ec, "e", claimsAt(now.Add(-time.Hour-leeway/2))), true},
		{"fraction of a second", sign(t, jose.ES256, k.ec, "e", claimsAt(now, fmt.Sprintf(`{"exp":%d.5}`, now.Unix()+60))), true},

		{"expired", sign(t, jose.ES256, k.ec, "e", claimsAt(now.Add(-2*time.Hour))), false},
		{"not yet valid", sign(t, jose.ES256, k.ec, "e", claimsAt(now, fmt.Sprintf(`{"nbf":%d}`, now.Unix()+600))), false},
		{"nbf no number", sign(t, jose.ES256, k.ec, "e", claimsAt(now, `{"nbf":"now"}`)), false},
		{"no expiry", sign(t, jose.ES256, k.ec, "e", claimsAt(now, `{"exp":null}`)), false},
		{"expiry no number", sign(t, jose.ES256, k.ec, "e", claimsAt(now, `{"exp":"9999999999"}`)), false},
		{"expiry beyond time", sign(t, jose.ES256, k.ec, "e", claimsAt(now, `{"exp":9e18}`)), false},
		{"wrong audience", sign(t, jose.ES256, k.ec, "e", claimsAt(now, `{"aud":"elsewhere"}`)), false},
		{"no audience", sign(t, jose.ES256, k.ec, "e", claimsAt(now, `{"aud":null}`)), false},
		{"audience in a map", sign(t, jose.ES256, k.ec, "e", claimsAt(now, `{"aud":{"sluice":1}}`)), false},
		{"wrong issuer", sign(t, jose.ES256, k.ec, "e", claimsAt(now, `{"iss":"https://idp.test/"}`)), false},
		{"no issuer", sign(t, jose.ES256, k.ec, "e", claimsAt(now, `{"iss":null}`)), false},
		{"lacks a required claim", sign(t, jose.ES256, k.ec, "e", claimsAt(now, `{"level":null}`)), false},
		{"subject no string", sign(t, jose.ES256, k.ec, "e", claimsAt(now, `{"sub":1}`)), false},
		{"forged by another key", sign(t, jose.RS256, k.rsa2, "r", claimsAt(now)), false},
		{"key of the set that is not for signatures", sign(t, jose.RS256, k.rsa2, "enc", claimsAt(now)), false},
		{"kid of another key", sign(t, jose.RS256, k.rsa, "e", claimsAt(now)), false},
		{"unknown kid", sign(t, jose.RS256, k.rsa, "x", claimsAt(now)), false},
		{"algorithm other than the key's", sign(t, jose.PS256, k.rsa, "r", claimsAt(now)), false},
		{"changed claims", parts[0] + "." + base64.RawURLEncoding.EncodeToString([]byte(claimsAt(now, `{"sub":"root"}`))) + "." + parts[2], false},
		{"no signature", parts[0] + "." + parts[1] + ".", false},
		{"alg none", raw(`{"alg":"none"}`, claimsAt(now), func([]byte) []byte { return nil }), false},
		{"alg None with a kid", raw(`{"alg":"None","kid":"r"}`, claimsAt(now), func([]byte) []byte { return nil }), false},
		{"HS256 with the public key as PEM", raw(`{"alg":"HS256","kid":"r"}`, claimsAt(now), hs256(publicPEM)), false},
		{"HS256 with the public key as DER", raw(`{"alg":"HS256","kid":"r"}`, claimsAt(now), hs256(publicDER)), false},
		{"HS256 with the public key, no kid", raw(`{"alg":"HS256"}`, claimsAt(now), hs256(publicPEM)), false},
		{"own key in the header", raw(fmt.Sprintf(`{"alg":"RS256","jwk":%s}`, mustJSON(jose.JSONWebKey{Key: &k.rsa2.PublicKey})), claimsAt(now), rs256(k.rsa2)), false},
		{"critical header", raw(`{"alg":"RS256","kid":"r","crit":["b64"],"b64":true}`, claimsAt(now), rs256(k.rsa)), false},
		{"alg given twice", raw(`{"alg":"RS256","kid":"r","alg":"none"}`, claimsAt(now), rs256(k.rsa)), false},
		{"claim given twice", raw(`{"alg":"RS256","kid":"r"}`, strings.TrimSuffix(claimsAt(now), "}")+`,"sub":"root"}`, rs256(k.rsa)), false},
		{"claims no object", raw(`{"alg":"RS256","kid":"r"}`, `[]`, rs256(k.rsa)), false},
		{"huge", sign(t, jose.ES256, k.ec, "e", claimsAt(now, `{"x":"`+strings.Repeat("y", maxTokenSize)+`"}`)), false},
		{"JSON serialization", `{"payload":"` + parts[1] + `","protected":"` + parts[0] + `","signature":"` + parts[2] + `"}`, false},
		{"garbage", "garbage", false},
		{"blanks", "  ", false},
		{"dots", "..", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for range 2 { // the second may come from the cache
				p, err := strict.Authenticate(request(tt.token))
				if (err == nil && p != nil) != tt.ok {
					t.Fatalf("strict: %v, %v, want ok %v", p, err, tt.ok)
				}
				_, optionalErr := optional.Authenticate(request(tt.token))
				if (optionalErr == nil) != tt.ok {
					t.Fatalf("optional: %v, want ok %v", optionalErr, tt.ok)
				}
				q, err := permissive.Authenticate(request(tt.token))
				if err != nil || (q != nil) != tt.ok {
					t.Fatalf("permissive: %v, %v", q, err)
				}
				if tt.ok {
					continue
				}
				refused, ok := errors.AsType[*AuthError](optionalErr)
				if !ok || refused.Status != 401 || !strings.HasPrefix(refused.Challenge, `Bearer error="invalid_token"`) {
					t.Fatalf("%#v, want 401 with a challenge", optionalErr)
				}
			}
		})
	}

	p, err := strict.Authenticate(request(good))
	if err != nil {
		t.Fatal(err)
	}
	if p.ID != "jwt:https://idp.test\x00ada" || p.Name != "ada" || p.Token.Reveal() != good || p.Expires.Unix() != now.Add(time.Hour).Unix() {
		t.Errorf("principal %+v", p)
	}
	if diff := cmp.Diff([]any{int64(7), []any{"admin"}}, []any{p.Claims["level"], p.Claims["roles"]}); diff != "" {
		t.Errorf("claims (-want +got):\n%s", diff)
	}

	for name, rt := range map[string]*Route{"optional": optional, "permissive": permissive} {
		if p, err := rt.Authenticate(request("")); p != nil || err != nil {
			t.Errorf("%s without a token: %v, %v", name, p, err)
		}
	}
	refused, ok := errors.AsType[*AuthError](second(strict.Authenticate(request(""))))
	if !ok || refused.Status != 401 || refused.Challenge != "Bearer" {
		t.Errorf("strict without a token: %#v", refused)
	}
	basic := request("")
	basic.Header.Set("Authorization", "Basic YTpi")
	if p, err := optional.Authenticate(basic); p != nil || err != nil {
		t.Errorf("another scheme: %v, %v", p, err)
	}
	twice := request(good)
	twice.Header.Add("Authorization", "Bearer "+good)
	if _, err := optional.Authenticate(twice); err == nil {
		t.Error("two tokens are accepted")
	}
	lower := request("")
	lower.Header.Set("Authorization", "bearer "+good)
	if p, err := strict.Authenticate(lower); p == nil {
		t.Errorf("scheme in lower case: %v", err)
	}
}

func second[A any](_ A, err error) error { return err }

func mustJSON(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return string(b)
}

func TestJWTExpiresInTheCache(t *testing.T) {
	k := keys()
	synctest.Test(t, func(t *testing.T) {
		rt, err := CompileRoute(jwtPolicy(policyv1.JwtAuth_MODE_STRICT, inline("https://idp.test", jwks(t, jose.JSONWebKey{Key: &k.ec.PublicKey}))), Resolver{})
		if err != nil {
			t.Fatal(err)
		}
		token := sign(t, jose.ES256, k.ec, "", claimsAt(time.Now()))
		first, err := rt.Authenticate(request(token))
		if err != nil {
			t.Fatal(err)
		}
		if again, _ := rt.Authenticate(request(token)); again != first {
			t.Error("verified twice")
		}
		time.Sleep(time.Hour + leeway - time.Second)
		if _, err := rt.Authenticate(request(token)); err != nil {
			t.Errorf("within leeway: %v", err)
		}
		time.Sleep(2 * time.Second)
		if _, err := rt.Authenticate(request(token)); err == nil || !strings.Contains(err.Error(), "expired") {
			t.Errorf("after expiry: %v", err)
		}
	})
}

func TestVerifiedCacheIsBounded(t *testing.T) {
	var c verifiedCache
	now := time.Now()
	for i := range 2 * 16 * maxVerifiedPerShard {
		hash := sha256.Sum256(fmt.Append(nil, i))
		c.put(hash, &Principal{}, now.Add(time.Hour), now)
		if c.get(hash, now) == nil {
			t.Fatal("not cached")
		}
	}
	for i := range c.shards {
		if n := len(c.shards[i].entries); n > maxVerifiedPerShard {
			t.Errorf("shard %d holds %d entries", i, n)
		}
	}
}

// Tokens are as long as their issuers make them, and their claims take more than they do.
func TestVerifiedCacheIsBoundedInBytes(t *testing.T) {
	var list []any
	for range 4000 {
		list = append(list, "x")
	}
	p := &Principal{Token: NewSecret(strings.Repeat("x", 16<<10)), Claims: map[string]any{"groups": list}}
	if n := p.size(); n < 16<<10+2*4000*32 || n > 16<<10+2*4000*64 {
		t.Errorf("a principal is counted as %d bytes", n)
	}
	var c verifiedCache
	now := time.Now()
	for i := range 1000 {
		hash := sha256.Sum256(fmt.Append(nil, i))
		for range 2 { // by two requests at a time
			c.put(hash, p, now.Add(time.Hour), now)
		}
		if c.get(hash, now) == nil {
			t.Fatal("not cached")
		}
	}
	for i := range c.shards {
		s := &c.shards[i]
		if n := len(s.entries) * p.size(); n > maxVerifiedSize || n != s.size || n < maxVerifiedSize/2 {
			t.Errorf("shard %d holds %d bytes, counted as %d, want at most %d", i, n, s.size, maxVerifiedSize)
		}
	}
}

func TestJWTProviders(t *testing.T) {
	k, now := keys(), time.Now()
	one := inline("https://one.test", jwks(t, jose.JSONWebKey{Key: &k.ec.PublicKey}))
	two := inline("https://two.test", jwks(t, jose.JSONWebKey{Key: &k.rsa.PublicKey}))
	rt, err := CompileRoute(jwtPolicy(policyv1.JwtAuth_MODE_STRICT, one, two), Resolver{})
	if err != nil {
		t.Fatal(err)
	}
	for issuer, want := range map[string]bool{"https://one.test": true, "https://two.test": false} { // signed by one's key
		_, err := rt.Authenticate(request(sign(t, jose.ES256, k.ec, "", claimsAt(now, `{"iss":"`+issuer+`"}`))))
		if (err == nil) != want {
			t.Errorf("%s: %v", issuer, err)
		}
	}
	anonymous := claimsAt(now, `{"iss":"https://one.test","sub":null}`)
	a, errA := rt.Authenticate(request(sign(t, jose.ES256, k.ec, "", anonymous)))
	b, errB := rt.Authenticate(request(sign(t, jose.ES256, k.ec, "", anonymous)))
	if errA != nil || errB != nil || a.ID == b.ID {
		t.Errorf("two tokens without a subject: %v %v, %v %v", a, errA, b, errB)
	}
}

func TestJwksSources(t *testing.T) {
	k, now := keys(), time.Now()
	set := jwks(t, jose.JSONWebKey{Key: &k.ec.PublicKey}, jose.JSONWebKey{Key: k.oct})
	token, symmetric := sign(t, jose.ES256, k.ec, "", claimsAt(now)), sign(t, jose.HS256, k.oct, "", claimsAt(now))
	provider := func(j *policyv1.Jwks) *xdsv1.EffectivePolicy {
		return jwtPolicy(policyv1.JwtAuth_MODE_OPTIONAL, &policyv1.JwtProvider{Issuer: "https://idp.test", Jwks: j})
	}
	file := &policyv1.Jwks{Source: &policyv1.Jwks_File{File: "/jwks"}}
	link := &policyv1.Jwks{Source: &policyv1.Jwks_Url{Url: "https://idp.test/jwks"}}
	give := func(s string) func(string) ([]byte, error) {
		return func(string) ([]byte, error) { return []byte(s), nil }
	}
	for _, tt := range []struct {
		name     string
		jwks     *policyv1.Jwks
		resolver Resolver
		token    string
		status   int // 0: accepted
	}{
		{"file", file, Resolver{File: give(set)}, token, 0},
		{"symmetric in a file", file, Resolver{File: give(set)}, symmetric, 0},
		{"URL", link, Resolver{Jwks: give(set)}, token, 0},
		{"symmetric behind a URL", link, Resolver{Jwks: give(set)}, symmetric, 401},
		{"not fetched yet", link, Resolver{Jwks: give("")}, token, 503},
		{"unknown", file, Resolver{}, token, 503},
	} {
		rt, err := CompileRoute(provider(tt.jwks), tt.resolver)
		if err != nil {
			t.Fatalf("%s: %v", tt.name, err)
		}
		_, err = rt.Authenticate(request(tt.token))
		status := 0
		if refused, ok := errors.AsType[*AuthError](err); ok {
			status = refused.Status
		}
		if status != tt.status {
			t.Errorf("%s: %v, want %d", tt.name, err, tt.status)
		}
		if p, err := rt.Authenticate(request("")); p != nil || err != nil {
			t.Errorf("%s: no token: %v, %v", tt.name, p, err)
		}
	}
}

func TestJWTRefused(t *testing.T) {
	k := keys()
	n := new(big.Int).SetBit(big.NewInt(1), 1023, 1)
	small := &rsa.PublicKey{N: n, E: 65537}
	good := jwks(t, jose.JSONWebKey{Key: &k.ec.PublicKey})
	for _, tt := range []struct {
		policy *xdsv1.EffectivePolicy
		field  string
		reason string
	}{
		{jwtPolicy(0), "policies.jwtAuth.providers", "is empty"},
		{jwtPolicy(0, inline("", good)), "policies.jwtAuth.issuer", "is empty"},
		{jwtPolicy(0, inline("i", good), inline("j", "{")), "policies.jwtAuth.providers[1].jwks", "no JSON Web Key Set"},
		{jwtPolicy(0, inline("i", "{}")), "policies.jwtAuth.jwks", "no `keys`"},
		{jwtPolicy(0, inline("i", `{"keys":[]}`)), "policies.jwtAuth.jwks", "it is empty"},
		{jwtPolicy(0, inline("i", `{"keys":[{"kty":"new"}]}`)), "policies.jwtAuth.jwks", "known type"},
		{jwtPolicy(0, inline("i", jwks(t, jose.JSONWebKey{Key: small}))), "policies.jwtAuth.jwks", "2048"},
		{jwtPolicy(0, inline("i", jwks(t, jose.JSONWebKey{Key: k.ec}))), "policies.jwtAuth.jwks", "private key"},
		{jwtPolicy(0, inline("i", jwks(t, jose.JSONWebKey{Key: []byte("short")}))), "policies.jwtAuth.jwks", "size"},
		{jwtPolicy(0, inline("i", jwks(t, jose.JSONWebKey{Key: &k.rsa.PublicKey, Algorithm: "HS256"}))), "policies.jwtAuth.jwks", "algorithm"},
		{jwtPolicy(0, inline("i", jwks(t, jose.JSONWebKey{Key: &k.rsa.PublicKey, Use: "enc"}))), "policies.jwtAuth.jwks", "not for verifying"},
		{jwtPolicy(0, inline("i", good, "")), "policies.jwtAuth", "empty audience"},
		{jwtPolicy(0, &policyv1.JwtProvider{Issuer: "i"}), "policies.jwtAuth.jwks", "is missing"},
		{jwtPolicy(0, &policyv1.JwtProvider{Issuer: "i", Jwks: &policyv1.Jwks{Source: &policyv1.Jwks_Url{Url: "file:///etc/passwd"}}}), "policies.jwtAuth.jwks.url", "no http"},
		{jwtPolicy(9, inline("i", good)), "policies.jwtAuth.mode", "no mode"},
	} {
		_, err := CompileRoute(tt.policy, Resolver{})
		if all := FieldErrors(err); len(all) != 1 || all[0].Field != tt.field || !strings.Contains(all[0].Reason, tt.reason) {
			t.Errorf("%v: %v, want %s: …%s…", tt.policy, err, tt.field, tt.reason)
		}
	}
}
