package systemtest

import (
	"slices"
	"testing"
)

// Servers whose lists have several pages: one of the stateless era alone, which refuses `initialize`, by itself and beside one that has
// sessions; and one that has sessions. Every client tries there what an endpoint does besides calls, and the server tells
// what it learned of it: who listens, and which calls were left.
//
// It is a matrix as TestMatrix is one, of the same peers. The outcome is testdata/pages.golden.
func TestPages(t *testing.T) {
	clients := slices.DeleteFunc(slices.Clone(matrixClients), func(c matrixClient) bool { return c.name == "inspector" })
	matrix{"pages.golden", clients, pagesTargets, pagesColumns, cannotWithPages}.test(t)
}

var (
	pagesColumns = []string{"pages", "reads", "gets", "headers", "asked", "changes", "updates", "unsubscribes", "progress", "level", "cancels"}
	pagesTargets = []matrixTarget{
		{name: "ts-v2 alone", peer: "ts-v2", elicit: map[string]any{"name": "Ada"}, probes: pagesProbes()},
		{name: "ts-v2 beside", peer: "ts-v2", beside: "everything http", elicit: map[string]any{"name": "Ada"}, probes: pagesProbes()},
		{name: "fastmcp pages", elicit: map[string]any{"name": "Ada"}, probes: slices.DeleteFunc(pagesProbes(), func(p cellProbe) bool {
			return slices.Contains([]string{"headers", "updates", "unsubscribes"}, p.What)
		})},
	}
	cannotWithPages = []reason{
		atTimes(`go 2026-07-28 ts-v2 (alone|beside) headers`, "go-sdk's client forgets which arguments are headers whenever it hears that tools have changed, as others make them here"),
		atTimes(`ts-v1 sse .* progress`, "over HTTP+SSE the client forgets whom progress is for if the result comes in the same read"),
		because(`.* fastmcp pages headers`, "headers of arguments are of the stateless era"),
		because(`.* fastmcp pages (updates|unsubscribes)`, "the server sends none"),
		because(`(go|fastmcp|ts-v2) (2026-07-28|auto) fastmcp pages changes`,
			"the server tells the session of the call alone, and an anonymous client of the stateless era has one for each request"),
		because(`fastmcp (2026-07-28|auto) .* level`, "the client asks for all messages in the stateless era, and cannot for fewer"),
	}
)

// pagesProbes are those of interop/ts_server.mjs and interop/fastmcp_pages.py. KEY keeps cells from what is another's.
func pagesProbes() []cellProbe {
	return []cellProbe{
		{What: "pages", Kind: "pages", Tool: "page", Want: "25 tools, 25 resources, 12 templates, 25 prompts"},
		{What: "reads", Kind: "read", URI: "page://resource/24", Want: "text of page://resource/24"},
		{What: "gets", Kind: "prompt", Tool: "page_24", Want: "prompt page_24"},
		{What: "headers", Kind: "call", Tool: "where", Arguments: map[string]any{"region": "north"}, Want: "north, north"},
		{What: "asked", Kind: "call", Tool: "ask", Arguments: none, Want: "Hello, Ada and Ada!"},
		{What: "changes", Kind: "changes", Tool: "change"},
		{What: "updates", Kind: "update", URI: "page://watched/KEY", Tool: "touch", Arguments: map[string]any{"uri": "page://watched/KEY"}},
		{What: "unsubscribes", Kind: "unsubscribe", URI: "page://watched/KEY", Tool: "watched", Arguments: map[string]any{"uri": "page://watched/KEY", "by": 0}, Want: "by 0"},
		{What: "progress", Kind: "progress", Tool: "count", Arguments: none, Want: "3 times"},
		{What: "level", Kind: "level", Tool: "log", Want: "warning error"},
		{What: "leaves", Kind: "cancel", Tool: "hold", Arguments: map[string]any{"key": "KEY"}},
		{What: "cancels", Kind: "call", Tool: "left", Arguments: map[string]any{"key": "KEY"}, Want: "left"},
	}
}
