// Package cli is the sluice command: it pushes configuration, tells what became of it, and starts either plane.
//
// Every command is a function of an [Env]. Results go to stdout and stay parseable with -o json; everything else goes
// to stderr. Exit codes are part of the interface: see [Code].
package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Code is an exit status. Scripts may rely on the values.
type Code int

const (
	Done     Code = 0
	Failed   Code = 1 // anything that has no code of its own
	Invalid  Code = 2 // the input is wrong; also a wrong flag
	Conflict Code = 3 // somebody else changed it, or another set owns it
	Refused  Code = 4 // a proxy refused the revision
	TimedOut Code = 5 // not every proxy served in time
)

// Env is all that a command sees of the world.
type Env struct {
	Args   []string // without the program's name
	Stdin  io.Reader
	Stdout io.Writer
	Stderr io.Writer
	Getenv func(string) (string, bool)
}

// OSEnv is the process's own.
func OSEnv() Env {
	return Env{Args: os.Args[1:], Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr, Getenv: os.LookupEnv}
}

// Run executes one command line and returns its exit code. SIGINT and SIGTERM cancel it; a second one kills.
func Run(ctx context.Context, env Env) Code {
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop)
	stdout := &results{w: env.Stdout}
	env.Stdout = stdout
	root := rootCommand(env)
	began := false
	onRun(root, func() { began = true })
	root.SetArgs(env.Args)
	root.SetIn(env.Stdin)
	root.SetOut(env.Stdout)
	root.SetErr(env.Stderr)
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		if err, began = stdout.failure(), true; err == nil {
			return Done
		}
	}
	var coded *codedError
	if errors.As(err, &coded) {
		if coded.err != nil {
			fmt.Fprintln(env.Stderr, coded.err)
		}
		return coded.code
	}
	if !began {
		fmt.Fprintln(env.Stderr, misused(cmd, err))
		return Invalid
	}
	fmt.Fprintln(env.Stderr, "sluice:", message(err))
	return codeOf(err)
}

// results is stdout. What could not be written there was not told, and a command that was to tell it has failed: tables are
// printed line by line without a look at each.
type results struct {
	w io.Writer

	mu  sync.Mutex // guards err
	err error      // the first
}

func (r *results) Write(p []byte) (int, error) {
	n, err := r.w.Write(p)
	if err != nil {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.err = cmp.Or(r.err, err)
	}
	return n, err
}

func (r *results) failure() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.err
}

// onRun calls f when a command's own work begins: an error before is cobra's, about the command line.
func onRun(cmd *cobra.Command, f func()) {
	if run := cmd.RunE; run != nil {
		cmd.RunE = func(cmd *cobra.Command, args []string) error {
			f()
			return run(cmd, args)
		}
	}
	for _, c := range cmd.Commands() {
		onRun(c, f)
	}
}

// misused says on one line what is wrong with a command line.
func misused(cmd *cobra.Command, err error) error {
	text, suggestions, found := strings.Cut(err.Error(), "\n\nDid you mean this?\n")
	if found {
		return fmt.Errorf("sluice: %s; did you mean `%s %s`?", text, cmd.CommandPath(), strings.Join(strings.Fields(suggestions), "` or `"))
	}
	var word string // cobra takes it for a command
	if _, err := fmt.Sscanf(text, "unknown command %q", &word); err == nil && cmd.Flags().Lookup("file") != nil {
		way := "files are given with -f"
		if _, err := parseWait(word); err == nil && cmd.Flags().Lookup("wait") != nil {
			way = "a share is given as --wait=" + word
		}
		text = fmt.Sprintf("unexpected %q: %s", word, way)
	}
	return fmt.Errorf("sluice: %s; see `%s --help`", text, cmd.CommandPath())
}

func rootCommand(env Env) *cobra.Command {
	root := &cobra.Command{
		Use:   "sluice",
		Short: "One gateway for many MCP servers",
		Long: "Sluice serves many MCP servers as few MCP endpoints, under one set of policies.\n\n" +
			"Start with `sluice up`; push configuration with `sluice apply -f FILE --wait`; ask why with `sluice explain`.",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return &codedError{Invalid, misused(cmd, err)}
	})
	root.AddGroup(
		&cobra.Group{ID: "run", Title: "Run:"},
		&cobra.Group{ID: "config", Title: "Configuration:"},
		&cobra.Group{ID: "fleet", Title: "Fleet and tenants:"},
		&cobra.Group{ID: "try", Title: "Try:"},
	)
	in := func(group string, commands ...*cobra.Command) {
		for _, c := range commands {
			c.GroupID = group
			root.AddCommand(c)
		}
	}
	in("run", upCommand(env), controlPlaneCommand(env), proxyCommand(env))
	in("config", applyCommand(env), diffCommand(env), validateCommand(env), testCommand(env), schemaCommand(env), explainCommand(env), getCommand(env),
		deleteCommand(env), logCommand(env), rollbackCommand(env))
	in("fleet", statusCommand(env), proxiesCommand(env), tenantCommand(env), groupCommand(env), tokenCommand(env))
	in("try", mcpCommand(env))
	root.AddCommand(versionCommand(env), demoServerCommand(env))
	return root
}

// codedError ends a command with a code of its own. A nil err means that all was said already.
type codedError struct {
	code Code
	err  error
}

func (e *codedError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit %d", e.code)
	}
	return e.err.Error()
}

func (e *codedError) Unwrap() error { return e.err }

// codeOf maps what the admin API answers. FAILED_PRECONDITION stays Failed: no input and no retry mends it.
func codeOf(err error) Code {
	if errors.Is(err, context.DeadlineExceeded) {
		return TimedOut
	}
	switch status.Code(err) {
	case codes.InvalidArgument, codes.NotFound, codes.AlreadyExists:
		return Invalid
	case codes.Aborted:
		return Conflict
	case codes.DeadlineExceeded:
		return TimedOut
	}
	return Failed
}

// message is an error without the wrapping that gRPC puts around it, and with the way out where we know one.
func message(err error) string {
	s, ok := status.FromError(err)
	if !ok {
		return err.Error()
	}
	switch s.Code() {
	case codes.Unavailable:
		return unreachable(s.Message())
	case codes.Unauthenticated:
		return s.Message() + "; the first admin token lies in admin.token in the control plane's data directory: pass it with --token @FILE or SLUICE_TOKEN"
	}
	return s.Message()
}

// unreachable says why there is no connection to a control plane, without the layers that gRPC wraps the reason in.
func unreachable(reason string) string {
	if quoted, ok := strings.CutPrefix(reason, "connection error: desc = "); ok {
		if inner, err := strconv.Unquote(quoted); err == nil {
			reason = inner
		}
	}
	for _, layer := range []string{"transport: ", "Error while dialing: ", "authentication handshake failed: "} {
		reason = strings.TrimPrefix(reason, layer)
	}
	hint := "start one with `sluice up`, or say where it is with --admin or SLUICE_ADMIN"
	switch {
	case strings.Contains(reason, "does not look like a TLS handshake"):
		hint = "it speaks no TLS: use http:// in --admin or SLUICE_ADMIN"
	case strings.Contains(reason, "server preface"):
		hint = "it may speak TLS: use https:// in --admin or SLUICE_ADMIN"
	case strings.Contains(reason, "x509: "):
		hint = "its CA is ca.pem in its data directory: pass it with --ca or SLUICE_CA, and use a name that its certificate has"
	}
	return "the control plane does not answer: " + reason + "; " + hint
}
