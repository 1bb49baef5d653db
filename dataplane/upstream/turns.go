package upstream

import (
	"bytes"
	"container/list"
	"context"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/sluicegate/sluice/dataplane/mcp"
	"github.com/sluicegate/sluice/dataplane/snapshot"
)

// turns bounds the calls of a target that run at a time, whatever snapshots and routes they come through. Who waits is
// served in the order in which they came.
type turns struct {
	mu      sync.Mutex // guards what is below
	running int
	waiting list.List         // of *turn
	held    map[string]func() // what gives the turn of a session's call, by callKey
}

type turn struct {
	most int
	come chan struct{} // closed when it has
}

// take takes a turn of at most most that run, and waits for it up to a time; else ErrFull.
func (s *turns) take(ctx context.Context, most int, wait time.Duration) error {
	s.mu.Lock()
	if s.running < most && s.waiting.Len() == 0 {
		s.running++
		s.mu.Unlock()
		return nil
	}
	if wait <= 0 {
		s.mu.Unlock()
		return ErrFull
	}
	own := &turn{most, make(chan struct{})}
	place := s.waiting.PushBack(own)
	s.mu.Unlock()
	timer := time.NewTimer(wait)
	defer timer.Stop()
	err := ErrFull
	select {
	case <-own.come:
		return nil
	case <-ctx.Done():
		err = context.Cause(ctx)
	case <-timer.C:
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case <-own.come: // just now
		return nil
	default:
		s.waiting.Remove(place)
		s.callLocked() // who stood behind it may have a wider bound
		return err
	}
}

// give ends a turn.
func (s *turns) give() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.running--
	s.callLocked()
}

// hold returns what gives a turn that was taken for r: once, when its answer is over or its client has cancelled it, whichever is first.
func (s *turns) hold(r *Request) (give func()) {
	key := ""
	if r.Header.Get(sessionHeader) != "" { // else nobody could cancel it by a message
		if m, err := mcp.Scan(r.Body, mcp.Limits{Bytes: len(r.Body)}); err == nil {
			key = callKey(r, m.RawID())
		}
	}
	if key == "" {
		return sync.OnceFunc(s.give)
	}
	give = sync.OnceFunc(func() {
		s.mu.Lock()
		delete(s.held, key)
		s.mu.Unlock()
		s.give()
	})
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.held == nil {
		s.held = map[string]func(){}
	}
	s.held[key] = give
	return give
}

// cancelledCall is the callKey of the call that a notifications/cancelled is about.
func cancelledCall(r *Request) string {
	m, err := mcp.Scan(r.Body, mcp.Limits{Bytes: len(r.Body)})
	if err != nil {
		return ""
	}
	return callKey(r, m.RequestID.Of(m.Body))
}

// cancelled gives the turn of a call that its client has cancelled. The target owes no answer to it (2025-11-25, Cancellation), and many
// give none, so that the end of its answer may never come.
func (s *turns) cancelled(key string) {
	s.mu.Lock()
	give := s.held[key]
	s.mu.Unlock()
	if give != nil {
		give()
	}
}

// callKey names a call of a session at a target; "" where there is none, so that it could be any caller's.
func callKey(r *Request, id []byte) string {
	session := r.Header.Get(sessionHeader)
	key, _ := idKey(id)
	if session == "" || key == "" {
		return ""
	}
	return session + " " + key
}

// callLocked lets run whose turn it is.
func (s *turns) callLocked() {
	for first := s.waiting.Front(); first != nil; first = s.waiting.Front() {
		own := first.Value.(*turn)
		if s.running >= own.most {
			return
		}
		s.running++
		s.waiting.Remove(first)
		close(own.come)
	}
}

func (s *turns) idle() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.running == 0 && s.waiting.Len() == 0
}

// inTurn is a transport whose calls take turns, each to the end of its answer.
type inTurn struct {
	Transport
	t     *snapshot.Target
	turns *turns
}

// Do waits for the turn of a call, and then makes it.
func (l *inTurn) Do(ctx context.Context, r *Request) (*Response, error) {
	if !takesTurn(r) {
		if r.Call.Method == "notifications/cancelled" {
			key := cancelledCall(r) // before the transport changes the header
			defer func() { l.turns.cancelled(key) }()
		}
		return l.Transport.Do(ctx, r)
	}
	c := l.t.Config.GetConcurrency()
	if err := l.turns.take(ctx, int(c.GetMax()), c.GetWait().AsDuration()); err != nil {
		return nil, named(l.t, &Error{Op: "wait", Err: err})
	}
	give := l.turns.hold(r)
	res, err := l.Transport.Do(ctx, r)
	if err != nil {
		give()
		return nil, err
	}
	if _, whole := res.Body.(*wholeBody); whole || res.Body == http.NoBody {
		give() // the target has no more to do
		return res, nil
	}
	body := &turnBody{ReadCloser: res.Body, give: give}
	res.Body = body
	if mcp.MediaType(res.Header) == mcp.TypeStream && l.t.Config.GetA2A() == nil { // an agent's stream has many responses
		res.Body = &turnStream{turnBody: body}
	}
	return res, nil
}

// takesTurn reports whether a request is a call. What a call may itself wait for is none, for it would never come: answers
// to the target's own questions and notifications. Nor is what stays open: event streams and subscriptions.
func takesTurn(r *Request) bool {
	m := r.Call.Method
	return r.Method == http.MethodPost && m != "" && m != "subscriptions/listen" && !strings.HasPrefix(m, "notifications/")
}

// turnBody ends a turn with the answer.
type turnBody struct {
	io.ReadCloser
	give func()
}

func (b *turnBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err != nil {
		b.give()
	}
	return n, err
}

func (b *turnBody) Close() error {
	err := b.ReadCloser.Close()
	b.give()
	return err
}

// turnStream ends a turn with the event that brings the response, before anybody reads it: targets may be slow to end a stream after
// it, and a client that has its answer calls again.
type turnStream struct {
	*turnBody
	open  []byte // what came after the last event that was whole
	blind bool   // an event was longer than is kept
}

// maxOpen is how much of an event is kept to look for the response. One that is longer ends the turn with its stream.
const maxOpen = 1 << 20

func (b *turnStream) Read(p []byte) (int, error) {
	n, err := b.turnBody.Read(p)
	if b.blind {
		return n, err
	}
	if len(b.open)+n > maxOpen {
		b.open, b.blind = nil, true
		return n, err
	}
	b.open = append(b.open, p[:n]...)
	if !mcp.EndsEvent(b.open) {
		return n, err
	}
	events := mcp.NewEventReader(bytes.NewReader(b.open), maxOpen)
	for ev, none := events.Next(); none == nil; ev, none = events.Next() {
		if m, bad := mcp.Scan(ev.Data, mcp.Limits{}); ev.IsMessage() && bad == nil && m.Kind == mcp.Response {
			b.give()
		}
	}
	b.open = b.open[:0]
	return n, err
}
