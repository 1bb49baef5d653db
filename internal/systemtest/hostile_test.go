package systemtest

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/sluicegate/sluice/internal/mcptest"
)

// named is a server with tools that answer with the server's and their own name.
func named(t *testing.T, server string, tools ...string) *mcptest.Server {
	t.Helper()
	srv := mcptest.NewServer(t, mcptest.Options{Bare: true})
	for _, name := range tools {
		srv.MCP.AddTool(&mcp.Tool{Name: name, InputSchema: map[string]any{"type": "object"}},
			func(context.Context, *mcp.CallToolRequest) (*mcp.CallToolResult, error) {
				return &mcp.CallToolResult{Content: []mcp.Content{&mcp.TextContent{Text: server + "/" + name}}}, nil
			})
	}
	return srv
}

// A message that two readers could read differently reaches no target.
func TestAmbiguousMessages(t *testing.T) {
	srv := named(t, "a", "safe", "danger")
	f := newFleet(t, 1, "private-network")
	f.apply(fmt.Sprintf(`mcp:
  port: %d
  targets:
  - name: a
    mcp: {host: %q}
    policies:
      mcpAuthorization: {rules: ['mcp.tool.name == "safe" && !has(mcp.tool.arguments.path)']}
`, f.port, srv.URL))
	s := handshake(t, f.url(0), nil)
	call := func(params string) string {
		return `{"jsonrpc":"2.0","id":7,"method":"tools/call","params":` + params + `}`
	}
	if got := s.do(t, "POST", f.url(0), call(`{"name":"safe","arguments":{"a":1}}`)); !strings.Contains(got.body, "a/safe") {
		t.Fatalf("%d %s", got.status, got.body)
	}
	reached := len(srv.Requests())
	for name, body := range map[string]string{
		"name twice":                call(`{"name":"safe","name":"danger"}`),
		"another case":              call(`{"name":"safe","Name":"danger"}`),
		"another case before":       call(`{"NAME":"danger","name":"safe"}`),
		"escaped":                   call(`{"name":"safe","n\u0061me":"danger"}`),
		"folded by Unicode":         call(`{"name":"safe","argument\u017f":{"path":"/"}}`),
		"the method twice":          `{"jsonrpc":"2.0","id":7,"method":"ping","Method":"tools/call","params":{"name":"danger"}}`,
		"params twice":              `{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"safe"},"Params":{"name":"danger"}}`,
		"the id twice":              `{"jsonrpc":"2.0","id":7,"ID":8,"method":"tools/call","params":{"name":"safe"}}`,
		"arguments twice":           call(`{"name":"safe","arguments":{},"arguments":{"path":"/"}}`),
		"an argument twice":         call(`{"name":"safe","arguments":{"x":1,"x":2}}`),
		"an argument, another case": call(`{"name":"safe","arguments":{"path":"/","Path":"/"}}`),
		"trailing bytes":            call(`{"name":"safe"}`) + `{"jsonrpc":"2.0","id":8,"method":"tools/call","params":{"name":"danger"}}`,
		"no UTF-8":                  call("{\"name\":\"safe\xff\"}"),
		"half a surrogate":          call(`{"name":"safe\ud800"}`),
		"deep":                      call(`{"name":"safe","arguments":{"a":` + strings.Repeat("[", 5000) + strings.Repeat("]", 5000) + `}}`),
		"a byte order mark":         "\ufeff" + call(`{"name":"safe"}`),
		"an id that is an object":   `{"jsonrpc":"2.0","id":{},"method":"tools/call","params":{"name":"safe"}}`,
		"params that are a list":    call(`["safe"]`),
		"a name that is a list":     call(`{"name":["safe"]}`),
		"no version":                `{"id":7,"method":"tools/call","params":{"name":"safe"}}`,
		"a batch":                   `[` + call(`{"name":"safe"}`) + `]`,
		"an empty batch":            `[]`,
	} {
		got := s.do(t, "POST", f.url(0), body)
		if got.status == 200 && !strings.Contains(got.body, `"error"`) {
			t.Errorf("%s: %d %s", name, got.status, got.body)
		}
		if got.status >= 500 {
			t.Errorf("%s: %d %s", name, got.status, got.body)
		}
	}
	for _, request := range srv.Requests()[reached:] {
		t.Errorf("the target was reached: %+v", request)
	}
	if got := s.do(t, "POST", f.url(0), call(`{"name":"safe","arguments":{"a":1}}`)); !strings.Contains(got.body, "a/safe") {
		t.Errorf("and then: %d %s", got.status, got.body)
	}
}

// Names that look like prefixes, and each way of writing them.
func TestPrefixGames(t *testing.T) {
	a, ab := named(t, "a", "b_c", "-b_c", "_", "b-x_y", "same", "a_same"), named(t, "a-b", "c", "_x", "x_y", "same")
	f := newFleet(t, 1, "private-network")
	var routes strings.Builder
	for _, mode := range []string{"conditional", "always", "never"} {
		fmt.Fprintf(&routes, "    - matches: [{path: {pathPrefix: /%s}}]\n      backends:\n      - name: %[1]s\n        mcp:\n          prefixMode: %[1]s\n          targets:\n          - {name: a, mcp: {host: %q}}\n          - {name: a-b, mcp: {host: %q}}\n", mode, a.URL, ab.URL)
	}
	fmt.Fprintf(&routes, "    - matches: [{path: {pathPrefix: /one}}]\n      backends:\n      - {name: one, mcp: {targets: [{name: a, mcp: {host: %q}}]}}\n", a.URL)
	fmt.Fprintf(&routes, "    - matches: [{path: {pathPrefix: /prefixed}}]\n      backends:\n      - {name: prefixed, mcp: {prefixMode: always, targets: [{name: a, mcp: {host: %q}}]}}\n", a.URL)
	f.apply(fmt.Sprintf("binds:\n- port: %d\n  listeners:\n  - routes:\n%s", f.port, routes.String()))

	both := map[string]string{"a_b_c": "a/b_c", "a_-b_c": "a/-b_c", "a__": "a/_", "a_b-x_y": "a/b-x_y", "a_same": "a/same", "a_a_same": "a/a_same",
		"a-b_c": "a-b/c", "a-b__x": "a-b/_x", "a-b_x_y": "a-b/x_y", "a-b_same": "a-b/same"}
	alone := map[string]string{"b_c": "a/b_c", "-b_c": "a/-b_c", "_": "a/_", "b-x_y": "a/b-x_y", "same": "a/same", "a_same": "a/a_same"}
	prefixed := map[string]string{"a_b_c": "a/b_c", "a_-b_c": "a/-b_c", "a__": "a/_", "a_b-x_y": "a/b-x_y", "a_same": "a/same", "a_a_same": "a/a_same"}
	never := map[string]string{"b_c": "a/b_c", "-b_c": "a/-b_c", "_": "a/_", "b-x_y": "a/b-x_y", "same": "a/same", "a_same": "a/a_same", "c": "a-b/c", "_x": "a-b/_x", "x_y": "a-b/x_y"}
	for path, want := range map[string]map[string]string{"/conditional": both, "/always": both, "/never": never, "/one": alone, "/prefixed": prefixed} {
		url := f.endpoint(0, path)
		s := handshake(t, url, nil)
		names := s.tools(t, url)
		for name, owner := range want {
			if !slices.Contains(names, name) {
				t.Errorf("%s lists %v without %s", path, names, name)
			}
			if got := s.text(t, url, name, `{}`); got != owner {
				t.Errorf("%s: %s is answered by %s, want %s", path, name, got, owner)
			}
		}
		if len(names) != len(want) {
			t.Errorf("%s lists %v, want %d", path, names, len(want))
		}
		for _, name := range []string{"", "a", "a-b", "nobody_c", "A_b_c", "a_", "a-b_b_c", "a_c", "a+same", "a-b", "a_b", "a_a_b_c", "../a_same", "a\\u0000_same"} {
			if _, ok := want[name]; ok {
				continue
			}
			if got := s.call(t, url, name, `{}`); got.reply(t).Error == nil || got.reply(t).Error.Code != -32602 {
				t.Errorf("%s: %q: %d %s; want -32602", path, name, got.status, got.body)
			}
		}
	}
}

// A target that is gone: the whole fails, or what is missing is said.
func TestFailureModes(t *testing.T) {
	alive, dead := named(t, "alive", "x"), named(t, "dead", "x")
	gone := dead.URL
	dead.Close()
	f := newFleet(t, 1, "private-network")
	config := func(mode, second string) string {
		return fmt.Sprintf("mcp:\n  port: %d\n  failureMode: %s\n  targets:\n  - {name: alive, mcp: {host: %q}}\n  - {name: second, mcp: {host: %q}}\n", f.port, mode, alive.URL, second)
	}
	f.apply(config("failClosed", gone))
	if got := knock(t, f.url(0), nil); got.status < 500 || !strings.Contains(got.body, "-32603") || !strings.Contains(got.body, "second") {
		t.Errorf("failClosed: %d %s; want an error naming the target", got.status, got.body)
	}
	f.apply(config("failOpen", gone))
	s := handshake(t, f.url(0), nil)
	got := s.do(t, "POST", f.url(0), `{"jsonrpc":"2.0","id":3,"method":"tools/list"}`)
	if r := got.reply(t); len(r.Result.Tools) != 1 || r.Result.Tools[0].Name != "alive_x" || !strings.Contains(fmt.Sprint(r.Result.Meta), "second") {
		t.Errorf("failOpen: %s; want alive_x, and _meta naming what is missing", got.body)
	}
	if got := s.text(t, f.url(0), "alive_x", `{}`); got != "alive/x" {
		t.Errorf("failOpen: %s", got)
	}
	if got := s.call(t, f.url(0), "second_x", `{}`).reply(t); got.Error == nil || !strings.Contains(got.Error.Message, "second") {
		t.Errorf("a call to the dead target: %+v", got)
	}
}

// HTTP that is no MCP, or too much of it, ends in an answer and harms nobody.
func TestRudeClients(t *testing.T) {
	srv := named(t, "a", "x")
	f := newFleet(t, 1, "private-network")
	f.apply(fmt.Sprintf("mcp:\n  port: %d\n  targets:\n  - {name: a, mcp: {host: %q}}\n", f.port, srv.URL))
	url := f.url(0)
	s := handshake(t, url, nil)
	do := func(method, body string, change func(*http.Request)) answer {
		req := s.request(t, method, url, body)
		change(req)
		resp, err := http.DefaultTransport.RoundTrip(req)
		if err != nil {
			return answer{}
		}
		defer resp.Body.Close()
		data, _ := io.ReadAll(resp.Body)
		return answer{resp.StatusCode, resp.Header, string(data)}
	}
	nothing := func(*http.Request) {}
	set := func(k, v string) func(*http.Request) { return func(r *http.Request) { r.Header.Set(k, v) } }
	list := `{"jsonrpc":"2.0","id":3,"method":"tools/list"}`
	for _, tt := range []struct {
		name, method, body string
		change             func(*http.Request)
		want               []int
	}{
		{"PUT", "PUT", list, nothing, []int{405}},
		{"HEAD", "HEAD", "", nothing, []int{405}},
		{"text", "POST", list, set("Content-Type", "text/plain"), []int{415}},
		{"a form", "POST", "a=b", set("Content-Type", "application/x-www-form-urlencoded"), []int{415}},
		{"no stream accepted", "POST", list, set("Accept", "application/json"), []int{406}},
		{"no stream accepted by GET", "GET", "", set("Accept", "application/json"), []int{400, 406}},
		{"an empty body", "POST", "", nothing, []int{400}},
		{"a large body", "POST", `{"jsonrpc":"2.0","id":1,"method":"ping","params":{"x":"` + strings.Repeat("x", 17<<20) + `"}}`, nothing, []int{413, 0}},
		{"large headers", "POST", list, set("X-Large", strings.Repeat("x", 2<<20)), []int{431, 0}},
		{"a revision nobody knows", "POST", list, set("MCP-Protocol-Version", "2099-01-01"), []int{400}},
		{"another revision than the session's", "POST", list, set("MCP-Protocol-Version", "2025-06-18"), []int{400, 200}},
		{"no session", "POST", list, func(r *http.Request) { r.Header.Del("Mcp-Session-Id") }, []int{400}},
		{"two sessions", "POST", list, func(r *http.Request) { r.Header.Add("Mcp-Session-Id", "x") }, []int{400, 404}},
		{"a session cut short", "POST", list, func(r *http.Request) { r.Header.Set("Mcp-Session-Id", s.id[:len(s.id)-1]) }, []int{404}},
		{"a session with a bit turned", "POST", list, func(r *http.Request) { r.Header.Set("Mcp-Session-Id", s.id[:len(s.id)-2]+flip(s.id[len(s.id)-2:])) }, []int{404}},
		{"a session of 64 KiB", "POST", list, set("Mcp-Session-Id", strings.Repeat("A", 64<<10)), []int{404, 431}},
	} {
		if got := do(tt.method, tt.body, tt.change); !slices.Contains(tt.want, got.status) {
			t.Errorf("%s: %d %s, want %v", tt.name, got.status, got.body, tt.want)
		}
	}
	if names := s.tools(t, url); !slices.Equal(names, []string{"x"}) {
		t.Errorf("afterwards: %v", names)
	}
}

func flip(s string) string {
	if s[0] == 'A' {
		return "B" + s[1:]
	}
	return "A" + s[1:]
}
