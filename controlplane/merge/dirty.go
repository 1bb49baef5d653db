package merge

import (
	"errors"
	"maps"
	"slices"

	"google.golang.org/protobuf/proto"

	adminv1 "github.com/sluicegate/sluice/proto/gen/sluice/admin/v1"
	policyv1 "github.com/sluicegate/sluice/proto/gen/sluice/policy/v1"
)

// An update is one derivation in the making: it finds what a change of objects makes dirty and derives that alone.
type update struct {
	prev *Output
	in   Inputs
	errs []error

	// The next Output's, see there.
	config, secret                draft[Resource]
	nodes                         draft[*node]
	targetsOf, routesOf, routesAt draft[[]string]
	chains                        draft[chain]
	bound                         draft[string]
	refs                          draft[[]string]
	users                         draft[int]

	changes       []change
	dirtyRoutes   map[string]bool    // routes whose resource or own chain may differ
	dirtyBindings map[binding]bool   // bindings whose chain may differ
	dirtyChains   map[string]bool    // by resource name: to be merged again, or without users
	dirtyRefs     map[string]bool    // references that got their first user or lost their last
	touched       [2]map[string]bool // resources written or dropped: configs, secrets
}

func newUpdate(o *Output, in Inputs) *update {
	return &update{
		prev: o, in: in,
		config: draft[Resource]{table: o.config}, secret: draft[Resource]{table: o.secret},
		nodes:     draft[*node]{table: o.nodes},
		targetsOf: draft[[]string]{table: o.targetsOf}, routesOf: draft[[]string]{table: o.routesOf}, routesAt: draft[[]string]{table: o.routesAt},
		chains: draft[chain]{table: o.chains}, bound: draft[string]{table: o.bound},
		refs: draft[[]string]{table: o.refs}, users: draft[int]{table: o.users},
		dirtyRoutes: map[string]bool{}, dirtyBindings: map[binding]bool{}, dirtyChains: map[string]bool{}, dirtyRefs: map[string]bool{},
		touched: [2]map[string]bool{{}, {}},
	}
}

func (u *update) failed(key string, err error) {
	u.errs = append(u.errs, &objectError{key, err})
}

func (u *update) node(key string) *node {
	n, _ := u.nodes.get(key)
	return n
}

// A change is an object that is new (old is nil), gone (new is nil) or different.
type change struct {
	key      string
	old, new *node
}

// name is the object's.
func (c change) name() string { return c.some().object.GetName() }

// spec is the new object's, or of one that is gone the old one's.
func (c change) spec() any { return c.some().object.GetSpec() }

func (c change) some() *node {
	if c.new != nil {
		return c.new
	}
	return c.old
}

// policies tells whether what the level sets differs.
func (c change) policies() bool {
	return !same(c.old.policies(), c.new.policies()) || !same(c.old.enforced(), c.new.enforced())
}

func same(a, b *policyv1.Policies) bool { return a == b || proto.Equal(a, b) }

// A binding is a target as reached through a route; target is the object's name, `backend/target`.
type binding struct{ route, backend, target string }

func (b binding) name(tenant string) string { return tenant + "/binding/" + b.route + "/" + b.target }

// readObjects finds the objects that differ and brings nodes up to date.
func (u *update) readObjects() error {
	before, after := unlike(u.prev.in.Objects, u.in.Objects)
	old := make(map[string]*node, len(before))
	for _, o := range before {
		if derived(o) {
			old[keyOf(o)] = u.node(keyOf(o))
		}
	}
	seen := make(map[string]bool, len(after))
	for _, o := range after {
		if !derived(o) {
			continue
		}
		key := keyOf(o)
		if seen[key] || old[key] == nil && u.node(key) != nil {
			return &objectError{key, errors.New("is there twice")}
		}
		seen[key] = true
		if old[key] == nil || old[key].object != o {
			u.changes = append(u.changes, change{key, old[key], newNode(u.in.Tenant, o)})
		}
	}
	for key, n := range old {
		if !seen[key] {
			u.changes = append(u.changes, change{key, n, nil})
		}
	}
	if u.prev.in.Platform != u.in.Platform {
		c := change{key: platformKey, old: u.node(platformKey)}
		if u.in.Platform != nil {
			c.new = newNode(u.in.Tenant, u.in.Platform)
		}
		u.changes = append(u.changes, c)
	}
	for _, c := range u.changes {
		if c.new != nil {
			u.nodes.set(c.key, c.new)
		} else {
			u.nodes.remove(c.key)
		}
	}
	return nil
}

// derived tells whether resources are made from an object. Secrets come by value, as Inputs.Secrets.
func derived(o *adminv1.Object) bool {
	switch o.GetSpec().(type) {
	case *adminv1.Object_Tenant, *adminv1.Object_Listener, *adminv1.Object_Route, *adminv1.Object_Backend, *adminv1.Object_Target:
		return true
	}
	return false
}

// unlike returns the parts of two lists that are not the same objects at the same places: little of two long lists.
func unlike(a, b []*adminv1.Object) (_, _ []*adminv1.Object) {
	for len(a) > 0 && len(b) > 0 && a[0] == b[0] {
		a, b = a[1:], b[1:]
	}
	for len(a) > 0 && len(b) > 0 && a[len(a)-1] == b[len(b)-1] {
		a, b = a[:len(a)-1], b[:len(b)-1]
	}
	if len(a) != len(b) {
		return a, b
	}
	var c, d []*adminv1.Object
	for i := range a {
		if a[i] != b[i] {
			c, d = append(c, a[i]), append(d, b[i])
		}
	}
	return c, d
}

// follow brings the indices up to date and marks what the changes make dirty: what hung together before them, and
// what does now. A binding whose route and target both go is found only by the indices as they were.
func (u *update) follow() {
	for _, c := range u.changes {
		u.mark(c)
	}
	for _, c := range u.changes {
		u.index(c)
	}
	for _, c := range u.changes {
		u.mark(c)
		u.markChains(c)
	}
}

func (u *update) index(c change) {
	move(&u.targetsOf, c.old.spec().GetTarget().GetBackend(), c.new.spec().GetTarget().GetBackend(), c.name())
	before, after := c.old.spec().GetRoute(), c.new.spec().GetRoute()
	move(&u.routesAt, before.GetListener(), after.GetListener(), c.name())
	old, now := backends(before), backends(after)
	for b := range old {
		if !now[b] {
			move(&u.routesOf, b, "", c.name())
		}
	}
	for b := range now {
		if !old[b] {
			move(&u.routesOf, "", b, c.name())
		}
	}
}

// move takes a name from one sorted list to another; "" is none.
func move(lists *draft[[]string], from, to, name string) {
	if from == to {
		return
	}
	if l, _ := lists.get(from); from != "" {
		if i, found := slices.BinarySearch(l, name); found && len(l) > 1 {
			lists.set(from, slices.Delete(slices.Clone(l), i, i+1))
		} else if found {
			lists.remove(from)
		}
	}
	if l, _ := lists.get(to); to != "" {
		if i, found := slices.BinarySearch(l, name); !found {
			lists.set(to, slices.Insert(slices.Clone(l), i, name))
		}
	}
}

// backends is the set of those that a route leads to.
func backends(r *adminv1.Route) map[string]bool {
	set := make(map[string]bool, len(r.GetBackends()))
	for _, b := range r.GetBackends() {
		set[b.GetBackend()] = true
	}
	return set
}

// mark marks the routes and bindings whose chains a change may alter. A level whose kinds stay the same keeps its place in
// every chain: nothing is bound anew.
func (u *update) mark(c change) {
	moved := c.old.set() != c.new.set()
	switch c.spec().(type) {
	case *adminv1.Object_Target:
		for _, t := range []*adminv1.Target{c.old.spec().GetTarget(), c.new.spec().GetTarget()} {
			u.markTarget(c, t.GetBackend())
		}
	case *adminv1.Object_Route:
		before, after := c.old.spec().GetRoute(), c.new.spec().GetRoute()
		u.dirtyRoutes[c.name()] = true
		if moved || before.GetListener() != after.GetListener() || !maps.Equal(backends(before), backends(after)) {
			u.markRoute(c.name(), before)
			u.markRoute(c.name(), after)
		}
	case *adminv1.Object_Backend:
		if moved || c.old == nil || c.new == nil {
			routes, _ := u.routesOf.get(c.name())
			for _, r := range routes {
				u.markPairs(r, c.name())
			}
		}
	case *adminv1.Object_Listener:
		if moved {
			u.markRoutesAt(c.name())
		}
	case *adminv1.Object_Tenant, *adminv1.Object_Platform:
		if moved {
			for listener := range u.routesAt.all() {
				u.markRoutesAt(listener)
			}
		}
	}
}

// markTarget marks a target's bindings, and the chains that it is in, which are those of its bindings.
func (u *update) markTarget(c change, backend string) {
	routes, _ := u.routesOf.get(backend)
	for _, r := range routes {
		b := binding{r, backend, c.name()}
		u.dirtyBindings[b] = true
		if chain, bound := u.bound.get(b.name(u.in.Tenant)); bound && chain != "" {
			u.dirtyChains[chain] = true
		}
	}
}

// markChains marks the chains that a level above targets is in. Looking through all costs little beside merging them.
func (u *update) markChains(c change) {
	if _, target := c.spec().(*adminv1.Object_Target); target || !c.policies() {
		return
	}
	for name, chain := range u.chains.all() {
		if slices.Contains(chain.levels, c.key) {
			u.dirtyChains[name] = true
		}
	}
}

func (u *update) markRoutesAt(listener string) {
	routes, _ := u.routesAt.get(listener)
	for _, name := range routes {
		u.dirtyRoutes[name] = true
		u.markRoute(name, u.node("route/"+name).spec().GetRoute())
	}
}

func (u *update) markRoute(name string, r *adminv1.Route) {
	for b := range backends(r) {
		u.markPairs(name, b)
	}
}

func (u *update) markPairs(route, backend string) {
	targets, _ := u.targetsOf.get(backend)
	for _, t := range targets {
		u.dirtyBindings[binding{route, backend, t}] = true
	}
}
