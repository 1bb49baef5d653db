package mux

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/textproto"
	"strings"

	"github.com/sluicegate/sluice/dataplane/bridge/newclient"
	"github.com/sluicegate/sluice/dataplane/bridge/oldclient"
	"github.com/sluicegate/sluice/dataplane/mcp"
	"github.com/sluicegate/sluice/dataplane/session"
	"github.com/sluicegate/sluice/dataplane/snapshot"
	"github.com/sluicegate/sluice/dataplane/upstream"
	"github.com/sluicegate/sluice/internal/policy"
)

// outgoing is one message on its way to a target.
type outgoing struct {
	body []byte
	// method is the message's, empty for a response; name is the target's own. Both stand in the headers of the
	// stateless era.
	method, name string
	// safe: the target may see it twice.
	safe bool
	// kind and own are the item that it is about, for policies; own is the target's name for it.
	kind policy.ItemKind
	own  string
	// arguments as policies changed them; nil: the client's own.
	arguments []byte
	// params are the headers that repeat arguments; nil: the client's own.
	params http.Header
	// session to send it to, where that is not the client's own at this target.
	session *session.Target
}

// Header values that all requests share; whoever changes one makes a new slice.
var (
	acceptBoth   = []string{"application/json, text/event-stream"}
	acceptStream = []string{"text/event-stream"}
	typeJSON     = []string{"application/json"}
	passedOn     = []string{"Accept-Language", "Traceparent", "Tracestate"}
)

// send brings one message to a target and returns its answer, which is MCP: JSON, an event stream or nothing, with a
// status of success or one that its JSON-RPC error explains. All else is an error that names the target. The caller
// closes the answer's body.
//
// A target that has lost the client's session there is sent the message once more in a new one, if it may be; it has
// processed nothing then.
func (x *Request) send(ctx context.Context, t *snapshot.Target, o outgoing) (*upstream.Response, error) {
	if t.Refused != nil {
		return nil, x.refusedConfig(t)
	}
	o.body = x.ownTasks(t, o.body)
	if x.stateless() {
		return x.sendStateless(ctx, t, o)
	}
	leg := o.session
	if leg == nil {
		own, err := x.leg(ctx, t)
		if err != nil {
			return nil, err
		}
		leg = &own
	}
	resp, err := x.do(ctx, t, *leg, o)
	if err != nil {
		return nil, err
	}
	if x.forgets(ctx, t, *leg, o, resp) {
		_ = resp.Body.Close()
		again, err := x.lost(ctx, t, *leg, o.session == nil)
		if err != nil {
			return nil, err
		}
		if resp, err = x.do(ctx, t, again, o); err != nil {
			return nil, err
		}
	}
	return x.check(t, resp)
}

// sendStateless sends what stands alone, by way of the era that the target has. A target that refuses that era has done nothing: it is asked anew
// what it speaks, and if that has changed, sent the request once more.
func (x *Request) sendStateless(ctx context.Context, t *snapshot.Target, o outgoing) (*upstream.Response, error) {
	for again := false; ; again = true {
		e, err := x.erasOf(ctx, t)
		if err != nil {
			return nil, err
		}
		resp, err := x.doBy(ctx, t, x.face(t, e), session.Target{}, o)
		refused, otherEra := errors.AsType[*newclient.RefusedError](err)
		switch {
		case otherEra:
			x.Record.Err = err
			err = x.misanswered(t, http.StatusBadGateway, "target %q refused to begin a session: %s", t.Name, refused.Reason)
		case err == nil:
			resp, otherEra, err = x.judge(t, resp)
		}
		if !otherEra || !x.contradicted(t) || again {
			return resp, err
		}
		if now, failed := x.erasOf(ctx, t); failed != nil || now.have(mcp.Stateless) == e.have(mcp.Stateless) {
			return resp, err
		}
		if resp != nil {
			_ = resp.Body.Close()
		}
		x.Record.Err = nil
	}
}

// forgets reports whether an answer says that the target does not know the session, and so has done nothing: it was restarted, or a
// server of the other era stands in its place.
func (x *Request) forgets(ctx context.Context, t *snapshot.Target, leg session.Target, o outgoing, resp *upstream.Response) bool {
	switch {
	case bridged(leg):
		return x.outlived(ctx, t, resp)
	case leg.ID == "":
		return false
	case resp.Status == http.StatusNotFound:
		return !x.refusesMethod(o, resp)
	case resp.Status == http.StatusBadRequest && mcp.MediaType(resp.Header) == mcp.TypeJSON:
		head, err := resp.Peek(maxErrorPage)
		if err != nil {
			return false
		}
		msg, err := mcp.Scan(bytes.TrimSpace(head), x.mux.cfg.Limits)
		code, _ := msg.ErrorCode()
		return err == nil && code == mcp.CodeUnsupportedVersion // which it took before
	}
	return false
}

// outlived reports whether the answer to a session without one at its target is that of a server which has come in the place of the
// stateless one and has sessions alone.
func (x *Request) outlived(ctx context.Context, t *snapshot.Target, resp *upstream.Response) bool {
	foreign := resp.OtherEra || resp.Status/100 == 4 && resp.Status != http.StatusUnauthorized && resp.Status != http.StatusForbidden
	if !foreign || len(t.Config.GetProtocolVersions()) > 0 {
		return false
	}
	x.contradicted(t)
	e, err := x.erasOf(ctx, t)
	return err == nil && !e.have(mcp.Stateless)
}

// refusesMethod reports whether a 404 says that the target has no such method, and not that it has lost the session. To the client it
// must not say that either.
func (x *Request) refusesMethod(o outgoing, resp *upstream.Response) bool {
	if mcp.MediaType(resp.Header) != mcp.TypeJSON {
		return false
	}
	sent, err := mcp.Scan(o.body, x.mux.cfg.Limits) // which need not be the client's own
	if err != nil {
		return false
	}
	head, err := resp.Peek(maxErrorPage)
	if err != nil || !mcp.RefusesMethod(head, sent.RawID(), x.mux.cfg.Limits) {
		return false
	}
	resp.Status = http.StatusOK
	return true
}

// do sends without looking at the answer.
func (x *Request) do(ctx context.Context, t *snapshot.Target, leg session.Target, o outgoing) (*upstream.Response, error) {
	return x.doBy(ctx, t, x.transport(t, leg), leg, o)
}

// doBy is do by a transport that may be a face of the target.
func (x *Request) doBy(ctx context.Context, t *snapshot.Target, tr upstream.Transport, leg session.Target, o outgoing) (*upstream.Response, error) {
	h := x.header(t, leg, o.method, o.name)
	if o.params != nil {
		for key := range h {
			if strings.HasPrefix(key, mcp.HeaderParam) {
				delete(h, key)
			}
		}
		maps.Copy(h, o.params)
	}
	return x.exchange(ctx, t, tr, &upstream.Request{
		Method: http.MethodPost,
		Header: h,
		Body:   o.body,
		Call:   x.calling(t, o),
		Safe:   o.safe,
	}, leg)
}

// exchange is the one place where a request leaves for a target.
func (x *Request) exchange(ctx context.Context, t *snapshot.Target, tr upstream.Transport, r *upstream.Request, leg session.Target) (*upstream.Response, error) {
	if t.Policy.Unverified() && x.Route.Transparent() != t {
		x.Record.Err = errNotTransparent
		return nil, x.fail(http.StatusServiceUnavailable, mcp.CodeInternal, "target %q cannot be served: %v", t.Name, errNotTransparent)
	}
	r.Whose = x.Scope.Principal
	if tr.Owned() && leg.ID != "" && x.renews(t) {
		r.Initialize = x.initializeAgain(leg)
	}
	resp, err := attempt(ctx, tr, r, t.Policy.Retry())
	if err != nil {
		if cause := context.Cause(ctx); cause != nil && errors.Is(cause, upstream.ErrTimeout) {
			err = fmt.Errorf("%w: %w", upstream.ErrTimeout, err)
		}
		if _, ok := errors.AsType[*newclient.RefusedError](err); ok {
			return nil, err
		}
		return nil, x.unreachable(t, err)
	}
	x.Record.Status = resp.Status
	if resp.Renewed && x.Session != nil { // not before the answer: a target may do one thing at a time
		own := *x
		go func() {
			ctx, cancel := own.mux.fanOut(context.WithoutCancel(ctx), t)
			defer cancel()
			own.sayLevel(ctx, t, leg)
		}()
	}
	return resp, nil
}

// transport reaches a target in the client's era: through a bridge, where the leg is of the other one.
func (x *Request) transport(t *snapshot.Target, leg session.Target) upstream.Transport {
	if bridged(leg) && !x.stateless() {
		return x.mux.oldclients.Sessions(t, oldclient.Client{Session: x.Session, Principal: x.caller(), Vary: x.vary(t)})
	}
	return x.mux.cfg.Transport(t)
}

// bridged reports whether a client's session has a leg at a target that has no sessions.
func bridged(leg session.Target) bool { return mcp.Revision(leg.Version).Era() == mcp.Stateless }

// header is what goes to a target of the client's headers, and of ours.
func (x *Request) header(t *snapshot.Target, leg session.Target, method, name string) http.Header {
	h := make(http.Header, 8)
	h["Accept"], h["Content-Type"] = acceptBoth, typeJSON
	x.pass(t, h)
	if !x.stateless() {
		if leg.ID != "" {
			h[mcp.HeaderSession] = []string{leg.ID}
		}
		if leg.Version != "" {
			mcp.SetHeaders(h, mcp.Revision(leg.Version), method, name)
		}
		return h
	}
	for key, values := range x.HTTP.Header {
		if strings.HasPrefix(key, mcp.HeaderParam) {
			h[key] = values
		}
	}
	mcp.SetHeaders(h, x.Verdict.Revision, method, name)
	mcp.SpellName(h, x.HTTP.Header)
	return h
}

// pass copies what the design lets through, and what the target asks for. Never what carries credentials or names the
// client, unless the target's configuration says so by name.
func (x *Request) pass(t *snapshot.Target, h http.Header) {
	for _, key := range passedOn {
		if values, ok := x.HTTP.Header[key]; ok {
			h[key] = values
		}
	}
	for _, name := range t.Config.GetForwardHeaders() {
		key := textproto.CanonicalMIMEHeaderKey(name)
		if values, ok := x.HTTP.Header[key]; ok && h[key] == nil && !strings.HasPrefix(key, "Mcp-") {
			h[key] = values
		}
	}
}

const maxErrorPage = 64 << 10

// check returns an answer that is MCP, or the error to give instead of it. A page that is not MCP never reaches the
// client: it was not written for it.
func (x *Request) check(t *snapshot.Target, resp *upstream.Response) (*upstream.Response, error) {
	resp, _, err := x.judge(t, resp)
	return resp, err
}

// judge is check for a request of 2026-07-28: otherEra says that the answer refuses that.
func (x *Request) judge(t *snapshot.Target, resp *upstream.Response) (_ *upstream.Response, otherEra bool, err error) {
	switch kind := mcp.MediaType(resp.Header); {
	case resp.Status == http.StatusAccepted, resp.Status == http.StatusNoContent:
		return resp, false, nil
	case resp.Status < 300 && (kind == mcp.TypeJSON || kind == mcp.TypeStream):
		return resp, false, nil
	case resp.Status == http.StatusOK && kind == "" && resp.Body == http.NoBody:
		return resp, false, nil // some answer notifications so
	}
	defer resp.Body.Close()
	if resp.Status == http.StatusUnauthorized || resp.Status == http.StatusForbidden {
		return nil, false, x.unauthorized(t, resp)
	}
	page, err := io.ReadAll(io.LimitReader(resp.Body, maxErrorPage+1))
	if err == nil && len(page) <= maxErrorPage {
		if msg, err := mcp.Scan(bytes.TrimSpace(page), x.mux.cfg.Limits); err == nil && msg.Kind == mcp.Response {
			resp.Body, resp.Length = io.NopCloser(bytes.NewReader(page)), int64(len(page))
			resp.Header["Content-Type"] = typeJSON
			code, _ := msg.ErrorCode()
			otherEra = code == mcp.CodeUnsupportedVersion || !msg.HasID() // for what was sent is good 2026-07-28
			if otherEra && resp.Status >= 500 && x.stateless() {          // it may have done something first
				x.contradicted(t)
				otherEra = false
			}
			return resp, otherEra, nil
		}
	}
	x.contradicted(t)
	return nil, false, x.notMCP(t, resp)
}

// unauthorized hides that the proxy's own credentials were refused, which the client can do nothing about. With
// passthrough they are the client's.
func (x *Request) unauthorized(t *snapshot.Target, resp *upstream.Response) error {
	if !t.Policy.Passthrough() {
		return x.misanswered(t, http.StatusBadGateway, "target %q refused the proxy's credentials (%d)", t.Name, resp.Status)
	}
	e := &Error{x.fail(resp.Status, mcp.CodeInternal, "target %q refused the caller's token (%d)", t.Name, resp.Status), http.Header{}}
	challenge := resp.Header.Values("Www-Authenticate")
	if t.Policy.Unverified() {
		x.hearChallenge(t, challenge)
	}
	if len(challenge) > 0 {
		e.Header["Www-Authenticate"] = challenge
	}
	return e
}

func (x *Request) notMCP(t *snapshot.Target, resp *upstream.Response) error {
	status, kind, hint := Misanswer(resp, "is its URL that of an MCP endpoint?")
	e := x.fail(status, mcp.CodeInternal, "target %q answered %d with %s, which is no MCP: %s", t.Name, resp.Status, kind, hint)
	x.Misanswered(t, resp.Status, errors.New(e.Message))
	if after := resp.Header.Get("Retry-After"); after != "" {
		return &Error{e, retryAfter(after)}
	}
	return e
}

// Misanswer reads an answer that is not of the target's protocol: the status that the client is told, what came, and why that may be;
// guess is why where its status tells nothing.
func Misanswer(resp *upstream.Response, guess string) (status int, kind, hint string) {
	status, kind, hint = http.StatusBadGateway, cmp.Or(mcp.MediaType(resp.Header), "nothing"), guess
	switch {
	case resp.Status == http.StatusTooManyRequests || resp.Status == http.StatusServiceUnavailable:
		status, hint = resp.Status, "it is overloaded or not ready"
	case resp.Status >= 500:
		hint = "it has an error of its own"
	case resp.Status/100 == 3:
		hint = "redirects are not followed: configure the address that it points to"
	}
	return status, kind, hint
}
