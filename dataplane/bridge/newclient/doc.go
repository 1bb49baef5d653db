// Package newclient gives a target of one era of MCP the face of the other.
//
//	mux ── client's era ──▶ bridge ── target's era ──▶ upstream
//
// A face is an [upstream.Transport], made for one caller: [Bridge.Stateless] makes a target with sessions look like one of
// 2026-07-28. Names, rules, lists and cursors are the multiplexer's, which speaks the client's era to every target and
// does not notice the bridge. What only passes through keeps its bytes: members are added, removed and replaced by
// splicing.
//
// # New client, old target
//
// What the target knows of its client lives in sessions that the bridge keeps (pool.go, peer.go): who may share one is the
// target's sessionScope. A request of the client becomes one in such a session (call.go), with what 2026-07-28 adds to
// requests taken off (request.go) and what it adds to results put on (result.go). What the target asks its client
// (ask.go) ends the client's request with `input_required`: the call is parked here, and its requestState, sealed, names
// this proxy (park.go). The client's retry brings the answers, which go to the target, and the same call is read on.
// subscriptions/listen is fed from the session's own stream (listen.go, stream.go).
package newclient
