package newclient

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/sluicegate/sluice/dataplane/mcp"
	"github.com/sluicegate/sluice/dataplane/upstream"
)

// listen serves subscriptions/listen from the session's stream and subscriptions.
func (f *stateless) listen(ctx context.Context, r *upstream.Request, m *mcp.Message) (*upstream.Response, error) {
	var asked filter
	if raw := m.Filter.Of(m.Body); raw == nil || json.Unmarshal(raw, &asked) != nil {
		return f.refuse(m, http.StatusBadRequest, mcp.CodeInvalidParams, "subscriptions/listen needs params.notifications, an object"), nil
	}
	b := &listenBody{f: f, ctx: ctx, r: r, m: m, asked: asked, l: &listener{wake: make(chan struct{}, 1), pending: map[string][]byte{}}, closed: make(chan struct{})}
	b.w = mcp.NewEventWriter(&b.buf, nil)
	resp, err := b.join()
	if errors.Is(err, errFull) || errors.Is(err, errShare) {
		return f.full(m, err), nil
	}
	if refused, ok := errors.AsType[*unauthorizedError](err); ok {
		return (&failure{status: refused.status, header: refused.header}).answer(m.RawID())
	}
	if resp != nil || err != nil {
		return resp, err
	}
	params := append([]byte(`{"notifications":`), marshal(b.l.honoured)...)
	params = append(append(append(params, `,"_meta":{"`+mcp.MetaSubscriptionID+`":`...), m.RawID()...), "}}"...)
	_ = b.w.Message(mcp.AppendNotification(nil, "notifications/subscriptions/acknowledged", params))
	return &upstream.Response{Status: http.StatusOK, Header: http.Header{"Content-Type": {mcp.TypeStream}}, Body: b}, nil
}

// listenBody is a listen's event stream. A session that is lost is replaced without the client's noticing more than
// that everything may have changed.
type listenBody struct {
	f     *stateless
	ctx   context.Context
	r     *upstream.Request
	m     *mcp.Message
	asked filter
	l     *listener

	buf  bytes.Buffer
	w    *mcp.EventWriter
	done bool

	closed chan struct{}
	once   sync.Once

	joined time.Time     // the session
	back   time.Duration // before the next one

	mu sync.Mutex
	p  *peer // guarded by mu; nil: there is no session now
}

// join enlists in a session.
func (b *listenBody) join() (*upstream.Response, error) {
	c := clientOf(b.m)
	for first := true; ; first = false {
		p, resp, err := b.f.join(b.ctx, b.r, b.m, &c)
		if p == nil {
			return resp, err
		}
		err = p.enlist(b.ctx, b.l, b.asked)
		if err != nil {
			p.leave()
			if errors.Is(err, errLost) && first {
				continue
			}
			return nil, err
		}
		b.mu.Lock()
		defer b.mu.Unlock()
		select {
		case <-b.closed: // meanwhile
			p.delist(b.l)
			p.leave()
			return nil, &upstream.Error{Op: "listen", Target: b.f.t.Resource, Err: errRetired}
		default:
		}
		b.p, b.joined = p, time.Now()
		return nil, nil
	}
}

// quit is the end of join.
func (b *listenBody) quit() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.p != nil {
		b.p.delist(b.l)
		b.p.leave()
		b.p = nil
	}
}

// Read writes the next notification when the one before is gone.
func (b *listenBody) Read(p []byte) (int, error) {
	for b.buf.Len() == 0 {
		if b.done {
			return 0, io.EOF
		}
		b.buf.Reset()
		if raw := b.l.next(); raw != nil {
			tagged, err := b.tag(raw)
			if err != nil {
				continue
			}
			_ = b.w.Message(tagged)
			break
		}
		if err := b.wait(); err != nil {
			return 0, err
		}
	}
	return b.buf.Read(p)
}

// wait waits for news, and for the end of the session.
func (b *listenBody) wait() error {
	b.mu.Lock()
	p := b.p
	b.mu.Unlock()
	if p == nil {
		return io.ErrClosedPipe
	}
	select {
	case <-b.l.wake:
		return nil
	case <-b.ctx.Done():
		return context.Cause(b.ctx)
	case <-b.closed:
		return io.ErrClosedPipe
	case <-p.gone:
	}
	p.mu.Lock()
	why := p.closed
	p.mu.Unlock()
	b.quit()
	if !errors.Is(why, errRetired) {
		return b.rejoin()
	}
	for raw := b.l.next(); raw != nil; raw = b.l.next() { // what was heard before the end
		if tagged, err := b.tag(raw); err == nil {
			_ = b.w.Message(tagged)
		}
	}
	return b.goodbye()
}

// goodbye ends the listen politely: the client will come back, to what serves it then.
func (b *listenBody) goodbye() error {
	b.done = true
	result := append([]byte(`{"resultType":"complete","_meta":{"`+mcp.MetaSubscriptionID+`":`), b.m.RawID()...)
	return b.w.Message(mcp.AppendResult(nil, b.m.RawID(), append(result, "}}"...)))
}

// rejoin begins a session in the place of one that was lost; later each time, where sessions do not last.
func (b *listenBody) rejoin() error {
	if time.Since(b.joined) > b.back+streamRetry {
		b.back = 0
	} else {
		b.back = min(max(2*b.back, streamRetry), maxRetry)
	}
	for {
		select {
		case <-time.After(b.back):
		case <-b.ctx.Done():
			return context.Cause(b.ctx)
		case <-b.closed:
			return io.ErrClosedPipe
		}
		resp, err := b.join()
		if err == nil && resp == nil {
			b.l.all()
			return nil
		}
		if resp != nil {
			_ = resp.Body.Close()
		}
		_, refused := errors.AsType[*RefusedError](err)      // it is of the other era now
		_, expired := errors.AsType[*unauthorizedError](err) // or the client has another credential by now, or should have
		if refused || expired || resp != nil && unauthorized(resp) {
			return b.goodbye() // the client's next listen finds that out
		}
		b.back = min(max(2*b.back, streamRetry), maxRetry)
	}
}

// tag puts the listen's id into the _meta of a notification.
func (b *listenBody) tag(raw []byte) ([]byte, error) {
	m, err := mcp.Scan(raw, b.f.b.cfg.Limits)
	if err != nil {
		return nil, err
	}
	var e mcp.Edits
	id := b.m.RawID()
	meta := append(append([]byte(`"_meta":{"`+mcp.MetaSubscriptionID+`":`), id...), '}')
	switch {
	case m.Meta.SubscriptionID.Present():
		e.Replace(m.Meta.SubscriptionID, id)
	case m.Meta.Span.Present():
		e.Insert(m.Body, m.Meta.Span, mcp.MetaSubscriptionID, id)
	case object(m.Params.Of(m.Body)):
		e.InsertMembers(m.Body, m.Params, meta)
	case m.Params.Present():
		e.Replace(m.Params, append(append([]byte{'{'}, meta...), '}'))
	default:
		e.InsertMembers(m.Body, whole(&m), append(append([]byte(`"params":{`), meta...), '}'))
	}
	return e.Apply(nil, m.Body), nil
}

// Close ends the listen. It may come while Read waits.
func (b *listenBody) Close() error {
	b.once.Do(func() { close(b.closed) })
	b.quit()
	return nil
}
