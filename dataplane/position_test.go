package dataplane

import (
	"net/http"
	"strings"
	"testing"

	"github.com/sluicegate/sluice/internal/mcptest"
)

// A target that does not know any more where its stream stood begins it anew: what it has said meanwhile is lost, and not what it
// says from then on.
func TestStreamGoesOnThoughItsPositionIsForgotten(t *testing.T) {
	said := func(what string) string {
		return chunk("id: " + what + "\ndata: {\"jsonrpc\":\"2.0\",\"method\":\"notifications/message\",\"params\":{\"level\":\"info\",\"data\":\"" + what + "\"}}\n\n")
	}
	for name, refuse := range map[string]func(*mcptest.Conn){
		"in words": func(c *mcptest.Conn) { c.Answer(http.StatusBadRequest, "text/plain", "stream replay unsupported") },
		"in MCP": func(c *mcptest.Conn) {
			c.Answer(http.StatusBadRequest, "application/json", `{"jsonrpc":"2.0","error":{"code":-32000,"message":"Invalid event ID"},"id":null}`)
		},
	} {
		t.Run(name, func(t *testing.T) {
			first := make(chan struct{}, 1)
			first <- struct{}{}
			target := newRaw(t, false, map[string]func(*mcptest.Conn, rawCall){"GET": func(c *mcptest.Conn, req rawCall) {
				if req.header.Get("Last-Event-Id") != "" {
					refuse(c)
					return
				}
				select {
				case <-first:
					c.Send(eventsHead, said("before"), "0\r\n\r\n")
				default:
					c.Send(eventsHead, said("after"))
					c.Hang()
				}
			}})
			p := behind("a="+target.URL, "b="+newRaw(t, false, nil).URL).start(t)
			s := p.open(t, http.MethodGet, p.initialize(t, "2025-11-25"), "")
			for _, want := range []string{"before", "after"} {
				if got := mustJSON(s.next(t, "notifications/message")); !strings.Contains(got, want) {
					t.Errorf("%s, want %s", got, want)
				}
			}
		})
	}
}

// A target's refusal of its stream is the client's to read, whatever else the proxy reads of the target.
func TestRefusedStreamSaysWhy(t *testing.T) {
	target := newRaw(t, false, map[string]func(*mcptest.Conn, rawCall){"GET": func(c *mcptest.Conn, req rawCall) {
		c.Answer(http.StatusConflict, "application/json", `{"jsonrpc":"2.0","error":{"code":-32000,"message":"Only one SSE stream is allowed per session"},"id":null}`)
	}})
	w := behind(target.URL)
	w.policies["only"] = authorization(allow("true"))
	p := w.start(t)
	if got := p.do(t, http.MethodGet, p.initialize(t, "2025-11-25"), ""); got.status != http.StatusConflict || !strings.Contains(got.body, "Only one SSE stream") {
		t.Errorf("%d %q", got.status, got.body)
	}
}
