package peers

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// What a proxy tells the next of a request. They mean something on the port for peers alone; clients cannot set them anywhere else.
const (
	headerHost   = "Sluice-Forwarded-Host"   // that the client asked for, also where HTTP/2 has another spelling of it, or none
	headerPort   = "Sluice-Forwarded-Port"   // that the client came to
	headerSource = "Sluice-Forwarded-Source" // the client's address and port
	headerTLS    = "Sluice-Forwarded-Tls"    // `1` if the client spoke TLS; `2` if it showed a certificate, too
	headerName   = "Sluice-Forwarded-Name"   // the server that it asked for then (SNI)

	headerRefused = "Sluice-Refused" // in the answer of a port that has not served the request
)

// hop are headers of one connection (RFC 9110 §7.6.1), which HTTP/2 has not.
var hop = []string{"Connection", "Keep-Alive", "Proxy-Connection", "Te", "Trailer", "Transfer-Encoding", "Upgrade", "Expect"}

type forwardedKey struct{}

// From returns the proxy that forwarded a request here; "" if the client came itself.
func From(ctx context.Context) string {
	id, _ := ctx.Value(forwardedKey{}).(string)
	return id
}

// Elsewhere is an error: the request is for another proxy, which is to be asked instead.
type Elsewhere struct{ Owner string }

func (e *Elsewhere) Error() string { return "proxy " + e.Owner + " has what the request is about" }

// ErrLost says that the owner cannot be reached, or left without a whole answer. Whether it has processed the request is not known
// if Sent. If Begun, an event stream was begun, and the next thing on it can be an event.
type ErrLost struct {
	Owner string
	Sent  bool
	Begun bool
	Err   error
}

func (e *ErrLost) Error() string { return fmt.Sprintf("forward to proxy %s: %v", e.Owner, e.Err) }
func (e *ErrLost) Unwrap() error { return e.Err }

// errOutOfReach: no connection to the owner came about in time.
var errOutOfReach = errors.New("no connection in time")

// Forward has a request answered by its owner. body is what was read of it already, all of it. An error is an [*ErrLost], and has
// not been answered yet unless it says so; an answer that breaks off in the middle ends the connection.
func (p *Peers) Forward(w http.ResponseWriter, r *http.Request, port uint16, owner string, body []byte) error {
	ctx, cancel := context.WithCancelCause(r.Context())
	defer cancel(nil)
	reach := time.AfterFunc(p.cfg.Wait, func() { cancel(errOutOfReach) }) // until there is a connection, however far that came
	defer reach.Stop()
	c, err := p.find(ctx, owner)
	if err != nil {
		return &ErrLost{Owner: owner, Err: err}
	}
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(httptrace.GotConnInfo) { reach.Stop() }})
	var sent atomic.Bool
	out := (&http.Request{
		Method: r.Method,
		URL:    &url.URL{Scheme: "https", Host: c.address, Path: r.URL.Path, RawPath: r.URL.RawPath, RawQuery: r.URL.RawQuery},
		Header: r.Header.Clone(),
		Body:   &noted{Reader: bytes.NewReader(body), sent: &sent},
		GetBody: func() (io.ReadCloser, error) { // for a connection that was closed before anything was sent
			return &noted{Reader: bytes.NewReader(body), sent: &sent}, nil
		},
		ContentLength: int64(len(body)),
	}).WithContext(ctx)
	if len(body) == 0 {
		out.Body, out.GetBody = http.NoBody, nil
	}
	for name := range out.Header {
		if strings.HasPrefix(name, "Sluice-") {
			delete(out.Header, name)
		}
	}
	for _, name := range hop {
		delete(out.Header, name)
	}
	if out.Header["User-Agent"] == nil {
		out.Header["User-Agent"] = []string{""} // net/http would make one up
	}
	out.Header[headerHost] = []string{r.Host}
	out.Header[headerPort] = []string{strconv.Itoa(int(port))}
	out.Header[headerSource] = []string{r.RemoteAddr}
	if r.TLS != nil {
		out.Header[headerTLS], out.Header[headerName] = []string{"1"}, []string{r.TLS.ServerName}
		if len(r.TLS.PeerCertificates) > 0 {
			out.Header[headerTLS] = []string{"2"}
		}
	}
	resp, err := c.rt.RoundTrip(out)
	if context.Cause(ctx) == errOutOfReach {
		err = errOutOfReach
	}
	if err != nil {
		return &ErrLost{Owner: owner, Sent: sent.Load(), Err: err}
	}
	defer resp.Body.Close()
	if resp.Header[headerRefused] != nil {
		return &ErrLost{Owner: owner, Err: fmt.Errorf("refused with status %d: see its log", resp.StatusCode)}
	}
	h := w.Header()
	clear(h) // the owner says all that there is to say
	for name, values := range resp.Header {
		if !strings.HasPrefix(name, "Sluice-") {
			h[name] = values
		}
	}
	w.WriteHeader(resp.StatusCode)
	if whole, err := pass(w, resp.Body); err != nil && r.Context().Err() == nil {
		p.cfg.Log.Warn("a forwarded answer broke off", "owner", owner, "err", err)
		if whole {
			return &ErrLost{Owner: owner, Sent: true, Begun: true, Err: err}
		}
		panic(http.ErrAbortHandler) // the client must not take it for a whole one
	}
	return nil
}

// noted notes that a body was begun to be sent.
type noted struct {
	io.Reader
	sent *atomic.Bool
}

func (n *noted) Read(p []byte) (int, error) {
	n.sent.Store(true)
	return n.Reader.Read(p)
}

func (n *noted) Close() error { return nil }

// pass copies and flushes piece by piece: it may be an event stream. Then whole says that it stands between two events.
func pass(w http.ResponseWriter, body io.Reader) (whole bool, err error) {
	flush := func() error {
		if err := http.NewResponseController(w).Flush(); err != nil && !errors.Is(err, http.ErrNotSupported) {
			return err
		}
		return nil
	}
	events := strings.HasPrefix(w.Header().Get("Content-Type"), "text/event-stream")
	if events { // on which nothing may happen for long
		if err := flush(); err != nil {
			return false, err
		}
	}
	var end []byte // of what was passed
	buf := make([]byte, 8<<10)
	for {
		n, err := body.Read(buf)
		if n > 0 {
			end = append(end, buf[max(0, n-4):n]...)
			end = end[max(0, len(end)-4):]
			if _, err := w.Write(buf[:n]); err != nil {
				return false, err
			}
			if err := flush(); err != nil {
				return false, err
			}
		}
		if err == io.EOF {
			return false, nil
		}
		if err != nil {
			return events && (len(end) == 0 || bytes.HasSuffix(end, []byte("\n\n")) || bytes.HasSuffix(end, []byte("\r\n\r\n"))), err
		}
	}
}

// receive serves what a peer forwards.
func (p *Peers) receive(w http.ResponseWriter, r *http.Request) {
	peer, err := p.admitted(r.Context(), r.TLS)
	if err != nil {
		p.cfg.Log.Warn("peer refused", "err", err)
		w.Header()[headerRefused] = []string{"1"}
		http.Error(w, "not a proxy of this group", http.StatusForbidden)
		return
	}
	port, err := strconv.ParseUint(r.Header.Get(headerPort), 10, 16)
	source, addrErr := netip.ParseAddrPort(r.Header.Get(headerSource))
	if err != nil || addrErr != nil || len(r.Header[headerHost]) != 1 {
		w.Header()[headerRefused] = []string{"1"}
		http.Error(w, "not a forwarded request", http.StatusBadRequest)
		return
	}
	in := r.WithContext(context.WithValue(r.Context(), forwardedKey{}, peer))
	in.Host, in.RemoteAddr = r.Header[headerHost][0], source.String()
	// The connection's certificate is the peer's. The client's own, if it showed one, is not taken on a peer's word: all that is known is
	// that it is none of which this proxy knows anything.
	in.TLS = nil
	switch name := r.Header.Get(headerName); r.Header.Get(headerTLS) {
	case "1":
		in.TLS = &tls.ConnectionState{ServerName: name}
	case "2":
		in.TLS = &tls.ConnectionState{ServerName: name, PeerCertificates: []*x509.Certificate{{}}}
	}
	in.Header = r.Header.Clone()
	for name := range in.Header {
		if strings.HasPrefix(name, "Sluice-") {
			delete(in.Header, name)
		}
	}
	p.serve(p.cfg.Handler(uint16(port)), w, in)
}
