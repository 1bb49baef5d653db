package mcp

import "slices"

// Strip appends the object that raw is, without the members of these names, to dst. What stays keeps its bytes, its order
// and the white space around it. An object that has none of them is appended as it is. It refuses what Scan refuses in an
// object that it reads.
func Strip(dst, raw []byte, lim Limits, without ...string) ([]byte, error) {
	s := &scanner{b: raw, maxDepth: lim.depth()}
	i := s.ws(0)
	if len(raw) > lim.MaxBytes() {
		return dst, refusal(413, CodeInvalidRequest, "the value has more than %d bytes", lim.MaxBytes())
	}
	if i >= len(raw) || raw[i] != '{' {
		return dst, refusal(400, CodeInvalidRequest, "the value is no object")
	}
	type member struct {
		comma, from, end int // comma: before it; -1 for the first
		drop             bool
	}
	var members []member
	stripped := false
	var o object
	i = o.begin(s, i, "the object", readNames(without...))
	for i >= 0 {
		m := member{comma: -1, from: s.ws(i)}
		if !o.first && m.from < len(raw) { // the comma, which next finds missing
			m.comma, m.from = m.from, s.ws(m.from+1)
		}
		name, key, at, done := o.next(s, i)
		if done {
			i = at
			break
		}
		if i = s.skip(at); i < 0 {
			break
		}
		m.end, m.drop = i, slices.Contains(without, name) && name == string(key)
		stripped = stripped || m.drop
		members = append(members, m)
	}
	if s.end(i) < 0 {
		return dst, s.syntax
	}
	if s.refused != nil {
		return dst, s.refused
	}
	if !stripped {
		return append(dst, raw...), nil
	}
	kept := 0 // up to where raw was taken
	for i := 0; i < len(members); i++ {
		if !members[i].drop {
			continue
		}
		first := i
		for i+1 < len(members) && members[i+1].drop {
			i++
		}
		from, to := members[first].from, members[i].end
		switch {
		case i+1 < len(members): // with the comma that follows
			to = members[i+1].comma + 1
		case first > 0: // with the comma before
			from = members[first].comma
		}
		dst = append(dst, raw[kept:from]...)
		kept = to
	}
	return append(dst, raw[kept:]...), nil
}
