package resource

import (
	"fmt"
	"net/http"
	"net/netip"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"google.golang.org/protobuf/types/known/durationpb"

	adminv1 "github.com/sluicegate/sluice/proto/gen/sluice/admin/v1"
	policyv1 "github.com/sluicegate/sluice/proto/gen/sluice/policy/v1"
)

// spec checks the values of an object by themselves, and its references.
func (v *validator) spec(o *adminv1.Object) {
	switch Kind(o) {
	case "group":
		v.group(o, o.GetGroup())
	case "tenant":
		v.duration(o, "sessionTtl", o.GetTenant().GetSessionTtl())
	case "listener":
		v.listener(o, o.GetListener())
	case "route":
		v.route(o, o.GetRoute())
	case "backend":
		v.backend(o)
	case "target":
		v.target(o, o.GetTarget())
	case "secret":
		v.secret(o, o.GetSecret())
	}
}

func (v *validator) group(o *adminv1.Object, g *adminv1.Group) {
	for i, t := range g.GetTenants() {
		if !objectName.MatchString(t) {
			v.fail(o, index("tenants", i), fmt.Sprintf("%q is no tenant's name", t), betterName(t))
		}
		if slices.Index(g.GetTenants(), t) < i {
			v.fail(o, index("tenants", i), fmt.Sprintf("%q is given twice", t), "remove one")
		}
	}
}

func (v *validator) secret(o *adminv1.Object, s *adminv1.Secret) {
	switch s.GetValue().GetSource().(type) {
	case nil:
		if s.GetValue() == nil { // an empty one is a credential without a source
			v.fail(o, "", `"value" is missing`, "")
		}
	case *policyv1.Credential_Value, *policyv1.Credential_Sealed:
	default:
		v.fail(o, "value", "a Secret holds its value itself", "name the file, variable or other Secret where the credential is used")
	}
}

func (v *validator) listener(o *adminv1.Object, l *adminv1.Listener) {
	v.port(o, "port", l.GetPort())
	v.hostnames(o, l.GetHostnames())
	if l.GetTls() == nil {
		return
	}
	for field, c := range map[string]*policyv1.Credential{"cert": l.GetTls().GetCert(), "key": l.GetTls().GetKey()} {
		if c == nil {
			v.fail(o, "tls", fmt.Sprintf("%q is missing", field), "")
		}
	}
	if m := l.GetTls().GetMinVersion(); m != "" && m != "1.2" && m != "1.3" {
		v.fail(o, "tls.minVersion", fmt.Sprintf("%q is no TLS version to ask for", m), `write "1.2" or "1.3"`)
	}
}

func (v *validator) port(o *adminv1.Object, field string, port uint32) {
	if port < 1 || port > 65535 {
		v.fail(o, field, fmt.Sprintf("%d is no port", port), "a port is from 1 to 65535")
	}
}

func (v *validator) route(o *adminv1.Object, r *adminv1.Route) {
	v.reference(o, "listener", "listener", r.GetListener())
	v.hostnames(o, r.GetHostnames())
	if p := r.GetSsePath(); p != "" && p != "off" && (!strings.HasPrefix(p, "/") || p == "/" || strings.ContainsAny(p, "?#% \t\r\n")) {
		v.fail(o, "ssePath", fmt.Sprintf("%q is no end of a path", p), "write ssePath: /sse, or off")
	}
	for i, m := range r.GetMatches() {
		v.match(o, index("matches", i), m)
	}
	if len(r.GetBackends()) == 0 {
		v.fail(o, "backends", "the route has no backends", "write backends: [{mcp: {targets: […]}}]")
	}
	total, seen := uint64(0), map[string]bool{}
	for i, b := range r.GetBackends() {
		field := index("backends", i)
		v.reference(o, field+".backend", "backend", b.GetBackend())
		if seen[b.GetBackend()] {
			v.fail(o, field, fmt.Sprintf("backend %q is given twice", b.GetBackend()), "add up the weights")
		}
		seen[b.GetBackend()] = true
		total += uint64(b.GetWeight())
	}
	if total == 0 && len(r.GetBackends()) > 0 {
		v.fail(o, "backends", "all weights are 0", "give one backend a weight")
	}
}

// maxPath is room for any path that clients send, and less than the store's keys, of which a claimed path is a part, may have.
const maxPath = 8 << 10

func (v *validator) short(o *adminv1.Object, field, path string) {
	if len(path) > maxPath {
		v.fail(o, field, fmt.Sprintf("the path has %d bytes", len(path)), fmt.Sprintf("use at most %d", maxPath))
	}
}

func (v *validator) match(o *adminv1.Object, field string, m *adminv1.RouteMatch) {
	path := func(kind, p string) {
		if !strings.HasPrefix(p, "/") {
			v.fail(o, field+".path."+kind, fmt.Sprintf("the path %q does not begin with /", p), "")
		} else if strings.ContainsAny(p, "?#") {
			v.fail(o, field+".path."+kind, fmt.Sprintf("the path %q has a ? or #", p), "a path ends before them")
		}
		v.short(o, field+".path."+kind, p)
	}
	switch p := m.GetPath().GetPath().(type) {
	case *adminv1.PathMatch_Exact:
		path("exact", p.Exact)
	case *adminv1.PathMatch_PathPrefix:
		path("pathPrefix", p.PathPrefix)
	case *adminv1.PathMatch_Regex:
		v.regex(o, field+".path.regex", p.Regex)
		v.short(o, field+".path.regex", p.Regex)
	case nil:
		if m.GetPath() != nil {
			v.fail(o, field+".path", "one of exact, pathPrefix or regex must be set", "")
		}
	}
	for i, h := range m.GetHeaders() {
		at := index(field+".headers", i)
		if !isToken(h.GetName()) {
			v.fail(o, at+".name", fmt.Sprintf("%q is no header's name", h.GetName()), "")
		}
		switch value := h.GetValue().GetValue().(type) {
		case nil:
			v.fail(o, at, `"value" is missing`, "write value: {exact: …} or {regex: …}")
		case *adminv1.HeaderValueMatch_Regex:
			v.regex(o, at+".value.regex", value.Regex)
		}
	}
}

func (v *validator) regex(o *adminv1.Object, field, pattern string) {
	if _, err := regexp.Compile(pattern); err != nil {
		v.fail(o, field, strings.TrimPrefix(err.Error(), "error parsing regexp: "), "patterns are RE2")
	} else if pattern == "" {
		v.fail(o, field, "the pattern is empty", "")
	}
}

// isToken tells whether a name may be a header's (RFC 9110 §5.6.2).
func isToken(name string) bool {
	for _, c := range []byte(name) {
		letter := 'a' <= c|0x20 && c|0x20 <= 'z' || '0' <= c && c <= '9'
		if !letter && !strings.ContainsRune("!#$%&'*+-.^_`|~", rune(c)) {
			return false
		}
	}
	return name != ""
}

// maxSessionTargets is how many upstream ids fit comfortably into a session's own, which holds them all.
const maxSessionTargets = 40

func (v *validator) backend(o *adminv1.Object) {
	sessions := 0
	for _, t := range v.chains.targets[o.GetName()] {
		if versions := t.GetTarget().GetProtocolVersions(); len(versions) != 1 || versions[0] != statelessVersion {
			sessions++
		}
	}
	if sessions > maxSessionTargets {
		v.tell(severityWarning, o, "", fmt.Sprintf("%d of the targets may keep sessions, and more than %d may not fit into a session id", sessions, maxSessionTargets),
			fmt.Sprintf("split the backend, or set protocolVersions: [%q] on targets that are stateless", statelessVersion))
	}
	if !v.Partial && len(v.chains.routes[o.GetName()]) == 0 {
		v.tell(severityNote, o, "", fmt.Sprintf("no route leads to backend %q", o.GetName()), "")
	}
}

const statelessVersion = "2026-07-28"

// versions are the revisions of MCP that a target may be said to speak.
var versions = []string{"2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25", statelessVersion}

func (v *validator) target(o *adminv1.Object, t *adminv1.Target) {
	v.reference(o, "backend", "backend", t.GetBackend())
	switch tr := t.GetTransport().(type) {
	case *adminv1.Target_Mcp:
		v.transport(o, "mcp", tr.Mcp)
	case *adminv1.Target_Sse:
		v.transport(o, "sse", tr.Sse)
	case *adminv1.Target_A2A:
		v.transport(o, "a2a", tr.A2A)
	case *adminv1.Target_Stdio:
		v.stdio(o, tr.Stdio)
		if len(t.GetForwardHeaders()) > 0 {
			v.fail(o, "forwardHeaders", "a stdio target receives no headers", "remove it")
		}
	default:
		v.fail(o, "", "one of mcp, sse, stdio or a2a must be set", "")
	}
	v.duration(o, "listCache", t.GetListCache())
	v.duration(o, "timeout", t.GetTimeout())
	if c := t.GetConcurrency(); c != nil {
		if c.GetMax() == 0 {
			v.fail(o, "concurrency.max", "0 calls at a time would be none ever", "give a number above 0, or remove concurrency")
		}
		v.duration(o, "concurrency.wait", c.GetWait())
	}
	if s := t.GetSessionScope(); s != nil {
		v.sessionScope(o, s, t.GetProtocolVersions())
	}
	for i, version := range t.GetProtocolVersions() {
		if !slices.Contains(versions, version) {
			hint := didYouMean(version, versions)
			if hint == "" {
				hint = "valid are " + strings.Join(versions, ", ")
			}
			v.fail(o, index("protocolVersions", i), fmt.Sprintf("%q is no revision of MCP that is known here", version), hint)
		}
	}
	for i, h := range t.GetForwardHeaders() {
		v.forwardHeader(o, index("forwardHeaders", i), h)
	}
}

// sessionScope checks who shares sessions.
func (v *validator) sessionScope(o *adminv1.Object, s *adminv1.SessionScope, versions []string) {
	switch h := s.GetHeader(); {
	case h == "" && s.GetShare() == adminv1.SessionScope_SHARE_UNSPECIFIED:
		v.fail(o, "sessionScope", "says nothing", "write principal, none or {header: NAME}, or remove it")
	case h == "":
	case s.GetShare() != adminv1.SessionScope_SHARE_UNSPECIFIED:
		v.fail(o, "sessionScope", "share and header cannot both be set", "remove one")
	case !isToken(h):
		v.fail(o, "sessionScope.header", fmt.Sprintf("%q is no header's name", h), "")
	}
	if len(versions) == 1 && versions[0] == statelessVersion {
		v.fail(o, "sessionScope", fmt.Sprintf("a target that speaks %s alone has no sessions", statelessVersion), "remove it")
	}
}

// forwardHeader refuses what would hand a client's credentials or our own framing to a target.
func (v *validator) forwardHeader(o *adminv1.Object, field, name string) {
	switch canonical := http.CanonicalHeaderKey(name); {
	case !isToken(name):
		v.fail(o, field, fmt.Sprintf("%q is no header's name", name), "")
	case canonical == "Authorization":
		v.fail(o, field, "a client's Authorization is never forwarded as it is", "use policies.backendAuth: {passthrough: {}}")
	case slices.Contains([]string{"Cookie", "Host", "Connection", "Content-Length", "Transfer-Encoding", "Upgrade", "Te", "Trailer", "Keep-Alive"}, canonical),
		strings.HasPrefix(canonical, "Proxy-"), strings.HasPrefix(canonical, "X-Forwarded-"), strings.HasPrefix(canonical, "Mcp-"):
		v.fail(o, field, fmt.Sprintf("%s cannot be forwarded", canonical), "remove it")
	}
}

func (v *validator) transport(o *adminv1.Object, field string, t *adminv1.HttpTransport) {
	if _, err := netip.ParseAddr(t.GetHost()); err != nil && !hostPattern.MatchString(t.GetHost()) {
		v.fail(o, field+".host", fmt.Sprintf("%q is no host name or address", t.GetHost()), "")
	}
	v.port(o, field+".port", t.GetPort())
	if p := t.GetPath(); !strings.HasPrefix(p, "/") || strings.ContainsAny(p, "# \t\r\n") {
		v.fail(o, field+".path", fmt.Sprintf("%q is no path", p), "it begins with / and has no blanks and no #")
	}
}

func (v *validator) stdio(o *adminv1.Object, s *adminv1.StdioTransport) {
	if s.GetCmd() == "" {
		v.fail(o, "stdio", `"cmd" is missing`, "")
	}
	if words := strings.Fields(s.GetCmd()); len(words) > 1 && !strings.ContainsRune(words[0], '/') { // a path may well hold blanks
		v.tell(severityWarning, o, "stdio.cmd", fmt.Sprintf("%q is the name of one program: no shell takes it apart", s.GetCmd()),
			fmt.Sprintf("write cmd: %s and args: [%s]", words[0], strings.Join(words[1:], ", ")))
	}
	if s.GetCwd() != "" && !filepath.IsAbs(s.GetCwd()) {
		v.fail(o, "stdio.cwd", fmt.Sprintf("%q is no absolute path", s.GetCwd()), "")
	}
	for name, value := range s.GetEnv() {
		if strings.ContainsAny(name, "=\x00") || name == "" || strings.Contains(value, "\x00") {
			v.fail(o, "stdio.env."+name, fmt.Sprintf("%q cannot be an environment variable", name), "")
		}
	}
	for i, arg := range append([]string{s.GetCmd(), s.GetCwd()}, s.GetArgs()...) {
		if strings.Contains(arg, "\x00") {
			v.fail(o, "stdio", fmt.Sprintf("cmd, cwd or argument %d holds a NUL byte", i-1), "")
		}
	}
	v.duration(o, "stdio.idle", s.GetIdle())
}

// duration refuses what is set and not above zero: nobody means it.
func (v *validator) duration(o *adminv1.Object, field string, d *durationpb.Duration) {
	if d != nil && (d.CheckValid() != nil || d.AsDuration() <= 0) {
		v.fail(o, field, "the duration is not above zero", "remove it for the default")
	}
}
