package mux

import (
	"cmp"
	"context"
	"errors"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/sluicegate/sluice/dataplane/mcp"
	"github.com/sluicegate/sluice/dataplane/session"
	"github.com/sluicegate/sluice/dataplane/snapshot"
	"github.com/sluicegate/sluice/dataplane/upstream"
	"github.com/sluicegate/sluice/internal/policy"
	xdsv1 "github.com/sluicegate/sluice/proto/gen/sluice/xds/v1"
)

func failsOpen(b *snapshot.Backend) bool { return b.Failure == xdsv1.Backend_FAILURE_MODE_FAIL_OPEN }

// initialize begins a session at all targets at once and seals what came of it into the client's session id.
func (m *Mux) initialize(w http.ResponseWriter, x *Request) error {
	if x.Codec == nil {
		return x.fail(http.StatusServiceUnavailable, mcp.CodeInternal, "this proxy has no session keys yet; try again")
	}
	ttl := x.Route.Tenant.SessionTTL
	now := time.Now().Truncate(time.Second)
	x.Session = &session.State{
		Seed:         session.NewNonce(),
		Version:      string(x.Verdict.Revision),
		ClientInfo:   clientInfo(x.Message),
		Capabilities: object(x.Message.Capabilities.Of(x.Message.Body)),
		Prefixed:     prefixes(x.Backend),
		Several:      len(x.Backend.Targets) > 1,
		Issued:       now,
		Expires:      now.Add(ttl),
	}
	x.Session.Nonce = x.Scope.Nonce(x.Session.Seed)
	if x.Scope.Principal == session.AnyBearer {
		x.Session.Caller, x.Session.Subject = x.caller(), x.Principal.Subject()
	}
	if len(x.Backend.Targets) == 0 {
		return x.fail(http.StatusServiceUnavailable, mcp.CodeInternal, "backend %q has no targets", x.Backend.Name)
	}
	if !x.Session.Several {
		return m.initializeOne(w, x, x.Backend.Targets[0])
	}
	return m.initializeAll(w, x)
}

// initializeOne passes the handshake through. The answer is held back up to its response, for the session id in its
// head needs to know what the target said.
func (m *Mux) initializeOne(w http.ResponseWriter, x *Request, t *snapshot.Target) error {
	ctx, cancel := m.fanOut(x.HTTP.Context(), t)
	defer cancel()
	x.Record.Target = t.Name
	if err := x.take(t, policy.None, ""); err != nil {
		return err
	}
	leg, hs, err := x.greet(ctx, t, x.Message.Body)
	if err != nil {
		return err
	}
	if hs.msg.Error.Present() {
		if err := x.head(w, t, hs.resp); err != nil {
			return err
		}
		_, _ = w.Write(hs.raw)
		return nil
	}
	if !bridged(leg) {
		x.Session.Version = leg.Version // the target negotiated with the client itself
	}
	if err := x.seal(w, []session.Target{leg}); err != nil {
		go x.quit(t, leg)
		return err
	}
	if err := x.head(w, t, hs.resp); err != nil {
		go x.quit(t, leg)
		return err
	}
	_, _ = w.Write(hs.raw)
	return nil
}

// initializeAll begins at all targets, and merges what they say.
func (m *Mux) initializeAll(w http.ResponseWriter, x *Request) error {
	targets := x.Backend.Targets
	legs := make([]session.Target, len(targets))
	results := make([]serverSays, len(targets))
	body := x.Message.Body
	if string(x.Message.Version.Value) != x.Session.Version {
		var e mcp.Edits // what the client asked for has no sessions, or is not known
		e.String(x.Message.Version.Span, []byte(x.Session.Version))
		body = e.Apply(nil, body)
	}
	errs := x.eachTaken(x.HTTP.Context(), targets, func(ctx context.Context, x *Request, t *snapshot.Target) error {
		i := x.order(t)
		leg, hs, err := x.greet(ctx, t, body)
		if err != nil {
			return err
		}
		if hs.msg.Error.Present() {
			return x.fail(http.StatusBadGateway, mcp.CodeInternal, "target %q refused initialize: %s", t.Name, hs.msg.ErrorLine())
		}
		legs[i] = leg
		results[i], err = parseServer(hs.msg.Result.Of(hs.msg.Body))
		if err != nil {
			return x.misanswered(t, http.StatusBadGateway, "target %q answered initialize with what cannot be read", t.Name)
		}
		return nil
	})
	var begun []session.Target
	var missing missing
	merge := newServerMerge()
	for i, t := range targets {
		if errs[i] != nil {
			missing.add(t, errs[i])
			continue
		}
		begun = append(begun, legs[i])
		merge.add(t.Name, results[i])
	}
	err := missing.refuse(x, len(targets), errs)
	if err == nil {
		err = x.inCommon(w.Header())
	}
	if err == nil {
		err = x.seal(w, begun)
	}
	if err != nil { // the client gets no session, so the targets keep none
		for i, t := range targets {
			if legs[i].Name != "" {
				go x.quit(t, legs[i])
			}
		}
		return err
	}
	return x.answer(w, merge.initializeResult(x.Session.Version, missing))
}

// seal makes the client's session id and puts it into the head of the answer.
func (x *Request) seal(w http.ResponseWriter, legs []session.Target) error {
	x.Session.Targets = legs
	for _, t := range x.Backend.Targets {
		if t.Refused == nil && x.mux.cfg.Transport(t).Owned() {
			x.Session.Owner = x.mux.cfg.ProxyID
		}
	}
	if slices.ContainsFunc(legs, bridged) { // what the session has open there is known here alone
		x.Session.Owner = x.mux.cfg.ProxyID
	}
	id, err := x.mux.cfg.Sessions.Encode(x.Codec, x.Scope, *x.Session)
	if size, ok := errors.AsType[*session.SizeError](err); ok {
		return x.fail(http.StatusBadRequest, mcp.CodeInternal, "initialize: %s", size.Reason)
	} else if err != nil {
		return err
	}
	w.Header()[mcp.HeaderSession] = []string{id}
	return nil
}

// shook is a target's answer to initialize.
type shook struct {
	resp *upstream.Response // its body is read
	raw  []byte             // the body as it came
	msg  *mcp.Message
}

// handshake sends initialize and reads the answer. The leg is empty if the answer is an error response. at says whether the
// target is reached through a bridge.
func (x *Request) handshake(ctx context.Context, t *snapshot.Target, body []byte, at session.Target) (session.Target, shook, error) {
	var hs shook
	if t.Refused != nil {
		return session.Target{}, hs, x.refusedConfig(t)
	}
	h := make(http.Header, 8)
	h["Accept"], h["Content-Type"] = acceptBoth, typeJSON
	x.pass(t, h)
	resp, err := x.exchange(ctx, t, x.transport(t, at), &upstream.Request{Method: http.MethodPost, Header: h, Body: body, Call: x.calling(t, outgoing{method: "initialize"})}, at)
	if err != nil {
		return session.Target{}, hs, err
	}
	if resp, err = x.check(t, resp); err != nil {
		return session.Target{}, hs, err
	}
	by := x.scanned()
	by.leg = &session.Target{Name: t.Name, ID: resp.Header.Get(mcp.HeaderSession), Version: cmp.Or(at.Version, x.Session.Version), Place: place(t)}
	msg, raw, err := x.readWhole(t, resp, by)
	if err != nil {
		return session.Target{}, hs, err
	}
	hs = shook{resp: resp, raw: raw, msg: msg}
	if msg.Error.Present() {
		return session.Target{}, hs, nil
	}
	version, err := protocolVersion(msg.Result.Of(msg.Body))
	if err != nil || !version.HasSessions() {
		x.Record.Err = err
		return session.Target{}, hs, x.misanswered(t, http.StatusBadGateway,
			"target %q answered initialize with protocol version %q, which has no sessions that this proxy knows", t.Name, version)
	}
	if bridged(at) {
		return session.Target{Name: t.Name, Version: at.Version, Place: place(t)}, hs, nil
	}
	x.foundSessions(t, version)
	id := strings.Clone(resp.Header.Get(mcp.HeaderSession)) // which is part of the whole head
	return session.Target{Name: t.Name, ID: id, Version: string(version), Place: place(t)}, hs, nil
}

// greet is handshake for a client: with a target that has no sessions, through a bridge. A list of versions does not count for
// that while the target has not refused: some list versions that they refuse, and some leave out those that they take.
func (x *Request) greet(ctx context.Context, t *snapshot.Target, body []byte) (session.Target, shook, error) {
	stateless := session.Target{Version: string(mcp.V20260728)}
	if x.onlyStateless(t) {
		leg, hs, err := x.handshake(ctx, t, body, stateless)
		if err == nil && !hs.msg.Error.Present() || !x.contradicted(t) {
			return leg, hs, err
		} // another server may stand there now
	}
	leg, hs, err := x.handshake(ctx, t, body, session.Target{})
	refused := false
	if err == nil && hs.msg.Error.Present() {
		code, _ := hs.msg.ErrorCode()
		refused = code == mcp.CodeMethodNotFound || code == mcp.CodeUnsupportedVersion || code == mcp.CodeHeaderMismatch || code == mcp.CodeInvalidRequest
		switch hs.resp.Status { // which codes come with these differs from server to server
		case http.StatusBadRequest, http.StatusNotFound, http.StatusMethodNotAllowed:
			refused = true
		}
	}
	// A server that keeps no session can ask its clients nothing in this era, and can in the other.
	keepsNone := err == nil && !hs.msg.Error.Present() && leg.ID == "" && !x.mux.cfg.Transport(t).Owned()
	if !refused && !keepsNone && (err == nil || t.Refused != nil) {
		return leg, hs, err
	}
	asked, state := *x, *x.Session // which may be sealed while a probe goes on
	asked.Session, asked.Record = &state, &Record{}
	prefers := func() bool {
		e, err := asked.erasOf(ctx, t)
		if err == nil && refused && !e.have(mcp.Stateless) && x.contradicted(t) {
			e, err = asked.erasOf(ctx, t)
		}
		if err != nil || !e.have(mcp.Stateless) || !refused && !keepsNone && e.have(mcp.Sessions) {
			return false
		}
		e.sessionless, e.probed = true, time.Now()
		x.believe(t, e)
		return true
	}
	late, ok := errors.AsType[*mcp.Error](err)
	if ctx.Err() != nil || ok && late.Status == http.StatusGatewayTimeout {
		// This client has waited as long as it may: what is found out is for the next one.
		go prefers()
		return leg, hs, err
	}
	if !prefers() {
		return leg, hs, err
	}
	return x.handshake(ctx, t, body, stateless)
}

// quit ends a session at a target, as far as the target lets it.
func (x *Request) quit(t *snapshot.Target, leg session.Target) {
	if leg.ID == "" && !bridged(leg) {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(x.HTTP.Context()), 5*time.Second)
	defer cancel()
	own := *x
	own.Record = &Record{}
	h := own.header(t, leg, "", "")
	delete(h, "Content-Type")
	resp, err := x.transport(t, leg).Do(ctx, &upstream.Request{Method: http.MethodDelete, Header: h, Whose: x.Scope.Principal, Call: own.calling(t, outgoing{})})
	if err == nil {
		_ = resp.Body.Close()
	}
}

// end serves DELETE: the targets' sessions end too, and the client's id is good no more.
func (m *Mux) end(w http.ResponseWriter, x *Request) error {
	tenant := x.Route.Tenant.Name
	m.graves.Add(tenant, x.Session)
	m.streams.end(x.Session.Nonce)
	m.levels.Drop(tenant, x.Session.Nonce)
	x.each(x.HTTP.Context(), func(_ context.Context, x *Request, t *snapshot.Target) error {
		if t.Refused != nil {
			return nil
		}
		if s, ok := x.Session.Target(t.Name); ok && s.Place == place(t) {
			x.quit(t, s)
		}
		if s, ok := m.soft.Get(tenant, softKey{x.Session.Nonce, t.Name}); ok {
			m.soft.Drop(tenant, softKey{x.Session.Nonce, t.Name})
			x.quit(t, s)
		}
		return nil
	})
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// maxInfo is how much of clientInfo a session remembers as it is; icons may be whole pictures.
const maxInfo = 512

// clientInfo is what targets that join later are told of the client.
func clientInfo(msg *mcp.Message) string {
	raw := msg.ClientInfo.Of(msg.Body)
	if len(raw) <= maxInfo {
		return object(raw)
	}
	small := []byte{'{'}
	err := mcp.Members(raw, mcp.Limits{}, nil, func(name, value []byte) error {
		switch string(name) {
		case "name", "version", "title":
			if len(value) > maxInfo/3 {
				value = []byte(`"?"`)
			}
			if len(small) > 1 {
				small = append(small, ',')
			}
			small = append(append(mcp.AppendString(small, name), ':'), value...)
		}
		return nil
	})
	if err != nil {
		return "{}"
	}
	return string(append(small, '}'))
}

func object(raw []byte) string {
	if len(raw) == 0 || raw[0] != '{' {
		return "{}"
	}
	return string(raw)
}
