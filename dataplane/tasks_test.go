package dataplane

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sluicegate/sluice/internal/mcptest"
)

// The revisions that have tasks: the last of the session era, and the first of the stateless one by an extension.
var taskVersions = []string{"2025-11-25", "2026-07-28"}

// taskClient sends raw messages. It may use any proxy of a fleet.
type taskClient struct {
	version, session string
	headers          []string
	incapable        bool // does not have the extension
}

func (c *taskClient) begin(t testing.TB, p *testProxy) *taskClient {
	t.Helper()
	if c.version != "2026-07-28" {
		c.session = p.initialize(t, c.version, c.headers...)
	}
	return c
}

// body is a request, and the headers it goes with.
func (c *taskClient) body(method, name, params string) (body string, headers []string) {
	if c.version != "2026-07-28" {
		return `{"jsonrpc":"2.0","id":7,"method":"` + method + `","params":{` + params + `}}`, c.headers
	}
	if params != "" {
		params += ","
	}
	headers = append([]string{"MCP-Protocol-Version", c.version, "Mcp-Method", method}, c.headers...)
	if name != "" {
		headers = append(headers, "Mcp-Name", name)
	}
	extensions := `{"io.modelcontextprotocol/tasks":{}}`
	if c.incapable {
		extensions = `{}`
	}
	return `{"jsonrpc":"2.0","id":7,"method":"` + method + `","params":{` + params + `"_meta":{"io.modelcontextprotocol/protocolVersion":"` + c.version +
		`","io.modelcontextprotocol/clientInfo":{"name":"raw","version":"1"},"io.modelcontextprotocol/clientCapabilities":{"extensions":` + extensions + `,"elicitation":{}}}}}`, headers
}

type taskAnswer struct {
	raw    string
	Result struct {
		taskState
		Task       *taskState
		Tasks      []taskState
		NextCursor string
		ResultType string
		Content    []struct{ Text, URI string }
		Result     *struct {
			Content []struct{ Text, URI string }
		}
		InputRequests map[string]json.RawMessage
		Meta          struct {
			Related taskState `json:"io.modelcontextprotocol/related-task"`
		} `json:"_meta"`
		Capabilities map[string]json.RawMessage
	}
	Error *struct {
		Code    int
		Message string
		Data    json.RawMessage
	}
}

type taskState struct{ TaskID, Status string }

func parseTask(t testing.TB, raw string) (a taskAnswer) {
	t.Helper()
	a.raw = raw
	if err := json.Unmarshal([]byte(raw), &a); err != nil {
		t.Fatalf("%v: %s", err, raw)
	}
	return a
}

func (c *taskClient) ask(t testing.TB, p *testProxy, method, name, params string) taskAnswer {
	t.Helper()
	body, headers := c.body(method, name, params)
	text := p.post(t, c.session, body, headers...).body
	for line := range strings.Lines(text) {
		if data, ok := strings.CutPrefix(line, "data: "); ok {
			text = data
		}
	}
	return parseTask(t, text)
}

// of asks about a task.
func (c *taskClient) of(t testing.TB, p *testProxy, method, id, more string) taskAnswer {
	t.Helper()
	return c.ask(t, p, method, id, fmt.Sprintf(`"taskId":%q%s`, id, more))
}

// call makes a task and returns its id.
func (c *taskClient) call(t testing.TB, p *testProxy, tool string) string {
	t.Helper()
	params := `"name":"` + tool + `","arguments":{}`
	if c.version != "2026-07-28" {
		params += `,"task":{"ttl":60000}`
	}
	a := c.ask(t, p, "tools/call", tool, params)
	made := a.Result.taskState
	if a.Result.Task != nil {
		made = *a.Result.Task
	}
	if made.TaskID == "" {
		t.Fatalf("%s made no task: %s", tool, a.raw)
	}
	return made.TaskID
}

// outcome is the text of a task's result and the URI of its link, as the revision lets the client get at it.
func (c *taskClient) outcome(t testing.TB, p *testProxy, id string) (text, uri string) {
	t.Helper()
	method := "tasks/result"
	if c.version == "2026-07-28" {
		method = "tasks/get"
	}
	a := c.of(t, p, method, id, "")
	content := a.Result.Content
	if a.Result.Result != nil {
		content = a.Result.Result.Content
	}
	if len(content) != 2 {
		t.Fatalf("%s: %s", method, a.raw)
	}
	if shown := a.Result.TaskID + a.Result.Meta.Related.TaskID; shown != id {
		t.Errorf("%s names the task %q, not %q: %s", method, shown, id, a.raw)
	}
	return content[0].Text, content[1].URI
}

// taskFleet is two task servers of a version behind as many proxies as are asked for.
func taskFleet(t *testing.T, version string, proxies int) (*world, []*mcptest.TaskServer, []*testProxy) {
	t.Helper()
	a, b := mcptest.NewTaskServer(t, "a", version == "2026-07-28", 2), mcptest.NewTaskServer(t, "a-b", version == "2026-07-28", 2)
	w := behind("a="+a.URL, "a-b="+b.URL)
	var fleet []*testProxy
	for i := range proxies {
		fleet = append(fleet, w.startAs(t, fmt.Sprintf("proxy-%d", i+1), "127.0.0.1:0"))
	}
	return w, []*mcptest.TaskServer{a, b}, fleet
}

// Both servers give out the same ids, and requests about a task come to another proxy than the one that made it.
func TestTasks(t *testing.T) {
	for _, version := range taskVersions {
		t.Run(version, func(t *testing.T) {
			_, servers, fleet := taskFleet(t, version, 2)
			c := (&taskClient{version: version}).begin(t, fleet[0])
			first, second := c.call(t, fleet[0], "a_work"), c.call(t, fleet[0], "a-b_work")
			if first == second || strings.Contains(first+second, "task-1") {
				t.Fatalf("ids %q and %q", first, second)
			}
			for i, id := range []string{first, second} {
				if got := c.of(t, fleet[1], "tasks/get", id, ""); got.Result.Status != "working" || got.Result.TaskID != id {
					t.Errorf("tasks/get: %s", got.raw)
				}
				if got, want := servers[i].Reached(), []string{"tasks/get task-1"}; !slices.Equal(got, want) || len(servers[1-i].Reached()) > 0 {
					t.Errorf("server %d saw %v, want %v", i, got, want)
				}
			}
			servers[1].Finish("task-1")
			if text, uri := c.outcome(t, fleet[1], second); text != "work of a-b: " || uri != "a-b+test://work" {
				t.Errorf("outcome %q %q", text, uri)
			}
			if got := c.of(t, fleet[0], "tasks/cancel", first, ""); got.Error != nil {
				t.Errorf("tasks/cancel: %s", got.raw)
			}
			if got := c.of(t, fleet[1], "tasks/get", first, ""); got.Result.Status != "cancelled" {
				t.Errorf("after its cancellation: %s", got.raw)
			}
			if got := c.of(t, fleet[1], "tasks/cancel", first, ""); got.Error == nil || !strings.Contains(string(got.Error.Data), first) {
				t.Errorf("cancelled twice: %s", got.raw)
			}
			plain := &taskClient{version: version, session: c.session, incapable: true}
			if got := plain.ask(t, fleet[0], "tools/call", "a_work", `"name":"a_work"`); !strings.Contains(got.raw, `"taskId":"no task"`) {
				t.Errorf("a member of a result that is no task: %s", got.raw)
			}
		})
	}
}

func TestTaskCapabilities(t *testing.T) {
	for _, version := range taskVersions {
		_, _, fleet := taskFleet(t, version, 1)
		c := &taskClient{version: version}
		method, params, want := "server/discover", "", []string{"io.modelcontextprotocol/tasks", "com.example/x"}
		if version == "2025-11-25" {
			method, params, want = "initialize", `"protocolVersion":"2025-11-25","capabilities":{},"clientInfo":{"name":"c","version":"1"}`, []string{"com.example/x"}
		}
		caps := c.ask(t, fleet[0], method, "", params).Result.Capabilities
		for _, name := range want {
			if !strings.Contains(string(caps["extensions"]), name) {
				t.Errorf("%s: extensions %s lack %s", version, caps["extensions"], name)
			}
		}
		if version == "2025-11-25" {
			if diff := cmp.Diff(`{"cancel":{},"list":{},"requests":{"tools":{"call":{}}}}`, string(caps["tasks"])); diff != "" {
				t.Errorf("tasks (-want +got):\n%s", diff)
			}
		}
	}
}

func TestTasksList(t *testing.T) {
	_, servers, fleet := taskFleet(t, "2025-11-25", 2)
	c := (&taskClient{version: "2025-11-25"}).begin(t, fleet[0])
	var made []string
	for range 3 {
		made = append(made, c.call(t, fleet[0], "a_work"))
	}
	made = append(made, c.call(t, fleet[0], "a-b_work"))
	listed := c.list(t, fleet...)
	slices.Sort(made)
	slices.Sort(listed)
	if diff := cmp.Diff(made, listed); diff != "" {
		t.Errorf("listed (-made +listed):\n%s", diff)
	}
	if got := c.ask(t, fleet[0], "tasks/list", "", `"cursor":"2"`); got.Error == nil || got.Error.Code != -32602 {
		t.Errorf("a target's own cursor: %s", got.raw)
	}
	_ = servers
	// A server that has no tasks is no reason to show none.
	w := behind("a="+servers[0].URL, "none="+mcptest.NewServer(t, mcptest.Options{}).URL)
	p := w.start(t)
	c = (&taskClient{version: "2025-11-25"}).begin(t, p)
	if got := c.ask(t, p, "tasks/list", "", ""); len(got.Result.Tasks) != 2 {
		t.Errorf("beside a server without tasks: %s", got.raw)
	}
}

// list is all pages of tasks/list, each from the next proxy.
func (c *taskClient) list(t testing.TB, fleet ...*testProxy) (ids []string) {
	t.Helper()
	for cursor, i := "", 0; ; i++ {
		got := c.ask(t, fleet[i%len(fleet)], "tasks/list", "", cursor)
		for _, task := range got.Result.Tasks {
			ids = append(ids, task.TaskID)
		}
		if got.Result.NextCursor == "" {
			return ids
		}
		cursor = fmt.Sprintf(`"cursor":%q`, got.Result.NextCursor)
	}
}

// events reads a stream's messages until f says that it has seen enough. opened is called when there is a stream; it may be nil.
func (c *taskClient) events(t testing.TB, p *testProxy, method, body string, headers []string, opened func(), f func(message string) (enough bool)) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, p.URL, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Accept", "application/json, text/event-stream")
	req.Header.Set("Content-Type", "application/json")
	if c.session != "" {
		req.Header.Set("Mcp-Session-Id", c.session)
	}
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if opened != nil {
		opened()
	}
	for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
		if data, ok := strings.CutPrefix(lines.Text(), "data: "); ok && f(data) {
			return
		}
	}
	t.Errorf("%s %s: the stream ended (%d)", method, body, resp.StatusCode)
}

// A task asks its client: by a request on the stream of tasks/result, whose answer goes to another proxy, or by tasks/update.
func TestTaskInput(t *testing.T) {
	for _, version := range taskVersions {
		t.Run(version, func(t *testing.T) {
			_, _, fleet := taskFleet(t, version, 2)
			c := (&taskClient{version: version}).begin(t, fleet[0])
			id := c.call(t, fleet[0], "a-b_ask")
			if version == "2026-07-28" {
				if got := c.of(t, fleet[1], "tasks/get", id, ""); got.Result.Status != "input_required" || got.Result.InputRequests["who"] == nil {
					t.Fatalf("tasks/get: %s", got.raw)
				}
				if got := c.of(t, fleet[1], "tasks/update", id, `,"inputResponses":{"who":{"action":"accept","content":{"name":"Ada"}}}`); got.Error != nil {
					t.Fatalf("tasks/update: %s", got.raw)
				}
				if text, _ := c.outcome(t, fleet[0], id); text != "ask of a-b: Ada" {
					t.Errorf("outcome %q", text)
				}
				return
			}
			body, headers := c.body("tasks/result", id, fmt.Sprintf(`"taskId":%q`, id))
			c.events(t, fleet[0], http.MethodPost, body, headers, nil, func(message string) bool {
				var asked struct {
					ID     string
					Params struct {
						Meta struct {
							Related taskState `json:"io.modelcontextprotocol/related-task"`
						} `json:"_meta"`
					}
				}
				if !strings.Contains(message, "elicitation/create") {
					got := parseTask(t, message)
					if got.Result.Meta.Related.TaskID != id || got.Result.Content[0].Text != "ask of a-b: Ada" {
						t.Errorf("result: %s", message)
					}
					return true
				}
				if err := json.Unmarshal([]byte(message), &asked); err != nil || asked.Params.Meta.Related.TaskID != id {
					t.Errorf("asked by %s", message)
				}
				answer := fmt.Sprintf(`{"jsonrpc":"2.0","id":%q,"result":{"action":"accept","content":{"name":"Ada"},"_meta":{"io.modelcontextprotocol/related-task":{"taskId":%q}}}}`, asked.ID, id)
				if got := fleet[1].post(t, c.session, answer); got.status != 202 {
					t.Errorf("answer: %d %s", got.status, got.body)
				}
				return false
			})
		})
	}
}

func TestTaskNotifications(t *testing.T) {
	for _, version := range taskVersions {
		for _, rules := range []bool{false, true} {
			t.Run(fmt.Sprint(version, rules), func(t *testing.T) {
				w, servers, fleet := taskFleet(t, version, 1)
				if rules {
					w.policies["a"] = authorization(allow(`mcp.tool.name == "work"`))
					fleet[0].apply(t, w)
				}
				p := fleet[0]
				c := (&taskClient{version: version}).begin(t, p)
				id, other := c.call(t, p, "a_work"), c.call(t, p, "a-b_work")
				method, body, headers := http.MethodGet, "", []string(nil)
				if version == "2026-07-28" {
					method = http.MethodPost
					body, headers = c.body("subscriptions/listen", "", fmt.Sprintf(`"notifications":{"taskIds":[%q,%q,"task-1"]}`, other, id))
				}
				said := func() {
					waitFor(t, "streams at both", func() bool { return servers[0].Streams() == 1 && servers[1].Streams() == 1 })
					if version == "2025-11-25" && rules {
						(&taskClient{version: version, session: "session-of-a"}).direct(t, servers[0]) // a task of nobody here knows whom
						servers[0].Finish("task-2")
					}
					servers[0].Finish("task-1")
				}
				first := true
				c.events(t, p, method, body, headers, said, func(message string) bool {
					if version == "2026-07-28" && first {
						first = false
						if want := fmt.Sprintf(`"taskIds":[%q,%q]`, other, id); !strings.Contains(message, want) {
							t.Errorf("acknowledged: %s, want %s", message, want)
						}
						return false
					}
					if !strings.Contains(message, `"taskId":"`+id+`"`) || !strings.Contains(message, "completed") {
						t.Errorf("told %s, want %s", message, id)
					}
					if version == "2026-07-28" && !strings.Contains(message, `"a+test://work"`) {
						t.Errorf("a link in %s", message)
					}
					return true
				})
			})
		}
	}
	_, _, fleet := taskFleet(t, "2026-07-28", 1)
	c := &taskClient{version: "2026-07-28", incapable: true}
	if got := c.ask(t, fleet[0], "subscriptions/listen", "", `"notifications":{"taskIds":["x"]}`); got.Error == nil || got.Error.Code != -32021 {
		t.Errorf("a client without the extension: %s", got.raw)
	}
}

// direct makes a task past the proxy.
func (c *taskClient) direct(t testing.TB, s *mcptest.TaskServer) {
	t.Helper()
	body, _ := c.body("tools/call", "work", `"name":"work","task":{}`)
	resp, err := http.Post(s.URL, "application/json", strings.NewReader(body))
	if err != nil {
		t.Error(err)
		return
	}
	_ = resp.Body.Close()
}

// An id that is not ours, not this caller's, or sealed with a key that is no more is that of a task that does not exist.
// Who may not call a tool does not get at its tasks, be there one target or two.
// An only target without rules gives out its own ids.
// An id stays good when the other targets leave, or come, and when rules do.
// A task's id finds the backend that it is of.
// What a task resulted in passes the guards as any result does. Its id is no text.
// What MCP Apps name by ui:// URIs is found where tools say, in both forms that they have for it.
func TestAppsOfSeveralTargets(t *testing.T) {
	for _, version := range taskVersions {
		_, _, fleet := taskFleet(t, version, 1)
		c := (&taskClient{version: version}).begin(t, fleet[0])
		tools := c.ask(t, fleet[0], "tools/list", "", "").raw
		for _, target := range []string{"a", "a-b"} {
			uri := target + "+ui://work"
			if want := `"_meta":{"ui/resourceUri":"` + uri + `","ui":{"resourceUri":"` + uri + `"}}`; !strings.Contains(tools, want) {
				t.Errorf("%s: tools lack %s: %s", version, want, tools)
			}
			if list := c.ask(t, fleet[0], "resources/list", "", "").raw; !strings.Contains(list, `"uri":"`+uri+`"`) {
				t.Errorf("%s: resources: %s", version, list)
			}
			if read := c.ask(t, fleet[0], "resources/read", uri, `"uri":"`+uri+`"`).raw; !strings.Contains(read, `"uri":"`+uri+`"`) || !strings.Contains(read, "<b>"+target+"</b>") {
				t.Errorf("%s: read: %s", version, read)
			}
		}
	}
}

// Over random rules: a task of a tool that is not listed reaches no target, and where no rule reads what tells a task from its
// tool's call, one of a tool that is listed does.
