package mux

import (
	"bytes"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/sluicegate/sluice/dataplane/mcp"
)

var messageType = []byte("message")

// A sink is a client's event stream. Several may write to it; between events it keeps itself alive by comments.
type sink struct {
	mu       sync.Mutex
	w        http.ResponseWriter // guarded by mu
	flush    func() error        // guarded by mu
	events   *mcp.EventWriter    // guarded by mu
	tail     [4]byte             // guarded by mu; the last bytes written, to know where an event ends
	waiting  []mcp.Event         // guarded by mu; what came while another event was under way
	size     int                 // guarded by mu; of waiting, in bytes
	held     bool                // guarded by mu; nothing of ours before the first that passes through
	last     time.Time           // guarded by mu
	gone     bool                // guarded by mu; the client is not there any more
	done     bool                // guarded by mu
	timer    *time.Timer
	interval time.Duration
}

func newSink(w http.ResponseWriter, interval time.Duration) *sink {
	rc := http.NewResponseController(w)
	s := &sink{w: w, flush: rc.Flush, tail: [4]byte{0, 0, '\n', '\n'}, last: time.Now(), interval: interval}
	s.events = mcp.NewEventWriter(w, rc.Flush)
	s.gone = rc.Flush() != nil
	s.timer = time.AfterFunc(interval, s.keepAlive)
	return s
}

// hold makes what the proxy itself has to say wait for the first event that passes through.
func (s *sink) hold() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.held = true
}

// keepAlive writes a comment if nothing was written for long, between events alone.
func (s *sink) keepAlive() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.done || s.gone {
		return
	}
	idle := time.Since(s.last)
	if idle >= s.interval && s.betweenLocked() {
		s.wroteLocked(s.events.Comment("keep-alive"))
		idle = 0
	}
	s.timer.Reset(max(s.interval-idle, time.Second))
}

// pass passes one of a target's events on, as soon as the one under way is over.
func (s *sink) pass(ev mcp.Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.done || s.gone {
		return
	}
	s.held = false
	if s.betweenLocked() {
		s.wroteLocked(s.events.Write(ev))
	} else {
		ev.ID, ev.Type, ev.Data = bytes.Clone(ev.ID), bytes.Clone(ev.Type), bytes.Clone(ev.Data)
		s.waitLocked(ev)
	}
	s.flushLocked()
}

// end passes the event that ends the stream: what waits, and what anybody has to say later, comes too late.
func (s *sink) end(ev mcp.Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.done || s.gone {
		return
	}
	s.held, s.waiting, s.size = false, nil, 0
	if s.betweenLocked() {
		s.wroteLocked(s.events.Write(ev))
	}
	s.closeLocked()
}

// message writes one JSON-RPC message of the proxy's own, as soon as the event under way is over. raw must not change
// afterwards.
func (s *sink) message(raw []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.waitLocked(mcp.Event{Type: messageType, Data: raw, HasData: true})
	s.flushLocked()
}

// maxWaiting and maxWaitingSize bound what waits for the end of an event. A target that never ends one costs the client what came
// then, and no memory.
const (
	maxWaiting     = 256
	maxWaitingSize = 1 << 20 // bytes, beside one message
)

func (s *sink) waitLocked(ev mcp.Event) {
	size := len(ev.ID) + len(ev.Type) + len(ev.Data)
	if len(s.waiting) < maxWaiting && (len(s.waiting) == 0 || s.size+size <= maxWaitingSize) {
		s.waiting = append(s.waiting, ev)
		s.size += size
	}
}

// flushLocked writes what waits, if it may be written now.
func (s *sink) flushLocked() {
	for len(s.waiting) > 0 && !s.done && !s.gone && s.betweenLocked() {
		ev := s.waiting[0]
		s.waiting[0], s.waiting = mcp.Event{}, s.waiting[1:]
		s.size -= len(ev.ID) + len(ev.Type) + len(ev.Data)
		s.wroteLocked(s.events.Write(ev))
	}
}

// copy passes bytes on as they come, and returns how r ends: io.EOF, as a rule. When the client is gone it reads on.
func (s *sink) copy(r io.Reader) error {
	buf := make([]byte, 2<<10) // a parked stream keeps no more than this
	for {
		n, err := r.Read(buf)
		if n > 0 {
			s.raw(buf[:n])
		}
		if err != nil {
			return err
		}
		if n == len(buf) && n < 32<<10 {
			buf = make([]byte, 2*n)
		}
	}
}

func (s *sink) raw(b []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.done || s.gone {
		return
	}
	s.held = false
	_, err := s.w.Write(b)
	if err == nil {
		err = s.flush()
	}
	if len(b) >= len(s.tail) {
		copy(s.tail[:], b[len(b)-len(s.tail):])
	} else {
		copy(s.tail[:], s.tail[len(b):])
		copy(s.tail[len(s.tail)-len(b):], b)
	}
	s.wroteLocked(err)
	s.flushLocked()
}

// betweenLocked reports whether a comment may be written: the stream stands between two events.
func (s *sink) betweenLocked() bool { return !s.held && mcp.EndsEvent(s.tail[:]) }

func (s *sink) wroteLocked(err error) {
	s.last = time.Now()
	s.gone = s.gone || err != nil
}

// close ends all writing; the handler may return.
func (s *sink) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closeLocked()
}

func (s *sink) closeLocked() {
	s.done = true
	s.timer.Stop()
}
