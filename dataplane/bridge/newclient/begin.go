package newclient

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/sluicegate/sluice/dataplane/mcp"
	"github.com/sluicegate/sluice/dataplane/upstream"
)

// server is what a target says of itself in initialize.
type server struct {
	capabilities, instructions []byte // raw

	logs, subscribe                                bool
	toolsChanged, promptsChanged, resourcesChanged bool
}

// failure is why a session could not be begun.
type failure struct {
	err    error
	status int
	header http.Header
	body   []byte
	msg    *mcp.Message // the body, where that is an answer of MCP; its id is not yet the client's

	full bool // see upstream.Response
}

// answer is the failure for one of those who waited, with a request of the given id.
func (f *failure) answer(id []byte) (*upstream.Response, error) {
	if f.err != nil {
		return nil, f.err
	}
	body := f.body
	if f.msg != nil {
		var e mcp.Edits
		replaceID(&e, f.msg, id)
		body = e.Apply(nil, f.msg.Body)
	}
	return &upstream.Response{Status: f.status, Header: f.header.Clone(), Body: io.NopCloser(bytes.NewReader(body)), Length: int64(len(body))}, nil
}

// beginTime bounds the handshake, where the target has no timeout: a package runner may have to download first.
const beginTime = time.Minute

// maxServer bounds what is kept of a target's answer to initialize, with each session.
const maxServer = 128 << 10

// begin does the handshake.
func (s *peer) begin(ctx context.Context) {
	limit := beginTime
	if d := s.t.Config.GetTimeout(); d != nil {
		limit = d.AsDuration()
	}
	ctx, cancel := context.WithTimeoutCause(ctx, limit, upstream.ErrTimeout)
	defer cancel()
	s.failed = s.initialize(ctx)
	for tries := 0; tries < 3 && s.failed != nil && s.b.makeRoom(ctx, s, s.failed); tries++ { // others may be quicker
		s.failed = s.initialize(ctx)
	}
	s.client.caps, s.client.info = nil, nil // said, and as long as the client likes
	if s.failed == nil {
		if err := s.settle(ctx); err != nil {
			s.failed = &failure{err: err}
			if refused, ok := errors.AsType[*unauthorizedError](err); ok {
				s.failed = &failure{status: refused.status, header: refused.header}
			}
		}
	}
	if s.failed != nil {
		s.b.mu.Lock()
		s.retired = true
		s.unlistLocked()
		s.b.mu.Unlock()
	}
	close(s.ready)
}

// initialize sends it and reads the answer.
func (s *peer) initialize(ctx context.Context) *failure {
	asked := mcp.Negotiate(mcp.V20251125, s.configured())
	params := append([]byte(`{"protocolVersion":`), mcp.AppendString(nil, string(asked))...)
	params = append(append(params, `,"capabilities":`...), s.client.caps...)
	params = append(append(params, `,"clientInfo":`...), s.client.info...)
	body := mcp.AppendRequest(nil, []byte(`"sluice-initialize"`), "initialize", append(params, '}'))
	resp, err := s.do(ctx, http.MethodPost, "initialize", body, nil)
	if err != nil {
		return &failure{err: err}
	}
	defer resp.Body.Close()
	if s.tr.Owned() { // it lives here, and is to end whatever becomes of the answer
		s.id = strings.Clone(resp.Header.Get(mcp.HeaderSession)) // which is part of the whole head
	}
	if unauthorized(resp) { // for the caller to judge, whatever its body says
		return &failure{status: resp.Status, header: resp.Header}
	}
	msg, raw, err := s.readAnswer(resp, true)
	if err != nil {
		if ctx.Err() != nil {
			return &failure{err: &upstream.Error{Op: "read initialize", Target: s.t.Resource, Sent: true, Err: context.Cause(ctx)}}
		}
		// A page that is not MCP, a refused credential: for the caller to tell.
		return &failure{status: resp.Status, header: resp.Header, body: raw}
	}
	if msg.Error.Present() && (resp.Status == http.StatusServiceUnavailable || resp.Status == http.StatusTooManyRequests) {
		// Not now, which says nothing of the era.
		return &failure{status: resp.Status, header: resp.Header, msg: msg, full: resp.Full}
	}
	if msg.Error.Present() {
		// An id that comes with an error is no session's: some servers hand one out with every answer.
		return &failure{err: &RefusedError{Reason: msg.ErrorLine()}}
	}
	s.id = strings.Clone(resp.Header.Get(mcp.HeaderSession))
	if len(msg.Body) > maxServer {
		return &failure{err: &RefusedError{Reason: fmt.Sprintf("its answer to initialize has more than %d bytes", maxServer)}}
	}
	if err := s.read(msg.Result.Of(msg.Body)); err != nil {
		return &failure{err: &RefusedError{Reason: err.Error()}}
	}
	return nil
}

// configured are the versions that the target is said to speak; nil: not said.
func (s *peer) configured() []mcp.Revision {
	var all []mcp.Revision
	for _, v := range s.t.Config.GetProtocolVersions() {
		all = append(all, mcp.Revision(v))
	}
	return all
}

// read takes the result of initialize apart.
func (s *peer) read(result []byte) error {
	err := mcp.Members(result, s.b.cfg.Limits, []string{"protocolVersion", "capabilities", "serverInfo", "instructions"}, func(name, value []byte) error {
		switch string(name) {
		case "protocolVersion":
			text, _ := mcp.Unquote(value)
			s.version = mcp.Revision(text)
		case "capabilities":
			s.says.capabilities = value
		case "serverInfo":
			s.info = value
		case "instructions":
			s.says.instructions = value
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("its answer to initialize cannot be read: %w", err)
	}
	if !s.version.HasSessions() {
		return fmt.Errorf("it answers initialize with protocol version %.40q", string(s.version))
	}
	members(s.says.capabilities, func(name string, value []byte) {
		flag := func(want string) (set bool) {
			members(value, func(name string, v []byte) { set = set || name == want && string(v) == "true" })
			return set
		}
		switch name {
		case "logging":
			s.says.logs = object(value)
		case "tools":
			s.says.toolsChanged = flag("listChanged")
		case "prompts":
			s.says.promptsChanged = flag("listChanged")
		case "resources":
			s.says.resourcesChanged, s.says.subscribe = flag("listChanged"), flag("subscribe")
		}
	})
	return nil
}

// settle is what a session needs before its first call.
func (s *peer) settle(ctx context.Context) error {
	if err := s.tell(ctx, "notifications/initialized", mcp.AppendNotification(nil, "notifications/initialized", nil), nil); err != nil {
		return err
	}
	if s.key.level != "" && s.says.logs {
		level := mcp.AppendString([]byte(`{"level":`), s.key.level)
		if _, err := s.ask(ctx, "logging/setLevel", append(level, '}')); err != nil {
			return err
		}
	}
	if s.key.level != "" || s.client.asked() {
		// What a target asks or logs may come on the stream of the session, and some drop it while there is none.
		s.follow()
		select {
		case <-s.stream.opened:
		case <-time.After(streamWait):
		case <-ctx.Done():
		}
	}
	return nil
}

// streamWait is how long a call waits for the session's stream: some targets send its head with the first event alone.
const streamWait = 300 * time.Millisecond
