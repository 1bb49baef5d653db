package upstream

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/sluicegate/sluice/dataplane/snapshot"
	xdsv1 "github.com/sluicegate/sluice/proto/gen/sluice/xds/v1"
)

// Config of a [Manager]. The zero value is ready to use.
type Config struct {
	// Log gets what children write to stderr and what happens to them. If nil, nothing is logged.
	Log *slog.Logger
	// DialTimeout bounds resolving, connecting and the TLS handshake together. If zero, 10 s.
	DialTimeout time.Duration
	// IdleTimeout is how long an unused HTTP connection is kept. If zero, 60 s.
	IdleTimeout time.Duration
	// MaxConns bounds the HTTP connections to one target, streams included. If zero, 4096.
	MaxConns int
	// MaxIdle bounds the unused ones among them. If zero, 256.
	MaxIdle int
	// MaxHead bounds the head of an HTTP answer, in bytes. If zero, 64 KiB.
	MaxHead int
	// MaxMessage bounds one line of a child and one event of an HTTP+SSE stream, in bytes. If zero, 16 MiB.
	MaxMessage int
	// MaxQueued bounds what waits for one reader of an adapter's stream and for one child's stdin, in bytes. If
	// zero, 32 MiB.
	MaxQueued int
	// StopGrace is how long a child may take to leave after its stdin is closed, and again after SIGTERM, before it
	// is killed. If zero, 2 s.
	StopGrace time.Duration
}

func (c Config) withDefaults() Config {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	set := func(d *time.Duration, zero time.Duration) {
		if *d == 0 {
			*d = zero
		}
	}
	number := func(n *int, zero int) {
		if *n == 0 {
			*n = zero
		}
	}
	set(&c.DialTimeout, 10*time.Second)
	set(&c.IdleTimeout, time.Minute)
	set(&c.StopGrace, 2*time.Second)
	number(&c.MaxConns, 4096)
	number(&c.MaxIdle, 256)
	number(&c.MaxHead, 64<<10)
	number(&c.MaxMessage, 16<<20)
	number(&c.MaxQueued, 32<<20)
	return c
}

// Manager holds the transports of all targets.
type Manager struct {
	cfg Config

	// bound finds the transport of a snapshot's target without a lock: map[*snapshot.Target]*binding.
	bound sync.Map

	mu       sync.Mutex              // guards what is below
	shared   map[string]*resources   // by what identifies a connection
	draining map[*resources]struct{} // no snapshot uses them, but exchanges may
	slots    map[string]*slots       // by target
	turns    map[string]*turns       // by target
	health   map[string]*health      // by target
	closed   bool
}

// binding is a transport and what it shares with those of other snapshots.
type binding struct {
	Transport
	key string
}

// resources is what outlives snapshots: connections, children, sessions.
type resources struct {
	target   string
	wire     wire      // nil: stdio
	sessions *sessions // nil: streamable HTTP
}

// New returns a manager that has opened nothing yet.
func New(cfg Config) *Manager {
	return &Manager{cfg: cfg.withDefaults(), shared: map[string]*resources{}, draining: map[*resources]struct{}{},
		slots: map[string]*slots{}, turns: map[string]*turns{}, health: map[string]*health{}}
}

// Transport returns how to reach t, always the same while t lives. It opens nothing.
func (m *Manager) Transport(t *snapshot.Target) Transport {
	if b, ok := m.bound.Load(t); ok {
		return b.(*binding).Transport
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if b, ok := m.bound.Load(t); ok {
		return b.(*binding).Transport
	}
	b := m.bindLocked(t)
	m.bound.Store(t, b)
	return b.Transport
}

func (m *Manager) bindLocked(t *snapshot.Target) *binding {
	if t.Config == nil || t.Policy == nil {
		return &binding{Transport: unserved{t}}
	}
	h := m.health[t.Resource]
	if h == nil {
		h = &health{tenant: t.Tenant.Name, target: t.Resource}
		m.health[t.Resource] = h
	}
	key := identity(t)
	r := m.shared[key]
	if r == nil {
		if r = m.openLocked(t); r == nil {
			return &binding{Transport: unserved{t}}
		}
		m.shared[key] = r
	}
	timeout := headTimeout(t)
	var tr Transport
	switch c := t.Config.GetTransport().(type) {
	case *xdsv1.Target_Mcp:
		tr = newEndpoint(t, c.Mcp, r.wire, h)
	case *xdsv1.Target_A2A:
		tr = newEndpoint(t, c.A2A, r.wire, h)
	case *xdsv1.Target_Sse:
		tr = &owned{t: t, s: r.sessions, http: newEndpoint(t, c.Sse, r.wire, h), health: h, timeout: timeout}
	default:
		tr = &owned{t: t, s: r.sessions, health: h, timeout: timeout}
	}
	if t.Config.GetConcurrency() != nil {
		own := m.turns[t.Resource]
		if own == nil {
			own = &turns{}
			m.turns[t.Resource] = own
		}
		tr = &inTurn{tr, t, own}
	}
	return &binding{Transport: tr, key: key}
}

// identity is the key of what t shares with other snapshots' targets: all that decides whom a connection reaches and
// as whom. Credentials that go with each request are no part of it; those of the TLS connection and a child's are.
func identity(t *snapshot.Target) string {
	sum := sha256.New()
	field := func(s string) { fmt.Fprintf(sum, "%d:%s,", len(s), s) }
	field(t.Tenant.Name)
	field(t.Resource)
	endpoint := func(kind string, c *xdsv1.HttpTransport) {
		field(kind)
		field(dialAddress(c))
		if useTLS(c, t.Policy) {
			field("tls")
			if t.Policy.TLS() != nil {
				field(t.Digest) // covers certificates that came from a Secret or a file
			}
		}
	}
	switch c := t.Config.GetTransport().(type) {
	case *xdsv1.Target_Mcp:
		endpoint("mcp", c.Mcp)
	case *xdsv1.Target_A2A:
		endpoint("a2a", c.A2A)
	case *xdsv1.Target_Sse:
		endpoint("sse", c.Sse)
		field(c.Sse.GetPath())
	case *xdsv1.Target_Stdio:
		field("stdio")
		b, _ := proto.MarshalOptions{Deterministic: true}.Marshal(c.Stdio)
		field(string(b))
		for _, v := range t.Policy.ChildEnv() {
			field(v)
		}
	}
	return string(sum.Sum(nil))
}

// openLocked makes what identity names; nil for a transport that this program does not know.
func (m *Manager) openLocked(t *snapshot.Target) *resources {
	r := &resources{target: t.Resource}
	if m.closed {
		defer func() {
			if r.wire != nil {
				r.wire.close()
			}
		}()
	}
	dial := func(c *xdsv1.HttpTransport) wire {
		secure := tlsConfig(c, t.Policy)
		if wantsHTTP2(secure) {
			return newH2Wire(&m.cfg, dialAddress(c), secure)
		}
		return newH1Pool(&m.cfg, dialAddress(c), secure)
	}
	s := &sessions{cfg: &m.cfg, byID: map[string]*session{}, idle: defaultIdle,
		log: m.cfg.Log.With("tenant", t.Tenant.Name, "target", t.Resource)}
	switch c := t.Config.GetTransport().(type) {
	case *xdsv1.Target_Mcp:
		r.wire = dial(c.Mcp)
		return r
	case *xdsv1.Target_A2A:
		r.wire = dial(c.A2A)
		return r
	case *xdsv1.Target_Sse:
		r.wire = dial(c.Sse)
		s.open, s.most = openSSE, m.cfg.MaxConns
	case *xdsv1.Target_Stdio:
		s.open, s.loose, s.shared = openStdio, true, c.Stdio.GetShared()
		if s.shared {
			s.most = maxShared
		}
		if d := c.Stdio.GetIdle().AsDuration(); d > 0 {
			s.idle = d
		}
		if s.slots = m.slots[t.Resource]; s.slots == nil {
			s.slots = &slots{}
			m.slots[t.Resource] = s.slots
		}
	default:
		return nil
	}
	r.sessions = s
	if m.closed {
		s.closed = true
	}
	return r
}

// Retain tells which targets are in use; call it after each change of the snapshot, with all tenants' targets.
// What no target of them uses is drained: its open exchanges go on, its idle connections are closed, and its
// children stop when they have nothing to do.
func (m *Manager) Retain(live []*snapshot.Target) {
	used, kept, resource := map[string]bool{}, map[*snapshot.Target]bool{}, map[string]bool{}
	for _, t := range live {
		kept[t], resource[t.Resource] = true, true
		if b, ok := m.bound.Load(t); ok {
			used[b.(*binding).key] = true
		} else if t.Config != nil && t.Policy != nil {
			used[identity(t)] = true
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.bound.Range(func(t, _ any) bool {
		if !kept[t.(*snapshot.Target)] {
			m.bound.Delete(t)
		}
		return true
	})
	for r := range m.draining {
		if r.quiet() {
			delete(m.draining, r)
		}
	}
	for key, r := range m.shared {
		if !used[key] {
			delete(m.shared, key)
			r.drain()
			m.draining[r] = struct{}{}
		}
	}
	for name := range m.health {
		if !resource[name] {
			delete(m.health, name)
		}
	}
	for name, s := range m.slots {
		if !resource[name] && s.count() == 0 {
			delete(m.slots, name)
		}
	}
	for name, s := range m.turns {
		if !resource[name] && s.idle() {
			delete(m.turns, name)
		}
	}
}

func (r *resources) drain() {
	if r.wire != nil {
		r.wire.drain()
	}
	if r.sessions != nil {
		r.sessions.drain()
	}
}

// quiet reports whether nothing of a drained one is left.
func (r *resources) quiet() bool {
	return (r.wire == nil || r.wire.conns() == 0) && (r.sessions == nil || r.sessions.count() == 0 && r.sessions.slotsUsed() == 0)
}

// Health tells about every target that has a transport, ordered by name.
func (m *Manager) Health() []Health {
	m.mu.Lock()
	defer m.mu.Unlock()
	all := make([]Health, 0, len(m.health))
	at := map[string]int{}
	for _, name := range slices.Sorted(maps.Keys(m.health)) {
		at[name] = len(all)
		all = append(all, Health{Tenant: m.health[name].tenant, Target: name})
		if o := m.health[name].last.Load(); o != nil {
			all[len(all)-1].Err, all[len(all)-1].Since = o.err, o.since
		}
		if v := m.health[name].versions.Load(); v != nil {
			all[len(all)-1].Versions = *v
		}
	}
	count := func(r *resources) {
		i, ok := at[r.target]
		if !ok {
			return
		}
		if r.wire != nil {
			all[i].Conns += r.wire.conns()
		}
		if r.sessions != nil {
			all[i].Sessions += r.sessions.count()
		}
	}
	for _, r := range m.shared {
		count(r)
	}
	for r := range m.draining {
		count(r)
	}
	for name, s := range m.slots {
		if i, ok := at[name]; ok {
			all[i].Children = s.count()
		}
	}
	return all
}

// Close ends all: children politely (stdin closed, then SIGTERM, then SIGKILL to the group) within ctx, connections
// at once. What runs gets ErrClosed.
func (m *Manager) Close(ctx context.Context) error {
	m.mu.Lock()
	m.closed = true
	all := slices.Collect(maps.Values(m.shared))
	all = slices.AppendSeq(all, maps.Keys(m.draining))
	m.mu.Unlock()
	errs := make([]error, len(all))
	var wg sync.WaitGroup
	for i, r := range all {
		wg.Go(func() {
			if r.sessions != nil {
				errs[i] = r.sessions.close(ctx)
			}
			if r.wire != nil {
				r.wire.close()
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// unserved is a target of which there is nothing to serve.
type unserved struct{ t *snapshot.Target }

func (u unserved) Do(context.Context, *Request) (*Response, error) {
	err := u.t.Refused
	if err == nil {
		err = errors.New("a transport that this proxy does not know")
	}
	return nil, named(u.t, &Error{Op: "configure", Err: err})
}

func (u unserved) Owned() bool { return false }
