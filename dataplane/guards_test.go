package dataplane

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/modelcontextprotocol/go-sdk/mcp"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/sluicegate/sluice/internal/mcptest"
	policyv1 "github.com/sluicegate/sluice/proto/gen/sluice/policy/v1"
	xdsv1 "github.com/sluicegate/sluice/proto/gen/sluice/xds/v1"
)

// aiPolicy is an `ai` policy in the JSON of its proto.
func aiPolicy(t testing.TB, ai string) *policyv1.Policies {
	t.Helper()
	p := &policyv1.Policies{}
	if err := protojson.Unmarshal([]byte(`{"ai":`+ai+`}`), p); err != nil {
		t.Fatal(err)
	}
	return p
}

// rejects and masks are guards.
func rejects(patterns ...string) string { return regexGuard("reject", patterns) }
func masks(patterns ...string) string   { return regexGuard("mask", patterns) }

func regexGuard(action string, patterns []string) string {
	var rules []string
	for _, p := range patterns {
		key := "pattern"
		if name, ok := strings.CutPrefix(p, "builtin:"); ok {
			key, p = "builtin", name
		}
		rules = append(rules, mustJSON(map[string]string{key: p}))
	}
	return `{"regex":{"action":"` + action + `","rules":[` + strings.Join(rules, ",") + `]}}`
}

func guards(request, response string) string {
	return `{"promptGuard":{"request":[` + request + `],"response":[` + response + `]}}`
}

// everyTarget runs f for every kind of target in every era that it has, alone and beside another.
func everyTarget(t *testing.T, f func(t *testing.T, version, prefix, uri string, w *world)) {
	child := mcptest.Stdio("serve")
	stdio := &xdsv1.Target{Transport: &xdsv1.Target_Stdio{Stdio: &xdsv1.StdioTransport{Cmd: child.Path, Args: child.Args, Env: child.Env}}}
	for _, tt := range []struct {
		name, version string
		make          func(t *testing.T) *xdsv1.Target
	}{
		{"mcp", "2025-11-25", func(t *testing.T) *xdsv1.Target { return httpTarget(mcptest.NewServer(t, mcptest.Options{})) }},
		{"mcp, JSON", "2025-06-18", func(t *testing.T) *xdsv1.Target { return httpTarget(mcptest.NewServer(t, mcptest.Options{JSON: true})) }},
		{"mcp", "2026-07-28", func(t *testing.T) *xdsv1.Target {
			return httpTarget(mcptest.NewServer(t, mcptest.Options{Stateless: true}))
		}},
		{"mcp, JSON", "2026-07-28", func(t *testing.T) *xdsv1.Target {
			return httpTarget(mcptest.NewServer(t, mcptest.Options{Stateless: true, JSON: true}))
		}},
		{"sse", "2025-06-18", func(t *testing.T) *xdsv1.Target {
			return &xdsv1.Target{Transport: &xdsv1.Target_Sse{Sse: endpointOf(mcptest.NewServer(t, mcptest.Options{SSE: true}).URL)}}
		}},
		{"stdio", "2025-11-25", func(*testing.T) *xdsv1.Target { return proto.CloneOf(stdio) }},
		{"stdio", "2026-07-28", func(*testing.T) *xdsv1.Target { return proto.CloneOf(stdio) }},
	} {
		for _, n := range []int{1, 2} {
			t.Run(fmt.Sprintf("%s %s, %d targets", tt.name, tt.version, n), func(t *testing.T) {
				t.Parallel()
				w := behind()
				own := tt.make(t)
				own.Name, own.Backend = "it", "default/backend/tools"
				w.targets = append(w.targets, own)
				prefix, uri := "", ""
				if n == 2 {
					prefix, uri = "it_", "it+"
					other := mcptest.NewServer(t, mcptest.Options{Stateless: tt.version == "2026-07-28"})
					w.add("web", &xdsv1.Target_Mcp{Mcp: endpointOf(other.URL)})
				}
				f(t, tt.version, prefix, uri, w)
			})
		}
	}
}

func httpTarget(s *mcptest.Server) *xdsv1.Target {
	return &xdsv1.Target{Transport: &xdsv1.Target_Mcp{Mcp: endpointOf(s.URL)}}
}

// On the way in: what is rejected no target sees, what is masked it gets masked, and all else as it was sent.
func TestGuardsOnTheWayIn(t *testing.T) {
	everyTarget(t, func(t *testing.T, version, prefix, _ string, w *world) {
		w.policies["it"] = aiPolicy(t, guards(rejects(".*password.*")+","+masks("hunter[0-9]", "Paris", "Ada"), ""))
		p := w.start(t)
		cli := mcptest.Connect(t, p.URL, mcptest.ClientOptions{Version: version})
		if got := cli.Call(t, prefix+"count", nil); got != "1" {
			t.Fatalf("count = %q", got)
		}
		for _, args := range []map[string]any{{"x": "my password is"}, {"password": 1}, {"deep": []any{map[string]any{"y": "passwords"}}}} {
			_, err := cli.TryCall(t.Context(), prefix+"count", args)
			if err == nil || !strings.Contains(err.Error(), "refused by policies.ai.promptGuard.request[0]") || strings.Contains(err.Error(), "password") {
				t.Errorf("%v: %v", args, err)
			}
		}
		if got := cli.Call(t, prefix+"count", nil); got != "2" {
			t.Errorf("count = %q: the target saw what was rejected", got)
		}
		if got := cli.Call(t, prefix+"echo", map[string]any{"text": "hunter2 and \"hunter3\"\n"}); got != "<MASKED> and \"<MASKED>\"\n" {
			t.Errorf("echo = %q", got)
		}
		session := ""
		if version != "2026-07-28" {
			session = p.initialize(t, version)
		}
		refused := p.call(t, version, session, "tools/call", prefix+"echo", `"name":"`+prefix+`echo","arguments":{"text":"\u0070assword"}`)
		if refused.status != 200 || !strings.Contains(refused.body, `"code":-32602`) || !strings.Contains(refused.body, `"id":7`) {
			t.Errorf("escaped: %d %s", refused.status, refused.body)
		}
		if _, err := cli.GetPrompt(t.Context(), &mcp.GetPromptParams{Name: prefix + "greet", Arguments: map[string]string{"name": "password"}}); err == nil {
			t.Error("a prompt's argument is not guarded")
		}
		greeting, err := cli.GetPrompt(t.Context(), &mcp.GetPromptParams{Name: prefix + "greet", Arguments: map[string]string{"name": "hunter2"}})
		if err != nil || mustJSON(greeting.Messages[0].Content) != mustJSON(&mcp.TextContent{Text: "Greet <MASKED>"}) {
			t.Errorf("prompt: %v, %v", mustJSON(greeting), err)
		}
		_, err = cli.Complete(t.Context(), &mcp.CompleteParams{Ref: &mcp.CompleteReference{Type: "ref/prompt", Name: prefix + "greet"}, Argument: mcp.CompleteParamsArgument{Name: "name", Value: "password"}})
		if err == nil || !strings.Contains(err.Error(), "promptGuard") {
			t.Errorf("completion: %v", err)
		}
		if w.targets[0].GetMcp() == nil || version != "2025-06-18" { // with JSON answers nothing can be asked in that era
			if got := cli.Call(t, prefix+"elicit", nil); got != "Hello, <MASKED>!" {
				t.Errorf("elicit = %q", got)
			}
			if got := cli.Call(t, prefix+"sample", nil); got != "model: <MASKED>" {
				t.Errorf("sample = %q", got)
			}
		}
		if prefix != "" {
			return
		}
		waitFor(t, "the access log tells of it", func() bool {
			return strings.Contains(p.lines.String(), `"verdict":"deny","rule":"policies.ai.promptGuard.request[0].regex.rules[0]","outcome":"denied"`)
		})
		if log := p.lines.String(); strings.Contains(log, "password") {
			t.Errorf("the log tells what was found: %s", log)
		}
	})
}

// An answer of the client's that is rejected reaches the target as an error, so that it does not wait.
func TestGuardsRejectAnswers(t *testing.T) {
	everyTarget(t, func(t *testing.T, version, prefix, _ string, w *world) {
		if w.targets[0].GetMcp() != nil && version == "2025-06-18" {
			t.Skip("with JSON answers nothing can be asked in that era")
		}
		w.policies["it"] = aiPolicy(t, guards(rejects("Ada", "Paris"), ""))
		cli := mcptest.Connect(t, w.start(t).URL, mcptest.ClientOptions{Version: version})
		for _, tool := range []string{"elicit", "sample"} {
			out, err := cli.TryCall(t.Context(), prefix+tool, nil)
			if err == nil || !strings.Contains(err.Error(), "promptGuard.request[0]") {
				t.Errorf("%s: %q, %v", tool, out, err)
			}
		}
		if got := cli.Call(t, prefix+"echo", map[string]any{"text": "hi"}); got != "hi" {
			t.Errorf("afterwards: %q", got)
		}
	})
}

// On the way out: results, structured content, errors, prompts, resources, lists and questions.
func TestGuardsOnTheWayOut(t *testing.T) {
	everyTarget(t, func(t *testing.T, version, prefix, uri string, w *world) {
		w.policies["it"] = aiPolicy(t, guards("", rejects("forbidden", "Capital of France")+","+masks("builtin:email", "builtin:secrets", "Says what", "content of", "Greet", "your name", "alice")))
		p := w.start(t)
		cli := mcptest.Connect(t, p.URL, mcptest.ClientOptions{Version: version})
		res, err := cli.CallTool(t.Context(), &mcp.CallToolParams{Name: prefix + "say", Arguments: map[string]any{"text": "to bob@example.com,\nAKIAIOSFODNN7EXAMPLE"}})
		if err != nil {
			t.Fatal(err)
		}
		want := "to <EMAIL_ADDRESS>,\n<SECRET>"
		if diff := cmp.Diff(mustJSON(map[string]string{"said": want}), mustJSON(res.StructuredContent)); diff != "" {
			t.Errorf("structuredContent (-want +got):\n%s", diff)
		}
		if got := res.Content[0].(*mcp.TextContent).Text; got != want {
			t.Errorf("content: %q", got)
		}
		_, err = cli.TryCall(t.Context(), prefix+"say", map[string]any{"text": "what is forbidden"})
		if err == nil || !strings.Contains(err.Error(), "refused by policies.ai.promptGuard.response[0]") || strings.Contains(err.Error(), "forbidden") {
			t.Errorf("rejected: %v", err)
		}
		if _, err = cli.TryCall(t.Context(), prefix+"say", map[string]any{"error": "no bob@example.com"}); err == nil || !strings.Contains(err.Error(), "no <EMAIL_ADDRESS>") || strings.Contains(err.Error(), "bob@") {
			t.Errorf("error: %v", err)
		}
		greeting, err := cli.GetPrompt(t.Context(), &mcp.GetPromptParams{Name: prefix + "greet", Arguments: map[string]string{"name": "x"}})
		if err != nil || !strings.Contains(greeting.Messages[0].Content.(*mcp.TextContent).Text, "<MASKED> x") {
			t.Errorf("prompt: %s, %v", mustJSON(greeting), err)
		}
		read, err := cli.ReadResource(t.Context(), &mcp.ReadResourceParams{URI: uri + "test://static/one"})
		if err != nil || read.Contents[0].Text != "<MASKED> test://static/one" || read.Contents[0].URI != uri+"test://static/one" {
			t.Errorf("resource: %s, %v", mustJSON(read), err)
		}
		linked, err := cli.CallTool(t.Context(), &mcp.CallToolParams{Name: prefix + "link"})
		if err != nil || !strings.Contains(mustJSON(linked), `MASKED\u003e test://static/two`) || !strings.Contains(mustJSON(linked), `"uri":"`+uri+`test://static/two"`) {
			t.Errorf("embedded: %s, %v", mustJSON(linked), err)
		}
		tools := map[string]string{}
		for tool, err := range cli.Tools(t.Context(), nil) {
			if err != nil {
				t.Fatal(err)
			}
			tools[tool.Name] = tool.Description
		}
		if tools[prefix+"say"] != "<MASKED> it is told" || tools[prefix+"echo"] == "" {
			t.Errorf("tools: %v", tools)
		}
		done, err := cli.Complete(t.Context(), &mcp.CompleteParams{Ref: &mcp.CompleteReference{Type: "ref/prompt", Name: prefix + "greet"}, Argument: mcp.CompleteParamsArgument{Name: "name", Value: "a"}})
		if err != nil || !slices.Equal(done.Completion.Values, []string{"<MASKED>"}) {
			t.Errorf("completion: %s, %v", mustJSON(done), err)
		}
		if w.targets[0].GetMcp() == nil || version != "2025-06-18" {
			if got := cli.Call(t, prefix+"elicit", nil); got != "Hello, Ada!" { // its question was masked
				t.Errorf("elicit = %q", got)
			}
			if out, err := cli.TryCall(t.Context(), prefix+"sample", nil); err == nil || !strings.Contains(err.Error(), "promptGuard.response[0]") {
				t.Errorf("a question that is rejected: %q, %v", out, err)
			}
		}
		if prefix != "" { // the target beside it has no guards
			if got := cli.Call(t, "web_say", map[string]any{"text": "forbidden bob@example.com"}); got != "forbidden bob@example.com" {
				t.Errorf("the other target: %q", got)
			}
		}
		if prefix != "" {
			return
		}
		waitFor(t, "the access log tells of it", func() bool {
			return strings.Contains(p.lines.String(), `"verdict":"deny","rule":"policies.ai.promptGuard.response[0].regex.rules[0]"`)
		})
	})
}

// What a call says on the way is guarded message by message, and across messages; the order stays.
func TestGuardsOnStreams(t *testing.T) {
	everyTarget(t, func(t *testing.T, version, prefix, _ string, w *world) {
		w.policies["it"] = aiPolicy(t, guards("", rejects("forbidden")+","+masks("builtin:secrets", "builtin:email")))
		p := w.start(t)
		session, meta := "", ""
		headers := []string{}
		if version != "2026-07-28" {
			session = p.initialize(t, version)
		} else {
			meta = `,"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientInfo":{"name":"raw","version":"1"},"io.modelcontextprotocol/clientCapabilities":{}`
			headers = []string{"MCP-Protocol-Version", version, "Mcp-Method", "tools/call", "Mcp-Name", prefix + "say"}
		}
		if w.targets[0].GetMcp() != nil && p.call(t, version, session, "tools/call", prefix+"say", `"name":"`+prefix+`say","arguments":{}`).header.Get("Content-Type") == "application/json" {
			t.Skip("answers in JSON say nothing on the way")
		}
		say := func(progress ...string) (messages []string, last string) {
			s := p.open(t, http.MethodPost, session, `{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"`+prefix+`say","arguments":{"progress":`+mustJSON(progress)+`,"text":"done"},"_meta":{"progressToken":"AKIAIOSFODNN7EXAMPLE"`+meta+`}}}`, headers...)
			for _, msg := range s.ended(t) {
				if msg["method"] == "notifications/progress" {
					params := msg["params"].(map[string]any)
					if params["progressToken"] != "AKIAIOSFODNN7EXAMPLE" {
						t.Errorf("the token is %v", params["progressToken"])
					}
					messages = append(messages, fmt.Sprint(params["progress"], " ", params["message"]))
				} else if msg["id"] == float64(7) {
					last = mustJSON(msg)
				}
			}
			return messages, last
		}
		for name, tt := range map[string]struct{ say, want []string }{
			"each":         {[]string{"to bob@example.com", "this is forbidden", "ok"}, []string{"1 to <EMAIL_ADDRESS>", "3 ok"}},
			"two parts":    {[]string{"key AKIAIOSF", "ODNN7EXAMPLE ok", "fine"}, []string{"1 key <SECRET>", "2 <SECRET> ok", "3 fine"}},
			"three parts":  {[]string{"AKIA", "IOSFODNN7", "EXAMPLE"}, []string{"1 <SECRET>", "2 <SECRET>", "3 <SECRET>"}},
			"rejected":     {[]string{"a", "it is for", "bidden", "b"}, []string{"1 a", "4 b"}},
			"nothing":      {[]string{"1/3", "2/3", "3/3"}, []string{"1 1/3", "2 2/3", "3 3/3"}},
			"both at once": {[]string{"bob@exam", "ple.com and AKIAIOSF", "ODNN7EXAMPLE"}, []string{"1 <EMAIL_ADDRESS>", "2 <EMAIL_ADDRESS> and <SECRET>", "3 <SECRET>"}},
		} {
			got, last := say(tt.say...)
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("%s (-want +got):\n%s", name, diff)
			}
			if !strings.Contains(last, "done") {
				t.Errorf("%s: the response is %q", name, last)
			}
		}
	})
}

// Log messages come on the GET stream of the session era; they wait for what follows, but not for long.
func TestGuardsOnLogs(t *testing.T) {
	everyTarget(t, func(t *testing.T, version, prefix, _ string, w *world) {
		if version == "2026-07-28" {
			t.Skip("logs are part of calls there")
		}
		w.policies["it"] = aiPolicy(t, guards("", masks("builtin:secrets")))
		p := w.start(t)
		cli := mcptest.Connect(t, p.URL, mcptest.ClientOptions{Version: version})
		if err := cli.SetLoggingLevel(t.Context(), &mcp.SetLoggingLevelParams{Level: "info"}); err != nil {
			t.Fatal(err)
		}
		cli.Call(t, prefix+"say", map[string]any{"log": []string{"key AKIAIOSF", "ODNN7EXAMPLE ok", "fine"}})
		var got []string
		for _, n := range cli.Await(t, "notifications/message", 3) {
			got = append(got, n.Detail)
		}
		if diff := cmp.Diff([]string{"key <SECRET>", "<SECRET> ok", "fine"}, got); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	})
}

// Instructions of a server are text for models, too.
func TestGuardsOnInstructions(t *testing.T) {
	for _, version := range []string{"2025-11-25", "2026-07-28"} {
		for _, n := range []int{1, 2} {
			w, _, _ := two(t, version, mcptest.Options{Instructions: "Mail bob@example.com."})
			w.targets = w.targets[:n]
			w.policies["a"] = aiPolicy(t, guards("", masks("builtin:email")))
			cli := mcptest.Connect(t, w.start(t).URL, mcptest.ClientOptions{Version: version})
			got := cli.InitializeResult().Instructions
			if !strings.Contains(got, "Mail <EMAIL_ADDRESS>.") || strings.Count(got, "bob@example.com") != n-1 {
				t.Errorf("%s, %d targets: %q", version, n, got)
			}
		}
	}
}

// Lists are kept as guards left them; another policy is another list.
func TestGuardsAndListCache(t *testing.T) {
	for _, tt := range []string{"2025-11-25", "2026-07-28"} {
		srv := mcptest.NewServer(t, mcptest.Options{Stateless: tt == "2026-07-28"})
		w := behind(srv.URL)
		p := w.start(t)
		session := ""
		if tt != "2026-07-28" {
			session = p.initialize(t, tt)
		}
		list := func() string { return p.call(t, tt, session, "tools/list", "", "").body }
		if got := list(); !strings.Contains(got, "Gives the text back") {
			t.Fatalf("list: %s", got)
		}
		w.policies["only"] = aiPolicy(t, guards("", masks("Gives")))
		p.apply(t, w)
		for range 2 {
			if got := list(); !strings.Contains(got, `"<MASKED> the text back"`) || strings.Contains(got, "Gives") {
				t.Errorf("%s: %s", tt, got)
			}
		}
		w.policies["only"] = aiPolicy(t, guards("", rejects("Gives")))
		p.apply(t, w)
		if got := list(); !strings.Contains(got, `"code":-32603`) || strings.Contains(got, "echo") {
			t.Errorf("%s: rejected: %s", tt, got)
		}
	}
}

// Nothing but the strings that held something changes, in either direction, however the target answers.
func TestGuardsKeepBytes(t *testing.T) {
	const sent = `{"jsonrpc":"2.0", "id":9007199254740993,"method":"tools/call","params":{"name":"x","arguments":{"n":1e400,"big":9223372036854775808, "a":"hunter2","z":-0.0,"e":"\u00e9"}}}`
	const result = `{"jsonrpc":"2.0","id":9007199254740993,"result":{"content":[ {"type":"text","text":"hunter2 \u0041"}],"structuredContent":{"n":1e400,"big":9223372036854775808,"f":1.0,"s":"hunter3"},"unknown":{"b":null,"a":[]}}, "x":1}`
	masked := strings.NewReplacer("hunter2 \\u0041", "<MASKED> A", "hunter2", "<MASKED>", "hunter3", "<MASKED>")
	for _, stream := range []bool{false, true} {
		var got string
		srv := mcptest.NewServer(t, mcptest.Options{Wrap: func(h http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				body, _ := io.ReadAll(r.Body)
				if !strings.Contains(string(body), "tools/call") {
					r.Body = io.NopCloser(bytes.NewReader(body))
					h.ServeHTTP(w, r)
					return
				}
				got = string(body)
				if stream {
					w.Header().Set("Content-Type", "text/event-stream")
					for _, part := range []string{"data: " + result[:60], result[60:90], result[90:] + "\r\n\r\n"} { // an event in pieces
						_, _ = io.WriteString(w, part)
						_ = http.NewResponseController(w).Flush()
					}
					return
				}
				w.Header().Set("Content-Type", "application/json")
				_, _ = io.WriteString(w, result)
			})
		}})
		w := behind(srv.URL)
		w.policies["only"] = aiPolicy(t, guards(masks("hunter[0-9]"), masks("hunter[0-9]")))
		p := w.start(t)
		a := p.post(t, p.initialize(t, "2025-11-25"), sent)
		body := a.body
		if stream {
			body = strings.TrimSuffix(strings.TrimPrefix(body, "data: "), "\n\n")
		}
		if want := masked.Replace(result); body != want {
			t.Errorf("the client got\n%s\nwant\n%s", body, want)
		}
		if want := masked.Replace(sent); got != want {
			t.Errorf("the target got\n%s\nwant\n%s", got, want)
		}
	}
}

// fillTools has a tool with a strict schema, and one whose schema says nothing. Both give their arguments back.
func fillTools(s *mcptest.Server) {
	for name, schema := range map[string]string{
		"strict": `{"type":"object","properties":{"q":{"type":"string"},"region":{"type":"string","x-mcp-header":"Region"},"model":{"type":"string"}},"additionalProperties":false}`,
		"loose":  `{"type":"object"}`,
	} {
		s.MCP.AddTool(&mcp.Tool{Name: name, InputSchema: json.RawMessage(schema)}, func(_ context.Context, r *mcp.CallToolRequest) (*mcp.CallToolResult, error) {
			return &mcp.CallToolResult{Content: []mcp.Content{&mcp.TextContent{Text: string(r.Params.Arguments)}}}, nil
		})
	}
}

// Defaults, overrides and aliases: what a tool declares, and the headers that repeat it.
func TestFilledArguments(t *testing.T) {
	for _, version := range []string{"2025-11-25", "2026-07-28"} {
		for _, n := range []int{1, 2} {
			w, a, _ := two(t, version, mcptest.Options{})
			fillTools(a)
			w.targets = w.targets[:n]
			w.policies["a"] = aiPolicy(t, `{"defaults":{"region":"eu","limit":10},"overrides":{"tenant":"acme","temperature":0.5,"maxTokens":7},"modelAliases":{"fast":"model-1"},`+
				`"promptGuard":{"request":[`+rejects("model-9")+`]}}`)
			p := w.start(t)
			cli := mcptest.Connect(t, p.URL, mcptest.ClientOptions{Version: version})
			prefix := map[int]string{1: "", 2: "a_"}[n]
			for _, tt := range []struct {
				tool string
				args map[string]any
				want string
			}{
				{"strict", map[string]any{"q": "x"}, `{"region":"eu","q":"x"}`},
				{"strict", map[string]any{"region": "us", "model": "fast"}, `{"model":"model-1","region":"us"}`},
				{"loose", map[string]any{"tenant": "evil"}, `{"maxTokens":7,"temperature":0.5,"limit":10,"region":"eu","tenant":"acme"}`},
			} {
				if got := cli.Call(t, prefix+tt.tool, tt.args); got != tt.want {
					t.Errorf("%s, %d targets: %s %v: %s, want %s", version, n, tt.tool, tt.args, got, tt.want)
				}
			}
			session := ""
			if version != "2026-07-28" {
				session = p.initialize(t, version)
			}
			if got := p.call(t, version, session, "tools/call", prefix+"loose", `"name":"`+prefix+`loose","arguments":{"Tenant":"evil"}`); got.status != 400 || !strings.Contains(got.body, "-32600") {
				t.Errorf("an argument that dodges an override: %d %s", got.status, got.body)
			}
			if got := p.call(t, version, session, "tools/call", prefix+"loose", `"name":"`+prefix+`loose"`); !strings.Contains(got.body, `\"tenant\":\"acme\"`) {
				t.Errorf("without arguments: %d %s", got.status, got.body)
			}
			if _, err := cli.TryCall(t.Context(), prefix+"strict", map[string]any{"model": "model-9"}); err == nil {
				t.Error("what is filled in is not guarded")
			}
		}
	}
}

// Headers that repeat arguments say what the target gets, and nothing that guards took out.
func TestGuardsAndParamHeaders(t *testing.T) {
	srv := mcptest.NewServer(t, mcptest.Options{Stateless: true})
	fillTools(srv)
	w := behind(srv.URL)
	w.policies["only"] = aiPolicy(t, `{"overrides":{"region":"eu"},"promptGuard":{"request":[`+masks("hunter2")+`]}}`)
	p := w.start(t)
	got := p.post(t, "", `{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"strict","arguments":{"region":"us","q":"hunter2"},"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{}}}}`,
		"MCP-Protocol-Version", "2026-07-28", "Mcp-Method", "tools/call", "Mcp-Name", "strict", "Mcp-Param-Region", "us", "Mcp-Param-Other", "hunter2")
	if !strings.Contains(got.body, `\"region\":\"eu\"`) || !strings.Contains(got.body, "MASKED") {
		t.Errorf("%d %s", got.status, got.body)
	}
	for _, r := range srv.Requests() {
		if r.Header.Get("Mcp-Method") != "tools/call" {
			continue
		}
		if r.Header.Get("Mcp-Param-Region") != "eu" || r.Header.Get("Mcp-Param-Other") != "" {
			t.Errorf("the target's headers: %v", r.Header)
		}
	}
}

// What a target asks of the client's model is filled in, too, in both eras.
func TestFilledSampling(t *testing.T) {
	everyTarget(t, func(t *testing.T, version, prefix, _ string, w *world) {
		if w.targets[0].GetMcp() != nil && version == "2025-06-18" {
			t.Skip("with JSON answers nothing can be asked in that era")
		}
		w.policies["it"] = aiPolicy(t, `{"defaults":{"systemPrompt":"Be brief.","unrelated":1},"overrides":{"maxTokens":3}}`)
		p := w.start(t)
		var ask string
		if version == "2026-07-28" {
			ask = p.call(t, version, "", "tools/call", prefix+"sample", `"name":"`+prefix+`sample"`).body
		} else {
			id := p.initializeWith(t, version, `{"sampling":{}}`)
			s := p.open(t, http.MethodPost, id, `{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"`+prefix+`sample"}}`)
			asked := s.next(t, "sampling/createMessage")
			ask = mustJSON(asked)
			p.post(t, id, `{"jsonrpc":"2.0","id":`+mustJSON(asked["id"])+`,"result":{"role":"assistant","model":"m","content":{"type":"text","text":"Paris"}}}`)
			s.ended(t)
		}
		for _, want := range []string{`"systemPrompt":"Be brief."`, `"maxTokens":3`, "Capital of France?"} {
			if !strings.Contains(ask, want) || strings.Contains(ask, "unrelated") {
				t.Errorf("lacks %s, or has more: %s", want, ask)
			}
		}
	})
}

// A judge is asked about both directions, within the tenant's grants, and sees who calls what.
func TestGuardsByWebhook(t *testing.T) {
	var mu sync.Mutex
	var asked []map[string]any
	judge := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var q struct {
			Direction, Method, Name string
			Content                 []struct{ Path, Text string }
		}
		body, _ := io.ReadAll(r.Body)
		var all map[string]any
		if json.Unmarshal(body, &q) != nil || json.Unmarshal(body, &all) != nil {
			w.WriteHeader(400)
			return
		}
		mu.Lock()
		asked = append(asked, all)
		mu.Unlock()
		for _, c := range q.Content {
			switch {
			case strings.Contains(c.Text, "bad"):
				_, _ = io.WriteString(w, `{"action":"reject","reason":"it is bad"}`)
				return
			case strings.Contains(c.Text, "hide "+q.Direction):
				_, _ = io.WriteString(w, `{"action":"mask","content":[{"path":`+mustJSON(c.Path)+`,"text":"(hidden)"}]}`)
				return
			}
		}
		_, _ = io.WriteString(w, `{"action":"pass"}`)
	}))
	t.Cleanup(judge.Close)
	hook := `{"webhook":{"url":"` + judge.URL + `"}}`
	everyTarget(t, func(t *testing.T, version, prefix, _ string, w *world) {
		w.policies["it"] = aiPolicy(t, guards(hook, hook))
		p := w.start(t)
		cli := mcptest.Connect(t, p.URL, mcptest.ClientOptions{Version: version})
		for text, want := range map[string]string{"fine": "fine", "hide request": "(hidden)", "hide response": "(hidden)"} {
			if got := cli.Call(t, prefix+"echo", map[string]any{"text": text}); got != want {
				t.Errorf("%s: %q, want %q", text, got, want)
			}
		}
		if _, err := cli.TryCall(t.Context(), prefix+"echo", map[string]any{"text": "bad"}); err == nil || !strings.Contains(err.Error(), "refused by policies.ai.promptGuard.request[0]") || strings.Contains(err.Error(), "it is") {
			t.Errorf("bad: %v", err)
		}
	})
	t.Cleanup(func() {
		found := false
		for _, q := range asked {
			found = found || q["direction"] == "response" && q["method"] == "tools/call" && q["name"] == "echo" && q["target"] == "it" && q["tenant"] == "default"
		}
		if !found {
			t.Errorf("nobody asked about a response to echo: %v", asked)
		}
	})
}

// A judge that is down refuses, and says so to the operator; other targets go on. One that fails open passes.
func TestGuardsWithoutJudge(t *testing.T) {
	down := httptest.NewServer(nil)
	down.Close()
	w, _, _ := two(t, "2025-11-25", mcptest.Options{})
	hook := func(mode string) string { return guards(`{"webhook":{"url":"`+down.URL+`"`+mode+`}}`, "") }
	w.policies["a"] = aiPolicy(t, hook(""))
	p := w.start(t)
	cli := mcptest.Connect(t, p.URL, mcptest.ClientOptions{Version: "2025-11-25"})
	if _, err := cli.TryCall(t.Context(), "a_echo", map[string]any{"text": "hi"}); err == nil || !strings.Contains(err.Error(), "could not decide") {
		t.Errorf("closed: %v", err)
	}
	if got := cli.Call(t, "a-b_echo", map[string]any{"text": "hi"}); got != "hi" {
		t.Errorf("the other target: %q", got)
	}
	waitFor(t, "the log says why", func() bool { return strings.Contains(p.lines.String(), "connection refused") })
	w.policies["a"] = aiPolicy(t, hook(`,"failureMode":"FAILURE_MODE_FAIL_OPEN"`))
	p.apply(t, w)
	if got := cli.Call(t, "a_echo", map[string]any{"text": "hi"}); got != "hi" {
		t.Errorf("open: %q", got)
	}
}

func BenchmarkGuards(b *testing.B) {
	plain := strings.Repeat("The quarterly report of 2026-11-26 lists 42 items, among them a lamp (No. 7), two chairs and a table; see page 12. ", 90)
	for _, name := range []string{"without", "four builtins"} {
		b.Run(name, func(b *testing.B) {
			srv := mcptest.NewServer(b, mcptest.Options{JSON: true})
			w := behind(srv.URL)
			if name != "without" {
				w.policies["only"] = aiPolicy(b, guards("", masks("builtin:email", "builtin:creditCard", "builtin:phoneNumber", "builtin:ssn")))
			}
			p := w.start(b)
			id := p.initialize(b, "2025-11-25")
			call := `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"echo","arguments":{"text":` + mustJSON(plain) + `}}}`
			b.ReportAllocs()
			for b.Loop() {
				if got := p.post(b, id, call); got.status != 200 || len(got.body) < len(plain) {
					b.Fatal(got.body)
				}
			}
		})
	}
}

// initializeWith is initialize for a client with capabilities.
func (p *testProxy) initializeWith(t testing.TB, version, capabilities string) string {
	t.Helper()
	a := p.post(t, "", `{"jsonrpc":"2.0","id":0,"method":"initialize","params":{"protocolVersion":"`+version+`","capabilities":`+capabilities+`,"clientInfo":{"name":"raw","version":"1"}}}`)
	id := a.header.Get("Mcp-Session-Id")
	if a.status != 200 || id == "" {
		t.Fatalf("initialize: %d %s", a.status, a.body)
	}
	p.post(t, id, `{"jsonrpc":"2.0","method":"notifications/initialized"}`)
	return id
}
