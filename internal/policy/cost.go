package policy

import (
	"regexp"
	"regexp/syntax"
	"strings"

	"github.com/google/cel-go/cel"
	"github.com/google/cel-go/checker"
	"github.com/google/cel-go/common/ast"
	"github.com/google/cel-go/common/types"
	"github.com/google/cel-go/common/types/ref"
	"github.com/google/cel-go/interpreter"
)

// What a rule may cost. One unit is one step of the evaluator, or about as much work.
//
// A rule without loops does each of its steps once. If its cost by estimate is small, whatever it reads, it runs without
// being watched, for watching costs more than most rules do. All others stop at a limit, in error. What one step can do
// grows with what it reads, so the limit shrinks with the size of the arguments: steps × bytes is bounded.
const (
	freeCost = 3_000_000 // an upper bound on the worst inputs, which take milliseconds to read
	maxCost  = 100_000   // counted while running, with arguments of up to smallArguments
	// smallArguments is what a call has but for contents of files and the like.
	smallArguments = 16 << 10
	// maxProgram bounds the instructions of one pattern: a{1000} has more than a thousand.
	maxProgram = 4 << 10
	// maxMatch bounds the bytes × instructions of one match, which is one step and cannot be stopped.
	maxMatch = 64 << 20
)

// costClass is the argument sizes up to which a program has a limit.
type costClass struct {
	bytes int
	limit uint64
}

var costClasses = func() []costClass {
	var all []costClass
	for size := smallArguments; size < maxArgumentsSize; size <<= 2 {
		all = append(all, costClass{size, maxCost * smallArguments / uint64(size)})
	}
	return append(all, costClass{maxArgumentsSize, maxCost * smallArguments / maxArgumentsSize})
}()

// programs are one expression with a limit for each class of arguments; a single one if it needs none.
type programs []cel.Program

func compilePrograms(env *cel.Env, checked *cel.Ast) (programs, error) {
	options := []cel.ProgramOption{cel.EvalOptions(cel.OptOptimize), cel.OptimizeRegex(matchLiteral)}
	if bounded(env, checked) {
		p, err := env.Program(checked, options...)
		return programs{p}, err
	}
	var all programs
	for _, class := range costClasses {
		p, err := env.Program(checked, append(options, cel.CostTracking(counted{}), cel.CostLimit(class.limit))...)
		if err != nil {
			return nil, err
		}
		all = append(all, p)
	}
	return all, nil
}

// of is the program for what a call lets a rule read.
func (p programs) of(c *Call, reads variable) cel.Program {
	if len(p) == 1 {
		return p[0]
	}
	size := 0
	if reads&varArguments != 0 {
		size += len(c.Arguments)
	}
	if reads&varAnnotations != 0 {
		size += len(c.Annotations)
	}
	if reads&varRequest != 0 && c.HTTP != nil {
		for name, values := range c.HTTP.Header {
			for _, v := range values {
				size += len(name) + len(v)
			}
		}
	}
	for i := range p {
		if size <= costClasses[i].bytes {
			return p[i]
		}
	}
	return p[len(p)-1]
}

// bounded reports whether ast costs little whatever it reads.
func bounded(env *cel.Env, checked *cel.Ast) bool {
	if loops(checked.NativeRep().Expr()) {
		return false
	}
	cost, err := env.EstimateCost(checked, sizes{})
	return err == nil && cost.Max <= freeCost
}

// loops reports whether an expression does anything more than once.
func loops(e ast.Expr) (found bool) {
	ast.PostOrderVisit(e, ast.NewExprVisitor(func(e ast.Expr) { found = found || e.Kind() == ast.ComprehensionKind }))
	return found
}

// sizes bounds what variables hold, by limits that hold elsewhere: tokens and names have one here,
// arguments in readArguments, headers in net/http.
type sizes struct{}

func (sizes) EstimateSize(n checker.AstNode) *checker.SizeEstimate {
	limit := uint64(maxArgumentsSize)
	if path := n.Path(); len(path) > 0 {
		switch path[0] {
		case "jwt", "apiKey", "scopes":
			limit = maxTokenSize
		case "request":
			limit = 1 << 20
		case "source", "tenant":
			limit = 16 << 10
		case "a2a":
			limit = maxNameSize
		case "mcp":
			if !strings.HasPrefix(strings.Join(path, "."), "mcp.tool.a") { // arguments, annotations
				limit = maxNameSize
			}
		}
	}
	return &checker.SizeEstimate{Max: limit}
}

// traversing are functions that CEL counts as one step, and that look at all of a string.
var traversing = map[string]bool{
	"size": true, "int": true, "uint": true, "double": true, "bool": true, "timestamp": true, "duration": true,
	"ip": true, "cidr": true, "isIP": true, "isCIDR": true, "isStrictCIDR": true, "isInterfaceAddress": true, "ip.isCanonical": true,
	"containsIP": true, "containsCIDR": true,
}

// zoneCost is what it takes to find a time zone by its name.
const zoneCost = 1000

const bytesPerCost = 10 // as CEL has it

func (sizes) EstimateCallCost(function, _ string, target *checker.AstNode, args []checker.AstNode) *checker.CallEstimate {
	if target != nil {
		args = append([]checker.AstNode{*target}, args...)
	}
	size := func(n checker.AstNode) uint64 {
		if s := n.ComputedSize(); s != nil {
			return s.Max
		}
		return sizes{}.EstimateSize(n).Max
	}
	var most uint64
	switch {
	case function == matchFunction && len(args) == 3:
		most = size(args[0]) * maxProgram / stepsPerMatch
		if n := args[2].Expr(); n.Kind() == ast.LiteralKind {
			most = size(args[0]) * uint64(integer(n.AsLiteral())) / stepsPerMatch
		}
	case zoned(function, len(args)):
		most = zoneCost
	case traversing[function]:
		for _, a := range args {
			most += size(a) / bytesPerCost
		}
	default:
		return nil
	}
	return &checker.CallEstimate{CostEstimate: checker.CostEstimate{Min: 1, Max: most + 1}}
}

// zoned reports whether a function reads a field of a timestamp in a time zone.
func zoned(function string, args int) bool { return strings.HasPrefix(function, "get") && args == 2 }

// counted counts what patterns and time zones cost.
type counted struct{}

func (counted) CallCost(function, _ string, args []ref.Val, _ ref.Val) *uint64 {
	var cost uint64
	switch {
	case function == matchFunction && len(args) == 3:
		text, _ := args[0].(types.String)
		cost = 1 + uint64(len(text))*uint64(integer(args[2]))/stepsPerMatch
	case zoned(function, len(args)):
		cost = zoneCost
	default:
		return nil
	}
	return &cost
}

// stepsPerMatch is how many instructions a pattern does on characters in the time of one step.
const stepsPerMatch = 20

// matchFunction stands for CEL's matches, whose cost knows nothing of what a pattern does. Its third argument is the number
// of instructions that the pattern takes.
const matchFunction = "@matches"

// patterns lets matches take a literal pattern of a known size alone: one that a caller could choose has no bound.
func patterns(e *cel.Env) (*cel.Env, error) {
	expand := func(f cel.MacroExprFactory, target ast.Expr, args []ast.Expr) (ast.Expr, *cel.Error) {
		if target != nil {
			args = []ast.Expr{target, args[0]}
		}
		pattern, ok := args[1], args[1].Kind() == ast.LiteralKind
		text, isText := types.String(""), false
		if ok {
			text, isText = pattern.AsLiteral().(types.String)
		}
		if !isText {
			return nil, f.NewError(pattern.ID(), "invalid matches argument: the pattern must be a literal string, so that it has a bound")
		}
		n, err := countInstructions(string(text))
		if err != nil {
			return nil, f.NewError(pattern.ID(), "invalid matches argument: "+err.Error())
		}
		if n > maxProgram {
			return nil, f.NewError(pattern.ID(), "invalid matches argument: the pattern's repetitions make it too large; lower their bounds")
		}
		return f.NewCall(matchFunction, args[0], pattern, f.NewLiteral(types.Int(n))), nil
	}
	for _, option := range []cel.EnvOption{
		cel.Macros(cel.ReceiverMacro("matches", 1, expand), cel.GlobalMacro("matches", 2, expand)),
		cel.Function(matchFunction, cel.Overload("sluice_matches", []*cel.Type{cel.StringType, cel.StringType, cel.IntType}, cel.BoolType,
			cel.FunctionBinding(func(...ref.Val) ref.Val { return types.NewErr("matches: the pattern is no literal") }))),
	} {
		var err error
		if e, err = option(e); err != nil {
			return nil, err
		}
	}
	return e, nil
}

// matchLiteral compiles a pattern once.
var matchLiteral = &interpreter.RegexOptimization{
	Function: matchFunction, RegexIndex: 1,
	Factory: func(call interpreter.InterpretableCall, pattern string) (interpreter.InterpretableCall, error) {
		re, err := regexp.Compile(pattern)
		if err != nil {
			return nil, err
		}
		match := func(args ...ref.Val) ref.Val {
			text, ok := args[0].(types.String)
			switch {
			case !ok:
				return types.MaybeNoSuchOverloadErr(args[0])
			case int64(len(text))*integer(args[2]) > maxMatch:
				return types.NewErr("matches: %d bytes are too many for this pattern", len(text))
			}
			return types.Bool(re.MatchString(string(text)))
		}
		return interpreter.NewCall(call.ID(), call.Function(), call.OverloadID(), call.Args(), match), nil
	},
}

// countInstructions is the size of the program that a pattern becomes, and so what it may do for each character.
func countInstructions(pattern string) (int, error) {
	parsed, err := syntax.Parse(pattern, syntax.Perl)
	if err != nil {
		return 0, err
	}
	program, err := syntax.Compile(parsed.Simplify())
	if err != nil {
		return 0, err
	}
	return len(program.Inst), nil
}

func integer(v ref.Val) int64 {
	n, _ := v.(types.Int)
	return int64(n)
}
