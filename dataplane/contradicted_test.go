package dataplane

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/sluicegate/sluice/internal/mcptest"
)

// A method of the other era is unknown to a session, with one target and with several.
func TestListenInASession(t *testing.T) {
	for _, stateless := range []bool{false, true} {
		a, b := newRaw(t, stateless, nil), newRaw(t, false, nil)
		for _, w := range []*world{behind("a=" + a.URL), behind("a="+a.URL, "b="+b.URL)} {
			p := w.start(t)
			got := p.post(t, p.initialize(t, "2025-11-25"), `{"jsonrpc":"2.0","id":1,"method":"subscriptions/listen","params":{"notifications":{"toolsListChanged":true}}}`)
			if got.status != 200 || !strings.Contains(got.body, "-32601") {
				t.Errorf("%d targets: %d %s", len(w.targets), got.status, got.body)
			}
			for _, target := range []*raw{a, b} {
				for _, body := range target.posts.with("subscriptions/listen") {
					t.Errorf("a target was sent %s", body)
				}
			}
		}
	}
}

// An answer that never ends costs its own request of a batch, and no memory.
func TestBatchWithAnEndlessAnswer(t *testing.T) {
	for name, answer := range map[string]func(c *mcptest.Conn, req rawCall){
		"event": func(c *mcptest.Conn, _ rawCall) {
			c.Send(eventsHead, chunk("data: {"+strings.Repeat(" ", maxBody)), chunk(strings.Repeat(" ", 1<<20)), "0\r\n\r\n")
		},
		"json": func(c *mcptest.Conn, req rawCall) { c.JSON(req.result(`{"x":"` + strings.Repeat("x", maxBody) + `"}`)) },
	} {
		target := newRaw(t, false, nil)
		target.on("initialize", func(c *mcptest.Conn, req rawCall) {
			c.Answer(200, "application/json", req.result(`{"protocolVersion":"2025-03-26","capabilities":{},"serverInfo":{"name":"s","version":"1"}}`), "Mcp-Session-Id: s")
		})
		target.on("tools/call", answer)
		p := behind(target.URL).start(t)
		got := p.post(t, p.initialize(t, "2025-03-26"), `[{"jsonrpc":"2.0","id":"long","method":"tools/call","params":{"name":"t"}},{"jsonrpc":"2.0","id":"short","method":"ping"}]`)
		if !strings.Contains(got.body, fmt.Sprintf("more than %d bytes", maxBody)) || !strings.Contains(got.body, `"id":"long"`) || !strings.Contains(got.body, `"id":"short","result":{}`) {
			t.Errorf("%s: %d %.500s", name, got.status, got.body)
		}
	}
}

// A server that is replaced in its place by one of the other era alone is found out by the next session, not in ten minutes.
func TestServerReplacedByOneOfTheOtherEra(t *testing.T) {
	for name, stateless := range map[string]bool{"sessions by stateless": false, "stateless by sessions": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			first, then := newRaw(t, stateless, nil), newRaw(t, !stateless, nil)
			at, change := replaced(t, first.URL, then.URL)
			p := behind(at).start(t)
			p.initialize(t, "2025-11-25")
			// A client of the other era has it asked what it speaks.
			p.post(t, "", `{"jsonrpc":"2.0","id":1,"method":"tools/list","params":{"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{}}}}`,
				"Mcp-Protocol-Version", "2026-07-28", "Mcp-Method", "tools/list")
			change()
			for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(100 * time.Millisecond) {
				a := p.post(t, "", `{"jsonrpc":"2.0","id":0,"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{},"clientInfo":{"name":"raw","version":"1"}}}`)
				if a.header.Get("Mcp-Session-Id") != "" && a.status == 200 {
					break
				}
				if time.Now().After(deadline) {
					t.Fatalf("no session with the new server: %d %s", a.status, a.body)
				}
			}
		})
	}
}
