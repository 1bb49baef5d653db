package mux

import (
	"context"
	"errors"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/sluicegate/sluice/dataplane/mcp"
	"github.com/sluicegate/sluice/dataplane/session"
	"github.com/sluicegate/sluice/dataplane/snapshot"
	"github.com/sluicegate/sluice/dataplane/upstream"
)

// stream serves GET: what targets say outside of calls. It outlives configurations: targets that join are followed too,
// and those that leave are not any more.
func (m *Mux) stream(w http.ResponseWriter, x *Request) error {
	if err := m.streams.room(x); err != nil {
		return err
	}
	last := x.Verdict.LastID
	if t := x.alone(); t != nil {
		return m.streamOne(w, x, t, last, false)
	}
	seen := map[string]string{}
	if last != "" {
		p, err := x.Codec.OpenPosition(x.Scope, x.Session.Nonce, last)
		switch bare := x.bare(); {
		case err == nil && !p.Merged && len(p.Events) == 1:
			if t := x.target(p.Events[0].Target); t != nil {
				return m.streamOne(w, x, t, p.Events[0].ID, true)
			}
		case err == nil:
			for _, e := range p.Events {
				seen[e.Target] = e.ID
			}
		case bare != nil:
			seen[bare.Name] = last
		} // else it is from another session, or older than the keys: the stream begins anew
	}
	return m.streamAll(w, x, seen)
}

// bare is the target whose names, URIs and ids go as they are, nil if there is none.
func (x *Request) bare() *snapshot.Target {
	for _, t := range x.Backend.Targets {
		if !x.wraps(t) {
			return t
		}
	}
	return nil
}

// streamOne passes one target's stream on and ends with it: the only target's, or one of a POST that is resumed.
func (m *Mux) streamOne(w http.ResponseWriter, x *Request, t *snapshot.Target, lastID string, resumed bool) error {
	ctx, cancel := context.WithCancelCause(x.HTTP.Context())
	defer cancel(nil)
	x.Record.Target = t.Name
	resp, err := x.open(ctx, t, lastID)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if err := x.head(w, t, resp); err != nil {
		return err
	}
	out := newSink(w, m.cfg.KeepAlive)
	defer out.close()
	in := newFanIn(ctx, x, out, nil)
	defer in.wait()
	defer cancel(nil)
	in.has(t, func() { cancel(errMoved) })
	var open *openStream
	if resumed {
		open = m.streams.addResumed(x, out, cancel)
	} else {
		open = m.streams.add(x, out, cancel)
		open.reach(in)
	}
	defer m.streams.remove(open)
	stop := context.AfterFunc(ctx, func() { _ = resp.Body.Close() })
	defer stop()
	if !x.wraps(t) && !x.watches(t) {
		_ = out.copy(resp.Body) // its client opens another, however it ends
		return nil
	}
	_ = x.follow(t, resp.Body, nil, out.pass)
	return nil
}

// streamAll merges the streams of all targets. One that ends is opened again; the client's ends with the last.
func (m *Mux) streamAll(w http.ResponseWriter, x *Request, seen map[string]string) error {
	ctx, cancel := context.WithCancelCause(x.HTTP.Context())
	defer cancel(nil)
	in := newFanIn(ctx, x, nil, seen)
	defer in.wait()
	defer cancel(nil)
	in.follow(x)
	if err := in.heads(x); err != nil {
		return err
	}
	h := w.Header()
	h["Content-Type"] = []string{mcp.TypeStream}
	h["X-Accel-Buffering"] = []string{"no"}
	h["Cache-Control"] = []string{"no-cache"}
	if err := x.inCommon(h); err != nil {
		return err
	}
	w.WriteHeader(http.StatusOK)
	out := newSink(w, m.cfg.KeepAlive)
	defer out.close()
	in.begin(out)
	open := m.streams.add(x, out, cancel)
	open.reach(in)
	defer m.streams.remove(open)
	select {
	case <-ctx.Done():
	case <-in.ended:
	}
	cancel(nil)
	in.wait() // nobody writes to out any more
	return nil
}

// follow translates a target's events for the client, and puts them, until the stream ends.
func (x *Request) follow(t *snapshot.Target, body io.Reader, position func(id string) string, put func(mcp.Event)) error {
	events := mcp.NewEventReader(body, x.mux.cfg.Limits.MaxBytes())
	gate := x.gate(t, position, put)
	defer gate.close()
	for {
		ev, err := events.Next()
		if err != nil {
			return err
		}
		if ev.IsNote { // ours are enough
			continue
		}
		if err := gate.pass(ev); err != nil {
			x.Record.Err = err
			return err
		}
	}
}

// open opens a target's GET stream.
func (x *Request) open(ctx context.Context, t *snapshot.Target, lastID string) (*upstream.Response, error) {
	if t.Refused != nil {
		return nil, x.refusedConfig(t)
	}
	leg, err := x.leg(ctx, t)
	if err != nil {
		return nil, err
	}
	resp, err := x.get(ctx, t, leg, lastID)
	if err != nil {
		return nil, err
	}
	if resp.Status == http.StatusNotFound && leg.ID != "" {
		_ = resp.Body.Close()
		if leg, err = x.lost(ctx, t, leg, true); err != nil {
			return nil, err
		}
		if resp, err = x.get(ctx, t, leg, ""); err != nil {
			return nil, err
		}
	}
	if resp.Status == http.StatusMethodNotAllowed {
		_ = resp.Body.Close()
		return nil, x.noStream()
	}
	if resp.Status == http.StatusOK && mcp.MediaType(resp.Header) != mcp.TypeStream {
		_ = resp.Body.Close()
		return nil, x.notMCP(t, resp)
	}
	return x.check(t, resp)
}

func (x *Request) noStream() error {
	e := x.fail(http.StatusMethodNotAllowed, mcp.CodeInvalidRequest, "no target offers a stream of its own")
	e.Allow = "POST, DELETE"
	return e
}

func (x *Request) get(ctx context.Context, t *snapshot.Target, leg session.Target, lastID string) (*upstream.Response, error) {
	h := x.header(t, leg, "", "")
	h["Accept"] = acceptStream
	delete(h, "Content-Type")
	if lastID != "" {
		h[mcp.HeaderLastEventID] = []string{lastID}
	}
	return x.exchange(ctx, t, x.transport(t, leg), &upstream.Request{Method: http.MethodGet, Header: h, Call: x.calling(t, outgoing{})}, leg)
}

// headWait is how long the merged stream waits for its targets before it answers: many send their head only with
// their first event.
const headWait = 2 * time.Second

// errNoStream: the target has no stream of its own, and never will.
var errNoStream = errors.New("the target offers no stream")

// fanIn brings the streams of several targets to one client.
type fanIn struct {
	ctx   context.Context // of the client's request, which all of this is a part of
	seen  *positions
	told  chan error    // one for each target that was there at first: nil, it streams
	ready chan struct{} // closed when out is there
	ended chan struct{} // closed when the last target's stream is over for good
	wg    sync.WaitGroup

	mu      sync.Mutex
	out     *sink              // guarded by mu until ready
	legs    map[string]*fanLeg // guarded by mu; by target
	running int                // guarded by mu
	over    bool               // guarded by mu
}

type fanLeg struct {
	place uint32
	stop  func()
}

// newFanIn begins without targets. With out it is ready, else events wait for begin.
func newFanIn(ctx context.Context, x *Request, out *sink, seen map[string]string) *fanIn {
	if seen == nil {
		seen = map[string]string{}
	}
	f := &fanIn{
		ctx: ctx, seen: &positions{last: seen}, out: out, legs: map[string]*fanLeg{},
		told: make(chan error, len(x.Backend.Targets)), ready: make(chan struct{}), ended: make(chan struct{}),
	}
	if out != nil {
		close(f.ready)
	}
	return f
}

func (f *fanIn) begin(out *sink) {
	f.mu.Lock()
	f.out = out
	f.mu.Unlock()
	close(f.ready)
}

// has notes a target that somebody else follows; stop is called when the target is gone.
func (f *fanIn) has(t *snapshot.Target, stop func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.legs[t.Name] = &fanLeg{place(t), stop}
	f.running++ // it is never over before its owner is
}

// follow starts and stops so that just the targets of x are followed.
func (f *fanIn) follow(x *Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.over || f.ctx.Err() != nil {
		return
	}
	for name, leg := range f.legs {
		if t := x.target(name); t == nil || place(t) != leg.place {
			leg.stop()
			delete(f.legs, name)
		}
	}
	for _, t := range x.Backend.Targets {
		if f.legs[t.Name] != nil {
			continue
		}
		ctx, cancel := context.WithCancel(f.ctx)
		f.legs[t.Name] = &fanLeg{place(t), cancel}
		f.running++
		own := *x
		own.Record = &Record{}
		f.wg.Go(func() {
			defer cancel()
			own.refollow(ctx, t, f)
			f.mu.Lock()
			defer f.mu.Unlock()
			if f.running--; f.running == 0 && !f.over {
				f.over = true
				close(f.ended)
			}
		})
	}
}

// wait lets nothing begin any more, and waits for what runs; its context is cancelled.
func (f *fanIn) wait() {
	f.mu.Lock()
	f.over = true
	f.mu.Unlock()
	f.wg.Wait()
}

// heads waits until a target streams, or all have said that they do not.
func (f *fanIn) heads(x *Request) error {
	timer := time.NewTimer(headWait)
	defer timer.Stop()
	var first error
	none := 0
	for range x.Backend.Targets {
		select {
		case err := <-f.told:
			if err == nil {
				return nil
			}
			if errors.Is(err, errNoStream) {
				none++
			} else if first == nil {
				first = err
			}
		case <-timer.C:
			return nil
		case <-f.ctx.Done():
			return context.Cause(f.ctx)
		}
	}
	if first == nil || none > 0 && failsOpen(x.Backend) {
		return x.noStream()
	}
	return first
}

// refollow keeps a target's stream open until ctx ends or the target says that it has none.
func (x *Request) refollow(ctx context.Context, t *snapshot.Target, f *fanIn) {
	wait := time.Second
	for first := true; ctx.Err() == nil; first = false {
		resp, err := x.open(ctx, t, f.seen.of(t.Name))
		if e, ok := errors.AsType[*mcp.Error](err); ok && e.Status == http.StatusMethodNotAllowed {
			err = errNoStream
		}
		if first {
			select {
			case f.told <- err:
			default: // it joined later, nobody waits for it
			}
		}
		if errors.Is(err, errNoStream) {
			return
		}
		if err == nil {
			began := time.Now()
			x.followUntil(ctx, t, resp, f)
			if time.Since(began) > wait {
				wait = time.Second
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
		wait = min(2*wait, 30*time.Second)
	}
}

func (x *Request) followUntil(ctx context.Context, t *snapshot.Target, resp *upstream.Response, f *fanIn) {
	defer resp.Body.Close()
	stop := context.AfterFunc(ctx, func() { _ = resp.Body.Close() })
	defer stop()
	select {
	case <-f.ready:
	case <-ctx.Done():
		return
	}
	_ = x.follow(t, resp.Body, func(id string) string { return f.seen.after(x, t, id) }, f.out.pass)
}

// positions are where the merged stream stands: the last event of each target.
type positions struct {
	mu   sync.Mutex
	last map[string]string // guarded by mu
}

func (p *positions) of(target string) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.last[target]
}

// after seals the position after a target's event. Beside a target whose ids go as they are the others give none: an
// id cannot stand for both.
func (p *positions) after(x *Request, t *snapshot.Target, id string) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.last[t.Name] = id
	switch bare := x.bare(); {
	case bare == t:
		return id
	case bare != nil:
		return ""
	}
	pos := session.Position{Merged: true}
	for _, t := range x.Backend.Targets {
		if id, ok := p.last[t.Name]; ok {
			pos.Events = append(pos.Events, session.Event{Target: t.Name, ID: id})
		}
	}
	return x.Codec.SealPosition(x.Scope, x.Session.Nonce, pos)
}
