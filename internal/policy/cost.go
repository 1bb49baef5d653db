package policy

import (
	"fmt"
	"slices"
	"sync/atomic"

	"github.com/google/cel-go/cel"
	"github.com/google/cel-go/common/ast"
	"github.com/google/cel-go/common/operators"
	"github.com/google/cel-go/common/types"
	"github.com/google/cel-go/common/types/ref"
	"github.com/google/cel-go/common/types/traits"
	"github.com/google/cel-go/interpreter"
)

// What one decision may cost, in units of some tens of nanoseconds: all rules of all levels together. Who writes rules and who
// sends arguments may both be out for harm, so what a step is about to do is counted before it is done. A rule at whose turn
// nothing is left is in error. CEL's own counting does not do for that: it takes a step for a step, whatever it works through.
const (
	maxWork = 1_000_000
	// bytesPerUnit is how much of a string a unit passes over.
	bytesPerUnit = 64
	// matchesPerUnit is how many instructions of a pattern on a character a unit is.
	matchesPerUnit = 16
	// zoneUnits find a time zone by its name.
	zoneUnits = 1000
	// maxParsed is the longest string that is parsed as a number, a time or an address: those are short, and errors repeat them.
	maxParsed = 1 << 10
	// maxKey is the longest string that is looked up in a map.
	maxKey = 16 << 10
	// maxJoined bounds the elements of a list that another is added to: such lists are kept as the two they came from.
	maxJoined = 16 << 10
)

// Work is what the decisions about one list spend together. The zero value has spent nothing. It is safe for concurrent use.
type Work struct{ spent atomic.Int64 }

// maxListWork bounds what the decisions about one list may cost: some hundred times as much as most lists need.
const maxListWork = 20 * maxWork

// Exhausted reports whether nothing is left. What was decided since is no decision: its rules were in error.
func (w *Work) Exhausted() bool { return w != nil && w.spent.Load() > maxListWork }

// A meter weighs the value of one expression before another works on it.
type meter struct {
	interpreter.InterpretableV2
	weigh weigher
}

// A weigher returns what work on v costs, no need to tell more than most; or an error that takes the place of v.
type weigher func(v ref.Val, most int) (units int, refused ref.Val)

func (g *meter) Eval(vars interpreter.Activation) ref.Val { return g.Exec(interpreter.AsFrame(vars)) }

func (g *meter) Exec(frame *interpreter.ExecutionFrame) ref.Val {
	return g.weigh.pass(frame, g.InterpretableV2.Exec(frame))
}

// pass spends what work on v costs.
func (weigh weigher) pass(frame *interpreter.ExecutionFrame, v ref.Val) ref.Val {
	if types.IsUnknownOrError(v) {
		return v
	}
	units, refused := weigh(v, maxWork)
	if refused != nil {
		return refused
	}
	if units > 0 {
		spend(frame, units)
	}
	return v
}

// An attributeMeter is a meter of an attribute, which stays one for the planner. A key that another value is looked up by is
// resolved and never executed.
type attributeMeter struct {
	interpreter.InterpretableAttribute
	watch
}

func (g *attributeMeter) Eval(vars interpreter.Activation) ref.Val {
	return g.Exec(interpreter.AsFrame(vars))
}

func (g *attributeMeter) Exec(frame *interpreter.ExecutionFrame) ref.Val {
	return g.weigh.pass(frame, g.InterpretableAttribute.Exec(frame))
}

func (g *attributeMeter) Resolve(vars interpreter.Activation) (any, error) {
	v, err := g.InterpretableAttribute.Resolve(vars)
	if err != nil || !g.key {
		return v, err
	}
	n := 0
	switch v := v.(type) {
	case string:
		n = len(v)
	case ref.Val:
		n = textSize(v)
	}
	if n > maxKey {
		return nil, keyTooLong(n)
	}
	return v, nil
}

// A step is what a loop does each time. It costs something even if it fails.
type step struct {
	interpreter.InterpretableV2
	units int
}

func (s *step) Eval(vars interpreter.Activation) ref.Val { return s.Exec(interpreter.AsFrame(vars)) }

func (s *step) Exec(frame *interpreter.ExecutionFrame) ref.Val {
	spend(frame, s.units)
	return s.InterpretableV2.Exec(frame)
}

// workName is what meters find the activation by, from inside the scopes of loops. No rule can write it.
const workName = "@work"

// spend ends the evaluation when nothing is left.
func spend(frame *interpreter.ExecutionFrame, units int) {
	found, _ := frame.ResolveName(workName)
	a, ok := found.(*activation)
	if ok {
		a.spent += units
		if w := a.call.Work; w != nil {
			w.spent.Add(int64(units))
		}
	}
	if !ok || a.spent > maxWork || a.call.Work.Exhausted() {
		panic(interpreter.EvalCancelledError{Cause: interpreter.CostLimitExceeded, Message: "the rule costs too much"})
	}
}

// compileProgram puts meters where work depends on what is read.
func compileProgram(env *cel.Env, checked *cel.Ast) (cel.Program, error) {
	meters, steps := metersOf(checked.NativeRep().Expr())
	return env.Program(checked, cel.EvalOptions(cel.OptOptimize), cel.OptimizeRegex(matchLiteral),
		cel.CustomDecoratorV2(func(i interpreter.InterpretableV2) (interpreter.InterpretableV2, error) {
			if units, ok := steps[i.ID()]; ok {
				if _, twice := i.(*step); twice {
					return i, nil
				}
				return &step{i, units}, nil
			}
			g, ok := meters[i.ID()]
			if _, constant := i.(interpreter.InterpretableConst); !ok || constant {
				return i, nil // constants are as long as rules may be
			}
			switch i := i.(type) {
			case *meter, *attributeMeter: // planned in two steps
				return i, nil
			case interpreter.InterpretableAttribute:
				return &attributeMeter{i, g}, nil
			}
			return &meter{i, g.weigh}, nil
		}))
}

// watch says how a value is weighed.
type watch struct {
	weigh weigher
	key   bool
}

// metersOf finds the expressions whose values others work on, and the steps of loops with their units, by their ids.
func metersOf(e ast.Expr) (meters map[int64]watch, steps map[int64]int) {
	meters, steps = map[int64]watch{}, map[int64]int{}
	ast.PostOrderVisit(e, ast.NewExprVisitor(func(e ast.Expr) {
		switch e.Kind() {
		case ast.CallKind:
			meterCall(meters, e.AsCall())
		case ast.MapKind:
			for _, entry := range e.AsMap().Entries() {
				meters[entry.AsMapEntry().Key().ID()] = watch{weigh: weighKey}
			}
		case ast.ComprehensionKind:
			c := e.AsComprehension()
			meters[c.IterRange().ID()] = watch{weigh: weighRange}
			steps[c.LoopStep().ID()] = 2 * nodes(c.LoopStep())
		}
	}))
	return meters, steps
}

func meterCall(meters map[int64]watch, c ast.CallExpr) {
	args := c.Args()
	if c.IsMemberFunction() {
		args = append([]ast.Expr{c.Target()}, args...)
	}
	all := func(weigh weigher) {
		for _, a := range args {
			if !literal(a) {
				meters[a.ID()] = watch{weigh: weigh}
			}
		}
	}
	switch name := c.FunctionName(); name {
	case operators.LogicalAnd, operators.LogicalOr, operators.LogicalNot, operators.Conditional, operators.NotStrictlyFalse, "dyn", "type":
	case operators.Index:
		meters[args[1].ID()] = watch{weigh: weighKey, key: true}
	case operators.Equals, operators.NotEquals, operators.In:
		all(weighDeep)
	case operators.Add:
		all(weighJoined)
	case "int", "uint", "double", "bool", "timestamp", "duration", "ip", "cidr", "isIP", "isCIDR", "isStrictCIDR", "isInterfaceAddress",
		"ip.isCanonical", "containsIP", "containsCIDR":
		all(weighParsed)
	case matchFunction:
		meters[args[0].ID()] = watch{weigh: weighMatched(args[2])}
	default:
		all(weighText)
		if zoned(name, len(args)) {
			meters[args[0].ID()] = watch{weigh: func(ref.Val, int) (int, ref.Val) { return zoneUnits, nil }}
		}
	}
}

// literal reports whether nothing in e is read. It is as long as rules may be, and the evaluator makes it once.
func literal(e ast.Expr) bool {
	switch e.Kind() {
	case ast.LiteralKind:
		return true
	case ast.ListKind:
		return !slices.ContainsFunc(e.AsList().Elements(), func(e ast.Expr) bool { return !literal(e) })
	case ast.MapKind:
		return !slices.ContainsFunc(e.AsMap().Entries(), func(e ast.EntryExpr) bool {
			return !literal(e.AsMapEntry().Key()) || !literal(e.AsMapEntry().Value())
		})
	}
	return false
}

// zoned reports whether a function reads a field of a timestamp in a time zone.
func zoned(function string, args int) bool {
	return len(function) > 3 && function[:3] == "get" && args == 2
}

func nodes(e ast.Expr) (n int) {
	ast.PostOrderVisit(e, ast.NewExprVisitor(func(ast.Expr) { n++ }))
	return n
}

func textSize(v ref.Val) int {
	switch v := v.(type) {
	case types.String:
		return len(v)
	case types.Bytes:
		return len(v)
	}
	return 0
}

func weighText(v ref.Val, _ int) (int, ref.Val) { return textSize(v) / bytesPerUnit, nil }

func weighParsed(v ref.Val, _ int) (int, ref.Val) {
	if n := textSize(v); n > maxParsed {
		return 0, types.NewErr("a string of %d bytes is too long to parse", n)
	}
	return 1, nil
}

func weighKey(v ref.Val, _ int) (int, ref.Val) {
	if n := textSize(v); n > maxKey {
		return 0, types.WrapErr(keyTooLong(n))
	}
	return 0, nil
}

func keyTooLong(n int) error { return fmt.Errorf("a string of %d bytes is too long for a key", n) }

// weighRange: what loops cost themselves is counted at their steps; but to begin one over a map, its keys are gathered.
func weighRange(v ref.Val, _ int) (int, ref.Val) {
	if m, ok := v.(traits.Mapper); ok {
		return length(m), nil
	}
	return 0, nil
}

func weighJoined(v ref.Val, _ int) (int, ref.Val) {
	switch v := v.(type) {
	case traits.MutableLister: // what a loop gathers
		return 1, nil
	case traits.Lister:
		n := length(v)
		if n > maxJoined {
			return 0, types.NewErr("a list of %d elements is too long to add to", n)
		}
		return 1 + n, nil
	}
	return textSize(v) * 4 / bytesPerUnit, nil // it is copied
}

func weighMatched(instructions ast.Expr) weigher {
	n := 1
	if instructions.Kind() == ast.LiteralKind {
		if i, ok := instructions.AsLiteral().(types.Int); ok {
			n = int(i)
		}
	}
	return func(v ref.Val, _ int) (int, ref.Val) { return 1 + textSize(v)*n/matchesPerUnit, nil }
}

// weighDeep is for what compares all that is in a value.
func weighDeep(v ref.Val, most int) (int, ref.Val) { return depth(v, most), nil }

// depth counts the values in v, and stops beyond most.
func depth(v ref.Val, most int) int {
	switch v := v.(type) {
	case traits.Mapper:
		n := length(v)
		for it := v.Iterator(); n <= most && it.HasNext() == types.True; {
			key := it.Next()
			n += textSize(key) / bytesPerUnit
			if value, found := v.Find(key); found {
				n += depth(value, most-n)
			}
		}
		return n
	case traits.Lister:
		n := length(v)
		for it := v.Iterator(); n <= most && it.HasNext() == types.True; {
			n += depth(it.Next(), most-n)
		}
		return n
	}
	return textSize(v) / bytesPerUnit
}

func length(v traits.Sizer) int {
	n, _ := v.Size().(types.Int)
	return int(n)
}
