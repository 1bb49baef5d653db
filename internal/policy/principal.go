package policy

import (
	"net/http"
	"time"

	"github.com/google/cel-go/common/types/ref"
)

// A Principal is who calls. A nil *Principal is anonymous. It may be shared by requests: nobody changes it.
type Principal struct {
	// ID is stable, and unique in a tenant: "jwt:<iss>\x00<sub>", "key:<id>", "basic:<user>" or "bearer:<hash>". Sessions and caches are
	// bound to it.
	ID string
	// Name is for the log line.
	Name string
	// Claims of a verified JWT; nil without one.
	Claims map[string]any
	// APIKey is the metadata of a verified API key; nil without one.
	APIKey map[string]any
	// Username is a user's whose password was right; empty without one.
	Username string
	// Token is the verified bearer token, for passthrough, or with Unverified the one that nobody here has looked at. Empty without one.
	Token Secret
	// Unverified says that nothing is known of the caller but the token: see [BearerPrincipal].
	Unverified bool
	// Expires is when the token does. Zero: never.
	Expires time.Time

	jwt, apiKey, scopes ref.Val // Claims, APIKey and the token's scopes as rules see them, made once; nil: not made
}

// size is about how many bytes p takes: its claims stand in it twice, as they are and as rules see them.
func (p *Principal) size() int {
	return 512 + len(p.ID) + len(p.Name) + len(p.Username) + len(p.Token.Reveal()) + 2*sizeOf(p.Claims)
}

func sizeOf(v any) int {
	const word = 16
	switch v := v.(type) {
	case string:
		return word + len(v)
	case []any:
		n := 4 * word
		for _, e := range v {
			n += word + sizeOf(e)
		}
		return n
	case map[string]any:
		n := 6 * word
		for name, e := range v {
			n += 4*word + len(name) + sizeOf(e)
		}
		return n
	}
	return word
}

// An AuthError refuses a request for what it did not show, or showed wrongly.
type AuthError struct {
	Status    int    // 401; 403 for a token that lacks a scope; 503 while the keys to check with are not known
	Challenge string // value of WWW-Authenticate; empty with 503
	Reason    string // for the log and the caller; holds no part of the credential
}

func (e *AuthError) Error() string { return http.StatusText(e.Status) + ": " + e.Reason }
