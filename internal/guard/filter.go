package guard

import (
	"slices"
	"sync"
)

// A Finding is why a message is rejected: the place of the rule. What it found is not told to anybody.
type Finding struct{ Rule string }

// Extra is what stands in one string of a message beyond what the filters find in it; see [Trail].
type Extra struct {
	At       int // where the string's literal begins in the message
	From, To int // in its decoded text
	mask     []byte
}

// apply is one run over a message.
type apply struct {
	filters []*Filter
	message []byte
	extra   []Extra
	out     []byte // nil: nothing has changed
	copied  int    // how much of message is in out
	found   *Finding
	hits    []hit
	text    [2][]byte // masked text, in turns
}

var applies = sync.Pool{New: func() any { return &apply{} }}

// Apply runs filters in their order over all text of message in the places of shape. It returns message itself if nothing
// was found, a changed copy if something was masked, and a Finding if a filter rejects. An error is [ErrJSON].
func Apply(filters []*Filter, message []byte, shape *Shape, extra ...Extra) ([]byte, *Finding, error) {
	if len(filters) == 0 && len(extra) == 0 {
		return message, nil, nil
	}
	a := applies.Get().(*apply)
	defer a.free()
	*a = apply{filters: filters, message: message, extra: extra, hits: a.hits[:0], text: a.text}
	rejects := slices.ContainsFunc(filters, func(f *Filter) bool { return !f.masks })
	if err := walk(message, shape, rejects, false, a); err != nil {
		return nil, nil, err
	}
	if a.found != nil {
		return nil, a.found, nil
	}
	if a.out == nil {
		return message, nil, nil
	}
	return append(a.out, message[a.copied:]...), nil, nil
}

func (a *apply) free() {
	const keep = 64 << 10
	a.filters, a.message, a.extra, a.out, a.found = nil, nil, nil, nil, nil
	clear(a.hits[:cap(a.hits)])
	for i := range a.text {
		if cap(a.text[i]) > keep {
			a.text[i] = nil
		}
	}
	applies.Put(a)
}

func (a *apply) visit(v *visit) bool {
	text := v.text
	if v.kind != visitString {
		for _, f := range a.filters {
			if f.masks {
				continue
			}
			if a.hits = f.find(a.hits[:0], text, v.name); len(a.hits) > 0 {
				a.found = &Finding{a.hits[0].rule.place}
				return false
			}
		}
		return true
	}
	changed := false
	turn := 0
	if len(a.extra) > 0 {
		a.hits = a.hits[:0]
		for _, e := range a.extra {
			if e.At == v.from {
				a.hits = append(a.hits, hit{max(0, e.From), min(e.To, len(text)), &Rule{mask: e.mask}})
			}
		}
		if len(a.hits) > 0 {
			a.hits = merged(a.hits)
			a.text[turn] = masked(a.text[turn][:0], text, a.hits)
			text, changed, turn = a.text[turn], true, 1-turn
		}
	}
	for _, f := range a.filters {
		a.hits = f.find(a.hits[:0], text, v.name)
		if len(a.hits) == 0 {
			continue
		}
		if !f.masks {
			a.found = &Finding{a.hits[0].rule.place}
			return false
		}
		a.text[turn] = masked(a.text[turn][:0], text, a.hits)
		text, changed, turn = a.text[turn], true, 1-turn
	}
	if changed {
		a.replace(v.from, v.to, text)
	}
	return true
}

// replace writes text for the literal from from to to.
func (a *apply) replace(from, to int, text []byte) {
	if a.out == nil {
		a.out = make([]byte, 0, len(a.message)+64)
	}
	a.out = AppendString(append(a.out, a.message[a.copied:from]...), text)
	a.copied = to
}

// masked appends text with what was found in it replaced.
func masked(dst, text []byte, hits []hit) []byte {
	at := 0
	for _, h := range hits {
		dst = append(append(dst, text[at:h.from]...), h.rule.mask...)
		at = h.to
	}
	return append(dst, text[at:]...)
}

// A Text is one string of a message, for judges that are asked for all of them at once.
type Text struct {
	Path  string // JSON Pointer (RFC 6901) in the message
	Value string // decoded

	from, to int
}

type texts []Text

func (t *texts) visit(v *visit) bool {
	*t = append(*t, Text{Path: string(v.path), Value: string(v.text), from: v.from, to: v.to})
	return true
}

// Texts returns all text of message in the places of shape, in order. An error is [ErrJSON].
func Texts(message []byte, shape *Shape) ([]Text, error) {
	var found texts
	if err := walk(message, shape, false, true, &found); err != nil {
		return nil, err
	}
	return found, nil
}

// Replace returns message with the texts changed to those that values has; nil stands for no change. texts are all that
// [Texts] returned for it.
func Replace(message []byte, texts []Text, values []*string) []byte {
	a := apply{message: message}
	for i, v := range values {
		if v != nil && *v != texts[i].Value {
			a.replace(texts[i].from, texts[i].to, []byte(*v))
		}
	}
	if a.out == nil {
		return message
	}
	return append(a.out, message[a.copied:]...)
}
