package dataplane

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/sluicegate/sluice/internal/mcptest"
)

// The traps that clients lay: versions, ids, names, leaving, sessions.

func trapInitialize(t *testing.T) {
	for _, stateless := range []bool{false, true} {
		target := newRaw(t, stateless, nil)
		p := behind(target.URL).start(t)
		for _, version := range []string{"2025-11-25", "2026-07-28"} { // in the body
			got := p.post(t, "", `{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"`+version+`","capabilities":{},"clientInfo":{"name":"raw","version":"1"}}}`,
				"MCP-Protocol-Version", "2026-07-28", "Mcp-Method", "initialize")
			if got.status != 404 || got.result(t).Error.Code != -32601 || got.header.Get("Mcp-Session-Id") != "" {
				t.Errorf("stateless %v, body %s: %d %s, want 404 and -32601", stateless, version, got.status, got.body)
			}
		}
		if n := len(target.posts.with("")); n != 0 {
			t.Errorf("the target saw %d requests", n)
		}
	}
}

func trapIDs(t *testing.T) {
	eachCell(t, func(t *testing.T, client string, stateless bool) {
		target := newRaw(t, stateless, nil)
		p := behind(target.URL).start(t)
		session := p.begun(t, client)
		for _, id := range []string{`0`, `-0`, `""`, `"0"`, `9007199254740993`, `9223372036854775808`, `-9223372036854775809`, `"a\u0062\/"`, `1.5`, `1e3`} {
			for _, call := range [][3]string{{"tools/call", "safe", `"name":"safe","arguments":{"region":"eu"}`}, {"prompts/list", "", ""}} {
				got := p.askAs(t, id, client, session, call[0], call[1], call[2], "Mcp-Param-Region", "eu")
				if got.status != 200 || !strings.HasPrefix(got.last(), `{"jsonrpc":"2.0","id":`+id+`,"result":`) {
					t.Errorf("%s with id %s: %d %s", call[0], id, got.status, got.body)
				}
				sent := target.posts.with(fmt.Sprintf("%q", call[0]))
				if last := sent[max(0, len(sent)-1):]; !strings.Contains(strings.Join(last, ""), `"id":`+id+`,`) {
					t.Errorf("the target got %s, want id %s", last, id)
				}
			}
		}
	})
}

// askAs is ask with an id of the test's.
func (p *testProxy) askAs(t testing.TB, id, version, session, method, name, params string, headers ...string) answer {
	t.Helper()
	if version != "2026-07-28" {
		return p.post(t, session, `{"jsonrpc":"2.0","id":`+id+`,"method":"`+method+`","params":{`+params+`}}`)
	}
	if params != "" {
		params += ","
	}
	headers = append([]string{"MCP-Protocol-Version", version, "Mcp-Method", method}, headers...)
	if name != "" {
		headers = append(headers, "Mcp-Name", name)
	}
	return p.post(t, "", `{"jsonrpc":"2.0","id":`+id+`,"method":"`+method+`","params":{`+params+`"_meta":{"io.modelcontextprotocol/protocolVersion":"`+version+
		`","io.modelcontextprotocol/clientCapabilities":{}}}}`, headers...)
}

// An empty cursor is one like any other, on both legs.
func trapCursors(t *testing.T) {
	pages := func(c *mcptest.Conn, req rawCall) {
		if strings.Contains(req.body, `"cursor":""`) {
			c.JSON(req.result(`{"resultType":"complete","tools":[{"name":"second","inputSchema":{"type":"object"}}]}`))
			return
		}
		c.JSON(req.result(`{"resultType":"complete","tools":[{"name":"first","inputSchema":{"type":"object"}}],"nextCursor":""}`))
	}
	eachCell(t, func(t *testing.T, client string, stateless bool) {
		for _, n := range []int{1, 2} {
			one := newRaw(t, stateless, map[string]func(*mcptest.Conn, rawCall){"tools/list": pages})
			other := newRaw(t, stateless, nil)
			w := behind("a="+one.URL, "b="+other.URL)
			w.targets = w.targets[:n]
			p := w.start(t)
			session := p.begun(t, client)
			first := p.ask(t, client, session, "tools/list", "", "")
			next := nextCursor(t, first)
			if n == 1 && next != `""` || next == "" || !strings.Contains(first.body, `first"`) {
				t.Fatalf("%d targets: next cursor %s of %s", n, next, first.body)
			}
			second := p.ask(t, client, session, "tools/list", "", `"cursor":`+next)
			if !strings.Contains(second.body, `second"`) || strings.Contains(second.body, `first"`) || nextCursor(t, second) != "" {
				t.Errorf("%d targets: the second page is %s", n, second.body)
			}
		}
	})
}

// nextCursor is that of a list, as JSON; "" for none.
func nextCursor(t testing.TB, a answer) string {
	t.Helper()
	_, rest, ok := strings.Cut(a.last(), `"nextCursor":"`)
	if !ok {
		return ""
	}
	cursor, _, _ := strings.Cut(rest, `"`)
	return `"` + cursor + `"`
}

// An old client that leaves has not cancelled, also where its target is of the era in which that is what it means.
func trapOldClientLeaves(t *testing.T) {
	started, release, over := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	target := newRaw(t, true, map[string]func(*mcptest.Conn, rawCall){"tools/call": func(c *mcptest.Conn, req rawCall) {
		if !strings.Contains(req.body, "slow") {
			c.JSON(req.result(`{"resultType":"complete","content":[]}`))
			return
		}
		close(started)
		<-release
		// A connection that was given up is noticed by who reads from it.
		_ = c.SetReadDeadline(time.Now().Add(time.Millisecond))
		_, err := c.Conn.Read(make([]byte, 1))
		over <- err
		_ = c.SetReadDeadline(time.Time{})
		c.JSON(req.result(`{"resultType":"complete","content":[]}`))
	}})
	p := behind(target.URL).start(t)
	session := p.initialize(t, "2025-11-25")
	leaving := p.leaves(t, session, `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"safe","arguments":{"region":"slow"}}}`)
	<-started
	leaving()
	if got := p.post(t, session, `{"jsonrpc":"2.0","id":2,"method":"tools/call","params":{"name":"safe","arguments":{"region":"eu"}}}`); got.status != 200 {
		t.Errorf("another call: %d %s", got.status, got.body)
	}
	close(release)
	if err := <-over; !isTimeout(err) {
		t.Errorf("the target saw its request given up: %v", err)
	}
}

// leaves begins a request; the function that it returns gives it up.
func (p *testProxy) leaves(t testing.TB, session, body string) func() {
	t.Helper()
	conn := p.dial(t)
	head := "POST /mcp HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nAccept: application/json, text/event-stream\r\nMcp-Session-Id: " + session +
		fmt.Sprintf("\r\nContent-Length: %d\r\n\r\n", len(body))
	if _, err := conn.Write([]byte(head + body)); err != nil {
		t.Fatal(err)
	}
	return func() { _ = conn.Close() }
}

// A cancel that comes to another proxy reaches the target all the same.
func trapCancelElsewhere(t *testing.T) {
	for _, stateless := range []bool{false, true} {
		t.Run(fmt.Sprintf("stateless target %v", stateless), func(t *testing.T) {
			started, gone, release := make(chan struct{}), make(chan struct{}), make(chan struct{})
			target := newRaw(t, stateless, map[string]func(*mcptest.Conn, rawCall){"tools/call": func(c *mcptest.Conn, req rawCall) {
				close(started)
				if !stateless { // it was told, and may take its time
					<-release
					c.JSON(req.result(done))
					return
				}
				c.Hang()
				close(gone)
			}})
			g := newGroup(t, behind(target.URL), 2)
			session := g.proxies[0].initialize(t, "2025-11-25")
			leave := g.proxies[0].leaves(t, session, `{"jsonrpc":"2.0","id":"c1","method":"tools/call","params":{"name":"safe","arguments":{"region":"eu"}}}`)
			<-started
			if got := g.proxies[1].post(t, session, `{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":"c1","reason":"\u0061"}}`); got.status != 202 {
				t.Errorf("%d %s", got.status, got.body)
			}
			if stateless { // cancelling is closing
				select {
				case <-gone:
				case <-time.After(10 * time.Second):
					t.Error("the target's request goes on")
				}
			} else if sent := target.posts.with("notifications/cancelled"); len(sent) != 1 || !strings.Contains(sent[0], `"params":{"requestId":"c1","reason":"\u0061"}`) {
				t.Errorf("the target was told %v", sent)
			}
			if n := target.counted("tools/call"); n != 1 {
				t.Errorf("called %d times", n)
			}
			leave()
			close(release)
		})
	}
}

func trapLongSession(t *testing.T) {
	target := newRaw(t, false, nil)
	p := behind(target.URL).start(t)
	session := p.initialize(t, "2025-11-25")
	before := len(target.posts.with(""))
	for _, id := range []string{session + strings.Repeat("A", 9<<10), strings.Repeat("A", 9<<10), strings.Repeat("A", 64<<10)} {
		for _, method := range []string{http.MethodPost, http.MethodGet, http.MethodDelete} {
			if got := p.do(t, method, id, `{"jsonrpc":"2.0","id":1,"method":"ping"}`); got.status != 404 || got.header.Get("Mcp-Session-Id") != "" {
				t.Errorf("%s with a session id of %d bytes: %d %s", method, len(id), got.status, got.body)
			}
		}
	}
	if n := len(target.posts.with("")); n != before {
		t.Errorf("the target saw %d requests", n-before)
	}
	if got := p.post(t, session, listTools); got.status != 200 {
		t.Errorf("the session itself: %d %s", got.status, got.body)
	}
}

// What targets call their sessions makes no id that clients cannot carry: the session is refused, and ended where it had begun.
func trapLongTargetSession(t *testing.T) {
	for _, n := range []int{1, 3} {
		long := map[string]func(*mcptest.Conn, rawCall){"initialize": func(c *mcptest.Conn, req rawCall) {
			c.Answer(200, "application/json", wellAnswered("initialize", req.id, false), "Mcp-Session-Id: "+strings.Repeat("s", 9<<10/n))
		}}
		var targets []string
		var raws []*raw
		for i := range n {
			raws = append(raws, newRaw(t, false, long))
			targets = append(targets, fmt.Sprintf("t%d=%s", i, raws[i].URL))
		}
		p := behind(targets...).start(t)
		got := p.post(t, "", `{"jsonrpc":"2.0","id":0,"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{},"clientInfo":{"name":"raw","version":"1"}}}`)
		if id := got.header.Get("Mcp-Session-Id"); id != "" || got.status < 400 || got.result(t).Error.Code == 0 {
			t.Errorf("%d targets: %d %s with a session id of %d bytes", n, got.status, got.body, len(id))
		}
		t.Log(got.status, got.body)
		// A client without sessions is none the worse for it.
		if got := p.ask(t, "2026-07-28", "", "tools/list", "", ""); got.status != 200 || got.result(t).Error.Code != 0 {
			t.Errorf("%d targets, a stateless client: %d %s", n, got.status, got.body)
		}
	}
}

// Mcp-Name is compared decoded: Base64, raw UTF-8 and what only looks like Base64. Targets get the client's form: there are servers
// that decode none, as go-sdk's, and those that take no other.
func trapName(t *testing.T) {
	names := []string{"naïve", "日本", "=?base64?x", "=?base64?YQ==?=", "a b", "\ttab", "end "}
	list := func(c *mcptest.Conn, req rawCall) {
		tools := ""
		for _, name := range names {
			tools += `,{"name":` + mustJSON(name) + `,"inputSchema":{"type":"object"}}`
		}
		c.JSON(req.result(`{"resultType":"complete","tools":[` + tools[1:] + `]}`))
	}
	eachCell(t, func(t *testing.T, client string, stateless bool) {
		target := newRaw(t, stateless, map[string]func(*mcptest.Conn, rawCall){"tools/list": list})
		p := behind(target.URL).start(t)
		session := p.begun(t, client)
		for _, name := range names {
			forms := map[string]int{encodeHeader(name): 200}
			if client == "2026-07-28" {
				forms[encodeHeader("other")] = 400
				if strings.TrimSpace(name) == name && !strings.HasPrefix(name, "=?") {
					forms[name] = 200
				}
				if name == "=?base64?YQ==?=" {
					forms[name] = 400 // it says "a"
				}
			}
			for header, want := range forms {
				before := target.counted("tools/call")
				got := p.ask(t, client, session, "tools/call", header, `"name":`+mustJSON(name))
				if got.status != want || want == 400 && got.result(t).Error.Code != -32020 {
					t.Errorf("%q as %q: %d %s, want %d", name, header, got.status, got.body, want)
				}
				if n := target.counted("tools/call") - before; n != map[int]int{200: 1, 400: 0}[want] {
					t.Errorf("%q as %q: the target was called %d times", name, header, n)
				}
				if want != 200 {
					continue
				}
				h := target.header(t, `"tools/call"`)
				if sent := h.Get("Mcp-Name"); stateless && client == "2026-07-28" && sent != header || stateless && sent != name && sent != encodeHeader(name) || !stateless && client == "2026-07-28" && sent != "" {
					t.Errorf("%q as %q: the target got Mcp-Name %q", name, header, sent)
				}
			}
		}
		if client != "2026-07-28" || !stateless {
			return
		}
		// So they do where it is not the client's name, unless it cannot be said so.
		other := newRaw(t, stateless, nil)
		p = behind("a="+target.URL, "b="+other.URL).start(t)
		for _, tt := range []struct{ name, header, want string }{
			{"naïve", "a_naïve", "naïve"}, {"naïve", encodeHeader("a_naïve"), encodeHeader("naïve")}, {"日本", "a_日本", "日本"},
			{"a b", encodeHeader("a_a b"), "a b"}, {"=?base64?YQ==?=", "a_=?base64?YQ==?=", encodeHeader("=?base64?YQ==?=")}, {" é", "a_ é", encodeHeader(" é")},
		} {
			got := p.ask(t, client, "", "tools/call", tt.header, `"name":`+mustJSON("a_"+tt.name))
			if sent := target.header(t, `"tools/call"`).Get("Mcp-Name"); got.status != 200 || sent != tt.want {
				t.Errorf("%q as %q: %d %s; the target got Mcp-Name %q, want %q", tt.name, tt.header, got.status, got.body, sent, tt.want)
			}
		}
	})
}
