package mcp

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strconv"
	"time"
	"unicode/utf8"
)

// An Event of an event stream, or a comment between events. Slices are valid until the next call of
// [EventReader.Next].
type Event struct {
	ID       []byte // last id line; meaningful if HasID, "" clears the client's last id
	HasID    bool
	Type     []byte // last event line; empty means "message"
	Data     []byte // data lines, joined by newlines
	HasData  bool   // there was a data line, perhaps an empty one (a priming event)
	Retry    time.Duration
	HasRetry bool
	Comment  []byte // of a comment: its text; all else is zero then. Lines are told one by one
	IsNote   bool   // it is a comment
}

// maxPlace is the longest id of an event that is remembered to come back with.
const maxPlace = 16 << 10

// Place is the event's id as it is kept to come back with. One that is longer than a server needs, or could take in a header, is
// kept as "": who comes back begins anew.
func (e *Event) Place() []byte {
	if len(e.ID) > maxPlace {
		return nil
	}
	return e.ID
}

// IsMessage reports whether e carries a JSON-RPC message. Events of other types are none of MCP's, which readers ignore.
func (e *Event) IsMessage() bool {
	return len(e.Data) > 0 && (len(e.Type) == 0 || string(e.Type) == "message")
}

// ErrEventTooLarge is what an [EventReader] says of an event that is larger than it may be.
var ErrEventTooLarge = errors.New("mcp: event in the stream is too large")

// An EventReader reads server-sent events as the HTML standard says: LF, CR or CRLF, an optional byte order
// mark, unknown fields ignored. A comment is told as soon as its line ends, an event with its empty line, so
// that nothing waits for bytes that may be long in coming.
type EventReader struct {
	r    io.Reader
	max  int
	buf  []byte // read but not yet used: buf[from:to]
	from int
	to   int
	err  error // of r, told once buf is used up

	line    []byte // an incomplete line, or one that crossed reads
	started bool   // past where a byte order mark may stand
	skipLF  bool   // the last line ended in CR
	open    bool   // ev holds fields of an event that has not ended
	told    bool   // the last call returned ev: begin anew
	ev      Event
	id, typ []byte
	data    []byte
}

const readSize = 4 << 10 // of one read: parked streams keep this much

// NewEventReader reads from r; an event may have max bytes (if zero, 16 MiB).
func NewEventReader(r io.Reader, max int) *EventReader {
	return &EventReader{r: r, max: limit(max, defaultBytes, maxBytes)}
}

// Next returns the next event or comment. At the end it returns io.EOF, or io.ErrUnexpectedEOF if the stream
// broke off in a line or before an event's data; an event whose lines are complete but for the empty one is
// told, as clients do. Other errors are the reader's, or [ErrEventTooLarge].
func (r *EventReader) Next() (Event, error) {
	if r.told {
		r.reset()
	}
	for {
		line, err := r.readLine()
		if err != nil {
			if err == io.EOF && r.open {
				if r.ev.HasData && len(line) == 0 {
					return r.tell(), nil
				}
				err = io.ErrUnexpectedEOF
			} else if err == io.EOF && len(line) > 0 {
				err = io.ErrUnexpectedEOF
			}
			return Event{}, err
		}
		switch {
		case len(line) == 0:
			if r.open {
				return r.tell(), nil
			}
		case line[0] == ':':
			return Event{IsNote: true, Comment: bytes.TrimPrefix(line[1:], []byte(" "))}, nil
		default:
			if err := r.field(line); err != nil {
				return Event{}, err
			}
		}
	}
}

// tell hands out the event.
func (r *EventReader) tell() Event {
	r.told = true
	r.ev.ID, r.ev.Type, r.ev.Data = r.id, r.typ, r.data
	if n := len(r.data); n > 0 {
		r.ev.Data = r.data[: n-1 : n-1] // each data line added a newline; the last one is not part of it
	}
	return r.ev
}

func (r *EventReader) reset() {
	const keep = 64 << 10 // a large event's buffer is not kept through a quiet hour
	if cap(r.data) > keep {
		r.data = nil
	}
	if cap(r.line) > keep {
		r.line = nil
	}
	r.told, r.open, r.ev = false, false, Event{}
	r.id, r.typ, r.data = r.id[:0], r.typ[:0], r.data[:0]
}

func (r *EventReader) field(line []byte) error {
	name, value, _ := bytes.Cut(line, []byte(":"))
	value = bytes.TrimPrefix(value, []byte(" "))
	if len(r.id)+len(r.typ)+len(r.data)+len(line) > r.max {
		return fmt.Errorf("%w: more than %d bytes", ErrEventTooLarge, r.max)
	}
	switch string(name) {
	case "data":
		r.data = append(append(r.data, value...), '\n')
		r.ev.HasData, r.open = true, true
	case "event":
		r.typ, r.open = append(r.typ[:0], value...), r.open || len(value) > 0 // an empty type is the default one
	case "id":
		if bytes.IndexByte(value, 0) < 0 {
			r.id, r.open = append(r.id[:0], value...), true
			r.ev.HasID = true
		}
	case "retry":
		if ms, err := strconv.ParseUint(string(value), 10, 31); err == nil && value[0] != '+' {
			r.ev.Retry, r.ev.HasRetry, r.open = time.Duration(ms)*time.Millisecond, true, true
		}
	}
	return nil
}

// readLine returns the next line without its end; it is valid until the next call. With an error, it is what
// there was of a line.
func (r *EventReader) readLine() ([]byte, error) {
	r.line = r.line[:0]
	for {
		if r.skipLF && r.from < r.to {
			r.skipLF = false
			if r.buf[r.from] == '\n' {
				r.from++
			}
		}
		rest := r.buf[r.from:r.to]
		if n := lineEnd(rest); n < len(rest) {
			r.skipLF = rest[n] == '\r'
			r.from += n + 1
			line := rest[:n]
			if len(r.line) > 0 {
				r.line = append(r.line, line...)
				line = r.line
			}
			if len(line) > r.max {
				return nil, fmt.Errorf("%w: more than %d bytes", ErrEventTooLarge, r.max)
			}
			if !r.started {
				r.started = true
				line = bytes.TrimPrefix(line, []byte("\ufeff"))
			}
			return line, nil
		}
		r.line = append(r.line, rest...)
		r.from, r.to = 0, 0
		if len(r.line) > r.max {
			return nil, fmt.Errorf("%w: more than %d bytes", ErrEventTooLarge, r.max)
		}
		if r.err != nil {
			return r.line, r.err
		}
		if r.buf == nil {
			r.buf = make([]byte, readSize)
		}
		if r.to, r.err = r.r.Read(r.buf); r.to == 0 && r.err == nil {
			r.err = r.again()
		}
	}
}

// again reads on where a read brought nothing and no error.
func (r *EventReader) again() (err error) {
	for range 100 {
		if r.to, err = r.r.Read(r.buf); r.to > 0 || err != nil {
			return err
		}
	}
	return io.ErrNoProgress
}

// EndsEvent reports whether b, the last bytes of a stream, ends between two events: an empty line came last, whatever ends lines.
func EndsEvent(b []byte) bool {
	return bytes.HasSuffix(b, []byte("\n\n")) || bytes.HasSuffix(b, []byte("\r\r")) || bytes.HasSuffix(b, []byte("\r\n\r\n"))
}

// lineEnd is the index of the first CR or LF, len(b) if there is none.
func lineEnd(b []byte) int {
	n := bytes.IndexByte(b, '\n')
	if n < 0 {
		n = len(b)
	}
	if cr := bytes.IndexByte(b[:n], '\r'); cr >= 0 {
		return cr
	}
	return n
}

// An EventWriter writes server-sent events: each with one Write, flushed at once. It is not safe for concurrent
// use: who keeps a stream alive with comments while another writes events holds a lock.
type EventWriter struct {
	w     io.Writer
	flush func() error
	buf   []byte
}

// NewEventWriter writes to w. flush is called after each event, e.g. http.ResponseController.Flush; nil: never.
func NewEventWriter(w io.Writer, flush func() error) *EventWriter {
	return &EventWriter{w: w, flush: flush}
}

// Write writes one event or comment. Data may hold line ends: each line becomes one of its own. An id or type
// that holds a line end, or an id with NUL, is refused, for it would forge fields; so is text that is no UTF-8.
func (w *EventWriter) Write(e Event) error {
	b := w.buf[:0]
	if e.IsNote {
		b = appendLines(b, ": ", e.Comment)
		return w.send(append(b, '\n'))
	}
	if bytes.ContainsAny(e.ID, "\r\n\x00") || bytes.ContainsAny(e.Type, "\r\n") || !utf8.Valid(e.ID) || !utf8.Valid(e.Type) {
		return fmt.Errorf("mcp: event id %q or type %q cannot be written: it holds a line end, NUL or bad UTF-8", clip(e.ID), clip(e.Type))
	}
	if len(e.Type) > 0 {
		b = append(append(append(b, "event: "...), e.Type...), '\n')
	}
	if e.HasID || len(e.ID) > 0 {
		b = append(append(append(b, "id: "...), e.ID...), '\n')
	}
	if e.HasRetry {
		b = append(strconv.AppendInt(append(b, "retry: "...), max(0, e.Retry.Milliseconds()), 10), '\n')
	}
	if e.HasData || len(e.Data) > 0 {
		b = appendLines(b, "data: ", e.Data)
	}
	return w.send(append(b, '\n'))
}

// Message writes one JSON-RPC message as an event of type "message" without an id.
func (w *EventWriter) Message(raw []byte) error {
	return w.Write(Event{Type: []byte("message"), Data: raw, HasData: true})
}

// Comment writes a comment, which keeps an idle stream open.
func (w *EventWriter) Comment(text string) error {
	return w.Write(Event{IsNote: true, Comment: []byte(text)})
}

func appendLines(dst []byte, prefix string, text []byte) []byte {
	for {
		n := lineEnd(text)
		dst = append(append(append(dst, prefix...), text[:n]...), '\n')
		if n == len(text) {
			return dst
		}
		if text[n] == '\r' && n+1 < len(text) && text[n+1] == '\n' {
			n++
		}
		text = text[n+1:]
	}
}

func (w *EventWriter) send(b []byte) error {
	if _, err := w.w.Write(b); err != nil {
		return err
	}
	if w.buf = b; cap(b) > 64<<10 {
		w.buf = nil
	}
	if w.flush == nil {
		return nil
	}
	return w.flush()
}
