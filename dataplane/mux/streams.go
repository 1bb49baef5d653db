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

// stream serves GET: what targets say outside of calls.
func (m *Mux) stream(w http.ResponseWriter, x *Request) error {
	if t := x.alone(); t != nil {
		return m.streamOne(w, x, t, x.Verdict.LastID, x.Verdict.LastID != "")
	}
	if x.Verdict.LastID != "" {
		// An id that does not open is from another session or older than the keys: the stream begins anew.
		if p, err := x.Codec.OpenPosition(x.Scope, x.Session.Nonce, x.Verdict.LastID); err == nil {
			if !p.Merged && len(p.Events) == 1 {
				if t := x.target(p.Events[0].Target); t != nil {
					return m.streamOne(w, x, t, p.Events[0].ID, true)
				}
			}
			return m.streamAll(w, x, p)
		}
	}
	return m.streamAll(w, x, session.Position{})
}

// streamOne passes one target's stream on: the only target's, or one of a POST that is resumed.
func (m *Mux) streamOne(w http.ResponseWriter, x *Request, t *snapshot.Target, lastID string, resumed bool) error {
	ctx, cancel := context.WithCancelCause(x.HTTP.Context())
	defer cancel(nil)
	x.Record.Target = t.Name
	resp, err := x.open(ctx, t, lastID)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	x.head(w, t, resp)
	out := newSink(w, m.cfg.KeepAlive)
	defer out.close()
	open := m.streams.add(x, out, cancel)
	defer m.streams.remove(open)
	stop := context.AfterFunc(ctx, func() { _ = resp.Body.Close() })
	defer stop()
	if !x.wraps(t) && !x.watches(t) {
		out.copy(resp.Body)
		return nil
	}
	_ = x.follow(t, resp.Body, out, nil)
	return nil
}

// follow translates a target's events for the client until the stream ends.
func (x *Request) follow(t *snapshot.Target, body io.Reader, out *sink, position func(id string) string) error {
	events := mcp.NewEventReader(body, x.mux.maxBytes())
	for {
		ev, err := events.Next()
		if err != nil {
			return err
		}
		if err := x.translate(t, &ev, position); err != nil {
			x.Record.Err = err
			return err
		}
		if ev.IsNote { // ours are enough
			continue
		}
		out.event(ev)
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
	if resp.Status == http.StatusOK && contentType(resp.Header) != streamType {
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
	return x.exchange(ctx, t, &upstream.Request{Method: http.MethodGet, Header: h, Principal: x.Principal}, leg)
}

// headWait is how long the merged stream waits for its targets before it answers: many send their head only with
// their first event.
const headWait = 2 * time.Second

// streamAll merges the streams of all targets. One that ends is opened again; the client's ends with the last.
func (m *Mux) streamAll(w http.ResponseWriter, x *Request, from session.Position) error {
	ctx, cancel := context.WithCancelCause(x.HTTP.Context())
	defer cancel(nil)
	var out *sink
	begun := make(chan struct{}) // closed when out is there
	seen := positions{codec: x, last: map[string]string{}}
	for _, e := range from.Events {
		seen.last[e.Target] = e.ID
	}
	heads := make(chan error, len(x.Backend.Targets))
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel(nil)
	for _, t := range x.Backend.Targets {
		own := *x
		own.Record = &Record{}
		wg.Go(func() {
			own.refollow(ctx, t, &seen, func(err error) bool {
				heads <- err
				select {
				case <-begun:
					return err == nil || !errors.Is(err, errNoStream)
				case <-ctx.Done():
					return false
				}
			}, func() *sink { return out })
		})
	}
	if err := x.heads(heads); err != nil {
		return err
	}
	h := w.Header()
	h["Content-Type"] = []string{streamType}
	h["X-Accel-Buffering"] = []string{"no"}
	h["Cache-Control"] = []string{"no-cache"}
	w.WriteHeader(http.StatusOK)
	out = newSink(w, m.cfg.KeepAlive)
	defer out.close()
	open := m.streams.add(x, out, cancel)
	defer m.streams.remove(open)
	close(begun)
	ended := make(chan struct{})
	go func() { wg.Wait(); close(ended) }()
	select {
	case <-ctx.Done():
	case <-ended:
	}
	cancel(nil)
	wg.Wait() // nobody writes to out any more
	return nil
}

// heads waits until a target streams, or all have said that they do not.
func (x *Request) heads(heads <-chan error) error {
	timer := time.NewTimer(headWait)
	defer timer.Stop()
	var first error
	none := 0
	for range x.Backend.Targets {
		select {
		case err := <-heads:
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
		case <-x.HTTP.Context().Done():
			return context.Cause(x.HTTP.Context())
		}
	}
	if first == nil || none > 0 && failsOpen(x.Backend) {
		return x.noStream()
	}
	return first
}

// errNoStream: the target has no stream of its own, and never will.
var errNoStream = errors.New("the target offers no stream")

// refollow keeps a target's stream open. told is called once, when it is known whether the target streams; it returns
// false to give up.
func (x *Request) refollow(ctx context.Context, t *snapshot.Target, seen *positions, told func(error) bool, out func() *sink) {
	wait := time.Second
	first := true
	for ctx.Err() == nil {
		resp, err := x.open(ctx, t, seen.of(t.Name))
		if e, ok := errors.AsType[*mcp.Error](err); ok && e.Status == http.StatusMethodNotAllowed {
			err = errNoStream
		}
		if first {
			if !told(err) {
				if err == nil {
					_ = resp.Body.Close()
				}
				return
			}
			first = false
		}
		if errors.Is(err, errNoStream) {
			return
		}
		if err == nil {
			began := time.Now()
			stop := context.AfterFunc(ctx, func() { _ = resp.Body.Close() })
			_ = x.follow(t, resp.Body, out(), func(id string) string { return seen.after(t.Name, id) })
			stop()
			_ = resp.Body.Close()
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

// positions are where the merged stream stands: the last event of each target.
type positions struct {
	codec *Request
	mu    sync.Mutex
	last  map[string]string // guarded by mu
}

func (p *positions) of(target string) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.last[target]
}

// after seals the position after a target's event.
func (p *positions) after(target, id string) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.last[target] = id
	pos := session.Position{Merged: true}
	for _, t := range p.codec.Backend.Targets {
		if id, ok := p.last[t.Name]; ok {
			pos.Events = append(pos.Events, session.Event{Target: t.Name, ID: id})
		}
	}
	return p.codec.Codec.SealPosition(p.codec.Scope, p.codec.Session.Nonce, pos)
}
