// Package mux makes one MCP endpoint of a backend's targets: names, fan-out, merged lists and streams, in both eras.
//
// [Mux.Serve] takes one HTTP request that has passed routing, authentication and the session check, finds the targets
// it is for, asks their policies, sends it on and brings the answer back. Nothing of a session lives here that another
// proxy would need: what a request needs to know is sealed into the ids that it carries. What this proxy does remember
// (lists seen, eras found by probing, upstream sessions made late) is soft: bounded, and found anew by any proxy.
//
// With one target that needs no prefix, bytes pass through unchanged both ways. With several, names are
// `<target>_<name>`, URIs `<target>+<uri>`, and cursors, event ids and the ids of server requests are sealed.
package mux
