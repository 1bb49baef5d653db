package newclient

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/sluicegate/sluice/dataplane/mcp"
	"github.com/sluicegate/sluice/dataplane/upstream"
)

// round is one request of the client that a call is served in.
type round struct {
	f     *stateless
	r     *upstream.Request
	m     *mcp.Message
	id    []byte // of the client's request, raw
	token []byte // raw; nil: none
	level string // of logs that the client asked for; "": none
	n     uint64
}

func (f *stateless) round(r *upstream.Request, m *mcp.Message, n uint64) *round {
	return &round{f: f, r: r, m: m, id: m.RawID(), token: m.Meta.ProgressToken.Of(m.Body), level: m.Meta.LogLevel.String(), n: n}
}

const (
	// firstWait is how long an event stream of the target may be silent before the client's begins too: what comes
	// sooner may still decide the status.
	firstWait = time.Second
	// headWait is the same for a target that has not answered at all: clients give up on silence.
	headWait = 15 * time.Second
)

// serve answers one request of the client from the call.
func (k *call) serve(ctx context.Context, rd *round) (*upstream.Response, error) {
	leave := context.AfterFunc(ctx, func() { k.abandon(rd.n) })
	late := time.NewTimer(headWait)
	defer late.Stop()
	head := k.head
	for {
		ev := k.next(ctx, rd, late.C, head)
		switch {
		case ev.began:
			head = nil
			late.Reset(firstWait)
		case ev.late:
			return k.stream(ctx, rd, nil, false, leave), nil
		case ev.note != nil:
			return k.stream(ctx, rd, ev.note, false, leave), nil
		case ev.final != nil && ev.streamed:
			return k.stream(ctx, rd, ev.final, true, leave), nil
		case ev.final != nil:
			leave()
			resp := answered(ev.status, ev.final)
			for name, values := range ev.header {
				if resp.Header[name] == nil && name != "Content-Length" && name != mcp.HeaderSession {
					resp.Header[name] = values
				}
			}
			return resp, nil
		default:
			leave()
			return ev.page, ev.err
		}
	}
}

// event is what the client is given.
type event struct {
	note   []byte // a notification; more follows
	final  []byte // the response to this round
	status int
	header http.Header
	// streamed: the target gave the response in an event stream, and it is a result. The client gets it in that form.
	streamed bool
	page     *upstream.Response
	err      error
	began    bool // nothing yet, but the target's event stream has begun
	late     bool // nothing yet, and it is late
}

// next waits for something that the client is to see, or for one of limit and head.
func (k *call) next(ctx context.Context, rd *round, limit <-chan time.Time, head <-chan struct{}) event {
	for {
		var together <-chan time.Time
		var timer *time.Timer
		if len(k.asks) > 0 {
			batch := k.p.b.cfg.Batch
			until := k.last.Add(batch)
			if most := k.first.Add(10 * batch); until.After(most) {
				until = most
			}
			timer = time.NewTimer(time.Until(until))
			together = timer.C
		}
		var it *item
		ev := event{}
		select {
		case it = <-k.in:
		case <-together:
			return k.ask(rd)
		case <-limit:
			ev.late = true
		case <-head:
			ev.began = true
		case <-ctx.Done():
			k.abandon(rd.n)
			ev.err = &upstream.Error{Op: "call", Target: k.p.t.Resource, Sent: true, Err: context.Cause(ctx)}
		case <-k.ctx.Done():
			k.end()
			ev.err = &upstream.Error{Op: "call", Target: k.p.t.Resource, Sent: true, Err: errRetired}
		}
		if timer != nil {
			timer.Stop()
		}
		if ev.late || ev.began || ev.err != nil {
			return ev
		}
		if ev, ok := k.take(rd, it); ok {
			return ev
		}
	}
}

// take makes an event of what the target said; ok is false for what the client does not see, or not yet.
func (k *call) take(rd *round, it *item) (ev event, ok bool) {
	k.room.Release(it.held)
	switch {
	case it.err != nil:
		if errors.Is(it.err, upstream.ErrTimeout) {
			k.abandon(rd.n) // the target may be at it still
		}
		k.end()
		return event{err: it.err}, true
	case it.page != nil:
		k.end()
		return event{page: it.page}, true
	}
	switch m := &it.msg; {
	case m.Kind == mcp.Response:
		ev := k.finish(rd, m, it.resp)
		k.end()
		return ev, true
	case m.Kind == mcp.Request:
		k.add(m)
	case m.Method == "notifications/cancelled":
		k.withdraw(m)
	default:
		if note := rd.note(k, m); note != nil {
			return event{note: note}, true
		}
	}
	return event{}, false
}

// maxAsks bounds the questions of a call that a client can be asked at once. Together they are no longer than one message.
const maxAsks = 100

// add notes a question for the client.
func (k *call) add(m *mcp.Message) {
	entry, err := question(m)
	if err != nil {
		k.p.tellLater(mcp.AppendError(nil, m.RawID(), mcp.CodeInvalidParams, "the request cannot be read", nil))
		return
	}
	size := len(m.RawID()) + len(entry)
	for _, a := range k.asks {
		size += len(a.id) + len(a.entry)
	}
	if len(k.asks) == maxAsks || size > k.p.b.cfg.Limits.MaxBytes() {
		k.p.tellLater(mcp.AppendError(nil, m.RawID(), mcp.CodeInternal, "the client is being asked as much as it can be at once", nil))
		return
	}
	k.named++
	k.last = time.Now()
	if len(k.asks) == 0 {
		k.first = k.last
	}
	k.asks = append(k.asks, &ask{id: bytes.Clone(m.RawID()), key: keyOf(m.Method, k.named), entry: entry})
}

func keyOf(method string, n int) string {
	name := map[string]string{"elicitation/create": "elicitation", "sampling/createMessage": "sampling", "roots/list": "roots"}[method]
	return fmt.Sprintf("%s-%d", name, n)
}

// withdraw drops a question that the target takes back.
func (k *call) withdraw(m *mcp.Message) {
	id := idKey(m.RequestID.Of(m.Body))
	for i, a := range k.asks {
		if idKey(a.id) == id {
			k.asks = append(k.asks[:i:i], k.asks[i+1:]...)
			return
		}
	}
}

// note is a notification as this round's client gets it; nil: it does not.
func (rd *round) note(k *call, m *mcp.Message) []byte {
	switch m.Method {
	case "notifications/progress":
		if rd.token == nil || k.token == nil || idKey(m.ProgressToken.Of(m.Body)) != idKey(k.token) {
			return nil
		}
		if bytes.Equal(rd.token, k.token) {
			return m.Body
		}
		var e mcp.Edits
		e.Replace(m.ProgressToken, rd.token)
		return e.Apply(nil, m.Body)
	case "notifications/message":
		if rd.level == "" || !loud(m.Level.String(), rd.level) {
			return nil
		}
	}
	return m.Body
}

// finish makes the response to this round of the target's to the call.
func (k *call) finish(rd *round, m *mcp.Message, resp *upstream.Response) event {
	ev := event{status: http.StatusOK, streamed: resp == nil && m.Result.Present()}
	if resp != nil {
		ev.status, ev.header = resp.Status, resp.Header
	}
	if m.Error.Present() {
		if code, _ := m.ErrorCode(); code == mcp.CodeURLElicitation && asking(k.method) && k.p.client.url {
			if urls := elicitations(m); len(urls) > 0 {
				return k.visit(rd, urls)
			}
		}
		ev.status, ev.final = k.p.failure(m, ev.status, rd.id)
		return ev
	}
	if asking(k.method) {
		if again, ok := k.leaked(rd, m); ok {
			return again
		}
	}
	var err error
	if ev.final, err = k.p.result(m, k.method, rd.id); err != nil {
		return event{err: &upstream.Error{Op: "read body", Target: k.p.t.Resource, Sent: true, Err: err}}
	}
	if k.whole {
		k.p.learnTools(m)
	}
	return ev
}

// stream begins an event stream to the client. first is its first message, and with final its last; nil: there is none
// yet.
func (k *call) stream(ctx context.Context, rd *round, first []byte, final bool, leave func() bool) *upstream.Response {
	body := &callBody{k: k, ctx: ctx, rd: rd, leave: leave}
	body.w = mcp.NewEventWriter(&body.buf, nil)
	if first != nil {
		_ = body.w.Message(first)
	}
	if body.done = final; final {
		leave()
	}
	return &upstream.Response{Status: http.StatusOK, Header: http.Header{"Content-Type": {mcp.TypeStream}}, Body: body}
}

// callBody is a round's answer as an event stream.
type callBody struct {
	k     *call
	ctx   context.Context
	rd    *round
	leave func() bool
	buf   bytes.Buffer
	w     *mcp.EventWriter
	done  bool // the response was written
}

// Read writes the next message when the one before is gone.
func (b *callBody) Read(p []byte) (int, error) {
	for b.buf.Len() == 0 {
		if b.done {
			return 0, io.EOF
		}
		ev := b.k.next(b.ctx, b.rd, nil, nil)
		b.buf.Reset()
		var msg []byte
		switch {
		case ev.note != nil:
			msg = ev.note
		case ev.final != nil:
			msg, b.done = ev.final, true
		case ev.err != nil && b.ctx.Err() != nil:
			return 0, ev.err
		default: // the answer has begun, so the client hears of it in the stream
			msg, b.done = b.broken(ev), true
		}
		if b.done {
			b.leave()
		}
		if err := b.w.Message(msg); err != nil {
			return 0, err
		}
	}
	return b.buf.Read(p)
}

// broken is a response that says why there is no other.
func (b *callBody) broken(ev event) []byte {
	text := fmt.Sprintf("target %q broke off its answer; it may have processed the request", b.k.p.t.Name)
	switch {
	case ev.page != nil:
		_ = ev.page.Body.Close()
		text = fmt.Sprintf("target %q answered with status %d, which is no MCP", b.k.p.t.Name, ev.page.Status)
	case errors.Is(ev.err, upstream.ErrTimeout):
		text = fmt.Sprintf("target %q did not answer in time", b.k.p.t.Name)
	case upstream.NotSent(ev.err):
		text = fmt.Sprintf("target %q cannot be reached", b.k.p.t.Name)
	}
	b.k.p.b.log.Warn("call of a bridged target broke off", "target", b.k.p.t.Resource, "method", b.k.method, "err", ev.err)
	return mcp.AppendError(nil, b.rd.id, mcp.CodeInternal, text, nil)
}

// Close is the client's leaving, unless it has its response. It may come while Read waits.
func (b *callBody) Close() error {
	b.k.abandon(b.rd.n)
	return nil
}
