package merge

import (
	"fmt"
	"slices"
	"strings"

	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/sluicegate/sluice/internal/policy"
	"github.com/sluicegate/sluice/internal/resource"
	adminv1 "github.com/sluicegate/sluice/proto/gen/sluice/admin/v1"
	policyv1 "github.com/sluicegate/sluice/proto/gen/sluice/policy/v1"
	xdsv1 "github.com/sluicegate/sluice/proto/gen/sluice/xds/v1"
)

// Explain tells for a target, `name` or `backend/name`, which policies apply on each route that reaches it, where they
// came from and what they replaced. Credentials do not show. The error says what names are there.
//
// Enforced authorization stands beside the ordinary one, as entries of the same kind before it, outermost first.
func Explain(in Inputs, target string) (*adminv1.ExplainResponse, error) {
	o, err := findTarget(in.Objects, target)
	if err != nil {
		return nil, err
	}
	e := explainer{in: in, nodes: map[string]*node{}, target: o}
	for _, o := range in.Objects {
		if derived(o) {
			e.nodes[keyOf(o)] = newNode(in.Tenant, o)
		}
	}
	if in.Platform != nil {
		e.nodes[platformKey] = newNode(in.Tenant, in.Platform)
	}
	out := &adminv1.ExplainResponse{Target: resource.TargetName(o), Backend: o.GetTarget().GetBackend()}
	for _, route := range in.Objects {
		if backends(route.GetRoute())[out.Backend] {
			out.Routes = append(out.Routes, e.route(route.GetName(), route.GetRoute().GetListener()))
		}
	}
	slices.SortFunc(out.Routes, func(a, b *adminv1.RouteExplanation) int { return strings.Compare(a.Route, b.Route) })
	if len(out.Routes) == 0 {
		out.Routes = append(out.Routes, e.route("", ""))
	}
	return out, nil
}

func findTarget(objects []*adminv1.Object, name string) (*adminv1.Object, error) {
	var found []*adminv1.Object
	var all, matches []string
	for _, o := range objects {
		if o.GetTarget() == nil {
			continue
		}
		all = append(all, o.GetName())
		if o.GetName() == name || resource.TargetName(o) == name {
			found, matches = append(found, o), append(matches, o.GetName())
		}
	}
	switch {
	case len(found) == 1:
		return found[0], nil
	case len(found) > 1:
		slices.Sort(matches)
		return nil, fmt.Errorf("target %q is in several backends: say %s", name, strings.Join(matches, " or "))
	case len(all) == 0:
		return nil, fmt.Errorf("target %q is not there, nor is any other", name)
	}
	slices.Sort(all)
	if more := len(all) - 20; more > 0 {
		all = append(all[:20], fmt.Sprintf("and %d more", more))
	}
	return nil, fmt.Errorf("target %q is not there; targets are %s", name, strings.Join(all, ", "))
}

type explainer struct {
	in     Inputs
	nodes  map[string]*node
	target *adminv1.Object
}

func (e *explainer) route(route, listener string) *adminv1.RouteExplanation {
	out := &adminv1.RouteExplanation{Route: route, Listener: listener}
	chain := []string{platformKey, tenantKey, "listener/" + listener, "route/" + route, "backend/" + e.target.GetTarget().GetBackend(), keyOf(e.target)}
	for _, k := range policy.Kinds() {
		keys := chain
		if k.Phase == policy.RoutePhase {
			keys = chain[:4]
		}
		var levels []Level
		for _, key := range keys {
			if n := e.nodes[key]; n != nil {
				levels = append(levels, n.level)
			}
		}
		out.Policies = append(out.Policies, e.kind(k, levels)...)
	}
	return out
}

// kind explains one kind: what is in force, and below it what it replaced, most specific first.
func (e *explainer) kind(k policy.KindInfo, levels []Level) []*adminv1.PolicyExplanation {
	trace := effective(maskOf(k.Name).fields(), levels).trace[k.Name]
	var out []*adminv1.PolicyExplanation
	var winner *adminv1.PolicyExplanation
	var won setting
	for _, s := range trace {
		if !s.wins {
			continue
		}
		p := &adminv1.PolicyExplanation{Kind: k.Name, From: s.level.Name, Place: e.place(s, k.Name), Enforced: s.enforced, Value: show(s.policy)}
		if k.Phase == policy.TargetPhase && !policy.Applies(k.Name, transportOf(e.target.GetTarget())) {
			p.NotApplicable = fmt.Sprintf("%s means nothing on a %s target", k.Name, transportOf(e.target.GetTarget()))
		}
		if out = append(out, p); !s.enforced || k.Name != authorization {
			winner, won = p, s
		}
	}
	for _, s := range slices.Backward(trace) {
		if !s.wins && winner != nil {
			winner.Replaced = append(winner.Replaced, &adminv1.Replaced{From: s.level.Name, Place: e.place(s, k.Name), DroppedFields: dropped(s.policy, won.policy), Value: show(s.policy)})
		}
	}
	return out
}

// place is `file:line` of a setting.
func (e *explainer) place(s setting, kind Kind) string {
	block := "policies."
	if s.enforced {
		block = "enforced."
	}
	return resource.Place(e.nodes[s.level.key].object, block+kind)
}

// show is a policy as it is written in YAML, without credentials.
func show(m protoreflect.Message) *structpb.Value {
	v, err := structpb.NewValue(resource.Show(m.Interface()))
	if err != nil {
		return structpb.NewStringValue(fmt.Sprintf("cannot be shown: %v", err))
	}
	return v
}

// dropped lists the fields that a replaced policy set and its replacement does not, in order. Where one field of several
// can be set, the replacement's choice is no loss of the other.
func dropped(replaced, by protoreflect.Message) (fields []string) {
	all := replaced.Descriptor().Fields()
	for i := range all.Len() {
		fd := all.Get(i)
		if one := fd.ContainingOneof(); replaced.Has(fd) && !by.Has(fd) && (one == nil || by.WhichOneof(one) == nil) {
			fields = append(fields, fd.JSONName())
		}
	}
	return fields
}

// Origin tells which object of the operator's a refusal by a proxy is about, e.g. `target/tools/search`, and the
// field within it. For what was merged from several levels it is the level that the field came from.
func (o *Output) Origin(r *xdsv1.Refusal) (object, field string) {
	key, ours := strings.CutPrefix(r.GetName(), o.in.Tenant+"/")
	if !ours {
		return r.GetName(), r.GetField()
	}
	kind, rest, _ := strings.Cut(key, "/")
	switch kind {
	case "policy":
		ch, ok := o.chains.get(r.GetName())
		if !ok {
			return key, r.GetField()
		}
		n, field := o.blame(ch, r.GetField())
		return n.level.key, field
	case "binding":
		_, target, _ := strings.Cut(rest, "/")
		return "target/" + target, r.GetField()
	case "tenant":
		return tenantKey, r.GetField()
	case "sealed", "jwks":
		for _, n := range o.nodes.all() {
			if field := refersTo(n.object, kind, rest); field != "" {
				return n.level.key, field
			}
		}
	}
	return key, r.GetField()
}

// refersTo returns where an object holds a sealed value, or names the URL of a key set; "" if it does not.
func refersTo(o *adminv1.Object, kind, name string) string {
	if kind == "sealed" {
		for path, c := range resource.Credentials(o) {
			if c.GetSealed() == name {
				return path
			}
		}
		return ""
	}
	policies, enforced := resource.Policies(o)
	for block, p := range map[string]*policyv1.Policies{"policies": policies, "enforced": enforced} {
		for i, provider := range p.GetJwtAuth().GetProviders() {
			if from := policy.JwksSource(provider.GetJwks()); from != "" && shortHash(from) == name {
				return fmt.Sprintf("%s.jwtAuth.providers[%d].jwks%s", block, i, map[bool]string{true: ".url"}[provider.GetJwks().GetUrl() != ""])
			}
		}
		for i, provider := range p.GetMcpAuthentication().GetProviders() {
			if from := policy.JwksSource(policy.ProviderJwks(provider)); from != "" && shortHash(from) == name {
				return fmt.Sprintf("%s.mcpAuthentication.providers[%d].jwks%s", block, i, map[bool]string{true: ".url"}[provider.GetJwks().GetUrl() != ""])
			}
		}
	}
	return ""
}
