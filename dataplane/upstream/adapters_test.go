package upstream

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/sluicegate/sluice/dataplane/mcp"
	"github.com/sluicegate/sluice/dataplane/snapshot"
	"github.com/sluicegate/sluice/internal/mcptest"
	"github.com/sluicegate/sluice/internal/policy"
	xdsv1 "github.com/sluicegate/sluice/proto/gen/sluice/xds/v1"
)

const initialize = `{"jsonrpc":"2.0","id":0,"method":"initialize","params":{"protocolVersion":"2025-06-18","capabilities":{"elicitation":{}},"clientInfo":{"name":"t","version":"1"}}}`

// caller speaks to a transport as mux does, in one session.
type caller struct {
	t     testing.TB
	tr    Transport
	id    string
	whose string
	init  []byte
}

// open begins a session, with initialized.
func open(t testing.TB, tr Transport) *caller {
	t.Helper()
	c := &caller{t: t, tr: tr}
	res := c.do("POST", initialize)
	body := text(t, res)
	if c.id = res.Header.Get("Mcp-Session-Id"); res.Status != 200 || c.id == "" {
		t.Fatalf("initialize: status %d, session %q, %s", res.Status, c.id, body)
	}
	if res := c.do("POST", `{"jsonrpc":"2.0","method":"notifications/initialized"}`); res.Status != 202 {
		t.Fatalf("initialized: status %d", res.Status)
	}
	return c
}

func (c *caller) try(method, body string) (*Response, error) {
	r := post(body)
	r.Method, r.Initialize, r.Whose = method, c.init, c.whose
	if c.id != "" {
		r.Header.Set("Mcp-Session-Id", c.id)
	}
	return c.tr.Do(limited(c.t), r)
}

func (c *caller) do(method, body string) *Response {
	c.t.Helper()
	res, err := c.try(method, body)
	if err != nil {
		c.t.Fatalf("%s %.100s: %v", method, body, err)
	}
	return res
}

func toolCall(id, tool, args string) string {
	return fmt.Sprintf(`{"jsonrpc":"2.0","id":%s,"method":"tools/call","params":{"name":%q,"arguments":%s}}`, id, tool, args)
}

// answer reads the response of an answer: its id's bytes, and the text of its content or the error's message.
func answer(t testing.TB, body string) (id, said string) {
	t.Helper()
	if strings.HasPrefix(body, "event:") {
		parts := strings.Split(strings.TrimSpace(body), "data: ")
		body = parts[len(parts)-1]
	}
	var m struct {
		ID     json.RawMessage
		Result struct{ Content []struct{ Text string } }
		Error  *struct{ Message string }
	}
	if err := json.Unmarshal([]byte(body), &m); err != nil {
		t.Fatalf("answer %.300q: %v", body, err)
	}
	switch {
	case m.Error != nil:
		said = "error: " + m.Error.Message
	case len(m.Result.Content) > 0:
		said = m.Result.Content[0].Text
	}
	return string(m.ID), said
}

// said calls a tool and returns what its answer says.
func (c *caller) said(tool, args string) string {
	c.t.Helper()
	_, s := answer(c.t, text(c.t, c.do("POST", toolCall("7", tool, args))))
	return s
}

// eventually waits for something that another goroutine or process brings about.
func eventually(t testing.TB, what string, f func() bool) {
	t.Helper()
	for range 1000 {
		if f() {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Fatalf("%s: not within 5 s", what)
}

// Real clients over the adapters see what they see of the server itself.
func TestAdaptersWithRealClients(t *testing.T) {
	for _, tt := range []struct {
		name, version string
		target        func() *snapshot.Target
	}{
		{"stdio", "2025-03-26", func() *snapshot.Target { return stdioTarget(t, "serve", nil) }},
		{"stdio", "2025-11-25", func() *snapshot.Target { return stdioTarget(t, "serve", nil) }},
		{"stdio in pieces", "2025-06-18", func() *snapshot.Target { return stdioTarget(t, "halfline", nil) }},
		{"stdio with garbage", "2025-06-18", func() *snapshot.Target { return stdioTarget(t, "garbage", nil) }},
		{"stdio with much on stderr", "2025-06-18", func() *snapshot.Target { return stdioTarget(t, "stderrflood", nil) }},
		{"stdio", "2026-07-28", func() *snapshot.Target { return stdioTarget(t, "serve", nil) }},
		{"sse", "2025-11-25", func() *snapshot.Target {
			return sseTarget(t, mcptest.NewServer(t, mcptest.Options{SSE: true}).URL, nil)
		}},
		{"http", "2025-11-25", func() *snapshot.Target { return httpTarget(t, mcptest.NewServer(t, mcptest.Options{}).URL, nil) }},
		{"http", "2026-07-28", func() *snapshot.Target {
			return httpTarget(t, mcptest.NewServer(t, mcptest.Options{Stateless: true}).URL, nil)
		}},
	} {
		t.Run(tt.name+"/"+tt.version, func(t *testing.T) {
			t.Parallel()
			m := manager(t, nil)
			srv := httptest.NewServer(&handler{tr: m.Transport(tt.target())})
			t.Cleanup(func() { srv.CloseClientConnections(); srv.Close() })
			c := mcptest.Connect(t, srv.URL, mcptest.ClientOptions{Version: tt.version})
			got := map[string]string{}
			for tool, args := range map[string]map[string]any{
				"echo": {"text": "a\nb ☃"}, "add": {"a": 1, "b": 2}, "elicit": nil, "sample": nil, "roots": nil, "count": nil,
			} {
				got[tool] = c.Call(t, tool, args)
			}
			want := map[string]string{"echo": "a\nb ☃", "add": "3", "elicit": "Hello, Ada!", "sample": "model: Paris",
				"roots": "file:///work", "count": "1"}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("calls (-want +got):\n%s", diff)
			}
			if got := len(c.Call(t, "big", map[string]any{"bytes": 3 << 20})); got != 3<<20 {
				t.Errorf("big result of %d bytes", got)
			}
			c.Call(t, "grow", nil)
			c.Await(t, "notifications/tools/list_changed", 1)
		})
	}
}

// Every byte of an id comes back, whatever it is, though the server behind would change some of them.
func TestIDs(t *testing.T) {
	for name, tt := range map[string]*snapshot.Target{
		"stdio":  stdioTarget(t, "serve", nil),
		"shared": stdioTarget(t, "serve", func(c *xdsv1.StdioTransport) { c.Shared = true }),
		"sse":    sseTarget(t, mcptest.NewServer(t, mcptest.Options{SSE: true}).URL, nil),
	} {
		t.Run(name, func(t *testing.T) {
			c := open(t, manager(t, nil).Transport(tt))
			for _, id := range []string{"0", "1", "-7", `""`, `"a b"`, `"1"`, "9007199254740993", "1.5", "1e2", `"\u00e9\/"`, `"é"`, "123456789012345678901234567890"} {
				got, s := answer(t, text(t, c.do("POST", toolCall(id, "echo", `{"text":"x"}`))))
				if got != id || s != "x" {
					t.Errorf("id %s came back as %s, with %q", id, got, s)
				}
			}
			// The same id twice at a time.
			var wg sync.WaitGroup
			for i := range 5 {
				wg.Go(func() {
					want := strconv.Itoa(i)
					id, s := answer(t, text(t, c.do("POST", fmt.Sprintf(
						`{"jsonrpc":"2.0","id":5,"method":"tools/call","params":{"name":"progress","arguments":{"n":%s,"ms":5},"_meta":{"progressToken":"same"}}}`, want))))
					if id != "5" || s != want {
						t.Errorf("answer %s %q, want 5 %q", id, s, want)
					}
				})
			}
			wg.Wait()
		})
	}
}

// What belongs to a call comes on its body, in order; the rest on the GET stream.
func TestAttribution(t *testing.T) {
	c := open(t, manager(t, nil).Transport(stdioTarget(t, "serve", nil)))
	get := c.do("GET", "")
	if get.Status != 200 || get.Header.Get("Content-Type") != "text/event-stream" {
		t.Fatalf("GET: %d %v", get.Status, get.Header)
	}
	events := bufio.NewReader(get.Body)
	next := func() string {
		for {
			line, err := events.ReadString('\n')
			if err != nil {
				t.Fatalf("GET stream: %v", err)
			}
			if s, ok := strings.CutPrefix(line, "data: "); ok {
				return strings.TrimSpace(s)
			}
		}
	}
	if s := c.said("grow", "{}"); s != "added" {
		t.Errorf("grow said %q", s)
	}
	if got := next(); !strings.Contains(got, "notifications/tools/list_changed") {
		t.Errorf("GET stream had %s", got)
	}
	text(t, c.do("POST", `{"jsonrpc":"2.0","id":1,"method":"logging/setLevel","params":{"level":"debug"}}`))
	body := text(t, c.do("POST", `{"jsonrpc":"2.0","id":9,"method":"tools/call","params":{"name":"log","arguments":{"n":2}}}`))
	if n := strings.Count(body, "notifications/message"); n != 2 || !strings.Contains(body, `"id":9`) {
		t.Errorf("the only open call's body has %d log lines: %s", n, body)
	}
	// Two calls at once: progress goes to the call with the token, byte for byte.
	slow := make(chan string)
	go func() {
		res, err := c.try("POST", toolCall("20", "slow", `{"ms":300}`))
		if err != nil {
			slow <- err.Error()
			return
		}
		b, _ := io.ReadAll(res.Body)
		slow <- string(b)
	}()
	time.Sleep(50 * time.Millisecond)
	body = text(t, c.do("POST", `{"jsonrpc":"2.0","id":"p","method":"tools/call","params":{"name":"progress","arguments":{"n":3},"_meta":{"progressToken":"t/1"}}}`))
	if n := strings.Count(body, `"progressToken":"t/1"`); n != 3 {
		t.Errorf("%d progress notifications: %s", n, body)
	}
	if got := <-slow; strings.Contains(got, "event:") || !strings.Contains(got, "done") {
		t.Errorf("the other call's answer: %s", got)
	}
	get.Body.Close()
	// What comes while no GET stream is open waits for the next one.
	c.said("grow", "{}")
	again := c.do("GET", "")
	events = bufio.NewReader(again.Body)
	if got := next(); !strings.Contains(got, "list_changed") {
		t.Errorf("the second GET stream had %s", got)
	}
	again.Body.Close()
}

func TestSessionLife(t *testing.T) {
	for name, tt := range map[string]*snapshot.Target{
		"stdio": stdioTarget(t, "serve", func(c *xdsv1.StdioTransport) { c.Idle = duration(3 * time.Second) }), // longer than a process takes to start on a busy machine
		"sse":   sseTarget(t, mcptest.NewServer(t, mcptest.Options{SSE: true}).URL, nil),
	} {
		t.Run(name, func(t *testing.T) {
			m := manager(t, nil)
			tr := m.Transport(tt)
			if !tr.Owned() {
				t.Error("not owned")
			}
			c := open(t, tr)
			other := open(t, tr)
			c.said("count", "{}")
			if s := c.said("count", "{}"); s != "2" && name == "stdio" {
				t.Errorf("second call of one session: %q", s)
			}
			if s := other.said("count", "{}"); s != "1" && name == "stdio" {
				t.Errorf("first call of another session: %q, want a process of its own", s)
			}
			if res := c.do("DELETE", ""); res.Status != 204 {
				t.Errorf("DELETE: %d", res.Status)
			}
			for _, method := range []string{"POST", "GET", "DELETE"} {
				if res := c.do(method, toolCall("1", "echo", `{"text":"x"}`)); res.Status != 404 {
					t.Errorf("%s after DELETE: %d", method, res.Status)
				} else if b := text(t, res); !strings.Contains(b, "no such session") {
					t.Errorf("%s after DELETE: %s", method, b)
				}
			}
			// With what made it the session comes back under its id, and says so.
			c.init = []byte(initialize)
			res := c.do("POST", toolCall("1", "count", `{}`))
			if _, s := answer(t, text(t, res)); !res.Renewed || res.Status != 200 || s != "1" && name == "stdio" {
				t.Errorf("after DELETE, with initialize: %d, renewed %v, %q", res.Status, res.Renewed, s)
			}
			if res := c.do("POST", toolCall("1", "echo", `{"text":"x"}`)); res.Renewed {
				t.Error("renewed twice")
			}
			if name == "sse" {
				return
			}
			eventually(t, "idle processes stop", func() bool { return m.Health()[0].Children == 0 })
			if res := c.do("POST", toolCall("1", "echo", `{"text":"x"}`)); !res.Renewed || res.Status != 200 {
				t.Errorf("after idle: %d, renewed %v", res.Status, res.Renewed)
			}
			if res := other.do("POST", toolCall("1", "echo", `{"text":"x"}`)); res.Status != 404 {
				t.Errorf("after idle, without initialize: %d", res.Status)
			}
		})
	}
}

func TestInitializeRefused(t *testing.T) {
	m := manager(t, nil)
	c := &caller{t: t, tr: m.Transport(stdioTarget(t, "serve", nil))}
	res := c.do("POST", `{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":5}}`)
	if id := res.Header.Get("Mcp-Session-Id"); id != "" {
		t.Errorf("a refused initialize made session %s", id)
	}
	if _, s := answer(t, text(t, res)); !strings.HasPrefix(s, "error") {
		t.Errorf("answer %q", s)
	}
	eventually(t, "its process stops", func() bool { return m.Health()[0].Children == 0 })
}

func TestMaxProcesses(t *testing.T) {
	m := manager(t, nil)
	tr := m.Transport(stdioTarget(t, "serve", func(c *xdsv1.StdioTransport) { c.MaxProcesses = 1 }))
	c := open(t, tr)
	second := &caller{t: t, tr: tr}
	res := second.do("POST", initialize)
	if b := text(t, res); res.Status != 503 || !res.Full || res.Header.Get("Retry-After") == "" || !strings.Contains(b, "all 1 processes") || !strings.Contains(b, `"id":0`) {
		t.Errorf("second session: %d %v %s", res.Status, res.Header, b)
	}
	// What is about to be free is waited for.
	c.do("DELETE", "")
	if res := second.do("POST", initialize); res.Status != 200 {
		t.Errorf("after DELETE: %d %s", res.Status, text(t, res))
	} else {
		second.id = res.Header.Get("Mcp-Session-Id")
	}
	second.do("DELETE", "")
	second.id = ""
	// And the process for stateless calls makes room while it has nothing to do.
	res = second.do("POST", `{"jsonrpc":"2.0","id":1,"method":"server/discover","params":{"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{}}}}`)
	if b := text(t, res); !strings.Contains(b, "supportedVersions") {
		t.Fatalf("discover: %s", b)
	}
	open(t, tr)
	if n := m.Health()[0].Children; n != 1 {
		t.Errorf("%d processes", n)
	}
}

// One caller has at most half of the sessions at a shared process, so that others are served; anonymous callers, of whom nobody knows how
// many they are, have all.
func TestShareOfSessions(t *testing.T) {
	m := manager(t, nil)
	tr := m.Transport(stdioTarget(t, "serve", func(c *xdsv1.StdioTransport) { c.Shared = true }))
	for _, r := range m.shared {
		r.sessions.most = 3
	}
	begin := func(whose string) (c *caller, refusal string) {
		t.Helper()
		c = &caller{t: t, tr: tr, whose: whose}
		res := c.do("POST", initialize)
		body := text(t, res)
		if res.Status == 200 {
			c.id = res.Header.Get("Mcp-Session-Id")
			return c, ""
		}
		if res.Status != 503 || res.Header.Get("Retry-After") == "" || !strings.Contains(body, `"id":0`) {
			t.Errorf("%s: %d %v %s", whose, res.Status, res.Header, body)
		}
		return c, body
	}
	first, _ := begin("ada")
	for i, tt := range []struct{ whose, refusal string }{
		{"ada", ""}, {"ada", "as one caller may"}, {"bob", ""}, {"bob", "the target"}, {"", "the target"},
	} {
		if _, got := begin(tt.whose); (got == "") != (tt.refusal == "") || !strings.Contains(got, tt.refusal) {
			t.Errorf("session %d, of %q: %q, want %q", i, tt.whose, got, tt.refusal)
		}
	}
	// Nor is one begun anew under its old id.
	back := &caller{t: t, tr: tr, id: "of old", init: []byte(initialize)}
	if res := back.do("POST", toolCall("1", "count", "{}")); res.Status != 404 {
		t.Errorf("one more session that comes back: %d", res.Status)
	}
	first.do("DELETE", "")
	if _, got := begin("ada"); got != "" {
		t.Errorf("after one of ada's ended: %s", got)
	}
}

func TestGrants(t *testing.T) {
	cmd := mcptest.Stdio("serve")
	stdio := target(t, policy.Stdio, &xdsv1.Target{Transport: &xdsv1.Target_Stdio{Stdio: &xdsv1.StdioTransport{Cmd: cmd.Path, Env: cmd.Env}}}, nil, "stdio=npx")
	m := manager(t, nil)
	_, err := m.Transport(stdio).Do(limited(t), post(initialize))
	contains(t, "stdio", err, "not granted", "acme")
	srv := mcptest.NewServer(t, mcptest.Options{})
	for _, tt := range []*snapshot.Target{
		target(t, policy.HTTP, &xdsv1.Target{Transport: &xdsv1.Target_Mcp{Mcp: httpConfig(t, srv.URL)}}, nil, "stdio"),
		target(t, policy.SSE, &xdsv1.Target{Transport: &xdsv1.Target_Sse{Sse: httpConfig(t, srv.URL)}}, nil, "stdio"),
	} {
		_, err = m.Transport(tt).Do(limited(t), post(initialize))
		contains(t, "address", err, "private-network")
	}
	if n := len(srv.Requests()); n != 0 {
		t.Errorf("%d requests came through", n)
	}
	// A kept connection does not outlive the grant.
	tt := httpTarget(t, srv.URL, nil)
	tr := m.Transport(tt)
	res, err := tr.Do(limited(t), post(initialize))
	if err != nil {
		t.Fatal(err)
	}
	text(t, res)
	tt.Tenant.Grants = policy.Grants{}
	_, err = tr.Do(limited(t), post(initialize))
	contains(t, "revoked", err, "private-network")
}

func TestChildEnvironment(t *testing.T) {
	t.Setenv("SLUICE_TOKEN", "secret")
	t.Setenv("SVC_MINE", "yes")
	t.Setenv("DB_PASSWORD", "not theirs")
	start := func(clear bool, grants ...string) *caller {
		tt := stdioTarget(t, "serve", func(c *xdsv1.StdioTransport) { c.ClearEnv, c.Env["OWN"] = clear, "mine" })
		g, err := policy.ParseGrants(grants)
		if err != nil {
			t.Fatal(err)
		}
		tt.Tenant.Grants = g
		return open(t, manager(t, nil).Transport(tt))
	}
	all, some, clear := start(false, "*"), start(false, "stdio,env=SVC_*"), start(true, "*")
	got := map[string][3]string{}
	for _, name := range []string{"SLUICE_TOKEN", "SVC_MINE", "DB_PASSWORD", "OWN"} {
		args := fmt.Sprintf(`{"name":%q}`, name)
		got[name] = [3]string{all.said("env", args), some.said("env", args), clear.said("env", args)}
	}
	want := map[string][3]string{"SLUICE_TOKEN": {"-", "-", "-"}, "SVC_MINE": {"yes", "yes", "-"}, "DB_PASSWORD": {"not theirs", "-", "-"}, "OWN": {"mine", "mine", "mine"}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("environment (-want +got):\n%s", diff)
	}
	for _, c := range []*caller{some, clear} {
		if c.said("env", `{"name":"PATH"}`) == "-" {
			t.Error("a child has no PATH")
		}
	}
}

// Children that misbehave hurt their own calls alone.
func TestHostileChildren(t *testing.T) {
	good := func(t *testing.T, m *Manager) {
		t.Helper()
		c := open(t, m.Transport(stdioTarget(t, "serve", nil)))
		if s := c.said("echo", `{"text":"still here"}`); s != "still here" {
			t.Errorf("another child said %q", s)
		}
	}
	t.Run("crash", func(t *testing.T) {
		m := manager(t, nil)
		c := open(t, m.Transport(stdioTarget(t, "crash", nil)))
		_, err := c.try("POST", toolCall("1", "echo", `{}`))
		contains(t, "call", err, "exit status 3")
		if NotSent(err) {
			t.Error("a call that killed its process is called not sent")
		}
		c.init = []byte(initialize)
		var body string
		for range 20 { // soon the next start waits
			res, err := c.try("POST", toolCall("1", "echo", `{}`))
			if err == nil && res.Status == 503 && res.Header.Get("Retry-After") != "" {
				body = text(t, res)
				break
			}
		}
		if !strings.Contains(body, "the next start is in") || strings.Contains(body, "exit status") { // why is for operators
			t.Errorf("a client is told %q", body)
		}
		if h := m.Health(); len(h) != 1 || !strings.Contains(h[0].Err, "exit status 3") {
			t.Errorf("health %+v", h)
		}
		good(t, m)
	})
	t.Run("dead", func(t *testing.T) {
		m := manager(t, nil)
		c := &caller{t: t, tr: m.Transport(stdioTarget(t, "dead", nil))}
		_, err := c.try("POST", initialize)
		contains(t, "initialize", err, "exit status 4")
		if h := m.Health(); len(h) != 1 || !strings.Contains(h[0].Err, "exit status 4") || h[0].Sessions != 0 {
			t.Errorf("health %+v", h)
		}
	})
	t.Run("dead while it is written to", func(t *testing.T) {
		c := &caller{t: t, tr: manager(t, nil).Transport(stdioTarget(t, "dead", nil))}
		more := strings.Repeat("x", 256<<10) // than a pipe takes
		_, err := c.try("POST", `{"jsonrpc":"2.0","id":1,"method":"server/discover","params":{"_meta":{"more":"`+more+`"}}}`)
		contains(t, "server/discover", err, "exit status 4")
	})
	t.Run("no such program", func(t *testing.T) {
		c := &caller{t: t, tr: manager(t, nil).Transport(stdioTarget(t, "dead", func(c *xdsv1.StdioTransport) { c.Cmd = "/no/such/program" }))}
		_, err := c.try("POST", initialize)
		contains(t, "initialize", err, "/no/such/program")
	})
	t.Run("mute", func(t *testing.T) {
		m := manager(t, nil)
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		_, err := m.Transport(stdioTarget(t, "mute", nil)).Do(ctx, post(initialize))
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error %v", err)
		}
		eventually(t, "its process stops", func() bool { return m.Health()[0].Children == 0 })
		good(t, m)
	})
	t.Run("deaf", func(t *testing.T) {
		m := manager(t, func(c *Config) { c.MaxQueued = 1 << 20 })
		tr := m.Transport(stdioTarget(t, "deaf", nil))
		big := strings.Replace(initialize, `"t"`, `"`+strings.Repeat("t", 600<<10)+`"`, 1)
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		defer cancel()
		_, err := tr.Do(ctx, post(big))
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error %v", err)
		}
		good(t, m)
	})
	t.Run("flood", func(t *testing.T) {
		m := manager(t, func(c *Config) { c.MaxQueued = 1 << 20 })
		c := open(t, m.Transport(stdioTarget(t, "flood", nil)))
		get := c.do("GET", "")
		defer get.Body.Close()
		time.Sleep(100 * time.Millisecond) // nobody reads
		good(t, m)
		_, err := io.Copy(io.Discard, get.Body)
		contains(t, "a reader that lagged", err, "lags")
	})
	t.Run("longline", func(t *testing.T) {
		m := manager(t, nil)
		c := open(t, m.Transport(stdioTarget(t, "longline", nil)))
		_, err := c.try("POST", toolCall("1", "echo", `{}`))
		contains(t, "call", err, "a line of more than 16777216 bytes")
		good(t, m)
	})
	t.Run("stubborn", func(t *testing.T) {
		m := New(Config{StopGrace: 100 * time.Millisecond})
		c := open(t, m.Transport(stdioTarget(t, "stubborn", nil)))
		pid, err := strconv.Atoi(c.said("env", `{"name":"PID_IS_NOT_SET"}`))
		if err == nil {
			t.Fatalf("pid %d", pid)
		}
		start := time.Now()
		if err := m.Close(limited(t)); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(start); took < 200*time.Millisecond || took > 5*time.Second {
			t.Errorf("closed after %v, want two graces", took)
		}
	})
}

// A child's own children go with it.
func TestProcessGroup(t *testing.T) {
	m := manager(t, nil)
	c := open(t, m.Transport(stdioTarget(t, "family", nil)))
	pid, err := strconv.Atoi(c.said("env", `{"name":"CHILD_PID"}`))
	if err != nil {
		t.Fatal(err)
	}
	if !running(pid) {
		t.Fatal("the grandchild does not run")
	}
	c.do("DELETE", "")
	eventually(t, "the grandchild ends", func() bool { return !running(pid) })
}

func running(pid int) bool {
	stat, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	return err == nil && !strings.Contains(string(stat), ") Z ") && syscall.Kill(pid, 0) == nil
}

// The proxy is killed: children and theirs die with it.
func TestGuard(t *testing.T) {
	if os.Getenv("UPSTREAM_TEST_PROXY") != "" {
		c := open(t, New(Config{}).Transport(stdioTarget(t, "family", nil)))
		fmt.Printf("pid=%s\n", c.said("env", `{"name":"CHILD_PID"}`))
		select {}
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	p, err := os.StartProcess(exe, []string{exe, "-test.run=^TestGuard$", "-test.timeout=20s"}, &os.ProcAttr{
		Env: append(os.Environ(), "UPSTREAM_TEST_PROXY=1"), Files: []*os.File{nil, w, os.Stderr}})
	if err != nil {
		t.Fatal(err)
	}
	w.Close()
	pid := 0
	for lines := bufio.NewScanner(r); lines.Scan(); {
		if s, ok := strings.CutPrefix(lines.Text(), "pid="); ok {
			pid, _ = strconv.Atoi(s)
			break
		}
	}
	r.Close()
	if pid == 0 || !running(pid) {
		t.Fatalf("grandchild %d does not run", pid)
	}
	p.Kill()
	p.Wait()
	eventually(t, "the grandchild ends", func() bool { return !running(pid) })
}

// Sessions of a shared process end when they are idle, as those do that have one to themselves: who never says DELETE leaves
// nothing behind. One that listens is not idle, and one that comes back goes on.
func TestSharedSessionsEnd(t *testing.T) {
	m := manager(t, nil)
	tr := m.Transport(stdioTarget(t, "serve", func(c *xdsv1.StdioTransport) { c.Shared, c.Idle = true, durationpb.New(2*time.Second) }))
	back, listening := open(t, tr), open(t, tr)
	for range 3 {
		open(t, tr)
	}
	get := listening.do("GET", "")
	eventually(t, "all but one end", func() bool { return m.Health()[0].Sessions == 1 })
	text(t, listening.do("POST", toolCall("1", "grow", "{}")))
	ev, err := mcp.NewEventReader(get.Body, 1<<20).Next()
	if err != nil || !strings.Contains(string(ev.Data), "list_changed") {
		t.Errorf("heard %q %v", ev.Data, err)
	}
	get.Body.Close()
	if res := back.do("POST", toolCall("1", "count", "{}")); res.Status != 404 {
		t.Errorf("status %d, want 404", res.Status)
	}
	back.init = []byte(initialize)
	if got := text(t, back.do("POST", toolCall("1", "count", "{}"))); !strings.Contains(got, "1") {
		t.Errorf("count = %s", got)
	}
}

func TestShared(t *testing.T) {
	m := manager(t, nil)
	tr := m.Transport(stdioTarget(t, "serve", func(c *xdsv1.StdioTransport) { c.Shared = true }))
	a, b := open(t, tr), open(t, tr)
	if a.said("count", "{}") != "1" || b.said("count", "{}") != "2" || m.Health()[0].Children != 1 {
		t.Errorf("not one process: %+v", m.Health())
	}
	if s := a.said("elicit", "{}"); strings.Contains(s, "Hello") {
		t.Errorf("a shared process asked a client: %q", s)
	}
	ga, gb := a.do("GET", ""), b.do("GET", "")
	text(t, a.do("POST", `{"jsonrpc":"2.0","id":1,"method":"resources/subscribe","params":{"uri":"test://watched"}}`))
	text(t, b.do("POST", toolCall("1", "touch", "{}")))
	text(t, b.do("POST", toolCall("1", "grow", "{}")))
	read := func(res *Response, want ...string) {
		t.Helper()
		r := bufio.NewReader(res.Body)
		for _, w := range want {
			for {
				line, err := r.ReadString('\n')
				if err != nil {
					t.Fatal(err)
				}
				if strings.HasPrefix(line, "data:") {
					if !strings.Contains(line, w) {
						t.Errorf("got %s, want %s", line, w)
					}
					break
				}
			}
		}
		res.Body.Close()
	}
	read(ga, "resources/updated", "list_changed")
	read(gb, "list_changed") // it did not subscribe
	// Nobody cancels what is not his.
	slow := make(chan string)
	go func() {
		res, err := a.try("POST", toolCall("77", "slow", `{"ms":200}`))
		if err != nil {
			slow <- err.Error()
			return
		}
		body, _ := io.ReadAll(res.Body)
		slow <- string(body)
	}()
	time.Sleep(50 * time.Millisecond)
	b.do("POST", `{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":77}}`)
	if got := <-slow; !strings.Contains(got, "done") {
		t.Errorf("another session's cancelled hit: %s", got)
	}
	go func() {
		res, err := a.try("POST", toolCall(`"k"`, "slow", `{"ms":5000}`))
		if err != nil {
			slow <- err.Error()
			return
		}
		body, _ := io.ReadAll(res.Body)
		slow <- string(body)
	}()
	time.Sleep(50 * time.Millisecond)
	a.do("POST", `{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":"k"}}`)
	if got := <-slow; got != "" { // over before it is done, and without a response
		t.Errorf("its own cancelled did not: %s", got)
	}
	if res := a.do("DELETE", ""); res.Status != 204 {
		t.Errorf("DELETE: %d", res.Status)
	}
	if b.said("count", "{}") != "3" {
		t.Error("one session's end ended the other's process")
	}
}

// Messages without a session share one child, and leaving a call cancels it.
func TestStatelessStdio(t *testing.T) {
	m := manager(t, nil)
	tr := m.Transport(stdioTarget(t, "serve", nil))
	meta := `"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{},"progressToken":1}`
	call := func(ctx context.Context, id, tool, args string) (*Response, error) {
		return tr.Do(ctx, post(fmt.Sprintf(`{"jsonrpc":"2.0","id":%s,"method":"tools/call","params":{"name":%q,"arguments":%s,%s}}`, id, tool, args, meta)))
	}
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			res, err := call(limited(t), "1", "progress", fmt.Sprintf(`{"n":%d}`, i+1))
			if err != nil {
				t.Error(err)
				return
			}
			b, _ := io.ReadAll(res.Body)
			id, s := answer(t, string(b))
			if n := strings.Count(string(b), `"progressToken":1,`) + strings.Count(string(b), `"progressToken":1}`); id != "1" || s != strconv.Itoa(i+1) || n != i+1 {
				t.Errorf("call %d: id %s, %q, %d notifications: %s", i, id, s, n, b)
			}
		})
	}
	wg.Wait()
	if h := m.Health(); h[0].Children != 1 || h[0].Sessions != 0 {
		t.Errorf("health %+v, want one child", h)
	}
	ctx, cancel := context.WithCancel(limited(t))
	time.AfterFunc(50*time.Millisecond, cancel)
	if _, err := call(ctx, "2", "slow", `{"ms":60000}`); err == nil {
		t.Error("a call whose caller left was answered")
	}
	// The listen stream: acknowledged first, then what was asked for, with the caller's own id in both.
	res, err := tr.Do(limited(t), post(`{"jsonrpc":"2.0","id":"sub-1","method":"subscriptions/listen","params":{"notifications":{"toolsListChanged":true},`+meta+`}}`))
	if err != nil {
		t.Fatal(err)
	}
	r := bufio.NewReader(res.Body)
	for _, want := range []string{"acknowledged", "list_changed"} {
		if want == "list_changed" {
			if res, err := call(limited(t), "3", "grow", "{}"); err != nil {
				t.Fatal(err)
			} else {
				text(t, res)
			}
		}
		for {
			line, err := r.ReadString('\n')
			if err != nil {
				t.Fatal(err)
			}
			if strings.HasPrefix(line, "data:") {
				if !strings.Contains(line, want) || !strings.Contains(line, `"io.modelcontextprotocol/subscriptionId":"sub-1"`) {
					t.Errorf("got %s, want %s", line, want)
				}
				break
			}
		}
	}
	// What a call logs names no call. The listen, which is still open, is none that it could be of.
	logged, err := tr.Do(limited(t), post(`{"jsonrpc":"2.0","id":5,"method":"tools/call","params":{"name":"log","arguments":{"n":2},`+strings.TrimSuffix(meta, "}")+`,"io.modelcontextprotocol/logLevel":"info"}}}`))
	if err != nil {
		t.Fatal(err)
	}
	b, _ := io.ReadAll(logged.Body)
	if n := strings.Count(string(b), "notifications/message"); n != 2 {
		t.Errorf("%d log messages, want 2: %s", n, b)
	}
	res.Body.Close()
	if res, err := tr.Do(limited(t), &Request{Method: http.MethodGet}); err != nil || res.Status != 405 {
		t.Errorf("GET without a session: %v %v", res, err)
	}
}

// The process that was asked for its era serves the session that follows.
func TestProbeThenSession(t *testing.T) {
	for _, mode := range []string{"legacy", "mute"} {
		t.Run(mode, func(t *testing.T) {
			m := manager(t, nil)
			tr := m.Transport(stdioTarget(t, mode, func(c *xdsv1.StdioTransport) { c.MaxProcesses = 1 }))
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
			if mode == "mute" {
				ctx, cancel = context.WithTimeout(t.Context(), 100*time.Millisecond)
			}
			defer cancel()
			res, err := tr.Do(ctx, post(`{"jsonrpc":"2.0","id":1,"method":"server/discover","params":{"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{}}}}`))
			if mode == "mute" {
				if !errors.Is(err, context.DeadlineExceeded) {
					t.Fatalf("discover: %v", err)
				}
				ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
				defer cancel()
				if res, err := tr.Do(ctx, post(initialize)); !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("initialize: %v %v, want the mute process to be asked", res, err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if b := text(t, res); !strings.Contains(b, "-32601") {
				t.Errorf("discover: %s", b)
			}
			c := open(t, tr)
			get := c.do("GET", "")
			defer get.Body.Close()
			if s := c.said("count", "{}"); s != "1" || m.Health()[0].Children != 1 {
				t.Errorf("count said %q, with %d processes", s, m.Health()[0].Children)
			}
		})
	}
}

// A process that was late to say its era begins no session: it may have taken the question for a greeting.
func TestLateProbeThenSession(t *testing.T) {
	for _, most := range []uint32{0, 1} {
		target := func(timeout time.Duration) *snapshot.Target {
			tt := stdioTarget(t, "serve", func(c *xdsv1.StdioTransport) { c.MaxProcesses = most })
			if timeout > 0 {
				tt.Config.Timeout = durationpb.New(timeout)
			}
			return tt
		}
		m := manager(t, nil)
		res, err := m.Transport(target(time.Nanosecond)).Do(limited(t), post(`{"jsonrpc":"2.0","id":1,"method":"server/discover","params":{"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientInfo":{"name":"x","version":"1"},"io.modelcontextprotocol/clientCapabilities":{}}}}`))
		if !errors.Is(err, ErrTimeout) {
			t.Fatalf("discover: %v %v, want it late", res, err)
		}
		c := open(t, m.Transport(target(0)))
		if s := c.said("count", "{}"); s != "1" {
			t.Errorf("count said %q", s)
		}
	}
}

// A stateless caller cannot cancel another's call.
func TestStatelessCancelIsNobodys(t *testing.T) {
	tr := manager(t, nil).Transport(stdioTarget(t, "serve", nil))
	meta := `"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{}}`
	done := make(chan string)
	go func() {
		res, err := tr.Do(limited(t), post(`{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"slow","arguments":{"ms":300},`+meta+`}}`))
		if err != nil {
			done <- err.Error()
			return
		}
		b, _ := io.ReadAll(res.Body)
		done <- string(b)
	}()
	time.Sleep(150 * time.Millisecond)
	res, err := tr.Do(limited(t), post(`{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":1}}`))
	if err != nil || res.Status != http.StatusAccepted {
		t.Errorf("cancelled: %v %v", res, err)
	}
	if got := <-done; !strings.Contains(got, "done") {
		t.Errorf("the call ended with %s", got)
	}
}

// A shared process that is started anew knows nothing of what its sessions had subscribed to: it is told again.
func TestSharedRestartKeepsSubscriptions(t *testing.T) {
	m := manager(t, nil)
	tr := m.Transport(stdioTarget(t, "serve", func(c *xdsv1.StdioTransport) { c.Shared = true }))
	a, b := open(t, tr), open(t, tr)
	text(t, a.do("POST", `{"jsonrpc":"2.0","id":1,"method":"resources/subscribe","params":{"uri":"test://watched"}}`))
	for _, r := range m.shared {
		ch := r.sessions.one.channel()
		ch.pipe.(*child).signal(killGroup)
		eventually(t, "the process ends", func() bool { return ch.ended() != nil })
	}
	get := a.do("GET", "")
	text(t, b.do("POST", toolCall("1", "touch", "{}")))
	ev, err := mcp.NewEventReader(get.Body, 1<<20).Next()
	if err != nil || !strings.Contains(string(ev.Data), "resources/updated") {
		t.Errorf("heard %q %v", ev.Data, err)
	}
	get.Body.Close()
	for _, r := range m.shared {
		if ch := r.sessions.one.channel(); !ch.subscribed[a.id].has("test://watched") || ch.wanted["test://watched"] != 1 {
			t.Errorf("it keeps %v", ch.subscribed)
		}
	}
}
