package policy

import (
	"net/http"

	policyv1 "github.com/sluicegate/sluice/proto/gen/sluice/policy/v1"
)

// Authenticate returns who sent r: nil, nil for anonymous, an *AuthError to refuse. A nil Route knows
// everybody as anonymous.
//
// Each of jwtAuth and apiKey decides by its own mode: strict wants a valid credential, optional wants none or
// a valid one, permissive takes a bad one for none. If both stand on a route and look at the same place, one
// credential cannot be both: one that either accepts is good, and strict in either wants that. If both know
// the caller, the token names the principal.
func (rt *Route) Authenticate(r *http.Request) (*Principal, error) {
	switch {
	case rt == nil || rt.jwt == nil && rt.apiKeys == nil:
		return nil, nil
	case rt.apiKeys == nil:
		p, shown, err := rt.jwt.check(r)
		return settle(rt.jwt.mode, p, shown, err, rt.jwt.challenge(""))
	case rt.jwt == nil:
		p, shown, err := rt.apiKeys.check(r)
		return settle(rt.apiKeys.mode, p, shown, err, rt.apiKeys.challenge(false))
	case rt.jwt.location == rt.apiKeys.location:
		return rt.authenticateEither(r)
	}
	key, shown, err := rt.apiKeys.check(r)
	key, refused := settle(rt.apiKeys.mode, key, shown, err, rt.apiKeys.challenge(false))
	if refused != nil {
		return nil, refused
	}
	caller, shown, err := rt.jwt.check(r)
	caller, refused = settle(rt.jwt.mode, caller, shown, err, rt.jwt.challenge(""))
	switch {
	case refused != nil:
		return nil, refused
	case caller == nil:
		return key, nil
	case key == nil:
		return caller, nil
	}
	both := *caller // cached tokens are shared
	both.APIKey, both.apiKey = key.APIKey, key.apiKey
	return &both, nil
}

func (rt *Route) authenticateEither(r *http.Request) (*Principal, error) {
	p, shown, err := rt.apiKeys.check(r)
	if p == nil {
		p, shown, err = rt.jwt.check(r)
	}
	mode := rt.jwt.mode
	if strictest := rt.apiKeys.mode; mode != policyv1.JwtAuth_MODE_STRICT && (strictest == policyv1.JwtAuth_MODE_STRICT || mode == policyv1.JwtAuth_MODE_PERMISSIVE) {
		mode = strictest
	}
	return settle(mode, p, shown, err, rt.jwt.challenge(""))
}

// settle applies a mode to what a check found.
func settle(mode policyv1.JwtAuth_Mode, p *Principal, shown bool, bad *AuthError, challenge string) (*Principal, error) {
	switch {
	case p != nil:
		return p, nil
	case mode == policyv1.JwtAuth_MODE_PERMISSIVE:
		return nil, nil
	case bad != nil:
		return nil, bad
	case mode == policyv1.JwtAuth_MODE_STRICT:
		return nil, &AuthError{Status: http.StatusUnauthorized, Challenge: challenge, Reason: "a credential is required"}
	}
	return nil, nil
}
