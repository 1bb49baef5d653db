package upstream

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/sluicegate/sluice/dataplane/snapshot"
	"github.com/sluicegate/sluice/internal/policy"
	policyv1 "github.com/sluicegate/sluice/proto/gen/sluice/policy/v1"
	xdsv1 "github.com/sluicegate/sluice/proto/gen/sluice/xds/v1"
)

// oauthTarget is a target behind tokens of an endpoint, as a proxy compiles it.
func oauthTarget(t *testing.T, url, endpoint string, r policy.Resolver, m *policyv1.BackendAuth) *snapshot.Target {
	t.Helper()
	one := httpTarget(t, url, nil)
	r.Tenant, r.Grants = one.Tenant.Name, one.Tenant.Grants
	p := &policyv1.Policies{BackendAuth: m, RequestHeaderModifier: &policyv1.HeaderModifier{Add: map[string]*policyv1.Value{"X-Added": {Kind: &policyv1.Value_Value{Value: "once"}}}}}
	if m == nil {
		p.BackendAuth = &policyv1.BackendAuth{Method: &policyv1.BackendAuth_Oauth{Oauth: &policyv1.OauthAuth{Client: &policyv1.OauthClient{TokenUrl: endpoint, ClientId: "c", AuthMethod: "none"}}}}
	}
	compiled, err := policy.CompileTarget(&xdsv1.EffectivePolicy{Policies: p}, policy.HTTP, r)
	if err != nil {
		t.Fatal(err)
	}
	one.Policy, one.Digest = compiled, compiled.Digest()
	return one
}

// A target that ends a token before its time costs one more exchange and no error; one that refuses every token does not
// make the proxy fetch one for each request.
func TestTokenRefusedByTarget(t *testing.T) {
	var fetched, sent atomic.Int32
	var accepted atomic.Pointer[string]
	accepted.Store(new("Bearer t1"))
	endpoint := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, `{"access_token":"t%d","token_type":"bearer","expires_in":3600}`, fetched.Add(1))
	}))
	defer endpoint.Close()
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		sent.Add(1)
		if v := r.Header.Values("X-Added"); len(v) != 1 {
			t.Errorf("X-Added: %v", v)
		}
		if r.Header.Get("Authorization") != *accepted.Load() {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		b := make([]byte, 64)
		n, _ := r.Body.Read(b)
		fmt.Fprintf(w, "%s %s", b[:n], r.Header.Get("Authorization"))
	}))
	defer api.Close()
	m := manager(t, nil)
	runtime := policy.NewRuntime()
	do := func() (int, string) {
		t.Helper()
		// Compiled anew each time, as after a push: the tokens stay.
		res, err := m.Transport(oauthTarget(t, api.URL, endpoint.URL, policy.Resolver{Runtime: runtime}, nil)).Do(limited(t), post(`{}`))
		if err != nil {
			t.Fatal(err)
		}
		return res.Status, text(t, res)
	}
	for range 3 {
		if status, body := do(); status != 200 || body != "{} Bearer t1" {
			t.Fatalf("%d %s", status, body)
		}
	}
	if fetched.Load() != 1 {
		t.Errorf("%d tokens for three requests", fetched.Load())
	}
	accepted.Store(new("Bearer t2"))
	if status, body := do(); status != 200 || body != "{} Bearer t2" {
		t.Errorf("after the token had ended early: %d %s", status, body)
	}
	accepted.Store(new("nothing"))
	before := sent.Load()
	for range 5 {
		if status, _ := do(); status != 401 {
			t.Errorf("status %d", status)
		}
	}
	if fetched.Load() != 2 || sent.Load()-before != 5 {
		t.Errorf("%d tokens, %d requests for 5 refusals", fetched.Load(), sent.Load()-before)
	}
}

func TestCredentialNotObtained(t *testing.T) {
	var sent atomic.Int32
	api := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { sent.Add(1) }))
	defer api.Close()
	endpoint := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusUnauthorized)
		fmt.Fprint(w, `{"error":"invalid_client"}`)
	}))
	defer endpoint.Close()
	m := manager(t, nil)
	tr := m.Transport(oauthTarget(t, api.URL, endpoint.URL, policy.Resolver{Runtime: policy.NewRuntime()}, nil))
	for range 2 {
		_, err := tr.Do(limited(t), post(`{}`))
		contains(t, "no token", err, "acme/target/tools/one", "authenticate", "policies.backendAuth.oauth", "answered 401, invalid_client")
		if !NotSent(err) {
			t.Errorf("%v says that it may have been sent", err)
		}
	}
	if h := m.Health(); len(h) != 1 || !strings.Contains(h[0].Err, "invalid_client") || sent.Load() > 0 {
		t.Errorf("health %+v, %d requests sent", h, sent.Load())
	}
}

// A caller who showed no token is nobody's fault but his own: the target's health says nothing of it.
func TestExchangeWithoutCaller(t *testing.T) {
	m := manager(t, nil)
	tr := m.Transport(oauthTarget(t, "http://127.0.0.1:9", "", policy.Resolver{Runtime: policy.NewRuntime()}, &policyv1.BackendAuth{Method: &policyv1.BackendAuth_TokenExchange{
		TokenExchange: &policyv1.TokenExchange{Client: &policyv1.OauthClient{TokenUrl: "http://127.0.0.1:9/", ClientId: "c", AuthMethod: "none"}}}}))
	_, err := tr.Do(limited(t), post(`{}`))
	contains(t, "no caller", err, "Unauthorized", "the caller showed none")
	if h := m.Health(); !NotSent(err) || len(h) > 0 && h[0].Err != "" {
		t.Errorf("health %+v", h)
	}
}
