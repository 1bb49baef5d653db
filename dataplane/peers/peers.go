// Package peers brings requests to the proxy of the group that owns what they are about: a session with a child, a call that waits
// for its client.
//
// A request is forwarded whole and once, over mTLS between proxies of one group. Its owner serves it as if the client had come
// itself: it authenticates the client anew, by the credentials in the request, and takes nothing from the peer but where the client
// came from. So a proxy that was broken into gains no caller whose credentials it does not hold.
package peers

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/sluicegate/sluice/internal/mtls"
)

// Config of a [Peers].
type Config struct {
	// Identity is this proxy's, which its peers know it by. Required.
	Identity *mtls.Identity
	// Handler serves a forwarded request as the port that the client came to.
	Handler func(port uint16) http.Handler
	// Base is what the contexts of forwarded requests are made of. If nil, context.Background.
	Base context.Context
	// Refresh asks the control plane for the peers of now, without waiting, and not calling Set itself: see [Peers.Set]. If nil, they come when they come.
	Refresh func()
	// Wait is how long a peer that is not known yet and a connection to it are waited for, together. If zero, 900 ms: a client is told
	// within a second.
	Wait time.Duration
	// If nil, nothing is logged.
	Log *slog.Logger
}

// Peers are the other proxies of the group. It is safe for concurrent use.
type Peers struct {
	cfg Config

	mu      sync.Mutex // guards what is below
	told    bool       // Set was called
	known   map[string]known
	clients map[string]*client
	changed chan struct{} // closed and replaced by Set
	asked   time.Time     // when Refresh was called last
	closed  bool
	serving int           // forwarded requests
	idle    chan struct{} // closed when none is served any more; nil: nobody waits for that
}

// known is a proxy of the group.
type known struct {
	address string
	missing time.Time // since when the control plane does not name it; zero: it does
}

// gone reports whether it is none any more, though nothing was said since.
func (k known) gone() bool { return !k.missing.IsZero() && time.Since(k.missing) >= missingKept }

// missingKept is how long a proxy is kept that the control plane does not name any more: after its restart it knows those alone that
// have reported since.
const missingKept = time.Minute

// client is how to reach one peer, under the certificate of a time.
type client struct {
	address string
	until   time.Time // when that certificate expires
	rt      *http.Transport
}

// New returns one that knows no peer yet.
func New(cfg Config) *Peers {
	cfg.Wait = cmp.Or(cfg.Wait, 900*time.Millisecond)
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Base == nil {
		cfg.Base = context.Background()
	}
	return &Peers{cfg: cfg, known: map[string]known{}, clients: map[string]*client{}, changed: make(chan struct{})}
}

// Set replaces what is known of the group: each proxy's address.
func (p *Peers) Set(addresses map[string]string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return
	}
	now := make(map[string]known, len(addresses))
	for id, address := range addresses {
		now[id] = known{address: address}
	}
	for id, was := range p.known {
		if _, there := now[id]; there {
			continue
		}
		if was.missing.IsZero() {
			was.missing = time.Now()
		}
		if !was.gone() {
			now[id] = was
		}
	}
	p.told, p.known = true, now
	for id, c := range p.clients {
		if p.known[id].address != c.address {
			c.rt.CloseIdleConnections() // what is under way goes on
			delete(p.clients, id)
		}
	}
	close(p.changed)
	p.changed = make(chan struct{})
}

// Known lists the proxies of now.
func (p *Peers) Known() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	var all []string
	for id, k := range p.known {
		if !k.gone() {
			all = append(all, id)
		}
	}
	slices.Sort(all)
	return all
}

// ErrUnknown says that the control plane names no such proxy, or none that can be reached.
var ErrUnknown = errors.New("no such proxy in the group")

// find returns the way to a peer, and waits a little for one that is not known yet. The control plane is asked twice in that time at most,
// however many wait: clients can come with the sessions of a proxy that is gone as often as they like.
func (p *Peers) find(ctx context.Context, id string) (*client, error) {
	ctx, cancel := context.WithTimeout(ctx, p.cfg.Wait)
	defer cancel()
	for {
		p.mu.Lock()
		c, changed := p.clientLocked(id), p.changed
		again := p.cfg.Wait/2 - time.Since(p.asked)
		if c == nil && again <= 0 && p.cfg.Refresh != nil {
			p.asked, again = time.Now(), p.cfg.Wait/2
			p.cfg.Refresh()
		}
		p.mu.Unlock()
		if c != nil {
			return c, nil
		}
		select {
		case <-changed:
		case <-time.After(max(again, p.cfg.Wait/10)):
		case <-ctx.Done():
			return nil, fmt.Errorf("proxy %s: %w", id, ErrUnknown)
		}
	}
}

func (p *Peers) clientLocked(id string) *client {
	at, ok := p.known[id]
	if !ok || at.gone() || p.closed {
		return nil
	}
	address := at.address
	until := p.cfg.Identity.NotAfter()
	if c := p.clients[id]; c != nil {
		if c.until.Equal(until) {
			return c
		}
		// It was renewed. A connection that is never idle would show the old one for ever, and no peer takes it when it has expired.
		c.rt.CloseIdleConnections() // what is under way goes on
	}
	dialer := &net.Dialer{Timeout: p.cfg.Wait}
	c := &client{address: address, until: until, rt: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return dialer.DialContext(ctx, "tcp", address)
		},
		TLSClientConfig:     p.cfg.Identity.PeerClientConfig(id),
		TLSHandshakeTimeout: p.cfg.Wait,
		ForceAttemptHTTP2:   true,
		// A machine that died closes no connection. A call may be silent for long, but the connection that it waits on may not.
		HTTP2:              &http.HTTP2Config{SendPingTimeout: p.cfg.Wait / 3, PingTimeout: p.cfg.Wait * 2 / 3},
		MaxIdleConns:       64,
		IdleConnTimeout:    time.Minute,
		DisableCompression: true, // bytes pass as they are
	}}
	p.clients[id] = c
	return c
}

// Serve takes requests of peers until ctx ends.
func (p *Peers) Serve(ctx context.Context, l net.Listener) error {
	server := &http.Server{
		Handler:           http.HandlerFunc(p.receive),
		TLSConfig:         p.cfg.Identity.PeerServerConfig(),
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    128 << 10, // the client's, which were bounded there, and ours
		// A peer asks whether we are here more often than that, unless its machine has died.
		HTTP2:       &http.HTTP2Config{SendPingTimeout: p.cfg.Wait, PingTimeout: p.cfg.Wait},
		BaseContext: func(net.Listener) context.Context { return p.cfg.Base },
		ErrorLog:    slog.NewLogLogger(p.cfg.Log.Handler(), slog.LevelDebug),
	}
	stop := context.AfterFunc(ctx, func() {
		closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		if server.Shutdown(closing) != nil {
			_ = server.Close() // streams that do not end
		}
	})
	defer stop()
	err := server.ServeTLS(l, "", "")
	if errors.Is(err, http.ErrServerClosed) {
		return context.Cause(ctx)
	}
	return err
}

// Drain waits until no forwarded request is being served, or ctx ends. What comes meanwhile is served: a call may wait for what its
// client answers by way of another proxy.
func (p *Peers) Drain(ctx context.Context) {
	p.mu.Lock()
	if p.serving == 0 {
		p.mu.Unlock()
		return
	}
	if p.idle == nil {
		p.idle = make(chan struct{})
	}
	idle := p.idle
	p.mu.Unlock()
	select {
	case <-idle:
	case <-ctx.Done():
	}
}

// serve counts a forwarded request while it is being served.
func (p *Peers) serve(h http.Handler, w http.ResponseWriter, r *http.Request) {
	p.mu.Lock()
	p.serving++
	p.mu.Unlock()
	defer func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.serving--; p.serving == 0 && p.idle != nil {
			close(p.idle)
			p.idle = nil
		}
	}()
	h.ServeHTTP(w, r)
}

// Close ends connections to peers.
func (p *Peers) Close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	for id, c := range p.clients {
		c.rt.CloseIdleConnections()
		delete(p.clients, id)
	}
}

// admitted reports whether a peer with a good certificate is one of the group as the control plane knows it now: a proxy that was
// taken out of the fleet keeps its certificate for days. As long as the control plane has said nothing, certificates are all there is.
func (p *Peers) admitted(ctx context.Context, state *tls.ConnectionState) (string, error) {
	peer, err := mtls.PeerOf(*state)
	if err != nil {
		return "", err
	}
	p.mu.Lock()
	at, known := p.known[peer.ID.Proxy]
	told := p.told
	p.mu.Unlock()
	if told && (!known || at.gone()) {
		if _, err := p.find(ctx, peer.ID.Proxy); err != nil {
			return "", err
		}
	}
	return peer.ID.Proxy, nil
}
