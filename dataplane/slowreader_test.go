package dataplane

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/sluicegate/sluice/internal/mcptest"
)

// A client that reads nothing of a long answer is let go, and so is what was held for it.
func TestSlowReader(t *testing.T) {
	target := mcptest.NewServer(t, mcptest.Options{Wrap: func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			body, _ := io.ReadAll(r.Body)
			if !strings.Contains(string(body), `"tools/call"`) {
				r.Body = io.NopCloser(bytes.NewReader(body))
				next.ServeHTTP(w, r)
				return
			}
			w.Header().Set("Content-Type", "application/json")
			_, _ = io.WriteString(w, `{"jsonrpc":"2.0","id":7,"result":{"content":[{"type":"text","text":"`+strings.Repeat("x", 15<<20)+`"}]}}`)
		})
	}})
	p := behind(target.URL).start(t)
	p.writeTime = 50 * time.Millisecond
	call := echo("echo", "x")
	session := p.initialize(t, "2025-11-25")
	conn, err := net.Dial("tcp", strings.TrimSuffix(strings.TrimPrefix(p.URL, "http://"), "/mcp"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.(*net.TCPConn).SetReadBuffer(4 << 10); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(conn, "POST /mcp HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nAccept: application/json, text/event-stream\r\nMcp-Session-Id: %s\r\nContent-Length: %d\r\n\r\n%s",
		session, len(call), call)
	waitFor(t, "the end of the call", func() bool { return strings.Contains(p.lines.String(), `"tools/call"`) })

}

// Over HTTP/2 a client that keeps its windows shut does not even have to stop reading.
func TestShutWindow(t *testing.T) {
	p := behind(mcptest.NewServer(t, mcptest.Options{}).URL).start(t)
	p.writeTime = 50 * time.Millisecond
	session := p.initialize(t, "2025-11-25")
	server := httptest.NewUnstartedServer(p.handler(testPort))
	server.EnableHTTP2 = true
	server.StartTLS()
	t.Cleanup(func() {
		server.CloseClientConnections()
		server.Close()
	})
	conn, err := tls.Dial("tcp", server.Listener.Addr().String(), &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, http2.ClientPreface); err != nil {
		t.Fatal(err)
	}
	frames := http2.NewFramer(conn, conn)
	var head strings.Builder
	fields := hpack.NewEncoder(&head)
	body := echo("echo", "x")
	for _, f := range [][2]string{{":method", http.MethodPost}, {":scheme", "https"}, {":path", "/mcp"}, {":authority", "localhost"},
		{"content-type", "application/json"}, {"accept", "application/json, text/event-stream"}, {"mcp-session-id", session}} {
		if err := fields.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]}); err != nil {
			t.Fatal(err)
		}
	}
	for _, err := range []error{
		frames.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0}),
		frames.WriteSettingsAck(),
		frames.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: []byte(head.String()), EndHeaders: true}),
		frames.WriteData(1, true, []byte(strings.Replace(body, `"x"`, `"`+strings.Repeat("x", 10_000)+`"`, 1))),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	go func() { _, _ = io.Copy(io.Discard, conn) }()
	waitFor(t, "the end of the call", func() bool { return strings.Contains(p.lines.String(), `"tools/call"`) })

}
