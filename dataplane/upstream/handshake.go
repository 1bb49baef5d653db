package upstream

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"time"

	"github.com/sluicegate/sluice/internal/policy"
)

// HandshakeError is TLS that did not come about, in words that clients and operators can act on. The target saw nothing
// of the request.
type HandshakeError struct {
	// Reason is a sentence about the target, e.g. `its certificate has expired on 2026-01-02 15:04 UTC`. It holds names
	// of hosts and no addresses.
	Reason string
	Err    error
}

func (e *HandshakeError) Error() string { return "TLS: " + e.Reason + ": " + e.Err.Error() }
func (e *HandshakeError) Unwrap() error { return e.Err }

// hungUp is the HandshakeError of a target that ended the connection without a word, nil if err is no such.
func hungUp(err error) *HandshakeError {
	if errors.Is(err, io.EOF) || brokeOff(err) {
		return &HandshakeError{"it closed the connection during the handshake", err}
	}
	return nil
}

// handshakeError tells what kept TLS with a target from coming about, nil if err is about something else.
func handshakeError(cfg *tls.Config, err error) *HandshakeError {
	if reason := handshakeReason(cfg, err, time.Now()); reason != "" {
		return &HandshakeError{reason, err}
	}
	return nil
}

func handshakeReason(cfg *tls.Config, err error, now time.Time) string {
	if invalid, ok := errors.AsType[x509.CertificateInvalidError](err); ok {
		return invalidReason(invalid, err, now)
	}
	if host, ok := errors.AsType[x509.HostnameError](err); ok {
		if _, err := netip.ParseAddr(host.Host); err == nil {
			return "its certificate does not name the address that it has; set backendTLS.hostname to a name that it has, or backendTLS.subjectAltNames"
		}
		return fmt.Sprintf("its certificate does not name %q", host.Host)
	}
	if _, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		if cfg != nil && cfg.RootCAs != nil {
			return "its certificate is signed by an authority that is not in backendTLS.root"
		}
		return "its certificate is signed by an authority that this proxy does not know; name it in backendTLS.root"
	}
	if errors.Is(err, policy.ErrSubjectAltNames) {
		return "its certificate carries none of backendTLS.subjectAltNames"
	}
	if record, ok := errors.AsType[tls.RecordHeaderError](err); ok {
		if strings.HasPrefix(string(record.RecordHeader[:]), "HTTP/") {
			return "it speaks plain HTTP on this port, not TLS"
		}
		return "it speaks no TLS on this port"
	}
	if reason := alertReason(cfg, err, now); reason != "" {
		return reason
	}
	switch message := err.Error(); {
	case strings.Contains(message, "unsupported protocol version"), strings.Contains(message, "no supported versions"):
		return "it speaks no version of TLS that backendTLS.minVersion allows"
	case strings.Contains(message, "ALPN"):
		return "it speaks none of the protocols in backendTLS.alpn"
	case strings.Contains(message, "client conn could not be established"): // net/http found an HTTP/2 connection dead, and has forgotten why
		if showsCertificate(cfg) {
			return "it ended the connection before it took a request, as servers do that refused the client certificate in backendTLS.cert" + ownExpiry(cfg, now)
		}
		return "it ended the connection before it took a request, as a server does that asks for a client certificate; set backendTLS.cert and backendTLS.key if it does"
	}
	return ""
}

// invalidReason names the day where that is what is wrong: it is the fault that befalls what worked before.
func invalidReason(e x509.CertificateInvalidError, err error, now time.Time) string {
	whose := "its certificate"
	if chain, ok := errors.AsType[*tls.CertificateVerificationError](err); ok && len(chain.UnverifiedCertificates) > 0 && e.Cert != nil && !chain.UnverifiedCertificates[0].Equal(e.Cert) {
		whose = "the certificate of an authority that signed its own"
	}
	switch {
	case e.Reason == x509.Expired && e.Cert != nil && now.Before(e.Cert.NotBefore):
		return whose + " is not valid before " + day(e.Cert.NotBefore)
	case e.Reason == x509.Expired && e.Cert != nil:
		return whose + " has expired on " + day(e.Cert.NotAfter)
	case e.Reason == x509.IncompatibleUsage:
		return whose + " is not made for servers"
	}
	return whose + " is not valid"
}

// day is a time as messages about certificates name it.
func day(t time.Time) string { return t.UTC().Format("2006-01-02 15:04 MST") }

// Alerts (RFC 8446, section 6) that a server sends about the client's certificate, and others that end a handshake.
const (
	alertHandshakeFailure     tls.AlertError = 40
	alertBadCertificate       tls.AlertError = 42
	alertUnsupported          tls.AlertError = 43
	alertRevoked              tls.AlertError = 44
	alertExpired              tls.AlertError = 45
	alertUnknownCertificate   tls.AlertError = 46
	alertUnknownCA            tls.AlertError = 48
	alertAccessDenied         tls.AlertError = 49
	alertDecryptError         tls.AlertError = 51
	alertProtocolVersion      tls.AlertError = 70
	alertInsufficientSecurity tls.AlertError = 71
	alertUnrecognizedName     tls.AlertError = 112
	alertCertificateRequired  tls.AlertError = 116
	alertNoProtocol           tls.AlertError = 120
)

// alertReason reads what the target said when it ended a handshake. crypto/tls has a type of its own for alerts, which
// says the same.
func alertReason(cfg *tls.Config, err error, now time.Time) string {
	op, ok := errors.AsType[*net.OpError](err)
	if !ok || op.Op != "remote error" {
		return ""
	}
	said := func(alerts ...tls.AlertError) bool {
		for _, a := range alerts {
			if op.Err.Error() == a.Error() {
				return true
			}
		}
		return false
	}
	shown := showsCertificate(cfg)
	switch {
	case said(alertCertificateRequired), !shown && said(alertBadCertificate, alertHandshakeFailure, alertAccessDenied):
		if shown {
			return "it asks for a client certificate, and takes none by the authorities that signed backendTLS.cert"
		}
		if said(alertHandshakeFailure) {
			return "it refuses the handshake, as a server does that asks for a client certificate; set backendTLS.cert and backendTLS.key if it does"
		}
		return "it asks for a client certificate; set backendTLS.cert and backendTLS.key"
	case said(alertBadCertificate, alertUnsupported, alertRevoked, alertExpired, alertUnknownCertificate, alertUnknownCA, alertAccessDenied, alertDecryptError):
		return "it refused the client certificate in backendTLS.cert (" + strings.TrimPrefix(op.Err.Error(), "tls: ") + ")" + ownExpiry(cfg, now)
	case said(alertProtocolVersion, alertInsufficientSecurity):
		return "it speaks no version of TLS that backendTLS.minVersion allows, or no cipher in common"
	case said(alertUnrecognizedName):
		return "it does not know the name that it is called by; set backendTLS.hostname to one that it knows"
	case said(alertNoProtocol):
		return "it speaks none of the protocols in backendTLS.alpn"
	case said(alertHandshakeFailure):
		return "it refuses the handshake, as a server does that takes no client certificate by the authorities that signed backendTLS.cert"
	}
	return ""
}

func showsCertificate(cfg *tls.Config) bool { return cfg != nil && len(cfg.Certificates) > 0 }

// ownExpiry says that the client certificate has expired, if it has: servers need not say why they refuse one.
func ownExpiry(cfg *tls.Config, now time.Time) string {
	if !showsCertificate(cfg) || cfg.Certificates[0].Leaf == nil || !now.After(cfg.Certificates[0].Leaf.NotAfter) {
		return ""
	}
	return ", which has expired on " + day(cfg.Certificates[0].Leaf.NotAfter)
}

// refusedLate is the HandshakeError of a connection on which the target has sent nothing yet but an alert that ends
// handshakes, nil if err is no such. In TLS 1.3 a client is done before the server has looked at its certificate, so
// that a refusal is the first thing it reads, when the request is on its way already. But the server's handshake never
// came to its end, and it hands no data on before that (RFC 8446, section 4.4.4): the request was not processed.
func refusedLate(cfg *tls.Config, err error) *HandshakeError {
	if alertReason(cfg, err, time.Now()) == "" {
		return nil
	}
	return handshakeError(cfg, err)
}

// brokeOff reports whether a write failed because the target had ended the connection: why may be there to be read.
func brokeOff(err error) bool {
	return errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, io.ErrClosedPipe)
}
