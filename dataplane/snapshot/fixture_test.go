package snapshot

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"maps"
	"math/big"
	"net/http"
	"slices"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	policyv1 "github.com/sluicegate/sluice/proto/gen/sluice/policy/v1"
	xdsv1 "github.com/sluicegate/sluice/proto/gen/sluice/xds/v1"
)

// plane plays the control plane of one tenant: it remembers what the store should hold.
type plane struct {
	t        testing.TB
	store    *Store
	tenant   string
	revision int64
	sent     map[Key]Resource
	pending  Update
}

func newPlane(t testing.TB, store *Store, tenant string) *plane {
	return &plane{t: t, store: store, tenant: tenant, sent: map[Key]Resource{}}
}

func (p *plane) raw(typ, name string, body []byte) {
	sum := sha256.Sum256(body)
	r := Resource{Type: typ, Name: p.tenant + "/" + name, Version: base64.RawURLEncoding.EncodeToString(sum[:12]), Body: body}
	p.sent[Key{typ, r.Name}] = r
	p.pending.Set = append(p.pending.Set, r)
}

func (p *plane) marshal(m proto.Message) []byte {
	p.t.Helper()
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		p.t.Fatal(err)
	}
	return b
}

// set stages a resource; name is without the tenant.
func (p *plane) set(name string, body any) {
	c := &xdsv1.Config{}
	switch b := body.(type) {
	case *xdsv1.TenantInfo:
		c.Resource = &xdsv1.Config_TenantInfo{TenantInfo: b}
	case *xdsv1.Listener:
		c.Resource = &xdsv1.Config_Listener{Listener: b}
	case *xdsv1.Route:
		c.Resource = &xdsv1.Config_Route{Route: b}
	case *xdsv1.Backend:
		c.Resource = &xdsv1.Config_Backend{Backend: b}
	case *xdsv1.Target:
		c.Resource = &xdsv1.Config_Target{Target: b}
	case *xdsv1.Binding:
		c.Resource = &xdsv1.Config_Binding{Binding: b}
	case *xdsv1.EffectivePolicy:
		c.Resource = &xdsv1.Config_EffectivePolicy{EffectivePolicy: b}
	case *xdsv1.Jwks:
		c.Resource = &xdsv1.Config_Jwks{Jwks: b}
	case *xdsv1.Secret:
		p.raw(SecretType, name, p.marshal(b))
		return
	default:
		p.t.Fatalf("no resource: %T", body)
	}
	p.raw(ConfigType, name, p.marshal(c))
}

func (p *plane) remove(typ, name string) {
	key := Key{typ, p.tenant + "/" + name}
	delete(p.sent, key)
	p.pending.Set = slices.DeleteFunc(p.pending.Set, func(r Resource) bool { return r.Type == typ && r.Name == key.Name })
	p.pending.Removed = append(p.pending.Removed, key)
}

func (p *plane) digest() []byte {
	var d [32]byte
	for _, r := range p.sent {
		for i, b := range sha256.Sum256([]byte(r.Type + "\x00" + r.Name + "\x00" + r.Version)) {
			d[i] ^= b
		}
	}
	return d[:]
}

// push sends what is staged as a revision, with its Commit.
func (p *plane) push() []*xdsv1.Refusal {
	p.t.Helper()
	p.revision++
	p.pending.Tenant, p.pending.Revision, p.pending.Digest = p.tenant, p.revision, p.digest()
	commit := p.marshal(&xdsv1.Config{Resource: &xdsv1.Config_Commit{Commit: &xdsv1.Commit{Revision: p.revision, Digest: p.pending.Digest}}})
	p.pending.Set = append(p.pending.Set, Resource{Type: ConfigType, Name: p.tenant + "/commit/" + p.tenant, Version: "commit", Body: commit})
	refusals, err := p.store.Apply(p.pending)
	if err != nil {
		p.t.Fatal(err)
	}
	p.pending = Update{}
	return refusals
}

// good pushes and wants no refusal.
func (p *plane) good() {
	p.t.Helper()
	if refusals := p.push(); len(refusals) > 0 {
		p.t.Fatalf("refused: %v", refusals)
	}
}

// fill stages a tenant with one listener, one route and two targets.
func (p *plane) fill(port uint32, grants ...string) {
	n := func(s string) string { return p.tenant + "/" + s }
	p.set("tenant/"+p.tenant, &xdsv1.TenantInfo{Grants: grants})
	p.set("session-keys", &xdsv1.Secret{Secret: &xdsv1.Secret_SessionKeys{SessionKeys: &xdsv1.SessionKeys{
		Keys: []*xdsv1.SessionKey{{Id: []byte("abcd"), Key: make([]byte, 32)}},
	}}})
	p.set("listener/main", &xdsv1.Listener{Port: port})
	p.set("route/r", &xdsv1.Route{Listener: n("listener/main"), Backends: []*xdsv1.WeightedBackend{{Backend: n("backend/b")}}})
	p.set("backend/b", &xdsv1.Backend{})
	for i, name := range []string{"one", "two"} {
		p.set("target/b/"+name, httpTarget(p.tenant, name, uint32(i)))
		p.set("binding/r/b/"+name, &xdsv1.Binding{Route: n("route/r"), Target: n("target/b/" + name)})
	}
}

func httpTarget(tenant, name string, index uint32) *xdsv1.Target {
	return &xdsv1.Target{
		Backend: tenant + "/backend/b", Name: name, Index: index,
		Transport: &xdsv1.Target_Mcp{Mcp: &xdsv1.HttpTransport{Host: name + ".test", Port: 80, Path: "/mcp"}},
	}
}

func rule(deny string) *xdsv1.EffectivePolicy {
	return &xdsv1.EffectivePolicy{Policies: &policyv1.Policies{McpAuthorization: &policyv1.McpAuthorization{
		Rules: []*policyv1.AuthorizationRule{{Rule: &policyv1.AuthorizationRule_Deny{Deny: deny}}},
	}}}
}

func keyAuth(c *policyv1.Credential) *xdsv1.EffectivePolicy {
	return &xdsv1.EffectivePolicy{Policies: &policyv1.Policies{BackendAuth: &policyv1.BackendAuth{
		Method: &policyv1.BackendAuth_Key{Key: &policyv1.KeyAuth{Credentials: []*policyv1.LocatedCredential{{Credential: c}}}},
	}}}
}

func secretRef(name string) *policyv1.Credential {
	return &policyv1.Credential{Source: &policyv1.Credential_Secret{Secret: name}}
}

func fileRef(path string) *policyv1.Credential {
	return &policyv1.Credential{Source: &policyv1.Credential_File{File: path}}
}

func value(v string) *xdsv1.Secret {
	return &xdsv1.Secret{Secret: &xdsv1.Secret_Value{Value: []byte(v)}}
}

// target finds a target of the store's index.
func target(t testing.TB, s *Store, tenant, name string) *Target {
	t.Helper()
	for x := range s.Load().Targets() {
		if x.Tenant.Name == tenant && x.Name == name {
			return x
		}
	}
	t.Fatalf("no target %s of tenant %s", name, tenant)
	return nil
}

func find(s *Store, port uint16, host, path string) (*Route, error) {
	r, err := http.NewRequest("POST", "http://"+host+path, nil)
	if err != nil {
		return nil, err
	}
	return s.Load().Route(port, r)
}

func refusedNames(refusals []*xdsv1.Refusal) []string {
	names := map[string]bool{}
	for _, r := range refusals {
		names[r.GetName()] = true
	}
	return slices.Sorted(maps.Keys(names))
}

// certificate makes a self-signed pair as PEM.
func certificate(t testing.TB, name string) (cert, key []byte) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour), IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})
}

func contextWithCancel(t testing.TB) (context.Context, context.CancelFunc) {
	return context.WithCancel(t.Context())
}

// tlsRequest is a request for host on a connection that was made for sni.
func tlsRequest(sni, host string) *http.Request {
	r, _ := http.NewRequest("POST", "https://"+host+"/", nil)
	r.TLS = &tls.ConnectionState{HandshakeComplete: true, ServerName: sni}
	return r
}
