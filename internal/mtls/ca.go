package mtls

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"time"
)

const (
	// DefaultTrustDomain names an installation that was given no name of its own.
	DefaultTrustDomain = "sluice"
	// DefaultTTL is how long a certificate lives; it is renewed after a third of it.
	DefaultTTL = 7 * 24 * time.Hour
	// RenewGrace is how long after its expiry a certificate may still be traded for a new one.
	RenewGrace = 30 * 24 * time.Hour

	caTTL     = 10 * 365 * 24 * time.Hour
	clockSkew = 5 * time.Minute // a peer's clock may be behind ours by this much

	caCertFile   = "ca.crt"
	caKeyFile    = "ca.key"
	caNewKeyFile = "ca.key.new" // until its certificate is there
)

// CA signs the certificates of one trust domain. It is immutable and safe for concurrent use.
type CA struct {
	cert        *x509.Certificate
	key         crypto.Signer
	trustDomain string
}

// OpenCA loads the CA of dir, or makes one if dir has none: an ECDSA P-256 key and a certificate for ten
// years, `ca.key` (0600) and `ca.crt`. The trust domain of a new CA is trustDomain ([DefaultTrustDomain]
// if empty); that of one on disk is its own, and another one wished for is an error. A process that was killed while it made
// a CA leaves nothing that the next one has to be helped with.
func OpenCA(dir, trustDomain string) (*CA, error) {
	missing := func(file string) bool {
		_, err := os.Stat(filepath.Join(dir, file))
		return errors.Is(err, fs.ErrNotExist)
	}
	switch {
	case missing(caKeyFile) && missing(caCertFile):
		return createCA(dir, trustDomain)
	case missing(caKeyFile) && !missing(caNewKeyFile): // killed before the last step
		if err := adoptKey(dir); err != nil {
			return nil, err
		}
	}
	ca, err := LoadCA(dir)
	if err != nil {
		return nil, err
	}
	if trustDomain != "" && ca.trustDomain != trustDomain {
		return nil, fmt.Errorf("the CA in %s is of trust domain %q, not %q: keep its name or use another directory", dir, ca.trustDomain, trustDomain)
	}
	return ca, nil
}

func createCA(dir, trustDomain string) (*CA, error) {
	if trustDomain == "" {
		trustDomain = DefaultTrustDomain
	}
	if err := (ID{TrustDomain: trustDomain}).check(); err != nil {
		return nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber:          serial(),
		Subject:               pkix.Name{CommonName: "Sluice CA of " + trustDomain},
		URIs:                  []*url.URL{{Scheme: "spiffe", Host: trustDomain}},
		NotBefore:             time.Now().Add(-clockSkew),
		NotAfter:              time.Now().Add(caTTL),
		IsCA:                  true,
		BasicConstraintsValid: true,
		MaxPathLenZero:        true, // it signs leaves and nothing between
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("sign the CA's own certificate: %w", err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	// The certificate's file decides: without it, a key that lies here has signed nothing yet and is made anew. So neither
	// half by itself is ever taken for a CA that lost the other.
	if err := WriteFile(filepath.Join(dir, caNewKeyFile), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})); err != nil {
		return nil, err
	}
	if err := WriteFile(filepath.Join(dir, caCertFile), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})); err != nil {
		return nil, err
	}
	if err := adoptKey(dir); err != nil {
		return nil, err
	}
	return LoadCA(dir)
}

// adoptKey ends the making of a CA.
func adoptKey(dir string) error {
	if err := os.Rename(filepath.Join(dir, caNewKeyFile), filepath.Join(dir, caKeyFile)); err != nil {
		return err
	}
	return syncDir(dir)
}

// LoadCA reads the CA of dir. It errs if the key can be read by every user of the machine, or if key and
// certificate do not belong together.
func LoadCA(dir string) (*CA, error) {
	key, err := readKey(filepath.Join(dir, caKeyFile))
	if err != nil {
		return nil, err
	}
	path := filepath.Join(dir, caCertFile)
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("certificate of the CA: %w", err)
	}
	block, _ := pem.Decode(data)
	if block == nil || block.Type != "CERTIFICATE" {
		return nil, fmt.Errorf("%s: no PEM certificate", path)
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	public, ok := cert.PublicKey.(*ecdsa.PublicKey)
	switch {
	case !cert.IsCA:
		return nil, fmt.Errorf("%s: the certificate is not a CA's", path)
	case !ok || !public.Equal(key.Public()):
		return nil, fmt.Errorf("%s is not the certificate of the key in %s", path, filepath.Join(dir, caKeyFile))
	case len(cert.URIs) != 1 || cert.URIs[0].Scheme != "spiffe":
		return nil, fmt.Errorf("%s: the certificate names no trust domain (one URI spiffe://<trust domain>)", path)
	}
	return &CA{cert: cert, key: key, trustDomain: cert.URIs[0].Host}, nil
}

func readKey(path string) (crypto.Signer, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("private key: %w", err)
	}
	if info.Mode().Perm()&0o007 != 0 {
		return nil, fmt.Errorf("private key %s can be read by every user (mode %04o): chmod 600 %s", path, info.Mode().Perm(), path)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("private key: %w", err)
	}
	block, _ := pem.Decode(data)
	if block == nil || block.Type != "PRIVATE KEY" {
		return nil, fmt.Errorf("%s: no PEM private key (PKCS #8)", path)
	}
	return parseKey(path, block.Bytes)
}

func parseKey(path string, der []byte) (crypto.Signer, error) {
	key, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	signer, ok := key.(*ecdsa.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("%s: the private key is a %T, only ECDSA is supported", path, key)
	}
	return signer, nil
}

// TrustDomain is the domain of every ID that the CA signs.
func (ca *CA) TrustDomain() string { return ca.trustDomain }

// Certificate is the CA's own, to be trusted as a root.
func (ca *CA) Certificate() *x509.Certificate { return ca.cert }

// Pin is the SHA-256 of the CA's public key (SubjectPublicKeyInfo), as join tokens carry it.
func (ca *CA) Pin() [32]byte { return pin(ca.cert) }

func pin(c *x509.Certificate) [32]byte { return sha256.Sum256(c.RawSubjectPublicKeyInfo) }

// Request says what to sign. Nothing of the signing request but its key is taken over.
type Request struct {
	// CSR is PKCS #10, DER, and proves that the asker holds the key.
	CSR []byte
	// ID must be of the CA's trust domain; if its TrustDomain is empty, it is given that one.
	ID ID
	// Hosts are DNS names and IP addresses for clients that check names. Empty for proxies.
	Hosts []string
	// TTL is the lifetime; if zero, [DefaultTTL].
	TTL time.Duration
}

// Certificates is what an issuer answers: a chain with the leaf first and the roots to trust, all DER.
type Certificates struct {
	Chain [][]byte
	Roots [][]byte
}

// Sign issues a certificate for clients and servers (proxies dial, and later are dialled).
func (ca *CA) Sign(r Request) (Certificates, error) {
	csr, err := x509.ParseCertificateRequest(r.CSR)
	if err != nil {
		return Certificates{}, fmt.Errorf("certificate request: %w", err)
	}
	if err := csr.CheckSignature(); err != nil {
		return Certificates{}, fmt.Errorf("certificate request: %w", err)
	}
	public, ok := csr.PublicKey.(*ecdsa.PublicKey)
	if !ok || public.Curve != elliptic.P256() {
		return Certificates{}, errors.New("certificate request: the key must be ECDSA P-256")
	}
	if r.ID.TrustDomain == "" {
		r.ID.TrustDomain = ca.trustDomain
	}
	if r.ID.TrustDomain != ca.trustDomain {
		return Certificates{}, fmt.Errorf("%s is not of this CA's trust domain %q", r.ID, ca.trustDomain)
	}
	if err := r.ID.check(); err != nil {
		return Certificates{}, err
	}
	if r.TTL == 0 {
		r.TTL = DefaultTTL
	}
	notAfter := time.Now().Add(r.TTL)
	if notAfter.After(ca.cert.NotAfter) {
		notAfter = ca.cert.NotAfter
	}
	template := &x509.Certificate{
		SerialNumber: serial(),
		Subject:      pkix.Name{CommonName: commonName(r.ID)},
		URIs:         []*url.URL{r.ID.url()},
		NotBefore:    time.Now().Add(-clockSkew),
		NotAfter:     notAfter,
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
	for _, h := range r.Hosts {
		if ip := net.ParseIP(h); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, h)
		}
	}
	leaf, err := x509.CreateCertificate(rand.Reader, template, ca.cert, public, ca.key)
	if err != nil {
		return Certificates{}, fmt.Errorf("sign a certificate for %s: %w", r.ID, err)
	}
	// The root stands in the chain too: who has only a join token finds the pinned key there.
	return Certificates{Chain: [][]byte{leaf, ca.cert.Raw}, Roots: [][]byte{ca.cert.Raw}}, nil
}

func commonName(id ID) string {
	name := id.Proxy
	if id.ControlPlane() {
		name = "controlplane"
	}
	return name[:min(len(name), 64)] // X.520's upper bound; the URI is what counts
}

func serial() *big.Int {
	var b [16]byte
	rand.Read(b[:]) //nolint:errcheck // never fails
	b[0] &= 0x7f    // positive
	return new(big.Int).SetBytes(b[:])
}
