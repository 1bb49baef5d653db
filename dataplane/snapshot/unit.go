package snapshot

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"

	"github.com/sluicegate/sluice/dataplane/route"
	"github.com/sluicegate/sluice/internal/policy"
	policyv1 "github.com/sluicegate/sluice/proto/gen/sluice/policy/v1"
	xdsv1 "github.com/sluicegate/sluice/proto/gen/sluice/xds/v1"
)

// unit is what is compiled, kept and refused together.
type unit struct {
	name    string // resource name of its head
	kind    string // listener, backend, route or binding
	tried   inputs // what the last attempt read
	refused []*xdsv1.Refusal

	form any    // the last good one: *listenerForm, *backendForm, *routeForm, *targetForm; nil: none
	good inputs // what form was made of: kept on disk while it differs from tried
	// partial is what is known of a unit without a good form: where to answer 503.
	partial any
	// candidate is a listener's form that has yet to get its port.
	candidate      *listenerForm
	candidateGood  inputs
	compileRefused []*xdsv1.Refusal

	made   *Target // a binding's, as it stands in its group
	madeAt place
}

// inputs are all that an attempt read, also what was not there.
type inputs struct {
	done      bool
	grants    *resource
	resources []input
	files     []fileInput
}

type input struct {
	key      Key
	jwksURL  string // instead of a key
	resource *resource
}

type fileInput struct {
	path string
	hash [32]byte
}

type (
	listenerForm struct {
		port      uint16
		hostnames []string
		tls       *tls.Config
	}
	backendForm struct{ config *xdsv1.Backend }
	routeForm   struct {
		config   *xdsv1.Route
		matches  route.Matches
		policy   *policy.Route
		backends []*xdsv1.WeightedBackend
	}
	targetForm struct {
		binding *xdsv1.Binding
		config  *xdsv1.Target
		policy  *policy.Target
		digest  string
		agent   bool // the target is an A2A agent, by its transport or by the a2a policy
	}
)

// sources yields all that an attempt read.
func (in inputs) sources(yield func(source) bool) {
	for _, i := range in.resources {
		if !yield(source{key: i.key, jwksURL: i.jwksURL}) {
			return
		}
	}
	for _, f := range in.files {
		if !yield(source{file: f.path}) {
			return
		}
	}
}

func (in *inputs) current(s *Store, t *tenant) bool {
	if !in.done || !same(in.grants, t.info.from) {
		return false
	}
	for _, i := range in.resources {
		now := t.resources[i.key]
		if i.jwksURL != "" {
			now = t.jwks[i.jwksURL]
		}
		if !same(i.resource, now) {
			return false
		}
	}
	for _, f := range in.files {
		if s.files[f.path].hash != f.hash {
			return false
		}
	}
	return true
}

// compile builds a unit unless nothing that the last attempt read has changed.
func (s *Store) compile(t *tenant, u *unit) (changed bool) {
	if u.tried.current(s, t) {
		return false
	}
	b := &builder{s: s, t: t, in: inputs{done: true, grants: t.info.from}}
	form, partial := b.unit(u.name)
	u.tried = b.in
	u.compileRefused = b.refused
	u.refused = b.refused
	switch {
	case len(b.refused) == 0 && u.kind == "listener":
		u.candidate, u.candidateGood = form.(*listenerForm), b.in
	case len(b.refused) == 0:
		u.form, u.good, u.partial = form, b.in, nil
	case b.denied: // what is no longer allowed does not live on in an older form
		u.form, u.candidate, u.partial = nil, nil, partial
	default:
		u.candidate, u.partial = nil, partial
	}
	return true
}

// builder compiles one unit and notes what it reads.
type builder struct {
	s       *Store
	t       *tenant
	in      inputs
	head    *resource
	refused []*xdsv1.Refusal
	denied  bool // a local power was asked for that is not granted
}

func (b *builder) refuse(field, format string, args ...any) {
	b.refused = append(b.refused, refusal(b.head, field, fmt.Sprintf(format, args...)))
}

// get finds a resource that the head needs.
func (b *builder) get(field, name string) *xdsv1.Config {
	r := b.look(Key{ConfigType, name})
	switch {
	case r == nil:
		b.refuse(field, "%s does not exist", name)
		return nil
	case r.err != nil:
		b.refuse(field, "%s: %v", name, r.err)
		return nil
	}
	return r.config
}

func (b *builder) look(key Key) *resource {
	r := b.t.resources[key]
	b.in.resources = append(b.in.resources, input{key: key, resource: r})
	return r
}

// unit returns the form of a unit, or in the second place what is known of it when b.refused is not empty.
func (b *builder) unit(name string) (form, partial any) {
	b.head = b.look(Key{ConfigType, name})
	if b.head.err != nil {
		b.refuse("", "%v", b.head.err)
		return nil, nil
	}
	c := b.head.config
	switch kind := kindOf(name); { // the name decides: what is kept under it is of its kind
	case kind == "listener" && c.GetListener() != nil:
		return b.listener(c.GetListener()), nil
	case kind == "backend" && c.GetBackend() != nil:
		return &backendForm{c.GetBackend()}, nil
	case kind == "route" && c.GetRoute() != nil:
		f := b.route(c.GetRoute())
		return f, f
	case kind == "binding" && c.GetBinding() != nil:
		f := b.binding(c.GetBinding())
		return f, f
	}
	b.refuse("", "the resource is not what its name says")
	return nil, nil
}

func (b *builder) listener(l *xdsv1.Listener) *listenerForm {
	f := &listenerForm{port: uint16(l.GetPort())}
	if l.GetPort() == 0 || l.GetPort() > 65535 {
		b.refuse("port", "%d is not a port", l.GetPort())
	}
	for _, h := range l.GetHostnames() {
		f.hostnames = append(f.hostnames, strings.ToLower(h))
	}
	t := l.GetTls()
	if t == nil {
		return f
	}
	f.tls = &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: []string{"h2", "http/1.1"}}
	switch t.GetMinVersion() {
	case "", "1.2":
	case "1.3":
		f.tls.MinVersion = tls.VersionTLS13
	default:
		b.refuse("tls.minVersion", "%q is no TLS version to ask for; write \"1.2\" or \"1.3\"", t.GetMinVersion())
	}
	cert, certOK := b.credential("tls.cert", t.GetCert())
	key, keyOK := b.credential("tls.key", t.GetKey())
	if certOK && keyOK {
		pair, err := tls.X509KeyPair(cert, key)
		if err != nil {
			b.refuse("tls.cert", "certificate and key do not make a pair: %v", err)
		}
		f.tls.Certificates = []tls.Certificate{pair}
	}
	if t.GetRoot() != nil {
		f.tls.ClientAuth, f.tls.ClientCAs = tls.RequireAndVerifyClientCert, x509.NewCertPool()
		if root, ok := b.credential("tls.root", t.GetRoot()); ok && !f.tls.ClientCAs.AppendCertsFromPEM(root) {
			b.refuse("tls.root", "holds no PEM certificate")
		}
	}
	return f
}

// credential is for listeners; policies resolve their own.
func (b *builder) credential(field string, c *policyv1.Credential) ([]byte, bool) {
	var value []byte
	var err error
	r := b.resolver()
	switch source := c.GetSource().(type) {
	case *policyv1.Credential_Secret:
		if value, err = r.Secret(source.Secret); err != nil {
			err = fmt.Errorf("secret %q: %w", source.Secret, err)
		}
	case *policyv1.Credential_File:
		if value, err = r.File(source.File); err != nil {
			err = fmt.Errorf("file %q: %w", source.File, err)
		}
	case *policyv1.Credential_Env:
		var v string
		if v, err = r.Env(source.Env); err != nil {
			err = fmt.Errorf("environment variable %q: %w", source.Env, err)
		}
		value = []byte(v)
	default:
		err = errors.New("is missing; give a secret, a file or a variable")
	}
	if err != nil {
		b.refuse(field, "%v", err)
		return nil, false
	}
	return value, true
}

func (b *builder) route(r *xdsv1.Route) *routeForm {
	f := &routeForm{config: r}
	var err error
	if f.matches, err = route.Compile(r.GetMatches()); err != nil {
		var field *route.Error
		errors.As(err, &field)
		b.refuse(field.Field, "%s", field.Reason)
	}
	listener := b.get("listener", r.GetListener()).GetListener()
	for i, backend := range r.GetBackends() {
		if b.get(fmt.Sprintf("backends[%d]", i), backend.GetBackend()) != nil {
			f.backends = append(f.backends, backend)
		}
	}
	effective, ok := b.effectivePolicy(r.GetEffectivePolicy())
	if !ok {
		return f
	}
	resolver := b.resolver()
	resolver.Endpoint = &policy.Endpoint{Port: uint16(listener.GetPort()), HostKnown: b.hostKnown(r, listener), Path: f.matches.Path}
	if f.policy, err = policy.CompileRoute(effective, resolver); err != nil {
		b.refusePolicy(err)
	}
	return f
}

// hostKnown tells whether whoever sends a request to the route has no choice of the host that he names: one name stands for
// one server, while below a wildcard there may be others, of others.
func (b *builder) hostKnown(r *xdsv1.Route, l *xdsv1.Listener) bool {
	exact := func(names []string) bool {
		return len(names) > 0 && !slices.ContainsFunc(names, func(n string) bool { return strings.HasPrefix(n, "*") })
	}
	return exact(r.GetHostnames()) || exact(l.GetHostnames()) || b.s.cfg.Loopback && len(r.GetHostnames())+len(l.GetHostnames()) == 0
}

func (b *builder) binding(bind *xdsv1.Binding) *targetForm {
	f := &targetForm{binding: bind}
	f.config = b.get("target", bind.GetTarget()).GetTarget()
	if f.config == nil {
		if len(b.refused) == 0 {
			b.refuse("target", "%s is not a target", bind.GetTarget())
		}
		return f
	}
	b.get("route", bind.GetRoute())
	b.get("backend", f.config.GetBackend())
	transport := policy.HTTP
	switch c := f.config.GetTransport().(type) {
	case *xdsv1.Target_Mcp:
		b.http("mcp", c.Mcp)
	case *xdsv1.Target_Sse:
		transport = policy.SSE
		b.http("sse", c.Sse)
	case *xdsv1.Target_A2A:
		transport, f.agent = policy.A2A, true
		b.http("a2a", c.A2A)
	case *xdsv1.Target_Stdio:
		transport = policy.Stdio
		if c.Stdio.GetCmd() == "" {
			b.refuse("stdio.cmd", "is missing")
		} else if !b.t.info.grants.Stdio(c.Stdio.GetCmd()) {
			b.denied = true
			b.refuse("stdio.cmd", "running %q is not granted to the tenant: `sluice tenant allow %s stdio=%s`", c.Stdio.GetCmd(), b.t.name, c.Stdio.GetCmd())
		}
	default:
		b.refuse("", "the target's transport is of a kind that this proxy does not know")
	}
	effective, ok := b.effectivePolicy(bind.GetEffectivePolicy())
	if !ok {
		return f
	}
	if effective.GetPolicies().GetA2A() != nil && policy.Applies("a2a", transport) {
		f.agent = true
	}
	var err error
	resolver := b.resolver()
	resolver.TargetName = bind.GetTarget()
	if f.policy, err = policy.CompileTarget(effective, transport, resolver); err != nil {
		b.refusePolicy(err)
	}
	f.digest = b.digest(f.config)
	return f
}

func (b *builder) http(field string, h *xdsv1.HttpTransport) {
	if h.GetHost() == "" || h.GetPort() == 0 || h.GetPort() > 65535 {
		b.refuse(field, "host %q and port %d are not an address", h.GetHost(), h.GetPort())
		return
	}
	addr, err := netip.ParseAddr(h.GetHost())
	if err != nil {
		return // a name is checked when it is resolved
	}
	if err := b.t.info.grants.Dial(addr); err != nil {
		b.denied = true
		b.refuse(field+".host", "%v", err)
	}
}

// effectivePolicy returns nil and true for none.
func (b *builder) effectivePolicy(name string) (*xdsv1.EffectivePolicy, bool) {
	if name == "" {
		return nil, true
	}
	c := b.get("policies", name)
	if c == nil {
		return nil, false
	}
	p := c.GetEffectivePolicy()
	if p == nil {
		b.refuse("policies", "%s is not a policy", name)
	}
	return p, p != nil
}

func (b *builder) refusePolicy(err error) {
	for _, e := range policy.FieldErrors(err) {
		b.refuse(e.Field, "%s", e.Reason)
	}
}

// digest is over what the unit read, but for the binding: the same target with the same policy on two routes is one.
func (b *builder) digest(target *xdsv1.Target) string {
	h := sha256.New()
	fmt.Fprintf(h, "%s/%s\x00", b.t.name, target.GetName())
	if b.in.grants != nil {
		h.Write(b.in.grants.Body)
	}
	for _, i := range b.in.resources {
		if i.resource == nil || i.resource == b.head || kindOf(i.resource.Name) == "route" {
			continue
		}
		sum := sha256.Sum256(i.resource.Body)
		h.Write(sum[:])
	}
	for _, f := range b.in.files {
		h.Write(f.hash[:])
	}
	return base64.RawURLEncoding.EncodeToString(h.Sum(nil)[:15])
}

// resolver gives policies their secrets, files, variables and key sets, as far as the tenant's grants allow.
func (b *builder) resolver() policy.Resolver {
	return policy.Resolver{
		Tenant: b.t.name, Grants: b.t.info.grants, Runtime: b.s.cfg.Runtime,
		Secret: func(name string) ([]byte, error) {
			r := b.look(Key{SecretType, name})
			switch {
			case tenantOf(name) != b.t.name || r == nil:
				return nil, errors.New("does not exist")
			case r.err != nil:
				return nil, r.err
			}
			if _, ok := r.secret.GetSecret().(*xdsv1.Secret_Value); !ok {
				return nil, errors.New("is not a value")
			}
			return r.secret.GetValue(), nil
		},
		File: func(path string) ([]byte, error) {
			if !b.t.info.grants.File(path) {
				b.denied = true
				return nil, fmt.Errorf("reading it is not granted to the tenant: `sluice tenant allow %s file=%s`", b.t.name, path)
			}
			f := b.s.read(path)
			b.in.files = append(b.in.files, fileInput{path, f.hash})
			return f.data, f.err
		},
		Env: func(name string) (string, error) {
			if !b.t.info.grants.Env(name) {
				b.denied = true
				return "", fmt.Errorf("reading it is not granted to the tenant: `sluice tenant allow %s env=%s`", b.t.name, name)
			}
			v, ok := b.s.cfg.LookupEnv(name)
			if !ok {
				return "", errors.New("is not set where the proxy runs")
			}
			return v, nil
		},
		Identity: func(cloud string) error {
			if !b.t.info.grants.Identity(cloud) {
				b.denied = true
				return fmt.Errorf("acting as the proxy itself at %s is not granted to the tenant: `sluice tenant allow %s identity=%s`", cloud, b.t.name, cloud)
			}
			return nil
		},
		Jwks: func(url string) ([]byte, error) {
			r := b.t.jwks[url]
			b.in.resources = append(b.in.resources, input{jwksURL: url, resource: r})
			if r == nil {
				return nil, errors.New("the control plane sent no key set for this URL")
			}
			if keys := r.config.GetJwks().GetKeys(); len(keys) > 0 {
				return keys, nil
			}
			return nil, policy.ErrUnknown // not fetched yet: nobody can be let in
		},
	}
}

// activate gives a listener its port: those in use by others must speak the same protocol, and the socket must be had.
func (s *Store) activate(u *unit, ports portUses) (changed bool) {
	form, _ := u.form.(*listenerForm)
	want := u.candidate
	if want == nil {
		want = form
	}
	before := u.refused
	u.refused = u.compileRefused
	if want != nil {
		err := s.take(want, ports)
		if err == nil {
			changed = form != want
			u.form = want
			if want == u.candidate {
				u.good = u.candidateGood
			}
		} else {
			u.refused = append(u.refused[:len(u.refused):len(u.refused)], refusal(u.tried.resources[0].resource, "port", err.Error()))
			if form == want || form != nil && s.take(form, ports) != nil {
				changed = true
				u.form = nil // it cannot go on as it was either
			}
		}
	}
	return changed || !sameRefusals(before, u.refused)
}

// waits tells whether a listener has a form that only lacks its port.
func (u *unit) waits() bool {
	return u.candidate != nil && u.form != any(u.candidate)
}

// portUses tells what the listeners of each port have in common: those of other tenants as they are served, and those of
// the tenant that is being built.
type portUses struct {
	index  *Index
	tenant string
	own    map[uint16]*portUse
}

type portUse struct {
	tls   bool
	names map[string]bool // host name to whether clients must show a certificate there
}

// take gives a listener its place on its port, or says why it cannot have it.
func (s *Store) take(l *listenerForm, ports portUses) error {
	use := ports.own[l.port]
	withTLS, taken := ports.index.ports[l.port].otherTLS(ports.tenant)
	if use != nil {
		withTLS, taken = use.tls, true
	}
	if taken && withTLS != (l.tls != nil) {
		return fmt.Errorf("port %d already serves another listener %s TLS: take another port", l.port, map[bool]string{true: "with", false: "without"}[withTLS])
	}
	certs := l.tls != nil && l.tls.ClientCAs != nil
	for _, name := range l.names() {
		other, shared := ports.index.ports[l.port].otherCerts(ports.tenant, name)
		if use != nil {
			if own, ok := use.names[name]; ok {
				other, shared = other || own, true
			}
		}
		if shared && (certs || other) {
			return fmt.Errorf("another listener of port %d has the host name %q, and client certificates can be asked for by one alone: give one of them other names", l.port, name)
		}
	}
	if err := s.cfg.Bind(l.port); err != nil {
		return err
	}
	if use == nil {
		use = &portUse{tls: l.tls != nil, names: map[string]bool{}}
		ports.own[l.port] = use
	}
	for _, name := range l.names() {
		use.names[name] = certs
	}
	return nil
}

// names are the host name patterns, with "" for any.
func (l *listenerForm) names() []string {
	if len(l.hostnames) == 0 {
		return []string{""}
	}
	return l.hostnames
}

func sameRefusals(a, b []*xdsv1.Refusal) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i].GetReason() != b[i].GetReason() || !reflect.DeepEqual(a[i].GetField(), b[i].GetField()) {
			return false
		}
	}
	return true
}
