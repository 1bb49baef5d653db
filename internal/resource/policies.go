package resource

import (
	"cmp"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/sluicegate/sluice/internal/policy"
	adminv1 "github.com/sluicegate/sluice/proto/gen/sluice/admin/v1"
	policyv1 "github.com/sluicegate/sluice/proto/gen/sluice/policy/v1"
	xdsv1 "github.com/sluicegate/sluice/proto/gen/sluice/xds/v1"
)

// This file alone knows internal/policy: what kinds there are, and what they mean where.

// routePhase returns the kinds that act before a target is known.
func routePhase() []string {
	var kinds []string
	for _, k := range policy.Kinds() {
		if k.Phase == policy.RoutePhase {
			kinds = append(kinds, k.Name)
		}
	}
	return kinds
}

var levels = map[string]policy.Level{
	"platform": policy.AtPlatform, "tenant": policy.AtTenant, "listener": policy.AtListener,
	"route": policy.AtRoute, "backend": policy.AtBackend, "target": policy.AtTarget,
}

// policies checks the policies of all levels: each block by itself, then what becomes of it on the targets.
func (v *validator) policies() {
	for _, o := range v.objects {
		policies, enforced := Policies(o)
		v.block(o, "policies", policies)
		v.block(o, "enforced", enforced)
		v.overruledHere(o, policies, enforced)
		v.replaced(o, policies)
		v.ofTwoResources(o, policies, enforced)
		v.limitKeys(o, "policies", policies)
		v.limitKeys(o, "enforced", enforced)
		v.keySets(o, "policies", policies)
		v.keySets(o, "enforced", enforced)
		if o.GetTarget() != nil {
			v.onTarget(o)
		}
	}
	for _, o := range v.objects {
		policies, enforced := Policies(o)
		v.unverified(o, "policies", policies)
		v.unverified(o, "enforced", enforced)
		if o.GetRoute() != nil {
			v.unnamedResource(o)
		}
		v.headerValues(o, "policies", policies)
		v.headerValues(o, "enforced", enforced)
	}
}

// block checks the policies of one level by themselves.
func (v *validator) block(o *adminv1.Object, block string, p *policyv1.Policies) {
	if p == nil {
		return
	}
	at := func(field string) string { return block + strings.TrimPrefix(field, "policies") }
	meaningless := map[string]bool{}
	for _, e := range policy.CheckLevel(levels[Kind(o)], p) {
		meaningless[e.Field] = true
		v.fail(o, at(e.Field), e.Reason, "")
	}
	// A credential of the form {secret: name} or {sealed: …} is not known here; what it is checked for
	// happens where its value is.
	for _, e := range v.check(p) {
		if !meaningless[e.Field] && !isCredentialError(p, e.Field) {
			v.fail(o, at(e.Field), e.Reason, "")
		}
	}
	stdio := o.GetTarget().GetStdio() != nil // where it is an error
	if pass := p.GetBackendAuth().GetPassthrough(); pass != nil && !pass.GetUnverified() && !stdio && !v.audienceIsTarget(o) {
		v.tell(severityWarning, o, block+".backendAuth.passthrough", "sends the client's token to the target, which can use it elsewhere as the client",
			"use it only where the target is the token's audience, and name its URL in jwtAuth's audiences")
	}
}

// keySets notes what cannot be seen offline: whether the control plane gets at the keys that tokens are verified with.
func (v *validator) keySets(o *adminv1.Object, block string, p *policyv1.Policies) {
	if !v.Offline {
		return
	}
	note := func(field, source string) {
		if issuer, ok := policy.SourceIssuer(source); ok {
			source = "the key set of issuer " + issuer
		} else if source != "" {
			source = "the key set " + source
		}
		if source != "" {
			v.tell(severityNote, o, field, fmt.Sprintf("%s is not looked at here", source), "the control plane fetches it, and refuses what is applied if it cannot")
		}
	}
	for i, provider := range p.GetJwtAuth().GetProviders() {
		note(fmt.Sprintf("%s.jwtAuth.providers[%d].jwks", block, i), policy.JwksSource(provider.GetJwks()))
	}
	for i, provider := range p.GetMcpAuthentication().GetProviders() {
		note(fmt.Sprintf("%s.mcpAuthentication.providers[%d].jwks", block, i), policy.JwksSource(policy.ProviderJwks(provider)))
	}
}

// overruledHere refuses a policy that the same level enforces otherwise: it could hold nowhere. Enforced
// authorization is another matter, for both must admit.
func (v *validator) overruledHere(o *adminv1.Object, policies, enforced *policyv1.Policies) {
	for _, k := range policy.Kinds() {
		fd := kindField(k.Name)
		if k.Name != "mcpAuthorization" && policies.ProtoReflect().Has(fd) && enforced.ProtoReflect().Has(fd) {
			place := cmp.Or(Place(o, "enforced."+k.Name), "enforced."+k.Name)
			v.fail(o, "policies."+k.Name, fmt.Sprintf("the same level enforces another %s (%s), and this one would do nothing", k.Name, place), "remove one")
		}
	}
}

// blockErrors is what is wrong with one block by itself.
type blockErrors = []*policy.FieldError

// check compiles a block once, however many objects hold the same: thousands of targets tend to share few
// policies, and expressions are what takes time.
func (v *validator) check(p *policyv1.Policies) blockErrors {
	key, err := proto.MarshalOptions{Deterministic: true}.Marshal(p)
	if err != nil { // a string that is not UTF-8, which no decoded message has
		return policy.FieldErrors(err)
	}
	errs, ok := v.checked[string(key)]
	if !ok {
		errs = policy.FieldErrors(policy.Check(p, policy.Resolver{}))
		v.checked[string(key)] = errs
	}
	return slices.Clip(errs)
}

// isCredentialError tells whether a field is, or is around, a credential without a usable source:
// [validator.credentials] has told of it.
func isCredentialError(p *policyv1.Policies, field string) bool {
	o := &adminv1.Object{Spec: &adminv1.Object_Platform{Platform: &adminv1.Platform{Policies: p}}}
	for path, c := range Credentials(o) {
		if (path == field || strings.HasPrefix(path, field+".")) && (c.GetSource() == nil || c.GetValue() == "" && isValue(c)) {
			return true
		}
	}
	return false
}

func isValue(c *policyv1.Credential) bool {
	_, ok := c.GetSource().(*policyv1.Credential_Value)
	return ok
}

// audienceIsTarget tells whether each token that can reach a target was made for it.
func (v *validator) audienceIsTarget(o *adminv1.Object) bool {
	t := o.GetTarget()
	transport := t.GetMcp()
	if transport == nil {
		transport = t.GetSse()
	}
	routes := v.chains.through(o)
	if transport == nil || len(routes) == 0 {
		return false
	}
	origin := "http://" + net.JoinHostPort(transport.GetHost(), strconv.Itoa(int(transport.GetPort())))
	switch {
	case transport.GetTls() && transport.GetPort() == 443:
		origin = "https://" + transport.GetHost()
	case transport.GetTls():
		origin = "https" + strings.TrimPrefix(origin, "http")
	case transport.GetPort() == 80:
		origin = "http://" + transport.GetHost()
	}
	for _, route := range routes {
		var providers []*policyv1.JwtProvider
		if found, ok := effective(v.chains.above(o, route), kindField("mcpAuthentication")); ok { // its token is the one that goes on
			auth, _ := found.message.Interface().(*policyv1.McpAuthentication)
			providers = auth.GetProviders()
		} else if found, ok := effective(v.chains.above(o, route), kindField("jwtAuth")); ok {
			jwt, _ := found.message.Interface().(*policyv1.JwtAuth)
			providers = jwt.GetProviders()
		}
		if len(providers) == 0 {
			return false
		}
		for _, p := range providers {
			if len(p.GetAudiences()) == 0 || slices.ContainsFunc(p.GetAudiences(), func(a string) bool {
				return strings.TrimSuffix(a, "/") != origin && a != origin+transport.GetPath()
			}) {
				return false
			}
		}
	}
	return true
}

// replaced notes what the policies of a level drop of those that they replace whole.
func (v *validator) replaced(o *adminv1.Object, p *policyv1.Policies) {
	if p == nil {
		return
	}
	routes := v.chains.through(o)
	if len(routes) == 0 {
		routes = []*adminv1.Object{nil}
	}
	for _, k := range policy.Kinds() {
		fd := kindField(k.Name)
		if !p.ProtoReflect().Has(fd) || o.GetTarget() != nil && !policy.Applies(k.Name, transportOf(o)) {
			continue
		}
		told := map[*adminv1.Object]bool{}
		for _, route := range routes {
			upper, ok := effective(v.chains.above(o, route), fd)
			if !ok || upper.enforced || told[upper.level] {
				continue
			}
			told[upper.level] = true
			dropped := droppedFields(upper.message, p.ProtoReflect().Get(fd).Message())
			if len(dropped) == 0 {
				continue
			}
			slices.Sort(dropped)
			v.tell(severityNote, o, "policies."+k.Name, fmt.Sprintf("replaces that of %s whole, and drops its %s", describe(upper), strings.Join(dropped, ", ")),
				"repeat what should stay")
		}
	}
}

// describe names a policy for a message about another.
func describe(p policyAt) string {
	if place := Place(p.level, p.field); place != "" {
		return Key(p.level) + " (" + place + ")"
	}
	return Key(p.level)
}

// transportOf returns a target's transport; one that has none yet counts as the usual.
func transportOf(o *adminv1.Object) policy.Transport {
	switch o.GetTarget().GetTransport().(type) {
	case *adminv1.Target_Sse:
		return policy.SSE
	case *adminv1.Target_Stdio:
		return policy.Stdio
	case *adminv1.Target_A2A:
		return policy.A2A
	}
	return policy.HTTP
}

// onTarget checks what becomes of the kinds that need a certain transport.
func (v *validator) onTarget(o *adminv1.Object) {
	transport := transportOf(o)
	routes := v.chains.through(o)
	if len(routes) == 0 {
		routes = []*adminv1.Object{nil}
	}
	told := map[string]bool{} // one policy may come by several routes
	for _, route := range routes {
		chain := append([]*adminv1.Object{o}, v.chains.above(o, route)...)
		_, agent := effective(chain, kindField("a2a"))
		if agent = transport == policy.A2A || agent && policy.Applies("a2a", transport); agent && !told["agent"] {
			told["agent"] = true
			v.agent(o)
		}
		for _, k := range policy.Kinds() {
			if k.Phase == policy.RoutePhase {
				continue
			}
			for _, p := range holding(chain, kindField(k.Name)) {
				if source := Key(p.level) + p.field; !told[source] {
					told[source] = true
					v.policyOnTarget(o, k.Name, p, transport, agent)
				}
			}
		}
	}
}

// policyOnTarget checks what becomes of one policy on a target.
func (v *validator) policyOnTarget(o *adminv1.Object, kind string, p policyAt, transport policy.Transport, agent bool) {
	switch {
	case !policy.Applies(kind, transport) && p.level == o:
		v.fail(o, p.field, fmt.Sprintf("means nothing on a %s target, and would do nothing", transport), "remove it")
	case !policy.Applies(kind, transport):
		v.tell(severityNote, o, "", fmt.Sprintf("%s of %s does not apply here: it means nothing on a %s target", kind, describe(p), transport), "")
	case kind == "backendAuth":
		v.authOnTarget(o, p, transport)
		v.standsAlone(o, p)
	case kind == "mcpAuthorization":
		v.deniesOnTarget(o, p, agent)
	case kind == "ai" && agent:
		v.fillsOnAgent(o, p)
	}
}

// deniesOnTarget warns of deny rules that refuse all that is asked of a target, since they read what it cannot have.
func (v *validator) deniesOnTarget(o *adminv1.Object, p policyAt, agent bool) {
	z, _ := p.message.Interface().(*policyv1.McpAuthorization)
	for i, rule := range z.GetRules() {
		if rule.GetDeny() == "" || !policy.DenyFails(rule.GetDeny(), agent) {
			continue
		}
		field, of := index(p.field+".rules", i), ""
		if p.level != o {
			field, of = "", fmt.Sprintf("mcpAuthorization.rules[%d] of %s: ", i, describe(p))
		}
		if agent {
			v.tell(severityWarning, o, field, of+"the rule reads what a call of an A2A agent has not: it fails, and a deny that fails refuses", "read a2a.method and a2a.skill, or begin with `has(mcp.tool) &&`")
			continue
		}
		v.tell(severityWarning, o, field, of+"the rule reads a2a, which a call of an MCP server has not: it fails, and a deny that fails refuses", "if only agents are meant, begin with `has(a2a.method) &&`")
	}
}

// agent refuses what a target has for MCP alone, if it is an A2A agent.
func (v *validator) agent(o *adminv1.Object) {
	t := o.GetTarget()
	for _, f := range []struct {
		set         bool
		field, what string
	}{
		{len(t.GetProtocolVersions()) > 0, "protocolVersions", "revisions of MCP"}, {t.GetListCache() != nil, "listCache", "lists"}, {t.GetReinitialize(), "reinitialize", "sessions"},
	} {
		if f.set {
			v.fail(o, f.field, fmt.Sprintf("the target is an A2A agent, which has no %s, and this would do nothing", f.what), "remove it")
		}
	}
}

// fillsOnAgent tells of the parts of ai that are about MCP's tools and sampling.
func (v *validator) fillsOnAgent(o *adminv1.Object, p policyAt) {
	ai, _ := p.message.Interface().(*policyv1.Ai)
	for _, f := range []struct {
		set  bool
		name string
	}{{ai.GetDefaults() != nil, "defaults"}, {ai.GetOverrides() != nil, "overrides"}, {len(ai.GetModelAliases()) > 0, "modelAliases"}} {
		switch {
		case f.set && p.level == o:
			v.fail(o, p.field+"."+f.name, "is about tools, which an A2A agent has not, and would do nothing", "remove it")
		case f.set:
			v.tell(severityNote, o, "", fmt.Sprintf("%s of ai of %s do not apply here: they are about tools, which an A2A agent has not", f.name, describe(p)), "")
		}
	}
}

// authOnTarget checks that the credential has a place on the target's transport; what is wrong with it
// whatever the transport was told where it is written.
func (v *validator) authOnTarget(o *adminv1.Object, p policyAt, transport policy.Transport) {
	auth, _ := p.message.Interface().(*policyv1.BackendAuth)
	policies := &policyv1.Policies{BackendAuth: auth}
	known := map[string]bool{}
	for _, e := range v.check(policies) {
		known[e.Error()] = true
	}
	_, err := policy.CompileTarget(&xdsv1.EffectivePolicy{Policies: policies}, transport, policy.Resolver{})
	for _, e := range policy.FieldErrors(err) {
		switch {
		case known[e.Error()]:
		case p.level == o:
			v.fail(o, strings.Replace(e.Field, "policies", p.field[:len("policies")], 1), e.Reason, "")
		default:
			at := strings.TrimPrefix(e.Field, "policies.backendAuth.")
			v.fail(o, "", fmt.Sprintf("backendAuth of %s does not work on this %s target: %s %s", describe(p), transport, at, e.Reason), "or give the target a backendAuth of its own")
		}
	}
}

// fills says which kinds give a variable its value.
var fills = map[string][]string{
	"jwt": {"jwtAuth", "mcpAuthentication"}, "scopes": {"jwtAuth", "mcpAuthentication"}, "apiKey": {"apiKey"}, "basicAuth": {"basicAuth"},
}

// unverified warns of rules that read what no policy on the way verifies: they see an empty map.
func (v *validator) unverified(o *adminv1.Object, block string, p *policyv1.Policies) {
	if v.Partial {
		return
	}
	for i, rule := range p.GetMcpAuthorization().GetRules() {
		if policy.DenyRefusesOthers(rule.GetDeny()) && transportOf(o) != policy.A2A {
			v.tell(severityWarning, o, index(block+".mcpAuthorization.rules", i),
				"the rule reads mcp.tool, which prompts and resources have not: it fails for them, and a deny that fails refuses",
				"if only tools are meant, begin with `has(mcp.tool) &&`")
		}
		v.unfilled(o, index(block+".mcpAuthorization.rules", i), "rule", ruleText(rule))
	}
}

// unfilled warns of an expression, which is called what, that reads what no policy on the way verifies: it sees an
// empty map.
func (v *validator) unfilled(o *adminv1.Object, field, what, expression string) {
	for _, variable := range []string{"jwt", "scopes", "apiKey", "basicAuth"} {
		if !v.reads(expression, variable) {
			continue
		}
		for _, route := range v.chains.through(o) {
			above := append([]*adminv1.Object{route}, v.chains.above(route, route)...)
			if slices.ContainsFunc(fills[variable], func(kind string) bool { _, ok := effective(above, kindField(kind)); return ok }) {
				continue
			}
			v.tell(severityWarning, o, field,
				fmt.Sprintf("the %s reads %s, and nothing on route %q fills it: it is empty", what, variable, route.GetName()),
				fmt.Sprintf("set %s on the route or above", strings.Join(fills[variable], " or ")))
			break
		}
	}
}

func ruleText(r *policyv1.AuthorizationRule) string {
	m := r.ProtoReflect()
	fd := m.WhichOneof(m.Descriptor().Oneofs().ByName("rule"))
	if fd == nil {
		return ""
	}
	return m.Get(fd).String()
}
