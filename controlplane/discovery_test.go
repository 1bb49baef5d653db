package controlplane

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// authServer is an issuer whose metadata is at one of its places.
type authServer struct {
	*httptest.Server
	path     string // of the issuer
	place    string // where the metadata is
	metadata map[string]any
	down     atomic.Bool
}

func newAuthServer(t *testing.T, path, place string) *authServer {
	s := &authServer{path: path, place: place}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case s.down.Load():
			http.Error(w, "down", http.StatusBadGateway)
		case r.URL.Path == s.place:
			_ = json.NewEncoder(w).Encode(s.metadata)
		case r.URL.Path == path+"/keys":
			fmt.Fprintf(w, keySetText, "first")
		default:
			http.NotFound(w, r)
		}
	}))
	t.Cleanup(s.Close)
	s.metadata = map[string]any{"issuer": s.issuer(), "jwks_uri": s.issuer() + "/keys"}
	return s
}

func (s *authServer) issuer() string { return s.URL + s.path }

func TestDiscovery(t *testing.T) {
	for _, tt := range []struct {
		name, path, place string
		change            map[string]any // nil values: taken out
		want              string         // in the error; empty: found
	}{
		{name: "RFC 8414", place: "/.well-known/oauth-authorization-server"},
		{name: "OpenID Connect", place: "/.well-known/openid-configuration"},
		{name: "RFC 8414 with a path", path: "/tenant/a", place: "/.well-known/oauth-authorization-server/tenant/a"},
		{name: "OpenID Connect with a path put in", path: "/tenant/a", place: "/.well-known/openid-configuration/tenant/a"},
		{name: "OpenID Connect with a path before", path: "/tenant/a", place: "/tenant/a/.well-known/openid-configuration"},
		{name: "none", place: "/elsewhere", want: "no metadata: "},
		{name: "another issuer's", place: "/.well-known/openid-configuration", change: map[string]any{"issuer": "https://other.example"}, want: `is that of "https://other.example"`},
		{name: "almost the issuer", place: "/.well-known/openid-configuration", change: map[string]any{"issuer": "final slash"}, want: "write the issuer as it calls itself"},
		{name: "no keys", place: "/.well-known/openid-configuration", change: map[string]any{"jwks_uri": nil}, want: "has no jwks_uri"},
		{name: "keys of another scheme", place: "/.well-known/openid-configuration", change: map[string]any{"jwks_uri": "file:///etc/passwd"}, want: "has no jwks_uri"},
		{name: "keys where nobody may dial", place: "/.well-known/openid-configuration", change: map[string]any{"jwks_uri": "http://169.254.169.254/keys"}, want: "metadata"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newAuthServer(t, tt.path, tt.place)
			for k, v := range tt.change {
				if v == "final slash" {
					v = s.issuer() + "/"
				}
				s.metadata[k] = v
			}
			keys, err := fetchKeys(t.Context(), "default", []string{"private-network"}, "issuer:"+s.issuer())
			switch {
			case tt.want == "" && (err != nil || !strings.Contains(string(keys), `"first"`)):
				t.Errorf("%s, %v", keys, err)
			case tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)):
				t.Errorf("error %v, want %q", err, tt.want)
			}
			if _, err := fetchKeys(t.Context(), "default", nil, "issuer:"+s.issuer()); err == nil || !strings.Contains(err.Error(), "private-network") {
				t.Errorf("without a grant: %v", err)
			}
		})
	}
}

const protected = `
binds:
- port: 3000
  listeners:
  - hostname: mcp.example.com
    routes:
    - policies:
        mcpAuthentication: {issuer: "%s"}
      backends:
      - mcp: {targets: [{name: one, mcp: {host: https://one.example.com}}]}
`

// A provider without keys gets those of its issuer's metadata, is refused with its place where they cannot be had, and is
// refreshed as others are.
func TestKeySetsOfIssuers(t *testing.T) {
	s := newAuthServer(t, "", "/.well-known/oauth-authorization-server")
	config := fmt.Sprintf(protected, s.issuer())
	dir := t.TempDir()

	r := start(t, dir)
	if _, err := r.Apply(t.Context(), applyRequest(t, config)); status.Code(err) != codes.InvalidArgument || !strings.Contains(diagnosticsOf(err), "private-network") {
		t.Fatalf("a private issuer without a grant: %v%s", err, diagnosticsOf(err))
	}
	r.stop()

	r = start(t, dir, "private-network")
	s.down.Store(true)
	_, err := r.Apply(t.Context(), applyRequest(t, config))
	if told := diagnosticsOf(err); status.Code(err) != codes.InvalidArgument || !strings.Contains(told, "/.well-known/oauth-authorization-server answers 502") || !strings.Contains(told, "test.yaml:8:") {
		t.Fatalf("an issuer that is down: %v%s", err, told)
	}
	s.down.Store(false)
	applied := r.apply(config)
	e := r.join("", "e").connect(r.at.XDS)
	e.serving("default", applied.GetRevision())
	keys := 0
	for _, n := range e.holds("default") {
		if strings.HasPrefix(n, "default/jwks/") {
			keys++
		}
	}
	if keys != 1 {
		t.Errorf("the proxy holds %d key sets: %v", keys, e.holds("default"))
	}
	if same := r.apply(config); len(same.GetChanges()) != 0 {
		t.Errorf("the same file again: %v", same)
	}
}
