package policy

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"net/netip"

	"github.com/google/cel-go/common/types"
)

var errNoCertificate = errors.New("source: the caller showed no certificate that the listener verified")

// hasCertificate reports whether the caller showed a certificate that the listener verified. Where it was another proxy's listener it does not
// tell: no proxy takes a certificate on another's word, and a rule that asks fails.
func (a *activation) hasCertificate() bool {
	if r := a.call.HTTP; r != nil && r.TLS != nil && len(r.TLS.PeerCertificates) > 0 && len(r.TLS.VerifiedChains) == 0 {
		a.unsure = true
	}
	return a.certificate() != nil
}

// certificate is the caller's own, nil unless the listener verified it.
func (a *activation) certificate() *x509.Certificate {
	r := a.call.HTTP
	if r == nil || r.TLS == nil || len(r.TLS.VerifiedChains) == 0 || len(r.TLS.VerifiedChains[0]) == 0 {
		return nil
	}
	return r.TLS.VerifiedChains[0][0]
}

// getSource reads the connection's peer. Proxies in between are peers: X-Forwarded-For is what anyone may write.
func (a *activation) getSource(field string) (any, error) {
	if a.call.HTTP == nil {
		return nil, errNoRequest
	}
	peer, err := netip.ParseAddrPort(a.call.HTTP.RemoteAddr)
	if err != nil {
		return nil, unreadable("source, and the peer's address is not known")
	}
	if field == "port" {
		return types.Int(peer.Port()), nil
	}
	return types.String(peer.Addr().Unmap().WithZone("").String()), nil
}

// certificateText is a field of source that the caller's certificate says. What it does not say is not set, and an error.
func certificateText(name string, of func(*x509.Certificate) string) field {
	absent := errors.New("source." + name + ": the caller's certificate has none")
	return field{types.StringType, varSource, func(a *activation) (any, error) {
		c := a.certificate()
		if c == nil {
			return nil, errNoCertificate
		}
		text := of(c)
		if text == "" {
			return nil, absent
		}
		return types.String(text), nil
	}, func(a *activation) bool {
		return a.hasCertificate() && of(a.certificate()) != ""
	}}
}

// spiffeID is the one URI of an X.509-SVID; "" for what is none (SPIFFE X509-SVID, section 2).
func spiffeID(c *x509.Certificate) string {
	if len(c.URIs) != 1 || c.URIs[0].Scheme != "spiffe" {
		return ""
	}
	return c.URIs[0].String()
}

// subjectAltNames are all names of a certificate, of whatever type.
func subjectAltNames(c *x509.Certificate) []string {
	names := append([]string{}, c.DNSNames...)
	for _, u := range c.URIs {
		names = append(names, u.String())
	}
	for _, ip := range c.IPAddresses {
		names = append(names, ip.String())
	}
	return append(names, c.EmailAddresses...)
}

func fingerprint(c *x509.Certificate) string {
	sum := sha256.Sum256(c.Raw)
	return hex.EncodeToString(sum[:])
}
