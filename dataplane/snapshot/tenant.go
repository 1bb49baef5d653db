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

// tenant is what one tenant was given and what was made of it. The store's mutex guards it.
type tenant struct {
	name      string
	revision  int64
	stale     bool // from disk, not confirmed since
	expired   bool // stale for too long
	resources map[Key]*resource
	jwks      map[string]*resource // by URL
	digest    [sha256.Size]byte
	units     map[string]*unit // by the name of the unit's head

	// What all units share. A TenantInfo or session keys that cannot be read leave the last good ones.
	info info
	keys []SessionKey
	bad  []*xdsv1.Refusal // about info and keys

	// What the last build leaves for the next poll.
	files map[string]bool // that units read
	retry bool            // a listener waits for its port
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

// next returns the tenant with an update in; t, which may be nil, stays as it is but for its units, which both share.
func (t *tenant) next(u Update) *tenant {
	n := &tenant{name: u.Tenant, revision: u.Revision, resources: map[Key]*resource{}, jwks: map[string]*resource{}, units: map[string]*unit{}}
	if t != nil {
		n.resources, n.digest, n.units = maps.Clone(t.resources), t.digest, t.units
		n.info, n.keys = t.info, t.keys
	}
	for _, key := range u.Removed {
		if r := n.resources[key]; r != nil {
			n.toggle(r)
			delete(n.resources, key)
		}
	}
	for _, r := range u.Set {
		key := Key{r.Type, r.Name}
		if old := n.resources[key]; old != nil {
			n.toggle(old)
		}
		p := parse(r)
		n.resources[key] = p
		n.toggle(p)
	}
	for _, r := range n.resources {
		if j := r.config.GetJwks(); j != nil {
			n.jwks[j.GetUrl()] = r
		}
	}
	return n
}

// toggle puts a resource into the digest or takes it out: XOR is its own inverse.
func (t *tenant) toggle(r *resource) {
	if r.kind == "commit" {
		return
	}
	h := sha256.New()
	fmt.Fprintf(h, "%s\x00%s\x00%s", r.Type, r.Name, r.Version)
	for i, b := range h.Sum(nil) {
		t.digest[i] ^= b
	}
}

func (t *tenant) computeDigest() [sha256.Size]byte {
	fresh := tenant{}
	for _, r := range t.resources {
		fresh.toggle(r)
	}
	return fresh.digest
}

// kindOf is the second part of a resource name.
func kindOf(name string) string {
	_, rest, _ := strings.Cut(name, "/")
	kind, _, _ := strings.Cut(rest, "/")
	return kind
}

// build compiles what has changed and tells whether that changed anything. Units that are gone are forgotten.
func (s *Store) build(t *tenant) (changed bool) {
	t.bad = nil
	t.buildInfo()
	t.buildKeys()
	var names, listeners []string // heads of units
	for key, r := range t.resources {
		switch {
		case key.Type != ConfigType:
		case r.kind == "listener":
			listeners = append(listeners, key.Name)
		case r.kind == "backend" || r.kind == "route" || r.kind == "binding":
			names = append(names, key.Name)
		}
	}
	for name := range t.units {
		if t.resources[Key{ConfigType, name}] == nil {
			delete(t.units, name)
			changed = true
		}
	}
	slices.Sort(listeners) // of two that want one port, the first by name has it; all else does not depend on order
	t.files, t.retry = map[string]bool{}, false
	ports := portUses{s.index.Load(), t.name, map[uint16]*portUse{}}
	for _, name := range append(names, listeners...) {
		u := t.units[name]
		if u == nil {
			u = &unit{name: name, kind: kindOf(name)}
			t.units[name] = u
		}
		if s.compile(t, u) {
			changed = true
		}
		if u.kind == "listener" {
			if s.activate(u, ports) {
				changed = true
			}
			t.retry = t.retry || u.waits()
		}
		for _, f := range u.tried.files {
			t.files[f.path] = true
		}
	}
	return changed
}

func (t *tenant) buildInfo() {
	r := t.resources[Key{ConfigType, t.name + "/tenant/" + t.name}]
	if r == nil { // no powers
		t.info = info{ttl: defaultSessionTTL}
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
	t.info = info{from: r, grants: grants, ttl: ttl}
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
	for _, u := range t.units {
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
