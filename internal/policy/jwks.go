package policy

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"

	"github.com/go-jose/go-jose/v4"

	policyv1 "github.com/sluicegate/sluice/proto/gen/sluice/policy/v1"
)

// verificationKey is a key with the algorithms that its type allows. A token's header picks among them and
// cannot widen them: a public key never becomes an HMAC secret, and `none` is nowhere.
type verificationKey struct {
	id         string
	key        any // *rsa.PublicKey, *ecdsa.PublicKey, ed25519.PublicKey or []byte
	algorithms []jose.SignatureAlgorithm
}

// issuerSource begins the source of a key set that is found through an issuer's metadata: no URL begins so.
const issuerSource = "issuer:"

// JwksSource is what [Resolver.Jwks] and the control plane call a key set that is fetched: its URL, or `issuer:` and the
// identifier of the issuer whose metadata names the URL. Empty for a set that is not fetched.
func JwksSource(j *policyv1.Jwks) string {
	switch s := j.GetSource().(type) {
	case *policyv1.Jwks_Url:
		return s.Url
	case *policyv1.Jwks_Issuer:
		return issuerSource + s.Issuer
	}
	return ""
}

// SourceIssuer is the issuer of a source that names one.
func SourceIssuer(source string) (issuer string, ok bool) {
	return strings.CutPrefix(source, issuerSource)
}

// ProviderJwks is the key set of a provider of mcpAuthentication: without one of its own, the one that the issuer's
// metadata names.
func ProviderJwks(p *policyv1.JwtProvider) *policyv1.Jwks {
	if p.GetJwks() != nil {
		return p.GetJwks()
	}
	return &policyv1.Jwks{Source: &policyv1.Jwks_Issuer{Issuer: p.GetIssuer()}}
}

// checkIssuer returns why an issuer's metadata cannot be found, or "" (RFC 8414 section 2).
func checkIssuer(issuer string) string {
	u, err := url.Parse(issuer)
	switch {
	case err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Hostname() == "":
		return fmt.Sprintf("%q is no http or https URL, so that its keys cannot be found through its metadata", issuer)
	case u.User != nil || u.RawQuery != "" || u.Fragment != "" || strings.ContainsAny(issuer, "?#"):
		return "an issuer with a user, a query or a fragment has no metadata (RFC 8414)"
	}
	return ""
}

// compileJwks returns no keys, and no error, where the set is not known here or not fetched yet.
func compileJwks(j *policyv1.Jwks, r Resolver, field string, errs *problems) []verificationKey {
	var data []byte
	var err error
	fetched := false
	switch s := j.GetSource().(type) {
	case *policyv1.Jwks_Inline:
		data = []byte(s.Inline)
	case *policyv1.Jwks_File:
		if data, err = lookUp(r.File, s.File); err != nil {
			err = lookUpError("file", s.File, err)
		}
	case *policyv1.Jwks_Url:
		fetched = true
		if !strings.HasPrefix(s.Url, "https://") && !strings.HasPrefix(s.Url, "http://") {
			errs.add(field+".url", "%q is no http or https URL", s.Url)
			return nil
		}
		if data, err = lookUp(r.Jwks, JwksSource(j)); err != nil {
			err = lookUpError("URL", s.Url, err)
		} else if len(data) == 0 {
			return nil
		}
	case *policyv1.Jwks_Issuer:
		fetched = true
		if why := checkIssuer(s.Issuer); why != "" {
			errs.add(field, "%s; write jwks: {url: …} or {inline: …}", why)
			return nil
		}
		if data, err = lookUp(r.Jwks, JwksSource(j)); err != nil {
			err = lookUpError("issuer", s.Issuer, err)
		} else if len(data) == 0 {
			return nil
		}
	default:
		errs.add(field, "is missing; write `inline`, `file`, `url` or `issuer`")
		return nil
	}
	if errors.Is(err, ErrUnknown) {
		return nil
	}
	if err == nil {
		var keys []verificationKey
		if keys, err = parseJwks(data, fetched); err == nil {
			return keys
		}
	}
	errs.add(field, "%v", err)
	return nil
}

// parseJwks takes the keys that can verify and leaves the others, as RFC 7517 §5 asks. No key at all is an
// error. A symmetric key in a set that was fetched is no secret, and left out.
func parseJwks(data []byte, fetched bool) ([]verificationKey, error) {
	var set struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := json.Unmarshal(data, &set); err != nil {
		return nil, fmt.Errorf("no JSON Web Key Set: %w", err)
	}
	if set.Keys == nil {
		return nil, errors.New("no JSON Web Key Set: it has no `keys`")
	}
	var keys []verificationKey
	unusable := errors.New("it is empty")
	for i, raw := range set.Keys {
		key, err := parseKey(raw, fetched)
		if err != nil {
			unusable = fmt.Errorf("keys[%d] %w", i, err)
			continue
		}
		keys = append(keys, key)
	}
	if len(keys) == 0 {
		return nil, fmt.Errorf("no key of the set can verify tokens: %w", unusable)
	}
	return keys, nil
}

func parseKey(raw json.RawMessage, fetched bool) (verificationKey, error) {
	var none verificationKey
	var jwk jose.JSONWebKey
	if err := jwk.UnmarshalJSON(raw); err != nil {
		return none, errors.New("is no JSON Web Key of a known type") // the library's own words may quote the key
	}
	var use struct {
		Ops []string `json:"key_ops"`
	}
	if err := json.Unmarshal(raw, &use); err != nil {
		return none, errors.New("has key_ops that are no list of names")
	}
	if jwk.Use != "" && jwk.Use != "sig" || len(use.Ops) > 0 && !slices.Contains(use.Ops, "verify") {
		return none, errors.New("is not for verifying")
	}
	var algorithms []jose.SignatureAlgorithm
	key := jwk.Key
	switch k := key.(type) {
	case *rsa.PrivateKey, *ecdsa.PrivateKey, ed25519.PrivateKey:
		return none, errors.New("is a private key; a verifier needs only the public one")
	case *rsa.PublicKey:
		if k.N.BitLen() < 2048 {
			return none, errors.New("is an RSA key of less than 2048 bits")
		}
		algorithms = []jose.SignatureAlgorithm{jose.RS256, jose.RS384, jose.RS512, jose.PS256, jose.PS384, jose.PS512}
	case *ecdsa.PublicKey:
		switch k.Curve.Params().BitSize {
		case 256:
			algorithms = []jose.SignatureAlgorithm{jose.ES256}
		case 384:
			algorithms = []jose.SignatureAlgorithm{jose.ES384}
		case 521:
			algorithms = []jose.SignatureAlgorithm{jose.ES512}
		}
	case ed25519.PublicKey:
		algorithms = []jose.SignatureAlgorithm{jose.EdDSA}
	case []byte:
		if fetched {
			return none, errors.New("is symmetric, and a set that anybody may fetch holds no secret")
		}
		algorithms = hmacAlgorithms(len(k))
	}
	if jwk.Algorithm != "" {
		algorithms = slices.DeleteFunc(algorithms, func(a jose.SignatureAlgorithm) bool { return string(a) != jwk.Algorithm })
	}
	if len(algorithms) == 0 {
		return none, errors.New("is of a type or size that no supported algorithm takes")
	}
	return verificationKey{jwk.KeyID, key, algorithms}, nil
}

// hmacAlgorithms wants a key as long as the hash (RFC 7518 §3.2).
func hmacAlgorithms(size int) (algorithms []jose.SignatureAlgorithm) {
	for _, a := range []struct {
		min       int
		algorithm jose.SignatureAlgorithm
	}{{32, jose.HS256}, {48, jose.HS384}, {64, jose.HS512}} {
		if size >= a.min {
			algorithms = append(algorithms, a.algorithm)
		}
	}
	return algorithms
}
