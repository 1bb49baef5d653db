package dataplane

import (
	"net/http"
	"sync"
	"time"
)

const (
	// writeTime is how long a client may take nothing of what it is sent. The server has no write timeout, which would end event
	// streams; but who waits for the client holds a target's connection, a place in its concurrency, a child.
	writeTime = 30 * time.Second
	// writePiece is what has to be taken within that time.
	writePiece = 64 << 10
	// kept is how much net/http keeps of an answer before any of it goes out.
	kept = 2 << 10
)

// answering is an answer to a client that may not read it, and remembers its status.
type answering struct {
	http.ResponseWriter
	limit  time.Duration // writeTime
	status int
	size   int

	mu      sync.Mutex  // guards what is below
	writing bool        // a write or flush is under way, and has been for no longer than limit
	timer   *time.Timer // nil: nothing was written that could wait
}

func (a *answering) WriteHeader(status int) {
	if a.status == 0 && status >= 200 {
		a.status = status
	}
	a.ResponseWriter.WriteHeader(status)
}

func (a *answering) Write(p []byte) (n int, err error) {
	if a.status == 0 {
		a.status = http.StatusOK
	}
	if a.size += len(p); a.size <= kept {
		return a.ResponseWriter.Write(p)
	}
	for err == nil && n < len(p) {
		var m int
		err = a.within(func() (err error) {
			m, err = a.ResponseWriter.Write(p[n:min(n+writePiece, len(p))])
			return err
		})
		n += m
	}
	return n, err
}

// FlushError is for http.ResponseController.
func (a *answering) FlushError() error {
	return a.within(http.NewResponseController(a.ResponseWriter).Flush)
}

// Unwrap lets http.ResponseController find what the server's own writer can do.
func (a *answering) Unwrap() http.ResponseWriter { return a.ResponseWriter }

// within writes, and makes the write fail if the client takes nothing of it in time. A deadline of the connection alone would not do: over
// HTTP/2 a client stops one stream of many, and a deadline that passes between two writes ends it.
func (a *answering) within(write func() error) error {
	a.mu.Lock()
	a.writing = true
	if a.timer == nil {
		a.timer = time.AfterFunc(a.limit, a.giveUp)
	} else {
		a.timer.Reset(a.limit)
	}
	a.mu.Unlock()
	defer func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.writing = false
		a.timer.Stop()
	}()
	return write()
}

func (a *answering) giveUp() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.writing { // else the handler may have returned, and the writer is not ours any more
		_ = http.NewResponseController(a.ResponseWriter).SetWriteDeadline(time.Unix(1, 0)) // every connection of ours can
	}
}
