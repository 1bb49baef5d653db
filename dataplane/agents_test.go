package dataplane

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/a2aproject/a2a-go/a2a"
	"github.com/google/go-cmp/cmp"

	"github.com/sluicegate/sluice/internal/mcptest"
	"github.com/sluicegate/sluice/internal/mcptest/agenttest"
	policyv1 "github.com/sluicegate/sluice/proto/gen/sluice/policy/v1"
	xdsv1 "github.com/sluicegate/sluice/proto/gen/sluice/xds/v1"
)

// agent adds an A2A target to a world.
func (w *world) agent(name, url string) *xdsv1.Target {
	t := &xdsv1.Target{Backend: "default/backend/tools", Index: uint32(len(w.targets)), Name: name,
		Transport: &xdsv1.Target_A2A{A2A: endpointOf(url)}}
	w.targets = append(w.targets, t)
	return t
}

// events collects a stream.
func events(t *testing.T, seq func(func(a2a.Event, error) bool)) (kinds []string, texts string, task a2a.TaskID) {
	t.Helper()
	for ev, err := range seq {
		if err != nil {
			t.Fatalf("the stream: %v, after %v", err, kinds)
		}
		task = ev.TaskInfo().TaskID
		switch ev := ev.(type) {
		case *a2a.TaskStatusUpdateEvent:
			kinds = append(kinds, string(ev.Status.State))
		case *a2a.TaskArtifactUpdateEvent:
			kinds = append(kinds, "artifact")
			texts += agenttest.Text(ev.Artifact.Parts)
		default:
			kinds = append(kinds, fmt.Sprintf("%T", ev))
		}
	}
	return kinds, texts, task
}

func requires(expr string) *policyv1.AuthorizationRule {
	return &policyv1.AuthorizationRule{Rule: &policyv1.AuthorizationRule_Require{Require: expr}}
}

// All that 0.3's own SDK does goes through, whether the target is an agent by its transport or by the policy, and wherever
// the route has it.
func TestAgent(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, path string
		world      func(url string) *world
	}{
		{"by transport", "/", func(url string) *world {
			w := behind()
			w.agent("only", url)
			return w
		}},
		{"by policy, at a path of its own", "/rpc", func(url string) *world {
			w := behind(url)
			w.policies["only"] = &policyv1.Policies{A2A: &policyv1.A2A{}}
			return w
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			agent := agenttest.Serve(t, tt.path, nil)
			p := tt.world(agent.URL).start(t)
			card := agenttest.Card(t, p.URL)
			if card.URL != p.URL || card.Name != "test agent" || len(card.Skills) != 2 || len(card.Signatures) != 0 ||
				!cmp.Equal(card.AdditionalInterfaces, []a2a.AgentInterface{{URL: p.URL, Transport: "JSONRPC"}}) {
				t.Fatalf("the card is %+v", card)
			}
			c := agenttest.Connect(t, p.URL)
			got, err := c.SendMessage(t.Context(), agenttest.Say("echo hi", "echo"))
			if m, ok := got.(*a2a.Message); err != nil || !ok || agenttest.Text(m.Parts) != "hi" {
				t.Fatalf("message/send: %v %v", got, err)
			}
			kinds, texts, task := events(t, c.SendStreamingMessage(t.Context(), agenttest.Say("stream", "")))
			if want := []string{"*a2a.Task", "working", "artifact", "artifact", "artifact", "completed"}; !cmp.Equal(kinds, want) || texts != "onetwothree" {
				t.Errorf("message/stream: %v %q", kinds, texts)
			}
			if got, err := c.GetTask(t.Context(), &a2a.TaskQueryParams{ID: task}); err != nil || got.Status.State != a2a.TaskStateCompleted || len(got.Artifacts) != 3 {
				t.Errorf("tasks/get: %+v %v", got, err)
			}
			if _, err := c.GetTask(t.Context(), &a2a.TaskQueryParams{ID: "nope"}); !errors.Is(err, a2a.ErrTaskNotFound) {
				t.Errorf("tasks/get of none: %v", err)
			}
			hook := &a2a.TaskPushConfig{TaskID: task, Config: a2a.PushConfig{ID: "hook", URL: "https://client.example/hook", Token: "t"}}
			if set, err := c.SetTaskPushConfig(t.Context(), hook); err != nil || set.Config.URL != hook.Config.URL {
				t.Errorf("pushNotificationConfig/set: %+v %v", set, err)
			}
			if all, err := c.ListTaskPushConfig(t.Context(), &a2a.ListTaskPushConfigParams{TaskID: task}); err != nil || len(all) != 1 {
				t.Errorf("pushNotificationConfig/list: %v %v", all, err)
			}
			full, err := c.GetAgentCard(t.Context())
			if err != nil || full.URL != p.URL || len(full.Signatures) != 0 {
				t.Errorf("the extended card is %+v, %v", full, err)
			}
			if line := lineWith(t, p, "message/send"); !strings.Contains(line, `"target":"only","method":"message/send","name":"echo"`) ||
				!strings.Contains(line, `"verdict":"allow"`) || !strings.Contains(line, `"upstream_status":200`) {
				t.Errorf("the line says %s", line)
			}
		})
	}
}

// lineWith waits for a line of the access log.
func lineWith(t *testing.T, p *testProxy, part string) string {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		for line := range strings.Lines(p.lines.String()) {
			if strings.Contains(line, part) {
				return line
			}
		}
	}
	t.Fatalf("no line with %q in\n%s", part, p.lines)
	return ""
}

// A client that leaves takes its stream with it, and may come back to the task; a task that is canceled ends its streams.
func TestAgentStreamsEndAndGoOn(t *testing.T) {
	agent := agenttest.Serve(t, "/", nil)
	w := behind()
	w.agent("only", agent.URL)
	c := agenttest.Connect(t, w.start(t).URL)

	ctx, leave := context.WithCancel(t.Context())
	defer leave()
	var task a2a.TaskID
	for ev, err := range c.SendStreamingMessage(ctx, agenttest.Say("tick", "")) {
		if task != "" {
			break // the client's own error, that it has left
		}
		if err != nil {
			t.Fatal(err)
		}
		if _, ok := ev.(*a2a.TaskStatusUpdateEvent); ok {
			task = ev.TaskInfo().TaskID
			leave()
		}
	}
	<-agent.Left()
	if got, err := c.GetTask(t.Context(), &a2a.TaskQueryParams{ID: task}); err != nil || got.Status.State != a2a.TaskStateWorking {
		t.Fatalf("the task whose client left is %+v, %v", got, err)
	}
	seen := make(chan string)
	go func() {
		defer close(seen)
		for ev, err := range c.ResubscribeToTask(t.Context(), &a2a.TaskIDParams{ID: task}) {
			if err != nil {
				seen <- err.Error()
			} else if s, ok := ev.(*a2a.TaskStatusUpdateEvent); ok {
				seen <- string(s.Status.State)
			} else {
				seen <- "artifact"
			}
		}
	}()
	if first := <-seen; first != "artifact" { // it goes on, so that a cancellation is seen
		t.Fatalf("the stream that went on began with %q", first)
	}
	if got, err := c.CancelTask(t.Context(), &a2a.TaskIDParams{ID: task}); err != nil || got.Status.State != a2a.TaskStateCanceled {
		t.Errorf("tasks/cancel: %+v %v", got, err)
	}
	var states []string
	for s := range seen {
		states = append(states, s)
	}
	if len(states) == 0 || states[len(states)-1] != "canceled" {
		t.Errorf("the stream that went on had %v", states)
	}
}

// Agents beside MCP servers: each at its name, and MCP clients do not meet them.
func TestAgentsBesideServers(t *testing.T) {
	server, one, two := mcptest.NewServer(t, mcptest.Options{}), agenttest.Serve(t, "/", nil), agenttest.Serve(t, "/two", nil)
	w := behind("tools=" + server.URL)
	w.agent("coder", one.URL)
	w.agent("writer", two.URL)
	p := w.start(t)
	for _, version := range []string{"2025-11-25", "2026-07-28"} {
		cli := mcptest.Connect(t, p.URL, mcptest.ClientOptions{Version: "2025-11-25"})
		if got := cli.Call(t, "echo", map[string]any{"text": version}); got != version { // one server: no prefixes
			t.Errorf("echo = %q", got)
		}
	}
	for name, agent := range map[string]*agenttest.Agent{"coder": one, "writer": two} {
		base := p.URL + "/" + name
		c := agenttest.Connect(t, base)
		if got, err := c.SendMessage(t.Context(), agenttest.Say("echo "+name, "")); err != nil || agenttest.Text(got.(*a2a.Message).Parts) != name {
			t.Errorf("%s: %v %v", name, got, err)
		}
		if n := len(agent.Requests()); n < 2 {
			t.Errorf("%s got %d requests", name, n)
		}
	}
	card := strings.TrimSuffix(p.URL, "/mcp") + "/mcp/.well-known/agent-card.json"
	if a := get(t, card); a.status != http.StatusNotFound || !strings.Contains(a.body, "/NAME") {
		t.Errorf("a card without a name: %d %s", a.status, a.body)
	}

	w = behind()
	w.agent("coder", one.URL)
	w.agent("writer", two.URL)
	p.apply(t, w)
	if a := p.post(t, "", initialize); a.status != http.StatusNotFound || !strings.Contains(a.body, "no MCP server") {
		t.Errorf("MCP to agents: %d %s", a.status, a.body)
	}
	w = behind()
	w.agent("coder", one.URL)
	p.apply(t, w)
	if a := p.post(t, "", initialize); a.status != http.StatusOK || !strings.Contains(a.body, "does not speak MCP") || !strings.Contains(a.body, "-32601") {
		t.Errorf("MCP to the one agent: %d %s", a.status, a.body)
	}
	if got, err := agenttest.Connect(t, p.URL+"/coder").SendMessage(t.Context(), agenttest.Say("echo x", "")); err != nil {
		t.Errorf("the one agent by its name: %v %v", got, err)
	}
}

const initialize = `{"jsonrpc":"2.0","id":0,"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{},"clientInfo":{"name":"raw","version":"1"}}}`

func get(t *testing.T, url string, headers ...string) answer {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer{resp.StatusCode, resp.Header, string(b)}
}

// Rules see method and skill; what may not be called is not on the card; refusals are A2A's, in streams too.
func TestAgentAuthorization(t *testing.T) {
	agent := agenttest.Serve(t, "/", nil)
	w := behind()
	w.agent("only", agent.URL)
	w.policies["only"] = authorization(
		deny(`has(a2a.skill) && a2a.skill == "secret" && apiKey.id != "alice"`),
		deny(`a2a.method == "tasks/cancel"`),
		requires(`!has(mcp.method) && a2a.target == "only"`),
		allow(`a2a.method.startsWith("message/") || a2a.method == "agent/getAuthenticatedExtendedCard" || a2a.method == "tasks/get"`))
	p := w.withKeys().start(t)
	if a := get(t, p.URL+"/.well-known/agent-card.json"); a.status != http.StatusUnauthorized {
		t.Errorf("the card without a key: %d", a.status)
	}
	skills := func(card *a2a.AgentCard) (ids []string) {
		for _, s := range card.Skills {
			ids = append(ids, s.ID)
		}
		return ids
	}
	if got := skills(agenttest.Card(t, p.URL, alice...)); !cmp.Equal(got, []string{"echo", "secret"}) {
		t.Errorf("alice sees %v", got)
	}
	if got := skills(agenttest.Card(t, p.URL, bob...)); !cmp.Equal(got, []string{"echo"}) {
		t.Errorf("bob sees %v", got)
	}
	c := agenttest.Connect(t, p.URL, bob...)
	if full, err := c.GetAgentCard(t.Context()); err != nil || !cmp.Equal(skills(full), []string{"echo"}) {
		t.Errorf("bob sees on the extended card %v, %v", full, err)
	}
	if _, err := c.SendMessage(t.Context(), agenttest.Say("echo hi", "echo")); err != nil {
		t.Errorf("echo: %v", err)
	}
	before := len(agent.Requests())
	if _, err := c.SendMessage(t.Context(), agenttest.Say("echo hi", "secret")); !errors.Is(err, a2a.ErrUnsupportedOperation) {
		t.Errorf("secret: %v", err)
	}
	for _, err := range c.SendStreamingMessage(t.Context(), agenttest.Say("echo hi", "secret")) {
		if !errors.Is(err, a2a.ErrUnsupportedOperation) {
			t.Errorf("secret in a stream: %v", err)
		}
	}
	if _, err := c.CancelTask(t.Context(), &a2a.TaskIDParams{ID: "x"}); !errors.Is(err, a2a.ErrUnsupportedOperation) {
		t.Errorf("tasks/cancel: %v", err)
	}
	for _, body := range []string{
		`{"jsonrpc":"2.0","id":1,"method":"message/send","params":{"message":{"metadata":{"skillId":"echo","skill":"secret"}}}}`,
		`{"jsonrpc":"2.0","id":1,"method":"message/send","params":{"metadata":{"skill":"echo"},"message":{"metadata":{"skill_id":"secret"}}}}`,
		`{"jsonrpc":"2.0","id":1,"method":"message/send","params":{"message":{"metadata":{"skill":{"id":"secret"}}}}}`,
		`{"jsonrpc":"2.0","id":1,"method":"message/send","params":{"message":{"metadata":{"skill":"echo","skill":"secret"}}}}`,
		`{"jsonrpc":"2.0","id":1,"method":"message/send","params":{"message":{"metadata":{"skill":"echo","Skill":"secret"}}}}`,
		`{"jsonrpc":"2.0","id":1,"method":"message/send","params":{"message":{"metadata":{}},"Message":{"metadata":{"skill":"secret"}}}}`,
		`{"jsonrpc":"2.0","id":1,"method":"message/send","Params":{"message":{"metadata":{"skill":"secret"}}},"params":{}}`,
		`{"jsonrpc":"2.0","id":1,"method":"message/send","method":"tasks/cancel","params":{}}`,
		`{"jsonrpc":"2.0","id":1,"method":"message/send","params":{"message":{"metadata":{"s\u006bill":"secret"}}}}`,
		`[{"jsonrpc":"2.0","id":1,"method":"message/send","params":{}}]`,
		`{"jsonrpc":"2.0","id":1,"method":"tasks/list","params":{}}`,
	} {
		if a := p.post(t, "", body, bob...); !strings.Contains(a.body, `"error"`) {
			t.Errorf("%s: %d %s", body, a.status, a.body)
		}
	}
	if n := len(agent.Requests()); n != before {
		t.Errorf("the agent got %d of what was refused", n-before)
	}
	if line := lineWith(t, p, `"name":"secret"`); !strings.Contains(line, `"verdict":"deny"`) || !strings.Contains(line, `"outcome":"denied"`) {
		t.Errorf("the line says %s", line)
	}
}

// An agent gets what its policies add, the protocol's own headers, and nothing else of the client's.
func TestAgentHeaders(t *testing.T) {
	agent := agenttest.Serve(t, "/", nil)
	w := behind()
	w.agent("only", agent.URL)
	w.secrets = map[string]string{"agent": "s3cret"}
	w.policies["only"] = &policyv1.Policies{
		RequestHeaderModifier:  set("X-Method", "=has(a2a.method) ? a2a.method : 'none'", "X-Skill", `=has(a2a.skill) ? a2a.skill : "-"`),
		ResponseHeaderModifier: set("X-Answer", "yes"),
		BackendAuth: &policyv1.BackendAuth{Method: &policyv1.BackendAuth_Key{Key: &policyv1.KeyAuth{Credentials: []*policyv1.LocatedCredential{
			{Credential: &policyv1.Credential{Source: &policyv1.Credential_Secret{Secret: "default/secret/agent"}}},
		}}}},
	}
	p := w.start(t)
	body := `{"jsonrpc":"2.0","id":"q","method":"message/send","params":{"message":{"kind":"message","messageId":"m","role":"user","parts":[{"kind":"text","text":"echo hi"}],"metadata":{"skill":"echo"}}}}`
	a := p.post(t, "", body, "A2A-Version", "0.3", "X-A2A-Extensions", "https://e.example/x", "Cookie", "c=1", "Authorization", "Bearer client", "X-Other", "o", "Accept", "application/json")
	if a.status != http.StatusOK || a.header.Get("X-Answer") != "yes" || !strings.HasPrefix(a.header.Get("Content-Type"), "application/json") || !strings.Contains(a.body, `"text":"hi"`) {
		t.Fatalf("%d %v %s", a.status, a.header, a.body)
	}
	h := agent.Requests()[0].Header
	for name, want := range map[string]string{"Authorization": "Bearer s3cret", "X-Method": "message/send", "X-Skill": "echo", "A2a-Version": "0.3",
		"X-A2a-Extensions": "https://e.example/x", "Cookie": "", "X-Other": "", "Mcp-Protocol-Version": ""} {
		if got := h.Get(name); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	card := get(t, p.URL+"/.well-known/agent.json", "Authorization", "Bearer client") // the agent has the other name alone
	if card.status != http.StatusOK || card.header.Get("X-Answer") != "yes" || card.header.Get("Cache-Control") != "private, no-cache" {
		t.Fatalf("the card: %d %v %s\n%s", card.status, card.header, card.body, p.lines)
	}
	if got := get(t, p.URL+"/.well-known/agent.json", "If-None-Match", `"x", `+card.header.Get("Etag")); got.status != http.StatusNotModified || got.body != "" {
		t.Errorf("the card that the client has: %d %s", got.status, got.body)
	}
}

// An agent that lies, hangs or breaks off costs its own clients a clear error, and nobody memory.
func TestHostileAgents(t *testing.T) {
	var handler atomic.Value // http.HandlerFunc
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { handler.Load().(http.HandlerFunc)(w, r) }))
	t.Cleanup(server.Close)
	w := behind()
	w.agent("only", server.URL)
	p := w.start(t)
	send := `{"jsonrpc":"2.0","id":7,"method":"message/send","params":{}}`
	write := func(contentType, body string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", contentType)
			_, _ = io.WriteString(w, body)
		}
	}
	endless := func(prefix string, n int) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			_, _ = io.WriteString(w, prefix)
			for range n {
				if _, err := w.Write(make([]byte, 1<<20)); err != nil {
					return
				}
			}
		}
	}
	for name, tt := range map[string]struct {
		handler http.HandlerFunc
		status  int
		says    string
	}{
		"a page":      {write("text/html", "<h1>secret place</h1>"), 502, "is no A2A"},
		"no response": {write("application/json", `{"jsonrpc":"2.0","id":7,"method":"x"}`), 502, "no A2A"},
		"two results": {write("application/json", `{"jsonrpc":"2.0","id":7,"result":1,"Result":2}`), 502, "no A2A"},
		"bad JSON":    {write("application/json", `{"jsonrpc":`), 502, "no A2A"},
		"100 MB":      {endless(`{"jsonrpc":"2.0","id":7,"result":"`, 100), 502, "no A2A"},
		"a redirect": {func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://elsewhere.example/", http.StatusTemporaryRedirect)
		}, 502, "redirects are not followed"},
		"credentials": {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(401) }, 502, "refused the proxy's credentials"},
		"overload":    {func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("Retry-After", "3"); w.WriteHeader(503) }, 503, "overloaded"},
		"an error of its": {func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(500)
			_, _ = io.WriteString(w, `{"jsonrpc":"2.0","id":7,"error":{"code":-32001,"message":"Task not found"}}`)
		}, 500, "Task not found"},
		"a hang-up": {func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, 502, "broke off"},
	} {
		handler.Store(tt.handler)
		a := p.post(t, "", send)
		if a.status != tt.status || !strings.Contains(a.body, tt.says) || !strings.Contains(a.body, `"id":7`) || strings.Contains(a.body, "secret place") {
			t.Errorf("%s: %d %s", name, a.status, a.body)
		}
	}
	good := "data: {\"jsonrpc\":\"2.0\",\"id\":7,\"result\":{\"kind\":\"task\"}}\n\n"
	for name, tt := range map[string]struct{ stream, says string }{
		"no JSON":           {good + "data: nonsense\n\n", "-32006"},
		"a request":         {good + "data: {\"jsonrpc\":\"2.0\",\"id\":7,\"method\":\"x\"}\n\n", "-32006"},
		"breaks off":        {good + "data: {\"jsonrpc\"", "broke off"},
		"an event of 20 MB": {good + "data: " + strings.Repeat("x", 20<<20) + "\n\n", "-32006"},
	} {
		handler.Store(write("text/event-stream", tt.stream))
		a := p.post(t, "", strings.Replace(send, "send", "stream", 1))
		if a.status != 200 || !strings.HasPrefix(a.body, good) || !strings.Contains(a.body[len(good):], tt.says) || len(a.body) > 1000 {
			t.Errorf("a stream with %s: %d %.300s", name, a.status, a.body)
		}
	}
	for name, tt := range map[string]struct {
		handler http.HandlerFunc
		status  int
	}{
		"no JSON":           {write("text/html", "<h1>secret place</h1>"), 502},
		"100 MB":            {endless(`{"name":"`, 100), 502},
		"two URLs":          {write("application/json", `{"url":"http://a/","url":"http://b/"}`), 502},
		"two cases":         {write("application/json", `{"url":"http://a/","Url":"http://b/"}`), 502},
		"gRPC alone":        {write("application/json", `{"url":"http://a/","preferredTransport":"GRPC"}`), 502},
		"nothing":           {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(404) }, 502},
		"URLs to elsewhere": {write("application/json", `{"url":"http://evil.example/","additionalInterfaces":[{"url":"file:///etc/passwd","transport":"JSONRPC"}]}`), 200},
	} {
		handler.Store(tt.handler)
		a := get(t, p.URL+"/.well-known/agent-card.json")
		if a.status != tt.status || strings.Contains(a.body, "evil") || strings.Contains(a.body, "passwd") || strings.Contains(a.body, "secret place") {
			t.Errorf("a card with %s: %d %.300s", name, a.status, a.body)
		}
	}
	// Host names of the request alone make URLs, and they are JSON.
	handler.Store(write("application/json", `{"url":"http://agent/"}`))
	if a := get(t, p.URL+"/%22x%2f/.well-known/agent-card.json", "X-Forwarded-Host", "evil.example", "X-Forwarded-Proto", "https", "Forwarded", "host=evil.example"); a.status != 200 ||
		a.body != `{"url":"`+p.URL+`/%22x%2f"}` {
		t.Errorf("a card at an odd path: %d %s", a.status, a.body)
	}
	// One that hangs is left by whoever leaves.
	left := make(chan struct{})
	began := make(chan struct{})
	handler.Store(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body) // a server looks whether its client is there once the body is read
		close(began)
		<-r.Context().Done()
		close(left)
	}))
	ctx, leave := context.WithCancel(t.Context())
	req, _ := http.NewRequestWithContext(ctx, http.MethodPost, p.URL, strings.NewReader(send))
	req.Header.Set("Content-Type", "application/json")
	go func() { <-began; leave() }()
	if _, err := http.DefaultClient.Do(req); err == nil {
		t.Error("an answer of nobody")
	}
	<-left
}

// Events come as they are sent, not when the stream ends, and bytes as they were.
func TestAgentEventsComeAtOnce(t *testing.T) {
	next := make(chan string)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		for text := range next {
			_, _ = io.WriteString(w, text)
			_ = http.NewResponseController(w).Flush()
		}
	}))
	t.Cleanup(server.Close)
	w := behind()
	w.agent("only", server.URL)
	p := w.start(t)
	go func() { next <- ": hello\n\n" }()
	req, _ := http.NewRequestWithContext(t.Context(), http.MethodPost, p.URL, strings.NewReader(`{"jsonrpc":"2.0","id":1,"method":"SendStreamingMessage"}`))
	req.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	lines := bufio.NewReader(resp.Body)
	for _, tt := range []struct{ sent, want string }{
		{"", ": hello\n\n"},
		{"id: 5\nevent: e\ndata: {\"jsonrpc\" : \"2.0\",\ndata:  \"id\":1,\"result\":{\"n\":1.50}}\n\n", "event: e\nid: 5\ndata: {\"jsonrpc\" : \"2.0\",\ndata:  \"id\":1,\"result\":{\"n\":1.50}}\n\n"},
	} {
		if tt.sent != "" {
			next <- tt.sent
		}
		got := make([]byte, len(tt.want))
		if _, err := io.ReadFull(lines, got); err != nil || string(got) != tt.want {
			t.Errorf("got %q, %v, want %q", got, err, tt.want)
		}
	}
	close(next)
}
