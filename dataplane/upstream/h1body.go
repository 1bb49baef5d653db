package upstream

import (
	"bytes"
	"context"
	"errors"
	"io"

	"github.com/sluicegate/sluice/dataplane/snapshot"
)

const (
	maxChunkLine = 1 << 10
	maxTrailer   = 8 << 10
)

// Read reads the body; see Response.Body.
func (x *exchange) Read(p []byte) (int, error) {
	if x.err != nil {
		return 0, x.err
	}
	if x.done.Load() { // closed
		return 0, x.bodyError(ErrClosed)
	}
	if len(p) == 0 {
		return 0, nil
	}
	n, err := x.read(p)
	if err != nil {
		x.err = err
		if err == io.EOF {
			x.end(x.head.keep && x.c.r == x.c.w)
			return n, x.err
		}
		x.err = x.bodyError(err)
		x.end(false)
	}
	if n > 0 {
		return n, nil // the error comes with the next call
	}
	return n, x.err
}

// Close ends the exchange. A body that was not read to its end costs the connection.
func (x *exchange) Close() error {
	x.end(false)
	return nil
}

func (x *exchange) bodyError(err error) error {
	switch cause := context.Cause(x.ctx); {
	case cause != nil:
		err = cause
	case x.c.pool.isClosed() || x.done.Load():
		err = ErrClosed
	case errors.Is(err, io.EOF):
		err = io.ErrUnexpectedEOF
	}
	return bodyError(x.target, err)
}

func bodyError(t *snapshot.Target, err error) error {
	e := &Error{Op: "read body", Sent: true, Err: err}
	if t != nil {
		return named(t, e)
	}
	return e
}

// read reads some of the body. io.EOF, and it alone, says that the body came to its proper end; it may come with
// the last bytes.
func (x *exchange) read(p []byte) (int, error) {
	switch x.head.length {
	case lengthToEnd:
		return x.readToEnd(p)
	case lengthChunked:
		return x.readChunked(p)
	}
	n, err := x.readLeft(p)
	if err == nil && x.left == 0 {
		err = io.EOF
	}
	return n, err
}

func (x *exchange) readToEnd(p []byte) (int, error) {
	c := x.c
	if c.r < c.w {
		n := copy(p, c.buf[c.r:c.w])
		c.r += n
		return n, nil
	}
	return c.nc.Read(p) // over TLS, an end without a farewell is io.ErrUnexpectedEOF: a body cut off is none
}

// readLeft reads of the x.left bytes that are due.
func (x *exchange) readLeft(p []byte) (int, error) {
	c := x.c
	p = p[:min(int64(len(p)), x.left)]
	if c.r == c.w {
		if len(p) >= len(c.buf) { // large reads need no detour
			n, err := c.nc.Read(p)
			x.left -= int64(n)
			if n > 0 {
				err = nil
			}
			return n, unexpected(err)
		}
		if err := c.fill(); err != nil {
			return 0, unexpected(err)
		}
	}
	n := copy(p, c.buf[c.r:c.w])
	c.r += n
	x.left -= int64(n)
	return n, nil
}

// readChunked reads until p is full or nothing more has come.
func (x *exchange) readChunked(p []byte) (int, error) {
	total := 0
	for total < len(p) {
		if x.left == 0 {
			// What has been read is handed on before the connection is waited for.
			if total > 0 && !x.chunkLineThere() {
				return total, nil
			}
			if err := x.nextChunk(); err != nil {
				return total, err
			}
		}
		if total > 0 && x.c.r == x.c.w {
			return total, nil
		}
		n, err := x.readLeft(p[total:])
		total += n
		if err != nil {
			return total, err
		}
	}
	return total, nil
}

// chunkLineThere says whether the next chunk's head can be read without waiting.
func (x *exchange) chunkLineThere() bool {
	b := x.c.buf[x.c.r:x.c.w]
	if x.begun {
		if len(b) < 2 {
			return false
		}
		b = b[2:]
	}
	return bytes.IndexByte(b, '\n') >= 0
}

// nextChunk reads the end of the last chunk and the head of the next one. After the last chunk it reads the
// trailer and returns io.EOF.
func (x *exchange) nextChunk() error {
	if x.begun {
		line, err := x.line(2)
		if err != nil {
			return err
		}
		if len(line) != 0 {
			return malformed("a chunk is longer than its size says")
		}
	}
	line, err := x.line(maxChunkLine)
	if err != nil {
		return err
	}
	if x.left, err = chunkSize(line); err != nil {
		return err
	}
	x.begun = true
	if x.left > 0 {
		return nil
	}
	for total := 0; ; { // trailer fields mean nothing in MCP, but are not anything
		line, err := x.line(maxChunkLine)
		if err != nil {
			return err
		}
		if len(line) == 0 {
			return io.EOF
		}
		if total += len(line); total > maxTrailer {
			return malformed("trailer of more than %d bytes", maxTrailer)
		}
		if _, _, err := parseField(string(line)); err != nil {
			return err
		}
	}
}

// line reads a line that ends in CRLF, of at most most bytes; it is valid until the next read.
func (x *exchange) line(most int) ([]byte, error) {
	c := x.c
	for {
		b := c.buf[c.r:c.w]
		if i := bytes.IndexByte(b, '\n'); i >= 0 {
			if i == 0 || b[i-1] != '\r' || i+1 > most {
				return nil, malformed("line %.40q in the framing of the body", b[:i+1])
			}
			c.r += i + 1
			return b[:i-1], nil
		}
		if len(b) >= most {
			return nil, malformed("line %.40q in the framing of the body", b)
		}
		if err := c.fill(); err != nil {
			return nil, unexpected(err)
		}
	}
}

// unexpected makes an end in the middle of a body what it is.
func unexpected(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}
