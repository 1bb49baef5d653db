package dataplane

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/sluicegate/sluice/dataplane/listener"
	"github.com/sluicegate/sluice/dataplane/mcp"
	"github.com/sluicegate/sluice/dataplane/mux"
	"github.com/sluicegate/sluice/dataplane/peers"
	"github.com/sluicegate/sluice/dataplane/session"
)

// Clients of the HTTP+SSE transport (2024-11-05) hold one stream and post their messages beside it. Each message is served as a request
// of streamable HTTP of its own, by the very request path, and what is answered goes into the stream. So nothing behind here
// knows of that transport, and no policy can be missed by coming this way.

const (
	sseParameter = "sessionId"
	sseAlive     = 15 * time.Second
	maxPosts     = 64 // requests of one stream that are served at a time, and as many other messages
)

// sseStream is the stream of one client.
type sseStream struct {
	scope  session.Scope   // of its client
	ctx    context.Context // ends with the stream
	end    context.CancelFunc
	posts  chan struct{} // one for each request that is being served
	asides chan struct{} // one for each other message, which may be what a request waits for, and for the session's own stream

	mu      sync.Mutex       // guards what is below
	events  *mcp.EventWriter // to the client
	last    time.Time
	over    bool // the stream's handler is returning: nothing may be written any more
	session string
	latest  *http.Request // that a client made, in whose name the session's own stream is opened
	follows bool          // that stream is, or is opened again
}

// ofStream is the key of what contexts of a stream's requests know: that nobody can come back for an answer when the stream is over.
type ofStream struct{}

// overSSE reports whether a request is of HTTP+SSE.
func (x *exchange) overSSE() bool {
	if x.route.SSEPath == "" || !strings.HasSuffix(x.r.URL.Path, x.route.SSEPath) || x.r.Header.Get(mcp.HeaderSession) != "" {
		return false
	}
	switch x.r.Method {
	case http.MethodGet:
		return mcp.Accepts(x.r.Header, "text/event-stream") && x.r.Header.Get(mcp.HeaderVersion) < string(mcp.V20250326)
	case http.MethodPost:
		return x.r.URL.Query().Has(sseParameter)
	}
	return false
}

func (x *exchange) serveSSE() error {
	codec := x.proxy.codec(x.route.Tenant)
	if codec == nil {
		return &httpError{http.StatusServiceUnavailable, "this proxy has no session keys yet; try again"}
	}
	scope := session.Scope{Tenant: x.route.Tenant.Name, Backend: x.route.Resource}
	if x.principal != nil {
		scope.Principal = x.principal.ID
	}
	if x.r.Method == http.MethodGet {
		return x.openSSE(codec, scope)
	}
	return x.postSSE(codec, scope)
}

// openSSE holds the stream until its client leaves; the session ends with it.
func (x *exchange) openSSE(codec *session.Codec, scope session.Scope) error {
	asking := &mux.Request{HTTP: x.r, Start: x.started, Port: x.port, Route: x.route, Principal: x.principal, Record: &x.record}
	if t := x.route.Transparent(); t != nil { // the stream itself has no place for a 401
		x.backend = x.route.Backends[0]
		asking.Backend = x.backend
		if err := x.proxy.mux.Admits(asking, t); err != nil {
			return err
		}
	}
	release, err := x.proxy.mux.Hold(asking)
	if err != nil {
		return err
	}
	defer release()
	ctx, cancel := context.WithCancel(context.WithValue(x.r.Context(), ofStream{}, true))
	defer cancel()
	id := session.NewNonce()
	s := &sseStream{
		scope: scope, ctx: ctx, end: cancel, posts: make(chan struct{}, maxPosts), asides: make(chan struct{}, maxPosts),
		last: time.Now(), events: mcp.NewEventWriter(&x.w, http.NewResponseController(&x.w).Flush),
	}
	x.proxy.streams.Store(id, s)
	defer x.proxy.streams.Delete(id)
	h := x.w.Header()
	h["Content-Type"], h["Cache-Control"], h["X-Accel-Buffering"] = []string{"text/event-stream"}, []string{"no-cache"}, []string{"no"}
	x.w.WriteHeader(http.StatusOK)
	query := x.r.URL.Query()
	query.Set(sseParameter, codec.SealStream(scope, session.Stream{Owner: x.proxy.parts.ProxyID, ID: id}))
	endpoint := (&url.URL{Path: x.r.URL.Path, RawPath: x.r.URL.RawPath, RawQuery: query.Encode()}).String()
	if err := s.write(mcp.Event{Type: []byte("endpoint"), Data: []byte(endpoint), HasData: true}); err != nil {
		return nil // the client is gone already
	}
	tick := time.NewTicker(sseAlive)
	defer tick.Stop()
	for draining := listener.Draining(x.r.Context()); ; {
		select {
		case <-ctx.Done():
		case <-draining:
		case <-tick.C:
			if s.alive() == nil {
				continue
			}
		}
		break
	}
	cancel()
	for range maxPosts { // what is being served has ended
		s.posts <- struct{}{}
		s.asides <- struct{}{}
	}
	s.mu.Lock()
	s.over = true
	s.mu.Unlock()
	if s.session != "" {
		end, stop := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer stop()
		x.proxy.handler(x.port).ServeHTTP(&sseAnswer{header: http.Header{}}, x.inner(end, s, http.MethodDelete, nil))
	}
	return nil
}

// postSSE takes one message; what comes of it goes into the stream.
func (x *exchange) postSSE(codec *session.Codec, scope session.Scope) error {
	token, err := codec.OpenStream(scope, x.r.URL.Query().Get(sseParameter))
	if err != nil {
		return &httpError{http.StatusNotFound, "no such session: open the stream anew"}
	}
	if err := x.body(); err != nil {
		return err
	}
	if token.Owner != x.proxy.parts.ProxyID {
		return &peers.Elsewhere{Owner: token.Owner}
	}
	v, _ := x.proxy.streams.Load(token.ID)
	s, ok := v.(*sseStream)
	if !ok || s.scope != scope { // whose it is does not hang on the seal, which every proxy of the group can make
		return &httpError{http.StatusNotFound, "the session's stream is closed: open it anew"}
	}
	msg, err := mcp.Scan(x.raw, mcp.Limits{Bytes: maxBody})
	if err != nil {
		return err
	}
	turns := s.asides
	if msg.Kind == mcp.Request || msg.Kind == mcp.Batch {
		turns = s.posts
	}
	select {
	case turns <- struct{}{}:
	case <-s.ctx.Done():
		return &httpError{http.StatusNotFound, "the session's stream is closed: open it anew"}
	case <-x.r.Context().Done():
		return context.Cause(x.r.Context())
	}
	inner := x.inner(s.ctx, s, http.MethodPost, x.raw)
	s.mu.Lock()
	s.latest = inner.Clone(s.ctx)
	s.mu.Unlock()
	handler := x.proxy.handler(x.port)
	serve := func() {
		defer func() { <-turns }()
		s.serve(handler, inner, &msg)
		if msg.Method == "notifications/initialized" {
			s.follow(handler)
		}
	}
	if msg.Kind == mcp.Notification {
		serve() // what comes next builds on it
	} else {
		go serve()
	}
	x.w.WriteHeader(http.StatusAccepted)
	_, _ = io.WriteString(&x.w, "Accepted")
	return nil
}

// inner is a request of streamable HTTP in the client's name: with all that the client sent, but what the transport fixes.
func (x *exchange) inner(ctx context.Context, s *sseStream, method string, body []byte) *http.Request {
	s.mu.Lock()
	id := s.session
	s.mu.Unlock()
	r := x.r.Clone(ctx)
	r.Method = method
	query := r.URL.Query()
	query.Del(sseParameter)
	r.URL.RawQuery = query.Encode()
	r.RequestURI = r.URL.RequestURI()
	r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
	h := r.Header
	for name := range h {
		if strings.HasPrefix(name, "Mcp-") {
			delete(h, name)
		}
	}
	h["Accept"] = []string{"application/json, text/event-stream"}
	if method == http.MethodPost {
		h["Content-Type"] = []string{"application/json"}
	}
	if id != "" {
		h[mcp.HeaderSession] = []string{id}
	}
	return r
}

// serve has a message answered into the stream. A target that ends a stream before its response wants its client to come back
// for it, and here the proxy is the client. Whoever asked is told in any case: to it there is no other sign that an answer broke off.
func (s *sseStream) serve(handler http.Handler, r *http.Request, msg *mcp.Message) {
	a := s.pass(handler, r, msg)
	for lastID := a.lastID; msg.Kind == mcp.Request && !a.answered && a.refused == nil && a.status == http.StatusOK && lastID != ""; {
		if !s.wait(a.retry) {
			return
		}
		a = s.pass(handler, resuming(r, lastID), msg)
		lastID = cmp.Or(a.lastID, lastID)
	}
	if msg.Kind != mcp.Request || a.answered {
		return
	}
	text := "the answer ended without a response; the call may have been processed"
	switch {
	case a.refused != nil:
		text = a.refused.Error()
	case a.status >= 400:
		text = fmt.Sprintf("%d %s", a.status, http.StatusText(a.status))
		if detail := strings.TrimSpace(a.buf.String()); detail != "" && len(detail) < 1000 {
			text = detail
		}
	}
	_ = s.message(mcp.AppendError(nil, msg.RawID(), mcp.CodeInternal, text, nil)) // the client is gone: nobody to tell
}

// pass brings the answer to a message, or nil for the session's standing stream, into this one: whole or up to where it breaks off.
func (s *sseStream) pass(handler http.Handler, r *http.Request, msg *mcp.Message) (a *sseAnswer) {
	a = &sseAnswer{header: http.Header{}, stream: s, to: msg}
	defer a.finish()
	defer func() { // as a server does
		broke := recover()
		if broke != nil && broke != http.ErrAbortHandler {
			panic(broke)
		}
		a.broke = broke != nil
	}()
	handler.ServeHTTP(a, r)
	return a
}

// resuming is the GET, in the name of who made r, of what came after an event; "" is none.
func resuming(r *http.Request, lastID string) *http.Request {
	again := r.Clone(r.Context())
	again.Method, again.Body, again.ContentLength = http.MethodGet, http.NoBody, 0
	again.Header.Del("Content-Type")
	again.Header.Del(mcp.HeaderLastEventID)
	if lastID != "" {
		again.Header.Set(mcp.HeaderLastEventID, lastID)
	}
	return again
}

const (
	refollowFirst = time.Second
	refollowMost  = 30 * time.Second
)

// wait passes the time before a stream is opened again; false if the client has left.
func (s *sseStream) wait(d time.Duration) bool {
	if d <= 0 {
		d = refollowFirst
	}
	select {
	case <-time.After(min(d, refollowMost)):
		return true
	case <-s.ctx.Done():
		return false
	}
}

// follow brings the session's standing stream into this one, once.
func (s *sseStream) follow(handler http.Handler) {
	s.mu.Lock()
	first := !s.follows && s.session != ""
	s.follows = s.follows || first
	s.mu.Unlock()
	if !first {
		return
	}
	select {
	case s.asides <- struct{}{}:
	case <-s.ctx.Done():
		return
	}
	go func() {
		defer func() { <-s.asides }()
		s.refollow(handler)
	}()
}

// shown is the latest request that the client made.
func (s *sseStream) shown() *http.Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.latest
}

// standing is the GET of the session's own stream, in the name of who made r.
func (s *sseStream) standing(r *http.Request, lastID string) *http.Request {
	own := resuming(r, lastID)
	s.mu.Lock()
	defer s.mu.Unlock()
	own.Header[mcp.HeaderSession] = []string{s.session} // r may have made it
	return own
}

// refollow opens the standing stream again whenever it ends, as its client would: targets restart, and configurations change. With
// the session this stream ends too, for the client to begin anew. A credential that is good no more is waited out: with the next
// message comes perhaps another.
func (s *sseStream) refollow(handler http.Handler) {
	wait, lastID := refollowFirst, ""
	for {
		began, shown := time.Now(), s.shown()
		a := s.pass(handler, s.standing(shown, lastID), nil)
		switch {
		case a.status == http.StatusMethodNotAllowed:
			return // nobody has one
		case a.status == http.StatusNotFound:
			s.end()
			return
		case a.status == http.StatusUnauthorized, a.status == http.StatusForbidden:
			for s.shown() == shown {
				if !s.wait(refollowFirst) {
					return
				}
			}
			continue
		case a.status != http.StatusOK:
			lastID = "" // it may be what was refused
		case a.lastID != "":
			lastID = a.lastID
		}
		if time.Since(began) > wait {
			wait = refollowFirst
		}
		if !s.wait(max(wait, a.retry)) {
			return
		}
		wait = min(2*wait, refollowMost)
	}
}

func (s *sseStream) message(raw []byte) error {
	return s.write(mcp.Event{Type: []byte("message"), Data: raw, HasData: true})
}

var errStreamOver = errors.New("the stream is over")

func (s *sseStream) write(ev mcp.Event) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.over {
		return errStreamOver
	}
	s.last = time.Now()
	return s.events.Write(ev)
}

// alive writes a comment if nothing was written for long.
func (s *sseStream) alive() error {
	s.mu.Lock()
	idle := time.Since(s.last) >= sseAlive
	s.mu.Unlock()
	if !idle {
		return nil
	}
	return s.write(mcp.Event{IsNote: true, Comment: []byte("keep-alive")})
}
