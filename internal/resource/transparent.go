package resource

import (
	"fmt"

	adminv1 "github.com/sluicegate/sluice/proto/gen/sluice/admin/v1"
	policyv1 "github.com/sluicegate/sluice/proto/gen/sluice/policy/v1"
)

// standsAlone checks what passthrough of unverified tokens needs around a target that has it by p: the target judges the very
// tokens that clients get for the route, so that nothing else on the route may want a credential, or be sent one.
func (v *validator) standsAlone(o *adminv1.Object, p policyAt) {
	auth, _ := p.message.Interface().(*policyv1.BackendAuth)
	if !auth.GetPassthrough().GetUnverified() || v.Partial {
		return
	}
	told := map[string]bool{}
	fail := func(reason, hint string) {
		if told[reason] {
			return
		}
		told[reason] = true
		if p.level == o {
			v.fail(o, p.field+".passthrough.unverified", reason, hint)
		} else {
			v.fail(o, "", fmt.Sprintf("passthrough of unverified tokens, which %s sets, %s", describe(p), reason), hint)
		}
	}
	backend := o.GetTarget().GetBackend()
	if n := len(v.chains.targets[backend]); n > 1 {
		fail(fmt.Sprintf("needs a backend of one target, and %q has %d: a client's token would go to all of them", backend, n),
			"give the target a backend and a route of its own")
	}
	for _, route := range v.chains.through(o) {
		if n := len(route.GetRoute().GetBackends()); n > 1 {
			fail(fmt.Sprintf("needs a route to one backend, and route %q leads to %d: clients get their tokens for one server", route.GetName(), n),
				"give the backend a route of its own")
		}
		way := append([]*adminv1.Object{route}, v.chains.above(route, route)...)
		for _, kind := range []string{"mcpAuthentication", "jwtAuth", "apiKey", "basicAuth"} {
			if found, ok := effective(way, kindField(kind)); ok {
				fail(fmt.Sprintf("needs a route without authentication of its own, and %s of %s holds on route %q: its credentials are not for the target", kind, describe(found), route.GetName()),
					"remove that, or write `passthrough: {}`, which sends on what it verified")
			}
		}
	}
}
