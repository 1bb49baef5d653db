package newclient

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"time"

	"github.com/sluicegate/sluice/dataplane/mcp"
	"github.com/sluicegate/sluice/dataplane/upstream"
)

// item is what the target says, or the end of it.
type item struct {
	msg  mcp.Message
	page *upstream.Response // an answer that is no MCP, for the multiplexer to judge
	resp *upstream.Response // the head that msg came with, where it came alone
	err  error
	held int64 // of the call's room
}

// maxWaiting bounds the bytes of what a target says in a call that wait for a slow client, beside one message.
const maxWaiting = 1 << 20

// exchange sends the request and reads what comes of it.
func (k *call) exchange(body []byte, r *upstream.Request) {
	resp, err := k.p.do(k.ctx, http.MethodPost, k.method, body, r)
	switch {
	case err != nil:
		k.push(&item{err: err})
	case k.p.forgotten(resp) && !k.refusesMethod(resp):
		_ = resp.Body.Close()
		k.p.lost()
		k.push(&item{err: errLost})
	case resp.Status < 300 && mcp.MediaType(resp.Header) == mcp.TypeStream:
		k.p.served.Store(true)
		close(k.head)
		k.read(resp)
	default:
		k.readWhole(resp)
	}
}

// refusesMethod reports whether a 404 says that the target has no such method, and not that it has lost the session.
func (k *call) refusesMethod(resp *upstream.Response) bool {
	if resp.Status != http.StatusNotFound || mcp.MediaType(resp.Header) != mcp.TypeJSON {
		return false
	}
	head, err := resp.Peek(maxPage)
	return err == nil && mcp.RefusesMethod(head, k.id, k.p.b.cfg.Limits)
}

// push hands over what was said; it waits for a slow client.
func (k *call) push(it *item) {
	it.held = min(int64(len(it.msg.Body)), maxWaiting)
	if k.room.Acquire(k.ctx, it.held) != nil {
		return
	}
	select {
	case k.in <- it:
	case <-k.ctx.Done():
	}
}

// readWhole reads an answer that is no stream.
func (k *call) readWhole(resp *upstream.Response) {
	stop := context.AfterFunc(k.ctx, func() { _ = resp.Body.Close() })
	defer stop()
	raw, err := io.ReadAll(io.LimitReader(resp.Body, int64(k.p.b.cfg.Limits.MaxBytes())+1))
	_ = resp.Body.Close()
	if unauthorized(resp) { // for the multiplexer to judge, whatever its body says, and as far as it came
		k.push(&item{page: inMemory(resp, raw)})
		return
	}
	if err != nil {
		k.push(&item{err: err})
		return
	}
	m, err := mcp.Scan(bytes.TrimSpace(raw), k.p.b.cfg.Limits)
	if err == nil && m.Kind == mcp.Response {
		if resp.Status < 300 {
			k.p.served.Store(true)
		}
		k.push(&item{msg: m, resp: resp})
		return
	}
	if unknown := mcp.Methods(k.method).Routing == mcp.Unknown; unknown && resp.Status >= 400 && resp.Status < 500 && resp.Status != http.StatusTooManyRequests {
		// No revision has the method, and the target refuses it in its own way.
		m, _ := mcp.Scan(mcp.AppendError(nil, k.id, mcp.CodeMethodNotFound, "Method not found: "+k.method, nil), mcp.Limits{})
		k.push(&item{msg: m, resp: resp})
		return
	}
	if resp.Status < 300 { // a success without a response is none that a client could read
		k.push(&item{err: &upstream.Error{Op: "read body", Target: k.p.t.Resource, Sent: true, Err: errNoAnswer}})
		return
	}
	k.push(&item{page: inMemory(resp, raw)})
}

// inMemory is an answer whose body was read: it may lie here for as long as the call is parked, and outlasts the call.
func inMemory(resp *upstream.Response, raw []byte) *upstream.Response {
	page := *resp
	page.Body, page.Length = io.NopCloser(bytes.NewReader(raw)), int64(len(raw))
	return &page
}

// maxResumes bounds how often a broken stream is taken up again.
const maxResumes = 8

// read reads the target's stream up to the response. A stream that ends before, and gave event ids, is resumed.
func (k *call) read(resp *upstream.Response) {
	var last []byte
	wait := time.Second
	for resumes := 0; ; resumes++ {
		done, err := k.readStream(resp, &last, &wait)
		if done || k.ctx.Err() != nil {
			return
		}
		if len(last) == 0 || resumes == maxResumes {
			k.push(&item{err: err})
			return
		}
		select {
		case <-time.After(wait):
		case <-k.ctx.Done():
			return
		}
		next, failed := k.p.resume(k.ctx, string(last))
		if failed != nil {
			// The target has the call: nothing that this says of the stream may read as if it could be sent again.
			k.push(&item{err: &upstream.Error{Op: "resume", Target: k.p.t.Resource, Sent: true, Err: errors.New(failed.Error())}})
			return
		}
		resp = next
	}
}

// readStream reads one stream to its end, or to the response.
func (k *call) readStream(resp *upstream.Response, last *[]byte, wait *time.Duration) (done bool, err error) {
	defer resp.Body.Close()
	stop := context.AfterFunc(k.ctx, func() { _ = resp.Body.Close() })
	defer stop()
	events := mcp.NewEventReader(resp.Body, k.p.b.cfg.Limits.MaxBytes())
	for {
		ev, err := events.Next()
		if err != nil {
			return false, &upstream.Error{Op: "read body", Target: k.p.t.Resource, Sent: true, Err: err}
		}
		if ev.HasID {
			*last = append((*last)[:0], ev.Place()...)
		}
		if ev.HasRetry {
			*wait = min(ev.Retry, maxRetry)
		}
		if !ev.IsMessage() {
			continue
		}
		m, err := mcp.Scan(bytes.Clone(ev.Data), k.p.b.cfg.Limits)
		if err != nil {
			k.push(&item{err: &upstream.Error{Op: "read body", Target: k.p.t.Resource, Sent: true, Err: err}})
			return true, nil
		}
		switch m.Kind {
		case mcp.Response:
			if m.HasID() && idKey(m.RawID()) != k.key {
				continue // it answers nothing that was asked here
			}
			k.push(&item{msg: m})
			return true, nil
		case mcp.Request:
			k.asked(&m)
		case mcp.Notification:
			k.noted(&m)
		}
	}
}

// asked takes a request of the target that belongs to this call.
func (k *call) asked(m *mcp.Message) {
	if m.Method == "ping" {
		k.p.tellLater(mcp.AppendResult(nil, m.RawID(), nil))
		return
	}
	code, text, ok := k.p.client.refusal(m)
	if ok && !asking(k.method) {
		k.p.outside(m)
		return
	}
	if !ok {
		k.p.tellLater(mcp.AppendError(nil, m.RawID(), code, text, nil))
		return
	}
	k.push(&item{msg: *m})
}

// noted takes a notification of the target that came with this call.
func (k *call) noted(m *mcp.Message) {
	if news(m.Method) { // 2026-07-28 has them on listens alone
		k.p.changed(m)
		return
	}
	switch m.Method {
	case "notifications/cancelled":
		k.push(&item{msg: *m})
		return
	case "notifications/elicitation/complete", "notifications/tasks/status":
		return
	}
	if k.isRunning() { // else nobody is there to hear it
		k.push(&item{msg: *m})
	}
}

func (k *call) isRunning() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.state == running
}
