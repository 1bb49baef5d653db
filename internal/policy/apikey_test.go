package policy

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/google/go-cmp/cmp"

	policyv1 "github.com/sluicegate/sluice/proto/gen/sluice/policy/v1"
)

func TestAPIKey(t *testing.T) {
	hash := fmt.Sprintf("sha256:%x", sha256.Sum256([]byte("hashed")))
	policies := `{"apiKey":{"mode":"%s","keys":[
		{"key":{"value":"plain"},"metadata":{"id":"ci","team":"a","limit":5,"share":0.5}},
		{"keyHash":"` + hash + `"}]}}`
	for mode, want := range map[string]map[string]string{ // credential → principal's name, "-" for 401
		"MODE_STRICT":      {"": "-", "plain": "ci", "wrong": "-", "plain ": "ci", "hashed": "?"},
		"MODE_OPTIONAL":    {"": "", "plain": "ci", "wrong": "-", "hashed": "?"},
		"MODE_UNSPECIFIED": {"": "", "wrong": "-"},
		"MODE_PERMISSIVE":  {"": "", "plain": "ci", "wrong": "", strings.Repeat("x", maxTokenSize+1): ""},
	} {
		rt := mustRoute(t, fmt.Sprintf(policies, mode))
		for key, name := range want {
			p, err := rt.Authenticate(request(key))
			switch {
			case name == "-":
				if refused, ok := errors.AsType[*AuthError](err); !ok || refused.Status != 401 || refused.Challenge == "" {
					t.Errorf("%s, %.10q: %v, %v", mode, key, p, err)
				}
			case name == "":
				if p != nil || err != nil {
					t.Errorf("%s, %.10q: %v, %v", mode, key, p, err)
				}
			case err != nil || p == nil || name != "?" && p.ID != "key:"+name:
				t.Errorf("%s, %.10q: %v, %v", mode, key, p, err)
			}
		}
	}
	rt := mustRoute(t, fmt.Sprintf(policies, "MODE_STRICT"))
	p, _ := rt.Authenticate(request("plain"))
	if diff := cmp.Diff(map[string]any{"id": "ci", "team": "a", "limit": int64(5), "share": 0.5}, p.APIKey); diff != "" {
		t.Errorf("metadata (-want +got):\n%s", diff)
	}
	q, _ := rt.Authenticate(request("hashed"))
	if q.ID == p.ID || strings.Contains(hash, strings.TrimPrefix(q.ID, "key:")) || len(q.ID) < 12 {
		t.Errorf("fingerprint %q", q.ID)
	}
	c := toolCall("x", "")
	c.Principal = p
	if !mustTarget(t, authz(allow("apiKey.team == 'a' && apiKey.limit < 6 && !has(jwt.sub)"))).Admit(c).Allowed {
		t.Error("rules do not see the metadata")
	}
}

func TestAPIKeyPlaces(t *testing.T) {
	for place, url := range map[string]string{
		`{"queryParameter":{"name":"k"}}`: "/mcp?k=plain", `{"header":{"name":"x-key"}}`: "/mcp", `{"cookie":{"name":"k"}}`: "/mcp",
	} {
		rt := mustRoute(t, `{"apiKey":{"mode":"MODE_STRICT","location":`+place+`,"keys":[{"key":{"value":"plain"}}]}}`)
		r := httptest.NewRequest("POST", url, nil)
		r.Header.Set("X-Key", "plain")
		r.Header.Set("Cookie", "k=plain")
		if p, err := rt.Authenticate(r); p == nil || err != nil {
			t.Errorf("%s: %v, %v", place, p, err)
		}
		twice := httptest.NewRequest("POST", "/mcp?k=plain&k=wrong", nil)
		twice.Header["X-Key"] = []string{"plain", "wrong"}
		twice.Header.Set("Cookie", "k=plain; k=wrong")
		if p, err := rt.Authenticate(twice); p != nil || err == nil {
			t.Errorf("%s, two keys: %v, %v", place, p, err)
		}
		if p, err := rt.Authenticate(httptest.NewRequest("POST", "/mcp", nil)); p != nil || err == nil {
			t.Errorf("%s, no key: %v, %v", place, p, err)
		}
	}
}

func TestJWTAndAPIKey(t *testing.T) {
	k := keys()
	compile := func(jwtMode, keyMode policyv1.JwtAuth_Mode, place *policyv1.Location) *Route {
		p := jwtPolicy(jwtMode, inline("https://idp.test", jwks(t, jose.JSONWebKey{Key: &k.ec.PublicKey})))
		p.Policies.ApiKey = &policyv1.ApiKeyAuth{Mode: keyMode, Location: place, Keys: []*policyv1.ApiKey{{Key: value("plain")}}}
		rt, err := CompileRoute(p, Resolver{})
		if err != nil {
			t.Fatal(err)
		}
		return rt
	}
	const strict, optional, permissive = policyv1.JwtAuth_MODE_STRICT, policyv1.JwtAuth_MODE_OPTIONAL, policyv1.JwtAuth_MODE_PERMISSIVE
	token := sign(t, jose.ES256, k.ec, "", claimsAt(time.Now()))
	elsewhere := &policyv1.Location{Place: &policyv1.Location_Header{Header: &policyv1.HeaderLocation{Name: "X-Key"}}}
	for _, tt := range []struct {
		name        string
		rt          *Route
		bearer, key string
		ok          bool
		jwt, apiKey bool
	}{
		{"one place: token", compile(strict, strict, nil), token, "", true, true, false},
		{"one place: key", compile(strict, strict, nil), "plain", "", true, false, true},
		{"one place: neither", compile(optional, strict, nil), "", "", false, false, false},
		{"one place: bad", compile(optional, permissive, nil), "bad", "", false, false, false},
		{"one place: bad, permissive", compile(permissive, permissive, nil), "bad", "", true, false, false},
		{"two places: both", compile(strict, strict, elsewhere), token, "plain", true, true, true},
		{"two places: token alone", compile(strict, strict, elsewhere), token, "", false, false, false},
		{"two places: key alone", compile(strict, strict, elsewhere), "", "plain", false, false, false},
		{"two places: optional, key alone", compile(optional, optional, elsewhere), "", "plain", true, false, true},
		{"two places: optional, bad key beside a token", compile(optional, optional, elsewhere), token, "bad", false, false, false},
		{"two places: optional, nothing", compile(optional, optional, elsewhere), "", "", true, false, false},
	} {
		r := request(tt.bearer)
		if tt.key != "" {
			r.Header.Set("X-Key", tt.key)
		}
		p, err := tt.rt.Authenticate(r)
		got := [3]bool{err == nil, p != nil && p.Claims != nil, p != nil && p.APIKey != nil}
		if want := [3]bool{tt.ok, tt.jwt, tt.apiKey}; got != want {
			t.Errorf("%s: %v (ok, jwt, apiKey), want %v: %v", tt.name, got, want, err)
		}
	}
}

func TestAPIKeyRefused(t *testing.T) {
	for text, field := range map[string]string{
		`{"apiKey":{}}`:                                                     "policies.apiKey.keys",
		`{"apiKey":{"keys":[{}]}}`:                                          "policies.apiKey.keys[0]",
		`{"apiKey":{"keys":[{"keyHash":"md5:00"}]}}`:                        "policies.apiKey.keys[0].keyHash",
		`{"apiKey":{"keys":[{"keyHash":"sha256:00"}]}}`:                     "policies.apiKey.keys[0].keyHash",
		`{"apiKey":{"keys":[{"key":{"value":"a"}},{"key":{"value":"a"}}]}}`: "policies.apiKey.keys[1]",
		`{"apiKey":{"keys":[{"key":{"value":"a"},"metadata":{"id":7}}]}}`:   "policies.apiKey.keys[0].metadata.id",
		`{"apiKey":{"keys":[{"key":{"value":"a"}}],"location":{}}}`:         "policies.apiKey.location",
	} {
		_, err := CompileRoute(parse(t, text), Resolver{})
		if all := FieldErrors(err); len(all) != 1 || all[0].Field != field {
			t.Errorf("%s: %v, want one at %s", text, err, field)
		}
	}
}
