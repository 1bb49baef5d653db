package credential

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http"
	"time"
)

// DialFunc is the form of net.Dialer.DialContext.
type DialFunc func(ctx context.Context, network, address string) (net.Conn, error)

// trusted are the roots of issuers' certificates; nil: the system's. Tests have issuers of their own.
var trusted *x509.CertPool

const (
	maxAnswer   = 1 << 20 // bytes; a token is some KiB
	idleTimeout = 30 * time.Second
)

// newClient returns a client for issuers. It follows no redirect, for what it sends is secret and for one address; it
// reads no more of an answer than a token could need; and it asks no proxy of the environment, which would dial in its
// stead.
func newClient(dial DialFunc) *http.Client {
	return &http.Client{
		Timeout: fetchTimeout, // some of the libraries forget the context
		Transport: limited{&http.Transport{
			DialContext: dial, TLSClientConfig: &tls.Config{RootCAs: trusted, MinVersion: tls.VersionTLS12}, TLSHandshakeTimeout: 10 * time.Second,
			MaxIdleConnsPerHost: 2, IdleConnTimeout: idleTimeout, MaxResponseHeaderBytes: 64 << 10, ForceAttemptHTTP2: true,
		}},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// limited bounds what is read of answers.
type limited struct{ http.RoundTripper }

func (l limited) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := l.RoundTripper.RoundTrip(r)
	if err == nil {
		resp.Body = &limitedBody{resp.Body, maxAnswer}
	}
	return resp, err
}

type limitedBody struct {
	io.ReadCloser
	left int
}

var errTooLarge = errors.New("the answer is larger than any token's (1 MiB)")

func (b *limitedBody) Read(p []byte) (int, error) {
	if b.left <= 0 {
		return 0, errTooLarge
	}
	n, err := b.ReadCloser.Read(p[:min(len(p), b.left)])
	b.left -= n
	return n, err
}
