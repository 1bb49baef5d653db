package policy

import (
	"errors"
	"net/http"
	"slices"
	"strings"

	"golang.org/x/net/http/httpguts"
	"google.golang.org/protobuf/proto"

	policyv1 "github.com/sluicegate/sluice/proto/gen/sluice/policy/v1"
)

// headerModifier is a compiled requestHeaderModifier or responseHeaderModifier.
type headerModifier struct {
	add, set []header // in order of names
	remove   []string
	form     string // the same for modifiers that say the same
	dynamic  bool   // a value is an expression
}

type header struct {
	name  string
	value text
	field string // for errors of a call, e.g. `requestHeaderModifier.set.X-Tenant`
}

func compileHeaderModifier(m *policyv1.HeaderModifier, field string, errs *problems) *headerModifier {
	form, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil { // a string that is not UTF-8, which no decoded message has
		errs.add(field, "%v", err)
	}
	out := &headerModifier{
		add:  compileHeaders(m.GetAdd(), field+".add", errs),
		set:  compileHeaders(m.GetSet(), field+".set", errs),
		form: string(form),
	}
	for _, name := range m.GetRemove() {
		if checkHeaderName(name, field+".remove", errs) {
			out.remove = append(out.remove, http.CanonicalHeaderKey(name))
		}
	}
	out.dynamic = slices.ContainsFunc(slices.Concat(out.add, out.set), func(h header) bool { return h.value.rule != nil })
	return out
}

// compileAnswerModifier is compileHeaderModifier for a responseHeaderModifier, which has more to leave alone.
func compileAnswerModifier(m *policyv1.HeaderModifier, field string, errs *problems) *headerModifier {
	check := func(name, at string) {
		canonical := http.CanonicalHeaderKey(name)
		owner := protectedAnswers[canonical]
		switch {
		case strings.HasPrefix(canonical, "Access-Control-"):
			owner = "cors"
		case strings.HasPrefix(canonical, "X-Accel-"):
			owner = "servers in front of the proxy"
		}
		if owner != "" {
			errs.add(field+at, "%s belongs to %s and cannot be changed", canonical, owner)
		}
	}
	for _, name := range sortedKeys(m.GetAdd()) {
		check(name, ".add."+name)
	}
	for _, name := range sortedKeys(m.GetSet()) {
		check(name, ".set."+name)
	}
	for _, name := range m.GetRemove() {
		check(name, ".remove")
	}
	return compileHeaderModifier(m, field, errs)
}

func compileHeaders(m map[string]*policyv1.Value, field string, errs *problems) []header {
	var out []header
	spelled := map[string]string{}
	for _, name := range sortedKeys(m) {
		at := field + "." + name
		if !checkHeaderName(name, at, errs) {
			continue
		}
		canonical := http.CanonicalHeaderKey(name)
		if other, twice := spelled[canonical]; twice {
			errs.add(at, "is the same header as %q; keep one of them", other)
			continue
		}
		spelled[canonical] = name
		value := compileText(m[name], at, errs)
		if value.rule == nil && !validHeaderValue(value.literal) {
			errs.add(at, "%v", errHeaderValue)
			continue
		}
		out = append(out, header{canonical, value, strings.TrimPrefix(at, "policies.")})
	}
	return out
}

// protectedHeaders belong to the connection, the framing of a message or its form: whoever sends the
// message writes them. Mcp-* and what is in the same spirit is in checkHeaderName.
var protectedHeaders = map[string]string{
	"Connection": "the connection", "Keep-Alive": "the connection", "Proxy-Connection": "the connection",
	"Proxy-Authenticate": "the connection", "Proxy-Authorization": "the connection", "Proxy-Authentication-Info": "the connection",
	"Te": "the connection", "Trailer": "the connection", "Upgrade": "the connection", "Http2-Settings": "the connection",
	"Transfer-Encoding": "the framing of the message", "Content-Length": "the framing of the message",
	"Content-Encoding": "the framing of the message", "Content-Range": "the framing of the message", "Expect": "the framing of the message",
	"Host":         "the target's address",
	"Content-Type": "the protocol, which MCP fixes", "Accept": "the protocol, which MCP fixes", "Accept-Encoding": "the protocol, which MCP fixes",
	"Last-Event-Id": "the protocol, which MCP fixes",
}

// protectedAnswers are those that clients and proxies in front act on as the listener's own word. A target's policy is
// not to lift what cors says of the route, nor to send a client to another authorization server, nor to make a
// server in front hand out files of its own. Set-Cookie is not among them: targets' own cookies never reach a client,
// and one that an operator writes is meant.
var protectedAnswers = map[string]string{
	"Www-Authenticate": "authentication (jwtAuth, apiKey and the like)", "Authentication-Info": "authentication (jwtAuth, apiKey and the like)",
	"Vary": "the proxy, which knows what its answers depend on", "X-Sendfile": "servers in front of the proxy",
}

func checkHeaderName(name, field string, errs *problems) bool {
	if !httpguts.ValidHeaderFieldName(name) {
		errs.add(field, "%q is no header name", name)
		return false
	}
	canonical := http.CanonicalHeaderKey(name)
	if owner, ok := protectedHeaders[canonical]; ok {
		errs.add(field, "%s belongs to %s and cannot be changed", canonical, owner)
		return false
	}
	if strings.HasPrefix(canonical, "Mcp-") || strings.HasPrefix(canonical, "Sluice-") {
		errs.add(field, "%s belongs to the protocol, which writes it from the message; it cannot be changed", canonical)
		return false
	}
	return true
}

var errHeaderValue = errors.New("the value holds what no header may: a line break, another control character, or a blank at an end")

func validHeaderValue(v string) bool {
	return httpguts.ValidHeaderFieldValue(v) && strings.TrimSpace(v) == v
}

// A ValueError is a request that a policy refuses because one of its values could not be had for it. It names the
// policy's field and what the expression could not do, never what it read, so that clients may see it too.
type ValueError struct {
	Field  string // e.g. `requestHeaderModifier.set.X-Tenant`
	Reason string
	// Invalid is set if the value had to read arguments that rules refuse to read: a key given twice, a key that differs
	// from a read one in case alone, no strict JSON. Answer -32600 to it.
	Invalid error
}

func (e *ValueError) Error() string {
	if e.Invalid != nil {
		return e.Invalid.Error()
	}
	return e.Field + ": " + e.Reason
}

// of is the value for one call.
func (h *header) of(c *Call) (string, error) {
	if h.value.rule == nil {
		return h.value.literal, nil
	}
	v, err := h.value.of(c)
	if err == nil && !validHeaderValue(v) {
		err = errHeaderValue
	}
	if err != nil {
		out := &ValueError{Field: h.field, Reason: err.Error()}
		if invalid, ok := errors.AsType[*invalidArguments](err); ok {
			out.Invalid = invalid.error
		}
		return "", out
	}
	return v, nil
}

// apply changes h for one call, by all of m or nothing: a value that cannot be had is a [ValueError], and nothing of m
// may be missing in silence.
func (m *headerModifier) apply(h http.Header, c *Call) error {
	if m == nil {
		return nil
	}
	var few [16]string
	values := few[:0]
	for _, of := range [2][]header{m.add, m.set} {
		for i := range of {
			v, err := of[i].of(c)
			if err != nil {
				return err
			}
			values = append(values, v)
		}
	}
	for i := range m.add {
		name := m.add[i].name
		old := h[name]
		h[name] = append(old[:len(old):len(old)], values[i]) // what is there may be shared with other requests
	}
	// One array for all that is set, instead of one for each.
	single := make([]string, len(m.set))
	for i := range m.set {
		single[i] = values[len(m.add)+i]
		h[m.set[i].name] = single[i : i+1 : i+1]
	}
	for _, name := range m.remove {
		delete(h, name)
	}
	return nil
}

// Response applies responseHeaderModifier to what the client sees of an answer of this target to a call: a result, an
// error of the target's own, an event stream, the 202 of a notification. What the proxy itself answers (a refusal, a
// target that cannot be reached, ping) carries none of it. Of an answer merged from several targets see
// [SameResponse]. An error is a [ValueError]; h is unchanged then.
func (t *Target) Response(h http.Header, c *Call) error {
	if t == nil {
		return nil
	}
	return t.response.apply(h, c)
}

// Answerable reports what would keep [Target.Response] from being applied to the answer to a call, before the target
// acts on the call: a [ValueError], or nil.
func (t *Target) Answerable(c *Call) error {
	if t == nil || t.response == nil || !t.response.dynamic {
		return nil
	}
	return t.response.apply(http.Header{}, c)
}

// SameResponse reports whether a's and b's responseHeaderModifier are the same, as those are that both inherit from one
// level. It is the rule for an answer that is made of several targets' answers (initialize, discover, lists, merged
// streams): it carries the modifier that is the same for all targets of the backend, and none if they differ in it,
// for then no one of them could speak for the others.
func SameResponse(a, b *Target) bool {
	return a.responseForm() == b.responseForm()
}

func (t *Target) responseForm() string {
	if t == nil || t.response == nil {
		return ""
	}
	return "=" + t.response.form
}
