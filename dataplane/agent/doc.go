// Package agent serves targets that speak A2A, the protocol between agents, in its revisions 0.3 and 1.0: the card at its
// well-known paths, and JSON-RPC with event streams. What is the same for every target (credentials, headers, errors, what
// policies may know) is package mux's.
package agent

import (
	"net/http"

	"github.com/sluicegate/sluice/dataplane/mcp"
	"github.com/sluicegate/sluice/dataplane/mux"
	"github.com/sluicegate/sluice/internal/policy"
)

// Codes of A2A's own errors (specification 1.0, section 5.4; the same in 0.3).
const (
	codeUnsupportedOperation = -32004
	codeInvalidAgentResponse = -32006
)

// Header names of A2A; 0.3 has the second with an X.
var protocolHeaders = []string{"A2a-Version", "A2a-Extensions", "X-A2a-Extensions"}

// Serve answers one request for an agent or its card. x has the Message of a POST, and no session. An error was answered if
// anything has been written, else not yet: it is a [*mux.Error] or an [*mcp.Error].
func Serve(m *mux.Mux, w http.ResponseWriter, x *mux.Request, at *Place) error {
	x.Record.Target = at.Agent.Name
	m.Adopt(x, policy.Agent, "")
	if v := versionOf(x.HTTP); !isVersion(v) {
		return x.Fail(http.StatusBadRequest, mcp.CodeInvalidRequest, "A2A-Version must be a version, as 1.0")
	}
	if at.Card {
		return serveCard(w, x, at)
	}
	if x.HTTP.Method != http.MethodPost {
		e := x.Fail(http.StatusMethodNotAllowed, mcp.CodeInvalidRequest, "an A2A agent is asked by POST; its card is at %s%s", at.URL(x.HTTP), wellKnown[0])
		e.Allow = http.MethodPost
		return e
	}
	skill, ambiguous, doubtful := skillOf(x.Message, x.Limits())
	m.Adopt(x, policy.Agent, skill)
	c := &call{Request: x, at: at, agent: at.Agent}
	err := c.check()
	if err == nil && ambiguous != nil {
		err = x.Fail(http.StatusBadRequest, mcp.CodeInvalidRequest, "%s", ambiguous.Message)
	}
	if err == nil {
		err = c.Take(c.agent) // before rules: a refusal must not cost less than a call
	}
	if err == nil {
		err = c.admit(doubtful)
	}
	if err == nil {
		err = c.forward(w)
	}
	if err != nil {
		c.tell(w, err)
	}
	return err
}

// call is one JSON-RPC request on its way to an agent.
type call struct {
	*mux.Request
	at    *Place
	agent target
	begun bool // the answer has
	// understood is set by the first message of the agent's that is one of JSON-RPC.
	understood bool
}

// check refuses what is no request of A2A.
func (c *call) check() error {
	msg, h := c.Message, c.HTTP.Header
	switch msg.Kind {
	case mcp.Batch:
		return c.Fail(http.StatusBadRequest, mcp.CodeInvalidRequest, "A2A has no batches: send one request at a time")
	case mcp.Response:
		return c.Fail(http.StatusBadRequest, mcp.CodeInvalidRequest, "an A2A agent asks nothing of its clients, so it takes no response")
	}
	if h[mcp.HeaderSession] != nil || h["Mcp-Protocol-Version"] != nil || h["Mcp-Method"] != nil || ofMCP(msg.Method) {
		return c.Fail(http.StatusOK, mcp.CodeMethodNotFound, "target %q is an A2A agent and does not speak MCP; its card is at %s%s", c.agent.Name, c.at.URL(c.HTTP), wellKnown[0])
	}
	switch {
	case msg.Kind != mcp.Request || msg.Method == "":
		return c.Fail(http.StatusBadRequest, mcp.CodeInvalidRequest, "A2A has requests alone: send an id and a method")
	case misspelt(msg.Method):
		return c.Fail(http.StatusOK, mcp.CodeMethodNotFound, "Method not found")
	}
	return nil
}

// admit asks the agent's rules. doubtful is why its skill cannot be told, which matters to rules alone.
func (c *call) admit(doubtful error) error {
	if !c.agent.Policy.Authorizes() {
		return nil
	}
	if doubtful != nil {
		return c.Fail(http.StatusOK, mcp.CodeInvalidParams, "%v", doubtful)
	}
	asked := c.Call(c.agent, policy.Agent, c.Record.Name)
	v := c.agent.Policy.Admit(&asked)
	c.Record.Rule = v.Rule
	switch {
	case v.Allowed:
		return nil
	case v.Invalid != nil:
		return c.Fail(http.StatusBadRequest, mcp.CodeInvalidRequest, "%v", v.Invalid)
	}
	c.Record.Refused = true
	if v.Scopes != nil {
		return c.StepUp(v)
	}
	what := "method " + string(mcp.AppendString(nil, c.Message.Method))
	if c.Record.Name != "" {
		what += " with skill " + string(mcp.AppendString(nil, c.Record.Name))
	}
	if v.Explain {
		return c.Fail(http.StatusOK, codeUnsupportedOperation, "%s is refused by %s", what, v.Rule)
	}
	return c.Fail(http.StatusOK, codeUnsupportedOperation, "%s is not allowed", what)
}
