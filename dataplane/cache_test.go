package dataplane

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/modelcontextprotocol/go-sdk/mcp"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/sluicegate/sluice/internal/mcptest"
)

// Lists are asked for once while they are good: as long as the configuration says in the session era, as the target
// says in the stateless one; a private list for its caller alone.
func TestListCache(t *testing.T) {
	for _, tt := range []struct {
		name, version string
		scope         string // of the stateless era; "" says nothing
		cache         bool   // of the session era
		first, bob    int    // requests that the target sees for two lists of alice, and then for one of bob
	}{
		{"sessions, off", "2025-11-25", "", false, 2, 1},
		{"sessions, on", "2025-11-25", "", true, 1, 1},
		{"stateless, public", "2026-07-28", "public", false, 1, 0},
		{"stateless, private", "2026-07-28", "private", false, 1, 1},
		{"stateless, without", "2026-07-28", "", false, 2, 1},
	} {
		for _, n := range []string{"one target", "two targets"} {
			t.Run(tt.name+", "+n, func(t *testing.T) {
				o := mcptest.Options{Stateless: tt.version == "2026-07-28", Caching: func(_ context.Context, _ mcp.Request, c *mcp.Cacheable) {
					c.TTLMs, c.CacheScope = 0, "private"
					if tt.scope != "" {
						c.TTLMs, c.CacheScope = 60_000, tt.scope
					}
				}}
				srv, other := mcptest.NewServer(t, o), mcptest.NewServer(t, o)
				w := behind("a="+srv.URL, "b="+other.URL).withKeys()
				if n == "one target" {
					w.targets = w.targets[:1]
				}
				if tt.cache {
					w.targets[0].ListCache = durationpb.New(time.Minute)
				}
				p := w.start(t)
				sessions := map[string]string{}
				lists := func(who []string) int {
					if tt.version != "2026-07-28" && sessions[who[1]] == "" {
						sessions[who[1]] = p.initialize(t, tt.version, who...)
					}
					before := countMethod(srv.Requests(), "POST")
					var got answer
					if tt.version == "2026-07-28" {
						got = p.post(t, "", `{"jsonrpc":"2.0","id":7,"method":"tools/list","params":{"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{}}}}`,
							append([]string{"MCP-Protocol-Version", "2026-07-28", "Mcp-Method", "tools/list"}, who...)...)
					} else {
						got = p.post(t, sessions[who[1]], listTools, who...)
					}
					if got.status != 200 || !strings.Contains(got.body, "echo") || !strings.Contains(got.body, `"id":7`) {
						t.Fatalf("list: %d %s", got.status, got.body)
					}
					return countMethod(srv.Requests(), "POST") - before
				}
				if tt.version == "2026-07-28" { // the era is probed once, by another list
					p.post(t, "", `{"jsonrpc":"2.0","id":7,"method":"prompts/list","params":{"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{}}}}`,
						append([]string{"MCP-Protocol-Version", "2026-07-28", "Mcp-Method", "prompts/list"}, alice...)...)
				}
				if got := lists(alice) + lists(alice); got != tt.first {
					t.Errorf("alice's lists took %d requests, want %d", got, tt.first)
				}
				if got := lists(bob); got != tt.bob {
					t.Errorf("bob's list took %d requests, want %d", got, tt.bob)
				}
			})
		}
	}
}

// A list that the target says has changed is asked for again.
func TestListCacheInvalidated(t *testing.T) {
	srv := mcptest.NewServer(t, mcptest.Options{})
	w := behind("a=" + srv.URL)
	w.targets[0].ListCache = durationpb.New(time.Hour)
	p := w.start(t)
	cli := mcptest.Connect(t, p.URL, mcptest.ClientOptions{Version: "2025-11-25"})
	awaitStreams(t, srv)
	cli.ToolNames(t)
	srv.MCP.AddTool(tool("fresh"), textHandler("x"))
	cli.Await(t, "notifications/tools/list_changed", 1)
	if names := cli.ToolNames(t); count(names, "fresh") != 1 {
		t.Errorf("after list_changed: %v", names)
	}
}
