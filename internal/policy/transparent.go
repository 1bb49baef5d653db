package policy

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"strings"
)

// BearerPrincipal is who shows a bearer token (RFC 6750 section 2.1) that is not verified here: all that is known of the caller
// is that token, so two tokens are two callers, and rules see no claims. Nil for who shows none, or a credential of another
// scheme; an *AuthError for what is not one token.
func BearerPrincipal(r *http.Request) (*Principal, error) {
	token, shown := bearer.get(r)
	if !shown {
		return nil, nil
	}
	if token == "" {
		return nil, &AuthError{Status: http.StatusBadRequest, Reason: "the Authorization header holds no token, or there are several"}
	}
	sum := sha256.Sum256([]byte(token))
	return &Principal{ID: "bearer:" + base64.RawURLEncoding.EncodeToString(sum[:]), Name: "unverified", Token: Secret{token}, Unverified: true}, nil
}

// Subject is a hash of whom the token says that it is about, `iss` and `sub` of a JWT (RFC 7519 section 4.1); empty for any other
// token and without one. Nothing here has verified it: it only tells apart tokens that their issuer's resource has accepted.
func (p *Principal) Subject() string {
	if p == nil {
		return ""
	}
	parts := strings.Split(p.Token.Reveal(), ".")
	if len(parts) != 3 {
		return ""
	}
	raw, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return ""
	}
	var claims struct{ Iss, Sub string }
	if json.Unmarshal(raw, &claims) != nil || claims.Sub == "" {
		return ""
	}
	sum := sha256.Sum256([]byte(claims.Iss + "\x00" + claims.Sub))
	return base64.RawURLEncoding.EncodeToString(sum[:16])
}

// Authenticates reports whether the route has a policy of its own that says who calls.
func (rt *Route) Authenticates() bool { return rt != nil && len(rt.places) > 0 }

// TransparentMetadata is the URL of the metadata of the protected resource that an Unverified target is, as the sender of r reaches
// it through the proxy. It holds nothing that a quoted string of a header may not.
func (t *Target) TransparentMetadata(r *http.Request) string { return metadataURL(t.auth.resource, r) }

// TransparentResource is the identifier of that resource, for who reaches it by path.
func (t *Target) TransparentResource(r *http.Request, path string) string {
	if own := t.auth.resource; own != nil {
		return own.String()
	}
	return ownURL(r, path)
}

// ProtectedResource is [Route.ProtectedResource] of an Unverified target.
func (t *Target) ProtectedResource() (path string, named bool) {
	if own := t.auth.resource; own != nil {
		return withoutRoot(own.Path), true
	}
	return "", false
}
