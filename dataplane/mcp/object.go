package mcp

import (
	"bytes"
	"unicode/utf8"
)

// An object that is read is walked member by member, and no two readers of it may see different things: a
// name given twice, or one that equals a name we read but for its case, is refused. Go servers match names
// without case (and take U+212A for k, U+017F for s), so {"name":"safe","Name":"danger"} must not pass.
type object struct {
	what  string // for errors
	names *names
	first bool
	mask  uint32              // of the names we read that were seen
	other [8][]byte           // other names that were seen
	n     int                 // how many of them
	more  map[string]struct{} // those beyond
}

// names are those that are read in one sort of object: at most 32.
type names struct {
	list   []string
	max    int        // longest name
	shapes [32]uint64 // by the five low bits of the first letter, which case does not change: the lengths of names
}

func readNames(list ...string) *names {
	n := &names{list: list}
	for _, name := range list {
		n.max = max(n.max, len(name))
		n.shapes[name[0]&31] |= 1 << (len(name) & 63)
	}
	return n
}

// fold maps ASCII letters, and the two other characters that case folding takes for one, to lower case.
func fold[T string | []byte](dst []byte, name T) []byte {
	for i := 0; i < len(name); i++ {
		c := name[i]
		switch {
		case 'A' <= c && c <= 'Z':
			c += 'a' - 'A'
		case c == 0xc5 && i+1 < len(name) && name[i+1] == 0xbf: // ſ
			c = 's'
			i++
		case c == 0xe2 && i+2 < len(name) && name[i+1] == 0x84 && name[i+2] == 0xaa: // K, the Kelvin sign
			c = 'k'
			i += 2
		}
		dst = append(dst, c)
	}
	return dst
}

// resembles reports whether a name could equal one that is read but for its case. It is quick and errs on that side.
func (n *names) resembles(key []byte) bool {
	if len(key) == 0 || len(key) > 3*n.max {
		return false
	}
	if n.shapes[key[0]&31]>>(len(key)&63)&1 == 1 {
		return true
	}
	for _, c := range key { // the two characters beyond ASCII that fold into it change length, or the first letter
		if c >= utf8.RuneSelf {
			return true
		}
	}
	return false
}

// begin enters the object at i.
func (o *object) begin(s *scanner, i int, what string, names *names) int {
	o.what, o.names, o.first = what, names, true
	return s.open(i, true)
}

// next scans up to the next member's value and returns its name: key as decoded, name if it is one of those that
// are read, else "". At the object's end, done is true and at is past it.
func (o *object) next(s *scanner, i int) (name string, key []byte, at int, done bool) {
	if i = s.ws(i); i < len(s.b) && s.b[i] == '}' {
		s.depth--
		return "", nil, i + 1, true
	}
	if !o.first {
		if i >= len(s.b) || s.b[i] != ',' {
			return "", nil, s.fail(i, "',' or '}' is missing"), true
		}
		i = s.ws(i + 1)
	}
	o.first = false
	if i >= len(s.b) || s.b[i] != '"' {
		return "", nil, s.fail(i, "a member's name is missing"), true
	}
	end, escaped := s.str(i + 1)
	if end < 0 {
		return "", nil, end, true
	}
	key, ok := s.decode(s.b[i+1:end-1], escaped)
	if !ok {
		s.refuse("a member's name in %s holds half a surrogate pair", o.what)
	}
	if i = s.colon(end); i < 0 {
		return "", nil, i, true
	}
	return o.check(s, key), key, i, false
}

// check notes a name, and returns it if it is one that we read.
func (o *object) check(s *scanner, key []byte) string {
	for i, name := range o.names.list {
		if name != string(key) {
			continue
		}
		if o.mask>>i&1 == 1 {
			s.refuse("%s holds %q twice", o.what, name)
		}
		o.mask |= 1 << i
		return name
	}
	if o.names.resembles(key) {
		var buf, own [128]byte
		folded := fold(buf[:0], key)
		for _, name := range o.names.list {
			if bytes.Equal(folded, fold(own[:0], name)) {
				s.refuse("%s holds %q, which some would read as %q", o.what, clip(key), name)
			}
		}
	}
	if o.seen(key) {
		s.refuse("%s holds %q twice", o.what, clip(key))
	}
	return ""
}

// seen notes a name that we do not read.
func (o *object) seen(key []byte) bool {
	for _, k := range o.other[:o.n] {
		if bytes.Equal(k, key) {
			return true
		}
	}
	if o.n < len(o.other) {
		o.other[o.n] = key
		o.n++
		return false
	}
	if _, ok := o.more[string(key)]; ok {
		return true
	}
	if o.more == nil {
		o.more = map[string]struct{}{}
	}
	o.more[string(key)] = struct{}{}
	return false
}

// clip keeps what a peer sent from filling our error messages.
func clip(b []byte) []byte {
	const most = 80
	if len(b) <= most {
		return b
	}
	return append(bytes.ToValidUTF8(b[:most:most], nil), "…"...)
}
