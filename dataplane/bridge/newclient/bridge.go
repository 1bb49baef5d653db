package newclient

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/sluicegate/sluice/dataplane/mcp"
	"github.com/sluicegate/sluice/dataplane/session"
	"github.com/sluicegate/sluice/dataplane/snapshot"
	"github.com/sluicegate/sluice/dataplane/upstream"
	"github.com/sluicegate/sluice/internal/hold"
)

// Config of a [Bridge].
type Config struct {
	// Transport reaches a target in its own era, e.g. upstream.Manager.Transport.
	Transport func(*snapshot.Target) upstream.Transport
	// ProxyID names this proxy in what lives here alone.
	ProxyID string
	// Log gets what no answer tells. If nil, nothing is logged.
	Log *slog.Logger
	// Limits of messages of targets. The zero value means mcp's.
	Limits mcp.Limits
	// Idle is how long a session that nobody uses is kept. If zero, 5 min.
	Idle time.Duration
	// Park bounds how long a call waits for its client, where the target has no timeout. If zero, 5 min.
	Park time.Duration
	// Batch is how long a call waits for more requests of its target, after each, before the client is asked all of
	// them. If zero, 10 ms.
	Batch time.Duration
	// MaxSessions bounds the sessions kept at one target; the one unused longest goes first. One caller that is known by name has
	// at most half of them. If zero, 1000.
	MaxSessions int
	// MaxParked bounds the calls of one target that wait for their clients, in the same way. If zero, 1000.
	MaxParked int
}

// Bridge keeps what bridging needs between requests: sessions, and calls that wait. It is safe for concurrent use.
type Bridge struct {
	cfg Config
	log *slog.Logger

	tools   *hold.Cache[toolsKey, *mcp.ToolParams] // what targets say of their tools' headers
	asked   *hold.Budget                           // for what calls that wait keep
	watched *hold.Budget                           // for the resources that are listened for

	mu     sync.Mutex
	pools  map[string]*pool         // guarded by mu; by resource name of the target
	parked map[session.CallID]*call // guarded by mu
	ending upstream.Background      // what begins and ends sessions and calls
	closed bool                     // guarded by mu
	live   map[string]bool          // guarded by mu; digests of targets in use; nil: not told yet
}

// New returns a bridge without sessions.
func New(cfg Config) *Bridge {
	b := &Bridge{cfg: cfg, log: cfg.Log, pools: map[string]*pool{}, parked: map[session.CallID]*call{},
		tools: hold.NewCache[toolsKey, *mcp.ToolParams](maxTools), asked: hold.NewBudget(maxAsked), watched: hold.NewBudget(maxWatchedAll)}
	if b.log == nil {
		b.log = slog.New(slog.DiscardHandler)
	}
	set := func(d *time.Duration, zero time.Duration) {
		if *d == 0 {
			*d = zero
		}
	}
	set(&b.cfg.Idle, 5*time.Minute)
	set(&b.cfg.Park, 5*time.Minute)
	set(&b.cfg.Batch, 10*time.Millisecond)
	if b.cfg.MaxSessions == 0 {
		b.cfg.MaxSessions = 1000
	}
	if b.cfg.MaxParked == 0 {
		b.cfg.MaxParked = 1000
	}
	return b
}

// Caller is whom a face is made for.
type Caller struct {
	// Codec seals what the caller holds between two requests. If nil, the tenant has no keys yet, and nothing can be
	// asked of the caller.
	Codec *session.Codec
	Scope session.Scope
}

// Stateless returns a face of 2026-07-28 for a target with sessions. Its Do takes the POST that such a target would get and
// answers as it would. Besides the errors of the target's own transport it returns [*RefusedError]. The retry of a call that waits is
// for the proxy where it does.
func (b *Bridge) Stateless(t *snapshot.Target, c Caller) upstream.Transport {
	return &stateless{b: b, t: t, caller: c, tr: b.cfg.Transport(t)}
}

// RefusedError says that a target would not begin a session: it may have none, or be of the other era.
type RefusedError struct {
	// Reason is what the target said, in a line.
	Reason string
}

func (e *RefusedError) Error() string { return "the target refused to begin a session: " + e.Reason }

// Retain tells which targets are in use; call it after each change of the snapshot, with all tenants' targets. Sessions of
// others end: at once where nothing is open, else with the last call; listens are ended politely.
func (b *Bridge) Retain(live []*snapshot.Target) {
	used := make(map[string]bool, len(live))
	for _, t := range live {
		used[t.Digest] = true
	}
	b.mu.Lock()
	b.live = used
	var gone []*peer
	for _, p := range b.pools {
		for s := range p.all {
			if !used[s.key.digest] {
				gone = append(gone, s)
			}
		}
	}
	b.mu.Unlock()
	b.tools.DropAll(func(k toolsKey) bool { return !used[k.digest] })
	for _, s := range gone {
		s.retire()
	}
}

// Close ends all sessions politely, within ctx. Calls that are open or wait end too.
func (b *Bridge) Close(ctx context.Context) error {
	b.mu.Lock()
	b.closed = true
	var calls []*call
	for _, c := range b.parked {
		calls = append(calls, c)
	}
	var all []*peer
	for _, p := range b.pools {
		for s := range p.all {
			all = append(all, s)
		}
	}
	b.mu.Unlock()
	for _, c := range calls {
		c.expire()
	}
	for _, s := range all {
		s.kill()
	}
	return b.ending.Wait(ctx)
}
