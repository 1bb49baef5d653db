package mux

import (
	"context"
	"errors"
	"net/http"
	"sync"
	"time"

	"github.com/sluicegate/sluice/dataplane/mcp"
	"github.com/sluicegate/sluice/dataplane/session"
	"github.com/sluicegate/sluice/dataplane/snapshot"
	"github.com/sluicegate/sluice/dataplane/upstream"
)

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
		resp, err := x.openWhere(ctx, t, f.seen)
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

// openWhere opens a target's stream where it stood, or anew where the target does not know that any more: servers restart, and keep what
// they said for so long.
func (x *Request) openWhere(ctx context.Context, t *snapshot.Target, seen *positions) (*upstream.Response, error) {
	from := seen.of(t.Name)
	x.Record.Status = 0
	resp, err := x.open(ctx, t, from)
	if from == "" {
		return resp, err
	}
	switch x.Record.Status {
	case http.StatusBadRequest, http.StatusNotFound, http.StatusGone:
	default:
		return resp, err
	}
	if err == nil {
		_ = resp.Body.Close()
	}
	seen.forget(t.Name)
	return x.open(ctx, t, "")
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

func (p *positions) forget(target string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.last, target)
}

// after seals the position after a target's event. Beside a target whose ids go as they are the others give none: an
// id cannot stand for both.
func (p *positions) after(x *Request, t *snapshot.Target, id string) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	event := mcp.Event{ID: []byte(id)}
	if kept := string(event.Place()); kept != "" {
		p.last[t.Name] = kept
	} else {
		delete(p.last, t.Name)
	}
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
