package dataplane

import (
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/sluicegate/sluice/internal/mcptest"
	xdsv1 "github.com/sluicegate/sluice/proto/gen/sluice/xds/v1"
)

// What the proxy asks a target in a client's session has an id of its own (JSON-RPC 2.0, MCP 2025-11-25, basic): servers refuse a
// second request of the same id while the first is open, or answer one of them with the other's result.
func TestOwnRequestsHaveOwnIDs(t *testing.T) {
	var mu sync.Mutex
	ids := map[string]string{}
	both := make(chan struct{})
	list := func(result string) func(*mcptest.Conn, rawCall) {
		return func(c *mcptest.Conn, req rawCall) {
			mu.Lock()
			if ids[req.method] = req.id; len(ids) == 2 {
				close(both)
			}
			mu.Unlock()
			<-both
			c.JSON(req.result(result))
		}
	}
	target := newRaw(t, false, map[string]func(*mcptest.Conn, rawCall){
		"tools/list":   list(`{"tools":[{"name":"t","inputSchema":{"type":"object"}}]}`),
		"prompts/list": list(`{"prompts":[{"name":"p"}]}`),
	})
	w := behind(target.URL)
	w.policies["only"] = authorization(allow("true"))
	p := w.start(t)
	id := p.initialize(t, "2025-11-25")
	var calls sync.WaitGroup
	for _, call := range []string{
		`{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"t","arguments":{}}}`,
		`{"jsonrpc":"2.0","id":2,"method":"prompts/get","params":{"name":"p"}}`,
	} {
		calls.Go(func() { p.post(t, id, call) })
	}
	calls.Wait()
	if ids["tools/list"] == ids["prompts/list"] {
		t.Errorf("two requests at a time have the id %s", ids["tools/list"])
	}
}

// A target that says by 404 that it has no such method says nothing of the session, also where the proxy asked for itself.
func TestOwnRequestOfAMethodThatATargetLacks(t *testing.T) {
	lacks := newRaw(t, false, map[string]func(*mcptest.Conn, rawCall){"prompts/list": func(c *mcptest.Conn, req rawCall) {
		c.Answer(http.StatusNotFound, "application/json", `{"jsonrpc":"2.0","id":`+req.id+`,"error":{"code":-32601,"message":"Method not found"}}`)
	}})
	has := newRaw(t, false, map[string]func(*mcptest.Conn, rawCall){
		"prompts/list": func(c *mcptest.Conn, req rawCall) { c.JSON(req.result(`{"prompts":[{"name":"p"}]}`)) },
		"prompts/get":  func(c *mcptest.Conn, req rawCall) { c.JSON(req.result(`{"messages":[],"it":"is"}`)) },
	})
	w := behind("lacks="+lacks.URL, "has="+has.URL)
	w.backend.PrefixMode = xdsv1.Backend_PREFIX_MODE_NEVER
	p := w.start(t)
	id := p.initialize(t, "2025-11-25")
	if got := p.post(t, id, `{"jsonrpc":"2.0","id":1,"method":"prompts/get","params":{"name":"p"}}`); !strings.Contains(got.body, `"it":"is"`) {
		t.Errorf("%d %s", got.status, got.body)
	}
}
