package mcp

import (
	"slices"
	"strconv"
	"time"
)

// A Merge makes one result of the results of several targets, in the order in which they are added.
type Merge struct {
	list  List
	lim   Limits
	parts [][]byte // the items of each result that had some, with commas between them
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
	part, n := make([]byte, 0, len(result)+len(result)/16), 0
	page, err := ReadList(m.list, result, m.lim, func(it *Item) error {
		if keep != nil && !keep(it) {
			return nil
		}
		if n > 0 {
			part = append(part, ',')
		}
		part = it.Edits.Apply(part, it.Raw)
		n++
		if m.bytes+len(part) > m.lim.bytes() {
			return refusal(413, CodeInternal, "the merged %s result has more than %d bytes", m.list.Method(), m.lim.bytes())
		}
		return nil
	})
	if err != nil {
		return page, err
	}
	if n > 0 {
		m.parts = append(m.parts, part)
		m.bytes += len(part)
		m.n += n
	}
	m.Hint(page)
	return page, nil
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

// Len is how many items were kept.
func (m *Merge) Len() int { return m.n }

// Tail is what follows the items.
type Tail struct {
	NextCursor []byte // decoded; nil: there is no further page
	Revision   Revision
	Private    bool          // cacheScope is private whatever the targets said: policies depend on the caller
	MaxTTL     time.Duration // bound of ttlMs; if zero, none
	Meta       []byte        // raw _meta; nil: none
}

// AppendResult appends the result object. In the stateless era it says resultType, ttlMs and cacheScope.
func (m *Merge) AppendResult(dst []byte, t Tail) []byte {
	dst = slices.Grow(dst, m.bytes+len(m.parts)+len(t.NextCursor)+len(t.Meta)+128)
	dst = append(AppendString(append(dst, '{'), m.list.Member()), ":["...)
	for i, part := range m.parts {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = append(dst, part...)
	}
	dst = append(dst, ']')
	if t.NextCursor != nil {
		dst = AppendString(append(dst, `,"nextCursor":`...), t.NextCursor)
	}
	if t.Revision.HasResultType() {
		ttl := m.ttl
		if t.MaxTTL > 0 {
			ttl = min(ttl, t.MaxTTL)
		}
		scope := "public"
		if m.private || t.Private || m.pages == 0 {
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
