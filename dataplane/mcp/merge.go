package mcp

import (
	"strconv"
	"time"
)

// A Merge makes one result of the results of several targets, in the order in which they are added.
type Merge struct {
	list  List
	lim   Limits
	items []byte
	n     int

	ttl     time.Duration
	private bool
	pages   int
}

// NewMerge begins an empty list. lim bounds each result, and lim.Bytes also the items that are kept.
func NewMerge(l List, lim Limits) *Merge { return &Merge{list: l, lim: lim} }

// Add appends the items of one result for which keep returns true, with the edits that keep made; keep nil keeps
// all. If the result is bad, nothing of it is added.
func (m *Merge) Add(result []byte, keep func(*Item) bool) (Page, error) {
	items, n := m.items, m.n
	page, err := ReadList(m.list, result, m.lim, func(it *Item) error {
		if keep != nil && !keep(it) {
			return nil
		}
		if n > 0 {
			items = append(items, ',')
		}
		items = it.Edits.Apply(items, it.Raw)
		n++
		if len(items) > m.lim.bytes() {
			return refusal(413, CodeInternal, "the merged %s result has more than %d bytes", m.list.Method(), m.lim.bytes())
		}
		return nil
	})
	if err != nil {
		return page, err
	}
	m.items, m.n = items, n
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
	dst = AppendString(append(dst, '{'), m.list.Member())
	dst = append(append(append(dst, ":["...), m.items...), ']')
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
