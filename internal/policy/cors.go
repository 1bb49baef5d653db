package policy

import (
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/net/http/httpguts"

	policyv1 "github.com/sluicegate/sluice/proto/gen/sluice/policy/v1"
)

// cors is compiled cross-origin resource sharing (WHATWG Fetch, §3.2).
type cors struct {
	any         bool // `*`
	origins     []originPattern
	methods     string // value of Access-Control-Allow-Methods
	anyHeader   bool
	headers     []string // canonical; none: what MCP needs
	expose      string
	credentials bool
	maxAge      string
}

// originPattern is an origin; with a wildcard, suffix stands for any host that ends in it.
type originPattern struct {
	scheme, host, port string
	wildcard           bool // host begins with the dot after `*`
	null               bool
}

// Of the headers that MCP needs, these are the protocol's own, always allowed; Mcp-* goes by its prefix.
var protocolHeaders = []string{"Accept", "Content-Type", "Last-Event-Id"}

// These are allowed too unless the policy lists headers of its own.
var usualHeaders = []string{"Authorization", "Traceparent", "Tracestate", "Baggage", "Accept-Language"}

const (
	defaultMethods = "GET, POST, DELETE, OPTIONS"
	defaultExpose  = "Mcp-Session-Id, MCP-Protocol-Version, WWW-Authenticate"
	defaultMaxAge  = "3600"
)

func compileCors(c *policyv1.Cors, field string, errs *problems) *cors {
	out := &cors{methods: defaultMethods, expose: defaultExpose, credentials: c.GetAllowCredentials(), maxAge: defaultMaxAge}
	for i, o := range c.GetAllowOrigins() {
		at := field + ".allowOrigins[" + strconv.Itoa(i) + "]"
		if o == "*" {
			out.any = true
			if out.credentials {
				errs.add(at, "`*` with allowCredentials would let every site act for the user; list the origins")
			}
			continue
		}
		p, why := parseOrigin(o)
		if why == "" && p.null && out.credentials {
			why = "any sandboxed page has this origin, which does not go with allowCredentials"
		}
		if why != "" {
			errs.add(at, "%q: %s", o, why)
			continue
		}
		out.origins = append(out.origins, p)
	}
	checkTokens(c.GetAllowMethods(), field+".allowMethods", errs)
	checkTokens(c.GetAllowHeaders(), field+".allowHeaders", errs)
	checkTokens(c.GetExposeHeaders(), field+".exposeHeaders", errs)
	if len(c.GetAllowMethods()) > 0 {
		out.methods = strings.Join(c.GetAllowMethods(), ", ")
	}
	for _, h := range c.GetAllowHeaders() {
		out.anyHeader = out.anyHeader || h == "*"
		out.headers = append(out.headers, http.CanonicalHeaderKey(h))
	}
	for _, h := range c.GetExposeHeaders() {
		if h == "*" && out.credentials {
			errs.add(field+".exposeHeaders", "`*` is a name like others to browsers with allowCredentials; list the headers")
		}
		out.expose += ", " + h
	}
	if c.GetMaxAge() != nil {
		age := c.GetMaxAge().AsDuration()
		if c.GetMaxAge().CheckValid() != nil || age < 0 || age > 24*time.Hour {
			errs.add(field+".maxAge", "%v is not between 0 and 24h", age)
		}
		out.maxAge = strconv.Itoa(int(age.Seconds()))
	}
	return out
}

func checkTokens(names []string, field string, errs *problems) {
	for i, n := range names {
		if !httpguts.ValidHeaderFieldName(n) {
			errs.add(field+"["+strconv.Itoa(i)+"]", "%q is no name", n)
		}
	}
}

// parseOrigin returns why text is no origin to allow, or "".
func parseOrigin(text string) (originPattern, string) {
	if text == "null" {
		return originPattern{null: true}, ""
	}
	scheme, rest, ok := strings.Cut(text, "://")
	if !ok {
		return originPattern{}, "is no origin; write scheme://host, e.g. https://app.example.com"
	}
	rest, wildcard := strings.CutPrefix(rest, "*.")
	if strings.Contains(rest, "*") {
		return originPattern{}, "`*` stands only for the leftmost labels of a host: https://*.example.com"
	}
	u, err := url.Parse(scheme + "://" + rest)
	if err != nil || u.Host == "" || u.Hostname() == "" || u.User != nil || u.Path != "" || u.RawQuery != "" || u.Fragment != "" || strings.ContainsAny(text, "?#") {
		return originPattern{}, "is no origin; write scheme://host, e.g. https://app.example.com, without a path"
	}
	p := originPattern{scheme: strings.ToLower(u.Scheme), host: strings.ToLower(u.Hostname()), port: portOf(u.Port(), strings.ToLower(u.Scheme)), wildcard: wildcard}
	if wildcard {
		p.host = "." + p.host
	}
	return p, ""
}

func portOf(port, scheme string) string {
	switch {
	case port != "":
		return port
	case scheme == "http":
		return "80"
	case scheme == "https":
		return "443"
	}
	return ""
}

func (p originPattern) matches(o originPattern) bool {
	if p.null || o.null {
		return p.null && o.null
	}
	if p.scheme != o.scheme || p.port != o.port {
		return false
	}
	if p.wildcard {
		return strings.HasSuffix(o.host, p.host) && len(o.host) > len(p.host) && !strings.ContainsAny(o.host, "@/\\ ")
	}
	return p.host == o.host
}

// originOf returns the origin that r names; ok is false if it names something else, or several.
func originOf(r *http.Request) (text string, o originPattern, ok bool) {
	values := r.Header["Origin"]
	if len(values) != 1 {
		return "", o, false
	}
	o, why := parseOrigin(values[0])
	return values[0], o, why == "" && !o.wildcard
}

// AllowOrigin reports whether r may be served as far as its Origin goes: without one; from the origin of the
// request itself; from a loopback origin if the listener is on a loopback address; or from one that cors
// allows. Anything else is a page of another site trying its visitor's network: 403.
func (rt *Route) AllowOrigin(r *http.Request, listenerLoopback bool) bool {
	if len(r.Header["Origin"]) == 0 {
		return true
	}
	_, o, ok := originOf(r)
	return ok && (ownOrigin(o, r) || listenerLoopback && loopbackHost(o) || rt.allows(o))
}

func (rt *Route) allows(o originPattern) bool {
	return rt != nil && rt.cors != nil && (rt.cors.any || rt.cors.listed(o))
}

func (c *cors) listed(o originPattern) bool {
	return slices.ContainsFunc(c.origins, func(p originPattern) bool { return p.matches(o) })
}

// ownOrigin compares host and port with those that r was sent to. TLS may end before the listener, so https
// is right for plain requests; http is wrong for TLS.
func ownOrigin(o originPattern, r *http.Request) bool {
	if o.null || o.scheme != "https" && (o.scheme != "http" || r.TLS != nil) {
		return false
	}
	host, port, err := net.SplitHostPort(r.Host)
	if err != nil {
		host, port = strings.Trim(r.Host, "[]"), ""
	}
	return strings.EqualFold(o.host, host) && o.port == portOf(port, o.scheme)
}

func loopbackHost(o originPattern) bool {
	if o.null || o.scheme != "http" && o.scheme != "https" {
		return false
	}
	if addr, err := netip.ParseAddr(o.host); err == nil {
		return addr.Unmap().IsLoopback()
	}
	return o.host == "localhost" || strings.HasSuffix(o.host, ".localhost")
}

// Preflight answers OPTIONS, which comes before authentication since browsers send no credential with it.
// For other methods it reports false and does nothing.
func (rt *Route) Preflight(w http.ResponseWriter, r *http.Request, listenerLoopback bool) (handled bool) {
	if r.Method != http.MethodOptions {
		return false
	}
	h := w.Header()
	if !rt.AllowOrigin(r, listenerLoopback) {
		h.Add("Vary", "Origin")
		http.Error(w, "origin is not allowed; add it to cors.allowOrigins", http.StatusForbidden)
		return true
	}
	rt.ResponseHeaders(h, r, listenerLoopback)
	if r.Header.Get("Access-Control-Request-Method") == "" {
		h.Set("Allow", defaultMethods)
		w.WriteHeader(http.StatusNoContent)
		return true
	}
	h.Del("Access-Control-Expose-Headers")
	h.Add("Vary", "Access-Control-Request-Method, Access-Control-Request-Headers")
	methods, maxAge := defaultMethods, defaultMaxAge
	if rt != nil && rt.cors != nil {
		methods, maxAge = rt.cors.methods, rt.cors.maxAge
	}
	h.Set("Access-Control-Allow-Methods", methods)
	if names := rt.allowedHeaders(r.Header.Values("Access-Control-Request-Headers")); len(names) > 0 {
		h.Set("Access-Control-Allow-Headers", strings.Join(names, ", "))
	}
	h.Set("Access-Control-Max-Age", maxAge)
	w.WriteHeader(http.StatusNoContent)
	return true
}

// allowedHeaders returns those of the requested headers that may be sent, each by name: browsers take `*`
// for a name when credentials are involved, and never for Authorization.
func (rt *Route) allowedHeaders(requested []string) (names []string) {
	for _, line := range requested {
		for name := range strings.SplitSeq(line, ",") {
			name = strings.TrimSpace(name)
			if httpguts.ValidHeaderFieldName(name) && rt.allowsHeader(http.CanonicalHeaderKey(name)) && len(names) < 64 {
				names = append(names, name)
			}
		}
	}
	return names
}

func (rt *Route) allowsHeader(name string) bool {
	if strings.HasPrefix(name, "Mcp-") || slices.Contains(protocolHeaders, name) {
		return true
	}
	if rt == nil || rt.cors == nil || len(rt.cors.headers) == 0 {
		return slices.Contains(usualHeaders, name) || rt.readsHeader(name)
	}
	return rt.cors.anyHeader || slices.Contains(rt.cors.headers, name)
}

// readsHeader reports whether this route looks for credentials in a header.
func (rt *Route) readsHeader(name string) bool {
	return rt != nil && slices.ContainsFunc(rt.places, func(p place) bool { return p[0].location.header == name })
}

// ResponseHeaders adds to an answer what lets a page of the request's origin read it, if AllowOrigin does.
func (rt *Route) ResponseHeaders(h http.Header, r *http.Request, listenerLoopback bool) {
	h.Add("Vary", "Origin")
	text, o, ok := originOf(r)
	if !ok || !rt.AllowOrigin(r, listenerLoopback) {
		return
	}
	expose := defaultExpose
	if rt.allows(o) {
		expose = rt.cors.expose
		if rt.cors.any && !rt.cors.listed(o) {
			text = "*"
		}
		if rt.cors.credentials && rt.cors.listed(o) {
			h.Set("Access-Control-Allow-Credentials", "true")
		}
	}
	h.Set("Access-Control-Allow-Origin", text)
	h.Set("Access-Control-Expose-Headers", expose)
}
