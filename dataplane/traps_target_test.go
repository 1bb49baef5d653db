package dataplane

import (
	"fmt"
	"strings"
	"testing"

	"github.com/sluicegate/sluice/internal/mcptest"
	xdsv1 "github.com/sluicegate/sluice/proto/gen/sluice/xds/v1"
)

// The traps that targets lay: what they answer, when, and in how many pieces.

// A target that refuses the very version it lists is not asked for ever, by neither leg.
func trapVersionLoop(t *testing.T) {
	refuses := func(c *mcptest.Conn, req rawCall) {
		c.Answer(400, "application/json", `{"jsonrpc":"2.0","id":`+req.id+`,"error":{"code":-32022,"message":"Unsupported","data":{"supported":["2026-07-28","2025-11-25"],"requested":"2026-07-28"}}}`)
	}
	eachCell(t, func(t *testing.T, client string, stateless bool) {
		for _, from := range []string{"the start", "the session"} {
			target := newRaw(t, stateless, nil)
			if from == "the start" {
				target.on("*", refuses)
			}
			p := behind("a=" + target.URL).start(t)
			session, got := "", answer{}
			if client != "2026-07-28" {
				got = p.post(t, "", `{"jsonrpc":"2.0","id":7,"method":"initialize","params":{"protocolVersion":"`+client+`","capabilities":{},"clientInfo":{"name":"raw","version":"1"}}}`)
				session = got.header.Get("Mcp-Session-Id")
			} else if from == "the session" {
				p.ask(t, client, "", "prompts/list", "", "")
			}
			if from == "the session" {
				target.on("*", refuses)
			}
			for range 3 {
				before := len(target.posts.with(""))
				if session != "" || client == "2026-07-28" {
					got = p.ask(t, client, session, "tools/call", "safe", `"name":"safe"`)
				}
				if r := got.result(t); r.Error.Code == 0 {
					t.Errorf("from %s: %d %s", from, got.status, got.body)
				}
				if n := len(target.posts.with("")) - before; n > 6 {
					t.Errorf("from %s: the target was asked %d times: %v", from, n, target.posts.with("")[before:])
				}
			}
		}
	})
}

// Nothing comes before the acknowledgement, though one target has news when the other has not answered yet.
func trapAcknowledged(t *testing.T) {
	const meta = `"_meta":{"io.modelcontextprotocol/subscriptionId":$ID}`
	says := func(id, method, more string) string {
		return event(`{"jsonrpc":"2.0","method":"notifications/` + method + `","params":{` + more + strings.ReplaceAll(meta, "$ID", id) + `}}`)
	}
	quick, wake, told := make(chan struct{}), make(chan struct{}), make(chan struct{})
	fast := newRaw(t, true, map[string]func(*mcptest.Conn, rawCall){"subscriptions/listen": func(c *mcptest.Conn, req rawCall) {
		c.Send(streamHead, says(req.id, "subscriptions/acknowledged", `"notifications":{"toolsListChanged":true},`)+says(req.id, "tools/list_changed", ""))
		close(quick)
		c.Hang()
	}})
	slow := newRaw(t, true, map[string]func(*mcptest.Conn, rawCall){"subscriptions/listen": func(c *mcptest.Conn, req rawCall) {
		c.Send(streamHead)
		<-wake
		c.Send(says(req.id, "tools/list_changed", "")) // a target that breaks the rule itself
		c.Send(says(req.id, "subscriptions/acknowledged", `"notifications":{"toolsListChanged":true,"resourceSubscriptions":["test://files/safe"]},`))
		close(told)
		c.Hang()
	}})
	p := behind("fast="+fast.URL, "slow="+slow.URL).start(t)
	s := make(chan *eventStream, 1)
	go func() {
		s <- p.listen(t, `"L"`, `{"toolsListChanged":true,"promptsListChanged":true,"resourceSubscriptions":["slow+test://files/safe"]}`)
	}()
	<-quick
	close(wake)
	<-told
	stream := <-s
	first := mustJSON(<-stream.msgs)
	if !strings.Contains(first, `"method":"notifications/subscriptions/acknowledged"`) || !strings.Contains(first, `"io.modelcontextprotocol/subscriptionId":"L"`) {
		t.Errorf("the first message is %s", first)
	}
	if got := mustJSON(stream.next(t, "notifications/tools/list_changed")); !strings.Contains(got, `"io.modelcontextprotocol/subscriptionId":"L"`) {
		t.Errorf("then %s", got)
	}
	for _, m := range stream.rest() {
		if m["method"] == "notifications/subscriptions/acknowledged" {
			t.Errorf("acknowledged twice: %v", m)
		}
	}
}

// All pages of a list have one cacheScope, also when the target that makes it private is not on the later ones, and when it speaks
// of no scope at all.
func trapCacheScope(t *testing.T) {
	paged := func(scope string) func(*mcptest.Conn, rawCall) {
		return func(c *mcptest.Conn, req rawCall) {
			page := `"tools":[{"name":"first","inputSchema":{"type":"object"}}],"nextCursor":"2"`
			if strings.Contains(req.body, `"cursor":"2"`) {
				page = `"tools":[{"name":"second","inputSchema":{"type":"object"}}]`
			}
			c.JSON(req.result(`{"resultType":"complete","ttlMs":60000,"cacheScope":"` + scope + `",` + page + `}`))
		}
	}
	private := newRaw(t, true, nil) // of one page
	for name, tt := range map[string]struct {
		targets []string
		want    string
	}{
		"public":                        {[]string{"a=" + newRaw(t, true, map[string]func(*mcptest.Conn, rawCall){"tools/list": paged("public")}).URL, "c=" + newRaw(t, true, map[string]func(*mcptest.Conn, rawCall){"tools/list": paged("public")}).URL}, "public"},
		"beside a private one":          {[]string{"a=" + newRaw(t, true, map[string]func(*mcptest.Conn, rawCall){"tools/list": paged("public")}).URL, "b=" + private.URL}, "private"},
		"beside one of the other era":   {[]string{"a=" + newRaw(t, true, map[string]func(*mcptest.Conn, rawCall){"tools/list": paged("public")}).URL, "b=" + newRaw(t, false, nil).URL}, "private"},
		"the private one is the longer": {[]string{"a=" + newRaw(t, true, map[string]func(*mcptest.Conn, rawCall){"tools/list": paged("private")}).URL, "b=" + private.URL}, "private"},
	} {
		t.Run(name, func(t *testing.T) {
			p := behind(tt.targets...).start(t)
			for range 2 { // once more, from the cache
				page, n := p.ask(t, "2026-07-28", "", "tools/list", "", ""), 1
				for {
					if strings.Count(page.last(), `"cacheScope":"`+tt.want+`"`) != 1 || strings.Count(page.last(), "cacheScope") != 1 {
						t.Errorf("page %d: %s, want it %s", n, page.body, tt.want)
					}
					next := nextCursor(t, page)
					if next == "" {
						break
					}
					page, n = p.ask(t, "2026-07-28", "", "tools/list", "", `"cursor":`+next), n+1
				}
				if n != 2 {
					t.Errorf("%d pages", n)
				}
			}
		})
	}
}

// A 404 that is no lost session is the target's answer to this request, and of a target of the other era it is never a session.
func trapNotFound(t *testing.T) {
	eachCell(t, func(t *testing.T, client string, stateless bool) {
		for _, n := range []int{1, 2} {
			target := newRaw(t, stateless, map[string]func(*mcptest.Conn, rawCall){"resources/read": func(c *mcptest.Conn, req rawCall) {
				c.Answer(404, "application/json", `{"jsonrpc":"2.0","id":`+req.id+`,"error":{"code":-32601,"message":"Method not found: \u0061"}}`)
			}})
			other := newRaw(t, stateless, nil)
			w := behind("a="+target.URL, "b="+other.URL)
			w.targets = w.targets[:n]
			p := w.start(t)
			uri, tool := "test://files/safe", "safe"
			if n == 2 {
				uri, tool = "a+"+uri, "a_safe"
			}
			session := p.begun(t, client)
			got := p.ask(t, client, session, "resources/read", uri, `"uri":"`+uri+`"`)
			want := 200
			if client == "2026-07-28" {
				want = 404 // which is how this era says it
			}
			if got.status != want || !strings.Contains(got.body, `"error":{"code":-32601,"message":"Method not found: \u0061"}`) || got.result(t).Error.Code != -32601 {
				t.Errorf("%d targets: %d %s, want %d and the target's own words", n, got.status, got.body, want)
			}
			if calls := target.counted("resources/read"); calls != 1 {
				t.Errorf("%d targets: asked %d times", n, calls)
			}
			if got := p.ask(t, client, session, "tools/call", tool, `"name":"`+tool+`","arguments":{"region":"eu"}`, "Mcp-Param-Region", "eu"); got.status != 200 || textOf(t, got) != "safe" {
				t.Errorf("%d targets, afterwards: %d %s", n, got.status, got.body)
			}
		}
	})
}

// An event is the same one, whatever its pieces, line ends and comments.
func trapEvents(t *testing.T) {
	forms := map[string]func(data string) []string{
		"LF":           func(d string) []string { return []string{"data: " + d + "\n\n"} },
		"CRLF":         func(d string) []string { return []string{"data: " + d + "\r\n\r\n"} },
		"CR":           func(d string) []string { return []string{"data: " + d + "\r\r"} },
		"byte by byte": func(d string) []string { return strings.Split("event: message\r\nid: 1\r\ndata: "+d+"\r\n\r\n", "") },
		"comments":     func(d string) []string { return []string{": hello\n\n:\n: x\ndata: " + d + "\n: in between\n\n:\n"} },
		"several lines": func(d string) []string {
			return []string{"data:" + strings.ReplaceAll(d, `,"`, "\ndata: ,\"") + "\n\n"}
		},
		"split CRLF":      func(d string) []string { return []string{"data: " + d + "\r", "\n\r", "\n"} },
		"priming":         func(d string) []string { return []string{"id: 0\nretry: 5\ndata:\n\nid: 1\ndata: " + d + "\n\n"} },
		"byte order mark": func(d string) []string { return []string{"\ufeffdata: " + d + "\n\n"} },
		"other types": func(d string) []string {
			return []string{"event: endpoint\ndata: /x\n\n", "event: message\ndata: " + d + "\n\n"}
		},
	}
	eachCell(t, func(t *testing.T, client string, stateless bool) {
		for name, form := range forms {
			target := newRaw(t, stateless, map[string]func(*mcptest.Conn, rawCall){"tools/call": func(c *mcptest.Conn, req rawCall) {
				out := streamHead
				for _, part := range form(req.result(`{"resultType":"complete","content":[{"type":"text","text":"\u00e9, é"}],"n":1e400}`)) {
					out += fmt.Sprintf("%x\r\n%s\r\n", len(part), part)
				}
				c.Send(out + lastChunk)
			}})
			for _, n := range []int{1, 2} {
				w := behind("a="+target.URL, "b="+newRaw(t, stateless, nil).URL)
				w.targets = w.targets[:n]
				p, tool := w.start(t), map[int]string{1: "safe", 2: "a_safe"}[n]
				got := p.ask(t, client, p.begun(t, client), "tools/call", tool, `"name":"`+tool+`","arguments":{"region":"eu"}`, "Mcp-Param-Region", "eu")
				all := eventsOf(strings.TrimPrefix(got.body, "\ufeff"))
				if !strings.HasPrefix(got.header.Get("Content-Type"), "text/event-stream") {
					all = []string{got.body}
				}
				if got.status != 200 || len(all) == 0 || !strings.Contains(strings.ReplaceAll(all[len(all)-1], "\n", ""), `"content":[{"type":"text","text":"\u00e9, é"}],"n":1e400`) {
					t.Errorf("%s, %d targets: %d %q", name, n, got.status, got.body)
				}
			}
		}
	})
}

// An event of 16 MiB comes through; a larger one that has to be read ends the call, in bounded memory.
func trapLargeEvent(t *testing.T) {
	if testing.Short() {
		t.Skip("moves 16 MiB through each pair of eras")
	}
	size := 0
	eachCell(t, func(t *testing.T, client string, stateless bool) {
		target := newRaw(t, stateless, map[string]func(*mcptest.Conn, rawCall){"tools/call": func(c *mcptest.Conn, req rawCall) {
			c.Send("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: " + req.result(`{"resultType":"complete","content":[{"type":"text","text":"`+strings.Repeat("x", size)+`"}]}`) + "\n\n")
			_ = c.Close()
		}})
		p := behind(target.URL).start(t)
		session := p.begun(t, client)
		call := func() answer {
			return p.ask(t, client, session, "tools/call", "safe", `"name":"safe","arguments":{"region":"eu"}`, "Mcp-Param-Region", "eu")
		}
		size = 16<<20 - 200
		if got := call(); got.status != 200 || len(got.body) < size || len(textOf(t, got)) != size {
			t.Errorf("%d and %d bytes of %d: %.200s", got.status, len(got.body), size, got.body)
		}
		size = 16<<20 + 1
		if got := call(); (client == "2026-07-28") != stateless && got.result(t).Error.Code != -32603 {
			t.Errorf("%d and %d bytes: %.200s", got.status, len(got.body), got.body)
		}
	})
}

// A tool whose x-mcp-header cannot be honoured is not shown to clients that would have to, nor to those for whom the proxy would; the
// others keep their bytes. The list of the only target, in its own era, passes through whole: that client leaves the tool out itself.
func trapParamHeader(t *testing.T) {
	good := []string{
		`{"name":"plain","inputSchema":{"type":"object"}, "x":1e400}`,
		`{"inputSchema":{"type":"object","properties":{"r":{"type":"string","x-mcp-header":"Region"}}},"name":"good"}`,
	}
	bad := []string{
		`{"name":"b1","inputSchema":{"type":"object","properties":{"r":{"type":"string","x-mcp-header":""}}}}`,
		`{"name":"b2","inputSchema":{"type":"object","properties":{"r":{"type":"string","x-mcp-header":"a b"}}}}`,
		`{"name":"b3","inputSchema":{"type":"object","properties":{"r":{"type":"object","x-mcp-header":"R"}}}}`,
		`{"name":"b4","inputSchema":{"type":"object","properties":{"r":{"type":"string","x-mcp-header":"R"},"s":{"type":"string","x-mcp-header":"r"}}}}`,
		`{"name":"b5","inputSchema":{"type":"object","properties":{"r":{"type":"string","x-mcp-header":"R\r\nX"}}}}`,
		`{"name":"b6","inputSchema":{"type":"object","properties":{"r":{"type":"string","x-mcp-header":7}}}}`,
	}
	tools := "[" + good[0] + "," + strings.Join(bad, " , ") + "," + good[1] + "]"
	for _, client := range []string{"2025-11-25", "2026-07-28"} {
		for _, n := range []int{1, 2} {
			target := newRaw(t, true, map[string]func(*mcptest.Conn, rawCall){"tools/list": func(c *mcptest.Conn, req rawCall) {
				c.JSON(req.result(`{"resultType":"complete","ttlMs":0,"cacheScope":"private","tools":` + tools + `}`))
			}})
			w := behind("a="+target.URL, "b="+newRaw(t, true, nil).URL)
			w.targets = w.targets[:n]
			p := w.start(t)
			session := p.begun(t, client)
			got := p.ask(t, client, session, "tools/list", "", "")
			for _, tool := range good {
				if n == 2 {
					tool = strings.Replace(tool, `"name":"`, `"name":"a_`, 1)
				}
				if !strings.Contains(got.body, tool) {
					t.Errorf("%s, %d targets: %s lacks %s", client, n, got.body, tool)
				}
			}
			for i := range bad {
				passed := client == "2026-07-28" && n == 1
				if strings.Contains(got.body, fmt.Sprintf(`b%d"`, i+1)) != passed {
					t.Errorf("%s, %d targets: the list shows %s: %v", client, n, bad[i], !passed)
				}
			}
		}
	}
}

// A cursor of other targets is no good; one that was given out before a policy changed is, and what it leads to follows the policy.
func trapChangeMidPage(t *testing.T) {
	eachCell(t, func(t *testing.T, client string, stateless bool) {
		paged := func(c *mcptest.Conn, req rawCall) {
			page := `"tools":[{"name":"first","inputSchema":{"type":"object"}}],"nextCursor":"2"`
			if strings.Contains(req.body, `"cursor":"2"`) {
				page = `"tools":[{"name":"second","inputSchema":{"type":"object"}},{"name":"third","inputSchema":{"type":"object"}}]`
			}
			c.JSON(req.result(`{"resultType":"complete","ttlMs":0,"cacheScope":"private",` + page + `}`))
		}
		target, other := newRaw(t, stateless, map[string]func(*mcptest.Conn, rawCall){"tools/list": paged}), newRaw(t, stateless, nil)
		w := behind("a="+target.URL, "b="+other.URL)
		p := w.start(t)
		session := p.begun(t, client)
		next := nextCursor(t, p.ask(t, client, session, "tools/list", "", ""))
		w.policies["a"] = authorization(deny(`has(mcp.tool) && mcp.tool.name == "second"`))
		p.apply(t, w)
		if got := p.ask(t, client, session, "tools/list", "", `"cursor":`+next); !strings.Contains(got.body, `"a_third"`) || strings.Contains(got.body, "second") {
			t.Errorf("after a policy changed: %s", got.body)
		}
		w.targets[1].Transport = &xdsv1.Target_Mcp{Mcp: endpointOf(newRaw(t, stateless, nil).URL)}
		p.apply(t, w)
		if got := p.ask(t, client, session, "tools/list", "", `"cursor":`+next); got.result(t).Error.Code != -32602 {
			t.Errorf("after a target moved: %d %s", got.status, got.body)
		}
		if got := p.ask(t, client, session, "tools/list", "", ""); got.status != 200 || !strings.Contains(got.body, `"a_first"`) {
			t.Errorf("from the start: %d %s", got.status, got.body)
		}
	})
}

// What a client is asked in the middle of a call that its policy does not allow any more, it is not let answer; nor does the call run
// again where its target is another.
func trapChangeMidCall(t *testing.T) {
	for name, change := range map[string]func(w *world){
		"denied":  func(w *world) { w.policies["only"] = authorization(deny(`has(mcp.tool) && mcp.tool.name == "elicit"`)) },
		"removed": func(w *world) { w.targets[0].Name, w.targets[0].Index = "another", 0 },
	} {
		t.Run(name, func(t *testing.T) {
			seen := &posts{}
			w := behind(mcptest.NewServer(t, mcptest.Options{Wrap: seen.wrap}).URL)
			p := w.start(t)
			key, state := p.asked(t)
			answers := len(seen.with(`"result"`))
			change(w)
			p.apply(t, w)
			got := p.retry(t, accepted(key), state)
			if r := got.result(t); r.Error.Code == 0 {
				t.Errorf("%d %s", got.status, got.body)
			}
			if n := len(seen.with(`"result"`)) - answers; n != 0 {
				t.Errorf("the target got %d answers", n)
			}
			if n := len(seen.with(`"tools/call"`)); n != 1 {
				t.Errorf("the call ran %d times", n)
			}
		})
	}
	// What has nothing to do with the call; and another place, which is for calls to come: this one goes on where it is.
	elsewhere := newRaw(t, false, nil)
	for name, change := range map[string]func(w *world){
		"another tool's policy": func(w *world) { w.policies["only"] = authorization(deny(`has(mcp.tool) && mcp.tool.name == "add"`)) },
		"moved":                 func(w *world) { w.targets[0].Transport = &xdsv1.Target_Mcp{Mcp: endpointOf(elsewhere.URL)} },
	} {
		t.Run(name, func(t *testing.T) {
			seen := &posts{}
			w := behind(mcptest.NewServer(t, mcptest.Options{Wrap: seen.wrap}).URL)
			p := w.start(t)
			key, state := p.asked(t)
			change(w)
			p.apply(t, w)
			if got := p.retry(t, accepted(key), state); textOf(t, got) != "Hello, Ada!" {
				t.Errorf("%d %s", got.status, got.body)
			}
			if n := len(seen.with(`"tools/call"`)) + elsewhere.counted("tools/call"); n != 1 {
				t.Errorf("the call ran %d times", n)
			}
		})
	}
}

// A listen hears of what a change of the configuration shows or hides, and goes on; or it ends politely, and the next one goes on.
func trapChangeMidListen(t *testing.T) {
	for _, stateless := range []bool{false, true} {
		srv := mcptest.NewServer(t, mcptest.Options{Stateless: stateless})
		w := behind(srv.URL)
		w.targets[0].SessionScope = sharedByCaller
		p := w.start(t)
		s := p.listen(t, `"L"`, `{"toolsListChanged":true,"resourceSubscriptions":["test://watched"]}`)
		s.next(t, "notifications/subscriptions/acknowledged")
		w.policies["only"] = authorization(deny(`has(mcp.tool) && mcp.tool.name == "add"`))
		p.apply(t, w)
		if !stateless { // its session was of another policy, and is over
			msgs := s.ended(t)
			if len(msgs) == 0 || msgs[len(msgs)-1]["id"] != "L" || msgs[len(msgs)-1]["result"] == nil {
				t.Fatalf("the listen ended with %v, want its result", msgs)
			}
			s = p.listen(t, `"L"`, `{"toolsListChanged":true,"resourceSubscriptions":["test://watched"]}`)
			s.next(t, "notifications/subscriptions/acknowledged")
		} else {
			s.next(t, "notifications/tools/list_changed")
		}
		deadline := waiting(t)
		for updated := false; !updated; { // the listen follows to the target's new policy in its own time
			deadline()
			p.stateless(t, "tools/call", "touch", `"name":"touch","arguments":{}`)
			for _, m := range s.rest() {
				updated = updated || m["method"] == "notifications/resources/updated"
			}
		}
	}
}

// An error without an id, or with null, is the answer to the one request that was sent: with its id.
func trapNullID(t *testing.T) {
	eachCell(t, func(t *testing.T, client string, stateless bool) {
		for _, id := range []string{`,"id":null`, ``} {
			for _, status := range []int{200, 400} {
				target := newRaw(t, stateless, map[string]func(*mcptest.Conn, rawCall){"tools/call": func(c *mcptest.Conn, _ rawCall) {
					c.Answer(status, "application/json", `{"jsonrpc":"2.0","error":{"code":-32000,"message":"Bad Request: \u0061"}`+id+`}`)
				}})
				p := behind(target.URL).start(t)
				session := p.begun(t, client)
				got := p.ask(t, client, session, "tools/call", "safe", `"name":"safe","arguments":{"region":"eu"}`, "Mcp-Param-Region", "eu")
				bridged := (client == "2026-07-28") != stateless
				if r := got.result(t); r.Error.Code != -32000 || !strings.Contains(got.body, `"message":"Bad Request: \u0061"`) || bridged && !strings.Contains(got.body, `"id":7`) {
					t.Errorf("status %d, id %q: %d %s", status, id, got.status, got.body)
				}
				if got := p.ask(t, client, session, "prompts/list", "", ""); got.status != 200 {
					t.Errorf("afterwards: %d %s", got.status, got.body)
				}
			}
		}
	})
}

// A session id that comes with an error is none: nothing is sent with it, and no client sees it.
func trapMinted(t *testing.T) {
	refused := func(c *mcptest.Conn, req rawCall) {
		c.Answer(400, "application/json", `{"jsonrpc":"2.0","error":{"code":-32000,"message":"Bad Request: Server not initialized"},"id":null}`, "Mcp-Session-Id: minted")
	}
	eachCell(t, func(t *testing.T, client string, stateless bool) {
		target := newRaw(t, stateless, map[string]func(*mcptest.Conn, rawCall){"tools/call": refused, "prompts/list": refused})
		if !stateless {
			target.on("server/discover", refused)
		} else {
			target.on("initialize", refused)
		}
		p := behind(target.URL).start(t)
		session := p.begun(t, client)
		for _, call := range [][2]string{{"tools/call", "safe"}, {"prompts/list", ""}, {"resources/list", ""}, {"tools/list", ""}} {
			got := p.ask(t, client, session, call[0], call[1], `"name":"safe","arguments":{"region":"eu"}`, "Mcp-Param-Region", "eu")
			if got.header.Get("Mcp-Session-Id") != "" || strings.Contains(got.body, "minted") {
				t.Errorf("%s: %v %s", call[0], got.header, got.body)
			}
		}
		target.mu.Lock()
		defer target.mu.Unlock()
		for _, h := range target.headers {
			if got := h.Get("Mcp-Session-Id"); got == "minted" || stateless && got != "" {
				t.Errorf("the target was sent the session %q", got)
			}
		}
	})
}
