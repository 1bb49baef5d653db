package resource

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"net/url"
	"regexp"
	"strings"

	"google.golang.org/protobuf/reflect/protoreflect"
)

// A shape is what users may write for a message beside the JSON names of its fields.
type shape struct {
	// rewrite turns short spellings into the message's own. It returns nil if it reported why it cannot.
	rewrite func(*decoder, *node) *node
	alias   map[string]string // other names of fields
	also    []string          // names that rewrite understands
	hidden  []string          // fields that only rewrite may set
	literal []string          // fields in which $ is no variable: expressions and patterns
	refuse  map[string]string // names that users of other gateways may write, and the way out
}

const policyPackage, adminPackage = "sluice.policy.v1.", "sluice.admin.v1."

// shapes is all that the loader knows beside the protos. It is filled by init, for rewriting refers to it.
var shapes map[protoreflect.FullName]shape

func init() {
	none := "nothing here replaces it; remove it"
	shapes = map[protoreflect.FullName]shape{
		policyPackage + "Policies": {refuse: map[string]string{
			"authorization": "use mcpAuthorization",
			"mcpGuardrails": "use mcpAuthorization or ai.promptGuard", "oidc": "use jwtAuth",
			"extAuthz": "use mcpAuthorization", "extProc": none, "transformations": "use requestHeaderModifier and responseHeaderModifier",
			"remoteRateLimit": "use localRateLimit", "csrf": "always on: Origin is checked on every request",
			"http": "use timeout, or the target's own", "tcp": none, "backendTunnel": none, "delay": none, "buffer": none, "directResponse": none,
			"requestRedirect": none, "urlRewrite": none, "requestMirror": none, "health": none, "sessionAffinity": "sessions need none: any proxy serves any session",
			"inferenceRouting": none,
		}},
		policyPackage + "Credential":        {rewrite: credential},
		policyPackage + "AuthorizationRule": {rewrite: short("allow"), literal: []string{"allow", "deny", "require"}},
		policyPackage + "BackendAuth": {rewrite: backendAuth, also: []string{"credentials"}, alias: map[string]string{"oauthTokenExchange": "tokenExchange"}, refuse: map[string]string{
			"copilot": none, "jwtSign": "use oauth with authMethod: private_key_jwt", "crossAppAccess": "use tokenExchange",
		}},
		policyPackage + "Value":          {rewrite: short("value"), literal: []string{"expression"}},
		policyPackage + "AwsTag":         {rewrite: within("value", "expression")},
		policyPackage + "OauthAuth":      {rewrite: oauthClient, also: oauthClientFields},
		policyPackage + "TokenExchange":  {rewrite: oauthClient, also: oauthClientFields},
		policyPackage + "LocalRateLimit": {rewrite: bareList("limits")},
		policyPackage + "RateLimit":      {rewrite: rateLimit, also: []string{"type"}, literal: []string{"key"}},
		policyPackage + "McpAuthentication": {rewrite: jwtAuth, also: append([]string{"requiredClaims"}, jwtProviderFields...), refuse: map[string]string{
			"provider": "give the issuer alone: its metadata tells the rest", "clientId": "clients register at the authorization server", "clientSecret": "clients register at the authorization server",
			"authorizationLocation": "MCP fixes it: the Authorization header",
		}},
		policyPackage + "AzureClientSecret":     {alias: map[string]string{"tenant_id": "tenantId", "client_id": "clientId", "client_secret": "clientSecret"}},
		policyPackage + "AzureWorkloadIdentity": {alias: map[string]string{"tenant_id": "tenantId", "client_id": "clientId"}},
		adminPackage + "Concurrency":            {rewrite: short("max")},
		policyPackage + "BasicAuth":             {rewrite: htpasswd, refuse: map[string]string{"location": "RFC 7617 fixes it: the Authorization header"}},
		adminPackage + "SessionScope":           {rewrite: short("share")},
		policyPackage + "KeyAuth":               {rewrite: keyAuth, also: []string{"value", "file", "secret", "env", "location"}},
		policyPackage + "LocatedCredential":     {rewrite: locatedCredential, also: []string{"key", "value", "file", "secret", "env"}},
		policyPackage + "Location":              {refuse: map[string]string{"expression": "name a header, queryParameter or cookie"}},
		policyPackage + "BackendTls": {rewrite: tlsFiles, alias: map[string]string{"sni": "hostname"}, refuse: map[string]string{
			"minTLSVersion": "use minVersion: \"1.2\" or \"1.3\"", "maxTLSVersion": none, "cipherSuites": none, "keyExchangeGroups": none,
			"spiffe": "use subjectAltNames with the spiffe:// URI",
		}},
		policyPackage + "Ai": {refuse: map[string]string{
			"prompts": none, "promptCaching": none, "routes": none, "transformations": none, "finalTransformations": none,
		}},
		policyPackage + "PromptGuard": {rewrite: promptGuard, refuse: map[string]string{"streaming": "streams are always guarded"}},
		policyPackage + "Guard": {refuse: map[string]string{
			"bedrockGuardrails": "use webhook", "googleModelArmor": "use webhook", "azureContentSafety": "use webhook", "scope": none,
		}},
		policyPackage + "RegexGuard": {rewrite: regexGuard, also: []string{"deny"}},
		policyPackage + "RegexRule":  {literal: []string{"pattern"}},
		policyPackage + "JwtAuth": {rewrite: jwtAuth, also: append([]string{"requiredClaims"}, jwtProviderFields...), refuse: map[string]string{
			"provider": "give issuer and jwks: {url: …}", "resourceMetadata": none,
		}},
		policyPackage + "JwtProvider": {rewrite: jwtProvider, also: []string{"jwtValidationOptions"}},
		policyPackage + "Jwks":        {rewrite: jwks},
		policyPackage + "ApiKey":      {rewrite: short("key")},

		adminPackage + "Listener": {rewrite: listener, also: []string{"hostname", "protocol"}, refuse: map[string]string{
			"namespace": none, "tcpRoutes": "only HTTP is served",
		}},
		adminPackage + "ListenerTls": {rewrite: tlsFiles, refuse: map[string]string{
			"minTLSVersion": "use minVersion: \"1.2\" or \"1.3\"", "maxTLSVersion": none, "cipherSuites": none, "mtlsMode": "clients must show a certificate where root is set",
		}},
		adminPackage + "Route": {refuse: map[string]string{"namespace": none, "ruleName": none}},
		adminPackage + "RouteMatch": {refuse: map[string]string{
			"method": "MCP fixes the methods", "query": "match the path or a header",
		}},
		adminPackage + "PathMatch":        {literal: []string{"regex"}},
		adminPackage + "HeaderValueMatch": {literal: []string{"regex"}},
		adminPackage + "RouteBackend":     {rewrite: routeBackend},
		adminPackage + "Backend": {refuse: map[string]string{
			"mcp": "in a single document its fields stand directly in spec", "statefulMode": statefulHint, "dnsRebindingProtection": rebindingHint,
		}},
		adminPackage + "Target": {rewrite: target, refuse: map[string]string{
			"openapi": "run an MCP server for the API",
		}},
		adminPackage + "HttpTransport": {hidden: []string{"tls"}, refuse: map[string]string{
			"tls": "write https:// in host, or set backendTLS", "backend": "give host", "sni": "it belongs in policies.backendTLS", "hostname": "use host",
			"url": "use host, which may be a URL",
		}},
	}
	maps.Copy(shapes, testShapes())
}

const (
	statefulHint  = "remove it: sessions are always kept, sealed in their ids, and stateless clients are served as such"
	rebindingHint = "remove it: Host and Origin are checked on every request"
)

// short makes anything but a map the one field of a map.
func short(field string) func(*decoder, *node) *node {
	return func(_ *decoder, n *node) *node {
		if n.kind == mapNode {
			return n
		}
		return n.wrap(field)
	}
}

// bareList makes a list the one field of a map.
func bareList(field string) func(*decoder, *node) *node {
	return func(_ *decoder, n *node) *node {
		if n.kind == listNode {
			return n.wrap(field)
		}
		return n
	}
}

// within moves fields into one that may also be written without them.
func within(into string, fields ...string) func(*decoder, *node) *node {
	return func(d *decoder, n *node) *node {
		moved, rest := n.split(fields...)
		if n.kind != mapNode || len(moved.entries) == 0 {
			return n
		}
		if e := n.entry(into); e != nil {
			d.fail(moved.entries[0].pos, n.path, fmt.Sprintf("%q and %q cannot both be set", moved.entries[0].key, into), "remove one")
			return nil
		}
		moved.path = n.path
		return rest.with(entry{into, moved.entries[0].pos, moved})
	}
}

var oauthClientFields = []string{"tokenUrl", "clientId", "authMethod", "clientSecret", "privateKey", "keyId", "algorithm", "assertionAudience"}

// oauthClient: the client's fields may stand beside the grant's.
func oauthClient(d *decoder, n *node) *node { return within("client", oauthClientFields...)(d, n) }

// rateLimit: `type: requests` is all there is here.
func rateLimit(d *decoder, n *node) *node {
	e := n.entry("type")
	if e == nil {
		return n
	}
	if text, ok := d.string(e.value); ok && text != "requests" {
		d.failNode(e.value, fmt.Sprintf("the type %q is not supported", text), "requests are what is counted; remove it")
	}
	return n.without("type")
}

// Redacted stands for a credential's value wherever objects are shown. It is refused where one is written,
// lest what was read back be applied.
const Redacted = "[redacted]"

func credential(d *decoder, n *node) *node {
	n = short("value")(d, n)
	if v := n.get("value"); v != nil && d.redacted(v) {
		return nil
	}
	return n
}

// redacted reports a value that was shown instead of the one that is.
func (d *decoder) redacted(n *node) bool {
	if n.text != Redacted {
		return false
	}
	d.failNode(n, "this is what stands for a credential where it is shown, not its value", "give the value, or {sealed: …} as it was shown")
	return true
}

// sources are the fields of a Credential.
var sources = []string{"value", "secret", "file", "env", "sealed"}

// backendAuth: `credentials: […]` is `key: {credentials: […]}`.
func backendAuth(d *decoder, n *node) *node {
	e := n.entry("credentials")
	if e == nil {
		return n
	}
	if key := n.entry("key"); key != nil {
		d.fail(key.pos, n.path, `"credentials" and "key" cannot both be set`, "move the key into credentials")
		return nil
	}
	return n.without("credentials").with(entry{"key", e.pos, e.value.mapOf(*e)})
}

// keyAuth: a string, a credential, or one with its location is a list of one.
func keyAuth(d *decoder, n *node) *node {
	if n.kind == mapNode && (n.has("credentials") || !n.has(append(sources, "location")...)) {
		return n
	}
	return n.mapOf(entry{"credentials", n.pos, n.listOf(n)})
}

// locatedCredential: the credential's own fields may stand beside location; `key` is another name of it.
func locatedCredential(d *decoder, n *node) *node {
	if n.kind != mapNode {
		return n.wrap("credential")
	}
	if e := n.entry("key"); e != nil && !n.has("credential") {
		return n.without("key").with(entry{"credential", e.pos, e.value})
	}
	given := n.keys(sources...)
	if len(given) == 0 {
		return n
	}
	if v := n.get("value"); len(given) == 1 && v != nil && v.kind == mapNode { // value: {file: …}
		return n.without("value").with(entry{"credential", n.entry("value").pos, v})
	}
	these, others := n.split(sources...)
	these.path = n.path
	return others.with(entry{"credential", these.entries[0].pos, these})
}

// tlsFiles: a plain string is a path, as in agentgateway, unless it is PEM.
func tlsFiles(d *decoder, n *node) *node {
	if n.kind != mapNode {
		return n
	}
	out := n.without("cert", "key", "root")
	for _, e := range n.entries {
		if e.key != "cert" && e.key != "key" && e.key != "root" {
			continue
		}
		if e.value.kind == stringNode {
			text, ok := d.string(e.value)
			if !ok {
				continue
			}
			source := "file"
			if strings.HasPrefix(strings.TrimSpace(text), "-----BEGIN") {
				source = "value"
			}
			e.value = e.value.scalar(stringNode, text).wrap(source)
		}
		out.entries = append(out.entries, e)
	}
	return out
}

// promptGuard: a list guards requests.
func promptGuard(d *decoder, n *node) *node {
	if n.kind == listNode {
		return n.wrap("request")
	}
	return n
}

// regexGuard: `deny: […]` is `action: reject, rules: […]`.
func regexGuard(d *decoder, n *node) *node {
	e := n.entry("deny")
	if e == nil {
		return n
	}
	for _, other := range n.keys("rules", "action") {
		d.fail(n.entry(other).pos, n.path, fmt.Sprintf(`"deny" and %q cannot both be set`, other), "deny is short for action: reject with rules")
		return nil
	}
	return n.without("deny").with(entry{"action", e.pos, n.scalar(stringNode, "reject")}, entry{"rules", e.pos, e.value})
}

// htpasswd: hashes are full of $, which is no variable there, unless the string begins with it. Who writes $$ all the same
// means one.
func htpasswd(d *decoder, n *node) *node {
	e := n.entry("htpasswd")
	if e == nil {
		return n
	}
	literal := func(v *node) *node {
		if v.kind != stringNode || strings.HasPrefix(v.text, "$") {
			return v
		}
		return v.scalar(stringNode, strings.ReplaceAll(v.text, "$$", "$"))
	}
	value := literal(e.value)
	if v := e.value.entry("value"); v != nil {
		value = value.without("value").with(entry{"value", v.pos, literal(v.value)})
	}
	return n.without("htpasswd").with(entry{"htpasswd", e.pos, value})
}

var jwtProviderFields = []string{"issuer", "audiences", "jwks", "jwtValidationOptions"}

// jwtAuth: issuer, audiences and jwks at the top are one provider.
func jwtAuth(d *decoder, n *node) *node {
	provider, rest := n.split(append(jwtProviderFields, "requiredClaims")...)
	if len(provider.entries) == 0 {
		return n
	}
	if p := n.entry("providers"); p != nil {
		d.fail(p.pos, n.path, fmt.Sprintf("%q and \"providers\" cannot both be set", provider.entries[0].key), "move it into providers")
		return nil
	}
	return rest.with(entry{"providers", n.pos, n.listOf(provider)})
}

// jwtProvider: `jwtValidationOptions: {requiredClaims: […]}` is `requiredClaims: […]`.
func jwtProvider(d *decoder, n *node) *node {
	o := n.entry("jwtValidationOptions")
	if o == nil {
		return n
	}
	if !d.fields(o.value, nil, "requiredClaims") {
		return nil
	}
	claims := o.value.entry("requiredClaims")
	if claims == nil {
		return n.without("jwtValidationOptions")
	}
	return n.without("jwtValidationOptions").with(*claims)
}

// jwks: a string or a map with keys is the set itself.
func jwks(d *decoder, n *node) *node {
	switch in := n.get("inline"); {
	case n.kind == mapNode && in != nil && in.kind == mapNode:
		text, ok := d.json(in)
		if !ok {
			return nil
		}
		return n.without("inline").with(entry{"inline", n.entry("inline").pos, in.scalar(stringNode, text)})
	case n.kind == mapNode && n.has("keys"):
		text, ok := d.json(n)
		if !ok {
			return nil
		}
		return n.scalar(stringNode, text).wrap("inline")
	}
	return short("inline")(d, n)
}

// json writes a node as JSON, keys in their order, strings expanded.
func (d *decoder) json(n *node) (string, bool) {
	switch n.kind {
	case mapNode:
		fields, ok := make([]string, 0, len(n.entries)), true
		for _, e := range n.entries {
			value, good := d.json(e.value)
			ok = ok && good
			fields = append(fields, quoteJSON(e.key)+":"+value)
		}
		return "{" + strings.Join(fields, ",") + "}", ok
	case listNode:
		items, ok := make([]string, 0, len(n.items)), true
		for _, item := range n.items {
			value, good := d.json(item)
			ok = ok && good
			items = append(items, value)
		}
		return "[" + strings.Join(items, ",") + "]", ok
	case stringNode:
		text, ok := d.string(n)
		return quoteJSON(text), ok
	case numberNode:
		if !json.Valid([]byte(n.text)) {
			d.failNode(n, fmt.Sprintf("%s is no plain decimal number", n.text), "")
		}
		return n.text, json.Valid([]byte(n.text))
	case boolNode:
		return n.text, true
	}
	return "null", true
}

func quoteJSON(s string) string {
	b, _ := json.Marshal(s) // no string fails
	return string(b)
}

// listener: `hostname` is a list of one; `protocol` must say what tls says already.
func listener(d *decoder, n *node) *node {
	if e := n.entry("protocol"); e != nil {
		protocol, ok := d.string(e.value)
		switch tls := n.has("tls"); {
		case !ok:
		case protocol == "HTTPS" && !tls:
			d.fail(e.pos, e.value.path, "protocol is HTTPS, and there is no tls", "add tls: {cert: …, key: …}")
		case protocol == "HTTP" && tls:
			d.fail(e.pos, e.value.path, "protocol is HTTP, and there is tls", "write HTTPS, or remove tls")
		case protocol != "HTTP" && protocol != "HTTPS":
			d.failNode(e.value, fmt.Sprintf("the protocol %q is not supported", protocol), "HTTP and HTTPS are")
		}
		n = n.without("protocol")
	}
	if e := n.entry("hostname"); e != nil {
		if n.has("hostnames") {
			d.fail(e.pos, n.path, `"hostname" and "hostnames" cannot both be set`, "remove one")
			return nil
		}
		n = n.without("hostname").with(entry{"hostnames", e.pos, e.value.listOf(e.value)})
	}
	return n
}

// routeBackend: a weight that is not given is 1.
func routeBackend(d *decoder, n *node) *node {
	if n.kind != mapNode || n.has("weight") {
		return n
	}
	return n.with(entry{"weight", n.pos, n.scalar(numberNode, "1")})
}

func target(d *decoder, n *node) *node {
	out := n.with()
	for i, e := range out.entries {
		if path, ok := endpointPaths[e.key]; ok && e.value.kind == mapNode {
			out.entries[i].value = httpTransport(d, e.value, path)
		}
	}
	return out
}

// endpointPaths are those of targets whose URL has none.
var endpointPaths = map[string]string{"mcp": "/mcp", "sse": "/sse", "a2a": "/"}

var hostPattern = regexp.MustCompile(`^[A-Za-z0-9_]([-A-Za-z0-9_.]*[A-Za-z0-9_])?\.?$`)

// httpTransport takes a URL apart, so that the object holds host, port, path and tls whatever was written.
// Agentgateway wants both port and path or neither; so do we, for a half of them reads like a mistake.
func httpTransport(d *decoder, n *node, path string) *node {
	h := n.entry("host")
	if h == nil {
		if !n.has("url", "hostname", "backend") { // which will be told to be host
			d.failNode(n, `"host" is missing`, "write host: https://HOST"+path)
		}
		return n
	}
	text, ok := d.string(h.value)
	if !ok {
		return n.without("host", "port", "path")
	}
	fail := func(message, hint string) *node {
		d.failNode(h.value, message, hint)
		return n.without("host", "port", "path")
	}
	set := func(host string, port, path entry, tls bool) *node {
		if _, err := netip.ParseAddr(host); err != nil && !hostPattern.MatchString(host) {
			return fail(fmt.Sprintf("%q is no host name or address", host), "write host: https://HOST/PATH")
		}
		return n.without("host", "port", "path").with(
			entry{"host", h.pos, h.value.scalar(stringNode, host)}, port, path,
			entry{"tls", h.pos, h.value.scalar(boolNode, fmt.Sprint(tls))})
	}
	switch given := n.keys("port", "path"); {
	case len(given) == 2:
		if strings.Contains(text, "://") {
			return fail("host is a URL, and port and path are given too", "give a URL alone, or host, port and path")
		}
		return set(text, *n.entry("port"), *n.entry("path"), false)
	case len(given) == 1:
		return fail(fmt.Sprintf("%q is given without the other of port and path", given[0]), "set both, or write host: http://HOST:PORT/PATH")
	}
	if !strings.Contains(text, "://") {
		text = "http://" + text
	}
	u, err := url.Parse(text)
	switch {
	case err != nil || u.Hostname() == "":
		return fail("host is no URL and no host name", "write host: https://HOST"+path) // err may hold a password
	case u.Scheme != "http" && u.Scheme != "https":
		return fail(fmt.Sprintf("the scheme %q is not supported", u.Scheme), "http and https are")
	case u.User != nil:
		return fail("host holds a user or a password", "use policies.backendAuth")
	case u.Fragment != "":
		return fail("host has a fragment (#)", "remove it")
	}
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[u.Scheme]
	}
	if u.Path != "" {
		path = u.EscapedPath()
	}
	if u.RawQuery != "" {
		path += "?" + u.RawQuery
	}
	return set(u.Hostname(), entry{"port", h.pos, h.value.scalar(numberNode, port)}, entry{"path", h.pos, h.value.scalar(stringNode, path)}, u.Scheme == "https")
}
