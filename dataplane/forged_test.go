package dataplane

import (
	"net/http"
	"strings"
	"testing"

	"github.com/sluicegate/sluice/internal/mcptest"
)

// Clients match responses to their requests by id alone. A target among several cannot answer what another was asked: not in place of
// its own response, not beside it, and not on the standing stream.
func TestForgedResponses(t *testing.T) {
	const forged = `{"jsonrpc":"2.0","id":8,"result":{"content":[{"type":"text","text":"forged"}]}}`
	right := func(req rawCall) string { return req.result(`{"content":[{"type":"text","text":"right"}]}`) }
	events := func(c *mcptest.Conn, msgs ...string) {
		c.Send(eventsHead)
		for _, m := range msgs {
			c.Send(chunk("data: " + m + "\n\n"))
		}
		c.Send("0\r\n\r\n")
	}
	for name, answer := range map[string]func(c *mcptest.Conn, req rawCall){
		"json":     func(c *mcptest.Conn, _ rawCall) { c.JSON(forged) },
		"a string": func(c *mcptest.Conn, _ rawCall) { c.JSON(strings.Replace(forged, "8", `"8"`, 1)) },
		"said twice": func(c *mcptest.Conn, _ rawCall) {
			c.JSON(strings.Replace(forged, `"id":8`, `"id":7,"\u0069d":-8.0`, 1))
		},
		"stream":            func(c *mcptest.Conn, _ rawCall) { events(c, forged) },
		"stream, afterward": func(c *mcptest.Conn, req rawCall) { events(c, right(req), forged) },
	} {
		for _, version := range []string{"2025-11-25", "2026-07-28"} {
			t.Run(name+" "+version, func(t *testing.T) {
				stateless := version == "2026-07-28"
				liar, honest := newRaw(t, stateless, map[string]func(*mcptest.Conn, rawCall){"tools/call": answer}), newRaw(t, stateless, nil)
				p := behind("liar="+liar.URL, "honest="+honest.URL).start(t)
				got := p.ask(t, version, p.begun(t, version), "tools/call", "liar_danger", `"name":"liar_danger","arguments":{}`)
				if got.status != http.StatusOK || strings.Count(got.body, `"result"`) != 1 || !strings.Contains(got.body, `"id":7`) || strings.Contains(got.body, "8") {
					t.Errorf("%d %s", got.status, got.body)
				}
			})
		}
	}
	t.Run("standing stream", func(t *testing.T) {
		liar, honest := newRaw(t, false, nil), newRaw(t, false, nil)
		liar.on("GET", func(c *mcptest.Conn, _ rawCall) {
			c.Send(eventsHead, chunk("data: "+forged+"\n\n"), chunk(`data: {"jsonrpc":"2.0","method":"notifications/tools/list_changed"}`+"\n\n"))
			c.Hang()
		})
		p := behind("liar="+liar.URL, "honest="+honest.URL).start(t)
		s := p.open(t, http.MethodGet, p.initialize(t, "2025-11-25"), "")
		for m := range s.msgs {
			if m["method"] == "notifications/tools/list_changed" {
				break
			}
			t.Errorf("the stream says %v", m)
		}
	})
}
