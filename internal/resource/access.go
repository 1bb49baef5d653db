package resource

import (
	"fmt"
	"slices"
	"strings"

	"github.com/sluicegate/sluice/internal/policy"
	adminv1 "github.com/sluicegate/sluice/proto/gen/sluice/admin/v1"
	policyv1 "github.com/sluicegate/sluice/proto/gen/sluice/policy/v1"
)

// ofTwoResources refuses mcpAuthentication and jwtAuth at one level where one is enforced and the other not; in one block
// it is the block's own error.
func (v *validator) ofTwoResources(o *adminv1.Object, policies, enforced *policyv1.Policies) {
	const why = "the same level sets jwtAuth too, and both verify the same tokens"
	for field, twice := range map[string]bool{
		"policies.mcpAuthentication": policies.GetMcpAuthentication() != nil && enforced.GetJwtAuth() != nil,
		"enforced.mcpAuthentication": enforced.GetMcpAuthentication() != nil && policies.GetJwtAuth() != nil,
	} {
		if twice {
			v.fail(o, field, why, "mcpAuthentication alone does it")
		}
	}
}

// unnamedResource warns of a route whose tokens are for its own URL, of which nothing fixes the host.
func (v *validator) unnamedResource(o *adminv1.Object) {
	if v.Partial {
		return
	}
	found, ok := effective(append([]*adminv1.Object{o}, v.chains.above(o, o)...), kindField("mcpAuthentication"))
	if !ok {
		return
	}
	auth, _ := found.message.Interface().(*policyv1.McpAuthentication)
	own := slices.ContainsFunc(auth.GetProviders(), func(p *policyv1.JwtProvider) bool { return len(p.GetAudiences()) == 0 })
	_, named := auth.GetResourceMetadata().GetFields()["resource"]
	if !own || named || auth.GetResource() != "" || spelledOut(o.GetRoute().GetHostnames()) || spelledOut(v.byKey["listener/"+o.GetRoute().GetListener()].GetListener().GetHostnames()) {
		return
	}
	v.tell(severityWarning, o, "", fmt.Sprintf("mcpAuthentication of %s wants tokens for the route's own URL, and neither the route nor its listener spells out a host name: "+
		"only a proxy on a loopback address serves it, to loopback names; others answer 503", describe(found)), "set resource, or hostnames without wildcards, or the providers' audiences")
}

func spelledOut(hostnames []string) bool {
	return len(hostnames) > 0 && !slices.ContainsFunc(hostnames, func(h string) bool { return strings.HasPrefix(h, "*") })
}

// limitKeys warns of rate limits that would refuse initialize.
func (v *validator) limitKeys(o *adminv1.Object, block string, p *policyv1.Policies) {
	for i, l := range p.GetLocalRateLimit().GetLimits() {
		if l.GetKey() != "" && policy.KeyRefusesOthers(l.GetKey()) {
			v.tell(severityWarning, o, index(block+".localRateLimit.limits", i)+".key",
				"the key reads what only calls of a tool have: it fails for others, initialize among them, and a key that fails refuses",
				`write has(mcp.tool) ? … : "" around it`)
		}
	}
}
