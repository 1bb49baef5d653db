package policy

import (
	"net/http"
	"net/url"
	"strings"
)

// Authorizes reports whether rules decide about calls of the target, so that some of what it lists may be hidden.
func (t *Target) Authorizes() bool { return t != nil && len(t.authz) > 0 }

// DenyRefusesOthers reports whether a deny rule is in error for what is no tool, and so refuses every prompt, resource and
// task too: it reads mcp.tool without asking has(mcp.tool) first. One that reads what only agents have is another matter, see
// [DenyFails]. An expression that does not compile is none.
func DenyRefusesOthers(expression string) bool {
	var errs problems
	r := compileRule(expression, "", "", &errs)
	if r == nil {
		return false
	}
	a := newActivation(&Call{Kind: Prompt, Name: "any", Method: "prompts/get"}, nil, true)
	defer a.release()
	return r.eval(a) == isError && !DenyFails(expression, false)
}

// DenyFails reports whether a deny rule is in error for all that is asked of an A2A agent, or of an MCP server, and so refuses
// it: it reads what only the other has without asking has(…) first. An expression that does not compile is none.
func DenyFails(expression string, agent bool) bool {
	var errs problems
	r := compileRule(expression, "", "", &errs)
	if r == nil || r.program == nil {
		return false
	}
	c, wrong := &Call{Kind: Tool, Name: "any", Method: "tools/call"}, errOfServer
	if agent {
		c, wrong = &Call{Kind: Agent, Name: "any", Method: "message/send"}, errOfAgent
	}
	c.HTTP = &http.Request{Method: http.MethodPost, Host: "any", URL: &url.URL{Path: "/"}, Header: http.Header{}, RemoteAddr: "192.0.2.1:1"}
	a := newActivation(c, nil, false)
	defer a.release()
	_, _, err := r.program.Eval(a)
	return err != nil && (a.absent && agent || strings.Contains(err.Error(), wrong.Error()))
}
