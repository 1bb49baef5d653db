package dataplane

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/sluicegate/sluice/internal/mcptest"
	policyv1 "github.com/sluicegate/sluice/proto/gen/sluice/policy/v1"
	xdsv1 "github.com/sluicegate/sluice/proto/gen/sluice/xds/v1"
)

var sharedByCaller = &xdsv1.SessionScope{Share: xdsv1.SessionScope_SHARE_PRINCIPAL}

// stdioTarget is a child of the test binary, in a mode of mcptest.Stdio.
func (w *world) stdioTarget(name, mode string) *xdsv1.Target {
	cmd := mcptest.Stdio(mode)
	t := w.add(name, nil)
	t.Transport = &xdsv1.Target_Stdio{Stdio: &xdsv1.StdioTransport{Cmd: cmd.Path, Args: cmd.Args, Env: cmd.Env}}
	return t
}

// oldTargets are worlds with one target of the era of sessions, by its transport.
var oldTargets = map[string]func(t *testing.T) *world{
	"http": func(t *testing.T) *world { return behind(mcptest.NewServer(t, mcptest.Options{}).URL) },
	"json": func(t *testing.T) *world { return behind(mcptest.NewServer(t, mcptest.Options{JSON: true}).URL) },
	"sse": func(t *testing.T) *world {
		w := behind(mcptest.NewServer(t, mcptest.Options{SSE: true}).URL)
		w.targets[0].Transport = &xdsv1.Target_Sse{Sse: w.targets[0].GetMcp()}
		return w
	},
	"stdio": func(t *testing.T) *world {
		w := behind()
		w.stdioTarget("only", "legacy")
		return w
	},
}

// A client of 2026-07-28 does at a target of the era of sessions all that it does at one of its own.
func TestBridgeOldTargets(t *testing.T) {
	t.Parallel()
	for transport, make := range oldTargets {
		for scope, of := range map[string]*xdsv1.SessionScope{"own sessions": nil, "shared session": sharedByCaller} {
			t.Run(transport+"/"+scope, func(t *testing.T) {
				w := make(t)
				w.targets[0].SessionScope = of
				p := w.start(t)
				cli := mcptest.Connect(t, p.URL, mcptest.ClientOptions{Version: "2026-07-28"})
				if got := cli.InitializeResult().ProtocolVersion; got != "2026-07-28" {
					t.Fatalf("the client speaks %s", got)
				}
				if info := cli.InitializeResult().ServerInfo; info == nil || !strings.HasPrefix(info.Name, "mcptest") {
					t.Errorf("server info %v", info)
				}
				got := map[string]string{}
				for tool, args := range map[string]map[string]any{
					"echo": {"text": "hi"}, "add": {"a": 1, "b": 2}, "elicit": nil, "sample": nil, "roots": nil,
				} {
					got[tool] = cli.Call(t, tool, args)
				}
				want := map[string]string{"echo": "hi", "add": "3", "elicit": "Hello, Ada!", "sample": "model: Paris", "roots": "file:///work"}
				if diff := cmp.Diff(want, got); diff != "" {
					t.Errorf("calls (-want +got):\n%s", diff)
				}
				if names := cli.ToolNames(t); len(names) < 15 {
					t.Errorf("tools %v", names)
				}
				if _, err := cli.TryCall(t.Context(), "fail", nil); err == nil || !strings.Contains(err.Error(), "isError") {
					t.Errorf("a result with isError: %v", err)
				}
				if _, err := cli.TryCall(t.Context(), "error", nil); err == nil || !strings.Contains(err.Error(), "-32099") && !strings.Contains(err.Error(), "asked") {
					t.Errorf("an error of the target's: %v", err)
				}
				read, err := cli.ReadResource(t.Context(), &mcp.ReadResourceParams{URI: "test://static/one"})
				if err != nil || read.Contents[0].Text != "content of test://static/one" {
					t.Errorf("read: %v %v", read, err)
				}
				greet, err := cli.GetPrompt(t.Context(), &mcp.GetPromptParams{Name: "greet", Arguments: map[string]string{"name": "Eve"}})
				if err != nil || greet.Messages[0].Content.(*mcp.TextContent).Text != "Greet Eve" {
					t.Errorf("prompt: %v %v", greet, err)
				}
				completed, err := cli.Complete(t.Context(), &mcp.CompleteParams{Ref: &mcp.CompleteReference{Type: "ref/prompt", Name: "greet"}, Argument: mcp.CompleteParamsArgument{Name: "name", Value: "a"}})
				if err != nil || len(completed.Completion.Values) != 1 {
					t.Errorf("completion: %v %v", completed, err)
				}
			})
		}
	}
}

// A client that cannot be asked is not.
func TestBridgePassiveClient(t *testing.T) {
	for transport, make := range oldTargets {
		t.Run(transport, func(t *testing.T) {
			cli := mcptest.Connect(t, make(t).start(t).URL, mcptest.ClientOptions{Version: "2026-07-28", Passive: true})
			for _, tool := range []string{"elicit", "sample", "roots"} {
				if out, err := cli.TryCall(t.Context(), tool, nil); err == nil {
					t.Errorf("%s: %q", tool, out)
				}
			}
		})
	}
}

// Progress and logs come with the request that asked for them; lists and resources that change come to who listens.
func TestBridgeNotifications(t *testing.T) {
	for transport, make := range oldTargets {
		if transport == "json" {
			continue // such a server cannot say anything during a call
		}
		t.Run(transport, func(t *testing.T) {
			w := make(t)
			w.targets[0].SessionScope = sharedByCaller
			p := w.start(t)
			cli := mcptest.Connect(t, p.URL, mcptest.ClientOptions{Version: "2026-07-28"})
			params := &mcp.CallToolParams{Name: "progress", Arguments: map[string]any{"n": 3, "ms": 1}}
			params.SetProgressToken("tok")
			if _, err := cli.CallTool(t.Context(), params); err != nil {
				t.Fatal(err)
			}
			if got := cli.Await(t, "notifications/progress", 3); got[2].Detail != "3/3" {
				t.Errorf("progress %v", got)
			}
			got := p.stateless(t, "tools/call", "log", `"name":"log","arguments":{"n":2}`, "level", "info")
			if n := strings.Count(got.body, "notifications/message"); n != 2 || textOf(t, got) != "2" {
				t.Errorf("%d log messages at level info, want 2: %s", n, got.body)
			}
			for _, level := range []string{"", "error"} {
				got := p.stateless(t, "tools/call", "log", `"name":"log","arguments":{"n":2}`, "level", level)
				if strings.Contains(got.body, "notifications/message") || textOf(t, got) != "2" {
					t.Errorf("log messages at level %q: %s", level, got.body)
				}
			}
		})
	}
}

// What changes comes to who listens for it, after the acknowledgement, and tagged.
func bridgeListen(t *testing.T) {
	for transport, make := range oldTargets {
		t.Run(transport, func(t *testing.T) {
			w := make(t)
			w.targets[0].SessionScope = sharedByCaller
			p := w.start(t)
			all := p.listen(t, `"L"`, `{"toolsListChanged":true,"promptsListChanged":true,"resourceSubscriptions":["test://watched","test://static/one"]}`)
			none := p.listen(t, "2", `{"promptsListChanged":true}`)
			ack := all.next(t, "notifications/subscriptions/acknowledged")
			want := `{"_meta":{"io.modelcontextprotocol/subscriptionId":"L"},"notifications":{"promptsListChanged":true,"resourceSubscriptions":["test://watched","test://static/one"],"toolsListChanged":true}}`
			if got := mustJSON(ack["params"]); got != want {
				t.Errorf("acknowledged %s\nwant %s", got, want)
			}
			none.next(t, "notifications/subscriptions/acknowledged")
			p.stateless(t, "tools/call", "grow", `"name":"grow","arguments":{}`)
			changed := all.next(t, "notifications/tools/list_changed")
			if got := mustJSON(changed["params"]); got != `{"_meta":{"io.modelcontextprotocol/subscriptionId":"L"}}` {
				t.Errorf("list_changed %s", got)
			}
			p.stateless(t, "tools/call", "touch", `"name":"touch","arguments":{}`)
			updated := all.next(t, "notifications/resources/updated")
			if got := mustJSON(updated["params"]); got != `{"_meta":{"io.modelcontextprotocol/subscriptionId":"L"},"uri":"test://watched"}` {
				t.Errorf("updated %s", got)
			}
			select {
			case msg := <-none.msgs:
				t.Errorf("a listen for prompts got %v", msg)
			default:
			}
		})
	}
}

// listen opens a subscriptions/listen.
func (p *testProxy) listen(t testing.TB, id, filter string) *eventStream {
	return p.open(t, http.MethodPost, "", `{"jsonrpc":"2.0","id":`+id+`,"method":"subscriptions/listen","params":{"notifications":`+filter+
		`,"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientInfo":{"name":"raw","version":"1"},"io.modelcontextprotocol/clientCapabilities":{}}}}`,
		"MCP-Protocol-Version", "2026-07-28", "Mcp-Method", "subscriptions/listen")
}

// Who shares a session is the target's sessionScope.
func TestBridgeSessionScope(t *testing.T) {
	call := func(t *testing.T, p *testProxy, headers ...string) string {
		t.Helper()
		got := p.stateless(t, "tools/call", "session", `"name":"session","arguments":{}`, headers...)
		if got.status != 200 {
			t.Fatalf("%d %s", got.status, got.body)
		}
		return textOf(t, got)
	}
	chat := func(who []string) []string { return append([]string{"X-Chat", "1"}, who...) }
	for name, tt := range map[string]struct {
		scope *xdsv1.SessionScope
		keys  bool
		// Requests by their headers, and which of them share: a letter for each session.
		requests [][]string
		want     string
	}{
		"anonymous":              {nil, false, [][]string{{}, {}}, "ab"},
		"anonymous, by caller":   {sharedByCaller, false, [][]string{{}, {}}, "aa"},
		"authenticated":          {nil, true, [][]string{alice, bob, alice}, "aba"},
		"authenticated, none":    {&xdsv1.SessionScope{Share: xdsv1.SessionScope_SHARE_NONE}, true, [][]string{alice, alice}, "ab"},
		"by header":              {&xdsv1.SessionScope{Header: "x-chat"}, false, [][]string{{"X-Chat", "1"}, {"X-Chat", "2"}, {"X-Chat", "1"}, {}, {}}, "abacd"},
		"by header and caller":   {&xdsv1.SessionScope{Header: "X-Chat"}, true, [][]string{chat(alice), chat(bob), chat(alice)}, "aba"},
		"by what the client can": {sharedByCaller, false, [][]string{{}, {"caps", `{"roots":{}}`}, {}}, "aba"},
		"by forwarded header":    {sharedByCaller, false, [][]string{{"X-User", "1"}, {"X-User", "2"}, {"X-User", "1"}}, "aba"},
		"by header of a policy":  {sharedByCaller, false, [][]string{{"X-Org", "1"}, {"X-Org", "2"}, {"X-Org", "1"}}, "aba"},
	} {
		t.Run(name, func(t *testing.T) {
			w := behind(mcptest.NewServer(t, mcptest.Options{}).URL)
			w.targets[0].SessionScope = tt.scope
			w.targets[0].ForwardHeaders = []string{"x-user"}
			w.policies["only"] = requestHeader(`"x-org" in request.headers ? request.headers["x-org"] : ""`)
			if tt.keys {
				w.withKeys()
			}
			p := w.start(t)
			seen, got := map[string]byte{}, ""
			for _, headers := range tt.requests {
				id := call(t, p, headers...)
				if seen[id] == 0 {
					seen[id] = byte('a' + len(seen))
				}
				got += string(seen[id])
			}
			if got != tt.want {
				t.Errorf("sessions %s, want %s", got, tt.want)
			}
		})
	}
}

// A session that nobody shares ends with its request.
func TestBridgeSessionEnds(t *testing.T) {
	srv := mcptest.NewServer(t, mcptest.Options{})
	p := behind(srv.URL).start(t)
	if got := p.stateless(t, "tools/call", "echo", `"name":"echo","arguments":{"text":"x"}`); got.status != 200 {
		t.Fatal(got)
	}
	waitFor(t, "DELETE", func() bool { return countMethod(srv.Requests(), http.MethodDelete) == 1 })
}

func authorized(rules ...*policyv1.AuthorizationRule) map[string]*policyv1.Policies {
	return map[string]*policyv1.Policies{"only": authorization(rules...)}
}

// No policy is missed on the way through the bridge.
func TestBridgePolicies(t *testing.T) {
	w := behind(mcptest.NewServer(t, mcptest.Options{}).URL)
	w.policies = authorized(allow(`mcp.tool.name != "count"`))
	cli := mcptest.Connect(t, w.start(t).URL, mcptest.ClientOptions{Version: "2026-07-28"})
	for _, name := range cli.ToolNames(t) {
		if name == "count" {
			t.Error("count is listed")
		}
	}
	if out, err := cli.TryCall(t.Context(), "count", nil); err == nil {
		t.Errorf("count is called: %s", out)
	}
	if got := cli.Call(t, "elicit", nil); got != "Hello, Ada!" {
		t.Errorf("elicit: %s", got)
	}
}

// A backend may mix targets of both eras.
func TestBridgeMixed(t *testing.T) {
	t.Parallel()
	old, now := mcptest.NewServer(t, mcptest.Options{Name: "old"}), mcptest.NewServer(t, mcptest.Options{Name: "now", Stateless: true})
	w := behind("a="+old.URL, "a-b="+now.URL)
	w.stdioTarget("c", "legacy")
	p := w.start(t)
	cli := mcptest.Connect(t, p.URL, mcptest.ClientOptions{Version: "2026-07-28"})
	for _, target := range []string{"a", "a-b", "c"} {
		if got := cli.Call(t, target+"_elicit", nil); got != "Hello, Ada!" {
			t.Errorf("%s: %s", target, got)
		}
		if got := cli.Call(t, target+"_sample", nil); got != "model: Paris" {
			t.Errorf("%s: %s", target, got)
		}
	}
	names := cli.ToolNames(t)
	for _, want := range []string{"a_echo", "a-b_echo", "c_echo"} {
		if count(names, want) != 1 {
			t.Errorf("%s is listed %d times", want, count(names, want))
		}
	}
	read, err := cli.ReadResource(t.Context(), &mcp.ReadResourceParams{URI: "c+test://item/7"})
	if err != nil || read.Contents[0].URI != "c+test://item/7" {
		t.Errorf("read: %v %v", read, err)
	}
}

// stateless is a raw request of 2026-07-28 with id 7. The headers "caps" and "level" are
// the client's capabilities and the log level instead.
func (p *testProxy) stateless(t testing.TB, method, name, params string, headers ...string) answer {
	t.Helper()
	caps, level, rest := "{}", "", []string{}
	for i := 0; i < len(headers); i += 2 {
		switch headers[i] {
		case "caps":
			caps = headers[i+1]
		case "level":
			if headers[i+1] != "" {
				level = `,"io.modelcontextprotocol/logLevel":"` + headers[i+1] + `"`
			}
		default:
			rest = append(rest, headers[i], headers[i+1])
		}
	}
	rest = append(rest, "MCP-Protocol-Version", "2026-07-28", "Mcp-Method", method)
	if name != "" {
		rest = append(rest, "Mcp-Name", name)
	}
	if params != "" {
		params += ","
	}
	return p.post(t, "", `{"jsonrpc":"2.0","id":7,"method":"`+method+`","params":{`+params+`"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28",`+
		`"io.modelcontextprotocol/clientInfo":{"name":"raw","version":"1"},"io.modelcontextprotocol/clientCapabilities":`+caps+level+`}}}`, rest...)
}

// last is the last message of an answer, whatever its form.
func (a answer) last() string {
	if !strings.HasPrefix(a.header.Get("Content-Type"), "text/event-stream") {
		return a.body
	}
	last := ""
	for line := range strings.Lines(a.body) {
		if data, ok := strings.CutPrefix(line, "data: "); ok {
			last = strings.TrimSpace(data)
		}
	}
	return last
}

// result is that of a response.
type result struct {
	ResultType    string
	Content       []struct{ Text string }
	InputRequests map[string]struct {
		Method string
		Params map[string]any
	}
	RequestState string
	Error        struct {
		Code    int
		Message string
	}
}

func (a answer) result(t testing.TB) (r result) {
	t.Helper()
	var msg struct {
		ID     any
		Result *result
		Error  *struct {
			Code    int
			Message string
		}
	}
	if err := json.Unmarshal([]byte(a.last()), &msg); err != nil {
		t.Fatalf("%v: %s", err, a.body)
	}
	if msg.Result != nil {
		r = *msg.Result
	}
	if msg.Error != nil {
		r.Error = *msg.Error
	}
	return r
}

func textOf(t testing.TB, a answer) string {
	t.Helper()
	r := a.result(t)
	if len(r.Content) == 0 {
		t.Fatalf("no content: %s", a.body)
	}
	return r.Content[0].Text
}
