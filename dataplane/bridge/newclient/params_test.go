package newclient

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/sluicegate/sluice/dataplane/mcp"
	"github.com/sluicegate/sluice/dataplane/session"
	"github.com/sluicegate/sluice/dataplane/snapshot"
	"github.com/sluicegate/sluice/dataplane/upstream"
	"github.com/sluicegate/sluice/internal/hold"
	xdsv1 "github.com/sluicegate/sluice/proto/gen/sluice/xds/v1"
)

// A list is read no further than what is kept of one; a call whose headers can then not be checked is refused, and one without such
// headers goes on.
func TestLongLists(t *testing.T) {
	pad := strings.Repeat("x", 1<<20)
	pages := 0
	s := &target{}
	s.on = map[string]func(context.Context, *message) (*upstream.Response, error){
		"tools/list": func(_ context.Context, m *message) (*upstream.Response, error) {
			pages++
			return result(m, fmt.Sprintf(`{"tools":[{"name":"t%d%s","inputSchema":{"type":"object","properties":{"a":{"type":"string","x-mcp-header":"A"}}}}],"nextCursor":"%d"}`, pages, pad, pages)), nil
		},
	}
	bridged(t, s, func(t *testing.T, b *Bridge, face upstream.Transport) {
		for name, want := range map[string]string{"": `"result"`, "Mcp-Param-A": "cannot be checked: the tools have headers"} {
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
		if pages > 5 {
			t.Errorf("%d pages were read", pages)
		}
		if n := b.tools.Held(); n != 0 {
			t.Errorf("%d bytes are held of a list that is too long", n)
		}
	})
}

// What is remembered of tools is bounded, however many callers a target says much to, and not at the expense of another tenant's.
func TestToolsAreBounded(t *testing.T) {
	const room = 1 << 20
	pad := ""
	s := &target{}
	s.on = map[string]func(context.Context, *message) (*upstream.Response, error){
		"tools/list": func(_ context.Context, m *message) (*upstream.Response, error) {
			return result(m, `{"tools":[{"name":"t`+pad+`","inputSchema":{"type":"object","properties":{"a":{"type":"string","x-mcp-header":"A"}}}}]}`), nil
		},
	}
	synctest.Test(t, func(t *testing.T) {
		b := New(Config{Transport: func(*snapshot.Target) upstream.Transport { return s }, ProxyID: "p"})
		b.tools = hold.NewCache[toolsKey, *mcp.ToolParams](room)
		call := func(tenant, caller string) {
			only := &snapshot.Target{Name: "only", Resource: tenant + "/only", Digest: tenant, Tenant: &snapshot.Owner{Name: tenant}, Config: &xdsv1.Target{}}
			resp, err := do(t.Context(), b.Stateless(only, Caller{Scope: session.Scope{Principal: caller}}), "tools/call", `"name":"x"`)
			said(t, resp, err)
		}
		call("modest", "ada")
		pad = strings.Repeat("x", 16<<10)
		const callers = 200
		for n := range callers {
			call("greedy", fmt.Sprint(n))
		}
		if held := b.tools.Held(); held > room || held < room/2 {
			t.Errorf("%d bytes are held, want at most %d and most of them", held, room)
		}
		call("modest", "ada")
		if n := s.count("tools/list"); n != callers+1 {
			t.Errorf("%d lists were asked for, want %d: another tenant's was forgotten", n, callers+1)
		}
		b.Retain(nil)
		if held := b.tools.Held(); held != 0 {
			t.Errorf("%d bytes are held of targets that are gone", held)
		}
		if err := b.Close(t.Context()); err != nil {
			t.Error(err)
		}
	})
}
