package dataplane

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/sluicegate/sluice/internal/mcptest"
)

// What changes after a subscription was answered is told, also where the target's listen is slower than its answers.
func TestOldClientSubscribesInTime(t *testing.T) {
	srv := mcptest.NewServer(t, mcptest.Options{Stateless: true, Wrap: func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Mcp-Method") == "subscriptions/listen" {
				select { // a server that is slow to listen
				case <-time.After(300 * time.Millisecond):
				case <-r.Context().Done():
				}
			}
			next.ServeHTTP(w, r)
		})
	}})
	listens := func() (n int) {
		for _, r := range srv.Requests() {
			if r.Header.Get("Mcp-Method") == "subscriptions/listen" {
				n++
			}
		}
		return n
	}
	cli := mcptest.Connect(t, behind(srv.URL).start(t).URL, mcptest.ClientOptions{Version: "2025-11-25"})
	waitFor(t, "the standing stream", func() bool { return listens() > 0 })
	if err := cli.Subscribe(t.Context(), &mcp.SubscribeParams{URI: "test://watched"}); err != nil {
		t.Fatal(err)
	}
	cli.Call(t, "touch", nil)
	cli.Await(t, "notifications/resources/updated", 1)
}

// A listen that broke is opened again, and the client told of all that it may have missed, in its own words for it.
func TestListenThatBreaksTellsAll(t *testing.T) {
	t.Parallel()
	newTarget := func() *raw {
		target := newRaw(t, true, nil)
		target.on("server/discover", func(c *mcptest.Conn, req rawCall) {
			c.JSON(req.result(`{"resultType":"complete","ttlMs":0,"cacheScope":"private","supportedVersions":["2026-07-28"],"capabilities":{"tools":{"listChanged":true},"resources":{"subscribe":true}}}`))
		})
		target.on("subscriptions/listen", func(c *mcptest.Conn, req rawCall) {
			var m struct {
				Params struct{ Notifications json.RawMessage }
			}
			if err := json.Unmarshal([]byte(req.body), &m); err != nil {
				t.Error(err)
			}
			ack := chunk(`data: {"jsonrpc":"2.0","method":"notifications/subscriptions/acknowledged","params":{"notifications":` + string(m.Params.Notifications) + `,"_meta":{"io.modelcontextprotocol/subscriptionId":` + req.id + `}}}` + "\n\n")
			if target.counted("subscriptions/listen") > 2 {
				c.Send(eventsHead, ack)
				c.Hang()
				return
			}
			c.Send(eventsHead, ack, "0\r\n\r\n")
		})
		return target
	}
	t.Run("L→M", func(t *testing.T) {
		target := newTarget()
		p := behind(target.URL).start(t)
		id := p.initialize(t, "2025-11-25")
		p.post(t, id, `{"jsonrpc":"2.0","id":1,"method":"resources/subscribe","params":{"uri":"x://y"}}`)
		expectEvents(t, p, http.MethodGet, "", `"notifications/resources/updated","params":{"uri":"x://y"}`, "Mcp-Session-Id", id)
	})
	t.Run("L→M, refused for a moment", func(t *testing.T) {
		target := newTarget()
		var refused atomic.Bool
		listen := target.answers["subscriptions/listen"]
		target.on("subscriptions/listen", func(c *mcptest.Conn, req rawCall) {
			if refused.CompareAndSwap(false, true) {
				c.Answer(401, "", "")
				return
			}
			listen(c, req)
		})
		p := behind(target.URL).start(t)
		expectEvents(t, p, http.MethodGet, "", `"notifications/tools/list_changed"`, "Mcp-Session-Id", p.initialize(t, "2025-11-25"))
	})
	t.Run("M→M", func(t *testing.T) {
		p := behind("a="+newTarget().URL, "b="+newTarget().URL).start(t)
		body := `{"jsonrpc":"2.0","id":7,"method":"subscriptions/listen","params":{"notifications":{"resourceSubscriptions":["a+x://y"]},"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{}}}}`
		expectEvents(t, p, http.MethodPost, body, `"notifications/resources/updated","params":{"uri":"a+x://y","_meta":{"io.modelcontextprotocol/subscriptionId":7}}`,
			"Mcp-Protocol-Version", "2026-07-28", "Mcp-Method", "subscriptions/listen")
	})
	for what, passing := range map[string]func(*mcptest.Conn, rawCall){
		"refused": func(c *mcptest.Conn, req rawCall) {
			c.JSON(`{"jsonrpc":"2.0","id":` + req.id + `,"error":{"code":-32603,"message":"Subscription limit reached"}}`)
		},
		"ended before it began": func(c *mcptest.Conn, _ rawCall) { c.Send(eventsHead, "0\r\n\r\n") },
	} {
		for nth, when := range []string{"at first", "after it broke"} {
			t.Run("M→M beside another, "+what+" "+when, func(t *testing.T) {
				t.Parallel()
				target := newTarget()
				listen := target.answers["subscriptions/listen"]
				target.on("subscriptions/listen", func(c *mcptest.Conn, req rawCall) {
					if target.counted("subscriptions/listen") == nth+1 {
						passing(c, req)
						return
					}
					listen(c, req)
				})
				p := behind("a="+target.URL, "b="+mcptest.NewServer(t, mcptest.Options{Stateless: true}).URL).start(t)
				body := `{"jsonrpc":"2.0","id":7,"method":"subscriptions/listen","params":{"notifications":{"toolsListChanged":true},"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{}}}}`
				expectEvents(t, p, http.MethodPost, body, `"notifications/tools/list_changed","params":{"_meta":{"io.modelcontextprotocol/subscriptionId":7}}`,
					"Mcp-Protocol-Version", "2026-07-28", "Mcp-Method", "subscriptions/listen")
			})
		}
	}
}

// expectEvents reads an event stream until a line of it holds want.
func expectEvents(t *testing.T, p *testProxy, method, body, want string, headers ...string) {
	t.Helper()
	req, _ := http.NewRequestWithContext(t.Context(), method, p.URL, strings.NewReader(body))
	req.Header.Set("Accept", "application/json, text/event-stream")
	req.Header.Set("Content-Type", "application/json")
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	stop := time.AfterFunc(20*time.Second, func() { resp.Body.Close() })
	defer stop.Stop()
	defer resp.Body.Close()
	var all strings.Builder
	buf := make([]byte, 4096)
	for !strings.Contains(all.String(), want) {
		n, err := resp.Body.Read(buf)
		all.Write(buf[:n])
		if err != nil {
			t.Fatalf("the stream ended (%v) without %s:\n%s", err, want, all.String())
		}
	}
}

// A session keeps no more of its subscriptions than a listen can say.
func TestOldClientSubscriptionsAreBounded(t *testing.T) {
	t.Parallel()
	srv := mcptest.NewServer(t, mcptest.Options{Stateless: true})
	p := behind(srv.URL).start(t)
	id := p.initialize(t, "2025-11-25")
	for i, ok := range []bool{true, false} {
		a := p.post(t, id, fmt.Sprintf(`{"jsonrpc":"2.0","id":1,"method":"resources/subscribe","params":{"uri":"x://%d/%s"}}`, i, strings.Repeat("y", 700<<10)))
		if strings.Contains(a.body, "too many subscriptions") == ok {
			t.Errorf("subscription %d: %d %.200s", i, a.status, a.body)
		}
	}
	p.post(t, id, fmt.Sprintf(`{"jsonrpc":"2.0","id":1,"method":"resources/unsubscribe","params":{"uri":"x://0/%s"}}`, strings.Repeat("y", 700<<10)))
	if a := p.post(t, id, `{"jsonrpc":"2.0","id":2,"method":"resources/subscribe","params":{"uri":"x://`+strings.Repeat("z", 700<<10)+`"}}`); strings.Contains(a.body, "error") {
		t.Errorf("after one was given up: %.200s", a.body)
	}
}

// What a stateless target says of itself to one caller is not told to another whose requests look different there.
func TestOldClientsThatTheTargetTellsApart(t *testing.T) {
	target := newRaw(t, true, nil)
	target.on("server/discover", func(c *mcptest.Conn, req rawCall) {
		c.JSON(req.result(`{"resultType":"complete","ttlMs":60000,"cacheScope":"private","supportedVersions":["2026-07-28"],"capabilities":{},"instructions":"for ` + req.header.Get("X-User") + `"}`))
	})
	w := behind(target.URL)
	w.targets[0].ForwardHeaders = []string{"X-User"}
	p := w.start(t)
	for _, who := range []string{"ada", "bob"} {
		a := p.post(t, "", `{"jsonrpc":"2.0","id":0,"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{},"clientInfo":{"name":"raw","version":"1"}}}`, "X-User", who)
		if !strings.Contains(a.body, "for "+who) {
			t.Errorf("%s is told %s", who, a.body)
		}
	}
}

// A client of the session era that has the extension for tasks is offered none over the bridge, so the target must not make one.
func TestOldClientWithTheTasksExtension(t *testing.T) {
	target := newRaw(t, true, nil)
	p := behind(target.URL).start(t)
	a := p.post(t, "", `{"jsonrpc":"2.0","id":0,"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{"extensions":{"io.modelcontextprotocol/tasks":{},"io.modelcontextprotocol/ui":{"x":1}}},"clientInfo":{"name":"raw","version":"1"}}}`)
	p.post(t, a.header.Get("Mcp-Session-Id"), `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"t"}}`)
	calls := target.posts.with(`"tools/call"`)
	if len(calls) != 1 || strings.Contains(calls[0], "/tasks") || !strings.Contains(calls[0], `"extensions":{"io.modelcontextprotocol/ui":{"x":1}}`) {
		t.Errorf("the target was called by %q", calls)
	}
}
