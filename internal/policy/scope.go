package policy

import (
	"net/http"
	"slices"
	"strings"

	"github.com/google/cel-go/common/types"
	"github.com/google/cel-go/common/types/ref"
)

// scopesOf are the scopes of a token, each once: of `scope`, separated by blanks (RFC 8693 section 4.2, RFC 9068), and of
// `scp`, as some issuers call it. Each may be a list, too. Without a token there are none.
func scopesOf(p *Principal) []string {
	if p == nil {
		return nil
	}
	var all []string
	add := func(claim any) {
		switch claim := claim.(type) {
		case string:
			all = appendNew(all, strings.Fields(claim)...)
		case []any:
			for _, e := range claim {
				if s, ok := e.(string); ok {
					all = appendNew(all, s)
				}
			}
		}
	}
	add(p.Claims["scope"])
	add(p.Claims["scp"])
	return all
}

// appendNew appends those that are not there yet.
func appendNew(list []string, more ...string) []string {
	for _, s := range more {
		if !slices.Contains(list, s) {
			list = append(list, s)
		}
	}
	return list
}

var noScopes = scopeList(nil)

func scopeList(scopes []string) ref.Val {
	return types.NewStringList(types.DefaultTypeAdapter, append([]string{}, scopes...))
}

// scopeList is `scopes` for rules.
func (p *Principal) scopeList() ref.Val {
	switch {
	case p == nil || p.Claims == nil:
		return noScopes
	case p.scopes != nil:
		return p.scopes
	}
	return scopeList(scopesOf(p)) // a Principal that Authenticate did not make
}

// compileScope reads what a rule says of the scopes that open it; "" is none. It says what is wrong in errs.
func (r *rule) compileScope(scope, kind, field string, errs *problems) {
	if scope == "" {
		return
	}
	names := strings.Fields(scope)
	switch {
	case kind == "deny":
		errs.add(field+".scope", "does nothing on a deny, which no token can lift; write the rule as require")
		return
	case len(names) == 0:
		errs.add(field+".scope", "is blank; name the scopes of a token that would be let in, separated by blanks")
		return
	case r.reads&(varScopes|varJWT) == 0:
		errs.add(field+".scope", `does nothing on a rule that reads neither scopes nor jwt; write a rule such as %q in scopes`, names[0])
		return
	}
	for _, name := range names {
		if !validScope(name) {
			errs.add(field+".scope", "%q is no scope: RFC 6749 section 3.3 has printable ASCII without quotes and backslashes", name)
		}
	}
	r.scope = appendNew(nil, names...)
}

func validScope(name string) bool {
	return strings.IndexFunc(name, func(c rune) bool { return c <= ' ' || c > '~' || c == '"' || c == '\\' }) < 0
}

// opens reports whether the rule, which is not true, may be for a token that has its scopes too. It is asked once more with
// those scopes. All else that it reads stays as it is, but for claims that such a token may have and the caller's has not.
func (r *rule) opens(a *activation) bool {
	if r.scope == nil {
		return false
	}
	held := scopesOf(a.call.Principal)
	if !slices.ContainsFunc(r.scope, func(s string) bool { return !slices.Contains(held, s) }) {
		return false // he has what we would send him for
	}
	a.trial = r
	defer func() { a.trial = nil }()
	got := r.eval(a)
	return got == isTrue || got == isUnknown
}

// granted are the scopes of the token that is imagined for a trial.
func (r *rule) granted(p *Principal) []any {
	var all []any
	for _, s := range appendNew(scopesOf(p), r.scope...) {
		all = append(all, s)
	}
	return all
}

// anyClaims reports whether nothing is known of the claims that the imagined token has: the caller has shown none, or the
// rule asks for scopes in a way of its own.
func (r *rule) anyClaims(p *Principal) bool {
	return p == nil || p.Claims == nil || r.reads&varScopes == 0
}

// ScopeChallenge is the status and the WWW-Authenticate of an answer to a caller whom scopes would let in (RFC 6750
// section 3, and the step-up of MCP's authorization): 403 for a token that lacks them, 401 without a token. metadata is
// the URL of the route's metadata, or "".
func ScopeChallenge(p *Principal, scopes []string, metadata string) (status int, challenge string) {
	status, challenge = http.StatusForbidden, `Bearer error="insufficient_scope", `
	if p == nil || p.Claims == nil {
		status, challenge = http.StatusUnauthorized, "Bearer "
	}
	challenge += `scope="` + strings.Join(scopes, " ") + `"`
	if metadata != "" {
		challenge += `, resource_metadata="` + metadata + `"`
	}
	return status, challenge
}
