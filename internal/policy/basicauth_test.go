package policy

import (
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"golang.org/x/crypto/bcrypt"

	policyv1 "github.com/sluicegate/sluice/proto/gen/sluice/policy/v1"
	xdsv1 "github.com/sluicegate/sluice/proto/gen/sluice/xds/v1"
)

// vector is a test vector of crypt_blowfish: the hash of U*U.
const vector = "$2a$05$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW"

func basicRoute(mode policyv1.JwtAuth_Mode, htpasswd string, r Resolver) (*Route, error) {
	return CompileRoute(&xdsv1.EffectivePolicy{Policies: &policyv1.Policies{BasicAuth: &policyv1.BasicAuth{Mode: mode, Htpasswd: value(htpasswd)}}}, r)
}

func basicRequest(credentials string) *http.Request {
	r := request("")
	if credentials != "" {
		r.Header.Set("Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte(credentials)))
	}
	return r
}

func TestBasicAuth(t *testing.T) {
	other, err := bcrypt.GenerateFromPassword([]byte("päss:word"), bcrypt.MinCost)
	if err != nil {
		t.Fatal(err)
	}
	htpasswd := "# users\n\nuser:" + vector + "\r\nada:" + strings.Replace(string(other), "$2a$", "$2y$", 1) + "\n"
	const strict, optional, permissive = policyv1.JwtAuth_MODE_STRICT, policyv1.JwtAuth_MODE_OPTIONAL, policyv1.JwtAuth_MODE_PERMISSIVE
	for mode, want := range map[policyv1.JwtAuth_Mode]map[string]string{ // credentials → user, "-" for 401
		strict:     {"": "-", "user:U*U": "user", "user:U*": "-", "USER:U*U": "-", "nobody:U*U": "-", "ada:päss:word": "ada", "ada:päss": "-", ":U*U": "-", "user": "-", "user:U*U\x00": "-"},
		optional:   {"": "", "user:U*U": "user", "user:bad": "-"},
		permissive: {"": "", "user:U*U": "user", "user:bad": ""},
	} {
		rt, err := basicRoute(mode, htpasswd, Resolver{Runtime: NewRuntime()})
		if err != nil {
			t.Fatal(err)
		}
		for range 2 { // the second time from the cache
			for credentials, user := range want {
				p, err := rt.Authenticate(basicRequest(credentials))
				switch {
				case user == "-":
					if refused, ok := errors.AsType[*AuthError](err); !ok || refused.Status != 401 || refused.Challenge != `Basic realm="sluice", charset="UTF-8"` || strings.Contains(err.Error(), "U*U") {
						t.Errorf("%v, %q: %v, %v", mode, credentials, p, err)
					}
				case user == "":
					if p != nil || err != nil {
						t.Errorf("%v, %q: %v, %v", mode, credentials, p, err)
					}
				case err != nil || p.ID != "basic:"+user || p.Username != user:
					t.Errorf("%v, %q: %v, %v", mode, credentials, p, err)
				}
			}
		}
	}
	rt, err := basicRoute(strict, htpasswd, Resolver{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := rt.Authenticate(basicRequest("user:U*U")); err == nil {
		t.Error("without a runtime users are let in")
	}
	c := toolCall("x", "")
	c.Principal = &Principal{Username: "ada"}
	rules := mustTarget(t, authz(allow(`basicAuth.username == "ada"`)))
	if !rules.Admit(c).Allowed {
		t.Error("rules do not see the user")
	}
	if c.Principal = nil; rules.Admit(c).Allowed {
		t.Error("a rule over users lets in who is none")
	}
}

func TestBasicAuthRefused(t *testing.T) {
	for htpasswd, want := range map[string]string{
		"":                               "is empty",
		"# nobody":                       "names no user",
		"user":                           "line 1 is no `user:hash`",
		"\nuser:plain":                   "line 2: holds no bcrypt hash",
		"user:$apr1$abcdefgh$0123456789": "MD5",
		"user:{SHA}abc=":                 "plain SHA",
		"a:" + vector + "\na:" + vector:  "line 2 has a user that a line before it has",
		"user:" + vector[:59]:            "damaged",
		"user:" + vector[:40] + "!" + vector[41:]: "damaged",
		"user:$2a$15" + vector[6:]:                "bcrypt cost of 15",
		strings.Repeat("#", maxHtpasswd+1):        "larger than",
	} {
		_, err := basicRoute(0, htpasswd, Resolver{})
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "CCCC") {
			t.Errorf("%.20q: %v, want %q", htpasswd, err, want)
		}
	}
	if _, err := CompileRoute(parse(t, `{"basicAuth":{"realm":"a\"b"}}`), Resolver{}); err == nil || !strings.Contains(err.Error(), "realm") || !strings.Contains(err.Error(), "htpasswd: is missing") {
		t.Error(err)
	}
}

// One header holds one credential; which kinds count is decided by their places and by what is enforced.
func TestKindsInOneHeader(t *testing.T) {
	compile := func(enforced ...string) *Route {
		p := parse(t, fmt.Sprintf(`{"apiKey":{"mode":"MODE_OPTIONAL","keys":[{"key":{"value":"plain"}}]},"basicAuth":{"mode":"MODE_STRICT","htpasswd":{"value":%q}}}`, "user:"+vector))
		p.Enforced = enforced
		rt, err := CompileRoute(p, Resolver{Runtime: NewRuntime()})
		if err != nil {
			t.Fatal(err)
		}
		return rt
	}
	for _, tt := range []struct {
		name     string
		rt       *Route
		r        *http.Request
		id       string // "" is refused
		offering string // in the challenge
	}{
		{"key", compile(), request("plain"), "key:", ""},
		{"user", compile(), basicRequest("user:U*U"), "basic:user", ""},
		{"neither", compile(), request(""), "", `Bearer, Basic realm="sluice"`},
		{"a bad key", compile(), request("bad"), "", "Bearer"},
		{"a key where users are enforced", compile("basicAuth"), request("plain"), "", "Basic"},
		{"a user where keys are enforced", compile("apiKey"), basicRequest("user:U*U"), "anonymous", ""},
	} {
		p, err := tt.rt.Authenticate(tt.r)
		refused, _ := errors.AsType[*AuthError](err)
		switch {
		case tt.id == "" && (refused == nil || !strings.HasPrefix(refused.Challenge, tt.offering)):
			t.Errorf("%s: %v, %+v", tt.name, p, refused)
		case tt.id == "anonymous" && (p != nil || err != nil):
			t.Errorf("%s: %v, %v", tt.name, p, err)
		case tt.id != "" && tt.id != "anonymous" && (err != nil || !strings.HasPrefix(p.ID, tt.id)):
			t.Errorf("%s: %v, %v", tt.name, p, err)
		}
	}
}
