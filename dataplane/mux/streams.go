package mux

import (
	"context"
	"io"
	"net/http"

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
	seen := map[string]string{}
	if last := x.Verdict.LastID; last != "" {
		p, err := x.Codec.OpenPosition(x.Scope, x.Session.Nonce, last)
		switch bare := x.bare(); {
		case err == nil && !p.Merged && len(p.Events) == 1:
			if t := x.target(p.Events[0].Target); t != nil {
				if p.Asked != "" {
					x.resumed = []byte(p.Asked)
				}
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
	if t := x.alone(); t != nil {
		return m.streamOne(w, x, t, seen[t.Name], false)
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
	if mcp.MediaType(resp.Header) != mcp.TypeStream {
		return x.relay(ctx, w, t, resp, item{})
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
	if x.alone() != nil && !x.watches(t) {
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
