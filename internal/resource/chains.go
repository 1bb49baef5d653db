package resource

import (
	"slices"

	"google.golang.org/protobuf/reflect/protoreflect"

	adminv1 "github.com/sluicegate/sluice/proto/gen/sluice/admin/v1"
	policyv1 "github.com/sluicegate/sluice/proto/gen/sluice/policy/v1"
)

// chains knows which levels of policies stand above which: platform, tenant, listener, route, backend, target.
type chains struct {
	platform, tenant *adminv1.Object
	byKey            map[string]*adminv1.Object
	all              []*adminv1.Object            // routes
	routes           map[string][]*adminv1.Object // by backend
	targets          map[string][]*adminv1.Object // by backend
}

func newChains(v *validator) *chains {
	c := &chains{byKey: v.byKey, routes: map[string][]*adminv1.Object{}, targets: map[string][]*adminv1.Object{}}
	c.platform, c.tenant = v.byKey["platform/"+PlatformName], v.byKey["tenant/"+TenantName]
	if c.platform == nil && v.Platform != nil {
		c.platform = &adminv1.Object{Name: PlatformName, Spec: &adminv1.Object_Platform{Platform: v.Platform}}
	}
	for _, o := range v.objects {
		if r := o.GetRoute(); r != nil {
			c.all = append(c.all, o)
			for _, b := range r.GetBackends() {
				c.routes[b.GetBackend()] = append(c.routes[b.GetBackend()], o)
			}
		}
		if t := o.GetTarget(); t != nil {
			c.targets[t.GetBackend()] = append(c.targets[t.GetBackend()], o)
		}
	}
	return c
}

// through returns the routes through which an object's policies act.
func (c *chains) through(o *adminv1.Object) []*adminv1.Object {
	switch Kind(o) {
	case "route":
		return []*adminv1.Object{o}
	case "backend":
		return c.routes[o.GetName()]
	case "target":
		return c.routes[o.GetTarget().GetBackend()]
	case "listener":
		var out []*adminv1.Object
		for _, r := range c.all {
			if r.GetRoute().GetListener() == o.GetName() {
				out = append(out, r)
			}
		}
		return out
	}
	return c.all
}

// above returns the levels above an object on the way through a route, the nearest first. Route may be nil
// for what no route leads to.
func (c *chains) above(o, route *adminv1.Object) []*adminv1.Object {
	var out []*adminv1.Object
	add := func(level *adminv1.Object) {
		if level != nil {
			out = append(out, level)
		}
	}
	kind := Kind(o)
	if kind == "target" {
		add(c.byKey["backend/"+o.GetTarget().GetBackend()])
	}
	if kind == "target" || kind == "backend" {
		add(route)
	}
	if kind != "listener" && kind != "tenant" && kind != "platform" && route != nil {
		add(c.byKey["listener/"+route.GetRoute().GetListener()])
	}
	if kind != "tenant" && kind != "platform" {
		add(c.tenant)
	}
	if kind != "platform" {
		add(c.platform)
	}
	return out
}

// A policyAt is a policy of one kind and the level that sets it.
type policyAt struct {
	level    *adminv1.Object
	field    string // `policies.KIND` or `enforced.KIND`
	enforced bool
	message  protoreflect.Message
}

// effective returns the policy of a kind that holds at the first of levels, which stand nearest first: the
// outermost enforced one, else the nearest. False if no level sets the kind.
func effective(levels []*adminv1.Object, kind protoreflect.FieldDescriptor) (policyAt, bool) {
	for i := len(levels) - 1; i >= 0; i-- {
		if _, enforced := Policies(levels[i]); enforced.ProtoReflect().Has(kind) {
			return policyAt{levels[i], "enforced." + kind.JSONName(), true, enforced.ProtoReflect().Get(kind).Message()}, true
		}
	}
	for _, level := range levels {
		if policies, _ := Policies(level); policies.ProtoReflect().Has(kind) {
			return policyAt{level, "policies." + kind.JSONName(), false, policies.ProtoReflect().Get(kind).Message()}, true
		}
	}
	return policyAt{}, false
}

// holding returns all policies of a kind that hold at the first of levels: of mcpAuthorization each that is enforced, and
// beside them the nearest that is not; of other kinds one at most.
func holding(levels []*adminv1.Object, kind protoreflect.FieldDescriptor) (all []policyAt) {
	switch one, ok := effective(levels, kind); {
	case !ok:
		return nil
	case !one.enforced || kind.JSONName() != "mcpAuthorization":
		return []policyAt{one}
	}
	for _, level := range slices.Backward(levels) {
		if _, enforced := Policies(level); enforced.GetMcpAuthorization() != nil {
			all = append(all, policyAt{level, "enforced." + kind.JSONName(), true, enforced.GetMcpAuthorization().ProtoReflect()})
		}
	}
	for _, level := range levels {
		if policies, _ := Policies(level); policies.GetMcpAuthorization() != nil {
			return append(all, policyAt{level, "policies." + kind.JSONName(), false, policies.GetMcpAuthorization().ProtoReflect()})
		}
	}
	return all
}

// kindField returns the field of Policies that holds a kind.
func kindField(kind string) protoreflect.FieldDescriptor {
	return (&policyv1.Policies{}).ProtoReflect().Descriptor().Fields().ByJSONName(kind)
}

// droppedFields are the fields of a replaced policy that its replacement does not set, entries of maps
// included. Members of one oneof stand for each other.
func droppedFields(replaced, by protoreflect.Message) []string {
	var dropped []string
	fields := replaced.Descriptor().Fields()
	for i := range fields.Len() {
		fd := fields.Get(i)
		switch o := fd.ContainingOneof(); {
		case !replaced.Has(fd):
		case o != nil && by.WhichOneof(o) != nil:
		case !by.Has(fd):
			dropped = append(dropped, fd.JSONName())
		case fd.IsMap():
			for key := range replaced.Get(fd).Map().Range {
				if !by.Get(fd).Map().Has(key) {
					dropped = append(dropped, fd.JSONName()+"."+key.String())
				}
			}
		}
	}
	return dropped
}
