// Package newclient gives a target with sessions the face of one of 2026-07-28, for clients that know no other.
//
//	mux ── client's era ──▶ bridge ── target's era ──▶ upstream
//
// A face is an [upstream.Transport], made for one caller by [Bridge.Stateless]. Names, rules, lists and cursors are the
// multiplexer's, which speaks the client's era to every target and does not notice the bridge. What only passes through
// keeps its bytes: members are added, removed and replaced by splicing. See docs/decisions/0004-bridging-the-eras.md.
//
// What the target knows of its client lives in sessions that the bridge keeps (pool.go, peer.go, begin.go): who may share
// one is the target's sessionScope. A request of the client becomes one in such a session (call.go), with what 2026-07-28
// adds to requests taken off (request.go) and what it adds to results put on (result.go). What the target says (hear.go)
// is what the client's request is answered from (round.go). What the target asks its client (ask.go) ends that request
// with `input_required`: the call is parked here, and its requestState, sealed, names this proxy (park.go). The client's
// retry brings the answers, which go to the target, and the same call is read on. subscriptions/listen is fed from the
// session's own stream (listen.go, listener.go, stream.go). A child that is of 2026-07-28 itself has its headers checked
// here, which its transport cannot carry (direct.go).
package newclient
