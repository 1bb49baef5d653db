package mtls

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"strings"
)

const (
	joinPrefix = "sluice-join-1-"
	secretSize = 32
)

// JoinToken lets a proxy in and tells it which control plane is the right one. Its text form is
// `sluice-join-1-` and base64url of the secret and the CA's pin. It redacts itself in logs.
type JoinToken struct {
	secret [secretSize]byte
	pin    [sha256.Size]byte
}

// NewJoinToken makes a token with a fresh secret for the CA with that [CA.Pin].
func NewJoinToken(pin [32]byte) JoinToken {
	t := JoinToken{pin: pin}
	rand.Read(t.secret[:]) //nolint:errcheck // never fails
	return t
}

// ParseJoinToken reads what Encode wrote; blanks around it do not matter.
func ParseJoinToken(s string) (JoinToken, error) {
	s = strings.TrimSpace(s)
	body, ok := strings.CutPrefix(s, joinPrefix)
	if !ok {
		return JoinToken{}, errors.New("join token: it does not begin with " + joinPrefix + ": make one with `sluice token create --type join`")
	}
	raw, err := base64.RawURLEncoding.Strict().DecodeString(body)
	if err != nil {
		return JoinToken{}, errors.New("join token: it is damaged (not base64url): copy it whole, as `sluice token create --type join` printed it")
	}
	if len(raw) != secretSize+sha256.Size {
		return JoinToken{}, fmt.Errorf("join token: it holds %d bytes instead of %d: copy it whole, as `sluice token create --type join` printed it", len(raw), secretSize+sha256.Size)
	}
	var t JoinToken
	copy(t.secret[:], raw)
	copy(t.pin[:], raw[secretSize:])
	return t, nil
}

// Encode is the token as users pass it on: a secret.
func (t JoinToken) Encode() string {
	return joinPrefix + base64.RawURLEncoding.EncodeToString(append(t.secret[:len(t.secret):len(t.secret)], t.pin[:]...))
}

// Hash is what the control plane stores and finds a token by; it does not lead back to the secret.
func (t JoinToken) Hash() [32]byte { return sha256.Sum256(t.secret[:]) }

// ID names the token in lists and logs.
func (t JoinToken) ID() string {
	h := t.Hash()
	return hex.EncodeToString(h[:6])
}

// Pin is the [CA.Pin] that the first dial must find.
func (t JoinToken) Pin() [32]byte { return t.pin }

// String shows no secret.
func (t JoinToken) String() string { return "join token " + t.ID() }

// GoString shows no secret.
func (t JoinToken) GoString() string { return t.String() }

// LogValue shows no secret.
func (t JoinToken) LogValue() slog.Value { return slog.StringValue(t.String()) }

// ClientConfig is for the first dial: it trusts the pinned CA alone, and of what that signed only the
// control plane. It shows no client certificate.
func (t JoinToken) ClientConfig() *tls.Config {
	return &tls.Config{
		MinVersion:         tls.VersionTLS13,
		NextProtos:         []string{"h2"},
		InsecureSkipVerify: true, // replaced by VerifyConnection: there are no roots yet, only a pin
		VerifyConnection: func(state tls.ConnectionState) error {
			roots := x509.NewCertPool()
			found := false
			for _, c := range state.PeerCertificates {
				if c.IsCA && pin(c) == t.pin {
					roots.AddCert(c)
					found = true
				}
			}
			if !found {
				return errors.New("the server is not of the control plane that made the join token (its CA has another key): check --xds-addr and the token")
			}
			_, err := verifyControlPlane(state.PeerCertificates, roots, "")
			return err
		},
	}
}
