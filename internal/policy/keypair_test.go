package policy

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"strings"
	"testing"
	"time"

	policyv1 "github.com/sluicegate/sluice/proto/gen/sluice/policy/v1"
)

func block(kind string, der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
}

// Certificates and keys as operators have them: what is wrong is told of the right field, and no error shows a key.
func TestKeyPairs(t *testing.T) {
	ca := newAuthority(t)
	cert, key := ca.issue(t, nil)
	_, otherKey := ca.issue(t, nil)
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	_, edKey, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	signed := func(public any) string {
		der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{SerialNumber: big.NewInt(3), NotAfter: time.Now().Add(time.Hour)}, ca.cert, public, ca.key)
		if err != nil {
			t.Fatal(err)
		}
		return block("CERTIFICATE", der)
	}
	pkcs8 := func(key any) string {
		der, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			t.Fatal(err)
		}
		return block("PRIVATE KEY", der)
	}
	legacy := string(pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Headers: map[string]string{"Proc-Type": "4,ENCRYPTED", "DEK-Info": "AES-256-CBC,00"}, Bytes: []byte("s3cret")}))
	for _, tt := range []struct{ name, cert, key, field, reason string }{
		{"ECDSA", cert, key, "", ""},
		{"RSA, PKCS #8", signed(&rsaKey.PublicKey), pkcs8(rsaKey), "", ""},
		{"RSA, PKCS #1", signed(&rsaKey.PublicKey), block("RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(rsaKey)), "", ""},
		{"Ed25519", signed(edKey.Public()), pkcs8(edKey), "", ""},
		{"a chain", cert + ca.pem, key, "", ""},
		{"comments", "subject=x\n" + cert + "\nissuer=y\n" + ca.pem, "Bag Attributes\n" + key, "", ""},
		{"parameters before the key", cert, block("EC PARAMETERS", []byte{6, 8}) + key, "", ""},
		{"a chain the wrong way round", ca.pem + cert, key, ".cert", "must come first"},
		{"another key", cert, otherKey, ".cert", "do not make a pair"},
		{"an encrypted key", cert, block("ENCRYPTED PRIVATE KEY", []byte("s3cret")), ".key", "is encrypted"},
		{"a key encrypted as of old", cert, legacy, ".key", "is encrypted"},
		{"no key", cert, "s3cret", ".key", "no PEM private key"},
		{"swapped", key, cert, ".cert", "holds a PRIVATE KEY"},
		{"both in the certificate", cert + key, otherKey, ".cert", "holds a PRIVATE KEY"},
		{"no certificate", "s3cret", key, ".cert", "no PEM certificate"},
		{"a broken certificate", block("CERTIFICATE", []byte("s3cret")), key, ".cert", "cannot be read"},
	} {
		_, err := compileBackendTLS(&policyv1.BackendTls{Cert: value(tt.cert), Key: value(tt.key)}, Resolver{})
		found := FieldErrors(err)
		switch {
		case tt.reason == "" && err != nil:
			t.Errorf("%s: %v", tt.name, err)
		case tt.reason == "":
		case len(found) != 1 || found[0].Field != "policies.backendTLS"+tt.field || !strings.Contains(found[0].Reason, tt.reason):
			t.Errorf("%s: %v, want %s: …%s…", tt.name, err, tt.field, tt.reason)
		case strings.Contains(err.Error(), "s3cret"):
			t.Errorf("%s: %v shows what was given", tt.name, err)
		}
	}
	for roots, reason := range map[string]string{
		ca.pem: "", "# ours\n" + ca.pem + cert: "", "": "empty", "none": "no PEM certificate", ca.pem + key: "holds a PRIVATE KEY",
		ca.pem + block("CERTIFICATE", []byte("s3cret")): "certificate 2 of it cannot be read",
	} {
		_, err := compileBackendTLS(&policyv1.BackendTls{Root: value(roots)}, Resolver{})
		if (err == nil) != (reason == "") || err != nil && !strings.Contains(err.Error(), "policies.backendTLS.root: ") || err != nil && !strings.Contains(err.Error(), reason) {
			t.Errorf("roots %.40q: %v, want %q", roots, err, reason)
		}
	}
	for alpn, reason := range map[string]string{"h2": "", "http/1.1": "", "h2 http/1.1": "", "http/1.1 h2": "", "h3": "no protocol", "": "no protocol", "h2 h2": "given twice"} {
		_, err := compileBackendTLS(&policyv1.BackendTls{Alpn: strings.Split(alpn, " ")}, Resolver{})
		if (err == nil) != (reason == "") || err != nil && !strings.Contains(err.Error(), reason) {
			t.Errorf("alpn %q: %v, want %q", alpn, err, reason)
		}
	}
}

func TestWarnings(t *testing.T) {
	ca := newAuthority(t)
	now := time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)
	for _, tt := range []struct {
		from, to time.Duration // from now
		want     string
	}{
		{-time.Hour, 30 * 24 * time.Hour, ""},
		{-time.Hour, 24 * time.Hour, "expires on 2026-03-02 00:00 UTC"},
		{-2 * time.Hour, -time.Hour, "has expired on 2026-02-28 23:00 UTC"},
		{time.Hour, 30 * 24 * time.Hour, "is not valid before 2026-03-01 01:00 UTC"},
	} {
		cert, key := ca.issue(t, func(c *x509.Certificate) { c.NotBefore, c.NotAfter = now.Add(tt.from), now.Add(tt.to) })
		p := &policyv1.Policies{BackendTls: &policyv1.BackendTls{Cert: value(cert), Key: value(key)}}
		got := Warnings(p, Resolver{}, now)
		if tt.want == "" && len(got) == 0 {
			continue
		}
		if len(got) != 1 || got[0].Field != "policies.backendTLS.cert" || !strings.Contains(got[0].Reason, tt.want) {
			t.Errorf("%v, want %q", got, tt.want)
		}
		if err := Check(p, Resolver{}); err != nil {
			t.Errorf("what is worth a warning is refused: %v", err)
		}
	}
}
