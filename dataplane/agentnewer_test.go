package dataplane

import (
	"errors"
	"strings"
	"testing"

	"github.com/a2aproject/a2a-go/v2/a2a"
	"github.com/google/go-cmp/cmp"

	"github.com/sluicegate/sluice/internal/mcptest/agenttest"
)

// What 1.0's own SDK does goes through, with its form of the card, and rules and guards see it.
func TestNewerAgent(t *testing.T) {
	agent := agenttest.ServeNewer(t, "/rpc")
	w := behind()
	w.agent("only", agent.URL)
	w.policies["only"] = aiPolicy(t, guards(rejects("password"), masks("hunter2")))
	w.policies["only"].McpAuthorization = authorization(deny(`has(a2a.skill) && a2a.skill == "secret"`), deny(`a2a.method == "CancelTask"`), allow("true")).GetMcpAuthorization()
	p := w.start(t)
	card := agenttest.NewerCard(t, p.URL)
	if len(card.SupportedInterfaces) != 1 || *card.SupportedInterfaces[0] != (a2a.AgentInterface{URL: p.URL, ProtocolBinding: "JSONRPC", ProtocolVersion: "1.0"}) ||
		len(card.Skills) != 1 || card.Skills[0].ID != "echo" || len(card.Signatures) != 0 {
		t.Fatalf("the card is %+v", card)
	}
	c := agenttest.ConnectNewer(t, p.URL)
	full, err := c.GetExtendedAgentCard(t.Context(), &a2a.GetExtendedAgentCardRequest{})
	if err != nil || len(full.SupportedInterfaces) != 1 || full.SupportedInterfaces[0].URL != p.URL || len(full.Skills) != 1 || len(full.Signatures) != 0 {
		t.Errorf("the extended card is %+v, %v", full, err)
	}
	got, err := c.SendMessage(t.Context(), agenttest.SayNewer("echo hi hunter2", "echo"))
	if m, ok := got.(*a2a.Message); err != nil || !ok || agenttest.NewerText(m.Parts) != "hi <MASKED>" {
		t.Errorf("SendMessage: %v %v", got, err)
	}
	var kinds []string
	var text string
	var task a2a.TaskID
	for ev, err := range c.SendStreamingMessage(t.Context(), agenttest.SayNewer("stream", "")) {
		if err != nil {
			t.Fatal(err)
		}
		task = ev.TaskInfo().TaskID
		switch ev := ev.(type) {
		case *a2a.TaskStatusUpdateEvent:
			kinds = append(kinds, string(ev.Status.State))
		case *a2a.TaskArtifactUpdateEvent:
			kinds = append(kinds, "artifact")
			text += agenttest.NewerText(ev.Artifact.Parts)
		default:
			kinds = append(kinds, "task")
		}
	}
	if want := []string{"task", "TASK_STATE_WORKING", "artifact", "artifact", "artifact", "TASK_STATE_COMPLETED"}; !cmp.Equal(kinds, want) || text != "onetwothree" {
		t.Errorf("SendStreamingMessage: %v %q", kinds, text)
	}
	if got, err := c.GetTask(t.Context(), &a2a.GetTaskRequest{ID: task}); err != nil || got.Status.State != a2a.TaskStateCompleted {
		t.Errorf("GetTask: %+v %v", got, err)
	}
	if _, err := c.GetTask(t.Context(), &a2a.GetTaskRequest{ID: "nope"}); !errors.Is(err, a2a.ErrTaskNotFound) {
		t.Errorf("GetTask of none: %v", err)
	}
	before := len(agent.Requests())
	if _, err := c.SendMessage(t.Context(), agenttest.SayNewer("echo hi", "secret")); !errors.Is(err, a2a.ErrUnsupportedOperation) {
		t.Errorf("a skill that is denied: %v", err)
	}
	if _, err := c.CancelTask(t.Context(), &a2a.CancelTaskRequest{ID: task}); !errors.Is(err, a2a.ErrUnsupportedOperation) {
		t.Errorf("a method that is denied: %v", err)
	}
	for _, err := range c.SendStreamingMessage(t.Context(), agenttest.SayNewer("my password", "")) {
		if !errors.Is(err, a2a.ErrInvalidParams) || strings.Contains(err.Error(), "password") {
			t.Errorf("what guards reject: %v", err)
		}
	}
	if n := len(agent.Requests()); n != before {
		t.Errorf("the agent got %d of what was refused", n-before)
	}
	if r := agent.Requests()[before-1]; r.Header.Get("A2a-Version") != "1.0" || r.Path != "/rpc" {
		t.Errorf("the agent got %+v", r)
	}
	if line := lineWith(t, p, `"method":"SendMessage","name":"echo"`); !strings.Contains(line, `"outcome":"ok"`) {
		t.Errorf("the line says %s", line)
	}
}
