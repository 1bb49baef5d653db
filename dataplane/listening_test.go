package dataplane

import (
	"net/http"
	"strings"
	"testing"

	"github.com/sluicegate/sluice/internal/mcptest"
)

// A listen stays open, and so would all that its client sent with it.
func TestListenIsSmall(t *testing.T) {
	p := behind(mcptest.NewServer(t, mcptest.Options{Stateless: true}).URL).start(t)
	padded := func(size int) string {
		return `"notifications":{"toolsListChanged":true,"resourceSubscriptions":["file:///` + strings.Repeat("x", size) + `"]}`
	}
	if got := p.call(t, "2026-07-28", "", "subscriptions/listen", "", padded(128<<10)); got.status != http.StatusRequestEntityTooLarge || !strings.Contains(got.body, "spread the resources over several") {
		t.Errorf("%d %s", got.status, got.body)
	}
}

// The result of a listen is the last that its client hears, whatever changes and whatever its target says afterwards.
func TestListenEndsWithItsResult(t *testing.T) {
	const ack, result = `data: {"jsonrpc":"2.0","method":"notifications/subscriptions/acknowledged","params":{"notifications":{"toolsListChanged":true}}}` + "\n\n",
		`data: {"jsonrpc":"2.0","id":"L","result":{"resultType":"complete"}}` + "\n\n"
	target := newRaw(t, true, map[string]func(*mcptest.Conn, rawCall){"subscriptions/listen": func(c *mcptest.Conn, _ rawCall) {
		c.Send("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n", ack+result, `data: {"jsonrpc":"2.0","method":"notifications/tools/list_changed"}`+"\n\n")
		c.Hang()
	}})
	p := behind(target.URL).start(t)
	msgs := p.listen(t, `"L"`, `{"toolsListChanged":true}`).ended(t)
	if len(msgs) != 2 || msgs[1]["id"] != "L" {
		t.Errorf("the client was told %v", msgs)
	}
}
