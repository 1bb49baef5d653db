package newclient

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"sync"
	"time"

	"github.com/sluicegate/sluice/dataplane/mcp"
	"github.com/sluicegate/sluice/dataplane/upstream"
)

// stream is the standing stream of a session: what the target says outside of calls, and some of what it says in them.
type stream struct {
	once sync.Once
	// opened is closed when the first attempt to open it came to something. none is written before: the target has no
	// such stream.
	opened chan struct{}
	none   bool
}

// follow opens the stream, once, and keeps it open while the session lives.
func (s *peer) follow() {
	s.stream.once.Do(func() { s.b.ending.Go(s.keepStream) })
}

// errNoStream: the target offers none.
var errNoStream = errors.New("the target offers no stream")

// keepStream reads the stream, and opens it again when it ends: what changed meanwhile was missed.
func (s *peer) keepStream() {
	first := sync.OnceFunc(func() { close(s.stream.opened) })
	defer first()
	ctx, cancel := context.WithCancelCause(s.ctx)
	defer cancel(nil)
	go func() {
		select {
		case <-s.gone:
			cancel(errRetired)
		case <-ctx.Done():
		}
	}()
	var last []byte
	wait := time.Second
	for again := false; ; again = true {
		resp, err := s.open(ctx, string(last))
		if errors.Is(err, errNoStream) {
			s.stream.none = !again // known before it was ever open, or it is too late to matter
			return
		}
		if err == nil {
			first()
			if again {
				s.missed()
			}
			began := time.Now()
			s.readStream(ctx, resp, &last)
			if time.Since(began) > wait {
				wait = time.Second
			}
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return
		}
		wait = min(2*wait, 30*time.Second)
	}
}

// open opens the stream, or goes on with one.
func (s *peer) open(ctx context.Context, last string) (*upstream.Response, error) {
	resp, err := s.get(ctx, last)
	if err != nil {
		return nil, err
	}
	switch {
	case resp.Status == http.StatusOK && mcp.MediaType(resp.Header) == mcp.TypeStream:
		return resp, nil
	case resp.Status == http.StatusNotFound && s.id != "":
		s.lost()
		err = errLost
	case resp.Status == http.StatusMethodNotAllowed, resp.Status < 500 && resp.Status != http.StatusTooManyRequests && s.id == "":
		err = errNoStream
	default:
		err = &upstream.Error{Op: "open the stream", Target: s.t.Resource, Sent: true, Err: errNoAnswer}
	}
	_ = resp.Body.Close()
	return nil, err
}

func (s *peer) get(ctx context.Context, last string) (*upstream.Response, error) {
	from := &upstream.Request{Header: s.header, Call: s.who, Safe: true}
	if last != "" {
		from.Header = s.header.Clone()
		from.Header[mcp.HeaderLastEventID] = []string{last}
	}
	return s.do(ctx, http.MethodGet, nil, from)
}

// resume goes on with the stream of a call that broke.
func (s *peer) resume(ctx context.Context, last string) (*upstream.Response, error) {
	return s.open(ctx, last)
}

// readStream reads the stream until it ends.
func (s *peer) readStream(ctx context.Context, resp *upstream.Response, last *[]byte) {
	defer resp.Body.Close()
	stop := context.AfterFunc(ctx, func() { _ = resp.Body.Close() })
	defer stop()
	events := mcp.NewEventReader(resp.Body, s.b.cfg.Limits.MaxBytes())
	for {
		ev, err := events.Next()
		if err != nil {
			return
		}
		if ev.HasID {
			*last = append((*last)[:0], ev.ID...)
		}
		if !ev.IsMessage() {
			continue
		}
		m, err := mcp.Scan(bytes.Clone(ev.Data), s.b.cfg.Limits)
		if err != nil {
			s.b.log.Warn("target sent what is no message", "target", s.t.Resource, "err", err)
			continue
		}
		s.heard(&m)
	}
}

// heard takes a message of the standing stream.
func (s *peer) heard(m *mcp.Message) {
	switch m.Kind {
	case mcp.Request:
		if m.Method == "ping" {
			s.outside(m)
			return
		}
		s.serial.Store(s.client.asked()) // over HTTP too, as it turns out
		if k := s.meant(); k != nil {
			k.asked(m)
			return
		}
		s.outside(m)
	case mcp.Notification:
		switch m.Method {
		case "notifications/tools/list_changed", "notifications/prompts/list_changed", "notifications/resources/list_changed", "notifications/resources/updated":
			s.changed(m)
		case "notifications/progress":
			if k := s.waiting(m.ProgressToken.Of(m.Body)); k != nil {
				k.noted(m)
			}
		case "notifications/cancelled":
			for _, k := range s.openCalls() {
				k.noted(m) // each knows its own
			}
		default:
			if k := s.meant(); k != nil {
				k.noted(m)
			}
		}
	}
}

// openCalls are the calls that are not over.
func (s *peer) openCalls() []*call {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]*call, 0, len(s.calls))
	for _, k := range s.calls {
		all = append(all, k)
	}
	return all
}

// meant is the call that a message of the standing stream can only belong to: the one that is running, for one that is
// parked waits for the proxy itself; or the only one there is. Nil: there is none, or nobody can tell.
func (s *peer) meant() *call {
	var run, rest []*call
	for _, k := range s.openCalls() {
		switch {
		case !asking(k.method):
		case k.isRunning():
			run = append(run, k)
		default:
			rest = append(rest, k)
		}
	}
	switch {
	case len(run) == 1:
		return run[0]
	case len(run) == 0 && len(rest) == 1:
		return rest[0]
	}
	return nil
}

// waiting is the one call with a progress token.
func (s *peer) waiting(token []byte) (found *call) {
	for _, k := range s.openCalls() {
		if k.token != nil && idKey(k.token) == idKey(token) {
			if found != nil {
				return nil // of two clients that share the session
			}
			found = k
		}
	}
	return found
}
