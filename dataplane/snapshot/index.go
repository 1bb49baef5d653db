package snapshot

import (
	"cmp"
	"crypto/tls"
	"errors"
	"iter"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/sluicegate/sluice/dataplane/route"
	"github.com/sluicegate/sluice/internal/policy"
	xdsv1 "github.com/sluicegate/sluice/proto/gen/sluice/xds/v1"
)

var (
	// ErrNoHost means that no listener on the port has the request's host name.
	ErrNoHost = errors.New("no listener of this port serves the host name")
	// ErrNoRoute means that no route of the listener matches the request.
	ErrNoRoute = errors.New("no route matches")
	// ErrMisdirected means that the connection was made for another host name, under which the client certificate that
	// this one requires was not asked for: answer 421.
	ErrMisdirected = errors.New("the connection was made for another host name")
)

// Index is all that a proxy serves at one time. It is immutable: load it once for a request and use it to its end.
type Index struct {
	tenants map[string]*Tenant
	ports   map[uint16]*port
}

// port is what one socket serves. Listeners of several tenants may share it under different names.
type port struct {
	tls    bool
	byHost map[string]*host
	hosts  route.Hosts[*host]
}

// host is one listener host name: exact, wildcard or any. The best name wins alone: what its listeners do not
// route is not found, it never falls to the listener of a vaguer name, who may be someone else.
type host struct {
	listeners []*Listener
	routes    route.Table[*Route]
}

// Tenant is what all routes of a tenant share.
type Tenant struct {
	Name     string
	Revision int64
	// Grants are the local powers, to be asked again at each use.
	Grants policy.Grants
	// SessionTTL is the absolute lifetime of a session id; never zero.
	SessionTTL time.Duration
	// Keys seal what leaves the proxy to come back. The first seals, all open. Empty: no session can be made.
	Keys []SessionKey
	// Stale is true for what came from disk and no control plane has confirmed since.
	Stale bool

	routes    []*Route
	listeners []*Listener
	refused   []*xdsv1.Refusal
	unserved  map[string]bool
}

// Owner is what a target needs to know of its tenant. It names no revision: a Target that a revision does not touch is the
// same one after it.
type Owner struct {
	Name string
	// Grants are the local powers, to be asked again at each use.
	Grants policy.Grants
}

// SessionKey is 32 random bytes with an id of 4.
type SessionKey struct {
	ID, Key []byte
}

// Listener is a port with the host names that it serves.
type Listener struct {
	// Name is the listener's own; Resource the full resource name.
	Name, Resource string
	Tenant         *Tenant
	Port           uint16
	// Hostnames in lower case, `*.example.com` for any below. Empty: any that the Host check allows.
	Hostnames []string
	// TLS is nil for plain HTTP.
	TLS *tls.Config

	routes []*Route
}

// Route leads to the backends that requests matching it are for.
type Route struct {
	// Name is the route's own; Resource the full resource name.
	Name, Resource string
	Tenant         *Tenant
	Listener       *Listener
	// Policy holds the kinds that act before a target is known. Nil only if Refused is set.
	Policy *policy.Route
	// Backends in the order of the configuration, with the weights as written.
	Backends []*Backend
	// SSEPath is the end of the paths on which clients of HTTP+SSE (2024-11-05) are served; "" if none are.
	SSEPath string
	// Refused, if not nil, says why the route cannot be served: answer 503.
	Refused error

	hostnames []string // at least one; "" for any
	matches   route.Matches
}

// Named reports whether the route is for certain host names, its own or its listener's: no request for another gets to it.
func (r *Route) Named() bool {
	return len(r.Listener.Hostnames) > 0 || !slices.Contains(r.hostnames, "")
}

// Transparent is the target of the route that judges callers' tokens itself, as the protected resource that it is; nil of any other
// route. Such a target stands alone on its route, and nothing on the way asks for a credential: else its own would be mixed with
// those of others.
func (r *Route) Transparent() *Target {
	if len(r.Backends) != 1 || len(r.Backends[0].Targets) != 1 || len(r.Backends[0].Agents) > 0 || r.Policy.Authenticates() {
		return nil
	}
	if t := r.Backends[0].Targets[0]; t.Policy.Unverified() {
		return t
	}
	return nil
}

// Authenticate is policy.Route's: who sent q. On a transparent route that is whoever holds the token in it, if there is one.
func (r *Route) Authenticate(q *http.Request) (*policy.Principal, error) {
	if r.Transparent() != nil {
		return policy.BearerPrincipal(q)
	}
	return r.Policy.Authenticate(q)
}

// resource is policy.Route's ProtectedResource. A transparent route is one too, in its target's stead.
func (r *Route) resource() (path string, named, ok bool) {
	if t := r.Transparent(); t != nil {
		path, named = t.Policy.ProtectedResource()
		return path, named, true
	}
	return r.Policy.ProtectedResource()
}

// Backend is one MCP endpoint as reached through one route, and the A2A agents beside it: the policies of its targets
// depend on the route.
type Backend struct {
	// Name is the backend's own; Resource the full resource name.
	Name, Resource string
	Tenant         *Tenant
	Description    string
	// Weight is the share of new sessions; if all of a route are 0, they are equal.
	Weight uint32
	// Prefix and Failure are never UNSPECIFIED.
	Prefix  xdsv1.Backend_PrefixMode
	Failure xdsv1.Backend_FailureMode
	// Targets are the MCP servers, Agents the A2A agents, each in order. A refused one stands among them.
	Targets, Agents []*Target
}

// Target is one MCP server or A2A agent as reached through one route.
type Target struct {
	// Name is the target's own, as prefixes and rules see it. Resource is the full resource name, which several
	// Targets share when several routes reach one server.
	Name, Resource string
	Tenant         *Owner
	// Config is to be read only. Nil if Refused is set and nothing of it could be read.
	Config *xdsv1.Target
	// Policy is nil only if Refused is set.
	Policy *policy.Target
	// Refused, if not nil, says why the target cannot be served: answer 503.
	Refused error
	// Agent says that it speaks A2A and not MCP. Unknown, and false, for one of which nothing could be read.
	Agent bool
	// Digest changes when anything that the target was compiled from changes: its configuration, policies,
	// secrets, files. The same Digest on two routes or in two revisions is the same thing.
	Digest string

	binding string // the resource that reaches it
}

// Route finds where a request on a port goes, or returns [ErrNoHost], [ErrNoRoute] or [ErrMisdirected]. It does not check Refused.
func (ix *Index) Route(portNumber uint16, r *http.Request) (*Route, error) {
	p := ix.ports[portNumber]
	if p == nil {
		return nil, ErrNoHost
	}
	name := route.Hostname(r.Host)
	for h := range p.hosts.Match(name) {
		if p.tls && h.listeners[0].TLS.ClientCAs != nil && r.TLS != nil && p.host(r.TLS.ServerName) != h {
			return nil, ErrMisdirected
		}
		found, ok := h.routes.Match(name, r.URL.Path, r.Header)
		if !ok {
			return nil, ErrNoRoute
		}
		return found, nil
	}
	return nil, ErrNoHost
}

// Resource finds the protected resource (RFC 9728) that a path stands for on the host of a request, and the path by which
// clients reach it; "" is the root's. Nil if there is none. Where the root is none it stands for the host's only one: some
// clients look nowhere else.
func (ix *Index) Resource(portNumber uint16, r *http.Request, path string) (*Route, string) {
	at := *r
	at.URL = &url.URL{Path: cmp.Or(path, "/")}
	takes, err := ix.Route(portNumber, &at)
	if errors.Is(err, ErrMisdirected) || errors.Is(err, ErrNoHost) {
		return nil, ""
	}
	name := route.Hostname(r.Host)
	var all []*Route
	for _, l := range ix.ports[portNumber].host(name).listeners {
		for _, one := range l.routes {
			own, named, ok := one.resource()
			if !ok || !slices.ContainsFunc(one.hostnames, func(pattern string) bool { return route.Names(pattern, name) }) {
				continue
			}
			if named && own == path {
				return one, path
			}
			all = append(all, one)
		}
	}
	unnamed := func(one *Route) bool {
		_, named, ok := one.resource()
		return ok && !named
	}
	if takes != nil && unnamed(takes) {
		return takes, path
	}
	for _, one := range all { // it may want headers, which who looks for it does not send
		if unnamed(one) && one.matches.Takes(at.URL.Path) {
			return one, path
		}
	}
	if path == "" && len(all) == 1 {
		return all[0], all[0].matches.Own()
	}
	return nil, ""
}

// Server finds the listener that answers a TLS handshake on a port, nil if there is none.
func (ix *Index) Server(portNumber uint16, serverName string) *Listener {
	p := ix.ports[portNumber]
	if p == nil {
		return nil
	}
	if h := p.host(serverName); h != nil {
		return h.listeners[0]
	}
	return nil
}

func (p *port) host(name string) *host {
	for h := range p.hosts.Match(route.Hostname(name)) {
		return h
	}
	return nil
}

// Ports maps each port that needs a socket to whether it speaks TLS.
func (ix *Index) Ports() map[uint16]bool {
	ports := make(map[uint16]bool, len(ix.ports))
	for number, p := range ix.ports {
		ports[number] = p.tls
	}
	return ports
}

// Tenant returns nil for one that is not served.
func (ix *Index) Tenant(name string) *Tenant { return ix.tenants[name] }

// Tenants iterates over all, in no order.
func (ix *Index) Tenants() iter.Seq[*Tenant] {
	return func(yield func(*Tenant) bool) {
		for _, t := range ix.tenants {
			if !yield(t) {
				return
			}
		}
	}
}

// Routes of the tenant, by name.
func (t *Tenant) Routes() []*Route { return t.routes }

// Listeners of the tenant, by name.
func (t *Tenant) Listeners() []*Listener { return t.listeners }

// Refusals are the tenant's units that keep an older form or answer 503, by name.
func (t *Tenant) Refusals() []*xdsv1.Refusal { return t.refused }

// Unserved tells whether the unit of a refusal has no older form: it answers 503.
func (t *Tenant) Unserved(name string) bool { return t.unserved[name] }

// Targets iterates over all targets of all tenants, one for each route that reaches it.
func (ix *Index) Targets() iter.Seq[*Target] {
	return func(yield func(*Target) bool) {
		for _, tenant := range ix.tenants {
			for _, r := range tenant.routes {
				for _, b := range r.Backends {
					for _, targets := range [...][]*Target{b.Targets, b.Agents} {
						for _, t := range targets {
							if !yield(t) {
								return
							}
						}
					}
				}
			}
		}
	}
}

// ownName is the part of a resource name after tenant and kind.
func ownName(resource string) string {
	_, rest, _ := strings.Cut(resource, "/")
	_, name, _ := strings.Cut(rest, "/")
	return name
}
