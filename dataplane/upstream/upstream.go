package upstream

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/sluicegate/sluice/internal/policy"
)

// Transport is one target, as streamable HTTP. It is safe for concurrent use and cheap to hold.
type Transport interface {
	// Do sends one request and returns when the answer's head is there; its body streams. The caller closes the
	// body. Cancelling ctx ends the exchange: over HTTP the connection is closed, and a stateless call of a stdio
	// target is cancelled by a notification; a session's call is only forgotten, as leaving an HTTP response is no
	// cancellation in the session era. An error is an [*Error]; an answer of any status is none.
	Do(ctx context.Context, r *Request) (*Response, error)
	// Owned says that sessions live in this process (stdio, sse), so that only this proxy can serve them.
	Owned() bool
}

// Request is one request of the streamable HTTP transport.
type Request struct {
	Method string // POST, GET or DELETE
	// Path, with a query, is asked for at the target's host instead of the target's own path: an agent's card stands
	// beside its endpoint. If empty, the target's own. HTTP targets alone have others.
	Path string
	// Header is what goes to the target beside what the target's policies and the transport add. It belongs to the
	// transport from here on, which may change it. Framing and hop-by-hop fields in it are not sent.
	Header http.Header
	// Body is one JSON-RPC message. The transport does not change it and drops it when Do returns.
	Body []byte
	// Call is who calls and for what, for credentials and headers that depend on it.
	Call policy.Call
	// Whose is the caller that a session belongs to, e.g. session.Scope's Principal: an owned transport has none of its sessions for
	// another. "" is the anonymous one.
	Whose string
	// Safe says that the target may see the request twice without harm (lists, reads, pings). Only such a request
	// is sent again when a kept connection dies before the first byte of its answer. GET and DELETE always are.
	Safe bool
	// Initialize is the JSON-RPC `initialize` request that made the session of an owned transport. If it is set and
	// the session named in Header is gone (idle, restarted, crashed), the session is made anew under the same id
	// before the request is sent, with [Response.Renewed] set. If nil, a session that is gone is answered with 404.
	Initialize []byte

	via *owned // the transport that took it, inside adapters
}

// Response is the head of an answer, and its body.
type Response struct {
	Status int
	Header http.Header
	// Body is never nil. It streams; an error from Read is an [*Error] but for io.EOF. Close may be called at any
	// time, also while another goroutine reads.
	Body io.ReadCloser
	// Length is the body's, where it is known before the body is read; else 0. An empty body is [http.NoBody].
	Length int64
	// Renewed says that this request made the session anew: what the target knew of the session is lost.
	Renewed bool
	// OtherEra says that the target refuses the request's revision, or that it answers like one that never heard of it: it has done
	// nothing.
	OtherEra bool
	// Full says that the target may have no more processes: nothing was done, and would be if one of its sessions ended.
	Full bool
}

// Peek reads up to most bytes of the body, and leaves them to be read. With an error there may be some.
func (r *Response) Peek(most int64) ([]byte, error) {
	head, err := io.ReadAll(io.LimitReader(r.Body, most))
	r.Body = struct {
		io.Reader
		io.Closer
	}{io.MultiReader(bytes.NewReader(head), r.Body), r.Body}
	return head, err
}

// Error is an exchange that brought no complete answer. It names the target and holds no secret.
type Error struct {
	Tenant string
	Target string // resource name
	Op     string // what was tried: dial, write, read head, read body, start, ...
	// Sent is false if the target cannot have processed any of the request, so that it may be sent again, also
	// elsewhere. If true, nobody knows.
	Sent bool
	Err  error
}

func (e *Error) Error() string {
	return fmt.Sprintf("target %s: %s: %v", e.Target, e.Op, e.Err)
}

func (e *Error) Unwrap() error { return e.Err }

// NotSent reports whether err says that its request never reached the target.
func NotSent(err error) bool {
	var e *Error
	return errors.As(err, &e) && !e.Sent
}

// Causes that callers branch on.
var (
	// ErrTimeout: the head of the answer did not come within the target's timeout.
	ErrTimeout = errors.New("no answer within the target's timeout")
	// ErrBusy: the target's connections are all in use.
	ErrBusy = errors.New("all connections to the target are in use")
	// ErrFull: as many calls run as the target's concurrency lets, and none ended in time for this one.
	ErrFull = errors.New("as many calls run as the target's concurrency allows")
	// ErrClosed: the manager, or what the request ran on, was closed.
	ErrClosed = errors.New("transport closed")
	// ErrProtocol: the target's answer breaks the rules of its transport.
	ErrProtocol = errors.New("malformed answer")
	// ErrStale: a kept connection was closed by the target before it answered. The request may have been processed.
	ErrStale = errors.New("target closed the kept connection before it answered")
)

// Health is what is known of one target.
type Health struct {
	Tenant string
	Target string // resource name
	// Err is the last exchange's error; empty if it was answered, or none was made yet.
	Err string
	// Since is when Err began or ended; zero if no exchange has come to an end yet.
	Since time.Time
	// Conns counts open HTTP connections, idle ones among them; Children running stdio processes; Sessions those
	// that live in this process.
	Conns, Children, Sessions int
	// Versions of the protocol that the target was found to speak, newest first. Nil: nobody has asked yet.
	Versions []string
}
