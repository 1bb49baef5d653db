package mcp

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// show writes an event down in one line.
func show(e Event) string {
	if e.IsNote {
		return fmt.Sprintf("note %q", e.Comment)
	}
	var parts []string
	if e.HasID {
		parts = append(parts, fmt.Sprintf("id %q", e.ID))
	}
	if len(e.Type) > 0 {
		parts = append(parts, fmt.Sprintf("type %q", e.Type))
	}
	if e.HasRetry {
		parts = append(parts, fmt.Sprintf("retry %v", e.Retry))
	}
	if e.HasData {
		parts = append(parts, fmt.Sprintf("data %q", e.Data))
	}
	return strings.Join(parts, ", ")
}

// readAll reads all events; the last entry is the error.
func readAll(r io.Reader, max int) []string {
	var out []string
	for events := NewEventReader(r, max); ; {
		e, err := events.Next()
		if err != nil {
			return append(out, err.Error())
		}
		out = append(out, show(e))
	}
}

var streams = []struct {
	name, in string
	want     []string
}{
	{"plain", "data: a\n\ndata: b\n\n", []string{`data "a"`, `data "b"`, "EOF"}},
	{"all fields", "event: message\nid: 1\nretry: 1500\ndata: {\"a\":\ndata:1}\n\n", []string{`id "1", type "message", retry 1.5s, data "{\"a\":\n1}"`, "EOF"}},
	{"CRLF", "id: 1\r\ndata: a\r\ndata: b\r\n\r\ndata: c\r\n\r\n", []string{`id "1", data "a\nb"`, `data "c"`, "EOF"}},
	{"CR", "id: 1\rdata: a\r\rdata: c\r\r", []string{`id "1", data "a"`, `data "c"`, "EOF"}},
	{"mixed", "data: a\r\ndata: b\rdata: c\n\r\n\n\rdata: d\n\n", []string{`data "a\nb\nc"`, `data "d"`, "EOF"}},
	{"comments", ":\n: ping\n\ndata: a\n:in  between\n\n", []string{`note ""`, `note "ping"`, `note "in  between"`, `data "a"`, "EOF"}},
	{"priming", "id: 7\ndata: \n\nid: 8\ndata\n\n", []string{`id "7", data ""`, `id "8", data ""`, "EOF"}},
	{"id alone, id cleared", "id: 7\n\nid\n\n", []string{`id "7"`, `id ""`, "EOF"}},
	{"no space, two spaces", "data:a\ndata:  b\n\n", []string{`data "a\n b"`, "EOF"}},
	{"empty lines in data", "data:\ndata:\ndata: x\ndata:\n\n", []string{`data "\n\nx\n"`, "EOF"}},
	{"mark", "\ufeffdata: a\n\n\ufeffdata: b\n\n", []string{`data "a"`, "EOF"}},
	{"unknown fields", "foo: 1\nDATA: x\n data: y\n\ndata: a\n\n", []string{`data "a"`, "EOF"}},
	{"bad retry, id with NUL", "retry: 1x\nid: a\x00b\nretry: -1\nretry: +1\nretry:\ndata: a\n\n", []string{`data "a"`, "EOF"}},
	{"last of each field", "id: 1\nid: 2\nevent: a\nevent: b\ndata: a\n\n", []string{`id "2", type "b", data "a"`, "EOF"}},
	{"nothing", "", []string{"EOF"}},
	{"empty lines", "\n\r\n\r", []string{"EOF"}},
	{"ends without the empty line", "data: a\n\nid: 3\ndata: b\n", []string{`data "a"`, `id "3", data "b"`, "EOF"}},
	{"breaks off before the data", "id: 3\n", []string{"unexpected EOF"}},
	{"breaks off in a line", "data: a\n\ndata: b", []string{`data "a"`, "unexpected EOF"}},
	{"breaks off in the next line", "data: a\ndata: b", []string{"unexpected EOF"}},
	{"breaks off in a comment", ": a", []string{"unexpected EOF"}},
}

func TestEventReaderWhateverTheBorders(t *testing.T) {
	for _, tt := range streams {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, readAll(strings.NewReader(tt.in), 0)); diff != "" {
				t.Errorf("whole (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(tt.want, readAll(iotest.OneByteReader(strings.NewReader(tt.in)), 0)); diff != "" {
				t.Errorf("byte by byte (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(tt.want, readAll(iotest.DataErrReader(strings.NewReader(tt.in)), 0)); diff != "" {
				t.Errorf("with data and error at once (-want +got):\n%s", diff)
			}
			for cut := range tt.in {
				r := io.MultiReader(strings.NewReader(tt.in[:cut]), strings.NewReader(tt.in[cut:]))
				if diff := cmp.Diff(tt.want, readAll(r, 0)); diff != "" {
					t.Fatalf("cut at %d (-want +got):\n%s", cut, diff)
				}
			}
		})
	}
}

// A line that ended in CR must not wait for the LF that may follow.
func TestEventReaderWaitsForNothing(t *testing.T) {
	pr, pw := io.Pipe()
	events := NewEventReader(pr, 0)
	for _, part := range []string{"data: a\r\r", "\n: note\r", "\ndata: b\n\n"} {
		go io.WriteString(pw, part)
		if _, err := events.Next(); err != nil {
			t.Fatal(err)
		}
	}
	pw.CloseWithError(io.ErrClosedPipe)
	if _, err := events.Next(); err != io.ErrClosedPipe {
		t.Errorf("error %v is not the reader's", err)
	}
}

func TestEventReaderBounds(t *testing.T) {
	long := strings.Repeat("x", 20_000)
	for _, tt := range []struct {
		name, in string
		good     bool
	}{
		{"fits", "data: " + long[:9_000] + "\n\n", true},
		{"one line", "data: " + long + "\n\n", false},
		{"a line without an end", "data: " + long + long, false},
		{"many lines", strings.Repeat("data: "+long[:1000]+"\n", 11) + "\n", false},
		{"many empty lines of data", strings.Repeat("data\n", 20_000) + "\n", false},
		{"long comment", ":" + long + "\n", false},
		{"many events", strings.Repeat("data: "+long[:1000]+"\n\n", 50), true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			events, err := NewEventReader(strings.NewReader(tt.in), 10_000), error(nil)
			for err == nil {
				_, err = events.Next()
			}
			if good := err == io.EOF; good != tt.good || !good && !errors.Is(err, ErrEventTooLarge) {
				t.Errorf("error %v, want good %v", err, tt.good)
			}
		})
	}
	if _, err := NewEventReader(iotest.TimeoutReader(strings.NewReader("data: a")), 0).Next(); err != iotest.ErrTimeout {
		t.Errorf("error %v is not the reader's", err)
	}
	if _, err := NewEventReader(idle{}, 0).Next(); err != io.ErrNoProgress {
		t.Errorf("error %v for a reader that brings nothing", err)
	}
}

type idle struct{}

func (idle) Read([]byte) (int, error) { return 0, nil }

func TestEventWriter(t *testing.T) {
	for _, tt := range []struct {
		name  string
		event Event
		want  string
	}{
		{"message", Event{Type: []byte("message"), Data: []byte(`{"a":1}`), HasData: true}, "event: message\ndata: {\"a\":1}\n\n"},
		{"all", Event{ID: []byte("7"), Type: []byte("t"), Retry: 1500 * time.Millisecond, HasRetry: true, Data: []byte("a")}, "event: t\nid: 7\nretry: 1500\ndata: a\n\n"},
		{"priming", Event{ID: []byte("7"), HasID: true, HasData: true}, "id: 7\ndata: \n\n"},
		{"no data", Event{ID: []byte("7"), HasID: true}, "id: 7\n\n"},
		{"lines", Event{Data: []byte("{\n\"id: x\":\r\n1\r}\n")}, "data: {\ndata: \"id: x\":\ndata: 1\ndata: }\ndata: \n\n"},
		{"comment", Event{IsNote: true, Comment: []byte("keep\nalive\r\r\ndata: x")}, ": keep\n: alive\n: \n: data: x\n\n"},
		{"empty comment", Event{IsNote: true}, ": \n\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var out bytes.Buffer
			flushed := 0
			w := NewEventWriter(&out, func() error { flushed++; return nil })
			if err := w.Write(tt.event); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, out.String()); diff != "" || flushed != 1 {
				t.Errorf("flushed %d times; wrote (-want +got):\n%s", flushed, diff)
			}
		})
	}
	for _, bad := range []Event{
		{ID: []byte("a\nb")}, {ID: []byte("a\rb")}, {ID: []byte("a\x00")}, {ID: []byte("\xff")}, {Type: []byte("a\ndata: forged")}, {Type: []byte("\xff")},
	} {
		var out bytes.Buffer
		if err := NewEventWriter(&out, nil).Write(bad); err == nil || out.Len() > 0 {
			t.Errorf("%+v was written as %q (%v)", bad, out.String(), err)
		}
	}
	var out bytes.Buffer
	w := NewEventWriter(&out, nil)
	if err := errors.Join(w.Message([]byte("{}")), w.Comment("")); err != nil || out.String() != "event: message\ndata: {}\n\n: \n\n" {
		t.Errorf("wrote %q (%v)", out.String(), err)
	}
	broken := errors.New("broken")
	if err := NewEventWriter(io.Discard, func() error { return broken }).Comment(""); err != broken {
		t.Errorf("error %v is not the flush's", err)
	}
}
