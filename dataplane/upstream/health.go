package upstream

import (
	"sync/atomic"
	"time"
)

// health is what the last exchanges with a target came to. Answers on a healthy target cost one load.
type health struct {
	tenant, target string
	last           atomic.Pointer[outcome] // nil: never asked
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

func (h *health) failed(err error) {
	text := err.Error()
	since := time.Now()
	if o := h.last.Load(); o != nil && o.err != "" {
		since = o.since // when the trouble began
	}
	h.last.Store(&outcome{err: text, since: since})
}
