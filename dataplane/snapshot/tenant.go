package snapshot

import (
	"cmp"
	"crypto/sha256"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/sluicegate/sluice/internal/policy"
	xdsv1 "github.com/sluicegate/sluice/proto/gen/sluice/xds/v1"
	"google.golang.org/protobuf/proto"
)

const defaultSessionTTL = 24 * time.Hour

// tenant is what one tenant was given and what was made of it. The store's mutex guards it. Its indices are there so that
// an update costs what it touches: a tenant may have thousands of targets, and most updates change one.
type tenant struct {
	name      string
	revision  int64
	stale     bool // from disk, not confirmed since
	expired   bool // stale for too long
	resources map[Key]*resource
	digest    digest
	keySets   map[string]*resource // Jwks resources by name
	jwks      map[string]*resource // the same by URL

	// What all units share. A TenantInfo or session keys that cannot be read leave the last good ones.
	info  info
	owner *Owner
	keys  []SessionKey
	bad   []*xdsv1.Refusal // about info and keys

	units     map[string]*unit // by the name of the unit's head
	listeners map[string]*unit // those of units
	routes    map[string]*unit // those of units
	refused   map[string]*unit // those of units of which something is refused now
	groups    map[place]*group // targets of units that are bindings
	readers   map[source]map[*unit]bool
	dirty     map[string]bool // heads of units for the next build to look at
	retry     bool            // a listener waits for its port
}

// source is what a unit can read: a resource, a key set by its URL, or a file.
type source struct {
	key           Key
	jwksURL, file string
}

func newTenant(name string) *tenant {
	return &tenant{
		name: name, owner: &Owner{Name: name},
		resources: map[Key]*resource{}, keySets: map[string]*resource{}, jwks: map[string]*resource{},
		units: map[string]*unit{}, listeners: map[string]*unit{}, routes: map[string]*unit{}, refused: map[string]*unit{},
		groups: map[place]*group{}, readers: map[source]map[*unit]bool{}, dirty: map[string]bool{},
	}
}

type info struct {
	from   *resource
	grants policy.Grants
	ttl    time.Duration
}

// resource is immutable but in Store.Forget, which replaces it; units compare its identity by version and body.
type resource struct {
	Resource
	kind   string // the second part of its name
	config *xdsv1.Config
	secret *xdsv1.Secret
	err    error // why it cannot be read
}

func parse(r Resource) *resource {
	p := &resource{Resource: r, kind: kindOf(r.Name)}
	if r.Type == SecretType {
		p.secret = &xdsv1.Secret{}
		p.err = proto.Unmarshal(r.Body, p.secret)
		if p.err == nil && p.secret.GetSecret() == nil {
			p.err = fmt.Errorf("the secret is of a kind that this proxy does not know")
		}
	} else {
		p.config = &xdsv1.Config{}
		p.err = proto.Unmarshal(r.Body, p.config)
		if p.err == nil && p.config.GetResource() == nil {
			p.err = fmt.Errorf("the resource is of a kind that this proxy does not know")
		}
	}
	return p
}

// staged is an update that was read and not taken in.
type staged struct {
	changed map[Key]*resource // nil: removed
	digest  digest            // of the tenant with it
}

func (t *tenant) stage(u Update) staged {
	st := staged{changed: map[Key]*resource{}, digest: t.digest}
	put := func(key Key, now *resource) {
		was, twice := st.changed[key]
		if !twice {
			was = t.resources[key]
		}
		st.digest.toggle(was)
		st.digest.toggle(now)
		st.changed[key] = now
	}
	for _, key := range u.Removed {
		put(key, nil)
	}
	for _, r := range u.Set {
		put(Key{r.Type, r.Name}, parse(r))
	}
	return st
}

// take takes an update in, and marks the units that it may change.
func (t *tenant) take(st staged, revision int64) {
	t.revision, t.digest = revision, st.digest
	t.stale, t.expired = false, false
	keySets := false
	for key, now := range st.changed {
		was := t.resources[key]
		if now == nil {
			delete(t.resources, key)
		} else {
			t.resources[key] = now
		}
		if key.Type == ConfigType {
			t.dirty[key.Name] = true
		}
		t.touch(source{key: key})
		if was.keySet() != nil || now.keySet() != nil {
			delete(t.keySets, key.Name)
			if now.keySet() != nil {
				t.keySets[key.Name] = now
			}
			keySets = true
		}
	}
	if keySets {
		t.indexKeySets()
	}
}

func (t *tenant) indexKeySets() {
	before := t.jwks
	t.jwks = make(map[string]*resource, len(t.keySets))
	for _, name := range slices.Sorted(maps.Keys(t.keySets)) {
		t.jwks[t.keySets[name].keySet().GetUrl()] = t.keySets[name]
	}
	for url, r := range before {
		if t.jwks[url] != r {
			t.touch(source{jwksURL: url})
		}
	}
	for url := range t.jwks {
		if before[url] == nil {
			t.touch(source{jwksURL: url})
		}
	}
}

// touch marks the units that read something.
func (t *tenant) touch(what source) {
	for u := range t.readers[what] {
		t.dirty[u.name] = true
	}
}

// keySet is nil for what is none, and for no resource.
func (r *resource) keySet() *xdsv1.Jwks {
	if r == nil {
		return nil
	}
	return r.config.GetJwks()
}

// A digest is over resources in any order.
type digest [sha256.Size]byte

// toggle puts a resource in or takes it out: XOR is its own inverse.
func (d *digest) toggle(r *resource) {
	if r == nil || r.kind == "commit" {
		return
	}
	h := sha256.New()
	fmt.Fprintf(h, "%s\x00%s\x00%s", r.Type, r.Name, r.Version)
	for i, b := range h.Sum(nil) {
		d[i] ^= b
	}
}

func (t *tenant) computeDigest() (d digest) {
	for _, r := range t.resources {
		d.toggle(r)
	}
	return d
}

// kindOf is the second part of a resource name.
func kindOf(name string) string {
	_, rest, _ := strings.Cut(name, "/")
	kind, _, _ := strings.Cut(rest, "/")
	return kind
}

// build compiles what is dirty and tells whether that changed anything. Units that are gone are forgotten.
func (s *Store) build(t *tenant) (changed bool) {
	t.bad = nil
	t.buildInfo()
	t.buildKeys()
	for name := range t.dirty {
		if s.buildUnit(t, name) {
			changed = true
		}
	}
	clear(t.dirty)
	t.retry = false
	ports := portUses{s.index.Load(), t.name, map[uint16]*portUse{}}
	for _, name := range slices.Sorted(maps.Keys(t.listeners)) { // of two that want one port, the first by name has it
		u := t.listeners[name]
		if s.activate(u, ports) {
			changed = true
		}
		t.retry = t.retry || u.waits()
		t.settle(u)
	}
	for at, g := range t.groups {
		if g.settle(); len(g.targets) == 0 {
			delete(t.groups, at)
		}
	}
	return changed
}

func (s *Store) buildUnit(t *tenant, name string) (changed bool) {
	u := t.units[name]
	switch r := t.resources[Key{ConfigType, name}]; {
	case r == nil && u == nil, r != nil && !isHead(r.kind):
		return false
	case r == nil:
		t.forget(u)
		return true
	case u == nil:
		u = &unit{name: name, kind: r.kind}
		t.add(u)
	}
	before := u.tried
	if !s.compile(t, u) {
		return false
	}
	t.follow(u, before, u.tried)
	t.settle(u)
	return true
}

// isHead tells whether resources of a kind are what units are made for.
func isHead(kind string) bool {
	return kind == "listener" || kind == "backend" || kind == "route" || kind == "binding"
}

func (t *tenant) add(u *unit) {
	t.units[u.name] = u
	switch u.kind {
	case "listener":
		t.listeners[u.name] = u
	case "route":
		t.routes[u.name] = u
	}
}

func (t *tenant) forget(u *unit) {
	t.follow(u, u.tried, inputs{})
	t.displace(u)
	for _, index := range []map[string]*unit{t.units, t.listeners, t.routes, t.refused} {
		delete(index, u.name)
	}
}

// follow keeps the index of who reads what.
func (t *tenant) follow(u *unit, before, now inputs) {
	for what := range before.sources {
		if delete(t.readers[what], u); len(t.readers[what]) == 0 {
			delete(t.readers, what)
		}
	}
	for what := range now.sources {
		if t.readers[what] == nil {
			t.readers[what] = map[*unit]bool{}
		}
		t.readers[what][u] = true
	}
}

// settle brings the indices up to date with what became of a unit.
func (t *tenant) settle(u *unit) {
	if len(u.refused) > 0 {
		t.refused[u.name] = u
	} else {
		delete(t.refused, u.name)
	}
	if u.kind == "binding" {
		t.displace(u)
		t.place(u)
	}
}

func (t *tenant) buildInfo() {
	r := t.resources[Key{ConfigType, t.name + "/tenant/" + t.name}]
	if r == nil { // no powers
		if t.info.from != nil {
			t.empower(info{})
		}
		t.info.ttl = defaultSessionTTL
		return
	}
	if same(t.info.from, r) {
		return
	}
	err := r.err
	var grants policy.Grants
	if err == nil {
		grants, err = policy.ParseGrants(r.config.GetTenantInfo().GetGrants())
	}
	if err != nil {
		t.bad = append(t.bad, refusal(r, "grants", err.Error()))
		t.info.ttl = cmp.Or(t.info.ttl, defaultSessionTTL)
		return
	}
	ttl := r.config.GetTenantInfo().GetSessionTtl().AsDuration()
	if ttl <= 0 {
		ttl = defaultSessionTTL
	}
	t.empower(info{from: r, grants: grants, ttl: ttl})
}

// empower changes the local powers that all units are built with.
func (t *tenant) empower(now info) {
	t.info, t.owner = now, &Owner{Name: t.name, Grants: now.grants}
	for name := range t.units {
		t.dirty[name] = true
	}
}

func (t *tenant) buildKeys() {
	r := t.resources[Key{SecretType, t.name + "/session-keys"}]
	if r == nil {
		t.keys = nil
		return
	}
	var keys []SessionKey
	err := r.err
	for i, k := range r.secret.GetSessionKeys().GetKeys() {
		if len(k.GetId()) != 4 || len(k.GetKey()) != 32 {
			err = fmt.Errorf("keys[%d]: an id of 4 bytes and a key of 32 are needed", i)
		}
		keys = append(keys, SessionKey{ID: k.GetId(), Key: k.GetKey()})
	}
	if err == nil && len(keys) == 0 {
		err = fmt.Errorf("there are no keys in it")
	}
	if err != nil {
		t.bad = append(t.bad, refusal(r, "", err.Error()))
		return
	}
	t.keys = keys
}

func (t *tenant) refusals() []*xdsv1.Refusal {
	out := slices.Clone(t.bad)
	for _, u := range t.refused {
		out = append(out, u.refused...)
	}
	slices.SortFunc(out, func(a, b *xdsv1.Refusal) int {
		return cmp.Or(cmp.Compare(a.GetName(), b.GetName()), cmp.Compare(a.GetField(), b.GetField()), cmp.Compare(a.GetReason(), b.GetReason()))
	})
	return out
}

func refusal(r *resource, field, reason string) *xdsv1.Refusal {
	return &xdsv1.Refusal{Type: r.Type, Name: r.Name, Version: r.Version, Field: field, Reason: reason}
}

// same tells whether two resources have one content. Forget empties versions, so bodies are compared too.
func same(a, b *resource) bool {
	if a == b {
		return true
	}
	return a != nil && b != nil && a.Name == b.Name && string(a.Body) == string(b.Body)
}
