package mcptest

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"sync"
	"testing"
	"time"
)

// Script is a server that does exactly what a test says, byte for byte.
type Script struct {
	// URL of the server, with path /mcp.
	URL string
	// Addr is its host and port.
	Addr string

	mu    sync.Mutex // guards conns
	conns int
}

// Conn is one connection that a [Script] accepted.
type Conn struct {
	net.Conn
	// N counts the connections, from 1.
	N int
	r *bufio.Reader
}

// NewScript serves each connection with one call of f, in a goroutine of its own; when f returns the connection is
// closed. At the test's end all connections are closed and the functions waited for.
func NewScript(t testing.TB, f func(c *Conn)) *Script {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &Script{URL: "http://" + l.Addr().String() + "/mcp", Addr: l.Addr().String()}
	var wg sync.WaitGroup
	var mu sync.Mutex
	open := map[net.Conn]bool{}
	wg.Go(func() {
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			s.mu.Lock()
			s.conns++
			n := s.conns
			s.mu.Unlock()
			mu.Lock()
			open[nc] = true
			mu.Unlock()
			wg.Go(func() {
				defer func() {
					nc.Close()
					mu.Lock()
					delete(open, nc)
					mu.Unlock()
				}()
				f(&Conn{Conn: nc, N: n, r: bufio.NewReader(nc)})
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		mu.Lock()
		for nc := range open {
			nc.Close()
		}
		mu.Unlock()
		wg.Wait()
	})
	return s
}

// Conns tells how many connections were accepted.
func (s *Script) Conns() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.conns
}

// Read reads one HTTP request and its body. Nil: the peer hung up.
func (c *Conn) Read() (*http.Request, []byte) {
	r, err := http.ReadRequest(c.r)
	if err != nil {
		return nil, nil
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, nil
	}
	return r, body
}

// Send writes bytes as they are, each part in a write of its own.
func (c *Conn) Send(parts ...string) {
	for i, p := range parts {
		if i > 0 {
			time.Sleep(2 * time.Millisecond) // so that the reader sees the border
		}
		if _, err := io.WriteString(c.Conn, p); err != nil {
			return
		}
	}
}

// JSON answers with status 200 and a counted body.
func (c *Conn) JSON(body string) { c.Answer(200, "application/json", body) }

// Answer answers with a counted body and extra header lines, each without its line end.
func (c *Conn) Answer(status int, contentType, body string, lines ...string) {
	var b bytes.Buffer
	fmt.Fprintf(&b, "HTTP/1.1 %d %s\r\n", status, http.StatusText(status))
	if contentType != "" {
		fmt.Fprintf(&b, "Content-Type: %s\r\n", contentType)
	}
	for _, l := range lines {
		b.WriteString(l + "\r\n")
	}
	b.WriteString("Content-Length: " + strconv.Itoa(len(body)) + "\r\n\r\n" + body)
	c.Send(b.String())
}

// Hang waits until the peer closes the connection or the test ends, and reads nothing into account.
func (c *Conn) Hang() { io.Copy(io.Discard, c.r) }

// Reset closes the connection with a TCP reset.
func (c *Conn) Reset() error {
	tc, ok := c.Conn.(*net.TCPConn)
	if !ok {
		return errors.New("not a TCP connection")
	}
	if err := tc.SetLinger(0); err != nil {
		return err
	}
	return tc.Close()
}
