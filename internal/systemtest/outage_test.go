package systemtest

import (
	"encoding/json"
	"fmt"
	"net"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sluicegate/sluice/internal/mcptest"
)

// proxyState is what `proxies -o json` says of one.
type proxyState struct {
	Name      string
	Connected bool
	Stale     bool
	Revisions map[string]json.Number
}

func (a admin) proxy(name string) proxyState {
	a.t.Helper()
	var all []proxyState
	if err := json.Unmarshal([]byte(a.must("proxies", "-o", "json")), &all); err != nil {
		a.t.Fatal(err)
	}
	i := slices.IndexFunc(all, func(p proxyState) bool { return p.Name == name })
	if i < 0 {
		a.t.Fatalf("there is no proxy %s: %+v", name, all)
	}
	return all[i]
}

// A proxy that is killed the moment a revision is served serves that revision again within a second, without its control
// plane, and says that it cannot know better.
func TestKilledAfterApply(t *testing.T) {
	a, b := mcptest.NewServer(t, mcptest.Options{}), mcptest.NewServer(t, mcptest.Options{})
	f := newFleet(t, 1, "private-network")
	f.apply(config(f.port, a.URL, b.URL, `'true'`))
	for i := range 5 { // a race that once lost is lost
		tool := []string{"add", "count", "fail", "link", "slow"}[i]
		f.apply(config(f.port, a.URL, b.URL, fmt.Sprintf(`'mcp.tool.name == "%s"'`, tool)))
		f.proxies[0].kill(syscall.SIGKILL)
		if i == 4 {
			f.plane.kill(syscall.SIGKILL)
		}
		began := time.Now()
		f.proxies[0] = start(t, nil, f.args[0]...)
		s := handshake(t, f.url(0), nil)
		took := time.Since(began)
		if names := s.tools(t, f.url(0)); !slices.Contains(names, "a_"+tool) || slices.Contains(names, "a_echo") {
			t.Fatalf("restarted after revision %d it lists %v", i, names)
		}
		if took > time.Second && !raceEnabled {
			t.Errorf("it served after %v, want 1s", took)
		}
	}
	if status, body := f.proxies[0].ops(t, "/readyz"); status != 200 || !strings.Contains(body, "stale") {
		t.Errorf("/readyz: %d %s", status, body)
	}
	if _, body := f.proxies[0].ops(t, "/metrics"); !strings.Contains(body, `sluice_stale{tenant="default"} 1`) || !strings.Contains(body, "sluice_control_plane_connected 0") {
		t.Errorf("/metrics does not tell:\n%s", body)
	}

	// The control plane is back, with what it had, at the same addresses.
	f.plane = start(t, nil, "controlplane", "--data-dir", f.dir+"/cp", "--admin-addr", f.plane.Admin, "--xds-addr", f.plane.XDS, "--ops-addr", "127.0.0.1:0")
	until(t, "the proxy is connected and not stale", func() bool { p := f.proxy("p0"); return p.Connected && !p.Stale })
	until(t, "/readyz says so", func() bool { _, body := f.proxies[0].ops(t, "/readyz"); return !strings.Contains(body, "stale") })
	out := f.apply(config(f.port, a.URL, b.URL, `'true'`))
	if !strings.Contains(out, "1 of 1 proxies serve it") {
		t.Errorf("apply --wait said %q", out)
	}
}

// A proxy cannot do what it is asked: the command says which, what and why, by its exit code too; what served goes on;
// and when the cause is gone so is the complaint.
func TestRefusedByAProxy(t *testing.T) {
	a, b := mcptest.NewServer(t, mcptest.Options{}), mcptest.NewServer(t, mcptest.Options{})
	f := newFleet(t, 2, "private-network,file=/nowhere/*")
	f.apply(config(f.port, a.URL, b.URL, `'true'`))
	taken, err := net.Listen("tcp", f.host(1)+":0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	port := taken.Addr().(*net.TCPAddr).Port
	more := config(f.port, a.URL, b.URL, `'true'`) + fmt.Sprintf("- port: %d\n  listeners: [{name: side, routes: [{backends: [{mcp: {targets: [{name: c, mcp: {host: %q}}]}}]}]}]\n", port, a.URL)
	stdout, stderr, code := f.run("apply", "-f", write(t, "more.yaml", more), "--wait", "--timeout", "30s")
	for _, word := range []string{"p1", "listener/side", "in use"} {
		if !strings.Contains(stdout+stderr, word) {
			t.Errorf("apply --wait does not say %s:\n%s%s", word, stdout, stderr)
		}
	}
	if code != 4 {
		t.Errorf("apply --wait: exit %d, want 4", code)
	}
	if out := f.must("status"); !strings.Contains(out, "listener/side") || !strings.Contains(out, "p1") || !strings.Contains(out, "1 of 2") {
		t.Errorf("status:\n%s", out)
	}
	for i := range 2 {
		if got := handshake(t, f.url(i), nil).text(t, f.url(i), "a_echo", `{"text":"hi"}`); got != "hi" {
			t.Errorf("proxy %d: %s", i, got)
		}
	}
	taken.Close()
	out := f.apply(config(f.port, a.URL, b.URL, `'true'`) + strings.Replace(more[len(config(f.port, a.URL, b.URL, `'true'`)):], "name: c", "name: d", 1))
	if !strings.Contains(out, "2 of 2 proxies serve it") {
		t.Errorf("with the port free again: %s", out)
	}
	if out := f.must("status"); strings.Contains(out, "Refused") {
		t.Errorf("status still complains:\n%s", out)
	}

	// A file that only the proxy can know is missing: its unit stays as it was.
	_, stderr, code = f.run("apply", "-f", write(t, "file.yaml", strings.Replace(config(f.port, a.URL, b.URL, `'false'`), "            policies:\n", "            policies:\n              backendAuth: {key: {file: /nowhere/key}}\n", 1)), "--wait")
	if code != 4 || !strings.Contains(stderr, "target/") || !strings.Contains(stderr, "/nowhere/key") || !strings.Contains(stderr, "backendAuth") {
		t.Errorf("a file that is not there: exit %d\n%s", code, stderr)
	}
	if names := handshake(t, f.url(0), nil).tools(t, f.url(0)); !slices.Contains(names, "a_echo") {
		t.Errorf("the unit that was refused in part serves %v, not its whole last good form", names)
	}

	// One that is away is listed; whoever wants it strictly is told by the exit code.
	f.proxies[1].kill(syscall.SIGKILL)
	until(t, "the control plane knows", func() bool { return !f.proxy("p1").Connected })
	stdout, stderr, code = f.run("apply", "-f", write(t, "one.yaml", config(f.port, a.URL, b.URL, `'mcp.tool.name == "add"'`)), "--wait", "--timeout", "30s")
	if code != 0 || !strings.Contains(stdout, "1 of 1 proxies serve it") || !strings.Contains(stdout+stderr, "p1") {
		t.Errorf("apply --wait with one away: exit %d\n%s%s", code, stdout, stderr)
	}
	_, stderr, code = f.run("apply", "-f", write(t, "two.yaml", config(f.port, a.URL, b.URL, `'true'`)), "--wait", "--strict", "--timeout", "30s")
	if code != 5 || !strings.Contains(stderr, "p1") {
		t.Errorf("apply --wait --strict with one away: exit %d\n%s", code, stderr)
	}
}

// A proxy that hangs holds up itself alone; who waits for it is told, and it catches up when it wakes.
func TestProxyHangs(t *testing.T) {
	a, b := mcptest.NewServer(t, mcptest.Options{}), mcptest.NewServer(t, mcptest.Options{})
	f := newFleet(t, 2, "private-network")
	f.apply(config(f.port, a.URL, b.URL, `'true'`))
	hung := f.proxies[1].cmd.Process
	if err := hung.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { hung.Signal(syscall.SIGCONT) })
	for _, tool := range []string{"add", "count", "echo"} {
		file := write(t, "sluice.yaml", config(f.port, a.URL, b.URL, fmt.Sprintf(`'mcp.tool.name == "%s"'`, tool)))
		stdout, stderr, code := f.run("apply", "-f", file, "--wait=50%", "--timeout", "20s")
		if code != 0 || !strings.Contains(stdout, "1 of 2") {
			t.Errorf("half of the fleet: exit %d %s%s", code, stdout, stderr)
		}
		if names := handshake(t, f.url(0), nil).tools(t, f.url(0)); !slices.Contains(names, "a_"+tool) {
			t.Errorf("the other proxy lists %v", names)
		}
	}
	stdout, stderr, code := f.run("apply", "-f", write(t, "sluice.yaml", config(f.port, a.URL, b.URL, `'mcp.tool.name == "fail"'`)), "--wait", "--timeout", "1s")
	if code != 5 || !strings.Contains(stdout+stderr, "p1") {
		t.Errorf("all of it: exit %d, want 5 naming p1: %s%s", code, stdout, stderr)
	}
	if err := hung.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	until(t, "it catches up", func() bool { return strings.Contains(f.must("status"), "2 of 2") })
	if names := handshake(t, f.url(1), nil).tools(t, f.url(1)); !slices.Contains(names, "a_fail") || slices.Contains(names, "a_echo") {
		t.Errorf("awake it lists %v", names)
	}
}
