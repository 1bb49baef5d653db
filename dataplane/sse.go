package dataplane

import (
	"bytes"
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
	maxPosts     = 64 // messages of one stream that are served at a time
)

// sseStream is the stream of one client.
type sseStream struct {
	scope session.Scope   // of its client
	ctx   context.Context // ends with the stream
	posts chan struct{}   // one for each message that is being served

	mu      sync.Mutex       // guards what is below
	events  *mcp.EventWriter // to the client
	last    time.Time
	over    bool // the stream's handler is returning: nothing may be written any more
	session string
	follows bool // the standing stream of the session is open
}

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
	if t := x.route.Transparent(); t != nil { // the stream itself has no place for a 401
		x.backend = x.route.Backends[0]
		if err := x.proxy.mux.Admits(&mux.Request{HTTP: x.r, Start: x.started, Port: x.port, Route: x.route, Backend: x.backend, Principal: x.principal, Record: &x.record}, t); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithCancel(x.r.Context())
	defer cancel()
	id := session.NewNonce()
	s := &sseStream{scope: scope, ctx: ctx, posts: make(chan struct{}, maxPosts), last: time.Now(), events: mcp.NewEventWriter(&x.w, http.NewResponseController(&x.w).Flush)}
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
	select {
	case s.posts <- struct{}{}:
	case <-s.ctx.Done():
		return &httpError{http.StatusNotFound, "the session's stream is closed: open it anew"}
	case <-x.r.Context().Done():
		return context.Cause(x.r.Context())
	}
	inner := x.inner(s.ctx, s, http.MethodPost, x.raw)
	handler := x.proxy.handler(x.port)
	serve := func() {
		defer func() { <-s.posts }()
		s.serve(handler, inner, &msg)
		if msg.Method == "notifications/initialized" {
			s.follow(handler, x.inner(s.ctx, s, http.MethodGet, nil))
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

// serve has a message answered into the stream.
func (s *sseStream) serve(handler http.Handler, r *http.Request, msg *mcp.Message) {
	a := &sseAnswer{header: http.Header{}, stream: s}
	defer func() { // as a server does: an answer that breaks off
		if broke := recover(); broke != nil && broke != http.ErrAbortHandler {
			panic(broke)
		}
	}()
	handler.ServeHTTP(a, r)
	if err := a.finish(); err != nil || msg.Kind != mcp.Request || a.answered {
		return
	}
	text := fmt.Sprintf("%d %s", a.status, http.StatusText(a.status))
	if detail := strings.TrimSpace(a.buf.String()); a.status >= 400 && detail != "" && len(detail) < 1000 {
		text = detail
	}
	_ = s.message(mcp.AppendError(nil, msg.RawID(), mcp.CodeInternal, text, nil)) // the client is gone: nobody to tell
}

// follow brings the session's standing stream into this one, once.
func (s *sseStream) follow(handler http.Handler, r *http.Request) {
	s.mu.Lock()
	first := !s.follows
	s.follows = true
	s.mu.Unlock()
	if !first {
		return
	}
	select {
	case s.posts <- struct{}{}:
	case <-s.ctx.Done():
		return
	}
	go func() {
		defer func() { <-s.posts }()
		s.serve(handler, r, &mcp.Message{})
	}()
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

// sseAnswer is an answer of streamable HTTP on its way into a stream.
type sseAnswer struct {
	stream   *sseStream // nil: nobody is to know
	header   http.Header
	status   int
	kind     string
	buf      bytes.Buffer   // of what is no event stream
	pipe     *io.PipeWriter // to what reads events
	done     chan struct{}
	answered bool // a message of it went into the stream
}

func (a *sseAnswer) Header() http.Header { return a.header }

func (a *sseAnswer) WriteHeader(status int) {
	if a.status != 0 || status < 200 {
		return
	}
	a.status = status
	if id := a.header.Get(mcp.HeaderSession); id != "" && a.stream != nil { // of initialize; the client goes on as soon as it reads the answer
		a.stream.mu.Lock()
		a.stream.session = id
		a.stream.mu.Unlock()
	}
	a.kind, _, _ = strings.Cut(a.header.Get("Content-Type"), ";")
	if a.kind != "text/event-stream" || a.stream == nil {
		return
	}
	r, w := io.Pipe()
	a.pipe, a.done = w, make(chan struct{})
	go func() {
		defer close(a.done)
		events := mcp.NewEventReader(r, maxBody)
		for {
			ev, err := events.Next()
			if err == nil && len(ev.Data) > 0 {
				a.answered = true
				err = a.stream.message(ev.Data)
			}
			if err != nil {
				_ = r.CloseWithError(err) // the writer sees that nobody reads any more
				return
			}
		}
	}()
}

func (a *sseAnswer) Write(p []byte) (int, error) {
	a.WriteHeader(http.StatusOK)
	if a.pipe != nil {
		return a.pipe.Write(p)
	}
	if a.stream == nil || a.buf.Len()+len(p) > maxBody {
		return len(p), nil
	}
	return a.buf.Write(p)
}

// Flush is for http.ResponseController: events go out as they come.
func (a *sseAnswer) Flush() { a.WriteHeader(http.StatusOK) }

// SetReadDeadline is for http.ResponseController: the body is here already.
func (a *sseAnswer) SetReadDeadline(time.Time) error { return nil }

// finish sends what is one message, and waits for the end of events.
func (a *sseAnswer) finish() error {
	if a.pipe != nil {
		_ = a.pipe.Close() // never fails
		<-a.done
		return nil
	}
	if a.kind == "application/json" && a.buf.Len() > 0 {
		a.answered = true
		return a.stream.message(a.buf.Bytes())
	}
	return nil
}

var _ http.Flusher = (*sseAnswer)(nil)
