package guard

import (
	"bytes"
	"errors"
	"fmt"
	"regexp"
	"regexp/syntax"
	"unicode/utf8"
)

// A pattern is a compiled expression. Most texts lack something that every match of it has, which costs far less to see
// than the expression costs to run.
type pattern struct {
	re      *regexp.Regexp
	holds   *regexp.Regexp // matches the same texts, though less of them
	needs   []byte         // stands in every text that matches; nil: nothing is known
	folds   bool           // needs is in lower case, and stands in any case
	beyond  bool           // needs has letters that characters beyond ASCII fold to
	literal bool           // the text matches if needs stands in it
}

const (
	maxExpression = 8 << 10
	maxProgram    = 4096 // instructions; each may run for each byte of a message
)

func compilePattern(expression string) (*pattern, error) {
	if len(expression) > maxExpression {
		return nil, fmt.Errorf("has %d bytes, and %d at most can be run on every message; split it into several rules", len(expression), maxExpression)
	}
	re, err := regexp.Compile(expression)
	if err != nil {
		var bad *syntax.Error
		if errors.As(err, &bad) && (bad.Code == syntax.ErrLarge || bad.Code == syntax.ErrNestingDepth || bad.Code == syntax.ErrInvalidRepeatSize) {
			return nil, fmt.Errorf("is beyond what RE2 takes: %w; write less, or smaller repetitions", err)
		}
		return nil, fmt.Errorf("is no RE2: %w; RE2 has neither look-around nor back references", err)
	}
	tree, err := syntax.Parse(expression, syntax.Perl)
	if err != nil {
		return nil, fmt.Errorf("is no RE2: %w", err)
	}
	tree = tree.Simplify()
	program, err := syntax.Compile(tree)
	if err != nil {
		return nil, fmt.Errorf("is no RE2: %w", err)
	}
	if n := len(program.Inst); n > maxProgram {
		return nil, fmt.Errorf("compiles to %d instructions, and %d at most can be run on every message; split it into several rules", n, maxProgram)
	}
	if re.MatchString("") {
		return nil, errors.New("matches the empty string, and so every text; write a pattern that needs something")
	}
	p := &pattern{re: re, holds: re}
	core := trimAny(tree)
	if core != tree {
		if p.holds, err = regexp.Compile(core.String()); err != nil {
			return nil, fmt.Errorf("is no RE2: %w", err)
		}
	}
	if lit := required(core); lit != nil {
		p.folds = lit.Flags&syntax.FoldCase != 0
		p.literal = core == lit && !p.folds
		p.setNeeds(lit.Rune)
	}
	return p, nil
}

func (p *pattern) setNeeds(runes []rune) {
	for _, r := range runes {
		if p.folds {
			if r >= utf8.RuneSelf {
				p.needs, p.folds = nil, false
				return
			}
			if 'A' <= r && r <= 'Z' {
				r += 'a' - 'A'
			}
			p.beyond = p.beyond || r == 'k' || r == 's'
		}
		p.needs = utf8.AppendRune(p.needs, r)
	}
}

// trimAny takes `.*` off both ends: a text holds a match of the rest exactly if it holds one of the whole.
func trimAny(re *syntax.Regexp) *syntax.Regexp {
	for re.Op == syntax.OpConcat && len(re.Sub) > 1 {
		sub := re.Sub
		for len(sub) > 1 && isAny(sub[0]) {
			sub = sub[1:]
		}
		for len(sub) > 1 && isAny(sub[len(sub)-1]) {
			sub = sub[:len(sub)-1]
		}
		switch {
		case len(sub) == len(re.Sub):
			return re
		case len(sub) == 1:
			re = sub[0]
		default:
			re = &syntax.Regexp{Op: syntax.OpConcat, Flags: re.Flags, Sub: sub}
		}
	}
	return re
}

func isAny(re *syntax.Regexp) bool {
	return re.Op == syntax.OpStar && (re.Sub[0].Op == syntax.OpAnyChar || re.Sub[0].Op == syntax.OpAnyCharNotNL)
}

// required is the longest literal that every match holds, nil if none is known.
func required(re *syntax.Regexp) *syntax.Regexp {
	switch re.Op {
	case syntax.OpLiteral:
		if re.Flags&syntax.FoldCase != 0 {
			for _, r := range re.Rune {
				if r >= utf8.RuneSelf {
					return nil
				}
			}
		}
		return re
	case syntax.OpCapture, syntax.OpPlus:
		return required(re.Sub[0])
	case syntax.OpRepeat:
		if re.Min > 0 {
			return required(re.Sub[0])
		}
	case syntax.OpConcat:
		var best *syntax.Regexp
		for _, sub := range re.Sub {
			if lit := required(sub); lit != nil && (best == nil || len(lit.Rune) > len(best.Rune)) {
				best = lit
			}
		}
		return best
	}
	return nil
}

// possible reports whether text holds what every match needs.
func (p *pattern) possible(text []byte) bool {
	switch {
	case p.needs == nil:
		return true
	case !p.folds:
		return bytes.Contains(text, p.needs)
	}
	return containsFold(text, p.needs) || p.beyond && !ascii(text)
}

// matches reports whether there is a match in text.
func (p *pattern) matches(text []byte) bool {
	return p.possible(text) && (p.literal || p.holds.Match(text))
}

// find appends all matches in text.
func (p *pattern) find(hits []hit, text []byte, rule *Rule) []hit {
	if !p.possible(text) {
		return hits
	}
	for _, at := range p.re.FindAllIndex(text, -1) {
		if at[1] > at[0] {
			hits = append(hits, hit{at[0], at[1], rule})
		}
	}
	return hits
}

// containsFold: needle is in lower case and ASCII.
func containsFold(text, needle []byte) bool {
	first := needle[0]
	other := first
	if 'a' <= first && first <= 'z' {
		other -= 'a' - 'A'
	}
	for i := 0; i+len(needle) <= len(text); i++ {
		if c := text[i]; c != first && c != other {
			continue
		}
		k := 1
		for k < len(needle) {
			c := text[i+k]
			if 'A' <= c && c <= 'Z' {
				c += 'a' - 'A'
			}
			if c != needle[k] {
				break
			}
			k++
		}
		if k == len(needle) {
			return true
		}
	}
	return false
}

func ascii(text []byte) bool {
	for _, c := range text {
		if c >= utf8.RuneSelf {
			return false
		}
	}
	return true
}
