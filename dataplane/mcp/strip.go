package mcp

import "slices"

// Strip appends the object that raw is, without the members of these names, to dst. What stays keeps its bytes and its order;
// white space between members goes. An object that has none of them is appended as it is. It refuses what Scan refuses in an
// object that it reads.
func Strip(dst, raw []byte, lim Limits, without ...string) ([]byte, error) {
	s := &scanner{b: raw, maxDepth: lim.depth()}
	i := s.ws(0)
	if len(raw) > lim.bytes() {
		return dst, refusal(413, CodeInvalidRequest, "the value has more than %d bytes", lim.bytes())
	}
	if i >= len(raw) || raw[i] != '{' {
		return dst, refusal(400, CodeInvalidRequest, "the value is no object")
	}
	var o object
	start, stripped, first := len(dst), false, true
	dst = append(dst, '{')
	i = o.begin(s, i, "the object", readNames(without...))
	for i >= 0 {
		from := s.ws(i)
		if !o.first && from < len(raw) { // the comma, which next finds missing
			from = s.ws(from + 1)
		}
		name, key, at, done := o.next(s, i)
		if done {
			i = at
			break
		}
		if i = s.skip(at); i < 0 {
			break
		}
		if slices.Contains(without, name) && name == string(key) {
			stripped = true
			continue
		}
		if !first {
			dst = append(dst, ',')
		}
		first = false
		dst = append(dst, raw[from:i]...)
	}
	if s.end(i) < 0 {
		return dst[:start], s.syntax
	}
	if s.refused != nil {
		return dst[:start], s.refused
	}
	if !stripped {
		return append(dst[:start], raw...), nil
	}
	return append(dst, '}'), nil
}
