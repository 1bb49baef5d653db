package mux

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"time"

	"github.com/sluicegate/sluice/dataplane/bridge/newclient"
	"github.com/sluicegate/sluice/dataplane/mcp"
	"github.com/sluicegate/sluice/dataplane/session"
	"github.com/sluicegate/sluice/dataplane/snapshot"
	"github.com/sluicegate/sluice/dataplane/upstream"
)

// eras is what a target speaks, as far as it is known: an answer about one era says nothing of the other.
type eras struct {
	versions []mcp.Revision
	// probed is when; zero for what the configuration says.
	probed time.Time
	// asked: whether it speaks 2026-07-28. Else only its sessions are known.
	asked bool
	// sessionless says that clients of the session era are better off with the target's stateless one: it refuses sessions, or
	// takes them without keeping any, so that it can ask its clients nothing there.
	sessionless bool
}

func (e eras) have(era mcp.Era) bool {
	return slices.ContainsFunc(e.versions, func(r mcp.Revision) bool { return r.Era() == era })
}

// of is e less the versions of the other era.
func (e eras) of(era mcp.Era) eras {
	e.versions = slices.DeleteFunc(slices.Clone(e.versions), func(r mcp.Revision) bool { return r.Era() != era })
	return e
}

type eraKey struct{ digest, principal string }

const (
	// reprobe is how soon a target that contradicted what was found is asked again: a target that answers nonsense to
	// everything must not be asked before each call.
	reprobe = 5 * time.Second
	// probeAge bounds how long the outcome is believed: servers are replaced in their place.
	probeAge = 10 * time.Minute
)

// face is how a target that speaks e is reached by a client of the stateless era: directly if it has that itself, for servers are
// not the same in both eras, else over the bridge.
func (x *Request) face(t *snapshot.Target, e eras) upstream.Transport {
	caller := newclient.Caller{Codec: x.Codec, Scope: x.Scope}
	if e.have(mcp.Stateless) {
		return x.mux.cfg.NewClients.Direct(t, caller)
	}
	return x.mux.cfg.NewClients.Stateless(t, caller)
}

// erasOf looks up whether a target speaks 2026-07-28, and probes it the first time: server/discover, then initialize, as far
// as an answer is needed. Whether a target that does has sessions too is found out by the first client that wants one. A
// target that does not answer is an error, and asked again by the next request.
func (x *Request) erasOf(ctx context.Context, t *snapshot.Target) (eras, error) {
	if own := t.Config.GetProtocolVersions(); len(own) > 0 {
		e := eras{}
		for _, v := range own {
			e.versions = append(e.versions, mcp.Revision(v))
		}
		return e, nil
	}
	key := x.eraKey(t)
	if e, ok := x.mux.eras.Get(t.Tenant.Name, key); ok && e.asked {
		return e, nil
	}
	v, err, _ := x.mux.flights.Do("era\x00"+t.Tenant.Name+"\x00"+key.digest+"\x00"+key.principal, func() (any, error) {
		ctx, cancel := x.mux.fanOut(context.WithoutCancel(ctx), t)
		defer cancel()
		e, err := x.probe(ctx, t)
		if err != nil {
			return nil, err
		}
		return x.found(t, e, true), nil
	})
	if err != nil {
		return eras{}, x.readdress(err)
	}
	return v.(eras), nil
}

// found remembers what a target speaks, beside what is known already of the other era.
func (x *Request) found(t *snapshot.Target, e eras, asked bool) eras {
	key := x.eraKey(t)
	e.probed, e.asked = time.Now(), asked
	if old, ok := x.mux.eras.Get(t.Tenant.Name, key); ok {
		e.asked, e.sessionless = e.asked || old.asked, old.sessionless
		for _, era := range []mcp.Era{mcp.Sessions, mcp.Stateless} {
			if !e.have(era) {
				e.versions = append(e.versions, old.of(era).versions...)
			}
		}
	}
	slices.Sort(e.versions)
	e.versions = slices.Compact(e.versions)
	slices.Reverse(e.versions)
	x.believe(t, e)
	names := make([]string, len(e.versions))
	for i, v := range e.versions {
		names[i] = string(v)
	}
	x.mux.cfg.Found(t, names)
	return e
}

func (x *Request) believe(t *snapshot.Target, e eras) {
	key := x.eraKey(t)
	x.mux.eras.Put(t.Tenant.Name, key, e, len(key.digest)+len(key.principal)+32*len(e.versions), e.probed.Add(probeAge))
}

// foundSessions notes that a target has begun a session in a version. Who speaks one has, as a rule, those before.
func (x *Request) foundSessions(t *snapshot.Target, version mcp.Revision) {
	if len(t.Config.GetProtocolVersions()) > 0 {
		return
	}
	if e, ok := x.mux.eras.Get(t.Tenant.Name, x.eraKey(t)); ok && slices.Contains(e.versions, version) {
		return
	}
	x.found(t, eras{versions: upTo(version)}, false)
}

// upTo are the versions with sessions up to one. The first has another transport, and says nothing of the others.
func upTo(version mcp.Revision) (all []mcp.Revision) {
	for _, r := range mcp.Revisions() {
		if r.HasSessions() && r <= max(version, mcp.V20250326) {
			all = append(all, r)
		}
	}
	return all
}

// eraKey: what a target answers may depend on who asks.
func (x *Request) eraKey(t *snapshot.Target) eraKey {
	key := eraKey{digest: t.Digest}
	if t.Policy.PerCaller() {
		key.principal = x.caller()
	}
	return key
}

// onlyStateless reports whether it is known already that a target has no sessions worth the name.
func (x *Request) onlyStateless(t *snapshot.Target) bool {
	if own := t.Config.GetProtocolVersions(); len(own) > 0 {
		return !slices.ContainsFunc(own, func(v string) bool { return mcp.Revision(v).HasSessions() })
	}
	e, ok := x.mux.eras.Get(t.Tenant.Name, x.eraKey(t))
	return ok && e.sessionless
}

// contradicted forgets what a target was found to speak, after an answer that no MCP server of that era gives; false if that is
// believed all the same, for now or because it is configured.
func (x *Request) contradicted(t *snapshot.Target) bool {
	key := x.eraKey(t)
	e, ok := x.mux.eras.Get(t.Tenant.Name, key)
	if !ok || time.Since(e.probed) <= reprobe {
		return false
	}
	x.mux.eras.Drop(t.Tenant.Name, key)
	return true
}

var discoverProbe = []byte(`{"jsonrpc":"2.0","id":"sluice-probe","method":"server/discover","params":{"_meta":{` +
	`"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientInfo":{"name":"sluice","version":"1"},` +
	`"io.modelcontextprotocol/clientCapabilities":{}}}}`)

// probe asks once, at 2026-07-28. A result or -32022 that lists only versions with sessions is a server with sessions
// (go-sdk); one that refuses 2026-07-28 yet lists it too (go-sdk again), so nothing is asked twice. One that lists nothing else
// has no sessions to ask for: it refuses for a moment. What else is
// answered comes from a server that never heard of server/discover: no answer of it is worth keying on, but one that
// the proxy's credentials are refused or that there is no MCP at all would hide the cause, so initialize tells.
func (x *Request) probe(ctx context.Context, t *snapshot.Target) (eras, error) {
	resp, err := x.askDiscover(ctx, t)
	if err != nil {
		return eras{}, err
	}
	if resp.Status == http.StatusUnauthorized || resp.Status == http.StatusForbidden {
		defer resp.Body.Close()
		return eras{}, x.unauthorized(t, resp)
	}
	if msg, err := x.readMessage(t, resp, x.scanned()); err == nil {
		e := eras{versions: discovered(msg)}
		if len(e.versions) > 0 && (msg.Result.Present() || !e.have(mcp.Stateless) || !e.have(mcp.Sessions)) {
			return e, nil
		}
	}
	return x.probeSessions(ctx, t)
}

// askDiscover sends server/discover in the name of the caller.
func (x *Request) askDiscover(ctx context.Context, t *snapshot.Target) (*upstream.Response, error) {
	h := make(http.Header, 8)
	h["Accept"], h["Content-Type"] = acceptBoth, typeJSON
	x.pass(t, h)
	mcp.SetHeaders(h, mcp.V20260728, "server/discover", "")
	return x.exchange(ctx, t, x.mux.cfg.Transport(t), &upstream.Request{Method: http.MethodPost, Header: h, Body: discoverProbe, Call: x.calling(t, outgoing{method: "server/discover"}), Safe: true}, session.Target{})
}

// probeSessions begins a session to see whether the target has them, and ends it.
func (x *Request) probeSessions(ctx context.Context, t *snapshot.Target) (eras, error) {
	own := *x
	own.Session = &session.State{Version: string(mcp.V20251125), Capabilities: "{}", ClientInfo: `{"name":"sluice","version":"1"}`}
	own.Verdict.Era = mcp.Sessions
	leg, hs, err := own.handshake(ctx, t, own.initializeAgain(session.Target{Version: string(mcp.V20251125)}), session.Target{})
	if err != nil {
		return eras{}, err
	}
	if hs.msg.Error.Present() {
		return eras{}, x.misanswered(t, http.StatusBadGateway, "target %q speaks no protocol version that this proxy knows: %s", t.Name, hs.msg.ErrorLine())
	}
	go own.quit(t, leg)
	return eras{versions: upTo(mcp.Revision(leg.Version))}, nil
}

// discovered are the known versions that an answer to server/discover lists.
func discovered(msg *mcp.Message) []mcp.Revision {
	var listed struct {
		SupportedVersions []mcp.Revision
		Data              struct{ Supported []mcp.Revision }
	}
	raw := msg.Result
	if !raw.Present() {
		raw = msg.Error
	}
	if err := json.Unmarshal(raw.Of(msg.Body), &listed); err != nil {
		return nil
	}
	var known []mcp.Revision
	for _, r := range append(listed.SupportedVersions, listed.Data.Supported...) {
		if r.Known() {
			known = append(known, r)
		}
	}
	return known
}

// readdress makes an error that several requests share the answer to this one.
func (x *Request) readdress(err error) error {
	own, ok := errors.AsType[*mcp.Error](err)
	if !ok || x.Message == nil {
		return err
	}
	e := *own
	e.ID = x.Message.RawID()
	if wrapped, ok := errors.AsType[*Error](err); ok {
		return &Error{&e, wrapped.Header}
	}
	return &e
}
