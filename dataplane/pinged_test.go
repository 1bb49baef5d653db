package dataplane

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/sluicegate/sluice/internal/mcptest"
)

// A target may ping, and nothing else, before its client has said that it is initialized: in the session that the answer begins, where
// it is answered. No other session is begun for that.
func TestTargetThatPingsInItsGreeting(t *testing.T) {
	seen := make(chan string, 16) // method or answer, and session
	srv := mcptest.NewServer(t, mcptest.Options{Wrap: func(inner http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			body, _ := io.ReadAll(r.Body)
			r.Body = io.NopCloser(bytes.NewReader(body))
			switch {
			case bytes.Contains(body, []byte(`"initialize"`)):
				seen <- "initialize"
				w.Header().Set("Content-Type", "text/event-stream")
				w.Header().Set("Mcp-Session-Id", "s1")
				fmt.Fprint(w, "data: {\"jsonrpc\":\"2.0\",\"id\":\"p\",\"method\":\"ping\"}\n\n")
				_ = http.NewResponseController(w).Flush()
				fmt.Fprintf(w, "data: {\"jsonrpc\":\"2.0\",\"id\":0,\"result\":{\"protocolVersion\":\"2025-06-18\",\"capabilities\":{},\"serverInfo\":{\"name\":\"s\",\"version\":\"1\"}}}\n\n")
			case bytes.Contains(body, []byte(`"p"`)):
				seen <- string(body) + " in " + r.Header.Get("Mcp-Session-Id")
				w.WriteHeader(http.StatusAccepted)
			default:
				w.WriteHeader(http.StatusAccepted)
			}
		})
	}})
	p := behind(srv.URL).start(t)
	got := p.post(t, "", `{"jsonrpc":"2.0","id":0,"method":"initialize","params":{"protocolVersion":"2025-06-18","capabilities":{},"clientInfo":{"name":"raw","version":"1"}}}`)
	if got.status != 200 || !strings.Contains(got.body, `"name":"s"`) {
		t.Fatalf("%d %s", got.status, got.body)
	}
	for _, want := range []string{"initialize", `{"jsonrpc":"2.0","id":"p","result":{}} in s1`} {
		if got := <-seen; got != want {
			t.Errorf("the target hears %q, want %q", got, want)
		}
	}
}
