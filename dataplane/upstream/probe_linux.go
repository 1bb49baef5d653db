package upstream

import "syscall"

// probe looks at an idle connection without waiting: a target that closed it, or sent what nobody asked for, is
// found before a request is risked on it.
type probe struct {
	raw   syscall.RawConn // nil: cannot be asked
	peek  func(fd uintptr) bool
	alive bool
	b     [1]byte
}

func (c *h1conn) prepareProbe() {
	sc, ok := c.tcp.(syscall.Conn)
	if !ok {
		return
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return
	}
	p := &c.probe
	p.raw = raw
	p.peek = func(fd uintptr) bool {
		// Nothing to read is the only good answer: an end is a closed connection, bytes are an answer to nothing.
		_, _, err := syscall.Recvfrom(int(fd), p.b[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
		p.alive = err == syscall.EAGAIN
		return true
	}
}

func (c *h1conn) alive() bool {
	if c.probe.raw == nil {
		return true
	}
	c.probe.alive = false
	return c.probe.raw.Read(c.probe.peek) == nil && c.probe.alive
}
