package newclient

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"

	"github.com/sluicegate/sluice/dataplane/mcp"
	"github.com/sluicegate/sluice/dataplane/session"
	"github.com/sluicegate/sluice/dataplane/snapshot"
	"github.com/sluicegate/sluice/dataplane/upstream"
)

// stateless is a target with sessions as one of 2026-07-28, for one caller.
type stateless struct {
	b      *Bridge
	t      *snapshot.Target
	tr     upstream.Transport
	caller Caller
}

// Owned is false: each request stands alone. What has an owner is named in its requestState.
func (f *stateless) Owned() bool { return false }

// Do takes one request of 2026-07-28.
func (f *stateless) Do(ctx context.Context, r *upstream.Request) (*upstream.Response, error) {
	if r.Method != http.MethodPost {
		return &upstream.Response{Status: http.StatusMethodNotAllowed, Header: http.Header{"Allow": {"POST"}}, Body: http.NoBody}, nil
	}
	if r.Header == nil {
		r.Header = http.Header{}
	}
	body := bytes.Clone(r.Body) // what is said to the target may outlast Do
	m, err := mcp.Scan(body, f.b.cfg.Limits)
	if err != nil {
		return refused(err), nil
	}
	switch {
	case m.Kind == mcp.Notification:
		return &upstream.Response{Status: http.StatusAccepted, Header: http.Header{}, Body: http.NoBody}, nil
	case m.Kind != mcp.Request:
		return f.refuse(&m, http.StatusBadRequest, mcp.CodeInvalidRequest, "the body is no request"), nil
	case m.Method == "server/discover":
		return f.discover(ctx, r, &m)
	case m.Method == "subscriptions/listen":
		return f.listen(ctx, r, &m)
	case m.Info().Routing == mcp.ByTask || !mcp.V20260728.MethodAllowed(m.Method):
		return f.refuse(&m, http.StatusNotFound, mcp.CodeMethodNotFound, "Method not found: %s", m.Method), nil
	}
	resp, err := f.call(ctx, r, &m)
	if errors.Is(err, errFull) || errors.Is(err, errShare) {
		return f.full(&m, err), nil
	}
	if refused, ok := errors.AsType[*unauthorizedError](err); ok { // of what the call needed first
		return (&failure{status: refused.status, header: refused.header}).answer(m.RawID())
	}
	return resp, err
}

// call serves what becomes a request of its own in a session: all that is neither of the protocol itself nor a listen.
func (f *stateless) call(ctx context.Context, r *upstream.Request, m *mcp.Message) (*upstream.Response, error) {
	again, refusal := f.again(m)
	if refusal != nil {
		return refusal, nil
	}
	if again != nil && again.ID != (session.CallID{}) {
		return f.resume(ctx, r, m, again)
	}
	if again != nil && again.Answered && declined(m) {
		return f.refuse(m, http.StatusOK, mcp.CodeInternal, "target %q goes on only when the URL that it named was visited, which was declined", f.t.Name), nil
	}
	c := clientOf(m)
	for first := true; ; first = false {
		p, resp, err := f.join(ctx, r, m, &c)
		if p == nil {
			return resp, err
		}
		if m.Method == "tools/call" {
			if err := p.checkParams(ctx, r.Header, m); err != nil {
				p.leave()
				if errors.Is(err, errLost) && first {
					continue
				}
				return f.paramError(m, err)
			}
		}
		resp, err = f.start(ctx, p, r, m, again)
		if errors.Is(err, errLost) {
			if first {
				continue // the target knew nothing of the session, so it has done nothing
			}
			err = &upstream.Error{Op: "post", Target: f.t.Resource, Err: errLost}
		}
		return resp, err
	}
}

// paramError answers where the headers of a tool's arguments could not be found good.
func (f *stateless) paramError(m *mcp.Message, err error) (*upstream.Response, error) {
	if wrong, ok := errors.AsType[*mcp.Error](err); ok {
		wrong.ID = m.RawID()
		return refused(wrong), nil
	}
	return nil, err
}

// again opens the requestState of a retry. Nil and nil: the request is none.
func (f *stateless) again(m *mcp.Message) (*session.Call, *upstream.Response) {
	if !m.RequestState.Present() {
		return nil, nil
	}
	invalid := func(why string) *upstream.Response {
		return f.refuse(m, http.StatusOK, mcp.CodeInvalidParams, "Invalid requestState: %s", why)
	}
	if f.caller.Codec == nil || !m.RequestState.IsString() {
		return nil, invalid("it is not this server's")
	}
	c, err := f.caller.Codec.OpenCall(f.caller.Scope, m.RequestState.String())
	switch {
	case err != nil, c.Target != f.t.Resource:
		return nil, invalid("it is not this server's, was changed, is another caller's, or has expired: call anew")
	case c.Digest != digest(m):
		return nil, invalid("it belongs to a request of another method, name or arguments")
	}
	return &c, nil
}

// declined reports whether one of a retry's answers says no.
func declined(m *mcp.Message) (no bool) {
	members(m.InputResponses.Of(m.Body), func(_ string, response []byte) {
		members(response, func(name string, value []byte) {
			if text, ok := mcp.Unquote(value); ok && name == "action" && string(text) != "accept" {
				no = true
			}
		})
	})
	return no
}

// refuse answers with an error of the proxy's own.
func (f *stateless) refuse(m *mcp.Message, status, code int, format string, args ...any) *upstream.Response {
	return refused(&mcp.Error{Status: status, Code: code, Message: fmt.Sprintf(format, args...), ID: m.RawID()})
}

// full answers where there is no room for another session.
func (f *stateless) full(m *mcp.Message, err error) *upstream.Response {
	text := "target %q has too many open sessions on this proxy"
	if errors.Is(err, errShare) {
		text = "you use as many sessions of target %q as one caller may on this proxy; try again when other calls of yours have ended"
	}
	resp := f.refuse(m, http.StatusServiceUnavailable, mcp.CodeInternal, text, f.t.Name)
	resp.Header["Retry-After"] = []string{"5"}
	return resp
}

func refused(err error) *upstream.Response {
	e, ok := errors.AsType[*mcp.Error](err)
	if !ok {
		e = &mcp.Error{Status: http.StatusInternalServerError, Code: mcp.CodeInternal, Message: "internal error"}
	}
	return answered(e.HTTPStatus(), e.Append(nil))
}

// answered is an answer in one piece.
func answered(status int, body []byte) *upstream.Response {
	return &upstream.Response{Status: status, Header: http.Header{"Content-Type": {mcp.TypeJSON}},
		Body: io.NopCloser(bytes.NewReader(body)), Length: int64(len(body))}
}
