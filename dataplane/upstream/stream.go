package upstream

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"sync"

	"github.com/sluicegate/sluice/dataplane/mcp"
)

// stream is a queue of messages from an adapter's channel to the one reader of an answer. Writing never waits, so
// that a slow reader holds nobody up; a reader that lags by more than limit bytes loses the stream.
type stream struct {
	limit int

	mu     sync.Mutex // guards what is below
	queue  [][]byte
	size   int
	last   bool  // the last message is in the queue, or was read
	err    error // why no more will come; told when the queue is empty
	closed bool  // the reader left
	wake   chan struct{}
}

func newStream(limit int) *stream { return &stream{limit: limit, wake: make(chan struct{}, 1)} }

func (s *stream) signal() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// push adds a message, and says whether the reader will see it.
func (s *stream) push(msg []byte, last bool) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || s.err != nil || s.last {
		return false
	}
	// One message alone always fits: it was bounded where it came from.
	if len(s.queue) > 0 && s.size+len(msg) > s.limit {
		s.queue, s.size = nil, 0
		s.err = fmt.Errorf("the reader lags by more than %d bytes", s.limit)
		s.signal()
		return false
	}
	s.queue = append(s.queue, msg)
	s.size += len(msg)
	s.last = last
	s.signal()
	return true
}

// fail ends the stream after what is queued.
func (s *stream) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err == nil && !s.last {
		s.err = err
	}
	s.signal()
}

// close makes the reader stop, and returns what it has not read.
func (s *stream) close() (rest [][]byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	rest = s.queue
	s.queue, s.size, s.closed = nil, 0, true
	s.signal()
	return rest
}

// next waits for a message. After the last one it returns io.EOF.
func (s *stream) next(ctx context.Context) (msg []byte, last bool, err error) {
	for {
		s.mu.Lock()
		switch {
		case s.closed:
			err = ErrClosed
		case len(s.queue) > 0:
			msg = s.queue[0]
			s.queue[0] = nil
			s.queue = s.queue[1:]
			s.size -= len(msg)
			last = s.last && len(s.queue) == 0
		case s.last:
			err = io.EOF
		default:
			err = s.err
		}
		s.mu.Unlock()
		if msg != nil || err != nil {
			return msg, last, err
		}
		select {
		case <-s.wake:
		case <-ctx.Done():
			return nil, false, context.Cause(ctx)
		}
	}
}

// eventBody is a stream as the body of a text/event-stream answer.
type eventBody struct {
	ctx   context.Context
	s     *stream
	first []byte // already taken off the stream
	fail  func(error) error
	leave func() // once, when the reader is done
	once  sync.Once

	buf   bytes.Buffer
	w     *mcp.EventWriter
	ended error
}

func newEventBody(ctx context.Context, s *stream, first []byte, fail func(error) error, leave func()) *eventBody {
	b := &eventBody{ctx: ctx, s: s, first: first, fail: fail, leave: leave}
	b.w = mcp.NewEventWriter(&b.buf, nil)
	return b
}

func (b *eventBody) Read(p []byte) (int, error) {
	if b.buf.Len() == 0 {
		if b.ended != nil {
			return 0, b.ended
		}
		msg := b.first
		b.first = nil
		if msg == nil {
			var err error
			if msg, _, err = b.s.next(b.ctx); err != nil {
				if err != io.EOF {
					err = b.fail(err)
				}
				b.ended = err
				b.once.Do(b.leave)
				return 0, err
			}
		}
		b.buf.Reset()
		if err := b.w.Message(msg); err != nil {
			return 0, err
		}
	}
	return b.buf.Read(p)
}

func (b *eventBody) Close() error {
	b.once.Do(b.leave)
	b.s.close()
	return nil
}
