package newclient

import (
	"context"
	"encoding/json"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/sluicegate/sluice/dataplane/mcp"
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
	bytes   int               // guarded by mu; of pending
}

// maxPending bounds what waits for a slow client, of what a target makes up: parts of a resource can be any number.
const maxPending = 1 << 20

// add keeps a notification. full: it and those before were dropped instead, for there are too many.
func (l *listener) add(what string, raw []byte) (full bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if old := l.pending[what]; old == nil {
		l.order = append(l.order, what)
		l.bytes += len(what)
	} else {
		l.bytes -= len(old)
	}
	l.pending[what] = raw
	if l.bytes += len(raw); l.bytes > maxPending && len(l.order) > 1 {
		clear(l.pending)
		l.order, l.bytes = nil, 0
		full = true
	}
	select {
	case l.wake <- struct{}{}:
	default:
	}
	return full
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
	l.bytes -= len(what) + len(raw)
	return raw
}

// news reports whether a notification is for those that listen.
func news(method string) bool {
	switch method {
	case "notifications/tools/list_changed", "notifications/prompts/list_changed", "notifications/resources/list_changed", "notifications/resources/updated":
		return true
	}
	return false
}

// changed brings news to those that listen.
func (s *peer) changed(m *mcp.Message) {
	if m.Method == "notifications/tools/list_changed" {
		s.b.forgetTools(s.key.digest)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for l := range s.listeners {
		if l.honoured.wants(m) && l.add(m.Method+" "+m.URI.String(), m.Body) {
			l.all()
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
// target's acceptance of each resource; what comes meanwhile is the listener's already.
func (s *peer) enlist(ctx context.Context, l *listener, f filter) error {
	s.follow()
	select {
	case <-s.stream.opened:
	case <-time.After(streamWait):
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	hears := true
	select {
	case <-s.stream.opened:
		hears = !s.stream.none
	default:
	}
	s.mu.Lock()
	l.honoured = filter{Tools: hears && f.Tools && s.says.toolsChanged, Prompts: hears && f.Prompts && s.says.promptsChanged, Resources: hears && f.Resources && s.says.resourcesChanged}
	s.listeners[l] = true
	s.mu.Unlock()
	if !hears || !s.says.subscribe {
		return nil
	}
	seen := make(map[string]bool, len(f.URIs))
	for _, uri := range f.URIs {
		if seen[uri] || !s.want(uri) {
			continue // it is not honoured, which the client is told
		}
		seen[uri] = true
		s.mu.Lock()
		l.honoured.URIs = append(l.honoured.URIs, uri)
		s.mu.Unlock()
		ok, err := s.watch(ctx, uri)
		if err != nil {
			s.delist(l)
			return err
		}
		if !ok {
			s.mu.Lock()
			l.honoured.URIs = l.honoured.URIs[:len(l.honoured.URIs)-1]
			s.mu.Unlock()
			s.unwatch([]string{uri})
		}
	}
	return nil
}

// delist undoes enlist.
func (s *peer) delist(l *listener) {
	s.mu.Lock()
	delete(s.listeners, l)
	s.mu.Unlock()
	s.unwatch(l.honoured.URIs)
}

// watch is a resource that some listen for in a session.
type watch struct {
	n    int           // guarded by peer.mu; of listeners
	turn chan struct{} // held while the target is told, so that it hears of what is wanted last; capacity 1
	on   bool          // guarded by turn; the target has accepted
}

// maxWatched bounds the resources that are listened for in a session, in bytes of their URIs and what is kept beside each, and
// maxWatchedAll those of each tenant.
const (
	maxWatched    = 1 << 20
	maxWatchedAll = 64 << 20
	watchSize     = 256
)

// want notes a resource for one listener more, if there is room.
func (s *peer) want(uri string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	w := s.watched[uri]
	if w == nil {
		size := len(uri) + watchSize
		if s.dropped || s.watching+size > maxWatched || !s.b.watched.Take(s.t.Tenant.Name, s.whose, size) {
			return false
		}
		s.watching += size
		w = &watch{turn: make(chan struct{}, 1)}
		s.watched[uri] = w
	}
	w.n++
	return true
}

// watch subscribes to a resource that somebody wants. ok is false if the target refuses.
func (s *peer) watch(ctx context.Context, uri string) (ok bool, err error) {
	s.mu.Lock()
	w := s.watched[uri]
	s.mu.Unlock()
	select {
	case w.turn <- struct{}{}:
		defer func() { <-w.turn }()
	case <-ctx.Done():
		return false, context.Cause(ctx)
	}
	if !w.on {
		msg, err := s.ask(ctx, "resources/subscribe", append(mcp.AppendString([]byte(`{"uri":`), uri), '}'))
		if err != nil {
			return false, err
		}
		w.on = msg.Result.Present()
	}
	return w.on, nil
}

// unwatch is the end of want; the last listener's unsubscribes.
func (s *peer) unwatch(uris []string) {
	var last []string
	s.mu.Lock()
	for _, uri := range uris {
		if w := s.watched[uri]; w != nil {
			if w.n--; w.n == 0 {
				last = append(last, uri)
			}
		}
	}
	over := s.closed != nil
	s.mu.Unlock()
	if len(last) == 0 || over || s.alone { // with the session all its subscriptions end
		return
	}
	s.b.later(func(ctx context.Context) {
		for _, uri := range last {
			s.unsubscribe(ctx, uri)
		}
	})
}

// unsubscribe tells the target that nobody wants a resource, unless somebody does.
func (s *peer) unsubscribe(ctx context.Context, uri string) {
	s.mu.Lock()
	w := s.watched[uri]
	s.mu.Unlock()
	if w == nil {
		return
	}
	select {
	case w.turn <- struct{}{}: // also when time is over: what is kept here ends, whatever the target is told
	default:
		select {
		case w.turn <- struct{}{}:
		case <-ctx.Done():
			return // who holds it wants the resource, or does this
		}
	}
	defer func() { <-w.turn }()
	s.mu.Lock()
	wanted := w.n > 0
	s.mu.Unlock()
	if wanted {
		return
	}
	if w.on {
		_, _ = s.ask(ctx, "resources/unsubscribe", append(mcp.AppendString([]byte(`{"uri":`), uri), '}'))
		w.on = false // or nobody knows: who wants it next subscribes
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if w.n == 0 && s.watched[uri] == w {
		delete(s.watched, uri)
		if !s.dropped {
			s.watching -= len(uri) + watchSize
			s.b.watched.Give(s.t.Tenant.Name, s.whose, len(uri)+watchSize)
		}
	}
}

// marshal is for filters, which always marshal.
func marshal(f filter) []byte {
	raw, err := json.Marshal(f)
	if err != nil {
		panic(err)
	}
	return raw
}
