package policy

import (
	"errors"
	"fmt"
	"net/http"
	"strings"

	"golang.org/x/net/http/httpguts"

	policyv1 "github.com/sluicegate/sluice/proto/gen/sluice/policy/v1"
)

// headerModifier is a compiled requestHeaderModifier or responseHeaderModifier.
type headerModifier struct {
	add, set []header // in order of names
	remove   []string
}

type header struct {
	name  string
	value text
}

func compileHeaderModifier(m *policyv1.HeaderModifier, field string, errs *problems) *headerModifier {
	out := &headerModifier{
		add: compileHeaders(m.GetAdd(), field+".add", errs),
		set: compileHeaders(m.GetSet(), field+".set", errs),
	}
	for _, name := range m.GetRemove() {
		at := field + ".remove"
		if checkHeaderName(name, at, errs) {
			out.remove = append(out.remove, http.CanonicalHeaderKey(name))
		}
	}
	return out
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
			errs.add(at, "the value holds what no header may: a line break, another control character, or a blank at an end")
			continue
		}
		out = append(out, header{canonical, value})
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

func validHeaderValue(v string) bool {
	return httpguts.ValidHeaderFieldValue(v) && strings.TrimSpace(v) == v
}

// of is the value for one call.
func (h *header) of(c *Call) (string, error) {
	if h.value.rule == nil {
		return h.value.literal, nil
	}
	v, err := h.value.of(c)
	if err == nil && !validHeaderValue(v) {
		err = errors.New("the value holds what no header may: a line break, another control character, or a blank at an end")
	}
	if err != nil {
		return "", fmt.Errorf("%s: %w", h.value.rule.field, err)
	}
	return v, nil
}

// apply changes h for one call. A value that cannot be had is an error, and nothing of m may be missing in silence.
func (m *headerModifier) apply(h http.Header, c *Call) error {
	if m == nil {
		return nil
	}
	for i := range m.add {
		a := &m.add[i]
		v, err := a.of(c)
		if err != nil {
			return err
		}
		h[a.name] = append(h[a.name], v)
	}
	for i := range m.set {
		s := &m.set[i]
		v, err := s.of(c)
		if err != nil {
			return err
		}
		h[s.name] = []string{v}
	}
	for _, name := range m.remove {
		delete(h, name)
	}
	return nil
}

// Response applies responseHeaderModifier to what the client sees of an answer of this target to a call. An error says
// which value could not be had; h is then not to be sent on.
func (t *Target) Response(h http.Header, c *Call) error {
	if t == nil {
		return nil
	}
	return t.response.apply(h, c)
}
