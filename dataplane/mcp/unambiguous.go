package mcp

import (
	"unicode"
	"unicode/utf8"
)

// Unambiguous checks raw, one JSON value that is about to be decoded for a decision (a tool's arguments for a
// policy), all the way down: valid JSON, and in no object a name twice or two names that are equal under
// Unicode case folding, since the target may read another of the two than the policy does. The error is nil
// or an [*Error].
func Unambiguous(raw []byte, lim Limits) error {
	if len(raw) > lim.MaxBytes() {
		return refusal(413, CodeInvalidRequest, "the value has more than %d bytes", lim.MaxBytes())
	}
	s := scanner{b: raw, maxDepth: lim.depth()}
	if s.end(s.unambiguous(s.ws(0))) < 0 {
		return s.syntax
	}
	if s.refused != nil {
		return s.refused
	}
	return nil
}

// unambiguous scans one value; the depth limit bounds the recursion.
func (s *scanner) unambiguous(i int) int {
	if i >= len(s.b) || s.b[i] != '{' && s.b[i] != '[' {
		return s.skip(i)
	}
	object := s.b[i] == '{'
	var seen map[string]struct{}
	if i = s.open(i, object); i < 0 {
		return i
	}
	if i = s.ws(i); i < len(s.b) && s.b[i] == closing(object) {
		s.depth--
		return i + 1
	}
	for {
		if object {
			start := i
			if i = s.key(i); i < 0 {
				return i
			}
			if seen == nil {
				seen = make(map[string]struct{})
			}
			s.name(s.b[start:], seen)
		}
		if i = s.unambiguous(i); i < 0 {
			return i
		}
		if i = s.ws(i); i < len(s.b) && s.b[i] == closing(object) {
			s.depth--
			return i + 1
		}
		if i >= len(s.b) || s.b[i] != ',' {
			return s.fail(i, "',' or the end of an object or array is missing")
		}
		i = s.ws(i + 1)
	}
}

// name notes the name that b begins with, in folded form.
func (s *scanner) name(b []byte, seen map[string]struct{}) {
	one := scanner{b: b}
	t, _ := one.text(0)
	if one.refused != nil {
		s.refuse("a member's name holds half a surrogate pair")
	}
	folded := string(foldAll(t.Value))
	if _, twice := seen[folded]; twice {
		s.refuse("an object holds %q twice, or two names that differ from it by case alone", clip(t.Value))
	}
	seen[folded] = struct{}{}
}

// foldAll maps each character to the least of those that case folding takes for the same.
func foldAll(name []byte) []byte {
	out := make([]byte, 0, len(name))
	for _, r := range string(name) {
		if r < utf8.RuneSelf && !('a' <= r && r <= 'z' || 'A' <= r && r <= 'Z') {
			out = append(out, byte(r))
			continue
		}
		least := r
		for next := unicode.SimpleFold(r); next != r; next = unicode.SimpleFold(next) {
			least = min(least, next)
		}
		out = utf8.AppendRune(out, least)
	}
	return out
}
