package dataplane

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/sluicegate/sluice/internal/mcptest"
	xdsv1 "github.com/sluicegate/sluice/proto/gen/sluice/xds/v1"
)

// replaced is a server in front of one, and after change of another; "" is none that is up.
func replaced(t *testing.T, first, then string) (at string, change func()) {
	t.Helper()
	var to atomic.Pointer[string]
	to.Store(&first)
	through := &httputil.ReverseProxy{FlushInterval: -1, Rewrite: func(r *httputil.ProxyRequest) {
		u, err := url.Parse(*to.Load())
		if err != nil {
			panic(err)
		}
		r.Out.URL, r.Out.Host = u, u.Host
	}}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if *to.Load() == "" {
			http.Error(w, "not yet", http.StatusServiceUnavailable)
			return
		}
		// Read whole: net/http closes a body that is still being sent on when the answer begins, and with it the connection to the target.
		body, _ := io.ReadAll(r.Body)
		r.Body = io.NopCloser(bytes.NewReader(body))
		through.ServeHTTP(w, r)
	}))
	t.Cleanup(func() { srv.CloseClientConnections(); srv.Close() })
	return srv.URL, func() { to.Store(&then) }
}

// A target that was down when the session began is all that the others are when it is back: what it asks reaches the client and the
// answer it, and it logs at the client's level.
func TestTargetThatComesLater(t *testing.T) {
	for name, target := range map[string]string{
		"sessions":  mcptest.NewServer(t, mcptest.Options{}).URL,
		"stateless": statelessOnly(t),
	} {
		t.Run(name, func(t *testing.T) {
			at, up := replaced(t, "", target)
			w := behind("late="+at, "there="+mcptest.NewServer(t, mcptest.Options{}).URL)
			w.backend.FailureMode = xdsv1.Backend_FAILURE_MODE_FAIL_OPEN
			cli := mcptest.Connect(t, w.start(t).URL, mcptest.ClientOptions{Version: "2025-11-25"})
			if err := cli.SetLoggingLevel(t.Context(), &mcp.SetLoggingLevelParams{Level: "info"}); err != nil {
				t.Fatal(err)
			}
			up()
			if got, err := cli.TryCall(t.Context(), "late_elicit", nil); got != "Hello, Ada!" {
				t.Errorf("elicit = %q %v", got, err)
			}
			cli.Call(t, "late_log", map[string]any{"n": 2})
			cli.Await(t, "notifications/message", 2)
		})
	}
}

// A session that a target has lost, and that is begun again, has the client's log level.
func TestLevelOfASessionBegunAgain(t *testing.T) {
	target := newRaw(t, false, nil)
	w := behind(target.URL)
	w.targets[0].Reinitialize = true
	p := w.start(t)
	id := p.initialize(t, "2025-11-25")
	const said = `{"jsonrpc":"2.0","id":1,"method":"logging/setLevel","params":{"level":"warning"}}`
	if a := p.post(t, id, said); a.status != 200 {
		t.Fatalf("setLevel: %d %s", a.status, a.body)
	}
	var lost atomic.Bool
	target.on("ping/x", func(c *mcptest.Conn, req rawCall) {
		if lost.CompareAndSwap(false, true) {
			c.Answer(404, "", "")
			return
		}
		c.JSON(req.result(`{}`))
	})
	if a := p.post(t, id, `{"jsonrpc":"2.0","id":2,"method":"ping/x"}`); a.status != 200 {
		t.Fatalf("the call: %d %s", a.status, a.body)
	}
	levels := target.posts.with("logging/setLevel")
	if len(levels) != 2 || !strings.Contains(levels[1], `{"level":"warning"}`) {
		t.Errorf("the target was told of levels by %q", levels)
	}
	target.on("logging/setLevel", func(c *mcptest.Conn, req rawCall) {
		c.Answer(200, "application/json", `{"jsonrpc":"2.0","id":`+req.id+`,"error":{"code":-32602,"message":"no"}}`)
	})
	if a := p.post(t, id, strings.Replace(said, "warning", "alert", 1)); !strings.Contains(a.body, "-32602") {
		t.Fatalf("a level that the target refuses: %s", a.body)
	}
	lost.Store(false)
	if a := p.post(t, id, `{"jsonrpc":"2.0","id":3,"method":"ping/x"}`); a.status != 200 {
		t.Fatalf("the call: %d %s", a.status, a.body)
	}
	if levels := target.posts.with("logging/setLevel"); len(levels) != 4 || !strings.Contains(levels[3], `{"level":"warning"}`) {
		t.Errorf("the target was told of levels by %q", levels)
	}
}

// A session over HTTP+SSE that is begun again under its own id has the level, too.
func TestLevelOfASessionRenewed(t *testing.T) {
	srv := mcptest.NewServer(t, mcptest.Options{SSE: true})
	w := behind()
	w.targets = append(w.targets, &xdsv1.Target{Name: "it", Backend: "default/backend/tools", Reinitialize: true, Transport: &xdsv1.Target_Sse{Sse: endpointOf(srv.URL)}})
	cli := mcptest.Connect(t, w.start(t).URL, mcptest.ClientOptions{Version: "2025-11-25", Reconnect: true})
	if err := cli.SetLoggingLevel(t.Context(), &mcp.SetLoggingLevelParams{Level: "info"}); err != nil {
		t.Fatal(err)
	}
	srv.DropConnections()
	call := func() { _, _ = cli.TryCall(t.Context(), "log", map[string]any{"n": 1}) } // the first may meet the connection that broke
	waitFor(t, "another session at the target", func() bool {
		call()
		streams := 0
		for _, r := range srv.Requests() {
			if r.Method == http.MethodGet {
				streams++
			}
		}
		return streams == 2
	})
	logged := func() (n int) {
		for _, got := range cli.Notifications() {
			if got.Method == "notifications/message" {
				n++
			}
		}
		return n
	}
	before := logged()
	waitFor(t, "a log message of that session", func() bool {
		call()
		return logged() > before
	})
}

// A session that is begun late, and of which the target was not told that it has begun, is none: the next request begins another.
func TestSessionThatHalfBegan(t *testing.T) {
	there, late := newRaw(t, false, nil), newRaw(t, false, nil)
	late.on("notifications/initialized", func(c *mcptest.Conn, _ rawCall) {
		late.on("notifications/initialized", nil)
		_ = c.Reset()
	})
	w := behind("there="+there.URL, "late="+late.URL)
	both := w.targets
	w.targets = both[:1]
	p := w.start(t)
	session := p.initialize(t, "2025-11-25")
	w.targets = both
	p.apply(t, w)
	call := func() answer {
		return p.post(t, session, `{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"late_danger","arguments":{}}}`)
	}
	if got := call(); got.status < 500 {
		t.Errorf("while it does not begin: %d %s", got.status, got.body)
	}
	if got := call(); got.status != http.StatusOK || late.counted("initialize") != 2 {
		t.Errorf("afterwards: %d %s, and %d sessions were begun", got.status, got.body, late.counted("initialize"))
	}
}

// A client that leaves as soon as it has sent a notification has sent it to all targets: also to one where its session is only begun.
func TestNotificationOfAClientThatLeaves(t *testing.T) {
	ctx, leave := context.WithCancel(t.Context())
	there, late := newRaw(t, false, nil), newRaw(t, false, nil)
	late.on("initialize", func(c *mcptest.Conn, req rawCall) {
		leave()
		c.Answer(200, "application/json", wellAnswered(req.method, req.id, false), "Mcp-Session-Id: s")
	})
	w := behind("there="+there.URL, "late="+late.URL)
	both := w.targets
	w.targets = both[:1]
	p := w.start(t)
	id := p.initialize(t, "2025-11-25")
	w.targets = both
	p.apply(t, w)
	const changed = `{"jsonrpc":"2.0","method":"notifications/roots/list_changed"}`
	r := httptest.NewRequestWithContext(ctx, http.MethodPost, p.URL, strings.NewReader(changed))
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("Accept", "application/json, text/event-stream")
	r.Header.Set("Mcp-Session-Id", id)
	p.handler(testPort).ServeHTTP(httptest.NewRecorder(), r)
	for name, target := range map[string]*raw{"there": there, "late": late} {
		if n := target.counted("notifications/roots/list_changed"); n != 1 {
			t.Errorf("%s got it %d times", name, n)
		}
	}
}
