package dataplane

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"

	"github.com/sluicegate/sluice/dataplane/mux"
	"github.com/sluicegate/sluice/dataplane/snapshot"
	"github.com/sluicegate/sluice/dataplane/upstream"
	"github.com/sluicegate/sluice/internal/mcptest"
)

// instant is a target that answers at once, so that what is measured is the proxy's own path between its sockets.
type instant struct{}

const instantAnswer = `{"jsonrpc":"2.0","id":7,"result":{"content":[{"type":"text","text":"0123456789012345678901234567890123456789"}]}}`

func (instant) Owned() bool { return false }
func (instant) Do(context.Context, *upstream.Request) (*upstream.Response, error) {
	return &upstream.Response{Status: 200, Header: http.Header{"Content-Type": {"application/json"}}, Body: io.NopCloser(strings.NewReader(instantAnswer))}, nil
}

// nowhere takes an answer and keeps nothing of it.
type nowhere struct{ header http.Header }

func (n *nowhere) Header() http.Header         { return n.header }
func (n *nowhere) WriteHeader(int)             {}
func (n *nowhere) Write(p []byte) (int, error) { return len(p), nil }

// callOnce prepares one call and returns what makes it.
func callOnce(t testing.TB, targets int, tool string) func() {
	srv := mcptest.NewServer(t, mcptest.Options{JSON: true})
	w := behind("a="+srv.URL, "b="+srv.URL)
	w.targets = w.targets[:targets]
	p := w.start(t)
	id := p.initialize(t, "2025-11-25")
	p.proxy.mux = mux.New(mux.Config{Transport: func(*snapshot.Target) upstream.Transport { return instant{} }, ProxyID: "proxy-1"})
	body := []byte(echo(tool, "hi"))
	handler := p.handler(testPort)
	req := httptest.NewRequest(http.MethodPost, "http://127.0.0.1/mcp", nil)
	req.Header = http.Header{"Content-Type": {"application/json"}, "Accept": {"application/json, text/event-stream"}, "Mcp-Session-Id": {id}, "Mcp-Protocol-Version": {"2025-11-25"}}
	req.ContentLength = int64(len(body))
	return func() {
		req.Body = io.NopCloser(bytes.NewReader(body))
		handler.ServeHTTP(&nowhere{http.Header{}}, req)
	}
}

func BenchmarkCall(b *testing.B) {
	for _, bb := range []struct {
		name, tool string
		targets    int
	}{{"one target", "echo", 1}, {"two targets", "a_echo", 2}} {
		b.Run(bb.name, func(b *testing.B) {
			call := callOnce(b, bb.targets, bb.tool)
			b.ReportAllocs()
			for b.Loop() {
				call()
			}
		})
	}
}

// The path of a call is short; what makes it longer by a third deserves a thought.
func TestCallAllocations(t *testing.T) {
	call := callOnce(t, 1, "echo")
	if n := testing.AllocsPerRun(200, call); n > 40 {
		t.Errorf("a call allocates %v times, want at most 40", n)
	}
}

// listed is a target that lists 100 tools of some 600 bytes at once.
type listed struct{}

var hundredTools = func() string {
	var b strings.Builder
	b.WriteString(`{"jsonrpc":"2.0","id":7,"result":{"tools":[`)
	for i := range 100 {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(`{"name":"tool_` + strings.Repeat("x", i%9) + `","description":"` + strings.Repeat("word ", 80) +
			`","inputSchema":{"type":"object","properties":{"a":{"type":"string"},"b":{"type":"number","description":"a number"}},"required":["a"]}}`)
	}
	b.WriteString(`]}}`)
	return b.String()
}()

func (listed) Owned() bool { return false }
func (listed) Do(context.Context, *upstream.Request) (*upstream.Response, error) {
	return &upstream.Response{Status: 200, Header: http.Header{"Content-Type": {"application/json"}}, Length: int64(len(hundredTools)),
		Body: io.NopCloser(strings.NewReader(hundredTools))}, nil
}

func BenchmarkList(b *testing.B) {
	srv := mcptest.NewServer(b, mcptest.Options{JSON: true})
	var targets []string
	for i := range 10 {
		targets = append(targets, "t"+strconv.Itoa(i)+"="+srv.URL)
	}
	p := behind(targets...).start(b)
	id := p.initialize(b, "2025-11-25")
	p.proxy.mux = mux.New(mux.Config{Transport: func(*snapshot.Target) upstream.Transport { return listed{} }, ProxyID: "proxy-1"})
	handler := p.handler(testPort)
	req := httptest.NewRequest(http.MethodPost, "http://127.0.0.1/mcp", nil)
	req.Header = http.Header{"Content-Type": {"application/json"}, "Accept": {"application/json, text/event-stream"}, "Mcp-Session-Id": {id}}
	req.ContentLength = int64(len(listTools))
	b.ReportAllocs()
	for b.Loop() {
		req.Body = io.NopCloser(strings.NewReader(listTools))
		handler.ServeHTTP(&nowhere{http.Header{}}, req)
	}
}
