package upstream

import (
	"errors"
	"net"
	"net/http"
	"net/netip"
	"net/textproto"
	"strconv"
	"time"

	"golang.org/x/net/http/httpguts"
)

const (
	connBuffer = 4 << 10  // a parked stream keeps this much
	wholeWrite = 64 << 10 // a body up to here goes out with its head in one write
	keepOut    = 16 << 10
)

// h1conn is one connection. One exchange at a time uses it; close and abort alone are safe beside that.
type h1conn struct {
	pool   *h1pool
	nc     net.Conn // what is read and written: the TCP connection, or TLS over it
	tcp    net.Conn // the TCP connection: closing it never blocks, as the farewell of TLS may
	remote netip.Addr
	probe  probe
	cancel func() // abort; made once, for context.AfterFunc

	buf    []byte // read but not used: buf[r:w]
	r, w   int
	out    []byte // the request as it is written
	since  time.Time
	reused bool
}

// abort closes the connection at once. Reads and writes under way fail.
func (c *h1conn) abort() { c.tcp.Close() }

// shrink gives up what a large exchange made grow.
func (c *h1conn) shrink() {
	if cap(c.out) > keepOut {
		c.out = nil
	}
	if len(c.buf) > connBuffer {
		c.buf = make([]byte, connBuffer)
	}
	c.r, c.w = 0, 0
}

// fill reads more bytes behind those not used yet; there must be room.
func (c *h1conn) fill() error {
	if c.r == c.w {
		c.r, c.w = 0, 0
	} else if c.w == len(c.buf) {
		copy(c.buf, c.buf[c.r:c.w])
		c.r, c.w = 0, c.w-c.r
	}
	n, err := c.nc.Read(c.buf[c.w:])
	c.w += n
	if n > 0 {
		return nil
	}
	return err
}

// render puts the request's head into c.out, and the body behind it where that is small.
func (c *h1conn) render(method, line string, h http.Header, body []byte) error {
	b := append(c.out[:0], method...)
	b = append(b, line...)
	if len(h["User-Agent"]) == 0 {
		b = append(b, "User-Agent: sluice\r\n"...)
	}
	for name, values := range h {
		if !sendable(name) {
			continue
		}
		if !httpguts.ValidHeaderFieldName(name) {
			return errors.New("header name " + strconv.Quote(name) + " cannot be sent")
		}
		for _, v := range values {
			if !httpguts.ValidHeaderFieldValue(v) {
				return errors.New("the value of header " + name + " has bytes that cannot be sent")
			}
			b = append(b, name...)
			b = append(b, ": "...)
			b = append(b, v...)
			b = append(b, "\r\n"...)
		}
	}
	if method == http.MethodPost || len(body) > 0 {
		b = append(b, "Content-Length: "...)
		b = strconv.AppendInt(b, int64(len(body)), 10)
		b = append(b, "\r\n"...)
	}
	b = append(b, "\r\n"...)
	if len(body) <= wholeWrite {
		b = append(b, body...)
	}
	c.out = b
	return nil
}

// sendable says whether a header of the request may go out: framing and what concerns one connection is ours.
func sendable(name string) bool {
	switch textproto.CanonicalMIMEHeaderKey(name) {
	case "Host", "Content-Length", "Transfer-Encoding", "Connection", "Keep-Alive", "Proxy-Connection", "Te",
		"Trailer", "Upgrade", "Expect", "Accept-Encoding":
		return false
	}
	return true
}

// requestLine is what follows the method and stays the same for all requests to a URL.
func requestLine(uri, host string) string {
	return " " + uri + " HTTP/1.1\r\nHost: " + host + "\r\n"
}
