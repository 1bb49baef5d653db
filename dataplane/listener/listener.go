// Package listener holds the sockets that a snapshot asks for: it opens them before the snapshot becomes active, keeps
// them over reloads, and drains them when they are no longer asked for.
package listener

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
	"strconv"
	"sync"
	"time"

	"github.com/sluicegate/sluice/dataplane/snapshot"
)

// Config of a [Manager].
type Config struct {
	// Host is the host part of every listener. If empty, 127.0.0.1.
	Host string
	// Handler serves the requests of a port.
	Handler func(port uint16) http.Handler
	// TLS finds the listener that a handshake on a port is for; nil if there is none.
	TLS func(port uint16, serverName string) *snapshot.Listener
	// Drain is how long a request may still run after its socket was closed. If zero, 30 s.
	Drain time.Duration
	// If nil, nothing is logged.
	Log *slog.Logger
}

// Limits of what strangers may send and hold. There is no write timeout: answers stream.
const (
	headerTimeout = 10 * time.Second
	idleTimeout   = 2 * time.Minute
	maxHeader     = 64 << 10
)

// Manager owns sockets. It is safe for concurrent use.
type Manager struct {
	cfg Config

	mu       sync.Mutex // guards what is below
	sockets  map[uint16]*socket
	closed   bool
	draining sync.WaitGroup

	stopping chan struct{} // closed when Close begins
}

// socket is open from Bind on; it serves once a snapshot asks for it.
type socket struct {
	listener net.Listener
	server   *http.Server // nil: not serving yet
	tls      bool
	done     chan struct{} // closed when Serve has returned
	drain    chan struct{} // closed when the server begins to drain
}

type drainKey struct{}

// Draining returns a channel that is closed when the socket that a request came by is being drained: answers that have no
// end of their own are to end then. It is nil, and so never closed, for a context of no such request.
func Draining(ctx context.Context) <-chan struct{} {
	c, _ := ctx.Value(drainKey{}).(chan struct{})
	return c
}

// Context is for requests that come in another way: they are drained when all sockets are closed for good.
func (m *Manager) Context() context.Context {
	return context.WithValue(context.Background(), drainKey{}, m.stopping)
}

// New returns a manager without sockets.
func New(cfg Config) *Manager {
	cfg.Host = cmp.Or(cfg.Host, "127.0.0.1")
	cfg.Drain = cmp.Or(cfg.Drain, 30*time.Second)
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Manager{cfg: cfg, sockets: map[uint16]*socket{}, stopping: make(chan struct{})}
}

// Bind opens the socket of a port unless it is open. Connections wait in it until [Manager.Follow] has it served. It is
// for [snapshot.Config.Bind].
func (m *Manager) Bind(port uint16) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return errors.New("the proxy is stopping")
	}
	if m.sockets[port] != nil {
		return nil
	}
	address := net.JoinHostPort(m.cfg.Host, strconv.Itoa(int(port)))
	l, err := net.Listen("tcp", address)
	if err != nil {
		var op *net.OpError
		if errors.As(err, &op) {
			err = op.Err
		}
		return fmt.Errorf("listen on %s: %w", address, err)
	}
	m.sockets[port] = &socket{listener: l}
	return nil
}

// Follow serves the ports of an Index and closes all others; what runs on those may end within the drain time. A port that
// changes between TLS and plain HTTP is opened anew. It does not block, and is for [snapshot.Store.Subscribe].
func (m *Manager) Follow(index *snapshot.Index) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return
	}
	ports := index.Ports()
	for port, s := range m.sockets {
		withTLS, wanted := ports[port]
		switch {
		case !wanted:
			m.cfg.Log.Info("listener closed", "addr", s.listener.Addr().String())
			m.stopLocked(port)
		case s.server != nil && s.tls != withTLS:
			m.reopenLocked(port)
		}
	}
	for port, withTLS := range ports {
		s := m.sockets[port]
		if s == nil || s.server != nil {
			continue // nil: Bind refused it, and the store knows
		}
		m.serveLocked(port, s, withTLS)
	}
}

// reopenLocked lets the new server have a socket of its own, so that the old one can drain.
func (m *Manager) reopenLocked(port uint16) {
	address := m.sockets[port].listener.Addr().String()
	m.stopLocked(port)
	l, err := net.Listen("tcp", address)
	if err != nil {
		m.cfg.Log.Error("listener lost while its protocol changed", "addr", address, "err", err)
		return
	}
	m.sockets[port] = &socket{listener: l}
}

func (m *Manager) serveLocked(port uint16, s *socket, withTLS bool) {
	s.tls = withTLS
	s.done, s.drain = make(chan struct{}), make(chan struct{})
	base := context.WithValue(context.Background(), drainKey{}, s.drain)
	protocols := &http.Protocols{}
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(withTLS)
	s.server = &http.Server{
		Handler:           m.cfg.Handler(port),
		ReadHeaderTimeout: headerTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeader,
		Protocols:         protocols,
		BaseContext:       func(net.Listener) context.Context { return base },
		HTTP2:             &http.HTTP2Config{MaxConcurrentStreams: 250, SendPingTimeout: 30 * time.Second, PingTimeout: 15 * time.Second},
		ErrorLog:          slog.NewLogLogger(m.cfg.Log.Handler(), slog.LevelDebug), // what strangers do wrong is no news
	}
	l := s.listener
	if withTLS {
		s.server.TLSConfig = m.tlsConfig(port)
	}
	m.cfg.Log.Info("listener open", "addr", l.Addr().String(), "tls", withTLS)
	server, done := s.server, s.done
	go func() {
		defer close(done)
		var err error
		if withTLS {
			err = server.ServeTLS(l, "", "")
		} else {
			err = server.Serve(l)
		}
		if !errors.Is(err, http.ErrServerClosed) && !errors.Is(err, net.ErrClosed) {
			m.cfg.Log.Error("listener lost", "addr", l.Addr().String(), "err", err)
		}
	}()
}

// tlsConfig asks for each handshake anew, so that certificates change without a connection being dropped.
func (m *Manager) tlsConfig(port uint16) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12,
		NextProtos: []string{"h2", "http/1.1"},
		GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			l := m.cfg.TLS(port, hello.ServerName)
			if l == nil || l.TLS == nil {
				return nil, fmt.Errorf("no listener for server name %q", hello.ServerName)
			}
			return l.TLS, nil
		},
	}
}

// stopLocked closes a socket at once and lets its requests end within the drain time.
func (m *Manager) stopLocked(port uint16) {
	s := m.sockets[port]
	delete(m.sockets, port)
	s.listener.Close()
	if s.server == nil {
		return
	}
	close(s.drain)
	m.draining.Go(func() {
		ctx, cancel := context.WithTimeout(context.Background(), m.cfg.Drain)
		defer cancel()
		if err := s.server.Shutdown(ctx); err != nil {
			s.server.Close()
		}
		<-s.done
	})
}

// Addresses are those of the sockets that are served, as bound, sorted.
func (m *Manager) Addresses() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := []string{}
	for _, s := range m.sockets {
		if s.server != nil {
			out = append(out, s.listener.Addr().String())
		}
	}
	slices.Sort(out)
	return out
}

// Close closes all sockets and waits until their requests have ended, or the drain time has.
func (m *Manager) Close() {
	m.mu.Lock()
	if !m.closed {
		close(m.stopping)
	}
	m.closed = true
	for port := range m.sockets {
		m.stopLocked(port)
	}
	m.mu.Unlock()
	m.draining.Wait()
}
