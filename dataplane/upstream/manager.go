package upstream

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/sluicegate/sluice/dataplane/snapshot"
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

// Manager holds the transports of all targets.
type Manager struct {
	cfg Config

	// bound finds the transport of a snapshot's target without a lock: map[*snapshot.Target]Transport.
	bound sync.Map

	mu     sync.Mutex // guards what is below
	pools  map[string]pool
	closed bool
}

// New returns a manager that has opened nothing yet.
func New(cfg Config) *Manager { panic("not yet") }

// Transport returns how to reach t, always the same while t lives. It opens nothing.
func (m *Manager) Transport(t *snapshot.Target) Transport { panic("not yet") }

// Retain tells which targets are in use; call it after each change of the snapshot, with all tenants' targets.
// What no target of them uses is drained: its open exchanges go on, its idle connections are closed, and its
// children stop when they have nothing to do.
func (m *Manager) Retain(live []*snapshot.Target) { panic("not yet") }

// Health tells about every target that has been asked, ordered by name.
func (m *Manager) Health() []Health { panic("not yet") }

// Close ends all: children politely (stdin closed, then SIGTERM, then SIGKILL to the group) within ctx, connections
// at once. What runs gets ErrClosed.
func (m *Manager) Close(ctx context.Context) error { panic("not yet") }

type pool interface{}

var _ = errors.New
