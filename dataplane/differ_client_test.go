package dataplane

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/modelcontextprotocol/go-sdk/jsonrpc"
	"github.com/modelcontextprotocol/go-sdk/mcp"
)

// side is a client with a session at one endpoint, and all that it saw.
type side struct {
	*mcp.ClientSession
	client  *mcp.Client
	url     string
	version string
	level   string        // of log messages, where each request says it
	release chan struct{} // closed to end what blocks

	mu         sync.Mutex // guards what follows
	wake       chan struct{}
	saw        map[string][]string // by op
	ops        map[string]string   // of requests, by id
	heard      []string            // on streams that stand
	keys       []string            // of those: method and URI
	standing   int                 // streams that stand
	asked      map[string]bool     // ops whose question blocks
	subscribed map[string]bool
}

func newSide(url, version string) *side {
	s := &side{url: url, version: version, wake: make(chan struct{}), saw: map[string][]string{}, asked: map[string]bool{}}
	return s
}

func (s *side) modern() bool { return s.version == "2026-07-28" }

// begin connects, and waits until the streams of the session stand.
func (s *side) begin(ctx context.Context) error {
	s.release, s.ops, s.subscribed = make(chan struct{}), map[string]string{}, map[string]bool{}
	nothing := func() {}
	s.client = mcp.NewClient(&mcp.Implementation{Name: "differ", Title: "<é>", Version: "1"}, &mcp.ClientOptions{
		ElicitationHandler: func(ctx context.Context, r *mcp.ElicitRequest) (*mcp.ElicitResult, error) {
			action, name, _ := strings.Cut(r.Params.Message, " ")
			switch action {
			case "block":
				s.mu.Lock()
				s.asked[name] = true
				s.changedLocked()
				s.mu.Unlock()
				select {
				case <-s.release:
				case <-ctx.Done():
				}
				return &mcp.ElicitResult{Action: "cancel"}, nil
			case "accept":
				return &mcp.ElicitResult{Action: action, Content: map[string]any{"name": name}}, nil
			}
			return &mcp.ElicitResult{Action: action}, nil
		},
		CreateMessageHandler: func(_ context.Context, r *mcp.CreateMessageRequest) (*mcp.CreateMessageResult, error) {
			text, _ := r.Params.Messages[0].Content.(*mcp.TextContent)
			return &mcp.CreateMessageResult{Role: "assistant", Model: "m", StopReason: "endTurn", Content: &mcp.TextContent{Text: "re: " + text.Text}}, nil
		},
		ToolListChangedHandler:      func(context.Context, *mcp.ToolListChangedRequest) { nothing() },
		PromptListChangedHandler:    func(context.Context, *mcp.PromptListChangedRequest) { nothing() },
		ResourceListChangedHandler:  func(context.Context, *mcp.ResourceListChangedRequest) { nothing() },
		ResourceUpdatedHandler:      func(context.Context, *mcp.ResourceUpdatedNotificationRequest) { nothing() },
		LoggingMessageHandler:       func(context.Context, *mcp.LoggingMessageRequest) { nothing() },
		ProgressNotificationHandler: func(context.Context, *mcp.ProgressNotificationClientRequest) { nothing() },
	})
	s.client.AddRoots(&mcp.Root{URI: "file:///é/<work>", Name: "work"})
	stood := s.stands()
	tr := &mcp.StreamableClientTransport{Endpoint: s.url, HTTPClient: &http.Client{Transport: s}, MaxRetries: -1}
	var err error
	if s.ClientSession, err = s.client.Connect(ctx, tr, &mcp.ClientSessionOptions{ProtocolVersion: s.version}); err != nil {
		return err
	}
	if !s.await(func() bool { return s.standing > stood }) {
		return errors.New("no stream that stands")
	}
	return nil
}

func (s *side) changedLocked() { close(s.wake); s.wake = make(chan struct{}) }

func (s *side) await(holds func() bool) bool {
	return awaitChange(&s.mu, func() chan struct{} { return s.wake }, holds)
}

func (s *side) stands() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.standing
}

func (s *side) note(op, format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.saw[op] = append(s.saw[op], fmt.Sprintf(format, args...))
}

// countLocked is how many messages of a method, about a URI, were heard; it wants mu held.
func (s *side) countLocked(key string) (n int) {
	for _, k := range s.keys {
		if k == key {
			n++
		}
	}
	return n
}

var differTransport = http.DefaultTransport.(*http.Transport).Clone()

// RoundTrip passes a request on, and remembers what comes of it.
func (s *side) RoundTrip(r *http.Request) (*http.Response, error) {
	var body []byte
	if r.Body != nil {
		body, _ = io.ReadAll(r.Body)
		r.Body = io.NopCloser(bytes.NewReader(body))
	}
	m := read(body)
	standing := r.Method == http.MethodGet || m.Method == "subscriptions/listen"
	if m.Op != "" && m.ID != nil {
		s.mu.Lock()
		s.ops[string(m.ID)] = m.Op
		s.mu.Unlock()
	}
	resp, err := differTransport.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	kind := resp.Header.Get("Content-Type")
	if m.Op != "" {
		s.note(m.Op, "http %s %d %s", m.Method, resp.StatusCode, kind)
	}
	if r.Method == http.MethodGet && resp.StatusCode == http.StatusOK {
		s.mu.Lock()
		s.standing++
		s.changedLocked()
		s.mu.Unlock()
	}
	got := func(message []byte) { s.got(m.Op, standing, message) }
	switch {
	case strings.HasPrefix(kind, "text/event-stream"):
		resp.Body = &tap{ReadCloser: resp.Body, line: func(line []byte) {
			if data, ok := bytes.CutPrefix(line, []byte("data:")); ok && len(bytes.TrimSpace(data)) > 0 {
				got(bytes.TrimSpace(data))
			}
		}}
	case kind == "application/json":
		resp.Body = &tap{ReadCloser: resp.Body, whole: got}
	}
	return resp, nil
}

// got remembers a message that came on a stream.
func (s *side) got(op string, standing bool, message []byte) {
	text := withoutID(message)
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case standing && strings.Contains(text, "notifications/subscriptions/acknowledged"):
		s.standing++
	case standing && strings.Contains(text, `"method"`):
		m := read(message)
		s.heard, s.keys = append(s.heard, text), append(s.keys, m.Method+" "+m.URI)
	case op != "":
		s.saw[op] = append(s.saw[op], "< "+text)
	}
	s.changedLocked()
}

// withoutID is a message with its members in order, and a mark for its id.
func withoutID(message []byte) string {
	var m map[string]json.RawMessage
	if err := json.Unmarshal(message, &m); err != nil {
		return "no message: " + string(message)
	}
	if _, ok := m["id"]; ok {
		m["id"] = json.RawMessage(`"*"`)
	}
	var parts []string
	for k, v := range m {
		parts = append(parts, strconv.Quote(k)+":"+string(v))
	}
	slices.Sort(parts)
	return "{" + strings.Join(parts, ",") + "}"
}

// tap is a body that shows each line, or the whole, before who reads it has all of it.
type tap struct {
	io.ReadCloser
	line, whole func([]byte) // one is nil
	seen        []byte
}

func (t *tap) Read(p []byte) (int, error) {
	n, err := t.ReadCloser.Read(p)
	t.seen = append(t.seen, p[:n]...)
	for t.line != nil {
		line, rest, ok := bytes.Cut(t.seen, []byte("\n"))
		if !ok {
			break
		}
		t.line(line)
		t.seen = rest
	}
	if err != nil && t.whole != nil && len(t.seen) > 0 {
		t.whole(t.seen)
		t.seen = nil
	}
	return n, err
}

// outcome is what a call came to, as its caller sees it.
func outcome(result any, err error) string {
	var wire *jsonrpc.Error
	switch {
	case errors.As(err, &wire):
		return fmt.Sprintf("= error %d %q %s", wire.Code, wire.Message, wire.Data)
	case err != nil:
		return "= failed: " + err.Error()
	}
	return "= " + mustJSON(result)
}
