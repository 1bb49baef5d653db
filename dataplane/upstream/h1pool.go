package upstream

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/sluicegate/sluice/internal/policy"
)

// h1pool keeps HTTP/1.1 connections to one endpoint of one tenant. The pool has no goroutine of its own, and a
// connection has none either: who made the request reads the answer.
type h1pool struct {
	cfg  *Config
	addr string      // host:port to dial
	tls  *tls.Config // nil: plain

	mu       sync.Mutex // guards what is below
	idle     []*h1conn  // the most recently used last
	open     int        // connections, idle ones and those being dialled among them
	draining bool       // keep nothing
	closed   bool
	busy     map[*h1conn]struct{} // in use, so that close reaches them
	reaper   *time.Timer          // nil while nothing is idle
}

func newH1Pool(cfg *Config, addr string, tlsConfig *tls.Config) *h1pool {
	return &h1pool{cfg: cfg, addr: addr, tls: tlsConfig, busy: map[*h1conn]struct{}{}}
}

// get returns a connection to use alone: a kept one that still looks alive, if kept ones will do, else a new one.
// Grants are asked again for kept ones, for they may have changed since the dial.
func (p *h1pool) get(ctx context.Context, g policy.Grants, fresh bool) (*h1conn, error) {
	for !fresh {
		c := p.pop()
		if c == nil {
			break
		}
		if time.Since(c.since) < p.cfg.IdleTimeout && g.Dial(c.remote) == nil && c.alive() {
			c.reused = true
			return c, nil
		}
		p.drop(c)
	}
	p.mu.Lock()
	switch {
	case p.closed:
		p.mu.Unlock()
		return nil, ErrClosed
	case p.open >= p.cfg.MaxConns:
		p.mu.Unlock()
		return nil, fmt.Errorf("%w (%d)", ErrBusy, p.cfg.MaxConns)
	}
	p.open++
	p.mu.Unlock()

	c, err := p.dial(ctx, g)
	p.mu.Lock()
	defer p.mu.Unlock()
	if err == nil && p.closed {
		c.abort()
		err = ErrClosed
	}
	if err != nil {
		p.open--
		return nil, err
	}
	p.busy[c] = struct{}{}
	return c, nil
}

func (p *h1pool) pop() *h1conn {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := len(p.idle)
	if n == 0 {
		return nil
	}
	c := p.idle[n-1]
	p.idle[n-1] = nil
	p.idle = p.idle[:n-1]
	p.busy[c] = struct{}{}
	return c
}

// put takes back a connection on which nothing is under way.
func (p *h1pool) put(c *h1conn) {
	c.shrink()
	c.since = time.Now()
	p.mu.Lock()
	if p.draining || p.closed || len(p.idle) >= p.cfg.MaxIdle {
		p.mu.Unlock()
		p.drop(c)
		return
	}
	delete(p.busy, c)
	p.idle = append(p.idle, c)
	if p.reaper == nil {
		p.reaper = time.AfterFunc(p.cfg.IdleTimeout, p.reap)
	}
	p.mu.Unlock()
}

// drop closes a connection in use.
func (p *h1pool) drop(c *h1conn) {
	c.abort()
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, ok := p.busy[c]; ok {
		delete(p.busy, c)
		p.open--
	}
}

// reap closes what was idle too long, the oldest first.
func (p *h1pool) reap() {
	p.mu.Lock()
	defer p.mu.Unlock()
	now, n := time.Now(), 0
	for n < len(p.idle) && now.Sub(p.idle[n].since) >= p.cfg.IdleTimeout {
		p.idle[n].abort()
		n++
	}
	p.open -= n
	p.idle = append(p.idle[:0], p.idle[n:]...)
	clear(p.idle[len(p.idle):cap(p.idle)])
	if len(p.idle) == 0 || p.closed {
		p.reaper = nil
		return
	}
	p.reaper.Reset(p.cfg.IdleTimeout - now.Sub(p.idle[0].since))
}

// drain closes idle connections now and the others after their exchange.
func (p *h1pool) drain() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.draining = true
	p.closeIdleLocked()
}

func (p *h1pool) closeIdleLocked() {
	for _, c := range p.idle {
		c.abort()
	}
	p.open -= len(p.idle)
	p.idle = nil
	if p.reaper != nil {
		p.reaper.Stop()
		p.reaper = nil
	}
}

// close closes all connections, also those in use.
func (p *h1pool) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	p.closeIdleLocked()
	for c := range p.busy {
		c.abort()
	}
}

func (p *h1pool) conns() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.open
}

func (p *h1pool) isClosed() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.closed
}

func (p *h1pool) dial(ctx context.Context, g policy.Grants) (*h1conn, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, p.cfg.DialTimeout, errDialTimeout)
	defer cancel()
	tcp, err := g.DialContext(ctx, "tcp", p.addr)
	if err != nil {
		return nil, dialError(ctx, err)
	}
	c := &h1conn{pool: p, nc: tcp, tcp: tcp, buf: make([]byte, connBuffer)}
	if a, ok := tcp.RemoteAddr().(*net.TCPAddr); ok {
		c.remote = a.AddrPort().Addr().Unmap()
	} else {
		c.remote = netip.Addr{}
	}
	c.cancel = c.abort
	c.prepareProbe()
	if p.tls != nil {
		tc := tls.Client(tcp, p.tls)
		if err := tc.HandshakeContext(ctx); err != nil {
			tcp.Close()
			if why := handshakeError(p.tls, err); why != nil {
				return nil, why
			}
			if why := hungUp(err); why != nil {
				return nil, why
			}
			return nil, fmt.Errorf("TLS with %s: %w", p.addr, dialError(ctx, err))
		}
		c.nc = tc
	}
	return c, nil
}

var errDialTimeout = errors.New("no connection within the time for dialling")

// dialError tells a dial that ran out of time from one whose caller left.
func dialError(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil && !errors.Is(err, cause) {
		return fmt.Errorf("%w: %w", cause, err)
	}
	return err
}
