package merge

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/sluicegate/sluice/internal/policy"
	"github.com/sluicegate/sluice/internal/resource"
	adminv1 "github.com/sluicegate/sluice/proto/gen/sluice/admin/v1"
	policyv1 "github.com/sluicegate/sluice/proto/gen/sluice/policy/v1"
	xdsv1 "github.com/sluicegate/sluice/proto/gen/sluice/xds/v1"
)

// Check builds what proxies build from these inputs, with internal/policy, and reports what does not build at the
// object, level and place that it came from. Files and variables of proxies cannot be read here and are not checked; nor
// are secrets, if Inputs.Secrets is nil. Credentials may still be inline. It expects objects that passed
// resource.Validate, whose findings (references) it does not repeat.
func Check(in Inputs) []*adminv1.Diagnostic {
	unknown := in.Secrets == nil
	in = withoutInline(in)
	o, _, err := (&Output{}).Update(in)
	if err != nil {
		return underivable(in, err)
	}
	return o.check(nil, unknown)
}

// Check is [Check] for what differs from before, which may be nil for everything.
func (o *Output) Check(before *Output) []*adminv1.Diagnostic {
	return o.check(before, o.in.Secrets == nil)
}

// Diagnose reports why Derive or Update refused inputs, at the objects that it names.
func Diagnose(in Inputs, err error) []*adminv1.Diagnostic { return underivable(in, err) }

// An objectError says which object cannot be put on the wire.
type objectError struct {
	key string
	err error
}

func (e *objectError) Error() string { return e.key + ": " + e.err.Error() }
func (e *objectError) Unwrap() error { return e.err }

func underivable(in Inputs, err error) []*adminv1.Diagnostic {
	var out []*adminv1.Diagnostic
	all := []error{err}
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		all = joined.Unwrap()
	}
	for _, err := range all {
		found, message := &adminv1.Object{}, err.Error()
		if e, ok := errors.AsType[*objectError](err); ok {
			i := slices.IndexFunc(in.Objects, func(o *adminv1.Object) bool { return strings.Contains(e.key+",", keyOf(o)+",") })
			if i >= 0 {
				found, message = in.Objects[i], e.err.Error()
			}
		}
		out = append(out, resource.Diagnose(found, adminv1.Diagnostic_SEVERITY_ERROR, "", message, ""))
	}
	return out
}

// Rehearse is [Derive] for what is tried out and never served: credentials may be inline.
func Rehearse(in Inputs) (*Output, error) { return Derive(withoutInline(in)) }

// withoutInline seals inline credentials, for objects that were read from a file and never will be served.
func withoutInline(in Inputs) Inputs {
	if len(in.VersionKey) == 0 {
		in.VersionKey = []byte("no version leaves this process")
	}
	secrets := map[string][]byte{}
	seal := func(o *adminv1.Object) *adminv1.Object {
		clone := o
		for _, c := range resource.Credentials(o) {
			if _, inline := c.GetSource().(*policyv1.Credential_Value); inline && clone == o {
				clone = proto.CloneOf(o)
			}
		}
		if clone == o {
			return o
		}
		for path, c := range resource.Credentials(clone) {
			value, inline := c.GetSource().(*policyv1.Credential_Value)
			if !inline {
				continue
			}
			if o.GetSecret() != nil {
				secrets[in.Tenant+"/secret/"+o.GetName()] = []byte(value.Value)
			}
			fingerprint := shortHash(keyOf(o), path)
			secrets[in.Tenant+"/sealed/"+fingerprint] = []byte(value.Value)
			c.Source = &policyv1.Credential_Sealed{Sealed: fingerprint}
		}
		return clone
	}
	objects := make([]*adminv1.Object, len(in.Objects))
	for i, o := range in.Objects {
		objects[i] = seal(o)
	}
	in.Objects = objects
	if in.Platform != nil {
		in.Platform = seal(in.Platform)
	}
	if len(secrets) > 0 {
		for name, value := range in.Secrets {
			secrets[name] = value
		}
		in.Secrets = secrets
	}
	return in
}

// check builds each chain and listener that is not what it was before. If unknown, a secret that is not there is no error.
func (o *Output) check(before *Output, unknown bool) []*adminv1.Diagnostic {
	if before == nil {
		before = &Output{}
	}
	c := &checker{Output: o, told: map[string]bool{}, resolver: o.resolver(unknown), now: time.Now()}
	for name := range o.suspects(before) {
		if !o.differs(before, name) {
			continue
		}
		if chain, ok := o.chains.get(name); ok {
			c.chain(name, chain)
		} else if n, ok := o.nodes.get(strings.TrimPrefix(name, o.in.Tenant+"/")); ok && n.object.GetListener().GetTls() != nil {
			c.listener(n.object)
		}
	}
	slices.SortFunc(c.found, func(a, b *adminv1.Diagnostic) int {
		if d := strings.Compare(a.File, b.File); d != 0 {
			return d
		}
		if d := int(a.GetPosition().GetLine() - b.GetPosition().GetLine()); d != 0 {
			return d
		}
		return strings.Compare(a.Path+a.Message, b.Path+b.Message)
	})
	return c.found
}

// suspects yields the resources that may differ from before, each once: what was touched since then and what refers to
// something that was, or else all that is built.
func (o *Output) suspects(before *Output) iter.Seq[string] {
	return func(yield func(string) bool) {
		if before.identity == nil || o.changes == nil || o.changes.from != before.identity {
			for name := range o.config.all() {
				if !yield(name) {
					return
				}
			}
			return
		}
		for name := range o.changes.configs {
			if !yield(name) {
				return
			}
		}
		if len(o.changes.refs) == 0 {
			return
		}
		for name, refs := range o.refs.all() {
			if !o.changes.configs[name] && slices.ContainsFunc(refs, func(ref string) bool { return o.changes.refs[ref] }) && !yield(name) {
				return
			}
		}
	}
}

// differs tells whether a resource, or anything that it refers to, is not what it was.
func (o *Output) differs(before *Output, name string) bool {
	now, _ := o.config.get(name)
	if was, ok := before.config.get(name); !ok || was.Version != now.Version {
		return true
	}
	refs, _ := o.refs.get(name)
	for _, ref := range refs {
		kind, what, _ := strings.Cut(ref, " ")
		set, was := o.secret, before.secret
		if kind == "jwks" {
			what, set, was = o.in.Tenant+"/jwks/"+shortHash(what), o.config, before.config
		}
		a, _ := set.get(what)
		if b, _ := was.get(what); a.Version != b.Version {
			return true
		}
	}
	return false
}

// resolver finds what a proxy would, as far as it is known here.
func (o *Output) resolver(unknown bool) policy.Resolver {
	return policy.Resolver{
		Secret: func(name string) ([]byte, error) {
			value, ok := o.in.Secrets[name]
			switch {
			case ok:
				return value, nil
			case unknown:
				return nil, policy.ErrUnknown
			}
			return nil, errors.New("there is no such Secret; apply one, or name another")
		},
		Jwks: func(url string) ([]byte, error) {
			if keys := o.in.Jwks[url]; len(keys) > 0 {
				return keys, nil
			}
			return nil, policy.ErrUnknown // not fetched yet
		},
	}
}

// A checker collects what does not build. One error of a level may show in many chains; it is told once.
type checker struct {
	*Output
	resolver policy.Resolver
	told     map[string]bool
	found    []*adminv1.Diagnostic
	now      time.Time // certificates that have expired are worth a word
}

func (c *checker) fail(o *adminv1.Object, field, reason string) {
	c.tell(adminv1.Diagnostic_SEVERITY_ERROR, o, field, reason)
}

func (c *checker) tell(severity adminv1.Diagnostic_Severity, o *adminv1.Object, field, reason string) {
	if d := resource.Diagnose(o, severity, field, reason, ""); !c.told[keyOf(o)+field+reason] {
		c.told[keyOf(o)+field+reason] = true
		c.found = append(c.found, d)
	}
}

func (c *checker) chain(name string, ch chain) {
	r, _ := c.config.get(name)
	var config xdsv1.Config
	if err := proto.Unmarshal(r.Body, &config); err != nil {
		panic(fmt.Sprintf("unmarshal what was marshalled: %v", err))
	}
	served := config.GetEffectivePolicy()
	for _, e := range policy.FieldErrors(c.compile(ch.class, served)) {
		if strings.HasPrefix(e.Field, "enforced.") {
			c.enforced(ch, e)
			continue
		}
		n, field := c.blame(ch, e.Field)
		c.fail(n.object, field, e.Reason)
	}
	for _, e := range policy.Warnings(served.GetPolicies(), c.resolver, c.now) {
		n, field := c.blame(ch, e.Field)
		c.tell(adminv1.Diagnostic_SEVERITY_WARNING, n.object, field, e.Reason)
	}
}

func (c *checker) compile(cl class, p *xdsv1.EffectivePolicy) error {
	var err error
	switch cl.name {
	case routeClass.name:
		_, err = policy.CompileRoute(p, c.resolver)
	case stdioClass.name:
		_, err = policy.CompileTarget(p, policy.Stdio, c.resolver)
	case a2aClass.name:
		_, err = policy.CompileTarget(p, policy.A2A, c.resolver)
	case sseClass.name:
		_, err = policy.CompileTarget(p, policy.SSE, c.resolver)
	default:
		_, err = policy.CompileTarget(p, policy.HTTP, c.resolver)
	}
	return err
}

// enforced blames the level whose enforced authorization fails by itself in the same way.
func (c *checker) enforced(ch chain, e *policy.FieldError) {
	for _, key := range ch.levels {
		n, _ := c.nodes.get(key)
		a := n.enforced().GetMcpAuthorization()
		if a == nil {
			continue
		}
		alone := &xdsv1.EffectivePolicy{EnforcedAuthorization: []*xdsv1.EnforcedAuthorization{{Level: n.level.Name, Authorization: a}}}
		for _, own := range policy.FieldErrors(c.compile(ch.class, alone)) {
			if *own == *e {
				c.fail(n.object, e.Field, e.Reason)
			}
		}
	}
}

// blame finds the level that a field of an effective policy came from, and the field there.
func (o *Output) blame(ch chain, field string) (*node, string) {
	if block, rest, ok := strings.Cut(field, "."); ok {
		kind, _, _ := strings.Cut(rest, ".")
		for _, s := range o.merge(ch).trace[kind] {
			if !s.wins || kind == authorization && s.enforced != (block == "enforced") {
				continue
			}
			if n, _ := o.nodes.get(s.level.key); s.enforced {
				return n, "enforced." + rest
			} else {
				return n, "policies." + rest
			}
		}
	}
	n, _ := o.nodes.get(ch.levels[len(ch.levels)-1])
	return n, field
}

func (o *Output) merge(ch chain) Merged {
	var levels []Level
	for _, key := range ch.levels {
		n, _ := o.nodes.get(key)
		levels = append(levels, n.level)
	}
	return effective(ch.class.kinds.fields(), levels)
}

// listener builds a listener's certificate, as far as it is known here.
func (c *checker) listener(o *adminv1.Object) {
	t := o.GetListener().GetTls()
	read := func(field string, cr *policyv1.Credential) (value []byte, known bool) {
		var name string
		switch s := cr.GetSource().(type) {
		case *policyv1.Credential_Secret:
			name = c.in.Tenant + "/secret/" + s.Secret
		case *policyv1.Credential_Sealed:
			name = c.in.Tenant + "/sealed/" + s.Sealed
		default:
			return nil, false
		}
		value, err := c.resolver.Secret(name)
		if err != nil && !errors.Is(err, policy.ErrUnknown) {
			c.fail(o, field, fmt.Sprintf("secret %q: %v", name, err))
		}
		return value, err == nil
	}
	cert, certKnown := read("tls.cert", t.GetCert())
	key, keyKnown := read("tls.key", t.GetKey())
	if certKnown && keyKnown {
		if _, err := tls.X509KeyPair(cert, key); err != nil {
			c.fail(o, "tls.cert", "certificate and key do not go together: "+strings.TrimPrefix(err.Error(), "tls: "))
		}
	}
	if root, known := read("tls.root", t.GetRoot()); known && !x509.NewCertPool().AppendCertsFromPEM(root) {
		c.fail(o, "tls.root", "holds no PEM certificate")
	}
}
