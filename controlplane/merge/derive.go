package merge

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"iter"
	"maps"
	"reflect"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	adminv1 "github.com/sluicegate/sluice/proto/gen/sluice/admin/v1"
	xdsv1 "github.com/sluicegate/sluice/proto/gen/sluice/xds/v1"
)

// Output is a tenant's resources and how they hang together. It is immutable; the zero Output is that of no tenant.
type Output struct {
	in             Inputs
	digest         [sha256.Size]byte
	config, secret table[Resource]

	nodes     table[*node]    // by key
	targetsOf table[[]string] // backend → names of its Target objects
	routesOf  table[[]string] // backend → routes that lead to it
	routesAt  table[[]string] // listener → its routes
	chains    table[chain]    // by resource name
	bound     table[string]   // Route or Binding resource → its chain's name
	refs      table[[]string] // resource → what it refers to
	users     table[int]      // reference → how many resources refer to it

	identity *byte        // names this Output, and keeps nothing of it alive
	changes  *differences // nil for one that was derived from scratch
}

// differences are what an Output may have other than the one that it was updated from. They cost what the change costs:
// so a check of an edit looks at what it touched, and not at ten thousand chains.
type differences struct {
	from    *byte           // names the Output before
	configs map[string]bool // resources
	refs    map[string]bool // secrets and key sets
}

// Config yields all resources of type Config, in no order.
func (o *Output) Config() iter.Seq[Resource] { return values(o.config) }

// Secret yields all resources of type Secret, in no order.
func (o *Output) Secret() iter.Seq[Resource] { return values(o.secret) }

func values(t table[Resource]) iter.Seq[Resource] {
	return func(yield func(Resource) bool) {
		for _, r := range t.all() {
			if !yield(r) {
				return
			}
		}
	}
}

// All is the whole output as a difference from nothing.
func (o *Output) All() Delta {
	byName := func(a, b Resource) int { return strings.Compare(a.Name, b.Name) }
	return Delta{Config: slices.SortedFunc(o.Config(), byName), Secret: slices.SortedFunc(o.Secret(), byName)}
}

// Digest is over the (type, name, version) of all resources, as the Commit message defines it.
func (o *Output) Digest() []byte { return bytes.Clone(o.digest[:]) }

// Update derives in from what o was derived from. o stays as it is and good: a caller that cannot commit the
// change goes on with o. The Delta leads from o to the new Output.
func (o *Output) Update(in Inputs) (*Output, Delta, error) {
	if o.in.Tenant != "" && o.in.Tenant != in.Tenant {
		return nil, Delta{}, fmt.Errorf("update of tenant %q with inputs of tenant %q", o.in.Tenant, in.Tenant)
	}
	if in.Tenant == "" {
		return nil, Delta{}, errors.New("Inputs.Tenant is empty")
	}
	u := newUpdate(o, in)
	if err := u.readObjects(); err != nil {
		return nil, Delta{}, err
	}
	u.follow()
	u.emitTenant()
	u.bind()
	u.emitObjects()
	u.emitPolicies()
	u.emitReferenced()
	if err := errors.Join(u.errs...); err != nil {
		return nil, Delta{}, err
	}
	return u.done()
}

// emitTenant writes what there is once for each tenant.
func (u *update) emitTenant() {
	n, _ := u.nodes.get(tenantKey)
	u.putConfig(u.in.Tenant+"/tenant/"+u.in.Tenant, &xdsv1.Config{Resource: &xdsv1.Config_TenantInfo{TenantInfo: &xdsv1.TenantInfo{
		Grants:     u.in.Grants,
		SessionTtl: n.spec().GetTenant().GetSessionTtl(),
	}}})
	keys := u.in.Tenant + "/session-keys"
	if u.in.SessionKeys == nil {
		u.drop(secrets, keys)
	} else {
		u.putSecret(keys, &xdsv1.Secret{Secret: &xdsv1.Secret_SessionKeys{SessionKeys: u.in.SessionKeys}})
	}
}

// bind finds the chain of each dirty binding and route, and writes the bindings.
func (u *update) bind() {
	for b := range u.dirtyBindings {
		name := b.name(u.in.Tenant)
		c, ok := u.targetChain(b)
		if !ok {
			u.unbind(name)
			u.drop(configs, name)
			continue
		}
		u.putConfig(name, &xdsv1.Config{Resource: &xdsv1.Config_Binding{Binding: &xdsv1.Binding{
			Route:           u.in.Tenant + "/route/" + b.route,
			Target:          u.in.Tenant + "/target/" + b.target,
			EffectivePolicy: u.rebind(name, c),
		}}})
	}
	for r := range u.dirtyRoutes {
		name := u.in.Tenant + "/route/" + r
		n := u.node("route/" + r)
		if n == nil {
			u.unbind(name)
			u.drop(configs, name)
			continue
		}
		policy := u.rebind(name, u.chain(routeClass, platformKey, tenantKey, "listener/"+n.spec().GetRoute().GetListener(), "route/"+r))
		u.putConfig(name, &xdsv1.Config{Resource: &xdsv1.Config_Route{Route: serveRoute(u.in.Tenant, n.spec().GetRoute(), policy)}})
	}
}

// targetChain is false where there is nothing to bind (any more).
func (u *update) targetChain(b binding) (chain, bool) {
	route, backend, target := u.node("route/"+b.route).spec().GetRoute(), u.node("backend/"+b.backend), u.node("target/"+b.target).spec().GetTarget()
	if backend == nil || target.GetBackend() != b.backend || !backends(route)[b.backend] {
		return chain{}, false
	}
	return u.chain(classOf(target), platformKey, tenantKey, "listener/"+route.GetListener(), "route/"+b.route, "backend/"+b.backend, "target/"+b.target), true
}

// chain holds those of the levels that set a kind of the class.
func (u *update) chain(c class, levels ...string) chain {
	out := chain{class: c}
	for _, key := range levels {
		if n := u.node(key); n != nil && n.kinds&c.kinds != 0 {
			out.levels = append(out.levels, key)
		}
	}
	return out
}

// rebind lets a Route or Binding use a chain instead of the one that it used, and returns the new one's name.
func (u *update) rebind(resource string, c chain) string {
	name := c.name(u.in.Tenant)
	if old, bound := u.bound.get(resource); bound && old == name {
		return name
	}
	u.unbind(resource)
	u.bound.set(resource, name)
	if name != "" {
		if _, exists := u.chains.get(name); !exists {
			u.chains.set(name, c)
		}
		u.count(chainRef(name), +1)
		u.dirtyChains[name] = true
	}
	return name
}

func (u *update) unbind(resource string) {
	name, bound := u.bound.get(resource)
	if !bound {
		return
	}
	u.bound.remove(resource)
	if name != "" {
		u.count(chainRef(name), -1)
		u.dirtyChains[name] = true
	}
}

// emitObjects writes the resources that are made from one object each.
func (u *update) emitObjects() {
	for _, c := range u.changes {
		name := u.in.Tenant + "/" + c.key
		switch spec := c.spec().(type) {
		case *adminv1.Object_Listener, *adminv1.Object_Backend, *adminv1.Object_Target:
			if c.new == nil {
				u.drop(configs, name)
				continue
			}
			config, err := serveObject(u.in.Tenant, c.new.object.GetName(), spec)
			if err != nil {
				u.failed(c.key, err)
				continue
			}
			if l := config.GetListener(); l != nil {
				refs, err := serve(l, u.in.Tenant)
				if err != nil {
					u.failed(c.key, err)
					continue
				}
				u.refer(name, refs)
			}
			u.putConfig(name, config)
		}
	}
}

// emitPolicies merges the dirty chains; a chain that nothing uses any more goes.
func (u *update) emitPolicies() {
	for name := range u.dirtyChains {
		c, _ := u.chains.get(name)
		if n, _ := u.users.get(chainRef(name)); n == 0 {
			u.chains.remove(name)
			u.drop(configs, name)
			continue
		}
		var levels []Level
		for _, key := range c.levels {
			levels = append(levels, u.node(key).level)
		}
		merged := effective(c.class.kinds.fields(), levels)
		served := &xdsv1.EffectivePolicy{Policies: proto.CloneOf(merged.Policies), EnforcedAuthorization: merged.Enforced, From: merged.From, Enforced: merged.Settled}
		refs, err := serve(served.Policies, u.in.Tenant)
		if err != nil {
			u.failed(strings.Join(c.levels, ", "), err)
			continue
		}
		u.putConfig(name, &xdsv1.Config{Resource: &xdsv1.Config_EffectivePolicy{EffectivePolicy: served}})
		u.refer(name, refs)
	}
}

// emitReferenced writes secrets and key sets: those whose users came or went, and those in use whose value differs.
func (u *update) emitReferenced() {
	rekeyed := !bytes.Equal(u.prev.in.VersionKey, u.in.VersionKey)
	if rekeyed || !sameMap(u.prev.in.Secrets, u.in.Secrets) {
		for name := range differing(u.prev.in.Secrets, u.in.Secrets, rekeyed) {
			u.dirtyRefs[secretRef(name)] = true
		}
	}
	for url := range differing(u.prev.in.Jwks, u.in.Jwks, false) {
		u.dirtyRefs[jwksRef(url)] = true
	}
	for ref := range u.dirtyRefs {
		users, _ := u.users.get(ref)
		kind, what, _ := strings.Cut(ref, " ")
		switch kind {
		case "secret":
			if value, known := u.in.Secrets[what]; known && users > 0 {
				u.putSecret(what, &xdsv1.Secret{Secret: &xdsv1.Secret_Value{Value: value}})
			} else {
				u.drop(secrets, what)
			}
		case "jwks":
			name := u.in.Tenant + "/jwks/" + shortHash(what)
			if users > 0 {
				u.putConfig(name, &xdsv1.Config{Resource: &xdsv1.Config_Jwks{Jwks: &xdsv1.Jwks{Url: what, Keys: u.in.Jwks[what]}}})
			} else {
				u.drop(configs, name)
			}
		}
	}
}

// sameMap tells whether two maps are one and the same: Inputs are immutable, so then nothing differs.
func sameMap(a, b map[string][]byte) bool {
	return reflect.ValueOf(a).Pointer() == reflect.ValueOf(b).Pointer()
}

// differing yields the keys whose values differ between two maps; all that either has, if everything does.
func differing(a, b map[string][]byte, everything bool) map[string]bool {
	out := map[string]bool{}
	for k, v := range a {
		if w, ok := b[k]; everything || !ok || !bytes.Equal(v, w) {
			out[k] = true
		}
	}
	for k := range b {
		if _, ok := a[k]; !ok {
			out[k] = true
		}
	}
	return out
}

// refer says what a resource refers to now.
func (u *update) refer(resource string, refs []string) {
	slices.Sort(refs)
	refs = slices.Compact(refs)
	old, _ := u.refs.get(resource)
	if slices.Equal(old, refs) {
		return
	}
	for _, ref := range refs {
		u.count(ref, +1)
	}
	for _, ref := range old {
		u.count(ref, -1)
	}
	if len(refs) > 0 {
		u.refs.set(resource, refs)
	} else {
		u.refs.remove(resource)
	}
}

func (u *update) count(ref string, by int) {
	n, _ := u.users.get(ref)
	if n+by > 0 {
		u.users.set(ref, n+by)
	} else {
		u.users.remove(ref)
	}
	if n == 0 || n+by == 0 {
		u.dirtyRefs[ref] = true
	}
}

const (
	configs = iota
	secrets
)

func (u *update) putConfig(name string, c *xdsv1.Config) {
	body := encode(c)
	u.put(configs, &u.config, Resource{name, contentVersion(body), body})
}

func (u *update) putSecret(name string, s *xdsv1.Secret) {
	if len(u.in.VersionKey) == 0 {
		u.failed(name, errors.New("a secret needs Inputs.VersionKey"))
		return
	}
	body := encode(s)
	u.put(secrets, &u.secret, Resource{name, secretVersion(u.in.VersionKey, name, body), body})
}

// put cuts off what came out the same.
func (u *update) put(set int, t *draft[Resource], r Resource) {
	if was, ok := t.get(r.Name); ok && was.Version == r.Version {
		return
	}
	t.set(r.Name, r)
	u.touched[set][r.Name] = true
}

func (u *update) drop(set int, name string) {
	t := [...]*draft[Resource]{&u.config, &u.secret}[set]
	t.remove(name)
	u.touched[set][name] = true
	u.refer(name, nil)
}

// done closes the update: what was written and differs is the Delta.
func (u *update) done() (*Output, Delta, error) {
	o := &Output{
		in: u.in, digest: u.prev.digest,
		config: u.config.done(), secret: u.secret.done(), nodes: u.nodes.done(),
		targetsOf: u.targetsOf.done(), routesOf: u.routesOf.done(), routesAt: u.routesAt.done(),
		chains: u.chains.done(), bound: u.bound.done(), refs: u.refs.done(), users: u.users.done(),
		identity: new(byte),
	}
	if u.prev.identity != nil {
		o.changes = &differences{from: u.prev.identity, configs: u.touched[configs], refs: u.dirtyRefs}
	}
	var d Delta
	d.Config, d.RemovedConfig = o.difference(u.touched[configs], configType, u.prev.config, o.config)
	d.Secret, d.RemovedSecret = o.difference(u.touched[secrets], secretType, u.prev.secret, o.secret)
	return o, d, nil
}

func (o *Output) difference(touched map[string]bool, typeURL string, before, after table[Resource]) (changed []Resource, removed []string) {
	for _, name := range slices.Sorted(maps.Keys(touched)) {
		was, had := before.get(name)
		is, has := after.get(name)
		if had && has && was.Version == is.Version || !had && !has {
			continue
		}
		if had {
			o.addDigest(typeURL, was)
		}
		if has {
			o.addDigest(typeURL, is)
			changed = append(changed, is)
		} else {
			removed = append(removed, name)
		}
	}
	return changed, removed
}

const (
	configType = "type.googleapis.com/sluice.xds.v1.Config"
	secretType = "type.googleapis.com/sluice.xds.v1.Secret"
)

// addDigest adds or takes away a resource: the digest is an exclusive or.
func (o *Output) addDigest(typeURL string, r Resource) {
	h := sha256.Sum256([]byte(typeURL + "\x00" + r.Name + "\x00" + r.Version))
	for i := range h {
		o.digest[i] ^= h[i]
	}
}
