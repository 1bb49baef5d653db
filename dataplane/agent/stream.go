package agent

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/sluicegate/sluice/dataplane/mcp"
	"github.com/sluicegate/sluice/dataplane/upstream"
	"github.com/sluicegate/sluice/internal/guard"
	"github.com/sluicegate/sluice/internal/policy"
)

const (
	// holdTime is how long an event waits for what the next one may complete, where filters look for it. Who reads does not
	// notice it, and an agent that writes in pieces is faster.
	holdTime = 200 * time.Millisecond
	maxHeld  = 256     // events
	maxSize  = 1 << 20 // bytes
)

// relayEvents brings an event stream, each event as soon as it has come and guards have seen it. leave ends the agent's.
func (c *call) relayEvents(ctx context.Context, leave func(), w http.ResponseWriter, resp *upstream.Response) error {
	if err := c.head(w, resp); err != nil {
		return err
	}
	flush := http.NewResponseController(w).Flush
	if flush() != nil {
		return nil // the client is gone
	}
	q := &queue{out: mcp.NewEventWriter(w, flush), gone: leave}
	err := c.readEvents(ctx, resp.Body, q)
	q.close()
	if err != nil && !q.left && c.HTTP.Context().Err() == nil {
		return c.endStream(q.out, err)
	}
	return nil // the client left, and takes the agent's stream with it; or the agent has no more to say
}

// readEvents puts what an agent sends into a client's queue. The error is why the stream is not whole, and can be answered.
func (c *call) readEvents(ctx context.Context, body io.Reader, q *queue) error {
	in := mcp.NewEventReader(body, c.Limits().Bytes)
	p := c.pieces(policy.ToClient)
	for {
		ev, err := in.Next()
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case errors.Is(err, mcp.ErrEventTooLarge):
			return c.invalid("an event of its stream has more than %d bytes", c.Limits().Bytes)
		case err != nil:
			return c.Unreachable(c.agent, err)
		case bytes.IndexByte(ev.ID, 0) >= 0, !utf8.Valid(ev.ID), !utf8.Valid(ev.Type):
			return c.invalid("an event of its stream has an id or a type that is no text")
		case len(bytes.TrimSpace(ev.Data)) == 0:
			q.put(&heldEvent{ev: ev}, 0)
			continue
		}
		original, guarded, err := c.received(ctx, ev.Data)
		if err != nil {
			return err
		}
		ev.Data = guarded
		if len(p.filters) == 0 {
			q.put(&heldEvent{ev: ev}, 0)
			continue
		}
		h := &heldEvent{ev: ev, n: p.n, original: bytes.Clone(original)}
		splits, err := p.add(h.original)
		if err != nil {
			return c.unreadable(policy.ToClient, err)
		}
		if err := c.complete(ctx, q, h, splits); err != nil {
			return err
		}
		q.put(h, holdTime)
	}
}

// complete takes what was split out of h, and out of those before it that are still here. An error ends the stream: a filter
// rejects, or a message cannot be masked; what holds a part of it goes nowhere.
func (c *call) complete(ctx context.Context, q *queue, h *heldEvent, splits []guard.Split) error {
	if len(splits) == 0 {
		return nil
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	touched := map[*heldEvent]bool{}
	var refused error
	for _, s := range splits {
		of := h
		if s.Message != h.n {
			of = q.heldLocked(s.Message)
		}
		if s.Finding != nil {
			refused = c.Found(c.agent, policy.ToClient, s.Finding)
		}
		if of == nil { // it has left already
			continue
		}
		if touched[of] = true; s.Finding != nil {
			of.dropped = true
			continue
		}
		of.extra = append(of.extra, s.Extra)
	}
	for of := range touched {
		if of.dropped || refused != nil {
			of.dropped = true
			continue
		}
		data, err := c.masked(ctx, policy.ToClient, of.original, of.extra)
		if err != nil {
			of.dropped, refused = true, err
			continue
		}
		of.ev.Data = data
	}
	return refused
}

// endStream says in a stream why it ends before its time, so that nobody takes it for a whole one.
func (c *call) endStream(out *mcp.EventWriter, why error) error {
	c.Record.Failed = true
	if e, ok := errors.AsType[*mcp.Error](why); ok {
		_ = out.Write(mcp.Event{Data: e.Append(nil), HasData: true})
	}
	return why
}

// A queue is the way of an agent's events to a client, in their order. One that is held lets those behind it wait.
type queue struct {
	gone func() // ends the agent's stream: nobody reads it

	mu    sync.Mutex
	out   *mcp.EventWriter // guarded by mu, until close
	held  []*heldEvent     // guarded by mu; in order
	size  int              // guarded by mu; of what is held
	timer *time.Timer      // guarded by mu; nil: it was never needed
	done  bool             // guarded by mu
	left  bool             // guarded by mu; the client has
}

type heldEvent struct {
	n        uint64
	ev       mcp.Event
	original []byte // before guards; nil: none look at it together with others
	extra    []guard.Extra
	until    time.Time
	size     int
	dropped  bool
}

// heldLocked is the message that is the nth of the stream, nil if it has left.
func (q *queue) heldLocked(n uint64) *heldEvent {
	for _, h := range q.held {
		if h.original != nil && h.n == n {
			return h
		}
	}
	return nil
}

// put passes an event on after those that wait, or lets it wait itself.
func (q *queue) put(h *heldEvent, hold time.Duration) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if hold == 0 && len(q.held) == 0 {
		q.writeLocked(h)
		return
	}
	h.ev.ID, h.ev.Type, h.ev.Data, h.ev.Comment = bytes.Clone(h.ev.ID), bytes.Clone(h.ev.Type), bytes.Clone(h.ev.Data), bytes.Clone(h.ev.Comment)
	now := time.Now()
	h.until = now.Add(hold)
	h.size = len(h.ev.Data) + len(h.original)
	q.held = append(q.held, h)
	q.size += h.size
	for len(q.held) > maxHeld || q.size > maxSize {
		q.releaseLocked()
	}
	q.againLocked(now)
}

// releaseLocked passes the first event on that waits.
func (q *queue) releaseLocked() {
	h := q.held[0]
	q.held[0] = nil
	q.held = q.held[1:]
	q.size -= h.size
	q.writeLocked(h)
}

func (q *queue) writeLocked(h *heldEvent) {
	if h.dropped || q.left {
		return
	}
	if q.out.Write(h.ev) != nil {
		q.left = true
		q.gone()
	}
}

// due passes on what has waited long enough.
func (q *queue) due() {
	q.mu.Lock()
	defer q.mu.Unlock()
	now := time.Now()
	for len(q.held) > 0 && !q.done && !q.held[0].until.After(now) {
		q.releaseLocked()
	}
	q.againLocked(now)
}

// againLocked sets the clock for the first that waits.
func (q *queue) againLocked(now time.Time) {
	switch {
	case len(q.held) == 0 || q.done:
	case q.timer == nil:
		q.timer = time.AfterFunc(q.held[0].until.Sub(now), q.due)
	default:
		q.timer.Reset(q.held[0].until.Sub(now))
	}
}

// close passes on what waits. Nothing may be put any more.
func (q *queue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	for len(q.held) > 0 {
		q.releaseLocked()
	}
	q.done = true
	if q.timer != nil {
		q.timer.Stop()
	}
}
