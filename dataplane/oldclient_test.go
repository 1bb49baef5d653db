package dataplane

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/sluicegate/sluice/internal/mcptest"
)

var sessionVersions = []string{"2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25"}

// Every client of the session era works with a server that has no sessions, alone and beside one that has: what the server asks
// reaches the client too.
func TestOldClientNewServer(t *testing.T) {
	for _, version := range sessionVersions {
		for _, several := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s several=%v", version, several), func(t *testing.T) {
				targets, prefix := []string{"new=" + statelessOnly(t)}, ""
				if several {
					targets, prefix = append(targets, "old="+mcptest.NewServer(t, mcptest.Options{}).URL), "new_"
				}
				p := behind(targets...).start(t)
				cli := mcptest.Connect(t, p.URL, mcptest.ClientOptions{Version: version})
				for tool, want := range map[string]string{"elicit": "Hello, Ada!", "sample": "model: Paris", "roots": "file:///work"} {
					if got := cli.Call(t, prefix+tool, nil); got != want {
						t.Errorf("%s = %q, want %q", tool, got, want)
					}
				}
				if got := cli.Call(t, prefix+"echo", map[string]any{"text": "hi"}); got != "hi" {
					t.Errorf("echo = %q", got)
				}
				if several {
					if got := cli.Call(t, "old_elicit", nil); got != "Hello, Ada!" {
						t.Errorf("the target with sessions: elicit = %q", got)
					}
				}
				if names := cli.ToolNames(t); !slices.Contains(names, prefix+"add") {
					t.Errorf("tools: %v", names)
				}
				got, err := cli.GetPrompt(t.Context(), &mcp.GetPromptParams{Name: prefix + "greet", Arguments: map[string]string{"name": "Bo"}})
				if err != nil || got.Messages[0].Content.(*mcp.TextContent).Text != "Greet Bo" {
					t.Errorf("prompt: %v %v", got, err)
				}
				resources, err := cli.ListResources(t.Context(), nil)
				if err != nil {
					t.Fatal(err)
				}
				uri := resources.Resources[0].URI
				if read, err := cli.ReadResource(t.Context(), &mcp.ReadResourceParams{URI: uri}); err != nil || !strings.HasPrefix(read.Contents[0].Text, "content of test://") {
					t.Errorf("resource %s: %v %v", uri, read, err)
				}
				if err := cli.Ping(t.Context(), nil); err != nil {
					t.Errorf("ping: %v", err)
				}
			})
		}
	}
}

func TestOldClientNewServerNotifications(t *testing.T) {
	p := behind(statelessOnly(t)).start(t)
	cli := mcptest.Connect(t, p.URL, mcptest.ClientOptions{Version: "2025-11-25"})
	params := &mcp.CallToolParams{Name: "progress", Arguments: map[string]any{"n": 3}}
	params.SetProgressToken("p")
	if _, err := cli.CallTool(t.Context(), params); err != nil {
		t.Fatal(err)
	}
	cli.Await(t, "notifications/progress", 3)
	if err := cli.SetLoggingLevel(t.Context(), &mcp.SetLoggingLevelParams{Level: "info"}); err != nil {
		t.Fatal(err)
	}
	cli.Call(t, "log", map[string]any{"n": 2})
	cli.Await(t, "notifications/message", 2)

	if err := cli.Subscribe(t.Context(), &mcp.SubscribeParams{URI: "test://watched"}); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(10 * time.Second)
	for updated := false; !updated; { // the listen follows the subscription in its own time
		if time.Now().After(deadline) {
			t.Fatal("no update of a resource that is subscribed to")
		}
		cli.Call(t, "touch", nil)
		for _, n := range cli.Notifications() {
			updated = updated || n.Method == "notifications/resources/updated" && n.Detail == "test://watched"
		}
	}
	if err := cli.Unsubscribe(t.Context(), &mcp.UnsubscribeParams{URI: "test://watched"}); err != nil {
		t.Error(err)
	}
	cli.Call(t, "grow", nil)
	cli.Await(t, "notifications/tools/list_changed", 1)
}

// A client that has not said that it can be asked is not; the call says so.
func TestOldClientThatCannotBeAsked(t *testing.T) {
	p := behind(statelessOnly(t)).start(t)
	cli := mcptest.Connect(t, p.URL, mcptest.ClientOptions{Version: "2025-11-25", Passive: true})
	if got, err := cli.TryCall(t.Context(), "elicit", nil); err == nil {
		t.Errorf("asked all the same: %q", got)
	}
	if got := mcptest.Connect(t, p.URL, mcptest.ClientOptions{Version: "2025-11-25", Decline: true}).Call(t, "elicit", nil); got != "declined" {
		t.Errorf("declined: %q", got)
	}
}

// statelessScript is a server of 2026-07-28 that answers each call as it is told.
type statelessScript struct {
	URL string

	mu   sync.Mutex
	seen []string // bodies
	head []http.Header
	gone chan string // names of calls whose client left
}

func newStatelessScript(t *testing.T, answer func(n int, method, body string) string) *statelessScript {
	s := &statelessScript{gone: make(chan string, 10)}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		raw, _ := io.ReadAll(r.Body)
		var m struct {
			ID     json.RawMessage
			Method string
		}
		_ = json.Unmarshal(raw, &m)
		w.Header().Set("Content-Type", "application/json")
		switch m.Method {
		case "server/discover":
			fmt.Fprintf(w, `{"jsonrpc":"2.0","id":%s,"result":{"resultType":"complete","ttlMs":60000,"cacheScope":"public","supportedVersions":["2026-07-28"],"capabilities":{"tools":{},"x":{"y":1e400}},"_meta":{"io.modelcontextprotocol/serverInfo":{"name":"script","version":"9"}}}}`, m.ID)
			return
		case "initialize":
			w.WriteHeader(404)
			fmt.Fprintf(w, `{"jsonrpc":"2.0","id":%s,"error":{"code":-32601,"message":"Method not found"}}`, m.ID)
			return
		}
		s.mu.Lock()
		s.seen = append(s.seen, string(raw))
		s.head = append(s.head, r.Header)
		n := len(s.seen)
		s.mu.Unlock()
		out := answer(n, m.Method, string(raw))
		if out == "hang" {
			<-r.Context().Done()
			s.gone <- m.Method
			return
		}
		fmt.Fprint(w, strings.ReplaceAll(out, "$ID", string(m.ID)))
	}))
	t.Cleanup(srv.Close)
	s.URL = srv.URL
	return s
}

func (s *statelessScript) bodies() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.seen)
}

// What only passes through keeps its bytes: odd ids, big numbers, unknown members, order and escapes. What is of one era
// alone comes and goes by splicing.
func TestOldClientNewServerBytes(t *testing.T) {
	s := newStatelessScript(t, func(_ int, method, _ string) string {
		if method == "tools/list" {
			return `{"jsonrpc":"2.0","id":$ID,"result":{"resultType":"complete","tools":[{"name":"t","inputSchema":{"type":"object"}}],"ttlMs":0,"cacheScope":"private"}}`
		}
		return `{"jsonrpc":"2.0", "id":$ID, "result":{"z":1e400,"resultType":"complete","content":[ {"type":"text","text":"\u0061<\/b>"} ],"n":9223372036854775808,"ttlMs":5,"structuredContent":[1],"_meta":{"k":0.10}},"extra":true}`
	})
	p := behind(s.URL).start(t)
	session := p.initialize(t, "2025-11-25")
	a := p.post(t, session, `{"extra":[1.0],"params":{"name":"t","arguments":{"b":1e400,"a":9223372036854775808,"u":"\u0061"},"_meta":{"progressToken":0,"my/key":1.50}},"id":9007199254740993,"method":"tools/call","jsonrpc":"2.0"}`)
	want := `{"jsonrpc":"2.0", "id":9007199254740993, "result":{"z":1e400,"content":[ {"type":"text","text":"\u0061<\/b>"} ],"n":9223372036854775808,"_meta":{"k":0.10}},"extra":true}`
	if a.body != want {
		t.Errorf("the client got\n%s, want\n%s", a.body, want)
	}
	sent := s.bodies()
	got := sent[len(sent)-1]
	for _, part := range []string{`{"extra":[1.0],"params":{"name":"t","arguments":{"b":1e400,"a":9223372036854775808,"u":"\u0061"},"_meta":{`, `"progressToken":0,"my/key":1.50}},"id":9007199254740993,"method":"tools/call","jsonrpc":"2.0"}`,
		`"io.modelcontextprotocol/protocolVersion":"2026-07-28"`, `"io.modelcontextprotocol/clientCapabilities":{}`, `"io.modelcontextprotocol/clientInfo":{"name":"raw","version":"1"}`} {
		if !strings.Contains(got, part) {
			t.Errorf("the target got\n%s, which lacks\n%s", got, part)
		}
	}
	for _, h := range s.head {
		if h.Get("Mcp-Session-Id") != "" || h.Get("Mcp-Protocol-Version") != "2026-07-28" || h.Get("Mcp-Method") == "" {
			t.Errorf("headers %v", h)
		}
	}
	if h := s.head[len(s.head)-1]; h.Get("Mcp-Name") != "t" {
		t.Errorf("headers of the call: %v", h)
	}
}

// A target's HTTP status must not end the client's session, its error not lose a byte.
func TestOldClientNewServerErrors(t *testing.T) {
	s := newStatelessScript(t, func(_ int, method, _ string) string {
		return `{"jsonrpc":"2.0","id":$ID,"error":{"code":-32601,"message":"no \u0061","data":{"n":1e400}}}`
	})
	p := behind(s.URL).start(t)
	session := p.initialize(t, "2025-06-18")
	if a := p.post(t, session, `{"jsonrpc":"2.0","id":1,"method":"prompts/list"}`); a.status != 200 || a.body != `{"jsonrpc":"2.0","id":1,"error":{"code":-32601,"message":"no \u0061","data":{"n":1e400}}}` {
		t.Errorf("%d %s", a.status, a.body)
	}
	if a := p.post(t, session, `{"jsonrpc":"2.0","id":2,"method":"logging/setLevel","params":{"level":"info"}}`); !strings.Contains(a.body, "-32601") {
		t.Errorf("setLevel at a target that does not log: %s", a.body)
	}
	if a := p.post(t, session, `{"jsonrpc":"2.0","id":2,"method":"logging/setLevel","params":{"level":"loud"}}`); !strings.Contains(a.body, "-32602") {
		t.Errorf("a level that is none: %s", a.body)
	}
	if a := p.post(t, session, `{"jsonrpc":"2.0","id":"nobody-asked","result":{}}`); a.status != 400 {
		t.Errorf("an answer that nobody asked for: %d %s", a.status, a.body)
	}
}

// cancelled ends the call at the target; leaving does not.
func TestOldClientCancelsAtNewServer(t *testing.T) {
	s := newStatelessScript(t, func(_ int, method, _ string) string {
		if method == "tools/list" {
			return `{"jsonrpc":"2.0","id":$ID,"result":{"resultType":"complete","tools":[]}}`
		}
		return "hang"
	})
	p := behind(s.URL).start(t)
	session := p.initialize(t, "2025-11-25")
	over := make(chan answer, 1)
	go func() {
		over <- p.post(t, session, `{"jsonrpc":"2.0","id":"c1","method":"tools/call","params":{"name":"t"}}`)
	}()
	waitFor(t, "the call at the target", func() bool { b := s.bodies(); return len(b) > 0 && strings.Contains(b[len(b)-1], "tools/call") })
	if a := p.post(t, session, `{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":"other"}}`); a.status != 202 {
		t.Errorf("cancel of nothing: %d", a.status)
	}
	select {
	case <-s.gone:
		t.Fatal("cancelling another request ended this one")
	default:
	}
	p.post(t, session, `{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":"c1"}}`)
	select {
	case <-s.gone:
	case <-time.After(10 * time.Second):
		t.Fatal("the target's call was not cancelled")
	}
	<-over
}

// What a client has cancelled ends without a response and without an error, wherever the target was with it.
func TestOldClientCancelledCallEnds(t *testing.T) {
	for name, begin := range map[string][]string{
		"before the head": nil,
		"in JSON":         {"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n", `{"jsonrpc":`},
		"in a stream":     {eventsHead, chunk("data: {\"jsonrpc\":\"2.0\",\"method\":\"notifications/progress\",\"params\":{\"progressToken\":1,\"progress\":1}}\n\n")},
		"in a question":   {eventsHead, chunk("data: {\"jsonrpc\":\"2.0\",\"id\":\"c1\",\"result\":{\"resultType\":\"input_required\",\"inputRequests\":{\"r\":{\"method\":\"roots/list\"}}}}\n\n"), "0\r\n\r\n"},
	} {
		t.Run(name, func(t *testing.T) {
			begun := make(chan struct{}, 1)
			target := newRaw(t, true, map[string]func(*mcptest.Conn, rawCall){"tools/call": func(c *mcptest.Conn, _ rawCall) {
				c.Send(begin...)
				begun <- struct{}{}
				c.Hang()
			}})
			p := behind(target.URL).start(t)
			a := p.post(t, "", `{"jsonrpc":"2.0","id":0,"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{"roots":{}},"clientInfo":{"name":"raw","version":"1"}}}`)
			session := a.header.Get("Mcp-Session-Id")
			over := make(chan answer, 1)
			go func() {
				over <- p.post(t, session, `{"jsonrpc":"2.0","id":"c1","method":"tools/call","params":{"name":"t"}}`)
			}()
			<-begun
			p.post(t, session, `{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":"c1"}}`)
			got := <-over
			if got.status != 200 || strings.Contains(got.body, `"error"`) || strings.Contains(got.body, `"id":"c1"`) {
				t.Errorf("%d %s", got.status, got.body)
			}
			if strings.Contains(p.lines.String(), "broke off") {
				t.Errorf("the log says %s", p.lines.String())
			}
		})
	}
}

// Targets that ask too much, too often or wrongly end in an error that names them; nothing waits for ever.
func TestNewServerThatAsksStrangely(t *testing.T) {
	ask := `{"jsonrpc":"2.0","id":$ID,"result":{"resultType":"input_required","inputRequests":%s,"requestState":"s"}}`
	for _, tt := range []struct{ name, answer, want string }{
		{"for ever", fmt.Sprintf(ask, `{"r":{"method":"roots/list"}}`), "asked more than 10 times"},
		{"for patience", fmt.Sprintf(ask, `{}`), "patience"},
		{"what no client can answer", fmt.Sprintf(ask, `{"r":{"method":"secrets/list"}}`), "has not declared it"},
		{"without a method", fmt.Sprintf(ask, `{"r":{}}`), "Bad Gateway"},
		{"for a task", `{"jsonrpc":"2.0","id":$ID,"result":{"resultType":"task","taskId":"1"}}`, "cannot take"},
		{"nothing", `[]`, "Bad Gateway"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newStatelessScript(t, func(_ int, method, _ string) string {
				if method == "tools/list" {
					return `{"jsonrpc":"2.0","id":$ID,"result":{"resultType":"complete","tools":[]}}`
				}
				return tt.answer
			})
			cli := mcptest.Connect(t, behind("strange="+s.URL).start(t).URL, mcptest.ClientOptions{Version: "2025-11-25"})
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			_, err := cli.CallTool(ctx, &mcp.CallToolParams{Name: "t"})
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v, want %q", err, tt.want)
			}
			ids := map[string]bool{}
			for _, body := range s.bodies() {
				var m struct{ ID json.RawMessage }
				if json.Unmarshal([]byte(body), &m) == nil && strings.Contains(body, "tools/call") {
					if ids[string(m.ID)] {
						t.Errorf("id %s was used twice", m.ID)
					}
					ids[string(m.ID)] = true
				}
			}
		})
	}
}

// A method that no header carries cannot be said to a target of 2026-07-28; nor does it say anything else there.
func TestOldClientMethodsWithoutHeader(t *testing.T) {
	target := newRaw(t, true, nil)
	p := behind(target.URL).start(t)
	session := p.initialize(t, "2025-11-25")
	for _, method := range []string{`x/y `, ` x/y`, `x\r\nMcp-Name: y`, `x\u0000`, `m\u00e9thode`, `=?base64?eA==?=`} {
		if got := p.post(t, session, `{"jsonrpc":"2.0","id":7,"method":"`+method+`"}`); got.status != 200 || got.result(t).Error.Code != -32601 {
			t.Errorf("%s: %d %s", method, got.status, got.body)
		}
		if got := p.post(t, session, `{"jsonrpc":"2.0","method":"`+method+`"}`); got.status != 202 {
			t.Errorf("a notification of %s: %d %s", method, got.status, got.body)
		}
	}
	for _, sent := range target.posts.with("") {
		if !strings.Contains(sent, "server/discover") && !strings.Contains(sent, `"initialize"`) {
			t.Errorf("the target was sent %s", sent)
		}
	}
}
