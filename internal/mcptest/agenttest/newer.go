package agenttest

import (
	"context"
	"iter"
	"net/http"
	"strings"
	"testing"

	"github.com/a2aproject/a2a-go/v2/a2a"
	"github.com/a2aproject/a2a-go/v2/a2aclient"
	"github.com/a2aproject/a2a-go/v2/a2aclient/agentcard"
	"github.com/a2aproject/a2a-go/v2/a2asrv"
)

// ServeNewer starts an agent of revision 1.0, which does what [Serve]'s does, but for "tick".
func ServeNewer(t testing.TB, path string) *Agent {
	t.Helper()
	router := http.NewServeMux()
	a := listen(t, path, router)
	card := &a2a.AgentCard{
		Name: "newer agent", Description: "does as it is told", Version: "1",
		SupportedInterfaces: []*a2a.AgentInterface{
			a2a.NewAgentInterface(a.URL, a2a.TransportProtocolJSONRPC),
			a2a.NewAgentInterface(a.http.URL+"/rest", a2a.TransportProtocolHTTPJSON),
		},
		DefaultInputModes: []string{"text/plain"}, DefaultOutputModes: []string{"text/plain"},
		Capabilities: a2a.AgentCapabilities{Streaming: true, ExtendedAgentCard: true},
		Skills: []a2a.AgentSkill{
			{ID: "echo", Name: "Echo", Description: "says what it is told", Tags: []string{"text"}},
			{ID: "secret", Name: "Secret", Description: "not for everybody", Tags: []string{"text"}},
		},
		Signatures: []a2a.AgentCardSignature{{Protected: "eyJhbGciOiJFUzI1NiJ9", Signature: "c2lnbmF0dXJl"}},
	}
	router.Handle(a2asrv.WellKnownAgentCardPath, a2asrv.NewStaticAgentCardHandler(card))
	router.Handle(path, a2asrv.NewJSONRPCHandler(a2asrv.NewHandler(newer{}, a2asrv.WithExtendedAgentCard(card))))
	return a
}

type newer struct{}

// Execute does what the first text of the message says.
func (newer) Execute(_ context.Context, req *a2asrv.ExecutorContext) iter.Seq2[a2a.Event, error] {
	said := NewerText(req.Message.Parts)
	if text, ok := strings.CutPrefix(said, "echo "); ok {
		return func(yield func(a2a.Event, error) bool) {
			yield(a2a.NewMessage(a2a.MessageRoleAgent, a2a.NewTextPart(text)), nil)
		}
	}
	return func(yield func(a2a.Event, error) bool) {
		events := []a2a.Event{a2a.NewSubmittedTask(req, req.Message), a2a.NewStatusUpdateEvent(req, a2a.TaskStateWorking, nil)}
		if said == "stream" {
			for _, text := range []string{"one", "two", "three"} {
				events = append(events, a2a.NewArtifactEvent(req, a2a.NewTextPart(text)))
			}
		}
		for _, ev := range append(events, a2a.NewStatusUpdateEvent(req, a2a.TaskStateCompleted, nil)) {
			if !yield(ev, nil) {
				return
			}
		}
	}
}

func (newer) Cancel(_ context.Context, req *a2asrv.ExecutorContext) iter.Seq2[a2a.Event, error] {
	return func(yield func(a2a.Event, error) bool) {
		yield(a2a.NewStatusUpdateEvent(req, a2a.TaskStateCanceled, nil), nil)
	}
}

// NewerText is that of all parts.
func NewerText(parts a2a.ContentParts) string {
	var b strings.Builder
	for _, p := range parts {
		b.WriteString(p.Text())
	}
	return b.String()
}

// NewerCard fetches the card of the agent at base, with more headers in pairs.
func NewerCard(t testing.TB, base string, headers ...string) *a2a.AgentCard {
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

// ConnectNewer returns a client of 1.0 that goes by the card of the agent at base, with more headers in pairs.
func ConnectNewer(t testing.TB, base string, headers ...string) *a2aclient.Client {
	t.Helper()
	client := &http.Client{Transport: adding(headers)}
	c, err := a2aclient.NewFromCard(t.Context(), NewerCard(t, base, headers...), a2aclient.WithDefaultsDisabled(), a2aclient.WithJSONRPCTransport(client))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// SayNewer makes a message. skill may be empty.
func SayNewer(text, skill string) *a2a.SendMessageRequest {
	m := a2a.NewMessage(a2a.MessageRoleUser, a2a.NewTextPart(text))
	if skill != "" {
		m.Metadata = map[string]any{"skillId": skill}
	}
	return &a2a.SendMessageRequest{Message: m}
}
