package mux

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sluicegate/sluice/dataplane/mcp"
	"github.com/sluicegate/sluice/dataplane/session"
	"github.com/sluicegate/sluice/dataplane/snapshot"
	"github.com/sluicegate/sluice/dataplane/upstream"
	"github.com/sluicegate/sluice/internal/policy"
)

// list serves the four lists: one page of each target that has one, merged, admitted and renamed.
func (m *Mux) list(w http.ResponseWriter, x *Request) error {
	list := x.Message.Info().List
	if t := x.alone(); t != nil && !x.prefixed() && !t.Policy.Authorizes() {
		return x.listThrough(w, t, list) // nothing to rename or to take away
	}
	parts, err := x.parts()
	if err != nil {
		return err
	}
	pages := make([][]*page, len(parts))
	whole := !x.prefixed() && x.alone() == nil && (list == mcp.Tools || list == mcp.Prompts)
	errs := x.eachOf(x.HTTP.Context(), targetsOf(parts), func(ctx context.Context, x *Request, t *snapshot.Target) error {
		i := indexOf(parts, t)
		if whole {
			// Who owns a name without a prefix takes all names of all targets before: there are no pages then.
			all, err := x.allPages(ctx, t, list)
			pages[i] = all
			return err
		}
		p, err := x.page(ctx, t, list, parts[i].cursor)
		if err == nil {
			pages[i] = []*page{p}
		}
		return err
	})
	var missing missing
	for i, p := range parts {
		if errs[i] != nil {
			missing.add(p.target, errs[i])
		}
	}
	if err := missing.refuse(x, len(parts), errs); err != nil {
		return err
	}
	return x.merge(w, list, parts, pages, whole, missing)
}

// part is one target's share of a page.
type part struct {
	target *snapshot.Target
	cursor *string // nil: the first page
}

// parts are the pages that a request is for: the first of every target, or those that its cursor names.
func (x *Request) parts() ([]part, error) {
	if !x.Message.Cursor.IsString() {
		parts := make([]part, len(x.Backend.Targets))
		for i, t := range x.Backend.Targets {
			parts[i] = part{target: t}
		}
		return parts, nil
	}
	raw := x.Message.Cursor.String()
	if t := x.alone(); t != nil {
		return []part{{t, &raw}}, nil // cursors of the only target are its own
	}
	invalid := x.fail(http.StatusOK, mcp.CodeInvalidParams, "Invalid cursor: begin the list anew")
	if x.Codec == nil {
		return nil, invalid
	}
	cur, err := x.Codec.OpenCursor(x.Scope, raw)
	if err != nil || cur.Epoch != x.epoch() {
		return nil, invalid
	}
	var parts []part
	for _, p := range cur.Parts {
		if t := x.target(p.Target); t != nil {
			parts = append(parts, part{t, &p.Cursor})
		}
	}
	if len(parts) == 0 {
		return nil, invalid
	}
	return parts, nil
}

// epoch names the targets and their places: a cursor is no good among others.
func (x *Request) epoch() string {
	h := uint32(offset32)
	for _, t := range x.Backend.Targets {
		h = fnv1a(h, t.Name) ^ place(t)
	}
	return string(binary.BigEndian.AppendUint32(nil, h))
}

func targetsOf(parts []part) []*snapshot.Target {
	targets := make([]*snapshot.Target, len(parts))
	for i, p := range parts {
		targets[i] = p.target
	}
	return targets
}

func indexOf(parts []part, t *snapshot.Target) int {
	for i, p := range parts {
		if p.target == t {
			return i
		}
	}
	return -1
}

// merge writes one page of the pages of several targets. Nil pages are those of targets that are missing.
func (x *Request) merge(w http.ResponseWriter, list mcp.List, parts []part, pages [][]*page, whole bool, missing missing) error {
	merge := mcp.NewMerge(list, x.mux.cfg.Limits)
	private := false
	var next []session.Part
	owned := map[string]string{} // whole: name → target
	size := 0
	for i, part := range parts {
		if whole {
			x.claim(part.target, list, pages[i], owned)
		}
		keep := x.keeper(part.target, list, owned)
		for _, p := range pages[i] {
			size += len(p.result) + len(p.result)/8
			read, err := merge.Add(p.result, keep)
			if err != nil {
				x.Record.Err = err
				return x.unreadable(part.target, list)
			}
			if read.NextCursor.IsString() && !whole {
				next = append(next, session.Part{Target: part.target.Name, Cursor: read.NextCursor.String()})
			}
		}
		if list == mcp.Tools || list == mcp.Prompts {
			if all := pages[i]; len(all) > 0 && part.cursor == nil && (whole || len(next) == 0 || next[len(next)-1].Target != part.target.Name) && x.watches(part.target) {
				x.learn(part.target, list, all)
			}
		}
		private = private || part.target.Policy.ReadsPrincipal() || part.target.Policy.Passthrough()
	}
	tail := mcp.Tail{Revision: x.revision(), Private: private, Meta: missing.meta()}
	switch {
	case len(next) == 0:
	case x.alone() != nil:
		tail.NextCursor = append([]byte{}, next[0].Cursor...)
	case x.Codec == nil:
		return x.fail(http.StatusServiceUnavailable, mcp.CodeInternal, "this proxy has no session keys yet; try again")
	default:
		tail.NextCursor = []byte(x.Codec.SealCursor(x.Scope, session.Cursor{Epoch: x.epoch(), Parts: next}))
	}
	buf := listBuffers.Get().(*[]byte)
	defer listBuffers.Put(buf)
	body := append(slices.Grow((*buf)[:0], size+1024), `{"jsonrpc":"2.0","id":`...)
	body = append(append(body, x.Message.RawID()...), `,"result":`...)
	body = append(merge.AppendResult(body, tail), '}')
	if cap(body) <= 4<<20 {
		*buf = body
	}
	return x.write(w, body)
}

// listBuffers hold merged lists while they are written.
var listBuffers = sync.Pool{New: func() any { return new([]byte) }}

// keeper says what of a target's list the client sees, and under which name.
func (x *Request) keeper(t *snapshot.Target, list mcp.List, owned map[string]string) func(*mcp.Item) bool {
	kind := [...]policy.ItemKind{mcp.Tools: policy.Tool, mcp.Prompts: policy.Prompt, mcp.Resources: policy.Resource, mcp.Templates: policy.Template}[list]
	rules, wraps, prefixed := t.Policy.Authorizes(), x.wraps(t), x.prefixed()
	return func(it *mcp.Item) bool {
		name := it.Name
		switch list {
		case mcp.Resources:
			name = it.URI
		case mcp.Templates:
			name = it.URITemplate
		}
		if !name.IsString() {
			return false // it could not be asked for
		}
		if owner, ok := owned[string(name.Value)]; ok && owner != t.Name {
			return false
		}
		if rules && !x.admitList(t, kind, name.String(), it.Annotations.Of(it.Raw)) {
			return false
		}
		switch {
		case kind == policy.Resource || kind == policy.Template:
			if wraps {
				it.SetURI([]byte(joinURI(t.Name, name.String())))
			}
		default:
			if prefixed {
				it.Rename([]byte(joinName(t.Name, name.String())))
			}
			if wraps && it.UI.IsString() {
				it.Edits.String(it.UI.Span, []byte(joinURI(t.Name, it.UI.String())))
			}
		}
		return true
	}
}

// claim gives the names of a target's list to it, but those that a target before it has. These are told once.
func (x *Request) claim(t *snapshot.Target, list mcp.List, pages []*page, owned map[string]string) {
	for _, p := range pages {
		_, _ = mcp.ReadList(list, p.result, x.mux.cfg.Limits, func(it *mcp.Item) error {
			name := it.Name.String()
			owner, taken := owned[name]
			if !taken {
				owned[name] = t.Name
				return nil
			}
			if owner == t.Name {
				return nil
			}
			key := t.Resource + "\x00" + list.Method() + "\x00" + name
			if _, told := x.mux.reported.get(key); !told {
				x.mux.reported.put(key, struct{}{}, 1, time.Time{})
				x.mux.log.Warn("name is hidden: an earlier target has it", "tenant", t.Tenant.Name, "backend", x.Backend.Name,
					"target", t.Name, "owner", owner, "list", list.Method(), "name", name)
			}
			return nil
		})
	}
}

// page is one page of one target's list as the target sent it.
type page struct {
	result []byte
}

// allPages reads a whole list.
func (x *Request) allPages(ctx context.Context, t *snapshot.Target, list mcp.List) ([]*page, error) {
	var pages []*page
	for cursor := (*string)(nil); len(pages) < maxPages; {
		p, err := x.page(ctx, t, list, cursor)
		if err != nil {
			return nil, err
		}
		pages = append(pages, p)
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
	if t.Refused != nil || !x.caches(t) {
		return x.forward(w, t, item{lifecycle: true})
	}
	x.Record.Target = t.Name
	if p := x.cached(key); p != nil {
		return x.answer(w, p.result)
	}
	f, own, err := x.fetchShared(x.HTTP.Context(), t, list, cursor, key)
	if err != nil {
		return err
	}
	if !own {
		if f.page == nil {
			return f.failure(x, t, list)
		}
		return x.answer(w, f.page.result)
	}
	x.head(w, t, f.resp)
	_, _ = w.Write(f.raw)
	return nil
}

// caches reports whether the target's lists may be kept at all.
func (x *Request) caches(t *snapshot.Target) bool {
	return x.stateless() || t.Config.GetListCache() != nil
}

func (x *Request) pageKey(t *snapshot.Target, list mcp.List, cursor *string) pageKey {
	key := pageKey{digest: t.Digest, principal: "=" + x.Scope.Principal, caps: x.capabilities(), era: x.Verdict.Era, list: list,
		first: cursor == nil, changes: x.mux.changes(t, list)}
	if cursor != nil {
		key.cursor = *cursor
	}
	return key
}

// public is the key of a page that all callers share.
func (k pageKey) public() pageKey {
	k.principal = ""
	return k
}

// cached is a page that is still good, nil if there is none.
func (x *Request) cached(key pageKey) *page {
	if x.mux.pages.empty() {
		return nil
	}
	if p, ok := x.mux.pages.get(key); ok {
		return p
	}
	p, _ := x.mux.pages.get(key.public())
	return p
}

// page returns one page, from the cache if the target lets it be cached. Admission comes after.
func (x *Request) page(ctx context.Context, t *snapshot.Target, list mcp.List, cursor *string) (*page, error) {
	var f *fetched
	var err error
	if !x.caches(t) {
		f, err = x.fetch(ctx, t, list, cursor)
	} else {
		key := x.pageKey(t, list, cursor)
		if p := x.cached(key); p != nil {
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
	v, err, _ := x.mux.flights.Do("page\x00"+key.flight(), func() (any, error) {
		own = true
		ctx, cancel := x.mux.fanOut(context.WithoutCancel(ctx), t)
		defer cancel()
		f, err := x.fetch(ctx, t, list, cursor)
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
		} else if read.CacheScope == "public" && !t.Policy.Passthrough() {
			k = key.public()
		}
		if ttl = min(ttl, maxTTL); ttl > 0 {
			x.mux.pages.put(k, f.page, 512+len(f.page.result), time.Now().Add(ttl))
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
	return string(append(b, k.principal...))
}

// fetched is a target's answer to a list request.
type fetched struct {
	page *page              // nil: the answer is an error
	resp *upstream.Response // its body is read
	raw  []byte             // the body as it came
	msg  *mcp.Message
}

// fetch asks the target for one page. A target without the capability has an empty list.
func (x *Request) fetch(ctx context.Context, t *snapshot.Target, list mcp.List, cursor *string) (*fetched, error) {
	resp, err := x.send(ctx, t, outgoing{body: x.listRequest(list, cursor), method: list.Method(), safe: true})
	if err != nil {
		return nil, err
	}
	msg, raw, err := x.readWhole(t, resp)
	if err != nil {
		return nil, err
	}
	f := &fetched{resp: resp, raw: raw, msg: msg}
	if msg.Error.Present() {
		if code, _ := errorCode(msg); code == mcp.CodeMethodNotFound && x.alone() == nil {
			f.page = &page{result: []byte("{}")}
		}
		return f, nil
	}
	f.page = &page{result: msg.Result.Of(msg.Body)}
	return f, nil
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
		return x.fail(http.StatusBadGateway, mcp.CodeInternal, "target %q refused %s: %s", t.Name, list.Method(), errorMessage(f.msg))
	}
	fail := x.fail(f.resp.Status, e.Code, "%s", e.Message)
	fail.Data = e.Data
	return fail
}

// listRequest is the client's own request with a target's cursor, or one of the proxy's in the client's name.
func (x *Request) listRequest(list mcp.List, cursor *string) []byte {
	msg := x.Message
	if msg.Method == list.Method() && cursor == nil && !msg.Cursor.Present() {
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
	return mcp.AppendRequest(nil, []byte(`"sluice-list"`), list.Method(), append(params, '}'))
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
	if m.changed.empty() {
		return 0
	}
	n, ok := m.changed.get(changeKey{t.Digest, list})
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
	n, ok := m.changed.get(key)
	if !ok {
		n = &atomic.Uint64{}
		n.Store(uint64(time.Now().UnixNano())) // never a number that was used before it was evicted
		m.changed.put(key, n, 1, time.Time{})
	}
	n.Add(1)
}
