package newclient

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/sluicegate/sluice/dataplane/mcp"
	"github.com/sluicegate/sluice/dataplane/upstream"
)

// filter is what a subscriptions/listen asks for, and what is honoured of it.
type filter struct {
	Tools     bool     `json:"toolsListChanged,omitempty"`
	Prompts   bool     `json:"promptsListChanged,omitempty"`
	Resources bool     `json:"resourcesListChanged,omitempty"`
	URIs      []string `json:"resourceSubscriptions,omitempty"`
}

// wants reports whether a notification is one that was asked for.
func (f *filter) wants(m *mcp.Message) bool {
	switch m.Method {
	case "notifications/tools/list_changed":
		return f.Tools
	case "notifications/prompts/list_changed":
		return f.Prompts
	case "notifications/resources/list_changed":
		return f.Resources
	case "notifications/resources/updated":
		uri := m.URI.String()
		return slices.ContainsFunc(f.URIs, func(own string) bool {
			return uri == own || strings.HasPrefix(uri, strings.TrimSuffix(own, "/")+"/") // an update may be of a part
		})
	}
	return false
}

// lists are the notifications of lists that were asked for.
func (f *filter) lists() (methods []string) {
	if f.Tools {
		methods = append(methods, "notifications/tools/list_changed")
	}
	if f.Prompts {
		methods = append(methods, "notifications/prompts/list_changed")
	}
	if f.Resources {
		methods = append(methods, "notifications/resources/list_changed")
	}
	return methods
}

// listener is one subscriptions/listen. What a slow client has not read yet is kept once: that it changed is all there is
// to know.
type listener struct {
	honoured filter
	wake     chan struct{} // holds at most one

	mu      sync.Mutex
	pending map[string][]byte // guarded by mu; by method and URI: the notification
	order   []string          // guarded by mu
}

func (l *listener) add(what string, raw []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.pending[what] == nil {
		l.order = append(l.order, what)
	}
	l.pending[what] = raw
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

func (l *listener) next() []byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.order) == 0 {
		return nil
	}
	what := l.order[0]
	l.order = l.order[1:]
	raw := l.pending[what]
	delete(l.pending, what)
	return raw
}

// changed brings news to those that listen.
func (s *peer) changed(m *mcp.Message) {
	if m.Method == "notifications/tools/list_changed" {
		s.b.tools.forget(s.key.digest)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for l := range s.listeners {
		if l.honoured.wants(m) {
			l.add(m.Method+" "+m.URI.String(), m.Body)
		}
	}
}

// missed tells those that listen that everything may have changed: nobody heard for a while.
func (s *peer) missed() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for l := range s.listeners {
		l.all()
	}
}

func (l *listener) all() {
	for _, method := range l.honoured.lists() {
		l.add(method+" ", mcp.AppendNotification(nil, method, nil))
	}
	for _, uri := range l.honoured.URIs {
		method := "notifications/resources/updated"
		l.add(method+" "+uri, mcp.AppendNotification(nil, method, append(mcp.AppendString([]byte(`{"uri":`), uri), '}')))
	}
}

// enlist makes a listener hear of what the session's target honours of a filter. It waits for the stream and for the
// target's acceptance of each resource.
func (s *peer) enlist(ctx context.Context, l *listener, f filter) error {
	s.follow()
	select {
	case <-s.stream.opened:
	case <-time.After(streamWait):
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	l.honoured = filter{}
	hears := true
	select {
	case <-s.stream.opened:
		hears = !s.stream.none
	default:
	}
	if hears {
		l.honoured = filter{Tools: f.Tools && s.says.toolsChanged, Prompts: f.Prompts && s.says.promptsChanged, Resources: f.Resources && s.says.resourcesChanged}
		if s.says.subscribe {
			for _, uri := range f.URIs {
				ok, err := s.watch(ctx, uri)
				if err != nil {
					s.unwatch(l.honoured.URIs)
					return err
				}
				if ok {
					l.honoured.URIs = append(l.honoured.URIs, uri)
				}
			}
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.listeners[l] = true
	return nil
}

// delist undoes enlist.
func (s *peer) delist(l *listener) {
	s.mu.Lock()
	delete(s.listeners, l)
	s.mu.Unlock()
	s.unwatch(l.honoured.URIs)
}

// watch subscribes to a resource for one listener more. ok is false if the target refuses.
func (s *peer) watch(ctx context.Context, uri string) (ok bool, err error) {
	s.mu.Lock()
	s.watched[uri]++
	first := s.watched[uri] == 1
	s.mu.Unlock()
	if !first {
		return true, nil
	}
	msg, err := s.ask(ctx, "resources/subscribe", append(mcp.AppendString([]byte(`{"uri":`), uri), '}'))
	if err == nil && msg.Result.Present() {
		return true, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.watched[uri]--; s.watched[uri] <= 0 {
		delete(s.watched, uri)
	}
	return false, err
}

// unwatch is the end of watch; the last listener's unsubscribes.
func (s *peer) unwatch(uris []string) {
	var last []string
	s.mu.Lock()
	for _, uri := range uris {
		if s.watched[uri]--; s.watched[uri] <= 0 {
			delete(s.watched, uri)
			last = append(last, uri)
		}
	}
	over := s.closed != nil
	s.mu.Unlock()
	if len(last) == 0 || over || s.alone { // with the session all its subscriptions end
		return
	}
	s.b.later(func(ctx context.Context) {
		for _, uri := range last {
			s.mu.Lock()
			again := s.watched[uri] > 0
			s.mu.Unlock()
			if !again {
				_, _ = s.ask(ctx, "resources/unsubscribe", append(mcp.AppendString([]byte(`{"uri":`), uri), '}'))
			}
		}
	})
}

// listen serves subscriptions/listen from the session's stream and subscriptions.
func (f *stateless) listen(ctx context.Context, r *upstream.Request, m *mcp.Message) (*upstream.Response, error) {
	var asked filter
	if raw := m.Filter.Of(m.Body); raw == nil || json.Unmarshal(raw, &asked) != nil {
		return f.refuse(m, http.StatusBadRequest, mcp.CodeInvalidParams, "subscriptions/listen needs params.notifications, an object"), nil
	}
	b := &listenBody{f: f, ctx: ctx, r: r, m: m, asked: asked, l: &listener{wake: make(chan struct{}, 1), pending: map[string][]byte{}}, closed: make(chan struct{})}
	b.w = mcp.NewEventWriter(&b.buf, nil)
	resp, err := b.join()
	if errors.Is(err, errFull) {
		return f.full(m), nil
	}
	if refused, ok := errors.AsType[*unauthorizedError](err); ok {
		return (&failure{status: refused.status, header: refused.header}).answer()
	}
	if resp != nil || err != nil {
		return resp, err
	}
	params := append([]byte(`{"notifications":`), marshal(b.l.honoured)...)
	params = append(append(append(params, `,"_meta":{"`+mcp.MetaSubscriptionID+`":`...), m.RawID()...), "}}"...)
	_ = b.w.Message(mcp.AppendNotification(nil, "notifications/subscriptions/acknowledged", params))
	return &upstream.Response{Status: http.StatusOK, Header: http.Header{"Content-Type": {streamType}}, Body: b}, nil
}

// marshal is for filters, which always marshal.
func marshal(f filter) []byte {
	raw, err := json.Marshal(f)
	if err != nil {
		panic(err)
	}
	return raw
}

// listenBody is a listen's event stream. A session that is lost is replaced without the client's noticing more than
// that everything may have changed.
type listenBody struct {
	f     *stateless
	ctx   context.Context
	r     *upstream.Request
	m     *mcp.Message
	asked filter
	l     *listener

	buf  bytes.Buffer
	w    *mcp.EventWriter
	done bool

	closed chan struct{}
	once   sync.Once

	mu sync.Mutex
	p  *peer // guarded by mu; nil: there is no session now
}

// join enlists in a session.
func (b *listenBody) join() (*upstream.Response, error) {
	c := clientOf(b.m)
	for first := true; ; first = false {
		p, resp, err := b.f.join(b.ctx, b.r, b.m, &c)
		if p == nil {
			return resp, err
		}
		err = p.enlist(b.ctx, b.l, b.asked)
		if err != nil {
			p.leave()
			if errors.Is(err, errLost) && first {
				continue
			}
			return nil, err
		}
		b.mu.Lock()
		defer b.mu.Unlock()
		select {
		case <-b.closed: // meanwhile
			p.delist(b.l)
			p.leave()
			return nil, &upstream.Error{Op: "listen", Target: b.f.t.Resource, Err: errRetired}
		default:
		}
		b.p = p
		return nil, nil
	}
}

// quit is the end of join.
func (b *listenBody) quit() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.p != nil {
		b.p.delist(b.l)
		b.p.leave()
		b.p = nil
	}
}

// Read writes the next notification when the one before is gone.
func (b *listenBody) Read(p []byte) (int, error) {
	for b.buf.Len() == 0 {
		if b.done {
			return 0, io.EOF
		}
		b.buf.Reset()
		if raw := b.l.next(); raw != nil {
			tagged, err := b.tag(raw)
			if err != nil {
				continue
			}
			_ = b.w.Message(tagged)
			break
		}
		if err := b.wait(); err != nil {
			return 0, err
		}
	}
	return b.buf.Read(p)
}

// wait waits for news, and for the end of the session.
func (b *listenBody) wait() error {
	b.mu.Lock()
	p := b.p
	b.mu.Unlock()
	if p == nil {
		return io.ErrClosedPipe
	}
	select {
	case <-b.l.wake:
		return nil
	case <-b.ctx.Done():
		return context.Cause(b.ctx)
	case <-b.closed:
		return io.ErrClosedPipe
	case <-p.gone:
	}
	p.mu.Lock()
	why := p.closed
	p.mu.Unlock()
	b.quit()
	if errors.Is(why, errRetired) {
		return b.goodbye()
	}
	return b.rejoin()
}

// goodbye ends the listen politely: the client will come back, to what serves it then.
func (b *listenBody) goodbye() error {
	b.done = true
	result := append([]byte(`{"resultType":"complete","_meta":{"`+mcp.MetaSubscriptionID+`":`), b.m.RawID()...)
	return b.w.Message(mcp.AppendResult(nil, b.m.RawID(), append(result, "}}"...)))
}

// rejoin begins a session in the place of one that was lost.
func (b *listenBody) rejoin() error {
	wait := time.Second
	for {
		resp, err := b.join()
		if err == nil && resp == nil {
			b.l.all()
			return nil
		}
		if resp != nil {
			_ = resp.Body.Close()
		}
		if _, refused := errors.AsType[*RefusedError](err); refused {
			return b.goodbye() // it is of the other era now: the client's next listen finds that out
		}
		select {
		case <-time.After(wait):
		case <-b.ctx.Done():
			return context.Cause(b.ctx)
		case <-b.closed:
			return io.ErrClosedPipe
		}
		wait = min(2*wait, 30*time.Second)
	}
}

// tag puts the listen's id into the _meta of a notification.
func (b *listenBody) tag(raw []byte) ([]byte, error) {
	m, err := mcp.Scan(raw, b.f.b.cfg.Limits)
	if err != nil {
		return nil, err
	}
	var e mcp.Edits
	id := b.m.RawID()
	meta := append(append([]byte(`"_meta":{"`+mcp.MetaSubscriptionID+`":`), id...), '}')
	switch {
	case m.Meta.SubscriptionID.Present():
		e.Replace(m.Meta.SubscriptionID, id)
	case m.Meta.Span.Present():
		e.Insert(m.Body, m.Meta.Span, mcp.MetaSubscriptionID, id)
	case object(m.Params.Of(m.Body)):
		e.InsertMembers(m.Body, m.Params, meta)
	case m.Params.Present():
		e.Replace(m.Params, append(append([]byte{'{'}, meta...), '}'))
	default:
		e.InsertMembers(m.Body, whole(&m), append(append([]byte(`"params":{`), meta...), '}'))
	}
	return e.Apply(nil, m.Body), nil
}

// Close ends the listen. It may come while Read waits.
func (b *listenBody) Close() error {
	b.once.Do(func() { close(b.closed) })
	b.quit()
	return nil
}
