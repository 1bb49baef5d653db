package policy

import (
	"fmt"
	"regexp"

	policyv1 "github.com/sluicegate/sluice/proto/gen/sluice/policy/v1"
)

var builtinPatterns = map[string]bool{"ssn": true, "creditCard": true, "phoneNumber": true, "email": true, "caSin": true}

// checkAi checks the shape of a kind that is not enforced yet.
func checkAi(ai *policyv1.Ai, field string, errs *problems) {
	for name, guards := range map[string][]*policyv1.Guard{
		"request": ai.GetPromptGuard().GetRequest(), "response": ai.GetPromptGuard().GetResponse(),
	} {
		for i, g := range guards {
			checkGuard(g.GetRegex(), fmt.Sprintf("%s.promptGuard.%s[%d].regex", field, name, i), errs)
		}
	}
}

func checkGuard(g *policyv1.RegexGuard, field string, errs *problems) {
	switch g.GetAction() {
	case "", "reject", "mask":
	default:
		errs.add(field+".action", "%q is neither reject nor mask", g.GetAction())
	}
	if len(g.GetRules()) == 0 {
		errs.add(field+".rules", "is empty")
	}
	for i, r := range g.GetRules() {
		at := fmt.Sprintf("%s.rules[%d]", field, i)
		switch r := r.GetRule().(type) {
		case *policyv1.RegexRule_Pattern:
			if _, err := regexp.Compile(r.Pattern); err != nil {
				errs.add(at+".pattern", "%v", err)
			}
		case *policyv1.RegexRule_Builtin:
			if !builtinPatterns[r.Builtin] {
				errs.add(at+".builtin", "%q is none of %s", r.Builtin, quoteList(sortedKeys(builtinPatterns)))
			}
		default:
			errs.add(at, "says neither pattern nor builtin")
		}
	}
}
