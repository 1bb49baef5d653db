package mtls

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
)

var (
	// ErrNoCertificate means that the peer showed no certificate.
	ErrNoCertificate = errors.New("a client certificate is required: join with a join token first")
	// ErrExpired means that the peer's certificate is good but for its time; it may be renewed for [RenewGrace].
	ErrExpired = errors.New("the client certificate has expired: renew it")
)

// Peer is who is at the other end of a connection, as its verified certificate says.
type Peer struct {
	ID          ID
	Certificate *x509.Certificate
	// Expired is true for a certificate past its time but within [RenewGrace]: good for Renew alone.
	Expired bool
}

// PeerOf reads the verified peer of a connection made with [Identity.ServerConfig] or ClientConfig. It returns
// [ErrNoCertificate] if there is none, and the Peer together with [ErrExpired] if it may only renew. Call it for each RPC:
// a certificate may expire while its connection lives.
func PeerOf(state tls.ConnectionState) (Peer, error) {
	if !state.HandshakeComplete || len(state.PeerCertificates) == 0 {
		return Peer{}, ErrNoCertificate
	}
	leaf := state.PeerCertificates[0]
	id, err := certificateID(leaf)
	if err != nil {
		return Peer{}, err
	}
	p := Peer{ID: id, Certificate: leaf, Expired: time.Now().After(leaf.NotAfter)}
	if p.Expired {
		return p, ErrExpired
	}
	return p, nil
}

// PeerFromContext is [PeerOf] for a gRPC handler.
func PeerFromContext(ctx context.Context) (Peer, error) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return Peer{}, ErrNoCertificate
	}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok {
		return Peer{}, ErrNoCertificate
	}
	return PeerOf(info.State)
}

// verify checks a chain against roots. With grace, a leaf that expired not longer ago passes.
func verify(chain []*x509.Certificate, roots *x509.CertPool, usage x509.ExtKeyUsage, grace time.Duration) (ID, error) {
	if len(chain) == 0 {
		return ID{}, ErrNoCertificate
	}
	leaf := chain[0]
	id, err := certificateID(leaf)
	if err != nil {
		return ID{}, err
	}
	at := time.Now()
	if at.After(leaf.NotAfter) && at.Before(leaf.NotAfter.Add(grace)) {
		at = leaf.NotAfter
	}
	intermediates := x509.NewCertPool()
	for _, c := range chain[1:] {
		intermediates.AddCert(c)
	}
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: intermediates, CurrentTime: at, KeyUsages: []x509.ExtKeyUsage{usage}}); err != nil {
		return ID{}, fmt.Errorf("certificate of %s: %w", id, err)
	}
	return id, nil
}

// verifyControlPlane accepts the control plane of trustDomain, or of any if that is empty.
func verifyControlPlane(chain []*x509.Certificate, roots *x509.CertPool, trustDomain string) (ID, error) {
	id, err := verify(chain, roots, x509.ExtKeyUsageServerAuth, 0)
	if err != nil {
		return ID{}, err
	}
	if !id.ControlPlane() || trustDomain != "" && id.TrustDomain != trustDomain {
		return ID{}, fmt.Errorf("the server is %s, not the control plane", id)
	}
	return id, nil
}
