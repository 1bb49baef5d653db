package credential

import (
	"cmp"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
)

// Assertions makes the JWTs by which a client shows who it is (RFC 7523 section 2.2).
type Assertions struct {
	signer   jose.Signer
	audience string
	digest   string // of key and settings
}

const assertionLife = 2 * time.Minute

// NewAssertions reads a private key: PEM (PKCS #8, PKCS #1 or SEC 1) or a JWK. An empty keyID is the JWK's own, or none; an
// empty algorithm is what the key takes; an empty audience is the token endpoint's URL. Errors never hold the key.
func NewAssertions(key, keyID, algorithm, audience string) (*Assertions, error) {
	private, ownID, ownAlgorithm, err := parsePrivateKey(key)
	if err != nil {
		return nil, err
	}
	usual, err := algorithmOf(private)
	if err != nil {
		return nil, err
	}
	alg := jose.SignatureAlgorithm(cmp.Or(algorithm, ownAlgorithm, usual))
	options := (&jose.SignerOptions{}).WithType("JWT")
	if id := cmp.Or(keyID, ownID); id != "" {
		options = options.WithHeader("kid", id)
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: alg, Key: private}, options)
	if err == nil {
		_, err = signer.Sign([]byte("{}")) // an algorithm of another size of curve shows only here
	}
	if err != nil {
		return nil, fmt.Errorf("the algorithm %s does not fit the key, which takes %s", alg, usual)
	}
	return &Assertions{signer, audience, string(keyDigest(key, keyID, algorithm, audience))}, nil
}

func keyDigest(parts ...string) []byte { k := keyOf(parts...); return k[:] }

func (a *Assertions) key() string {
	if a == nil {
		return ""
	}
	return a.digest
}

func (a *Assertions) sign(client, tokenURL string, now time.Time) (string, error) {
	text, err := jwt.Signed(a.signer).Claims(jwt.Claims{
		Issuer: client, Subject: client, Audience: jwt.Audience{cmp.Or(a.audience, tokenURL)},
		ID: rand.Text(), IssuedAt: jwt.NewNumericDate(now), Expiry: jwt.NewNumericDate(now.Add(assertionLife)),
	}).Serialize()
	if err != nil {
		return "", errors.New("signing the client's assertion went wrong")
	}
	return text, nil
}

var errNoKey = errors.New("is no private key; give PEM (PKCS #8, PKCS #1 or SEC 1, not encrypted) or a JWK")

func parsePrivateKey(text string) (key crypto.Signer, id, algorithm string, err error) {
	if strings.HasPrefix(strings.TrimSpace(text), "{") {
		var k jose.JSONWebKey
		if json.Unmarshal([]byte(text), &k) != nil {
			return nil, "", "", errNoKey
		}
		signer, ok := k.Key.(crypto.Signer)
		if !ok {
			return nil, "", "", errors.New("is a JWK without a private part, or with a symmetric key; private_key_jwt needs a private key")
		}
		return signer, k.KeyID, k.Algorithm, nil
	}
	block, _ := pem.Decode([]byte(text))
	if block == nil {
		return nil, "", "", errNoKey
	}
	for _, parse := range []func([]byte) (any, error){
		x509.ParsePKCS8PrivateKey,
		func(b []byte) (any, error) { return x509.ParsePKCS1PrivateKey(b) },
		func(b []byte) (any, error) { return x509.ParseECPrivateKey(b) },
	} {
		if k, err := parse(block.Bytes); err == nil {
			if signer, ok := k.(crypto.Signer); ok {
				return signer, "", "", nil
			}
		}
	}
	return nil, "", "", errNoKey
}

func algorithmOf(key crypto.Signer) (string, error) {
	switch k := key.(type) {
	case *rsa.PrivateKey:
		if k.N.BitLen() < 2048 {
			return "", fmt.Errorf("is an RSA key of %d bits; 2048 is the least (RFC 7518 section 3.3)", k.N.BitLen())
		}
		return string(jose.RS256), nil
	case *ecdsa.PrivateKey:
		switch k.Curve.Params().BitSize {
		case 256:
			return string(jose.ES256), nil
		case 384:
			return string(jose.ES384), nil
		case 521:
			return string(jose.ES512), nil
		}
	case ed25519.PrivateKey:
		return string(jose.EdDSA), nil
	}
	return "", errors.New("is a key of a type that no algorithm of JWTs takes")
}

// expiryOf reads when a JWT of an issuer that is trusted anyway expires; zero if it does not say.
func expiryOf(token string) time.Time {
	parsed, err := jwt.ParseSigned(token, []jose.SignatureAlgorithm{jose.RS256, jose.RS384, jose.RS512, jose.ES256, jose.ES384, jose.ES512, jose.PS256, jose.EdDSA})
	if err != nil {
		return time.Time{}
	}
	var claims jwt.Claims
	if parsed.UnsafeClaimsWithoutVerification(&claims) != nil || claims.Expiry == nil {
		return time.Time{}
	}
	return claims.Expiry.Time()
}
