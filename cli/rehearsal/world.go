package rehearsal

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/sluicegate/sluice/controlplane"
	"github.com/sluicegate/sluice/dataplane"
	adminv1 "github.com/sluicegate/sluice/proto/gen/sluice/admin/v1"
	policyv1 "github.com/sluicegate/sluice/proto/gen/sluice/policy/v1"
	xdsv1 "github.com/sluicegate/sluice/proto/gen/sluice/xds/v1"
)

// world is a tenant's resources as a proxy is given them, by own names (`main`, `tools/search`).
type world struct {
	tenant    string
	resources []dataplane.RehearsalResource
	listeners map[string]*xdsv1.Listener
	routes    map[string]*xdsv1.Route
	backends  map[string]*xdsv1.Backend
	targets   map[string]*xdsv1.Target
	policies  map[string]*policyv1.Policies // by resource name
	agents    map[string]bool               // targets of the caller's route that speak A2A
}

func derive(tenant string, objects []*adminv1.Object) (*world, error) {
	out, err := controlplane.Rehearse(tenant, objects)
	if err != nil {
		return nil, err
	}
	w := &world{tenant: tenant, listeners: map[string]*xdsv1.Listener{}, routes: map[string]*xdsv1.Route{}, backends: map[string]*xdsv1.Backend{},
		targets: map[string]*xdsv1.Target{}, policies: map[string]*policyv1.Policies{}, agents: map[string]bool{}}
	for r := range out.Secret() {
		w.resources = append(w.resources, dataplane.RehearsalResource{Secret: true, Name: r.Name, Version: r.Version, Body: r.Body})
	}
	for r := range out.Config() {
		w.resources = append(w.resources, dataplane.RehearsalResource{Name: r.Name, Version: r.Version, Body: r.Body})
		var c xdsv1.Config
		if err := proto.Unmarshal(r.Body, &c); err != nil {
			return nil, fmt.Errorf("%s: %w", r.Name, err)
		}
		switch v := c.GetResource().(type) {
		case *xdsv1.Config_Listener:
			w.listeners[own(r.Name)] = v.Listener
		case *xdsv1.Config_Route:
			w.routes[own(r.Name)] = v.Route
		case *xdsv1.Config_Backend:
			w.backends[own(r.Name)] = v.Backend
		case *xdsv1.Config_Target:
			w.targets[own(r.Name)] = v.Target
		case *xdsv1.Config_EffectivePolicy:
			w.policies[r.Name] = v.EffectivePolicy.GetPolicies()
		}
	}
	return w, nil
}

// own is a resource's name without tenant and kind.
func own(resource string) string {
	_, rest, _ := strings.Cut(resource, "/")
	_, name, _ := strings.Cut(rest, "/")
	return name
}

// backendsOf are the backends of a route, by own names in its order.
func (w *world) backendsOf(route string) []string {
	var names []string
	for _, b := range w.routes[route].GetBackends() {
		names = append(names, own(b.GetBackend()))
	}
	return names
}

// targetsOf are the targets of a backend (`tools/search`) in their order.
func (w *world) targetsOf(backend string) []string {
	var names []string
	for name, t := range w.targets {
		if own(t.GetBackend()) == backend {
			names = append(names, name)
		}
	}
	slices.SortFunc(names, func(a, b string) int {
		return cmp.Or(cmp.Compare(w.targets[a].GetIndex(), w.targets[b].GetIndex()), strings.Compare(a, b))
	})
	return names
}

// serversOf are the targets of a backend that MCP clients see.
func (w *world) serversOf(backend string) []string {
	return slices.DeleteFunc(w.targetsOf(backend), func(t string) bool { return w.agents[t] })
}

// target finds one by `name` or `backend/name`, among those of some backends.
func (w *world) target(name string, backends []string) (string, error) {
	var found, all []string
	for _, b := range backends {
		for _, t := range w.targetsOf(b) {
			if t == name || w.targets[t].GetName() == name {
				found = append(found, t)
			}
			all = append(all, t)
		}
	}
	switch {
	case len(found) == 1:
		return found[0], nil
	case len(found) > 1:
		return "", fmt.Errorf("target %q is in several backends: say %s", name, strings.Join(found, " or "))
	case len(all) == 0:
		return "", fmt.Errorf("target %q is not there, nor is any other", name)
	}
	return "", fmt.Errorf("target %q is not there; targets are %s", name, strings.Join(all, ", "))
}

// prefixed tells whether clients see the names of a backend's tools with their target's.
func (w *world) prefixed(backend string) bool {
	switch w.backends[backend].GetPrefixMode() {
	case xdsv1.Backend_PREFIX_MODE_ALWAYS:
		return true
	case xdsv1.Backend_PREFIX_MODE_NEVER:
		return false
	}
	return len(w.serversOf(backend)) > 1
}

// clientName is a target's own name of an item as clients write it.
func (w *world) clientName(k Kind, target, name string) string {
	backend := own(w.targets[target].GetBackend())
	switch {
	case k == Resource || k == Template:
		if len(w.serversOf(backend)) > 1 {
			return w.targets[target].GetName() + "+" + name
		}
	case (k == Tool || k == Prompt) && w.prefixed(backend):
		return w.targets[target].GetName() + "_" + name
	}
	return name
}

// ownName is the inverse of clientName: the target of a name that a client writes, empty if the name does not tell.
func (w *world) ownName(k Kind, route, name string) (target, ownName string) {
	for _, backend := range w.backendsOf(route) {
		targets := w.serversOf(backend)
		separator := "+"
		if k == Tool || k == Prompt {
			separator = "_"
		}
		switch prefixed := separator == "+" && len(targets) > 1 || separator == "_" && w.prefixed(backend); {
		case prefixed:
			before, after, _ := strings.Cut(name, separator)
			for _, t := range targets {
				if w.targets[t].GetName() == before {
					return t, after
				}
			}
		case len(targets) == 1:
			return targets[0], name
		}
	}
	return "", name
}
