package mux

import (
	"bytes"
	"errors"
	"net/http"
	"slices"

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
			part := &batchWriter{out: out, header: http.Header{}, limits: m.cfg.Limits}
			var err error
			defer func() {
				// An answer that broke off is told as an error of its own, the others go on.
				if r := recover(); r != nil && r != http.ErrAbortHandler {
					panic(r)
				} else if r != nil {
					err = one.fail(http.StatusBadGateway, mcp.CodeInternal, "the answer broke off")
				}
				if one.Message.Kind == mcp.Request {
					part.finish(one, err)
				}
			}()
			err = m.message(part, one)
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
	out      *sink
	header   http.Header
	limits   mcp.Limits // of one message
	buf      []byte
	over     bool // a message was longer: nothing more of the answer is taken
	answered bool // the response was among the events
}

var errTooLong = errors.New("a message of the answer is too long for a batch")

func (b *batchWriter) Header() http.Header { return b.header }
func (b *batchWriter) WriteHeader(int)     {}
func (b *batchWriter) Flush()              {}

func (b *batchWriter) Write(p []byte) (int, error) {
	if b.over = b.over || len(b.buf)+len(p) > b.limits.MaxBytes(); b.over {
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
		b.pass(b.buf[:end+size])
		b.buf = b.buf[end+size:]
	}
}

// pass puts the messages of events on the batch's stream. Ids and retry hints are another stream's.
func (b *batchWriter) pass(stream []byte) {
	events := mcp.NewEventReader(bytes.NewReader(stream), 0)
	for {
		ev, err := events.Next()
		if err != nil {
			return
		}
		if len(ev.Data) > 0 {
			b.answered = b.answered || b.answers(ev.Data)
			b.out.message(bytes.Clone(ev.Data))
		}
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

// answers reports whether an event holds the response.
func (b *batchWriter) answers(event []byte) bool {
	msg, err := mcp.Scan(event, b.limits)
	if err != nil || msg.Kind != mcp.Batch {
		return err == nil && msg.Kind == mcp.Response
	}
	all, err := mcp.ScanBatch(event, b.limits)
	return err == nil && slices.ContainsFunc(all, func(one mcp.Message) bool { return one.Kind == mcp.Response })
}

// finish puts the response, if it has not gone by: the body, or why there is none. Nobody can come back for it.
func (b *batchWriter) finish(x *Request, err error) {
	body, stream := bytes.TrimSpace(b.buf), mcp.MediaType(b.header) == mcp.TypeStream
	if stream && err == nil {
		b.pass(b.buf) // the last event may lack its empty line
	}
	switch {
	case b.answered:
		return
	case b.over:
		body = x.fail(http.StatusBadGateway, mcp.CodeInternal, "%v: it has more than %d bytes", errTooLong, b.limits.MaxBytes()).Append(nil)
	case err != nil:
		body = x.readdressed(err).Append(nil)
	case stream || len(body) == 0:
		body = x.fail(http.StatusBadGateway, mcp.CodeInternal, "the answer ended without a response; the call may have been processed").Append(nil)
	}
	b.out.message(body)
}

// discard takes an answer that nobody waits for.
type discard struct{ header http.Header }

func (d *discard) Header() http.Header         { return d.header }
func (d *discard) WriteHeader(int)             {}
func (d *discard) Write(p []byte) (int, error) { return len(p), nil }
