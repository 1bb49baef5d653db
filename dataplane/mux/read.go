package mux

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/sluicegate/sluice/dataplane/mcp"
	"github.com/sluicegate/sluice/dataplane/session"
	"github.com/sluicegate/sluice/dataplane/snapshot"
	"github.com/sluicegate/sluice/dataplane/upstream"
	"github.com/sluicegate/sluice/internal/guard"
	"github.com/sluicegate/sluice/internal/policy"
)

// errNoResponse: the stream ended before it held the response.
var errNoResponse = errors.New("the answer holds no response")

// readResponse reads an answer up to its response message and closes it. Notifications on the way are dropped, and
// requests of the target are declined: who calls this has no stream to pass them on by.
func (x *Request) readResponse(t *snapshot.Target, resp *upstream.Response) (*mcp.Message, error) {
	return x.readResponseBy(t, resp, x.scanned())
}

// reading is how the messages of an answer are read.
type reading struct {
	scan func(body []byte) (mcp.Message, error)
	room func(size int) []byte // where a body is read to
	leg  *session.Target       // the session in which the target is answered; nil: the client's own
}

// scanned reads by [mcp.Scan] within the limits.
func (x *Request) scanned() reading {
	return reading{
		scan: func(body []byte) (mcp.Message, error) { return mcp.Scan(body, x.mux.cfg.Limits) },
		room: func(size int) []byte { return make([]byte, 0, size) },
	}
}

// readResponseBy is readResponse for who reads more of the messages.
func (x *Request) readResponseBy(t *snapshot.Target, resp *upstream.Response, by reading) (*mcp.Message, error) {
	msg, err := x.readMessage(t, resp, by)
	if err != nil {
		x.Record.Err = err
		if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, upstream.ErrTimeout) {
			return nil, x.unreachable(t, err)
		}
		return nil, x.unreadableAnswer(t, err)
	}
	if !t.Policy.Guards(policy.ToClient) {
		return msg, nil
	}
	body, err := x.guardMessage(t, x.method(), msg.Body, guard.Response(""))
	if err != nil {
		return nil, err
	}
	if &body[0] != &msg.Body[0] {
		if *msg, err = by.scan(body); err != nil {
			return nil, x.unreadableAnswer(t, err)
		}
	}
	return msg, nil
}

func (x *Request) readMessage(t *snapshot.Target, resp *upstream.Response, by reading) (*mcp.Message, error) {
	if mcp.MediaType(resp.Header) != mcp.TypeStream {
		defer resp.Body.Close()
		body, err := readAll(resp, x.mux.cfg.Limits.MaxBytes(), by.room)
		if err != nil {
			return nil, err
		}
		msg, err := by.scan(body)
		if err == nil && msg.Kind != mcp.Response {
			err = errNoResponse
		}
		return &msg, err
	}
	events := mcp.NewEventReader(resp.Body, x.mux.cfg.Limits.MaxBytes())
	for {
		ev, err := events.Next()
		if err == io.EOF {
			err = errNoResponse
		}
		if err != nil {
			_ = resp.Body.Close()
			return nil, err
		}
		if !ev.IsMessage() {
			continue
		}
		msg, err := by.scan(append([]byte(nil), ev.Data...))
		switch {
		case err != nil:
			_ = resp.Body.Close()
			return nil, err
		case msg.Kind == mcp.Response:
			finish(resp.Body)
			return &msg, nil
		case msg.Kind == mcp.Request:
			x.decline(t, by.leg, &msg)
		}
	}
}

// readWhole is readResponseBy for an answer that is passed on: raw is all of the body up to the response, at least.
func (x *Request) readWhole(t *snapshot.Target, resp *upstream.Response, by reading) (msg *mcp.Message, raw []byte, err error) {
	if mcp.MediaType(resp.Header) != mcp.TypeStream {
		if msg, err = x.readResponseBy(t, resp, by); err != nil {
			return nil, nil, err
		}
		return msg, msg.Body, nil
	}
	if t.Policy.Guards(policy.ToClient) { // what came is not what may be passed on
		if msg, err = x.readResponseBy(t, resp, by); err != nil {
			return nil, nil, err
		}
		resp.Header["Content-Type"] = typeJSON
		return msg, msg.Body, nil
	}
	rec := &recorded{body: resp.Body}
	read := *resp
	read.Body = rec
	if msg, err = x.readResponseBy(t, &read, by); err != nil {
		return nil, nil, err
	}
	return msg, rec.stop(), nil
}

// recorded keeps a copy of what was read of a body until stop; finish may read on then.
type recorded struct {
	body io.ReadCloser
	mu   sync.Mutex
	to   []byte // guarded by mu
	over bool   // guarded by mu
}

func (r *recorded) Close() error { return r.body.Close() }

func (r *recorded) Read(p []byte) (int, error) {
	n, err := r.body.Read(p)
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.over {
		r.to = append(r.to, p[:n]...)
	}
	return n, err
}

func (r *recorded) stop() []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.over = true
	return r.to
}

// finish closes a stream whose end is expected at once; waiting for it keeps the connection fit for use.
func finish(body io.ReadCloser) {
	timer := time.AfterFunc(50*time.Millisecond, func() { _ = body.Close() })
	go func() {
		_, _ = io.CopyN(io.Discard, body, 4<<10)
		timer.Stop()
		_ = body.Close()
	}()
}

// decline answers a target's request that no client can be asked, and does not wait for it. A ping asks nobody.
func (x *Request) decline(t *snapshot.Target, leg *session.Target, msg *mcp.Message) {
	if x.Session == nil {
		return
	}
	body := mcp.AppendError(nil, msg.RawID(), mcp.CodeMethodNotFound, "the client cannot be asked during this request", nil)
	if msg.Method == "ping" {
		body = mcp.AppendResult(nil, msg.RawID(), []byte("{}"))
	}
	own, state := *x, *x.Session // which whoever reads here may write meanwhile
	own.Session, own.Record = &state, &Record{}
	go func() {
		ctx, cancel := own.mux.fanOut(context.WithoutCancel(own.HTTP.Context()), t)
		defer cancel()
		if resp, err := own.send(ctx, t, outgoing{body: body, session: leg}); err == nil {
			_ = resp.Body.Close()
		}
	}()
}

// readAll reads a whole body, into a buffer of the right size where the target says how long it is.
func readAll(resp *upstream.Response, limit int, room func(size int) []byte) ([]byte, error) {
	size := 512
	if n := resp.Length; n > 0 && n <= 1<<20 {
		size = int(n) + 1 // so that the end is seen without growing
	}
	b := room(size)
	for {
		n, err := resp.Body.Read(b[len(b):cap(b)])
		b = b[:len(b)+n]
		switch {
		case err == io.EOF:
			return b, nil
		case err != nil:
			return nil, err
		case len(b) > limit:
			return nil, fmt.Errorf("the answer has more than %d bytes", limit)
		case len(b) == cap(b):
			b = slices.Grow(b, len(b))
		}
	}
}
