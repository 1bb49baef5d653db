package dataplane

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/sluicegate/sluice/internal/mcptest"
	policyv1 "github.com/sluicegate/sluice/proto/gen/sluice/policy/v1"
	xdsv1 "github.com/sluicegate/sluice/proto/gen/sluice/xds/v1"
)

const listTools = `{"jsonrpc":"2.0","id":7,"method":"tools/list"}`

// echo is a raw call of a target's echo tool.
func echo(tool, text string) string {
	return `{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"` + tool + `","arguments":{"text":"` + text + `"}}}`
}

// withKeys makes callers known by the API keys `key-alice` and `key-bob`.
func (w *world) withKeys() *world {
	w.secrets = map[string]string{"alice": "key-alice", "bob": "key-bob"}
	auth := &policyv1.ApiKeyAuth{Mode: policyv1.JwtAuth_MODE_STRICT}
	for _, name := range []string{"alice", "bob"} {
		metadata, err := structpb.NewStruct(map[string]any{"id": name})
		if err != nil {
			panic(err)
		}
		auth.Keys = append(auth.Keys, &policyv1.ApiKey{Metadata: metadata,
			Key: &policyv1.Credential{Source: &policyv1.Credential_Secret{Secret: "default/secret/" + name}}})
	}
	w.routePolicy = &policyv1.Policies{ApiKey: auth}
	return w
}

var (
	alice = []string{"Authorization", "Bearer key-alice"}
	bob   = []string{"Authorization", "Bearer key-bob"}
)

// A session of streamable HTTP targets is served by every proxy at once, and belongs to who began it.
func TestFleetSession(t *testing.T) {
	for _, n := range []int{1, 2} {
		w, a, _ := two(t, "2025-11-25", mcptest.Options{JSON: true})
		w.targets = w.targets[:n]
		tool := map[int]string{1: "echo", 2: "a_echo"}[n]
		one, other := w.startAs(t, "proxy-1", "127.0.0.1:0"), w.startAs(t, "proxy-2", "127.0.0.1:0")
		id := one.initialize(t, "2025-11-25")
		for _, p := range []*testProxy{one, other, one} {
			if got := p.post(t, id, echo(tool, "hi")); got.status != 200 || !strings.Contains(got.body, `"hi"`) {
				t.Errorf("%d targets: %s: %d %s", n, p.parts.ProxyID, got.status, got.body)
			}
		}
		if inits := countMethod(a.Requests(), "POST"); inits > 6 {
			t.Errorf("%d targets: the target saw %d POSTs: sessions were made twice", n, inits)
		}
		if got := other.do(t, http.MethodDelete, id, ""); got.status != 204 {
			t.Errorf("DELETE on another proxy: %d", got.status)
		}
		if got := other.post(t, id, echo(tool, "hi")); got.status != 404 {
			t.Errorf("after DELETE, same proxy: %d %s", got.status, got.body)
		}
		got := one.post(t, id, echo(tool, "hi"))
		if n == 1 && got.status != 404 { // its target's session is gone
			t.Errorf("after DELETE elsewhere: %d %s", got.status, got.body)
		}
		if n == 2 && (got.status != 502 || !strings.Contains(got.body, "lost its part of this session")) {
			t.Errorf("after DELETE elsewhere: %d %s", got.status, got.body)
		}
		if deletes := countMethod(a.Requests(), "DELETE"); deletes != 1 {
			t.Errorf("%d targets: the target saw %d DELETEs, want 1", n, deletes)
		}
	}
}

func countMethod(requests []mcptest.Request, method string) (n int) {
	for _, r := range requests {
		if r.Method == method {
			n++
		}
	}
	return n
}

func TestSessionRefused(t *testing.T) {
	srv := mcptest.NewServer(t, mcptest.Options{JSON: true})
	w := behind(srv.URL).withKeys()
	w.ttl = time.Hour
	p := w.start(t)
	if got := p.post(t, "", listTools); got.status != 401 {
		t.Fatalf("no key: %d %s", got.status, got.body)
	}
	if line := lineWith(t, p, `"outcome":"unauthenticated"`); !strings.Contains(line, `"verdict":"deny"`) {
		t.Errorf("the log says %s", line)
	}
	id := p.initialize(t, "2025-11-25", alice...)
	if got := p.post(t, id, listTools, alice...); got.status != 200 {
		t.Fatalf("alice: %d %s", got.status, got.body)
	}
	seen := len(srv.Requests())
	for name, got := range map[string]answer{
		"bob's POST":   p.post(t, id, listTools, bob...),
		"bob's GET":    p.do(t, http.MethodGet, id, "", bob...),
		"bob's DELETE": p.do(t, http.MethodDelete, id, "", bob...),
		"edited":       p.post(t, id[:len(id)-1]+"!", listTools, alice...),
		"made up":      p.post(t, "abc", listTools, alice...),
	} {
		if got.status != 404 {
			t.Errorf("%s: %d %s, want 404", name, got.status, got.body)
		}
	}
	if got := p.post(t, "", listTools, alice...); got.status != 400 {
		t.Errorf("no session: %d", got.status)
	}
	if n := len(srv.Requests()); n != seen {
		t.Errorf("the target saw %d requests of refused sessions", n-seen)
	}
	if got := p.post(t, id, listTools, alice...); got.status != 200 {
		t.Errorf("alice after bob's DELETE: %d %s", got.status, got.body)
	}
	if strings.Contains(p.lines.String(), id) {
		t.Error("the log holds a session id")
	}
}

// A session that holds a child is its proxy's alone: others say so, and start no second child.
func TestOwner(t *testing.T) {
	cmd := mcptest.Stdio("serve")
	srv := mcptest.NewServer(t, mcptest.Options{JSON: true})
	w := behind("web=" + srv.URL)
	w.targets = append(w.targets, &xdsv1.Target{Backend: "default/backend/tools", Index: 1, Name: "child", Transport: &xdsv1.Target_Stdio{
		Stdio: &xdsv1.StdioTransport{Cmd: cmd.Path, Args: cmd.Args, Env: cmd.Env}}})
	one, other := w.startAs(t, "proxy-1", "127.0.0.1:0"), w.startAs(t, "proxy-2", "127.0.0.1:0")
	id := one.initialize(t, "2025-11-25")
	if got := one.post(t, id, echo("child_echo", "hi")); got.status != 200 || !strings.Contains(got.body, "hi") {
		t.Errorf("the owner: %d %s", got.status, got.body)
	}
	for _, method := range []string{"POST", "GET", "DELETE"} {
		got := other.do(t, method, id, echo("web_echo", "hi"))
		if got.status != 503 || !strings.Contains(got.body, "-32603") || !strings.Contains(got.body, "another proxy") {
			t.Errorf("%s elsewhere: %d %s", method, got.status, got.body)
		}
	}
	if got := one.do(t, http.MethodDelete, id, ""); got.status != 204 {
		t.Errorf("DELETE: %d %s", got.status, got.body)
	}
}

// A target that forgets a session is not the client's session ending, unless it was all there was.
func targetLosesSession(t *testing.T) {
	for _, tt := range []struct {
		name         string
		targets      int
		reinitialize bool
		status       int
		want         string
	}{
		{"the only target", 1, false, 404, "Session not found"},
		{"the only target, made anew", 1, true, 200, `"hi"`},
		{"one of two", 2, false, 502, `target \"a\" has lost its part of this session`},
		{"one of two, made anew", 2, true, 200, `"hi"`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			first := mcptest.NewServer(t, mcptest.Options{JSON: true})
			second := mcptest.NewServer(t, mcptest.Options{JSON: true})
			w := behind("a="+first.URL, "b="+second.URL)
			w.targets = w.targets[:tt.targets]
			w.targets[0].Reinitialize = tt.reinitialize
			forget := mcptest.NewServer(t, mcptest.Options{JSON: true}) // knows no session yet
			switcher := newSwitch(t, first.URL)
			w.targets[0].Transport = &xdsv1.Target_Mcp{Mcp: endpointOf(switcher.URL)}
			p := w.start(t)
			tool := map[int]string{1: "echo", 2: "a_echo"}[tt.targets]
			id := p.initialize(t, "2025-11-25")
			if got := p.post(t, id, echo(tool, "hi")); got.status != 200 {
				t.Fatalf("before: %d %s", got.status, got.body)
			}
			switcher.to(forget.URL)
			got := p.post(t, id, echo(tool, "hi"))
			if got.status != tt.status || !strings.Contains(got.body, tt.want) {
				t.Errorf("got %d %s, want %d %s", got.status, got.body, tt.status, tt.want)
			}
			if tt.targets == 2 {
				if got := p.post(t, id, echo("b_echo", "hi")); got.status != 200 {
					t.Errorf("the other target: %d %s", got.status, got.body)
				}
			}
			if tt.reinitialize { // the new one is kept
				before := len(forget.Requests())
				p.post(t, id, echo(tool, "hi"))
				if n := len(forget.Requests()) - before; n != 1 {
					t.Errorf("a call in the new session took %d requests", n)
				}
			}
		})
	}
}

// What a session was begun with stays, and what is added is there at the next call, in its own words.
func TestSessionFollowsConfiguration(t *testing.T) {
	a, b := mcptest.NewServer(t, mcptest.Options{}), mcptest.NewServer(t, mcptest.Options{})
	w := behind("a=" + a.URL)
	p := w.start(t)
	cli := mcptest.Connect(t, p.URL, mcptest.ClientOptions{Version: "2025-11-25"})
	awaitStreams(t, a)
	before := cli.ToolNames(t)
	w.add("b", &xdsv1.Target_Mcp{Mcp: endpointOf(b.URL)})
	b.MCP.AddTool(tool("fresh"), textHandler("from b"))
	p.apply(t, w)
	cli.Await(t, "notifications/tools/list_changed", 1)
	after := cli.ToolNames(t)
	if diff := cmp.Diff(append(before, "fresh"), after); diff != "" {
		t.Errorf("tools of a session that was there before b (-before +after):\n%s", diff)
	}
	if got := cli.Call(t, "fresh", nil); got != "from b" {
		t.Errorf("fresh = %q", got)
	}
	if got := cli.Call(t, "echo", map[string]any{"text": "x"}); got != "x" {
		t.Errorf("echo = %q", got)
	}
	awaitStreams(t, b) // the open stream follows the new target
	b.MCP.AddTool(tool("later"), textHandler("later"))
	cli.Await(t, "notifications/tools/list_changed", 2)
	w.targets = w.targets[:1]
	p.apply(t, w)
	cli.Await(t, "notifications/tools/list_changed", 3)
	if diff := cmp.Diff(before, cli.ToolNames(t)); diff != "" {
		t.Errorf("after b was removed (-want +got):\n%s", diff)
	}
}

// A client's answer finds the target that asked through any proxy.
func TestAnswerThroughAnotherProxy(t *testing.T) {
	w, _, _ := two(t, "2025-11-25", mcptest.Options{})
	one, other := w.startAs(t, "proxy-1", "127.0.0.1:0"), w.startAs(t, "proxy-2", "127.0.0.1:0")
	a := one.post(t, "", `{"jsonrpc":"2.0","id":0,"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{"elicitation":{}},"clientInfo":{"name":"raw","version":"1"}}}`)
	id := a.header.Get("Mcp-Session-Id")
	one.post(t, id, `{"jsonrpc":"2.0","method":"notifications/initialized"}`)
	stream := one.open(t, http.MethodPost, id, `{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"a-b_elicit","arguments":{}}}`)
	asked := stream.next(t, "elicitation/create")
	if _, ok := asked["id"].(string); !ok {
		t.Fatalf("the target's id shows: %v", asked["id"])
	}
	reply := `{"jsonrpc":"2.0","id":"` + asked["id"].(string) + `","result":{"action":"accept","content":{"name":"Zoe"}}}`
	if got := other.post(t, other.initialize(t, "2025-11-25"), reply); got.status != 400 {
		t.Errorf("the answer in another session: %d %s", got.status, got.body)
	}
	if got := other.post(t, id, reply); got.status != 202 {
		t.Fatalf("the answer through another proxy: %d %s", got.status, got.body)
	}
	if result := stream.next(t, ""); !strings.Contains(mustJSON(result), "Hello, Zoe!") {
		t.Errorf("result = %v", result)
	}
}

func tooManyTargets(t *testing.T) {
	srv := mcptest.NewServer(t, mcptest.Options{JSON: true})
	w := behind("a=" + srv.URL)
	p := w.start(t)
	big := strings.Repeat("x", 3000)
	got := p.post(t, "", `{"jsonrpc":"2.0","id":0,"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{"experimental":{"x":"`+big+`"}},"clientInfo":{"name":"raw","version":"1"}}}`)
	if got.status != 400 || !strings.Contains(got.body, "capabilities take") || got.header.Get("Mcp-Session-Id") != "" {
		t.Errorf("huge capabilities: %d %s", got.status, got.body)
	}
	waitFor(t, "the target's session to be ended", func() bool { return countMethod(srv.Requests(), "DELETE") == 1 })
	got = p.post(t, "", `{"jsonrpc":"2.0","id":0,"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{},"clientInfo":{"name":"raw","version":"1","icons":[{"src":"`+big+`"}]}}}`)
	if got.status != 200 {
		t.Errorf("a client with a picture: %d %s", got.status, got.body)
	}
}
