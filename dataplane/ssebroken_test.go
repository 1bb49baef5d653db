package dataplane

import (
	"bufio"
	"cmp"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/sluicegate/sluice/dataplane/mux"
	"github.com/sluicegate/sluice/internal/mcptest"
)

// sseClient is a bare client of HTTP+SSE.
type sseClient struct {
	base, endpoint string
	headers        []string
	ended          chan struct{} // closed when the stream is over
	data           chan string
	leave          func()
}

// openSSE opens a stream, and begins a session in it unless it is bare.
func openSSE(t *testing.T, p *testProxy, bare bool, headers ...string) *sseClient {
	t.Helper()
	c := &sseClient{headers: headers, base: strings.TrimSuffix(p.URL, "/mcp"), ended: make(chan struct{}), data: make(chan string, 100)}
	req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, c.base+"/sse", nil)
	req.Header.Set("Accept", "text/event-stream")
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil || resp.StatusCode != 200 {
		t.Fatalf("the stream: %v %v", resp, err)
	}
	c.leave = func() { resp.Body.Close() }
	t.Cleanup(c.leave)
	go func() {
		defer close(c.ended)
		for r := bufio.NewReader(resp.Body); ; {
			line, err := r.ReadString('\n')
			if err != nil {
				return
			}
			if data, ok := strings.CutPrefix(line, "data: "); ok {
				c.data <- strings.TrimSpace(data)
			}
		}
	}()
	c.endpoint = c.next(t)
	if !bare {
		c.post(t, `{"jsonrpc":"2.0","id":0,"method":"initialize","params":{"protocolVersion":"2024-11-05","capabilities":{},"clientInfo":{"name":"raw","version":"1"}}}`)
		c.next(t)
		c.post(t, `{"jsonrpc":"2.0","method":"notifications/initialized"}`)
	}
	return c
}

func (c *sseClient) post(t *testing.T, body string) {
	t.Helper()
	req, _ := http.NewRequestWithContext(t.Context(), http.MethodPost, c.base+c.endpoint, strings.NewReader(body))
	req.Header.Set("Content-Type", "application/json")
	for i := 0; i < len(c.headers); i += 2 {
		req.Header.Set(c.headers[i], c.headers[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusAccepted {
		t.Fatalf("%.80s: %d", body, resp.StatusCode)
	}
}

// next is the data of the next event.
func (c *sseClient) next(t *testing.T) string {
	t.Helper()
	select {
	case data := <-c.data:
		return data
	case <-c.ended:
		t.Fatal("the stream is over")
	case <-time.After(20 * time.Second):
		t.Fatal("waited in vain for an event")
	}
	return ""
}

const eventsHead = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"

func chunk(s string) string { return fmt.Sprintf("%x\r\n%s\r\n", len(s), s) }

// Each request of a client of HTTP+SSE gets one response, whatever becomes of its answer: the client sees no connection break.
func TestSSEClientsAreToldOfAnswersThatBreakOff(t *testing.T) {
	for _, tt := range []struct {
		name   string
		answer func(c *mcptest.Conn, req rawCall)
		resume string // the answer to a GET with Last-Event-ID
		want   string
	}{
		{"a stream that breaks off", func(c *mcptest.Conn, _ rawCall) {
			c.Send(eventsHead, chunk("data: {\"jsonrpc\":\"2.0\",\"method\":\"notifications/progress\",\"params\":{\"progressToken\":1,\"progress\":1}}\n\n"))
			_ = c.Reset()
		}, "", "ended without a response"},
		{"a stream that ends early", func(c *mcptest.Conn, _ rawCall) {
			c.Send(eventsHead, chunk("data: {\"jsonrpc\":\"2.0\",\"method\":\"notifications/progress\",\"params\":{\"progressToken\":1,\"progress\":1}}\n\n"), "0\r\n\r\n")
		}, "", "ended without a response"},
		{"JSON that breaks off", func(c *mcptest.Conn, _ rawCall) {
			c.Send("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n", `{"jsonrpc":"2.0","id":7,"result":{"content":[`)
			_ = c.Reset()
		}, "", "ended without a response"},
		{"JSON that is too large", func(c *mcptest.Conn, req rawCall) {
			c.JSON(req.result(`{"content":[{"type":"text","text":"` + strings.Repeat("x", maxBody) + `"}]}`))
		}, "", "larger than 16 MiB"},
		{"an event that is too large", func(c *mcptest.Conn, req rawCall) {
			c.Send(eventsHead, chunk("id: 1\ndata: "+req.result(`{"content":[{"type":"text","text":"`+strings.Repeat("x", maxBody)+`"}]}`)+"\n\n"), "0\r\n\r\n")
		}, "", "larger than 16 MiB"},
		{"an error with the id null", func(c *mcptest.Conn, _ rawCall) {
			c.Answer(400, "application/json", `{"jsonrpc":"2.0","id":null,"error":{"code":-32000,"message":"not like this"}}`)
		}, "", "not like this"},
		{"an event with the id null", func(c *mcptest.Conn, _ rawCall) {
			c.Send(eventsHead, chunk("data: {\"jsonrpc\":\"2.0\",\"id\":null,\"error\":{\"code\":-32000,\"message\":\"not like this\"}}\n\n"), "0\r\n\r\n")
		}, "", "not like this"},
		{"a stream that its client shall come back to", func(c *mcptest.Conn, _ rawCall) {
			c.Send(eventsHead, chunk("id: e1\nretry: 10\ndata:\n\n"), "0\r\n\r\n")
		}, "data: {\"jsonrpc\":\"2.0\",\"id\":7,\"result\":{\"content\":[],\"resumed\":true}}\n\n", `"resumed":true`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			target := newRaw(t, false, nil)
			target.on("tools/call", tt.answer)
			target.on("GET", func(c *mcptest.Conn, req rawCall) {
				if tt.resume == "" || req.header.Get("Last-Event-Id") != "e1" {
					c.Answer(405, "", "")
					return
				}
				c.Send(eventsHead, chunk(tt.resume), "0\r\n\r\n")
			})
			w := behind(target.URL)
			w.ssePath = "/sse"
			c := openSSE(t, w.start(t), false)
			c.post(t, `{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"t"}}`)
			for {
				got := c.next(t)
				if strings.Contains(got, "notifications/progress") {
					continue
				}
				if !strings.Contains(got, `"id":7`) || !strings.Contains(got, tt.want) {
					t.Errorf("%.300s, want the response to 7 with %q", got, tt.want)
				}
				break
			}
			c.post(t, `{"jsonrpc":"2.0","id":8,"method":"ping"}`)
			if got := c.next(t); got != `{"jsonrpc":"2.0","id":8,"result":{}}` {
				t.Errorf("and then: %.200s", got)
			}
		})
	}
}

// The standing stream of a session is opened again when it ends, where it stopped; when its caller has lost the session there, so has
// the client.
func TestSSEClientsKeepTheirStandingStream(t *testing.T) {
	target := newRaw(t, false, nil)
	opened := make(chan string, 10)
	target.on("GET", func(c *mcptest.Conn, req rawCall) {
		last := req.header.Get("Last-Event-Id")
		opened <- cmp.Or(last, "anew")
		if last != "" {
			c.Answer(404, "", "")
			return
		}
		c.Send(eventsHead, chunk("id: e1\ndata: {\"jsonrpc\":\"2.0\",\"method\":\"notifications/tools/list_changed\"}\n\n"), "0\r\n\r\n")
	})
	w := behind(target.URL)
	w.ssePath = "/sse"
	c := openSSE(t, w.start(t), false)
	if got := c.next(t); !strings.Contains(got, "tools/list_changed") {
		t.Errorf("the first: %s", got)
	}
	for _, want := range []string{"anew", "e1"} {
		select {
		case got := <-opened:
			if got != want {
				t.Errorf("opened %s, want %s", got, want)
			}
		case <-time.After(20 * time.Second):
			t.Fatalf("the standing stream was not opened %s", want)
		}
	}
	select {
	case <-c.ended:
	case <-time.After(20 * time.Second):
		t.Fatal("the client keeps a stream of a session that is gone")
	}
}

// Tokens expire before a client leaves: the stream goes on, and with the next message the session's own stream is the new token's.
func TestSSEClientsRenewTheirTokens(t *testing.T) {
	target := newRaw(t, false, nil)
	target.on("GET", func(c *mcptest.Conn, _ rawCall) {
		c.Send(eventsHead, chunk("data: {\"jsonrpc\":\"2.0\",\"method\":\"notifications/tools/list_changed\"}\n\n"))
		c.Hang()
	})
	w := behind(target.URL)
	w.ssePath = "/sse"
	first := w.withTokens(t)(`"sub":"ada"`)
	p := w.start(t)
	c := openSSE(t, p, false, first...)
	if got := c.next(t); !strings.Contains(got, "tools/list_changed") {
		t.Errorf("the first: %s", got)
	}
	c.headers = w.withTokens(t)(`"sub":"ada"`)
	p.apply(t, w) // the first is good no more
	waitFor(t, "the first token to be refused", func() bool { return strings.Contains(p.lines.String(), "unauthenticated") })
	c.post(t, `{"jsonrpc":"2.0","id":8,"method":"ping"}`)
	got := c.next(t) + c.next(t)
	if !strings.Contains(got, `"id":8,"result":{}`) || !strings.Contains(got, "tools/list_changed") {
		t.Errorf("then: %s", got)
	}
}

// What a client says before its session begins opens nothing.
func TestSSEClientsWithoutASessionHaveNoStandingStream(t *testing.T) {
	target := newRaw(t, false, nil)
	w := behind(target.URL)
	w.ssePath = "/sse"
	c := openSSE(t, w.start(t), true)
	c.post(t, `{"jsonrpc":"2.0","method":"notifications/initialized"}`)
	c.post(t, `{"jsonrpc":"2.0","id":0,"method":"initialize","params":{"protocolVersion":"2024-11-05","capabilities":{},"clientInfo":{"name":"raw","version":"1"}}}`)
	if got := c.next(t); !strings.Contains(got, `"protocolVersion"`) {
		t.Errorf("the first message is %s", got)
	}
}

// Streams of HTTP+SSE count among a tenant's open streams, from before their session begins.
func TestSSEClientsTakeTurns(t *testing.T) {
	w := behind(newRaw(t, false, nil).URL)
	w.ssePath = "/sse"
	p := w.start(t)
	stream := httptest.NewRequest(http.MethodGet, p.URL, nil)
	route, err := p.store.Load().Route(testPort, stream)
	if err != nil {
		t.Fatal(err)
	}
	var others []func()
	for {
		release, err := p.mux.Hold(&mux.Request{HTTP: stream, Route: route})
		if err != nil {
			break
		}
		others = append(others, release)
	}
	req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, strings.TrimSuffix(p.URL, "/mcp")+"/sse", nil)
	req.Header.Set("Accept", "text/event-stream")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("a stream beside %d others: %d", len(others), resp.StatusCode)
	}
	for _, release := range others {
		release()
	}
	openSSE(t, p, false)
}
