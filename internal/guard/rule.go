package guard

import (
	"fmt"
	"maps"
	"slices"
)

// A Rule is one thing to look for.
type Rule struct {
	place   string
	builtin builtin // 0: a pattern
	pattern *pattern
	mask    []byte
}

type builtin uint8

const (
	builtinCard builtin = iota + 1
	builtinSSN
	builtinSIN
	builtinPhone
	builtinIBAN
	builtinEmail
	builtinSecrets
)

// builtins by name, and what stands for what they find: the entities' names that Presidio made usual.
var builtins = map[string]Rule{
	"creditCard":  {builtin: builtinCard, mask: []byte("<CREDIT_CARD>")},
	"ssn":         {builtin: builtinSSN, mask: []byte("<SSN>")},
	"caSin":       {builtin: builtinSIN, mask: []byte("<CA_SIN>")},
	"phoneNumber": {builtin: builtinPhone, mask: []byte("<PHONE_NUMBER>")},
	"iban":        {builtin: builtinIBAN, mask: []byte("<IBAN_CODE>")},
	"email":       {builtin: builtinEmail, mask: []byte("<EMAIL_ADDRESS>")},
	"secrets":     {builtin: builtinSecrets, mask: []byte("<SECRET>")},
}

// Builtins are the names that [Builtin] knows, sorted.
func Builtins() []string { return slices.Sorted(maps.Keys(builtins)) }

// Builtin is a rule of this package's own. place is what a [Finding] of it says.
func Builtin(place, name string) (Rule, error) {
	r, ok := builtins[name]
	if !ok {
		return Rule{}, fmt.Errorf("%q is none of %q", name, Builtins())
	}
	r.place = place
	return r, nil
}

// Pattern is a rule in the syntax of RE2. It is refused if it is no such, if it would match the empty string (and so every
// text), or if its program is too large to be run on every message.
func Pattern(place, expression string) (Rule, error) {
	p, err := compilePattern(expression)
	if err != nil {
		return Rule{}, err
	}
	return Rule{place: place, pattern: p, mask: []byte("<MASKED>")}, nil
}

// A Filter looks for what any of its rules finds, and masks it or rejects the message that holds it.
type Filter struct {
	masks    bool
	rules    [builtinSecrets + 1]*Rule // by builtin
	patterns []*Rule
	triggers *[256]trigger // nil: no built-in rules
	member   bool          // rules that judge a text by its member's name alone
}

type trigger uint8

const (
	triggerDigit trigger = 1 << iota
	triggerAt
	triggerSecret
)

// NewFilter returns a filter that masks, or rejects.
func NewFilter(masks bool, rules []Rule) *Filter {
	f := &Filter{masks: masks}
	var triggers [256]trigger
	for _, r := range rules {
		if r.pattern != nil {
			f.patterns = append(f.patterns, &r)
			continue
		}
		if f.rules[r.builtin] != nil {
			continue
		}
		f.rules[r.builtin] = &r
		f.triggers = &triggers
		switch r.builtin {
		case builtinEmail:
			triggers['@'] |= triggerAt
		case builtinSecrets:
			f.member = true
			for c := range 256 {
				if len(secretTriggers[c]) > 0 {
					triggers[c] |= triggerSecret
				}
			}
			for _, c := range "-J~=:>" {
				triggers[c] |= triggerSecret
			}
		default:
			for c := '0'; c <= '9'; c++ {
				triggers[c] |= triggerDigit
			}
		}
	}
	return f
}

// Masks reports whether the filter masks; else it rejects.
func (f *Filter) Masks() bool { return f.masks }

// A hit is where in a text a rule found something.
type hit struct {
	from, to int
	rule     *Rule
}

// find appends what the filter finds in text, which is of the member name, in order and without overlaps. A filter that
// rejects needs to know of one.
func (f *Filter) find(hits []hit, text, name []byte) []hit {
	start := len(hits)
	if f.triggers != nil {
		hits = f.findBuiltins(hits, text, name)
		if !f.masks && len(hits) > start {
			return hits[:start+1]
		}
	}
	sorted := len(f.patterns) <= 1 && len(hits) == start
	for _, r := range f.patterns {
		if !f.masks {
			if r.pattern.matches(text) {
				return append(hits, hit{0, len(text), r})
			}
			continue
		}
		hits = r.pattern.find(hits, text, r)
	}
	if len(hits)-start > 1 && !sorted {
		hits = append(hits[:start], merged(hits[start:])...)
	}
	return hits
}

// merged puts hits in order; of those that overlap one remains, as long as all of them, by the rule that begins first.
func merged(hits []hit) []hit {
	slices.SortStableFunc(hits, func(a, b hit) int { return a.from - b.from })
	out := hits[:1]
	for _, h := range hits[1:] {
		if last := &out[len(out)-1]; h.from < last.to {
			last.to = max(last.to, h.to)
		} else {
			out = append(out, h)
		}
	}
	return out
}

// findBuiltins goes over text once and stops where a byte may be part of what is looked for.
func (f *Filter) findBuiltins(hits []hit, text, name []byte) []hit {
	if f.member && len(text) <= 88 && secretMember(text, name) {
		return append(hits, hit{0, len(text), f.rules[builtinSecrets]})
	}
	t := f.triggers
	last := 0 // the end of what was found before
	for i := 0; i < len(text); {
		for ; i+8 <= len(text); i += 8 {
			b := text[i : i+8 : i+8]
			if t[b[0]]|t[b[1]]|t[b[2]]|t[b[3]]|t[b[4]]|t[b[5]]|t[b[6]]|t[b[7]] != 0 {
				break
			}
		}
		for i < len(text) && t[text[i]] == 0 {
			i++
		}
		if i == len(text) {
			break
		}
		var h hit
		next := i + 1
		switch why := t[text[i]]; {
		case why&triggerDigit != 0:
			h = f.number(text, i, name)
			next = endOfDigits(text, i)
		case why&triggerAt != 0:
			if from, to := email(text, i, last); to > 0 {
				h = hit{from, to, f.rules[builtinEmail]}
			}
		case why&triggerSecret != 0:
			if from, to := secret(text, i, last); to > 0 {
				h = hit{from, to, f.rules[builtinSecrets]}
			}
		}
		if h.rule != nil {
			h.from = max(h.from, last)
			hits = append(hits, h)
			if !f.masks {
				return hits
			}
			last = h.to
			next = max(next, h.to)
		}
		i = next
	}
	return hits
}

// number tries what is written in digits on the run that begins at i.
func (f *Filter) number(text []byte, i int, name []byte) hit {
	if r := f.rules[builtinIBAN]; r != nil {
		if from, to := iban(text, i); to > 0 {
			return hit{from, to, r}
		}
	}
	if r := f.rules[builtinCard]; r != nil {
		if from, to := creditCard(text, i); to > 0 {
			return hit{from, to, r}
		}
	}
	if r := f.rules[builtinSSN]; r != nil {
		if from, to := ssn(text, i, name); to > 0 {
			return hit{from, to, r}
		}
	}
	if r := f.rules[builtinSIN]; r != nil {
		if from, to := caSIN(text, i, name); to > 0 {
			return hit{from, to, r}
		}
	}
	if r := f.rules[builtinPhone]; r != nil {
		if from, to := phone(text, i, name); to > 0 {
			return hit{from, to, r}
		}
	}
	return hit{}
}
