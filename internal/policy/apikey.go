package policy

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"strings"

	policyv1 "github.com/sluicegate/sluice/proto/gen/sluice/policy/v1"
)

// apiKeyAuth knows API keys by their hashes alone.
type apiKeyAuth struct {
	mode     policyv1.JwtAuth_Mode
	location location
	keys     map[[sha256.Size]byte]*Principal
	unknown  bool // some keys are not known here
}

func compileAPIKeys(k *policyv1.ApiKeyAuth, r Resolver, field string, errs *problems) *apiKeyAuth {
	out := &apiKeyAuth{
		mode:     compileMode(k.GetMode(), field+".mode", errs),
		location: compileLocation(k.GetLocation(), field+".location", errs),
		keys:     map[[sha256.Size]byte]*Principal{},
	}
	if len(k.GetKeys()) == 0 {
		errs.add(field+".keys", "is empty, and no key would ever be right")
	}
	ids := map[string]int{}
	for i, key := range k.GetKeys() {
		at := fmt.Sprintf("%s.keys[%d]", field, i)
		hash, ok := keyHash(key, r, at, errs)
		if !ok {
			out.unknown = true
			continue
		}
		if _, twice := out.keys[hash]; twice {
			errs.add(at, "is the same key as one before it")
			continue
		}
		p := keyPrincipal(key, hash)
		if id := key.GetMetadata().GetFields()["id"]; id != nil && id.GetStringValue() == "" {
			errs.add(at+".metadata.id", "names the principal, so it is a string that is not empty")
		}
		if before, twice := ids[p.ID]; twice && key.GetMetadata().GetFields()["id"] == nil {
			errs.add(at, "has the same identity as keys[%d]", before)
		}
		ids[p.ID] = i
		out.keys[hash] = p
	}
	return out
}

// keyHash returns false if the key is wrong, which it says in errs, or not known here.
func keyHash(key *policyv1.ApiKey, r Resolver, field string, errs *problems) (hash [sha256.Size]byte, ok bool) {
	if (key.GetKey() == nil) == (key.GetKeyHash() == "") {
		errs.add(field, "needs one of `key` and `keyHash`")
		return hash, false
	}
	if key.GetKey() != nil {
		value, err := r.credential(key.GetKey())
		if errors.Is(err, ErrUnknown) {
			return hash, false
		}
		if err != nil {
			errs.add(field+".key", "%v", err)
			return hash, false
		}
		return sha256.Sum256([]byte(value.Reveal())), true
	}
	digits, isSHA := strings.CutPrefix(key.GetKeyHash(), "sha256:")
	b, err := hex.DecodeString(digits)
	if !isSHA || err != nil || len(b) != sha256.Size {
		errs.add(field+".keyHash", "is not `sha256:` and 64 hexadecimal digits")
		return hash, false
	}
	return [sha256.Size]byte(b), true
}

func keyPrincipal(key *policyv1.ApiKey, hash [sha256.Size]byte) *Principal {
	metadata := map[string]any{}
	if key.GetMetadata() != nil {
		metadata = integers(key.GetMetadata().AsMap()).(map[string]any)
	}
	id, _ := metadata["id"].(string)
	if id == "" {
		// A fingerprint that appears in logs is no hash of the key itself, lest short keys be guessed from keyHash tables.
		sum := sha256.Sum256(append([]byte("sluice api key\x00"), hash[:]...))
		id = hex.EncodeToString(sum[:8])
	}
	return &Principal{ID: "key:" + id, Name: id, APIKey: metadata, apiKey: toCEL(metadata)}
}

// check returns the principal of the key that r shows: nil without a key, *AuthError for a bad one. Keys are
// found by the hash of what a stranger sent, so the time it takes says nothing of their values.
func (a *apiKeyAuth) check(r *http.Request) (p *Principal, shown bool, err *AuthError) {
	value, shown := a.location.get(r)
	if !shown {
		return nil, false, nil
	}
	if value != "" && len(value) <= maxTokenSize {
		if p, ok := a.keys[sha256.Sum256([]byte(value))]; ok {
			return p, true, nil
		}
	}
	if a.unknown {
		return nil, true, &AuthError{Status: http.StatusServiceUnavailable, Reason: "API keys are not known here"}
	}
	return nil, true, &AuthError{Status: http.StatusUnauthorized, Challenge: a.challenge(true), Reason: "the API key is not valid"}
}

func (a *apiKeyAuth) challenge(shown bool) string {
	if a.location != bearer {
		return "ApiKey" // no registered scheme fits; clients see that a key is wanted
	}
	if shown {
		return `Bearer error="invalid_token", error_description="the API key is not valid"`
	}
	return "Bearer"
}

func compileMode(m policyv1.JwtAuth_Mode, field string, errs *problems) policyv1.JwtAuth_Mode {
	switch m {
	case policyv1.JwtAuth_MODE_UNSPECIFIED:
		return policyv1.JwtAuth_MODE_OPTIONAL
	case policyv1.JwtAuth_MODE_STRICT, policyv1.JwtAuth_MODE_OPTIONAL, policyv1.JwtAuth_MODE_PERMISSIVE:
		return m
	}
	errs.add(field, "%v is no mode; write strict, optional or permissive", m)
	return policyv1.JwtAuth_MODE_STRICT
}
