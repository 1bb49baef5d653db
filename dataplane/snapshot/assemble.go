package snapshot

import (
	"cmp"
	"errors"
	"maps"
	"slices"
	"strings"

	"github.com/sluicegate/sluice/dataplane/route"
	"github.com/sluicegate/sluice/internal/policy"
	xdsv1 "github.com/sluicegate/sluice/proto/gen/sluice/xds/v1"
)

var errTooOld = errors.New("the configuration is from disk, and no control plane has confirmed it for too long")

// with returns an Index that holds t, or nothing under that name if t is nil, beside the other tenants.
func (ix *Index) with(name string, t *tenant) *Index {
	now := &Index{tenants: maps.Clone(ix.tenants), ports: maps.Clone(ix.ports)}
	if now.tenants == nil {
		now.tenants, now.ports = map[string]*Tenant{}, map[uint16]*port{}
	}
	var before, after []*Listener
	if old := ix.tenants[name]; old != nil {
		before = old.listeners
	}
	delete(now.tenants, name)
	if t != nil {
		made := assemble(t)
		now.tenants[name] = made
		after = made.listeners
	}
	touched := map[uint16]bool{}
	for _, l := range slices.Concat(before, after) {
		touched[l.Port] = true
	}
	for number := range touched {
		if p := ix.ports[number].with(name, after, number); p != nil {
			now.ports[number] = p
		} else {
			delete(now.ports, number)
		}
	}
	return now
}

// with returns the port with a tenant's listeners replaced, nil if none are left. Host names that the tenant has no
// part in keep their tables, so that the cost grows with the tenant and not with the port.
func (p *port) with(tenant string, listeners []*Listener, number uint16) *port {
	byHost := map[string][]*Listener{}
	tables := map[string]*host{}
	if p != nil {
		for name, h := range p.byHost {
			mine := func(l *Listener) bool { return l.Tenant.Name == tenant }
			if !slices.ContainsFunc(h.listeners, mine) {
				tables[name], byHost[name] = h, h.listeners
				continue
			}
			byHost[name] = slices.DeleteFunc(slices.Clone(h.listeners), mine)
		}
	}
	for _, l := range listeners {
		if l.Port != number {
			continue
		}
		for _, name := range l.names() {
			byHost[name] = append(slices.Clip(byHost[name]), l)
			delete(tables, name)
		}
	}
	now := &port{byHost: map[string]*host{}}
	for name, all := range byHost {
		if len(all) == 0 {
			continue
		}
		h := tables[name]
		if h == nil {
			slices.SortFunc(all, func(a, b *Listener) int { return cmp.Compare(a.Resource, b.Resource) })
			h = newHost(name, all)
		}
		now.byHost[name] = h
		now.tls = h.listeners[0].TLS != nil
	}
	if len(now.byHost) == 0 {
		return nil
	}
	now.hosts = route.NewHosts(now.byHost)
	return now
}

func newHost(name string, listeners []*Listener) *host {
	var rules []route.Rule[*Route]
	for _, l := range listeners {
		for _, r := range l.routes {
			for _, routeName := range r.hostnames {
				if pattern, ok := route.Intersect(name, routeName); ok {
					rules = append(rules, route.Rule[*Route]{Host: pattern, Matches: r.matches, Value: r})
				}
			}
		}
	}
	return &host{listeners: listeners, routes: route.NewTable(rules)}
}

func (l *Listener) names() []string {
	if len(l.Hostnames) == 0 {
		return []string{""}
	}
	return l.Hostnames
}

// otherTLS tells whether tenants but one have listeners on the port, and whether those speak TLS.
func (p *port) otherTLS(tenant string) (tls, taken bool) {
	if p == nil {
		return false, false
	}
	for _, h := range p.byHost {
		if slices.ContainsFunc(h.listeners, func(l *Listener) bool { return l.Tenant.Name != tenant }) {
			return p.tls, true
		}
	}
	return false, false
}

// otherCerts tells whether tenants but one have a listener with a host name, and whether it asks for client certificates.
func (p *port) otherCerts(tenant, name string) (certs, taken bool) {
	if p == nil || p.byHost[name] == nil {
		return false, false
	}
	for _, l := range p.byHost[name].listeners {
		if l.Tenant.Name != tenant {
			certs, taken = certs || l.TLS != nil && l.TLS.ClientCAs != nil, true
		}
	}
	return certs, taken
}

// assemble makes the tree that requests walk from the forms of a tenant's units.
func assemble(t *tenant) *Tenant {
	out := &Tenant{
		Name: t.name, Revision: t.revision, Stale: t.stale,
		Grants: t.info.grants, SessionTTL: t.info.ttl, Keys: t.keys,
		refused: t.refusals(), unserved: map[string]bool{},
	}
	for name, u := range t.refused {
		if u.form == nil {
			out.unserved[name] = true
		}
	}
	listeners := map[string]*Listener{}
	for name, u := range t.listeners {
		if f, ok := u.form.(*listenerForm); ok {
			l := &Listener{Name: ownName(name), Resource: name, Tenant: out, Port: f.port, Hostnames: f.hostnames, TLS: f.tls}
			listeners[name] = l
			out.listeners = append(out.listeners, l)
		}
	}
	slices.SortFunc(out.listeners, func(a, b *Listener) int { return cmp.Compare(a.Resource, b.Resource) })
	for _, name := range slices.Sorted(maps.Keys(t.routes)) {
		if r := assembleRoute(out, t, t.routes[name], listeners); r != nil {
			out.routes = append(out.routes, r)
		}
	}
	return out
}

// place is where targets are reached: the resource names of a route and a backend.
type place struct{ route, backend string }

// group is the targets at one place, in order, and what changes of them until settle.
type group struct {
	targets []*Target // never changed, for the Index has it
	gone    map[*Target]bool
	added   []*Target
}

// place puts the target that a binding makes into its group.
func (t *tenant) place(u *unit) {
	target, at, ok := assembleTarget(t.owner, u)
	if !ok {
		return
	}
	g := t.groups[at]
	if g == nil {
		g = &group{gone: map[*Target]bool{}}
		t.groups[at] = g
	}
	u.made, u.madeAt = target, at
	g.added = append(g.added, target)
}

func (t *tenant) displace(u *unit) {
	if u.made != nil {
		t.groups[u.madeAt].gone[u.made] = true
		u.made = nil
	}
}

func (g *group) settle() {
	if len(g.gone)+len(g.added) == 0 {
		return
	}
	added := slices.DeleteFunc(g.added, func(t *Target) bool { return g.gone[t] })
	slices.SortFunc(added, byOrder)
	next := make([]*Target, 0, len(g.targets)+len(added))
	for _, old := range g.targets {
		if g.gone[old] {
			continue
		}
		for len(added) > 0 && byOrder(added[0], old) < 0 {
			next, added = append(next, added[0]), added[1:]
		}
		next = append(next, old)
	}
	g.targets, g.added = append(next, added...), nil
	clear(g.gone)
}

// byOrder is the order of the configuration.
func byOrder(a, b *Target) int {
	return cmp.Or(cmp.Compare(index(a), index(b)), cmp.Compare(a.Name, b.Name), cmp.Compare(a.Resource, b.Resource), cmp.Compare(a.binding, b.binding))
}

// index puts targets of which nothing is known last.
func index(t *Target) uint64 {
	if t.Config == nil {
		return 1 << 40
	}
	return uint64(t.Config.GetIndex())
}

func assembleTarget(owner *Owner, u *unit) (*Target, place, bool) {
	f, ok := u.form.(*targetForm)
	var refused error
	if !ok {
		refused = refusedError(u)
		if f, _ = u.partial.(*targetForm); f == nil {
			f = bindingFromName(u.name)
		}
	}
	if f == nil || f.binding.GetRoute() == "" || f.binding.GetTarget() == "" {
		return nil, place{}, false
	}
	resource := f.binding.GetTarget()
	t := &Target{
		Name: resource[strings.LastIndexByte(resource, '/')+1:], Resource: resource, Tenant: owner, binding: u.name,
		Config: f.config, Policy: f.policy, Digest: f.digest, Refused: refused, Agent: f.agent,
	}
	backend := f.config.GetBackend()
	if backend == "" { // `<tenant>/target/<backend>/<target>`
		backend = owner.Name + "/backend/" + strings.TrimSuffix(ownName(resource), "/"+t.Name)
	}
	if f.config.GetName() != "" {
		t.Name = f.config.GetName()
	}
	if refused != nil {
		t.Policy, t.Digest = nil, "refused "+u.name
	}
	return t, place{f.binding.GetRoute(), backend}, true
}

// bindingFromName is for a binding that cannot be read: `<tenant>/binding/<route>/<backend>/<target>`.
func bindingFromName(name string) *targetForm {
	tenant := tenantOf(name)
	parts := strings.Split(ownName(name), "/")
	if len(parts) < 3 {
		return nil
	}
	n := len(parts)
	return &targetForm{binding: &xdsv1.Binding{
		Route:  tenant + "/route/" + strings.Join(parts[:n-2], "/"),
		Target: tenant + "/target/" + parts[n-2] + "/" + parts[n-1],
	}}
}

func assembleRoute(tenant *Tenant, t *tenant, u *unit, listeners map[string]*Listener) *Route {
	r := &Route{Name: ownName(u.name), Resource: u.name, Tenant: tenant}
	f, ok := u.form.(*routeForm)
	if !ok {
		r.Refused = refusedError(u)
		if f, _ = u.partial.(*routeForm); f == nil {
			return nil // nobody knows where it would have been
		}
	}
	if t.expired {
		r.Refused = errTooOld
	}
	r.matches, r.SSEPath = f.matches, f.config.GetSsePath()
	for _, h := range f.config.GetHostnames() {
		r.hostnames = append(r.hostnames, strings.ToLower(h))
	}
	if len(r.hostnames) == 0 {
		r.hostnames = []string{""}
	}
	if r.Listener = listeners[f.config.GetListener()]; r.Listener != nil {
		r.Listener.routes = append(r.Listener.routes, r)
	}
	r.Policy = f.policy
	if r.Refused != nil && !ok {
		r.Policy = nil
	}
	for _, weighted := range f.backends {
		b := &Backend{
			Name: ownName(weighted.GetBackend()), Resource: weighted.GetBackend(), Tenant: tenant, Weight: weighted.GetWeight(),
			Prefix: xdsv1.Backend_PREFIX_MODE_CONDITIONAL, Failure: xdsv1.Backend_FAILURE_MODE_FAIL_CLOSED,
		}
		if g := t.groups[place{u.name, weighted.GetBackend()}]; g != nil {
			b.Targets, b.Agents = split(g.targets)
		}
		if backend := t.units[weighted.GetBackend()]; backend != nil {
			if form, ok := backend.form.(*backendForm); ok {
				b.Description = form.config.GetDescription()
				b.Prefix = cmp.Or(form.config.GetPrefixMode(), b.Prefix)
				b.Failure = cmp.Or(form.config.GetFailureMode(), b.Failure)
			}
		}
		r.Backends = append(r.Backends, b)
	}
	return r
}

// split takes agents out of a group: what speaks MCP never meets them.
func split(targets []*Target) (servers, agents []*Target) {
	isAgent := func(t *Target) bool { return t.Agent }
	if !slices.ContainsFunc(targets, isAgent) { // nearly always
		return targets, nil
	}
	for _, t := range targets {
		if t.Agent {
			agents = append(agents, t)
		} else {
			servers = append(servers, t)
		}
	}
	return servers, agents
}

func refusedError(u *unit) error {
	if len(u.refused) == 0 {
		return errors.New("refused")
	}
	var errs []error
	for _, r := range u.refused {
		errs = append(errs, &policy.FieldError{Field: r.GetField(), Reason: r.GetReason()})
	}
	return errors.Join(errs...)
}
