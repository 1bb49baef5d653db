package dataplane

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/sluicegate/sluice/dataplane/snapshot"
	"github.com/sluicegate/sluice/dataplane/upstream"
)

// The client leg: whatever a stranger sends to a whole proxy with targets of both eras.

// fuzzed is a target that answers well, and complains of what a proxy must not have sent it.
type fuzzed struct {
	URL       string
	stateless bool

	mu         sync.Mutex
	complaints []string // guarded by mu
}

// newFuzzed starts a target of one era. It has a tool, a prompt and a resource that everybody may use, as many that hiding
// refuses, and a tool that asks its client.
func newFuzzed(t testing.TB, stateless bool) *fuzzed {
	g := &fuzzed{stateless: stateless}
	srv := httptest.NewServer(g)
	t.Cleanup(func() {
		srv.CloseClientConnections()
		srv.Close()
	})
	g.URL = srv.URL + "/mcp"
	return g
}

func (g *fuzzed) complain(format string, args ...any) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.complaints = append(g.complaints, fmt.Sprintf(format, args...))
}

// take returns the complaints since the last time.
func (g *fuzzed) take() []string {
	g.mu.Lock()
	defer g.mu.Unlock()
	taken := g.complaints
	g.complaints = nil
	return taken
}

const fuzzedCapabilities = `"capabilities":{"tools":{"listChanged":true},"prompts":{},"resources":{"subscribe":true},"completions":{},"logging":{}}`

// fuzzedResults are what is inside of the results' braces.
var fuzzedResults = map[string]string{
	"initialize":                `"protocolVersion":"2025-11-25",` + fuzzedCapabilities + `,"serverInfo":{"name":"fuzzed","version":"1"}`,
	"server/discover":           `"supportedVersions":["2026-07-28"],` + fuzzedCapabilities,
	"tools/list":                `"tools":[{"name":"safe","inputSchema":{"type":"object","properties":{"region":{"type":"string","x-mcp-header":"Region"}}}},{"name":"danger","inputSchema":{"type":"object"}},{"name":"ask","inputSchema":{"type":"object"}}]`,
	"prompts/list":              `"prompts":[{"name":"safe"},{"name":"danger"}]`,
	"resources/list":            `"resources":[{"uri":"test://files/safe","name":"safe"},{"uri":"test://files/danger","name":"danger"}]`,
	"resources/templates/list":  `"resourceTemplates":[{"uriTemplate":"test://item/{id}","name":"item"}]`,
	"tools/call":                `"content":[{"type":"text","text":"safe"},{"type":"resource_link","uri":"test://files/safe","name":"safe"}]`,
	"prompts/get":               `"messages":[{"role":"user","content":{"type":"text","text":"safe"}}]`,
	"resources/read":            `"contents":[{"uri":"test://files/safe","text":"safe"}]`,
	"completion/complete":       `"completion":{"values":["safe"]}`,
	"ping":                      ``,
	"logging/setLevel":          ``,
	"resources/subscribe":       ``,
	"resources/unsubscribe":     ``,
	"tasks/get":                 `"taskId":"safe","status":"working"`,
	"tasks/cancel":              `"taskId":"safe","status":"cancelled"`,
	"notifications/initialized": ``,
}

func (g *fuzzed) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch r.Method {
	case http.MethodGet:
		if g.stateless {
			w.WriteHeader(405)
			return
		}
		w.Header().Set("Content-Type", "text/event-stream")
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
		return
	case http.MethodDelete:
		return
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return // the proxy went away
	}
	method, id, name := g.look(r, body)
	if id == nil {
		w.WriteHeader(202)
		return
	}
	result, known := fuzzedResults[method]
	if !known || g.stateless && method == "initialize" || !g.stateless && method == "server/discover" {
		g.answer(w, 404, `{"jsonrpc":"2.0","id":`+string(id)+`,"error":{"code":-32601,"message":"Method not found"}}`)
		return
	}
	kind := "complete"
	if method == "tools/call" && name == "ask" {
		if !g.stateless {
			w.Header().Set("Content-Type", "text/event-stream")
			_, _ = io.WriteString(w, "data: "+elicitAgain+"\n\n")
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done()
			return
		}
		if !bytes.Contains(body, []byte("inputResponses")) {
			kind, result = "input_required", `"inputRequests":{"q":{"method":"elicitation/create","params":{"message":"?"}}},"requestState":"s"`
		}
	}
	if g.stateless {
		result = strings.TrimSuffix(`"resultType":"`+kind+`","ttlMs":0,"cacheScope":"private",`+result, ",")
	}
	if method == "initialize" {
		w.Header().Set("Mcp-Session-Id", "s")
	}
	g.answer(w, 200, `{"jsonrpc":"2.0","id":`+string(id)+`,"result":{`+result+`}}`)
}

func (g *fuzzed) answer(w http.ResponseWriter, status int, body string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = io.WriteString(w, body)
}

// look reads a message as any server would, with another parser than the proxy's.
func (g *fuzzed) look(r *http.Request, body []byte) (method string, id json.RawMessage, name string) {
	var m map[string]json.RawMessage
	if err := json.Unmarshal(body, &m); err != nil || !utf8.Valid(body) {
		g.complain("a body that is no object: %q: %v", body, err)
		return "", nil, ""
	}
	if twice := twofold(body); twice != "" {
		g.complain("%q holds %q twice", body, twice)
	}
	_ = json.Unmarshal(m["method"], &method)
	var params map[string]any
	_ = json.Unmarshal(m["params"], &params)
	name, _ = params["name"].(string)
	uri, _ := params["uri"].(string)
	task, _ := params["taskId"].(string)
	ref, _ := params["ref"].(map[string]any)
	named := map[string][]any{
		"tools/call": {name}, "prompts/get": {name}, "resources/read": {uri}, "resources/subscribe": {uri}, "tasks/get": {task}, "tasks/cancel": {task},
		"tasks/result": {task}, "completion/complete": {ref["name"], ref["uri"]},
	}[method]
	if method == "subscriptions/listen" {
		for _, uri := range listened(body) {
			named = append(named, uri)
		}
	}
	for _, one := range named {
		if one == "danger" || one == "test://files/danger" {
			g.complain("%s of %v, which is refused, came: %s", method, one, body)
		}
	}
	id = m["id"]
	switch modern := r.Header.Get("Mcp-Protocol-Version") == "2026-07-28"; {
	case modern && id != nil && r.Header.Get("Mcp-Method") != method:
		g.complain("Mcp-Method %q beside %s", r.Header.Get("Mcp-Method"), body)
	case g.stateless && modern && id != nil && name != "" && (method == "tools/call" || method == "prompts/get"):
		if got := r.Header.Get("Mcp-Name"); got != name && got != encodeHeader(name) {
			g.complain("Mcp-Name %q beside %s", got, body)
		}
	}
	if modern := r.Header.Get("Mcp-Protocol-Version") == "2026-07-28"; modern && r.Header.Get("Mcp-Session-Id") != "" {
		g.complain("a session at 2026-07-28: %v", r.Header)
	}
	return method, id, name
}

// smuggledFilters ask for more than a careless reader of them sees.
var smuggledFilters = []string{
	`{"resourceSubscriptions":["test://files/danger"],"resourceSubscriptions":[]}`,
	`{"resourceSubscriptions":["test://files/danger"],"resourceSubscriptions":null}`,
	`{"resourceSubscriptions":[],"ResourceSubscriptions":["test://files/danger"]}`,
	`{"resourceSubscriptions":["test://files/danger"],"ResourceSubscriptions":[]}`,
	`{"resourceSubscriptions":["test://files/danger"],"re\u017FourceSubscriptions":[]}`,
	`{"resourceSubscription\u0073":["test://files/danger"],"\u0052esourceSubscriptions":["test://files/safe"]}`,
	`{"resourceSubscriptions":["test://files/danger"],"resourceSubscriptions":["test://files/safe"],"toolsListChanged":true}`,
	`{"taskIds":["danger"],"TaskIds":[]}`,
}

// listened are the resources of a listen, as any server might read them: the first of two members or the last, whatever their case.
func listened(body []byte) (uris []string) {
	var m struct {
		Params struct{ Notifications json.RawMessage }
	}
	if json.Unmarshal(body, &m) != nil {
		return nil
	}
	d := json.NewDecoder(bytes.NewReader(m.Params.Notifications))
	if first, err := d.Token(); err != nil || first != json.Delim('{') {
		return nil
	}
	for d.More() {
		key, err := d.Token()
		if err != nil {
			break
		}
		var value json.RawMessage
		if d.Decode(&value) != nil {
			break
		}
		var these []string
		if name, _ := key.(string); strings.EqualFold(name, "resourceSubscriptions") && json.Unmarshal(value, &these) == nil {
			uris = append(uris, these...)
		}
	}
	return uris
}

// twofold returns a name that the message, its params or their _meta hold twice.
func twofold(body []byte) string {
	for _, path := range [][]string{{}, {"params"}, {"params", "_meta"}} {
		at := json.RawMessage(body)
		for _, name := range path {
			var m map[string]json.RawMessage
			if json.Unmarshal(at, &m) != nil {
				at = nil
				break
			}
			at = m[name]
		}
		d := json.NewDecoder(bytes.NewReader(at))
		if first, err := d.Token(); err != nil || first != json.Delim('{') {
			continue
		}
		seen := map[string]bool{}
		for d.More() {
			key, err := d.Token()
			if err != nil {
				break
			}
			name, _ := key.(string)
			if seen[name] {
				return name
			}
			seen[name] = true
			var skipped json.RawMessage
			if d.Decode(&skipped) != nil {
				break
			}
		}
	}
	return ""
}

// quietly is a proxy without a socket that logs nothing: what is fuzzed may not log to the test that made it.
func (w *world) quietly(t testing.TB) (*testProxy, func()) {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	p := &testProxy{store: snapshot.New(snapshot.Config{Loopback: true, Log: log})}
	upstreams := upstream.New(upstream.Config{Log: log, MaxMessage: 1 << 20, MaxQueued: 1 << 20})
	p.proxy = newProxy(proxyParts{Store: p.store, Upstreams: upstreams, Log: log, ProxyID: "proxy-1", Loopback: true})
	p.apply(t, w)
	return p, func() {
		closing, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		_ = upstreams.Close(closing)
	}
}

// reply is what a client got. What would go on for ever ends once it has begun: an event stream that waits for news, and
// one that waits for an answer.
type reply struct {
	header  http.Header
	sent    http.Header // as it was when the answer began
	status  int
	body    bytes.Buffer
	endless bool
	leave   func()
	begins  bool // with an event, which is waited for
	aborted bool // cut off, so that nobody takes what came for a whole answer
}

func (r *reply) Header() http.Header { return r.header }

func (r *reply) WriteHeader(status int) {
	if r.status == 0 && status >= 200 {
		r.status, r.sent = status, r.header.Clone()
	}
}

func (r *reply) Write(b []byte) (int, error) {
	r.WriteHeader(http.StatusOK)
	return r.body.Write(b)
}

func (r *reply) Flush() {
	r.WriteHeader(http.StatusOK)
	if r.endless && (!r.begins || r.body.Len() > 0) || bytes.Contains(r.body.Bytes(), []byte(`"method":"elicitation/create"`)) {
		r.leave()
	}
}

// serveFuzzed sends one request to a proxy.
func (p *testProxy) serveFuzzed(verb, path string, head http.Header, body []byte) *reply {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	r := &reply{header: http.Header{}, leave: cancel, begins: path == "/sse" && head.Get("Mcp-Session-Id") == "", endless: verb == http.MethodGet || bytes.Contains(body, []byte("subscriptions"))}
	in := httptest.NewRequestWithContext(ctx, verb, "http://127.0.0.1"+path, bytes.NewReader(body))
	in.Header = head
	func() {
		defer func() {
			if why := recover(); why != nil {
				if r.aborted = why == http.ErrAbortHandler; !r.aborted {
					panic(why)
				}
			}
		}()
		p.handler(testPort).ServeHTTP(r, in)
	}()
	r.WriteHeader(http.StatusOK) // as net/http does
	return r
}

// headerOf reads header lines; what net/http would refuse to read is left out.
func headerOf(text string) http.Header {
	h := http.Header{}
	for line := range strings.Lines(text) {
		name, value, ok := strings.Cut(strings.TrimRight(line, "\r\n"), ":")
		token := func(r rune) bool {
			return !('a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' || strings.ContainsRune("!#$%&'*+-.^_`|~", r))
		}
		if !ok || name == "" || strings.ContainsFunc(name, token) || strings.ContainsFunc(value, func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f }) {
			continue
		}
		h.Add(name, strings.Trim(value, " \t"))
	}
	return h
}

// check holds an answer to what every answer has to be.
func (r *reply) check(t *testing.T, secrets ...string) {
	t.Helper()
	body := r.body.String()
	if r.status < 200 || r.status > 599 {
		t.Fatalf("status %d", r.status)
	}
	for name, values := range r.sent {
		if strings.ContainsAny(name+strings.Join(values, ""), "\r\n\x00") {
			t.Errorf("header %q: %q", name, values)
		}
	}
	if r.status >= 500 {
		for _, secret := range append(secrets, "goroutine ", ".go:", "runtime error", "no words for") {
			if strings.Contains(body, secret) {
				t.Errorf("%d names what is inside (%q): %s", r.status, secret, body)
			}
		}
	}
	if r.aborted {
		return
	}
	switch kind, _, _ := strings.Cut(r.sent.Get("Content-Type"), ";"); kind {
	case "application/json":
		checkMessage(t, body)
	case "text/event-stream":
		for _, data := range eventsOf(body) {
			checkMessage(t, data)
		}
	case "text/plain":
		if r.status < 400 {
			t.Errorf("%d in plain text: %s", r.status, body)
		}
	default:
		if body != "" {
			t.Errorf("%d with a body of type %q: %s", r.status, kind, body)
		}
	}
}

// last is the last message of an answer; nil if it has none.
func (r *reply) last() []byte {
	switch kind, _, _ := strings.Cut(r.sent.Get("Content-Type"), ";"); kind {
	case "application/json":
		return r.body.Bytes()
	case "text/event-stream":
		if all := eventsOf(r.body.String()); len(all) > 0 {
			return []byte(all[len(all)-1])
		}
	}
	return nil
}

// checkMessage refuses what is no JSON-RPC message.
func checkMessage(t *testing.T, text string) {
	t.Helper()
	var m map[string]json.RawMessage
	if err := json.Unmarshal([]byte(text), &m); err != nil || !utf8.ValidString(text) || string(m["jsonrpc"]) != `"2.0"` {
		t.Fatalf("%q is no message: %v", text, err)
	}
	n := 0
	for _, member := range []string{"method", "result", "error"} {
		if m[member] != nil {
			n++
		}
	}
	if n != 1 {
		t.Errorf("%s is neither request, notification nor response", text)
	}
}

// eventsOf are the data of an event stream's messages, read as the HTML standard says.
func eventsOf(stream string) (all []string) {
	var data []string
	typ := ""
	for _, line := range strings.Split(strings.NewReplacer("\r\n", "\n", "\r", "\n").Replace(stream), "\n") {
		field, value, _ := strings.Cut(line, ":")
		value = strings.TrimPrefix(value, " ")
		switch {
		case line == "":
			if text := strings.Join(data, "\n"); text != "" && (typ == "" || typ == "message") {
				all = append(all, text)
			}
			data, typ = nil, ""
		case field == "data":
			data = append(data, value)
		case field == "event":
			typ = value
		}
	}
	return all
}

// settled waits until what requests left behind is over: it must not grow without end.
func settled(t *testing.T, most int) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); runtime.NumGoroutine() > most; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			stacks := make([]byte, 1<<16)
			t.Fatalf("%d goroutines are left:\n%s", runtime.NumGoroutine(), stacks[:runtime.Stack(stacks, true)])
		}
	}
}

const fuzzedMeta = `"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{"elicitation":{}},"io.modelcontextprotocol/clientInfo":{"name":"f","version":"1"}}`

// FuzzClientLeg: no panic, nothing left behind, an answer that is HTTP and MCP, nothing of the inside in it; and no target sees
// what is refused, or what two parsers could read differently.
func FuzzClientLeg(f *testing.F) {
	const typed = "Content-Type: application/json\nAccept: application/json, text/event-stream\n"
	const inSession = typed + "Mcp-Session-Id: $SESSION\n"
	modern := func(method, name string) string {
		return typed + "MCP-Protocol-Version: 2026-07-28\nMcp-Method: " + method + "\nMcp-Name: " + name + "\n"
	}
	for world := range byte(4) {
		for _, prefix := range []string{"", "a_", "b_"} {
			for _, name := range []string{"safe", "danger", "ask"} {
				name = prefix + name
				call := `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"` + name + `","arguments":{"region":"eu"}`
				f.Add(world, inSession, []byte(call+`}}`))
				f.Add(world, modern("tools/call", name)+"Mcp-Param-Region: eu\n", []byte(call+`,`+fuzzedMeta+`}}`))
			}
		}
		for _, body := range []string{
			`{"jsonrpc":"2.0","id":"a","method":"tools/list","params":{"cursor":""}}`, `{"jsonrpc":"2.0","id":0,"method":"resources/read","params":{"uri":"test://files/danger"}}`,
			`[{"jsonrpc":"2.0","id":1,"method":"ping"},{"jsonrpc":"2.0","id":2,"method":"tools/call","params":{"name":"danger"}}]`,
			`{"jsonrpc":"2.0","id":1,"method":"completion/complete","params":{"ref":{"type":"ref/prompt","name":"danger"},"argument":{"name":"a","value":"b"}}}`,
			`{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":1}}`, `{"jsonrpc":"2.0","id":1,"result":{}}`,
			`{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-06-18","capabilities":{"elicitation":{}},"clientInfo":{"name":"f","version":"1"}}}`,
			`{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"safe","Name":"danger"}}`, `{"jsonrpc":"2.0","id":1,"method":"logging/setLevel","params":{"level":"info"}}`,
		} {
			f.Add(world, inSession, []byte(body))
			f.Add(world, typed, []byte(body))
			f.Add(world, typed+"Mcp-Session-Id: $OLDER\n", []byte(body))
		}
		for method, params := range map[string]string{
			"server/discover": "", "tools/list": "", "prompts/get": `"name":"danger",`, "resources/read": `"uri":"test://files/danger",`, "x/y": `"a":1,`,
			"subscriptions/listen": `"notifications":{"toolsListChanged":true,"resourceSubscriptions":["test://files/danger"]},`,
			"tools/call":           `"name":"ask","inputResponses":{"q":{"action":"accept"}},"requestState":"s",`,
		} {
			f.Add(world, modern(method, "danger"), []byte(`{"jsonrpc":"2.0","id":9007199254740993,"method":"`+method+`","params":{`+params+fuzzedMeta+`}}`))
		}
		for _, filter := range smuggledFilters {
			f.Add(world, modern("subscriptions/listen", ""), []byte(`{"jsonrpc":"2.0","id":1,"method":"subscriptions/listen","params":{"notifications":`+filter+`,`+fuzzedMeta+`}}`))
		}
		f.Add(world|1<<4, "Accept: text/event-stream\nMcp-Session-Id: $SESSION\nLast-Event-ID: x\n", []byte(nil))
		f.Add(world|2<<4, "Mcp-Session-Id: $SESSION\n", []byte(nil))
		f.Add(world|3<<4, "Origin: http://localhost\nAccess-Control-Request-Method: POST\n", []byte(nil))
		f.Add(world|1<<4|1<<3, "Accept: text/event-stream\n", []byte(nil))
		f.Add(world|1<<3, typed, []byte(`{"jsonrpc":"2.0","id":1,"method":"ping"}`))
	}

	old, now := newFuzzed(f, false), newFuzzed(f, true)
	type proxied struct {
		*testProxy
		session, older string
	}
	worlds := make([]proxied, 4)
	for i, targets := range [][]string{{"a=" + old.URL}, {"b=" + now.URL}, {"a=" + old.URL, "b=" + now.URL}, {"b=" + now.URL, "c=" + now.URL}} {
		w := behind(targets...)
		w.ssePath = "/sse"
		for _, target := range w.targets {
			w.policies[target.Name] = hiding()
			target.Timeout = durationpb.New(200 * time.Millisecond)
		}
		p, stop := w.quietly(f)
		f.Cleanup(stop)
		worlds[i].testProxy = p
	}
	begin := func(p *testProxy, version string) string {
		r := p.serveFuzzed(http.MethodPost, "/mcp", headerOf(typed), []byte(`{"jsonrpc":"2.0","id":0,"method":"initialize","params":{"protocolVersion":"`+version+`","capabilities":{"elicitation":{}},"clientInfo":{"name":"f","version":"1"}}}`))
		return r.sent.Get("Mcp-Session-Id")
	}
	address := []string{strings.TrimSuffix(strings.TrimPrefix(old.URL, "http://"), "/mcp"), strings.TrimSuffix(strings.TrimPrefix(now.URL, "http://"), "/mcp")}
	f.Fuzz(func(t *testing.T, how byte, head string, body []byte) {
		w := &worlds[how&3]
		verb := []string{http.MethodPost, http.MethodGet, http.MethodDelete, http.MethodOptions, http.MethodPost, http.MethodPost, http.MethodHead, http.MethodPut}[how>>4&7]
		path := "/mcp"
		if how&(1<<3) != 0 {
			path = "/sse"
		}
		if strings.Contains(head, "$SESSION") && w.session == "" {
			w.session = begin(w.testProxy, "2025-11-25")
		}
		if strings.Contains(head, "$OLDER") && w.older == "" {
			w.older = begin(w.testProxy, "2025-03-26")
		}
		sent := headerOf(strings.NewReplacer("$SESSION", w.session, "$OLDER", w.older).Replace(head))
		r := w.serveFuzzed(verb, path, sent.Clone(), body)
		if verb == http.MethodDelete {
			w.session, w.older = "", ""
		}
		if path == "/sse" && sent.Get("Mcp-Session-Id") == "" && verb == http.MethodGet && r.status == 200 {
			if !strings.HasPrefix(r.body.String(), "event: endpoint\ndata: /sse?sessionId=") {
				t.Errorf("a stream begins with %q", r.body.String())
			}
			r.body.Reset()
		}
		r.check(t, address...)
		for _, complaint := range append(old.take(), now.take()...) {
			t.Errorf("a target complains: %s", complaint)
		}
		if verb == http.MethodPost && path == "/mcp" {
			if (!json.Valid(body) || !utf8.Valid(body) || twofold(body) != "") && r.status < 400 {
				t.Errorf("%d for what is no JSON, or says a thing twice", r.status)
			}
			var m map[string]json.RawMessage
			var answer struct{ ID, Method json.RawMessage }
			if last := r.last(); r.status < 400 && json.Unmarshal(body, &m) == nil && len(m["id"]) > 0 && m["method"] != nil && last != nil && json.Unmarshal(last, &answer) == nil && answer.Method == nil && !bytes.Equal(answer.ID, m["id"]) {
				t.Errorf("the answer to id %s is %s", m["id"], last)
			}
		}
		settled(t, 400)
	})
}
