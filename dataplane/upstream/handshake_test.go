package upstream

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sluicegate/sluice/dataplane/snapshot"
	"github.com/sluicegate/sluice/internal/policy"
	policyv1 "github.com/sluicegate/sluice/proto/gen/sluice/policy/v1"
	xdsv1 "github.com/sluicegate/sluice/proto/gen/sluice/xds/v1"
)

// issuer signs certificates; an issuer that another signed is an intermediate one.
type issuer struct {
	cert *x509.Certificate
	key  crypto.Signer
	up   *issuer
}

func newIssuer(t *testing.T, name string, up *issuer, change func(*x509.Certificate)) *issuer {
	t.Helper()
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	if change != nil {
		change(template)
	}
	key := newKey(t, "ecdsa")
	cert := sign(t, template, key, up)
	return &issuer{cert, key, up}
}

func newKey(t *testing.T, kind string) crypto.Signer {
	t.Helper()
	var key crypto.Signer
	var err error
	switch kind {
	case "rsa":
		key, err = rsa.GenerateKey(rand.Reader, 2048)
	case "ed25519":
		_, key, err = ed25519.GenerateKey(rand.Reader)
	default:
		key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	}
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func sign(t *testing.T, template *x509.Certificate, key crypto.Signer, by *issuer) *x509.Certificate {
	t.Helper()
	parent, signer := template, key
	if by != nil {
		parent, signer = by.cert, by.key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// issue makes a certificate for mcp.test, 127.0.0.1 and a SPIFFE id, with the chain up to the root but without it.
func (i *issuer) issue(t *testing.T, kind string, change func(*x509.Certificate)) tls.Certificate {
	t.Helper()
	template := &x509.Certificate{SerialNumber: big.NewInt(7), Subject: pkix.Name{CommonName: "leaf"}, DNSNames: []string{"mcp.test"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		URIs: []*url.URL{{Scheme: "spiffe", Host: "test", Path: "/mcp"}}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
	if change != nil {
		change(template)
	}
	key := newKey(t, kind)
	leaf := sign(t, template, key, i)
	pair := tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: key, Leaf: leaf}
	for up := i; up.up != nil; up = up.up {
		pair.Certificate = append(pair.Certificate, up.cert.Raw)
	}
	return pair
}

func (i *issuer) pem() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: i.cert.Raw})
}

func (i *issuer) pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(i.cert)
	return pool
}

// pemPair is what operators give.
func pemPair(t *testing.T, pair tls.Certificate) (cert, key *policyv1.Credential) {
	t.Helper()
	var chain bytes.Buffer
	for _, der := range pair.Certificate {
		_ = pem.Encode(&chain, &pem.Block{Type: "CERTIFICATE", Bytes: der})
	}
	der, err := x509.MarshalPKCS8PrivateKey(pair.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	value := func(v string) *policyv1.Credential {
		return &policyv1.Credential{Source: &policyv1.Credential_Value{Value: v}}
	}
	return value(chain.String()), value(string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})))
}

func backendTLS(t *testing.T, to string, b *policyv1.BackendTls) *snapshot.Target {
	t.Helper()
	compiled, err := policy.CompileTarget(&xdsv1.EffectivePolicy{Policies: &policyv1.Policies{BackendTls: b}}, policy.HTTP, policy.Resolver{})
	if err != nil {
		t.Fatal(err)
	}
	out := httpTarget(t, to, nil)
	out.Policy, out.Digest = compiled, compiled.Digest()
	return out
}

// What may be wrong with TLS towards a target: each fault is told in its own words, without addresses, and the request
// counts as one that the target never saw. It holds for HTTP/1.1 and HTTP/2, TLS 1.2 and 1.3.
func TestHandshakes(t *testing.T) {
	root, other := newIssuer(t, "root", nil, nil), newIssuer(t, "other", nil, nil)
	middle := newIssuer(t, "middle", root, nil)
	stale := newIssuer(t, "stale", root, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) })
	past := func(c *x509.Certificate) {
		c.NotAfter = time.Date(2026, 1, 2, 15, 4, 0, 0, time.UTC)
		c.NotBefore = c.NotAfter.Add(-time.Hour)
	}
	future := func(c *x509.Certificate) {
		c.NotBefore = time.Date(2126, 1, 2, 15, 4, 0, 0, time.UTC)
		c.NotAfter = c.NotBefore.Add(time.Hour)
	}
	unnamed := func(c *x509.Certificate) { c.IPAddresses = nil }
	mutual := func(c *tls.Config) { c.ClientAuth, c.ClientCAs = tls.RequireAndVerifyClientCert, root.pool() }
	saying := func(alert tls.AlertError) func(*tls.Config) { // as a server does that knows of revocation
		return func(c *tls.Config) {
			c.ClientAuth = tls.RequireAnyClientCert
			c.VerifyConnection = func(tls.ConnectionState) error { return alert }
		}
	}
	rooted := func(b *policyv1.BackendTls) *policyv1.BackendTls {
		b.Root = &policyv1.Credential{Source: &policyv1.Credential_Value{Value: string(root.pem())}}
		return b
	}
	as := func(b *policyv1.BackendTls, pair tls.Certificate) *policyv1.BackendTls {
		b.Cert, b.Key = pemPair(t, pair)
		return b
	}
	good := root.issue(t, "ecdsa", nil)
	for _, tt := range []struct {
		name   string
		server tls.Certificate
		policy *policyv1.BackendTls
		change func(*tls.Config)
		want   string // of the reason; empty: works
	}{
		{"root", good, rooted(&policyv1.BackendTls{}), nil, ""},
		{"RSA", root.issue(t, "rsa", nil), rooted(&policyv1.BackendTls{}), nil, ""},
		{"Ed25519", root.issue(t, "ed25519", nil), rooted(&policyv1.BackendTls{}), nil, ""},
		{"a chain", middle.issue(t, "ecdsa", nil), rooted(&policyv1.BackendTls{}), nil, ""},
		{"a given root replaces the system's", good, &policyv1.BackendTls{Root: &policyv1.Credential{Source: &policyv1.Credential_Value{Value: string(other.pem())}}}, nil, "not in backendTLS.root"},
		{"two roots", good, &policyv1.BackendTls{Root: &policyv1.Credential{Source: &policyv1.Credential_Value{Value: "# both\n" + string(other.pem()) + string(root.pem())}}}, nil, ""},
		{"the system's roots", good, &policyv1.BackendTls{}, nil, "does not know; name it in backendTLS.root"},
		{"no intermediate", func() tls.Certificate {
			c := middle.issue(t, "ecdsa", nil)
			c.Certificate = c.Certificate[:1]
			return c
		}(), rooted(&policyv1.BackendTls{}), nil, "not in backendTLS.root"},
		{"expired", root.issue(t, "ecdsa", past), rooted(&policyv1.BackendTls{}), nil, "its certificate has expired on 2026-01-02 15:04 UTC"},
		{"expired, name not checked", root.issue(t, "ecdsa", past), rooted(&policyv1.BackendTls{InsecureHost: true}), nil, "its certificate has expired on 2026-01-02 15:04 UTC"},
		{"expired, not checked", root.issue(t, "ecdsa", past), &policyv1.BackendTls{Insecure: true}, nil, ""},
		{"not yet valid", root.issue(t, "ecdsa", future), rooted(&policyv1.BackendTls{}), nil, "is not valid before 2126-01-02 15:04 UTC"},
		{"authority expired", stale.issue(t, "ecdsa", nil), rooted(&policyv1.BackendTls{}), nil, "an authority that signed its own has expired"},
		{"for clients", root.issue(t, "ecdsa", func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} }), rooted(&policyv1.BackendTls{}), nil, "not made for servers"},
		{"another name", good, rooted(&policyv1.BackendTls{Hostname: "other.test"}), nil, `does not name "other.test"`},
		{"no address", root.issue(t, "ecdsa", unnamed), rooted(&policyv1.BackendTls{}), nil, "does not name the address"},
		{"no address, but the name", root.issue(t, "ecdsa", unnamed), rooted(&policyv1.BackendTls{Hostname: "mcp.test"}), nil, ""},
		{"no address, name not checked", root.issue(t, "ecdsa", unnamed), rooted(&policyv1.BackendTls{InsecureHost: true}), nil, ""},
		{"pinned URI", root.issue(t, "ecdsa", unnamed), rooted(&policyv1.BackendTls{SubjectAltNames: []string{"spiffe://test/mcp"}}), nil, ""},
		{"pinned IP", good, rooted(&policyv1.BackendTls{SubjectAltNames: []string{"127.0.0.1"}}), nil, ""},
		{"pinned to others", good, rooted(&policyv1.BackendTls{SubjectAltNames: []string{"spiffe://test/other", "other.test", "127.0.0.2"}}), nil, "carries none of backendTLS.subjectAltNames"},
		{"a client certificate", good, as(rooted(&policyv1.BackendTls{}), root.issue(t, "ecdsa", nil)), mutual, ""},
		{"an RSA client certificate", good, as(rooted(&policyv1.BackendTls{}), root.issue(t, "rsa", nil)), mutual, ""},
		{"an Ed25519 client certificate with a chain", good, as(rooted(&policyv1.BackendTls{}), middle.issue(t, "ed25519", nil)), mutual, ""},
		{"no client certificate", good, rooted(&policyv1.BackendTls{}), mutual, "asks for a client certificate"},
		{"a client certificate of others", good, as(rooted(&policyv1.BackendTls{}), other.issue(t, "ecdsa", nil)), mutual, "client certificate"},
		{"an expired client certificate", good, as(rooted(&policyv1.BackendTls{}), root.issue(t, "ecdsa", past)), mutual, "which has expired on 2026-01-02"},
		{"revoked", good, as(rooted(&policyv1.BackendTls{}), root.issue(t, "ecdsa", nil)), saying(alertRevoked), "refused the client certificate in backendTLS.cert"},
		{"no version in common", good, rooted(&policyv1.BackendTls{MinVersion: "1.3"}), func(c *tls.Config) { c.MaxVersion = tls.VersionTLS12 }, "no version of TLS that backendTLS.minVersion allows"},
		{"an old server", good, rooted(&policyv1.BackendTls{}), func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS11, tls.VersionTLS11 }, "no version of TLS that backendTLS.minVersion allows"},
		{"a name that it does not serve", good, rooted(&policyv1.BackendTls{Hostname: "mcp.test"}), func(c *tls.Config) {
			c.Certificates, c.GetCertificate = nil, func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return nil, nil }
		}, "does not know the name"},
		{"no protocol in common", good, rooted(&policyv1.BackendTls{Alpn: []string{"http/1.1"}}), func(c *tls.Config) { c.NextProtos = []string{"acme"} }, "none of the protocols in backendTLS.alpn"},
	} {
		for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
			for _, h2 := range []bool{false, true} {
				t.Run(tt.name+" "+tls.VersionName(version)+map[bool]string{true: " h2"}[h2], func(t *testing.T) {
					var seen atomic.Int64
					srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
						seen.Add(1)
						_, _ = io.Copy(w, r.Body)
					}))
					srv.Config.ErrorLog, srv.EnableHTTP2 = log.New(io.Discard, "", 0), h2
					srv.TLS = &tls.Config{Certificates: []tls.Certificate{tt.server}, MaxVersion: version}
					if tt.change != nil {
						tt.change(srv.TLS)
					}
					started := srv.TLS
					srv.StartTLS()
					defer srv.Close()
					if len(started.Certificates) == 0 {
						srv.TLS.Certificates = nil // httptest puts its own in
					}
					b := tt.policy
					if h2 && b.Alpn == nil {
						b.Alpn = []string{"h2"}
						defer func() { b.Alpn = nil }()
					}
					res, err := manager(t, nil).Transport(backendTLS(t, srv.URL+"/mcp", b)).Do(limited(t), post(`{"a":1}`))
					if tt.want == "" {
						if err != nil {
							t.Fatal(err)
						}
						if got := text(t, res); got != `{"a":1}` {
							t.Errorf("got %q", got)
						}
						return
					}
					failed, ok := errors.AsType[*HandshakeError](err)
					if !ok || !strings.Contains(failed.Reason, tt.want) {
						t.Fatalf("%v, want %q", err, tt.want)
					}
					if strings.Contains(failed.Reason, "127.0.0.1") || strings.Contains(failed.Reason, "x509") {
						t.Errorf("%q names an address, or speaks Go", failed.Reason)
					}
					if !NotSent(err) || seen.Load() > 0 {
						t.Errorf("NotSent %v, and the target saw %d requests", NotSent(err), seen.Load())
					}
				})
			}
		}
	}
}

// A large request is still being written when the refusal of its certificate comes.
func TestRefusedWhileWriting(t *testing.T) {
	root := newIssuer(t, "root", nil, nil)
	srv := httptest.NewUnstartedServer(http.NotFoundHandler())
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	srv.TLS = &tls.Config{Certificates: []tls.Certificate{root.issue(t, "ecdsa", nil)}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: root.pool()}
	srv.StartTLS()
	defer srv.Close()
	b := &policyv1.BackendTls{Root: &policyv1.Credential{Source: &policyv1.Credential_Value{Value: string(root.pem())}}}
	for _, size := range []int{1 << 10, 60 << 10, 8 << 20} {
		_, err := manager(t, nil).Transport(backendTLS(t, srv.URL+"/mcp", b)).Do(limited(t), post(`"`+strings.Repeat("x", size)+`"`))
		if _, ok := errors.AsType[*HandshakeError](err); !ok || !NotSent(err) {
			t.Errorf("%d bytes: %v, NotSent %v", size, err, NotSent(err))
		}
	}
}

// TLS to a port that speaks something else, or hangs up.
func TestNoTLS(t *testing.T) {
	plain := httptest.NewServer(http.NotFoundHandler())
	defer plain.Close()
	talks := func(say string) string {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				_, _ = c.Read(make([]byte, 4096))
				_, _ = io.WriteString(c, say)
				c.Close()
			}
		}()
		return "https://" + l.Addr().String()
	}
	for to, want := range map[string]string{
		"https" + strings.TrimPrefix(plain.URL, "http"): "speaks plain HTTP on this port",
		talks("220 mail.test ESMTP\r\n"):                "speaks no TLS on this port",
		talks(""):                                       "closed the connection during the handshake",
	} {
		for _, alpn := range [][]string{nil, {"h2"}} {
			_, err := manager(t, nil).Transport(backendTLS(t, to+"/mcp", &policyv1.BackendTls{Alpn: alpn})).Do(limited(t), post(`{}`))
			failed, ok := errors.AsType[*HandshakeError](err)
			if !ok || !strings.Contains(failed.Reason, want) || !NotSent(err) {
				t.Errorf("alpn %v: %v, want %q", alpn, err, want)
			}
		}
	}
}
