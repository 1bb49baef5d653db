package policy

import (
	"slices"
	"strings"

	policyv1 "github.com/sluicegate/sluice/proto/gen/sluice/policy/v1"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// Level is where policies hang, from the most general.
type Level int

const (
	AtPlatform Level = iota
	AtTenant
	AtListener
	AtRoute
	AtBackend
	AtTarget
)

func (l Level) String() string {
	return [...]string{"platform", "tenant", "listener", "route", "backend", "target"}[l]
}

// Phase is when a kind acts.
type Phase int

const (
	RoutePhase  Phase = iota // before a target is known; compiled by [CompileRoute]
	TargetPhase              // for one target; compiled by [CompileTarget]
)

// KindInfo describes a kind of policy.
type KindInfo struct {
	Name       string            // in YAML, and the JSON name of the proto's field
	Field      protoreflect.Name // of sluice.policy.v1.Policies
	Phase      Phase
	Levels     []Level     // where it means something
	Transports []Transport // of the targets on which it means something
	Instead    string      // where it is refused: the way out; if empty, the levels where it means something
}

var (
	everywhere = []Level{AtPlatform, AtTenant, AtListener, AtRoute, AtBackend, AtTarget}
	upToRoute  = []Level{AtPlatform, AtTenant, AtListener, AtRoute}
	upToGroup  = []Level{AtPlatform, AtTenant, AtListener, AtRoute, AtBackend}
	anyTarget  = []Transport{HTTP, SSE, Stdio, A2A}
	overHTTP   = []Transport{HTTP, SSE, A2A}
	agents     = []Transport{HTTP, A2A}
	kinds      = []KindInfo{
		{"mcpAuthorization", "mcp_authorization", TargetPhase, everywhere, anyTarget, ""},
		{"backendAuth", "backend_auth", TargetPhase, everywhere, anyTarget, ""},
		{"backendTLS", "backend_tls", TargetPhase, everywhere, overHTTP, ""},
		{"requestHeaderModifier", "request_header_modifier", TargetPhase, everywhere, overHTTP, ""},
		// A stdio target sends no header, but its answers reach clients over HTTP.
		{"responseHeaderModifier", "response_header_modifier", TargetPhase, everywhere, anyTarget, ""},
		{"ai", "ai", TargetPhase, everywhere, anyTarget, ""},
		{"a2a", "a2a", TargetPhase, everywhere, agents, ""},
		{"cors", "cors", RoutePhase, upToRoute, anyTarget, ""},
		{"jwtAuth", "jwt_auth", RoutePhase, upToRoute, anyTarget, ""},
		{"apiKey", "api_key", RoutePhase, upToRoute, anyTarget, ""},
		{"mcpAuthentication", "mcp_authentication", RoutePhase, upToRoute, anyTarget, ""},
		{"basicAuth", "basic_auth", RoutePhase, upToRoute, anyTarget, ""},
		{"localRateLimit", "local_rate_limit", TargetPhase, everywhere, anyTarget, ""},
		{"timeout", "timeout", TargetPhase, upToGroup, anyTarget, "give the target a timeout of its own: timeout: 5s beside its policies"},
		{"retry", "retry", TargetPhase, everywhere, anyTarget, ""},
	}
)

// Kinds returns all kinds of policies, in the order of the proto.
func Kinds() []KindInfo { return slices.Clone(kinds) }

// CheckLevel finds kinds of p that mean nothing at level. Fields are `policies.KIND`.
func CheckLevel(level Level, p *policyv1.Policies) []FieldError {
	var errs []FieldError
	for _, k := range kinds {
		if isSet(p, k) && !slices.Contains(k.Levels, level) {
			reason := k.Instead
			if reason == "" {
				var where []string
				for _, l := range k.Levels {
					where = append(where, l.String())
				}
				reason = "acts before a " + level.String() + " is known and would do nothing here; set it at " + strings.Join(where, ", ")
			}
			errs = append(errs, FieldError{"policies." + k.Name, reason})
		}
	}
	return errs
}

// Applies reports whether kind means something on targets of t. An inherited kind that does not is left
// out there; one set on the target itself is an error. False for an unknown kind.
func Applies(kind string, t Transport) bool {
	i := slices.IndexFunc(kinds, func(k KindInfo) bool { return k.Name == kind })
	return i >= 0 && slices.Contains(kinds[i].Transports, t)
}

func applies(kind string, t Transport) bool { return t == anyTransport || Applies(kind, t) }

func isSet(p *policyv1.Policies, k KindInfo) bool {
	if p == nil {
		return false
	}
	m := p.ProtoReflect()
	return m.Has(m.Descriptor().Fields().ByName(k.Field))
}
