package dataplane

import (
	"bufio"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/sluicegate/sluice/internal/mcptest"
	policyv1 "github.com/sluicegate/sluice/proto/gen/sluice/policy/v1"
	xdsv1 "github.com/sluicegate/sluice/proto/gen/sluice/xds/v1"
)

// Clients of HTTP+SSE work with targets of every kind, also where each of their messages comes to the other proxy.
func TestSSEClients(t *testing.T) {
	t.Parallel()
	child := mcptest.Stdio("serve")
	for name, target := range map[string]*xdsv1.Target{
		"http":    {Transport: &xdsv1.Target_Mcp{Mcp: endpointOf(mcptest.NewServer(t, mcptest.Options{}).URL)}},
		"bridged": {Transport: &xdsv1.Target_Mcp{Mcp: endpointOf(statelessOnly(t))}},
		"sse":     {Transport: &xdsv1.Target_Sse{Sse: endpointOf(mcptest.NewServer(t, mcptest.Options{SSE: true}).URL)}},
		"stdio":   {Transport: &xdsv1.Target_Stdio{Stdio: &xdsv1.StdioTransport{Cmd: child.Path, Args: child.Args, Env: child.Env}}},
	} {
		for _, n := range []int{1, 2} {
			t.Run(fmt.Sprint(name, " on ", n), func(t *testing.T) {
				w := behind()
				own := &xdsv1.Target{Name: "it", Backend: "default/backend/tools", Transport: target.Transport}
				w.targets, w.ssePath = append(w.targets, own), "/sse"
				g := newGroup(t, w, n)
				cli := mcptest.Connect(t, strings.TrimSuffix(g.URL, "/mcp")+"/sse", mcptest.ClientOptions{SSE: true, Version: "2024-11-05"})
				for tool, want := range map[string]string{"elicit": "Hello, Ada!", "sample": "model: Paris", "roots": "file:///work"} {
					if got := cli.Call(t, tool, nil); got != want {
						t.Errorf("%s = %q, want %q", tool, got, want)
					}
				}
				params := &mcp.CallToolParams{Name: "progress", Arguments: map[string]any{"n": 2}}
				params.SetProgressToken("p")
				if _, err := cli.CallTool(t.Context(), params); err != nil {
					t.Error(err)
				}
				cli.Await(t, "notifications/progress", 2)
				cli.Call(t, "grow", nil)
				cli.Await(t, "notifications/tools/list_changed", 1)
				if _, err := cli.TryCall(t.Context(), "no-such-tool", nil); err == nil {
					t.Error("a tool that is not there was called")
				}
			})
		}
	}
}

// A stream is its caller's alone, ends with the connection, and its messages pass the same policies.
func TestSSEClientsAreChecked(t *testing.T) {
	srv := mcptest.NewServer(t, mcptest.Options{})
	w := behind(srv.URL)
	w.ssePath = "/old"
	w.routePolicy = &policyv1.Policies{ApiKey: &policyv1.ApiKeyAuth{Mode: policyv1.JwtAuth_MODE_STRICT, Keys: []*policyv1.ApiKey{
		{Key: &policyv1.Credential{Source: &policyv1.Credential_Secret{Secret: "default/secret/ada"}}},
		{Key: &policyv1.Credential{Source: &policyv1.Credential_Secret{Secret: "default/secret/bob"}}},
	}}}
	w.secrets = map[string]string{"ada": "key-of-ada", "bob": "key-of-bob"}
	w.policies["only"] = &policyv1.Policies{McpAuthorization: &policyv1.McpAuthorization{Rules: []*policyv1.AuthorizationRule{
		{Rule: &policyv1.AuthorizationRule_Deny{Deny: `has(mcp.tool) && mcp.tool.name == "add"`}}}}}
	p := w.start(t)
	base := strings.TrimSuffix(p.URL, "/mcp")
	open := func(path, key string) (*http.Response, *bufio.Reader) {
		req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, base+path, nil)
		req.Header = http.Header{"Accept": {"text/event-stream"}, "Authorization": {"Bearer " + key}}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { resp.Body.Close() })
		return resp, bufio.NewReader(resp.Body)
	}
	next := func(r *bufio.Reader) string {
		for {
			line, err := r.ReadString('\n')
			if err != nil {
				t.Fatal(err)
			}
			if data, ok := strings.CutPrefix(line, "data: "); ok {
				return strings.TrimSpace(data)
			}
		}
	}
	post := func(endpoint, key, body string) int {
		req, _ := http.NewRequestWithContext(t.Context(), http.MethodPost, base+endpoint, strings.NewReader(body))
		req.Header = http.Header{"Content-Type": {"application/json"}, "Authorization": {"Bearer " + key}}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		return resp.StatusCode
	}
	if resp, _ := open("/old", "wrong"); resp.StatusCode != 401 {
		t.Errorf("a wrong key opens a stream: %d", resp.StatusCode)
	}
	if resp, _ := open("/sse", "key-of-ada"); resp.StatusCode == 200 {
		t.Error("a stream on a path that is not configured")
	}
	resp, stream := open("/old", "key-of-ada")
	endpoint := next(stream)
	if !strings.HasPrefix(endpoint, "/old?sessionId=") {
		t.Fatalf("endpoint %q", endpoint)
	}
	hello := `{"jsonrpc":"2.0","id":0,"method":"initialize","params":{"protocolVersion":"2024-11-05","capabilities":{},"clientInfo":{"name":"raw","version":"1"}}}`
	if got := post(endpoint, "key-of-bob", hello); got != 404 {
		t.Errorf("bob speaks in ada's stream: %d", got)
	}
	if got := post(endpoint+"x", "key-of-ada", hello); got != 404 {
		t.Errorf("a token that is none: %d", got)
	}
	if got := post(endpoint, "key-of-ada", hello); got != 202 {
		t.Errorf("initialize: %d", got)
	}
	if got := next(stream); !strings.Contains(got, `"protocolVersion":"2024-11-05"`) {
		t.Errorf("initialize: %s", got)
	}
	post(endpoint, "key-of-ada", `{"jsonrpc":"2.0","method":"notifications/initialized"}`)
	post(endpoint, "key-of-ada", `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"add","arguments":{"a":1,"b":1}}}`)
	if got := next(stream); !strings.Contains(got, "Unknown tool: add") || !strings.Contains(got, `"id":1`) {
		t.Errorf("a tool that is refused: %s", got)
	}
	if got := post(endpoint, "key-of-ada", `{"jsonrpc":"2.0","id":2,`); got != 400 {
		t.Errorf("no JSON: %d", got)
	}
	resp.Body.Close()
	waitFor(t, "the session to end at the target", func() bool {
		for _, r := range srv.Requests() {
			if r.Method == http.MethodDelete {
				return true
			}
		}
		return false
	})
	if got := post(endpoint, "key-of-ada", `{"jsonrpc":"2.0","id":3,"method":"ping"}`); got != 404 {
		t.Errorf("a stream that is closed: %d", got)
	}
}
