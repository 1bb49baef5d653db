package rehearsal

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/sluicegate/sluice/dataplane"
	xdsv1 "github.com/sluicegate/sluice/proto/gen/sluice/xds/v1"
)

// A2A agents: where they are reached, and how they are played.

// isAgent reports whether a target of the caller's route speaks A2A.
func (s *Stage) isAgent(target string) bool {
	switch s.world.targets[target].GetTransport().(type) {
	case *xdsv1.Target_A2A:
		return true
	case *xdsv1.Target_Mcp:
		for _, p := range explained(s.cfg.Objects, s.cfg.Tenant, target, s.route) {
			if p.GetKind() == "a2a" && p.GetNotApplicable() == "" {
				return true
			}
		}
	}
	return false
}

// agents are those behind the caller's route.
func (s *Stage) agents() []string {
	return slices.DeleteFunc(s.targets(), func(t string) bool { return !s.world.agents[t] })
}

// Has reports whether anything behind the caller's route could list a kind: skills are agents', all others MCP servers'.
func (s *Stage) Has(k Kind) bool {
	if k == Skill {
		return len(s.agents()) > 0
	}
	return len(s.agents()) < len(s.targets())
}

// agentOf is the agent that a request is for, empty if it is for an MCP server.
func (s *Stage) agentOf(r Request) (string, error) {
	agents := s.agents()
	if r.Kind != Skill && (r.Kind != Method || len(agents) == 0) {
		return "", nil
	}
	if r.Target != "" {
		target, err := s.world.target(r.Target, s.world.backendsOf(s.route))
		switch {
		case err != nil:
			return "", err
		case slices.Contains(agents, target):
			return target, nil
		case r.Kind == Skill:
			return "", fmt.Errorf("target %q is no A2A agent, so it has no skill", r.Target)
		}
		return "", nil
	}
	switch {
	case r.Kind == Method && len(agents) < len(s.targets()):
		return "", nil // there are MCP servers, which have the route's path
	case len(agents) == 1:
		return agents[0], nil
	case len(agents) == 0:
		return "", fmt.Errorf("no target of route %q is an A2A agent, so none has the skill %q", s.route, r.Name)
	}
	return "", fmt.Errorf("say for which agent the request is: target: one of %s", strings.Join(agents, ", "))
}

// callerOf is the caller at an agent's own path, as package dataplane/agent has it.
func (s *Stage) callerOf(agent string) *dataplane.Caller {
	c := s.caller
	if len(s.targets()) > 1 {
		path, query, _ := strings.Cut(c.Path, "?")
		c.Path = strings.TrimSuffix(path, "/") + "/" + s.world.targets[agent].GetName()
		if query != "" {
			c.Path += "?" + query
		}
	}
	return &c
}

// skills are the ids on the card that the caller gets of an agent.
func (s *Stage) skills(ctx context.Context, target string) ([]string, error) {
	agent, err := s.agentOf(Request{Kind: Skill, Target: target})
	if err != nil {
		return nil, err
	}
	p, err := s.rehearsal.Card(ctx, s.callerOf(agent))
	if err != nil {
		return nil, err
	}
	var card struct{ Skills []struct{ ID string } }
	if err := json.Unmarshal(p.Body, &card); err != nil || p.Status != 200 {
		return nil, fmt.Errorf("the card is refused with status %d: %s", p.Status, strings.TrimSpace(string(p.Body)))
	}
	ids := []string{}
	for _, skill := range card.Skills {
		ids = append(ids, skill.ID)
	}
	return ids, nil
}

// messageTo is the params of message/send.
func messageTo(skill, text string) map[string]any {
	if text == "" {
		text = "hi"
	}
	return map[string]any{"message": map[string]any{
		"kind": "message", "messageId": "m1", "role": "user", "parts": []any{map[string]any{"kind": "text", "text": text}}, "metadata": map[string]any{"skillId": skill},
	}}
}

// card is what a played agent says of itself, in the forms of 0.3 and 1.0.
func card(s dataplane.Sent, skills []Item) map[string]any {
	listed := []any{}
	for _, skill := range skills {
		listed = append(listed, map[string]any{"id": skill.Name, "name": skill.Name, "description": skill.Name, "tags": []any{}})
	}
	at := *s.URL
	at.RawQuery = ""
	return map[string]any{
		"name": s.Target, "description": "played", "version": "1", "protocolVersion": "0.3.0", "url": at.String(), "preferredTransport": "JSONRPC",
		"supportedInterfaces": []any{map[string]any{"url": at.String(), "protocolBinding": "JSONRPC", "protocolVersion": "1.0"}},
		"capabilities":        map[string]any{"streaming": true}, "defaultInputModes": []any{"text/plain"}, "defaultOutputModes": []any{"text/plain"}, "skills": listed,
	}
}

// agentResult is what a played agent answers: to a message the text of the skill that it names, and to all else what is least.
func agentResult(s dataplane.Sent, skills []Item, method string, params map[string]any) any {
	text := "ok"
	if message, ok := params["message"].(map[string]any); ok {
		metadata, _ := message["metadata"].(map[string]any)
		if i := slices.IndexFunc(skills, func(i Item) bool { return i.Name == metadata["skillId"] }); i >= 0 && skills[i].Text != "" {
			text = skills[i].Text
		}
	}
	switch method {
	case "message/send", "message/stream":
		return map[string]any{"kind": "message", "messageId": "m2", "role": "agent", "parts": []any{map[string]any{"kind": "text", "text": text}}}
	case "SendMessage", "SendStreamingMessage":
		return map[string]any{"message": map[string]any{"messageId": "m2", "role": "ROLE_AGENT", "parts": []any{map[string]any{"text": text}}}}
	case "agent/getAuthenticatedExtendedCard", "GetExtendedAgentCard":
		return card(s, skills)
	case "tasks/get", "tasks/cancel":
		return map[string]any{"kind": "task", "id": params["id"], "contextId": "c1", "status": map[string]any{"state": "completed"}}
	}
	return map[string]any{}
}
