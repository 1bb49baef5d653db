package dataplane

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
)

// What a target counts, the client gets counted; an answer without anything is one to a notification.
func TestLengths(t *testing.T) {
	long := `{"jsonrpc":"2.0","id":7,"result":{"content":[{"type":"text","text":"` + strings.Repeat("x", 100_000) + `"}]}}`
	target := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		answer := ""
		switch {
		case strings.Contains(string(body), `"initialize"`):
			answer = `{"jsonrpc":"2.0","id":1,"result":{"protocolVersion":"2025-11-25","capabilities":{},"serverInfo":{"name":"x","version":"1"}}}`
		case strings.Contains(string(body), `"tools/call"`):
			answer = long
		}
		if strings.Contains(string(body), "initialized") {
			w.WriteHeader(http.StatusAccepted)
			return
		}
		w.Header()["Content-Type"] = nil
		if answer != "" {
			w.Header().Set("Content-Type", "application/json")
		}
		w.Header().Set("Content-Length", strconv.Itoa(len(answer)))
		_, _ = io.WriteString(w, answer)
	}))
	defer target.Close()
	p := behind(target.URL).start(t)
	id := p.initialize(t, "2025-11-25")
	post := func(body string) *http.Response {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, p.URL, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header = http.Header{"Content-Type": {"application/json"}, "Accept": {"application/json, text/event-stream"}, "Mcp-Session-Id": {id}}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = resp.Body.Close() })
		return resp
	}
	if resp := post(`{"jsonrpc":"2.0","method":"notifications/roots/list_changed"}`); resp.StatusCode != http.StatusOK || resp.ContentLength != 0 {
		t.Errorf("a notification is answered %d with %d bytes, want 200 with none", resp.StatusCode, resp.ContentLength)
	}
	resp := post(echo("echo", "hi"))
	got, err := io.ReadAll(resp.Body)
	if err != nil || string(got) != long {
		t.Errorf("the answer has %d bytes (%v), want the target's %d", len(got), err, len(long))
	}
	if resp.ContentLength != int64(len(long)) {
		t.Errorf("Content-Length is %d, want %d", resp.ContentLength, len(long))
	}
}
