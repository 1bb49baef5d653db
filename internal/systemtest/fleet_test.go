package systemtest

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sluicegate/sluice/internal/mcptest"
)

// config is one backend of two targets, a and b, with a rule at a.
func config(port int, a, b, rule string) string {
	return fmt.Sprintf(`binds:
- port: %d
  listeners:
  - routes:
    - backends:
      - mcp:
          targets:
          - name: a
            mcp: {host: %q}
            policies:
              mcpAuthorization:
                rules:
                - %s
          - name: b
            mcp: {host: %q}
`, port, a, rule, b)
}

// What apply --wait says is true: every proxy serves the new policy when it returns; a bad file changes nothing;
// rollback brings back what was; and a proxy whose control plane is down comes back from its disk.
func TestFleet(t *testing.T) {
	a, b := mcptest.NewServer(t, mcptest.Options{}), mcptest.NewServer(t, mcptest.Options{})
	f := newFleet(t, 3, "private-network")
	sees := func(i int) []string {
		return mcptest.Connect(t, f.url(i), mcptest.ClientOptions{Version: "2025-11-25"}).ToolNames(t)
	}

	f.apply(config(f.port, a.URL, b.URL, `'true'`))
	for i := range f.proxies {
		if names := sees(i); !slices.Contains(names, "a_echo") || !slices.Contains(names, "b_echo") {
			t.Fatalf("proxy %d lists %v", i, names)
		}
	}
	var entries []struct{ Revision int64 }
	if err := json.Unmarshal([]byte(f.must("log", "-o", "json")), &entries); err != nil {
		t.Fatal(err)
	}
	first := entries[0].Revision

	out := f.apply(config(f.port, a.URL, b.URL, `'mcp.tool.name == "add"'`))
	if !strings.Contains(out, "3 of 3 proxies serve it") {
		t.Errorf("apply --wait said %q", out)
	}
	for i := range f.proxies {
		if names := sees(i); slices.Contains(names, "a_echo") || !slices.Contains(names, "a_add") || !slices.Contains(names, "b_echo") {
			t.Errorf("proxy %d lists %v after apply --wait", i, names)
		}
	}

	bad := config(f.port, a.URL, b.URL, `'mcp.tool.nam == '`)
	if _, stderr, code := f.run("apply", "-f", write(t, "bad.yaml", bad), "--wait"); code != 2 || !strings.Contains(stderr, "bad.yaml:13:") {
		t.Errorf("a bad rule: exit %d, %s", code, stderr)
	}
	for i := range f.proxies {
		if names := sees(i); slices.Contains(names, "a_echo") {
			t.Errorf("proxy %d took a bad file: %v", i, names)
		}
	}

	f.must("rollback", "--to", fmt.Sprint(first), "--wait")
	for i := range f.proxies {
		if names := sees(i); !slices.Contains(names, "a_echo") {
			t.Errorf("proxy %d after rollback lists %v", i, names)
		}
	}

	f.plane.kill(syscall.SIGKILL)
	f.proxies[1].kill(syscall.SIGKILL)
	f.proxies[1] = start(t, nil, f.args[1]...)
	if names := sees(1); !slices.Contains(names, "a_echo") || !slices.Contains(names, "b_echo") {
		t.Errorf("restarted without a control plane it lists %v", names)
	}
}

// A session made on one proxy is good on every other at once, and ended on one it is ended on all that were told.
func TestSessionOnAnyProxy(t *testing.T) {
	a, b := mcptest.NewServer(t, mcptest.Options{}), mcptest.NewServer(t, mcptest.Options{})
	f := newFleet(t, 2, "private-network")
	f.apply(config(f.port, a.URL, b.URL, `'true'`))

	s := handshake(t, f.url(0), nil)
	for i := range 4 { // to each in turn
		got := s.call(t, f.url(i%2), "a_echo", `{"text":"hi"}`)
		if !strings.Contains(got.body, `"hi"`) {
			t.Fatalf("proxy %d: %d %s", i%2, got.status, got.body)
		}
	}
	stream := s.get(t, f.url(1))
	s.call(t, f.url(0), "b_grow", `{}`)
	stream.await(t, "notifications/tools/list_changed")

	if got := s.do(t, "DELETE", f.url(1), ""); got.status >= 300 {
		t.Fatalf("DELETE: %d %s", got.status, got.body)
	}
	if got := s.call(t, f.url(1), "a_echo", `{"text":"hi"}`); got.status != 404 {
		t.Errorf("after DELETE: %d %s", got.status, got.body)
	}
}

// A session with a stdio child lives on one proxy; the others have it answer, and when it is lost they say so and never start a second
// child.
func TestOwnedSession(t *testing.T) {
	child := mcptest.Stdio("serve")
	f := newFleet(t, 2, "private-network,stdio=*")
	f.apply(fmt.Sprintf(`mcp:
  port: %d
  targets:
  - name: s
    stdio: {cmd: %q, env: {SLUICE_MCPTEST_STDIO: serve}}
`, f.port, child.Path))

	s := handshake(t, f.url(0), nil)
	if got := s.call(t, f.url(0), "echo", `{"text":"hi"}`); !strings.Contains(got.body, `"hi"`) {
		t.Fatalf("on its own proxy: %d %s", got.status, got.body)
	}
	for i := range 4 {
		if got := s.call(t, f.url(i%2), "count", `{}`); !strings.Contains(got.body, fmt.Sprintf(`"text":"%d"`, i+1)) {
			t.Errorf("call %d, on proxy %d: %d %s", i, i%2, got.status, got.body)
		}
	}
	f.proxies[0].kill(syscall.SIGKILL)
	got := s.call(t, f.url(1), "echo", `{"text":"hi"}`)
	if got.status != 502 && got.status != 503 || !strings.Contains(got.body, "-32603") || !strings.Contains(got.body, "p0") { // 502: it was on its way
		t.Errorf("after its proxy was killed: %d %s; want 502 or 503, and -32603 naming the owner", got.status, got.body)
	}
}

// A change of configuration drops no request and no session, and tells clients that what they may see changed.
func TestReloadDropsNothing(t *testing.T) {
	a, b := mcptest.NewServer(t, mcptest.Options{}), mcptest.NewServer(t, mcptest.Options{})
	f := newFleet(t, 1, "private-network")
	f.apply(config(f.port, a.URL, b.URL, `'true'`))

	client := mcptest.Connect(t, f.url(0), mcptest.ClientOptions{Version: "2025-11-25"})
	stop, stopped := make(chan struct{}), make(chan error, 1)
	go func() {
		for {
			select {
			case <-stop:
				stopped <- nil
				return
			default:
			}
			if got, err := client.TryCall(t.Context(), "b_echo", map[string]any{"text": "x"}); err != nil || got != "x" {
				stopped <- fmt.Errorf("call during reload: %q, %w", got, err)
				return
			}
		}
	}()
	slow := make(chan string, 1)
	go func() {
		got, err := client.TryCall(t.Context(), "b_slow", map[string]any{"ms": 1500})
		slow <- fmt.Sprint(got, err)
	}()
	for i := range 5 {
		f.apply(config(f.port, a.URL, b.URL, fmt.Sprintf(`'mcp.tool.name != "x%d"'`, i)))
	}
	f.apply(config(f.port, a.URL, b.URL, `'mcp.tool.name == "add"'`))
	client.Await(t, "notifications/tools/list_changed", 1)
	if names := client.ToolNames(t); slices.Contains(names, "a_echo") {
		t.Errorf("the live session still lists %v", names)
	}
	close(stop)
	if err := <-stopped; err != nil {
		t.Error(err)
	}
	select {
	case got := <-slow:
		if got != "done<nil>" {
			t.Errorf("the slow call got %q", got)
		}
	case <-time.After(30 * time.Second):
		t.Error("the slow call never came back")
	}
}

// On SIGTERM a proxy finishes what runs and takes nothing new.
func TestDrain(t *testing.T) {
	a, b := mcptest.NewServer(t, mcptest.Options{}), mcptest.NewServer(t, mcptest.Options{})
	f := newFleet(t, 1, "private-network")
	f.apply(config(f.port, a.URL, b.URL, `'true'`))
	// Without the standalone stream: the client takes its end for the session's.
	client := mcptest.Connect(t, f.url(0), mcptest.ClientOptions{Version: "2025-11-25", NoStream: true})
	before := len(a.Requests())
	slow := make(chan string, 1)
	go func() {
		got, err := client.TryCall(t.Context(), "a_slow", map[string]any{"ms": 1000})
		slow <- fmt.Sprint(got, err)
	}()
	until(t, "the call reaches its target", func() bool { return len(a.Requests()) > before })
	f.proxies[0].kill(syscall.SIGTERM)
	if got := <-slow; got != "done<nil>" {
		t.Errorf("the call that ran got %q", got)
	}
}
