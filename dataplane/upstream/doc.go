// Package upstream carries single MCP messages to one target and brings its answers back.
//
// Whatever a target speaks, its [Transport] looks like streamable HTTP: POST carries one JSON-RPC message, GET
// opens the stream of what the target sends on its own, DELETE ends a session. For a target that speaks streamable
// HTTP that is what goes over the wire, through pooled HTTP/1.1 connections (HTTP/2 where its policy asks for it).
// For stdio and for HTTP+SSE (2024-11-05) an adapter keeps the child or the stream, mints a local session id on
// `initialize`, and tells messages apart that share the one channel.
//
// Pools, children and streams outlive snapshots: they hang on what identifies the connection, not on a revision.
package upstream
