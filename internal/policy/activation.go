package policy

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/google/cel-go/common/types"
	"github.com/google/cel-go/common/types/ref"
	"github.com/google/cel-go/interpreter"
)

// Limits on what one rule may have to work through.
const (
	maxNameSize      = 64 << 10
	maxArgumentsSize = 4 << 20
)

// activation is what the rules of one Admit read. It makes each value at most once, when first read, and is
// pooled: rules that read names and claims allocate next to nothing.
type activation struct {
	call  *Call
	names *readNames
	list  bool // list phase: what only a call knows is unknown

	// trial is the rule that is tried as if the caller's token had the scopes which the rule names; see [rule.opens].
	trial *rule

	name, target, method, tenant ref.Val
	arguments, annotations       ref.Val
	scopes                       ref.Val
	invalid                      error // why arguments cannot be read
	absent                       bool  // an item was read that the call is not about
	unsure                       bool  // a rule asked what cannot be told
	spent                        int   // of maxWork
}

var activations = sync.Pool{New: func() any { return new(activation) }}

func newActivation(c *Call, names *readNames, list bool) *activation {
	a := activations.Get().(*activation)
	a.call, a.names, a.list = c, names, list
	return a
}

func (a *activation) release() {
	*a = activation{}
	activations.Put(a)
}

// unknown is the value of what only a call knows. The evaluator carries it through operators as partial
// evaluation does for attribute patterns; handing it out here spares the matching of patterns, and keeps
// has(mcp.tool) known.
var unknown = types.NewUnknown(0, types.NewAttributeTrail("mcp"))

// ResolveName finds the roots. Objects (mcp, a2a, request, source) are the activation itself, of which the fields
// in env.go pick their values.
func (a *activation) ResolveName(name string) (any, bool) {
	switch name {
	case "mcp", "a2a", "request", "source", workName:
		return a, true
	case "jwt":
		if a.trial != nil && a.trial.anyClaims(a.call.Principal) {
			return unknown, true
		}
		return claims(a.call.Principal), true
	case "scopes":
		if a.trial != nil {
			return toCEL(a.trial.granted(a.call.Principal)), true
		}
		if a.scopes == nil {
			a.scopes = a.call.Principal.scopeList()
		}
		return a.scopes, true
	case "apiKey":
		return apiKeyMetadata(a.call.Principal), true
	case "basicAuth":
		return basicUser(a.call.Principal), true
	case "tenant":
		return once(&a.tenant, a.call.Tenant), true
	}
	return nil, false
}

// Parent is nil: there is no other scope.
func (a *activation) Parent() interpreter.Activation { return nil }

func once(v *ref.Val, s string) ref.Val {
	if *v == nil {
		*v = types.String(s)
	}
	return *v
}

func claims(p *Principal) ref.Val {
	switch {
	case p == nil || p.Claims == nil:
		return emptyMap
	case p.jwt != nil:
		return p.jwt
	}
	return toCEL(p.Claims) // a Principal that Authenticate did not make, as in tests of policies
}

func apiKeyMetadata(p *Principal) ref.Val {
	switch {
	case p == nil || p.APIKey == nil:
		return emptyMap
	case p.apiKey != nil:
		return p.apiKey
	}
	return toCEL(p.APIKey)
}

// basicUser is `basicAuth`: username, or nothing.
func basicUser(p *Principal) ref.Val {
	if p == nil || p.Username == "" {
		return emptyMap
	}
	return types.NewStringInterfaceMap(types.DefaultTypeAdapter, map[string]any{"username": p.Username})
}

// ofServer and ofAgent tell apart whom a call is for: what MCP servers have, agents have not, and the other way round.
func (a *activation) ofServer() bool { return a.call.Kind != Agent }
func (a *activation) ofAgent() bool  { return a.call.Kind == Agent }

const (
	errOfAgent  = unreadable("mcp.method, and the call is for an A2A agent; ask has(mcp.method) first")
	errOfServer = unreadable("a2a, and the call is for an MCP server; ask has(a2a.method) first")
	errNoSkill  = unreadable("a2a.skill, and the caller names none; ask has(a2a.skill) first")
)

// getAgentMethod is unknown on a card, whose skills can be called by several methods.
func (a *activation) getAgentMethod() (any, error) {
	switch {
	case !a.ofAgent():
		return nil, errOfServer
	case a.list:
		return unknown, nil
	}
	return once(&a.method, a.call.Method), nil
}

func (a *activation) getSkill() (any, error) {
	switch {
	case !a.ofAgent():
		return nil, errOfServer
	case a.call.Name == "":
		return nil, errNoSkill
	}
	return a.getName()
}

func (a *activation) getAgent() (any, error) {
	if !a.ofAgent() {
		return nil, errOfServer
	}
	return a.getTarget()
}

func (a *activation) getMethod() (any, error) {
	if a.ofAgent() {
		return nil, errOfAgent
	}
	if a.list {
		// A tool has one use. The others can be read, subscribed to, completed: a list does not know which.
		if a.call.Kind != Tool {
			return unknown, nil
		}
		return once(&a.method, "tools/call"), nil
	}
	return once(&a.method, a.call.Method), nil
}

// partial reports whether something is unknown that a rule may come out either way by.
func (a *activation) partial() bool { return a.list || a.call.past }

func (a *activation) getName() (any, error)   { return once(&a.name, a.call.Name), nil }
func (a *activation) getTarget() (any, error) { return once(&a.target, a.call.Target), nil }

// getToolName is the name of the tool, or of the tool that made the task.
func (a *activation) getToolName() (any, error) {
	if a.call.Kind == Task {
		return types.String(a.call.Tool), nil
	}
	return a.getName()
}

func (a *activation) getArguments() (any, error) {
	if a.partial() {
		return unknown, nil
	}
	if a.arguments == nil {
		a.arguments = a.readArguments()
	}
	return a.arguments, nil
}

func (a *activation) readArguments() ref.Val {
	if len(a.call.Arguments) == 0 || string(a.call.Arguments) == "null" { // as some SDKs write no arguments
		return emptyMap
	}
	if len(a.call.Arguments) > maxArgumentsSize {
		a.invalid = fmt.Errorf("arguments: more than the %d bytes that a policy reads", maxArgumentsSize)
		return types.WrapErr(a.invalid)
	}
	m, err := decodeObject(a.call.Arguments, a.names)
	if err != nil {
		a.invalid = fmt.Errorf("arguments: %w", err)
		return types.WrapErr(a.invalid)
	}
	return toCEL(m)
}

// hasAnnotations: null is what some servers write for none.
func (a *activation) hasAnnotations() bool {
	return len(a.call.Annotations) > 0 && a.call.Annotations[0] != 'n'
}

func (a *activation) getAnnotations() (any, error) {
	if a.annotations == nil {
		if !a.hasAnnotations() {
			return nil, errors.New("mcp.tool.annotations: the target has listed none")
		}
		m, err := decodeObject(a.call.Annotations, nil)
		if err != nil {
			a.annotations = types.WrapErr(fmt.Errorf("mcp.tool.annotations: %w", err))
		} else {
			a.annotations = toCEL(m)
		}
	}
	return a.annotations, nil
}

const errNoRequest = unreadable("request, and the call came without an HTTP request")

// getStartTime is when the request began, the same for all rules and items of it.
func (a *activation) getStartTime() (any, error) {
	if a.call.HTTP == nil {
		return nil, errNoRequest
	}
	if a.call.Start.IsZero() {
		a.call.Start = time.Now()
	}
	return types.Timestamp{Time: a.call.Start.UTC()}, nil
}

func (a *activation) getRequest(field string) (any, error) {
	r := a.call.HTTP
	if r == nil {
		return nil, errNoRequest
	}
	scheme := "http"
	if r.TLS != nil {
		scheme = "https"
	}
	switch field {
	case "method":
		return types.String(r.Method), nil
	case "scheme":
		return types.String(scheme), nil
	case "host":
		return types.String(strings.ToLower(r.Host)), nil
	case "path":
		return types.String(r.URL.Path), nil
	case "pathAndQuery":
		return types.String(r.URL.RequestURI()), nil
	case "uri":
		return types.String(scheme + "://" + strings.ToLower(r.Host) + r.URL.RequestURI()), nil
	case "headers":
		return headers{r.Header}, nil
	}
	return nil, fmt.Errorf("request.%s: no such field", field)
}
