package dataplane

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/modelcontextprotocol/go-sdk/mcp"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/sluicegate/sluice/internal/mcptest"
	policyv1 "github.com/sluicegate/sluice/proto/gen/sluice/policy/v1"
	xdsv1 "github.com/sluicegate/sluice/proto/gen/sluice/xds/v1"
)

// A call whose stream broke was processed, whatever becomes of the attempt to go on with it: it is not run again.
func TestBridgeResumeFails(t *testing.T) {
	for name, onGet := range map[string]func(c *mcptest.Conn){
		"the session is gone": func(c *mcptest.Conn) { c.Answer(404, "", "") },
		"no stream":           func(c *mcptest.Conn) { c.Answer(405, "", "") },
		"nothing":             func(c *mcptest.Conn) { _ = c.Reset() },
	} {
		t.Run(name, func(t *testing.T) {
			s := &script{onGet: onGet}
			s.onCall = func(c *mcptest.Conn, _, _ string) {
				c.Send(streamHead, "1b\r\nid: 1\nretry: 1\ndata: \n\n: \n\n\r\n", lastChunk)
			}
			w := behind(newScriptTarget(t, s).URL)
			w.targets[0].SessionScope = sharedByCaller
			w.policies = map[string]*policyv1.Policies{"only": {Retry: &policyv1.Retry{Attempts: 3, Backoff: durationpb.New(1)}}}
			got := w.start(t).stateless(t, "tools/call", "x", `"name":"x"`)
			if got.status != 502 || !strings.Contains(got.body, "broke off") {
				t.Errorf("%d %s", got.status, got.body)
			}
			if n := len(s.posts.with(`"tools/call"`)); n != 1 {
				t.Errorf("the target was called %d times", n)
			}
		})
	}
}

// What the proxy says of its own in a shared session goes with the newest credential that its users brought: the one that
// the session was begun with may have expired.
func TestBridgeFreshCredential(t *testing.T) {
	var good atomic.Value
	seen := &posts{}
	started := make(chan struct{})
	srv := mcptest.NewServer(t, mcptest.Options{Bare: true, Wrap: func(next http.Handler) http.Handler {
		next = seen.wrap(next)
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Authorization") != good.Load() {
				w.WriteHeader(401)
				return
			}
			next.ServeHTTP(w, r)
		})
	}})
	with := tool("region")
	with.InputSchema = json.RawMessage(`{"type":"object","properties":{"region":{"type":"string","x-mcp-header":"Region"}}}`)
	srv.MCP.AddTool(with, textHandler("ok"))
	srv.MCP.AddTool(tool("hang"), func(ctx context.Context, _ *mcp.CallToolRequest) (*mcp.CallToolResult, error) {
		close(started)
		<-ctx.Done()
		return nil, ctx.Err()
	})
	w := behind(srv.URL)
	w.targets[0].ProtocolVersions = []string{"2025-11-25"}
	w.policies["only"] = &policyv1.Policies{BackendAuth: &policyv1.BackendAuth{Method: &policyv1.BackendAuth_Passthrough{Passthrough: &policyv1.PassthroughAuth{}}}}
	bearer := w.withTokens(t)
	p := w.start(t)
	one, two := bearer(`"sub":"ada","jti":"1"`), bearer(`"sub":"ada","jti":"2"`)
	good.Store(one[1])
	if got := p.stateless(t, "prompts/list", "", "", one...); got.result(t).ResultType != "complete" {
		t.Fatalf("%d %s", got.status, got.body)
	}
	good.Store(two[1])
	// The tools are read first, to check the header by.
	got := p.stateless(t, "tools/call", "region", `"name":"region","arguments":{"region":"eu"}`, append(two, "Mcp-Param-Region", "eu")...)
	if got.status != 200 || textOf(t, got) != "ok" {
		t.Errorf("%d %s", got.status, got.body)
	}
	if n := len(seen.with(`"initialize"`)); n != 1 {
		t.Errorf("%d sessions, want 1", n)
	}
	ctx, leave := context.WithCancel(t.Context())
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, p.URL, strings.NewReader(`{"jsonrpc":"2.0","id":9,"method":"tools/call","params":{"name":"hang",`+
		`"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{}}}}`))
	if err != nil {
		t.Fatal(err)
	}
	for name, value := range map[string]string{"Accept": "application/json, text/event-stream", "Content-Type": "application/json", two[0]: two[1],
		"MCP-Protocol-Version": "2026-07-28", "Mcp-Method": "tools/call", "Mcp-Name": "hang"} {
		req.Header.Set(name, value)
	}
	go func() {
		<-started
		leave()
	}()
	if resp, err := http.DefaultClient.Do(req); err == nil {
		_ = resp.Body.Close()
		t.Errorf("the call was answered: %d", resp.StatusCode)
	}
	waitFor(t, "the cancellation", func() bool { return len(seen.with("notifications/cancelled")) == 1 })
}

// A call goes on after a change of the configuration, and so does the stream that its target asks on.
func TestBridgeStreamOfOpenCall(t *testing.T) {
	calling, changed, answered := make(chan struct{}), make(chan struct{}), make(chan struct{})
	s := &script{}
	s.onGet = func(c *mcptest.Conn) {
		c.Send(streamHead)
		<-changed
		c.Send(event(elicitAgain))
		c.Hang()
	}
	s.onCall = func(c *mcptest.Conn, id, _ string) {
		c.Send(streamHead)
		close(calling)
		<-answered
		c.Send(event(answeredBy(id, done)), lastChunk)
	}
	w := behind(newScriptTarget(t, s).URL)
	w.targets[0].SessionScope = sharedByCaller
	p := w.start(t)
	go func() {
		<-calling
		w.policies["only"] = authorization(allow(`true`))
		p.apply(t, w)
		close(changed)
		waitFor(t, "the answer", func() bool { return len(s.posts.with(`"action"`)) > 0 })
		close(answered)
	}()
	key, state := p.asked(t)
	w.policies["only"] = nil
	p.apply(t, w)
	if got := p.retry(t, accepted(key), state); textOf(t, got) != "done" {
		t.Errorf("%s", got.body)
	}
}

// A listen ends with the configuration that it began under, also where nobody shares its session.
func TestBridgeListenEndsWithItsConfiguration(t *testing.T) {
	for name, scope := range map[string]*xdsv1.SessionScope{"own session": nil, "shared session": sharedByCaller} {
		t.Run(name, func(t *testing.T) {
			w := behind(mcptest.NewServer(t, mcptest.Options{}).URL)
			w.targets[0].SessionScope = scope
			p := w.start(t)
			s := p.listen(t, `"L"`, `{"toolsListChanged":true}`)
			s.next(t, "notifications/subscriptions/acknowledged")
			w.policies["only"] = &policyv1.Policies{RequestHeaderModifier: &policyv1.HeaderModifier{Remove: []string{"x-secret"}}}
			p.apply(t, w)
			if got := mustJSON(s.next(t, "")); !strings.Contains(got, `"complete"`) {
				t.Errorf("%s", got)
			}
		})
	}
}

// News that come while a listen is still subscribing are its own: it asked for them before.
func TestBridgeListenMissesNothing(t *testing.T) {
	s := newListenScript(t)
	w := behind(s.URL)
	w.targets[0].ProtocolVersions = []string{"2025-06-18"}
	stream := w.start(t).listen(t, `"L"`, `{"toolsListChanged":true,"resourceSubscriptions":["test://a","test://b"]}`)
	var got []string
	for range 3 {
		var msg map[string]any
		select {
		case msg = <-stream.msgs:
		case <-time.After(5 * time.Second):
			t.Fatalf("heard %q only", got)
		}
		uri := ""
		if params, ok := msg["params"].(map[string]any); ok && params["uri"] != nil {
			uri = " " + params["uri"].(string)
		}
		got = append(got, strings.TrimPrefix(msg["method"].(string), "notifications/")+uri)
	}
	slices.Sort(got[1:])
	if want := []string{"subscriptions/acknowledged", "resources/updated test://a", "tools/list_changed"}; !slices.Equal(got, want) {
		t.Errorf("heard %q, want %q", got, want)
	}
}

// newListenScript is a target that has news before it has answered the second subscription.
func newListenScript(t *testing.T) *mcptest.Script {
	var s *mcptest.Script
	stream, ponged := make(chan *mcptest.Conn, 1), make(chan struct{})
	s = mcptest.NewScript(t, func(c *mcptest.Conn) {
		for {
			r, body := c.Read()
			if r == nil {
				return
			}
			var m struct {
				ID     json.RawMessage
				Method string
				Params struct{ URI string }
			}
			_ = json.Unmarshal(body, &m)
			switch {
			case r.Method == http.MethodGet:
				c.Send(streamHead)
				stream <- c
				c.Hang()
				return
			case r.Method != http.MethodPost:
				c.Answer(405, "", "")
			case m.Method == "initialize":
				c.Answer(200, "application/json", answeredBy(string(m.ID), `{"protocolVersion":"2025-06-18","capabilities":{"tools":{"listChanged":true},"resources":{"subscribe":true}},"serverInfo":{"name":"s","version":"0"}}`), "Mcp-Session-Id: s1")
			case m.Method == "resources/subscribe":
				if m.Params.URI == "test://b" {
					get := <-stream
					get.Send(event(`{"jsonrpc":"2.0","method":"notifications/resources/updated","params":{"uri":"test://a"}}`),
						event(`{"jsonrpc":"2.0","method":"notifications/tools/list_changed"}`), event(`{"jsonrpc":"2.0","id":1,"method":"ping"}`))
					<-ponged
				}
				c.JSON(answeredBy(string(m.ID), `{}`))
			default:
				if m.Method == "" && string(m.ID) == "1" {
					close(ponged)
				}
				c.Answer(202, "", "")
			}
		}
	})
	return s
}

// Requests that share a session have ids and progress tokens of their own there: an id may not be used twice in a session
// (2025-11-25, basic: requests), nor a token by two requests at once (progress).
func TestBridgeOwnIDs(t *testing.T) {
	release := make(chan struct{})
	var open atomic.Int32
	s := &script{}
	s.onCall = func(c *mcptest.Conn, id, body string) {
		if !strings.Contains(body, "progressToken") {
			c.JSON(answeredBy(id, done))
			return
		}
		token := regexp.MustCompile(`"progressToken":("[^"]*"|\d+)`).FindStringSubmatch(body)[1]
		if open.Add(1) == 2 {
			close(release)
		}
		<-release
		c.Send(streamHead, event(`{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":`+token+`,"progress":1}}`), event(answeredBy(id, done)), lastChunk)
	}
	w := behind(newScriptTarget(t, s).URL)
	w.targets[0].SessionScope = sharedByCaller
	p := w.start(t)
	for range 2 {
		if got := p.stateless(t, "tools/call", "x", `"name":"x"`); textOf(t, got) != "done" || !strings.Contains(got.last(), `"id":7`) {
			t.Errorf("%s", got.body)
		}
	}
	answers := make(chan answer, 2)
	for range 2 {
		go func() {
			answers <- p.post(t, "", `{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"x","_meta":{"progressToken":1,"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{}}}}`,
				"MCP-Protocol-Version", "2026-07-28", "Mcp-Method", "tools/call", "Mcp-Name", "x")
		}()
	}
	for range 2 {
		if got := <-answers; !strings.Contains(got.body, `"progressToken":1,`) || textOf(t, got) != "done" {
			t.Errorf("%s", got.body)
		}
	}
	ids, tokens := map[string]bool{}, map[string]bool{}
	for _, body := range s.posts.with(`"tools/call"`) {
		var m struct {
			ID     json.RawMessage
			Params struct {
				Meta struct {
					ProgressToken json.RawMessage
				} `json:"_meta"`
			}
		}
		if err := json.Unmarshal([]byte(body), &m); err != nil {
			t.Fatal(err)
		}
		ids[string(m.ID)] = true
		if token := m.Params.Meta.ProgressToken; token != nil {
			tokens[string(token)] = true
		}
	}
	if len(ids) != 4 || len(tokens) != 2 {
		t.Errorf("four calls with the ids %v, two with the tokens %v", ids, tokens)
	}
}

// What a target said of its tools' headers to one caller is not held against another, and not against one who knows better.
func TestBridgeToolHeadersByCaller(t *testing.T) {
	var changed atomic.Bool
	srv := mcptest.NewServer(t, mcptest.Options{Bare: true, JSON: true, Wrap: func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			body, _ := io.ReadAll(r.Body)
			r.Body = io.NopCloser(strings.NewReader(string(body)))
			var m struct {
				ID     json.RawMessage
				Method string
			}
			_ = json.Unmarshal(body, &m)
			if m.Method != "tools/list" {
				next.ServeHTTP(w, r)
				return
			}
			header := `,"x-mcp-header":"Region"`
			if r.Header.Get("X-Caller") == "bob" || changed.Load() {
				header = ""
			}
			w.Header().Set("Content-Type", "application/json")
			_, _ = io.WriteString(w, answeredBy(string(m.ID), `{"tools":[{"name":"region","inputSchema":{"type":"object","properties":{"region":{"type":"string"`+header+`}}}}]}`))
		})
	}})
	with := tool("region")
	with.InputSchema = json.RawMessage(`{"type":"object","properties":{"region":{"type":"string"}}}`)
	srv.MCP.AddTool(with, textHandler("ok"))
	for name, scope := range map[string]*xdsv1.SessionScope{"own sessions": {Share: xdsv1.SessionScope_SHARE_NONE}, "shared sessions": sharedByCaller} {
		t.Run(name, func(t *testing.T) {
			changed.Store(false)
			w := behind(srv.URL).withKeys()
			w.targets[0].SessionScope = scope
			w.policies["only"] = requestHeader(`apiKey.id`)
			p := w.start(t)
			call := func(headers ...string) answer {
				return p.stateless(t, "tools/call", "region", `"name":"region","arguments":{"region":"eu"}`, headers...)
			}
			if got := call(append(alice, "Mcp-Param-Region", "eu")...); got.status != 200 {
				t.Errorf("alice, with the header: %d %s", got.status, got.body)
			}
			if got := call(alice...); got.status != 400 || got.result(t).Error.Code != -32020 {
				t.Errorf("alice, without the header: %d %s", got.status, got.body)
			}
			if got := call(bob...); got.status != 200 {
				t.Errorf("bob, whose tool has none: %d %s", got.status, got.body)
			}
			changed.Store(true)
			if got := call(alice...); got.status != 200 {
				t.Errorf("alice, once hers has none either: %d %s", got.status, got.body)
			}
		})
	}
}

// As many calls as the target may have at once can all be asked and answered, and cancelled: what a call waits for takes no turn.
func TestBridgeConcurrency(t *testing.T) {
	for transport, make := range oldTargets {
		t.Run(transport, func(t *testing.T) {
			w := make(t)
			w.targets[0].Concurrency = &xdsv1.Concurrency{Max: 1, Wait: durationpb.New(3 * time.Second)} // the end of a call is not that of its answer
			w.targets[0].SessionScope = sharedByCaller
			p := w.start(t)
			key, state := p.asked(t)
			if got := p.retry(t, accepted(key), state); got.status != 200 || textOf(t, got) != "Hello, Ada!" {
				t.Fatalf("%d %s", got.status, got.body)
			}
			w.targets[0].Timeout = durationpb.New(time.Second) // who does not come back has cancelled
			p.apply(t, w)
			p.asked(t)
			waitFor(t, "the turn", func() bool {
				return p.stateless(t, "tools/call", "echo", `"name":"echo","arguments":{"text":"x"}`).status == 200
			})
		})
	}
}
