package upstream

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"github.com/sluicegate/sluice/dataplane/snapshot"
)

// health is what the last exchanges with a target came to. Answers on a healthy target cost one load.
type health struct {
	tenant, target string
	last           atomic.Pointer[outcome]  // nil: never asked
	versions       atomic.Pointer[[]string] // nil: not known
}

// Found notes which versions of the protocol a target was found to speak, for [Manager.Health].
func (m *Manager) Found(t *snapshot.Target, versions []string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if h := m.health[t.Resource]; h != nil {
		h.versions.Store(&versions)
	}
}

// Failed notes that a target's answer was of no use, although there was one, for [Manager.Health]; its next answer takes that back.
func (m *Manager) Failed(t *snapshot.Target, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if h := m.health[t.Resource]; h != nil {
		h.failed(err)
	}
}

type outcome struct {
	err   string
	since time.Time
}

func (h *health) ok() {
	if o := h.last.Load(); o == nil || o.err != "" {
		h.last.Store(&outcome{since: time.Now()})
	}
}

// failedIn is failed for an exchange, unless who waited for it has left: that tells nothing of the target.
func (h *health) failedIn(ctx context.Context, err error) {
	if ctx.Err() == nil || errors.Is(context.Cause(ctx), ErrTimeout) {
		h.failed(err)
	}
}

func (h *health) failed(err error) {
	text := err.Error()
	since := time.Now()
	if o := h.last.Load(); o != nil && o.err != "" {
		since = o.since // when the trouble began
	}
	h.last.Store(&outcome{err: text, since: since})
}
