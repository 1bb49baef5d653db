package mux

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sluicegate/sluice/dataplane/mcp"
	"github.com/sluicegate/sluice/dataplane/snapshot"
	"github.com/sluicegate/sluice/dataplane/upstream"
	"github.com/sluicegate/sluice/internal/policy"
)

// page is one page of one target's list as the target sent it.
type page struct {
	result []byte
	part   *mcp.Part // what was made of it for one client's list as it was read; nil: make it of result
	body   []byte    // where result stands
}

// size is about how many bytes a page takes that is kept, which has no part: all that its target has said around it.
func (p *page) size() int { return 128 + max(cap(p.body), len(p.result)) }

// pagesRoom is memory for pages that end with their request. Lists are long, and each would have to be cleared first.
var pagesRoom sync.Pool

func roomOfPages(size int) []byte {
	if b, ok := pagesRoom.Get().(*[]byte); ok && cap(*b) >= size {
		return (*b)[:0]
	}
	return make([]byte, 0, size)
}

// free gives the memory of a page back, if it is this request's alone. Nothing may look at the page any more.
func (p *page) free() {
	if p.part == nil {
		return
	}
	for _, b := range [][]byte{p.body, p.part.Items} {
		if 16<<10 <= cap(b) && cap(b) <= 1<<20 {
			unlend(b)
			pagesRoom.Put(&b)
		}
	}
}

// keeper says what of a list a client sees, and changes it on the way.
type keeper func(*mcp.Item) bool

// maxWhole bounds what a whole list may take while it is read, in bytes.
const maxWhole = 64 << 20

// allPages reads a whole list.
func (x *Request) allPages(ctx context.Context, t *snapshot.Target, list mcp.List) ([]*page, error) {
	var pages []*page
	size := 0
	for cursor := (*string)(nil); len(pages) < maxPages; {
		p, err := x.page(ctx, t, list, cursor, nil)
		if err != nil {
			return nil, err
		}
		pages = append(pages, p)
		if size += len(p.result); size > maxWhole {
			return nil, x.fail(http.StatusBadGateway, mcp.CodeInternal, "target %q lists more than %d bytes by %s", t.Name, maxWhole, list.Method())
		}
		read, err := x.read(t, list, p)
		if err != nil {
			return nil, err
		}
		if !read.NextCursor.IsString() {
			break
		}
		next := read.NextCursor.String()
		cursor = &next
	}
	return pages, nil
}

// pageKey is all that a page may depend on. The target's digest covers its policies and credentials.
type pageKey struct {
	digest    string
	principal string // "" of a page that all may share, else "=" and the principal
	vary      string // see [Request.vary]
	caps      uint64
	era       mcp.Era
	list      mcp.List
	first     bool
	cursor    string
	changes   uint64
}

// listThrough passes the only target's answer on in the form that it has, unless the list is cached.
func (x *Request) listThrough(w http.ResponseWriter, t *snapshot.Target, list mcp.List) error {
	var cursor *string
	if x.Message.Cursor.IsString() {
		own := x.Message.Cursor.String()
		cursor = &own
	}
	key := x.pageKey(t, list, cursor)
	odd := x.Message.Cursor.Present() && cursor == nil // what is no cursor is for the target to refuse, and no page is kept by it
	if t.Refused != nil || odd || !x.caches(t, list) {
		return x.forward(w, t, item{lifecycle: true})
	}
	x.Record.Target = t.Name
	if err := x.take(t, policy.None, ""); err != nil {
		return err
	}
	hinted := func(p *page) []byte { return p.result }
	if x.restricts(t) {
		hinted = func(p *page) []byte { return mcp.MakePrivate(p.result) }
	}
	if p := x.cached(t, key); p != nil {
		return x.answerFor(w, t, hinted(p))
	}
	f, own, err := x.fetchShared(x.HTTP.Context(), t, list, cursor, key)
	if err != nil {
		return err
	}
	if !own {
		if f.page == nil {
			return f.failure(x, t, list)
		}
		return x.answerFor(w, t, hinted(f.page))
	}
	resp, raw := *f.resp, f.raw
	if f.page != nil && x.restricts(t) {
		resp.Header = f.resp.Header.Clone()
		resp.Header["Content-Type"] = typeJSON
		raw = mcp.AppendResult(nil, x.Message.RawID(), hinted(f.page))
	}
	if err := x.head(w, t, &resp); err != nil {
		return err
	}
	_, _ = w.Write(raw)
	return nil
}

// caches reports whether a target's list may be kept at all. Tasks come, change and go without a word.
func (x *Request) caches(t *snapshot.Target, list mcp.List) bool {
	return list != mcp.Tasks && (x.stateless() || t.Config.GetListCache() != nil)
}

func (x *Request) pageKey(t *snapshot.Target, list mcp.List, cursor *string) pageKey {
	key := pageKey{digest: t.Digest, principal: "=" + x.caller(), vary: x.vary(t), caps: x.capabilities(), era: x.Verdict.Era, list: list,
		first: cursor == nil, changes: x.mux.changes(t, list)}
	if cursor != nil {
		key.cursor = *cursor
	}
	return key
}

func (k pageKey) size() int { return len(k.digest) + len(k.principal) + len(k.vary) + len(k.cursor) }

// public is the key of a page that all callers share.
func (k pageKey) public() pageKey {
	k.principal = ""
	return k
}

// cached is a page that is still good, nil if there is none.
func (x *Request) cached(t *snapshot.Target, key pageKey) *page {
	if x.mux.pages.Empty() {
		return nil
	}
	if p, ok := x.mux.pages.Get(t.Tenant.Name, key); ok {
		return p
	}
	p, _ := x.mux.pages.Get(t.Tenant.Name, key.public())
	return p
}

// page returns one page, from the cache if the target lets it be cached. Admission comes after; for what only this
// request sees it may take place while the answer is read, if keep says how.
func (x *Request) page(ctx context.Context, t *snapshot.Target, list mcp.List, cursor *string, keep keeper) (*page, error) {
	var f *fetched
	var err error
	if !x.caches(t, list) {
		f, err = x.fetch(ctx, t, list, cursor, keep)
	} else {
		key := x.pageKey(t, list, cursor)
		if p := x.cached(t, key); p != nil {
			return p, nil
		}
		f, _, err = x.fetchShared(ctx, t, list, cursor, key)
	}
	if err != nil {
		return nil, err
	}
	if f.page == nil {
		return nil, f.failure(x, t, list)
	}
	return f.page, nil
}

// fetchShared fetches a page for all requests of one caller that need it at the same time, and keeps it as long as the
// target says. Until the answer is there nobody knows whether other callers may share it. own is true for the request
// that was sent.
func (x *Request) fetchShared(ctx context.Context, t *snapshot.Target, list mcp.List, cursor *string, key pageKey) (f *fetched, own bool, err error) {
	v, err, _ := x.mux.flights.Do("page\x00"+t.Tenant.Name+"\x00"+key.flight(), func() (any, error) {
		own = true
		ctx, cancel := x.mux.fanOut(context.WithoutCancel(ctx), t)
		defer cancel()
		f, err := x.fetch(ctx, t, list, cursor, nil)
		if err != nil || f.page == nil {
			return f, err
		}
		read, err := x.read(t, list, f.page)
		if err != nil {
			return nil, err
		}
		ttl, k := read.TTL, key
		if !x.stateless() {
			ttl = t.Config.GetListCache().AsDuration()
		} else if read.CacheScope == "public" && !t.Policy.PerCaller() && !t.Policy.GuardsAsk(policy.ToClient) {
			k = key.public()
		}
		if ttl = min(ttl, maxTTL); ttl > 0 {
			x.mux.pages.Put(t.Tenant.Name, k, f.page, k.size()+f.page.size(), time.Now().Add(ttl))
		}
		return f, nil
	})
	if err != nil {
		return nil, own, x.readdress(err)
	}
	return v.(*fetched), own, nil
}

// maxTTL bounds what targets ask for: the proxy would hold what it cannot be told to drop.
const maxTTL = 10 * time.Minute

func (k pageKey) flight() string {
	b := append([]byte(k.digest), 0)
	b = binary.BigEndian.AppendUint64(b, k.caps)
	b = binary.BigEndian.AppendUint64(b, k.changes)
	b = append(b, byte(k.era), byte(k.list))
	b = strconv.AppendBool(b, k.first)
	b = strconv.AppendQuote(b, k.cursor)
	b = strconv.AppendQuote(b, k.vary)
	return string(append(b, k.principal...))
}

// fetched is a target's answer to a list request.
type fetched struct {
	page *page              // nil: the answer is an error
	resp *upstream.Response // its body is read
	raw  []byte             // the body as it came; nil where a part was made of it
	msg  *mcp.Message
}

// fetch asks the target for one page. A target without the capability has an empty list.
func (x *Request) fetch(ctx context.Context, t *snapshot.Target, list mcp.List, cursor *string, keep keeper) (*fetched, error) {
	resp, err := x.send(ctx, t, outgoing{body: x.listRequest(list, cursor), method: list.Method(), safe: true})
	if err != nil && x.knowsNoTasks(list, cursor) {
		return &fetched{page: &page{result: []byte("{}")}}, nil
	}
	if err != nil {
		return nil, err
	}
	var part *mcp.Part
	f := &fetched{resp: resp}
	if keep != nil && !t.Policy.Guards(policy.ToClient) { // guards see all of an answer before anything is made of it
		f.msg, part, err = x.readPart(t, resp, list, keep)
	} else {
		f.msg, f.raw, err = x.readWhole(t, resp, x.scanned())
	}
	if err != nil {
		return nil, err
	}
	msg := f.msg
	if msg.Error.Present() {
		if code, _ := msg.ErrorCode(); x.alone() == nil && (code == mcp.CodeMethodNotFound || list == mcp.Tasks && cursor == nil && refusesMethod(code)) {
			f.page = &page{result: []byte("{}")}
		}
		return f, nil
	}
	f.page = &page{result: msg.Result.Of(msg.Body), part: part, body: msg.Body}
	return f, nil
}

// readPart reads an answer and makes a part of its list in the same pass. The part is nil for what is no list.
func (x *Request) readPart(t *snapshot.Target, resp *upstream.Response, list mcp.List, keep keeper) (*mcp.Message, *mcp.Part, error) {
	var part *mcp.Part
	msg, err := x.readResponseBy(t, resp, reading{room: roomOfPages, scan: func(body []byte) (mcp.Message, error) {
		msg, p, ok, err := mcp.ScanPart(list, roomOfPages(len(body)+len(body)/16), body, x.mux.cfg.Limits, keep)
		if ok {
			part = &p
		}
		return msg, err
	}})
	return msg, part, err
}

// read looks at a page for what stands beside its items.
func (x *Request) read(t *snapshot.Target, list mcp.List, p *page) (mcp.Page, error) {
	read, err := mcp.ReadList(list, p.result, x.mux.cfg.Limits, func(*mcp.Item) error { return nil })
	if err != nil {
		x.Record.Err = err
		return read, x.unreadable(t, list)
	}
	return read, nil
}

func (x *Request) unreadable(t *snapshot.Target, list mcp.List) error {
	return x.fail(http.StatusBadGateway, mcp.CodeInternal, "target %q gave a %s result that cannot be read", t.Name, list.Method())
}

// failure is a target's error as the client's: the only target's in its own words.
func (f *fetched) failure(x *Request, t *snapshot.Target, list mcp.List) error {
	var e struct {
		Code    int
		Message string
		Data    json.RawMessage
	}
	if err := json.Unmarshal(f.msg.Error.Of(f.msg.Body), &e); err != nil {
		e.Code = mcp.CodeInternal
	}
	if x.alone() == nil && e.Code != mcp.CodeInvalidParams { // a bad cursor is the client's to know
		return x.fail(http.StatusBadGateway, mcp.CodeInternal, "target %q refused %s: %s", t.Name, list.Method(), f.msg.ErrorLine())
	}
	fail := x.fail(f.resp.Status, e.Code, "%s", e.Message)
	fail.Data = e.Data
	return fail
}

// listRequest is the client's own request with a target's cursor, or one of the proxy's in the client's name.
func (x *Request) listRequest(list mcp.List, cursor *string) []byte {
	msg := x.Message
	if msg.Method == list.Method() && x.asksFor(cursor) {
		return msg.Body
	}
	params := []byte{'{'}
	if cursor != nil {
		params = mcp.AppendString(append(params, `"cursor":`...), *cursor)
	}
	if meta := x.ownMeta(); meta != nil {
		if len(params) > 1 {
			params = append(params, ',')
		}
		params = append(append(params, `"_meta":`...), meta...)
	}
	return mcp.AppendRequest(nil, x.mux.ownID(), list.Method(), append(params, '}'))
}

// asksFor reports whether the client's own request is for the page at a target's cursor.
func (x *Request) asksFor(cursor *string) bool {
	own := x.Message.Cursor
	if cursor == nil {
		return !own.Present()
	}
	return x.alone() != nil && own.IsString() && own.String() == *cursor // of several, the client's cursor is sealed
}

// ownMeta is what a request of the proxy's own needs in the stateless era: who the client is and what it can.
func (x *Request) ownMeta() []byte {
	if !x.stateless() {
		return nil
	}
	b := x.Message.Body
	meta := append([]byte(`{"io.modelcontextprotocol/protocolVersion":`), strconv.Quote(string(x.Verdict.Revision))...)
	if caps := x.Message.Meta.ClientCapabilities.Of(b); caps != nil {
		meta = append(append(meta, `,"io.modelcontextprotocol/clientCapabilities":`...), caps...)
	} else {
		meta = append(meta, `,"io.modelcontextprotocol/clientCapabilities":{}`...)
	}
	if info := x.Message.Meta.ClientInfo.Of(b); info != nil {
		meta = append(append(meta, `,"io.modelcontextprotocol/clientInfo":`...), info...)
	}
	return append(meta, '}')
}

// changes counts how often a target has said that a list changed: pages of before are not found any more.
func (m *Mux) changes(t *snapshot.Target, list mcp.List) uint64 {
	if m.changed.Empty() {
		return 0
	}
	n, ok := m.changed.Get(t.Tenant.Name, changeKey{t.Digest, list})
	if !ok {
		return 0
	}
	return n.Load()
}

type changeKey struct {
	digest string
	list   mcp.List
}

func (m *Mux) forgetPages(t *snapshot.Target, list mcp.List) {
	key := changeKey{t.Digest, list}
	n, ok := m.changed.Get(t.Tenant.Name, key)
	if !ok {
		n = &atomic.Uint64{}
		n.Store(uint64(time.Now().UnixNano())) // never a number that was used before it was evicted
		m.changed.Put(t.Tenant.Name, key, n, len(t.Digest), time.Time{})
	}
	n.Add(1)
}
