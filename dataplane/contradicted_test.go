package dataplane

import (
	"fmt"
	"net/http"
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

// Each request of a batch has one response, however its answer's stream ends: nobody can come back for it.
func TestBatchWithAnswersThatEndEarly(t *testing.T) {
	const (
		progress = "data: " + `{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":1,"progress":1}}` + "\n\n"
		done     = "data: " + `{"jsonrpc":"2.0","id":7,"result":{"content":[]}}` + "\n\n"
	)
	for _, tt := range []struct {
		name   string
		answer func(c *mcptest.Conn)
		want   string
	}{
		{"a stream that ends early", func(c *mcptest.Conn) { c.Send(eventsHead, chunk(progress), "0\r\n\r\n") }, `"id":7,"error"`},
		{"a stream that its client shall come back to", func(c *mcptest.Conn) {
			c.Send(eventsHead, chunk("id: e1\nretry: 10\ndata:\n\n"), "0\r\n\r\n")
		}, `"id":7,"error"`},
		{"a stream that breaks off", func(c *mcptest.Conn) {
			c.Send(eventsHead, chunk(progress))
			_ = c.Reset()
		}, `"id":7,"error"`},
		{"no content", func(c *mcptest.Conn) { c.Answer(http.StatusAccepted, "", "") }, `"id":7,"error"`},
		{"a stream that breaks off later", func(c *mcptest.Conn) {
			c.Send(eventsHead, chunk(done), chunk(progress))
			_ = c.Reset()
		}, `"id":7,"result"`},
		{"a stream without its last line end", func(c *mcptest.Conn) {
			c.Send(eventsHead, chunk(strings.TrimSuffix(done, "\n")), "0\r\n\r\n")
		}, `"id":7,"result"`},
		{"an array", func(c *mcptest.Conn) {
			c.Send(eventsHead, chunk(strings.Replace(strings.Replace(done, "{", "[{", 1), "\n\n", "]\n\n", 1)), "0\r\n\r\n")
		}, `"id":7,"result"`},
	} {
		for n := 1; n <= 2; n++ {
			t.Run(fmt.Sprintf("%s, %d targets", tt.name, n), func(t *testing.T) {
				target, other := newRaw(t, false, nil), newRaw(t, false, nil)
				for _, old := range []*raw{target, other} {
					old.on("initialize", func(c *mcptest.Conn, req rawCall) {
						c.Answer(200, "application/json", req.result(`{"protocolVersion":"2025-03-26","capabilities":{},"serverInfo":{"name":"s","version":"1"}}`), "Mcp-Session-Id: s")
					})
				}
				target.on("tools/call", func(c *mcptest.Conn, _ rawCall) { tt.answer(c) })
				w := behind("a="+target.URL, "b="+other.URL)
				w.targets = w.targets[:n]
				p := w.start(t)
				got := p.post(t, p.initialize(t, "2025-03-26"), `[{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"`+map[int]string{2: "a_"}[n]+`t"}},{"jsonrpc":"2.0","id":"short","method":"ping"}]`)
				if strings.Count(got.body, `"id":7`) != 1 || !strings.Contains(got.body, tt.want) || !strings.Contains(got.body, `"id":"short","result":{}`) {
					t.Errorf("%d %.500s", got.status, got.body)
				}
			})
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
