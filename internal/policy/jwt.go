package policy

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"math"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"

	policyv1 "github.com/sluicegate/sluice/proto/gen/sluice/policy/v1"
)

const (
	maxTokenSize = 16 << 10
	leeway       = 30 * time.Second // between the clocks of issuer and proxy
)

// jwtAuth verifies JSON Web Tokens (RFC 7519, RFC 8725).
type jwtAuth struct {
	mode       policyv1.JwtAuth_Mode
	location   location
	providers  []jwtProvider
	algorithms []jose.SignatureAlgorithm // of all keys
	verified   tokenCache                // new with each compilation, so new keys forget what old ones verified
}

type jwtProvider struct {
	issuer    string
	audiences []string
	required  []string
	keys      []verificationKey // none: not known here, or not fetched yet
}

func compileJwtAuth(j *policyv1.JwtAuth, r Resolver, field string, errs *problems) *jwtAuth {
	out := &jwtAuth{
		mode:     compileMode(j.GetMode(), field+".mode", errs),
		location: compileLocation(j.GetLocation(), field+".location", errs),
	}
	if len(j.GetProviders()) == 0 {
		errs.add(field+".providers", "is empty, and no token would ever be right")
	}
	for i, p := range j.GetProviders() {
		at := fmt.Sprintf("%s.providers[%d]", field, i)
		if len(j.GetProviders()) == 1 {
			at = field // the single form, as most write it
		}
		if p.GetIssuer() == "" || strings.ContainsRune(p.GetIssuer(), 0) {
			errs.add(at+".issuer", "is empty; write what the tokens' `iss` says")
		}
		for k, c := range append(slices.Clone(p.GetAudiences()), p.GetRequiredClaims()...) {
			if c == "" {
				errs.add(at, "has an empty audience or required claim (number %d of them)", k+1)
			}
		}
		keys := compileJwks(p.GetJwks(), r, at+".jwks", errs)
		out.providers = append(out.providers, jwtProvider{p.GetIssuer(), p.GetAudiences(), p.GetRequiredClaims(), keys})
		for _, k := range keys {
			for _, a := range k.algorithms {
				if !slices.Contains(out.algorithms, a) {
					out.algorithms = append(out.algorithms, a)
				}
			}
		}
	}
	return out
}

// check returns the principal of the token that r shows: nil without a token, *AuthError for a bad one.
func (j *jwtAuth) check(r *http.Request) (p *Principal, shown bool, err *AuthError) {
	token, shown := j.location.get(r)
	if !shown {
		return nil, false, nil
	}
	if token == "" || len(token) > maxTokenSize {
		return nil, true, j.refuse("the token is empty, given twice or too long")
	}
	now := time.Now()
	hash := sha256.Sum256([]byte(token))
	if p := j.verified.get(hash, now); p != nil {
		return p, true, nil
	}
	p, err = j.verify(token, hash, now)
	if err == nil {
		j.verified.put(hash, p, now)
	}
	return p, true, err
}

func (j *jwtAuth) refuse(why string) *AuthError {
	return &AuthError{Status: http.StatusUnauthorized, Challenge: j.challenge(why), Reason: why}
}

// challenge is RFC 6750 §3: no error for who showed nothing. Descriptions are constants: no quoting.
func (j *jwtAuth) challenge(description string) string {
	if description == "" {
		return "Bearer"
	}
	return `Bearer error="invalid_token", error_description="` + description + `"`
}

func (j *jwtAuth) verify(token string, hash [sha256.Size]byte, now time.Time) (*Principal, *AuthError) {
	if !slices.ContainsFunc(j.providers, func(p jwtProvider) bool { return len(p.keys) > 0 }) {
		return nil, keysUnknown
	}
	signed, err := jose.ParseSignedCompact(token, j.algorithms)
	if err != nil {
		return nil, j.refuse("the token is malformed or of an algorithm that is not allowed")
	}
	header := signed.Signatures[0].Protected
	if _, critical := header.ExtraHeaders["crit"]; critical {
		return nil, j.refuse("the token has critical header parameters, and none is supported")
	}
	claims, err := decodeObject(signed.UnsafePayloadWithoutVerification(), nil)
	if err != nil {
		return nil, j.refuse("the token's claims are no strict JSON object")
	}
	issuer, _ := claims["iss"].(string)
	refusal := j.refuse("the token's issuer is not trusted")
	for _, p := range j.providers { // several may name one issuer with other audiences
		if p.issuer != issuer {
			continue
		}
		if len(p.keys) == 0 {
			refusal = keysUnknown
			continue
		}
		if !p.signed(signed, header) {
			refusal = j.refuse("the token's signature is not valid")
			continue
		}
		if why := p.check(claims, now); why != "" {
			refusal = j.refuse(why)
			continue
		}
		return newPrincipal(issuer, claims, token, hash), nil
	}
	return nil, refusal
}

var keysUnknown = &AuthError{Status: http.StatusServiceUnavailable, Reason: "the issuer's keys are not fetched yet"}

// signed tries the keys that header allows: those with its key id, and those that have none. Without a key
// id all are tried.
func (p *jwtProvider) signed(token *jose.JSONWebSignature, header jose.Header) bool {
	for _, k := range p.keys {
		if header.KeyID != "" && k.id != "" && k.id != header.KeyID {
			continue
		}
		if !slices.Contains(k.algorithms, jose.SignatureAlgorithm(header.Algorithm)) {
			continue
		}
		if _, err := token.Verify(k.key); err == nil {
			return true
		}
	}
	return false
}

// check returns why claims are not accepted, or "". Tokens without `exp` are not: they would be good, and
// cached, for ever.
func (p *jwtProvider) check(claims map[string]any, now time.Time) string {
	expires, ok := numericDate(claims["exp"])
	if !ok {
		return "the token has no expiry"
	}
	if !now.Before(expires.Add(leeway)) {
		return "the token has expired"
	}
	if nbf, set := claims["nbf"]; set {
		from, ok := numericDate(nbf)
		if !ok || now.Add(leeway).Before(from) {
			return "the token is not valid yet"
		}
	}
	if len(p.audiences) > 0 && !slices.ContainsFunc(p.audiences, func(a string) bool { return hasAudience(claims["aud"], a) }) {
		return "the token is for another audience"
	}
	if sub, set := claims["sub"]; set {
		if _, ok := sub.(string); !ok {
			return "the token's subject is no string"
		}
	}
	for _, c := range p.required {
		if v, set := claims[c]; !set || v == nil {
			return "the token lacks a required claim"
		}
	}
	return ""
}

func numericDate(v any) (time.Time, bool) {
	switch v := v.(type) {
	case int64:
		if v > 0 && v < 1<<40 {
			return time.Unix(v, 0), true
		}
	case float64:
		if v > 0 && v < 1<<40 {
			whole, part := math.Modf(v)
			return time.Unix(int64(whole), int64(part*1e9)), true
		}
	}
	return time.Time{}, false
}

func hasAudience(claim any, audience string) bool {
	if list, ok := claim.([]any); ok {
		return slices.ContainsFunc(list, func(a any) bool { return a == any(audience) })
	}
	return claim == any(audience)
}

// newPrincipal binds a token without a subject to itself: who holds another one of the issuer is somebody else.
func newPrincipal(issuer string, claims map[string]any, token string, hash [sha256.Size]byte) *Principal {
	expires, _ := numericDate(claims["exp"])
	p := &Principal{Claims: claims, Token: NewSecret(token), Expires: expires, jwt: toCEL(claims)}
	p.scopes = scopeList(scopesOf(p))
	sub, _ := claims["sub"].(string)
	p.Name = sub
	if sub == "" {
		sub = "\x00" + hex.EncodeToString(hash[:16])
		p.Name = issuer
	}
	p.ID = "jwt:" + issuer + "\x00" + sub
	return p
}

// tokenCache holds verified tokens by hash until they expire. Sharded, so that requests share no lock.
type tokenCache struct{ shards [16]tokenShard }

const maxTokensPerShard = 1024

type tokenShard struct {
	mu     sync.RWMutex // guards tokens
	tokens map[[sha256.Size]byte]*Principal
}

func (c *tokenCache) get(hash [sha256.Size]byte, now time.Time) *Principal {
	s := &c.shards[hash[0]%16]
	s.mu.RLock()
	p := s.tokens[hash]
	s.mu.RUnlock()
	if p == nil || !now.Before(p.Expires.Add(leeway)) {
		return nil
	}
	return p
}

func (c *tokenCache) put(hash [sha256.Size]byte, p *Principal, now time.Time) {
	s := &c.shards[hash[0]%16]
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.tokens == nil {
		s.tokens = map[[sha256.Size]byte]*Principal{}
	}
	if len(s.tokens) >= maxTokensPerShard {
		makeRoom(s.tokens, now)
	}
	s.tokens[hash] = p
}

// makeRoom drops what has expired, and beyond that anything until an eighth is free: one pass for many puts.
func makeRoom(tokens map[[sha256.Size]byte]*Principal, now time.Time) {
	maps.DeleteFunc(tokens, func(_ [sha256.Size]byte, p *Principal) bool { return !now.Before(p.Expires.Add(leeway)) })
	for hash := range tokens { // in no order that who sends tokens could choose
		if len(tokens) <= maxTokensPerShard*7/8 {
			return
		}
		delete(tokens, hash)
	}
}
