package dataplane

import (
	"net/http"
	"testing"

	"github.com/sluicegate/sluice/internal/mcptest"
)

// A session with several standing streams has each message on one of them alone, the newest (2025-11-25, transports, Multiple
// Connections); when that ends the one before takes over, and loses nothing.
func TestOneStreamIsTold(t *testing.T) {
	srv := mcptest.NewServer(t, mcptest.Options{Stateless: true})
	w := behind(srv.URL)
	p := w.start(t)
	session := p.initialize(t, "2025-11-25")
	if got := p.post(t, session, `{"jsonrpc":"2.0","id":1,"method":"resources/subscribe","params":{"uri":"test://watched"}}`); got.status != 200 {
		t.Fatal(got.body)
	}
	older, newer := p.open(t, http.MethodGet, session, ""), p.open(t, http.MethodGet, session, "")
	touch := func(told *eventStream) {
		t.Helper()
		waitFor(t, "an update", func() bool {
			p.post(t, session, `{"jsonrpc":"2.0","id":2,"method":"tools/call","params":{"name":"touch","arguments":{}}}`)
			for _, m := range told.rest() {
				if m["method"] == "notifications/resources/updated" {
					return true
				}
			}
			return false
		})
	}
	touch(newer)
	older.rest() // of before there was another
	for range 5 {
		touch(newer)
	}
	w.policies["only"] = authorization(deny(`has(mcp.tool) && mcp.tool.name == "add"`))
	p.apply(t, w)
	newer.next(t, "notifications/tools/list_changed")
	if got := older.rest(); len(got) > 0 {
		t.Errorf("the older stream was told too: %v", got)
	}
	newer.resp.Body.Close()
	touch(older)
	w.policies["only"] = authorization(deny(`has(mcp.tool) && mcp.tool.name == "echo"`))
	p.apply(t, w)
	older.next(t, "notifications/tools/list_changed")
}
