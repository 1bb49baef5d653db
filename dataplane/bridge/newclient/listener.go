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

// marshal is for filters, which always marshal.
func marshal(f filter) []byte {
	raw, err := json.Marshal(f)
	if err != nil {
		panic(err)
	}
	return raw
}
