package guard

// maxTrail is how much text of a stream is remembered: a private key of 4096 bits has 3.2 KiB.
const maxTrail = 4 << 10

// A Trail remembers the end of what the messages of a stream said, so that what is split over several of them is found
// when its last part comes. It belongs to one stream of texts that are read one after the other. The zero value is ready.
type Trail struct {
	// Pieces says that readers join the texts of one message too, each of which is looked at with what was before it.
	Pieces bool

	text  []byte
	parts []part
}

// part is one string, or the end of one, in the trail.
type part struct {
	message  uint64
	at       int // of its literal in the message
	skip     int // how much of its text is gone
	from, to int // in the trail's text
}

// Split says that a message holds a part of what was found only in several together.
type Split struct {
	Message uint64
	Extra   Extra
	Finding *Finding // not nil: the filter rejects
}

// Add notes what message, which is the nth of the stream, says in the places of shape, and returns all parts of what
// filters find in it and in those before it together, but in none of them alone. An error is [ErrJSON].
func (t *Trail) Add(filters []*Filter, n uint64, message []byte, shape *Shape) ([]Split, error) {
	a := adding{trail: t, filters: filters, message: n, start: len(t.text)}
	if err := walk(message, shape, false, false, &a); err != nil {
		return nil, err
	}
	if !a.joined {
		a.join()
	}
	t.forget()
	return a.splits, nil
}

// adding is one message that is being added.
type adding struct {
	trail   *Trail
	filters []*Filter
	message uint64
	start   int  // where its text begins in the trail
	joined  bool // what it holds together with what was before has been looked for
	splits  []Split
}

func (a *adding) visit(v *visit) bool {
	t := a.trail
	if t.Pieces {
		if len(t.text) > 4*maxTrail {
			t.forget()
		}
		a.start, a.joined = len(t.text), false
		defer func() {
			if !a.joined {
				a.join()
			}
		}()
	}
	for skip := 0; skip < len(v.text); {
		n := min(len(v.text)-skip, maxTrail)
		from := len(t.text)
		t.text = append(t.text, v.text[skip:skip+n]...)
		t.parts = append(t.parts, part{a.message, v.from, skip, from, len(t.text)})
		skip += n
		if !a.joined && len(t.text)-a.start >= maxTrail {
			a.join()
		}
		if a.joined && len(t.text) > 4*maxTrail { // a long message takes the place of all before it
			t.forget()
		}
	}
	return true
}

func (a *adding) join() {
	a.joined = true
	if a.start == 0 || len(a.trail.text) == a.start {
		return
	}
	for _, f := range a.filters {
		a.splits = a.trail.across(a.splits, f, a.start)
	}
}

// across appends the parts of what f finds across start.
func (t *Trail) across(splits []Split, f *Filter, start int) []Split {
	all := *f
	all.masks = true // all of them are needed, and where they stand
	for _, h := range all.find(nil, t.text, nil) {
		if h.from >= start || h.to <= start || f.alone(h, t.text[start:h.to]) {
			continue
		}
		// A pattern with .* runs on into what follows; what is built in does so only for what belongs to it.
		if h.rule.pattern != nil && f.alone(h, t.text[h.from:start]) {
			continue
		}
		for _, p := range t.parts {
			from, to := max(h.from, p.from), min(h.to, p.to)
			if from >= to {
				continue
			}
			s := Split{Message: p.message, Extra: Extra{At: p.at, From: from - p.from + p.skip, To: to - p.from + p.skip, mask: h.rule.mask}}
			if !f.masks {
				s.Finding = &Finding{h.rule.place}
			}
			splits = append(splits, s)
		}
	}
	return splits
}

// alone reports whether a filter finds something by the rule of h in text by itself: then it was found already.
func (f *Filter) alone(h hit, text []byte) bool {
	if h.rule.pattern != nil {
		return h.rule.pattern.matches(text)
	}
	for _, own := range f.findBuiltins(nil, text, nil) {
		if own.rule.builtin == h.rule.builtin {
			return true
		}
	}
	return false
}

// forget drops what is too far back.
func (t *Trail) forget() {
	cut := len(t.text) - maxTrail
	if cut <= 0 {
		return
	}
	cut = runeStart(t.text, cut)
	t.text = append(t.text[:0], t.text[cut:]...)
	kept := t.parts[:0]
	for _, p := range t.parts {
		if p.to <= cut {
			continue
		}
		p.skip += max(0, cut-p.from)
		p.from, p.to = max(0, p.from-cut), p.to-cut
		kept = append(kept, p)
	}
	t.parts = kept
}

// runeStart is the first index from i on at which a character begins.
func runeStart(text []byte, i int) int {
	for i < len(text) && text[i]&0xc0 == 0x80 {
		i++
	}
	return i
}
