package policy

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"
	"time"

	policyv1 "github.com/sluicegate/sluice/proto/gen/sluice/policy/v1"
)

// compileRoots returns a pool that is never nil: were it, the system's roots would be trusted instead. What is given
// replaces the system's roots, and all of it has to be read: a root that is passed over is an outage later.
func compileRoots(c *policyv1.Credential, r Resolver, field string, errs *problems) *x509.CertPool {
	pool := x509.NewCertPool()
	text, err := r.credential(c)
	if errors.Is(err, ErrUnknown) {
		return pool
	}
	if err != nil {
		errs.add(field, "%v", err)
		return pool
	}
	certs, err := parseCertificates([]byte(text.Reveal()))
	if err != nil {
		errs.add(field, "%v", err)
	}
	for _, cert := range certs {
		pool.AddCert(cert)
	}
	return pool
}

// parseCertificates reads PEM that is to hold certificates and nothing else. Text between the blocks is a comment.
func parseCertificates(data []byte) ([]*x509.Certificate, error) {
	var certs []*x509.Certificate
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("holds a %s beside certificates", block.Type)
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("certificate %d of it cannot be read: %w", len(certs)+1, err)
		}
		certs = append(certs, cert)
	}
	if len(certs) == 0 {
		return nil, errors.New("holds no PEM certificate")
	}
	return certs, nil
}

func compileKeyPair(b *policyv1.BackendTls, r Resolver, field string, errs *problems) *tls.Certificate {
	switch {
	case b.GetCert() == nil && b.GetKey() == nil:
		return nil
	case b.GetCert() == nil:
		errs.add(field+".key", "needs `cert` beside it")
		return nil
	case b.GetKey() == nil:
		errs.add(field+".cert", "needs `key` beside it")
		return nil
	}
	cert, certErr := r.credential(b.GetCert())
	key, keyErr := r.credential(b.GetKey())
	if certErr != nil && !errors.Is(certErr, ErrUnknown) {
		errs.add(field+".cert", "%v", certErr)
	}
	if keyErr != nil && !errors.Is(keyErr, ErrUnknown) {
		errs.add(field+".key", "%v", keyErr)
	}
	if certErr != nil || keyErr != nil {
		return nil
	}
	pair, err := tls.X509KeyPair([]byte(cert.Reveal()), []byte(key.Reveal()))
	if err != nil {
		at, reason := pairError(cert.Reveal(), key.Reveal(), err)
		errs.add(field+at, "%s", reason)
		return nil
	}
	return &pair
}

// pairError says what is wrong with a certificate and a key that make no pair, and of which of them.
func pairError(cert, key string, err error) (at, reason string) {
	certs, certErr := parseCertificates([]byte(cert))
	if certErr != nil {
		return ".cert", certErr.Error()
	}
	block, _ := pem.Decode([]byte(key))
	for rest := []byte(key); block != nil && !strings.HasSuffix(block.Type, "PRIVATE KEY"); { // openssl writes EC PARAMETERS first
		block, rest = pem.Decode(rest)
	}
	switch {
	case block == nil:
		return ".key", "holds no PEM private key"
	case block.Type == "ENCRYPTED PRIVATE KEY", strings.Contains(block.Headers["Proc-Type"], "ENCRYPTED"):
		return ".key", "is encrypted, and nothing here has its passphrase; write it decrypted (openssl pkey -in KEY -out PLAIN) into a Secret or a file that only the proxy reads"
	}
	for _, c := range certs[1:] {
		own := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}))
		if _, err := tls.X509KeyPair([]byte(own), []byte(key)); err == nil {
			return ".cert", "the certificate of the key must come first, and after it those that signed it"
		}
	}
	return ".cert", "certificate and key do not make a pair: " + strings.TrimPrefix(err.Error(), "tls: ")
}

// expiresSoon is how long before its end a client certificate is worth a warning.
const expiresSoon = 7 * 24 * time.Hour

// Warnings finds what p says that works, and will not for long or not as meant: a client certificate of backendTLS that
// has expired at now, is not valid yet, or ends within a week. Values that r does not know are not looked at. Fields
// are `policies.KIND…`.
func Warnings(p *policyv1.Policies, r Resolver, now time.Time) []FieldError {
	b := p.GetBackendTls()
	if b.GetCert() == nil {
		return nil
	}
	text, err := r.credential(b.GetCert())
	if err != nil {
		return nil
	}
	certs, err := parseCertificates([]byte(text.Reveal()))
	if err != nil {
		return nil
	}
	var reason string
	switch leaf := certs[0]; {
	case now.After(leaf.NotAfter):
		reason = fmt.Sprintf("the certificate has expired on %s, and targets will refuse it; renew it", day(leaf.NotAfter))
	case now.Before(leaf.NotBefore):
		reason = fmt.Sprintf("the certificate is not valid before %s, and targets will refuse it", day(leaf.NotBefore))
	case now.Add(expiresSoon).After(leaf.NotAfter):
		reason = fmt.Sprintf("the certificate expires on %s; renew it", day(leaf.NotAfter))
	default:
		return nil
	}
	return []FieldError{{Field: "policies.backendTLS.cert", Reason: reason}}
}

// day is a time as messages about certificates name it.
func day(t time.Time) string { return t.UTC().Format("2006-01-02 15:04 MST") }
