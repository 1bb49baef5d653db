package controlplane

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"maps"
	"reflect"
	"slices"
	"strings"

	"github.com/sluicegate/sluice/controlplane/api"
	"github.com/sluicegate/sluice/controlplane/merge"
	"github.com/sluicegate/sluice/controlplane/store"
	"github.com/sluicegate/sluice/controlplane/tenant"
	"github.com/sluicegate/sluice/controlplane/xds"
	"github.com/sluicegate/sluice/internal/policy"
	"github.com/sluicegate/sluice/internal/resource"
	adminv1 "github.com/sluicegate/sluice/proto/gen/sluice/admin/v1"
)

// Names of values that the store keeps beside a tenant's objects.
const (
	sessionKeysValue = "session-keys"
	keySetPrefix     = "jwks/"
)

// record is what the store gets of a tenant's change.
type record struct {
	rev store.Revision
	// True if the operator's content changed; a place alone is no change.
	any bool
	// Keys of objects that are other ones than before.
	changed []string
}

// next returns the state that a change makes of before, which is nil for a new tenant, not derived yet, and what to store.
func (e *evaluation) next(before *state, c api.Change) (*state, *record, error) {
	r := &record{rev: store.Revision{Tenant: c.Tenant, Set: map[string][]byte{}, Sealed: map[string][]byte{}, Sources: map[string]*adminv1.Source{}}}
	n := &state{view: &api.View{Info: tenant.Info{Name: c.Tenant, Created: e.at}, Sealed: map[string]int{}}, sealed: map[string][]byte{}, keys: map[string]keySet{}}
	if before != nil {
		view := *before.view
		n.view, n.sessionKeys = &view, before.sessionKeys
		n.sealed, n.keys, n.urls, n.claims = before.sealed, before.keys, before.urls, before.claims
		r.rev.If, r.rev.Old = before.view.Revision, before.view.Objects
	}
	n.view.Revision = r.rev.If + 1
	r.rev.Entry = store.Entry{Revision: n.view.Revision, Actor: e.edit.Actor, Time: e.at, Comment: e.edit.Comment}
	if c.Tenant == e.edit.Tenant {
		r.rev.Entry.RequestID = e.edit.RequestID
	}
	if err := e.objects(n, r, c); err != nil {
		return nil, nil, err
	}
	if c.Grants != nil && (before == nil || !slices.Equal(n.view.Grants, *c.Grants)) {
		n.view.Grants, r.any = *c.Grants, true
	}
	if before == nil {
		keys, sealed, err := e.vault.Of(c.Tenant).NewSessionKeys()
		if err != nil {
			return nil, nil, err
		}
		n.sessionKeys, r.rev.Set[sessionKeysValue], r.any = keys, sealed, true
	}
	return n, r, e.fetched(n, r)
}

// objects applies a change to the objects and to what is known of them. It looks at what changed alone: a tenant may
// have ten thousand objects, and most edits change one.
func (e *evaluation) objects(n *state, r *record, c api.Change) error {
	put, remove, moved := api.Effect(n.view, c)
	if len(put)+len(remove)+len(moved) == 0 {
		return nil
	}
	var before, after []*store.Object
	var gone []string
	for _, o := range put {
		stored, err := store.NewObject(resource.Kind(o), o, n.view.Revision, e.at)
		if err != nil {
			return err
		}
		if old := n.view.Objects.Get(stored.Key()); old != nil {
			before = append(before, old)
		}
		after = append(after, stored)
		r.rev.Put, r.changed = append(r.rev.Put, stored), append(r.changed, stored.Key())
		if o.GetSource() != nil {
			r.rev.Sources[stored.Key()] = o.GetSource()
		}
	}
	for _, o := range remove {
		gone = append(gone, o.Key())
		before, r.changed = append(before, o), append(r.changed, o.Key())
		r.rev.Remove = append(r.rev.Remove, o)
	}
	for _, o := range moved {
		old := n.view.Objects.Get(resource.Key(o))
		placed, err := store.NewObject(old.Kind, old.Object, old.Object.GetRevision(), old.Object.GetUpdated().AsTime())
		if err != nil {
			return err
		}
		placed.Object.Source = o.GetSource()
		before, after = append(before, old), append(after, placed)
		r.rev.Sources[placed.Key()] = o.GetSource()
		r.changed = append(r.changed, placed.Key())
	}
	n.view.Objects = n.view.Objects.With(after, gone)
	r.any = r.any || len(put)+len(remove) > 0
	e.describe(n.view.Name, r)
	n.index(before, after)
	return e.seal(n, r, c.Sealed, before, after)
}

// index brings what is known of the objects up to date: places they claim, and URLs of key sets.
func (s *state) index(before, after []*store.Object) {
	places, urls := false, false
	for _, o := range slices.Concat(before, after) {
		places = places || o.Kind == "listener" || o.Kind == "route"
		urls = urls || len(api.Jwks(o.Object)) > 0
	}
	if places {
		s.claims = claimsOf(s.view.Objects)
	}
	if urls {
		s.urls = keyURLs(s.view)
	}
}

// describe tells the caller what its edit changes.
func (e *evaluation) describe(name string, r *record) {
	if name != e.edit.Tenant && name != tenant.Platform {
		return
	}
	for _, o := range r.rev.Put {
		if old := r.rev.Old.Get(o.Key()); old != nil {
			e.outcome.Before = append(e.outcome.Before, old.Object)
		}
		e.outcome.After = append(e.outcome.After, o.Object)
	}
	for _, o := range r.rev.Remove {
		e.outcome.Before = append(e.outcome.Before, o.Object)
	}
}

// seal keeps the values that the objects name, and stores those that are new.
func (e *evaluation) seal(n *state, r *record, lifted map[string][]byte, before, after []*store.Object) error {
	differ := map[string]int{}
	for fp := range fingerprints(after) {
		differ[fp]++
	}
	for fp := range fingerprints(before) {
		differ[fp]--
	}
	maps.DeleteFunc(differ, func(_ string, by int) bool { return by == 0 })
	if len(differ) == 0 {
		return nil
	}
	keys := e.vault.Of(n.view.Name)
	sealed, uses := maps.Clone(n.sealed), maps.Clone(n.view.Sealed)
	for fp, by := range differ {
		if uses[fp] += by; uses[fp] == 0 {
			delete(uses, fp)
			delete(sealed, fp)
			continue
		}
		if _, ok := sealed[fp]; ok {
			continue
		}
		value, ok := lifted[fp]
		if !ok {
			return fmt.Errorf("tenant %q: sealed value %s is not there", n.view.Name, fp)
		}
		sealed[fp], r.rev.Sealed[fp] = value, keys.Seal(fp, value)
	}
	n.sealed, n.view.Sealed = sealed, uses
	return nil
}

// fingerprints yields the sealed values that objects name, each as often as it is named.
func fingerprints(objects []*store.Object) iter.Seq[string] {
	return func(yield func(string) bool) {
		for _, o := range objects {
			for _, c := range resource.Credentials(o.Object) {
				if fp := c.GetSealed(); fp != "" && !yield(fp) {
					return
				}
			}
		}
	}
}

// fetched takes over key sets that were fetched for this edit, and drops those that no object names any more.
func (e *evaluation) fetched(n *state, r *record) error {
	keys := maps.Clone(n.keys)
	for url := range n.urls {
		set, ok := e.request.fetched[keySource{n.view.Name, url}]
		if !ok {
			continue
		}
		value, err := json.Marshal(set)
		if err != nil {
			return err
		}
		keys[url], r.rev.Set[keySetName(url)] = set, value
	}
	for url := range n.keys {
		if n.urls[url] == nil {
			delete(keys, url)
			r.rev.Unset = append(r.rev.Unset, keySetName(url))
		}
	}
	n.keys = keys
	return nil
}

func (e *evaluation) fetchedFor(owner string) bool {
	for source := range e.request.fetched {
		if source.owner == owner {
			return true
		}
	}
	return false
}

// needKeys errs with a *keysNeeded if a tenant names URLs whose keys nobody has fetched.
func (e *evaluation) needKeys(n, above *state) error {
	need := &keysNeeded{owner: n.view.Name, grants: n.view.Grants, missing: map[string]*adminv1.Object{}}
	for url, o := range n.urls {
		if _, ok := n.keys[url]; !ok {
			need.missing[url] = o
		}
	}
	if len(need.missing) > 0 {
		return need
	}
	return nil
}

// keyURLs returns where the key sets are that a tenant's objects name (see policy.JwksSource), each with one of the objects.
func keyURLs(v *api.View) map[string]*adminv1.Object {
	urls := map[string]*adminv1.Object{}
	for o := range v.Objects.All() {
		for _, set := range api.Jwks(o.Object) {
			if from := policy.JwksSource(set); from != "" {
				urls[from] = o.Object
			}
		}
	}
	return urls
}

// operatorsLevel is the Platform object that stands above all tenants, or nil.
func operatorsLevel(above *state) *adminv1.Object {
	if o := above.view.Objects.Get("platform/" + resource.PlatformName); o != nil {
		return o.Object
	}
	return nil
}

// inputs is what a tenant is derived from. It shares with before, which may be nil, what did not change: keys of the
// objects that did are in changed.
func (p *publisher) inputs(n, above, before *state, changed []string) merge.Inputs {
	in := merge.Inputs{
		Tenant: n.view.Name, Platform: n.view.Platform, Grants: n.view.Grants, SessionKeys: n.sessionKeys,
		Jwks: map[string][]byte{}, VersionKey: p.vault.Of(n.view.Name).VersionKey(),
	}
	for url, set := range above.keys {
		in.Jwks[url] = set.Keys
	}
	for url, set := range n.keys {
		in.Jwks[url] = set.Keys
	}
	n.above = above
	in.Objects = patched(n, before, changed)
	secrets := slices.ContainsFunc(changed, func(key string) bool { return strings.HasPrefix(key, "secret/") })
	if before != nil && before.above == above && !secrets && sameMap(before.sealed, n.sealed) {
		in.Secrets = before.in.Secrets
		return in
	}
	in.Secrets = map[string][]byte{}
	for o := range n.view.Objects.Kind("secret") {
		if fp := o.Object.GetSecret().GetValue().GetSealed(); fp != "" {
			in.Secrets[n.view.Name+"/secret/"+o.Name] = n.sealed[fp]
		}
	}
	for fp, value := range above.sealed { // what the operator's level names, it names for all
		in.Secrets[n.view.Name+"/sealed/"+fp] = value
	}
	for fp, value := range n.sealed {
		in.Secrets[n.view.Name+"/sealed/"+fp] = value
	}
	return in
}

// sameMap tells whether two maps are one, not whether they are equal: maps here are never changed once they are shared.
func sameMap[V any](a, b map[string]V) bool {
	return reflect.ValueOf(a).Pointer() == reflect.ValueOf(b).Pointer()
}

const patchAtMost = 64 // changes; with more it is cheaper to sort all anew

// patched returns the objects in the order of their keys.
func patched(n, before *state, changed []string) []*adminv1.Object {
	if before == nil || before.in.Tenant == "" || len(changed) > patchAtMost {
		objects := make([]*adminv1.Object, 0, n.view.Objects.Len())
		for o := range n.view.Objects.All() {
			objects = append(objects, o.Object)
		}
		return objects
	}
	if len(changed) == 0 {
		return before.in.Objects
	}
	objects := slices.Clone(before.in.Objects)
	for _, key := range changed {
		at, found := slices.BinarySearchFunc(objects, key, func(o *adminv1.Object, key string) int { return strings.Compare(resource.Key(o), key) })
		switch now := n.view.Objects.Get(key); {
		case now == nil && found:
			objects = slices.Delete(objects, at, at+1)
		case now != nil && found:
			objects[at] = now.Object
		case now != nil:
			objects = slices.Insert(objects, at, now.Object)
		}
	}
	return objects
}

// adopt makes next what the following edits see, and lays down what to store and then to publish.
func (e *evaluation) adopt(before, next *state, r *record, delta merge.Delta) error {
	name := next.view.Name
	revised := r.any || !delta.Empty() || len(r.rev.Set)+len(r.rev.Unset) > 0
	if !revised {
		next.view.Revision = r.rev.If
		r.rev.Entry = store.Entry{}
	}
	edit, err := r.rev.Edit()
	if err != nil {
		return err
	}
	e.txn = append(e.txn, edit)
	if before == nil || !slices.Equal(before.view.Grants, next.view.Grants) {
		e.txn = append(e.txn, store.Edit{Space: store.Cluster, If: store.Unchecked,
			Put: map[string][]byte{next.view.Key(): next.view.Encode()}})
	}
	e.layer.tenants[name] = next
	if !revised {
		return nil
	}
	e.touched = append(e.touched, name)
	if next.out != nil {
		revision, digest := next.view.Revision, next.out.Digest()
		e.publish = append(e.publish, func() { e.server.Publish(name, wire(revision, digest, delta)) })
	}
	return nil
}

// wire is a revision as the xDS server takes it.
func wire(revision int64, digest []byte, d merge.Delta) xds.Revision {
	convert := func(all []merge.Resource) []xds.Resource {
		out := make([]xds.Resource, len(all))
		for i, r := range all {
			out[i] = xds.Resource{Name: r.Name, Version: r.Version, Body: r.Body}
		}
		return out
	}
	return xds.Revision{
		Number: revision, Digest: digest, Config: convert(d.Config), Secret: convert(d.Secret),
		RemovedConfig: d.RemovedConfig, RemovedSecret: d.RemovedSecret,
	}
}

// load reads all tenants, derives and publishes them. A tenant that does not derive any more (a newer program is
// stricter) stays unpublished, so that its proxies keep what they have; the others are served.
func (p *publisher) load(ctx context.Context) error {
	world := &layer{tenants: map[string]*state{}, holders: map[string]string{}}
	infos, err := p.infos(ctx)
	if err != nil {
		return err
	}
	above, err := p.loadTenant(ctx, tenant.Info{Name: tenant.Platform})
	if err != nil {
		return err
	}
	world.tenants[tenant.Platform] = above
	for _, info := range infos {
		s, err := p.loadTenant(ctx, info)
		if err != nil {
			return err
		}
		s.view.Platform = operatorsLevel(above)
		s.in = p.inputs(s, above, nil, nil)
		world.tenants[info.Name] = s
		out, err := merge.Derive(s.in)
		if err != nil {
			p.log.Error("tenant is not published", "tenant", info.Name, "err", err)
			continue
		}
		s.out = out
		p.server.Publish(info.Name, wire(s.view.Revision, out.Digest(), out.All()))
	}
	holders, err := p.store.Range(ctx, store.Cluster, store.Query{Prefix: claimPrefix})
	if err != nil {
		return err
	}
	for _, pair := range holders {
		world.holders[pair.Key] = string(pair.Value)
	}
	world.regroup()
	p.world.Store(world)
	p.server.Assign(world.served)
	return nil
}

func (p *publisher) infos(ctx context.Context) ([]tenant.Info, error) {
	pairs, err := p.store.Range(ctx, store.Cluster, store.Query{Prefix: tenant.InfoPrefix})
	if err != nil {
		return nil, err
	}
	infos := make([]tenant.Info, len(pairs))
	for i, pair := range pairs {
		if infos[i], err = tenant.DecodeInfo(pair.Key, pair.Value); err != nil {
			return nil, err
		}
	}
	return infos, nil
}

func (p *publisher) loadTenant(ctx context.Context, info tenant.Info) (*state, error) {
	records, keys := store.Of(p.store, info.Name), p.vault.Of(info.Name)
	head, objects, err := records.Objects(ctx)
	if err != nil {
		return nil, err
	}
	s := &state{view: &api.View{Info: info, Revision: head, Objects: store.ObjectsOf(objects), Sealed: map[string]int{}}, sealed: map[string][]byte{}, keys: map[string]keySet{}}
	sealed, err := records.Sealed(ctx)
	if err != nil {
		return nil, err
	}
	for fp := range fingerprints(objects) {
		if s.view.Sealed[fp]++; s.view.Sealed[fp] > 1 {
			continue
		}
		if s.sealed[fp], err = keys.Open(fp, sealed[fp]); err != nil {
			return nil, err
		}
	}
	s.claims, s.urls = claimsOf(s.view.Objects), keyURLs(s.view)
	values, err := records.Values(ctx, "")
	if err != nil {
		return nil, err
	}
	if own := values[sessionKeysValue]; own != nil {
		if s.sessionKeys, err = keys.OpenSessionKeys(own); err != nil {
			return nil, err
		}
	}
	return s, s.loadKeys(values)
}

func (s *state) loadKeys(values map[string][]byte) error {
	for url := range s.urls {
		value, ok := values[keySetName(url)]
		if !ok {
			return errors.New("key set of " + url + " is missing in the store")
		}
		var set keySet
		if err := json.Unmarshal(value, &set); err != nil {
			return fmt.Errorf("key set of %s: %w", url, err)
		}
		s.keys[url] = set
	}
	return nil
}
