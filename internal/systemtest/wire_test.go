package systemtest

import (
	"bufio"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"
)

// session is one of the session era, spoken by hand, so that each request can go to another proxy.
type session struct {
	id     string
	header http.Header
}

type answer struct {
	status int
	header http.Header
	body   string
}

// handshake does initialize and initialized. The header is sent with every request.
func handshake(t *testing.T, url string, header http.Header) *session {
	t.Helper()
	s := &session{header: header}
	got := s.do(t, "POST", url, `{"jsonrpc":"2.0","id":"init","method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{},"clientInfo":{"name":"hand","version":"1"}}}`)
	if got.status != 200 {
		t.Fatalf("initialize: %d %s", got.status, got.body)
	}
	if s.id = got.header.Get("Mcp-Session-Id"); s.id == "" {
		t.Fatalf("initialize gave no session: %s", got.body)
	}
	if got := s.do(t, "POST", url, `{"jsonrpc":"2.0","method":"notifications/initialized"}`); got.status != 202 {
		t.Fatalf("initialized: %d %s", got.status, got.body)
	}
	return s
}

func (s *session) call(t *testing.T, url, tool, arguments string) answer {
	t.Helper()
	return s.do(t, "POST", url, `{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"`+tool+`","arguments":`+arguments+`}}`)
}

func (s *session) do(t *testing.T, method, url, body string) answer {
	t.Helper()
	resp, err := http.DefaultClient.Do(s.request(t, method, url, body))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer{resp.StatusCode, resp.Header, string(data)}
}

func (s *session) request(t *testing.T, method, url, body string) *http.Request {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for k, v := range s.header {
		req.Header[k] = v
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Accept", "application/json, text/event-stream")
	if s.id != "" {
		req.Header.Set("Mcp-Session-Id", s.id)
		req.Header.Set("MCP-Protocol-Version", "2025-11-25")
	}
	return req
}

// stream is an open GET.
type stream struct{ lines chan string }

// get opens the standalone stream.
func (s *session) get(t *testing.T, url string) stream {
	t.Helper()
	req := s.request(t, "GET", url, "")
	req.Header.Set("Accept", "text/event-stream")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { resp.Body.Close() })
	if resp.StatusCode != 200 {
		body, _ := io.ReadAll(resp.Body)
		t.Fatalf("GET: %d %s", resp.StatusCode, body)
	}
	out := stream{make(chan string, 64)}
	go func() {
		defer close(out.lines)
		for sc := bufio.NewScanner(resp.Body); sc.Scan(); {
			out.lines <- sc.Text()
		}
	}()
	return out
}

// await waits for a line that holds want.
func (s stream) await(t *testing.T, want string) {
	t.Helper()
	timeout := time.After(30 * time.Second)
	for {
		select {
		case line, ok := <-s.lines:
			if !ok {
				t.Fatalf("the stream ended before %s", want)
			}
			if strings.Contains(line, want) {
				return
			}
		case <-timeout:
			t.Fatalf("%s never came", want)
		}
	}
}
