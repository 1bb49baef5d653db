package policy

import (
	"errors"
	"fmt"

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
	t := text{rule: r}
	if r.reads&varArguments != 0 {
		t.names = &readNames{}
		for _, name := range r.literals {
			t.names.add(name)
		}
	}
	return t
}

// of is the text for one call. An error says what the expression could not do.
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
		return "", a.invalid
	case err != nil:
		return "", fmt.Errorf("the expression fails: %w", err)
	}
	s, ok := out.(types.String)
	if !ok {
		return "", fmt.Errorf("the expression gives a %s, not a string", out.Type().TypeName())
	}
	return string(s), nil
}

// reads reports whether the text depends on any of the variables.
func (t text) reads(any variable) bool { return t.rule != nil && t.rule.reads&any != 0 }
