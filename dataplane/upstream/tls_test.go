package upstream

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"encoding/pem"

	"github.com/sluicegate/sluice/dataplane/snapshot"
	"github.com/sluicegate/sluice/internal/mcptest"
	"github.com/sluicegate/sluice/internal/policy"
	policyv1 "github.com/sluicegate/sluice/proto/gen/sluice/policy/v1"
	xdsv1 "github.com/sluicegate/sluice/proto/gen/sluice/xds/v1"
)

// tlsTarget is a target whose policies may read PEM under the name "ca".
func tlsTarget(t *testing.T, url string, ca []byte, tls *policyv1.BackendTls) *snapshot.Target {
	t.Helper()
	if ca != nil {
		tls.Root = &policyv1.Credential{Source: &policyv1.Credential_Secret{Secret: "acme/secret/ca"}}
	}
	p := &xdsv1.EffectivePolicy{Policies: &policyv1.Policies{BackendTls: tls}}
	compiled, err := policy.CompileTarget(p, policy.HTTP, policy.Resolver{Secret: func(string) ([]byte, error) { return ca, nil }})
	if err != nil {
		t.Fatal(err)
	}
	out := httpTarget(t, url, nil)
	out.Policy, out.Digest = compiled, compiled.Digest()
	return out
}

func TestTLS(t *testing.T) {
	srv := mcptest.NewServer(t, mcptest.Options{TLS: true})
	m := manager(t, nil)
	plainURL := "http" + strings.TrimPrefix(srv.URL, "https")
	for _, tt := range []struct {
		name string
		t    *snapshot.Target
		err  string
	}{
		{"own root", tlsTarget(t, srv.URL, srv.CA, &policyv1.BackendTls{}), ""},
		{"a plain target with backendTLS", tlsTarget(t, plainURL, srv.CA, &policyv1.BackendTls{}), ""},
		{"other name", tlsTarget(t, srv.URL, srv.CA, &policyv1.BackendTls{Hostname: "example.com"}), ""},
		{"wrong name", tlsTarget(t, srv.URL, srv.CA, &policyv1.BackendTls{Hostname: "elsewhere.test"}), "elsewhere.test"},
		{"system's roots", httpTarget(t, srv.URL, nil), "certificate"},
		{"insecure", tlsTarget(t, srv.URL, nil, &policyv1.BackendTls{Insecure: true}), ""},
		{"plain", httpTarget(t, plainURL, nil), ""}, // the server answers 400 in plain HTTP
	} {
		t.Run(tt.name, func(t *testing.T) {
			res, err := m.Transport(tt.t).Do(limited(t), post(initialize))
			if tt.err != "" {
				contains(t, "initialize", err, "dial", tt.err)
				if !NotSent(err) {
					t.Error("a failed handshake is called sent")
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if b := text(t, res); (res.Status == 200) != strings.Contains(b, "protocolVersion") || res.Status != 200 && tt.name != "plain" {
				t.Errorf("%d %s", res.Status, b)
			}
		})
	}
}

func TestHTTP2(t *testing.T) {
	proto := make(chan string, 10)
	hang := make(chan bool)
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		proto <- r.Proto
		b, _ := io.ReadAll(r.Body)
		switch r.Header.Get("How") {
		case "hang":
			<-hang
		case "cut":
			w.WriteHeader(200)
			http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		}
		w.Header().Set("Echo", r.Header.Get("Connection")+r.Header.Get("X"))
		w.Write(b)
	}))
	srv.EnableHTTP2 = true
	srv.StartTLS()
	t.Cleanup(srv.Close)
	t.Cleanup(func() { close(hang) })
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw})
	m := manager(t, nil)
	tt := tlsTarget(t, srv.URL+"/mcp", ca, &policyv1.BackendTls{Alpn: []string{"h2"}})
	tt.Config.Timeout = duration(200 * time.Millisecond)
	tr := m.Transport(tt)
	r := post(`{"a":1}`)
	r.Header.Set("Connection", "bad")
	r.Header.Set("X", "x")
	res, err := tr.Do(limited(t), r)
	if err != nil {
		t.Fatal(err)
	}
	if b := text(t, res); b != `{"a":1}` || res.Header.Get("Echo") != "x" || <-proto != "HTTP/2.0" {
		t.Errorf("answer %q %v", b, res.Header)
	}
	if n := m.Health()[0].Conns; n != 1 {
		t.Errorf("%d connections", n)
	}
	r = post(`{}`)
	r.Header.Set("How", "hang")
	_, err = tr.Do(limited(t), r)
	contains(t, "hang", err, "timeout", tt.Resource)
	if NotSent(err) {
		t.Error("a call that hung is called not sent")
	}
	r = post(`{}`)
	r.Header.Set("How", "cut")
	res, err = tr.Do(limited(t), r)
	if err != nil {
		t.Fatal(err)
	}
	_, err = io.ReadAll(res.Body)
	contains(t, "cut", err, "read body", tt.Resource)
	// The grant is gone: also for the connection that is open.
	tt.Tenant.Grants = policy.Grants{}
	for len(proto) > 0 {
		<-proto
	}
	_, err = tr.Do(limited(t), post(`{}`))
	contains(t, "revoked", err, "private-network")
	if len(proto) != 0 {
		t.Error("the request came through")
	}
	// Where the target has no h2, and the policy allows it, HTTP/1.1 goes the same way.
	old := mcptest.NewServer(t, mcptest.Options{TLS: true})
	res, err = m.Transport(tlsTarget(t, old.URL, old.CA, &policyv1.BackendTls{Alpn: []string{"h2", "http/1.1"}})).Do(limited(t), post(initialize))
	if err != nil {
		t.Fatal(err)
	}
	if b := text(t, res); !strings.Contains(b, "protocolVersion") {
		t.Errorf("%d %s", res.Status, b)
	}
}

// Policies of the target act on each request, also on those that an adapter makes.
func TestOutgoing(t *testing.T) {
	key := func(place *policyv1.Location) *policyv1.Policies {
		return &policyv1.Policies{
			RequestHeaderModifier: &policyv1.HeaderModifier{Set: map[string]*policyv1.Value{"X-Team": {Kind: &policyv1.Value_Value{Value: "tools"}}}},
			BackendAuth: &policyv1.BackendAuth{Method: &policyv1.BackendAuth_Key{Key: &policyv1.KeyAuth{Credentials: []*policyv1.LocatedCredential{{
				Credential: &policyv1.Credential{Source: &policyv1.Credential_Secret{Secret: "acme/secret/key"}}, Location: place}}}}},
		}
	}
	build := func(cfg *xdsv1.Target, kind policy.Transport, p *policyv1.Policies) *snapshot.Target {
		compiled, err := policy.CompileTarget(&xdsv1.EffectivePolicy{Policies: p}, kind,
			policy.Resolver{Secret: func(string) ([]byte, error) { return []byte("s3cret"), nil }})
		if err != nil {
			t.Fatal(err)
		}
		out := target(t, kind, cfg, nil)
		out.Policy, out.Digest = compiled, compiled.Digest()
		return out
	}
	query := &policyv1.Location{Place: &policyv1.Location_QueryParameter{QueryParameter: &policyv1.QueryParameterLocation{Name: "k"}}}
	for _, place := range []*policyv1.Location{nil, query} {
		for _, sse := range []bool{false, true} {
			srv := mcptest.NewServer(t, mcptest.Options{SSE: sse})
			cfg, kind := &xdsv1.Target{Transport: &xdsv1.Target_Mcp{Mcp: httpConfig(t, srv.URL)}}, policy.HTTP
			if sse {
				cfg, kind = &xdsv1.Target{Transport: &xdsv1.Target_Sse{Sse: httpConfig(t, srv.URL)}}, policy.SSE
			}
			c := open(t, manager(t, nil).Transport(build(cfg, kind, key(place))))
			c.said("echo", `{"text":"x"}`)
			reqs := srv.Requests()
			if len(reqs) < 3 {
				t.Fatalf("%d requests", len(reqs))
			}
			for _, r := range reqs {
				if r.Header.Get("X-Team") != "tools" {
					t.Errorf("sse %v: %s %s without X-Team", sse, r.Method, r.URL)
				}
				if place == nil && r.Header.Get("Authorization") != "Bearer s3cret" {
					t.Errorf("sse %v: %s %s with Authorization %q", sse, r.Method, r.URL, r.Header.Get("Authorization"))
				}
				if place != nil && !strings.Contains(r.URL, "k=s3cret") {
					t.Errorf("sse %v: %s %s without the key", sse, r.Method, r.URL)
				}
			}
			// And no error shows it.
			srv.Close()
			_, err := c.try("POST", toolCall("1", "echo", "{}"))
			if err == nil && !sse || err != nil && strings.Contains(err.Error(), "s3cret") {
				t.Errorf("error %v", err)
			}
		}
	}
}
