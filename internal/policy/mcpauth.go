package policy

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	policyv1 "github.com/sluicegate/sluice/proto/gen/sluice/policy/v1"
)

// WellKnownResource is where the metadata of protected resources is (RFC 9728 section 3.1): with the resource's path
// behind it, or alone for the one without a path.
const WellKnownResource = "/.well-known/oauth-protected-resource"

// An Endpoint is what the configuration says of the URLs by which a route is reached.
type Endpoint struct {
	// Port is the listener's.
	Port uint16
	// HostKnown says that no request gets to the route whose Host header is not a name which the configuration spells
	// out, or a loopback name on a loopback listener.
	HostKnown bool
	// Path returns the part of a request's path that is the route's own. If nil: all of it.
	Path func(path string) string
}

// mcpAuth makes a route a protected resource, as MCP's authorization has it: a jwtAuth whose tokens are for the route,
// and whose challenges say where to get one.
type mcpAuth struct {
	mode policyv1.JwtAuth_Mode
	*verifier
	scopes   []string
	resource *url.URL // nil: the URL that the client used
	own      []string // the normal form of resource; nil as that is
	anyAud   bool     // each provider names its audiences, so the resource decides nothing
	endpoint *Endpoint
	metadata map[string]json.RawMessage // without `resource` where that is nil
}

func compileMcpAuth(m *policyv1.McpAuthentication, r Resolver, field string, errs *problems) *mcpAuth {
	providers := make([]*policyv1.JwtProvider, len(m.GetProviders()))
	anyAud := true
	for i, p := range m.GetProviders() {
		providers[i] = &policyv1.JwtProvider{Issuer: p.GetIssuer(), Audiences: p.GetAudiences(), RequiredClaims: p.GetRequiredClaims(), Jwks: ProviderJwks(p)}
		anyAud = anyAud && len(p.GetAudiences()) > 0
	}
	out := &mcpAuth{scopes: m.GetScopes(), anyAud: anyAud, endpoint: r.Endpoint, verifier: compileVerifier(providers, r, field, errs)}
	if out.mode = policyv1.JwtAuth_MODE_STRICT; m.GetMode() != policyv1.JwtAuth_MODE_UNSPECIFIED {
		out.mode = compileMode(m.GetMode(), field+".mode", errs)
	}
	for i, s := range m.GetScopes() {
		if s == "" || !validScope(s) {
			errs.add(fmt.Sprintf("%s.scopes[%d]", field, i), "%q is no scope: RFC 6749 section 3.3 has printable ASCII without blanks, quotes and backslashes", s)
		}
	}
	out.compileMetadata(m, field, errs)
	return out
}

// compileMetadata makes the document (RFC 9728 section 2), as far as it is the same for all who ask.
func (m *mcpAuth) compileMetadata(p *policyv1.McpAuthentication, field string, errs *problems) {
	var issuers []string
	for _, provider := range p.GetProviders() {
		if !slices.Contains(issuers, provider.GetIssuer()) {
			issuers = append(issuers, provider.GetIssuer())
		}
	}
	m.metadata = map[string]json.RawMessage{"authorization_servers": mustMarshal(issuers), "bearer_methods_supported": json.RawMessage(`["header"]`)}
	if len(m.scopes) > 0 {
		m.metadata["scopes_supported"] = mustMarshal(m.scopes)
	}
	resource, at := p.GetResource(), field+".resource"
	given := map[string]string{} // by the member's name: as it was written
	for _, name := range sortedKeys(p.GetResourceMetadata().GetFields()) {
		value := p.GetResourceMetadata().GetFields()[name]
		member, place := snakeCase(name), field+".resourceMetadata."+name
		if before, twice := given[member]; twice {
			errs.add(place, "is the same member as %s", before)
		}
		given[member] = name
		m.metadata[member] = mustMarshal(value.AsInterface())
		switch member {
		case "resource":
			if resource != "" && resource != value.GetStringValue() {
				errs.add(place, "differs from `resource`; remove one")
			}
			resource, at = value.GetStringValue(), place
			if resource == "" {
				errs.add(place, "is no URL")
			}
		case "authorization_servers", "scopes_supported", "bearer_methods_supported":
			list := value.GetListValue().GetValues()
			for _, e := range list {
				if e.GetStringValue() == "" {
					list = nil
				}
			}
			if len(list) == 0 {
				errs.add(place, "is no list of names")
			}
		}
	}
	if resource == "" {
		return
	}
	u := compileResource(resource, at, errs)
	if u == nil {
		return
	}
	m.resource, m.own = u, []string{normalResource(resource)}
	m.metadata["resource"] = mustMarshal(resource)
}

// compileResource is a resource's identifier, nil if it is none.
func compileResource(resource, field string, errs *problems) *url.URL {
	u, err := url.Parse(resource)
	if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Hostname() == "" || u.User != nil || strings.ContainsAny(resource, "?# \t\r\n\"\\") {
		errs.add(field, "%q is no http or https URL without user, query and fragment (RFC 8707 section 2)", resource)
		return nil
	}
	return u
}

func mustMarshal(v any) json.RawMessage {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // strings and what google.protobuf.Struct holds can be marshalled
	}
	return b
}

// snakeCase is the name of a member of metadata, which agentgateway's users write in the manner of YAML.
func snakeCase(name string) string {
	var b strings.Builder
	for _, c := range name {
		if 'A' <= c && c <= 'Z' {
			b.WriteByte('_')
			c += 'a' - 'A'
		}
		b.WriteRune(c)
	}
	return b.String()
}

// check returns the principal of the token that r shows: nil without a token, *AuthError for a bad one or one that lacks
// a scope.
func (m *mcpAuth) check(r *http.Request) (p *Principal, shown bool, err *AuthError) {
	own := m.own
	if m.anyAud {
		own = nil
	} else if own == nil {
		base, ok := m.base(r)
		if !ok {
			return nil, true, hostUnknown
		}
		own = []string{normalResource(base + m.routePath(r.URL.Path)), normalResource(base + r.URL.EscapedPath())}
	}
	token, shown := bearer.get(r)
	if !shown {
		return nil, false, nil
	}
	if p, err = m.verify(token, own); err != nil {
		if err.Status == http.StatusUnauthorized {
			err.Challenge = m.challenge(r, "invalid_token", err.Reason)
		}
		return nil, true, err
	}
	if len(m.scopes) > 0 {
		held := scopesOf(p)
		if slices.ContainsFunc(m.scopes, func(s string) bool { return !slices.Contains(held, s) }) {
			const why = "the token lacks a scope"
			return nil, true, &AuthError{Status: http.StatusForbidden, Challenge: m.challenge(r, "insufficient_scope", why), Reason: why}
		}
	}
	return p, true, nil
}

// hostUnknown: who chooses the Host header would choose the audience, and so pass with a token for somebody else.
var hostUnknown = &AuthError{Status: http.StatusServiceUnavailable,
	Reason: "neither the route nor its listener names its hosts, so nothing says which tokens are for it: set mcpAuthentication's resource, or audiences, or hostnames without wildcards"}

// challenge is RFC 6750 section 3 with RFC 9728 section 5.1; code is empty for who showed nothing. Descriptions are
// constants, and scopes and URLs hold no quotes: no quoting.
func (m *mcpAuth) challenge(r *http.Request, code, description string) string {
	var b strings.Builder
	b.WriteString(`Bearer resource_metadata="` + m.metadataURL(r) + `"`)
	if len(m.scopes) > 0 {
		b.WriteString(`, scope="` + strings.Join(m.scopes, " ") + `"`)
	}
	if code != "" {
		b.WriteString(`, error="` + code + `", error_description="` + description + `"`)
	}
	return b.String()
}

// metadataURL is where the sender of r finds the document: at the resource's own host, or where he sent r.
func (m *mcpAuth) metadataURL(r *http.Request) string {
	return metadataURL(m.resource, r)
}

// metadataURL holds nothing that a quoted string of a header may not. If resource is nil, it is the URL of r.
func metadataURL(resource *url.URL, r *http.Request) string {
	if resource != nil {
		return resource.Scheme + "://" + resource.Host + WellKnownResource + withoutRoot(resource.EscapedPath())
	}
	return ownURL(r, WellKnownResource+withoutRoot(r.URL.Path))
}

// ownURL is the URL by which the sender of r reaches path, at the host that he named.
func ownURL(r *http.Request, path string) string {
	u := url.URL{Host: strings.ToLower(r.Host), Path: path} // escapes what no header may hold
	return schemeOf(r) + "://" + strings.ReplaceAll(u.Host, `"`, "%22") + u.EscapedPath()
}

// withoutRoot is a path as it stands behind [WellKnownResource] (RFC 9728 section 3.1).
func withoutRoot(path string) string {
	if path == "/" {
		return ""
	}
	return path
}

func schemeOf(r *http.Request) string {
	if r.TLS != nil {
		return "https"
	}
	return "http"
}

// base is scheme, host and port by which r reached the listener. The port is the listener's, whatever the Host header
// says, for another server of the host has tokens of its own.
func (m *mcpAuth) base(r *http.Request) (string, bool) {
	if m.endpoint == nil || !m.endpoint.HostKnown {
		return "", false
	}
	host, _, err := net.SplitHostPort(r.Host)
	if err != nil {
		host = strings.Trim(r.Host, "[]")
	}
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	scheme := schemeOf(r)
	if port := strconv.Itoa(int(m.endpoint.Port)); port != portOf("", scheme) {
		host += ":" + port
	}
	return scheme + "://" + host, true
}

func (m *mcpAuth) routePath(path string) string {
	if m.endpoint == nil || m.endpoint.Path == nil {
		return path
	}
	return m.endpoint.Path(path)
}

// normalResource is a resource's identifier in the form that is compared (RFC 3986 section 6.2.2, .3): scheme and host in
// lower case, no standard port, no final slash. Paths are compared as they are.
func normalResource(resource string) string {
	u, err := url.Parse(resource)
	if err != nil || u.Host == "" || u.RawQuery != "" || u.Fragment != "" || u.User != nil {
		return resource
	}
	host := strings.ToLower(u.Host)
	if standard := portOf("", strings.ToLower(u.Scheme)); standard != "" {
		host = strings.TrimSuffix(host, ":"+standard)
	}
	return strings.ToLower(u.Scheme) + "://" + host + strings.TrimSuffix(u.EscapedPath(), "/")
}

// namesResource reports whether `aud` holds one of the normal forms.
func namesResource(claim any, own []string) bool {
	names := func(a any) bool {
		s, ok := a.(string)
		return ok && slices.Contains(own, normalResource(s))
	}
	if list, ok := claim.([]any); ok {
		return slices.ContainsFunc(list, names)
	}
	return names(claim)
}

// ResourceMetadata is the URL of the protected resource's metadata (RFC 9728) as the sender of r reaches it; "" where the
// route has none.
func (rt *Route) ResourceMetadata(r *http.Request) string {
	if rt == nil || rt.mcp == nil {
		return ""
	}
	return rt.mcp.metadataURL(r)
}

// BearerChallenge asks the sender of r for a token (RFC 6750 section 3): with the metadata and the scopes of the route,
// where it is a protected resource.
func (rt *Route) BearerChallenge(r *http.Request) string {
	if rt == nil || rt.mcp == nil {
		return "Bearer"
	}
	return rt.mcp.challenge(r, "", "")
}

// ProtectedResource reports whether the route is one, and the path of the identifier that it is configured with, "" for
// the root; named is false where the URL that a client uses is the identifier.
func (rt *Route) ProtectedResource() (path string, named, ok bool) {
	if rt == nil || rt.mcp == nil {
		return "", false, false
	}
	if u := rt.mcp.resource; u != nil {
		return withoutRoot(u.Path), true, true
	}
	return "", false, true
}

// Metadata is the document about the resource that clients reach by path (RFC 9728 section 3.2), JSON; nil where the
// route is none, or does not know its own host's name.
func (rt *Route) Metadata(r *http.Request, path string) []byte {
	if rt == nil || rt.mcp == nil {
		return nil
	}
	m := rt.mcp
	if m.resource != nil {
		return mustMarshal(m.metadata)
	}
	base, ok := m.base(r)
	if !ok {
		return nil
	}
	document := map[string]json.RawMessage{"resource": mustMarshal(base + (&url.URL{Path: path}).EscapedPath())}
	for name, value := range m.metadata {
		document[name] = value
	}
	return mustMarshal(document)
}
