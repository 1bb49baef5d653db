package api

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/sluicegate/sluice/controlplane/store"
	"github.com/sluicegate/sluice/controlplane/tenant"
	"github.com/sluicegate/sluice/internal/policy"
	"github.com/sluicegate/sluice/internal/resource"
	adminv1 "github.com/sluicegate/sluice/proto/gen/sluice/admin/v1"
	policyv1 "github.com/sluicegate/sluice/proto/gen/sluice/policy/v1"
)

const (
	defaultSet   = "default"
	maxRequestID = 256 // bytes
)

// Apply makes one revision of a whole set, or of single objects.
func (a admin) Apply(ctx context.Context, r *adminv1.ApplyRequest) (*adminv1.ApplyResponse, error) {
	return a.apply(ctx, r, r.GetDryRun())
}

// Diff is Apply that stores nothing.
func (a admin) Diff(ctx context.Context, r *adminv1.ApplyRequest) (*adminv1.ApplyResponse, error) {
	return a.apply(ctx, r, true)
}

func (a admin) apply(ctx context.Context, r *adminv1.ApplyRequest, dryRun bool) (*adminv1.ApplyResponse, error) {
	c := callerOf(ctx)
	if n := len(r.GetRequestId()); n > maxRequestID {
		return nil, invalidArgument("the request id has %d bytes; use at most %d, such as a UUID", n, maxRequestID)
	}
	view, ok := a.Publisher.View(c.tenant)
	if !ok {
		return nil, noTenant(c.tenant)
	}
	fingerprint, err := a.fingerprint(c.tenant, r)
	if err != nil {
		return nil, err
	}
	p := &applyPlan{Server: a.Server, tenant: c.tenant, request: r, platform: c.Role == tenant.PlatformAdmin}
	if err := p.prepare(); err != nil {
		return nil, err
	}
	// Outside the loop first: what is wrong with the request costs nobody else anything.
	if _, err := p.plan(ctx, viewOnly{a.Publisher, view}); err != nil {
		return nil, err
	}
	out, err := a.Publisher.Submit(ctx, Edit{
		Tenant: c.tenant, Actor: c.Name, Comment: r.GetComment(), RequestID: r.GetRequestId(), Request: fingerprint,
		IfRevision: r.GetIfRevision(), DryRun: dryRun, Plan: p.plan,
	})
	if err != nil {
		return nil, err
	}
	return a.response(c.tenant, out), nil
}

// fingerprint names the request without telling what is in it: it holds credentials.
func (s *Server) fingerprint(name string, r *adminv1.ApplyRequest) (string, error) {
	bytes, err := proto.MarshalOptions{Deterministic: true}.Marshal(r)
	if err != nil {
		return "", err
	}
	return s.Vault.Of(name).Fingerprint(bytes), nil
}

// response tells an outcome and whom a wait for it has to expect.
func (s *Server) response(name string, out *Outcome) *adminv1.ApplyResponse {
	connected := s.Fleet.Connected(name)
	return &adminv1.ApplyResponse{
		Revision: out.Revision, Changes: resource.Diff(out.Before, out.After), Diagnostics: unique(out.Diagnostics),
		Connected: connected, Disconnected: s.disconnected(name, connected),
	}
}

// disconnected returns the known proxies that should serve the tenant and are not among the connected, who are sorted.
func (s *Server) disconnected(name string, connected []string) []string {
	var missing []string
	serves := map[string]bool{} // groups
	for group, tenants := range s.Publisher.Groups() {
		serves[group] = slices.Contains(tenants, name)
	}
	now := s.Now()
	for _, p := range s.Registry.Proxies() {
		if p.Revoked || !now.Before(p.Expires) || !serves[p.Group] {
			continue
		}
		if _, there := slices.BinarySearch(connected, p.ID); !there {
			missing = append(missing, p.ID)
		}
	}
	return missing
}

func noTenant(name string) error {
	return &Missing{Reason: fmt.Sprintf("there is no tenant %q; create it with `sluice tenant create %s`", name, name)}
}

// viewOnly is a World of which one view is known already.
type viewOnly struct {
	Publisher
	view *View
}

func (v viewOnly) View(name string) (*View, bool) {
	if name == v.view.Name {
		return v.view, true
	}
	return v.Publisher.View(name)
}

// applyPlan is one Apply on its way.
type applyPlan struct {
	*Server
	tenant   string
	request  *adminv1.ApplyRequest
	platform bool // the caller may change what belongs to no tenant

	own, operators []*adminv1.Object            // the request's objects, by whose they are; no inline credential left
	sealed         map[string]map[string][]byte // lifted values by space and fingerprint
	notes          []*adminv1.Diagnostic

	checked      map[string]int64 // heads, by space, for which objects were found good
	checkedNotes []*adminv1.Diagnostic
}

// prepare does what depends on the request alone.
func (p *applyPlan) prepare() error {
	p.sealed = map[string]map[string][]byte{}
	var found []*adminv1.Diagnostic
	seen := map[string]bool{}
	for _, o := range p.request.GetObjects() {
		o = proto.CloneOf(o)
		o.Set, o.Revision, o.Updated = "", 0, nil
		kind := resource.Kind(o)
		if kind == "" || o.GetName() == "" {
			found = append(found, resource.Diagnose(o, severityError, "", "an object needs a kind and a name", ""))
			continue
		}
		if key := resource.Key(o); seen[key] {
			found = append(found, resource.Diagnose(o, severityError, "", key+" is there twice", "give one of them another name"))
			continue
		}
		seen[resource.Key(o)] = true
		space := p.tenant
		if kind == "platform" || kind == "group" {
			space = tenant.Platform
			found = append(found, p.operator(o)...)
			p.operators = append(p.operators, o)
		} else {
			o.Set = p.set()
			p.own = append(p.own, o)
		}
		p.lift(space, o)
	}
	if p.tenant == tenant.Platform && len(p.own) > 0 {
		return invalidArgument("%s is no tenant: only platform and group objects belong there", tenant.Platform)
	}
	return refuse(found)
}

func (p *applyPlan) set() string {
	switch {
	case p.request.GetSingle():
		return ""
	case p.request.GetSet() == "":
		return defaultSet
	}
	return p.request.GetSet()
}

func (p *applyPlan) operator(o *adminv1.Object) []*adminv1.Diagnostic {
	switch {
	case !p.platform:
		return []*adminv1.Diagnostic{resource.Diagnose(o, severityError, "", "this token may not change what belongs to no tenant", "use a platform-admin's")}
	case !p.request.GetSingle():
		return []*adminv1.Diagnostic{resource.Diagnose(o, severityError, "", "a set belongs to a tenant and holds no "+resource.Kind(o), "apply it as a single document")}
	case resource.Kind(o) == "group":
		if err := tenant.CheckName("group", o.GetName()); err != nil {
			return []*adminv1.Diagnostic{resource.Diagnose(o, severityError, "", err.Error(), "")}
		}
	}
	return nil
}

// lift replaces each inline credential by its fingerprint, before anything is hashed, compared or stored.
func (p *applyPlan) lift(space string, o *adminv1.Object) {
	keys := p.Vault.Of(space)
	for _, c := range resource.Credentials(o) {
		value, ok := c.GetSource().(*policyv1.Credential_Value)
		if !ok {
			continue
		}
		fingerprint := keys.Fingerprint([]byte(value.Value))
		if p.sealed[space] == nil {
			p.sealed[space] = map[string][]byte{}
		}
		p.sealed[space][fingerprint] = []byte(value.Value)
		c.Source = &policyv1.Credential_Sealed{Sealed: fingerprint}
	}
}

// plan says what becomes of the tenant, and of the platform where the request has a part of it.
func (p *applyPlan) plan(_ context.Context, at World) ([]Change, error) {
	var changes []Change
	p.notes = nil
	for _, part := range []struct {
		space   string
		objects []*adminv1.Object
	}{{tenant.Platform, p.operators}, {p.tenant, p.own}} {
		whole := part.space != tenant.Platform && !p.request.GetSingle()
		if len(part.objects) == 0 && !whole {
			continue
		}
		view, ok := at.View(part.space)
		if !ok {
			return nil, noTenant(part.space)
		}
		change, err := p.change(view, part.objects, whole)
		if err != nil {
			return nil, err
		}
		changes = append(changes, change)
	}
	return changes, nil
}

func (p *applyPlan) change(view *View, objects []*adminv1.Object, whole bool) (Change, error) {
	c := Change{Tenant: view.Name, Sealed: p.sealed[view.Name]}
	wanted := map[string]bool{}
	for _, o := range objects {
		key := resource.Key(o)
		wanted[key] = true
		old := view.Objects.Get(key)
		switch {
		case old == nil:
		case !whole && old.Object.GetSet() != "": // an edit of one object leaves it where it belongs
			o = proto.CloneOf(o)
			o.Set = old.Object.GetSet()
		case whole && old.Object.GetSet() == "":
			c.Diagnostics = append(c.Diagnostics, resource.Diagnose(o, severityNote, "",
				fmt.Sprintf("%s was a single document; from now on it belongs to set %q", key, p.set()), ""))
		case whole && old.Object.GetSet() != p.set():
			return c, &Conflict{Reason: fmt.Sprintf("%s belongs to set %q and cannot come from set %q; give it another name, or delete it there first",
				key, old.Object.GetSet(), p.set())}
		}
		c.Put = append(c.Put, o)
	}
	if whole {
		for o := range view.Objects.All() {
			if o.Object.GetSet() == p.set() && !wanted[o.Key()] {
				c.Remove = append(c.Remove, o.Key())
			}
		}
	}
	if err := p.check(view, &c); err != nil {
		return c, err
	}
	return c, nil
}

// check validates the tenant as it will be. What was found good outside the loop is not checked again inside, unless
// the tenant has moved on meanwhile.
func (p *applyPlan) check(view *View, c *Change) error {
	if at, ok := p.checked[view.Name]; ok && at == view.Revision {
		c.Diagnostics = append(c.Diagnostics, p.checkedNotes...)
		return nil
	}
	found := append(validate(view, *c), powers(view, c.Put)...)
	if err := refuse(found); err != nil {
		return err
	}
	if p.checked == nil {
		p.checked = map[string]int64{}
	}
	p.checked[view.Name] = view.Revision
	p.checkedNotes = append(p.checkedNotes, found...)
	c.Diagnostics = append(c.Diagnostics, found...)
	return nil
}

// powers refuses what the platform has not granted the tenant. It looks at what a request brings alone: a tenant whose
// grants were taken away can still mend its configuration piece by piece.
func powers(view *View, objects []*adminv1.Object) []*adminv1.Diagnostic {
	if view.Name == tenant.Platform {
		return nil // the operator needs nobody's leave
	}
	grants, err := policy.ParseGrants(view.Grants)
	if err != nil {
		grants, _ = policy.ParseGrants(nil) // none, then
	}
	var found []*adminv1.Diagnostic
	for _, o := range objects {
		for _, need := range needs(o, grants) {
			hint := ""
			if need.grant != "" {
				hint = fmt.Sprintf("the platform's admin may allow it: `sluice tenant allow %s %s`", view.Name, quote(append(slices.Clone(view.Grants), need.grant)))
			}
			found = append(found, resource.Diagnose(o, severityError, need.field, need.what+" is not granted to tenant "+view.Name, hint))
		}
	}
	return found
}

// quote makes grants one word of a shell.
func quote(grants []string) string {
	text := strings.Join(grants, ",")
	if strings.ContainsAny(text, "*? $'\"\\") {
		return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'"
	}
	return text
}

// same tells whether an object would be stored as it is: place, revision and time are no content.
func same(stored *store.Object, o *adminv1.Object) bool {
	if stored == nil {
		return false
	}
	bare := func(o *adminv1.Object) *adminv1.Object {
		return &adminv1.Object{Name: o.GetName(), Set: o.GetSet(), Spec: o.GetSpec()}
	}
	return proto.Equal(bare(stored.Object), bare(o))
}

// Effect reduces a change to what differs: objects to store and to remove, and objects whose place alone changed.
func Effect(view *View, c Change) (put []*adminv1.Object, remove []*store.Object, moved []*adminv1.Object) {
	for _, o := range c.Put {
		stored := view.Objects.Get(resource.Key(o))
		switch {
		case !same(stored, o):
			put = append(put, o)
		case o.GetSource() != nil && !proto.Equal(stored.Object.GetSource(), o.GetSource()):
			moved = append(moved, o)
		}
	}
	for _, key := range c.Remove {
		if stored := view.Objects.Get(key); stored != nil {
			remove = append(remove, stored)
		}
	}
	return put, remove, moved
}
