package cli_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/sluicegate/sluice/cli"
	"github.com/sluicegate/sluice/cli/demo"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"sluice": func() { os.Exit(int(cli.Run(context.Background(), cli.OSEnv()))) },
	})
}

// TestScript runs testdata/script, a script for each command, against real planes in processes of their own.
//
// Beside testscript's commands there are:
//
//	start [-as NAME] up|controlplane|proxy [ARG...]
//		starts `sluice up …` with its admin, xDS and operations ports on any free port, and waits until it is ready.
//		Control planes set SLUICE_ADMIN, SLUICE_TOKEN (@FILE) and XDS, those with listeners URL (the MCP endpoint).
//		Their stderr is in NAME.err.
//	stop [NAME]
//		interrupts it, and checks that it ends with code 0 and has written nothing more to stdout.
//	signal NAME STOP|CONT
//		stops a server in its tracks, and lets it go on.
//	notes
//		serves the demo's notes over HTTP, with NOTES_URL as its address.
//	exits CODE COMMAND [ARG...]
//		is exec for a command that must end with that code.
//	json PATH VALUE
//		compares a value of the JSON on stdout; PATH is e.g. policies.mcpAuthorization.from or [0].name, VALUE is a string
//		as it is or any other value as JSON. `json PATH` wants any, `! json PATH` none.
//	until REGEXP COMMAND [ARG...]
//		runs a command again and again until its stdout matches.
//	sees REGEXP FILE
//		waits until a file matches.
//
// PORT and PORT2 are ports that are free, SEEDS is the folder of the seed examples.
func TestScript(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		UpdateScripts:       os.Getenv("UPDATE_SCRIPTS") != "", // of what cmp compares
		Setup: func(env *testscript.Env) error {
			env.Setenv("HOME", env.WorkDir)           // the default data directory lies there
			env.Setenv("GORACE", "atexit_sleep_ms=0") // else -race costs each of some 300 commands a second
			seeds, err := filepath.Abs("../internal/resource/testdata/seeds")
			if err != nil {
				return err
			}
			env.Setenv("SEEDS", seeds)
			for _, name := range []string{"PORT", "PORT2"} {
				port, err := freePort()
				if err != nil {
					return err
				}
				env.Setenv(name, port)
			}
			env.Values[serversKey{}] = &servers{byName: map[string]*server{}}
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"start": startCmd, "stop": stopCmd, "signal": signalCmd, "notes": notesCmd, "exits": exitsCmd, "json": jsonCmd, "until": untilCmd, "sees": seesCmd,
		},
	})
}

type serversKey struct{}

type servers struct{ byName map[string]*server }

// server is a plane in a process of its own.
type server struct {
	cmd    *exec.Cmd
	done   chan struct{} // closed when it has ended
	stdout []byte        // what came after the ready line; read it when done
}

func startCmd(ts *testscript.TestScript, neg bool, args []string) {
	if neg {
		ts.Fatalf("unsupported: ! start")
	}
	name := ""
	if len(args) > 2 && args[0] == "-as" {
		name, args = args[1], args[2:]
	}
	if len(args) == 0 {
		ts.Fatalf("usage: start [-as NAME] up|controlplane|proxy [ARG...]")
	}
	if name == "" {
		name = args[0]
	}
	dir := ts.MkAbs(name)
	if i := slices.Index(args, "--data-dir"); i >= 0 {
		dir = ts.MkAbs(args[i+1])
	} else {
		args = append(args, "--data-dir", dir)
	}
	flags := []string{"--ops-addr"}
	if args[0] != "proxy" {
		flags = append(flags, "--admin-addr", "--xds-addr")
	}
	for _, flag := range flags {
		if !slices.Contains(args, flag) {
			args = append(args, flag, "127.0.0.1:0")
		}
	}
	s := &server{cmd: exec.Command(lookPath(ts, "sluice"), args...), done: make(chan struct{})}
	s.cmd.Dir, s.cmd.Env = ts.MkAbs("."), environ(ts)
	stderr, err := os.Create(ts.MkAbs(name + ".err"))
	ts.Check(err)
	s.cmd.Stderr = stderr
	stdout, err := s.cmd.StdoutPipe()
	ts.Check(err)
	ts.Check(s.cmd.Start())
	all := ts.Value(serversKey{}).(*servers)
	all.byName[name] = s
	ts.Defer(func() { s.stop(os.Kill) })

	first := make(chan string, 1)
	go func() {
		defer close(s.done)
		r := bufio.NewReader(stdout)
		line, _ := r.ReadString('\n')
		first <- line
		s.stdout, _ = io.ReadAll(r)
		s.cmd.Wait()
		stderr.Close()
	}()
	var line string
	select {
	case line = <-first:
	case <-time.After(30 * time.Second):
		s.stop(os.Kill)
	}
	object, ok := strings.CutPrefix(line, "ready ")
	if !ok {
		<-s.done
		ts.Fatalf("%s: want a ready line, got %q\n%s", name, line, ts.ReadFile(name+".err"))
	}
	var ready struct {
		Admin, XDS, Ops *string
		Listeners       *[]string
	}
	d := json.NewDecoder(strings.NewReader(object))
	d.DisallowUnknownFields()
	ts.Check(d.Decode(&ready))
	if ready.Admin == nil || ready.XDS == nil || ready.Ops == nil || ready.Listeners == nil {
		ts.Fatalf("%s: want admin, xds, ops and listeners in %s", name, object)
	}
	if args[0] != "proxy" {
		ts.Setenv("SLUICE_ADMIN", "http://"+*ready.Admin)
		ts.Setenv("SLUICE_TOKEN", "@"+filepath.Join(dir, "admin.token"))
		ts.Setenv("XDS", *ready.XDS)
	}
	ts.Setenv("OPS", *ready.Ops)
	if listeners := *ready.Listeners; len(listeners) > 0 {
		ts.Setenv("URL", "http://"+listeners[0]+"/mcp")
	}
}

// stop ends a server, at last by force, and tells how it ended.
func (s *server) stop(with os.Signal) *os.ProcessState {
	s.cmd.Process.Signal(with)
	select {
	case <-s.done:
	case <-time.After(20 * time.Second):
		s.cmd.Process.Kill()
		<-s.done
	}
	return s.cmd.ProcessState
}

func stopCmd(ts *testscript.TestScript, neg bool, args []string) {
	all := ts.Value(serversKey{}).(*servers)
	if len(args) == 0 {
		args = slices.Collect(maps.Keys(all.byName))
	}
	if neg || len(args) != 1 || all.byName[args[0]] == nil {
		ts.Fatalf("usage: stop NAME, of one that was started")
	}
	s := all.byName[args[0]]
	delete(all.byName, args[0])
	if state := s.stop(syscall.SIGINT); state.ExitCode() != 0 {
		ts.Fatalf("%s: %s\n%s", args[0], state, ts.ReadFile(args[0]+".err"))
	}
	if len(s.stdout) > 0 {
		ts.Fatalf("%s has written more than its ready line to stdout:\n%s", args[0], s.stdout)
	}
}

func signalCmd(ts *testscript.TestScript, neg bool, args []string) {
	signals := map[string]os.Signal{"STOP": syscall.SIGSTOP, "CONT": syscall.SIGCONT}
	if neg || len(args) != 2 || signals[args[1]] == nil {
		ts.Fatalf("usage: signal NAME STOP|CONT")
	}
	ts.Check(ts.Value(serversKey{}).(*servers).byName[args[0]].cmd.Process.Signal(signals[args[1]]))
}

func notesCmd(ts *testscript.TestScript, _ bool, _ []string) {
	ctx, cancel := context.WithCancel(context.Background())
	ts.Defer(cancel)
	url, err := demo.ServeNotes(ctx)
	ts.Check(err)
	ts.Setenv("NOTES_URL", url)
}

func exitsCmd(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE COMMAND [ARG...]")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	if err := ts.Exec(args[1], args[2:]...); err != nil {
		var exit *exec.ExitError
		if !errors.As(err, &exit) {
			ts.Check(err)
		}
		got = exit.ExitCode()
	}
	if got != want {
		ts.Fatalf("exit code %d, want %d\n%s%s", got, want, ts.ReadFile("stdout"), ts.ReadFile("stderr"))
	}
}

func jsonCmd(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) < 1 || len(args) > 2 || neg && len(args) == 2 {
		ts.Fatalf("usage: [!] json PATH, json PATH VALUE")
	}
	var value any
	d := json.NewDecoder(strings.NewReader(ts.ReadFile("stdout")))
	d.UseNumber() // a number in quotes is none
	ts.Check(d.Decode(&value))
	for step := range strings.FieldsFuncSeq(args[0], func(r rune) bool { return strings.ContainsRune(".[]", r) }) {
		switch at := value.(type) {
		case map[string]any:
			v, ok := at[step]
			if !ok && neg {
				return
			}
			if !ok {
				ts.Fatalf("%s: no %q, but %q", args[0], step, slices.Sorted(maps.Keys(at)))
			}
			value = v
		case []any:
			i, err := strconv.Atoi(step)
			if err != nil || i >= len(at) {
				ts.Fatalf("%s: no %q in a list of %d", args[0], step, len(at))
			}
			value = at[i]
		default:
			ts.Fatalf("%s: %q of %v", args[0], step, at)
		}
	}
	if neg {
		ts.Fatalf("%s is there: %v", args[0], value)
	}
	if len(args) == 1 {
		return
	}
	got, ok := value.(string)
	if !ok {
		data, err := json.Marshal(value)
		ts.Check(err)
		got = string(data)
	}
	if got != args[1] {
		ts.Fatalf("%s is %s, want %s", args[0], got, args[1])
	}
}

func untilCmd(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: until REGEXP COMMAND [ARG...]")
	}
	poll(ts, args[0], func() string {
		if err := ts.Exec(args[1], args[2:]...); err != nil {
			return fmt.Sprintf("%v: %s", err, ts.ReadFile("stderr"))
		}
		return ts.ReadFile("stdout")
	})
}

func seesCmd(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: sees REGEXP FILE")
	}
	poll(ts, args[0], func() string { return ts.ReadFile(args[1]) })
}

// poll waits for what another process does.
func poll(ts *testscript.TestScript, pattern string, look func() string) {
	want, err := regexp.Compile("(?m)" + pattern)
	ts.Check(err)
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		text := look()
		if want.MatchString(text) {
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("no match for %q in\n%s", pattern, text)
		}
	}
}

// environ is the script's environment, as far as servers care.
func environ(ts *testscript.TestScript) []string {
	env := os.Environ()
	for _, name := range []string{"HOME", "PATH", "TMPDIR", "WORK", "PORT", "PORT2", "GORACE", "NOTES_URL", "API_KEY", "SLUICE_DEMO_PORT", "SLUICE_DATA_DIR"} {
		if v := ts.Getenv(name); v != "" {
			env = append(env, name+"="+v)
		}
	}
	return env
}

func lookPath(ts *testscript.TestScript, program string) string {
	for _, dir := range filepath.SplitList(ts.Getenv("PATH")) {
		if file := filepath.Join(dir, program); isFile(file) {
			return file
		}
	}
	ts.Fatalf("no %s in PATH", program)
	return ""
}

func isFile(file string) bool {
	info, err := os.Stat(file)
	return err == nil && info.Mode().IsRegular()
}

var nextPort atomic.Int32

// freePort returns a port below those that the system gives to whoever asks for any, so that it stays free.
func freePort() (string, error) {
	nextPort.CompareAndSwap(0, 10_000+rand.Int32N(10_000))
	for range 1000 {
		port := strconv.Itoa(int(nextPort.Add(1)))
		if l, err := net.Listen("tcp", "127.0.0.1:"+port); err == nil {
			return port, l.Close()
		}
	}
	return "", errors.New("no free port")
}
