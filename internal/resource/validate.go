package resource

import (
	"cmp"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	adminv1 "github.com/sluicegate/sluice/proto/gen/sluice/admin/v1"
	policyv1 "github.com/sluicegate/sluice/proto/gen/sluice/policy/v1"
)

// Context is what Validate must know beside the objects.
type Context struct {
	// Partial says that the objects are not all of the tenant's: a reference to none of them may be good, and
	// what only the whole can tell is not checked.
	Partial bool
	// Offline says that there is no store to ask: a Secret that is not among the objects may be there. Implied
	// by Partial.
	Offline bool
	// Platform is the level above the tenant. If nil: none is known, unless it is among the objects.
	Platform *adminv1.Platform
}

// Validate checks objects of one tenant by themselves and against each other: names, references, claims,
// values, and policies at their levels. It needs no store, file or network, and finds everything at once.
// Diagnostics stand in the order of the objects' places. Objects are not changed.
func Validate(objects []*adminv1.Object, whole Context) []*adminv1.Diagnostic {
	v := &validator{Context: whole, objects: objects, byKey: map[string]*adminv1.Object{}, checked: map[string]blockErrors{}, variables: map[string]map[string]bool{}}
	for _, o := range objects {
		key := Key(o)
		if first, twice := v.byKey[key]; twice {
			v.fail(o, "name", fmt.Sprintf("%s %q is given twice, first at %s", Kind(o), o.GetName(), placeOrKey(first)), "rename or remove one")
			continue
		}
		v.byKey[key] = o
	}
	v.chains = newChains(v)
	for _, o := range objects {
		v.name(o)
		v.spec(o)
		v.credentials(o)
	}
	v.listeners()
	v.routes()
	v.policies()
	sortDiagnostics(v.diagnostics, nil)
	return v.diagnostics
}

// A validator holds the objects of one call and collects what is wrong with them.
type validator struct {
	Context
	objects     []*adminv1.Object
	byKey       map[string]*adminv1.Object // the first of each key
	chains      *chains
	checked     map[string]blockErrors     // by the bytes of a policy block
	variables   map[string]map[string]bool // by expression: what it reads
	diagnostics []*adminv1.Diagnostic
}

func (v *validator) fail(o *adminv1.Object, field, message, hint string) {
	v.tell(severityError, o, field, message, hint)
}

func (v *validator) tell(s adminv1.Diagnostic_Severity, o *adminv1.Object, field, message, hint string) {
	v.diagnostics = append(v.diagnostics, Diagnose(o, s, field, message, hint))
}

// placeOrKey says where an object is, for a message about another.
func placeOrKey(o *adminv1.Object) string {
	return cmp.Or(Place(o, "name"), Key(o))
}

var (
	targetName = regexp.MustCompile(`^[a-z]([-a-z0-9]*[a-z0-9])?$`)
	objectName = regexp.MustCompile(`^[a-z0-9]([-._a-z0-9]*[a-z0-9])?$`)
)

const maxTargetName, maxName = 63, 253

// name checks that a name can be part of resource names, and a target's of tool names and URIs, where `_` and
// `+` separate.
func (v *validator) name(o *adminv1.Object) {
	switch kind, name := Kind(o), o.GetName(); kind {
	case "":
		v.fail(o, "", "the object has no spec", "")
	case "platform", "tenant":
		if want := map[string]string{"platform": PlatformName, "tenant": TenantName}[kind]; name != want {
			v.fail(o, "name", fmt.Sprintf("the name is %q, and must be %q", name, want), "")
		}
	case "target":
		backend, target := name[:max(0, strings.LastIndexByte(name, '/'))], TargetName(o)
		if backend != o.GetTarget().GetBackend() {
			v.fail(o, "name", fmt.Sprintf("the name %q does not begin with its backend %q", name, o.GetTarget().GetBackend()), "")
		}
		if len(target) > maxTargetName || !targetName.MatchString(target) {
			v.fail(o, "name", fmt.Sprintf("bad name %q: a target's begins with a letter and has lower-case letters, digits and -, at most %d", target, maxTargetName), betterName(target))
		}
	default:
		if len(name) > maxName || !objectName.MatchString(name) {
			v.fail(o, "name", fmt.Sprintf("bad name %q: it has lower-case letters, digits, -, . and _, a letter or digit at both ends, at most %d", name, maxName), betterName(name))
		}
	}
}

var nameSeparators = regexp.MustCompile(`[^a-z0-9]+`)

// betterName makes a name that would do out of one that does not.
func betterName(name string) string {
	better := strings.Trim(nameSeparators.ReplaceAllString(strings.ToLower(name), "-"), "-")
	if better == name || len(better) > maxTargetName || !targetName.MatchString(better) {
		return ""
	}
	return fmt.Sprintf("write e.g. %q", better)
}

// reference reports a reference to nothing.
func (v *validator) reference(o *adminv1.Object, field, kind, name string) {
	if name == "" {
		v.fail(o, field, fmt.Sprintf("names no %s", kind), "")
		return
	}
	if v.byKey[kind+"/"+name] != nil {
		return
	}
	if v.Partial || v.Offline && kind == "secret" {
		v.tell(severityNote, o, field, fmt.Sprintf("%s %q is not among these objects", kind, name), "it must exist when they are applied")
		return
	}
	var names []string
	for _, other := range v.objects {
		if Kind(other) == kind {
			names = append(names, other.GetName())
		}
	}
	hint := didYouMean(name, names)
	if hint == "" && kind == "secret" {
		hint = "apply a document with kind: Secret first"
	}
	v.fail(o, field, fmt.Sprintf("there is no %s %q", kind, name), hint)
}

func (v *validator) credentials(o *adminv1.Object) {
	for path, c := range Credentials(o) {
		switch s := c.GetSource().(type) {
		case *policyv1.Credential_Secret:
			v.reference(o, path+".secret", "secret", s.Secret)
		case *policyv1.Credential_Value:
			if s.Value == "" {
				v.fail(o, path, "the credential is empty", "")
			}
		case *policyv1.Credential_File:
			if s.File == "" {
				v.fail(o, path+".file", "the path is empty", "")
			}
		case *policyv1.Credential_Env:
			if variable(s.Env) != len(s.Env) || s.Env == "" {
				v.fail(o, path+".env", fmt.Sprintf("%q names no environment variable", s.Env), "")
			}
		case *policyv1.Credential_Sealed:
			if s.Sealed == "" {
				v.fail(o, path+".sealed", "the fingerprint is empty", "")
			}
		case nil:
			v.fail(o, path, "one of value, secret, file or env must be set", "")
		}
	}
}

// routes checks what routes claim of their listener's port. Host names that a route leaves out are its
// listener's.
func (v *validator) routes() {
	claims := map[string]*adminv1.Object{}
	for _, o := range v.objects {
		r := o.GetRoute()
		l := v.byKey["listener/"+r.GetListener()].GetListener()
		if r == nil || l == nil || v.byKey[Key(o)] != o {
			continue
		}
		hosts := r.GetHostnames()
		if len(hosts) == 0 {
			hosts = l.GetHostnames()
		}
		if len(hosts) == 0 {
			hosts = []string{"*"}
		}
		for i, m := range matchesOf(r) {
			for _, host := range hosts {
				what := matchText(m)
				claim := fmt.Sprintf("%d %s %s", l.GetPort(), strings.ToLower(host), what)
				first, taken := claims[claim]
				if !taken {
					claims[claim] = o
					continue
				}
				field := ""
				if len(r.GetMatches()) > 0 {
					field = index("matches", i)
				}
				message := fmt.Sprintf("route %q at %s has the same claim: port %d, host %s, %s", first.GetName(), placeOrKey(first), l.GetPort(), host, what)
				if first == o {
					message = fmt.Sprintf("the same match is given twice: port %d, host %s, %s", l.GetPort(), host, what)
				}
				v.fail(o, field, message, "give the routes different hostnames or matches")
				break
			}
		}
	}
}

func matchesOf(r *adminv1.Route) []*adminv1.RouteMatch {
	if len(r.GetMatches()) == 0 {
		return []*adminv1.RouteMatch{{}}
	}
	return r.GetMatches()
}

// matchText says what a match matches, the same for the same.
func matchText(m *adminv1.RouteMatch) string {
	text := "every path"
	switch p := m.GetPath().GetPath().(type) {
	case *adminv1.PathMatch_Exact:
		text = "path " + p.Exact
	case *adminv1.PathMatch_PathPrefix:
		if prefix := strings.TrimRight(p.PathPrefix, "/"); prefix != "" {
			text = "path prefix " + prefix
		}
	case *adminv1.PathMatch_Regex:
		text = "path regex " + p.Regex
	}
	var headers []string
	for _, h := range m.GetHeaders() {
		value := "=" + h.GetValue().GetExact()
		if h.GetValue().GetRegex() != "" {
			value = "~" + h.GetValue().GetRegex()
		}
		headers = append(headers, strings.ToLower(h.GetName())+value)
	}
	slices.Sort(headers)
	if len(headers) > 0 {
		text += ", headers " + strings.Join(headers, " ")
	}
	return text
}

// listeners checks those that share a port: one socket is TLS or is not, and each host name has one owner.
func (v *validator) listeners() {
	first := map[uint32]*adminv1.Object{}
	hosts := map[string]*adminv1.Object{}
	for _, o := range v.objects {
		l := o.GetListener()
		if l == nil || l.GetPort() == 0 || v.byKey[Key(o)] != o {
			continue
		}
		if other := first[l.GetPort()]; other == nil {
			first[l.GetPort()] = o
		} else if (other.GetListener().GetTls() == nil) != (l.GetTls() == nil) {
			v.fail(o, "", fmt.Sprintf("listener %q at %s has the same port %d, and only one of them has tls", other.GetName(), placeOrKey(other), l.GetPort()), "use another port, or tls for both")
		}
		names := l.GetHostnames()
		if len(names) == 0 {
			names = []string{"*"}
		}
		for _, name := range names {
			claim := fmt.Sprintf("%d %s", l.GetPort(), strings.ToLower(name))
			if other := hosts[claim]; other != nil && other != o {
				v.fail(o, "", fmt.Sprintf("listener %q at %s has the same port %d and host %s", other.GetName(), placeOrKey(other), l.GetPort(), name), "give them different hostnames")
				break
			}
			hosts[claim] = o
		}
	}
}

var hostLabel = regexp.MustCompile(`^[A-Za-z0-9_]([-A-Za-z0-9_]*[A-Za-z0-9_])?$`)

// hostnames checks names that requests are compared with: exact, `*.` before a name, or `*` for any.
func (v *validator) hostnames(o *adminv1.Object, names []string) {
	seen := map[string]bool{}
	for i, name := range names {
		field := index("hostnames", i)
		if seen[strings.ToLower(name)] {
			v.fail(o, field, fmt.Sprintf("%q is given twice", name), "remove one")
		}
		seen[strings.ToLower(name)] = true
		if _, err := netip.ParseAddr(name); err == nil || name == "*" {
			continue
		}
		for _, label := range strings.Split(strings.TrimPrefix(name, "*."), ".") {
			if !hostLabel.MatchString(label) || len(name) > 253 {
				v.fail(o, field, fmt.Sprintf("%q is no host name", name), "write app.example.com, *.example.com or *, without scheme, port or path")
				break
			}
		}
	}
}
