//go:build unix && !linux

package upstream

import (
	"os"
	"os/exec"
	"syscall"
)

// runProcess starts cmd in a process group of its own, says so on started, and returns when the process is gone;
// reap, which kills what is left of the group, is called before the group's number is given back. It returns false at once if the process could not be started.
func runProcess(cmd *exec.Cmd, started chan<- error, reap func()) bool {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	err := cmd.Start()
	started <- err
	if err != nil {
		return false
	}
	pid := cmd.Process.Pid
	guarded.add(pid)
	cmd.Wait() // nothing here waits without reaping; a group with members keeps its number
	reap()
	guarded.remove(pid)
	return true
}

func killGroup(p *os.Process)      { syscall.Kill(-p.Pid, syscall.SIGKILL) }
func terminateGroup(p *os.Process) { syscall.Kill(-p.Pid, syscall.SIGTERM) }
