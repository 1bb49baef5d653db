//go:build !unix

package upstream

import (
	"os"
	"os/exec"
)

// runProcess starts cmd, says so on started, and returns when the process is gone,
// after a call of reap. It returns false at once if the
// process could not be started. There are no process groups here: children of the child are on their own.
func runProcess(cmd *exec.Cmd, started chan<- error, reap func()) bool {
	err := cmd.Start()
	started <- err
	if err != nil {
		return false
	}
	cmd.Wait()
	reap()
	return true
}

var guarded noGuard

type noGuard struct{}

func (noGuard) err() error { return nil }

func killGroup(p *os.Process)      { p.Kill() }
func terminateGroup(p *os.Process) { p.Kill() }
