package mcp

import (
	"encoding/binary"
	"math/bits"
	"unicode/utf8"
)

// A scanner checks JSON text and finds values in it. Its methods take the index where something begins and
// return the index just past it; a negative index means that s.syntax says what is wrong. It reads b once:
// whoever wants a value's members walks them instead of skipping the value.
type scanner struct {
	b        []byte
	maxDepth int
	depth    int                   // of open objects and arrays
	stack    [maxDepth / 64]uint64 // one bit for each open container: 1 is an object
	syntax   *Error                // the text is no JSON, or nested too deeply: nothing more can be read
	refused  *Error                // the text is JSON, but means nothing or two things
	scratch  []byte                // decoded strings that had escapes
	result   func(at int) int      // walks the result of a message; nil: it is skipped
}

const (
	each01 = 0x0101010101010101
	each80 = 0x80 * each01
)

// special marks which of eight bytes end a run of plain string bytes: with each80 applied, its lowest bit stands
// in the first control character, quote, backslash or byte of a multi-byte character. Bits above it may lie.
//
// For an ASCII byte c, c^2 < 0x21 exactly for the control characters and the quote, and (c^'\\')-1 borrows
// only for the backslash.
func special(w uint64) uint64 {
	return ((w ^ 0x02*each01) - 0x21*each01) | ((w ^ '\\'*each01) - each01) | w
}

// str scans a string from past its opening quote. escaped tells whether it holds a backslash.
func (s *scanner) str(i int) (end int, escaped bool) {
	if b := s.b; i+8 <= len(b) { // most strings are short names and words
		if hit := special(binary.LittleEndian.Uint64(b[i:])) & each80; hit != 0 {
			if j := i + bits.TrailingZeros64(hit)>>3; b[j] == '"' {
				return j + 1, false
			}
		}
	}
	return s.longStr(i)
}

func (s *scanner) longStr(i int) (end int, escaped bool) {
	b := s.b
	for {
		i = plainEnd(b, i)
		if i >= len(b) {
			return s.fail(i, "the body ends inside a string"), escaped
		}
		switch c := b[i]; {
		case c == '"':
			return i + 1, escaped
		case c == '\\':
			escaped = true
			n := escapeLen(b[i:])
			if n == 0 {
				return s.fail(i, "bad escape in a string"), escaped
			}
			i += n
		case c < 0x20:
			return s.fail(i, "control character in a string"), escaped
		default:
			n := runesLen(b[i:])
			if n == 0 {
				return s.fail(i, "invalid UTF-8"), escaped
			}
			i += n
		}
	}
}

// plainEnd is the index of the first byte from i on that is special in a string, len(b) if there is none. Most
// bytes of large bodies lie in long strings, so it takes four words at a time.
func plainEnd(b []byte, i int) int {
	for i+32 <= len(b) {
		p := b[i : i+32 : i+32]
		w0, w1 := binary.LittleEndian.Uint64(p), binary.LittleEndian.Uint64(p[8:])
		w2, w3 := binary.LittleEndian.Uint64(p[16:]), binary.LittleEndian.Uint64(p[24:])
		if (special(w0)|special(w1)|special(w2)|special(w3))&each80 != 0 {
			break
		}
		i += 32
	}
	for i+8 <= len(b) {
		if hit := special(binary.LittleEndian.Uint64(b[i:])) & each80; hit != 0 {
			return i + bits.TrailingZeros64(hit)>>3
		}
		i += 8
	}
	for i < len(b) && stringByte[b[i]] == stringPlain {
		i++
	}
	return i
}

// What a byte is inside a string.
const (
	stringPlain = iota
	stringSpecial
)

var stringByte = func() (t [256]uint8) {
	for c := range t {
		if c < 0x20 || c == '"' || c == '\\' || c >= 0x80 {
			t[c] = stringSpecial
		}
	}
	return t
}()

// escapeLen is the length of the escape at the start of p, 0 if it is none.
func escapeLen(p []byte) int {
	if len(p) < 2 {
		return 0
	}
	switch p[1] {
	case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
		return 2
	case 'u':
		if len(p) >= 6 && hex4(p[2:6]) >= 0 {
			return 6
		}
	}
	return 0
}

// hex4 is the value of four hexadecimal digits, or -1.
func hex4(p []byte) rune {
	var r rune
	for _, c := range p[:4] {
		switch {
		case '0' <= c && c <= '9':
			c -= '0'
		case 'a' <= c && c <= 'f':
			c -= 'a' - 10
		case 'A' <= c && c <= 'F':
			c -= 'A' - 10
		default:
			return -1
		}
		r = r<<4 | rune(c)
	}
	return r
}

// runesLen is the length of the multi-byte characters that p begins with, 0 if the first is not valid UTF-8.
func runesLen(p []byte) int {
	i := 0
	for i < len(p) && p[i] >= utf8.RuneSelf {
		// The common plane's three-byte characters, without those whose second byte is restricted.
		if c := p[i]; i+3 <= len(p) && 0xe1 <= c && c <= 0xec && p[i+1]&0xc0 == 0x80 && p[i+2]&0xc0 == 0x80 {
			i += 3
			continue
		}
		r, n := utf8.DecodeRune(p[i:])
		if r == utf8.RuneError && n <= 1 {
			if i == 0 {
				return 0
			}
			return i // the next call begins with it, and says so
		}
		i += n
	}
	return i
}

// decode returns the text of a string whose raw bytes, without quotes, are raw. It aliases raw where there are
// no escapes. ok is false if an escape names half of a surrogate pair, which is no character.
func (s *scanner) decode(raw []byte, escaped bool) (text []byte, ok bool) {
	if !escaped {
		return raw[:len(raw):len(raw)], true
	}
	from := len(s.scratch)
	s.scratch, ok = appendDecoded(s.scratch, raw)
	return s.scratch[from:len(s.scratch):len(s.scratch)], ok
}

// appendDecoded appends the text of raw, a checked string without its quotes.
func appendDecoded(dst, raw []byte) (_ []byte, ok bool) {
	ok = true
	if dst == nil {
		dst = make([]byte, 0, len(raw)) // never nil: nil is how Text says that there is no string
	}
	for i := 0; i < len(raw); {
		c := raw[i]
		if c != '\\' {
			dst = append(dst, c)
			i++
			continue
		}
		c = raw[i+1]
		i += 2
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
			r := hex4(raw[i:])
			i += 4
			if 0xd800 <= r && r < 0xe000 {
				var low rune = -1
				if r < 0xdc00 && i+6 <= len(raw) && raw[i] == '\\' && raw[i+1] == 'u' {
					low = hex4(raw[i+2:])
				}
				if 0xdc00 <= low && low < 0xe000 {
					r = (r-0xd800)<<10 | (low - 0xdc00) + 0x10000
					i += 6
				} else {
					r, ok = utf8.RuneError, false
				}
			}
			dst = utf8.AppendRune(dst, r)
			continue
		}
		dst = append(dst, c)
	}
	return dst, ok
}

// ws skips white space.
func (s *scanner) ws(i int) int {
	b := s.b
	for i < len(b) && b[i] <= ' ' && (b[i] == ' ' || b[i] == '\n' || b[i] == '\r' || b[i] == '\t') {
		i++
	}
	return i
}

// number scans a number.
func (s *scanner) number(i int) int {
	b := s.b
	if b[i] == '-' {
		i++
	}
	switch {
	case i < len(b) && b[i] == '0':
		i++
	case i < len(b) && '1' <= b[i] && b[i] <= '9':
		i = digits(b, i)
	default:
		return s.fail(i, "bad number")
	}
	if i < len(b) && b[i] == '.' {
		j := digits(b, i+1)
		if j == i+1 {
			return s.fail(j, "bad number")
		}
		i = j
	}
	if i < len(b) && (b[i] == 'e' || b[i] == 'E') {
		i++
		if i < len(b) && (b[i] == '+' || b[i] == '-') {
			i++
		}
		j := digits(b, i)
		if j == i {
			return s.fail(j, "bad number")
		}
		i = j
	}
	return i
}

func digits(b []byte, i int) int {
	for i < len(b) && '0' <= b[i] && b[i] <= '9' {
		i++
	}
	return i
}

// scalar scans a value that is no container.
func (s *scanner) scalar(i int) int {
	b := s.b
	if i >= len(b) {
		return s.fail(i, "the body ends where a value should stand")
	}
	switch c := b[i]; c {
	case '"':
		i, _ = s.str(i + 1)
		return i
	case 't':
		if i+4 <= len(b) && string(b[i:i+4]) == "true" {
			return i + 4
		}
	case 'f':
		if i+5 <= len(b) && string(b[i:i+5]) == "false" {
			return i + 5
		}
	case 'n':
		if i+4 <= len(b) && string(b[i:i+4]) == "null" {
			return i + 4
		}
	case '-', '0', '1', '2', '3', '4', '5', '6', '7', '8', '9':
		return s.number(i)
	}
	return s.fail(i, "no JSON value")
}

// skip scans one value of any type, and all inside it.
func (s *scanner) skip(i int) int {
	b, base := s.b, s.depth
	object := false // of the innermost open container, if there is one of ours
	for {
		// A value begins at i.
		switch {
		case i < len(b) && b[i] == '"':
			if i, _ = s.str(i + 1); i < 0 {
				return i
			}
		case i < len(b) && (b[i] == '{' || b[i] == '['):
			object = b[i] == '{'
			if i = s.open(i, object); i < 0 {
				return i
			}
			if i = s.ws(i); i >= len(b) || b[i] != closing(object) {
				if object {
					if i = s.key(i); i < 0 {
						return i
					}
				}
				continue
			}
			s.depth--
			i++
			object = s.inObject()
		default:
			if i = s.scalar(i); i < 0 {
				return i
			}
		}
		// A value ended before i: close containers, and go on to the next value.
		for s.depth > base {
			if i < len(b) && b[i] <= ' ' {
				i = s.ws(i)
			}
			if i < len(b) && b[i] == ',' {
				break
			}
			if i >= len(b) || b[i] != closing(object) {
				return s.fail(i, "',' or the end of an object or array is missing")
			}
			s.depth--
			i++
			object = s.inObject()
		}
		if s.depth == base {
			return i
		}
		if i++; i < len(b) && b[i] <= ' ' { // past the comma
			i = s.ws(i)
		}
		if object {
			if i = s.key(i); i < 0 {
				return i
			}
		}
	}
}

// inObject reports whether the innermost open container is an object.
func (s *scanner) inObject() bool {
	n := s.depth - 1
	return n >= 0 && s.stack[n/64]>>(n%64)&1 == 1
}

func closing(object bool) byte {
	if object {
		return '}'
	}
	return ']'
}

// open enters the container that begins at i.
func (s *scanner) open(i int, object bool) int {
	if s.depth >= s.maxDepth {
		s.syntax = refusal(400, CodeInvalidRequest, "the body is nested more than %d deep", s.maxDepth)
		return -1
	}
	bit := uint64(1) << (s.depth % 64)
	if object {
		s.stack[s.depth/64] |= bit
	} else {
		s.stack[s.depth/64] &^= bit
	}
	s.depth++
	return i + 1
}

// key scans a member's name and the colon, up to the value.
func (s *scanner) key(i int) int {
	if i >= len(s.b) || s.b[i] != '"' {
		return s.fail(i, "a member's name is missing")
	}
	i, _ = s.str(i + 1)
	if i < 0 {
		return i
	}
	return s.colon(i)
}

func (s *scanner) colon(i int) int {
	b := s.b
	if i+1 < len(b) && b[i] == ':' && b[i+1] > ' ' { // as most write it
		return i + 1
	}
	if i = s.ws(i); i >= len(b) || b[i] != ':' {
		return s.fail(i, "':' is missing")
	}
	return s.ws(i + 1)
}

// text scans a value that should be a string, and decodes it if it is one.
func (s *scanner) text(i int) (Text, int) {
	if i >= len(s.b) || s.b[i] != '"' {
		end := s.skip(i)
		return Text{Span: span(i, end)}, end
	}
	end, escaped := s.str(i + 1)
	if end < 0 {
		return Text{}, end
	}
	value, ok := s.decode(s.b[i+1:end-1], escaped)
	if !ok {
		s.refuse("a string that has to be read holds half a surrogate pair")
	}
	return Text{span(i, end), value}, end
}

// raw scans a value.
func (s *scanner) raw(i int) (Span, int) {
	end := s.skip(i)
	return span(i, end), end
}

func span(start, end int) Span {
	if end < 0 {
		return Span{}
	}
	return Span{int32(start), int32(end)}
}

// end checks that nothing but white space follows.
func (s *scanner) end(i int) int {
	if i < 0 {
		return i
	}
	if i = s.ws(i); i != len(s.b) {
		return s.fail(i, "bytes follow the JSON text")
	}
	return i
}

func (s *scanner) fail(at int, what string) int {
	s.syntax = refusal(400, CodeParse, "no valid JSON: %s (at byte %d)", what, at)
	return -1
}

// refuse remembers the first thing that is wrong beyond syntax; scanning goes on, so that bad syntax is told
// first and the id is found.
func (s *scanner) refuse(format string, args ...any) {
	if s.refused == nil {
		s.refused = refusal(400, CodeInvalidRequest, format, args...)
	}
}
