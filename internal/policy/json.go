package policy

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/google/cel-go/common/types"
	"github.com/google/cel-go/common/types/ref"
)

const maxJSONDepth = 64

var errJSON = errors.New("is no strict JSON")

// readNames are the keys that rules read from an object that a stranger wrote.
type readNames struct {
	exact  map[string]bool
	folded map[string]bool
}

func (n *readNames) add(name string) {
	if n.exact == nil {
		n.exact, n.folded = map[string]bool{}, map[string]bool{}
	}
	n.exact[name], n.folded[fold(name)] = true, true
}

// disguises reports whether key is no name that is read, but one to a server that ignores case, as Go's are.
func (n *readNames) disguises(key string) bool {
	return n != nil && len(n.exact) > 0 && !n.exact[key] && n.folded[fold(key)]
}

// decodeObject reads a JSON object as map[string]any of nil, bool, string, int64, float64, []any and
// map[string]any: an integer that int64 holds is one, all other numbers are float64. It is strict where
// two parsers could differ in what they see: a key given twice, or one that names disguises, invalid
// UTF-8, a lone surrogate, a number beyond float64, trailing bytes.
func decodeObject(data []byte, names *readNames) (map[string]any, error) {
	p := parser{data: string(data), names: names} // one copy, which all strings share
	v, err := p.whole()
	if err != nil {
		return nil, err
	}
	return v.(map[string]any), nil
}

// decodeForRules is decodeObject as toCEL would have it, without making it twice.
func decodeForRules(data []byte, names *readNames) (ref.Val, error) {
	p := parser{data: string(data), names: names, forRules: true}
	v, err := p.whole()
	if err != nil {
		return nil, err
	}
	return v.(ref.Val), nil
}

type parser struct {
	data     string
	pos      int
	names    *readNames
	forRules bool // all values are ref.Val
}

func (p *parser) whole() (any, error) {
	p.space()
	if p.peek() != '{' {
		return nil, fmt.Errorf("%w: want an object", errJSON)
	}
	v, err := p.value(0)
	if err != nil {
		return nil, err
	}
	p.space()
	if p.pos != len(p.data) {
		return nil, p.wrong("bytes after the object")
	}
	return v, nil
}

func (p *parser) wrong(what string) error {
	return fmt.Errorf("%w: %s at byte %d", errJSON, what, p.pos)
}

// peek returns the next byte, or 0 at the end, which is nowhere valid.
func (p *parser) peek() byte {
	if p.pos < len(p.data) {
		return p.data[p.pos]
	}
	return 0
}

func (p *parser) space() {
	for p.pos < len(p.data) {
		switch p.data[p.pos] {
		case ' ', '\t', '\r', '\n':
			p.pos++
		default:
			return
		}
	}
}

func (p *parser) value(depth int) (any, error) {
	if depth > maxJSONDepth {
		return nil, p.wrong("nested too deep")
	}
	switch c := p.peek(); {
	case c == '{':
		return p.object(depth)
	case c == '[':
		if p.forRules {
			list, err := array[ref.Val](p, depth)
			return types.NewRefValList(types.DefaultTypeAdapter, list), err
		}
		list, err := array[any](p, depth)
		return list, err
	case c == '"':
		s, err := p.string()
		if p.forRules {
			return types.String(s), err
		}
		return s, err
	}
	v, err := p.scalar()
	if p.forRules {
		v = toCEL(v)
	}
	return v, err
}

// scalar reads a value that is neither object, array nor string.
func (p *parser) scalar() (any, error) {
	switch c := p.peek(); {
	case c == 't':
		return true, p.literal("true")
	case c == 'f':
		return false, p.literal("false")
	case c == 'n':
		return nil, p.literal("null")
	case c == '-' || '0' <= c && c <= '9':
		return p.number()
	}
	return nil, p.wrong("no value")
}

func (p *parser) literal(word string) error {
	if !strings.HasPrefix(p.data[p.pos:], word) {
		return p.wrong("no value")
	}
	p.pos += len(word)
	return nil
}

func (p *parser) object(depth int) (any, error) {
	m, err := p.members(depth)
	if err == nil && p.forRules {
		return types.NewStringInterfaceMap(types.DefaultTypeAdapter, m), nil
	}
	return m, err
}

func (p *parser) members(depth int) (map[string]any, error) {
	p.pos++ // {
	m := map[string]any{}
	p.space()
	if p.peek() == '}' {
		p.pos++
		return m, nil
	}
	for {
		p.space()
		if p.peek() != '"' {
			return nil, p.wrong("no key")
		}
		key, err := p.string()
		if err != nil {
			return nil, err
		}
		if _, twice := m[key]; twice {
			return nil, p.wrong("a key given twice")
		}
		if p.names.disguises(key) {
			return nil, p.wrong("a key that differs in case alone from one that a policy reads,")
		}
		p.space()
		if p.peek() != ':' {
			return nil, p.wrong("no colon")
		}
		p.pos++
		p.space()
		if m[key], err = p.value(depth + 1); err != nil {
			return nil, err
		}
		p.space()
		switch p.peek() {
		case ',':
			p.pos++
		case '}':
			p.pos++
			return m, nil
		default:
			return nil, p.wrong("no comma")
		}
	}
}

// array reads one of T, which is what value makes.
func array[T any](p *parser, depth int) ([]T, error) {
	p.pos++ // [
	list := []T{}
	p.space()
	if p.peek() == ']' {
		p.pos++
		return list, nil
	}
	for {
		p.space()
		v, err := p.value(depth + 1)
		if err != nil {
			return nil, err
		}
		e, _ := v.(T) // null is no any, but its zero value
		list = append(list, e)
		p.space()
		switch p.peek() {
		case ',':
			p.pos++
		case ']':
			p.pos++
			return list, nil
		default:
			return nil, p.wrong("no comma")
		}
	}
}

func (p *parser) number() (any, error) {
	start, integral := p.pos, true
	digits := func() bool {
		from := p.pos
		for c := p.peek(); '0' <= c && c <= '9'; c = p.peek() {
			p.pos++
		}
		return p.pos > from
	}
	if p.peek() == '-' {
		p.pos++
	}
	if p.peek() == '0' {
		p.pos++
	} else if !digits() {
		return nil, p.wrong("no number")
	}
	if p.peek() == '.' {
		p.pos++
		if integral = false; !digits() {
			return nil, p.wrong("no number")
		}
	}
	if c := p.peek(); c == 'e' || c == 'E' {
		p.pos++
		if c := p.peek(); c == '+' || c == '-' {
			p.pos++
		}
		if integral = false; !digits() {
			return nil, p.wrong("no number")
		}
	}
	text := p.data[start:p.pos]
	if integral {
		if i, err := strconv.ParseInt(text, 10, 64); err == nil {
			return i, nil
		}
	}
	f, err := strconv.ParseFloat(text, 64)
	if err != nil || math.IsInf(f, 0) {
		return nil, p.wrong("a number too large")
	}
	return f, nil
}

// string reads a string whose opening quote is next.
func (p *parser) string() (string, error) {
	p.pos++ // "
	start := p.pos
	for p.pos < len(p.data) { // most strings hold no escape
		switch c := p.data[p.pos]; {
		case c == '"':
			s := p.data[start:p.pos]
			if !utf8.ValidString(s) {
				return "", p.wrong("invalid UTF-8")
			}
			p.pos++
			return s, nil
		case c == '\\':
			return p.escaped([]byte(p.data[start:p.pos]))
		case c < ' ':
			return "", p.wrong("a control character in a string")
		default:
			p.pos++
		}
	}
	return "", p.wrong("no end of a string")
}

func (p *parser) escaped(b []byte) (string, error) {
	for p.pos < len(p.data) {
		c := p.data[p.pos]
		p.pos++
		switch {
		case c == '"':
			if !utf8.Valid(b) {
				return "", p.wrong("invalid UTF-8")
			}
			return string(b), nil
		case c < ' ':
			return "", p.wrong("a control character in a string")
		case c != '\\':
			b = append(b, c)
			continue
		}
		e := p.peek()
		p.pos++
		switch e {
		case '"', '\\', '/':
			b = append(b, e)
		case 'b':
			b = append(b, '\b')
		case 'f':
			b = append(b, '\f')
		case 'n':
			b = append(b, '\n')
		case 'r':
			b = append(b, '\r')
		case 't':
			b = append(b, '\t')
		case 'u':
			r, err := p.hex4()
			if err != nil {
				return "", err
			}
			if utf16.IsSurrogate(r) {
				if p.literal(`\u`) != nil {
					return "", p.wrong("half a surrogate pair")
				}
				low, err := p.hex4()
				if err != nil {
					return "", err
				}
				if r = utf16.DecodeRune(r, low); r == unicode.ReplacementChar {
					return "", p.wrong("half a surrogate pair")
				}
			}
			b = utf8.AppendRune(b, r)
		default:
			return "", p.wrong("an unknown escape")
		}
	}
	return "", p.wrong("no end of a string")
}

func (p *parser) hex4() (rune, error) {
	if len(p.data)-p.pos < 4 {
		return 0, p.wrong("an unknown escape")
	}
	var r rune
	for _, c := range []byte(p.data[p.pos : p.pos+4]) {
		switch {
		case '0' <= c && c <= '9':
			c -= '0'
		case 'a' <= c && c <= 'f':
			c -= 'a' - 10
		case 'A' <= c && c <= 'F':
			c -= 'A' - 10
		default:
			return 0, p.wrong("an unknown escape")
		}
		r = r<<4 | rune(c)
	}
	p.pos += 4
	return r, nil
}

// fold maps names that are equal under Unicode simple case folding to one string.
func fold(s string) string {
	b := make([]byte, 0, len(s))
	for _, r := range s {
		least := r
		for f := unicode.SimpleFold(r); f != r; f = unicode.SimpleFold(f) {
			least = min(least, f)
		}
		b = utf8.AppendRune(b, least)
	}
	return string(b)
}
