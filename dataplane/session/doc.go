// Package session keeps MCP sessions in the ids that clients send back, so that any proxy serves any session and none
// stores it.
//
// What leaves a proxy to come back (session ids, cursors, ids of server requests, event ids) is sealed with keys that
// the control plane gives to every proxy of a tenant. Each kind is bound to a [Scope]: tenant, backend and principal. An
// id that is presented in another scope, edited, expired, cut, or spelled in another way does not open, and why stays
// inside: callers see [ErrInvalid].
package session
