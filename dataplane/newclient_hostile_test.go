package dataplane

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/sluicegate/sluice/internal/mcptest"
)

// script is a target of the era of sessions that says what a test wants it to, byte for byte. What it is not told to
// answer, it answers as such a server does.
type script struct {
	*mcptest.Script
	posts posts
	// onCall answers tools/call; returning ends the connection. onGet is the standing stream; nil: 405.
	onCall func(c *mcptest.Conn, id, body string)
	onGet  func(c *mcptest.Conn)
	// onInitialize answers initialize; nil: as usual. onAnswer is the status for a response; 0: 202.
	onInitialize func(c *mcptest.Conn, id string)
	onAnswer     int
	tools        string // of tools/list
}

func newScriptTarget(t *testing.T, s *script) *script {
	s.Script = mcptest.NewScript(t, func(c *mcptest.Conn) {
		for {
			r, body := c.Read()
			if r == nil {
				return
			}
			if r.Method == http.MethodGet && s.onGet != nil {
				s.onGet(c)
				return
			}
			if r.Method != http.MethodPost {
				c.Answer(405, "", "")
				continue
			}
			s.posts.add(string(body))
			var m struct {
				ID     json.RawMessage
				Method string
			}
			_ = json.Unmarshal(body, &m)
			switch m.Method {
			case "initialize":
				if s.onInitialize != nil {
					s.onInitialize(c, string(m.ID))
					continue
				}
				c.Answer(200, "application/json", `{"jsonrpc":"2.0","id":`+string(m.ID)+`,"result":{"protocolVersion":"2025-06-18","capabilities":{"tools":{"listChanged":true}},"serverInfo":{"name":"script","version":"0"}}}`, "Mcp-Session-Id: s1")
			case "tools/call":
				s.onCall(c, string(m.ID), string(body))
			case "tools/list":
				c.JSON(`{"jsonrpc":"2.0","id":` + string(m.ID) + `,"result":{"tools":` + cmp.Or(s.tools, "[]") + `}}`)
			case "":
				c.Answer(max(s.onAnswer, 202), "", "")
			default:
				if m.ID == nil {
					c.Answer(202, "", "")
					continue
				}
				// As TypeScript servers answer what comes before initialize, with an id of a session that never was.
				c.Answer(400, "application/json", `{"jsonrpc":"2.0","error":{"code":-32000,"message":"Bad Request: Server not initialized"},"id":null}`, "Mcp-Session-Id: minted")
			}
		}
	})
	return s
}

const streamHead = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"

// event is one event as a chunk.
func event(data string) string {
	data = "data: " + data + "\n\n"
	return fmt.Sprintf("%x\r\n%s\r\n", len(data), data)
}

const lastChunk = "0\r\n\r\n"

func answeredBy(id, result string) string {
	return `{"jsonrpc":"2.0","id":` + id + `,"result":` + result + `}`
}

const done = `{"content":[{"type":"text","text":"done"}]}`

// A target may use 0 and what looks like the client's ids for its own requests.
func TestBridgeTargetsIDs(t *testing.T) {
	for _, id := range []string{"0", "7", `"7"`, "9007199254740993", `"a\u0062"`} {
		said := make(chan struct{})
		s := &script{}
		s.onCall = func(c *mcptest.Conn, call, _ string) {
			c.Send(streamHead, event(`{"jsonrpc":"2.0","id":`+id+`,"method":"elicitation/create","params":{"message":"?","requestedSchema":{"type":"object","properties":{}}}}`))
			<-said
			c.Send(event(answeredBy(call, done)), lastChunk)
		}
		p := behind(newScriptTarget(t, s).URL).start(t)
		key, state := p.asked(t)
		go func() {
			waitFor(t, "the answer", func() bool { return len(s.posts.with(`"action"`)) > 0 })
			close(said)
		}()
		if got := p.retry(t, `{"`+key+`":{"action":"accept","content":{"n":1e400}}}`, state); textOf(t, got) != "done" {
			t.Errorf("%s: %s", id, got.body)
		}
		if got, want := s.posts.with(`"action"`)[0], `{"jsonrpc":"2.0","id":`+id+`,"result":{"action":"accept","content":{"n":1e400}}}`; got != want {
			t.Errorf("the target got %s, want %s", got, want)
		}
	}
}

// What a target asks while no call is open is answered here: with no roots, and else with an error.
func bridgeAsksOutsideOfCalls(t *testing.T) {
	s := &script{}
	s.onGet = func(c *mcptest.Conn) {
		c.Send(streamHead, event(`{"jsonrpc":"2.0","id":0,"method":"roots/list"}`), event(`{"jsonrpc":"2.0","id":1,"method":"elicitation/create","params":{"message":"?"}}`),
			event(`{"jsonrpc":"2.0","id":2,"method":"ping"}`), event(`{"jsonrpc":"2.0","id":3,"method":"vendor/x"}`))
		c.Hang()
	}
	w := behind(newScriptTarget(t, s).URL)
	w.targets[0].SessionScope = sharedByCaller
	p := w.start(t)
	if got := p.stateless(t, "tools/list", "", "", "caps", `{"roots":{},"elicitation":{}}`); got.result(t).ResultType != "complete" {
		t.Errorf("%s", got.body)
	}
	for id, want := range map[string]string{
		`"id":0,`: `"result":{"roots":[]}`, `"id":1,`: `"code":-32601`, `"id":2,`: `"result":{}`, `"id":3,`: `"code":-32601`,
	} {
		waitFor(t, "an answer to "+id, func() bool { return len(s.posts.with(id)) > 0 })
		if got := s.posts.with(id); len(got) != 1 || !strings.Contains(got[0], want) {
			t.Errorf("%s: %v, want %s", id, got, want)
		}
	}
}

// Answers of a call that break the rules end the call, and nothing else.
func bridgeBadAnswers(t *testing.T) {
	for name, tt := range map[string]struct {
		answer func(c *mcptest.Conn, id, body string)
		status int
		want   string // in the answer
	}{
		"an error without an id": {func(c *mcptest.Conn, _, _ string) {
			c.Answer(400, "application/json", `{"jsonrpc":"2.0","error":{"code":-32000,"message":"Bad Request"},"id":null}`)
		}, 400, `"id":7}`},
		"an error without even null": {func(c *mcptest.Conn, _, _ string) { c.JSON(`{"jsonrpc":"2.0","error":{"code":-1,"message":"no"}}`) }, 200, `"id":7,`},
		"a version that it does not have": {func(c *mcptest.Conn, id, _ string) {
			c.Answer(400, "application/json", `{"jsonrpc":"2.0","id":`+id+`,"error":{"code":-32022,"message":"Unsupported","data":{"supported":["2026-07-28"]}}}`)
		}, 400, `"code":-32603`},
		"a method that it does not have": {func(c *mcptest.Conn, id, _ string) {
			c.JSON(`{"jsonrpc":"2.0","id":` + id + `,"error":{"code":-32601,"message":"no"}}`)
		}, 404, `"code":-32601`},
		"a resource that it does not have": {func(c *mcptest.Conn, id, _ string) {
			c.JSON(`{"jsonrpc":"2.0","id":` + id + `,"error":{"code":-32002,"message":"no","data":{"uri":"a:b"}}}`)
		}, 200, `"code":-32602,"message":"no","data":{"uri":"a:b"}`},
		"a stream without a response": {func(c *mcptest.Conn, _, _ string) {
			c.Send(streamHead, event(`{"jsonrpc":"2.0","method":"x"}`), lastChunk)
		}, 200, "broke off"},
		"nothing": {func(c *mcptest.Conn, _, _ string) { c.Answer(202, "", "") }, 502, "broke off"},
		"another one's response": {func(c *mcptest.Conn, id, _ string) {
			c.Send(streamHead, event(answeredBy(`"x"`, done)), event(answeredBy(id, done)), lastChunk)
		}, 200, "done"},
		"no JSON": {func(c *mcptest.Conn, _, _ string) { c.Send(streamHead, event(`{"jsonrpc":`), lastChunk) }, 502, "broke off"},
		"a page":  {func(c *mcptest.Conn, _, _ string) { c.Answer(500, "text/html", "<h1>secret</h1>") }, 502, "no MCP"},
		"a challenge": {func(c *mcptest.Conn, _, _ string) {
			c.Answer(401, "application/json", `{"jsonrpc":"2.0","id":7,"result":{}}`)
		}, 502, "credentials"},
		"a result that is none": {func(c *mcptest.Conn, id, _ string) { c.JSON(answeredBy(id, `[1]`)) }, 200, `"result":[1]`},
		"a result that says two things": {func(c *mcptest.Conn, id, _ string) {
			c.JSON(answeredBy(id, `{"content":[],"content":[]}`))
		}, 502, "broke off"},
	} {
		t.Run(name, func(t *testing.T) {
			s := &script{onCall: tt.answer}
			w := behind(newScriptTarget(t, s).URL)
			w.targets[0].SessionScope = sharedByCaller
			p := w.start(t)
			got := p.stateless(t, "tools/call", "x", `"name":"x"`)
			if got.status != tt.status || !strings.Contains(got.last(), tt.want) || strings.Contains(got.body, "secret") {
				t.Errorf("%d %s, want %d %s", got.status, got.body, tt.status, tt.want)
			}
			if n := len(s.posts.with(`"tools/call"`)); n != 1 {
				t.Errorf("called %d times", n)
			}
			s.onCall = func(c *mcptest.Conn, id, _ string) { c.JSON(answeredBy(id, done)) }
			if got := p.stateless(t, "tools/call", "x", `"name":"x"`); textOf(t, got) != "done" {
				t.Errorf("the next call: %s", got.body)
			}
		})
	}
}

// A target that will not begin a session is named, and an id that comes with its refusal is no session.
func bridgeRefusedSession(t *testing.T) {
	for name, tt := range map[string]struct {
		answer func(c *mcptest.Conn, id string)
		want   string
	}{
		"an error": {func(c *mcptest.Conn, id string) {
			c.Answer(200, "application/json", `{"jsonrpc":"2.0","id":`+id+`,"error":{"code":1,"message":"closed on Sundays"}}`, "Mcp-Session-Id: minted")
		}, "closed on Sundays"},
		"versions without end": {func(c *mcptest.Conn, id string) {
			c.Answer(400, "application/json", `{"jsonrpc":"2.0","id":`+id+`,"error":{"code":-32022,"message":"Unsupported","data":{"supported":["2026-07-28","2025-11-25"]}}}`, "Mcp-Session-Id: minted")
		}, "Unsupported"},
		"an unknown version": {func(c *mcptest.Conn, id string) {
			c.JSON(`{"jsonrpc":"2.0","id":` + id + `,"result":{"protocolVersion":"1999-01-01","capabilities":{},"serverInfo":{"name":"x","version":"0"}}}`)
		}, "1999-01-01"},
		"a page": {func(c *mcptest.Conn, _ string) { c.Answer(200, "text/html", "<form>") }, "no MCP"},
	} {
		t.Run(name, func(t *testing.T) {
			s := &script{onInitialize: tt.answer}
			w := behind(newScriptTarget(t, s).URL)
			w.targets[0].ProtocolVersions = []string{"2025-06-18"} // else the probe finds it out
			p := w.start(t)
			got := p.stateless(t, "tools/call", "x", `"name":"x"`)
			if got.status != 502 || !strings.Contains(got.body, "-32603") || !strings.Contains(got.body, `target \"only\"`) || !strings.Contains(got.body, tt.want) {
				t.Errorf("%d %s", got.status, got.body)
			}
			if n := len(s.posts.with("")); n != 1 {
				t.Errorf("the target was asked %d times: %v", n, s.posts.with(""))
			}
		})
	}
}

const elicitAgain = `{"jsonrpc":"2.0","id":0,"method":"elicitation/create","params":{"message":"?","requestedSchema":{"type":"object","properties":{}}}}`

// What becomes of a parked call while nobody looks, its client is told when it comes back.
func TestBridgeWhileParked(t *testing.T) {
	for name, tt := range map[string]struct {
		then   func(c *mcptest.Conn, id string)
		answer int // status
		status int
		want   string
		sent   int // answers that the target got
	}{
		"breaks off": {func(c *mcptest.Conn, _ string) {}, 0, 502, "broke off its answer", 0},
		"answers":    {func(c *mcptest.Conn, id string) { c.Send(event(answeredBy(id, done)), lastChunk) }, 0, 200, "done", 0},
		"takes its request back": {func(c *mcptest.Conn, id string) {
			c.Send(event(`{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":0}}`), event(answeredBy(id, done)), lastChunk)
		}, 0, 200, "done", 0},
	} {
		t.Run(name, func(t *testing.T) {
			parked, over := make(chan struct{}), make(chan struct{})
			s := &script{onAnswer: tt.answer}
			s.onCall = func(c *mcptest.Conn, id, _ string) {
				c.Send(streamHead, event(elicitAgain))
				<-parked
				tt.then(c, id)
				_ = c.Close()
				close(over)
			}
			p := behind(newScriptTarget(t, s).URL).start(t)
			key, state := p.asked(t)
			close(parked)
			<-over
			// The proxy reads on by itself; until it has, the answer would still be sent.
			got := p.retry(t, accepted(key), state)
			if got.status != tt.status || !strings.Contains(got.body, tt.want) {
				t.Errorf("%d %s", got.status, got.body)
			}
			if n := len(s.posts.with(`"tools/call"`)); n != 1 {
				t.Errorf("called %d times", n)
			}
		})
	}
	t.Run("loses the session", func(t *testing.T) {
		s := &script{onAnswer: 404}
		s.onCall = func(c *mcptest.Conn, _, _ string) {
			c.Send(streamHead, event(elicitAgain))
			c.Hang()
		}
		p := behind(newScriptTarget(t, s).URL).start(t)
		key, state := p.asked(t)
		if got := p.retry(t, accepted(key), state); got.status != 502 || !strings.Contains(got.body, `target \"only\"`) {
			t.Errorf("%d %s", got.status, got.body)
		}
		if n := len(s.posts.with(`"tools/call"`)); n != 1 {
			t.Errorf("called %d times", n)
		}
	})
}

// A session that the target has lost is begun anew where it has processed nothing.
func bridgeLostSession(t *testing.T) {
	s := &script{}
	gone := false
	s.onCall = func(c *mcptest.Conn, id, _ string) {
		if gone {
			gone = false
			c.Answer(404, "application/json", `{"jsonrpc":"2.0","id":null,"error":{"code":-32001,"message":"Session not found"}}`)
			return
		}
		c.JSON(answeredBy(id, done))
	}
	w := behind(newScriptTarget(t, s).URL)
	w.targets[0].SessionScope = sharedByCaller
	p := w.start(t)
	for range 2 {
		if got := p.stateless(t, "tools/call", "x", `"name":"x"`); textOf(t, got) != "done" {
			t.Errorf("%s", got.body)
		}
	}
	before := len(s.posts.with(`"initialize"`))
	gone = true
	if got := p.stateless(t, "tools/call", "x", `"name":"x"`); textOf(t, got) != "done" {
		t.Errorf("%s", got.body)
	}
	if n := len(s.posts.with(`"initialize"`)) - before; n != 1 {
		t.Errorf("%d sessions were begun, want 1", n)
	}
}

// A URL that the target wants visited first is a question; the call is sent anew when the client has been there.
func TestBridgeURLElicitation(t *testing.T) {
	visited := false
	s := &script{}
	s.onCall = func(c *mcptest.Conn, id, _ string) {
		if visited {
			c.JSON(answeredBy(id, done))
			return
		}
		c.JSON(`{"jsonrpc":"2.0","id":` + id + `,"error":{"code":-32042,"message":"visit","data":{"elicitations":[{"mode":"url","elicitationId":"e1","url":"https://x.example/","message":"Sign in"}]}}}`)
	}
	p := behind(newScriptTarget(t, s).URL).start(t)
	call := func(more string, caps string) answer {
		return p.stateless(t, "tools/call", "x", `"name":"x","arguments":{}`+more, "caps", caps)
	}
	const canVisit = `{"elicitation":{"url":{}}}`
	if got := call("", canElicit); got.result(t).Error.Code != -32603 {
		t.Errorf("a client that cannot visit: %s", got.body)
	}
	got := call("", canVisit)
	r := got.result(t)
	if r.ResultType != "input_required" || len(r.InputRequests) != 1 || strings.Contains(got.body, `"e1"`) {
		t.Fatalf("%s", got.body)
	}
	var key string
	for k, request := range r.InputRequests {
		key = k
		if request.Params["mode"] != "url" || request.Params["url"] != "https://x.example/" {
			t.Errorf("asked %v", request)
		}
	}
	if got := call(`,"requestState":"`+r.RequestState+`","inputResponses":{"`+key+`":{"action":"decline"}}`, canVisit); got.result(t).Error.Code != -32603 {
		t.Errorf("declined: %s", got.body)
	}
	visited = true
	if got := call(`,"requestState":"`+r.RequestState+`","inputResponses":{"`+key+`":{"action":"accept"}}`, canVisit); textOf(t, got) != "done" {
		t.Errorf("visited: %s", got.body)
	}
	calls := s.posts.with(`"tools/call"`)
	if last := calls[len(calls)-1]; strings.Contains(last, "requestState") || strings.Contains(last, "inputResponses") {
		t.Errorf("the target was sent %s", last)
	}
}

// Bytes that only pass through are the same on both sides.
func TestBridgeBytes(t *testing.T) {
	for _, id := range []string{"0", "-0", `""`, `"a\u0062\/"`, "9223372036854775808", "1.5", "1e3"} {
		const args = `{ "z":1,"a":9223372036854775808 ,"f":1e400,"u":"\u00e9\/<>&","n":[ ],"dup":{"k":-0.0}}`
		const result = `{ "content" : [ {"type":"text","text":"\u003cé\/","vendor":{"x":9223372036854775809}} ] ,"structuredContent":[1e400,-0.0],"isError":false, "extra":{"b":1,"a":2},"_meta":{"v/x": 1 }}`
		s := &script{}
		s.onCall = func(c *mcptest.Conn, id, _ string) {
			c.JSON(` {"jsonrpc":"2.0", "result":` + result + `,"id":` + id + `,"x":1}`)
		}
		p := behind(newScriptTarget(t, s).URL).start(t)
		got := p.post(t, "", `{ "jsonrpc":"2.0","id":`+id+`,"method":"tools\/call","params":{"arguments":`+args+`,"name":"\u0078","vendor":[1e400],"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28",`+
			` "progressToken" : 1.0,"io.modelcontextprotocol/clientCapabilities":{},"traceparent":"00-\u0061","io.modelcontextprotocol/clientInfo":{"name":"raw","version":"1"}}} , "y":2}`,
			"MCP-Protocol-Version", "2026-07-28", "Mcp-Method", "tools/call", "Mcp-Name", "x")
		sent := s.posts.with(`"vendor"`)
		if want := `{ "jsonrpc":"2.0","id":` + id + `,"method":"tools\/call","params":{"arguments":` + args + `,"name":"\u0078","vendor":[1e400],"_meta":{"progressToken" : 1.0,"traceparent":"00-\u0061"}} , "y":2}`; len(sent) != 1 || sent[0] != want {
			t.Errorf("the target got\n%v\nwant\n%s", sent, want)
		}
		want := ` {"jsonrpc":"2.0", "result":` + strings.Replace(strings.Replace(result, `{ "content"`, `{"resultType":"complete", "content"`, 1),
			`"_meta":{`, `"_meta":{"io.modelcontextprotocol/serverInfo":{"name":"script","version":"0"},`, 1) + `,"id":` + id + `,"x":1}`
		if got.body != strings.TrimSpace(want) && got.body != want {
			t.Errorf("the client got\n%s\nwant\n%s", got.body, want)
		}
	}
}

// checksRegion calls a tool whose argument `region` stands in a header.
func (p *testProxy) checksRegion(t *testing.T) {
	t.Helper()
	for _, tt := range []struct {
		args   string
		header []string
		status int
	}{
		{`{"region":"eu"}`, []string{"Mcp-Param-Region", "eu"}, 200},
		{`{"region":"eu"}`, []string{"Mcp-Param-Region", "us"}, 400},
		{`{"region":"eu"}`, nil, 400},
		{`{}`, []string{"Mcp-Param-Region", "eu"}, 400},
		{`{}`, nil, 200},
		{`{"region":"eu"}`, []string{"Mcp-Param-Region", "eu", "Mcp-Param-Other", "x"}, 200},
	} {
		got := p.stateless(t, "tools/call", "region", `"name":"region","arguments":`+tt.args, tt.header...)
		if got.status != tt.status || tt.status == 400 && got.result(t).Error.Code != -32020 {
			t.Errorf("%s with %v: %d %s", tt.args, tt.header, got.status, got.body)
		}
	}
}

// A child that speaks 2026-07-28 itself sees no headers, and its errors have no status: both are made good here.
func TestStatelessChild(t *testing.T) {
	w := behind()
	w.stdioTarget("it", "params")
	p := w.start(t)
	p.checksRegion(t)
	for _, tt := range []struct {
		method, name, params string
		status, code         int
	}{
		{"tools/call", "nothing", `"name":"nothing","arguments":{}`, 200, -32602},
		{"vendor/thing", "", "", 404, -32601},
	} {
		got := p.stateless(t, tt.method, tt.name, tt.params)
		if got.status != tt.status || got.result(t).Error.Code != tt.code {
			t.Errorf("%s: %d %s, want %d and %d", tt.method, got.status, got.body, tt.status, tt.code)
		}
	}
}

// The headers that repeat arguments are checked here, where nobody behind does.
func TestBridgeParamHeaders(t *testing.T) {
	srv := mcptest.NewServer(t, mcptest.Options{Bare: true})
	with := tool("region")
	with.InputSchema = json.RawMessage(`{"type":"object","properties":{"region":{"type":"string","x-mcp-header":"Region"}}}`)
	srv.MCP.AddTool(with, textHandler("ok"))
	p := behind(srv.URL).start(t)
	p.checksRegion(t)
	for _, r := range srv.Requests() {
		for name := range r.Header {
			if strings.HasPrefix(name, "Mcp-Param-") || name == "Mcp-Name" || name == "Mcp-Method" && r.Header.Get("Mcp-Protocol-Version") != "2026-07-28" {
				t.Errorf("the target got the header %s", name)
			}
		}
	}
}

// Tools that run as a task of the older form alone are not shown, and what is said of tasks is taken off the others.
func TestBridgeToolsOfTasks(t *testing.T) {
	s := &script{tools: `[ {"name":"a","execution":{"taskSupport":"required"},"inputSchema":{"type":"object"}},` +
		` {"name":"b","execution":{"taskSupport":"optional"},"inputSchema":{"type":"object"}} ,{"inputSchema":{"type":"object"},"name":"c", "x":1 }]`}
	p := behind(newScriptTarget(t, s).URL).start(t)
	got := p.stateless(t, "tools/list", "", "")
	if want := `"tools":[ {"name":"b","inputSchema":{"type":"object"}} ,{"inputSchema":{"type":"object"},"name":"c", "x":1 }]`; !strings.Contains(got.last(), want) {
		t.Errorf("%s\nwant %s", got.last(), want)
	}
	if got := p.stateless(t, "tasks/get", "t1", `"taskId":"t1"`); got.status != 404 || got.result(t).Error.Code != -32601 {
		t.Errorf("tasks/get: %d %s", got.status, got.body)
	}
}

// A target that refuses the first request with a version, and lists that version alone, has no sessions to be asked for.
func TestEraOfOneThatRefusesOnce(t *testing.T) {
	var refused atomic.Bool
	srv := mcptest.NewServer(t, mcptest.Options{Stateless: true, Wrap: func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("MCP-Protocol-Version") != "2026-07-28" {
				t.Errorf("%s with version %q", r.Method, r.Header.Get("MCP-Protocol-Version"))
			}
			if refused.Swap(true) {
				next.ServeHTTP(w, r)
				return
			}
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(400)
			_, _ = io.WriteString(w, `{"jsonrpc":"2.0","id":"sluice-probe","error":{"code":-32022,"message":"Unsupported","data":{"supported":["2026-07-28"],"requested":"2026-07-28"}}}`)
		})
	}})
	cli := mcptest.Connect(t, behind(srv.URL).start(t).URL, mcptest.ClientOptions{Version: "2026-07-28"})
	if got := cli.Call(t, "echo", map[string]any{"text": "hi"}); got != "hi" {
		t.Errorf("%q", got)
	}
}
