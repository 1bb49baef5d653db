package mcp

import (
	"math"
	"strconv"
	"time"
)

// List is one of the lists that targets have.
type List uint8

// The lists.
const (
	NoList List = iota
	Tools
	Prompts
	Resources
	Templates
	Tasks // 2025-11-25 alone
)

// Method is the list's method; "" for NoList.
func (l List) Method() string {
	return [...]string{"", "tools/list", "prompts/list", "resources/list", "resources/templates/list", "tasks/list"}[l]
}

// Member is the result's member that holds the items; "" for NoList.
func (l List) Member() string {
	return [...]string{"", "tools", "prompts", "resources", "resourceTemplates", "tasks"}[l]
}

// itemOf is how errors call an item.
func (l List) itemOf() string {
	return [...]string{"", "an item of tools", "an item of prompts", "an item of resources", "an item of resourceTemplates",
		"an item of tasks"}[l]
}

// resultOf is how errors call the list's result.
func (l List) resultOf() string {
	return [...]string{"", "the tools/list result", "the prompts/list result", "the resources/list result", "the resources/templates/list result",
		"the tasks/list result"}[l]
}

// An Item of a list. Spans index Raw, which aliases the result that it came from. It is only valid during the
// callback that it is shown to.
type Item struct {
	Raw         []byte
	Name        Text // tools, prompts; of resources only a label
	URI         Text // resources
	URITemplate Text // templates
	TaskID      Text // tasks
	Annotations Span // tools: what authorization may read
	InputSchema Span // tools: where x-mcp-header stands
	Meta        Span // _meta
	UI          Text // tools: _meta.ui.resourceUri
	UIBefore    Text // tools: _meta["ui/resourceUri"], as MCP Apps had it first; many say both

	// Edits are done when the item is written. Rename and SetURI are the usual ones.
	Edits Edits
}

// Rename gives the item another name.
func (it *Item) Rename(name []byte) { it.Edits.String(it.Name.Span, name) }

// SetURI gives a resource another uri, or a template another uriTemplate.
func (it *Item) SetURI(uri []byte) {
	if it.URITemplate.IsString() {
		it.Edits.String(it.URITemplate.Span, uri)
		return
	}
	it.Edits.String(it.URI.Span, uri)
}

// Page is what a list's result holds beside its items. It aliases the result.
type Page struct {
	Items      int
	NextCursor Text          // nil Value: no further page; "" is a cursor
	TTL        time.Duration // ttlMs; meaningful if HasTTL
	HasTTL     bool
	CacheScope string // "public", "private", or "" where the target said nothing
	Meta       []byte // raw _meta; nil: none
}

var (
	resultNames [Tasks + 1]*names
	itemNames   = [...]*names{
		Tools:     readNames("name", "annotations", "inputSchema", "_meta"),
		Prompts:   readNames("name", "_meta"),
		Resources: readNames("name", "uri", "_meta"),
		Templates: readNames("name", "uriTemplate", "_meta"),
		Tasks:     readNames("taskId", "_meta"),
	}
	itemMetaNames = readNames("ui", "ui/resourceUri")
	uiNames       = readNames("resourceUri")
)

func init() {
	for l := Tools; l <= Tasks; l++ {
		resultNames[l] = readNames(l.Member(), "nextCursor", "ttlMs", "cacheScope", "_meta")
	}
}

// ReadList shows each item of a list's result to f and returns the rest. The items' array may be missing: the
// page is empty then. The error is f's own, or an [*Error] for a result that is no such list (a target's
// fault: its Code and Status are those of a bad body and not for the client). Items that were shown before
// the fault was met are to be forgotten.
func ReadList(l List, result []byte, lim Limits, f func(*Item) error) (Page, error) {
	var page Page
	if len(result) > lim.MaxBytes() {
		return page, refusal(413, CodeInvalidRequest, "the %s result has more than %d bytes", l.Method(), lim.MaxBytes())
	}
	s := &scanner{b: result, maxDepth: lim.depth()}
	i, err := s.list(s.ws(0), l, &page, f)
	if err != nil {
		return page, err
	}
	if s.end(i) < 0 {
		return page, s.syntax
	}
	return page, nil
}

// list walks the result at i, see [ReadList]. The error is what is wrong beyond syntax, or f's.
func (s *scanner) list(i int, l List, page *Page, f func(*Item) error) (int, error) {
	if i >= len(s.b) || s.b[i] != '{' {
		return i, refusal(400, CodeInvalidRequest, "the %s result is no object", l.Method())
	}
	var o object
	i = o.begin(s, i, l.resultOf(), resultNames[l])
	for i >= 0 {
		name, _, at, done := o.next(s, i)
		if done {
			i = at
			break
		}
		switch name {
		case l.Member():
			var err error
			if i, err = s.items(at, l, page, f); err != nil {
				return i, err
			}
		case "nextCursor":
			page.NextCursor, i = s.text(at)
		case "ttlMs":
			var v Span
			if v, i = s.raw(at); i >= 0 {
				page.TTL, page.HasTTL = milliseconds(v.Of(s.b))
			}
		case "cacheScope":
			var t Text
			t, i = s.text(at)
			page.CacheScope = string(t.Value)
		case "_meta":
			var v Span
			v, i = s.raw(at)
			page.Meta = v.Of(s.b)
		default:
			i = s.skip(at)
		}
	}
	if i >= 0 && s.refused != nil {
		return i, s.refused
	}
	return i, nil
}

// milliseconds reads ttlMs, whose fraction does not matter.
func milliseconds(raw []byte) (time.Duration, bool) {
	ms, err := strconv.ParseFloat(string(raw), 64)
	if err != nil || ms < 0 {
		return 0, false
	}
	return time.Duration(min(ms, math.MaxInt64/1e7)) * time.Millisecond, true
}

// items walks the array at i.
func (s *scanner) items(i int, l List, page *Page, f func(*Item) error) (int, error) {
	if i >= len(s.b) || s.b[i] != '[' {
		if i = s.skip(i); i >= 0 {
			s.refuse("%s in the %s result is no array", l.Member(), l.Method())
		}
		return i, nil
	}
	if i = s.open(i, false); i < 0 {
		return i, nil
	}
	var it Item
	for i = s.ws(i); i >= len(s.b) || s.b[i] != ']'; i = s.ws(i) {
		if page.Items > 0 {
			if i >= len(s.b) || s.b[i] != ',' {
				return s.fail(i, "',' or ']' is missing"), nil
			}
			i = s.ws(i + 1)
		}
		start := i
		if i = s.item(i, l, &it); i < 0 {
			return i, nil
		}
		if s.refused != nil {
			return i, s.refused
		}
		it.settle(s.b, start, i)
		page.Items++
		if err := f(&it); err != nil {
			return i, err
		}
	}
	s.depth--
	return i + 1, nil
}

// settle makes the spans of an item relative to it.
func (it *Item) settle(b []byte, start, end int) {
	it.Raw = b[start:end:end]
	for _, s := range []*Span{&it.Name.Span, &it.URI.Span, &it.URITemplate.Span, &it.Annotations, &it.InputSchema, &it.Meta, &it.UI.Span, &it.UIBefore.Span,
		&it.TaskID.Span} {
		if s.Present() {
			s.Start -= int32(start)
			s.End -= int32(start)
		}
	}
}

func (s *scanner) item(i int, l List, it *Item) int {
	it.Edits.Reset()
	*it = Item{Edits: Edits{edits: it.Edits.edits, buf: it.Edits.buf}}
	if i >= len(s.b) || s.b[i] != '{' {
		if i = s.skip(i); i >= 0 {
			s.refuse("%s is no object", l.itemOf())
		}
		return i
	}
	var o object
	i = o.begin(s, i, l.itemOf(), itemNames[l])
	for i >= 0 {
		name, _, at, done := o.next(s, i)
		if done {
			i = at
			break
		}
		switch name {
		case "name":
			it.Name, i = s.text(at)
		case "uri":
			it.URI, i = s.text(at)
		case "uriTemplate":
			it.URITemplate, i = s.text(at)
		case "taskId":
			it.TaskID, i = s.text(at)
		case "annotations":
			it.Annotations, i = s.raw(at)
		case "inputSchema":
			it.InputSchema, i = s.raw(at)
		case "_meta":
			i = s.itemMeta(at, it)
		default:
			i = s.skip(at)
		}
	}
	if i >= 0 {
		s.checkItem(l, it)
	}
	return i
}

func (s *scanner) checkItem(l List, it *Item) {
	switch {
	case (l == Tools || l == Prompts) && !it.Name.IsString():
		s.refuse("%s has no name", l.itemOf())
	case l == Resources && !it.URI.IsString():
		s.refuse("%s has no uri", l.itemOf())
	case l == Templates && !it.URITemplate.IsString():
		s.refuse("%s has no uriTemplate", l.itemOf())
	case l == Tasks && !it.TaskID.IsString():
		s.refuse("%s has no taskId", l.itemOf())
	}
}

// itemMeta reads _meta, in it ui, and in that resourceUri, or all of it in one name.
func (s *scanner) itemMeta(at int, it *Item) int {
	start := at
	i := s.within(at, "an item's _meta", itemMetaNames, func(name string, at int) (i int) {
		if name == "ui/resourceUri" {
			it.UIBefore, i = s.text(at)
			return i
		}
		return s.within(at, "an item's _meta.ui", uiNames, func(_ string, at int) (i int) {
			it.UI, i = s.text(at)
			return i
		})
	})
	it.Meta = span(start, i)
	return i
}

// within calls f at the members of the object at i that names has; a value of another type is skipped.
func (s *scanner) within(i int, what string, names *names, f func(name string, at int) int) int {
	if i >= len(s.b) || s.b[i] != '{' {
		return s.skip(i)
	}
	var o object
	i = o.begin(s, i, what, names)
	for i >= 0 {
		name, _, at, done := o.next(s, i)
		switch {
		case done:
			return at
		case name != "":
			i = f(name, at)
		default:
			i = s.skip(at)
		}
	}
	return i
}
