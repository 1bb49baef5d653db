//go:build unix

package upstream

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"sync"
	"syscall"
)

// guardName is the name that this program is started under to be the guard.
const guardName = "sluice-process-guard"

// The guard is a second process of this program. It knows the process groups of all children, and kills them when
// its standard input ends, which it does when the proxy is gone, however that came: the kernel's own death signal
// reaches children, but not theirs, and `npx server` is a child of a child.
func init() {
	if len(os.Args) == 1 && os.Args[0] == guardName {
		guard()
		os.Exit(0)
	}
}

// guard reads `+GROUP` and `-GROUP` lines to their end, then kills the groups that are left.
func guard() {
	groups := map[int]bool{}
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		n, err := strconv.Atoi(lines.Text())
		switch {
		case err != nil:
		case n > 1:
			groups[n] = true
		default:
			delete(groups, -n)
		}
	}
	for group := range groups {
		syscall.Kill(-group, syscall.SIGKILL)
	}
}

var guarded = &guardClient{groups: map[int]bool{}}

// guardClient talks to the guard, which it starts with the first group.
type guardClient struct {
	mu     sync.Mutex // guards what is below
	groups map[int]bool
	pipe   *os.File // nil: no guard runs
	broken error    // why not
}

func (g *guardClient) add(group int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.groups[group] = true
	g.tellLocked(group)
}

func (g *guardClient) remove(group int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.groups, group)
	if g.pipe != nil {
		g.tellLocked(-group)
	}
}

// err says why children are not guarded; nil: they are.
func (g *guardClient) err() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.broken
}

// tellLocked writes one line. A guard that is gone is replaced by one that is told everything.
func (g *guardClient) tellLocked(n int) {
	if g.pipe != nil {
		if _, err := fmt.Fprintf(g.pipe, "%+d\n", n); err == nil {
			return
		}
		g.pipe.Close()
		g.pipe = nil
	}
	if g.broken = g.startLocked(); g.broken != nil {
		return
	}
	for group := range g.groups {
		if _, g.broken = fmt.Fprintf(g.pipe, "%+d\n", group); g.broken != nil {
			return
		}
	}
}

func (g *guardClient) startLocked() error {
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	cmd := &exec.Cmd{Path: exe, Args: []string{guardName}, Env: []string{}, Stdin: r,
		SysProcAttr: &syscall.SysProcAttr{Setpgid: true}} // a signal from the terminal is not for it
	if err := cmd.Start(); err != nil {
		w.Close()
		return fmt.Errorf("start the process guard: %w", err)
	}
	go cmd.Wait() // it ends with this process
	g.pipe = w
	return nil
}
