package mcptest

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"sync"
	"testing"
)

// A TaskServer is an MCP server that makes tasks, which the go-sdk has not: in the form of 2025-11-25, or in that of the
// extension io.modelcontextprotocol/tasks of 2026-07-28. It wants from its clients all that these say.
//
// Its tools are work, whose task is done when the test says so, and ask, whose task asks for a name first; without what makes
// a task both answer at once. Ids are task-1, task-2, …, the same on every server, and one server knows all its tasks, whoever asks.
type TaskServer struct {
	// URL of the MCP endpoint.
	URL string

	name      string
	stateless bool
	pageSize  int

	mu       sync.Mutex
	tasks    []*madeTask            // guarded by mu
	streams  map[chan string]filter // guarded by mu; what is open, and for a listen which tasks
	answers  chan string            // elicited names
	problems []string               // guarded by mu; what clients did wrong
	reached  []string               // guarded by mu; requests about tasks: method and id
}

type filter struct {
	listen string // raw id of the request; "": a GET
	ids    []string
}

type madeTask struct {
	id, tool, status string
	name             string        // that was asked for
	done             chan struct{} // closed when the task is over
}

// NewTaskServer starts a server until the test's end. pageSize is of tasks/list.
func NewTaskServer(t testing.TB, name string, stateless bool, pageSize int) *TaskServer {
	t.Helper()
	s := &TaskServer{name: name, stateless: stateless, pageSize: pageSize, streams: map[chan string]filter{}, answers: make(chan string, 1)}
	srv := httptest.NewServer(http.HandlerFunc(s.serve))
	s.URL = srv.URL + "/mcp"
	t.Cleanup(func() {
		srv.CloseClientConnections()
		srv.Close()
		for _, p := range s.problems {
			t.Errorf("server %s: %s", name, p)
		}
	})
	return s
}

// Finish ends a task with success and tells the streams.
func (s *TaskServer) Finish(id string) { s.set(id, "completed") }

// Reached returns the requests about tasks that came since the last time: method and id.
func (s *TaskServer) Reached() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.reached
	s.reached = nil
	return r
}

// Streams is how many streams of the server's own are open.
func (s *TaskServer) Streams() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.streams)
}

func (s *TaskServer) wrong(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.problems = append(s.problems, fmt.Sprintf(format, args...))
}

func (s *TaskServer) find(id string) *madeTask {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, t := range s.tasks {
		if t.id == id {
			return t
		}
	}
	return nil
}

func (s *TaskServer) status(t *madeTask) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return t.status
}

// named completes a task that asked for a name.
func (s *TaskServer) named(t *madeTask, name string) {
	s.mu.Lock()
	t.name = name
	s.mu.Unlock()
	s.set(t.id, "completed")
}

func (s *TaskServer) set(id, status string) {
	t := s.find(id)
	if t == nil {
		s.wrong("no task %s", id)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if t.status = status; status == "completed" || status == "cancelled" {
		close(t.done)
	}
	for c, f := range s.streams {
		for _, of := range f.ids {
			if of == id {
				c <- fmt.Sprintf(`{"jsonrpc":"2.0","method":"notifications/tasks","params":{%s,"_meta":{"io.modelcontextprotocol/subscriptionId":%s}}}`, s.detailsLocked(t), f.listen)
			}
		}
		if f.listen == "" {
			c <- fmt.Sprintf(`{"jsonrpc":"2.0","method":"notifications/tasks/status","params":{%s}}`, s.detailsLocked(t))
		}
	}
}

// detailsLocked are the members of a task, without braces.
func (s *TaskServer) detailsLocked(t *madeTask) string {
	d := fmt.Sprintf(`"status":%q,"taskId":%q,"createdAt":"2026-07-28T00:00:00Z","lastUpdatedAt":"2026-07-28T00:00:01Z",`, t.status, t.id)
	if !s.stateless {
		return d + `"ttl":60000,"pollInterval":1`
	}
	d += `"ttlMs":60000,"pollIntervalMs":1`
	switch t.status {
	case "completed":
		d += `,"result":` + s.outcomeLocked(t)
	case "input_required":
		d += `,"inputRequests":{"who":{"method":"elicitation/create","params":{"mode":"form","message":"Who?","requestedSchema":{"type":"object","properties":{}}}}}`
	}
	return d
}

// outcomeLocked is what the tool's call came to.
func (s *TaskServer) outcomeLocked(t *madeTask) string {
	related := ""
	if !s.stateless {
		related = fmt.Sprintf(`,"_meta":{"io.modelcontextprotocol/related-task":{"taskId":%q}}`, t.id)
	}
	return fmt.Sprintf(`{"content":[{"type":"text","text":"%s of %s: %s"},{"type":"resource_link","uri":"test://%s","name":"r"}],"isError":false%s}`, t.tool, s.name, t.name, t.tool, related)
}

type taskRequest struct {
	ID     json.RawMessage
	Method string
	Result *struct {
		Content struct{ Name string }
		Meta    struct {
			Related struct{ TaskID string } `json:"io.modelcontextprotocol/related-task"`
		} `json:"_meta"`
	}
	Params struct {
		Name, TaskID, Cursor, URI string
		Task                      *struct{ TTL int }
		Meta                      struct {
			Capabilities struct{ Extensions map[string]any } `json:"io.modelcontextprotocol/clientCapabilities"`
		} `json:"_meta"`
		InputResponses map[string]struct{ Content struct{ Name string } }
		Notifications  struct{ TaskIDs []string }
	}
}

func (s *TaskServer) serve(w http.ResponseWriter, r *http.Request) {
	if r.Method == http.MethodGet && !s.stateless {
		s.stream(w, r, filter{})
		return
	}
	body, _ := io.ReadAll(r.Body)
	var m taskRequest
	if r.Method != http.MethodPost || json.Unmarshal(body, &m) != nil {
		w.WriteHeader(http.StatusMethodNotAllowed)
		return
	}
	if m.Result != nil {
		if m.Result.Meta.Related.TaskID != "" && s.find(m.Result.Meta.Related.TaskID) == nil {
			s.wrong("an answer is related to %q", m.Result.Meta.Related.TaskID)
		}
		s.answers <- m.Result.Content.Name
	}
	if m.ID == nil || m.Result != nil {
		w.WriteHeader(http.StatusAccepted)
		return
	}
	if s.stateless && m.Params.TaskID != "" && r.Header.Get("Mcp-Name") != m.Params.TaskID {
		s.wrong("%s: Mcp-Name is %q, taskId %q", m.Method, r.Header.Get("Mcp-Name"), m.Params.TaskID)
	}
	result, failure := s.answer(w, r, &m)
	switch {
	case failure != "":
		result = fmt.Sprintf(`{"jsonrpc":"2.0","id":%s,"error":%s}`, m.ID, failure)
	case result == "":
		return // answered by a stream
	default:
		result = fmt.Sprintf(`{"jsonrpc":"2.0","id":%s,"result":%s}`, m.ID, result)
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = io.WriteString(w, result)
}

const taskCapabilities = `{"tools":{},"resources":{},"tasks":{"list":{},"cancel":{},"requests":{"tools":{"call":{}}}},"extensions":{"com.example/x":{"v":1}}}`

func (s *TaskServer) answer(w http.ResponseWriter, r *http.Request, m *taskRequest) (result, failure string) {
	const noTask = `{"code":-32602,"message":"Task not found"}`
	switch m.Method {
	case "initialize":
		if s.stateless {
			return "", `{"code":-32601,"message":"Method not found"}`
		}
		w.Header().Set("Mcp-Session-Id", "session-of-"+s.name)
		return `{"protocolVersion":"2025-11-25","capabilities":` + taskCapabilities + `,"serverInfo":{"name":"tasks","version":"1"}}`, ""
	case "server/discover":
		if !s.stateless {
			return "", `{"code":-32601,"message":"Method not found"}`
		}
		return `{"resultType":"complete","supportedVersions":["2026-07-28"],"capabilities":{"tools":{},"extensions":{"io.modelcontextprotocol/tasks":{},"com.example/x":{"v":1}}},"ttlMs":0,"cacheScope":"private"}`, ""
	case "tools/list":
		const schema = `"inputSchema":{"type":"object"},"execution":{"taskSupport":"optional"}`
		return `{"tools":[{"name":"work",` + schema + `,"_meta":{"ui/resourceUri":"ui://work","ui":{"resourceUri":"ui://work"}}},{"name":"ask",` + schema + `}],"resultType":"complete","ttlMs":0,"cacheScope":"private"}`, ""
	case "resources/list":
		return `{"resources":[{"uri":"ui://work","name":"ui","mimeType":"text/html;profile=mcp-app"}]}`, ""
	case "resources/read":
		return fmt.Sprintf(`{"contents":[{"uri":%q,"mimeType":"text/html;profile=mcp-app","text":"<b>%s</b>"}],"resultType":"complete","ttlMs":0,"cacheScope":"private"}`, m.Params.URI, s.name), ""
	case "tools/call":
		return s.call(m), ""
	case "tasks/list":
		return s.list(m.Params.Cursor)
	case "subscriptions/listen":
		s.stream(w, r, filter{listen: string(m.ID), ids: m.Params.Notifications.TaskIDs})
		return "", ""
	}
	s.mu.Lock()
	s.reached = append(s.reached, m.Method+" "+m.Params.TaskID)
	s.mu.Unlock()
	t := s.find(m.Params.TaskID)
	if t == nil {
		return "", noTask
	}
	switch m.Method {
	case "tasks/get":
		s.mu.Lock()
		defer s.mu.Unlock()
		return `{` + s.detailsLocked(t) + `,"resultType":"complete"}`, ""
	case "tasks/cancel":
		if status := s.status(t); status != "working" && status != "input_required" {
			return "", fmt.Sprintf(`{"code":-32602,"message":"Cannot cancel task","data":{"taskId":%q}}`, t.id)
		}
		s.set(t.id, "cancelled")
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.stateless {
			return `{"resultType":"complete"}`, ""
		}
		return `{` + s.detailsLocked(t) + `}`, ""
	case "tasks/update":
		s.named(t, m.Params.InputResponses["who"].Content.Name)
		return `{"resultType":"complete"}`, ""
	case "tasks/result":
		s.result(w, r, m, t)
		return "", ""
	}
	return "", `{"code":-32601,"message":"Method not found"}`
}

func (s *TaskServer) call(m *taskRequest) string {
	if !s.stateless && m.Params.Task == nil || s.stateless && m.Params.Meta.Capabilities.Extensions["io.modelcontextprotocol/tasks"] == nil {
		return `{"content":[{"type":"text","text":"done at once by ` + s.name + `"}],"resultType":"complete","taskId":"no task"}`
	}
	t := &madeTask{tool: m.Params.Name, status: "working", done: make(chan struct{})}
	if t.tool == "ask" {
		t.status = "input_required"
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	t.id = "task-" + strconv.Itoa(len(s.tasks)+1)
	s.tasks = append(s.tasks, t)
	if s.stateless {
		return `{"resultType":"task",` + s.detailsLocked(t) + `}`
	}
	return `{"task":{` + s.detailsLocked(t) + `},"_meta":{"io.modelcontextprotocol/model-immediate-response":"soon"}}`
}

func (s *TaskServer) list(cursor string) (result, failure string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	from := 0
	if cursor != "" {
		from, _ = strconv.Atoi(cursor)
	}
	result = `{"tasks":[`
	for i := from; i < len(s.tasks) && i < from+s.pageSize; i++ {
		if i > from {
			result += ","
		}
		result += `{` + s.detailsLocked(s.tasks[i]) + `}`
	}
	result += `]`
	if from+s.pageSize < len(s.tasks) {
		result += fmt.Sprintf(`,"nextCursor":"%d"`, from+s.pageSize)
	}
	return result + `}`, ""
}

// result serves tasks/result of 2025-11-25, which waits for the task's end and asks on the way.
func (s *TaskServer) result(w http.ResponseWriter, r *http.Request, m *taskRequest, t *madeTask) {
	w.Header().Set("Content-Type", "text/event-stream")
	send := func(message string) {
		_, _ = fmt.Fprintf(w, "data: %s\n\n", message)
		_ = http.NewResponseController(w).Flush()
	}
	if s.status(t) == "input_required" {
		send(fmt.Sprintf(`{"jsonrpc":"2.0","id":0,"method":"elicitation/create","params":{"message":"Who?","requestedSchema":{"type":"object","properties":{}},"_meta":{"io.modelcontextprotocol/related-task":{"taskId":%q}}}}`, t.id))
		select {
		case name := <-s.answers:
			s.named(t, name)
		case <-r.Context().Done():
			return
		}
	}
	select {
	case <-t.done:
		s.mu.Lock()
		outcome := s.outcomeLocked(t)
		s.mu.Unlock()
		send(fmt.Sprintf(`{"jsonrpc":"2.0","id":%s,"result":%s}`, m.ID, outcome))
	case <-r.Context().Done():
	}
}

// stream is a GET of the session era, or a listen.
func (s *TaskServer) stream(w http.ResponseWriter, r *http.Request, f filter) {
	c := make(chan string, 16)
	w.Header().Set("Content-Type", "text/event-stream")
	if f.listen != "" {
		ids, _ := json.Marshal(f.ids)
		_, _ = fmt.Fprintf(w, "data: "+`{"jsonrpc":"2.0","method":"notifications/subscriptions/acknowledged","params":{"notifications":{"taskIds":%s},"_meta":{"io.modelcontextprotocol/subscriptionId":%s}}}`+"\n\n", ids, f.listen)
	}
	_ = http.NewResponseController(w).Flush()
	s.mu.Lock()
	s.streams[c] = f
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.streams, c)
	}()
	for {
		select {
		case message := <-c:
			_, _ = fmt.Fprintf(w, "data: %s\n\n", message)
			_ = http.NewResponseController(w).Flush()
		case <-r.Context().Done():
			return
		}
	}
}
