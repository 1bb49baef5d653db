package newclient

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/sluicegate/sluice/dataplane/mcp"
	"github.com/sluicegate/sluice/dataplane/session"
	"github.com/sluicegate/sluice/dataplane/upstream"
)

// call is one request of a client as the target has it. It may outlast the request: while the client is asked, it is
// parked, and the client's next request reads it on. Whatever the target says goes through in, to the one round that is
// served.
type call struct {
	p      *peer
	method string
	id     []byte // as the target knows it, raw
	key    string // of the id
	token  []byte // the progress token as the target knows it, raw; nil: none
	digest [sha256.Size]byte
	whole  bool            // it lists tools from the first on
	ctx    context.Context // of the exchange with the target
	cancel context.CancelFunc
	in     chan item
	head   chan struct{} // closed when the target begins an event stream

	// What follows belongs to the round that is served, and to nobody while the call is parked.
	asks  []*ask
	first time.Time // when the oldest of asks came that the client was not asked yet
	last  time.Time // when the newest came
	named int       // asks so far, to name the next
	turn  bool      // it holds the session's turn

	mu    sync.Mutex
	state state          // guarded by mu
	round uint64         // guarded by mu; from 1
	park  session.CallID // guarded by mu; zero: was never parked
	timer *time.Timer    // guarded by mu; ends a parked call
}

type state uint8

const (
	waiting state = iota // for its turn
	running
	parked
	over
)

// item is what the target says, or the end of it.
type item struct {
	msg  mcp.Message
	page *upstream.Response // an answer that is no MCP, for the multiplexer to judge
	resp *upstream.Response // the head that msg came with, where it came alone
	err  error
}

// round is one request of the client that a call is served in.
type round struct {
	f     *stateless
	r     *upstream.Request
	id    []byte // of the client's request, raw
	token []byte // raw; nil: none
	level string // of logs that the client asked for; "": none
	n     uint64
}

func (f *stateless) round(r *upstream.Request, m *mcp.Message, n uint64) *round {
	return &round{f: f, r: r, id: m.RawID(), token: m.Meta.ProgressToken.Of(m.Body), level: m.Meta.LogLevel.String(), n: n}
}

// start sends a client's request in a session and serves its first round. The session is left when the call is over.
func (f *stateless) start(ctx context.Context, p *peer, r *upstream.Request, m *mcp.Message, again *session.Call) (*upstream.Response, error) {
	k := &call{p: p, method: m.Method, token: m.Meta.ProgressToken.Of(m.Body), digest: digest(m), in: make(chan item, 64), head: make(chan struct{}), round: 1}
	k.whole = m.Method == "tools/list" && !m.Cursor.Present()
	k.ctx, k.cancel = context.WithCancel(context.WithoutCancel(ctx))
	id := k.register(m.RawID())
	body, err := outbound(m, id, again)
	if err != nil {
		k.end()
		return refused(err), nil
	}
	if err := k.takeTurn(ctx); err != nil {
		k.end()
		return nil, &upstream.Error{Op: "wait for the session", Target: f.t.Resource, Err: err}
	}
	go k.exchange(body, r)
	return k.serve(ctx, f.round(r, m, 1))
}

// register makes the call findable by its id. Ids are unique in a session, and several clients may share it: one that is
// taken is replaced, and the new one returned.
func (k *call) register(id []byte) (own []byte) {
	s := k.p
	s.mu.Lock()
	defer s.mu.Unlock()
	k.id, k.key = id, idKey(id)
	for s.calls[k.key] != nil {
		s.seq++
		own = fmt.Appendf(nil, `"sluice-%d"`, s.seq)
		k.id, k.key = own, idKey(own)
	}
	s.calls[k.key] = k
	return own
}

// takeTurn waits until no other call of the session runs, where requests of the target could not be told apart else.
func (k *call) takeTurn(ctx context.Context) error {
	if k.p.serial.Load() && asking(k.method) {
		select {
		case k.p.turn <- struct{}{}:
			k.turn = true
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.state == waiting {
		k.state = running
	}
	return nil
}

func (k *call) giveTurn() {
	if k.turn {
		k.turn = false
		<-k.p.turn
	}
}

// exchange sends the request and reads what comes of it.
func (k *call) exchange(body []byte, r *upstream.Request) {
	resp, err := k.p.do(k.ctx, http.MethodPost, body, r)
	switch {
	case err != nil:
		k.push(item{err: err})
	case resp.Status == http.StatusNotFound && k.p.id != "" && !k.refusesMethod(resp):
		_ = resp.Body.Close()
		k.p.lost()
		k.push(item{err: errLost})
	case resp.Status < 300 && contentType(resp.Header) == streamType:
		close(k.head)
		k.read(resp)
	default:
		k.readWhole(resp)
	}
}

// refusesMethod reports whether a 404 says that the target has no such method, and not that it has lost the session.
func (k *call) refusesMethod(resp *upstream.Response) bool {
	if contentType(resp.Header) != jsonType {
		return false
	}
	head, err := io.ReadAll(io.LimitReader(resp.Body, maxPage))
	resp.Body = struct {
		io.Reader
		io.Closer
	}{io.MultiReader(bytes.NewReader(head), resp.Body), resp.Body}
	return err == nil && mcp.RefusesMethod(head, k.id, k.p.b.cfg.Limits)
}

// push hands over what was said; it waits for a slow client.
func (k *call) push(it item) {
	select {
	case k.in <- it:
	case <-k.ctx.Done():
	}
}

// readWhole reads an answer that is no stream.
func (k *call) readWhole(resp *upstream.Response) {
	if resp.Status == http.StatusUnauthorized || resp.Status == http.StatusForbidden {
		k.push(item{page: resp})
		return
	}
	stop := context.AfterFunc(k.ctx, func() { _ = resp.Body.Close() })
	defer stop()
	raw, err := io.ReadAll(io.LimitReader(resp.Body, int64(k.p.b.maxBytes())+1))
	_ = resp.Body.Close()
	if err != nil {
		k.push(item{err: err})
		return
	}
	m, err := mcp.Scan(bytes.TrimSpace(raw), k.p.b.cfg.Limits)
	if err == nil && m.Kind == mcp.Response {
		k.push(item{msg: m, resp: resp})
		return
	}
	if unknown := mcp.Methods(k.method).Routing == mcp.Unknown; unknown && resp.Status >= 400 && resp.Status < 500 && resp.Status != http.StatusTooManyRequests {
		// No revision has the method, and the target refuses it in its own way.
		m, _ := mcp.Scan(mcp.AppendError(nil, k.id, mcp.CodeMethodNotFound, "Method not found: "+k.method, nil), mcp.Limits{})
		k.push(item{msg: m, resp: resp})
		return
	}
	if resp.Status < 300 { // a success without a response is none that a client could read
		k.push(item{err: &upstream.Error{Op: "read body", Target: k.p.t.Resource, Sent: true, Err: errNoAnswer}})
		return
	}
	page := *resp
	page.Body, page.Length = io.NopCloser(bytes.NewReader(raw)), int64(len(raw))
	k.push(item{page: &page})
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
			k.push(item{err: err})
			return
		}
		select {
		case <-time.After(wait):
		case <-k.ctx.Done():
			return
		}
		next, failed := k.p.resume(k.ctx, string(last))
		if failed != nil {
			k.push(item{err: failed})
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
	events := mcp.NewEventReader(resp.Body, k.p.b.maxBytes())
	for {
		ev, err := events.Next()
		if err != nil {
			return false, &upstream.Error{Op: "read body", Target: k.p.t.Resource, Sent: true, Err: err}
		}
		if ev.HasID {
			*last = append((*last)[:0], ev.ID...)
		}
		if ev.HasRetry {
			*wait = min(ev.Retry, 30*time.Second)
		}
		if !ev.IsMessage() {
			continue
		}
		m, err := mcp.Scan(bytes.Clone(ev.Data), k.p.b.cfg.Limits)
		if err != nil {
			k.push(item{err: &upstream.Error{Op: "read body", Target: k.p.t.Resource, Sent: true, Err: err}})
			return true, nil
		}
		switch m.Kind {
		case mcp.Response:
			if m.ID.Present() && m.Body[m.ID.Start] != 'n' && idKey(m.RawID()) != k.key {
				continue // it answers nothing that was asked here
			}
			k.push(item{msg: m})
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
	k.push(item{msg: *m})
}

// noted takes a notification of the target that came with this call.
func (k *call) noted(m *mcp.Message) {
	switch m.Method {
	case "notifications/cancelled":
		k.push(item{msg: *m})
		return
	case "notifications/tools/list_changed", "notifications/prompts/list_changed", "notifications/resources/list_changed", "notifications/resources/updated":
		k.p.changed(m) // 2026-07-28 has them on listens alone
		return
	case "notifications/elicitation/complete", "notifications/tasks/status":
		return
	}
	if k.isRunning() { // else nobody is there to hear it
		k.push(item{msg: *m})
	}
}

func (k *call) isRunning() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.state == running
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
		var it item
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
func (k *call) take(rd *round, it item) (ev event, ok bool) {
	switch {
	case it.err != nil:
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

// add notes a question for the client.
func (k *call) add(m *mcp.Message) {
	entry, err := question(m)
	if err != nil {
		k.p.tellLater(mcp.AppendError(nil, m.RawID(), mcp.CodeInvalidParams, "the request cannot be read", nil))
		return
	}
	k.named++
	k.last = time.Now()
	if len(k.asks) == 0 {
		k.first = k.last
	}
	k.asks = append(k.asks, &ask{id: m.RawID(), key: keyOf(m.Method, k.named), entry: entry})
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

// abandon cancels the call, if it still serves the given round: in 2026-07-28 a client that leaves has cancelled.
func (k *call) abandon(round uint64) {
	k.mu.Lock()
	if k.state != running && k.state != waiting || k.round != round {
		k.mu.Unlock()
		return
	}
	k.state = over
	k.mu.Unlock()
	k.giveUp("the client has left")
}

// giveUp tells the target, and then ends the call. Its state is over already.
func (k *call) giveUp(why string) {
	params := append(append([]byte(`{"requestId":`), k.id...), `,"reason":`...)
	body := mcp.AppendNotification(nil, "notifications/cancelled", append(mcp.AppendString(params, why), '}'))
	k.p.b.later(func(ctx context.Context) {
		_ = k.p.tell(ctx, body, nil) // what closes now tells it too
		k.release()
	})
}

// end is the end of a call that has its response, or will have none.
func (k *call) end() {
	k.mu.Lock()
	if k.state == over {
		k.mu.Unlock()
		return
	}
	k.state = over
	k.mu.Unlock()
	k.release()
}

// release gives back what the call holds. It is called once, with the state over.
func (k *call) release() {
	k.cancel()
	k.giveTurn()
	s := k.p
	s.mu.Lock()
	if s.calls[k.key] == k {
		delete(s.calls, k.key)
	}
	s.mu.Unlock()
	s.leave()
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
	return &upstream.Response{Status: http.StatusOK, Header: http.Header{"Content-Type": {streamType}}, Body: body}
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
