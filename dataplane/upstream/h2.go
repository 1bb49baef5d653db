package upstream

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/netip"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"github.com/sluicegate/sluice/dataplane/snapshot"
	"github.com/sluicegate/sluice/internal/policy"
)

// h2wire carries requests over net/http, for targets whose policy offers h2 by ALPN. Where the target then chooses
// HTTP/1.1, it still goes this way. net/http sends a POST again only where nothing of it was written or the target
// said that it did not process it.
type h2wire struct {
	cfg      *Config
	tr       *http.Transport
	scheme   string
	open     atomic.Int64
	draining atomic.Bool
	ctx      context.Context // ends what runs, on close
	stop     context.CancelCauseFunc
}

type grantsKey struct{}

func newH2Wire(cfg *Config, addr string, tlsConfig *tls.Config) *h2wire {
	w := &h2wire{cfg: cfg, scheme: "https"}
	w.ctx, w.stop = context.WithCancelCause(context.Background())
	protocols := new(http.Protocols)
	protocols.SetHTTP2(true)
	for _, p := range tlsConfig.NextProtos {
		if p == "http/1.1" {
			protocols.SetHTTP1(true)
		}
	}
	w.tr = &http.Transport{
		Protocols:              protocols,
		TLSClientConfig:        tlsConfig,
		DisableCompression:     true,
		IdleConnTimeout:        cfg.IdleTimeout,
		TLSHandshakeTimeout:    cfg.DialTimeout,
		MaxResponseHeaderBytes: int64(cfg.MaxHead),
		MaxConnsPerHost:        cfg.MaxConns,
		MaxIdleConnsPerHost:    cfg.MaxIdle,
		ExpectContinueTimeout:  time.Second,
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			g, _ := ctx.Value(grantsKey{}).(policy.Grants) // the zero value grants nothing
			ctx, cancel := context.WithTimeoutCause(ctx, cfg.DialTimeout, errDialTimeout)
			defer cancel()
			nc, err := g.DialContext(ctx, network, addr)
			if err != nil {
				return nil, dialError(ctx, err)
			}
			w.open.Add(1)
			return &countedConn{Conn: nc, open: &w.open}, nil
		},
	}
	return w
}

type countedConn struct {
	net.Conn
	open   *atomic.Int64
	closed atomic.Bool
}

// Write leaves it to who reads to find that the target has ended the connection: it may have said why, and net/http does
// not look once a write has failed.
func (c *countedConn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	if err != nil && brokeOff(err) {
		return len(p), nil
	}
	return n, err
}

func (c *countedConn) Close() error {
	if !c.closed.Swap(true) {
		c.open.Add(-1)
	}
	return c.Conn.Close()
}

func (w *h2wire) do(ctx context.Context, call *h1call) (*Response, error) {
	if w.ctx.Err() != nil {
		return nil, &Error{Op: "dial", Err: ErrClosed}
	}
	uri, rest, _ := strings.Cut(strings.TrimPrefix(call.line, " "), " ")
	_, host, _ := strings.Cut(rest, "Host: ")
	host, _, _ = strings.Cut(host, "\r\n")

	ctx, cancel := context.WithCancelCause(context.WithValue(ctx, grantsKey{}, call.grants))
	unlink := context.AfterFunc(w.ctx, func() { cancel(ErrClosed) })
	var head *time.Timer
	if call.timeout > 0 {
		head = time.AfterFunc(call.timeout, func() { cancel(ErrTimeout) })
	}
	var got, wrote, reused atomic.Bool
	var over atomic.Pointer[tls.Conn]
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		GotConn: func(info httptrace.GotConnInfo) {
			got.Store(true)
			reused.Store(info.Reused)
			if c, ok := info.Conn.(*tls.Conn); ok {
				over.Store(c)
			}
			a, ok := info.Conn.RemoteAddr().(*net.TCPAddr)
			if !ok {
				return
			}
			addr, _ := netip.AddrFromSlice(a.IP)
			if err := call.grants.Dial(addr.Unmap()); err != nil {
				cancel(err) // granted at the dial, and no longer
			}
		},
		WroteHeaders: func() { wrote.Store(true) },
	})
	req, err := http.NewRequestWithContext(ctx, call.method, w.scheme+"://"+host+uri, bytes.NewReader(bytes.Clone(call.body))) // a target may answer before it has read all, and the body is lent until then
	if err != nil {
		cancel(nil)
		return nil, &Error{Op: "write", Err: errors.New("the URL or method cannot be sent")}
	}
	req.Header = call.header
	for name := range req.Header {
		if !sendable(name) {
			delete(req.Header, name)
		}
	}
	if req.Header.Get("User-Agent") == "" {
		req.Header.Set("User-Agent", "sluice")
	}
	res, err := w.tr.RoundTrip(req)
	if head != nil && !head.Stop() && err == nil {
		res.Body.Close()
		err = ErrTimeout
	}
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		unlink()
		cancel(nil)
		op := "dial"
		if got.Load() {
			op = "read head"
		}
		if c := over.Load(); c != nil && err.Error() == connClosed {
			err = endOf(c, err)
		}
		if !got.Load() || !reused.Load() {
			if late := refusedLate(w.tr.TLSClientConfig, err); late != nil {
				return nil, &Error{Op: "dial", Err: late}
			}
		}
		if !wrote.Load() {
			if why := handshakeError(w.tr.TLSClientConfig, err); why != nil {
				return nil, &Error{Op: "dial", Err: why}
			} else if why := hungUp(err); why != nil && !got.Load() {
				err = why
			}
		}
		return nil, &Error{Op: op, Sent: wrote.Load(), Err: err}
	}
	for name := range res.Header {
		if !sendable(name) {
			delete(res.Header, name)
		}
	}
	end := func() {
		unlink()
		cancel(nil)
		if w.draining.Load() {
			w.tr.CloseIdleConnections()
		}
	}
	if res.Body == http.NoBody {
		end()
		return &Response{Status: res.StatusCode, Header: res.Header, Body: http.NoBody}, nil
	}
	return &Response{Status: res.StatusCode, Header: res.Header, Length: max(0, res.ContentLength), Body: &h2body{ReadCloser: res.Body, ctx: ctx, end: end}}, nil
}

// connClosed is what net/http says where it finds, while it writes a body, that the connection has ended; why has gone to who read
// from it.
const connClosed = "http2: client conn is closed"

// endOf is why reading from a closed connection ended, which crypto/tls remembers, or err.
func endOf(c *tls.Conn, err error) error {
	_ = c.SetReadDeadline(time.Unix(1, 0)) // it waits for nothing
	if _, why := c.Read(make([]byte, 1)); why != nil && !errors.Is(why, os.ErrDeadlineExceeded) && !errors.Is(why, net.ErrClosed) {
		return why
	}
	return err
}

func (w *h2wire) drain() {
	w.draining.Store(true)
	w.tr.CloseIdleConnections()
}

func (w *h2wire) close() {
	w.stop(ErrClosed)
	w.tr.CloseIdleConnections()
}

func (w *h2wire) conns() int { return int(w.open.Load()) }

// h2body is a body of net/http with our errors.
type h2body struct {
	io.ReadCloser
	ctx    context.Context
	end    func()
	target *snapshot.Target // whom errors name; may be nil
}

func (b *h2body) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err != nil && err != io.EOF {
		if cause := context.Cause(b.ctx); cause != nil {
			err = cause
		}
		err = bodyError(b.target, err)
	}
	return n, err
}

func (b *h2body) Close() error {
	err := b.ReadCloser.Close()
	b.end()
	return err
}
