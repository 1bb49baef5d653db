package systemtest

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sluicegate/sluice/internal/mcptest"
)

// stdioFleet is one proxy with a route /NAME for each child. A child is what it does and what else its target says.
func stdioFleet(t *testing.T, allow string, children map[string][2]string) *fleet {
	t.Helper()
	f := newFleet(t, 1, allow)
	f.must("apply", "-f", write(t, "secret.yaml", "kind: Secret\nname: license\nspec: {value: from-secret}\n"))
	var routes strings.Builder
	for name, child := range children {
		fmt.Fprintf(&routes, `    - matches: [{path: {pathPrefix: /%[1]s}}]
      backends:
      - name: %[1]s
        mcp: {targets: [{name: child, stdio: {cmd: %[2]q, env: {SLUICE_MCPTEST_STDIO: %[3]s}%[4]s}]}
`, name, mcptest.Stdio("").Path, child[0], child[1])
	}
	f.apply(fmt.Sprintf("binds:\n- port: %d\n  listeners:\n  - routes:\n%s", f.port, routes.String()))
	return f
}

// Children that misbehave are their own sessions' trouble.
func TestChildren(t *testing.T) {
	f := stdioFleet(t, "private-network,stdio", map[string][2]string{
		"good":   {"serve", "}"},
		"key":    {"serve", "}, policies: {backendAuth: {key: {secret: license}, env: LICENSE}}"},
		"crash":  {"crash", "}"},
		"flood":  {"flood", "}"},
		"long":   {"longline", "}"},
		"mute":   {"mute", "}, timeout: 1s"},
		"dead":   {"dead", "}"},
		"few":    {"serve", ", maxProcesses: 1}"},
		"family": {"family", "}"},
	})
	at := func(name string) string { return f.endpoint(0, "/"+name) }
	good := handshake(t, at("good"), nil)

	t.Run("credential", func(t *testing.T) {
		s := handshake(t, at("key"), nil)
		if got := s.text(t, at("key"), "env", `{"name":"LICENSE"}`); got != "from-secret" {
			t.Errorf("the child's LICENSE is %q", got)
		}
		if got := good.text(t, at("good"), "env", `{"name":"LICENSE"}`); got != "-" {
			t.Errorf("another child's LICENSE is %q", got)
		}
		for _, policies := range []string{
			"mcp: {port: %d, targets: [{name: child, stdio: {cmd: x}, policies: {backendAuth: {key: k}}}]}",
			"mcp: {port: %d, policies: {backendAuth: {key: k}}, targets: [{name: child, stdio: {cmd: x}}]}",
		} {
			if got := f.refused(t, fmt.Sprintf(policies, f.port)); !strings.Contains(got, "env") || !strings.Contains(got, "sluice.yaml:1:") || strings.Contains(got, "panic") {
				t.Errorf("a key without env: %s", got)
			}
		}
	})

	t.Run("one that does not answer holds up no other", func(t *testing.T) {
		hung := make(chan answer, 1)
		go func() { hung <- knock(t, at("mute"), nil) }()
		slow := make(chan string, 1)
		go func() { slow <- good.text(t, at("good"), "slow", `{"ms":1500}`) }()
		started := time.Now()
		other := handshake(t, at("good"), nil)
		for range 20 {
			other.text(t, at("good"), "echo", `{"text":"hi"}`)
		}
		select {
		case got := <-slow:
			t.Errorf("the slow call was over after %v: %s", time.Since(started), got)
		case got := <-hung:
			t.Errorf("the mute child was given up after %v: %s", time.Since(started), got.body)
		default:
		}
		if got := <-slow; got != "done" {
			t.Errorf("the slow call: %s", got)
		}
		if got := <-hung; got.status < 500 || !strings.Contains(got.body, "child") {
			t.Errorf("a child that never answers: %d %s", got.status, got.body)
		}
	})

	t.Run("crash", func(t *testing.T) {
		s := handshake(t, at("crash"), nil)
		if got := s.call(t, at("crash"), "echo", `{"text":"hi"}`); got.reply(t).Error == nil || got.reply(t).Error.Code != -32603 || !strings.Contains(got.body, "child") {
			t.Errorf("%d %s", got.status, got.body)
		}
		if got := knock(t, at("dead"), nil); got.status < 500 || !strings.Contains(got.body, "-32603") {
			t.Errorf("one that dies at once: %d %s", got.status, got.body)
		}
		until(t, "what the child said is in the log", func() bool { return strings.Contains(f.proxies[0].stderr.String(), "no license found") })
	})

	t.Run("too much", func(t *testing.T) {
		if got := handshake(t, at("long"), nil).call(t, at("long"), "echo", `{"text":"hi"}`); got.status < 500 || !strings.Contains(got.body, "child") {
			t.Errorf("a line of 20 MiB: %d %.300s", got.status, got.body)
		}
		flooded := handshake(t, at("flood"), nil)
		for range 10 {
			good.text(t, at("good"), "echo", `{"text":"hi"}`)
		}
		if got := flooded.do(t, "DELETE", at("flood"), ""); got.status >= 300 {
			t.Errorf("DELETE of the one that floods: %d %s", got.status, got.body)
		}
	})

	t.Run("maxProcesses", func(t *testing.T) {
		first := handshake(t, at("few"), nil)
		got := knock(t, at("few"), nil)
		if seconds, err := strconv.Atoi(got.header.Get("Retry-After")); got.status != 503 || err != nil || seconds < 1 {
			t.Errorf("one too many: %d %v %s; want 503 with Retry-After", got.status, got.header, got.body)
		}
		if got := first.text(t, at("few"), "echo", `{"text":"hi"}`); got != "hi" {
			t.Errorf("the first: %s", got)
		}
		first.do(t, "DELETE", at("few"), "")
		until(t, "there is room again", func() bool { return knock(t, at("few"), nil).status == 200 })
	})

	t.Run("SIGKILL of the proxy ends the family", func(t *testing.T) {
		s := handshake(t, at("family"), nil)
		pid, err := strconv.Atoi(s.text(t, at("family"), "env", `{"name":"CHILD_PID"}`))
		if err != nil {
			t.Fatal(err)
		}
		if err := syscall.Kill(pid, 0); err != nil {
			t.Fatalf("the grandchild %d: %v", pid, err)
		}
		f.proxies[0].kill(syscall.SIGKILL)
		until(t, "the grandchild is gone", func() bool { return errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) })
	})
}

// A tenant that may run a command may not read the proxy's environment with it, but for what it is granted.
func TestChildEnvironmentIsGranted(t *testing.T) {
	t.Setenv("SVC_MINE", "mine")
	t.Setenv("DB_PASSWORD", "the platform's")
	t.Setenv("SLUICE_TOKEN", "the admin's")
	f := stdioFleet(t, "stdio,env=SVC_*", map[string][2]string{"one": {"serve", ", clearEnv: false}"}, "clear": {"serve", ", clearEnv: true}"}})
	for path, want := range map[string]map[string]string{
		"/one":   {"SVC_MINE": "mine", "DB_PASSWORD": "-", "SLUICE_TOKEN": "-", asCommand: "-"},
		"/clear": {"SVC_MINE": "-", "DB_PASSWORD": "-", "SLUICE_TOKEN": "-"},
	} {
		s := handshake(t, f.endpoint(0, path), nil)
		for name, value := range want {
			if got := s.text(t, f.endpoint(0, path), "env", `{"name":"`+name+`"}`); got != value {
				t.Errorf("%s: the child's %s is %q, want %q", path, name, got, value)
			}
		}
		if got := s.text(t, f.endpoint(0, path), "env", `{"name":"PATH"}`); got == "-" {
			t.Errorf("%s: the child has no PATH", path)
		}
	}
}

// HTTP+SSE of 2024-11-05 behind the endpoint that clients of today speak.
func TestSSETarget(t *testing.T) {
	srv, plain := mcptest.NewServer(t, mcptest.Options{SSE: true}), mcptest.NewServer(t, mcptest.Options{})
	f := newFleet(t, 2, "private-network")
	f.apply(fmt.Sprintf(`mcp:
  port: %d
  targets:
  - {name: old, sse: {host: %q}, policies: {backendAuth: {key: k}, mcpAuthorization: {rules: [{deny: 'mcp.tool.name == "add"'}]}}}
  - {name: new, mcp: {host: %q}}
`, f.port, srv.URL, plain.URL))
	c := mcptest.Connect(t, f.url(0), mcptest.ClientOptions{Version: "2025-11-25"})
	if got := c.Call(t, "old_echo", map[string]any{"text": "hi"}); got != "hi" {
		t.Errorf("echo: %q", got)
	}
	for _, r := range srv.Requests() { // the stream and each message
		if got := r.Header.Get("Authorization"); got != "Bearer k" {
			t.Errorf("%s %s came with the credential %q", r.Method, r.URL, got)
		}
	}
	if got := c.Call(t, "old_elicit", nil); got != "Hello, Ada!" {
		t.Errorf("elicit: %q", got)
	}
	if _, err := c.TryCall(t.Context(), "old_add", map[string]any{"a": 1, "b": 2}); err == nil {
		t.Error("a denied tool was called")
	}
	c.Call(t, "old_grow", nil)
	c.Await(t, "notifications/tools/list_changed", 1)
	// Its stream is on one proxy, and the others have that one answer.
	s := handshake(t, f.url(0), nil)
	if got := s.call(t, f.url(1), "old_echo", `{"text":"hi"}`); got.status != 200 || !strings.Contains(got.body, `"hi"`) {
		t.Errorf("on another proxy: %d %s", got.status, got.body)
	}
}
