package mtls

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
)

// Proxies of one group talk to each other with the certificates that they show the control plane.

// PeerServerConfig lets unexpired proxies of the identity's own group in, and nobody else; [PeerOf] tells which one came. It takes new
// certificates and roots as they come.
func (i *Identity) PeerServerConfig() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		NextProtos: []string{"h2", "http/1.1"},
		ClientAuth: tls.RequireAnyClientCert, // verified below, by name
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			return &i.current.Load().cert, nil
		},
		VerifyConnection: func(state tls.ConnectionState) error {
			_, err := i.verifyPeer(state, x509.ExtKeyUsageClientAuth)
			return err
		},
	}
}

// PeerClientConfig accepts one proxy of the identity's own group alone, whatever its host name is.
func (i *Identity) PeerClientConfig(proxy string) *tls.Config {
	return &tls.Config{
		MinVersion:         tls.VersionTLS13,
		NextProtos:         []string{"h2", "http/1.1"},
		InsecureSkipVerify: true, // replaced by VerifyConnection: it is the SPIFFE ID that counts, not a host name
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return &i.current.Load().cert, nil
		},
		VerifyConnection: func(state tls.ConnectionState) error {
			id, err := i.verifyPeer(state, x509.ExtKeyUsageServerAuth)
			if err == nil && id.Proxy != proxy {
				err = fmt.Errorf("the peer is %s, not proxy %s", id, proxy)
			}
			return err
		},
	}
}

func (i *Identity) verifyPeer(state tls.ConnectionState, usage x509.ExtKeyUsage) (ID, error) {
	m := i.current.Load()
	id, err := verify(state.PeerCertificates, m.roots, usage, 0)
	if err != nil {
		return ID{}, err
	}
	if id.ControlPlane() || id.TrustDomain != m.id.TrustDomain || id.Group != m.id.Group {
		return ID{}, fmt.Errorf("the peer is %s, no proxy of group %s", id, m.id.Group)
	}
	return id, nil
}
