package upstream

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/sluicegate/sluice/internal/policy"
	xdsv1 "github.com/sluicegate/sluice/proto/gen/sluice/xds/v1"
)

const (
	defaultProcesses = 100
	defaultIdle      = 10 * time.Minute
	drainOutput      = time.Second // for what a dead child's pipes still hold
)

// child is one stdio process: the pipe of a channel.
type child struct {
	ch    *channel
	slots *slots
	cmd   *exec.Cmd
	grace time.Duration
	log   *slog.Logger

	stdin, stdout, stderr *os.File // our ends
	out                   outbox
	exited                chan struct{} // the process is gone, its group killed, and its output read
	stopping              atomic.Bool   // we ended it

	mu     sync.Mutex // guards what is below
	reaped bool       // the group's number may be another's
	left   bool       // slots.leave was called
	given  bool       // slots.give was called
}

// openStdio starts a child.
func openStdio(ctx context.Context, o *owned, _ *Request, ch *channel) error {
	cfg := o.t.Config.GetStdio()
	if !o.t.Tenant.Grants.Stdio(cfg.GetCmd()) {
		return fmt.Errorf("command %q is not granted to tenant %s (sluice tenant allow %s stdio=%s)",
			cfg.GetCmd(), o.t.Tenant.Name, o.t.Tenant.Name, cfg.GetCmd())
	}
	most := int(cfg.GetMaxProcesses())
	if most == 0 {
		most = defaultProcesses
	}
	if err := o.s.slots.take(ctx, most); err != nil {
		return err
	}
	c := &child{ch: ch, slots: o.s.slots, grace: o.s.cfg.StopGrace, log: ch.log, exited: make(chan struct{})}
	c.cmd = exec.Command(cfg.GetCmd(), cfg.GetArgs()...)
	c.cmd.Dir = cfg.GetCwd()
	c.cmd.Env = childEnv(cfg, o.t.Tenant.Grants, o.t.Policy, os.Environ())
	c.out.most = o.s.cfg.MaxQueued
	c.out.ready = make(chan struct{}, 1)
	if err := c.start(o.s.cfg.MaxMessage); err != nil {
		o.s.slots.give(false)
		return err
	}
	ch.pipe = c
	return nil
}

// commonEnv are the variables that programs need to run at all, and those that say where tools such as npx and uvx find what
// they run. None holds a secret; LC_* are too.
var commonEnv = []string{
	"PATH", "HOME", "USER", "LOGNAME", "SHELL", "TERM", "LANG", "LANGUAGE", "TZ", "TMPDIR", "CI",
	"XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_RUNTIME_DIR",
	"SSL_CERT_FILE", "SSL_CERT_DIR", "NODE_EXTRA_CA_CERTS", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "PIP_CERT",
	"npm_config_yes", "npm_config_cache", "NPM_CONFIG_YES", "NPM_CONFIG_CACHE", "UV_CACHE_DIR", "PYENV_ROOT", "NVM_DIR", "VIRTUAL_ENV",
}

// childEnv is a child's environment: of the proxy's own what is common or granted to the tenant, or PATH alone; then the
// target's; then the credential. Tools exist that print their environment, so running a command must not be a way to
// variables that `env:` would be refused.
func childEnv(cfg *xdsv1.StdioTransport, grants policy.Grants, p *policy.Target, own []string) []string {
	env := slices.DeleteFunc(slices.Clone(own), func(v string) bool {
		name, _, _ := strings.Cut(v, "=")
		switch {
		case cfg.GetClearEnv():
			return name != "PATH"
		case strings.HasPrefix(name, "SLUICE_"):
			return true
		}
		return !slices.Contains(commonEnv, name) && !strings.HasPrefix(name, "LC_") && !grants.Env(name)
	})
	for name, value := range cfg.GetEnv() {
		env = append(env, name+"="+value)
	}
	return append(env, p.ChildEnv()...)
}

// start starts the process and what reads and writes its pipes.
func (c *child) start(most int) (err error) {
	var theirs [3]*os.File
	ours := [3]**os.File{&c.stdin, &c.stdout, &c.stderr}
	closeAll := func(files ...*os.File) {
		for _, f := range files {
			if f != nil {
				f.Close()
			}
		}
	}
	for i := range theirs {
		r, w, err := os.Pipe()
		if err != nil {
			closeAll(append(theirs[:], c.stdin, c.stdout, c.stderr)...)
			return fmt.Errorf("pipe to the process: %w", err)
		}
		theirs[i], *ours[i] = w, r
		if i == 0 {
			theirs[i], *ours[i] = r, w
		}
	}
	c.cmd.Stdin, c.cmd.Stdout, c.cmd.Stderr = theirs[0], theirs[1], theirs[2]
	started := make(chan error, 1)
	var readers sync.WaitGroup
	readers.Add(2)
	go func() {
		if !runProcess(c.cmd, started, c.reap) {
			return
		}
		// The group is dead; what it wrote before still lies in the pipes. One that left the group may hold them
		// open: it gets no more time than that.
		late := time.AfterFunc(drainOutput, func() { closeAll(c.stdout, c.stderr) })
		readers.Wait()
		late.Stop()
		closeAll(c.stdin, c.stdout, c.stderr)
		c.out.close()
		c.end()
		c.give()
		close(c.exited)
	}()
	err = <-started
	closeAll(theirs[:]...)
	if err != nil {
		closeAll(c.stdin, c.stdout, c.stderr)
		return fmt.Errorf("start %s: %w", c.cmd.Path, err)
	}
	c.log = c.log.With("pid", c.cmd.Process.Pid)
	if err := guarded.err(); err != nil {
		c.log.Warn("children of stdio processes would outlive a killed proxy", "err", err)
	}
	c.log.Info("stdio process started", "cmd", c.cmd.Path)
	go func() { defer readers.Done(); c.readOutput(most) }()
	go func() { defer readers.Done(); logLines(c.stderr, c.log) }()
	go c.writeInput()
	return nil
}

// reap is called when the process has ended, before its number is given back.
func (c *child) reap() {
	c.mu.Lock()
	defer c.mu.Unlock()
	killGroup(c.cmd.Process)
	c.reaped = true
}

// signal sends a signal to the process group while there is one.
func (c *child) signal(send func(*os.Process)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.reaped {
		send(c.cmd.Process)
	}
}

// end tells the channel and the log how the process ended.
func (c *child) end() {
	state := c.cmd.ProcessState.String()
	if c.stopping.Load() {
		c.log.Info("stdio process stopped", "state", state)
		c.ch.fail(ErrClosed)
		return
	}
	c.log.Warn("stdio process ended by itself", "state", state)
	c.ch.fail(fmt.Errorf("the process ended: %s", state))
}

// readOutput reads messages, one a line.
func (c *child) readOutput(most int) {
	r := bufio.NewReaderSize(c.stdout, 4<<10)
	for {
		line, err := readLine(r, most)
		if line = bytes.TrimSpace(line); len(line) > 0 {
			c.ch.receive(line)
		}
		if errors.Is(err, errLongLine) {
			// What follows the limit cannot be told from a message: the process is of no more use.
			c.ch.fail(fmt.Errorf("the process wrote a line of more than %d bytes", most))
			c.stopping.Store(true)
			c.signal(killGroup)
		}
		if err != nil {
			return
		}
	}
}

var errLongLine = errors.New("line too long")

// readLine reads a line of at most most bytes into memory of its own.
func readLine(r *bufio.Reader, most int) ([]byte, error) {
	var line []byte
	for {
		part, err := r.ReadSlice('\n')
		if len(line)+len(part) > most+1 {
			return nil, errLongLine
		}
		line = append(line, part...)
		if err != bufio.ErrBufferFull {
			if err != nil && err != io.EOF {
				err = io.EOF // closed under us
			}
			return line, err
		}
	}
}

// writeInput writes what waits in the outbox, one message a line. It alone waits for a child that does not read.
func (c *child) writeInput() {
	for {
		m, ok := c.out.next()
		if !ok {
			return
		}
		_, err := c.stdin.Write(m.line)
		c.out.sent(m, err)
		if err != nil {
			c.out.close()
			return
		}
	}
}

func (c *child) send(ctx context.Context, msg []byte, _ *Request) (*Response, error) {
	m, err := c.out.put(msg)
	if err != nil {
		return nil, &Error{Op: "write", Err: c.why(ctx, err)}
	}
	select {
	case err := <-m.done:
		if err != nil {
			return nil, &Error{Op: "write", Sent: true, Err: c.why(ctx, err)}
		}
		return nil, nil
	case <-ctx.Done():
		return nil, &Error{Op: "write", Sent: !c.out.withdraw(m), Err: context.Cause(ctx)}
	}
}

// why is err with the state in which the process ended, if that is what broke the pipe: it is known a moment later.
func (c *child) why(ctx context.Context, err error) error {
	if c.stopping.Load() || !errors.Is(err, ErrClosed) && !errors.Is(err, syscall.EPIPE) {
		return err
	}
	select {
	case <-c.exited:
		return fmt.Errorf("%w: %w", c.ch.ended(), err)
	case <-time.After(drainOutput): // it closed its input, and lives
	case <-ctx.Done():
	}
	return err
}

func (c *child) post(msg []byte) {
	if _, err := c.out.put(msg); err != nil {
		c.ch.sparing().Warn("message to the target got lost", "pid", c.cmd.Process.Pid, "err", err)
	}
}

// leave makes the child's place count as one that is about to be free.
func (c *child) leave() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.left && !c.given {
		c.left = true
		c.slots.leave()
	}
}

// give gives the child's place back.
func (c *child) give() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.given = true
	c.slots.give(c.left)
}

// close asks the child to go: the end of its input, then SIGTERM, then SIGKILL to its whole group.
func (c *child) close(ctx context.Context) {
	c.stopping.Store(true)
	c.out.close()
	c.stdin.Close()
	for _, next := range []func(*os.Process){terminateGroup, killGroup} {
		select {
		case <-c.exited:
			return
		case <-time.After(c.grace):
		case <-ctx.Done():
			c.signal(killGroup)
		}
		c.signal(next)
	}
	<-c.exited
}

// outbox is what waits to be written to a child.
type outbox struct {
	most  int
	ready chan struct{}

	mu     sync.Mutex // guards what is below
	queue  []*outgoing
	size   int
	closed bool
}

type outgoing struct {
	line []byte
	done chan error
}

// put queues a message. A line end inside it, which only stands between JSON's tokens, becomes a blank.
func (o *outbox) put(msg []byte) (*outgoing, error) {
	line := make([]byte, 0, len(msg)+1)
	line = append(line, msg...)
	for i, c := range line {
		if c == '\n' || c == '\r' {
			line[i] = ' '
		}
	}
	m := &outgoing{line: append(line, '\n'), done: make(chan error, 1)}
	o.mu.Lock()
	defer o.mu.Unlock()
	switch {
	case o.closed:
		return nil, ErrClosed
	case len(o.queue) > 0 && o.size+len(m.line) > o.most:
		return nil, fmt.Errorf("the process does not read: %d bytes wait for it", o.size)
	}
	o.queue = append(o.queue, m)
	o.size += len(m.line)
	o.wake()
	return m, nil
}

func (o *outbox) wake() {
	select {
	case o.ready <- struct{}{}:
	default:
	}
}

// next waits for a message to write.
func (o *outbox) next() (*outgoing, bool) {
	for {
		o.mu.Lock()
		if o.closed {
			o.mu.Unlock()
			return nil, false
		}
		if len(o.queue) > 0 {
			m := o.queue[0]
			o.queue = o.queue[1:]
			o.mu.Unlock()
			return m, true
		}
		o.mu.Unlock()
		<-o.ready
	}
}

// sent tells who waits that its message was written.
func (o *outbox) sent(m *outgoing, err error) {
	o.mu.Lock()
	o.size -= len(m.line)
	o.mu.Unlock()
	m.done <- err
}

// withdraw takes back a message, if none of it was written.
func (o *outbox) withdraw(m *outgoing) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	i := slices.Index(o.queue, m)
	if i < 0 {
		return false
	}
	o.queue = slices.Delete(o.queue, i, i+1)
	o.size -= len(m.line)
	return true
}

// close refuses more messages and fails those that wait.
func (o *outbox) close() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.closed = true
	for _, m := range o.queue {
		m.done <- ErrClosed
	}
	o.queue = nil
	o.wake()
}
