package mtls

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"math"
	mathrand "math/rand/v2"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"
)

// Issuer has a certificate signed for the key of a PKCS #10 request (DER).
type Issuer func(ctx context.Context, csr []byte) (Certificates, error)

// Identity is a key, its certificate and the roots to trust. It is safe for concurrent use; the
// configurations made from it follow its renewal.
type Identity struct {
	path    string // empty: in memory only
	current atomic.Pointer[material]
}

// material is immutable.
type material struct {
	id    ID
	cert  tls.Certificate
	leaf  *x509.Certificate
	roots *x509.CertPool
	ders  [][]byte
}

// NewIdentity makes a key, has it signed by issue and, unless path is empty, writes both to path (one PEM
// file with key, chain and roots, 0600, so that key and certificate cannot part).
func NewIdentity(ctx context.Context, path string, issue Issuer) (*Identity, error) {
	i := &Identity{path: path}
	if err := i.Renew(ctx, issue); err != nil {
		return nil, err
	}
	return i, nil
}

// LoadIdentity reads what NewIdentity wrote; an error that is [fs.ErrNotExist] means there is none. An
// expired certificate loads: it may still be renewed.
func LoadIdentity(path string) (*Identity, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("identity: %w", err)
	}
	if info.Mode().Perm()&0o007 != 0 {
		return nil, fmt.Errorf("identity %s can be read by every user (mode %04o): chmod 600 %s", path, info.Mode().Perm(), path)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("identity: %w", err)
	}
	m, err := parseMaterial(path, data)
	if err != nil {
		return nil, err
	}
	i := &Identity{path: path}
	i.current.Store(m)
	return i, nil
}

func parseMaterial(path string, data []byte) (*material, error) {
	var key crypto.Signer
	var certs Certificates
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		switch block.Type {
		case "PRIVATE KEY":
			k, err := parseKey(path, block.Bytes)
			if err != nil {
				return nil, err
			}
			key = k
		case "CERTIFICATE":
			certs.Chain = append(certs.Chain, block.Bytes)
		case "TRUSTED ROOT":
			certs.Roots = append(certs.Roots, block.Bytes)
		}
	}
	if key == nil {
		return nil, fmt.Errorf("%s: no private key: remove the file and join again", path)
	}
	m, err := newMaterial(key, certs)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return m, nil
}

func newMaterial(key crypto.Signer, certs Certificates) (*material, error) {
	if len(certs.Chain) == 0 || len(certs.Roots) == 0 {
		return nil, errors.New("a certificate and a root are needed")
	}
	leaf, err := x509.ParseCertificate(certs.Chain[0])
	if err != nil {
		return nil, fmt.Errorf("certificate: %w", err)
	}
	public, ok := leaf.PublicKey.(*ecdsa.PublicKey)
	if !ok || !public.Equal(key.Public()) {
		return nil, errors.New("the certificate is not of the private key")
	}
	id, err := certificateID(leaf)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	for _, der := range certs.Roots {
		root, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("root certificate: %w", err)
		}
		roots.AddCert(root)
	}
	return &material{
		id:    id,
		cert:  tls.Certificate{Certificate: certs.Chain, PrivateKey: key, Leaf: leaf},
		leaf:  leaf,
		roots: roots,
		ders:  certs.Roots,
	}, nil
}

// Renew replaces key and certificate: a new key never leaves this process, only its request does. On an
// error the old ones stay in use.
func (i *Identity) Renew(ctx context.Context, issue Issuer) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return fmt.Errorf("certificate request: %w", err)
	}
	certs, err := issue(ctx, csr)
	if err != nil {
		return err
	}
	m, err := newMaterial(key, certs)
	if err != nil {
		return fmt.Errorf("issued certificate: %w", err)
	}
	if i.path != "" {
		keyDER, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			return err
		}
		var file bytes.Buffer
		pem.Encode(&file, &pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}) //nolint:errcheck // a bytes.Buffer
		for _, der := range certs.Chain {
			pem.Encode(&file, &pem.Block{Type: "CERTIFICATE", Bytes: der}) //nolint:errcheck // a bytes.Buffer
		}
		for _, der := range certs.Roots {
			pem.Encode(&file, &pem.Block{Type: "TRUSTED ROOT", Bytes: der}) //nolint:errcheck // a bytes.Buffer
		}
		if err := WriteFile(i.path, file.Bytes()); err != nil {
			return err
		}
	}
	i.current.Store(m)
	return nil
}

// Keep renews at a third of each certificate's life, with up to a tenth of jitter, until ctx ends; then it
// returns ctx's cause. A failed renewal goes to report and is tried again after 1 s to 10 min.
func (i *Identity) Keep(ctx context.Context, issue Issuer, report func(error)) error {
	renewed := false
	for failures := 0; ; {
		wait := time.Until(i.RenewAt())
		if renewed { // whatever the clocks say: a new certificate is good for a while
			floor := time.Minute
			if life := i.life(); life > 0 {
				floor = min(floor, life/3)
			}
			wait = max(wait, floor)
		}
		if failures > 0 {
			wait = min(time.Duration(math.Exp2(float64(min(failures, 20)-1)))*time.Second, 10*time.Minute)
			wait = wait/2 + mathrand.N(wait/2)
		} else if wait > 0 {
			wait += mathrand.N(wait/10 + 1)
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(wait):
		}
		if err := i.Renew(ctx, issue); err != nil {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			failures++
			report(fmt.Errorf("renew the certificate of %s, which expires at %s: %w", i.ID(), i.NotAfter().Format(time.RFC3339), err))
			continue
		}
		failures, renewed = 0, true
	}
}

// ID is the name on the certificate.
func (i *Identity) ID() ID { return i.current.Load().id }

// NotAfter is when the certificate expires.
func (i *Identity) NotAfter() time.Time { return i.current.Load().leaf.NotAfter }

// RenewAt is when a third of the certificate's life has passed.
func (i *Identity) RenewAt() time.Time { return i.NotAfter().Add(-i.life() * 2 / 3) }

// life is from when the certificate was issued: it is dated back by clockSkew.
func (i *Identity) life() time.Duration {
	leaf := i.current.Load().leaf
	return leaf.NotAfter.Sub(leaf.NotBefore) - clockSkew
}

// Roots are the trusted CA certificates, DER.
func (i *Identity) Roots() [][]byte { return i.current.Load().ders }

// ServerConfig asks for a client certificate but lets clients without one connect (Join needs none); one
// that is shown must be signed by the roots and not have expired longer ago than [RenewGrace]. Each RPC
// has to ask [PeerOf]. It takes new certificates and roots as they come.
func (i *Identity) ServerConfig() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		NextProtos: []string{"h2"},
		ClientAuth: tls.RequestClientCert, // verified below: crypto/tls would refuse an expired one
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			return &i.current.Load().cert, nil
		},
		VerifyConnection: func(state tls.ConnectionState) error {
			if len(state.PeerCertificates) == 0 {
				return nil
			}
			_, err := verify(state.PeerCertificates, i.current.Load().roots, x509.ExtKeyUsageClientAuth, RenewGrace)
			return err
		},
	}
}

// ClientConfig shows the certificate and accepts the control plane of the same trust domain alone, whatever
// its host name is. It takes new certificates and roots as they come.
func (i *Identity) ClientConfig() *tls.Config {
	return &tls.Config{
		MinVersion:         tls.VersionTLS13,
		NextProtos:         []string{"h2"},
		InsecureSkipVerify: true, // replaced by VerifyConnection: it is the SPIFFE ID that counts, not a host name
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return &i.current.Load().cert, nil
		},
		VerifyConnection: func(state tls.ConnectionState) error {
			m := i.current.Load()
			_, err := verifyControlPlane(state.PeerCertificates, m.roots, m.id.TrustDomain)
			return err
		},
	}
}

// WriteFile writes data to path so that path holds either the old bytes or the new ones, whenever the
// process or the machine stops. The file's mode is 0600; a missing directory is made with 0700.
func WriteFile(path string, data []byte) error {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, "."+filepath.Base(path)+".*") // mode 0600
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	err = errors.Join(err, f.Sync())
	err = errors.Join(err, f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("write %s: %w", path, err), os.Remove(f.Name()))
	}
	return syncDir(dir) // the rename itself must last
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
