package dataplane

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/sluicegate/sluice/internal/mcptest"
)

// A client that announces a body and sends none is told so and let go; one that is done with its body may wait for its
// answer as long as it likes.
func TestSlowBody(t *testing.T) {
	target := mcptest.NewServer(t, mcptest.Options{})
	p := behind(target.URL).start(t)
	p.bodyTime = 100 * time.Millisecond

	conn, err := net.Dial("tcp", strings.TrimSuffix(strings.TrimPrefix(p.URL, "http://"), "/mcp"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "POST /mcp HTTP/1.1\r\nHost: %s\r\nContent-Type: application/json\r\nAccept: application/json, text/event-stream\r\nContent-Length: 60000\r\n\r\n{",
		conn.RemoteAddr())
	r := bufio.NewReader(conn)
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != http.StatusRequestTimeout {
		t.Errorf("a body that never came: %s", resp.Status)
	}
	io.Copy(io.Discard, resp.Body)
	if _, err := r.ReadByte(); err == nil {
		t.Error("the connection goes on, with half a request on it")
	}

	// So it is where nobody wants to read it: net/http does, before it answers.
	for name, head := range map[string]string{
		"no host":       "POST /mcp HTTP/1.1\r\nHost: attacker.example\r\nContent-Length: 10",
		"in chunks":     "POST /mcp HTTP/1.1\r\nHost: attacker.example\r\nTransfer-Encoding: chunked",
		"no JSON":       "POST /mcp HTTP/1.1\r\nHost: localhost\r\nContent-Type: text/plain\r\nContent-Length: 10",
		"no session":    "GET /mcp HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\nContent-Length: 10",
		"other methods": "DELETE /mcp HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10",
		"metadata":      "GET /.well-known/oauth-protected-resource HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10",
	} {
		conn, err := net.Dial("tcp", conn.RemoteAddr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		fmt.Fprintf(conn, "%s\r\n\r\n", head)
		_ = conn.SetReadDeadline(time.Now().Add(10 * time.Second)) // so that the test ends
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		} else if resp.StatusCode < 400 {
			t.Errorf("%s: %s", name, resp.Status)
		}
		if _, err := io.Copy(io.Discard, conn); err != nil {
			t.Errorf("%s: the connection is kept: %v", name, err)
		}
	}

	client := mcptest.Connect(t, p.URL, mcptest.ClientOptions{Version: "2025-11-25"})
	if got := client.Call(t, "slow", map[string]any{"ms": 300}); got != "done" {
		t.Errorf("a call that takes longer than a body may: %q", got)
	}
}
