package mux

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/sluicegate/sluice/dataplane/mcp"
	"github.com/sluicegate/sluice/dataplane/session"
	"github.com/sluicegate/sluice/dataplane/snapshot"
)

// Why an open stream is ended by the proxy.
var (
	errDeleted = errors.New("the session was deleted")
	errMoved   = errors.New("the configuration of the stream's targets changed")
	errRevoked = errors.New("the caller may not use the route any more")
	errDrained = errors.New("the proxy is shutting down")
	errExpired = errors.New("the caller's credential or the session expired")
)

// maxStreams bounds the open streams of a tenant on this proxy, and maxStreamSize what is kept of their requests, in bytes, so that
// one tenant's clients leave room for others'.
const (
	maxStreams    = 20_000
	maxStreamSize = 256 << 20
)

// streams are the open GET and listen streams: the only requests that outlive the configuration they began under.
type streams struct {
	mu     sync.Mutex
	held   map[string]held          // guarded by mu; open streams by tenant
	open   map[*openStream]struct{} // guarded by mu
	latest *snapshot.Index          // guarded by mu; nil: no change yet
	drains map[<-chan struct{}]bool // guarded by mu; sockets whose end a goroutine waits for
}

// held is how many streams a tenant has, and what is kept of their requests.
type held struct{ n, size int }

type openStream struct {
	x      *Request
	size   int
	out    *sink
	cancel context.CancelCauseFunc
	// tag is the raw id of the listen request, nil on a GET.
	tag []byte
	// wants says which lists the client asked to hear of; nil: none, the stream is that of a POST which is resumed.
	wants  func(mcp.List) bool
	drain  <-chan struct{}
	expire *time.Timer

	mu      sync.Mutex
	sees    string // guarded by mu; fingerprint of what this client may see
	reaches string // guarded by mu; fingerprint of the servers that feed the stream
	in      *fanIn // guarded by mu; nil: the stream cannot follow other targets
}

// reach lets the stream follow the targets of later configurations.
func (o *openStream) reach(in *fanIn) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.in = in
}

func (s *streams) add(x *Request, out *sink, cancel context.CancelCauseFunc) *openStream {
	return s.addListen(x, out, cancel, nil, func(mcp.List) bool { return true })
}

func (s *streams) addResumed(x *Request, out *sink, cancel context.CancelCauseFunc) *openStream {
	return s.addListen(x, out, cancel, nil, nil)
}

func (s *streams) addListen(x *Request, out *sink, cancel context.CancelCauseFunc, tag []byte, wants func(mcp.List) bool) *openStream {
	o := &openStream{x: x, size: x.size(), out: out, cancel: cancel, tag: tag, wants: wants, sees: sees(x.Backend), reaches: reaches(x.Backend), drain: x.mux.cfg.Draining(x.HTTP.Context())}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open == nil {
		s.open, s.drains = map[*openStream]struct{}{}, map[<-chan struct{}]bool{}
	}
	s.open[o] = struct{}{}
	s.holdLocked(x.Route.Tenant.Name, o.size)
	o.expire = time.AfterFunc(x.lifetime(), func() { cancel(errExpired) })
	if now := s.latest; now != nil && now.Tenant(x.Route.Tenant.Name) != x.Route.Tenant {
		go o.changed(true) // it changed after the request looked
	}
	if o.drain != nil && !s.drains[o.drain] {
		s.drains[o.drain] = true
		go s.endWhen(o.drain) // one for all streams of a socket
	}
	return o
}

// endWhen ends the streams of a socket when it is drained: listens with their result, so that clients come back
// elsewhere. It lives as long as the socket.
func (s *streams) endWhen(drain <-chan struct{}) {
	<-drain
	for _, o := range s.all(func(o *openStream) bool { return o.drain == drain }) {
		o.cancel(errDrained)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.drains, drain)
}

func (s *streams) now() *snapshot.Index {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.latest
}

func (s *streams) remove(o *openStream) {
	s.mu.Lock()
	defer s.mu.Unlock()
	o.expire.Stop()
	delete(s.open, o)
	s.releaseLocked(o.x.Route.Tenant.Name, o.size)
}

// room refuses one stream too many.
func (s *streams) room(x *Request) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.roomLocked(x)
}

func (s *streams) roomLocked(x *Request) error {
	if h := s.held[x.Route.Tenant.Name]; h.n < maxStreams && h.size+x.size() <= maxStreamSize {
		return nil
	}
	return &Error{x.fail(http.StatusServiceUnavailable, mcp.CodeInternal, "too many open streams on this proxy"), retryAfter("10")}
}

// Hold counts a stream of x's tenant that another than the Mux serves, until it is released; the error refuses one too many.
func (m *Mux) Hold(x *Request) (release func(), err error) {
	s, tenant, size := &m.streams, x.Route.Tenant.Name, x.size()
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.roomLocked(x); err != nil {
		return nil, err
	}
	s.holdLocked(tenant, size)
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.releaseLocked(tenant, size)
	}, nil
}

func (s *streams) holdLocked(tenant string, size int) {
	if s.held == nil {
		s.held = map[string]held{}
	}
	h := s.held[tenant]
	s.held[tenant] = held{h.n + 1, h.size + size}
}

func (s *streams) releaseLocked(tenant string, size int) {
	if h := s.held[tenant]; h.n > 1 {
		s.held[tenant] = held{h.n - 1, h.size - size}
	} else {
		delete(s.held, tenant)
	}
}

// size is about how many bytes are kept of a request while its stream is open.
func (x *Request) size() int {
	n := 4<<10 + len(x.HTTP.RequestURI)
	for name, values := range x.HTTP.Header {
		n += 64 + len(name)
		for _, v := range values {
			n += 16 + len(v)
		}
	}
	if x.Message != nil {
		n += len(x.Message.Body)
	}
	return n
}

// lifetime is how long a stream may be open: no longer than what the caller showed for it is good.
func (x *Request) lifetime() time.Duration {
	d := 24 * time.Hour
	if x.Session != nil {
		d = min(d, time.Until(x.Session.Expires))
	}
	if x.Principal != nil && !x.Principal.Expires.IsZero() {
		d = min(d, time.Until(x.Principal.Expires))
	}
	return d
}

func (s *streams) all(which func(*openStream) bool) []*openStream {
	s.mu.Lock()
	defer s.mu.Unlock()
	var found []*openStream
	for o := range s.open {
		if which(o) {
			found = append(found, o)
		}
	}
	return found
}

// end closes the streams of a deleted session.
func (s *streams) end(n session.Nonce) {
	for _, o := range s.all(func(o *openStream) bool { return o.x.Session != nil && o.x.Session.Nonce == n }) {
		o.cancel(errDeleted)
	}
}

// Changed tells open streams of a new configuration: clients hear that lists changed where what they may see did, and
// a stream whose targets are others now, or whose caller is not let in any more, ends. It returns before all is done.
func (m *Mux) Changed(old, now *snapshot.Index) {
	m.cfg.NewClients.Retain(slices.Collect(now.Targets()))
	m.streams.mu.Lock()
	m.streams.latest = now
	m.streams.mu.Unlock()
	touched := m.streams.all(func(o *openStream) bool {
		name := o.x.Route.Tenant.Name
		return old == nil || old.Tenant(name) != now.Tenant(name)
	})
	told := newest(touched)
	const atOnce = 8 // a slow client holds up one of these, not the configuration
	work := make(chan *openStream)
	for range min(atOnce, len(touched)) {
		go func() {
			for o := range work {
				o.changed(told(o))
			}
		}()
	}
	go func() {
		for _, o := range touched {
			work <- o
		}
		close(work)
	}()
}

// newest tells, of each session's GET streams, the one that a message is for: it goes on one alone (2025-11-25, transports, Multiple
// Connections). Listens are about themselves.
func newest(open []*openStream) (told func(*openStream) bool) {
	last := map[session.Nonce]*openStream{}
	for _, o := range open {
		if o.tag == nil && o.x.Session != nil && o.wants != nil {
			if other := last[o.x.Session.Nonce]; other == nil || o.x.Start.After(other.x.Start) {
				last[o.x.Session.Nonce] = o
			}
		}
	}
	return func(o *openStream) bool {
		return o.tag != nil || o.x.Session == nil || last[o.x.Session.Nonce] == o
	}
}

// changed brings one stream to the newest configuration, of which there may be several in a short time. tell: the client hears on this
// one what changed.
func (o *openStream) changed(tell bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	now := o.x.mux.streams.now()
	route, err := now.Route(o.x.Port, o.x.HTTP)
	if err != nil || route.Refused != nil || route.Tenant.Name != o.x.Route.Tenant.Name {
		o.cancel(errMoved)
		return
	}
	var backend *snapshot.Backend
	for _, b := range route.Backends {
		if b.Resource == o.x.Backend.Resource {
			backend = b
		}
	}
	if backend == nil {
		o.cancel(errMoved)
		return
	}
	p, err := route.Authenticate(o.x.HTTP)
	if err != nil || p == nil && o.x.Principal != nil || p != nil && p.ID != o.x.caller() {
		o.cancel(errRevoked)
		return
	}
	was := o.sees
	if o.sees = sees(backend); was == o.sees {
		return
	}
	for list, method := range map[mcp.List]string{
		mcp.Tools: "notifications/tools/list_changed", mcp.Prompts: "notifications/prompts/list_changed", mcp.Resources: "notifications/resources/list_changed",
	} {
		if tell && o.wants != nil && o.wants(list) {
			o.out.message(mcp.AppendNotification(nil, method, o.params()))
		}
	}
	if now := reaches(backend); now != o.reaches {
		o.reaches = now
		if o.in == nil {
			o.cancel(errMoved) // the client opens its stream again, to the targets of now
			return
		}
		own := *o.x
		own.Route, own.Backend, own.Record = route, backend, &Record{}
		o.in.follow(&own)
	}
}

// params tag a notification with the listen it belongs to.
func (o *openStream) params() []byte {
	if o.tag == nil {
		return nil
	}
	return listenTag(o.tag)
}

// sees is a fingerprint of all that decides what clients see of a backend.
func sees(b *snapshot.Backend) string {
	var s strings.Builder
	for _, t := range b.Targets {
		s.WriteString(t.Name + "\x00" + t.Digest + "\x00")
	}
	return s.String()
}

// reaches is a fingerprint of the servers that a stream of the backend is fed by.
func reaches(b *snapshot.Backend) string {
	var s strings.Builder
	for _, t := range b.Targets {
		s.WriteString(t.Name + "\x00" + strconv.FormatUint(uint64(place(t)), 16) + "\x00")
	}
	return s.String()
}
