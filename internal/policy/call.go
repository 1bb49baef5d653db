package policy

import (
	"net/http"
	"time"
)

// ItemKind is what a call is about.
type ItemKind int

const (
	None     ItemKind = iota // a method that names no item: rules see mcp.method alone
	Tool                     // mcp.tool
	Prompt                   // mcp.prompt
	Resource                 // mcp.resource, whose name is the URI
	Template                 // mcp.resource, whose name is the URI template
	Task                     // mcp.task, whose name is the task's id
	Agent                    // a2a, a call of an agent; the name is the skill's id, "" where the caller names none
)

// A Call is what rules may read about one request, or about one item of a list.
type Call struct {
	Principal *Principal // nil: anonymous
	Tenant    string
	Method    string        // MCP method, of an agent A2A method; not read by AdmitList
	Target    string        // the target's own name
	HTTP      *http.Request // request.*, source.*; nil: reading them is an error
	Start     time.Time     // request.startTime; zero: now
	Kind      ItemKind
	Name      string // the target's own, without a prefix; a URI for resources
	// Tool is the tool whose call made a Task, as the target knows it. If empty, nobody knows; rules have no mcp.tool then.
	Tool      string
	Arguments []byte // raw JSON object of a tool call; nil, or null: no arguments, which rules see as {}
	// Annotations is the raw JSON object of the target's last list, of a Task its Tool's. Nil: absent, reading it is an error.
	Annotations []byte
	// Work is shared by calls about the items of one list. If nil, the decision has only a bound of its own.
	Work *Work

	past bool // a call that was made before, so that its arguments are not known any more
}

// A Verdict is the outcome of admission.
type Verdict struct {
	Allowed bool
	Rule    string // place of the rule that decided, for the log line; empty where no policy applies
	Explain bool   // the policy lets a refusal name its rule (explainDenials)
	// Scopes is set where the call is refused by rules with `scope` alone: a token that also has these scopes would be
	// let in, as far as the rules can tell. Those of all such rules, in their order, each once.
	Scopes []string
	// Invalid is set, and the call refused, if a rule had to read arguments that hold a key twice, a key that
	// differs from a read one in case alone, or are no strict JSON: answer -32600.
	Invalid error
}
