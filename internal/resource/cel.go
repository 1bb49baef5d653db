package resource

import (
	"github.com/google/cel-go/common"
	"github.com/google/cel-go/common/ast"
	"github.com/google/cel-go/parser"
)

// reads tells whether a CEL expression names a variable. One that does not parse reads nothing here; that it
// is wrong is told elsewhere.
func (v *validator) reads(expression, variable string) bool {
	names, ok := v.variables[expression]
	if !ok {
		names = identifiers(expression)
		v.variables[expression] = names
	}
	return names[variable]
}

func identifiers(expression string) map[string]bool {
	p, err := parser.NewParser(parser.Macros(parser.AllMacros...), parser.MaxRecursionDepth(200))
	if err != nil {
		return nil
	}
	parsed, errs := p.Parse(common.NewTextSource(expression))
	if errs != nil && len(errs.GetErrors()) > 0 {
		return nil
	}
	names := map[string]bool{}
	ast.PreOrderVisit(parsed.Expr(), ast.NewExprVisitor(func(e ast.Expr) {
		if e.Kind() == ast.IdentKind {
			names[e.AsIdent()] = true
		}
	}))
	return names
}
