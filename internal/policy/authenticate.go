package policy

import (
	"cmp"
	"net/http"
	"slices"
	"strings"

	policyv1 "github.com/sluicegate/sluice/proto/gen/sluice/policy/v1"
)

// Authenticate returns who sent r: nil, nil for anonymous, an *AuthError to refuse. A nil Route knows
// everybody as anonymous.
//
// Each kind decides by its own mode: strict wants a valid credential, optional wants none or a valid one, permissive
// takes a bad one for none. Kinds that look at the same place (a header, whatever prefix stands in it) see one credential,
// which cannot be several: one that any of them accepts is good, and strict in any of them wants that; where a level
// enforces some of them, those alone count. jwtAuth and mcpAuthentication are the exception, for a token can be good for
// both, and has to: what an outer level demands is not lifted by an inner one. Of several that know the caller the
// first names the principal: mcpAuthentication, jwtAuth, apiKey, basicAuth; the others add what they know.
func (rt *Route) Authenticate(r *http.Request) (*Principal, error) {
	if rt == nil {
		return nil, nil
	}
	var caller *Principal
	for i := range rt.places {
		p, err := rt.places[i].authenticate(r)
		if err != nil {
			return nil, err
		}
		caller = caller.with(p)
	}
	return caller, nil
}

// A scheme checks credentials of one kind.
type scheme struct {
	mode     policyv1.JwtAuth_Mode
	location location
	enforced bool
	// check returns nil for no credential and *AuthError for a bad one, which is shown.
	check func(r *http.Request) (p *Principal, shown bool, err *AuthError)
	// challenge is for who showed none.
	challenge func(r *http.Request) string
}

// A place is where credentials of one or several kinds are looked for, in the order of their principals.
type place []scheme

// findPlaces puts the schemes of a route together; enforced are the kinds that a level enforces.
func (rt *Route) findPlaces(enforced []string) (places []place) {
	add := func(kind string, s scheme) {
		s.enforced = s.enforced || slices.Contains(enforced, kind)
		same := func(p place) bool { return p[0].location.samePlace(s.location) }
		if i := slices.IndexFunc(places, same); i >= 0 {
			places[i] = append(places[i], s)
			return
		}
		places = append(places, place{s})
	}
	both := rt.mcp != nil && rt.jwt != nil && rt.jwt.location == bearer
	if both {
		s := bothTokens(rt.mcp, rt.jwt)
		s.enforced = slices.Contains(enforced, "jwtAuth")
		add("mcpAuthentication", s)
	}
	if rt.mcp != nil && !both {
		add("mcpAuthentication", rt.mcp.scheme())
	}
	if rt.jwt != nil && !both {
		add("jwtAuth", rt.jwt.scheme())
	}
	if k := rt.apiKeys; k != nil {
		add("apiKey", scheme{mode: k.mode, location: k.location, check: k.check, challenge: func(*http.Request) string { return k.challenge(false) }})
	}
	if b := rt.basic; b != nil {
		add("basicAuth", scheme{mode: b.mode, location: basicLocation, check: b.check, challenge: func(*http.Request) string { return b.challenge() }})
	}
	for i, p := range places {
		if slices.ContainsFunc(p, func(s scheme) bool { return s.enforced }) {
			places[i] = slices.DeleteFunc(p, func(s scheme) bool { return !s.enforced })
		}
	}
	return places
}

func (m *mcpAuth) scheme() scheme {
	return scheme{mode: m.mode, location: bearer, check: m.check, challenge: func(r *http.Request) string { return m.challenge(r, "", "") }}
}

func (j *jwtAuth) scheme() scheme {
	return scheme{mode: j.mode, location: j.location, check: j.check, challenge: func(*http.Request) string { return j.challenge("") }}
}

// bothTokens is one token that has to be good for both, each in its mode.
func bothTokens(m *mcpAuth, j *jwtAuth) scheme {
	s := m.scheme()
	s.mode = strictest(m.mode, j.mode)
	s.check = func(r *http.Request) (*Principal, bool, *AuthError) {
		one, shown, err := m.check(r)
		if err != nil && m.mode != policyv1.JwtAuth_MODE_PERMISSIVE || !shown {
			return nil, shown, err
		}
		other, _, bad := j.check(r)
		switch {
		case bad != nil && j.mode != policyv1.JwtAuth_MODE_PERMISSIVE:
			if bad.Status == http.StatusUnauthorized {
				bad.Challenge = m.challenge(r, "invalid_token", bad.Reason)
			}
			return nil, true, bad
		case one != nil:
			return one, true, nil
		}
		return other, true, cmp.Or(err, bad)
	}
	return s
}

// strictest: strict, then optional, then permissive.
func strictest(a, b policyv1.JwtAuth_Mode) policyv1.JwtAuth_Mode { return min(a, b) }

func (p place) authenticate(r *http.Request) (*Principal, error) {
	mode := p[0].mode
	var shown bool
	var bad *AuthError
	for i := range p {
		caller, here, err := p[i].check(r)
		if caller != nil {
			return caller, nil
		}
		mode, shown = strictest(mode, p[i].mode), shown || here
		// The first that takes the credential for its own says what is wrong with it; one that cannot tell yet comes before.
		if bad == nil || err != nil && err.Status == http.StatusServiceUnavailable {
			bad = cmp.Or(err, bad)
		}
	}
	switch {
	case mode == policyv1.JwtAuth_MODE_PERMISSIVE:
		return nil, nil
	case bad != nil:
		return nil, bad
	case mode == policyv1.JwtAuth_MODE_STRICT:
		challenges := make([]string, 0, len(p))
		for i := range p {
			if c := p[i].challenge(r); !slices.Contains(challenges, c) {
				challenges = append(challenges, c)
			}
		}
		return nil, &AuthError{Status: http.StatusUnauthorized, Challenge: strings.Join(challenges, ", "), Reason: "a credential is required"}
	}
	return nil, nil
}

// with is the principal with what another check knows of the caller. Either may be nil. Neither is changed, for they are
// shared.
func (p *Principal) with(other *Principal) *Principal {
	switch {
	case p == nil:
		return other
	case other == nil:
		return p
	}
	both := *p
	if both.Claims == nil {
		both.Claims, both.jwt, both.scopes, both.Token, both.Expires = other.Claims, other.jwt, other.scopes, other.Token, other.Expires
	}
	if both.APIKey == nil {
		both.APIKey, both.apiKey = other.APIKey, other.apiKey
	}
	both.Username = cmp.Or(both.Username, other.Username)
	return &both
}
