package dataplane

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/modelcontextprotocol/go-sdk/mcp"
)

// tool has a schema that takes anything.
func tool(name string) *mcp.Tool {
	return &mcp.Tool{Name: name, InputSchema: json.RawMessage(`{"type":"object"}`)}
}

func textHandler(text string) mcp.ToolHandler {
	return func(context.Context, *mcp.CallToolRequest) (*mcp.CallToolResult, error) {
		return &mcp.CallToolResult{Content: []mcp.Content{&mcp.TextContent{Text: text}}}, nil
	}
}

// switched is a place where one server can be replaced by another.
type switched struct {
	URL string
	now atomic.Pointer[url.URL]
}

func newSwitch(t testing.TB, to string) *switched {
	s := &switched{}
	s.to(to)
	srv := httptest.NewServer(&httputil.ReverseProxy{FlushInterval: -1, Rewrite: func(r *httputil.ProxyRequest) {
		r.Out.URL.Scheme, r.Out.URL.Host, r.Out.URL.Path = "http", s.now.Load().Host, s.now.Load().Path
		r.Out.Host = ""
	}})
	t.Cleanup(func() { srv.CloseClientConnections(); srv.Close() })
	s.URL = srv.URL
	return s
}

func (s *switched) to(raw string) {
	u, err := url.Parse(raw)
	if err != nil {
		panic(err)
	}
	s.now.Store(u)
}

// eventStream is an answer that is read event by event.
type eventStream struct {
	resp *http.Response
	msgs chan map[string]any
	raw  chan string // id lines, as they come
	text chan string // data that is no JSON
}

// open sends a request whose answer is an event stream; it is closed with the test, or by close.
func (p *testProxy) open(t testing.TB, method, session, body string, headers ...string) *eventStream {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	req, err := http.NewRequestWithContext(ctx, method, p.URL, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Accept", "application/json, text/event-stream")
	if method == http.MethodPost {
		req.Header.Set("Content-Type", "application/json")
	}
	if session != "" {
		req.Header.Set("Mcp-Session-Id", session)
	}
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != 200 || !strings.HasPrefix(resp.Header.Get("Content-Type"), "text/event-stream") {
		b, _ := io.ReadAll(resp.Body)
		t.Fatalf("%s: no stream: %d %s", method, resp.StatusCode, b)
	}
	s := &eventStream{resp: resp, msgs: make(chan map[string]any, 100), raw: make(chan string, 100), text: make(chan string, 100)}
	go s.read()
	return s
}

func (s *eventStream) read() {
	defer close(s.msgs)
	lines := bufio.NewScanner(s.resp.Body)
	lines.Buffer(nil, 32<<20)
	for lines.Scan() {
		if id, ok := strings.CutPrefix(lines.Text(), "id: "); ok {
			s.raw <- id
		}
		if data, ok := strings.CutPrefix(lines.Text(), "data: "); ok {
			var msg map[string]any
			if json.Unmarshal([]byte(data), &msg) == nil {
				s.msgs <- msg
			} else {
				s.text <- data
			}
		}
	}
}

func (s *eventStream) close() { _ = s.resp.Body.Close() }

// next returns the next message of a method, "" for a response.
func (s *eventStream) next(t testing.TB, method string) map[string]any {
	t.Helper()
	timeout := time.After(5 * time.Second)
	for {
		select {
		case msg, ok := <-s.msgs:
			if !ok {
				t.Fatalf("the stream ended before a %q came", method)
			}
			if m, _ := msg["method"].(string); m == method {
				return msg
			}
		case <-timeout:
			t.Fatalf("no %q came", method)
		}
	}
}

// ended waits for the end of the stream and returns what came until then.
func (s *eventStream) ended(t testing.TB) (msgs []map[string]any) {
	t.Helper()
	timeout := time.After(5 * time.Second)
	for {
		select {
		case msg, ok := <-s.msgs:
			if !ok {
				return msgs
			}
			msgs = append(msgs, msg)
		case <-timeout:
			t.Fatal("the stream does not end")
		}
	}
}

func mustJSON(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return string(b)
}

func waitFor(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}
