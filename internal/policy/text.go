package policy

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"github.com/google/cel-go/cel"
	"github.com/google/cel-go/common/types"

	policyv1 "github.com/sluicegate/sluice/proto/gen/sluice/policy/v1"
)

// A text is a compiled Value: literal, or CEL over a call.
type text struct {
	literal string
	rule    *rule // nil: literal
	names   *readNames
}

// compileText returns the empty literal if v is wrong, and says so in errs.
func compileText(v *policyv1.Value, field string, errs *problems) text {
	switch k := v.GetKind().(type) {
	case *policyv1.Value_Value:
		return text{literal: k.Value}
	case *policyv1.Value_Expression:
		return compileTextExpression(k.Expression, field+".expression", errs)
	}
	errs.add(field, "says neither a value nor an expression")
	return text{}
}

func compileTextExpression(expression, field string, errs *problems) text {
	r := compileExpression(expression, field, field, cel.StringType, errs)
	if r == nil {
		return text{}
	}
	if r.reads&varAnnotations != 0 {
		errs.add(field, "reads mcp.tool.annotations, which only rules may: a request does not carry them; read mcp.tool.name")
		return text{}
	}
	t := text{rule: r}
	if r.reads&varArguments != 0 {
		t.names = &readNames{}
		for _, name := range r.literals {
			t.names.add(name)
		}
	}
	return t
}

// of is the text for one call. An error says what the expression could not do, and holds nothing that it read.
func (t text) of(c *Call) (string, error) {
	if t.rule == nil {
		return t.literal, nil
	}
	if c == nil {
		return "", errors.New("the expression reads a call, and there is none here")
	}
	a := newActivation(c, t.names, false)
	defer a.release()
	out, _, err := t.rule.program.Eval(a)
	switch {
	case a.invalid != nil:
		return "", &invalidArguments{a.invalid}
	case err != nil:
		return "", errors.New("the expression " + evaluationFailure(err))
	case a.unsure:
		return "", errors.New("the expression asks for the certificate of a caller who came by another proxy")
	}
	s, ok := out.(types.String)
	if !ok {
		return "", fmt.Errorf("the expression gives a %s, not a string", out.Type().TypeName())
	}
	return string(s), nil
}

// reads reports whether the text depends on any of the variables.
func (t text) reads(any variable) bool { return t.rule != nil && t.rule.reads&any != 0 }

// invalidArguments is what [Verdict.Invalid] is to a rule.
type invalidArguments struct{ error }

func (e *invalidArguments) Unwrap() error { return e.error }

// evaluationFailure says what went wrong without what CEL quotes: keys and values may be a caller's secrets.
func evaluationFailure(err error) string {
	if own, ok := errors.AsType[unreadable](err); ok {
		return "reads " + string(own)
	}
	message := err.Error()
	for _, known := range []struct{ part, says string }{
		{"no such key", "reads a key that is not there; ask has() first"},
		{"no such header", "reads a header that the request has not; ask `\"name\" in request.headers` first"},
		{"no such overload", "applies a function to a value of another type"},
		{"no such attribute", "reads a field that is not there"},
		{"divi", "divides by zero"}, // division by zero, divide by zero
		{"modulus", "divides by zero"},
		{"index out of", "reads beyond the end of a list"},
		{"type conversion", "converts a value that has no such form"},
		{"parsing", "converts a value that has no such form"},
		{"cost limit", "takes too long"},
	} {
		if strings.Contains(message, known.part) {
			return known.says
		}
	}
	return "fails"
}

// unreadable is an error of our own variables: which one, and why it cannot be read. It quotes nobody.
type unreadable string

func (e unreadable) Error() string { return string(e) }

// lifecycleCalls are requests that name no item, and some that name another than a tool.
var lifecycleCalls = []struct {
	called string
	call   Call
}{
	{"initialize", Call{Method: "initialize"}},
	{"server/discover", Call{Method: "server/discover"}},
	{"notifications", Call{Method: "notifications/initialized"}},
	{"tools/list", Call{Method: "tools/list"}},
	{"the stream of GET", Call{}},
	{"prompts/get", Call{Kind: Prompt, Name: "any", Method: "prompts/get"}},
	{"resources/read", Call{Kind: Resource, Name: "any://thing", Method: "resources/read"}},
}

// RefusesOthers names the first kind of request for which a Value's expression is in error because it reads an item
// (mcp.tool, mcp.prompt, …) that the request does not name, so that such requests are refused; empty if there is none. A
// target that refuses initialize cannot be used at all. An expression that does not compile refuses none.
func RefusesOthers(expression string) string {
	var errs problems
	t := compileTextExpression(expression, "", &errs)
	if t.rule == nil || t.rule.reads&(varName|varArguments) == 0 {
		return ""
	}
	for _, of := range lifecycleCalls {
		c := of.call
		c.HTTP = &http.Request{Method: http.MethodPost, Host: "any", URL: &url.URL{Path: "/"}, Header: http.Header{}, RemoteAddr: "192.0.2.1:1"}
		a := newActivation(&c, t.names, false)
		_, _, err := t.rule.program.Eval(a)
		absent := a.absent
		a.release()
		if err != nil && absent {
			return of.called
		}
	}
	return ""
}
