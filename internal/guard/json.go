package guard

import (
	"bytes"
	"errors"
	"strconv"
	"sync"
	"unicode/utf16"
	"unicode/utf8"
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

// decode appends the text of a string literal without its quotes. Half a surrogate pair becomes U+FFFD, as it does for
// those who read the message.
func decode(dst, raw []byte) []byte {
	for i := 0; i < len(raw); {
		n := bytes.IndexByte(raw[i:], '\\')
		if n < 0 {
			return append(dst, raw[i:]...)
		}
		dst = append(dst, raw[i:i+n]...)
		if i += n + 1; i >= len(raw) {
			return dst
		}
		c := raw[i]
		i++
		switch c {
		case 'b':
			c = '\b'
		case 'f':
			c = '\f'
		case 'n':
			c = '\n'
		case 'r':
			c = '\r'
		case 't':
			c = '\t'
		case 'u':
			r, ok := hex4(raw[i:])
			if !ok {
				continue
			}
			i += 4
			if utf16.IsSurrogate(r) {
				pair := rune(utf8.RuneError)
				if i+1 < len(raw) && raw[i] == '\\' && raw[i+1] == 'u' {
					if low, ok := hex4(raw[i+2:]); ok {
						if pair = utf16.DecodeRune(r, low); pair != utf8.RuneError {
							i += 6
						}
					}
				}
				r = pair
			}
			dst = utf8.AppendRune(dst, r)
			continue
		}
		dst = append(dst, c)
	}
	return dst
}

func hex4(b []byte) (rune, bool) {
	if len(b) < 4 {
		return 0, false
	}
	var r rune
	for _, c := range b[:4] {
		switch {
		case isDigit(c):
			c -= '0'
		case 'a' <= c && c <= 'f':
			c -= 'a' - 10
		case 'A' <= c && c <= 'F':
			c -= 'A' - 10
		default:
			return 0, false
		}
		r = r<<4 | rune(c)
	}
	return r, true
}

// AppendString appends text as a JSON string literal. It escapes what JSON demands and nothing else; bytes that are no
// UTF-8 become U+FFFD.
func AppendString(dst, text []byte) []byte {
	const hex = "0123456789abcdef"
	dst = append(dst, '"')
	from := 0
	for i := 0; i < len(text); {
		c := text[i]
		if c >= utf8.RuneSelf {
			r, n := utf8.DecodeRune(text[i:])
			if r == utf8.RuneError && n <= 1 {
				dst = append(append(dst, text[from:i]...), "\ufffd"...)
				from = i + 1
			}
			i += n
			continue
		}
		if c >= ' ' && c != '"' && c != '\\' {
			i++
			continue
		}
		dst = append(dst, text[from:i]...)
		switch c {
		case '"', '\\':
			dst = append(dst, '\\', c)
		case '\n':
			dst = append(dst, `\n`...)
		case '\r':
			dst = append(dst, `\r`...)
		case '\t':
			dst = append(dst, `\t`...)
		default:
			dst = append(dst, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
		}
		i++
		from = i
	}
	return append(append(dst, text[from:]...), '"')
}

// appendPointer appends one step of a JSON Pointer.
func appendPointer(dst, name []byte) []byte {
	dst = append(dst, '/')
	for _, c := range name {
		switch c {
		case '~':
			dst = append(dst, "~0"...)
		case '/':
			dst = append(dst, "~1"...)
		default:
			dst = append(dst, c)
		}
	}
	return dst
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
