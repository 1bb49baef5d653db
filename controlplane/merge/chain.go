package merge

import (
	"strings"

	"github.com/sluicegate/sluice/internal/policy"
	"github.com/sluicegate/sluice/internal/resource"
	adminv1 "github.com/sluicegate/sluice/proto/gen/sluice/admin/v1"
	policyv1 "github.com/sluicegate/sluice/proto/gen/sluice/policy/v1"
)

// Keys of the two levels of which there is one.
const (
	platformKey = "platform/" + resource.PlatformName
	tenantKey   = "tenant/" + resource.TenantName
)

// A node is an object with its level. It is immutable.
type node struct {
	object *adminv1.Object
	level  Level
	kinds  mask // that the level sets or enforces
}

func newNode(tenant string, o *adminv1.Object) *node {
	policies, enforced := resource.Policies(o)
	n := &node{object: o, level: Level{Policies: policies, Enforced: enforced, Source: o.GetSource(), key: keyOf(o)}}
	switch kind := resource.Kind(o); kind {
	case "platform":
		n.level.Name = "platform"
	case "tenant":
		n.level.Name = "tenant/" + tenant
	case "target":
		n.level.Name = "target/" + resource.TargetName(o)
	default:
		n.level.Name = n.level.key
	}
	n.kinds = n.level.set()
	return n
}

func keyOf(o *adminv1.Object) string {
	switch {
	case o.GetPlatform() != nil:
		return platformKey
	case o.GetTenant() != nil:
		return tenantKey
	}
	return resource.Key(o)
}

// The methods of a nil node tell of an object that is not there.

func (n *node) spec() *adminv1.Object {
	if n == nil {
		return nil
	}
	return n.object
}

func (n *node) policies() *policyv1.Policies {
	if n == nil {
		return nil
	}
	return n.level.Policies
}

func (n *node) enforced() *policyv1.Policies {
	if n == nil {
		return nil
	}
	return n.level.Enforced
}

func (n *node) set() mask {
	if n == nil {
		return 0
	}
	return n.kinds
}

// A class is what decides which kinds of a chain take part: those that act before a target is known, or those that mean
// something on a transport. Targets whose transports take the same kinds share a class, and so their policies.
type class struct {
	name  string
	kinds mask
}

var (
	routeClass = class{"route", kindsWhere(func(k policy.KindInfo) bool { return k.Phase == policy.RoutePhase })}
	httpClass  = targetClass("http", policy.HTTP)
	sseClass   = targetClass("sse", policy.SSE)
	stdioClass = targetClass("stdio", policy.Stdio)
	a2aClass   = targetClass("a2a", policy.A2A)
)

func targetClass(name string, t policy.Transport) class {
	return class{name, kindsWhere(func(k policy.KindInfo) bool { return k.Phase == policy.TargetPhase && policy.Applies(k.Name, t) })}
}

func kindsWhere(is func(policy.KindInfo) bool) mask {
	var names []Kind
	for _, k := range policy.Kinds() {
		if is(k) {
			names = append(names, k.Name)
		}
	}
	return maskOf(names...)
}

func transportOf(t *adminv1.Target) policy.Transport {
	switch t.GetTransport().(type) {
	case *adminv1.Target_Sse:
		return policy.SSE
	case *adminv1.Target_Stdio:
		return policy.Stdio
	case *adminv1.Target_A2A:
		return policy.A2A
	}
	return policy.HTTP
}

func classOf(t *adminv1.Target) class {
	c := [...]class{policy.HTTP: httpClass, policy.SSE: sseClass, policy.Stdio: stdioClass, policy.A2A: a2aClass}[transportOf(t)]
	if c.kinds == httpClass.kinds {
		return httpClass
	}
	return c
}

// A chain is an ordered list of levels, outermost first, that set a kind of the class. It names an EffectivePolicy by
// who takes part, not by what they say: an edit changes the resource and not its name, nor any Binding.
type chain struct {
	class  class
	levels []string // keys of nodes
}

func (c chain) name(tenant string) string {
	if len(c.levels) == 0 {
		return ""
	}
	return tenant + "/policy/" + shortHash(c.class.name, strings.Join(c.levels, "\x00"))
}
