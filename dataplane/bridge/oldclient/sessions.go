package oldclient

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"slices"
	"time"

	"github.com/sluicegate/sluice/dataplane/mcp"
	"github.com/sluicegate/sluice/dataplane/session"
	"github.com/sluicegate/sluice/dataplane/snapshot"
	"github.com/sluicegate/sluice/dataplane/upstream"
)

// Client is one of the session era, as its session remembers it.
type Client struct {
	// Session is the client's; while it is being made it is not sealed yet, but knows who the client is.
	Session *session.State
	// Principal is whom the session belongs to; "" is the anonymous caller.
	Principal string
	// Vary is what else of the client's requests reaches the target, as a key: what that says of itself and its tools may depend on it.
	Vary string
}

// Sessions gives a stateless target the face of one with sessions, to one client. What it answers to initialize carries
// no session id of the target's, for there is none; what a session needs beside requests (a log level, subscriptions,
// the standing stream, requests that wait for the client's answer) is kept here, by the session's nonce, so that the
// session must come back to this proxy.
func (b *Bridge) Sessions(t *snapshot.Target, c Client) upstream.Transport {
	return &sessionsFace{b: b, t: t, c: c, inner: b.cfg.Transport(t)}
}

type sessionsFace struct {
	b     *Bridge
	t     *snapshot.Target
	c     Client
	inner upstream.Transport
}

// Owned is true: see [Bridge.Sessions].
func (f *sessionsFace) Owned() bool { return true }

// Do takes a request of the session era.
func (f *sessionsFace) Do(ctx context.Context, r *upstream.Request) (*upstream.Response, error) {
	switch r.Method {
	case http.MethodGet:
		return f.standing(ctx, r)
	case http.MethodDelete:
		f.b.soft.end(f.key())
		return &upstream.Response{Status: http.StatusNoContent, Header: http.Header{}, Body: http.NoBody}, nil
	}
	m, err := mcp.Scan(bytes.Clone(r.Body), f.b.cfg.Limits) // a call may outlast Do, after which its body is another's
	if err != nil {
		bad, ok := errors.AsType[*mcp.Error](err)
		if !ok {
			return nil, err
		}
		return refuse(http.StatusBadRequest, m.RawID(), bad.Code, bad.Message), nil
	}
	switch m.Kind {
	case mcp.Response:
		if !f.b.soft.answer(f.key(), &m) {
			return refuse(http.StatusBadRequest, nil, mcp.CodeInvalidRequest, "the response answers no request of this session"), nil
		}
		return accepted(), nil
	case mcp.Notification:
		return f.notification(ctx, r, &m)
	case mcp.Request:
		resp, err := f.request(ctx, r, &m)
		if refused, ok := errors.AsType[*unauthorizedError](err); ok {
			return refused.answer(), nil
		}
		if wrong, ok := errors.AsType[*mcp.Error](err); ok {
			return refuse(wrong.HTTPStatus(), m.RawID(), wrong.Code, wrong.Message), nil
		}
		return resp, err
	}
	return refuse(http.StatusBadRequest, nil, mcp.CodeInvalidRequest, "the body is not one message"), nil
}

func (f *sessionsFace) key() softKey { return softKey{f.t.Tenant.Name, f.c.Session.Nonce, f.t.Name} }

func (f *sessionsFace) whose() whose { return whose{f.c.Principal, f.c.Session.Expires} }

// notification: those of the session era mean something to the session alone. What no revision has goes on.
func (f *sessionsFace) notification(ctx context.Context, r *upstream.Request, m *mcp.Message) (*upstream.Response, error) {
	switch {
	case m.Method == "notifications/cancelled":
		f.b.soft.cancel(f.key(), m.RequestID.Of(m.Body))
	case m.Info().Name == "" && mcp.HeaderCarries(m.Method):
		r.Body = f.withMeta(m, nil, nil, nil)
		resp, err := f.inner.Do(ctx, r)
		if err != nil {
			return nil, err
		}
		_ = resp.Body.Close()
	}
	return accepted(), nil
}

func (f *sessionsFace) request(ctx context.Context, r *upstream.Request, m *mcp.Message) (*upstream.Response, error) {
	switch m.Method {
	case "initialize":
		return f.initialize(ctx, r, m)
	case "ping":
		return result(m.RawID(), nil), nil
	case "logging/setLevel":
		return f.setLevel(ctx, r, m)
	case "resources/subscribe", "resources/unsubscribe":
		return f.subscribe(ctx, r, m)
	}
	if !mcp.HeaderCarries(m.Method) {
		return refuse(http.StatusOK, m.RawID(), mcp.CodeMethodNotFound, "Method not found: the target's revision has no such method, nor a way to name it"), nil
	}
	return f.call(ctx, r, m)
}

// initialize is answered from what the target says to server/discover.
func (f *sessionsFace) initialize(ctx context.Context, r *upstream.Request, m *mcp.Message) (*upstream.Response, error) {
	server, refused, err := f.discover(ctx, r)
	if err != nil {
		return nil, err
	}
	if refused != nil {
		return refuse(http.StatusOK, m.RawID(), refused.Code, refused.Message), nil
	}
	return result(m.RawID(), server.initializeResult(f.c.Session.Version)), nil
}

func (f *sessionsFace) setLevel(ctx context.Context, r *upstream.Request, m *mcp.Message) (*upstream.Response, error) {
	if !slices.Contains(mcp.LogLevels, m.Level.String()) {
		return refuse(http.StatusOK, m.RawID(), mcp.CodeInvalidParams, "logging/setLevel needs params.level, one of debug to emergency"), nil
	}
	server, refused, err := f.discover(ctx, r)
	switch {
	case err != nil:
		return nil, err
	case refused == nil && !server.has("logging"):
		return refuse(http.StatusOK, m.RawID(), mcp.CodeMethodNotFound, "the target does not log"), nil
	}
	if !f.b.soft.setLevel(f.key(), m.Level.String(), f.whose()) {
		return refuse(http.StatusOK, m.RawID(), mcp.CodeInternal, tooMuch), nil
	}
	return result(m.RawID(), nil), nil
}

func (f *sessionsFace) subscribe(ctx context.Context, r *upstream.Request, m *mcp.Message) (*upstream.Response, error) {
	if !m.URI.IsString() {
		return refuse(http.StatusOK, m.RawID(), mcp.CodeInvalidParams, m.Method+" needs params.uri, a string"), nil
	}
	server, refused, err := f.discover(ctx, r)
	switch {
	case err != nil:
		return nil, err
	case refused == nil && !server.subscribes():
		return refuse(http.StatusOK, m.RawID(), mcp.CodeMethodNotFound, "the target has no subscriptions"), nil
	}
	if refused == nil && m.Method == "resources/subscribe" {
		no, err := f.refuses(ctx, r, m.URI.String())
		if err != nil {
			return nil, err
		}
		if no != nil {
			return refuse(http.StatusOK, m.RawID(), no.Code, no.Message), nil
		}
	}
	if !f.b.soft.subscribe(f.key(), m.URI.String(), m.Method == "resources/subscribe", f.whose()) {
		return refuse(http.StatusOK, m.RawID(), mcp.CodeInvalidRequest, tooMuch), nil
	}
	f.b.soft.awaitHeard(ctx, f.key()) // what changes after the answer is told
	return result(m.RawID(), nil), nil
}

// tooMuch refuses what would have to be kept for as long as the session lives.
const tooMuch = "there are too many subscriptions, or too long ones, in this session, or in all of yours on this proxy together: unsubscribe from some, or end a session"

// maxRounds bounds how often one call may ask its client, and maxIdleRounds how often a target may ask for patience alone.
const (
	maxRounds     = 10
	maxIdleRounds = 3
	idleRound     = 200 * time.Millisecond // before a retry that answers nothing, doubled each time
)

// call sends one request on in the stateless era's form and answers with what comes of it. Where the target wants input of the
// client, the answer becomes an event stream, on which it is asked.
func (f *sessionsFace) call(ctx context.Context, r *upstream.Request, m *mcp.Message) (*upstream.Response, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	done := f.b.soft.begin(f.key(), m.RawID(), cancel, f.whose())
	c := &call{f: f, r: *r, m: m, name: m.Name.String()}
	end := func() {
		done()
		cancel(nil)
	}
	resp, err := c.send(ctx, nil, nil)
	if context.Cause(ctx) == errCancelled {
		if err == nil {
			_ = resp.Body.Close()
		}
		end()
		return cancelled(), nil
	}
	if err != nil {
		end()
		return nil, err
	}
	if isStream(resp) {
		return c.stream(ctx, resp, end), nil
	}
	msg, err := f.b.readJSON(resp)
	if err != nil && context.Cause(ctx) == errCancelled {
		end()
		return cancelled(), nil
	}
	if err != nil {
		end()
		return nil, err
	}
	if msg == nil { // no JSON-RPC: for the multiplexer to judge
		end()
		return resp, nil
	}
	out, input, err := c.translate(msg)
	if err != nil {
		end()
		return nil, err
	}
	if input != nil {
		return c.ask(ctx, input, end), nil
	}
	end()
	told := jsonResponse(http.StatusOK, out, resp.Header)
	code, _ := msg.ErrorCode()
	told.OtherEra = code == mcp.CodeUnsupportedVersion || msg.Error.Present() && !msg.HasID() && resp.Status < 500
	return told, nil
}
