package policy

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strings"

	policyv1 "github.com/sluicegate/sluice/proto/gen/sluice/policy/v1"
)

func compileTLS(b *policyv1.BackendTls, r Resolver, field string, errs *problems) *tls.Config {
	cfg := &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"}, ServerName: b.GetHostname()}
	switch b.GetMinVersion() {
	case "", "1.2":
	case "1.3":
		cfg.MinVersion = tls.VersionTLS13
	default:
		errs.add(field+".minVersion", "%q is no TLS version to ask for; write \"1.2\" or \"1.3\"", b.GetMinVersion())
	}
	if h := b.GetHostname(); h != "" && !validHost(h) {
		errs.add(field+".hostname", "%q is no host name; write a name without scheme, port or path", h)
	}
	if len(b.GetAlpn()) > 0 {
		cfg.NextProtos = slices.Clone(b.GetAlpn())
		for i, p := range b.GetAlpn() {
			if p != "h2" && p != "http/1.1" { // a target could choose it, and would then be spoken to in another
				errs.add(fmt.Sprintf("%s.alpn[%d]", field, i), "%q is no protocol that the proxy speaks; write h2 or http/1.1", p)
			} else if slices.Index(b.GetAlpn(), p) < i {
				errs.add(fmt.Sprintf("%s.alpn[%d]", field, i), "%q is given twice", p)
			}
		}
	}
	if b.GetRoot() != nil {
		cfg.RootCAs = compileRoots(b.GetRoot(), r, field+".root", errs)
	}
	if pair := compileKeyPair(b, r, field, errs); pair != nil {
		cfg.Certificates = []tls.Certificate{*pair}
	}
	sans := compileSubjectAltNames(b.GetSubjectAltNames(), field, errs)
	checkContradictions(b, field, errs)

	// crypto/tls either checks chain and name or nothing, so what lies between is ours to check.
	// VerifyConnection, unlike VerifyPeerCertificate, also runs when a session is resumed.
	switch roots := cfg.RootCAs; {
	case b.GetInsecure():
		cfg.InsecureSkipVerify = true
	case b.GetInsecureHost():
		cfg.InsecureSkipVerify = true
		cfg.VerifyConnection = func(s tls.ConnectionState) error { return verifyChain(s, roots) }
	case len(sans) > 0:
		cfg.InsecureSkipVerify = true
		cfg.VerifyConnection = func(s tls.ConnectionState) error {
			if err := verifyChain(s, roots); err != nil {
				return err
			}
			return verifyNames(s.PeerCertificates[0], sans)
		}
	}
	return cfg
}

// checkContradictions refuses settings that another one makes void: they would look like protection.
func checkContradictions(b *policyv1.BackendTls, field string, errs *problems) {
	if b.GetInsecure() && b.GetRoot() != nil {
		errs.add(field+".root", "is not looked at with `insecure: true`; remove one of them")
	}
	if b.GetInsecure() && len(b.GetSubjectAltNames()) > 0 {
		errs.add(field+".subjectAltNames", "are not looked at with `insecure: true`; remove one of them")
	}
	if !b.GetInsecure() && b.GetInsecureHost() && len(b.GetSubjectAltNames()) > 0 {
		errs.add(field+".subjectAltNames", "are not looked at with `insecureHost: true`; remove one of them")
	}
}

func compileSubjectAltNames(names []string, field string, errs *problems) []string {
	for i, n := range names {
		if n == "" || strings.ContainsAny(n, " \t\r\n") {
			errs.add(fmt.Sprintf("%s.subjectAltNames[%d]", field, i), "%q is no DNS name, IP address or URI", n)
		}
	}
	return names
}

// verifyChain does what crypto/tls does where it checks by itself, and fails in the same way.
func verifyChain(s tls.ConnectionState, roots *x509.CertPool) error {
	if len(s.PeerCertificates) == 0 {
		return errors.New("the target showed no certificate")
	}
	opts := x509.VerifyOptions{Roots: roots, Intermediates: x509.NewCertPool()}
	for _, c := range s.PeerCertificates[1:] {
		opts.Intermediates.AddCert(c)
	}
	if _, err := s.PeerCertificates[0].Verify(opts); err != nil {
		return &tls.CertificateVerificationError{UnverifiedCertificates: s.PeerCertificates, Err: err}
	}
	return nil
}

// ErrSubjectAltNames says that the target's certificate carries none of the names that backendTLS pins.
var ErrSubjectAltNames = errors.New("the target's certificate carries none of the subjectAltNames")

// verifyNames accepts a certificate that carries one of names. A host matches as in TLS, so also a wildcard
// of the certificate; a wildcard among names matches only the same one; a URI matches whole.
func verifyNames(cert *x509.Certificate, names []string) error {
	for _, n := range names {
		if ip, err := netip.ParseAddr(n); err == nil {
			if cert.VerifyHostname("["+ip.String()+"]") == nil {
				return nil
			}
			continue
		}
		if strings.Contains(n, ":") { // as no host name has
			if slices.ContainsFunc(cert.URIs, func(u *url.URL) bool { return u.String() == n }) {
				return nil
			}
			continue
		}
		if cert.VerifyHostname(n) == nil || slices.ContainsFunc(cert.DNSNames, func(d string) bool { return strings.EqualFold(d, n) }) {
			return nil
		}
	}
	return fmt.Errorf("%w %s", ErrSubjectAltNames, quoteList(names))
}

func validHost(h string) bool {
	if _, err := netip.ParseAddr(h); err == nil {
		return true
	}
	return len(h) <= 253 && !strings.ContainsAny(h, "/:@?#[] \t\r\n") && !strings.HasPrefix(h, ".")
}
