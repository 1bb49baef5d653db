// Package rehearsal answers what a configuration would do with a request, by the code that control plane and proxy run, with
// neither of them, nor a network.
//
// A [Stage] is one caller of one configuration. What a proxy would fetch is replaced by what stands for it (standins.go), the targets
// are played (targets.go), and all between is the real path: levels are merged as at apply, tokens are verified, and requests
// are shown as they would leave for a target.
package rehearsal

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sluicegate/sluice/dataplane"
	adminv1 "github.com/sluicegate/sluice/proto/gen/sluice/admin/v1"
	xdsv1 "github.com/sluicegate/sluice/proto/gen/sluice/xds/v1"
)

// Config of a [Stage].
type Config struct {
	// Tenant that the objects are of. If empty, `default`.
	Tenant string
	// Objects of the tenant, and the Platform above it if there is one. They are valid.
	Objects []*adminv1.Object
	// Targets by name (`search`, or `tools/search`). One that is not here has what is asked for.
	Targets   map[string]Target
	Where     Where
	Principal Principal
	Source    Source
	// Header is what the client sends beside what its protocol says.
	Header http.Header
	// At is when the requests come. Zero: now.
	At time.Time
	// Protocol is a revision of MCP. If empty: the newest that all targets of the route have by their configuration.
	Protocol string
}

// Where is the place that a request goes to. The zero Where is the only route.
type Where struct {
	// Route's name; if empty, what the others lead to.
	Route string
	// Host and Path of the request, and the Port that it comes to. What is not here comes from the route.
	Host, Path string
	Port       uint16
}

// Source is the other end of a client's connection. The zero Source is 192.0.2.1:40000 (RFC 5737).
type Source struct {
	Address string
	Port    uint16
	// Certificate that the listener verified. Nil: none.
	Certificate *x509.Certificate
}

// Stage is one caller at one route of a configuration. It is not safe for concurrent use.
type Stage struct {
	cfg       Config
	world     *world
	standIns  *standIns
	cast      *cast
	rehearsal *dataplane.Rehearsal
	caller    dataplane.Caller
	shown     shown
	route     string
	given     map[string]bool // targets of which the lists are
}

// New prepares a configuration for a caller. The error says what cannot be: what does not build, no route where the caller
// goes, nothing that could verify who the caller is.
func New(ctx context.Context, cfg Config) (*Stage, error) {
	cfg.Tenant = cmp.Or(cfg.Tenant, "default")
	s := &Stage{cfg: cfg, cast: &cast{targets: map[string]Target{}, exchanged: map[string]bool{}, agents: map[string]bool{}}, given: map[string]bool{}}
	var err error
	if s.standIns, err = newStandIns(cfg.Principal.User); err != nil {
		return nil, err
	}
	var objects []*adminv1.Object
	for _, o := range cfg.Objects {
		changed, err := s.standIns.replace(o)
		if err != nil {
			return nil, err
		}
		objects = append(objects, changed)
	}
	if s.world, err = derive(cfg.Tenant, objects); err != nil {
		return nil, err
	}
	if s.rehearsal, err = dataplane.NewRehearsal(dataplane.RehearsalConfig{Tenant: cfg.Tenant, Resources: s.world.resources, Play: s.cast.play}); err != nil {
		return nil, err
	}
	if err := s.place(ctx); err != nil {
		return nil, err
	}
	if err := s.assign(); err != nil {
		return nil, err
	}
	return s, s.enter()
}

// Notes are what is otherwise here than in a proxy, for people.
func (s *Stage) Notes() []string { return slices.Sorted(slices.Values(s.standIns.notes)) }

// Route is the name of the route that the caller goes to.
func (s *Stage) Route() string { return s.route }

// place finds where the caller goes.
func (s *Stage) place(ctx context.Context) error {
	names := slices.Sorted(maps.Keys(s.world.routes))
	where := s.cfg.Where
	s.caller = dataplane.Caller{Host: where.Host, Path: where.Path, Port: where.Port, Header: http.Header{}, At: s.cfg.At}
	name := where.Route
	switch {
	case len(names) == 0:
		return errors.New("the configuration has no route, so no request gets anywhere")
	case name != "" && s.world.routes[name] == nil:
		return fmt.Errorf("route %q is not there; routes are %s", name, strings.Join(names, ", "))
	case name == "" && len(names) == 1:
		name = names[0]
	case name == "" && where.Host == "" && where.Path == "" && where.Port == 0 && len(s.cfg.Header) == 0:
		return fmt.Errorf("there are several routes: say which one of %s (--route, or route: in a test)", strings.Join(names, ", "))
	}
	if name != "" {
		if err := s.towards(s.world.routes[name]); err != nil {
			return fmt.Errorf("route %q: %w", name, err)
		}
	} else if err := s.anyPort(); err != nil {
		return err
	}
	s.caller.Host, s.caller.Path = cmp.Or(s.caller.Host, "localhost"), cmp.Or(s.caller.Path, "/mcp")
	if !strings.HasPrefix(s.caller.Path, "/") {
		return fmt.Errorf("the path %q does not begin with /", s.caller.Path)
	}
	maps.Copy(s.caller.Header, s.cfg.Header)
	found, err := s.rehearsal.Route(ctx, &s.caller)
	switch asked := fmt.Sprintf("a request for %s%s on port %d", s.caller.Host, s.caller.Path, s.caller.Port); {
	case err != nil:
		return fmt.Errorf("%s: %w", asked, err)
	case name != "" && found != name:
		return fmt.Errorf("%s goes to route %q and not to %q: say host, path, port or headers that lead there", asked, found, name)
	}
	s.route = found
	return nil
}

// towards fills in what a route matches, where it says one thing alone.
func (s *Stage) towards(r *xdsv1.Route) error {
	l := s.world.listeners[own(r.GetListener())]
	if s.caller.Port == 0 {
		s.caller.Port = uint16(l.GetPort())
	}
	for _, names := range [][]string{r.GetHostnames(), l.GetHostnames()} {
		if s.caller.Host == "" && len(names) > 0 {
			s.caller.Host = strings.Replace(names[0], "*", "any", 1)
		}
	}
	if len(r.GetMatches()) == 0 {
		return nil
	}
	m := r.GetMatches()[0]
	if s.caller.Path == "" {
		switch p := m.GetPath().(type) {
		case *xdsv1.RouteMatch_Exact:
			s.caller.Path = p.Exact
		case *xdsv1.RouteMatch_PathPrefix:
			s.caller.Path = p.PathPrefix
		case *xdsv1.RouteMatch_Regex:
			return fmt.Errorf("matches paths by the pattern %q: say which path", p.Regex)
		}
	}
	for _, h := range m.GetHeaders() {
		switch v := h.GetValue().(type) {
		case *xdsv1.HeaderMatch_Exact:
			s.caller.Header.Set(h.GetName(), v.Exact)
		case *xdsv1.HeaderMatch_Regex:
			if s.cfg.Header.Get(h.GetName()) == "" {
				return fmt.Errorf("matches the header %s by a pattern: say what it holds", h.GetName())
			}
		}
	}
	return nil
}

// anyPort takes the only port there is.
func (s *Stage) anyPort() error {
	ports := map[uint32]bool{}
	for _, l := range s.world.listeners {
		ports[l.GetPort()] = true
	}
	if s.caller.Port != 0 {
		return nil
	}
	if len(ports) != 1 {
		return errors.New("there are several ports: say which port, or which route")
	}
	for p := range ports {
		s.caller.Port = uint16(p)
	}
	return nil
}

// assign gives the targets their parts, and the client a protocol that they have.
func (s *Stage) assign() error {
	all := slices.Sorted(maps.Keys(s.world.backends))
	for _, name := range slices.Sorted(maps.Keys(s.cfg.Targets)) {
		t, err := s.world.target(name, all)
		if err != nil {
			return err
		}
		s.cast.targets[s.resource(t)], s.given[t] = s.cfg.Targets[name], true
	}
	protocols := dataplane.Protocols()
	for _, t := range s.targets() {
		if s.isAgent(t) {
			s.world.agents[t], s.cast.agents[s.resource(t)] = true, true
			continue // the versions are MCP's
		}
		if own := s.world.targets[t].GetProtocolVersions(); len(own) > 0 {
			protocols = slices.DeleteFunc(protocols, func(p string) bool { return !slices.Contains(own, p) })
		}
		if backendAuthOf(s.cfg.Objects, s.cfg.Tenant, t, s.route) == "tokenExchange" {
			s.cast.exchanged[s.resource(t)] = true
		}
	}
	if s.caller.Protocol = s.cfg.Protocol; s.caller.Protocol == "" {
		if len(protocols) == 0 {
			return errors.New("the targets have no protocol version in common: say which one the client speaks")
		}
		s.caller.Protocol = protocols[len(protocols)-1]
	}
	if !slices.Contains(dataplane.Protocols(), s.caller.Protocol) {
		return fmt.Errorf("%q is no revision of MCP; revisions are %s", s.caller.Protocol, strings.Join(dataplane.Protocols(), ", "))
	}
	return nil
}

// targets are those behind the caller's route.
func (s *Stage) targets() []string {
	var all []string
	for _, b := range s.world.backendsOf(s.route) {
		all = append(all, s.world.targetsOf(b)...)
	}
	return all
}

func (s *Stage) resource(target string) string { return s.cfg.Tenant + "/target/" + target }

// enter connects the client, and has it show who it is.
func (s *Stage) enter() error {
	address := cmp.Or(s.cfg.Source.Address, "192.0.2.1")
	if _, err := netip.ParseAddr(address); err != nil {
		return fmt.Errorf("the source %q is no IP address", address)
	}
	s.caller.Source = net.JoinHostPort(address, strconv.Itoa(int(cmp.Or(s.cfg.Source.Port, 40000))))
	listener := own(s.world.routes[s.route].GetListener())
	var secure *adminv1.ListenerTls
	for _, o := range s.cfg.Objects {
		if o.GetName() == listener && o.GetListener() != nil {
			secure = o.GetListener().GetTls()
		}
	}
	scheme := "http"
	if secure != nil {
		scheme = "https"
		s.caller.TLS = &tls.ConnectionState{Version: tls.VersionTLS13, HandshakeComplete: true, ServerName: s.caller.Host}
	}
	if c := s.cfg.Source.Certificate; c != nil {
		if secure.GetRoot() == nil {
			return fmt.Errorf("listener %q asks for no certificate: it has no tls.root", listener)
		}
		s.caller.TLS.PeerCertificates, s.caller.TLS.VerifiedChains = []*x509.Certificate{c}, [][]*x509.Certificate{{c}}
	}
	policies := s.world.policies[s.world.routes[s.route].GetEffectivePolicy()]
	var err error
	if s.shown, err = s.standIns.show(s.cfg.Principal, policies, scheme+"://"+s.caller.Host+s.caller.Path); err != nil {
		return fmt.Errorf("route %q: %w", s.route, err)
	}
	for name, values := range s.shown.header {
		if s.cfg.Header.Get(name) == "" || name == "Cookie" {
			s.caller.Header[name] = append(s.caller.Header[name], values...)
		}
	}
	if len(s.shown.query) > 0 {
		separator := "?"
		if strings.Contains(s.caller.Path, "?") {
			separator = "&"
		}
		s.caller.Path += separator + s.shown.query.Encode()
	}
	return nil
}
