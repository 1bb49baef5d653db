package mcp

// MemberSpans is [Members] for who edits: it calls f with each member's decoded name and the place of its value in
// body, for the object at span. body was scanned before.
func MemberSpans(body []byte, object Span, read []string, f func(name []byte, value Span) error) error {
	return memberSpans(body, object, read, func(name []byte, _, value Span) error { return f(name, value) })
}

// memberSpans also tells where each name stands.
func memberSpans(body []byte, at Span, read []string, f func(name []byte, key, value Span) error) error {
	s := &scanner{b: body[:at.End], maxDepth: maxDepth}
	i := int(at.Start)
	if !at.Present() || body[i] != '{' {
		return refusal(400, CodeInvalidRequest, "the value is no object")
	}
	var o object
	i = o.begin(s, i, "the object", readNames(read...))
	for i >= 0 {
		key := s.ws(i)
		if !o.first && key < len(s.b) && s.b[key] == ',' {
			key = s.ws(key + 1)
		}
		_, name, from, done := o.next(s, i)
		if done {
			i = from
			break
		}
		var v Span
		if v, i = s.raw(from); i < 0 {
			break
		}
		if s.refused != nil {
			return s.refused
		}
		if err := f(name, span(key, from), v); err != nil {
			return err
		}
	}
	if i < 0 {
		return s.syntax
	}
	return nil
}

// ElementSpans calls f with the place of each element of the array at span in body, which was scanned before.
func ElementSpans(body []byte, array Span, f func(value Span) error) error {
	s := scanner{b: body[array.Start:array.End:array.End], maxDepth: maxDepth}
	spans, refused := s.elements(maxBytes)
	if refused != nil {
		return refused
	}
	for _, v := range spans {
		if err := f(Span{v.Start + array.Start, v.End + array.Start}); err != nil {
			return err
		}
	}
	return nil
}

// RemoveMembers takes the members whose decoded names drop names out of the object at span in body, each with one comma.
// What is left keeps its bytes. No other edit of the object may touch these members.
func (e *Edits) RemoveMembers(body []byte, object Span, drop func(name []byte) bool) error {
	var all []Span
	var gone []bool
	err := memberSpans(body, object, nil, func(name []byte, key, value Span) error {
		all = append(all, Span{key.Start, value.End})
		gone = append(gone, drop(name))
		return nil
	})
	if err == nil {
		e.removeListed(all, gone)
	}
	return err
}

// RemoveElements takes the elements for which drop is true out of the array at span in body.
func (e *Edits) RemoveElements(body []byte, array Span, drop func(value Span) bool) error {
	var all []Span
	var gone []bool
	err := ElementSpans(body, array, func(value Span) error {
		all = append(all, value)
		gone = append(gone, drop(value))
		return nil
	})
	if err == nil {
		e.removeListed(all, gone)
	}
	return err
}

// removeListed removes some of what stands between commas: behind the first that stays, each goes with the comma before
// it; before that, with the comma behind it.
func (e *Edits) removeListed(all []Span, gone []bool) {
	kept := false
	for i, s := range all {
		switch {
		case !gone[i]:
			kept = true
			continue
		case kept:
			s.Start = all[i-1].End
		case i+1 < len(all):
			s.End = all[i+1].Start
		}
		e.add(edit{span: s, with: []byte{}})
	}
}
