package mcp

import (
	"slices"
	"strconv"
	"time"
)

// A Part is what one result brings to a merged list.
type Part struct {
	Page  Page
	Items []byte // those that were kept, a comma before each
	N     int    // how many
}

// ReadPart reads one result, and appends to dst, which may be nil, the items for which keep returns true, with the edits
// that keep made; keep nil keeps all. The Part's items are what dst became.
func ReadPart(l List, dst, result []byte, lim Limits, keep func(*Item) bool) (Part, error) {
	p := Part{Items: dst}
	var err error
	p.Page, err = ReadList(l, result, lim, p.keeper(lim, keep))
	return p, err
}

// ScanPart is [Scan] for what should be a response with a list, of which it makes a part in the same pass. ok is false if
// there is none, be it for [ReadPart] to say what is wrong with it.
func ScanPart(l List, dst, body []byte, lim Limits, keep func(*Item) bool) (m Message, p Part, ok bool, err error) {
	m.Body = body
	if len(body) > lim.MaxBytes() {
		return m, p, false, refusal(413, CodeInvalidRequest, "the body has more than %d bytes", lim.MaxBytes())
	}
	s := scanner{b: body, maxDepth: lim.depth()}
	s.result = func(at int) int {
		depth, refused := s.depth, s.refused
		s.refused = nil
		p = Part{Items: dst}
		i, err := s.list(at, l, &p.Page, p.keeper(lim, keep))
		if ok = err == nil; !ok { // as Scan: nothing but the grammar of a result is its business
			s.depth = depth
			i = s.skip(at)
		}
		s.refused = refused
		return i
	}
	if err := s.message(&m); err != nil {
		m.Kind = Invalid
		return m, p, false, err
	}
	return m, p, ok, nil
}

// keeper appends to the part what keep keeps.
func (p *Part) keeper(lim Limits, keep func(*Item) bool) func(*Item) error {
	most := len(p.Items) + 1 + lim.MaxBytes()
	return func(it *Item) error {
		if keep != nil && !keep(it) {
			return nil
		}
		p.Items = it.Edits.Apply(append(p.Items, ','), it.Raw)
		p.N++
		if len(p.Items) > most {
			return refusal(413, CodeInternal, "the items have more than %d bytes", most)
		}
		return nil
	}
}

// A Merge makes one result of the results of several targets, in the order in which they are added.
type Merge struct {
	list  List
	lim   Limits
	parts [][]byte // the items of each result that had some, a comma before each
	bytes int      // of all parts
	n     int      // items

	ttl     time.Duration
	private bool
	pages   int
}

// NewMerge begins an empty list. lim bounds each result, and lim.Bytes also the items that are kept.
func NewMerge(l List, lim Limits) *Merge { return &Merge{list: l, lim: lim} }

// Add appends the items of one result for which keep returns true, with the edits that keep made; keep nil keeps
// all. If the result is bad, nothing of it is added.
func (m *Merge) Add(result []byte, keep func(*Item) bool) (Page, error) {
	part, err := ReadPart(m.list, make([]byte, 0, len(result)+len(result)/16), result, m.lim, keep)
	if err != nil {
		return part.Page, err
	}
	return part.Page, m.AddPart(part)
}

// AddPart appends a part that was read before. The Merge keeps its items.
func (m *Merge) AddPart(p Part) error {
	if p.N > 0 {
		if m.bytes+len(p.Items) > m.lim.MaxBytes()+1 { // its first comma does not count
			return refusal(413, CodeInternal, "the merged %s result has more than %d bytes", m.list.Method(), m.lim.MaxBytes())
		}
		m.parts = append(m.parts, p.Items)
		m.bytes += len(p.Items)
		m.n += p.N
	}
	m.Hint(p.Page)
	return nil
}

// Hint takes ttlMs and cacheScope of a page into account without its items: the shortest time counts, none
// counts as 0, and everything is private unless each page says public.
func (m *Merge) Hint(page Page) {
	ttl := page.TTL
	if !page.HasTTL {
		ttl = 0
	}
	if m.pages == 0 || ttl < m.ttl {
		m.ttl = ttl
	}
	m.private = m.private || page.CacheScope != "public"
	m.pages++
}

// Private reports whether a page was for its caller alone, or none said that it is not.
func (m *Merge) Private() bool { return m.private || m.pages == 0 }

// Len is how many items were kept.
func (m *Merge) Len() int { return m.n }

// Tail is what follows the items.
type Tail struct {
	NextCursor []byte // decoded; nil: there is no further page
	Revision   Revision
	Private    bool          // cacheScope is private whatever the targets said: policies depend on the caller
	MaxTTL     time.Duration // bound of ttlMs; if zero, none
	Passing    bool          // ttlMs is 0 whatever the targets said: policies depend on the time
	Meta       []byte        // raw _meta; nil: none
}

// AppendResult appends the result object. In the stateless era it says resultType, ttlMs and cacheScope.
func (m *Merge) AppendResult(dst []byte, t Tail) []byte {
	dst = slices.Grow(dst, m.bytes+len(t.NextCursor)+len(t.Meta)+128)
	for _, piece := range m.Pieces(nil, t, nil) {
		dst = append(dst, piece...)
	}
	return dst
}

// Pieces is the result object in the pieces that it is made of, so that a long list need not be copied once more. The
// first begins with before, the last ends with after.
func (m *Merge) Pieces(before []byte, t Tail, after []byte) [][]byte {
	head := append(AppendString(append(slices.Clip(before), '{'), m.list.Member()), ":["...)
	pieces := append(make([][]byte, 0, len(m.parts)+2), head)
	for i, part := range m.parts {
		if i == 0 {
			part = part[1:] // nothing comes before its first comma
		}
		pieces = append(pieces, part)
	}
	return append(pieces, append(m.tail(t), after...))
}

// tail is what follows the items.
func (m *Merge) tail(t Tail) []byte {
	dst := append(make([]byte, 0, 128+len(t.NextCursor)+len(t.Meta)), ']')
	if t.NextCursor != nil {
		dst = AppendString(append(dst, `,"nextCursor":`...), t.NextCursor)
	}
	if t.Revision.HasResultType() {
		ttl := m.ttl
		if t.MaxTTL > 0 {
			ttl = min(ttl, t.MaxTTL)
		}
		if t.Passing {
			ttl = 0
		}
		scope := "public"
		if m.Private() || t.Private {
			scope = "private"
		}
		dst = strconv.AppendInt(append(dst, `,"resultType":"complete","ttlMs":`...), ttl.Milliseconds(), 10)
		dst = AppendString(append(dst, `,"cacheScope":`...), scope)
	}
	if t.Meta != nil {
		dst = append(append(dst, `,"_meta":`...), t.Meta...)
	}
	return append(dst, '}')
}
