package dataplane

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/modelcontextprotocol/go-sdk/jsonrpc"
	"github.com/modelcontextprotocol/go-sdk/mcp"
	"golang.org/x/sync/errgroup"

	"github.com/sluicegate/sluice/internal/mcptest"
)

// errand is what a caller wants a server to do before it answers, and the answer.
type errand struct {
	Steps  []step          `json:"steps,omitempty"`
	Result json.RawMessage `json:"result,omitempty"` // structuredContent
	Text   string          `json:"text,omitempty"`
	Failed bool            `json:"failed,omitempty"` // isError
	Error  *jsonrpc.Error  `json:"error,omitempty"`
}

// step is one of: a progress notification, a log message, questions that are asked at once, and waiting to be cancelled.
type step struct {
	Progress string          `json:"progress,omitempty"`
	Level    string          `json:"level,omitempty"`
	Data     json.RawMessage `json:"data,omitempty"`
	Ask      []question      `json:"ask,omitempty"`
	Hold     bool            `json:"hold,omitempty"`
}

// question is elicit, sample or roots; Say is what the client should answer.
type question struct {
	Kind string `json:"kind"`
	Say  string `json:"say,omitempty"`
}

func (q question) params() mcp.InputRequest {
	switch q.Kind {
	case "elicit":
		return &mcp.ElicitParams{Mode: "form", Message: q.Say, RequestedSchema: json.RawMessage(`{"type":"object","properties":{"name":{"type":"string"}}}`)}
	case "sample":
		return &mcp.CreateMessageParams{MaxTokens: 7, SystemPrompt: "<&>é\u2028", Messages: []*mcp.SamplingMessage{{Role: "user", Content: &mcp.TextContent{Text: q.Say}}}}
	}
	return &mcp.ListRootsParams{}
}

// script does an errand's steps, and what is known after each round of questions in the stateless era is in the state. It returns the answers,
// or what to ask next.
func (s *actor) script(ctx context.Context, session *mcp.ServerSession, meta mcp.Meta, given mcp.InputResponseMap, state string, do errand) (answers []string, ask mcp.InputRequestMap, next string, err error) {
	var at struct {
		Step    int
		Answers []string
	}
	if state != "" {
		if err := json.Unmarshal([]byte(state), &at); err != nil {
			return nil, nil, "", err
		}
	}
	op, _ := meta["op"].(string)
	for i := at.Step; i < len(do.Steps); i++ {
		switch step := do.Steps[i]; {
		case step.Progress != "" && meta["progressToken"] == nil:
		case step.Progress != "":
			err = session.NotifyProgress(ctx, &mcp.ProgressNotificationParams{ProgressToken: meta["progressToken"], Progress: float64(i) + 0.5, Total: float64(len(do.Steps)), Message: step.Progress})
		case step.Level != "":
			err = session.Log(ctx, &mcp.LoggingMessageParams{Level: mcp.LoggingLevel(step.Level), Logger: "differ", Data: step.Data})
		case step.Hold:
			return nil, nil, "", s.hold(ctx, op)
		case s.stateless && len(given) == 0:
			ask = mcp.InputRequestMap{}
			for n, q := range step.Ask {
				ask[fmt.Sprintf("%s-%d", q.Kind, n+1)] = q.params()
			}
			at.Step = i
			b, err := json.Marshal(at)
			return nil, ask, string(b), err
		default:
			got := make([]string, len(step.Ask))
			var all errgroup.Group
			for n, q := range step.Ask {
				all.Go(func() error {
					answer, ok := given[fmt.Sprintf("%s-%d", q.Kind, n+1)]
					if !s.stateless {
						var err error
						if answer, err = askIn(ctx, session, q); err != nil {
							answer = nil
							got[n] = q.Kind + ": " + err.Error()
						}
					} else if !ok {
						got[n] = q.Kind + ": not answered"
					}
					if answer != nil {
						got[n] = q.Kind + ": " + said(answer)
					}
					return nil
				})
			}
			_ = all.Wait()
			if ctx.Err() != nil {
				s.note(op, "cancelled")
			}
			at.Answers, given = append(at.Answers, got...), nil
		}
		if err != nil {
			return nil, nil, "", err
		}
	}
	return at.Answers, nil, "", nil
}

// askIn asks by a request, as the session era has it.
func askIn(ctx context.Context, session *mcp.ServerSession, q question) (mcp.InputResponse, error) {
	switch p := q.params().(type) {
	case *mcp.ElicitParams:
		return orNil(session.Elicit(ctx, p))
	case *mcp.CreateMessageParams:
		r, err := session.CreateMessage(ctx, p)
		if err != nil {
			return nil, err
		}
		return &mcp.CreateMessageWithToolsResult{Model: r.Model, Role: r.Role, StopReason: r.StopReason, Content: []mcp.Content{r.Content}}, nil
	case *mcp.ListRootsParams:
		return orNil(session.ListRoots(ctx, p))
	}
	panic(q.Kind)
}

func orNil[T mcp.InputResponse](r T, err error) (mcp.InputResponse, error) {
	if err != nil {
		return nil, err
	}
	return r, nil
}

func said(r mcp.InputResponse) string {
	switch r := r.(type) {
	case *mcp.ElicitResult:
		return r.Action + " " + mustJSON(r.Content)
	case *mcp.CreateMessageWithToolsResult:
		return r.Model + " " + r.StopReason + " " + mustJSON(r.Content)
	case *mcp.ListRootsResult:
		return mustJSON(r.Roots)
	}
	return fmt.Sprintf("%T", r)
}

// actor is a server that does what its callers' scripts say, and remembers what it saw of whom.
type actor struct {
	*mcptest.Server
	name      string
	stateless bool

	mu         sync.Mutex // guards what follows
	wake       chan struct{}
	saw        map[string][]string            // by op
	begun      []string                       // what sessions began with
	holding    map[string]bool                // by op
	subscribed map[string]map[string]struct{} // the sessions, or listens, by URI
	standing   int                            // GET streams and listens
	ended      int                            // sessions
}

func newActor(t testing.TB, name string, stateless bool) *actor {
	s := &actor{name: name, stateless: stateless, wake: make(chan struct{}), saw: map[string][]string{}, holding: map[string]bool{}, subscribed: map[string]map[string]struct{}{}}
	s.Server = mcptest.NewServer(t, mcptest.Options{Name: name, Bare: true, Stateless: stateless, PageSize: 3, Instructions: "Of " + name, Wrap: s.watch})
	s.fill(s.Server.MCP)
	return s
}

// changedLocked wakes who waits; it wants mu held.
func (s *actor) changedLocked() { close(s.wake); s.wake = make(chan struct{}) }

func (s *actor) note(op, what string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.saw[op] = append(s.saw[op], what)
	s.changedLocked()
}

// await waits until a condition on what mu guards holds, and says whether it came to that.
func (s *actor) await(holds func() bool) bool {
	return awaitChange(&s.mu, func() chan struct{} { return s.wake }, holds)
}

func awaitChange(mu *sync.Mutex, wake func() chan struct{}, holds func() bool) bool {
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	for {
		mu.Lock()
		ok, changed := holds(), wake()
		mu.Unlock()
		if ok {
			return true
		}
		select {
		case <-changed:
		case <-deadline.C:
			return false
		}
	}
}

// patience is how long something that must come is waited for.
const patience = 20 * time.Second

func (s *actor) hold(ctx context.Context, op string) error {
	s.mu.Lock()
	s.holding[op] = true
	s.changedLocked()
	s.mu.Unlock()
	request, _ := ctx.Value(requestOf{}).(context.Context)
	if !s.stateless || request == nil {
		request = context.Background() // in a session, a request that ends has not cancelled its call
	}
	select {
	case <-ctx.Done():
	case <-request.Done():
	}
	s.note(op, "cancelled")
	return context.Canceled
}

type requestOf struct{}

// shownHeaders are those that must come to a target as the client sent them.
var shownHeaders = []string{"Accept", "Content-Type", "Mcp-Method", "Mcp-Name", "Mcp-Param-Region", "Mcp-Protocol-Version"}

// watch stands before the server.
func (s *actor) watch(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		r.Body = io.NopCloser(bytes.NewReader(body))
		m := read(body)
		var head []string
		for _, h := range shownHeaders {
			if v := r.Header.Values(h); len(v) > 0 {
				head = append(head, h+"="+strings.Join(v, "|"))
			}
		}
		session := r.Header.Get("Mcp-Session-Id")
		listens := fmt.Sprintf("%p", r)
		var uris []string
		s.mu.Lock()
		switch {
		case m.Op != "":
			s.saw[m.Op] = append(s.saw[m.Op], strings.Join(head, " ")+" "+string(m.Params))
		case m.Method == "initialize" || m.Method == "notifications/initialized" || m.Method == "notifications/roots/list_changed":
			s.begun = append(s.begun, m.Method+" "+string(m.Params))
		}
		standing := r.Method == http.MethodGet || m.Method == "subscriptions/listen"
		if standing {
			s.standing++
			uris = m.Subscriptions
			for _, uri := range uris {
				s.subscribeLocked(uri, listens)
			}
		}
		s.changedLocked()
		s.mu.Unlock()
		next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), requestOf{}, r.Context())))
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, uri := range uris {
			delete(s.subscribed[uri], listens)
		}
		switch {
		case standing:
			s.standing--
		case m.Method == "resources/subscribe":
			s.subscribeLocked(m.URI, session)
		case m.Method == "resources/unsubscribe":
			delete(s.subscribed[m.URI], session)
		case r.Method == http.MethodDelete:
			s.ended++
			for _, who := range s.subscribed {
				delete(who, session)
			}
		}
		s.changedLocked()
	})
}

func (s *actor) subscribeLocked(uri, who string) {
	if s.subscribed[uri] == nil {
		s.subscribed[uri] = map[string]struct{}{}
	}
	s.subscribed[uri][who] = struct{}{}
}

func (s *actor) fill(m *mcp.Server) {
	object := json.RawMessage(`{"type":"object"}`)
	m.AddTool(&mcp.Tool{Name: "script", Title: "<é&>", Description: "Does what it is told", InputSchema: object}, func(ctx context.Context, r *mcp.CallToolRequest) (*mcp.CallToolResult, error) {
		var do errand
		if err := json.Unmarshal(r.Params.Arguments, &do); err != nil {
			return nil, err
		}
		answers, ask, state, err := s.script(ctx, r.Session, r.Params.Meta, r.Params.InputResponses, r.Params.RequestState, do)
		switch {
		case err != nil:
			return nil, err
		case ask != nil:
			return &mcp.CallToolResult{InputRequests: ask, RequestState: state}, nil
		case do.Error != nil:
			return nil, do.Error
		}
		res := &mcp.CallToolResult{IsError: do.Failed, Content: []mcp.Content{&mcp.TextContent{Text: do.Text, Meta: mcp.Meta{"k": 1.5}}}}
		if do.Result != nil {
			res.StructuredContent = do.Result
			res.Meta = mcp.Meta{"vendor/odd": do.Result}
		}
		for _, a := range answers {
			res.Content = append(res.Content, &mcp.TextContent{Text: a})
		}
		return res, nil
	})
	m.AddTool(&mcp.Tool{Name: "echo", InputSchema: object, Annotations: &mcp.ToolAnnotations{ReadOnlyHint: true}}, func(_ context.Context, r *mcp.CallToolRequest) (*mcp.CallToolResult, error) {
		return &mcp.CallToolResult{Content: []mcp.Content{
			&mcp.TextContent{Text: string(r.Params.Arguments)}, &mcp.ImageContent{Data: []byte{0, 255, 1}, MIMEType: "image/png"},
			&mcp.ResourceLink{URI: "test://static/one", Name: "one"}, &mcp.EmbeddedResource{Resource: &mcp.ResourceContents{URI: "test://static/two", Text: "test://static/two"}},
		}, StructuredContent: r.Params.Arguments}, nil
	})
	m.AddTool(&mcp.Tool{Name: "placed", InputSchema: json.RawMessage(`{"type":"object","properties":{"region":{"type":"string","x-mcp-header":"Region"}}}`)},
		func(_ context.Context, r *mcp.CallToolRequest) (*mcp.CallToolResult, error) {
			return &mcp.CallToolResult{Content: []mcp.Content{&mcp.TextContent{Text: string(r.Params.Arguments)}}}, nil
		})
	m.AddTool(&mcp.Tool{Name: "broken", InputSchema: object}, func(context.Context, *mcp.CallToolRequest) (*mcp.CallToolResult, error) {
		return nil, fmt.Errorf("an error without a code")
	})
	type sum struct {
		A float64 `json:"a"`
		B float64 `json:"b,omitempty"`
	}
	mcp.AddTool(m, &mcp.Tool{Name: "sum"}, func(_ context.Context, _ *mcp.CallToolRequest, a sum) (*mcp.CallToolResult, map[string]float64, error) {
		return nil, map[string]float64{"sum": a.A + a.B}, nil
	})
	s.fillChanging(m)
	m.AddPrompt(&mcp.Prompt{Name: "script", Arguments: []*mcp.PromptArgument{{Name: "script", Required: true}}}, func(ctx context.Context, r *mcp.GetPromptRequest) (*mcp.GetPromptResult, error) {
		var do errand
		if err := json.Unmarshal([]byte(r.Params.Arguments["script"]), &do); err != nil {
			return nil, err
		}
		answers, ask, state, err := s.script(ctx, r.Session, r.Params.Meta, r.Params.InputResponses, r.Params.RequestState, do)
		switch {
		case err != nil:
			return nil, err
		case ask != nil:
			return &mcp.GetPromptResult{InputRequests: ask, RequestState: state}, nil
		case do.Error != nil:
			return nil, do.Error
		}
		res := &mcp.GetPromptResult{Description: do.Text, Messages: []*mcp.PromptMessage{
			{Role: "user", Content: &mcp.TextContent{Text: do.Text}},
			{Role: "assistant", Content: &mcp.EmbeddedResource{Resource: &mcp.ResourceContents{URI: "test://static/one", Text: "x"}}},
		}}
		for _, a := range answers {
			res.Messages = append(res.Messages, &mcp.PromptMessage{Role: "user", Content: &mcp.TextContent{Text: a}})
		}
		return res, nil
	})
	for _, name := range []string{"a", "b", "c"} {
		m.AddPrompt(&mcp.Prompt{Name: name, Description: strings.ToUpper(name)}, func(context.Context, *mcp.GetPromptRequest) (*mcp.GetPromptResult, error) {
			return &mcp.GetPromptResult{Messages: []*mcp.PromptMessage{}}, nil
		})
	}
	for _, uri := range []string{"test://static/one", "test://static/two", "test://w/1", "test://w/2", "test://é/<&>"} {
		m.AddResource(&mcp.Resource{URI: uri, Name: uri, Size: 12}, readActed)
	}
	for _, kind := range []string{"item", "thing", "boom", "last"} {
		m.AddResourceTemplate(&mcp.ResourceTemplate{URITemplate: "test://" + kind + "/{id}", Name: kind}, readActed)
	}
}

func readActed(_ context.Context, r *mcp.ReadResourceRequest) (*mcp.ReadResourceResult, error) {
	switch {
	case strings.HasSuffix(r.Params.URI, "/none"):
		return nil, mcp.ResourceNotFoundError(r.Params.URI)
	case strings.HasPrefix(r.Params.URI, "test://boom/"):
		return nil, &jsonrpc.Error{Code: -32050, Message: "boom of " + r.Params.URI, Data: json.RawMessage(`{"n":9007199254740993,"u":"\u00e9"}`)}
	}
	return &mcp.ReadResourceResult{Contents: []*mcp.ResourceContents{
		{URI: r.Params.URI, MIMEType: "text/plain", Text: "content of " + r.Params.URI}, {URI: r.Params.URI, Blob: []byte{1, 2, 3}, Meta: mcp.Meta{"n": 1}},
	}}, nil
}

// fillChanging adds the tools that change what the server has.
func (s *actor) fillChanging(m *mcp.Server) {
	object := json.RawMessage(`{"type":"object"}`)
	var mu sync.Mutex
	grown := map[string]bool{}
	m.AddTool(&mcp.Tool{Name: "grow", InputSchema: object}, func(_ context.Context, r *mcp.CallToolRequest) (*mcp.CallToolResult, error) {
		var a struct{ Kind string }
		if err := json.Unmarshal(r.Params.Arguments, &a); err != nil {
			return nil, err
		}
		mu.Lock()
		defer mu.Unlock()
		grown[a.Kind] = !grown[a.Kind]
		switch on := grown[a.Kind]; {
		case a.Kind == "tools" && on:
			m.AddTool(&mcp.Tool{Name: "grown", InputSchema: object}, func(context.Context, *mcp.CallToolRequest) (*mcp.CallToolResult, error) {
				return &mcp.CallToolResult{Content: []mcp.Content{}}, nil
			})
		case a.Kind == "tools":
			m.RemoveTools("grown")
		case a.Kind == "prompts" && on:
			m.AddPrompt(&mcp.Prompt{Name: "grown"}, func(context.Context, *mcp.GetPromptRequest) (*mcp.GetPromptResult, error) {
				return &mcp.GetPromptResult{Messages: []*mcp.PromptMessage{}}, nil
			})
		case a.Kind == "prompts":
			m.RemovePrompts("grown")
		case on:
			m.AddResource(&mcp.Resource{URI: "test://grown", Name: "grown"}, readActed)
		default:
			m.RemoveResources("test://grown")
		}
		return &mcp.CallToolResult{Content: []mcp.Content{&mcp.TextContent{Text: strings.Join(slices.Sorted(maps.Keys(grown)), " ")}}}, nil
	})
	m.AddTool(&mcp.Tool{Name: "touch", InputSchema: object}, func(ctx context.Context, r *mcp.CallToolRequest) (*mcp.CallToolResult, error) {
		var a struct{ Path string }
		if err := json.Unmarshal(r.Params.Arguments, &a); err != nil {
			return nil, err
		}
		err := m.ResourceUpdated(ctx, &mcp.ResourceUpdatedNotificationParams{URI: "test://" + a.Path})
		return &mcp.CallToolResult{Content: []mcp.Content{}}, err
	})
}

// read is what a message's parts are, as far as they can be told.
func read(body []byte) (m struct {
	ID, Params    json.RawMessage
	Method        string
	Op            string
	URI           string
	Subscriptions []string
}) {
	if json.Unmarshal(body, &m) != nil {
		return m
	}
	var params struct {
		Meta          struct{ Op string } `json:"_meta"`
		URI           string
		Notifications struct{ ResourceSubscriptions []string }
	}
	_ = json.Unmarshal(m.Params, &params)
	m.Op, m.URI, m.Subscriptions = params.Meta.Op, params.URI, params.Notifications.ResourceSubscriptions
	return m
}
