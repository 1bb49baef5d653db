package upstream

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sluicegate/sluice/dataplane/snapshot"
	"github.com/sluicegate/sluice/internal/policy"
	xdsv1 "github.com/sluicegate/sluice/proto/gen/sluice/xds/v1"
)

// wire is what requests to one endpoint go over, whatever the version of HTTP.
type wire interface {
	do(ctx context.Context, call *h1call) (*Response, error)
	drain()
	close()
	conns() int
}

// endpoint is an HTTP target as one snapshot has it: the wire outlives it.
type endpoint struct {
	t       *snapshot.Target
	wire    wire
	health  *health
	base    url.URL
	host    string // of the Host header
	lines   string // requestLine of base
	timeout time.Duration
}

func newEndpoint(t *snapshot.Target, cfg *xdsv1.HttpTransport, w wire, h *health) *endpoint {
	base := baseURL(cfg, useTLS(cfg, t.Policy))
	e := &endpoint{t: t, wire: w, health: h, base: *base, host: base.Host, timeout: headTimeout(t)}
	e.lines = requestLine(base.RequestURI(), base.Host)
	return e
}

// headTimeout bounds the wait for the head of an answer; 0 is no bound.
func headTimeout(t *snapshot.Target) time.Duration {
	_, head := t.Policy.Timeouts(t.Config.GetTimeout().AsDuration())
	return head
}

func useTLS(cfg *xdsv1.HttpTransport, p *policy.Target) bool { return cfg.GetTls() || p.TLS() != nil }

func baseURL(cfg *xdsv1.HttpTransport, secure bool) *url.URL {
	u, err := url.Parse(cfg.GetPath())
	if err != nil || !strings.HasPrefix(cfg.GetPath(), "/") || u.Host != "" { // validated long before
		u = &url.URL{Path: cfg.GetPath()}
	}
	u.Scheme, u.Host, u.Fragment = "http", cfg.GetHost(), ""
	standard := uint32(80)
	if secure {
		u.Scheme, standard = "https", 443
	}
	if strings.Contains(u.Host, ":") {
		u.Host = "[" + u.Host + "]"
	}
	if cfg.GetPort() != standard {
		u.Host += ":" + strconv.Itoa(int(cfg.GetPort()))
	}
	return u
}

// URL is a target's, with the scheme that it is spoken to in. Nil for a stdio target.
func URL(t *snapshot.Target) *url.URL {
	var cfg *xdsv1.HttpTransport
	switch c := t.Config.GetTransport().(type) {
	case *xdsv1.Target_Mcp:
		cfg = c.Mcp
	case *xdsv1.Target_Sse:
		cfg = c.Sse
	case *xdsv1.Target_A2A:
		cfg = c.A2A
	default:
		return nil
	}
	return baseURL(cfg, useTLS(cfg, t.Policy))
}

func dialAddress(cfg *xdsv1.HttpTransport) string {
	return net.JoinHostPort(cfg.GetHost(), strconv.Itoa(int(cfg.GetPort())))
}

// tlsConfig is how to speak TLS to a target, nil: not at all.
func tlsConfig(cfg *xdsv1.HttpTransport, p *policy.Target) *tls.Config {
	if !useTLS(cfg, p) {
		return nil
	}
	c := &tls.Config{MinVersion: tls.VersionTLS12}
	if own := p.TLS(); own != nil {
		c = own.Clone()
	}
	if c.ServerName == "" {
		c.ServerName = cfg.GetHost()
	}
	if c.ClientSessionCache == nil {
		c.ClientSessionCache = tls.NewLRUClientSessionCache(4)
	}
	return c
}

func wantsHTTP2(c *tls.Config) bool { return c != nil && slices.Contains(c.NextProtos, "h2") }

// Do sends a request to the target's own URL, or to the path of its host that r names.
func (e *endpoint) Do(ctx context.Context, r *Request) (*Response, error) {
	if r.Path != "" {
		to, err := e.base.Parse(r.Path)
		if err != nil || to.Host != e.base.Host || to.Scheme != e.base.Scheme {
			return nil, e.error(&Error{Op: "address", Err: errors.New("the path leads to another host")})
		}
		return e.send(ctx, r, to, requestLine(to.RequestURI(), e.host))
	}
	return e.send(ctx, r, &e.base, e.lines)
}

// Owned is false: any proxy can go on with the session.
func (e *endpoint) Owned() bool { return false }

// send sends a request to a URL of the target; line is its requestLine.
func (e *endpoint) send(ctx context.Context, r *Request, to *url.URL, line string) (*Response, error) {
	if e.t.Refused != nil && e.t.Policy == nil {
		return nil, e.error(&Error{Op: "configure", Err: e.t.Refused})
	}
	if r.Header == nil {
		r.Header = http.Header{}
	}
	u := *to
	out := policy.Outbound{Method: r.Method, URL: &u, Header: r.Header, Body: r.Body, Call: &r.Call}
	if err := e.t.Policy.Outgoing(ctx, &out); err != nil {
		return nil, e.unready(ctx, err)
	}
	res, err := e.exchange(ctx, r, &out, to, line)
	if err != nil || res.Status != http.StatusUnauthorized {
		return res, err
	}
	// A 401 says that nothing was done. A token may have ended before its time.
	again, err := e.t.Policy.Renew(ctx, &out)
	if !again && err == nil {
		return res, nil
	}
	_ = res.Body.Close()
	if err != nil {
		return nil, e.unready(ctx, err)
	}
	return e.exchange(ctx, r, &out, to, line)
}

// unready is why a request was not sent: what it must carry could not be had.
func (e *endpoint) unready(ctx context.Context, err error) error {
	named := e.error(&Error{Op: "authenticate", Err: err})
	if _, own := errors.AsType[*policy.CredentialError](err); own && ctx.Err() == nil {
		e.health.failed(named)
	}
	return named
}

// exchange sends a request that is ready.
func (e *endpoint) exchange(ctx context.Context, r *Request, out *policy.Outbound, to *url.URL, line string) (*Response, error) {
	u := out.URL
	if u.RawQuery != to.RawQuery || u.Path != to.Path || u.RawPath != to.RawPath {
		line = requestLine(u.RequestURI(), e.host)
	}
	call := h1call{method: r.Method, line: line, header: r.Header, body: r.Body, grants: e.t.Tenant.Grants,
		safe: r.Safe || r.Method == http.MethodGet || r.Method == http.MethodDelete}
	if r.Method != http.MethodGet { // an event stream may keep its head until there is an event
		call.timeout = e.timeout
	}
	res, err := e.wire.do(ctx, &call)
	if err != nil {
		err = e.error(err)
		e.health.failedIn(ctx, err)
		return nil, err
	}
	switch b := res.Body.(type) { // errors of the body name the target too
	case *exchange:
		b.target = e.t
	case *h2body:
		b.target = e.t
	}
	if res.Status >= 500 {
		e.health.failed(errors.New("answered with status " + strconv.Itoa(res.Status)))
	} else {
		e.health.ok()
	}
	return res, nil
}

// error puts the target's name into an error of the wire.
func (e *endpoint) error(err error) error { return named(e.t, err) }

func named(t *snapshot.Target, err error) error {
	var own *Error
	if !errors.As(err, &own) {
		own = &Error{Op: "send", Sent: true, Err: err}
	}
	own.Target = t.Resource
	if t.Tenant != nil {
		own.Tenant = t.Tenant.Name
	}
	return own
}
