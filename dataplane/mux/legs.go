package mux

import (
	"context"
	"net/http"
	"strconv"

	"github.com/sluicegate/sluice/dataplane/mcp"
	"github.com/sluicegate/sluice/dataplane/session"
	"github.com/sluicegate/sluice/dataplane/snapshot"
	xdsv1 "github.com/sluicegate/sluice/proto/gen/sluice/xds/v1"
)

// A leg is a client's session at one target. Most are sealed into the client's session id. One that was begun later (the
// target joined, moved, was down at first, or lost its session) is soft state of this proxy, found by nonce and target;
// another proxy begins its own.
type softKey struct {
	nonce  session.Nonce
	target string
}

// leg returns the session at a target, and begins one if there is none.
func (x *Request) leg(ctx context.Context, t *snapshot.Target) (session.Target, error) {
	at := place(t)
	if !x.mux.soft.Empty() {
		if s, ok := x.mux.soft.Get(t.Tenant.Name, softKey{x.Session.Nonce, t.Name}); ok && s.Place == at {
			return s, nil
		}
	}
	if s, ok := x.Session.Target(t.Name); ok && s.Place == at {
		return s, nil
	}
	return x.begin(ctx, t)
}

// lost decides what becomes of a leg that its target does not know any more. own is false for one that an answer to a
// target's request names.
func (x *Request) lost(ctx context.Context, t *snapshot.Target, leg session.Target, own bool) (session.Target, error) {
	key := softKey{x.Session.Nonce, t.Name}
	soft, isSoft := x.mux.soft.Get(t.Tenant.Name, key)
	if isSoft && soft.ID == leg.ID {
		x.mux.soft.Drop(t.Tenant.Name, key)
	}
	if own && (isSoft || t.Config.GetReinitialize()) {
		return x.begin(ctx, t)
	}
	if x.alone() != nil {
		return session.Target{}, x.sessionGone()
	}
	// A 404 would end what the client has at all the other targets.
	return session.Target{}, x.fail(http.StatusBadGateway, mcp.CodeInternal,
		"target %q has lost its part of this session: begin a new session, or set `reinitialize: true` on the target", t.Name)
}

// begin makes a session at a target from what the client's session says of the client. Requests that need it at the
// same time share it.
func (x *Request) begin(ctx context.Context, t *snapshot.Target) (session.Target, error) {
	key := softKey{x.Session.Nonce, t.Name}
	v, err, _ := x.mux.flights.Do("begin\x00"+string(key.nonce[:])+t.Name, func() (any, error) {
		ctx, cancel := x.mux.fanOut(context.WithoutCancel(ctx), t)
		defer cancel()
		leg, hs, err := x.greet(ctx, t, x.initializeAgain(session.Target{Version: x.Session.Version}))
		if err != nil {
			return nil, err
		}
		if hs.msg.Error.Present() {
			return nil, x.fail(http.StatusBadGateway, mcp.CodeInternal, "target %q refused initialize: %s", t.Name, hs.msg.ErrorLine())
		}
		resp, err := x.do(ctx, t, leg, outgoing{body: initialized, method: "notifications/initialized"})
		if err != nil {
			own := *x
			go own.quit(t, leg) // nobody could use it
			return nil, err
		}
		_ = resp.Body.Close()
		x.mux.soft.Put(t.Tenant.Name, key, leg, 2*len(t.Name)+len(leg.ID)+len(leg.Version), x.Session.Expires)
		x.sayLevel(ctx, t, leg)
		return leg, nil
	})
	if err != nil {
		return session.Target{}, x.readdress(err)
	}
	return v.(session.Target), nil
}

var initialized = mcp.AppendNotification(nil, "notifications/initialized", nil)

// renews reports whether a session whose child or stream is gone may be made anew under its id: for stdio that is how
// idle children come back.
func (x *Request) renews(t *snapshot.Target) bool {
	_, stdio := t.Config.GetTransport().(*xdsv1.Target_Stdio)
	return stdio || t.Config.GetReinitialize()
}

// initializeAgain is the client's handshake as the session remembers it.
func (x *Request) initializeAgain(leg session.Target) []byte {
	if x.Session == nil {
		return nil
	}
	params := append([]byte(`{"protocolVersion":`), strconv.Quote(leg.Version)...)
	params = append(append(params, `,"capabilities":`...), x.Session.Capabilities...)
	params = append(append(params, `,"clientInfo":`...), x.Session.ClientInfo...)
	return mcp.AppendRequest(nil, []byte(`"sluice-initialize"`), "initialize", append(params, '}'))
}

// place is a fingerprint of where a target is. A session is no use, and none of the business, of another server.
func place(t *snapshot.Target) uint32 {
	var http *xdsv1.HttpTransport
	h := uint32(offset32)
	switch tr := t.Config.GetTransport().(type) {
	case *xdsv1.Target_Mcp:
		http = tr.Mcp
	case *xdsv1.Target_Sse:
		http, h = tr.Sse, fnv1a(h, "sse")
	default:
		return 0 // a child's id is this proxy's own, and its transport knows what became of it
	}
	if http.GetTls() {
		h = fnv1a(h, "tls")
	}
	h = fnv1a(h, http.GetHost())
	h = (h ^ http.GetPort()) * prime32
	return fnv1a(h, http.GetPath())
}

// FNV-1a, without the allocations of hash/fnv. Part of the session format.
const (
	offset32 = 2166136261
	prime32  = 16777619
)

func fnv1a(h uint32, s string) uint32 {
	for i := range len(s) {
		h = (h ^ uint32(s[i])) * prime32
	}
	return (h ^ 0xff) * prime32
}
