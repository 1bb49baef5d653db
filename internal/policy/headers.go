package policy

import (
	"net/http"
	"strings"

	"golang.org/x/net/http/httpguts"

	policyv1 "github.com/sluicegate/sluice/proto/gen/sluice/policy/v1"
)

// headerModifier is a compiled requestHeaderModifier or responseHeaderModifier. Values are literal: what
// looks like CEL in one is sent as it stands.
type headerModifier struct {
	add, set []header // in order of names
	remove   []string
}

type header struct{ name, value string }

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

func compileHeaders(m map[string]string, field string, errs *problems) []header {
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
		if !httpguts.ValidHeaderFieldValue(m[name]) || strings.TrimSpace(m[name]) != m[name] {
			errs.add(at, "the value holds what no header may: a line break, another control character, or a blank at an end")
			continue
		}
		out = append(out, header{canonical, m[name]})
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

func (m *headerModifier) apply(h http.Header) {
	if m == nil {
		return
	}
	for _, a := range m.add {
		h[a.name] = append(h[a.name], a.value)
	}
	for _, s := range m.set {
		h[s.name] = []string{s.value}
	}
	for _, name := range m.remove {
		delete(h, name)
	}
}

// Response applies responseHeaderModifier to what the client sees of an answer of this target.
func (t *Target) Response(h http.Header) {
	if t != nil {
		t.response.apply(h)
	}
}
