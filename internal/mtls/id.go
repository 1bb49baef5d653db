package mtls

import (
	"crypto/x509"
	"fmt"
	"net/url"
	"strings"
)

// ID is a SPIFFE ID: a proxy's, `spiffe://<trust domain>/group/<group>/proxy/<proxy>`, or with Group and
// Proxy empty the control plane's, `spiffe://<trust domain>/controlplane`.
type ID struct {
	TrustDomain string
	Group       string
	Proxy       string
}

// ControlPlane tells whether the ID is the control plane's.
func (id ID) ControlPlane() bool { return id.Group == "" && id.Proxy == "" }

// String is the ID as a URI.
func (id ID) String() string {
	if id.ControlPlane() {
		return "spiffe://" + id.TrustDomain + "/controlplane"
	}
	return "spiffe://" + id.TrustDomain + "/group/" + id.Group + "/proxy/" + id.Proxy
}

// ParseID is strict: what it accepts, String writes back byte for byte.
func ParseID(uri string) (ID, error) {
	rest, ok := strings.CutPrefix(uri, "spiffe://")
	if !ok {
		return ID{}, fmt.Errorf("SPIFFE ID %q: the scheme must be spiffe", uri)
	}
	parts := strings.Split(rest, "/")
	var id ID
	switch {
	case len(parts) == 2 && parts[1] == "controlplane":
		id = ID{TrustDomain: parts[0]}
	case len(parts) == 5 && parts[1] == "group" && parts[3] == "proxy":
		id = ID{TrustDomain: parts[0], Group: parts[2], Proxy: parts[4]}
		if id.Group == "" || id.Proxy == "" {
			return ID{}, fmt.Errorf("SPIFFE ID %q: group and proxy must have names", uri)
		}
	default:
		return ID{}, fmt.Errorf("SPIFFE ID %q: the path must be /controlplane or /group/<group>/proxy/<id>", uri)
	}
	return id, id.check()
}

// check holds the three parts to what SPIFFE allows, so that no part can pose as two.
func (id ID) check() error {
	if id.TrustDomain == "" || strings.IndexFunc(id.TrustDomain, func(r rune) bool { return !nameRune(r) || 'A' <= r && r <= 'Z' }) >= 0 {
		return fmt.Errorf("trust domain %q: use lower-case letters, digits, dots, dashes and underscores", id.TrustDomain)
	}
	if id.ControlPlane() {
		return nil
	}
	for _, part := range []struct{ what, name string }{{"group", id.Group}, {"proxy", id.Proxy}} {
		if part.name == "" || part.name == "." || part.name == ".." || len(part.name) > 255 || strings.IndexFunc(part.name, func(r rune) bool { return !nameRune(r) }) >= 0 {
			return fmt.Errorf("%s name %q: use letters, digits, dots, dashes and underscores", part.what, part.name)
		}
	}
	return nil
}

func nameRune(r rune) bool {
	return 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' || r == '-' || r == '_' || r == '.'
}

func (id ID) url() *url.URL {
	path := strings.TrimPrefix(id.String(), "spiffe://"+id.TrustDomain)
	return &url.URL{Scheme: "spiffe", Host: id.TrustDomain, Path: path}
}

// certificateID reads the one URI name that an X.509-SVID has.
func certificateID(c *x509.Certificate) (ID, error) {
	if len(c.URIs) != 1 {
		return ID{}, fmt.Errorf("certificate %s has %d URI names, an identity has exactly one", c.SerialNumber, len(c.URIs))
	}
	return ParseID(c.URIs[0].String())
}
