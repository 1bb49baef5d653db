package policy

// Authorizes reports whether rules decide about calls of the target, so that some of what it lists may be hidden.
func (t *Target) Authorizes() bool { return t != nil && len(t.authz) > 0 }

// DenyRefusesOthers reports whether a deny rule is in error for what is no tool, and so refuses every prompt, resource and
// task too: it reads mcp.tool without asking has(mcp.tool) first. An expression that does not compile is none.
func DenyRefusesOthers(expression string) bool {
	var errs problems
	r := compileRule(expression, "", "", &errs)
	if r == nil {
		return false
	}
	a := newActivation(&Call{Kind: Prompt, Name: "any", Method: "prompts/get"}, nil, true)
	defer a.release()
	return r.eval(a) == isError
}
