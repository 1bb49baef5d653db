package controlplane

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/sluicegate/sluice/controlplane/api"
	"github.com/sluicegate/sluice/controlplane/merge"
	"github.com/sluicegate/sluice/controlplane/store"
	"github.com/sluicegate/sluice/controlplane/tenant"
	"github.com/sluicegate/sluice/internal/resource"
	adminv1 "github.com/sluicegate/sluice/proto/gen/sluice/admin/v1"
	xdsv1 "github.com/sluicegate/sluice/proto/gen/sluice/xds/v1"
)

// state is one tenant at one revision, or the platform's own. It and all it holds are immutable.
type state struct {
	view        *api.View
	sealed      map[string][]byte // plain values by fingerprint, of the view's objects
	sessionKeys *xdsv1.SessionKeys
	keys        map[string]keySet          // fetched, by URL
	urls        map[string]*adminv1.Object // that the objects name, each with one of them
	above       *state                     // the platform's own that in was made with
	in          merge.Inputs
	out         *merge.Output // nil for the platform's own
	claims      claims
}

// layer is what an edit sees: what is published, what edits of the same batch made of it, and what it makes itself. The
// outermost parent holds everything; a layer that is published is never changed again.
type layer struct {
	parent  *layer
	tenants map[string]*state   // nil: removed
	holders map[string]string   // claim → tenant; empty: released
	served  map[string][]string // group → tenants; nil: as the parent has it
	serves  map[string][]string // tenant → groups, the other way round
}

func newLayer(parent *layer) *layer {
	return &layer{parent: parent, tenants: map[string]*state{}, holders: map[string]string{}}
}

func (l *layer) tenant(name string) *state {
	for ; l != nil; l = l.parent {
		if s, ok := l.tenants[name]; ok {
			return s
		}
	}
	return nil
}

func (l *layer) holder(claim string) string {
	for ; l != nil; l = l.parent {
		if name, ok := l.holders[claim]; ok {
			return name
		}
	}
	return ""
}

func (l *layer) groups() (served, serves map[string][]string) {
	for ; l != nil; l = l.parent {
		if l.served != nil {
			return l.served, l.serves
		}
	}
	return nil, nil
}

// names returns all tenants in order, without the platform.
func (l *layer) names() []string {
	gone := map[string]bool{tenant.Platform: true}
	var names []string
	for ; l != nil; l = l.parent {
		for name, s := range l.tenants {
			if !gone[name] {
				gone[name] = true
				if s != nil {
					names = append(names, name)
				}
			}
		}
	}
	slices.Sort(names)
	return names
}

// into adds what l makes to another layer, or with flat to one that has no parent.
func (l *layer) into(other *layer) {
	maps.Copy(other.tenants, l.tenants)
	maps.Copy(other.holders, l.holders)
	if l.served != nil {
		other.served, other.serves = l.served, l.serves
	}
	if other.parent == nil {
		maps.DeleteFunc(other.tenants, func(_ string, s *state) bool { return s == nil })
		maps.DeleteFunc(other.holders, func(_ string, name string) bool { return name == "" })
	}
}

// flattened returns a layer without parent that is l's parent with l's changes.
func (l *layer) flattened() *layer {
	flat := &layer{tenants: maps.Clone(l.parent.tenants), holders: l.parent.holders, served: l.parent.served, serves: l.parent.serves}
	if len(l.holders) > 0 {
		flat.holders = maps.Clone(flat.holders)
	}
	l.into(flat)
	return flat
}

// View implements [api.World].
func (l *layer) View(name string) (*api.View, bool) {
	if s := l.tenant(name); s != nil {
		return s.view, true
	}
	return nil, false
}

// regroup recomputes who serves whom, and returns the tenants for which that differs.
func (l *layer) regroup() []string {
	groups := map[string][]string{}
	for o := range l.tenant(tenant.Platform).view.Objects.Kind("group") {
		groups[o.Name] = o.Object.GetGroup().GetTenants()
	}
	names := l.names()
	_, before := l.groups()
	l.served = tenant.Served(groups, names)
	l.serves = map[string][]string{}
	for _, group := range slices.Sorted(maps.Keys(l.served)) {
		for _, name := range l.served[group] {
			l.serves[name] = append(l.serves[name], group)
		}
	}
	return slices.DeleteFunc(names, func(name string) bool { return slices.Equal(before[name], l.serves[name]) })
}

// claims are the places at which a tenant's routes are reached.
type claims struct {
	routes map[string]*adminv1.Object // `<port>/<host>/<path>` → who asks for it
	ports  map[uint32]bool            // → TLS
	asks   map[uint32]*adminv1.Object // → listener
}

// claimsOf lists the (port, host, path) of all routes. Headers do not tell tenants apart.
func claimsOf(objects store.Objects) claims {
	c := claims{routes: map[string]*adminv1.Object{}, ports: map[uint32]bool{}, asks: map[uint32]*adminv1.Object{}}
	for o := range objects.Kind("listener") {
		l := o.Object.GetListener()
		c.ports[l.GetPort()] = l.GetTls() != nil
		c.asks[l.GetPort()] = o.Object
	}
	for o := range objects.Kind("route") {
		r := o.Object.GetRoute()
		listener := objects.Get("listener/" + r.GetListener())
		if listener == nil {
			continue
		}
		hosts := r.GetHostnames()
		if len(hosts) == 0 {
			hosts = listener.Object.GetListener().GetHostnames()
		}
		if len(hosts) == 0 {
			hosts = []string{"*"}
		}
		for _, host := range hosts {
			for _, path := range paths(r) {
				c.routes[fmt.Sprintf("%d/%s%s", listener.Object.GetListener().GetPort(), strings.ToLower(host), path)] = o.Object
			}
		}
	}
	return c
}

// paths are what a route matches, the same for the same: `/x/` and `/x` are one prefix.
func paths(r *adminv1.Route) []string {
	if len(r.GetMatches()) == 0 {
		return []string{"/"}
	}
	var all []string
	for _, m := range r.GetMatches() {
		switch path := m.GetPath().GetPath().(type) {
		case *adminv1.PathMatch_Exact:
			all = append(all, path.Exact+" (exact)")
		case *adminv1.PathMatch_PathPrefix:
			all = append(all, "/"+strings.Trim(path.PathPrefix, "/"))
		case *adminv1.PathMatch_Regex:
			all = append(all, "/ (regex "+path.Regex+")")
		default:
			all = append(all, "/")
		}
	}
	return all
}

const claimPrefix = "claim/"

// reclaim moves the claims of tenants from what they were in the parent to what they are in l. It returns what the
// cluster's space is to hold and to forget, and what is wrong: a place that another tenant has, without its name.
func (l *layer) reclaim(names []string) (claim map[string][]byte, release []string, wrong []*adminv1.Diagnostic) {
	claim = map[string][]byte{}
	released := map[string]bool{}
	for _, name := range names {
		if before := l.parent.tenant(name); before != nil {
			_, serves := l.parent.groups()
			for _, group := range serves[name] {
				for place := range before.claims.routes {
					key := claimPrefix + group + "/" + place
					l.holders[key], released[key] = "", true
				}
			}
		}
	}
	_, serves := l.groups()
	for _, name := range names {
		s := l.tenant(name)
		if s == nil {
			continue
		}
		for _, group := range serves[name] {
			for _, place := range slices.Sorted(maps.Keys(s.claims.routes)) {
				key := claimPrefix + group + "/" + place
				if holder := l.holder(key); holder != "" && holder != name {
					wrong = append(wrong, resource.Diagnose(s.claims.routes[place], adminv1.Diagnostic_SEVERITY_ERROR, "",
						fmt.Sprintf("%s is taken in group %q", place, group), "use another port, host name or path"))
					continue
				}
				l.holders[key] = name
				claim[key] = []byte(name)
				if l.parent.holder(key) == name {
					delete(released, key) // else another's, to be deleted before it is claimed
				}
			}
			wrong = append(wrong, l.mixedPorts(name, group, s)...)
		}
	}
	for key := range claim { // what was there before and stays needs no write
		if l.parent.holder(key) == string(claim[key]) {
			delete(claim, key)
		}
	}
	return claim, slices.Sorted(maps.Keys(released)), wrong
}

// mixedPorts finds ports that another tenant of the group serves with TLS and this one without, or the other way round:
// a socket can only be one of both.
func (l *layer) mixedPorts(name, group string, s *state) (wrong []*adminv1.Diagnostic) {
	served, _ := l.groups()
	for _, other := range served[group] {
		o := l.tenant(other)
		if other == name || o == nil {
			continue
		}
		for port, tls := range s.claims.ports {
			if otherTLS, shared := o.claims.ports[port]; shared && otherTLS != tls {
				wrong = append(wrong, resource.Diagnose(s.claims.asks[port], adminv1.Diagnostic_SEVERITY_ERROR, "",
					fmt.Sprintf("port %d of group %q is in use with TLS by some and without by others", port, group), "use another port"))
			}
		}
	}
	return wrong
}
