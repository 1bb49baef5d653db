package dataplane

import (
	"bufio"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/sluicegate/sluice/internal/mcptest"
	policyv1 "github.com/sluicegate/sluice/proto/gen/sluice/policy/v1"
)

// hiding are rules that hide one thing of each kind, and leave all else.
func hiding() *policyv1.Policies {
	return authorization(
		deny(`has(mcp.tool) && mcp.tool.name in ["danger", "-b_c", "_"]`),
		deny(`has(mcp.prompt) && mcp.prompt.name == "danger"`),
		deny(`has(mcp.resource) && (mcp.resource.name == "test://files/danger" || mcp.resource.name == "test://danger/{id}")`),
		deny(`has(mcp.task) && mcp.task.name == "danger"`))
}

// victim is a server with what the rules hide, and what they do not.
func victim(t testing.TB, stateless bool) (*mcptest.Server, *witnessed) {
	r := &witnessed{}
	srv := mcptest.NewServer(t, mcptest.Options{Bare: true, Stateless: stateless, JSON: true, Wrap: func(next http.Handler) http.Handler { return r.wrap(completesOwn(next)) }})
	for _, name := range []string{"safe", "danger", "b_c", "-b_c", "_"} {
		srv.MCP.AddTool(tool(name), textHandler(name))
	}
	for _, name := range []string{"safe", "danger"} {
		srv.MCP.AddPrompt(&mcp.Prompt{Name: name}, func(context.Context, *mcp.GetPromptRequest) (*mcp.GetPromptResult, error) {
			return &mcp.GetPromptResult{}, nil
		})
		srv.MCP.AddResource(&mcp.Resource{URI: "test://files/" + name, Name: name}, func(_ context.Context, r *mcp.ReadResourceRequest) (*mcp.ReadResourceResult, error) {
			return &mcp.ReadResourceResult{Contents: []*mcp.ResourceContents{{URI: r.Params.URI, Text: "x"}}}, nil
		})
	}
	srv.MCP.AddResourceTemplate(&mcp.ResourceTemplate{URITemplate: "test://danger/{id}", Name: "t"}, func(context.Context, *mcp.ReadResourceRequest) (*mcp.ReadResourceResult, error) {
		return &mcp.ReadResourceResult{}, nil
	})
	return srv, r
}

// completesOwn refuses completions, subscriptions and tasks of what the server has not, as servers do that look.
func completesOwn(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		r.Body = io.NopCloser(strings.NewReader(string(body)))
		var m struct {
			ID     json.RawMessage
			Method string
			Params struct {
				URI string
				Ref struct{ Type, Name, URI string }

				Notifications struct{ ResourceSubscriptions []string }
			}
		}
		_ = json.Unmarshal(body, &m)
		if uri := m.Params.URI; m.Method == "resources/subscribe" && uri != "test://files/safe" && uri != "test://files/danger" {
			w.Header().Set("Content-Type", "application/json")
			fmt.Fprintf(w, `{"jsonrpc":"2.0","id":%s,"error":{"code":-32002,"message":"Resource not found","data":{"uri":%s}}}`, m.ID, mustJSON(uri))
			return
		}
		if uris := m.Params.Notifications.ResourceSubscriptions; m.Method == "subscriptions/listen" && slices.ContainsFunc(uris, func(uri string) bool { return uri != "test://files/safe" && uri != "test://files/danger" }) {
			w.Header().Set("Content-Type", "application/json")
			fmt.Fprintf(w, `{"jsonrpc":"2.0","id":%s,"error":{"code":-32602,"message":"Resource not found","data":{"uri":%s}}}`, m.ID, mustJSON(uris[0]))
			return
		}
		if strings.HasPrefix(m.Method, "tasks/") {
			w.Header().Set("Content-Type", "application/json")
			fmt.Fprintf(w, `{"jsonrpc":"2.0","id":%s,"error":{"code":-32602,"message":"no task of mine"}}`, m.ID)
			return
		}
		if known := []string{"safe", "danger", "test://files/safe", "test://files/danger", "test://danger/{id}"}; m.Method != "completion/complete" || slices.Contains(known, m.Params.Ref.Name+m.Params.Ref.URI) {
			next.ServeHTTP(w, r)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprintf(w, `{"jsonrpc":"2.0","id":%s,"error":{"code":-32602,"message":"nothing to complete"}}`, m.ID)
	})
}

// escaped is a string as JSON may write it, each character as an escape.
func escaped(s string) string {
	var b strings.Builder
	for _, r := range s {
		fmt.Fprintf(&b, `\u%04x`, r)
	}
	return b.String()
}

// Each attack names something hidden in a way of its own. No target may see it, and the answer must be the one for what does not
// exist, asked for in the same way: danger and dangex differ in nothing that a client may find out.
func TestHiddenStaysHidden(t *testing.T) {
	t.Parallel()
	type attack struct {
		name, method string
		params       string // NAME is what is asked for, ESC the same in escapes
		header       string // Mcp-Name of the stateless era; "": none
		batch        bool   // 2025-03-26
		noID         bool
	}
	var attacks []attack
	add := func(name, method, params, header string) {
		attacks = append(attacks, attack{name: name, method: method, params: params, header: header})
	}
	for _, prefix := range []string{"", "a_", "a-b_", "a__", "a_a_", "A_", "a-b_b_", "_", "a+", "a-b+", "-", "a-", `a\u005f`, `\u0061_`} {
		shown := strings.NewReplacer(`\u005f`, "_", `\u0061`, "a").Replace(prefix) + "NAME"
		add("a tool as "+prefix, "tools/call", `"name":"`+prefix+`NAME","arguments":{}`, shown)
		add("a prompt as "+prefix, "prompts/get", `"name":"`+prefix+`NAME"`, shown)
		add("a completion of a prompt as "+prefix, "completion/complete", `"ref":{"type":"ref/prompt","name":"`+prefix+`NAME"},"argument":{"name":"a","value":""}`, "")
	}
	for _, around := range []string{"% ", " %", `%\n`, `%\u0000`, `%\u200b`, `\ufeff%`, `%\u0301`, "%/", "./%", "%?", "%#"} {
		add("a tool with "+around, "tools/call", `"name":"`+strings.Replace(around, "%", "NAME", 1)+`"`, "?")
		add("a prompt with "+around, "prompts/get", `"name":"a_`+strings.Replace(around, "%", "NAME", 1)+`"`, "?")
	}
	for _, p := range []string{"", "a_", "a-b_"} {
		add("escaped "+p, "tools/call", `"name":"`+p+`ESC"`, p+"NAME")
		add("an escaped prompt "+p, "prompts/get", `"n\u0061me":"`+p+`ESC"`, p+"NAME")
		add("name twice "+p, "tools/call", `"name":"`+p+`safe","name":"`+p+`NAME"`, p+"NAME")
		add("name twice, the other way "+p, "tools/call", `"name":"`+p+`NAME","name":"`+p+`safe"`, p+"safe")
		add("another case "+p, "tools/call", `"name":"`+p+`safe","Name":"`+p+`NAME"`, p+"safe")
		add("another case alone "+p, "tools/call", `"NAME":"`+p+`NAME"`, p+"NAME")
		add("another case, escaped "+p, "tools/call", `"name":"`+p+`safe","n\u0041me":"`+p+`NAME"`, p+"safe")
		add("arguments that two read differently "+p, "tools/call", `"name":"`+p+`NAME","arguments":{"x":1,"x":2}`, p+"NAME")
		add("in Mcp-Name alone "+p, "tools/call", `"arguments":{}`, p+"NAME")
		add("in Mcp-Name, and another in the body "+p, "tools/call", `"name":"`+p+`safe"`, p+"NAME")
		add("in the body, and another in Mcp-Name "+p, "tools/call", `"name":"`+p+`NAME"`, p+"safe")
		add("a list for a name "+p, "tools/call", `"name":["`+p+`NAME"]`, p+"NAME")
		add("an object for a name "+p, "tools/call", `"name":{"name":"`+p+`NAME"}`, p+"NAME")
		add("a tool as a prompt "+p, "prompts/get", `"name":"`+p+`_"`, p+"_")
		add("a resource as a prompt "+p, "prompts/get", `"name":"`+p+`test://files/NAME"`, p+"test://files/NAME")
		add("in a task "+p, "tools/call", `"name":"`+p+`NAME","task":{"ttl":1000}`, p+"NAME")
		add("as a retry "+p, "tools/call", `"name":"`+p+`NAME","inputResponses":{},"requestState":"x"`, p+"NAME")
	}
	for _, prefix := range []string{"", "a+", "a-b+", "a+a+", "A+", "%61+"} {
		for _, uri := range []string{"test://files/NAME", "TEST://files/NAME", "test://FILES/NAME", "test://files/./NAME", "test://files/x/../NAME", "test://files/%4eAME",
			`test:\/\/files\/NAME`, "test://files//NAME", "test://files/NAME?", "test://files/NAME#x"} {
			plain := prefix + strings.ReplaceAll(uri, `\/`, "/")
			add("reading "+prefix+uri, "resources/read", `"uri":"`+prefix+uri+`"`, plain)
			add("subscribing to "+prefix+uri, "resources/subscribe", `"uri":"`+prefix+uri+`"`, "?")
			add("completing "+prefix+uri, "completion/complete", `"ref":{"type":"ref/resource","uri":"`+prefix+uri+`"},"argument":{"name":"a","value":""}`, "")
		}
		add("a template "+prefix, "completion/complete", `"ref":{"type":"ref/resource","uri":"`+prefix+`test://NAME/{id}"},"argument":{"name":"a","value":""}`, "")
		add("uri twice "+prefix, "resources/read", `"uri":"`+prefix+`test://files/safe","uri":"`+prefix+`test://files/NAME"`, prefix+"test://files/NAME")
		add("uri in another case "+prefix, "resources/read", `"uri":"`+prefix+`test://files/safe","URI":"`+prefix+`test://files/NAME"`, prefix+"test://files/safe")
		add("a reference that is two "+prefix, "completion/complete", `"ref":{"type":"ref/resource","name":"safe","uri":"`+prefix+`test://files/NAME"},"argument":{"name":"a","value":""}`, "")
		add("a reference of the wrong type "+prefix, "completion/complete", `"ref":{"type":"ref/prompt","uri":"`+prefix+`test://files/NAME"},"argument":{"name":"a","value":""}`, "")
		add("a reference without a type "+prefix, "completion/complete", `"ref":{"uri":"`+prefix+`test://files/NAME"},"argument":{"name":"a","value":""}`, "")
		add("a reference's uri in another case "+prefix, "completion/complete", `"ref":{"type":"ref/resource","uri":"`+prefix+`test://files/safe","Uri":"`+prefix+`test://files/NAME"},"argument":{"name":"a","value":""}`, "")
	}
	add("a reference's name beside a uri", "completion/complete", `"ref":{"type":"ref/prompt","uri":"test://files/safe","name":"NAME"},"argument":{"name":"a","value":""}`, "")
	for _, id := range []string{`"NAME"`, `"ESC"`, `["NAME"]`, `{"taskId":"NAME"}`, `"safe","taskId":"NAME"`, `"safe","TaskId":"NAME"`, `null`} {
		for _, method := range []string{"tasks/get", "tasks/cancel"} {
			add("a task "+id, method, `"taskId":`+id, "?")
		}
	}
	for _, method := range []string{"Tools/Call", "TOOLS/CALL", "tools/call ", " tools/call", `tools/call\u0000`, `tool\u017f/call`, `prompts/Get`, "Resources/Read"} {
		add("the method "+method, method, `"name":"NAME","uri":"test://files/NAME"`, "?")
	}
	for _, one := range []attack{
		{name: "a batch", method: "tools/call", params: `"name":"NAME"`}, {name: "a batch with prefix", method: "tools/call", params: `"name":"a-b_NAME"`},
		{name: "a batch that reads", method: "resources/read", params: `"uri":"test://files/NAME"`}, {name: "a batch that gets", method: "prompts/get", params: `"name":"a_NAME"`},
	} {
		one.batch = true
		attacks = append(attacks, one)
	}
	for _, method := range []string{"tools/call", "prompts/get", "resources/read", "resources/subscribe", "completion/complete", "tasks/cancel"} {
		attacks = append(attacks, attack{name: "no id " + method, method: method, noID: true,
			params: `"name":"NAME","uri":"test://files/NAME","taskId":"NAME","ref":{"type":"ref/prompt","name":"NAME"}`, header: "?"})
	}

	for _, era := range []struct {
		version string
		bridged bool // the targets are of the other era
	}{{"2025-03-26", false}, {"2025-11-25", false}, {"2026-07-28", false}, {"2025-11-25", true}, {"2026-07-28", true}} {
		version := era.version
		stateless := version == "2026-07-28"
		one, seenByOne := victim(t, stateless != era.bridged)
		other, seenByOther := victim(t, stateless != era.bridged)
		for _, n := range []int{1, 2} {
			w := behind("a="+one.URL, "a-b="+other.URL)
			w.targets = w.targets[:n]
			for _, target := range w.targets {
				w.policies[target.Name] = hiding()
			}
			p := w.start(t)
			session := ""
			if !stateless {
				session = p.initialize(t, version)
			}
			send := func(a attack, name string) (answer, []string) {
				fill := func(s string) string {
					return strings.ReplaceAll(strings.ReplaceAll(strings.ReplaceAll(s, "%4eAME", "%64"+name[1:]), "NAME", name), "ESC", escaped(name))
				}
				seenByOne.take()
				seenByOther.take()
				method := strings.ReplaceAll(a.method, `\u0000`, "\x00")
				id := `"id":7,`
				if a.noID {
					id = ""
				}
				var got answer
				switch {
				case stateless:
					headers := []string{"MCP-Protocol-Version", version, "Mcp-Method", "x"}
					if !strings.ContainsAny(method, "\x00") {
						headers[3] = strings.ReplaceAll(method, `\u017f`, "ſ")
					}
					if a.header != "" && a.header != "?" {
						headers = append(headers, "Mcp-Name", fill(a.header))
					} else if a.header == "?" {
						headers = append(headers, "Mcp-Name", mcpName(fill(a.params)))
					}
					got = p.post(t, "", `{"jsonrpc":"2.0",`+id+`"method":"`+a.method+`","params":{`+fill(a.params)+`,"_meta":{"io.modelcontextprotocol/protocolVersion":"`+version+
						`","io.modelcontextprotocol/clientCapabilities":{}}}}`, headers...)
				case a.batch:
					got = p.post(t, session, `[{"jsonrpc":"2.0","id":7,"method":"`+a.method+`","params":{`+fill(a.params)+`}},{"jsonrpc":"2.0","id":8,"method":"ping"}]`)
				default:
					got = p.post(t, session, `{"jsonrpc":"2.0",`+id+`"method":"`+a.method+`","params":{`+fill(a.params)+`}}`, "Mcp-Name", url.PathEscape(fill(a.header)), "Mcp-Method", "tools/call")
				}
				got.body = strings.NewReplacer(name, "NAME", "%64"+name[1:], "NAME", name[1:], "NAME").Replace(got.body)
				return got, append(seenByOne.take(), seenByOther.take()...)
			}
			for _, a := range attacks {
				if a.batch && version != "2025-03-26" {
					continue
				}
				hidden, seen := send(a, "danger")
				for _, s := range seen {
					if strings.Contains(s, "anger") && !strings.Contains(strings.ToLower(s), "+test:") { // which is no URI of any target's
						t.Errorf("%s, %d targets, %s: a target saw %q", version, n, a.name, s)
					}
				}
				// A bridge knows no tasks: there no target says what exists, so that nothing is told of it.
				if era.bridged && strings.HasPrefix(a.method, "tasks/") {
					continue
				}
				missing, _ := send(a, "dangex")
				if a.batch { // answers come as they are ready
					hidden.body, missing.body = sortedLines(hidden.body), sortedLines(missing.body)
				}
				if hidden.status != missing.status || hidden.body != missing.body {
					t.Errorf("%s, %d targets, %s: what is hidden:\n%d %s\nwhat does not exist:\n%d %s", version, n, a.name, hidden.status, hidden.body, missing.status, missing.body)
				}
				for _, h := range []string{"Content-Type", "Cache-Control", "Www-Authenticate", "Content-Length"} {
					if h == "Content-Length" && len(hidden.body) != len(missing.body) {
						continue
					}
					if hidden.header.Get(h) != missing.header.Get(h) {
						t.Errorf("%s, %d targets, %s: %s is %q, and %q for what does not exist", version, n, a.name, h, hidden.header.Get(h), missing.header.Get(h))
					}
				}
			}
			// Names that are nothing but separators, and no prefix of anything.
			for _, name := range []string{"-b_c", "_", "a_-b_c", "a__", "a-b_-b_c", "a-b__", "", "a", "a-b", "a_", "a-b_"} {
				headers := name
				if name == "" {
					headers = " "
				}
				seenByOne.take()
				seenByOther.take()
				got := p.ask(t, version, session, "tools/call", headers, `"name":"`+name+`"`)
				if seen := append(seenByOne.take(), seenByOther.take()...); len(seen) > 0 || !strings.Contains(got.body, `"error"`) {
					t.Errorf("%s, %d targets: %q: %d %s; the targets saw %q", version, n, name, got.status, got.body, seen)
				}
			}
			for _, cursor := range []string{"danger", "a_danger", `{"target":"a"}`, "=?base64?YQ==?="} { // a cursor leads nowhere but to a list
				raw, _ := json.Marshal(cursor)
				for _, list := range []string{"tools/list", "prompts/list", "resources/list", "resources/templates/list"} {
					if got := p.ask(t, version, session, list, "", `"cursor":`+string(raw)); strings.Contains(strings.ReplaceAll(got.body, string(raw), ""), "danger") {
						t.Errorf("%s, %d targets: cursor %s: %s", version, n, cursor, got.body)
					}
				}
			}
			if stateless { // nor is it listened to
				owner := map[int]string{1: "", 2: "a-b+"}[n]
				for _, uri := range []string{"test://files/danger", owner + "test://files/danger", owner + "TEST://files/danger", owner + "test://files/%64anger", owner + "test://files/./danger"} {
					seenByOne.take()
					seenByOther.take()
					s := p.open(t, "POST", "", strings.Replace(listenAll, `"%watched","nobody+x://y"`, `"`+uri+`"`, 1), "MCP-Protocol-Version", version, "Mcp-Method", "subscriptions/listen")
					if first := mustJSON(<-s.msgs); strings.Contains(first, "danger") || strings.Contains(first, "anger") {
						t.Errorf("%d targets: listening to %s: %s", n, uri, first)
					}
					s.close()
					for _, saw := range append(seenByOne.take(), seenByOther.take()...) {
						if strings.Contains(saw, "anger") {
							t.Errorf("%d targets: listening to %s: a target saw %s", n, uri, saw)
						}
					}
				}
			}
			// After all that, what is allowed still works.
			prefix := map[int]string{1: "", 2: "a-b_"}[n]
			if got := p.ask(t, version, session, "tools/call", prefix+"safe", `"name":"`+prefix+`safe"`); !strings.Contains(got.body, `"safe"`) {
				t.Errorf("%s, %d targets: %d %s", version, n, got.status, got.body)
			}
		}
	}
}

// mcpName is the header that agrees with params, as far as those can be read.
func mcpName(params string) string {
	var p map[string]any
	if json.Unmarshal([]byte("{"+params+"}"), &p) != nil {
		return "x"
	}
	for _, member := range []string{"taskId", "name", "uri"} {
		if s, ok := p[member].(string); ok {
			if strings.IndexFunc(s, func(r rune) bool { return r < ' ' || r > '~' }) >= 0 || strings.TrimSpace(s) != s {
				return encodeHeader(s)
			}
			return s
		}
	}
	return "x"
}

func sortedLines(s string) string {
	lines := strings.Split(s, "\n")
	for i := range lines {
		for j := i + 1; j < len(lines); j++ {
			if lines[j] < lines[i] {
				lines[i], lines[j] = lines[j], lines[i]
			}
		}
	}
	return strings.Join(lines, "\n")
}

// What HTTP itself can be made to say twice.
func TestSmuggledHeaders(t *testing.T) {
	srv, seen := victim(t, true)
	old, seenByOld := victim(t, false)
	w := behind("a=" + srv.URL)
	w.policies["a"] = hiding()
	p := w.start(t)
	wOld := behind("a=" + old.URL)
	wOld.policies["a"] = hiding()
	pOld := wOld.start(t)
	session := pOld.initialize(t, "2025-11-25")
	const meta = `,"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{}}`
	call := func(name string, more string) string {
		return `{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"` + name + `"` + more + `}}`
	}
	const stateless = "MCP-Protocol-Version: 2026-07-28\r\nMcp-Method: tools/call\r\n"
	inSession := "Mcp-Session-Id: " + session + "\r\n"
	length := func(body string) string { return fmt.Sprintf("Content-Length: %d\r\n", len(body)) }
	chunked := func(body string) string { return fmt.Sprintf("%x\r\n%s\r\n0\r\n\r\n", len(body), body) }
	for _, tt := range []struct {
		name, headers, body string
	}{
		{"Mcp-Name twice", stateless + "Mcp-Name: safe\r\nMcp-Name: danger\r\n", call("safe", meta)},
		{"Mcp-Name twice, the other way", stateless + "Mcp-Name: danger\r\nMcp-Name: safe\r\n", call("danger", meta)},
		{"Mcp-Name as a list", stateless + "Mcp-Name: safe, danger\r\n", call("danger", meta)},
		{"Mcp-Name folded", stateless + "Mcp-Name: safe\r\n danger\r\n", call("danger", meta)},
		{"Mcp-Name with a bare CR", stateless + "Mcp-Name: safe\rMcp-Name: danger\r\n", call("danger", meta)},
		{"Mcp-Name with a bare LF", stateless + "Mcp-Name: safe\nMcp-Name: danger\r\n", call("danger", meta)},
		{"Mcp-Name with a blank before the colon", stateless + "Mcp-Name : safe\r\n", call("danger", meta)},
		{"Mcp-Method twice", stateless + "Mcp-Method: tools/list\r\nMcp-Name: danger\r\n", call("danger", meta)},
		{"the version twice", stateless + "MCP-Protocol-Version: 2025-11-25\r\nMcp-Name: danger\r\n", call("danger", meta)},
		{"Base64 that says another name", stateless + "Mcp-Name: " + encodeHeader("safe") + "\r\n", call("danger", meta)},
		{"Base64 that says the name", stateless + "Mcp-Name: " + encodeHeader("danger") + "\r\n", call("danger", meta)},
		{"a version header on a session's call", inSession + stateless + "Mcp-Name: safe\r\n", call("danger", "")},
		{"two sessions", inSession + inSession, call("danger", "")},
		{"Mcp-Name named in Connection", stateless + "Connection: Mcp-Name\r\nMcp-Name: danger\r\n", call("danger", meta)},
		{"a name under an underscore", stateless + "Mcp_Name: safe\r\nMcp-Name: danger\r\n", call("danger", meta)},
		{"no Mcp-Name but one under an underscore", stateless + "Mcp_Name: danger\r\n", call("danger", meta)},
		{"a method of HTTP overridden", stateless + "X-HTTP-Method-Override: DELETE\r\nMcp-Name: danger\r\n", call("danger", meta)},
		{"a URL rewritten", inSession + "X-Original-URL: /other\r\nX-Rewrite-URL: /other\r\n", call("danger", "")},
		{"a session and a name", inSession + "Mcp-Name: safe\r\n", call("danger", "")},
	} {
		for proxy, target := range map[*testProxy]*witnessed{p: seen, pOld: seenByOld} {
			for framing, send := range map[string]string{
				"length":              tt.headers + length(tt.body) + "\r\n" + tt.body,
				"chunks":              tt.headers + "Transfer-Encoding: chunked\r\n\r\n" + chunked(tt.body),
				"length, and chunks":  tt.headers + length(tt.body) + "Transfer-Encoding: chunked\r\n\r\n" + chunked(tt.body),
				"two lengths":         tt.headers + length(tt.body) + length("") + "\r\n" + tt.body,
				"chunks in disguise":  tt.headers + length(tt.body) + "Transfer-Encoding: xchunked\r\n\r\n" + tt.body,
				"chunks, twice":       tt.headers + "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n" + chunked(tt.body),
				"a second request":    tt.headers + length("") + "\r\nPOST /mcp HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nAccept: application/json, text/event-stream\r\n" + tt.headers + length(tt.body) + "\r\n" + tt.body,
				"chunks with a tail":  tt.headers + "Transfer-Encoding: chunked\r\n\r\n" + chunked(tt.body) + "POST /mcp HTTP/1.1\r\n\r\n",
				"a trailer of a name": tt.headers + "Transfer-Encoding: chunked\r\nTrailer: Mcp-Name\r\n\r\n" + fmt.Sprintf("%x\r\n%s\r\n0\r\nMcp-Name: danger\r\n\r\n", len(tt.body), tt.body),
			} {
				target.take()
				status, body := rawRequest(t, proxy.URL, send)
				for _, saw := range target.take() {
					if strings.Contains(saw, "danger") {
						t.Errorf("%s by %s: the target saw %q (%d %s)", tt.name, framing, saw, status, body)
					}
				}
				if strings.Contains(body, `"result"`) && strings.Contains(tt.body, "danger") {
					t.Errorf("%s by %s: %d %s", tt.name, framing, status, body)
				}
			}
		}
	}
}

// rawRequest sends bytes and reads the answers to them.
func rawRequest(t *testing.T, to, request string) (status int, body string) {
	t.Helper()
	u, err := url.Parse(to)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.Dial("tcp", u.Host)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := io.WriteString(conn, "POST /mcp HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nAccept: application/json, text/event-stream\r\nConnection: close\r\n"+request); err != nil {
		return 0, ""
	}
	_ = conn.(*net.TCPConn).CloseWrite()
	in := bufio.NewReader(conn)
	for {
		resp, err := http.ReadResponse(in, nil)
		if err != nil {
			return status, body
		}
		b, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		status, body = resp.StatusCode, body+string(b)
	}
}

// A target that changes what it says between list and call: rules see what it said last, and what it does not list cannot be called.
func TestLyingTarget(t *testing.T) {
	for _, version := range []string{"2025-11-25", "2026-07-28"} {
		r := &witnessed{}
		srv := mcptest.NewServer(t, mcptest.Options{Bare: true, Stateless: version == "2026-07-28", JSON: true, Wrap: r.wrap})
		set := func(name string, readOnly bool) {
			one := tool(name)
			one.Annotations = &mcp.ToolAnnotations{ReadOnlyHint: readOnly}
			srv.MCP.AddTool(one, textHandler(name))
		}
		set("x", true)
		set("y", false)
		w := behind("only=" + srv.URL)
		w.policies["only"] = authorization(require(`mcp.tool.annotations.readOnlyHint`))
		p := w.start(t)
		session := ""
		if version != "2026-07-28" {
			session = p.initialize(t, version)
		}
		list := func() string { return p.ask(t, version, session, "tools/list", "", "").body }
		call := func(name string) string {
			return p.ask(t, version, session, "tools/call", name, `"name":"`+name+`"`).body
		}
		if got := list(); !strings.Contains(got, `"name":"x"`) || strings.Contains(got, `"name":"y"`) {
			t.Errorf("%s: %s", version, got)
		}
		if got := call("x"); !strings.Contains(got, `"text":"x"`) {
			t.Errorf("%s: %s", version, got)
		}
		set("x", false) // it is none any more
		set("y", true)
		if got := list(); strings.Contains(got, `"name":"x"`) || !strings.Contains(got, `"name":"y"`) {
			t.Errorf("%s: after the change: %s", version, got)
		}
		r.take()
		if got := call("x"); !strings.Contains(got, "Unknown tool: x") || len(r.take()) > 0 {
			t.Errorf("%s: x after the change: %s", version, got)
		}
		if got := call("y"); !strings.Contains(got, `"text":"y"`) {
			t.Errorf("%s: y after the change: %s", version, got)
		}
		srv.MCP.RemoveTools("y") // renamed
		set("z", true)
		list()
		r.take()
		if got := call("y"); !strings.Contains(got, "Unknown tool: y") || len(r.take()) > 0 {
			t.Errorf("%s: y after it was renamed: %s", version, got)
		}
		if got := call("z"); !strings.Contains(got, `"text":"z"`) {
			t.Errorf("%s: z: %s", version, got)
		}
	}
}

// encodeHeader is the Base64 form of a header's value.
func encodeHeader(s string) string {
	return "=?base64?" + base64.StdEncoding.EncodeToString([]byte(s)) + "?="
}
