package dataplane

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/sluicegate/sluice/dataplane/mux"
	"github.com/sluicegate/sluice/dataplane/snapshot"
	"github.com/sluicegate/sluice/dataplane/upstream"
	"github.com/sluicegate/sluice/internal/mcptest"
	xdsv1 "github.com/sluicegate/sluice/proto/gen/sluice/xds/v1"
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

func (n *nowhere) Header() http.Header             { return n.header }
func (n *nowhere) WriteHeader(int)                 {}
func (n *nowhere) Write(p []byte) (int, error)     { return len(p), nil }
func (n *nowhere) SetReadDeadline(time.Time) error { return nil }

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

// both is an instant target that speaks either era, as it is spoken to.
type both struct{}

func (both) Owned() bool { return false }
func (both) Do(_ context.Context, r *upstream.Request) (*upstream.Response, error) {
	resp := &upstream.Response{Status: http.StatusOK, Header: http.Header{"Content-Type": {"application/json"}}}
	answer := `{"jsonrpc":"2.0","id":7,"result":{"content":[{"type":"text","text":"0123456789012345678901234567890123456789"}]}}`
	switch stateless := r.Header.Get("Mcp-Protocol-Version") == "2026-07-28"; {
	case r.Method == http.MethodDelete || bytes.Contains(r.Body, []byte(`"method":"notifications/`)):
		resp.Status, resp.Body = http.StatusAccepted, http.NoBody
		return resp, nil
	case bytes.Contains(r.Body, []byte(`"method":"initialize"`)):
		resp.Header["Mcp-Session-Id"] = []string{"0123456789abcdef0123456789abcdef"}
		answer = `{"jsonrpc":"2.0","id":7,"result":{"protocolVersion":"2025-11-25","capabilities":{"tools":{}},"serverInfo":{"name":"both","version":"1"}}}`
	case bytes.Contains(r.Body, []byte(`"method":"server/discover"`)):
		answer = `{"jsonrpc":"2.0","id":7,"result":{"resultType":"complete","supportedVersions":["2026-07-28"],"capabilities":{"tools":{}},"ttlMs":600000,"cacheScope":"public"}}`
	case bytes.Contains(r.Body, []byte(`"method":"tools/list"`)):
		answer = `{"jsonrpc":"2.0","id":7,"result":{"tools":[{"name":"echo","inputSchema":{"type":"object"}}],"resultType":"complete","ttlMs":0,"cacheScope":"private"}}`
	case stateless:
		answer = `{"jsonrpc":"2.0","id":7,"result":{"resultType":"complete","content":[{"type":"text","text":"0123456789012345678901234567890123456789"}]}}`
	}
	resp.Body, resp.Length = io.NopCloser(strings.NewReader(answer)), int64(len(answer))
	return resp, nil
}

// bridgedCall prepares one call of a client of an era at a target of a version.
func bridgedCall(t testing.TB, stateless bool, version string, scope *xdsv1.SessionScope) func() {
	w := behind("http://127.0.0.1:1/mcp")
	w.targets[0].ProtocolVersions, w.targets[0].SessionScope = []string{version}, scope
	p := w.start(t)
	transport := func(*snapshot.Target) upstream.Transport { return both{} }
	p.proxy.mux = mux.New(mux.Config{Transport: transport, ProxyID: "proxy-1"})
	handler := p.handler(testPort)
	header, body := http.Header{"Content-Type": {"application/json"}, "Accept": {"application/json, text/event-stream"}}, echo("echo", "hi")
	if stateless {
		header["Mcp-Protocol-Version"], header["Mcp-Method"], header["Mcp-Name"] = []string{"2026-07-28"}, []string{"tools/call"}, []string{"echo"}
		body = `{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"echo","arguments":{"text":"hi"},"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28",` +
			`"io.modelcontextprotocol/clientInfo":{"name":"raw","version":"1"},"io.modelcontextprotocol/clientCapabilities":{}}}}`
	} else {
		header["Mcp-Session-Id"], header["Mcp-Protocol-Version"] = []string{p.initialize(t, "2025-11-25")}, []string{"2025-11-25"}
	}
	req := httptest.NewRequest(http.MethodPost, "http://127.0.0.1/mcp", nil)
	req.Header, req.ContentLength = header, int64(len(body))
	call := func(w http.ResponseWriter) {
		req.Body = io.NopCloser(strings.NewReader(body))
		handler.ServeHTTP(w, req)
	}
	first := httptest.NewRecorder()
	if call(first); first.Code != http.StatusOK || !strings.Contains(first.Body.String(), `"text":"0123456789`) {
		t.Fatalf("the call is answered with %d %s", first.Code, first.Body)
	}
	return func() { call(&nowhere{http.Header{}}) }
}

// What a bridge costs beside a call in the target's own era, between the sockets.
func BenchmarkBridges(b *testing.B) {
	for _, bb := range []struct {
		name      string
		stateless bool
		version   string
		scope     *xdsv1.SessionScope
	}{
		{"session client/session target", false, "2025-11-25", nil},
		{"session client/stateless target", false, "2026-07-28", nil},
		{"stateless client/stateless target", true, "2026-07-28", nil},
		{"stateless client/session target, shared", true, "2025-11-25", sharedByCaller},
		{"stateless client/session target, its own each", true, "2025-11-25", nil},
	} {
		b.Run(bb.name, func(b *testing.B) {
			call := bridgedCall(b, bb.stateless, bb.version, bb.scope)
			b.ReportAllocs()
			for b.Loop() {
				call()
			}
		})
	}
}

// A session that does nothing: initialize, initialized, DELETE.
func BenchmarkSession(b *testing.B) {
	p := behind("http://127.0.0.1:1/mcp").start(b)
	p.proxy.mux = mux.New(mux.Config{Transport: func(*snapshot.Target) upstream.Transport { return both{} }, Sessions: &p.sessions, ProxyID: "proxy-1"})
	handler := p.handler(testPort)
	req := httptest.NewRequest(http.MethodPost, "http://127.0.0.1/mcp", nil)
	request := func(method, body string) *nowhere {
		req.Method, req.ContentLength, req.Body = method, int64(len(body)), io.NopCloser(strings.NewReader(body))
		w := &nowhere{http.Header{}}
		handler.ServeHTTP(w, req)
		return w
	}
	b.ReportAllocs()
	for b.Loop() {
		req.Header = http.Header{"Content-Type": {"application/json"}, "Accept": {"application/json, text/event-stream"}}
		begun := request(http.MethodPost, `{"jsonrpc":"2.0","id":7,"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{},"clientInfo":{"name":"raw","version":"1"}}}`)
		req.Header["Mcp-Session-Id"], req.Header["Mcp-Protocol-Version"] = begun.header["Mcp-Session-Id"], []string{"2025-11-25"}
		request(http.MethodPost, `{"jsonrpc":"2.0","method":"notifications/initialized"}`)
		request(http.MethodDelete, "")
	}
}

// The path of a call is short; what makes it longer by a third deserves a thought.
func TestCallAllocations(t *testing.T) {
	for _, tt := range []struct {
		name         string
		call         func()
		times, bytes float64 // at most; the race detector doubles bytes
	}{
		{"in the same era", callOnce(t, 1, "echo"), 40, 20 << 10},
		{"of a session's client, bridged", bridgedCall(t, false, "2026-07-28", nil), 110, 36 << 10},
		{"of a stateless client, bridged", bridgedCall(t, true, "2025-11-25", sharedByCaller), 120, 40 << 10},
	} {
		const runs = 200
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		times := testing.AllocsPerRun(runs, tt.call)
		runtime.ReadMemStats(&after)
		bytes := float64(after.TotalAlloc-before.TotalAlloc) / (runs + 1) // AllocsPerRun has one to warm up
		if times > tt.times || bytes > tt.bytes {
			t.Errorf("a call %s allocates %v times, %v bytes; want at most %v, %v", tt.name, times, bytes, tt.times, tt.bytes)
		}
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
