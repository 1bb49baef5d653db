package oldclient

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/sluicegate/sluice/dataplane/mcp"
	"github.com/sluicegate/sluice/dataplane/upstream"
)

// standing serves GET: what a listen at the target tells. It stands as long as the client wants it, whatever becomes of the
// listen; a target without one has nothing to say.
func (f *sessionsFace) standing(ctx context.Context, r *upstream.Request) (*upstream.Response, error) {
	server, refused, err := f.discover(ctx, r)
	if err != nil {
		return nil, err
	}
	s := &standing{f: f, r: *r}
	if refused == nil {
		for _, l := range []list{{"tools", "notifications/tools/list_changed"}, {"prompts", "notifications/prompts/list_changed"}, {"resources", "notifications/resources/list_changed"}} {
			if server.changes(l.capability) {
				s.lists = append(s.lists, l)
			}
		}
		s.subscribes = server.subscribes()
	}
	ctx, cancel := context.WithCancel(ctx)
	leave, others := f.b.soft.stand(f.key(), s, f.whose())
	s.missed = others
	body, w := f.b.pipe(ctx)
	go func() {
		defer leave()
		defer cancel()
		w.finish(s.run(ctx, w))
	}()
	return &upstream.Response{Status: http.StatusOK, Header: streamHeader(nil), Body: &closing{ReadCloser: body, then: cancel}}, nil
}

// closing ends what feeds a body when the body is closed.
type closing struct {
	io.ReadCloser
	then func()
}

func (c *closing) Close() error {
	c.then()
	return c.ReadCloser.Close()
}

// list is one of which changes are told.
type list struct{ capability, method string }

type standing struct {
	f          *sessionsFace
	r          upstream.Request
	lists      []list
	subscribes bool
	missed     bool // there may have been something to tell when nobody listened
}

const (
	relistenFirst = time.Second
	relistenMost  = 30 * time.Second
)

// errNoListen: the target has no subscriptions/listen.
var errNoListen = errors.New("the target has no subscriptions/listen")

// run keeps one listen open for what the session has subscribed to. When that changes the new listen is begun before the old one
// ends, so that nothing is missed; when the listen breaks, everything may have been.
func (s *standing) run(ctx context.Context, w *eventPipe) error {
	var before *listening // goes on until another has begun
	defer func() { before.end() }()
	wait := relistenFirst
	for {
		uris, version, told, changed := s.f.b.soft.subscriptions(s.f.key(), s)
		if !told {
			before.end()
			before, s.missed = nil, true
			select {
			case <-changed:
				continue
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
		if !s.subscribes {
			uris = nil
		}
		if len(s.lists) == 0 && len(uris) == 0 { // nothing to listen for yet
			before.end()
			before = nil
			s.f.b.soft.heard(s.f.key(), version)
			select {
			case <-changed:
				continue
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
		now, since := s.begin(ctx, uris, w), time.Now()
		began := now.began
	follow:
		for {
			select {
			case <-began:
				began = nil
				before.end()
				before = nil
				if s.missed {
					s.missed = false
					if err := s.tellAll(w, uris); err != nil {
						now.end()
						return err
					}
				}
				s.f.b.soft.heard(s.f.key(), version)
			case <-before.ended():
				before.end()
				before, s.missed = nil, true
			case err := <-now.over:
				now.end()
				if errors.Is(err, errNoListen) {
					before.end()
					before = nil
					return s.deaf(ctx)
				}
				s.missed = true
				if time.Since(since) > wait {
					wait = relistenFirst
				}
				select {
				case <-time.After(wait):
					wait = min(2*wait, relistenMost)
				case <-ctx.Done():
					return context.Cause(ctx)
				}
				break follow
			case <-changed:
				if began == nil {
					before = now
				} else {
					now.end()
				}
				break follow
			case <-ctx.Done():
				now.end()
				return context.Cause(ctx)
			}
		}
	}
}

// deaf stands on without a listen. Whoever subscribes need not wait for one.
func (s *standing) deaf(ctx context.Context) error {
	for {
		_, version, _, changed := s.f.b.soft.subscriptions(s.f.key(), s)
		s.f.b.soft.heard(s.f.key(), version)
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// listening is one listen at the target.
type listening struct {
	cancel context.CancelFunc
	began  chan struct{} // closed at the acknowledgement
	over   chan error    // holds why it ended
}

func (l *listening) end() {
	if l != nil {
		l.cancel()
	}
}

// ended is when and why the listen is over; nil, which never comes, of none.
func (l *listening) ended() <-chan error {
	if l == nil {
		return nil
	}
	return l.over
}

func (s *standing) begin(ctx context.Context, uris []string, w *eventPipe) *listening {
	ctx, cancel := context.WithCancel(ctx)
	l := &listening{cancel: cancel, began: make(chan struct{}), over: make(chan error, 1)}
	go func() { l.over <- s.listen(ctx, uris, w, sync.OnceFunc(func() { close(l.began) })) }()
	return l
}

// tellAll says that every list may have changed, and every resource that is subscribed to.
func (s *standing) tellAll(w *eventPipe, uris []string) error {
	for _, l := range s.lists {
		if err := w.message(mcp.AppendNotification(nil, l.method, nil)); err != nil {
			return err
		}
	}
	for _, uri := range uris {
		params := append(mcp.AppendString([]byte(`{"uri":`), uri), '}')
		if err := w.message(mcp.AppendNotification(nil, "notifications/resources/updated", params)); err != nil {
			return err
		}
	}
	return nil
}

// ask sends the request for one listen.
func (s *standing) ask(ctx context.Context, uris []string) (*upstream.Response, error) {
	filter := []byte{'{'}
	add := func(name string) {
		if len(filter) > 1 {
			filter = append(filter, ',')
		}
		filter = mcp.AppendString(filter, name)
	}
	for _, l := range s.lists {
		add(l.capability + "ListChanged")
		filter = append(filter, ":true"...)
	}
	if len(uris) > 0 {
		slices.Sort(uris)
		add("resourceSubscriptions")
		filter = append(filter, ":["...)
		for i, uri := range uris {
			if i > 0 {
				filter = append(filter, ',')
			}
			filter = mcp.AppendString(filter, uri)
		}
		filter = append(filter, ']')
	}
	params := append([]byte(`"notifications":`), append(filter, '}')...)
	params = append(append(params, `,"_meta":`...), object(s.f.meta(&mcp.Message{}), nil)...)

	r := s.r
	r.Method, r.Safe = http.MethodPost, false
	r.Header = s.r.Header.Clone()
	r.Header["Accept"], r.Header["Content-Type"] = []string{"application/json, text/event-stream"}, []string{"application/json"}
	delete(r.Header, mcp.HeaderLastEventID)
	mcp.SetHeaders(r.Header, mcp.V20260728, "subscriptions/listen", "")
	r.Call.Method = "subscriptions/listen"
	r.Body = mcp.AppendRequest(nil, strconv.AppendQuote(nil, newID()), "subscriptions/listen", object(params, nil))
	return s.f.inner.Do(ctx, &r)
}

// listen follows one listen to its end; began is called at its acknowledgement.
func (s *standing) listen(ctx context.Context, uris []string, w *eventPipe, began func()) error {
	resp, err := s.ask(ctx, uris)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if !isStream(resp) {
		msg, err := s.f.b.readJSON(resp)
		switch {
		case err != nil:
			return err
		case msg != nil:
			return refusedListen(msg)
		case resp.Status >= 500 || resp.Status == http.StatusTooManyRequests || unauthorized(resp): // credentials are renewed
			return fmt.Errorf("the target answered the listen with %d", resp.Status)
		}
		return errNoListen
	}
	stop := context.AfterFunc(ctx, func() { _ = resp.Body.Close() })
	defer stop()
	events := mcp.NewEventReader(resp.Body, s.f.b.cfg.Limits.MaxBytes())
	for {
		ev, err := events.Next()
		if err != nil {
			return err
		}
		if !ev.IsMessage() {
			continue
		}
		msg, err := mcp.Scan(bytes.Clone(ev.Data), s.f.b.cfg.Limits)
		switch {
		case err != nil:
			return err
		case msg.Kind == mcp.Response:
			return refusedListen(&msg)
		case msg.Method == "notifications/subscriptions/acknowledged":
			began()
		case msg.Kind == mcp.Notification:
			out, err := untagged(&msg, s.f.b.cfg.Limits)
			if err != nil {
				return err
			}
			if err := w.message(out); err != nil {
				return err
			}
		}
	}
}

// refusedListen is what a response to a listen means: there is none, or another may go well.
func refusedListen(msg *mcp.Message) error {
	if code, _ := msg.ErrorCode(); code == mcp.CodeMethodNotFound || code == mcp.CodeInvalidRequest {
		return errNoListen
	}
	return errors.New("the target ended the listen")
}

// untagged is a notification without the tag of the listen that it came by.
func untagged(msg *mcp.Message, lim mcp.Limits) ([]byte, error) {
	if !msg.Meta.SubscriptionID.Present() {
		return msg.Body, nil
	}
	meta, err := mcp.Strip(nil, msg.Meta.Span.Of(msg.Body), lim, mcp.MetaSubscriptionID)
	if err != nil {
		return nil, err
	}
	var e mcp.Edits
	e.Replace(msg.Meta.Span, meta)
	return e.Apply(nil, msg.Body), nil
}
