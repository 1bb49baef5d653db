package rehearsal

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/sluicegate/sluice/dataplane"
)

// Kind is a sort of item that servers list.
type Kind string

// The kinds, as the lists' members are called.
const (
	Tool     Kind = "tools"
	Prompt   Kind = "prompts"
	Resource Kind = "resources"
	Template Kind = "templates"
	// Skill of an A2A agent, which its card lists.
	Skill Kind = "skills"
	// Method is a request for no item of a list.
	Method Kind = ""
)

// Kinds are those that are listed.
var Kinds = []Kind{Tool, Prompt, Resource, Template, Skill}

// Request is what a client asks for.
type Request struct {
	Kind Kind
	// Name of the item, or the method; of a skill its id. With Target it is the target's own, else as clients see it.
	Name, Target string
	// Arguments of a tool or prompt, params of a method.
	Arguments map[string]any
	// Text of the message to a skill.
	Text string
}

// Outcome is what became of a request.
type Outcome struct {
	dataplane.Performance
	// Allowed is true if the request reached a target and what the target answered reached the client, or if the proxy
	// answered a request that is its own to answer.
	Allowed bool
	// Why it was refused, as its caller or the log is told; empty if it was not.
	Why string
	// Decision is the rule that made the verdict; zero where none did.
	Decision Decision
	// Result and Error are the answer's; nil for none.
	Result map[string]any
	Error  *ResponseError
	// Sent is what reached the target of the request last; nil for nothing.
	Sent *Message
	// Name is the item as the client wrote it.
	Name string
}

// ResponseError is JSON-RPC's.
type ResponseError struct {
	Code    int             `json:"code"`
	Message string          `json:"message"`
	Data    json.RawMessage `json:"data"`
}

// Message is one request as it reached a target, with what stands for credentials.
type Message struct {
	Target    string
	URL       string // empty for a stdio target
	Header    http.Header
	Arguments map[string]any
	Params    map[string]any
	Env       map[string]string // of a stdio child, by backendAuth
}

// Ask sends a request, and tells what became of it.
func (s *Stage) Ask(ctx context.Context, r Request) (*Outcome, error) {
	agent, err := s.agentOf(r)
	if err != nil {
		return nil, err
	}
	method, params, name, err := s.prepare(r, agent)
	if err != nil {
		return nil, err
	}
	s.cast.mu.Lock()
	s.cast.sent = nil
	s.cast.mu.Unlock()
	var p dataplane.Performance
	if agent != "" {
		p, err = s.rehearsal.CallAgent(ctx, s.callerOf(agent), method, params)
	} else {
		p, err = s.rehearsal.Call(ctx, &s.caller, method, params)
	}
	if err != nil {
		return nil, err
	}
	out := &Outcome{Performance: p, Name: name}
	answered := s.read(out)
	out.Sent = s.arrived(method)
	out.Allowed = p.Status < 300 && !p.Refused && (out.Error == nil && answered || out.Error != nil && out.Sent != nil && s.targetsOwn(out.Error))
	if !out.Allowed {
		out.Why = reason(out)
	}
	out.Decision = s.decision(p.Rule, p.Target)
	return out, nil
}

// targetsOwn reports whether an error is what a played target answers for what it does not have.
func (s *Stage) targetsOwn(e *ResponseError) bool { return e.Message == notFound }

// prepare is a request as JSON-RPC has it. A target whose lists nobody gave has what it is asked for.
func (s *Stage) prepare(r Request, agent string) (method string, params map[string]any, name string, err error) {
	switch {
	case r.Kind == Method:
		return r.Name, r.Arguments, r.Name, nil
	case r.Kind == Skill:
		if !s.given[agent] {
			s.assume(agent, Skill, r.Name)
		}
		return "message/send", messageTo(r.Name, r.Text), r.Name, nil
	}
	target, ownName := "", r.Name
	name = r.Name
	if r.Target != "" {
		if target, err = s.world.target(r.Target, s.world.backendsOf(s.route)); err != nil {
			return "", nil, "", err
		}
		name = s.world.clientName(r.Kind, target, r.Name)
	} else {
		target, ownName = s.world.ownName(r.Kind, s.route, r.Name)
	}
	if target == "" {
		if known := s.targets(); len(known) > 1 && !slices.ContainsFunc(known, func(t string) bool { return s.given[t] }) {
			return "", nil, "", fmt.Errorf("the name %q does not tell which of the targets %s it is for: say the target", r.Name, strings.Join(known, ", "))
		}
	} else if !s.given[target] {
		s.assume(target, r.Kind, ownName)
	}
	switch r.Kind {
	case Tool, Prompt:
		params = map[string]any{"name": name}
		if r.Arguments != nil {
			params["arguments"] = r.Arguments
		}
		return map[Kind]string{Tool: "tools/call", Prompt: "prompts/get"}[r.Kind], params, name, nil
	case Resource:
		return "resources/read", map[string]any{"uri": name}, name, nil
	default:
		return "completion/complete", map[string]any{"ref": map[string]any{"type": "ref/resource", "uri": name}, "argument": map[string]any{"name": "value", "value": ""}}, name, nil
	}
}

// Assume gives the target of a name that a client writes an item, if nobody said what that target has.
func (s *Stage) Assume(k Kind, name string) {
	target, ownName := s.world.ownName(k, s.route, name)
	if k == Skill {
		if agents := s.agents(); len(agents) == 1 {
			target = agents[0]
		}
	}
	if target != "" && !s.given[target] {
		s.assume(target, k, ownName)
	}
}

// assume gives a target an item.
func (s *Stage) assume(target string, k Kind, name string) {
	t := s.cast.targets[s.resource(target)]
	list := map[Kind]*[]Item{Tool: &t.Tools, Prompt: &t.Prompts, Resource: &t.Resources, Template: &t.Templates, Skill: &t.Skills}[k]
	if !slices.ContainsFunc(*list, func(i Item) bool { return i.Name == name }) {
		*list = append(slices.Clone(*list), Item{Name: name})
	}
	s.cast.targets[s.resource(target)] = t
}

// read takes the answer apart; false if there is none.
func (s *Stage) read(out *Outcome) bool {
	var response struct {
		Result map[string]any `json:"result"`
		Error  *ResponseError `json:"error"`
	}
	for _, body := range messages(out.Header.Get("Content-Type"), out.Body) {
		response.Result, response.Error = nil, nil
		if json.Unmarshal(body, &response) == nil && (response.Result != nil || response.Error != nil) {
			out.Result, out.Error = response.Result, response.Error
			return true
		}
	}
	return false
}

// messages are those of an answer, whether it is one or a stream of events.
func messages(contentType string, body []byte) [][]byte {
	if !strings.HasPrefix(contentType, "text/event-stream") {
		return [][]byte{body}
	}
	var all [][]byte
	for line := range bytes.Lines(body) {
		if data, ok := bytes.CutPrefix(line, []byte("data:")); ok {
			all = append(all, bytes.TrimSpace(data))
		}
	}
	return all
}

// arrived is the last message of a method that came to a target.
func (s *Stage) arrived(method string) *Message {
	s.cast.mu.Lock()
	defer s.cast.mu.Unlock()
	for _, r := range slices.Backward(s.cast.sent) {
		if r.method != method {
			continue
		}
		m := &Message{Target: r.Target, Header: http.Header{}, Params: r.params, Env: map[string]string{}}
		m.Arguments, _ = r.params["arguments"].(map[string]any)
		token := callersToken
		if s.cast.exchanged[r.Resource] {
			token = "<exchanged-token>"
		}
		hide := func(v string) string {
			if s.shown.token != "" {
				v = strings.ReplaceAll(v, s.shown.token, token)
			}
			return v
		}
		for name, values := range r.Header {
			for _, v := range values {
				m.Header.Add(name, hide(v))
			}
		}
		if r.URL != nil {
			m.URL, _ = url.PathUnescape(hide(r.URL.String()))
		}
		for _, v := range r.Env {
			name, value, _ := strings.Cut(v, "=")
			m.Env[name] = value
		}
		return m
	}
	return nil
}

// reason is the most telling of what is known of a refusal.
func reason(out *Outcome) string {
	switch {
	case out.Refused && out.Rule != "":
		return out.Rule
	case out.Error != nil && out.Err != nil && !strings.Contains(out.Err.Error(), out.Error.Message):
		return out.Error.Message + " (" + out.Err.Error() + ")"
	case out.Error != nil:
		return out.Error.Message
	case out.Err != nil:
		return out.Err.Error()
	}
	return strings.TrimSpace(string(out.Body))
}

// List is what the caller's list of a kind holds, names as clients see them, in order. A refused list is an error.
// target tells whose card is meant, where there are several; else it may be empty.
func (s *Stage) List(ctx context.Context, k Kind, target string) ([]string, error) {
	if k == Skill {
		return s.skills(ctx, target)
	}
	method := map[Kind]string{Tool: "tools/list", Prompt: "prompts/list", Resource: "resources/list", Template: "resources/templates/list"}[k]
	member := map[Kind]string{Tool: "tools", Prompt: "prompts", Resource: "resources", Template: "resourceTemplates"}[k]
	name := map[Kind]string{Tool: "name", Prompt: "name", Resource: "uri", Template: "uriTemplate"}[k]
	names := []string{}
	var cursor any
	for range 1000 { // played targets have one page
		params := map[string]any{}
		if cursor != nil {
			params["cursor"] = cursor
		}
		out, err := s.Ask(ctx, Request{Kind: Method, Name: method, Arguments: params})
		if err != nil {
			return nil, err
		}
		if out.Result == nil {
			return nil, fmt.Errorf("%s is refused: %s", method, out.Why)
		}
		items, _ := out.Result[member].([]any)
		for _, item := range items {
			entry, _ := item.(map[string]any)
			text, _ := entry[name].(string)
			names = append(names, text)
		}
		if cursor = out.Result["nextCursor"]; cursor == nil {
			break
		}
	}
	return names, nil
}
