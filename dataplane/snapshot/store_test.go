package snapshot

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/types/known/durationpb"

	policyv1 "github.com/sluicegate/sluice/proto/gen/sluice/policy/v1"
	xdsv1 "github.com/sluicegate/sluice/proto/gen/sluice/xds/v1"
)

func TestApply(t *testing.T) {
	s := New(Config{})
	p := newPlane(t, s, "acme")
	p.fill(3000)
	p.set("tenant/acme", &xdsv1.TenantInfo{SessionTtl: durationpb.New(time.Hour)})
	p.good()

	r, err := find(s, 3000, "any.test", "/mcp")
	if err != nil {
		t.Fatal(err)
	}
	if r.Name != "r" || r.Refused != nil || r.Policy == nil || r.Listener.Name != "main" || r.Tenant.Revision != 1 || r.Tenant.SessionTTL != time.Hour || len(r.Tenant.Keys) != 1 || r.Tenant.Stale {
		t.Errorf("route %+v of tenant %+v", r, r.Tenant)
	}
	b := r.Backends[0]
	if b.Name != "b" || b.Prefix != xdsv1.Backend_PREFIX_MODE_CONDITIONAL || b.Failure != xdsv1.Backend_FAILURE_MODE_FAIL_CLOSED {
		t.Errorf("backend %+v", b)
	}
	var names []string
	for _, x := range b.Targets {
		names = append(names, x.Name)
		if x.Refused != nil || x.Policy == nil || x.Digest == "" || x.Resource != "acme/target/b/"+x.Name || x.Tenant.Name != r.Tenant.Name {
			t.Errorf("target %+v", x)
		}
	}
	if diff := cmp.Diff([]string{"one", "two"}, names); diff != "" {
		t.Errorf("targets (-want +got):\n%s", diff)
	}
	// The order is the configuration's, not the alphabet's.
	p.set("target/b/one", httpTarget("acme", "one", 5))
	p.good()
	r, _ = find(s, 3000, "any.test", "/mcp")
	if got := r.Backends[0].Targets[0].Name; got != "two" {
		t.Errorf("first target is %s, want two", got)
	}
	if _, err := find(s, 3001, "any.test", "/"); !errors.Is(err, ErrNoHost) {
		t.Errorf("another port: %v, want ErrNoHost", err)
	}
	s.Drop("acme")
	if _, err := find(s, 3000, "any.test", "/mcp"); !errors.Is(err, ErrNoHost) || len(s.Load().Ports()) != 0 {
		t.Errorf("after Drop: %v, ports %v", err, s.Load().Ports())
	}
}

func TestRefusedUnitKeepsItsWholeLastForm(t *testing.T) {
	s := New(Config{})
	p := newPlane(t, s, "acme")
	p.fill(3000)
	p.set("policy/c", rule("mcp.tool.name == 'x'"))
	p.set("binding/r/b/one", &xdsv1.Binding{Route: "acme/route/r", Target: "acme/target/b/one", EffectivePolicy: "acme/policy/c"})
	p.good()
	before := target(t, s, "acme", "one")

	// The policy does not build: the target's own change must not become active without it, but the other target's does.
	p.set("policy/c", rule("mcp.tool.name == "))
	changed := httpTarget("acme", "one", 0)
	changed.GetMcp().Host = "elsewhere.test"
	p.set("target/b/one", changed)
	other := httpTarget("acme", "two", 1)
	other.GetMcp().Host = "elsewhere.test"
	p.set("target/b/two", other)
	refusals := p.push()
	if len(refusals) == 0 {
		t.Fatal("nothing was refused")
	}
	got := refusals[0]
	if got.GetType() != ConfigType || got.GetName() != "acme/binding/r/b/one" || got.GetVersion() == "" ||
		got.GetField() != "policies.mcpAuthorization.rules[0]" || !strings.Contains(got.GetReason(), "Syntax error") {
		t.Errorf("refusal %v", got)
	}
	after := target(t, s, "acme", "one")
	if after.Config.GetMcp().GetHost() != "one.test" || after.Policy != before.Policy || after.Digest != before.Digest || after.Refused != nil {
		t.Errorf("the refused unit is %+v, want it as it was", after)
	}
	if host := target(t, s, "acme", "two").Config.GetMcp().GetHost(); host != "elsewhere.test" {
		t.Errorf("the other unit is at %s, want its new form", host)
	}
	if s.Load().Tenant("acme").Unserved("acme/binding/r/b/one") {
		t.Error("a unit with an older form is said to be unserved")
	}
	// It is not claimed, and stays refused while nothing of it changes.
	if v := s.Versions()[ConfigType]["acme/binding/r/b/one"]; v != "" {
		t.Errorf("a refused version is claimed: %q", v)
	}
	p.set("backend/b", &xdsv1.Backend{Description: "new"})
	if diff := cmp.Diff([]string{"acme/binding/r/b/one"}, refusedNames(p.push())); diff != "" {
		t.Errorf("refused after an unrelated revision (-want +got):\n%s", diff)
	}
	p.set("policy/c", rule("mcp.tool.name == 'y'"))
	p.good()
	if now := target(t, s, "acme", "one"); now.Config.GetMcp().GetHost() != "elsewhere.test" || now.Digest == before.Digest {
		t.Errorf("after the policy was mended: %+v", now)
	}
	if v := s.Versions()[ConfigType]["acme/binding/r/b/one"]; v == "" {
		t.Error("a served version is not claimed")
	}
}

func TestRefusedWithNothingOlderAnswers503(t *testing.T) {
	s := New(Config{})
	p := newPlane(t, s, "acme")
	p.fill(3000)
	p.set("policy/c", rule("mcp.tool.name == "))
	p.set("binding/r/b/one", &xdsv1.Binding{Route: "acme/route/r", Target: "acme/target/b/one", EffectivePolicy: "acme/policy/c"})
	p.set("policy/route", &xdsv1.EffectivePolicy{Policies: &policyv1.Policies{JwtAuth: &policyv1.JwtAuth{}}}) // no provider
	p.set("route/q", &xdsv1.Route{
		Listener: "acme/listener/main", Backends: []*xdsv1.WeightedBackend{{Backend: "acme/backend/b"}}, EffectivePolicy: "acme/policy/route",
		Matches: []*xdsv1.RouteMatch{{Path: &xdsv1.RouteMatch_PathPrefix{PathPrefix: "/q"}}},
	})
	refusals := p.push()
	if diff := cmp.Diff([]string{"acme/binding/r/b/one", "acme/route/q"}, refusedNames(refusals)); diff != "" {
		t.Errorf("refused (-want +got):\n%s", diff)
	}
	one := target(t, s, "acme", "one")
	if one.Refused == nil || one.Policy != nil || one.Config == nil || one.Digest == target(t, s, "acme", "two").Digest {
		t.Errorf("target one is %+v, want it refused and there", one)
	}
	if two := target(t, s, "acme", "two"); two.Refused != nil {
		t.Errorf("target two: %v", two.Refused)
	}
	// The route's requests do not fall to the vaguer route with its other policy.
	r, err := find(s, 3000, "any.test", "/q/x")
	if err != nil || r.Name != "q" || r.Refused == nil || r.Policy != nil {
		t.Errorf("route q: %+v, %v, want it refused", r, err)
	}
	if !s.Load().Tenant("acme").Unserved("acme/route/q") {
		t.Error("the route is not said to be unserved")
	}
}

// TestOtherThingsThatDoNotBuild goes through the reasons why a unit is refused.
func TestOtherThingsThatDoNotBuild(t *testing.T) {
	stdio := &xdsv1.Target{Backend: "acme/backend/b", Name: "one", Transport: &xdsv1.Target_Stdio{Stdio: &xdsv1.StdioTransport{Cmd: "npx"}}}
	private := httpTarget("acme", "one", 0)
	private.GetMcp().Host = "10.0.0.1"
	bind := &xdsv1.Binding{Route: "acme/route/r", Target: "acme/target/b/one", EffectivePolicy: "acme/policy/c"}
	for _, tt := range []struct {
		name   string
		change func(p *plane)
		unit   string
		reason string
	}{
		{"stdio without grant", func(p *plane) { p.set("target/b/one", stdio) }, "acme/binding/r/b/one", "not granted"},
		{"private address without grant", func(p *plane) { p.set("target/b/one", private) }, "acme/binding/r/b/one", "10.0.0.1"},
		{"no address", func(p *plane) {
			p.set("target/b/one", &xdsv1.Target{Name: "one", Backend: "acme/backend/b", Transport: &xdsv1.Target_Mcp{Mcp: &xdsv1.HttpTransport{}}})
		}, "acme/binding/r/b/one", "not an address"},
		{"no transport", func(p *plane) { p.set("target/b/one", &xdsv1.Target{Name: "one", Backend: "acme/backend/b"}) }, "acme/binding/r/b/one", "kind that this proxy does not know"},
		{"target missing", func(p *plane) { p.remove(ConfigType, "target/b/one") }, "acme/binding/r/b/one", "does not exist"},
		{"target unreadable", func(p *plane) { p.raw(ConfigType, "target/b/one", []byte{1, 2, 3}) }, "acme/binding/r/b/one", "proto"},
		{"target of a later kind", func(p *plane) { p.raw(ConfigType, "target/b/one", nil) }, "acme/binding/r/b/one", "does not know"},
		{"binding unreadable", func(p *plane) { p.raw(ConfigType, "binding/r/b/one", []byte{1, 2, 3}) }, "acme/binding/r/b/one", "proto"},
		{"policy missing", func(p *plane) { p.set("binding/r/b/one", bind) }, "acme/binding/r/b/one", "does not exist"},
		{"secret missing", func(p *plane) { p.set("binding/r/b/one", bind); p.set("policy/c", keyAuth(secretRef("acme/secret/s"))) }, "acme/binding/r/b/one", "does not exist"},
		{"secret of another tenant", func(p *plane) {
			p.set("binding/r/b/one", bind)
			p.set("policy/c", keyAuth(secretRef("other/secret/s")))
		}, "acme/binding/r/b/one", "does not exist"},
		{"file without grant", func(p *plane) { p.set("binding/r/b/one", bind); p.set("policy/c", keyAuth(fileRef("/etc/key"))) }, "acme/binding/r/b/one", "not granted"},
		{"listener of route missing", func(p *plane) { p.set("route/r", &xdsv1.Route{Listener: "acme/listener/gone"}) }, "acme/route/r", "does not exist"},
		{"path expression", func(p *plane) {
			p.set("route/r", &xdsv1.Route{Listener: "acme/listener/main", Matches: []*xdsv1.RouteMatch{{Path: &xdsv1.RouteMatch_Regex{Regex: "("}}}})
		}, "acme/route/r", "missing closing"},
		{"port", func(p *plane) { p.set("listener/main", &xdsv1.Listener{Port: 70000}) }, "acme/listener/main", "not a port"},
		{"certificate missing", func(p *plane) { p.set("listener/main", &xdsv1.Listener{Port: 3000, Tls: &xdsv1.ListenerTls{}}) }, "acme/listener/main", "is missing"},
		{"grants", func(p *plane) { p.set("tenant/acme", &xdsv1.TenantInfo{Grants: []string{"fly"}}) }, "acme/tenant/acme", "unknown"},
		{"session keys", func(p *plane) {
			p.set("session-keys", &xdsv1.Secret{Secret: &xdsv1.Secret_SessionKeys{SessionKeys: &xdsv1.SessionKeys{Keys: []*xdsv1.SessionKey{{Id: []byte("x")}}}}})
		}, "acme/session-keys", "4 bytes"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for _, fresh := range []bool{false, true} { // with and without an older form
				s := New(Config{})
				p := newPlane(t, s, "acme")
				p.fill(3000)
				if !fresh {
					p.good()
				}
				tt.change(p)
				refusals := p.push()
				i := slices.IndexFunc(refusals, func(r *xdsv1.Refusal) bool { return r.GetName() == tt.unit })
				if i < 0 {
					t.Fatalf("fresh %v: %s is not among the refused: %v", fresh, tt.unit, refusals)
				}
				if !strings.Contains(refusals[i].GetReason(), tt.reason) {
					t.Errorf("fresh %v: reason %q, want %q in it", fresh, refusals[i].GetReason(), tt.reason)
				}
				if len(refusals) > 1 && tt.unit == "acme/binding/r/b/one" {
					t.Errorf("fresh %v: more was refused: %v", fresh, refusals)
				}
				if tt.unit == "acme/binding/r/b/one" && fresh && target(t, s, "acme", "one").Refused == nil {
					t.Errorf("target one is served without its policy")
				}
			}
		})
	}
}

func TestRevokedGrantEndsTheOlderForm(t *testing.T) {
	s := New(Config{})
	p := newPlane(t, s, "acme")
	p.fill(3000, "stdio=npx")
	p.set("target/b/one", &xdsv1.Target{Backend: "acme/backend/b", Name: "one", Transport: &xdsv1.Target_Stdio{Stdio: &xdsv1.StdioTransport{Cmd: "npx"}}})
	p.good()
	p.set("tenant/acme", &xdsv1.TenantInfo{})
	p.push()
	if one := target(t, s, "acme", "one"); one.Refused == nil || one.Policy != nil {
		t.Errorf("a target whose power was revoked is %+v", one)
	}
	p.set("tenant/acme", &xdsv1.TenantInfo{Grants: []string{"stdio=*"}})
	p.good()
}

func TestRevokedIdentityEndsTheOlderForm(t *testing.T) {
	s := New(Config{})
	p := newPlane(t, s, "acme")
	p.fill(3000, "identity=gcp")
	p.set("policy/c", &xdsv1.EffectivePolicy{Policies: &policyv1.Policies{BackendAuth: &policyv1.BackendAuth{Method: &policyv1.BackendAuth_Gcp{Gcp: &policyv1.GcpAuth{}}}}})
	p.set("binding/r/b/one", &xdsv1.Binding{Route: "acme/route/r", Target: "acme/target/b/one", EffectivePolicy: "acme/policy/c"})
	p.good()
	p.set("tenant/acme", &xdsv1.TenantInfo{Grants: []string{"identity=aws"}})
	refusals := p.push()
	if one := target(t, s, "acme", "one"); one.Refused == nil || one.Policy != nil {
		t.Errorf("a target whose identity was revoked is %+v", one)
	}
	if len(refusals) != 1 || !strings.Contains(refusals[0].GetReason(), "sluice tenant allow acme identity=gcp") {
		t.Errorf("refusals %v", refusals)
	}
	p.set("tenant/acme", &xdsv1.TenantInfo{Grants: []string{"identity"}})
	p.good()
}

func TestWhatDidNotChangeIsNotBuiltAgain(t *testing.T) {
	s := New(Config{})
	p := newPlane(t, s, "acme")
	p.fill(3000)
	p.set("policy/c", keyAuth(secretRef("acme/secret/s")))
	p.set("secret/s", value("v1"))
	p.set("binding/r/b/one", &xdsv1.Binding{Route: "acme/route/r", Target: "acme/target/b/one", EffectivePolicy: "acme/policy/c"})
	p.good()
	one, two := target(t, s, "acme", "one"), target(t, s, "acme", "two")
	p.set("secret/s", value("v2"))
	p.good()
	if now := target(t, s, "acme", "one"); now.Policy == one.Policy || now.Digest == one.Digest {
		t.Error("a new secret did not reach the target that uses it")
	}
	if now := target(t, s, "acme", "two"); now.Policy != two.Policy || now.Digest != two.Digest || now.Config != two.Config {
		t.Error("a target was built again for another's secret")
	}
	// The same bytes sent again are no change.
	one = target(t, s, "acme", "one")
	for key := range p.sent {
		p.pending.Set = append(p.pending.Set, p.sent[key])
	}
	p.good()
	if now := target(t, s, "acme", "one"); now.Policy != one.Policy {
		t.Error("the same bytes were built again")
	}
	// One target with one policy on two routes is one thing to pools and caches.
	p.set("route/r2", &xdsv1.Route{Listener: "acme/listener/main", Hostnames: []string{"two.test"}, Backends: []*xdsv1.WeightedBackend{{Backend: "acme/backend/b"}}})
	p.set("binding/r2/b/two", &xdsv1.Binding{Route: "acme/route/r2", Target: "acme/target/b/two"})
	p.good()
	digests := map[string]int{}
	for x := range s.Load().Targets() {
		digests[x.Digest]++
	}
	if len(digests) != 2 || digests[two.Digest] != 2 {
		t.Errorf("digests %v, want two, one of them twice", digests)
	}
}

func TestDriftIsNotApplied(t *testing.T) {
	s := New(Config{})
	p := newPlane(t, s, "acme")
	p.fill(3000)
	p.good()
	before := s.Load()
	_, err := s.Apply(Update{Tenant: "acme", Revision: 9, Digest: make([]byte, 32), Removed: []Key{{ConfigType, "acme/listener/main"}}})
	if !errors.Is(err, ErrDrift) || s.Load() != before {
		t.Fatalf("Apply() = %v, want ErrDrift and nothing changed", err)
	}
	s.Forget("acme")
	for typ, versions := range s.Versions() {
		for name, v := range versions {
			if v != "" {
				t.Errorf("%s of type %s is claimed as %q after Forget", name, typ, v)
			}
		}
	}
	// What the control plane then sends, all of it, heals.
	for _, r := range p.sent {
		p.pending.Set = append(p.pending.Set, r)
	}
	p.good()
	if _, err := find(s, 3000, "x.test", "/"); err != nil {
		t.Error(err)
	}
}

func TestListenersOfTenantsShareAPort(t *testing.T) {
	s := New(Config{})
	a, b := newPlane(t, s, "a"), newPlane(t, s, "b")
	a.fill(3000)
	a.set("listener/main", &xdsv1.Listener{Port: 3000, Hostnames: []string{"A.test", "*.a.test"}})
	a.good()
	b.fill(3000)
	b.good() // any name
	for host, want := range map[string]string{"a.test": "a", "A.TEST:3000": "a", "x.a.test": "a", "b.test": "b", "127.0.0.1": "b"} {
		r, err := find(s, 3000, host, "/")
		if err != nil || r.Tenant.Name != want {
			t.Errorf("%s: %v, %v, want tenant %s", host, r, err, want)
		}
	}
	// A request for a's name that a does not route must not end at b's catch-all.
	a.set("route/r", &xdsv1.Route{Listener: "a/listener/main", Matches: []*xdsv1.RouteMatch{{Path: &xdsv1.RouteMatch_Exact{Exact: "/mcp"}}}})
	a.good()
	if r, err := find(s, 3000, "a.test", "/other"); !errors.Is(err, ErrNoRoute) {
		t.Errorf("found %v, %v, want ErrNoRoute", r, err)
	}
	// Path prefixes of one name may be shared out between tenants.
	b.set("listener/shared", &xdsv1.Listener{Port: 3000, Hostnames: []string{"a.test"}})
	b.set("route/shared", &xdsv1.Route{Listener: "b/listener/shared", Matches: []*xdsv1.RouteMatch{{Path: &xdsv1.RouteMatch_PathPrefix{PathPrefix: "/b"}}}})
	b.good()
	for path, want := range map[string]string{"/mcp": "a", "/b/x": "b"} {
		if r, err := find(s, 3000, "a.test", path); err != nil || r.Tenant.Name != want {
			t.Errorf("%s: %v, %v, want tenant %s", path, r, err, want)
		}
	}
	// TLS cannot share a socket with plain HTTP; the refusal names no other tenant.
	cert, key := certificate(t, "b.test")
	b.set("secret/cert", value(string(cert)))
	b.set("secret/key", value(string(key)))
	b.set("listener/main", &xdsv1.Listener{Port: 3000, Tls: &xdsv1.ListenerTls{Cert: secretRef("b/secret/cert"), Key: secretRef("b/secret/key")}})
	refusals := b.push()
	if len(refusals) != 1 || refusals[0].GetName() != "b/listener/main" || refusals[0].GetField() != "port" || strings.Contains(refusals[0].GetReason(), "a/") {
		t.Errorf("refusals %v", refusals)
	}
	if r, err := find(s, 3000, "b.test", "/"); err != nil || r.Tenant.Name != "b" || r.Listener.TLS != nil {
		t.Errorf("b's listener is gone: %v", err)
	}
	s.Drop("a")
	s.Drop("b")
	if len(s.Load().Ports()) != 0 {
		t.Errorf("ports left: %v", s.Load().Ports())
	}
}

func TestClientCertificatesCannotBeBypassed(t *testing.T) {
	s := New(Config{})
	p := newPlane(t, s, "acme")
	p.fill(3000)
	cert, key := certificate(t, "x.test")
	p.set("secret/cert", value(string(cert)))
	p.set("secret/key", value(string(key)))
	tls := &xdsv1.ListenerTls{Cert: secretRef("acme/secret/cert"), Key: secretRef("acme/secret/key")}
	strict := &xdsv1.ListenerTls{Cert: tls.Cert, Key: tls.Key, Root: secretRef("acme/secret/cert")}
	p.set("listener/main", &xdsv1.Listener{Port: 3000, Hostnames: []string{"open.test"}, Tls: tls})
	p.set("listener/strict", &xdsv1.Listener{Port: 3000, Hostnames: []string{"strict.test"}, Tls: strict})
	p.set("route/s", &xdsv1.Route{Listener: "acme/listener/strict"})
	p.good()
	if l := s.Load().Server(3000, "Strict.test"); l == nil || l.Name != "strict" {
		t.Errorf("Server(strict.test) = %v", l)
	}
	for _, tt := range []struct {
		sni, host string
		err       error
	}{
		{"open.test", "open.test", nil},
		{"strict.test", "strict.test", nil},
		{"open.test", "strict.test", ErrMisdirected},
		{"", "strict.test", ErrMisdirected},
		{"strict.test", "open.test", nil},
	} {
		if _, err := s.Load().Route(3000, tlsRequest(tt.sni, tt.host)); !errors.Is(err, tt.err) {
			t.Errorf("connection for %q, request for %q: %v, want %v", tt.sni, tt.host, err, tt.err)
		}
	}
	// Nor by sharing the name with a listener that asks for none.
	p.set("listener/strict", &xdsv1.Listener{Port: 3000, Hostnames: []string{"strict.test", "open.test"}, Tls: strict})
	if got := refusedNames(p.push()); len(got) != 1 {
		t.Errorf("refused %v, want one listener", got)
	}
}

func TestPortThatCannotBeHad(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var taken atomic.Bool
		taken.Store(true)
		s := New(Config{Bind: func(port uint16) error {
			if port == 80 && taken.Load() {
				return errors.New("listen on 127.0.0.1:80: permission denied")
			}
			return nil
		}})
		done := run(t, s)
		p := newPlane(t, s, "acme")
		p.fill(3000)
		p.good()
		p.set("listener/main", &xdsv1.Listener{Port: 80})
		p.set("listener/other", &xdsv1.Listener{Port: 81})
		refusals := p.push()
		if len(refusals) != 1 || refusals[0].GetName() != "acme/listener/main" || refusals[0].GetField() != "port" || !strings.Contains(refusals[0].GetReason(), "permission denied") {
			t.Errorf("refusals %v", refusals)
		}
		if diff := cmp.Diff(map[uint16]bool{3000: false, 81: false}, s.Load().Ports()); diff != "" {
			t.Errorf("ports (-want +got):\n%s", diff)
		}
		taken.Store(false)
		time.Sleep(3 * time.Second)
		if _, err := find(s, 80, "x.test", "/"); err != nil || len(s.Load().Tenant("acme").Refusals()) != 0 {
			t.Errorf("the port is free again: %v, %v", err, s.Load().Tenant("acme").Refusals())
		}
		done()
	})
}

// run starts the store's loop; what it returns ends it.
func run(t *testing.T, s *Store) func() {
	ctx, stop := contextWithCancel(t)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		s.Run(ctx)
	}()
	return func() { stop(); <-ended }
}

func TestFilesAreFollowed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		files := newFiles()
		cert, key := certificate(t, "one.test")
		files.set("/tls/cert", cert)
		files.set("/tls/key", key)
		files.set("/key", []byte("k1\n"))
		s := New(Config{ReadFile: files.read})
		defer run(t, s)()
		p := newPlane(t, s, "acme")
		p.fill(3000, "file=/tls/*", "file=/key")
		p.set("listener/main", &xdsv1.Listener{Port: 3000, Tls: &xdsv1.ListenerTls{Cert: fileRef("/tls/cert"), Key: fileRef("/tls/key")}})
		p.set("policy/c", keyAuth(fileRef("/key")))
		p.set("binding/r/b/one", &xdsv1.Binding{Route: "acme/route/r", Target: "acme/target/b/one", EffectivePolicy: "acme/policy/c"})
		p.good()
		first, one, two := s.Load(), target(t, s, "acme", "one"), target(t, s, "acme", "two")

		time.Sleep(10 * time.Second)
		if s.Load() != first {
			t.Error("the index was swapped though no file changed")
		}
		cert2, key2 := certificate(t, "one.test")
		files.set("/tls/cert", cert2) // half of the change: the pair does not fit
		time.Sleep(3 * time.Second)
		refusals := s.Load().Tenant("acme").Refusals()
		if len(refusals) != 1 || refusals[0].GetField() != "tls.cert" {
			t.Errorf("refusals %v", refusals)
		}
		if got := s.Load().Server(3000, "x").TLS; got != first.Server(3000, "x").TLS {
			t.Error("a pair that does not fit replaced the good one")
		}
		files.set("/tls/key", key2)
		time.Sleep(3 * time.Second)
		if got := s.Load().Server(3000, "x").TLS; got == first.Server(3000, "x").TLS || len(s.Load().Tenant("acme").Refusals()) != 0 {
			t.Error("the new pair is not used")
		}
		if now := target(t, s, "acme", "one"); now.Policy != one.Policy {
			t.Error("a target was built again for a listener's file")
		}
		files.set("/key", []byte("k2\n"))
		time.Sleep(3 * time.Second)
		if now := target(t, s, "acme", "one"); now.Digest == one.Digest || now.Policy == one.Policy {
			t.Error("the new credential is not used")
		}
		if now := target(t, s, "acme", "two"); now.Digest != two.Digest {
			t.Error("a target was built again for another's file")
		}
		files.set("/key", nil)
		time.Sleep(3 * time.Second)
		if now := target(t, s, "acme", "one"); now.Refused != nil || len(s.Load().Tenant("acme").Refusals()) != 1 {
			t.Errorf("a file that is gone: %+v, %v", now, s.Load().Tenant("acme").Refusals())
		}
	})
}

// files are a file system of names; a nil content is a file that is not there.
type files struct {
	mu      sync.Mutex // guards content
	content map[string][]byte
}

func newFiles() *files { return &files{content: map[string][]byte{}} }

func (f *files) set(path string, content []byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.content[path] = content
}

func (f *files) read(path string) ([]byte, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.content[path] == nil {
		return nil, fs.ErrNotExist
	}
	return f.content[path], nil
}

func TestSubscribe(t *testing.T) {
	s := New(Config{})
	var revisions []int64
	cancel := s.Subscribe(func(old, now *Index) {
		if now != s.Load() || old == now {
			t.Error("a subscriber is told of another index than the active one")
		}
		revisions = append(revisions, now.Tenant("acme").Revision)
	})
	p := newPlane(t, s, "acme")
	p.fill(3000)
	p.good()
	p.good()
	cancel()
	p.good()
	if diff := cmp.Diff([]int64{1, 2}, revisions); diff != "" {
		t.Errorf("told of revisions (-want +got):\n%s", diff)
	}
}

// TestIncrementalIsFromScratch makes random edits and compares with a store that was given the outcome at once. Broken
// policies are among them, but only on units that never had a good form: what a unit keeps depends on its history.
func TestIncrementalIsFromScratch(t *testing.T) {
	for seed := range uint64(20) {
		rng := rand.New(rand.NewPCG(seed, 1))
		s := New(Config{})
		p := newPlane(t, s, "acme")
		p.fill(3000)
		p.push()
		for range 30 {
			for range 1 + rng.IntN(4) {
				randomEdit(p, rng)
			}
			p.push()
		}
		fresh := New(Config{})
		again := newPlane(t, fresh, "acme")
		again.sent, again.revision = p.sent, p.revision-1
		for _, r := range p.sent {
			again.pending.Set = append(again.pending.Set, r)
		}
		again.push()
		if diff := cmp.Diff(summary(fresh), summary(s)); diff != "" {
			t.Fatalf("seed %d: incremental differs from scratch (-scratch +incremental):\n%s", seed, diff)
		}
	}
}

// TestHealedIsFromScratch takes away, at random, what units need, and in the end gives it all back: what a unit was through
// must leave no trace, and no unit may miss that what it reads is there again.
func TestHealedIsFromScratch(t *testing.T) {
	const url = "https://issuer.test/keys"
	parts := map[string]any{
		"tenant/acme": &xdsv1.TenantInfo{Grants: []string{"file=/etc/*", "stdio=npx"}}, "backend/b": &xdsv1.Backend{}, "backend/c": &xdsv1.Backend{},
		"listener/main": &xdsv1.Listener{Port: 3000}, "secret/s": value("v"), "policy/key": keyAuth(secretRef("acme/secret/s")), "policy/file": keyAuth(fileRef("/etc/key")),
		"jwks/one": &xdsv1.Jwks{Url: url, Keys: []byte(`{"keys":[{"kty":"EC","crv":"P-256","kid":"1","alg":"ES256","use":"sig",` +
			`"x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}]}`)},
		"policy/jwt": &xdsv1.EffectivePolicy{Policies: &policyv1.Policies{JwtAuth: &policyv1.JwtAuth{Providers: []*policyv1.JwtProvider{
			{Issuer: "https://issuer.test", Audiences: []string{"a"}, Jwks: &policyv1.Jwks{Source: &policyv1.Jwks_Url{Url: url}}}}}}},
		"route/r": &xdsv1.Route{Listener: "acme/listener/main", EffectivePolicy: "acme/policy/jwt",
			Backends: []*xdsv1.WeightedBackend{{Backend: "acme/backend/b"}, {Backend: "acme/backend/c"}}},
	}
	for i := range 6 {
		name := fmt.Sprint("t", i)
		one := httpTarget("acme", name, uint32(i%3)) // some have one place in the order
		if i%2 == 1 {
			one.Backend = "acme/backend/c"
			one.Transport = &xdsv1.Target_Stdio{Stdio: &xdsv1.StdioTransport{Cmd: "npx"}}
		}
		parts["target/b/"+name] = one
		parts["binding/r/b/"+name] = &xdsv1.Binding{Route: "acme/route/r", Target: "acme/target/b/" + name, EffectivePolicy: []string{"", "acme/policy/key", "acme/policy/file"}[i%3]}
	}
	for i := range 6 { // on stdio, credentials go into a variable that these policies do not name
		if i%2 == 1 {
			parts[fmt.Sprint("binding/r/b/t", i)] = &xdsv1.Binding{Route: "acme/route/r", Target: fmt.Sprint("acme/target/b/t", i)}
		}
	}
	all := slices.Sorted(maps.Keys(parts))
	file := func(string) ([]byte, error) { return []byte("key"), nil }
	fill := func(p *plane) {
		for _, name := range all {
			p.set(name, parts[name])
		}
	}
	fresh := New(Config{ReadFile: file})
	scratch := newPlane(t, fresh, "acme")
	fill(scratch)
	if refusals := scratch.push(); len(refusals) > 0 {
		t.Fatalf("what all is healed to is refused: %v", refusals)
	}
	want := summary(fresh)[1:] // without the revision
	for seed := range uint64(60) {
		rng := rand.New(rand.NewPCG(seed, 2))
		s := New(Config{ReadFile: file})
		p := newPlane(t, s, "acme")
		bad := map[string]bool{} // not there, or unreadable
		for _, name := range all {
			bad[name] = true
		}
		for range 25 {
			for range 1 + rng.IntN(5) {
				name := all[rng.IntN(len(all))]
				switch typ := map[bool]string{true: SecretType, false: ConfigType}[strings.HasPrefix(name, "secret/")]; {
				case bad[name]:
					p.set(name, parts[name])
				case rng.IntN(4) == 0:
					p.raw(typ, name, []byte{1, 2, 3})
				default:
					p.remove(typ, name)
				}
				bad[name] = !bad[name]
			}
			p.push()
		}
		for _, i := range rng.Perm(len(all)) {
			if bad[all[i]] { // and nothing else: what needs it must find it by itself
				p.set(all[i], parts[all[i]])
				p.push()
			}
		}
		if refusals := p.push(); len(refusals) > 0 {
			t.Fatalf("seed %d: healed, and still refused: %v", seed, refusals)
		}
		if diff := cmp.Diff(want, summary(s)[1:]); diff != "" {
			t.Fatalf("seed %d: healed differs from scratch (-scratch +healed):\n%s", seed, diff)
		}
		if got, want := follows(s), follows(fresh); got != want {
			t.Fatalf("seed %d: units follow %d sources, want %d", seed, got, want)
		}
	}
}

// follows counts what the units of all tenants read.
func follows(s *Store) (n int) {
	for _, t := range s.tenants {
		for _, readers := range t.readers {
			n += len(readers)
		}
	}
	return n
}

// TestAnUpdateLeavesTheRest: what an update does not touch are the very same targets, which pools and caches go by.
func TestAnUpdateLeavesTheRest(t *testing.T) {
	s := New(Config{})
	p := newPlane(t, s, "acme")
	p.fill(3000)
	p.good()
	one, two := target(t, s, "acme", "one"), target(t, s, "acme", "two")
	changed := httpTarget("acme", "one", 0)
	changed.Description = "new"
	p.set("target/b/one", changed)
	p.good()
	if target(t, s, "acme", "two") != two {
		t.Error("the other target was made anew")
	}
	if now := target(t, s, "acme", "one"); now == one || one.Config.GetDescription() != "" || now.Config.GetDescription() != "new" {
		t.Errorf("the changed target is %+v, and was %+v", now, one)
	}
}

// Two units read one file. What one of them finds changed when it is built, the other is told of.
func TestAFileFoundChanged(t *testing.T) {
	content := "v1"
	s := New(Config{ReadFile: func(string) ([]byte, error) { return []byte(content), nil }})
	p := newPlane(t, s, "acme")
	p.fill(3000, "file=/etc/*")
	p.set("policy/c", keyAuth(fileRef("/etc/key")))
	for _, name := range []string{"one", "two"} {
		p.set("binding/r/b/"+name, &xdsv1.Binding{Route: "acme/route/r", Target: "acme/target/b/" + name, EffectivePolicy: "acme/policy/c"})
	}
	p.good()
	two := target(t, s, "acme", "two").Digest
	content = "v2"
	changed := httpTarget("acme", "one", 0)
	changed.Description = "new"
	p.set("target/b/one", changed)
	p.good()
	s.poll()
	if target(t, s, "acme", "two").Digest == two {
		t.Error("the other reader of the file still has the old one")
	}
}

func randomEdit(p *plane, rng *rand.Rand) {
	n := rng.IntN(5)
	name := fmt.Sprint("t", n)
	switch rng.IntN(7) {
	case 0:
		p.set("target/b/"+name, httpTarget("acme", name, rng.Uint32N(10)))
		p.set("binding/r/b/"+name, &xdsv1.Binding{Route: "acme/route/r", Target: "acme/target/b/" + name, EffectivePolicy: fmt.Sprint("acme/policy/c", n%2)})
		p.set(fmt.Sprint("policy/c", n%2), keyAuth(secretRef("acme/secret/s")))
		p.set("secret/s", value("v"))
	case 1:
		if p.sent[Key{ConfigType, "acme/binding/r/b/" + name}].Name != "" {
			p.remove(ConfigType, "binding/r/b/"+name)
			p.remove(ConfigType, "target/b/"+name)
		}
	case 2:
		if p.sent[Key{SecretType, "acme/secret/s"}].Name != "" {
			p.set("secret/s", value(fmt.Sprint("v", rng.IntN(3))))
		}
	case 3:
		p.set(fmt.Sprint("listener/l", n), &xdsv1.Listener{Port: 3000 + rng.Uint32N(3), Hostnames: []string{fmt.Sprintf("h%d.test", rng.IntN(3))}})
		p.set(fmt.Sprint("route/r", n), &xdsv1.Route{
			Listener: fmt.Sprint("acme/listener/l", n), Backends: []*xdsv1.WeightedBackend{{Backend: "acme/backend/b"}},
			Matches: []*xdsv1.RouteMatch{{Path: &xdsv1.RouteMatch_PathPrefix{PathPrefix: fmt.Sprint("/", n)}}},
		})
	case 4:
		if p.sent[Key{ConfigType, fmt.Sprint("acme/route/r", n)}].Name != "" {
			p.remove(ConfigType, fmt.Sprint("route/r", n))
			p.remove(ConfigType, fmt.Sprint("listener/l", n))
		}
	case 5:
		p.set("backend/b", &xdsv1.Backend{Description: fmt.Sprint(rng.IntN(3))})
	case 6:
		p.set("binding/r/b/broken", &xdsv1.Binding{Route: "acme/route/r", Target: "acme/target/b/broken"})
	}
}

// summary is all of an index that can be compared.
func summary(s *Store) []string {
	var out []string
	ix := s.Load()
	for tenant := range ix.Tenants() {
		out = append(out, fmt.Sprint(tenant.Name, tenant.Revision))
		for _, r := range tenant.Refusals() {
			out = append(out, fmt.Sprint("refused ", r.GetName(), r.GetReason()))
		}
		for _, r := range tenant.Routes() {
			line := fmt.Sprint("route ", r.Name, r.Refused)
			if r.Listener != nil {
				line += fmt.Sprint(r.Listener.Name, r.Listener.Port, r.Listener.Hostnames)
			}
			for _, b := range r.Backends {
				line += " " + b.Name + b.Description
				for _, x := range b.Targets {
					line += fmt.Sprint(" ", x.Name, x.Digest, x.Refused)
				}
			}
			out = append(out, line)
		}
	}
	for port := range uint16(4) {
		for host := range 4 {
			for path := range 5 {
				r, err := find(s, 3000+port, fmt.Sprintf("h%d.test", host), fmt.Sprint("/", path, "/x"))
				name := ""
				if r != nil {
					name = r.Name
				}
				out = append(out, fmt.Sprint(port, host, path, name, err))
			}
		}
	}
	return out
}

func TestRequestsSeeOneIndexWhileItIsSwapped(t *testing.T) {
	s := New(Config{})
	p := newPlane(t, s, "acme")
	p.fill(3000)
	revise := func(i int) {
		one := httpTarget("acme", "one", 0)
		one.Description = fmt.Sprint(i)
		p.set("target/b/one", one)
		p.set("backend/b", &xdsv1.Backend{Description: fmt.Sprint(i)})
		p.good()
	}
	revise(0)
	stop := make(chan struct{})
	var readers sync.WaitGroup
	for range 4 {
		readers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				r, err := find(s, 3000, "x.test", "/")
				if err != nil || len(r.Backends) != 1 || len(r.Backends[0].Targets) != 2 || r.Backends[0].Targets[0].Config.GetDescription() != r.Backends[0].Description {
					t.Errorf("a reader sees %+v, %v", r, err)
					return
				}
			}
		})
	}
	for i := range 200 {
		revise(i)
	}
	close(stop)
	readers.Wait()
}

func FuzzApply(f *testing.F) {
	s := New(Config{})
	p := newPlane(f, s, "acme")
	p.fill(3000)
	for _, r := range p.sent {
		f.Add(r.Name, r.Body)
	}
	f.Fuzz(func(t *testing.T, name string, body []byte) {
		s := New(Config{})
		p := newPlane(t, s, "acme")
		p.fill(3000)
		p.good()
		p.pending.Set = append(p.pending.Set, Resource{ConfigType, name, "v", body}, Resource{SecretType, name, "v", body})
		p.pending.Tenant, p.pending.Revision = "acme", 2
		if _, err := s.Apply(p.pending); err != nil {
			t.Fatal(err)
		}
		for x := range s.Load().Targets() {
			if (x.Policy == nil) != (x.Refused != nil) {
				t.Errorf("target %s: policy %v, refused %v", x.Name, x.Policy, x.Refused)
			}
		}
		for _, r := range s.Load().Tenant("acme").Routes() {
			if r.Policy == nil && r.Refused == nil {
				t.Errorf("route %s has no policy", r.Name)
			}
		}
		find(s, 3000, "x.test", "/")
	})
}
