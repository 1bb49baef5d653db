// Package policy compiles policies into the objects that decide and change requests.
//
// The proxy enforces with them, the control plane validates with them, and `sluice test` answers with
// them: one implementation, so that what validates is what runs. [CompileRoute] builds the kinds that act
// before a target is known, [CompileTarget] those of one target. What they return is immutable and safe
// for use by many goroutines. A nil [*Route] or [*Target] is the absence of any policy and works as such.
package policy

import (
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	policyv1 "github.com/sluicegate/sluice/proto/gen/sluice/policy/v1"
	xdsv1 "github.com/sluicegate/sluice/proto/gen/sluice/xds/v1"
	"google.golang.org/protobuf/proto"
)

// ErrUnknown is what a [Resolver] returns for a value that exists elsewhere, e.g. when the control plane
// is asked for a file of the proxies. What depends on it is compiled without being checked, and fails
// closed if it is used all the same.
var ErrUnknown = errors.New("value is not known here")

// A Resolver finds what policies refer to. An error other than [ErrUnknown] refuses the policy. A nil
// function knows nothing, as if it returned ErrUnknown.
type Resolver struct {
	Secret func(resource string) ([]byte, error)
	File   func(path string) ([]byte, error)
	Env    func(name string) (string, error)
	Jwks   func(url string) ([]byte, error)
	// Identity returns nil if the policy may act as the proxy itself at a cloud: aws, gcp or azure.
	Identity func(cloud string) error
	// Tenant owns the policy.
	Tenant string
	// Grants are the tenant's local powers, within which policies dial.
	Grants Grants
	// Endpoint is where the route is reached. If nil, not known: a route that has to know answers 503.
	Endpoint *Endpoint
	// TargetName is the full resource name of the target, for what a target's own level keeps.
	TargetName string
	// Runtime is what compiled policies share and need to act. Nil where they are only checked: what would need it
	// is compiled all the same, and fails closed if it is used.
	Runtime *Runtime
}

// Transport is how a target is reached.
type Transport int

const (
	HTTP  Transport = iota // streamable HTTP
	SSE                    // HTTP+SSE of 2024-11-05
	Stdio                  // a child process
	A2A                    // an agent, by HTTP
)

// anyTransport checks what holds on every transport; for [Check].
const anyTransport Transport = -1

func (t Transport) String() string {
	switch t {
	case HTTP:
		return "mcp"
	case SSE:
		return "sse"
	case Stdio:
		return "stdio"
	case A2A:
		return "a2a"
	}
	return "any"
}

// A FieldError refuses one field. Errors of this package are one or several of them, joined; see [FieldErrors].
type FieldError struct {
	Field  string // YAML path below the level, e.g. `policies.mcpAuthorization.rules[1]`
	Reason string // what is wrong and the way out; never a secret's value
}

func (e *FieldError) Error() string { return e.Field + ": " + e.Reason }

// FieldErrors returns the FieldErrors that err joins, in order. Other errors become one without a field.
func FieldErrors(err error) []*FieldError {
	if err == nil {
		return nil
	}
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		var all []*FieldError
		for _, e := range joined.Unwrap() {
			all = append(all, FieldErrors(e)...)
		}
		return all
	}
	if fe, ok := errors.AsType[*FieldError](err); ok {
		return []*FieldError{fe}
	}
	return []*FieldError{{Reason: err.Error()}}
}

// problems collects the errors of one compilation: all of them are told at once.
type problems struct{ errs []error }

func (p *problems) add(field, format string, args ...any) {
	p.errs = append(p.errs, &FieldError{Field: field, Reason: fmt.Sprintf(format, args...)})
}

func (p *problems) err() error { return errors.Join(p.errs...) }

// Route is the compiled policy of a route: cors, and who the caller is. It acts before a target is known.
type Route struct {
	cors    *cors
	mcp     *mcpAuth
	jwt     *jwtAuth
	apiKeys *apiKeyAuth
	basic   *basicAuth
	places  []place // of credentials
}

// Target is the compiled policy of a target as reached through one route.
type Target struct {
	authz    []*authorization // outermost first; each must admit
	request  *headerModifier
	response *headerModifier
	auth     *backendAuth
	tls      *tls.Config
	limits   []*rateLimit
	timeouts timeouts
	retry    *Retry
	childEnv []string
	ai       *ai
	digest   string

	readsArguments, readsPrincipal, readsTime bool
	perCaller, perRequest                     bool
	argumentNames                             *readNames // what rules read of arguments
}

// CompileRoute builds the route-phase kinds of p; others are left alone. A nil p is a policy with no kinds.
func CompileRoute(p *xdsv1.EffectivePolicy, r Resolver) (*Route, error) {
	var errs problems
	policies := p.GetPolicies()
	route := &Route{}
	if c := policies.GetCors(); c != nil {
		route.cors = compileCors(c, "policies.cors", &errs)
	}
	if j := policies.GetJwtAuth(); j != nil {
		route.jwt = compileJwtAuth(j, r, "policies.jwtAuth", &errs)
	}
	if k := policies.GetApiKey(); k != nil {
		route.apiKeys = compileAPIKeys(k, r, "policies.apiKey", &errs)
	}
	if m := policies.GetMcpAuthentication(); m != nil {
		route.mcp = compileMcpAuth(m, r, "policies.mcpAuthentication", &errs)
	}
	if b := policies.GetBasicAuth(); b != nil {
		route.basic = compileBasicAuth(b, r, "policies.basicAuth", &errs)
	}
	if err := errs.err(); err != nil {
		return nil, err
	}
	route.places = route.findPlaces(p.GetEnforced())
	return route, nil
}

// CompileTarget builds the target-phase kinds of p for a target reached by t. A kind that means nothing on
// t (see [Applies]) is left out, for it was inherited. A nil p is a policy with no kinds, which admits everything.
func CompileTarget(p *xdsv1.EffectivePolicy, t Transport, r Resolver) (*Target, error) {
	var errs problems
	policies := p.GetPolicies()
	target := &Target{digest: digest(p, t)}

	for _, e := range p.GetEnforcedAuthorization() {
		field := "enforced.mcpAuthorization"
		target.authz = append(target.authz, compileAuthorization(e.GetAuthorization(), field, e.GetLevel(), &errs))
	}
	if a := policies.GetMcpAuthorization(); a != nil {
		target.authz = append(target.authz, compileAuthorization(a, "policies.mcpAuthorization", p.GetFrom()["mcpAuthorization"], &errs))
	}
	target.argumentNames = &readNames{}
	for _, a := range target.authz {
		target.readsArguments = target.readsArguments || a.reads(varArguments)
		target.readsPrincipal = target.readsPrincipal || a.reads(varCaller)
		target.readsTime = target.readsTime || a.reads(varTime)
		for _, r := range a.rules() {
			if r.reads&varArguments != 0 {
				for _, name := range r.literals {
					target.argumentNames.add(name)
				}
			}
		}
	}
	if m := policies.GetRequestHeaderModifier(); m != nil && applies("requestHeaderModifier", t) {
		target.request = compileHeaderModifier(m, "policies.requestHeaderModifier", &errs)
	}
	if m := policies.GetResponseHeaderModifier(); m != nil && applies("responseHeaderModifier", t) {
		target.response = compileAnswerModifier(m, "policies.responseHeaderModifier", &errs)
	}
	if a := policies.GetBackendAuth(); a != nil {
		target.auth, target.childEnv = compileBackendAuth(a, t, r, "policies.backendAuth", &errs)
	}
	if b := policies.GetBackendTls(); b != nil && applies("backendTLS", t) {
		target.tls = compileTLS(b, r, "policies.backendTLS", &errs)
	}
	if l := policies.GetLocalRateLimit(); l != nil {
		target.limits = compileRateLimit(l, p.GetFrom()["localRateLimit"], r, "policies.localRateLimit", &errs)
	}
	if t := policies.GetTimeout(); t != nil {
		target.timeouts = compileTimeout(t, "policies.timeout", &errs)
		target.timeouts.enforced = slices.Contains(p.GetEnforced(), "timeout")
	}
	if r := policies.GetRetry(); r != nil {
		target.retry = compileRetry(r, "policies.retry", &errs)
	}
	if a := policies.GetAi(); a != nil {
		target.ai = compileAi(a, r, "policies.ai", &errs)
	}
	if err := errs.err(); err != nil {
		return nil, err
	}
	target.depends(policies.GetBackendAuth())
	return target, nil
}

// Check finds what is wrong with the policies of one level by themselves: whatever the transport of the
// targets below, and whatever other levels say.
func Check(p *policyv1.Policies, r Resolver) error {
	effective := &xdsv1.EffectivePolicy{Policies: proto.CloneOf(p)}
	_, routeErr := CompileRoute(effective, r)

	var errs problems
	if p.GetMcpAuthentication() != nil && p.GetJwtAuth() != nil {
		errs.add("policies.mcpAuthentication", "stands beside jwtAuth at the same level, and both verify the same tokens; mcpAuthentication alone does it")
	}
	_, targetErr := CompileTarget(effective, anyTransport, r)
	return errors.Join(routeErr, targetErr, errs.err())
}

// digest covers what p says, not what its credentials are: it is the same on every proxy.
func digest(p *xdsv1.EffectivePolicy, t Transport) string {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(&xdsv1.EffectivePolicy{
		Policies: p.GetPolicies(), EnforcedAuthorization: p.GetEnforcedAuthorization(), Enforced: p.GetEnforced(),
	})
	if err != nil { // invalid UTF-8 in a string, which no decoded message has
		b = fmt.Append(nil, p)
	}
	sum := sha256.Sum256(append(b, byte(t)))
	return hex.EncodeToString(sum[:12])
}

// Digest changes when any policy of the target changes, and is the same on every proxy. The value of a
// credential is no part of it. Empty for a nil Target.
func (t *Target) Digest() string {
	if t == nil {
		return ""
	}
	return t.digest
}

// TLS returns the configuration towards the target, or nil if no backendTLS applies. Callers clone it, and
// set ServerName to the target's host where it is empty.
func (t *Target) TLS() *tls.Config {
	if t == nil {
		return nil
	}
	return t.tls
}

// ChildEnv returns what backendAuth adds to the environment of a stdio child, as `NAME=value`. The values
// are secrets: they belong in exec.Cmd.Env and nowhere else.
func (t *Target) ChildEnv() []string {
	if t == nil {
		return nil
	}
	return slices.Clone(t.childEnv)
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

func quoteList(names []string) string { return "`" + strings.Join(names, "`, `") + "`" }
