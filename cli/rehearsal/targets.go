package rehearsal

import (
	"encoding/json"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"

	"github.com/sluicegate/sluice/dataplane"
	"github.com/sluicegate/sluice/internal/policy"
)

// Target is what a target has, and how it answers.
type Target struct {
	Tools, Prompts, Resources, Templates []Item
	// Skills of an A2A agent, by their ids.
	Skills []Item
}

// Item is a tool, prompt, resource or resource template. The zero Result answers with the text `ok`.
type Item struct {
	// Name is the target's own; a URI for a resource, a URI template for a template.
	Name string
	// Annotations and InputSchema of a tool; nil: none, and any object.
	Annotations, InputSchema map[string]any
	// Text of the answer, unless Result is set.
	Text string
	// Result is the whole answer.
	Result map[string]any
}

// cast plays the targets, and remembers what came to them.
type cast struct {
	targets map[string]Target // by resource name of the target
	// exchanged are resource names of targets that need a caller's token to exchange.
	exchanged map[string]bool
	// agents are resource names of targets that speak A2A.
	agents map[string]bool

	mu   sync.Mutex // guards sent
	sent []received
}

// received is one message as it came to a target.
type received struct {
	dataplane.Sent
	method string
	params map[string]any
}

var everyRevision = dataplane.Protocols()

// play answers one HTTP request as a server of every revision does that keeps no session.
func (c *cast) play(s dataplane.Sent) dataplane.Answer {
	var m struct {
		ID     json.RawMessage `json:"id"`
		Method string          `json:"method"`
		Params map[string]any  `json:"params"`
	}
	if c.agents[s.Resource] && s.Method == http.MethodGet {
		return jsonAnswer(card(s, c.targets[s.Resource].Skills))
	}
	if s.Method != http.MethodPost || json.Unmarshal(s.Body, &m) != nil {
		return dataplane.Answer{Status: http.StatusMethodNotAllowed}
	}
	if c.exchanged[s.Resource] && !shows(s) {
		return dataplane.Answer{Err: policy.NoTokenToExchange}
	}
	c.mu.Lock()
	c.sent = append(c.sent, received{s, m.Method, m.Params})
	c.mu.Unlock()
	if m.ID == nil {
		return dataplane.Answer{Status: http.StatusAccepted}
	}
	answer := map[string]any{"jsonrpc": "2.0", "id": m.ID}
	if c.agents[s.Resource] {
		answer["result"] = agentResult(s, c.targets[s.Resource].Skills, m.Method, m.Params)
	} else if result, ok := c.result(s.Resource, m.Method, m.Params); ok {
		answer["result"] = result
	} else {
		answer["error"] = map[string]any{"code": -32602, "message": notFound}
	}
	return jsonAnswer(answer)
}

func jsonAnswer(v any) dataplane.Answer {
	body, err := json.Marshal(v)
	if err != nil { // everything in it was JSON or YAML
		return dataplane.Answer{Status: http.StatusInternalServerError}
	}
	return dataplane.Answer{Header: http.Header{"Content-Type": {"application/json"}}, Body: body}
}

// shows reports whether a request carries a credential.
func shows(s dataplane.Sent) bool {
	return s.Header.Get("Authorization") != "" || s.Header.Get("Cookie") != "" || strings.Contains(s.URL.RawQuery, "=")
}

func (c *cast) result(resource, method string, params map[string]any) (any, bool) {
	t := c.targets[resource]
	text := func(key string) string { v, _ := params[key].(string); return v }
	switch method {
	case "initialize":
		return map[string]any{"protocolVersion": params["protocolVersion"], "capabilities": capabilities, "serverInfo": map[string]any{"name": "rehearsal", "version": "1"}}, true
	case "server/discover":
		return complete(map[string]any{"supportedVersions": everyRevision, "capabilities": capabilities}), true
	case "tools/list":
		return list("tools", t.Tools, func(i Item) map[string]any {
			schema := i.InputSchema
			if schema == nil {
				schema = map[string]any{"type": "object"}
			}
			entry := map[string]any{"name": i.Name, "inputSchema": schema}
			if i.Annotations != nil {
				entry["annotations"] = i.Annotations
			}
			return entry
		}), true
	case "prompts/list":
		return list("prompts", t.Prompts, func(i Item) map[string]any { return map[string]any{"name": i.Name} }), true
	case "resources/list":
		return list("resources", t.Resources, func(i Item) map[string]any { return map[string]any{"name": i.Name, "uri": i.Name} }), true
	case "resources/templates/list":
		return list("resourceTemplates", t.Templates, func(i Item) map[string]any { return map[string]any{"name": i.Name, "uriTemplate": i.Name} }), true
	case "tools/call":
		return answer(t.Tools, text("name"), func(s string) map[string]any { return map[string]any{"content": []any{textContent(s)}} })
	case "prompts/get":
		return answer(t.Prompts, text("name"), func(s string) map[string]any {
			return map[string]any{"messages": []any{map[string]any{"role": "user", "content": textContent(s)}}}
		})
	case "resources/read":
		uri := text("uri")
		return answer(t.Resources, uri, func(s string) map[string]any {
			return map[string]any{"contents": []any{map[string]any{"uri": uri, "text": s}}}
		})
	case "completion/complete":
		return complete(map[string]any{"completion": map[string]any{"values": []any{}}}), true
	}
	return complete(map[string]any{}), true
}

var capabilities = map[string]any{
	"tools": map[string]any{}, "prompts": map[string]any{}, "resources": map[string]any{"subscribe": true}, "completions": map[string]any{}, "logging": map[string]any{},
}

// complete marks a result as 2026-07-28 wants it; older revisions do not mind.
func complete(result map[string]any) map[string]any {
	if _, set := result["resultType"]; !set {
		result["resultType"] = "complete"
	}
	return result
}

func list(member string, items []Item, show func(Item) map[string]any) map[string]any {
	entries := make([]any, len(items))
	for i, item := range items {
		entries[i] = show(item)
	}
	return complete(map[string]any{member: entries})
}

func answer(items []Item, name string, of func(text string) map[string]any) (any, bool) {
	i := slices.IndexFunc(items, func(i Item) bool { return i.Name == name })
	switch {
	case i < 0:
		return nil, false
	case items[i].Result != nil:
		return complete(maps.Clone(items[i].Result)), true
	case items[i].Text == "":
		return complete(of("ok")), true
	}
	return complete(of(items[i].Text)), true
}

func textContent(s string) map[string]any { return map[string]any{"type": "text", "text": s} }

// notFound is what a target says of what it does not have.
const notFound = "the target has no such item"
