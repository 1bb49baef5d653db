package dataplane

import (
	"net/http"
	"strings"
	"testing"
)

// What one client's call says while it waits for an answer is its own to the end: its next round has its arguments, and its response
// its id, whatever others ask in the meantime.
func TestOldClientsCallsKeepApart(t *testing.T) {
	s := newStatelessScript(t, func(_ int, method, body string) string {
		switch {
		case method == "tools/list":
			return `{"jsonrpc":"2.0","id":$ID,"result":{"resultType":"complete","tools":[]}}`
		case strings.Contains(body, `"ask"`) && !strings.Contains(body, "inputResponses"):
			return `{"jsonrpc":"2.0","id":$ID,"result":{"resultType":"input_required","inputRequests":{"r":{"method":"roots/list"}}}}`
		}
		return `{"jsonrpc":"2.0","id":$ID,"result":{"resultType":"complete","content":[]}}`
	})
	p := behind("one="+s.URL, "two="+s.URL).start(t)
	begin := func() string {
		return p.post(t, "", `{"jsonrpc":"2.0","id":0,"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{"roots":{}},"clientInfo":{"name":"raw","version":"1"}}}`).header.Get("Mcp-Session-Id")
	}
	ada, bob := begin(), begin()
	call := p.open(t, http.MethodPost, ada, `{"jsonrpc":"2.0","id":"ada's","method":"tools/call","params":{"name":"one_ask","arguments":{"text":"ada's own"}}}`)
	question := call.next(t, "roots/list")
	for range 50 {
		if a := p.post(t, bob, `{"jsonrpc":"2.0","id":"bob's","method":"tools/call","params":{"name":"two_say","arguments":{"text":"bob's own"}}}`); !strings.Contains(a.body, `"id":"bob's"`) {
			t.Fatalf("bob's call: %d %s", a.status, a.body)
		}
	}
	p.post(t, ada, `{"jsonrpc":"2.0","id":`+mustJSON(question["id"])+`,"result":{"roots":[]}}`)
	if got := call.next(t, ""); got["id"] != "ada's" || got["error"] != nil {
		t.Errorf("ada's response is %v", got)
	}
	bodies := s.bodies()
	last := bodies[len(bodies)-1]
	if !strings.Contains(last, "inputResponses") || !strings.Contains(last, "ada's own") || strings.Contains(last, "bob") {
		t.Errorf("ada's next round has what others said: %s", last)
	}
}
