package upstream

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sluicegate/sluice/dataplane/mcp"
	"github.com/sluicegate/sluice/dataplane/snapshot"
)

const sessionHeader = "Mcp-Session-Id"

// opener opens the connection of a channel: it starts a child, or a stream. It calls c.receive and c.fail, and sets
// c.pipe before it returns.
type opener func(ctx context.Context, t *owned, r *Request, c *channel) error

// sessions keeps the channels to one target that lives in this process. It outlives snapshots; what a request may
// do is in the [owned] that it came through.
type sessions struct {
	cfg    *Config
	log    *slog.Logger
	open   opener
	slots  *slots // of the target: children
	shared bool   // one channel for all sessions
	loose  bool   // messages without a session have a channel too (the stateless era over stdio)
	most   int    // sessions; 0: as many as the slots let
	idle   time.Duration
	starts backoff
	kept   atomic.Int64 // bytes that wait, in all sessions, for GET streams

	closing Background // connections being closed

	mu       sync.Mutex // guards what is below
	byID     map[string]*session
	one      *session // shared, for all sessions
	outside  *session // for messages without a session
	draining bool
	closed   bool
}

// session is one channel and what it takes to make it again.
type session struct {
	s      *sessions
	id     string
	whose  string // Request.Whose of the one that began it
	shared bool

	turn chan struct{} // held while the channel is made; capacity 1
	back backoff       // guarded by turn
	used time.Time     // guarded by s.mu; when it was last asked for

	mu   sync.Mutex  // guards what is below
	ch   *channel    // nil: none yet, or gone
	init []byte      // shared: the result of initialize
	stop *time.Timer // looks whether the channel is idle; shared process: whether the session is
}

// owned is a stdio or sse target as one snapshot has it.
type owned struct {
	t       *snapshot.Target
	s       *sessions
	http    *endpoint // sse
	health  *health
	timeout time.Duration // to the first message of an answer; 0: none
}

// Owned is true: sessions live here.
func (o *owned) Owned() bool { return true }

// Do takes one request of streamable HTTP.
func (o *owned) Do(ctx context.Context, r *Request) (*Response, error) {
	res, err := o.do(ctx, r)
	if err != nil {
		err = named(o.t, err)
		o.health.failedIn(ctx, err)
		return nil, err
	}
	if res.Header == nil {
		res.Header = http.Header{}
	}
	if res.Body == nil {
		res.Body = http.NoBody
	}
	return res, nil
}

func (o *owned) do(ctx context.Context, r *Request) (*Response, error) {
	if r.Header == nil {
		r.Header = http.Header{}
	}
	r.via = o
	id := r.Header.Get(sessionHeader)
	switch r.Method {
	case http.MethodDelete:
		if !o.s.end(id, r.Whose) {
			return noSession(nil), nil
		}
		return &Response{Status: http.StatusNoContent}, nil
	case http.MethodGet:
		return o.listen(ctx, r, id)
	case http.MethodPost:
	default:
		return &Response{Status: http.StatusMethodNotAllowed, Header: http.Header{"Allow": {"GET, POST, DELETE"}}}, nil
	}
	m, err := mcp.Scan(r.Body, mcp.Limits{Bytes: o.s.cfg.MaxMessage})
	if err == nil && m.Kind != mcp.Request && m.Kind != mcp.Notification && m.Kind != mcp.Response {
		err = &mcp.Error{Code: mcp.CodeInvalidRequest, Status: http.StatusBadRequest, Message: "the body is not one message"}
	}
	var bad *mcp.Error
	if errors.As(err, &bad) {
		return refuse(bad.HTTPStatus(), bad.ID, bad.Code, "%s", bad.Message), nil
	}
	if id == "" && m.Method == "initialize" {
		return o.initialize(ctx, r, &m)
	}
	if id == "" && m.Kind != mcp.Request && o.s.loose {
		// Without a session there is nothing that it could be about: a stateless call is cancelled by leaving it, and
		// an id in the body could as well be another caller's.
		return &Response{Status: http.StatusAccepted}, nil
	}
	for again := false; ; again = true {
		sn, ch, renewed, res, err := o.find(ctx, r, &m, id)
		if res != nil || err != nil {
			return res, err
		}
		res, err = o.exchange(ctx, r, &m, sn, ch, id)
		if !again && errors.Is(err, errRetired) {
			continue // it was stopped, idle, just before
		}
		if res != nil {
			res.Renewed = renewed
		}
		return res, err
	}
}

// errRetired marks that a channel ended before a message was handed to it.
var errRetired = errors.New("the session's connection has ended")

// find returns the live channel of a request, or what to answer where there is none.
func (o *owned) find(ctx context.Context, r *Request, m *mcp.Message, id string) (*session, *channel, bool, *Response, error) {
	var sn *session
	switch {
	case id != "":
		sn = o.s.session(id, r.Whose, r.Initialize != nil)
	case o.s.loose:
		sn = o.s.looseSession()
	default:
		return nil, nil, false, refuse(http.StatusBadRequest, m.RawID(), mcp.CodeInvalidRequest, "the target serves sessions only: initialize first"), nil
	}
	if sn == nil {
		return nil, nil, false, noSession(m.RawID()), nil
	}
	ch, renewed, res, err := sn.live(ctx, o, r)
	if res != nil || err != nil {
		return nil, nil, false, res, err
	}
	if ch == nil {
		return nil, nil, false, noSession(m.RawID()), nil
	}
	return sn, ch, renewed, nil, nil
}

// exchange sends a message over a live channel and answers what comes of it.
func (o *owned) exchange(ctx context.Context, r *Request, m *mcp.Message, sn *session, ch *channel, id string) (*Response, error) {
	if m.Kind != mcp.Request {
		return o.tell(ctx, r, m, ch, id)
	}
	if id != "" && ch.shared.Load() && (m.Method == "resources/subscribe" || m.Method == "resources/unsubscribe") {
		return o.subscribe(ctx, r, m, sn, ch, id)
	}
	return o.ask(ctx, r, m, sn, ch, id)
}

// ask sends a request and answers with what comes of it.
func (o *owned) ask(ctx context.Context, r *Request, m *mcp.Message, sn *session, ch *channel, id string) (*Response, error) {
	k, msg, err := ch.open(m, id)
	if err != nil {
		return nil, &Error{Op: "send", Err: fmt.Errorf("%w: %w", errRetired, err)}
	}
	if res, err := ch.pipe.send(ctx, msg, r); err != nil || res != nil {
		ch.unsent(k)
		if err == nil && res.Status == http.StatusNotFound { // an sse target that forgot the session
			sn.drop(ch, errors.New("the target no longer knows the session"))
		}
		return res, err
	}
	res, err := o.answer(ctx, ch, k)
	if m.Method == "server/discover" && id == "" && err == nil && isRefusal(res) {
		ch.refuse() // of the session era, as it seems; one that is only late may have been told by it who the client is
	} else if err == nil && id == "" {
		res.Status = statusOf(res)
	}
	return res, err
}

// answer waits for the first message that belongs to a call: its response makes a JSON answer, anything else begins
// an event stream.
func (o *owned) answer(ctx context.Context, ch *channel, k *call) (*Response, error) {
	wait := ctx
	if o.timeout > 0 && !k.listen {
		var cancel context.CancelFunc
		wait, cancel = context.WithTimeoutCause(ctx, o.timeout, ErrTimeout)
		defer cancel()
	}
	first, last, err := k.out.next(wait)
	if err == io.EOF { // its caller has cancelled it, and wants no response
		return &Response{Status: http.StatusOK, Header: http.Header{"Content-Type": {"text/event-stream"}}, Body: http.NoBody}, nil
	}
	if err != nil {
		ch.leave(k)
		if errors.Is(err, ErrTimeout) && ch.junk.Load() { // a program that greets people, or logs to stdout
			err = fmt.Errorf("%w; it sent what is no message", err)
		}
		return nil, &Error{Op: "read head", Sent: true, Err: err}
	}
	o.health.ok()
	if last {
		return jsonBody(first), nil
	}
	fail := func(err error) error { return named(o.t, &Error{Op: "read body", Sent: true, Err: err}) }
	body := newEventBody(ctx, k.out, first, fail, func() { ch.leave(k) })
	return &Response{Status: http.StatusOK, Header: http.Header{"Content-Type": {"text/event-stream"}}, Body: body}, nil
}

// tell sends a notification or a response.
func (o *owned) tell(ctx context.Context, r *Request, m *mcp.Message, ch *channel, id string) (*Response, error) {
	msg := m.Body
	switch {
	case m.Method == "notifications/cancelled":
		msg = ch.cancelled(m, id)
	case ch.shared.Load() && (m.Kind == mcp.Response || m.Method == "notifications/initialized" || m.Method == "notifications/roots/list_changed"):
		msg = nil // the process has one client: us
	}
	if msg != nil {
		if res, err := ch.pipe.send(ctx, msg, r); err != nil || res != nil {
			return res, err
		}
	}
	return &Response{Status: http.StatusAccepted}, nil
}

// listen opens the GET stream of a session.
func (o *owned) listen(ctx context.Context, r *Request, id string) (*Response, error) {
	if id == "" {
		return &Response{Status: http.StatusMethodNotAllowed, Header: http.Header{"Allow": {"POST"}}}, nil
	}
	none := mcp.Message{}
	_, ch, renewed, res, err := o.find(ctx, r, &none, id)
	if res != nil || err != nil {
		return res, err
	}
	s, err := ch.attach(id)
	if err != nil {
		return nil, &Error{Op: "listen", Err: err}
	}
	fail := func(err error) error { return named(o.t, &Error{Op: "read body", Sent: true, Err: err}) }
	body := newEventBody(ctx, s, nil, fail, func() { ch.detach(s) })
	return &Response{Status: http.StatusOK, Header: http.Header{"Content-Type": {"text/event-stream"}}, Body: body, Renewed: renewed}, nil
}

// initialize makes a session. Its id is random, and handed out only if the target accepts.
func (o *owned) initialize(ctx context.Context, r *Request, m *mcp.Message) (*Response, error) {
	if why := o.s.full(r.Whose); why != "" {
		return unavailable(m.RawID(), 5*time.Second, "%s", why), nil
	}
	id := rand.Text()
	sn := o.s.session(id, r.Whose, true)
	if sn == nil {
		return nil, &Error{Op: "start", Err: ErrClosed}
	}
	if o.s.shared {
		return o.initializeShared(ctx, r, m, id, sn)
	}
	var res *Response
	ch, refused, err := sn.start(ctx, o, r, func(ch *channel) error {
		k, msg, err := ch.open(m, id)
		if err != nil {
			return err
		}
		if res, err = ch.pipe.send(ctx, msg, r); err != nil || res != nil {
			return err
		}
		res, err = o.answer(ctx, ch, k)
		return err
	})
	if err == nil && refused != nil {
		res = refused
	}
	if own, ok := errors.AsType[*Error](err); ok && o.s.slots != nil && ctx.Err() == nil {
		own.Sent = false // the child is gone, and the session that it was to have with it: another may begin one
	}
	if err != nil || ch == nil || res.Status != http.StatusOK || isRefusal(res) {
		o.s.end(id, r.Whose)
		return res, err
	}
	res.Header.Set(sessionHeader, id)
	return res, nil
}

// initializeShared answers from what the one process said when it was started.
func (o *owned) initializeShared(ctx context.Context, r *Request, m *mcp.Message, id string, sn *session) (*Response, error) {
	r.Initialize = r.Body
	ch, _, res, err := sn.live(ctx, o, r)
	if res != nil || err != nil || ch == nil {
		o.s.end(id, r.Whose)
		return res, err
	}
	one := o.s.sharedSession()
	one.mu.Lock()
	result := one.init
	one.mu.Unlock()
	res = jsonBody(mcp.AppendResult(nil, m.RawID(), result))
	res.Header.Set(sessionHeader, id)
	return res, nil
}

// isRefusal reports whether an answer in memory is a JSON-RPC error.
func isRefusal(res *Response) bool {
	b, ok := res.Body.(*wholeBody)
	if !ok {
		return false
	}
	m, err := mcp.Scan(b.rest, mcp.Limits{Bytes: len(b.rest)})
	return err != nil || m.Error.Present()
}

// statusOf is the HTTP status of an answer without a session: there an error has one, which the channel could not carry.
func statusOf(res *Response) int {
	b, ok := res.Body.(*wholeBody)
	if !ok || res.Status != http.StatusOK || !bytes.Contains(b.rest, []byte(`"error"`)) {
		return res.Status
	}
	m, err := mcp.Scan(b.rest, mcp.Limits{Bytes: len(b.rest)})
	if err != nil || !m.Error.Present() {
		return res.Status
	}
	code, _ := m.ErrorCode()
	return mcp.StatusOf(code)
}

func jsonBody(msg []byte) *Response {
	return &Response{Status: http.StatusOK, Header: http.Header{
		"Content-Type": {"application/json"}}, Length: int64(len(msg)), Body: &wholeBody{rest: msg}}
}

// refuse answers with a JSON-RPC error of our own. id nil: none.
func refuse(status int, id []byte, code int, format string, args ...any) *Response {
	msg := format
	if len(args) > 0 {
		msg = fmt.Sprintf(format, args...)
	}
	if id == nil {
		id = []byte("null")
	}
	res := jsonBody(mcp.AppendError(nil, id, code, msg, nil))
	res.Status = status
	return res
}

func noSession(id []byte) *Response {
	return refuse(http.StatusNotFound, id, -32001, "the target has no such session")
}

// unavailable answers 503.
func unavailable(id []byte, after time.Duration, format string, args ...any) *Response {
	res := refuse(http.StatusServiceUnavailable, id, mcp.CodeInternal, format, args...)
	res.Header.Set("Retry-After", strconv.Itoa(int((after+time.Second-1)/time.Second)))
	return res
}
