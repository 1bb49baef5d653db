package systemtest

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/sluicegate/sluice/cli"
)

const asCommand = "SLUICE_SYSTEMTEST"

func TestMain(m *testing.M) {
	if os.Getenv(asCommand) != "" {
		os.Unsetenv(asCommand) // children of ours, e.g. stdio targets, are themselves again
		os.Exit(int(cli.Run(context.Background(), cli.OSEnv())))
	}
	os.Exit(m.Run())
}

// sluice prepares the command with arguments and environment ("K=V") of its own.
func sluice(env []string, args ...string) *exec.Cmd {
	exe, err := os.Executable()
	if err != nil {
		panic(err)
	}
	cmd := exec.Command(exe, args...)
	cmd.Env = append(append(os.Environ(), asCommand+"=1", "GORACE=atexit_sleep_ms=0"), env...) // the race detector waits a second at exit
	return cmd
}

// ready is the JSON object of a server's ready line.
type ready struct {
	Admin, XDS, Ops string
	Listeners       []string
}

// process is a server that a test started.
type process struct {
	ready
	cmd    *exec.Cmd
	stderr *tail
	done   chan struct{} // closed when it has ended
}

// start starts a server and waits for its ready line. The test ends it.
func start(t *testing.T, env []string, args ...string) *process {
	t.Helper()
	cmd := sluice(env, args...)
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	p := &process{cmd: cmd, stderr: &tail{}, done: make(chan struct{})}
	cmd.Stderr = p.stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.kill(syscall.SIGTERM)
		if t.Failed() {
			t.Logf("sluice %s:\n%s", strings.Join(args, " "), p.stderr)
		}
	})
	lines := make(chan string, 1)
	go func() {
		defer close(p.done)
		r := bufio.NewReader(stdout)
		first, _ := r.ReadString('\n')
		lines <- first
		rest, _ := io.ReadAll(r)
		if len(rest) > 0 {
			p.stderr.Write([]byte("MORE ON STDOUT: " + string(rest)))
		}
		cmd.Wait()
	}()
	select {
	case line := <-lines:
		rest, ok := strings.CutPrefix(line, "ready ")
		if !ok {
			<-p.done
			t.Fatalf("sluice %s: want a ready line, got %q\n%s", strings.Join(args, " "), line, p.stderr)
		}
		if err := json.Unmarshal([]byte(rest), &p.ready); err != nil {
			t.Fatalf("ready line %q: %v", line, err)
		}
	case <-time.After(time.Minute):
		t.Fatalf("sluice %s: not ready within a minute\n%s", strings.Join(args, " "), p.stderr)
	}
	return p
}

// kill sends a signal and waits until the process has ended, at last with SIGKILL.
func (p *process) kill(sig syscall.Signal) {
	p.cmd.Process.Signal(sig)
	select {
	case <-p.done:
	case <-time.After(20 * time.Second):
		p.cmd.Process.Kill()
		<-p.done
	}
}

// tail keeps the last output of a process.
type tail struct {
	mu  sync.Mutex
	buf []byte // guarded by mu
}

func (t *tail) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf = append(t.buf, b...)
	if over := len(t.buf) - 64<<10; over > 0 {
		t.buf = t.buf[over:]
	}
	return len(b), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.buf)
}

// admin runs commands against one control plane.
type admin struct {
	t   *testing.T
	env []string
}

func newAdmin(t *testing.T, plane *process, dataDir string) admin {
	return admin{t, []string{"SLUICE_ADMIN=http://" + plane.Admin, "SLUICE_TOKEN=@" + filepath.Join(dataDir, "admin.token")}}
}

// run returns stdout, stderr and the exit code. The command runs in this process: starting one for each, under the race
// detector, would take most of the time of these tests.
func (a admin) run(args ...string) (stdout, stderr string, code int) {
	a.t.Helper()
	var out, errs bytes.Buffer
	getenv := func(name string) (string, bool) {
		for _, v := range a.env {
			if value, ok := strings.CutPrefix(v, name+"="); ok {
				return value, true
			}
		}
		return os.LookupEnv(name)
	}
	code = int(cli.Run(context.Background(), cli.Env{Args: args, Stdin: strings.NewReader(""), Stdout: &out, Stderr: &errs, Getenv: getenv}))
	return out.String(), errs.String(), code
}

// must returns stdout of what has to succeed.
func (a admin) must(args ...string) string {
	a.t.Helper()
	stdout, stderr, code := a.run(args...)
	if code != 0 {
		a.t.Fatalf("sluice %s: exit %d\n%s%s", strings.Join(args, " "), code, stdout, stderr)
	}
	return strings.TrimSpace(stdout)
}

// write puts a file into the test's folder.
func write(t *testing.T, name, content string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// freePort is free on every loopback address that tests bind.
func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "0.0.0.0:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// until waits for a condition, and fails the test if it does not come.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("does not come: %s", what)
		}
		time.Sleep(20 * time.Millisecond) // a poll of another process, not a wait for time to pass
	}
}

// fleet is a control plane and proxies, each a process.
type fleet struct {
	admin
	dir     string
	plane   *process
	proxies []*process
	args    [][]string // of each proxy, to start it again
	port    int
}

// newFleet starts a control plane and n proxies at 127.0.0.11 and up. allow are the grants of the tenant `default`.
func newFleet(t *testing.T, n int, allow string) *fleet {
	t.Helper()
	f := &fleet{dir: t.TempDir(), port: freePort(t)}
	f.plane = start(t, nil, "controlplane", "--data-dir", filepath.Join(f.dir, "cp"), "--admin-addr", "127.0.0.1:0", "--xds-addr", "127.0.0.1:0",
		"--ops-addr", "127.0.0.1:0", "--allow", allow)
	f.admin = newAdmin(t, f.plane, filepath.Join(f.dir, "cp"))
	token := f.must("token", "create", "--type", "join", "--uses", fmt.Sprint(n))
	for i := range n {
		args := []string{"proxy", "--xds-addr", f.plane.XDS, "--join-token", token, "--data-dir", filepath.Join(f.dir, fmt.Sprint("p", i)),
			"--ops-addr", "127.0.0.1:0", "--bind", f.host(i), "--name", fmt.Sprint("p", i)}
		f.args = append(f.args, args)
		f.proxies = append(f.proxies, start(t, nil, args...))
	}
	return f
}

func (f *fleet) host(i int) string { return fmt.Sprintf("127.0.0.%d", 11+i) }

func (f *fleet) url(i int) string { return fmt.Sprintf("http://%s:%d/mcp", f.host(i), f.port) }

// apply applies a configuration and waits until all proxies serve it.
func (f *fleet) apply(config string) string {
	f.t.Helper()
	return f.must("apply", "-f", write(f.t, "sluice.yaml", config), "--wait", "--timeout", "30s")
}
