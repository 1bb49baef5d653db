package policy

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
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

// jwtAuth authenticates by JSON Web Tokens.
type jwtAuth struct {
	mode     policyv1.JwtAuth_Mode
	location location
	*verifier
}

func compileJwtAuth(j *policyv1.JwtAuth, r Resolver, field string, errs *problems) *jwtAuth {
	return &jwtAuth{
		mode:     compileMode(j.GetMode(), field+".mode", errs),
		location: compileLocation(j.GetLocation(), field+".location", errs),
		verifier: compileVerifier(j.GetProviders(), r, field, errs),
	}
}

// check returns the principal of the token that r shows: nil without a token, *AuthError for a bad one.
func (j *jwtAuth) check(r *http.Request) (p *Principal, shown bool, err *AuthError) {
	token, shown := j.location.get(r)
	if !shown {
		return nil, false, nil
	}
	p, err = j.verify(token, nil)
	if err != nil && err.Status == http.StatusUnauthorized {
		err.Challenge = j.challenge(err.Reason)
	}
	return p, true, err
}

// challenge is RFC 6750 §3: no error for who showed nothing. Descriptions are constants: no quoting.
func (j *jwtAuth) challenge(description string) string {
	if description == "" {
		return "Bearer"
	}
	return `Bearer error="invalid_token", error_description="` + description + `"`
}

// verifier verifies JSON Web Tokens (RFC 7519, RFC 8725) of some issuers.
type verifier struct {
	providers  []jwtProvider
	algorithms []jose.SignatureAlgorithm // of all keys
	verified   verifiedCache             // new with each compilation, so new keys forget what old ones verified
}

type jwtProvider struct {
	issuer    string
	audiences []string
	required  []string
	keys      []verificationKey // none: not known here, or not fetched yet
}

func compileVerifier(providers []*policyv1.JwtProvider, r Resolver, field string, errs *problems) *verifier {
	out := &verifier{}
	if len(providers) == 0 {
		errs.add(field+".providers", "is empty, and no token would ever be right")
	}
	for i, p := range providers {
		at := fmt.Sprintf("%s.providers[%d]", field, i)
		if len(providers) == 1 {
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

// verify returns whose token it is. own are the names of which one must be the audience of a token whose provider names
// no audiences; nil: any will do. The error has no challenge.
func (v *verifier) verify(token string, own []string) (*Principal, *AuthError) {
	if token == "" || len(token) > maxTokenSize {
		return nil, badToken("the token is empty, given twice or too long")
	}
	now := time.Now()
	hash := sha256.Sum256([]byte(token))
	key := hash
	if own != nil {
		key = sha256.Sum256([]byte(token + "\x00" + strings.Join(own, "\x00")))
	}
	if p := v.verified.get(key, now); p != nil {
		return p, nil
	}
	p, err := v.parse(token, own, hash, now)
	if err == nil {
		v.verified.put(key, p, p.Expires.Add(leeway), now)
	}
	return p, err
}

func badToken(why string) *AuthError { return &AuthError{Status: http.StatusUnauthorized, Reason: why} }

func (v *verifier) parse(token string, own []string, hash [sha256.Size]byte, now time.Time) (*Principal, *AuthError) {
	if !slices.ContainsFunc(v.providers, func(p jwtProvider) bool { return len(p.keys) > 0 }) {
		return nil, keysUnknown
	}
	signed, err := jose.ParseSignedCompact(token, v.algorithms)
	if err != nil {
		return nil, badToken("the token is malformed or of an algorithm that is not allowed")
	}
	header := signed.Signatures[0].Protected
	if _, critical := header.ExtraHeaders["crit"]; critical {
		return nil, badToken("the token has critical header parameters, and none is supported")
	}
	if typ, _ := header.ExtraHeaders["typ"].(string); otherPurpose(typ) {
		return nil, badToken("the token was made for another purpose")
	}
	claims, err := decodeObject(signed.UnsafePayloadWithoutVerification(), nil)
	if err != nil {
		return nil, badToken("the token's claims are no strict JSON object")
	}
	issuer, _ := claims["iss"].(string)
	refusal := badToken("the token's issuer is not trusted")
	for _, p := range v.providers { // several may name one issuer with other audiences
		if p.issuer != issuer {
			continue
		}
		if len(p.keys) == 0 {
			refusal = keysUnknown
			continue
		}
		if !p.signed(signed, header) {
			refusal = badToken("the token's signature is not valid")
			continue
		}
		if why := p.check(claims, own, now); why != "" {
			refusal = badToken(why)
			continue
		}
		return newPrincipal(issuer, claims, token, hash), nil
	}
	return nil, refusal
}

var keysUnknown = &AuthError{Status: http.StatusServiceUnavailable, Reason: "the issuer's keys are not fetched yet"}

// otherPurpose reports whether `typ` says that the token is a JWT of a registered kind that authorizes nobody (RFC 8725
// section 3.11). Issuers write many things there for access tokens, so what is not known counts as one.
func otherPurpose(typ string) bool {
	switch strings.TrimPrefix(strings.ToLower(typ), "application/") {
	case "dpop+jwt", "logout+jwt", "secevent+jwt", "oauth-authz-req+jwt", "token-introspection+jwt", "client-authentication+jwt", "kb+jwt":
		return true
	}
	return false
}

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
func (p *jwtProvider) check(claims map[string]any, own []string, now time.Time) string {
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
	switch {
	case len(p.audiences) > 0:
		if !slices.ContainsFunc(p.audiences, func(a string) bool { return hasAudience(claims["aud"], a) }) {
			return "the token is for another audience"
		}
	case own != nil && !namesResource(claims["aud"], own):
		return "the token is for another resource"
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

// verifiedCache holds whom verified credentials belong to, by their hashes, as long as that is known. Sharded, so that
// requests share no lock.
type verifiedCache struct{ shards [16]verifiedShard }

// What one shard holds: entries, and bytes of their tokens and claims.
const (
	maxVerifiedPerShard = 1024
	maxVerifiedSize     = 2 << 20
)

type verifiedShard struct {
	mu      sync.RWMutex // guards what is below
	entries map[[sha256.Size]byte]verified
	size    int
}

type verified struct {
	principal *Principal
	until     time.Time
	size      int
}

// get returns nil for what is not there, or not good any more.
func (c *verifiedCache) get(hash [sha256.Size]byte, now time.Time) *Principal {
	s := &c.shards[hash[0]%16]
	s.mu.RLock()
	e := s.entries[hash]
	s.mu.RUnlock()
	if e.principal == nil || !now.Before(e.until) {
		return nil
	}
	return e.principal
}

func (c *verifiedCache) put(hash [sha256.Size]byte, p *Principal, until, now time.Time) {
	s := &c.shards[hash[0]%16]
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.entries == nil {
		s.entries = map[[sha256.Size]byte]verified{}
	}
	s.size -= s.entries[hash].size
	delete(s.entries, hash)
	e := verified{p, until, p.size()}
	if len(s.entries) >= maxVerifiedPerShard || s.size+e.size > maxVerifiedSize {
		s.makeRoomLocked(e.size, now)
	}
	s.entries[hash] = e
	s.size += e.size
}

// makeRoomLocked drops what has expired, and beyond that anything until an eighth is free beside what is to come: one pass for many
// puts.
func (s *verifiedShard) makeRoomLocked(size int, now time.Time) {
	for hash, e := range s.entries {
		if !now.Before(e.until) {
			s.size -= e.size
			delete(s.entries, hash)
		}
	}
	for hash, e := range s.entries { // in no order that who sends credentials could choose
		if len(s.entries) <= maxVerifiedPerShard*7/8 && s.size+size <= maxVerifiedSize*7/8 {
			return
		}
		s.size -= e.size
		delete(s.entries, hash)
	}
}
