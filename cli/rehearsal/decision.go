package rehearsal

import (
	"regexp"
	"strconv"
	"strings"

	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/sluicegate/sluice/controlplane"
	"github.com/sluicegate/sluice/internal/resource"
	adminv1 "github.com/sluicegate/sluice/proto/gen/sluice/admin/v1"
	policyv1 "github.com/sluicegate/sluice/proto/gen/sluice/policy/v1"
)

// Decision is the rule that made a verdict.
type Decision struct {
	// Rule as the log has it, e.g. `backend/tools mcpAuthorization.rules[1] deny`.
	Rule string
	// Level it stands at, e.g. `backend/tools`; empty where that is not known.
	Level string
	// Place is `file:line`, empty for what comes from no file.
	Place string
	// Text of the rule, as written; empty for what is no single rule.
	Text string
}

var authorizationRule = regexp.MustCompile(`^(\S+) mcpAuthorization(?:\.rules\[(\d+)\] (allow|deny|require))?`)

// decision finds where the rule stands that the log names.
func (s *Stage) decision(rule, target string) Decision {
	d := Decision{Rule: rule}
	if rule == "" {
		return d
	}
	if m := authorizationRule.FindStringSubmatch(rule); m != nil {
		d.Level = m[1]
		o := s.object(d.Level, target)
		if o == nil {
			return d
		}
		field := ".mcpAuthorization"
		index := -1
		if m[2] != "" {
			field += ".rules[" + m[2] + "]"
			index, _ = strconv.Atoi(m[2]) // of digits
		}
		policies, enforced := resource.Policies(o)
		block := "policies"
		text, ok := ruleText(policies.GetMcpAuthorization(), index, m[3])
		if !ok {
			if text, ok = ruleText(enforced.GetMcpAuthorization(), index, m[3]); ok {
				block = "enforced"
			}
		}
		d.Place, d.Text = resource.Place(o, block+field), text
		return d
	}
	block, rest, ok := strings.Cut(rule, ".")
	if !ok || block != "policies" && block != "enforced" {
		return d
	}
	kind, _, _ := strings.Cut(rest, ".")
	for _, p := range s.explained(target) {
		if p.Kind != kind || p.NotApplicable != "" {
			continue
		}
		d.Level = p.From
		if p.Enforced {
			block = "enforced"
		}
		if o := s.object(p.From, target); o != nil {
			d.Place = resource.Place(o, block+"."+rest)
		}
	}
	return d
}

// ruleText is the expression of a rule of a kind; of all rules (-1) there is none. False if there is no such rule.
func ruleText(a *policyv1.McpAuthorization, index int, kind string) (string, bool) {
	switch {
	case a == nil || index >= len(a.GetRules()):
		return "", false
	case index < 0:
		return "", true
	}
	m := a.GetRules()[index].ProtoReflect()
	fd := m.Descriptor().Fields().ByName(protoreflect.Name(kind))
	if !m.Has(fd) {
		return "", false
	}
	return m.Get(fd).String(), true
}

// object finds a level by the name that explain and the log give it.
func (s *Stage) object(level, target string) *adminv1.Object {
	for _, o := range s.cfg.Objects {
		name := resource.Key(o)
		switch {
		case o.GetPlatform() != nil:
			name = "platform"
		case o.GetTenant() != nil:
			name = "tenant/" + s.cfg.Tenant
		case o.GetTarget() != nil:
			if target != "" && o.GetName() != s.full(target) {
				continue
			}
			name = "target/" + resource.TargetName(o)
		}
		if name == level {
			return o
		}
	}
	return nil
}

// full is a target behind the caller's route with its backend.
func (s *Stage) full(target string) string {
	for _, t := range s.targets() {
		if s.world.targets[t].GetName() == target {
			return t
		}
	}
	return target
}

// Levels tells all that takes part in what becomes of a target's requests, on the caller's route.
func (s *Stage) Levels(target string) []*adminv1.PolicyExplanation { return s.explained(target) }

func (s *Stage) explained(target string) []*adminv1.PolicyExplanation {
	return explained(s.cfg.Objects, s.cfg.Tenant, s.full(target), s.route)
}

func explained(objects []*adminv1.Object, tenant, target, route string) []*adminv1.PolicyExplanation {
	e, err := controlplane.ExplainOffline(tenant, objects, target)
	if err != nil {
		return nil // several targets, or none
	}
	for _, r := range e.GetRoutes() {
		if r.GetRoute() == route {
			return r.GetPolicies()
		}
	}
	return nil
}

// backendAuthOf is the method of a target's effective backendAuth; empty for none.
func backendAuthOf(objects []*adminv1.Object, tenant, target, route string) string {
	for _, p := range explained(objects, tenant, target, route) {
		if p.GetKind() != "backendAuth" || p.GetNotApplicable() != "" {
			continue
		}
		for field := range p.GetValue().GetStructValue().GetFields() {
			if field != "env" {
				return field
			}
		}
	}
	return ""
}
