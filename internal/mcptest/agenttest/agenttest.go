// Package agenttest runs A2A agents and clients of the protocol's Go SDK, for tests of what stands between them.
package agenttest

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/a2aproject/a2a-go/a2a"
	"github.com/a2aproject/a2a-go/a2aclient"
	"github.com/a2aproject/a2a-go/a2aclient/agentcard"
	"github.com/a2aproject/a2a-go/a2asrv"
	"github.com/a2aproject/a2a-go/a2asrv/eventqueue"
	"github.com/a2aproject/a2a-go/a2asrv/push"
)

// Agent is an agent of revision 0.3 on a loopback port until its test ends. What it does is told by the text of a message:
// "echo TEXT" is answered by a message, "stream" by a task with three artifacts, and "tick" by a task that makes artifacts until it
// is canceled.
type Agent struct {
	// URL of the JSON-RPC endpoint.
	URL string

	http *httptest.Server
	left chan struct{}
	mu   sync.Mutex // guards reqs
	reqs []Request
}

// Request is what an [Agent] saw of one HTTP request.
type Request struct {
	Method, Path string // Path with its query
	Header       http.Header
}

// Serve starts an agent whose endpoint is at path, with its card beside the root. change may change the card.
func Serve(t testing.TB, path string, change func(*a2a.AgentCard)) *Agent {
	t.Helper()
	router := http.NewServeMux()
	a := listen(t, path, router)
	card := &a2a.AgentCard{
		Name: "test agent", Description: "does as it is told", Version: "1", ProtocolVersion: "0.3.0",
		URL: a.URL, PreferredTransport: a2a.TransportProtocolJSONRPC,
		AdditionalInterfaces: []a2a.AgentInterface{
			{URL: a.URL, Transport: a2a.TransportProtocolJSONRPC},
			{URL: a.http.URL + "/grpc", Transport: a2a.TransportProtocolGRPC},
		},
		DefaultInputModes: []string{"text"}, DefaultOutputModes: []string{"text"},
		Capabilities: a2a.AgentCapabilities{Streaming: true, PushNotifications: true}, SupportsAuthenticatedExtendedCard: true,
		Skills: []a2a.AgentSkill{
			{ID: "echo", Name: "Echo", Description: "says what it is told", Tags: []string{"text"}},
			{ID: "secret", Name: "Secret", Description: "not for everybody", Tags: []string{"text"}},
		},
		Signatures: []a2a.AgentCardSignature{{Protected: "eyJhbGciOiJFUzI1NiJ9", Signature: "c2lnbmF0dXJl"}},
	}
	if change != nil {
		change(card)
	}
	handler := a2asrv.NewHandler(executor{a}, a2asrv.WithExtendedAgentCard(card),
		a2asrv.WithPushNotifications(push.NewInMemoryStore(), push.NewHTTPPushSender(nil)))
	router.Handle(a2asrv.WellKnownAgentCardPath, a2asrv.NewStaticAgentCardHandler(card))
	router.Handle(path, a2asrv.NewJSONRPCHandler(handler))
	return a
}

// listen serves an agent's handlers, and notes what comes.
func listen(t testing.TB, path string, handler http.Handler) *Agent {
	a := &Agent{left: make(chan struct{}, 100)}
	a.http = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		a.mu.Lock()
		a.reqs = append(a.reqs, Request{r.Method, r.URL.RequestURI(), r.Header.Clone()})
		a.mu.Unlock()
		handler.ServeHTTP(w, r)
		if r.Context().Err() != nil {
			a.left <- struct{}{}
		}
	}))
	a.URL = a.http.URL + path
	t.Cleanup(func() {
		a.http.CloseClientConnections()
		a.http.Close()
	})
	return a
}

// Requests are those that came so far.
func (a *Agent) Requests() []Request {
	a.mu.Lock()
	defer a.mu.Unlock()
	return append([]Request{}, a.reqs...)
}

// Left tells each time that a client left a request before its answer was whole.
func (a *Agent) Left() <-chan struct{} { return a.left }

type executor struct{ *Agent }

// Execute does what the first text of the message says.
func (e executor) Execute(ctx context.Context, req *a2asrv.RequestContext, q eventqueue.Queue) error {
	said := Text(req.Message.Parts)
	if text, ok := strings.CutPrefix(said, "echo "); ok {
		return q.Write(ctx, a2a.NewMessage(a2a.MessageRoleAgent, a2a.TextPart{Text: text}))
	}
	events := []a2a.Event{a2a.NewSubmittedTask(req, req.Message), a2a.NewStatusUpdateEvent(req, a2a.TaskStateWorking, nil)}
	if said == "stream" {
		for _, text := range []string{"one", "two", "three"} {
			events = append(events, a2a.NewArtifactEvent(req, a2a.TextPart{Text: text}))
		}
	}
	for _, ev := range events {
		if err := q.Write(ctx, ev); err != nil {
			return err
		}
	}
	for said == "tick" {
		select {
		case <-time.After(5 * time.Millisecond):
			if err := q.Write(ctx, a2a.NewArtifactEvent(req, a2a.TextPart{Text: "tick"})); err != nil {
				return err
			}
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	done := a2a.NewStatusUpdateEvent(req, a2a.TaskStateCompleted, nil)
	done.Final = true
	return q.Write(ctx, done)
}

func (e executor) Cancel(ctx context.Context, req *a2asrv.RequestContext, q eventqueue.Queue) error {
	ev := a2a.NewStatusUpdateEvent(req, a2a.TaskStateCanceled, nil)
	ev.Final = true
	return q.Write(ctx, ev)
}

// Text is that of all parts.
func Text(parts a2a.ContentParts) string {
	var b strings.Builder
	for _, p := range parts {
		if text, ok := p.(a2a.TextPart); ok {
			b.WriteString(text.Text)
		}
	}
	return b.String()
}

// Card fetches the card of the agent at base, with more headers in pairs.
func Card(t testing.TB, base string, headers ...string) *a2a.AgentCard {
	t.Helper()
	var options []agentcard.ResolveOption
	for i := 0; i < len(headers); i += 2 {
		options = append(options, agentcard.WithRequestHeader(headers[i], headers[i+1]))
	}
	card, err := agentcard.DefaultResolver.Resolve(t.Context(), base, options...)
	if err != nil {
		t.Fatalf("the card of %s: %v", base, err)
	}
	return card
}

// Connect returns a client that goes by the card of the agent at base, with more headers in pairs.
func Connect(t testing.TB, base string, headers ...string) *a2aclient.Client {
	t.Helper()
	client := &http.Client{Transport: adding(headers)}
	c, err := a2aclient.NewFromCard(t.Context(), Card(t, base, headers...), a2aclient.WithDefaultsDisabled(), a2aclient.WithJSONRPCTransport(client))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// transport is none that a httptest.Server closes; see mcptest.
var transport = http.DefaultTransport.(*http.Transport).Clone()

// adding is a transport that adds headers, in pairs.
type adding []string

func (a adding) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	for i := 0; i < len(a); i += 2 {
		r.Header.Set(a[i], a[i+1])
	}
	return transport.RoundTrip(r)
}

// Say makes a message. skill may be empty.
func Say(text, skill string) *a2a.MessageSendParams {
	m := a2a.NewMessage(a2a.MessageRoleUser, a2a.TextPart{Text: text})
	if skill != "" {
		m.Metadata = map[string]any{"skillId": skill}
	}
	return &a2a.MessageSendParams{Message: m}
}
