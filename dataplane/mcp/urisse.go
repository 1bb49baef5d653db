package mcp

import (
	"fmt"
	"io"
)

// A URIEventWriter passes an event stream on and rewrites the URIs in the messages on its data lines, as a
// [URIWriter] does. Comments, other fields and the form of the lines stay as they are, and each event is
// passed on as it comes. A message may stand on several data lines.
type URIEventWriter struct {
	json URIWriter
	line lineState
	name int  // bytes of "data" that the line began with
	bom  int  // bytes of a byte order mark that the stream began with; 3 or more: past it
	crlf bool // the last byte was a CR that ended a line
}

type lineState uint8

const (
	lineStart lineState = iota
	lineName            // so far it reads as the field data
	lineSpace           // past "data:", before the space that may follow
	lineData
	lineOther
)

// NewURIEventWriter writes to w what is written to it, with URIs as rewrite has them; see [NewURIWriter].
func NewURIEventWriter(w io.Writer, rewrite func(uri []byte) []byte) *URIEventWriter {
	return &URIEventWriter{json: URIWriter{w: w, rewrite: rewrite, next: root}}
}

// Write implements io.Writer. After an error all calls return it.
func (e *URIEventWriter) Write(p []byte) (int, error) { return e.json.write(p, e.feed) }

// Close says that the stream is over. It does not close the writer below. It fails if an event broke off.
func (e *URIEventWriter) Close() error {
	if e.json.err == nil && !e.json.fresh() {
		e.json.err = e.json.finish()
	}
	return e.json.err
}

func (e *URIEventWriter) feed(p []byte) error {
	for len(p) > 0 {
		if e.line == lineData {
			n := lineEnd(p)
			if err := e.json.feed(p[:n]); err != nil {
				return err
			}
			if p = p[n:]; len(p) == 0 {
				break
			}
		}
		if err := e.step(p[0]); err != nil {
			return err
		}
		p = p[1:]
	}
	return nil
}

// step takes one byte that is no part of a message.
func (e *URIEventWriter) step(c byte) error {
	const mark = "\ufeff"
	switch {
	case e.bom < len(mark) && e.line == lineStart && c == mark[e.bom]:
		e.bom++
		e.pass(c)
		return nil
	case e.crlf && c == '\n': // the second half of a line end
		e.crlf = false
		e.pass(c)
		return nil
	}
	e.bom, e.crlf = len(mark), c == '\r'
	if c == '\r' || c == '\n' {
		return e.endLine(c)
	}
	switch e.line {
	case lineStart, lineName:
		switch {
		case e.name < 4 && c == "data"[e.name]:
			e.line = lineName
			e.name++
		case e.name == 4 && c == ':':
			e.line = lineSpace
		default:
			e.line = lineOther
		}
	case lineSpace:
		e.line = lineData
		if c != ' ' {
			return e.json.feed([]byte{c})
		}
	}
	e.pass(c)
	return nil
}

// endLine is at the end of a line: of data, or of an event, if it is empty.
func (e *URIEventWriter) endLine(c byte) error {
	switch {
	case e.line == lineStart:
		if !e.json.fresh() {
			if err := e.json.finish(); err != nil {
				return err
			}
		}
		e.json.restart()
	case e.line == lineData:
		// The line end is part of the data, where it can only be white space.
		switch e.json.state {
		case inName, inURI, inString, inEscape:
			return fmt.Errorf("mcp: a line of an event ends inside a string")
		case inScalar:
			e.json.state = e.json.valueEnd()
		}
	}
	e.line, e.name = lineStart, 0
	e.pass(c)
	return nil
}

func (e *URIEventWriter) pass(c byte) { e.json.out = append(e.json.out, c) }
