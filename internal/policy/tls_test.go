package policy

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"net/url"
	"strings"
	"testing"
	"time"

	policyv1 "github.com/sluicegate/sluice/proto/gen/sluice/policy/v1"
	xdsv1 "github.com/sluicegate/sluice/proto/gen/sluice/xds/v1"
)

// authority is a certificate authority for tests.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  string
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test CA"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &authority{cert, key, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))}
}

// issue returns certificate and key as PEM.
func (a *authority) issue(t testing.TB, change func(*x509.Certificate)) (cert, key string) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(2), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		DNSNames: []string{"mcp.test", "*.wild.test"}, IPAddresses: []net.IP{net.IPv4(192, 0, 2, 7)}, URIs: []*url.URL{{Scheme: "spiffe", Host: "test", Path: "/mcp"}},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
	if change != nil {
		change(template)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, &k.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	kb, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})), string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: kb}))
}

func value(v string) *policyv1.Credential {
	return &policyv1.Credential{Source: &policyv1.Credential_Value{Value: v}}
}

func compileBackendTLS(b *policyv1.BackendTls, r Resolver) (*tls.Config, error) {
	target, err := CompileTarget(&xdsv1.EffectivePolicy{Policies: &policyv1.Policies{BackendTls: b}}, HTTP, r)
	return target.TLS(), err
}

func TestBackendTLS(t *testing.T) {
	ca, other := newAuthority(t), newAuthority(t)
	serverCert, serverKey := ca.issue(t, nil)
	expiredCert, expiredKey := ca.issue(t, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) })
	clientCert, clientKey := ca.issue(t, nil)

	for _, tt := range []struct {
		name   string
		policy *policyv1.BackendTls
		host   string            // the target's, where the policy has no hostname
		server func(*tls.Config) // changes the server
		want   string            // of the error; empty: works
		check  func(*testing.T, tls.ConnectionState)
	}{
		{name: "root", policy: &policyv1.BackendTls{Root: value(ca.pem)}, host: "mcp.test"},
		{name: "system roots know nothing of it", policy: &policyv1.BackendTls{}, host: "mcp.test", want: "unknown authority"},
		{name: "other root", policy: &policyv1.BackendTls{Root: value(other.pem)}, host: "mcp.test", want: "unknown authority"},
		{name: "wrong name", policy: &policyv1.BackendTls{Root: value(ca.pem)}, host: "elsewhere.test", want: "not elsewhere.test"},
		{name: "hostname replaces the host", policy: &policyv1.BackendTls{Root: value(ca.pem), Hostname: "mcp.test"}, host: "elsewhere.test",
			check: func(t *testing.T, s tls.ConnectionState) {
				if s.ServerName != "mcp.test" {
					t.Errorf("SNI %q", s.ServerName)
				}
			}},
		{name: "insecure", policy: &policyv1.BackendTls{Insecure: true}, host: "elsewhere.test"},
		{name: "insecureHost", policy: &policyv1.BackendTls{Root: value(ca.pem), InsecureHost: true}, host: "elsewhere.test"},
		{name: "insecureHost checks the chain", policy: &policyv1.BackendTls{Root: value(other.pem), InsecureHost: true}, host: "elsewhere.test", want: "unknown authority"},
		{name: "insecureHost checks the time", policy: &policyv1.BackendTls{Root: value(ca.pem), InsecureHost: true}, host: "mcp.test", want: "expired",
			server: func(c *tls.Config) { c.Certificates = []tls.Certificate{pair(t, expiredCert, expiredKey)} }},
		{name: "SAN: DNS name", policy: &policyv1.BackendTls{Root: value(ca.pem), SubjectAltNames: []string{"x.test", "MCP.test"}}, host: "elsewhere.test"},
		{name: "SAN: below a wildcard", policy: &policyv1.BackendTls{Root: value(ca.pem), SubjectAltNames: []string{"a.wild.test"}}, host: "elsewhere.test"},
		{name: "SAN: URI", policy: &policyv1.BackendTls{Root: value(ca.pem), SubjectAltNames: []string{"spiffe://test/mcp"}}, host: "elsewhere.test"},
		{name: "SAN: IP", policy: &policyv1.BackendTls{Root: value(ca.pem), SubjectAltNames: []string{"192.0.2.7"}}, host: "elsewhere.test"},
		{name: "SAN: none, though the host fits", policy: &policyv1.BackendTls{Root: value(ca.pem), SubjectAltNames: []string{"x.test", "192.0.2.8", "spiffe://test/mcp2"}}, host: "mcp.test", want: "carries none of the subjectAltNames"},
		{name: "SAN checks the chain", policy: &policyv1.BackendTls{Root: value(other.pem), SubjectAltNames: []string{"mcp.test"}}, host: "mcp.test", want: "unknown authority"},
		{name: "client certificate", policy: &policyv1.BackendTls{Root: value(ca.pem), Cert: value(clientCert), Key: value(clientKey)}, host: "mcp.test",
			server: func(c *tls.Config) { c.ClientAuth, c.ClientCAs = tls.RequireAndVerifyClientCert, pool(ca) }},
		{name: "no client certificate", policy: &policyv1.BackendTls{Root: value(ca.pem)}, host: "mcp.test", want: "certificate required",
			server: func(c *tls.Config) { c.ClientAuth, c.ClientCAs = tls.RequireAndVerifyClientCert, pool(ca) }},
		{name: "minVersion", policy: &policyv1.BackendTls{Root: value(ca.pem), MinVersion: "1.3"}, host: "mcp.test", want: "protocol version",
			server: func(c *tls.Config) { c.MaxVersion = tls.VersionTLS12 }},
		{name: "1.2 by default", policy: &policyv1.BackendTls{Root: value(ca.pem)}, host: "mcp.test", server: func(c *tls.Config) { c.MaxVersion = tls.VersionTLS12 }},
		{name: "alpn by default", policy: &policyv1.BackendTls{Root: value(ca.pem)}, host: "mcp.test", server: func(c *tls.Config) { c.NextProtos = []string{"h2", "http/1.1"} },
			check: func(t *testing.T, s tls.ConnectionState) {
				if s.NegotiatedProtocol != "http/1.1" {
					t.Errorf("protocol %q", s.NegotiatedProtocol)
				}
			}},
		{name: "alpn", policy: &policyv1.BackendTls{Root: value(ca.pem), Alpn: []string{"h2"}}, host: "mcp.test", server: func(c *tls.Config) { c.NextProtos = []string{"h2", "http/1.1"} },
			check: func(t *testing.T, s tls.ConnectionState) {
				if s.NegotiatedProtocol != "h2" {
					t.Errorf("protocol %q", s.NegotiatedProtocol)
				}
			}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cfg, err := compileBackendTLS(tt.policy, Resolver{})
			if err != nil {
				t.Fatal(err)
			}
			server := &tls.Config{Certificates: []tls.Certificate{pair(t, serverCert, serverKey)}}
			if tt.server != nil {
				tt.server(server)
			}
			state, err := handshake(cfg, tt.host, server)
			if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
				t.Fatalf("handshake: %v, want %q", err, tt.want)
			}
			if tt.check != nil {
				tt.check(t, state)
			}
		})
	}
}

func pair(t *testing.T, cert, key string) tls.Certificate {
	t.Helper()
	p, err := tls.X509KeyPair([]byte(cert), []byte(key))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func pool(a *authority) *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(a.cert)
	return p
}

// handshake connects as upstreams do, and exchanges a byte: in TLS 1.3 a client learns of a refused
// certificate at its first read.
func handshake(cfg *tls.Config, host string, server *tls.Config) (tls.ConnectionState, error) {
	l, err := tls.Listen("tcp", "127.0.0.1:0", server)
	if err != nil {
		return tls.ConnectionState{}, err
	}
	defer l.Close()
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		c.Write([]byte("x"))
		c.Read(make([]byte, 1))
	}()
	cfg = cfg.Clone()
	if cfg.ServerName == "" {
		cfg.ServerName = host
	}
	c, err := tls.Dial("tcp", l.Addr().String(), cfg)
	if err != nil {
		return tls.ConnectionState{}, err
	}
	defer c.Close()
	_, err = c.Read(make([]byte, 1))
	return c.ConnectionState(), err
}

func TestBackendTLSRefused(t *testing.T) {
	ca := newAuthority(t)
	cert, key := ca.issue(t, nil)
	_, otherKey := ca.issue(t, nil)
	for field, b := range map[string]*policyv1.BackendTls{
		"policies.backendTLS.root":               {Root: value("no PEM")},
		"policies.backendTLS.cert":               {Cert: value(cert)},
		"policies.backendTLS.key":                {Key: value(key)},
		"policies.backendTLS.cert#pair":          {Cert: value(cert), Key: value(otherKey)},
		"policies.backendTLS.minVersion":         {MinVersion: "1.1"},
		"policies.backendTLS.hostname":           {Hostname: "https://x"},
		"policies.backendTLS.alpn[0]":            {Alpn: []string{""}},
		"policies.backendTLS.subjectAltNames[1]": {SubjectAltNames: []string{"a", ""}},
		"policies.backendTLS.subjectAltNames":    {SubjectAltNames: []string{"a"}, InsecureHost: true},
		"policies.backendTLS.root#insecure":      {Root: value(ca.pem), Insecure: true},
	} {
		_, err := compileBackendTLS(b, Resolver{})
		want, _, _ := strings.Cut(field, "#")
		if all := FieldErrors(err); len(all) != 1 || all[0].Field != want {
			t.Errorf("%v: %v, want one at %s", b, err, want)
		}
		if err != nil && strings.Contains(err.Error(), "PRIVATE KEY") {
			t.Errorf("the error shows a key: %v", err)
		}
	}
}

// What is not known here compiles, and trusts nobody.
func TestBackendTLSUnknownRootTrustsNobody(t *testing.T) {
	ca := newAuthority(t)
	cert, key := ca.issue(t, nil)
	unknown := Resolver{File: func(string) ([]byte, error) { return nil, ErrUnknown }}
	cfg, err := compileBackendTLS(&policyv1.BackendTls{Root: &policyv1.Credential{Source: &policyv1.Credential_File{File: "/ca.pem"}}}, unknown)
	if err != nil {
		t.Fatal(err)
	}
	_, err = handshake(cfg, "mcp.test", &tls.Config{Certificates: []tls.Certificate{pair(t, cert, key)}})
	if _, ok := errors.AsType[x509.UnknownAuthorityError](err); !ok {
		t.Errorf("handshake: %v", err)
	}
}
