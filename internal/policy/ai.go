package policy

import (
	"context"
	"fmt"
	"sync/atomic"

	"github.com/sluicegate/sluice/internal/guard"
	policyv1 "github.com/sluicegate/sluice/proto/gen/sluice/policy/v1"
)

// Direction is where a message goes.
type Direction int

const (
	ToTarget Direction = iota // promptGuard.request
	ToClient                  // promptGuard.response
)

func (d Direction) String() string { return [...]string{"request", "response"}[d] }

// ai is a compiled `ai`.
type ai struct {
	stages [2][]stage         // by Direction, in order
	filter [2][]*guard.Filter // by Direction: of all stages
	rules  map[string]*judged // the guard that a rule belongs to, by the rule's place
	fill   *fill              // nil: nothing is filled in
}

// A stage is guards that look at a message in one go: filters, or one that asks somebody.
type stage struct {
	filters []*guard.Filter
	asks    judge                  // nil: filters
	trouble *atomic.Pointer[error] // why there was no decision the last time; nil inside: there was one
	judged
}

// judged is what a guard says of what it refuses.
type judged struct{ place, message string }

// A judge decides by asking a service. It returns the texts to write instead, nil for those that stay; none if all do. A
// *refusal rejects; any other error says why there is no decision.
type judge interface {
	judge(ctx context.Context, c *Call, d Direction, texts []guard.Text) ([]*string, error)
	failsOpen() bool
}

// A refusal is a judge's decision to reject.
type refusal struct{ reason string }

func (r *refusal) Error() string { return "rejected: " + r.reason }

func compileAi(a *policyv1.Ai, r Resolver, field string, errs *problems) *ai {
	out := &ai{rules: map[string]*judged{}}
	for d, guards := range [...][]*policyv1.Guard{ToTarget: a.GetPromptGuard().GetRequest(), ToClient: a.GetPromptGuard().GetResponse()} {
		for i, g := range guards {
			out.add(Direction(d), g, r, fmt.Sprintf("%s.promptGuard.%s[%d]", field, Direction(d), i), errs)
		}
	}
	out.fill = compileFill(a, field, errs)
	return out
}

// add compiles one guard.
func (a *ai) add(d Direction, g *policyv1.Guard, r Resolver, field string, errs *problems) {
	j := judged{place: field, message: g.GetRejection().GetMessage()}
	if g.GetRejection() != nil && j.message == "" {
		errs.add(field+".rejection.message", "is empty; write what callers are told, or leave rejection out")
	}
	var asks judge
	switch kind := g.GetGuard().(type) {
	case *policyv1.Guard_Regex:
		f := compileRegexGuard(kind.Regex, field+".regex", func(place string) { a.rules[place] = &j }, errs)
		a.filter[d] = append(a.filter[d], f)
		if n := len(a.stages[d]); n > 0 && a.stages[d][n-1].asks == nil {
			a.stages[d][n-1].filters = append(a.stages[d][n-1].filters, f)
			return
		}
		a.stages[d] = append(a.stages[d], stage{filters: []*guard.Filter{f}})
		return
	case *policyv1.Guard_Webhook:
		asks = compileWebhook(kind.Webhook, r, field+".webhook", errs)
	case *policyv1.Guard_OpenAiModeration:
		asks = compileModeration(kind.OpenAiModeration, r, field+".openAIModeration", errs)
	default:
		errs.add(field, "says none of regex, webhook and openAIModeration")
		return
	}
	a.stages[d] = append(a.stages[d], stage{asks: asks, trouble: new(atomic.Pointer[error]), judged: j})
}

func compileRegexGuard(g *policyv1.RegexGuard, field string, note func(place string), errs *problems) *guard.Filter {
	switch g.GetAction() {
	case "", "reject", "mask":
	default:
		errs.add(field+".action", "%q is neither reject nor mask", g.GetAction())
	}
	if len(g.GetRules()) == 0 {
		errs.add(field+".rules", "is empty")
	}
	var rules []guard.Rule
	for i, r := range g.GetRules() {
		place := fmt.Sprintf("%s.rules[%d]", field, i)
		note(place)
		var rule guard.Rule
		var err error
		switch r := r.GetRule().(type) {
		case *policyv1.RegexRule_Pattern:
			if rule, err = guard.Pattern(place, r.Pattern); err != nil {
				errs.add(place+".pattern", "%v", err)
			}
		case *policyv1.RegexRule_Builtin:
			if rule, err = guard.Builtin(place, r.Builtin); err != nil {
				errs.add(place+".builtin", "%q is none of %s", r.Builtin, quoteList(guard.Builtins()))
			}
		default:
			errs.add(place, "says neither pattern nor builtin")
			continue
		}
		if err == nil {
			rules = append(rules, rule)
		}
	}
	return guard.NewFilter(g.GetAction() == "mask", rules)
}

// AiNeeds returns the URLs that a's guards ask, by the field that names each.
func AiNeeds(a *policyv1.Ai) map[string]string {
	urls := map[string]string{}
	for d, guards := range [...][]*policyv1.Guard{a.GetPromptGuard().GetRequest(), a.GetPromptGuard().GetResponse()} {
		for i, g := range guards {
			at := fmt.Sprintf("promptGuard.%s[%d]", Direction(d), i)
			if u := g.GetWebhook().GetUrl(); u != "" {
				urls[at+".webhook.url"] = u
			}
			if u := g.GetOpenAiModeration().GetUrl(); u != "" {
				urls[at+".openAIModeration.url"] = u
			}
		}
	}
	return urls
}
