package dataplane

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/sluicegate/sluice/dataplane/mcp"
)

// sseAnswer is an answer of streamable HTTP on its way into a stream.
type sseAnswer struct {
	stream   *sseStream   // nil: nobody is to know
	to       *mcp.Message // what it answers; nil: the session, which gets events alone
	header   http.Header
	status   int
	kind     string
	buf      bytes.Buffer   // of what is no event stream
	pipe     *io.PipeWriter // to what reads events
	done     chan struct{}
	broke    bool          // it is not whole
	refused  error         // why it cannot be passed on; nil: it can
	answered bool          // its response went into the stream
	lastID   string        // of its events
	retry    time.Duration // how long its sender wants to be left alone; 0: it did not say
}

func (a *sseAnswer) Header() http.Header { return a.header }

func (a *sseAnswer) WriteHeader(status int) {
	if a.status != 0 || status < 200 {
		return
	}
	a.status = status
	if id := a.header.Get(mcp.HeaderSession); id != "" && a.stream != nil { // of initialize; the client goes on as soon as it reads the answer
		a.stream.mu.Lock()
		a.stream.session = id
		a.stream.mu.Unlock()
	}
	a.kind, _, _ = strings.Cut(a.header.Get("Content-Type"), ";")
	if a.kind != mcp.TypeStream || a.stream == nil {
		return
	}
	r, w := io.Pipe()
	a.pipe, a.done = w, make(chan struct{})
	go func() {
		defer close(a.done)
		events := mcp.NewEventReader(r, maxBody)
		for {
			ev, err := events.Next()
			if err == nil {
				err = a.event(ev)
			} else if errors.Is(err, mcp.ErrEventTooLarge) {
				a.refused = errTooLarge
			}
			if err != nil {
				_ = r.CloseWithError(err) // the writer sees that nobody reads any more
				return
			}
		}
	}()
}

// event passes one of the answer's events on. The ids are those of streamable HTTP, and no business of this client.
func (a *sseAnswer) event(ev mcp.Event) error {
	if ev.HasID {
		a.lastID = string(ev.Place())
	}
	if ev.HasRetry {
		a.retry = ev.Retry
	}
	if !ev.IsMessage() {
		return nil
	}
	msg, err := mcp.Scan(ev.Data, mcp.Limits{Bytes: maxBody})
	if err != nil {
		a.refused = fmt.Errorf("the answer cannot be read: %w", err)
		return err
	}
	a.answered = a.answered || msg.Kind == mcp.Response
	return a.stream.message(a.addressed(&msg))
}

// addressed is a message of the answer; an error of who could not read the request gets its id.
func (a *sseAnswer) addressed(msg *mcp.Message) []byte {
	if msg.Kind != mcp.Response || msg.HasID() || a.to == nil || a.to.Kind != mcp.Request {
		return msg.Body
	}
	return fmt.Appendf(nil, `{"jsonrpc":"2.0","id":%s,"error":%s}`, a.to.RawID(), msg.Error.Of(msg.Body))
}

func (a *sseAnswer) Write(p []byte) (int, error) {
	a.WriteHeader(http.StatusOK)
	switch {
	case a.pipe != nil:
		return a.pipe.Write(p)
	case a.stream == nil:
		return len(p), nil
	case a.buf.Len()+len(p) > maxBody:
		a.refused = errTooLarge
		return 0, a.refused
	}
	return a.buf.Write(p)
}

var errTooLarge = fmt.Errorf("the answer is larger than %d MiB, which is more than one event may be", maxBody>>20)

// Flush is for http.ResponseController: events go out as they come.
func (a *sseAnswer) Flush() { a.WriteHeader(http.StatusOK) }

// SetReadDeadline is for http.ResponseController: the body is here already.
func (a *sseAnswer) SetReadDeadline(time.Time) error { return nil }

// finish sends what is one message, and waits for the end of events.
func (a *sseAnswer) finish() {
	if a.pipe != nil {
		_ = a.pipe.Close() // never fails
		<-a.done
		return
	}
	if a.broke || a.refused != nil || a.kind != mcp.TypeJSON || a.to == nil {
		return
	}
	switch msg, err := mcp.Scan(a.buf.Bytes(), mcp.Limits{Bytes: maxBody}); {
	case err != nil:
		a.refused = fmt.Errorf("the answer cannot be read: %w", err)
	case a.to.Kind == mcp.Request || a.to.Kind == mcp.Batch:
		a.answered = true
		_ = a.stream.message(a.addressed(&msg)) // the client is gone: nobody to tell
	}
}

var _ http.Flusher = (*sseAnswer)(nil)
