package mcptest

import (
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// Every server is usable by every client of its era, and its tools do what AddFeatures says.
func TestServers(t *testing.T) {
	legacy := []string{"2025-03-26", "2025-06-18", "2025-11-25"}
	type pair struct {
		name, version string
		connect       func(t *testing.T, o ClientOptions) *Client
	}
	var pairs []pair
	for _, v := range legacy {
		pairs = append(pairs, pair{"http", v, func(t *testing.T, o ClientOptions) *Client {
			return Connect(t, NewServer(t, Options{}).URL, o)
		}}, pair{"stdio", v, func(t *testing.T, o ClientOptions) *Client {
			return ConnectStdio(t, Stdio("serve"), o)
		}})
	}
	pairs = append(pairs, pair{"sse", "2024-11-05", func(t *testing.T, o ClientOptions) *Client {
		o.SSE = true
		return Connect(t, NewServer(t, Options{SSE: true}).URL, o)
	}}, pair{"http", "2026-07-28", func(t *testing.T, o ClientOptions) *Client {
		return Connect(t, NewServer(t, Options{Stateless: true}).URL, o)
	}}, pair{"stdio", "2026-07-28", func(t *testing.T, o ClientOptions) *Client {
		return ConnectStdio(t, Stdio("serve"), o)
	}})
	for _, p := range pairs {
		t.Run(p.name+"/"+p.version, func(t *testing.T) {
			c := p.connect(t, ClientOptions{Version: p.version})
			if got := c.InitializeResult().ProtocolVersion; got != p.version {
				t.Errorf("version %s, want %s", got, p.version)
			}
			got := map[string]string{}
			for tool, args := range map[string]map[string]any{
				"echo": {"text": "hi"}, "add": {"a": 1, "b": 2}, "elicit": nil, "sample": nil, "roots": nil, "count": nil,
			} {
				got[tool] = c.Call(t, tool, args)
			}
			want := map[string]string{"echo": "hi", "add": "3", "elicit": "Hello, Ada!", "sample": "model: Paris",
				"roots": "file:///work", "count": "1"}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("calls (-want +got):\n%s", diff)
			}
			c.Call(t, "grow", nil)
			c.Await(t, "notifications/tools/list_changed", 1)
		})
	}
}

func TestScript(t *testing.T) {
	s := NewScript(t, func(c *Conn) {
		for {
			r, body := c.Read()
			if r == nil {
				return
			}
			c.Answer(202, "text/plain", r.Method+" "+string(body), "X-Line: one")
		}
	})
	for i := range 2 {
		res, err := http.Post(s.URL, "application/json", strings.NewReader(strconv.Itoa(i)))
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(res.Body)
		res.Body.Close()
		if got, want := string(body), "POST "+strconv.Itoa(i); res.StatusCode != 202 || got != want || res.Header.Get("X-Line") != "one" {
			t.Errorf("answer %d %q %v, want 202 %q", res.StatusCode, got, res.Header, want)
		}
	}
	if s.Conns() != 1 {
		t.Errorf("%d connections, want 1 that is kept", s.Conns())
	}
}
