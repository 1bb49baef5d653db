package upstream

import (
	"os"
	"os/exec"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// runProcess starts cmd in a process group of its own, says so on started, and returns when the process is gone;
// reap, which kills what is left of the group, is called before the group's number is given back. It returns false at once if the process could not be started.
//
// The kernel kills the process when the thread that started it ends (PR_SET_PDEATHSIG), which is what ends children
// of a proxy that was killed. So the thread must not end before: this goroutine keeps it until then. It waits in a
// system call, which takes a thread anyway.
func runProcess(cmd *exec.Cmd, started chan<- error, reap func()) bool {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	err := cmd.Start()
	started <- err
	if err != nil {
		return false
	}
	pid := cmd.Process.Pid
	guarded.add(pid)
	// Wait without reaping: as long as the leader is a zombie, its group's number is nobody else's.
	for {
		err := unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil)
		if err != unix.EINTR {
			break
		}
	}
	reap()
	guarded.remove(pid)
	cmd.Wait()
	return true
}

func killGroup(p *os.Process)      { syscall.Kill(-p.Pid, syscall.SIGKILL) }
func terminateGroup(p *os.Process) { syscall.Kill(-p.Pid, syscall.SIGTERM) }
