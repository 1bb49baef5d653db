package newclient

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sluicegate/sluice/dataplane/mcp"
	"github.com/sluicegate/sluice/dataplane/snapshot"
	"github.com/sluicegate/sluice/dataplane/upstream"
	"github.com/sluicegate/sluice/internal/policy"
)

var (
	// errRetired: the session was ended here.
	errRetired = errors.New("the session at the target was ended")
	// errLost: the target does not know the session any more.
	errLost = errors.New("the target has lost the session")
)

// peer is one session at a target, with the proxy as its client.
type peer struct {
	b      *Bridge
	t      *snapshot.Target
	tr     upstream.Transport
	key    key
	client client
	voice  atomic.Pointer[voice]
	whose  string // the caller that begins the session

	alone   bool          // it ends with its one user
	refs    int           // guarded by b.mu
	used    time.Time     // guarded by b.mu; when refs became 0
	idle    *time.Timer   // guarded by b.mu
	retired bool          // guarded by b.mu
	over    bool          // guarded by b.mu; the target lost it
	ended   sync.Once     // goodbye is being said
	left    chan struct{} // closed when it was
	ctx     context.Context
	cancel  context.CancelCauseFunc

	// ready is closed when the session has begun, or failed. What follows is written before.
	ready   chan struct{}
	failed  *failure
	id      string // "" if the target gave none
	version mcp.Revision
	info    []byte // serverInfo, raw
	says    server

	// turn is held by the one call that is running where serial is set: there, a request of the target comes by a channel
	// that all calls share, and can only be told to belong to one if no other runs.
	turn   chan struct{}
	serial atomic.Bool

	stream  stream
	telling chan struct{} // holds one for each tellLater
	served  atomic.Bool   // a call was answered in it

	mu        sync.Mutex
	closed    error              // guarded by mu; why the session is over
	gone      chan struct{}      // closed with closed
	calls     map[string]*call   // guarded by mu; by the meaning of their ids
	seq       int                // guarded by mu
	listeners map[*listener]bool // guarded by mu
	watched   map[string]*watch  // guarded by mu; by URI
	watching  int                // guarded by mu; what watched takes, as maxWatched counts it
	dropped   bool               // guarded by mu; the session is off the books
}

// voice is what requests go with that are the proxy's own: as who joined the session last was heard, for the credential that
// it was begun with may have expired.
type voice struct {
	header http.Header
	who    policy.Call
}

// speakAs makes the proxy's own requests in the name of a client's, unless that is an older one: a listen that begins anew.
// b.mu is held.
func (s *peer) speakAs(r *upstream.Request) {
	if v := s.voice.Load(); v != nil && r.Call.Start.Before(v.who.Start) {
		return
	}
	s.voice.Store(&voice{r.Header, of("", r.Call)}) // without the arguments, which hold the whole body
}

// of is what policies may know of a message of the proxy's own, beside who it is for.
func of(method string, who policy.Call) policy.Call {
	who.Method, who.Kind, who.Name, who.Arguments, who.Annotations = method, policy.None, "", nil, nil
	return who
}

// unauthorizedError is a target's refusal of the credential that something was said with.
type unauthorizedError struct {
	status int
	header http.Header
}

func (e *unauthorizedError) Error() string {
	return fmt.Sprintf("the target answered with status %d", e.status)
}

func unauthorized(resp *upstream.Response) bool {
	return resp.Status == http.StatusUnauthorized || resp.Status == http.StatusForbidden
}

// forgotten reports whether an answer says that the target does not know the session, and so has done nothing: 404, 400 with
// a word about sessions, as the examples of the TypeScript SDK answer and servers made after them, or 400 that
// refuses a version that it took before: another server stands there now.
func (s *peer) forgotten(resp *upstream.Response) bool {
	switch {
	case s.id == "":
		return false
	case resp.Status == http.StatusNotFound:
		return true
	case resp.Status == http.StatusBadRequest:
		page, err := resp.Peek(maxPage)
		return err == nil && (bytes.Contains(bytes.ToLower(page), []byte("session")) || s.served.Load() && bytes.Contains(page, []byte(strconv.Itoa(mcp.CodeUnsupportedVersion))))
	}
	return false
}

func newPeer(f *stateless, k key, c *client) *peer {
	s := &peer{
		b: f.b, t: f.t, tr: f.tr, key: k, whose: f.caller.Scope.Principal,
		turn: make(chan struct{}, 1), telling: make(chan struct{}, maxTelling), ready: make(chan struct{}), gone: make(chan struct{}), left: make(chan struct{}), calls: map[string]*call{}, listeners: map[*listener]bool{}, watched: map[string]*watch{},
	}
	s.client = *c
	s.client.caps, s.client.info = bytes.Clone(c.caps), bytes.Clone(c.info)
	s.ctx, s.cancel = context.WithCancelCause(context.Background())
	s.idle = time.AfterFunc(f.b.cfg.Idle, s.reap)
	s.stream.opened = make(chan struct{})
	s.serial.Store(s.tr.Owned() && c.asked())
	return s
}

// do sends one request in the session. rpc is the message's method, "" for a response and where there is none. from is the
// client's request, with whose headers it goes; nil: it is the proxy's own.
func (s *peer) do(ctx context.Context, method, rpc string, body []byte, from *upstream.Request) (*upstream.Response, error) {
	v := s.voice.Load()
	header, who, safe := v.header, v.who, true
	if from != nil {
		header, who, safe = from.Header, from.Call, from.Safe
	}
	if from == nil || who.Method != rpc { // an answer is no call: it waits for none of those that the target's concurrency lets
		who = of(rpc, who)
	}
	h := make(http.Header, len(header)+2)
	for name, values := range header {
		if !strings.HasPrefix(name, "Mcp-") {
			h[name] = values
		}
	}
	switch method {
	case http.MethodPost:
		h["Accept"], h["Content-Type"] = []string{"application/json, text/event-stream"}, []string{"application/json"}
	case http.MethodGet:
		h["Accept"] = []string{"text/event-stream"}
		delete(h, "Content-Type")
	default:
		delete(h, "Content-Type")
	}
	if s.id != "" {
		h[mcp.HeaderSession] = []string{s.id}
	}
	if s.version != "" {
		mcp.SetHeaders(h, s.version, "", "")
	}
	return s.tr.Do(ctx, &upstream.Request{Method: method, Header: h, Body: body, Call: who, Whose: s.whose, Safe: safe})
}

// tell posts what has no answer: a notification, or a response, whose method is "".
func (s *peer) tell(ctx context.Context, method string, body []byte, from *upstream.Request) error {
	resp, err := s.do(ctx, http.MethodPost, method, body, from)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if s.forgotten(resp) {
		s.lost()
		return errLost
	}
	if unauthorized(resp) {
		return &unauthorizedError{resp.Status, resp.Header}
	}
	if resp.Status >= 300 {
		return &upstream.Error{Op: "post", Target: s.t.Resource, Sent: true, Err: fmt.Errorf("the target answered with status %d", resp.Status)}
	}
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 4<<10)) // the connection is kept
	return nil
}

// maxTelling bounds what is said to a target at once that nobody waits for.
const maxTelling = 16

// tellLater posts without anybody waiting, but who reads what the target says while it takes nothing.
func (s *peer) tellLater(body []byte) {
	select {
	case s.telling <- struct{}{}: // also in a session that was lost, as it seems: calls may be open there
	default:
		select {
		case s.telling <- struct{}{}:
		case <-s.ctx.Done():
			return
		}
	}
	s.b.later(func(ctx context.Context) {
		defer func() { <-s.telling }()
		if err := s.tell(ctx, "", body, nil); err != nil && s.ctx.Err() == nil {
			s.b.log.Warn("message to the target got lost", "target", s.t.Resource, "err", err)
		}
	})
}

// later runs f in the background, for a short while.
func (b *Bridge) later(f func(ctx context.Context)) {
	b.ending.Go(func() {
		ctx, cancel := context.WithTimeout(context.Background(), goodbyeTime)
		defer cancel()
		f(ctx)
	})
}

// ask sends a request of the proxy's own and returns the answer. An error response is an answer.
func (s *peer) ask(ctx context.Context, method string, params []byte) (*mcp.Message, error) {
	s.mu.Lock()
	s.seq++
	id := fmt.Appendf(nil, `"sluice-own-%d"`, s.seq)
	s.mu.Unlock()
	resp, err := s.do(ctx, http.MethodPost, method, mcp.AppendRequest(nil, id, method, params), nil)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if s.forgotten(resp) {
		s.lost()
		return nil, errLost
	}
	if unauthorized(resp) {
		return nil, &unauthorizedError{resp.Status, resp.Header}
	}
	msg, _, err := s.readAnswer(resp, false)
	if err != nil {
		return nil, &upstream.Error{Op: method, Target: s.t.Resource, Sent: true, Err: err}
	}
	return msg, nil
}

// errNoAnswer: what came is no MCP, or holds no response.
var errNoAnswer = errors.New("the answer holds no response")

// maxPage bounds what is kept of an answer that is no MCP.
const maxPage = 64 << 10

// readAnswer reads up to the response; what comes before it is dropped, or declined. Of what is no MCP, raw is the
// beginning.
func (s *peer) readAnswer(resp *upstream.Response, handshake bool) (msg *mcp.Message, raw []byte, err error) {
	switch mcp.MediaType(resp.Header) {
	case mcp.TypeStream:
		events := mcp.NewEventReader(resp.Body, s.b.cfg.Limits.MaxBytes())
		for {
			ev, err := events.Next()
			if err != nil {
				return nil, nil, errors.Join(errNoAnswer, err)
			}
			if !ev.IsMessage() {
				continue
			}
			m, err := mcp.Scan(bytes.Clone(ev.Data), s.b.cfg.Limits)
			if err != nil {
				return nil, nil, err
			}
			switch {
			case m.Kind == mcp.Response:
				return &m, nil, nil
			case handshake:
			case m.Kind == mcp.Request:
				s.outside(&m)
			case news(m.Method):
				s.changed(&m)
			}
		}
	default:
		raw, err = io.ReadAll(io.LimitReader(resp.Body, int64(s.b.cfg.Limits.MaxBytes())+1))
		if err != nil {
			return nil, nil, err
		}
		m, err := mcp.Scan(bytes.TrimSpace(raw), s.b.cfg.Limits)
		if err != nil || m.Kind != mcp.Response {
			return nil, raw[:min(len(raw), maxPage)], errNoAnswer
		}
		return &m, nil, nil
	}
}

// close ends what runs for the session here.
func (s *peer) close(why error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed == nil {
		s.closed = why
		close(s.gone)
	}
}

// outside answers what a target asks while no call is open that it could belong to: nobody is there to be asked.
func (s *peer) outside(m *mcp.Message) {
	switch {
	case m.Method == "ping":
		s.tellLater(mcp.AppendResult(nil, m.RawID(), nil))
	case m.Method == "roots/list" && s.client.roots:
		s.tellLater(mcp.AppendResult(nil, m.RawID(), []byte(`{"roots":[]}`)))
	default:
		s.tellLater(mcp.AppendError(nil, m.RawID(), mcp.CodeMethodNotFound, "the client can only be asked during a call, and by one call at a time", nil))
	}
}
