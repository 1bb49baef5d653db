package guard

import (
	"bytes"
	"errors"
	"strconv"
	"sync"
)

// ErrJSON is said of a message that is no JSON, or is nested deeper than any that the proxy takes.
var ErrJSON = errors.New("guard: the message is no JSON that can be read")

// maxDepth bounds recursion; the proxy's own limit of messages is not above it.
const maxDepth = 1024

// A visit is one value that may hold text: from to to are its bytes in the message, with quotes.
type visit struct {
	from, to int
	text     []byte // decoded; valid during the visit
	name     []byte // decoded name of the member it stands in; nil: none
	path     []byte // JSON Pointer (RFC 6901), if it is asked for
	kind     visitKind
}

// A visitor is shown what may hold text; false ends the walk.
type visitor interface{ visit(*visit) bool }

type visitKind uint8

const (
	visitString visitKind = iota
	visitName
	visitNumber
)

// A walker goes over one JSON text once and shows what stands in the places of a shape. It takes the grammar as given
// where that costs nothing to get wrong: messages were scanned before they get here.
type walker struct {
	b       []byte
	to      visitor
	all     bool   // names and numbers too, where the shape is free
	paths   bool   // keep path
	path    []byte // JSON Pointer of where the walk is
	depth   int
	stopped bool
	v       visit
	scratch []byte // decoded strings
}

var walkers = sync.Pool{New: func() any { return &walker{} }}

// walk shows all text of message in the places of shape to v; with all, names and numbers too, and with paths, where they
// stand.
func walk(message []byte, shape *Shape, all, paths bool, v visitor) error {
	w := walkers.Get().(*walker)
	*w = walker{b: message, to: v, all: all, paths: paths, path: w.path[:0], scratch: w.scratch[:0]}
	i := w.value(w.space(0), shape, nil)
	bad := !w.stopped && (i < 0 || w.space(i) != len(message))
	w.b, w.to, w.v = nil, nil, visit{}
	if cap(w.scratch) > 64<<10 { // a large string's buffer is not kept
		w.scratch = nil
	}
	walkers.Put(w)
	if bad {
		return ErrJSON
	}
	return nil
}

// value goes over the value at i and returns the index past it, or a negative one.
func (w *walker) value(i int, s *Shape, name []byte) int {
	if i < 0 || i >= len(w.b) {
		return -1
	}
	if s.nothing() {
		return w.skip(i)
	}
	switch w.b[i] {
	case '{':
		return w.object(i, s)
	case '[':
		return w.array(i, s, name)
	case '"':
		end := stringEnd(w.b, i)
		if end > 0 && s.looks(w.b[i+1:end-1]) && !w.show(visit{from: i, to: end, name: name, kind: visitString}) {
			return -1
		}
		return end
	}
	end := literalEnd(w.b, i)
	if w.all && s.free && end > i && (w.b[i] == '-' || isDigit(w.b[i])) {
		w.v = visit{from: i, to: end, text: w.b[i:end], name: name, path: w.path, kind: visitNumber}
		if !w.to.visit(&w.v) {
			w.stopped = true
			return -1
		}
	}
	return end
}

// show visits the string at v.
func (w *walker) show(v visit) bool {
	w.v = v
	w.v.text, w.v.path = w.b[v.from+1:v.to-1], w.path
	if bytes.IndexByte(w.v.text, '\\') >= 0 {
		w.scratch = decode(w.scratch[:0], w.v.text)
		w.v.text = w.scratch
	}
	if !w.to.visit(&w.v) {
		w.stopped = true
		return false
	}
	return true
}

func (w *walker) object(i int, s *Shape) int {
	if w.depth++; w.depth > maxDepth {
		return -1
	}
	path := len(w.path)
	i = w.space(i + 1)
	if i < len(w.b) && w.b[i] == '}' {
		w.depth--
		return i + 1
	}
	for i < len(w.b) && w.b[i] == '"' {
		end := stringEnd(w.b, i)
		if end < 0 {
			return -1
		}
		name := w.b[i+1 : end-1]
		if bytes.IndexByte(name, '\\') >= 0 {
			name = decode(make([]byte, 0, len(name)), name)
		}
		if w.all && s.free && !s.known(name) && !w.show(visit{from: i, to: end, name: name, kind: visitName}) {
			return -1
		}
		i = w.space(end)
		if i >= len(w.b) || w.b[i] != ':' {
			return -1
		}
		if w.paths {
			w.path = appendPointer(w.path[:path], name)
		}
		if i = w.value(w.space(i+1), s.member(name), name); i < 0 {
			return -1
		}
		i = w.space(i)
		if i >= len(w.b) {
			return -1
		}
		if w.b[i] == '}' {
			w.depth--
			w.path = w.path[:path]
			return i + 1
		}
		if w.b[i] != ',' {
			return -1
		}
		i = w.space(i + 1)
	}
	return -1
}

// array: the elements stand where the array does.
func (w *walker) array(i int, s *Shape, name []byte) int {
	if w.depth++; w.depth > maxDepth {
		return -1
	}
	path := len(w.path)
	i = w.space(i + 1)
	if i < len(w.b) && w.b[i] == ']' {
		w.depth--
		return i + 1
	}
	for n := 0; ; n++ {
		if w.paths {
			w.path = strconv.AppendInt(append(w.path[:path], '/'), int64(n), 10)
		}
		if i = w.value(i, s, name); i < 0 {
			return -1
		}
		i = w.space(i)
		if i >= len(w.b) {
			return -1
		}
		if w.b[i] == ']' {
			w.depth--
			w.path = w.path[:path]
			return i + 1
		}
		if w.b[i] != ',' {
			return -1
		}
		i = w.space(i + 1)
	}
}

// skip is the index past the value at i, of which nothing is looked at.
func (w *walker) skip(i int) int {
	b := w.b
	depth := 0
	for i < len(b) {
		switch b[i] {
		case '"':
			if i = stringEnd(b, i); i < 0 {
				return -1
			}
		case '{', '[':
			depth++
			i++
		case '}', ']':
			depth--
			i++
		case ',', ':', ' ', '\t', '\r', '\n':
			i++
			continue
		default:
			end := literalEnd(b, i)
			if end == i {
				return -1
			}
			i = end
		}
		if depth <= 0 {
			break
		}
	}
	if depth != 0 {
		return -1
	}
	return i
}

func (w *walker) space(i int) int {
	b := w.b
	for i >= 0 && i < len(b) && (b[i] == ' ' || b[i] == '\n' || b[i] == '\r' || b[i] == '\t') {
		i++
	}
	return i
}

// literalEnd is the index past the number or word at i; i itself if there is none.
func literalEnd(b []byte, i int) int {
	for i < len(b) {
		switch c := b[i]; {
		case isAlnum(c), c == '-', c == '+', c == '.':
			i++
		default:
			return i
		}
	}
	return i
}

// stringEnd is the index past the closing quote of the string at i, negative if there is none.
func stringEnd(b []byte, i int) int {
	i++
	n := bytes.IndexByte(b[i:], '"')
	if n < 0 {
		return -1
	}
	slash := bytes.IndexByte(b[i:i+n], '\\')
	if slash < 0 {
		return i + n + 1
	}
	for i += slash; i < len(b); i++ {
		switch b[i] {
		case '\\':
			i++ // whatever it escapes: the rest of \uXXXX is plain
		case '"':
			return i + 1
		}
	}
	return -1
}

// Members shows each member of the object that raw is to f: its decoded name, and where its value stands in raw. The
// error is f's, or [ErrJSON].
func Members(raw []byte, f func(name []byte, from, to int) error) error {
	w := walker{b: raw}
	i := w.space(0)
	if i >= len(raw) || raw[i] != '{' {
		return ErrJSON
	}
	i = w.space(i + 1)
	for first := true; i < len(raw) && raw[i] != '}'; first = false {
		if !first {
			if raw[i] != ',' {
				return ErrJSON
			}
			i = w.space(i + 1)
		}
		if i >= len(raw) || raw[i] != '"' {
			return ErrJSON
		}
		end := stringEnd(raw, i)
		if end < 0 {
			return ErrJSON
		}
		name := decode(nil, raw[i+1:end-1])
		if i = w.space(end); i >= len(raw) || raw[i] != ':' {
			return ErrJSON
		}
		from := w.space(i + 1)
		if from >= len(raw) {
			return ErrJSON
		}
		to := w.skip(from)
		if to <= from {
			return ErrJSON
		}
		if err := f(name, from, to); err != nil {
			return err
		}
		i = w.space(to)
	}
	if i >= len(raw) || w.space(i+1) != len(raw) {
		return ErrJSON
	}
	return nil
}

func isDigit(c byte) bool  { return '0' <= c && c <= '9' }
func isLetter(c byte) bool { return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' }
func isAlnum(c byte) bool  { return isDigit(c) || isLetter(c) }
