package merge

import (
	"crypto/sha256"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"

	"github.com/sluicegate/sluice/internal/resource"
	adminv1 "github.com/sluicegate/sluice/proto/gen/sluice/admin/v1"
	policyv1 "github.com/sluicegate/sluice/proto/gen/sluice/policy/v1"
	xdsv1 "github.com/sluicegate/sluice/proto/gen/sluice/xds/v1"
)

var testKey = []byte("0123456789abcdef0123456789abcdef")

// naive is what Derive promises, written as nested loops: no index, no sharing, nothing incremental.
func naive(t testing.TB, in Inputs) map[string]proto.Message {
	t.Helper()
	out := map[string]proto.Message{}
	config := func(name string, c *xdsv1.Config) { out[in.Tenant+"/"+name] = c }
	find := func(kind, name string) *adminv1.Object {
		for _, o := range in.Objects {
			if resource.Kind(o) == kind && o.GetName() == name {
				return o
			}
		}
		return nil
	}
	refer := func(m proto.Message) {
		refs, err := serve(m, in.Tenant)
		if err != nil {
			t.Fatal(err)
		}
		for _, ref := range refs {
			kind, what, _ := strings.Cut(ref, " ")
			if value, ok := in.Secrets[what]; kind == "secret" && ok {
				out[what] = &xdsv1.Secret{Secret: &xdsv1.Secret_Value{Value: value}}
			} else if kind == "jwks" {
				config("jwks/"+shortHash(what), &xdsv1.Config{Resource: &xdsv1.Config_Jwks{Jwks: &xdsv1.Jwks{Url: what, Keys: in.Jwks[what]}}})
			}
		}
	}
	merged := func(c class, objects ...*adminv1.Object) string {
		var levels []Level
		var keys []string
		for _, o := range objects {
			if o == nil {
				continue
			}
			if n := newNode(in.Tenant, o); n.kinds&c.kinds != 0 {
				levels, keys = append(levels, n.level), append(keys, n.level.key)
			}
		}
		if len(levels) == 0 {
			return ""
		}
		m := effective(c.kinds.fields(), levels)
		p := &xdsv1.EffectivePolicy{Policies: proto.CloneOf(m.Policies), EnforcedAuthorization: m.Enforced, From: m.From, Enforced: m.Settled}
		refer(p.Policies)
		name := "policy/" + shortHash(c.name, strings.Join(keys, "\x00"))
		config(name, &xdsv1.Config{Resource: &xdsv1.Config_EffectivePolicy{EffectivePolicy: p}})
		return in.Tenant + "/" + name
	}

	tenant := find("tenant", "tenant")
	config("tenant/"+in.Tenant, &xdsv1.Config{Resource: &xdsv1.Config_TenantInfo{TenantInfo: &xdsv1.TenantInfo{Grants: in.Grants, SessionTtl: tenant.GetTenant().GetSessionTtl()}}})
	if in.SessionKeys != nil {
		out[in.Tenant+"/session-keys"] = &xdsv1.Secret{Secret: &xdsv1.Secret_SessionKeys{SessionKeys: in.SessionKeys}}
	}
	for _, o := range in.Objects {
		name := o.GetName()
		switch spec := o.GetSpec().(type) {
		case *adminv1.Object_Listener, *adminv1.Object_Backend, *adminv1.Object_Target:
			c, err := serveObject(in.Tenant, name, spec)
			if err != nil {
				t.Fatal(err)
			}
			if l := c.GetListener(); l != nil {
				refer(l)
			}
			config(resource.Key(o), c)
		case *adminv1.Object_Route:
			listener := find("listener", spec.Route.GetListener())
			config("route/"+name, &xdsv1.Config{Resource: &xdsv1.Config_Route{Route: serveRoute(in.Tenant, spec.Route, merged(routeClass, in.Platform, tenant, listener, o))}})
			for _, rb := range spec.Route.GetBackends() {
				backend := find("backend", rb.GetBackend())
				for _, target := range in.Objects {
					if backend == nil || target.GetTarget() == nil || target.GetTarget().GetBackend() != rb.GetBackend() {
						continue
					}
					config("binding/"+name+"/"+target.GetName(), &xdsv1.Config{Resource: &xdsv1.Config_Binding{Binding: &xdsv1.Binding{
						Route: in.Tenant + "/route/" + name, Target: in.Tenant + "/target/" + target.GetName(),
						EffectivePolicy: merged(classOf(target.GetTarget()), in.Platform, tenant, listener, o, backend, target),
					}}})
				}
			}
		}
	}
	return out
}

// encodeAll is what naive made, as an Output would hold it.
func encodeAll(all map[string]proto.Message) (config, secret map[string]Resource, digest [32]byte) {
	config, secret = map[string]Resource{}, map[string]Resource{}
	for name, m := range all {
		body := encode(m)
		r, typeURL, set := Resource{name, contentVersion(body), body}, configType, config
		if _, ok := m.(*xdsv1.Secret); ok {
			r.Version, typeURL, set = secretVersion(testKey, name, body), secretType, secret
		}
		set[name] = r
		h := sha256.Sum256([]byte(typeURL + "\x00" + name + "\x00" + r.Version))
		for i := range h {
			digest[i] ^= h[i]
		}
	}
	return config, secret, digest
}

func byName(o *Output) (config, secret map[string]Resource) {
	config, secret = map[string]Resource{}, map[string]Resource{}
	for r := range o.Config() {
		config[r.Name] = r
	}
	for r := range o.Secret() {
		secret[r.Name] = r
	}
	return config, secret
}

// An editor makes random, mostly valid edits to a tenant, the way an operator would: few names, so that they meet.
type editor struct {
	*rand.Rand
	in Inputs
}

func newEditor(seed int) *editor {
	return &editor{Rand: rand.New(rand.NewPCG(uint64(seed), 7)), in: Inputs{Tenant: "acme", VersionKey: testKey}}
}

func (e *editor) pick(prefix string, n int) string { return fmt.Sprint(prefix, e.IntN(n)) }

func (e *editor) credential() *policyv1.Credential {
	switch e.IntN(4) {
	case 0:
		return &policyv1.Credential{Source: &policyv1.Credential_File{File: "/etc/key"}}
	case 1:
		return &policyv1.Credential{Source: &policyv1.Credential_Sealed{Sealed: e.pick("fp", 3)}}
	}
	return &policyv1.Credential{Source: &policyv1.Credential_Secret{Secret: e.pick("s", 3)}}
}

func (e *editor) policies() *policyv1.Policies {
	p := &policyv1.Policies{}
	if e.IntN(2) == 0 {
		p.McpAuthorization = &policyv1.McpAuthorization{Rules: []*policyv1.AuthorizationRule{{Rule: &policyv1.AuthorizationRule_Allow{Allow: e.pick("mcp.tool.name == 't", 3) + "'"}}}}
	}
	if e.IntN(3) == 0 {
		p.BackendAuth = &policyv1.BackendAuth{Method: &policyv1.BackendAuth_Key{Key: &policyv1.KeyAuth{Credentials: []*policyv1.LocatedCredential{{Credential: e.credential()}}}}}
	}
	if e.IntN(3) == 0 {
		p.BackendTls = &policyv1.BackendTls{Root: e.credential(), Hostname: e.pick("h", 2)}
	}
	if e.IntN(4) == 0 {
		p.RequestHeaderModifier = &policyv1.HeaderModifier{Set: map[string]*policyv1.Value{"x-a": {Kind: &policyv1.Value_Value{Value: e.pick("", 3)}}, "x-b": {Kind: &policyv1.Value_Value{Value: "1"}}}}
	}
	if e.IntN(5) == 0 {
		p.JwtAuth = &policyv1.JwtAuth{Providers: []*policyv1.JwtProvider{{Issuer: "i", Jwks: &policyv1.Jwks{Source: &policyv1.Jwks_Url{Url: e.pick("https://idp/", 2)}}}}}
	}
	if e.IntN(5) == 0 {
		p.Cors = &policyv1.Cors{AllowOrigins: []string{e.pick("https://o", 2)}}
	}
	return p
}

// some returns policies two times in three.
func (e *editor) some() *policyv1.Policies {
	if e.IntN(3) == 0 {
		return nil
	}
	return e.policies()
}

func (e *editor) rarely() *policyv1.Policies {
	if e.IntN(4) > 0 {
		return nil
	}
	return e.policies()
}

func (e *editor) object() *adminv1.Object {
	p, enforced := e.some(), e.rarely()
	switch e.IntN(10) {
	case 0:
		return &adminv1.Object{Name: "tenant", Spec: &adminv1.Object_Tenant{Tenant: &adminv1.Tenant{Policies: p, Enforced: enforced}}}
	case 1:
		l := &adminv1.Listener{Port: 3000 + uint32(e.IntN(2)), Policies: p, Enforced: enforced}
		if e.IntN(2) == 0 {
			l.Tls = &adminv1.ListenerTls{Cert: e.credential(), Key: e.credential()}
		}
		return &adminv1.Object{Name: e.pick("l", 2), Spec: &adminv1.Object_Listener{Listener: l}}
	case 2, 3:
		r := &adminv1.Route{Listener: e.pick("l", 2), Hostnames: []string{e.pick("h", 3)}, Policies: p, Enforced: enforced}
		for range e.IntN(3) {
			r.Backends = append(r.Backends, &adminv1.RouteBackend{Backend: e.pick("b", 3), Weight: uint32(e.IntN(3))})
		}
		return &adminv1.Object{Name: e.pick("r", 3), Spec: &adminv1.Object_Route{Route: r}}
	case 4:
		return &adminv1.Object{Name: e.pick("b", 3), Spec: &adminv1.Object_Backend{Backend: &adminv1.Backend{Description: e.pick("", 3), Policies: p, Enforced: enforced}}}
	}
	b := e.pick("b", 3)
	t := &adminv1.Target{Backend: b, Description: e.pick("", 3), Policies: p, Enforced: enforced}
	switch e.IntN(3) {
	case 0:
		t.Transport = &adminv1.Target_Stdio{Stdio: &adminv1.StdioTransport{Cmd: "npx", Env: map[string]string{"A": "1", "B": e.pick("", 2)}}}
	case 1:
		t.Transport = &adminv1.Target_Sse{Sse: &adminv1.HttpTransport{Host: "h", Port: 80}}
	default:
		t.Transport = &adminv1.Target_Mcp{Mcp: &adminv1.HttpTransport{Host: "https://h.example/mcp"}}
	}
	return &adminv1.Object{Name: b + "/" + e.pick("t", 4), Spec: &adminv1.Object_Target{Target: t}}
}

// edit changes one to four things; now and then everything, or the order.
func (e *editor) edit() Inputs {
	in := e.in
	in.Objects = slices.Clone(in.Objects)
	in.Secrets, in.Jwks = maps.Clone(in.Secrets), maps.Clone(in.Jwks)
	for range 1 + e.IntN(4) {
		switch e.IntN(20) {
		case 0:
			in.Grants = []string{e.pick("stdio=", 3)}
		case 1, 2:
			if in.Secrets == nil {
				in.Secrets = map[string][]byte{}
			}
			name := [...]string{e.pick("acme/secret/s", 3), e.pick("acme/sealed/fp", 3)}[e.IntN(2)]
			if e.IntN(4) == 0 {
				delete(in.Secrets, name)
			} else {
				in.Secrets[name] = []byte(e.pick("value", 5))
			}
		case 3:
			in.Jwks = map[string][]byte{e.pick("https://idp/", 2): []byte(e.pick("keys", 3))}
		case 4:
			in.SessionKeys = &xdsv1.SessionKeys{Keys: []*xdsv1.SessionKey{{Id: []byte(e.pick("k", 3))}}}
		case 5:
			if in.Platform = nil; e.IntN(3) > 0 {
				in.Platform = &adminv1.Object{Name: "platform", Spec: &adminv1.Object_Platform{Platform: &adminv1.Platform{Policies: e.some(), Enforced: e.rarely()}}}
			}
		case 6:
			e.Shuffle(len(in.Objects), func(i, j int) { in.Objects[i], in.Objects[j] = in.Objects[j], in.Objects[i] })
		case 7:
			if e.IntN(10) == 0 {
				in.Objects = nil
			}
		case 8, 9, 10:
			if n := len(in.Objects); n > 0 {
				i := e.IntN(n)
				in.Objects = slices.Delete(in.Objects, i, i+1)
			}
		default:
			o := e.object()
			if i := slices.IndexFunc(in.Objects, func(p *adminv1.Object) bool { return resource.Key(p) == resource.Key(o) }); i >= 0 {
				in.Objects[i] = o
			} else {
				in.Objects = slices.Insert(in.Objects, e.IntN(len(in.Objects)+1), o)
			}
		}
	}
	e.in = in
	return in
}

// different are the resources that a check builds again.
func different(o, before *Output) map[string]bool {
	names := map[string]bool{}
	for name := range o.suspects(before) {
		_, chain := o.chains.get(name)
		_, object := o.nodes.get(strings.TrimPrefix(name, "acme/"))
		if (chain || object) && o.differs(before, name) {
			names[name] = true
		}
	}
	return names
}

// Any sequence of edits: incremental, from scratch and the specification agree, byte for byte, and the deltas lead there.
func TestUpdateEqualsDerive(t *testing.T) {
	for seed := range 20 {
		e := newEditor(seed)
		out := &Output{}
		config, secret := map[string]Resource{}, map[string]Resource{} // what a client that follows the deltas holds
		for step := range 40 {
			in := e.edit()
			next, delta, err := out.Update(in)
			if err != nil {
				t.Fatalf("seed %d step %d: %v", seed, step, err)
			}
			apply(t, config, delta.Config, delta.RemovedConfig)
			apply(t, secret, delta.Secret, delta.RemovedSecret)
			wantConfig, wantSecret, wantDigest := encodeAll(naive(t, in))
			if diff := cmp.Diff(wantConfig, config); diff != "" {
				t.Fatalf("seed %d step %d: Config (-want +got):\n%s", seed, step, diff)
			}
			if diff := cmp.Diff(wantSecret, secret); diff != "" {
				t.Fatalf("seed %d step %d: Secret (-want +got):\n%s", seed, step, diff)
			}
			scratch, err := Derive(in)
			if err != nil {
				t.Fatal(err)
			}
			for what, o := range map[string]*Output{"incremental": next, "from scratch": scratch} {
				gotConfig, gotSecret := byName(o)
				if diff := cmp.Diff(wantConfig, gotConfig) + cmp.Diff(wantSecret, gotSecret); diff != "" {
					t.Fatalf("seed %d step %d: %s (-want +got):\n%s", seed, step, what, diff)
				}
				if o.digest != wantDigest {
					t.Fatalf("seed %d step %d: %s: digest is not that of the content", seed, step, what)
				}
			}
			if len(collect(next.chains)) != len(collect(scratch.chains)) || !maps.Equal(collect(next.users), collect(scratch.users)) || !maps.Equal(collect(next.bound), collect(scratch.bound)) {
				t.Fatalf("seed %d step %d: the bookkeeping differs from that from scratch, and would leak", seed, step)
			}
			whole := *next
			whole.changes = nil
			if diff := cmp.Diff(different(&whole, out), different(next, out)); diff != "" {
				t.Fatalf("seed %d step %d: what a check looks at (-of all +of what was touched):\n%s", seed, step, diff)
			}
			if e.IntN(4) > 0 { // else the commit failed: go on from the old one
				out = next
			} else {
				if e.in = out.in; e.in.Tenant == "" {
					e.in = newEditor(seed).in
				}
				config, secret = byName(out)
			}
		}
	}
}

func collect[V any](t table[V]) map[string]V { return maps.Collect(t.all()) }

func apply(t *testing.T, to map[string]Resource, changed []Resource, removed []string) {
	t.Helper()
	for _, r := range changed {
		if to[r.Name].Version == r.Version {
			t.Fatalf("%s is in the delta and did not change", r.Name)
		}
		to[r.Name] = r
	}
	for _, name := range removed {
		if _, ok := to[name]; !ok {
			t.Fatalf("%s is removed and was not there", name)
		}
		delete(to, name)
	}
}
