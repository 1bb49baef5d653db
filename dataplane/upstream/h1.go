package upstream

import (
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"sync/atomic"
	"time"

	"github.com/sluicegate/sluice/dataplane/snapshot"
	"github.com/sluicegate/sluice/internal/policy"
)

// h1call is what one HTTP/1.1 request needs to know.
type h1call struct {
	method  string
	line    string // see requestLine
	header  http.Header
	body    []byte
	safe    bool          // may run twice
	timeout time.Duration // to the head of the answer; 0: none
	grants  policy.Grants
}

// do sends a request and reads the head of the answer. A kept connection may have died unseen. Where nothing of the
// request was accepted, or the request may run twice, it is sent again on a new one; else the caller is told.
func (p *h1pool) do(ctx context.Context, call *h1call) (*Response, error) {
	res, err := p.try(ctx, call, false)
	var e *Error
	if !errors.As(err, &e) || !errors.Is(err, errKept) || ctx.Err() != nil {
		return res, err
	}
	if !e.Sent || call.safe {
		return p.try(ctx, call, true)
	}
	return nil, &Error{Op: e.Op, Sent: true, Err: ErrStale}
}

// errKept marks that a kept connection died before the first byte of an answer.
var errKept = errors.New("kept connection died")

func (p *h1pool) try(ctx context.Context, call *h1call, fresh bool) (*Response, error) {
	c, err := p.get(ctx, call.grants, fresh)
	if err != nil {
		return nil, &Error{Op: "dial", Err: err}
	}
	if err := c.render(call.method, call.line, call.header, call.body); err != nil {
		p.put(c)
		return nil, &Error{Op: "write", Err: err}
	}
	x := &exchange{c: c, ctx: ctx}
	x.stop = afterFunc(ctx, c.cancel)
	if err := x.send(call); err != nil {
		x.end(false)
		return nil, err
	}
	return x.answer()
}

// afterFunc is [context.AfterFunc]; a context that has its own is asked without a context of ours in between.
func afterFunc(ctx context.Context, f func()) (stop func() bool) {
	if own, ok := ctx.(interface{ AfterFunc(f func()) func() bool }); ok {
		return own.AfterFunc(f)
	}
	return context.AfterFunc(ctx, f)
}

// exchange is one request and its answer on a connection; as Response.Body it reads the answer's body.
type exchange struct {
	c    *h1conn
	ctx  context.Context
	stop func() bool
	done atomic.Bool // the connection is no longer ours

	target *snapshot.Target // whom errors of the body name; may be nil

	head  h1head
	left  int64 // of the body, or of the chunk
	begun bool  // chunked: a chunk's data came before, so that its line end is due
	err   error // what Read says from now on
}

// end gives the connection back, once. It is kept if all is read and nothing cancelled it.
func (x *exchange) end(reuse bool) {
	if x.done.Swap(true) {
		return
	}
	if x.stop() && reuse {
		x.c.pool.put(x.c)
		return
	}
	x.c.pool.drop(x.c)
}

// send writes the request and reads the head of the answer into x.head.
func (x *exchange) send(call *h1call) error {
	c := x.c
	if call.timeout > 0 {
		deadline := time.Now().Add(call.timeout)
		if err := c.nc.SetDeadline(deadline); err != nil {
			return x.fail("write", 0, err)
		}
	}
	var err error
	if len(call.body) <= wholeWrite {
		var n int
		if n, err = c.nc.Write(c.out); err != nil {
			return x.fail("write", n, err)
		}
		err = x.readHead()
	} else {
		err = x.sendLarge(call.body)
	}
	if err == nil && call.timeout > 0 {
		err = c.nc.SetDeadline(time.Time{})
	}
	if err != nil {
		return x.fail("read head", len(c.out), err)
	}
	return nil
}

// sendLarge writes head and body while it reads, for a target may answer before it has read all (413), and would
// block a writer that does not listen.
func (x *exchange) sendLarge(body []byte) error {
	c := x.c
	wrote := make(chan error, 1)
	go func() {
		_, err := c.nc.Write(c.out)
		if err == nil {
			_, err = c.nc.Write(body)
		}
		wrote <- err
	}()
	err := x.readHead()
	if err != nil || x.head.status >= 300 {
		x.head.keep = false                    // the target did not read the request to its end
		c.nc.SetWriteDeadline(time.Unix(1, 0)) // an error shows as the writer's
	}
	if werr := <-wrote; werr != nil && err == nil && x.head.status < 300 {
		return werr
	}
	return err
}

// fail makes the error of an exchange that brought no head.
func (x *exchange) fail(op string, written int, err error) error {
	e := &Error{Op: op, Sent: written > 0, Err: err}
	if c := x.c; c.pool.tls != nil && !c.reused && c.w == 0 && context.Cause(x.ctx) == nil {
		if op == "write" && brokeOff(err) {
			if said := c.fill(); said != nil {
				err = said // why the target does not listen
			}
		}
		if late := refusedLate(c.pool.tls, err); late != nil {
			return &Error{Op: "dial", Err: late}
		}
	}
	switch cause := context.Cause(x.ctx); {
	case cause != nil:
		e.Err = cause
	case errors.Is(err, os.ErrDeadlineExceeded):
		e.Err = ErrTimeout
	case x.c.pool.isClosed():
		e.Err = ErrClosed
	case x.c.reused && x.c.w == 0 && !errors.Is(err, ErrProtocol):
		e.Err = &keptError{err}
	case errors.Is(err, io.EOF):
		e.Err = io.ErrUnexpectedEOF
	}
	return e
}

// keptError is an error that is also errKept.
type keptError struct{ error }

func (e *keptError) Unwrap() []error { return []error{errKept, e.error} }

// readHead reads the head of the final answer.
func (x *exchange) readHead() error {
	c := x.c
	limit := c.pool.cfg.MaxHead
	for range maxInterim + 1 {
		seen := 0
		var n int
		for {
			if n = headEnd(c.buf[c.r:c.w], seen); n > 0 {
				break
			}
			seen = c.w - c.r
			if seen >= limit {
				return malformed("the head has more than %d bytes", limit)
			}
			if seen == len(c.buf) {
				c.buf = append(c.buf[c.r:c.w:c.w], make([]byte, min(len(c.buf), limit))...)
				c.r, c.w = 0, seen
			}
			if err := c.fill(); err != nil {
				return err
			}
		}
		if n > limit {
			return malformed("the head has more than %d bytes", limit)
		}
		h, err := parseHead(c.buf[c.r : c.r+n])
		if err != nil {
			return err
		}
		c.r += n
		switch {
		case h.status == http.StatusSwitchingProtocols:
			return malformed("status 101, which nobody asked for")
		case h.status >= 200:
			x.head = h
			return nil
		}
	}
	return malformed("more than %d interim answers", maxInterim)
}

// answer makes the response. A body that has come whole is taken off the connection at once, so that the
// connection serves others while the caller still looks at the body.
func (x *exchange) answer() (*Response, error) {
	c, h := x.c, &x.head
	res := &Response{Status: h.status, Header: h.header, Length: max(0, h.length)}
	switch {
	case h.length == 0:
		res.Body = http.NoBody
		x.end(h.keep && c.r == c.w)
	case h.length > 0 && int64(c.w-c.r) >= h.length:
		b := make([]byte, h.length)
		c.r += copy(b, c.buf[c.r:])
		res.Body = &wholeBody{rest: b}
		x.end(h.keep && c.r == c.w)
	default:
		x.left = max(0, h.length)
		res.Body = x
	}
	return res, nil
}

// wholeBody is a body in memory.
type wholeBody struct{ rest []byte }

func (b *wholeBody) Read(p []byte) (int, error) {
	if len(b.rest) == 0 {
		return 0, io.EOF
	}
	n := copy(p, b.rest)
	b.rest = b.rest[n:]
	return n, nil
}

func (b *wholeBody) WriteTo(w io.Writer) (int64, error) {
	n, err := w.Write(b.rest)
	b.rest = b.rest[n:]
	return int64(n), err
}

func (b *wholeBody) Close() error { return nil }
