package mux

import (
	"bytes"
	"errors"
	"net/http"

	"github.com/sluicegate/sluice/dataplane/mcp"
)

// batch serves an array of messages, which 2025-03-26 alone has. Targets get them one by one, for hardly any takes
// arrays. The answers come on one event stream as they are ready: the revision lets the server choose, and a stream can
// also carry what targets ask and tell on the way.
func (m *Mux) batch(w http.ResponseWriter, x *Request) error {
	if x.Session == nil || !mcp.Revision(x.Session.Version).AllowsBatch() {
		return x.fail(http.StatusBadRequest, mcp.CodeInvalidRequest, "the session's protocol version has no batches: send one message for each POST")
	}
	answers := 0
	for i := range x.Batch {
		if x.Batch[i].Kind == mcp.Request {
			answers++
		}
	}
	if answers == 0 {
		for i := range x.Batch {
			_ = m.message(&discard{header: http.Header{}}, x.element(i)) // no answer could tell
		}
		return accepted(w)
	}
	h := w.Header()
	h["Content-Type"] = []string{mcp.TypeStream}
	h["X-Accel-Buffering"] = []string{"no"}
	w.WriteHeader(http.StatusOK)
	out := newSink(w, m.cfg.KeepAlive)
	defer out.close()

	const atOnce = 8
	records := make([]*Record, len(x.Batch))
	var all group
	slots := make(chan struct{}, atOnce)
	for i := range x.Batch {
		one := x.element(i)
		records[i] = one.Record
		slots <- struct{}{}
		all.run(func() {
			defer func() { <-slots }()
			part := &batchWriter{out: out, header: http.Header{}, limit: m.cfg.Limits.MaxBytes()}
			defer func() {
				// An answer that broke off is told as an error of its own, the others go on.
				if r := recover(); r != nil && r != http.ErrAbortHandler {
					panic(r)
				} else if r != nil {
					part.buf = one.fail(http.StatusBadGateway, mcp.CodeInternal, "the answer broke off").Append(nil)
				}
				if one.Message.Kind == mcp.Request {
					part.finish(one)
				}
			}()
			if err := m.message(part, one); err != nil {
				part.buf = one.readdressed(err).Append(nil)
			}
		})
	}
	all.wait()
	for _, r := range records {
		if r.Refused && !x.Record.Refused {
			x.Record.Target, x.Record.Name, x.Record.Refused, x.Record.Rule = r.Target, r.Name, true, r.Rule
		}
	}
	return nil
}

// element is one message of a batch as a request of its own.
func (x *Request) element(i int) *Request {
	one := *x
	one.Message, one.Batch, one.Record = &x.Batch[i], nil, &Record{}
	return &one
}

// readdressed is an error with the id of the message that it answers.
func (x *Request) readdressed(err error) *mcp.Error {
	e := *x.asError(err)
	e.ID = x.Message.RawID()
	return &e
}

// batchWriter puts one message's answer on the batch's stream: a stream's events as they come, else the body at its end.
type batchWriter struct {
	out    *sink
	header http.Header
	limit  int // of one message
	buf    []byte
	over   bool // a message was longer: nothing more of the answer is taken
}

var errTooLong = errors.New("a message of the answer is too long for a batch")

func (b *batchWriter) Header() http.Header { return b.header }
func (b *batchWriter) WriteHeader(int)     {}
func (b *batchWriter) Flush()              {}

func (b *batchWriter) Write(p []byte) (int, error) {
	if b.over = b.over || len(b.buf)+len(p) > b.limit; b.over {
		b.buf = nil
		return 0, errTooLong
	}
	b.buf = append(b.buf, p...)
	if mcp.MediaType(b.header) != mcp.TypeStream {
		return len(p), nil
	}
	for looked := max(0, len(b.buf)-len(p)-3); ; looked = 0 {
		end, size := eventEnd(b.buf[looked:])
		if end < 0 {
			return len(p), nil
		}
		end += looked
		events := mcp.NewEventReader(bytes.NewReader(b.buf[:end+size]), 0)
		for {
			ev, err := events.Next()
			if err != nil {
				break
			}
			if len(ev.Data) > 0 { // ids and retry hints are another stream's
				b.out.message(bytes.Clone(ev.Data))
			}
		}
		b.buf = b.buf[end+size:]
	}
}

// eventEnd finds the first empty line.
func eventEnd(b []byte) (at, size int) {
	for _, end := range []string{"\n\n", "\r\n\r\n", "\r\r"} {
		if i := bytes.Index(b, []byte(end)); i >= 0 && (size == 0 || i < at) {
			at, size = i, len(end)
		}
	}
	if size == 0 {
		return -1, 0
	}
	return at, size
}

func (b *batchWriter) finish(x *Request) {
	if b.over {
		b.buf = x.fail(http.StatusBadGateway, mcp.CodeInternal, "%v: it has more than %d bytes", errTooLong, b.limit).Append(nil)
	}
	if mcp.MediaType(b.header) == mcp.TypeStream && !bytes.HasPrefix(b.buf, []byte("{")) {
		return
	}
	if raw := bytes.TrimSpace(b.buf); len(raw) > 0 {
		b.out.message(raw)
	}
}

// discard takes an answer that nobody waits for.
type discard struct{ header http.Header }

func (d *discard) Header() http.Header         { return d.header }
func (d *discard) WriteHeader(int)             {}
func (d *discard) Write(p []byte) (int, error) { return len(p), nil }
