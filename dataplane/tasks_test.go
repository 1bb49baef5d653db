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

	"github.com/sluicegate/sluice/dataplane/mcp"
	"github.com/sluicegate/sluice/dataplane/session"
	"github.com/sluicegate/sluice/dataplane/snapshot"
	"github.com/sluicegate/sluice/internal/mcptest"
	policyv1 "github.com/sluicegate/sluice/proto/gen/sluice/policy/v1"
	xdsv1 "github.com/sluicegate/sluice/proto/gen/sluice/xds/v1"
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
func TestTasksOfOthers(t *testing.T) {
	for _, version := range taskVersions {
		t.Run(version, func(t *testing.T) {
			w, servers, _ := taskFleet(t, version, 0)
			bearer := w.withTokens(t)
			w.keys = []*xdsv1.SessionKey{sessionKey(1)}
			p := w.start(t)
			ada := (&taskClient{version: version, headers: bearer(`"sub":"ada"`)}).begin(t, p)
			id := ada.call(t, p, "a_work")
			bob := (&taskClient{version: version, headers: bearer(`"sub":"bob"`)}).begin(t, p)
			unknown := func(who string, c *taskClient, id string) {
				t.Helper()
				for _, s := range servers {
					s.Reached()
				}
				for _, method := range []string{"tasks/get", "tasks/cancel", map[bool]string{true: "tasks/update", false: "tasks/result"}[version == "2026-07-28"]} {
					got := c.of(t, p, method, id, "")
					if got.Error == nil || got.Error.Code != -32602 || got.Error.Message != "Unknown task: "+id {
						t.Errorf("%s, %s: %s", who, method, got.raw)
					}
				}
				for _, s := range servers {
					if seen := s.Reached(); len(seen) > 0 {
						t.Errorf("%s: a target saw %v", who, seen)
					}
				}
			}
			unknown("another caller", bob, id)
			unknown("a target's own id", ada, "task-1")
			unknown("a forged id", ada, id[:len(id)-1]+"x")
			unknown("no id at all", ada, "")
			// Both keys open; the new one seals. The client's id stays what it was.
			w.keys = []*xdsv1.SessionKey{sessionKey(2), sessionKey(1)}
			p.apply(t, w)
			if got := ada.of(t, p, "tasks/get", id, ""); got.Result.TaskID != id {
				t.Errorf("after a rotation: %s", got.raw)
			}
			w.keys = []*xdsv1.SessionKey{sessionKey(2)}
			p.apply(t, w)
			unknown("a key that is no more", ada.begin(t, p), id)
		})
	}
}

// Who may not call a tool does not get at its tasks, be there one target or two.
func TestTasksUnderRules(t *testing.T) {
	for _, version := range taskVersions {
		for n := 1; n <= 2; n++ {
			t.Run(fmt.Sprint(version, " targets ", n), func(t *testing.T) {
				w, servers, _ := taskFleet(t, version, 0)
				w.targets = w.targets[:n]
				prefix := ""
				if n == 2 {
					prefix = "a_"
				}
				rules := func(p *testProxy, r ...*policyv1.AuthorizationRule) {
					w.policies["a"] = authorization(r...)
					if p != nil {
						p.apply(t, w)
					}
				}
				rules(nil, allow(`mcp.tool.name in ["work", "ask"]`))
				p := w.start(t)
				c := (&taskClient{version: version}).begin(t, p)
				work, ask := c.call(t, p, prefix+"work"), c.call(t, p, prefix+"ask")
				check := func(what string, id string, reachable bool) {
					t.Helper()
					servers[0].Reached()
					got := c.of(t, p, "tasks/get", id, "")
					if reached := len(servers[0].Reached()) > 0; reached != reachable || reachable != (got.Error == nil) {
						t.Errorf("%s: reached %v: %s", what, reached, got.raw)
					}
					if !reachable && got.Error.Message != "Unknown task: "+id {
						t.Errorf("%s: %s", what, got.raw)
					}
				}
				check("allowed", work, true)
				rules(p, allow(`mcp.tool.name == "ask"`))
				check("of a tool that is not allowed any more", work, false)
				check("of the other tool", ask, true)
				rules(p, allow(`mcp.tool.name == "ask"`), allow(`has(mcp.task)`))
				check("though tasks are allowed", work, false)
				rules(p, deny(`has(mcp.tool) && mcp.tool.name == "work"`), allow(`true`))
				check("of a tool that is denied", work, false)
				rules(p, deny(`has(mcp.task) && mcp.task.name == "task-1"`), allow(`true`))
				check("denied itself", work, false)
				check("not denied", ask, true)
				rules(p, allow(`mcp.tool.name == "work" && mcp.tool.arguments.x == 1`))
				check("of arguments that are not known any more", work, true)
				servers[0].Finish("task-1")
				if got := c.of(t, p, "tasks/cancel", work, ""); got.Error == nil || got.Error.Message != "Cannot cancel task" || !strings.Contains(string(got.Error.Data), work) {
					t.Errorf("of a task that is over: %s", got.raw)
				}
				rules(p, scoped(require(`"run" in scopes`), "run"))
				if got := c.of(t, p, "tasks/get", work, ""); got.Error == nil || !strings.Contains(got.Error.Message, "insufficient scope") {
					t.Errorf("lacking scope: %s", got.raw)
				}
				if version == "2026-07-28" {
					return
				}
				ids := func() []string { return c.list(t, p) }
				c.direct(t, servers[0]) // task-3, which this proxy knows nothing of
				rules(p, allow(`mcp.tool.name in ["work", "ask"]`))
				if diff := cmp.Diff([]string{work, ask}, ids()); diff != "" {
					t.Errorf("listed (-want +got):\n%s", diff)
				}
				rules(p, allow(`mcp.tool.name == "ask"`))
				if diff := cmp.Diff([]string{ask}, ids()); diff != "" {
					t.Errorf("listed to who may only ask (-want +got):\n%s", diff)
				}
				rules(p, allow(`mcp.tool.name == "ask" || has(mcp.task)`))
				if got := ids(); len(got) != 2 || got[0] != ask {
					t.Errorf("listed with all tasks allowed: %v", got)
				} else {
					check("of a tool that nobody knows", got[1], true)
				}
			})
		}
	}
}

// An only target without rules gives out its own ids.
func TestTasksPassThrough(t *testing.T) {
	for _, version := range taskVersions {
		w, servers, _ := taskFleet(t, version, 0)
		w.targets = w.targets[:1]
		p := w.start(t)
		c := (&taskClient{version: version}).begin(t, p)
		if id := c.call(t, p, "work"); id != "task-1" {
			t.Errorf("%s: id %q", version, id)
		}
		servers[0].Finish("task-1")
		if text, uri := c.outcome(t, p, "task-1"); text != "work of a: " || uri != "test://work" {
			t.Errorf("%s: outcome %q %q", version, text, uri)
		}
	}
}

// An id stays good when the other targets leave, or come, and when rules do.
func TestTasksStay(t *testing.T) {
	for _, version := range taskVersions {
		w, servers, _ := taskFleet(t, version, 0)
		p := w.start(t)
		c := (&taskClient{version: version}).begin(t, p)
		id := c.call(t, p, "a_work")
		both := w.targets
		w.targets = both[:1]
		p.apply(t, w)
		if got := c.of(t, p, "tasks/get", id, ""); got.Result.TaskID != id {
			t.Errorf("%s, the target alone: %s", version, got.raw)
		}
		if version == "2026-07-28" {
			body, headers := c.body("subscriptions/listen", "", fmt.Sprintf(`"notifications":{"taskIds":[%q]}`, id))
			c.events(t, p, http.MethodPost, body, headers, nil, func(message string) bool {
				if !strings.Contains(message, `"taskIds":["`+id+`"]`) {
					t.Errorf("acknowledged: %s", message)
				}
				return true
			})
		}
		bare := (&taskClient{version: version}).begin(t, p)
		if own := bare.call(t, p, "work"); own != "task-2" {
			t.Errorf("%s, of the target alone: %s", version, own)
		}
		w.policies["a"] = authorization(allow(`has(mcp.task)`))
		p.apply(t, w)
		if got := bare.of(t, p, "tasks/get", "task-2", ""); got.Result.Status != "working" {
			t.Errorf("%s, its own id under a rule about tasks: %s", version, got.raw)
		}
		w.targets, w.policies = both, nil
		p.apply(t, w)
		servers[0].Finish("task-1")
		if text, _ := c.outcome(t, p, id); text != "work of a: " {
			t.Errorf("%s, both again: %q", version, text)
		}
		if version == "2025-11-25" { // a session that began with one target keeps its names
			if got := bare.of(t, p, "tasks/get", "task-2", ""); got.Result.TaskID != "task-2" {
				t.Errorf("its own id when another target has come: %s", got.raw)
			}
		}
	}
}

// A task's id finds the backend that it is of.
func TestBackendOfTask(t *testing.T) {
	codec, err := session.New([]session.Key{{}})
	if err != nil {
		t.Fatal(err)
	}
	one, two := &snapshot.Backend{Resource: "t/backend/one"}, &snapshot.Backend{Resource: "t/backend/two"}
	scope := session.Scope{Tenant: "t", Principal: "p"}
	of := scope
	of.Backend = two.Resource
	id := codec.SealTask(of, session.Task{Target: "a", ID: "1"})
	for _, tt := range []struct {
		id       string
		backends []*snapshot.Backend
		want     *snapshot.Backend
	}{
		{id, []*snapshot.Backend{one, two}, two}, {id, []*snapshot.Backend{two, one}, two}, {id, []*snapshot.Backend{one}, nil},
		{"1", []*snapshot.Backend{one, two}, nil}, {id + "x", []*snapshot.Backend{one, two}, nil},
	} {
		msg, err := mcp.Scan([]byte(`{"jsonrpc":"2.0","id":1,"method":"tasks/get","params":{"taskId":"`+tt.id+`"}}`), mcp.Limits{})
		if err != nil {
			t.Fatal(err)
		}
		x := &exchange{route: &snapshot.Route{Backends: tt.backends}, message: &msg}
		if got := x.ofTask(codec, scope); got != tt.want {
			t.Errorf("of %s among %d: %v", tt.id, len(tt.backends), got)
		}
	}
}

// What a task resulted in passes the guards as any result does. Its id is no text.
func TestTasksGuarded(t *testing.T) {
	for _, version := range taskVersions {
		w, servers, _ := taskFleet(t, version, 0)
		w.policies["a"] = aiPolicy(t, guards("", masks("work of", "task-[0-9]")))
		p := w.start(t)
		c := (&taskClient{version: version}).begin(t, p)
		id := c.call(t, p, "a_work")
		servers[0].Finish("task-1")
		if text, _ := c.outcome(t, p, id); strings.Contains(text, "work of") || text == "" {
			t.Errorf("%s: outcome %q", version, text)
		}
	}
}

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
