package dataplane

import (
	"context"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/sluicegate/sluice/dataplane/mux"
	"github.com/sluicegate/sluice/internal/mcptest"
)

// What a client may see changes with the policy; open streams say so, and stay.
func TestListChangedByConfiguration(t *testing.T) {
	for _, n := range []int{1, 2} {
		w, a, b := two(t, "2025-11-25", mcptest.Options{})
		w.targets = w.targets[:n]
		p := w.start(t)
		id := p.initialize(t, "2025-11-25")
		stream := p.open(t, http.MethodGet, id, "")
		awaitStreams(t, []*mcptest.Server{a, b}[:n]...)
		p.apply(t, w) // nothing a client could see
		w.policies["a"] = authorization(deny(`has(mcp.tool) && mcp.tool.name == "add"`))
		p.apply(t, w)
		heard := map[string]bool{}
		for len(heard) < 3 {
			select {
			case msg := <-stream.msgs:
				heard[mustJSON(msg["method"])] = true
			case <-time.After(5 * time.Second):
				t.Fatalf("%d targets: heard only of %v", n, heard)
			}
		}
		for _, list := range []string{"tools", "prompts", "resources"} {
			if !heard[`"notifications/`+list+`/list_changed"`] {
				t.Errorf("%d targets: nothing of %s: %v", n, list, heard)
			}
		}
		w.policies["a"] = nil
		p.apply(t, w)
		time.Sleep(50 * time.Millisecond)
		if got := p.post(t, id, listTools); !strings.Contains(got.body, `add"`) {
			t.Errorf("the change back is not there: %s", got.body)
		}
		if got := p.do(t, http.MethodDelete, id, ""); got.status != 204 {
			t.Errorf("DELETE: %d", got.status)
		}
		stream.ended(t)
	}
}

const listenAll = `{"jsonrpc":"2.0","id":"L","method":"subscriptions/listen","params":{"notifications":{"toolsListChanged":true,"resourceSubscriptions":["%watched","nobody+x://y"]},` +
	`"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{}}}}`

func listenRaw(t *testing.T) {
	for _, n := range []int{1, 2} {
		w, a, b := two(t, "2026-07-28", mcptest.Options{})
		w.targets = w.targets[:n]
		p := w.start(t)
		prefix := map[int]string{1: "test://", 2: "a-b+test://"}[n]
		server := []*mcptest.Server{nil, a, b}[n]
		body := strings.Replace(listenAll, "%", prefix, 1)
		if n == 1 {
			body = strings.Replace(body, `,"nobody+x://y"`, "", 1)
		}
		s := p.open(t, http.MethodPost, "", body, "MCP-Protocol-Version", "2026-07-28", "Mcp-Method", "subscriptions/listen")
		var first map[string]any
		select {
		case first = <-s.msgs:
		case <-time.After(5 * time.Second):
			t.Fatal("no acknowledgement")
		}
		if first["method"] != "notifications/subscriptions/acknowledged" || !strings.Contains(mustJSON(first), prefix+"watched") || strings.Contains(mustJSON(first), "nobody") {
			t.Errorf("%d targets: first message %v", n, first)
		}
		if !strings.Contains(mustJSON(first), `"io.modelcontextprotocol/subscriptionId":"L"`) {
			t.Errorf("%d targets: no tag on %v", n, first)
		}
		if err := server.MCP.ResourceUpdated(t.Context(), &mcp.ResourceUpdatedNotificationParams{URI: "test://watched"}); err != nil {
			t.Fatal(err)
		}
		updated := s.next(t, "notifications/resources/updated")
		if got := mustJSON(updated); !strings.Contains(got, `"uri":"`+prefix+`watched"`) || !strings.Contains(got, `subscriptionId":"L"`) {
			t.Errorf("%d targets: %s", n, got)
		}
		w.policies["a"] = authorization(deny(`has(mcp.tool) && mcp.tool.name == "add"`))
		p.apply(t, w)
		changed := s.next(t, "notifications/tools/list_changed")
		if got := mustJSON(changed); !strings.Contains(got, `subscriptionId":"L"`) {
			t.Errorf("%d targets: untagged %s", n, got)
		}
		w.targets = w.targets[:n-1]
		if n == 2 { // a target leaves: the listen ends the polite way
			p.apply(t, w)
			msgs := s.ended(t)
			last := msgs[len(msgs)-1]
			if last["id"] != "L" || last["result"] == nil {
				t.Errorf("the last message is %v, want the result", last)
			}
		}
		for _, m := range s.rest() {
			if m["method"] == "notifications/prompts/list_changed" {
				t.Errorf("%d targets: what was not asked for: %v", n, m)
			}
		}
	}
}

// rest is what is there now.
func (s *eventStream) rest() (msgs []map[string]any) {
	for {
		select {
		case m, ok := <-s.msgs:
			if !ok {
				return msgs
			}
			msgs = append(msgs, m)
		default:
			return msgs
		}
	}
}

// A stream that broke goes on after the last event that the client saw, on whichever proxy.
func TestResume(t *testing.T) {
	for _, n := range []int{1, 2} {
		w, a, b := two(t, "2025-11-25", mcptest.Options{Resumable: true})
		w.targets = w.targets[:n]
		servers := []*mcptest.Server{a, b}[:n]
		one, other := w.startAs(t, "proxy-1", "127.0.0.1:0"), w.startAs(t, "proxy-2", "127.0.0.1:0")
		id := one.initialize(t, "2025-11-25")
		s := one.open(t, http.MethodGet, id, "")
		awaitStreams(t, servers...)
		for i, server := range servers {
			server.MCP.AddTool(tool("fresh"+string(rune('0'+i))), textHandler("x"))
			s.next(t, "notifications/tools/list_changed")
		}
		var last string
		for len(s.raw) > 0 {
			last = <-s.raw
		}
		if last == "" {
			t.Fatalf("%d targets: events have no ids", n)
		}
		s.close()
		for _, server := range servers {
			server.MCP.AddTool(tool("missed"), textHandler("x"))
		}
		time.Sleep(50 * time.Millisecond) // go-sdk sends list_changed a moment later
		again := other.open(t, http.MethodGet, id, "", "Last-Event-ID", last)
		for range servers {
			again.next(t, "notifications/tools/list_changed")
		}
	}
}

// What a call says on the way comes in order, under the client's own token, and cancelling finds the call.
func TestProgressAndCancel(t *testing.T) {
	w, _, _ := two(t, "2025-11-25", mcptest.Options{})
	p := w.start(t)
	id := p.initialize(t, "2025-11-25")
	s := p.open(t, http.MethodPost, id, `{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"a-b_progress","arguments":{"n":3},"_meta":{"progressToken":9007199254740993}}}`)
	for range 3 {
		if got := mustJSON(s.next(t, "notifications/progress")); !strings.Contains(got, "progressToken") {
			t.Errorf("progress = %s", got)
		}
	}
	s.next(t, "")
	over := make(chan answer, 1)
	go func() {
		over <- p.post(t, id, `{"jsonrpc":"2.0","id":"slow","method":"tools/call","params":{"name":"a_slow","arguments":{"ms":60000}}}`)
	}()
	time.Sleep(50 * time.Millisecond)
	if got := p.post(t, id, `{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":"slow"}}`); got.status != 202 {
		t.Errorf("cancelled: %d %s", got.status, got.body)
	}
	select {
	case <-over:
	case <-time.After(5 * time.Second):
		t.Error("the call goes on")
	}
}

// A socket that is drained ends its streams, a listen the polite way, and leaves those of other sockets alone.
func TestDrain(t *testing.T) {
	w, a, b := two(t, "2025-11-25", mcptest.Options{})
	p := w.start(t)
	drain := make(chan struct{})
	p.proxy.mux = mux.New(mux.Config{Transport: p.parts.Upstreams.Transport, ProxyID: "proxy-1", Draining: func(ctx context.Context) <-chan struct{} { return drain }})
	id := p.initialize(t, "2025-11-25")
	get := p.open(t, http.MethodGet, id, "")
	awaitStreams(t, a, b)
	w2, _, _ := two(t, "2026-07-28", mcptest.Options{})
	modern := w2.start(t)
	other := make(chan struct{})
	modern.proxy.mux = mux.New(mux.Config{Transport: modern.parts.Upstreams.Transport, Draining: func(context.Context) <-chan struct{} { return other }})
	body := strings.Replace(listenAll, "%", "a+test://", 1)
	listen := modern.open(t, http.MethodPost, "", body, "MCP-Protocol-Version", "2026-07-28", "Mcp-Method", "subscriptions/listen")
	listen.next(t, "notifications/subscriptions/acknowledged")
	close(drain)
	get.ended(t)
	select {
	case msg, ok := <-listen.msgs:
		t.Errorf("another socket's listen got %v, %v", msg, ok)
	case <-time.After(50 * time.Millisecond):
	}
	close(other)
	msgs := listen.ended(t)
	if last := msgs[len(msgs)-1]; last["id"] != "L" || last["result"] == nil {
		t.Errorf("a listen ends with %v, want its result", last)
	}
}
