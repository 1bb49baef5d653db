package mux

import (
	"bytes"
	"context"
	"crypto/sha256"
	"sync"
	"time"

	"github.com/sluicegate/sluice/dataplane/mcp"
	"github.com/sluicegate/sluice/dataplane/snapshot"
	"github.com/sluicegate/sluice/internal/guard"
	"github.com/sluicegate/sluice/internal/policy"
)

// A gate is where a target's events pass on their way into a client's stream: through the guards, if the target has any, and
// translated.
//
// What a target says in pieces, in one progress or log message after the other, is looked at together. Each such message is
// held for a moment, so that its part of what the next one completes does not leave before; what follows it waits too, for the
// order is the target's. A response is the last of a stream and lets all go.
type gate struct {
	x        *Request
	t        *snapshot.Target
	position func(id string) string
	put      func(mcp.Event)
	filters  []*guard.Filter // of what is split; none: nothing is held

	n      uint64                             // messages so far
	trails map[[sha256.Size]byte]*guard.Trail // by method and who speaks, which can be of any length

	mu    sync.Mutex
	held  []*heldEvent // guarded by mu; in order
	size  int          // guarded by mu; of what is held
	timer *time.Timer  // guarded by mu; nil: it was never needed
	done  bool         // guarded by mu
}

type heldEvent struct {
	n        uint64
	ev       mcp.Event
	until    time.Time
	original []byte // of a text message; nil: it only waits its turn
	method   string
	extra    []guard.Extra
	size     int
	dropped  bool
}

const (
	// holdTime is how long a message waits for what the next one may add. Who reads does not notice it, and a target that
	// writes in pieces is faster.
	holdTime = 200 * time.Millisecond
	maxHeld  = 256     // messages
	maxSize  = 1 << 20 // bytes
	// maxTrails bounds the voices that are told apart on one stream.
	maxTrails = 16
)

// gate lets events of t through to put. position is nil for the stream of a POST.
func (x *Request) gate(t *snapshot.Target, position func(id string) string, put func(mcp.Event)) *gate {
	return &gate{x: x, t: t, position: position, put: put, filters: t.Policy.Filters(policy.ToClient)}
}

// pass lets one event through, perhaps later, or not at all. The error ends the stream: it cannot be read.
func (g *gate) pass(ev mcp.Event) error {
	if len(ev.Data) > 0 && !ev.IsMessage() {
		return nil // of a type that is not MCP's: nobody looked into it, and clients ignore it
	}
	if g.x.alone() == nil && bytes.HasPrefix(bytes.TrimLeft(ev.Data, " \t\r\n"), []byte("[")) {
		return g.passEach(ev)
	}
	if len(ev.Data) == 0 || !g.x.reads(g.t) {
		if err := g.x.translate(g.t, &ev, g.position); err == errHidden {
			return nil
		} else if err != nil {
			return err
		}
		g.queue(&heldEvent{ev: ev}, 0, false)
		return nil
	}
	msg, err := mcp.Scan(ev.Data, g.x.mux.cfg.Limits)
	if err != nil {
		return err
	}
	h := &heldEvent{n: g.n, method: msg.Method}
	g.n++
	var hold time.Duration
	if len(g.filters) > 0 && (msg.Method == "notifications/progress" || msg.Method == "notifications/message") && msg.Kind == mcp.Notification {
		hold, h.original = holdTime, bytes.Clone(ev.Data)
	}
	kind, id := msg.Kind, bytes.Clone(msg.RawID())
	data, err := g.guard(&msg)
	if err != nil {
		g.tell()
		switch e := *g.x.asError(err); kind {
		case mcp.Response:
			e.ID = id
			data = e.Append(nil)
		case mcp.Batch:
			data = e.Append(nil) // to the call whose stream it is
		case mcp.Request:
			own := *g.x // which goes on
			go own.refuseAsking(g.t, id, e.Code, e.Message)
			return nil
		default:
			h.dropped = true
		}
	}
	if h.original != nil {
		if err := g.join(h); err != nil {
			return err
		}
		if len(h.extra) > 0 && !h.dropped {
			data = g.again(h)
		}
	}
	if h.dropped {
		return nil
	}
	ev.Data = data
	if err := g.x.translate(g.t, &ev, g.position); err == errHidden {
		return nil
	} else if err != nil {
		return err
	}
	h.ev = ev
	g.queue(h, hold, kind == mcp.Response)
	return nil
}

// passEach lets the messages of a batch through as events of their own: what holds of a message holds of each. The event's id, which
// stands for all of them, goes with the last.
func (g *gate) passEach(ev mcp.Event) error {
	batch, err := mcp.ScanBatch(ev.Data, g.x.mux.cfg.Limits)
	if err != nil {
		return err
	}
	for i := range batch {
		one := ev
		one.Data = batch[i].Body
		if i < len(batch)-1 {
			one.ID, one.HasID, one.HasRetry = nil, false, false
		}
		if err := g.pass(one); err != nil {
			return err
		}
	}
	return nil
}

// guard is a message as the client may have it.
func (g *gate) guard(msg *mcp.Message) ([]byte, error) {
	switch msg.Kind {
	case mcp.Response, mcp.Batch:
		return g.x.guardAnswer(g.t, g.x.method(), msg.Body)
	case mcp.Request:
		body, err := g.t.Policy.FillSampling(msg.Body)
		if err != nil {
			return nil, g.x.guarded(err, mcp.CodeInternal)
		}
		return g.x.guardMessage(g.t, msg.Method, body, guard.FromServer(msg.Method))
	default:
		return g.x.guardMessage(g.t, msg.Method, msg.Body, guard.FromServer(msg.Method))
	}
}

var (
	saidInProgress = guard.Said("notifications/progress")
	saidInLog      = guard.Said("notifications/message")
)

// join looks for what h completes, and notes what is to be done with it and with those before it that are still here.
func (g *gate) join(h *heldEvent) error {
	said := saidInProgress
	if h.method == "notifications/message" {
		said = saidInLog
	}
	trail := g.trail(h)
	splits, err := trail.Add(g.filters, h.n, h.original, said)
	if err != nil || len(splits) == 0 {
		return err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, s := range splits {
		of := h
		if s.Message != h.n {
			of = nil
			for _, e := range g.held {
				if e.original != nil && e.n == s.Message {
					of = e
				}
			}
		}
		if s.Finding != nil {
			_ = g.x.guarded(g.t.Policy.Found(s.Finding), mcp.CodeInternal) // for the log
			g.tell()
		}
		switch {
		case of == nil: // it has left already
		case s.Finding != nil:
			of.dropped = true
		case of == h:
			h.extra = append(h.extra, s.Extra)
		case !of.dropped:
			of.extra = append(of.extra, s.Extra)
			if of.ev.Data = g.again(of); of.ev.Data == nil {
				of.dropped = true
			}
		}
	}
	return nil
}

// tell tells the operator what the line of a call cannot: a stream may outlive many refusals, or have no line of its own. Once for
// each rule, for the target says how often.
func (g *gate) tell() {
	x, t := g.x, g.t
	key := t.Resource + "\x00" + x.Record.Rule
	if _, told := x.mux.reported.Get(t.Tenant.Name, key); told {
		return
	}
	x.mux.reported.Put(t.Tenant.Name, key, struct{}{}, len(key), time.Time{})
	x.mux.log.Warn("message of a stream is refused", "tenant", t.Tenant.Name, "backend", x.Backend.Name, "target", t.Name, "rule", x.Record.Rule, "err", x.Record.Err)
}

// again is a message as the client may have it, less what stands in it of what several messages hold together.
func (g *gate) again(h *heldEvent) []byte {
	shape := guard.FromServer(h.method)
	out, _, err := guard.Apply(nil, h.original, shape, h.extra...)
	if err == nil {
		out, err = g.x.guardMessage(g.t, h.method, out, shape)
	}
	if err != nil {
		h.dropped = true
		return nil
	}
	return out
}

// trail is that of the voice that h belongs to: of several calls, or several loggers, each has its own.
func (g *gate) trail(h *heldEvent) *guard.Trail {
	voice := sha256.Sum256(append([]byte(h.method+"\x00"), guard.Speaker(h.original)...))
	if t := g.trails[voice]; t != nil {
		return t
	}
	if g.trails == nil || len(g.trails) >= maxTrails {
		g.trails = map[[sha256.Size]byte]*guard.Trail{}
	}
	t := &guard.Trail{}
	g.trails[voice] = t
	return t
}

// queue passes an event on after those that wait. last lets all go.
func (g *gate) queue(h *heldEvent, hold time.Duration, last bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if hold == 0 && len(g.held) == 0 {
		g.put(h.ev)
		return
	}
	h.ev.ID, h.ev.Type, h.ev.Data, h.ev.Comment = bytes.Clone(h.ev.ID), bytes.Clone(h.ev.Type), bytes.Clone(h.ev.Data), bytes.Clone(h.ev.Comment)
	now := time.Now()
	h.until = now.Add(hold)
	g.held = append(g.held, h)
	h.size = len(h.ev.Data) + len(h.original)
	g.size += h.size
	for len(g.held) > 0 && (last || len(g.held) > maxHeld || g.size > maxSize) {
		g.releaseLocked()
	}
	g.againLocked(now)
}

// releaseLocked passes the first event on that waits.
func (g *gate) releaseLocked() {
	h := g.held[0]
	g.held[0] = nil
	g.held = g.held[1:]
	g.size -= h.size
	if !h.dropped {
		g.put(h.ev)
	}
}

// due passes on what has waited long enough.
func (g *gate) due() {
	g.mu.Lock()
	defer g.mu.Unlock()
	now := time.Now()
	for len(g.held) > 0 && !g.done && !g.held[0].until.After(now) {
		g.releaseLocked()
	}
	g.againLocked(now)
}

// againLocked sets the clock for the first that waits.
func (g *gate) againLocked(now time.Time) {
	switch {
	case len(g.held) == 0 || g.done:
	case g.timer == nil:
		g.timer = time.AfterFunc(g.held[0].until.Sub(now), g.due)
	default:
		g.timer.Reset(g.held[0].until.Sub(now))
	}
}

// close passes on what waits. Nothing may pass any more.
func (g *gate) close() {
	g.mu.Lock()
	defer g.mu.Unlock()
	for len(g.held) > 0 {
		g.releaseLocked()
	}
	g.done = true
	if g.timer != nil {
		g.timer.Stop()
	}
}

// refuseAsking answers a target's request that the client is not shown. It has x to itself.
func (x *Request) refuseAsking(t *snapshot.Target, id []byte, code int, message string) {
	if x.Session == nil {
		return
	}
	ctx, cancel := x.mux.fanOut(context.WithoutCancel(x.HTTP.Context()), t)
	defer cancel()
	x.Record = &Record{}
	if resp, err := x.send(ctx, t, outgoing{body: mcp.AppendError(nil, id, code, message, nil)}); err == nil {
		_ = resp.Body.Close()
	}
}
