package newclient

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/sluicegate/sluice/dataplane/upstream"
)

// What is remembered of tools is bounded, however much a target says of them; a call whose headers can then not be checked is
// refused, and one without such headers goes on.
func TestToolsAreBounded(t *testing.T) {
	pad := strings.Repeat("x", 1<<20)
	pages := 0
	s := &target{}
	s.on = map[string]func(context.Context, *message) (*upstream.Response, error){
		"tools/list": func(_ context.Context, m *message) (*upstream.Response, error) {
			pages++
			return result(m, fmt.Sprintf(`{"tools":[{"name":"t%d","description":%q,"inputSchema":{"type":"object","properties":{"a":{"type":"string","x-mcp-header":"A"}}}}],"nextCursor":"%d"}`, pages, pad, pages)), nil
		},
	}
	bridged(t, s, func(t *testing.T, b *Bridge, face upstream.Transport) {
		for name, want := range map[string]string{"": `"result"`, "Mcp-Param-A": "cannot be checked"} {
			h := http.Header{}
			if name != "" {
				h.Set(name, "v")
			}
			body := `{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"x","arguments":{"a":"v"},"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{}}}}`
			resp, err := face.Do(t.Context(), &upstream.Request{Method: http.MethodPost, Header: h, Body: []byte(body)})
			if got := said(t, resp, err); !strings.Contains(got, want) {
				t.Errorf("with header %q: %s, want %s", name, got, want)
			}
		}
		if pages > 10 {
			t.Errorf("%d pages were read", pages)
		}
		for n := range 100 {
			b.tools.put(toolsKey{digest: "1", principal: fmt.Sprint(n % 50)}, &toolHeaders{size: maxListSize})
			size := 0
			for _, h := range b.tools.known {
				size += h.size
			}
			if size > maxToolsSize || size != b.tools.size {
				t.Fatalf("lists take %d bytes, counted as %d", size, b.tools.size)
			}
		}
		b.tools.forget("1")
		if b.tools.size != 0 {
			t.Errorf("%d bytes are counted of nothing", b.tools.size)
		}
	})
}
