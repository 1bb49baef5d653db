package policy

import (
	"fmt"
	"regexp"
	"strings"

	"github.com/google/cel-go/cel"
	"github.com/google/cel-go/common/ast"
	"github.com/google/cel-go/common/types"

	policyv1 "github.com/sluicegate/sluice/proto/gen/sluice/policy/v1"
)

// A rule is one compiled expression.
type rule struct {
	program  cel.Program // nil: constant
	constant outcome
	place    string // for the log line, e.g. `backend/tools rules[1]`
	field    string // for errors, e.g. `policies.mcpAuthorization.rules[1]`
	reads    variable
	literals []string // names and strings in it, if it reads arguments
	scope    []string // what a token lacks whose caller the rule keeps out; nil: the rule says nothing of it
}

type outcome int

const (
	isFalse outcome = iota
	isTrue
	isUnknown
	isError // or no bool
)

func (r *rule) eval(a *activation) outcome {
	if r.program == nil {
		return r.constant
	}
	a.unsure = false
	out, _, err := r.program.Eval(a)
	if err != nil || a.unsure {
		return isError
	}
	switch out := out.(type) {
	case types.Bool:
		if out {
			return isTrue
		}
		return isFalse
	case *types.Unknown:
		return isUnknown
	}
	return isError
}

// compileRule returns nil if the rule is wrong, and says so in errs.
func compileRule(expression, field, place string, errs *problems) *rule {
	if strings.TrimSpace(expression) == "" {
		errs.add(field, "is empty; write a CEL expression such as has(jwt.sub), or true")
		return nil
	}
	return compileExpression(expression, field, place, cel.BoolType, errs)
}

// notExpected is what the parser says of a token that cannot stand where it stands, with all the others that could.
var notExpected = regexp.MustCompile(`^Syntax error: (?:mismatched input|extraneous input|no viable alternative at input) '(.*?)'(?: expecting .*)?$`)

// unknownToken is what the parser says of characters that begin nothing.
var unknownToken = regexp.MustCompile(`^Syntax error: token recognition error at: '(.*?) *'$`)

// plainly is the parser's message in words that need no grammar at hand.
func plainly(message string) string {
	if found := unknownToken.FindStringSubmatch(message); found != nil {
		return "Syntax error: `" + found[1] + "` is nothing that CEL knows"
	}
	found := notExpected.FindStringSubmatch(message)
	switch {
	case found == nil:
		return message
	case found[1] == "<EOF>":
		return "Syntax error: something is missing at the end"
	}
	return "Syntax error: `" + found[1] + "` cannot stand here"
}

// compileExpression returns nil if the expression is wrong or not of type want, and says so in errs.
func compileExpression(expression, field, place string, want *cel.Type, errs *problems) *rule {
	if strings.TrimSpace(expression) == "" {
		errs.add(field, "is empty; write a CEL expression")
		return nil
	}
	env, err := environment()
	if err != nil {
		errs.add(field, "the CEL environment: %v", err)
		return nil
	}
	checked, issues := env.Compile(expression)
	if issues.Err() != nil {
		for _, e := range issues.Errors() {
			errs.add(field, "%s, at character %d of `%s`%s", plainly(e.Message), e.Location.Column()+1, oneLine(expression), hint(e.Message))
		}
		return nil
	}
	if t := checked.OutputType(); !t.IsExactType(want) && !t.IsExactType(cel.DynType) {
		errs.add(field, "is of type %s, not %s: `%s`", t, want, oneLine(expression))
		return nil
	}
	r := &rule{place: place, field: field}
	in := inspection{reads: &r.reads, literals: &r.literals}
	in.walk(checked.NativeRep().Expr(), nil)
	if in.wrong != "" {
		errs.add(field, "%s, in `%s`", in.wrong, oneLine(expression))
		return nil
	}
	if lit := checked.NativeRep().Expr(); lit.Kind() == ast.LiteralKind && want == cel.BoolType {
		if lit.AsLiteral() == types.True {
			r.constant = isTrue
		}
		return r
	}
	if r.program, err = compileProgram(env, checked); err != nil {
		errs.add(field, "%v, in `%s`", err, oneLine(expression))
		return nil
	}
	return r
}

// oneLine is an expression for an error, cut where it is longer than anyone reads there.
func oneLine(s string) string {
	const most = 300
	s = strings.Join(strings.Fields(s), " ")
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + "…"
}

func hint(message string) string {
	if strings.Contains(message, "undeclared reference") {
		return "; variables are jwt, apiKey, basicAuth, scopes, source, request, tenant, mcp, a2a"
	}
	if strings.Contains(message, "undefined field") {
		return "; mcp has method, tool.{name,target,arguments,annotations}, and {prompt,resource,task}.{name,target}; " +
			"a2a has method, skill, target; request has method, scheme, host, path, pathAndQuery, uri, headers, startTime; source has address, port, certificate, " +
			"spiffeId, subjectAltNames, issuer, subject, subjectCn"
	}
	return ""
}

// authorization is a compiled mcpAuthorization of one level.
type authorization struct {
	level                string // e.g. `backend/tools`; may be empty
	deny, require, allow []*rule
	explain              bool
	noMatch              string // for the log line
}

// compileAuthorization always returns an authorization; it is of use if errs stays empty.
func compileAuthorization(a *policyv1.McpAuthorization, field, level string, errs *problems) *authorization {
	z := &authorization{level: level, explain: a.GetExplainDenials(), noMatch: strings.TrimSpace(level + " mcpAuthorization: no allow rule matches")}
	if len(a.GetRules()) == 0 {
		errs.add(field+".rules", "is empty, which neither admits nor refuses; write at least one rule, such as 'true', or remove mcpAuthorization")
	}
	for i, r := range a.GetRules() {
		var into *[]*rule
		var expression, kind string
		switch one := r.GetRule().(type) {
		case *policyv1.AuthorizationRule_Allow:
			into, expression, kind = &z.allow, one.Allow, "allow"
		case *policyv1.AuthorizationRule_Deny:
			into, expression, kind = &z.deny, one.Deny, "deny"
		case *policyv1.AuthorizationRule_Require:
			into, expression, kind = &z.require, one.Require, "require"
		default:
			errs.add(fmt.Sprintf("%s.rules[%d]", field, i), "says neither allow, deny nor require")
			continue
		}
		at := fmt.Sprintf("%s.rules[%d]", field, i)
		place := strings.TrimSpace(fmt.Sprintf("%s mcpAuthorization.rules[%d] %s", level, i, kind))
		if compiled := compileRule(expression, at, place, errs); compiled != nil {
			compiled.compileScope(r.GetScope(), kind, at, errs)
			*into = append(*into, compiled)
		}
	}
	return z
}

func (z *authorization) rules() []*rule {
	all := append([]*rule{}, z.deny...)
	return append(append(all, z.require...), z.allow...)
}

func (z *authorization) reads(any variable) bool {
	for _, r := range z.rules() {
		if r.reads&any != 0 {
			return true
		}
	}
	return false
}

// decide applies the order of admission: any deny that is true or in error refuses; so does any require
// that is not true; if there are allow rules, one must be true. What is unknown in a list may yet come out
// either way, so it refuses nothing there. Nor does a rule that more scopes would open: what it keeps back is
// listed, and a call of it is refused with the scopes.
func (z *authorization) decide(a *activation) Verdict {
	for _, r := range z.deny {
		switch got := r.eval(a); {
		case got == isFalse, got == isUnknown && a.partial():
		default:
			return Verdict{Rule: r.place, Explain: z.explain}
		}
	}
	gated := Verdict{Explain: z.explain}
	for _, r := range z.require {
		switch got := r.eval(a); {
		case got == isTrue, got == isUnknown && a.partial():
		case r.opens(a):
			gated.keepsOut(r)
		default:
			return Verdict{Rule: r.place, Explain: z.explain}
		}
	}
	allowed, closed := z.allows(a, &gated)
	switch {
	case closed:
		return Verdict{Rule: z.noMatch, Explain: z.explain}
	case gated.Scopes == nil || a.list:
		return Verdict{Allowed: true, Rule: allowed}
	}
	return gated
}

// allows looks for an allow rule that is true; closed if there are some, and none is or would be with its scopes.
func (z *authorization) allows(a *activation, gated *Verdict) (place string, closed bool) {
	for _, r := range z.allow {
		switch got := r.eval(a); {
		case got == isTrue, got == isUnknown && a.partial():
			return r.place, false
		}
	}
	closed = len(z.allow) > 0
	for _, r := range z.allow {
		if r.opens(a) {
			gated.keepsOut(r)
			closed = false
		}
	}
	return "", closed
}

// keepsOut adds a rule that its scopes would open.
func (v *Verdict) keepsOut(r *rule) {
	if v.Rule == "" {
		v.Rule = r.place
	}
	v.Scopes = appendNew(v.Scopes, r.scope...)
}

// Admit decides on a call. A nil Target, and one without mcpAuthorization, admits everything.
func (t *Target) Admit(c *Call) Verdict { return t.admit(c, false) }

// AdmitList decides whether an item of a list is shown: it is unless every call of it would be refused,
// whatever its arguments, and whatever scopes the caller's token had. The arguments in c, and its method, are not read.
// What AdmitList refuses, Admit refuses for the same principal, request and annotations; if no rule reads
// mcp.tool.arguments, and for other items than tools mcp.method, and none has a scope, then what it shows, Admit admits.
func (t *Target) AdmitList(c *Call) Verdict { return t.admit(c, true) }

func (t *Target) admit(c *Call, list bool) Verdict {
	if t == nil || len(t.authz) == 0 {
		return Verdict{Allowed: true}
	}
	if len(c.Name) > maxNameSize || len(c.Method) > maxNameSize { // see sizes
		return Verdict{Rule: "name too long"}
	}
	if c.Kind == Task && c.Tool != "" {
		return t.admitTask(c, list)
	}
	verdict := t.decide(c, list)
	if c.Kind == Resource || c.Kind == Template {
		// A target may take two spellings for one, so rules must admit both: the client's own, and what it comes down to.
		if name := normalURI(c.Name); name != c.Name && (verdict.Allowed || verdict.Scopes != nil) {
			other := *c
			other.Name = name
			if v := t.decide(&other, list); !v.Allowed {
				return v
			}
		}
	}
	if verdict.Invalid != nil {
		// What a list does not show does not exist, whatever the arguments.
		if v := t.decide(c, true); !v.Allowed {
			return v
		}
	}
	return verdict
}

// admitTask decides on a task whose tool is known: who may not call the tool now has no business with what it does either,
// and besides the rules are asked about the task itself. With what arguments the tool was called is not known any more; the
// call was admitted with them.
func (t *Target) admitTask(c *Call, list bool) Verdict {
	tool, task := *c, *c
	tool.Kind, tool.Name, tool.Tool, tool.Method = Tool, c.Tool, "", "tools/call"
	tool.past, task.past = true, true
	made := t.decide(&tool, list)
	if !made.Allowed && made.Scopes == nil {
		return made
	}
	if verdict := t.decide(&task, list); made.Allowed || !verdict.Allowed && verdict.Scopes == nil {
		return verdict
	}
	return made
}

func (t *Target) decide(c *Call, list bool) Verdict {
	a := newActivation(c, t.argumentNames, list)
	defer a.release()
	verdict := Verdict{Allowed: true}
	for _, z := range t.authz {
		switch v := z.decide(a); {
		case a.invalid != nil:
			return Verdict{Rule: v.Rule, Invalid: a.invalid}
		case v.Allowed && v.Rule == "", v.Allowed && verdict.Scopes != nil:
		case v.Allowed:
			verdict = v
		case v.Scopes == nil:
			return v
		case verdict.Scopes == nil:
			verdict = v
		default:
			verdict.Scopes = appendNew(verdict.Scopes, v.Scopes...)
		}
	}
	return verdict
}

// ReadsArguments reports whether a rule reads mcp.tool.arguments.
func (t *Target) ReadsArguments() bool { return t != nil && t.readsArguments }

// ReadsPrincipal reports whether a rule reads jwt, scopes, apiKey, basicAuth, source or request: if none does, all callers
// get the same lists.
func (t *Target) ReadsPrincipal() bool { return t != nil && t.readsPrincipal }

// Reads returns the places of the rules that read a variable: jwt, scopes, apiKey, basicAuth, source, request, tenant,
// mcp.method, mcp.tool.arguments or mcp.tool.annotations. It panics for another name.
func (t *Target) Reads(name string) (fields []string) {
	v, ok := roots[name]
	if !ok {
		panic("policy: no variable " + name)
	}
	if t == nil {
		return nil
	}
	for _, z := range t.authz {
		for _, r := range z.rules() {
			if r.reads&v != 0 {
				fields = append(fields, r.field)
			}
		}
	}
	return fields
}
