package upstream

import (
	"strings"
	"sync/atomic"
	"testing"

	"github.com/sluicegate/sluice/internal/mcptest"
)

// What an HTTP+SSE target may do when the stream is opened.
func TestSSEOpening(t *testing.T) {
	head := "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
	for _, tt := range []struct{ name, send, err string }{
		{"another host", head + "event: endpoint\ndata: http://169.254.169.254/latest\n\n", "another origin"},
		{"another port", head + "event: endpoint\ndata: http://127.0.0.1:1/x\n\n", "another origin"},
		{"another scheme", head + "event: endpoint\ndata: https://HOST/x\n\n", "another origin"},
		{"host without a scheme", head + "event: endpoint\ndata: //evil.example/x\n\n", "another origin"},
		{"user info", head + "event: endpoint\ndata: http://u:p@HOST/x\n\n", "another origin"},
		{"no URL", head + "event: endpoint\ndata: http://[::1/x\n\n", "no URL"},
		{"a message first", head + "event: message\ndata: {}\n\n", "before the endpoint"},
		{"the end", head + ": hello\n\n", "unexpected EOF"},
		{"JSON", "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}", "text/event-stream"},
		{"404", "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", "status 404"},
		{"refused endpoint", head + "event: endpoint\ndata: /refuse\n\n", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			posted := make(chan string, 5)
			s := mcptest.NewScript(t, func(c *mcptest.Conn) {
				r, _ := c.Read()
				switch {
				case r == nil:
				case r.Method == "POST":
					posted <- r.URL.Path
					c.Answer(401, "text/plain", "who?", "WWW-Authenticate: Bearer")
				default:
					c.Send(strings.ReplaceAll(tt.send, "HOST", c.LocalAddr().String()))
					if tt.err == "" {
						c.Hang()
					}
				}
			})
			m := manager(t, nil)
			res, err := m.Transport(sseTarget(t, s.URL, nil)).Do(limited(t), post(initialize))
			if tt.err != "" {
				contains(t, "initialize", err, tt.err, "acme/target/tools/one")
				if len(posted) != 0 {
					t.Errorf("posted to %s", <-posted)
				}
			} else if err != nil || res.Status != 401 || res.Header.Get("WWW-Authenticate") != "Bearer" || res.Header.Get("Mcp-Session-Id") != "" {
				t.Errorf("answer %v %v, want the target's own 401 and no session", res, err)
			}
			if n := m.Health()[0].Sessions; n != 0 {
				t.Errorf("%d sessions are left", n)
			}
		})
	}
}

// The stream breaks: calls are told, the session is gone, and made anew where that is asked for.
func TestSSEStreamBreaks(t *testing.T) {
	srv := mcptest.NewServer(t, mcptest.Options{SSE: true})
	m := manager(t, nil)
	c := open(t, m.Transport(sseTarget(t, srv.URL, nil)))
	failed := make(chan error)
	go func() {
		_, err := c.try("POST", toolCall("1", "slow", `{"ms":5000}`))
		failed <- err
	}()
	eventually(t, "the call runs", func() bool { return len(srv.Requests()) >= 4 })
	srv.DropConnections()
	err := <-failed
	contains(t, "call", err, "event stream ended")
	if NotSent(err) {
		t.Error("the call is called not sent")
	}
	if res := c.do("POST", toolCall("2", "echo", `{"text":"x"}`)); res.Status != 404 {
		t.Errorf("next call: %d, want 404", res.Status)
	}
	c.init = []byte(initialize)
	eventually(t, "a new stream", func() bool {
		res := c.do("POST", toolCall("2", "echo", `{"text":"x"}`))
		return res.Status == 200 && res.Renewed
	})
}

// A target that pings without end, and takes no answer, gets no more connections for it than answers are due at once.
func TestSSEPingsWithoutEnd(t *testing.T) {
	var waiting atomic.Int32
	accepted := make(chan struct{})
	s := mcptest.NewScript(t, func(c *mcptest.Conn) {
		for {
			r, body := c.Read()
			switch {
			case r == nil:
				return
			case r.Method == "GET":
				c.Send("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\nevent: endpoint\ndata: /post\n\n")
				<-accepted
				c.Send(strings.Repeat(`data: {"jsonrpc":"2.0","id":1,"method":"ping"}`+"\n\n", 1000) +
					`data: {"jsonrpc":"2.0","id":0,"result":{"protocolVersion":"2024-11-05","capabilities":{},"serverInfo":{"name":"s","version":"0"}}}` + "\n\n")
				c.Hang()
				return
			case strings.Contains(string(body), "initialize"):
				c.Answer(202, "", "")
				close(accepted)
			default:
				waiting.Add(1)
				c.Hang()
				return
			}
		}
	})
	m := manager(t, nil)
	res, err := m.Transport(sseTarget(t, s.URL, nil)).Do(limited(t), post(initialize))
	if err != nil || res.Status != 200 {
		t.Fatal(res, err)
	}
	eventually(t, "answers", func() bool { return waiting.Load() >= 10 })
	if n := m.Health()[0].Conns; n > 2+maxPosts {
		t.Errorf("%d connections to the target", n)
	}
}
