package api

import (
	"fmt"
	"maps"
	"slices"

	"github.com/sluicegate/sluice/controlplane/tenant"
	"github.com/sluicegate/sluice/internal/resource"
	adminv1 "github.com/sluicegate/sluice/proto/gen/sluice/admin/v1"
)

// validate checks what a change would make of a tenant: names, references, levels, and that no policy is accepted that
// would do nothing.
func validate(view *View, c Change) []*adminv1.Diagnostic {
	objects, few := concerned(view, c)
	if !few {
		objects = after(view, c)
	}
	found := resource.Validate(objects, resource.Context{Partial: view.Name == tenant.Platform, Platform: view.Platform.GetPlatform()})
	for _, o := range c.Put {
		for path, credential := range resource.Credentials(o) {
			if fp := credential.GetSealed(); fp != "" && c.Sealed[fp] == nil && view.Sealed[fp] == 0 {
				found = append(found, resource.Diagnose(o, severityError, path,
					fmt.Sprintf("the tenant has no sealed value %s", fp), "give the value itself, or {secret: NAME}"))
			}
		}
	}
	if !few {
		found = append(found, resource.Flips(after(view, Change{}), objects)...)
	}
	return found
}

// concerned returns the objects that a change of targets and secrets that are there already can make right or wrong: it
// removes nothing that others name, and changes nothing that stands above others. They are the changed ones, all that
// they name, and the routes that lead to them with all that those name. few is false for any other change, and where
// something named is not there: then all objects are to be looked at.
//
// In a tenant of ten thousand targets an edit of one is by far the most usual.
func concerned(view *View, c Change) (objects []*adminv1.Object, few bool) {
	if len(c.Remove) > 0 || view.Name == tenant.Platform {
		return nil, false
	}
	put := make(map[string]*adminv1.Object, len(c.Put))
	for _, o := range c.Put {
		key := resource.Key(o)
		if o.GetTarget() == nil && o.GetSecret() == nil || view.Objects.Get(key) == nil {
			return nil, false
		}
		put[key] = o
	}
	at := func(key string) *adminv1.Object {
		if o := put[key]; o != nil {
			return o
		}
		if o := view.Objects.Get(key); o != nil {
			return o.Object
		}
		return nil
	}
	in, whole := map[string]*adminv1.Object{}, true
	var add func(key string)
	add = func(key string) {
		o := at(key)
		if o == nil {
			whole = false
			return
		}
		if in[key] != nil {
			return
		}
		in[key] = o
		for _, named := range names(o) {
			add(named)
		}
	}
	for key := range put {
		add(key)
	}
	if key := "tenant/" + resource.TenantName; view.Objects.Get(key) != nil {
		add(key)
	}
	for _, key := range routesTo(view, in) {
		add(key)
	}
	for _, key := range slices.Sorted(maps.Keys(in)) {
		objects = append(objects, in[key])
	}
	return objects, whole
}

// routesTo returns the keys of routes that lead to any of the backends.
func routesTo(view *View, backends map[string]*adminv1.Object) []string {
	var keys []string
	for o := range view.Objects.Kind("route") {
		if slices.ContainsFunc(o.Object.GetRoute().GetBackends(), func(b *adminv1.RouteBackend) bool {
			return backends["backend/"+b.GetBackend()] != nil
		}) {
			keys = append(keys, o.Key())
		}
	}
	return keys
}

// names returns the keys of the objects that o names.
func names(o *adminv1.Object) []string {
	var keys []string
	if t := o.GetTarget(); t != nil {
		keys = append(keys, "backend/"+t.GetBackend())
	}
	if r := o.GetRoute(); r != nil {
		keys = append(keys, "listener/"+r.GetListener())
		for _, b := range r.GetBackends() {
			keys = append(keys, "backend/"+b.GetBackend())
		}
	}
	for _, c := range resource.Credentials(o) {
		if name := c.GetSecret(); name != "" {
			keys = append(keys, "secret/"+name)
		}
	}
	return keys
}

// after returns a tenant's objects once a change is done, in the order of their keys.
func after(view *View, c Change) []*adminv1.Object {
	next := make(map[string]*adminv1.Object, view.Objects.Len()+len(c.Put))
	for o := range view.Objects.All() {
		next[o.Key()] = o.Object
	}
	for _, key := range c.Remove {
		delete(next, key)
	}
	for _, o := range c.Put {
		next[resource.Key(o)] = o
	}
	objects := make([]*adminv1.Object, 0, len(next))
	for _, key := range slices.Sorted(maps.Keys(next)) {
		objects = append(objects, next[key])
	}
	return objects
}
