package systemtest

import (
	"encoding/json"
	"io"
	"log"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sluicegate/sluice/internal/mcptest"
)

// reply is a JSON-RPC answer, whether it came as JSON or as an event.
type reply struct {
	Result struct {
		Content    []struct{ Text string }
		IsError    bool
		Tools      []struct{ Name string }
		NextCursor string
		Meta       map[string]any `json:"_meta"`
	}
	Error *struct {
		Code    int
		Message string
	}
}

// reply takes the last message of an answer.
func (a answer) reply(t *testing.T) reply {
	t.Helper()
	body := a.body
	if strings.HasPrefix(a.header.Get("Content-Type"), "text/event-stream") {
		for line := range strings.Lines(a.body) {
			if data, ok := strings.CutPrefix(line, "data:"); ok && strings.TrimSpace(data) != "" {
				body = strings.TrimSpace(data)
			}
		}
	}
	var r reply
	if err := json.Unmarshal([]byte(body), &r); err != nil {
		t.Fatalf("%d %s: %v", a.status, a.body, err)
	}
	return r
}

// text is what a tool answered; the test fails on any error.
func (s *session) text(t *testing.T, url, tool, arguments string) string {
	t.Helper()
	got := s.call(t, url, tool, arguments)
	r := got.reply(t)
	if r.Error != nil || r.Result.IsError || len(r.Result.Content) == 0 {
		t.Fatalf("%s: %d %s", tool, got.status, got.body)
	}
	return r.Result.Content[0].Text
}

// sees returns the header of that name as the target sees it.
func (s *session) sees(t *testing.T, url, tool, header string) string {
	t.Helper()
	return s.text(t, url, tool, `{"name":"`+header+`"}`)
}

func (s *session) tools(t *testing.T, url string) []string {
	t.Helper()
	got := s.do(t, "POST", url, `{"jsonrpc":"2.0","id":3,"method":"tools/list"}`)
	r := got.reply(t)
	if r.Error != nil {
		t.Fatalf("tools/list: %d %s", got.status, got.body)
	}
	var names []string
	for _, tool := range r.Result.Tools {
		names = append(names, tool.Name)
	}
	return names
}

const initialize = `{"jsonrpc":"2.0","id":"init","method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{},"clientInfo":{"name":"hand","version":"1"}}}`

// knock sends one initialize and returns whatever comes.
func knock(t *testing.T, url string, header http.Header) answer {
	t.Helper()
	return (&session{header: header}).do(t, "POST", url, initialize)
}

// as is a header with a bearer token.
func as(token string) http.Header { return http.Header{"Authorization": {"Bearer " + token}} }

// last is the last request that a server got with this method.
func last(t *testing.T, s *mcptest.Server, method string) mcptest.Request {
	t.Helper()
	all := s.Requests()
	for i := len(all) - 1; i >= 0; i-- {
		if all[i].Method == method {
			return all[i]
		}
	}
	t.Fatalf("the target saw no %s", method)
	return mcptest.Request{}
}

// endpoint is the URL of a path at a proxy.
func (f *fleet) endpoint(i int, path string) string {
	return strings.TrimSuffix(f.url(i), "/mcp") + path
}

// actor is an admin who has another token for the same control plane.
func (f *fleet) actor(token string) admin {
	return admin{f.t, []string{"SLUICE_ADMIN=http://" + f.plane.Admin, "SLUICE_TOKEN=" + token}}
}

// refused applies what must not be taken, and returns what is said.
func (f *fleet) refused(t *testing.T, config string) string {
	t.Helper()
	stdout, stderr, code := f.run("apply", "-f", write(t, "sluice.yaml", config))
	if code != 2 {
		t.Fatalf("apply: exit %d, want 2\n%s%s\n%s", code, stdout, stderr, config)
	}
	return stderr
}

// ops fetches a page of a proxy's operations port.
func (p *process) ops(t *testing.T, path string) (int, string) {
	t.Helper()
	resp, err := http.Get("http://" + p.Ops + path)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var b strings.Builder
	if err := resp.Write(&b); err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, b.String()
}

// replace writes a file anew, at once for who reads it.
func replace(t *testing.T, file, content string) {
	t.Helper()
	next := write(t, "next", content)
	data := filepath.Join(filepath.Dir(file), ".next")
	if err := rename(next, data, file); err != nil {
		t.Fatal(err)
	}
}

// discard is for servers whose clients are meant to fail.
var discard = log.New(io.Discard, "", 0)
