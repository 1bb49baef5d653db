// Package mcp is the wire: what MCP looks like as bytes, and everything that differs between its revisions.
// It holds no connection, no session and no configuration; every function is safe for concurrent use on
// different values, and none keeps a reference to its arguments beyond what its result shows.
//
// # Reading
//
// [Scan] reads one body in one strict pass and yields a [Message]: its kind, its id as it was written, and
// spans of the few members that a gateway routes on. Nothing is decoded into maps, nothing is copied; slices
// in a Message alias the body. What is wrong comes back as an [*Error], which knows its JSON-RPC code, its
// HTTP status and the id to answer. [ScanBatch] does the same for the arrays of revision 2025-03-26.
// [Members] and [Elements] walk one object or array the same strict way (handshakes, capabilities,
// server/discover, filters), and [Unambiguous] checks a whole value, such as a tool's arguments before a policy
// decodes them.
//
// # Writing
//
// [Edits] replaces values at spans and leaves every other byte alone. [AppendRequest], [AppendNotification],
// [AppendResult] and [AppendError] build messages around raw ids, params and results; [AppendString] quotes.
//
// # Lists
//
// A [Merge] takes the results of tools/list, prompts/list, resources/list or resources/templates/list from
// several targets, shows each item to a callback that keeps, drops or renames it, and writes one result.
// [ReadList] only looks.
//
// # Results and streams
//
// A [URIWriter] rewrites URIs at the fixed paths where MCP results hold them, while the bytes pass through;
// it never holds more than one URI. [EventReader] and [EventWriter] are server-sent events.
//
// # Headers, eras and revisions
//
// [Classify] is the table of the eras: given HTTP method, header and message it says how a request is to be
// served, or with which status and error it is refused. [Revision] answers what a revision has; [Methods]
// says for each method how it is routed. [EncodeHeader], [DecodeHeader], [CheckHeaders] and [ParamHeaders]
// are the header rules of the stateless era.
//
// A typical request:
//
//	msg, err := mcp.Scan(body, mcp.Limits{})            // err is a *mcp.Error: write it and be done
//	verdict, err := mcp.Classify(mcp.Exchange{HTTPMethod: r.Method, Header: r.Header, Message: &msg})
//	switch msg.Info().Routing {
//	case mcp.ByName:
//		var e mcp.Edits
//		e.String(msg.Name.Span, own)                    // "time_now" → "now"
//		body = e.Apply(buf[:0], body)
//	…
package mcp
