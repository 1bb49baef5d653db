package policy

import (
	"fmt"
	"strings"
	"time"

	"github.com/google/cel-go/common/ast"
	"github.com/google/cel-go/common/types"
)

// inspection finds what an expression reads. Objects must be taken apart by fields, so what it finds is
// exact: an expression that held mcp as a value could read anything in it.
type inspection struct {
	reads    *variable
	literals *[]string
	wrong    string
}

// scope holds the names that comprehensions bind.
type scope struct {
	outer *scope
	names [3]string
}

func (s *scope) binds(name string) bool {
	for ; s != nil; s = s.outer {
		for _, n := range s.names {
			if n == name {
				return true
			}
		}
	}
	return false
}

func (in *inspection) walk(e ast.Expr, s *scope) {
	switch e.Kind() {
	case ast.LiteralKind:
		if text, ok := e.AsLiteral().(types.String); ok {
			*in.literals = append(*in.literals, string(text))
		}
	case ast.IdentKind, ast.SelectKind:
		in.path(e, s)
	case ast.CallKind:
		c := e.AsCall()
		if c.IsMemberFunction() {
			in.walk(c.Target(), s)
		}
		in.zone(c)
		for _, arg := range c.Args() {
			in.walk(arg, s)
		}
	case ast.ListKind:
		for _, el := range e.AsList().Elements() {
			in.walk(el, s)
		}
	case ast.MapKind:
		for _, entry := range e.AsMap().Entries() {
			in.walk(entry.AsMapEntry().Key(), s)
			in.walk(entry.AsMapEntry().Value(), s)
		}
	case ast.StructKind:
		for _, f := range e.AsStruct().Fields() {
			in.walk(f.AsStructField().Value(), s)
		}
	case ast.ComprehensionKind:
		c := e.AsComprehension()
		in.walk(c.IterRange(), s)
		in.walk(c.AccuInit(), s)
		accu := &scope{s, [3]string{c.AccuVar()}}
		inner := &scope{s, [3]string{c.AccuVar(), c.IterVar(), c.IterVar2()}}
		in.walk(c.LoopCondition(), inner)
		in.walk(c.LoopStep(), inner)
		in.walk(c.Result(), accu)
	}
}

// zone checks a time zone that a rule names: at run time it would only make the rule fail.
func (in *inspection) zone(c ast.CallExpr) {
	if !c.IsMemberFunction() || !zoned(c.FunctionName(), len(c.Args())+1) || c.Args()[0].Kind() != ast.LiteralKind {
		return
	}
	name, ok := c.Args()[0].AsLiteral().(types.String)
	if !ok || strings.Contains(string(name), ":") { // an offset such as +02:00
		return
	}
	if _, err := time.LoadLocation(string(name)); err != nil {
		in.wrong = fmt.Sprintf("%q is no time zone; name one such as Europe/Berlin, or an offset such as +02:00", string(name))
	}
}

// path takes a variable and the fields selected from it as far as objects go.
func (in *inspection) path(e ast.Expr, s *scope) {
	var names []string
	var test bool // has(...) of the last field
	base := e
	for base.Kind() == ast.SelectKind {
		sel := base.AsSelect()
		test = test || sel.IsTestOnly()
		names = append([]string{sel.FieldName()}, names...)
		base = sel.Operand()
	}
	*in.literals = append(*in.literals, names...)
	if base.Kind() != ast.IdentKind {
		in.walk(base, s)
		return
	}
	ident := base.AsIdent()
	name, global := strings.CutPrefix(ident, ".")
	if !global && s.binds(name) {
		return
	}
	if v, ok := roots[name]; ok {
		*in.reads |= v
		if name != "request" && name != "source" {
			return
		}
	}
	typeName, read := "sluice."+name, name
	fields := objects[typeName]
	if fields == nil {
		return // the name of a type
	}
	for i, n := range names {
		f := fields[n]
		read += "." + n
		*in.reads |= f.reads
		if fields = objects[f.typ.TypeName()]; fields == nil || test && i == len(names)-1 {
			return
		}
	}
	in.wrong = fmt.Sprintf("`%s` is no value by itself; read one of its fields %s", read, quoteList(sortedKeys(fields)))
	if read != name {
		in.wrong += fmt.Sprintf(", or ask has(%s)", read)
	}
}
