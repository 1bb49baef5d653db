package policy

import (
	"regexp"
	"regexp/syntax"

	"github.com/google/cel-go/cel"
	"github.com/google/cel-go/common/ast"
	"github.com/google/cel-go/common/types"
	"github.com/google/cel-go/common/types/ref"
	"github.com/google/cel-go/interpreter"
)

// maxProgram bounds the instructions of one pattern: a{1000} has more than a thousand.
const maxProgram = 4 << 10

// matchFunction stands for CEL's matches. Its third argument is how many instructions the pattern takes, and so what it may
// do for each character.
const matchFunction = "@matches"

// patterns lets matches take a literal pattern of a known size alone: one that a caller could choose has no bound.
func patterns(e *cel.Env) (*cel.Env, error) {
	expand := func(f cel.MacroExprFactory, target ast.Expr, args []ast.Expr) (ast.Expr, *cel.Error) {
		if target != nil {
			args = []ast.Expr{target, args[0]}
		}
		pattern, text := args[1], types.String("")
		literal := pattern.Kind() == ast.LiteralKind
		if literal {
			text, literal = pattern.AsLiteral().(types.String)
		}
		if !literal {
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
			if !ok {
				return types.MaybeNoSuchOverloadErr(args[0])
			}
			return types.Bool(re.MatchString(string(text)))
		}
		return interpreter.NewCall(call.ID(), call.Function(), call.OverloadID(), call.Args(), match), nil
	},
}

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
