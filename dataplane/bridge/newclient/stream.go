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

// A stream that ended is opened again after streamRetry, or what the target says if that is longer; and ever later while it
// ends at once.
const (
	streamRetry = time.Second
	maxRetry    = 30 * time.Second
)

// errNoStream: the target offers none.
var errNoStream = errors.New("the target offers no stream")

// keepStream reads the stream, and opens it again when it ends: what changed meanwhile was missed.
func (s *peer) keepStream() {
	first := sync.OnceFunc(func() { close(s.stream.opened) })
	defer first()
	var last []byte
	least, wait := streamRetry, streamRetry
	opened := false
	for again := false; ; again = true {
		resp, err := s.open(s.ctx, string(last), opened)
		if errors.Is(err, errNoStream) {
			if opened {
				s.retire() // who listens here would hear nothing any more
			} else {
				s.stream.none = true
			}
			return
		}
		if err == nil {
			first()
			if again {
				s.missed()
			}
			opened = true
			began := time.Now()
			s.readStream(s.ctx, resp, &last, &least)
			if time.Since(began) > wait {
				wait = 0
			}
			wait = max(wait, least)
		}
		select {
		case <-time.After(wait):
		case <-s.ctx.Done():
			return
		}
		wait = min(2*wait, maxRetry)
	}
}

// open opens the stream, or goes on with one. known says that the target has one: there, 404 is about the session. Else it may as
// well be about the method, from a server that routes POST alone, and says nothing of a session that was only just begun.
func (s *peer) open(ctx context.Context, last string, known bool) (*upstream.Response, error) {
	resp, err := s.get(ctx, last)
	if err != nil {
		return nil, err
	}
	switch {
	case resp.Status == http.StatusOK && mcp.MediaType(resp.Header) == mcp.TypeStream:
		return resp, nil
	case known && s.forgotten(resp):
		s.lost()
		err = errLost
	case unauthorized(resp), resp.Status == http.StatusNotFound, resp.Status == http.StatusMethodNotAllowed, resp.Status < 500 && resp.Status != http.StatusTooManyRequests && s.id == "":
		err = errNoStream
	default:
		err = &upstream.Error{Op: "open the stream", Target: s.t.Resource, Sent: true, Err: errNoAnswer}
	}
	_ = resp.Body.Close()
	return nil, err
}

func (s *peer) get(ctx context.Context, last string) (*upstream.Response, error) {
	v := s.voice.Load()
	from := &upstream.Request{Header: v.header, Call: v.who, Safe: true}
	if last != "" {
		from.Header = v.header.Clone()
		from.Header[mcp.HeaderLastEventID] = []string{last}
	}
	return s.do(ctx, http.MethodGet, "", nil, from)
}

// resume goes on with the stream of a call that broke.
func (s *peer) resume(ctx context.Context, last string) (*upstream.Response, error) {
	return s.open(ctx, last, true)
}

// readStream reads the stream until it ends. retry is how long to wait before the next, where the target says it.
func (s *peer) readStream(ctx context.Context, resp *upstream.Response, last *[]byte, retry *time.Duration) {
	defer resp.Body.Close()
	stop := context.AfterFunc(ctx, func() { _ = resp.Body.Close() })
	defer stop()
	events := mcp.NewEventReader(resp.Body, s.b.cfg.Limits.MaxBytes())
	said := false
	for {
		ev, err := events.Next()
		if err != nil {
			return
		}
		if ev.HasID {
			*last = append((*last)[:0], ev.Place()...)
		}
		if ev.HasRetry {
			*retry = min(max(ev.Retry, streamRetry), maxRetry)
		}
		if !ev.IsMessage() {
			continue
		}
		m, err := mcp.Scan(bytes.Clone(ev.Data), s.b.cfg.Limits)
		if err != nil {
			if !said { // once for each stream: it may be all that comes
				s.b.log.Warn("target sent what is no message", "target", s.t.Resource, "err", err)
				said = true
			}
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
		switch {
		case news(m.Method):
			s.changed(m)
		case m.Method == "notifications/progress":
			if k := s.waiting(m.ProgressToken.Of(m.Body)); k != nil {
				k.noted(m)
			}
		case m.Method == "notifications/cancelled":
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
