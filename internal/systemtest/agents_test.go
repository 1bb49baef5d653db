package systemtest

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/a2aproject/a2a-go/a2a"
	newer "github.com/a2aproject/a2a-go/v2/a2a"

	"github.com/sluicegate/sluice/internal/mcptest"
	"github.com/sluicegate/sluice/internal/mcptest/agenttest"
)

// Agents of both revisions beside an MCP server, in both spellings: from a file through control plane and proxy to the agents'
// own SDK, and back to its clients.
func TestAgents(t *testing.T) {
	f := newFleet(t, 1, "private-network")
	older, recent, server := agenttest.Serve(t, "/rpc", nil), agenttest.ServeNewer(t, "/"), mcptest.NewServer(t, mcptest.Options{})
	config := func(rules string) string {
		return fmt.Sprintf(`
mcp:
  port: %d
  policies:
    apiKey: {mode: strict, keys: [{key: dev-key, metadata: {id: dev}}, {key: ops-key, metadata: {id: ops}}]}
  targets:
  - name: older
    a2a: {host: %q}
    policies:
      mcpAuthorization: {rules: [%s, 'true']}
      backendAuth: {key: agents-key}
  - name: recent
    mcp: {host: %q}
    policies:
      a2a: {}
      ai: {promptGuard: {request: [{regex: {rules: [{builtin: secrets}]}}], response: [{regex: {action: mask, rules: [{pattern: hunter2}]}}]}}
  - name: server
    mcp: {host: %q}
`, f.port, older.URL, rules, recent.URL, server.URL)
	}
	f.apply(config(`{deny: 'has(a2a.skill) && a2a.skill == "secret" && apiKey.id != "ops"'}`))
	at := func(name string) string { return f.endpoint(0, "/mcp/"+name) }
	dev, ops := []string{"Authorization", "Bearer dev-key"}, []string{"Authorization", "Bearer ops-key"}

	card := agenttest.Card(t, at("older"), dev...)
	if card.URL != at("older") || len(card.Skills) != 1 || len(card.AdditionalInterfaces) != 1 || card.AdditionalInterfaces[0].URL != at("older") {
		t.Errorf("the card of 0.3 is %+v", card)
	}
	if all := agenttest.Card(t, at("older"), ops...); len(all.Skills) != 2 {
		t.Errorf("who may ask for all skills sees %+v", all.Skills)
	}
	c := agenttest.Connect(t, at("older"), dev...)
	if got, err := c.SendMessage(t.Context(), agenttest.Say("echo hi", "echo")); err != nil || agenttest.Text(got.(*a2a.Message).Parts) != "hi" {
		t.Errorf("0.3: %v %v", got, err)
	}
	if _, err := c.SendMessage(t.Context(), agenttest.Say("echo hi", "secret")); !errors.Is(err, a2a.ErrUnsupportedOperation) {
		t.Errorf("a skill that is denied: %v", err)
	}
	if _, err := agenttest.Connect(t, at("older"), ops...).SendMessage(t.Context(), agenttest.Say("echo hi", "secret")); err != nil {
		t.Errorf("to who may: %v", err)
	}
	states := 0
	for ev, err := range c.SendStreamingMessage(t.Context(), agenttest.Say("stream", "")) {
		if err != nil {
			t.Fatal(err)
		}
		if s, ok := ev.(*a2a.TaskStatusUpdateEvent); ok && s.Status.State == a2a.TaskStateCompleted {
			states++
		}
	}
	if states != 1 {
		t.Errorf("the stream ended %d times", states)
	}
	for _, r := range older.Requests() {
		if r.Header.Get("Authorization") != "Bearer agents-key" {
			t.Errorf("%s %s came with Authorization %q", r.Method, r.Path, r.Header.Get("Authorization"))
		}
	}

	newCard := agenttest.NewerCard(t, at("recent"), dev...)
	if len(newCard.SupportedInterfaces) != 1 || newCard.SupportedInterfaces[0].URL != at("recent") {
		t.Errorf("the card of 1.0 is %+v", newCard)
	}
	n := agenttest.ConnectNewer(t, at("recent"), dev...)
	if got, err := n.SendMessage(t.Context(), agenttest.SayNewer("echo hunter2", "")); err != nil || agenttest.NewerText(got.(*newer.Message).Parts) != "<MASKED>" {
		t.Errorf("1.0: %v %v", got, err)
	}
	if _, err := n.SendMessage(t.Context(), agenttest.SayNewer("echo AKIAIOSFODNN7EXAMPLE", "")); err == nil || !strings.Contains(err.Error(), "promptGuard") {
		t.Errorf("what a guard rejects: %v", err)
	}

	s := handshake(t, f.url(0), map[string][]string{"Authorization": {"Bearer dev-key"}})
	if got := s.call(t, f.url(0), "echo", `{"text":"beside agents"}`); !strings.Contains(got.body, "beside agents") {
		t.Errorf("the server beside them: %d %s", got.status, got.body)
	}

	// Who may do what changes without a restart, and metrics and log name method and skill.
	f.apply(config(`{deny: 'a2a.method == "message/send"'}`))
	if _, err := c.SendMessage(t.Context(), agenttest.Say("echo hi", "echo")); !errors.Is(err, a2a.ErrUnsupportedOperation) {
		t.Errorf("a method that is denied now: %v", err)
	}
	_, metrics := f.proxies[0].ops(t, "/metrics")
	for _, labels := range []string{`method="message/send",outcome="denied",target="older"`, `method="message/stream",outcome="ok",target="older"`, `method="SendMessage",outcome="ok",target="recent"`} {
		found := false
		for line := range strings.Lines(metrics) {
			found = found || strings.HasPrefix(line, "sluice_calls_total{"+labels)
		}
		if !found {
			t.Errorf("no metric with %s", labels)
		}
	}
	until(t, "the access log's line", func() bool {
		return strings.Contains(f.proxies[0].stderr.String(), `"target":"older","method":"message/send","name":"secret","principal":"dev"`)
	})
	if out := f.must("explain", "target", "older"); !strings.Contains(out, "mcpAuthorization") || !strings.Contains(out, "sluice.yaml:") {
		t.Errorf("explain:\n%s", out)
	}
}

// What cannot be an agent is refused before anything runs, with its place.
func TestBadAgents(t *testing.T) {
	a := admin{t, nil}
	for target, says := range map[string]string{
		"stdio: {cmd: agent}\n    policies:\n      a2a: {}":                                                           `bad.yaml:7:7: mcp.targets[0].policies.a2a: means nothing on a stdio target`,
		"sse: {host: \"https://h.example/sse\"}\n    policies:\n      a2a: {}":                                        `bad.yaml:7:7: mcp.targets[0].policies.a2a: means nothing on a sse target`,
		"a2a: {host: \"https://h.example\"}\n    policies:\n      a2a: {skills: [x]}":                                 `bad.yaml:7:13: mcp.targets[0].policies.a2a: unknown field "skills"`,
		"a2a: {host: \"ftp://h.example\"}":                                                                            `bad.yaml:5:`,
		"a2a: {host: \"https://h.example\"}\n    policies:\n      ai: {defaults: {a: b}}":                             `bad.yaml:7:12: mcp.targets[0].policies.ai.defaults: is about tools`,
		"a2a: {host: \"https://h.example\"}\n    mcp: {host: \"https://h.example\"}":                                  `bad.yaml:`,
		"mcp: {host: \"https://h.example\"}\n    policies:\n      mcpAuthorization: {rules: ['a2a.nothing == \"\"']}": `bad.yaml:7:34: mcp.targets[0].policies.mcpAuthorization.rules[0]`,
	} {
		_, stderr, code := a.run("validate", "-f", write(t, "bad.yaml", "mcp:\n  port: 3000\n  targets:\n  - name: t\n    "+target+"\n"))
		if code != 2 || !strings.Contains(stderr, says) {
			t.Errorf("%s:\nexit %d, %s\nwant %s", target, code, stderr, says)
		}
	}
}
