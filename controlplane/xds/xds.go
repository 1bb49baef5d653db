// Package xds streams revisions of tenants to proxies over delta ADS (envoy.service.discovery.v3).
//
// Each tenant is its current resources and an append-only log of the names that its revisions changed. A connected proxy is
// a cursor into the log of each tenant that its group serves, with at most one revision outstanding: a slow proxy costs
// its cursor, and gets one merged difference when it is back. What is sent is encoded once and shared by all who need it.
//
// A revision is sent as Secret frames, then Config frames, the last of which holds the tenant's Commit. The ACK of that
// frame means that the proxy serves the revision; a NACK of it names what the proxy could not build. Nothing is sent
// twice on a stream, refused or not, until it changes.
package xds

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
)

// Type URLs of the two types that are served.
const (
	ConfigType = "type.googleapis.com/sluice.xds.v1.Config"
	SecretType = "type.googleapis.com/sluice.xds.v1.Secret"
)

// Config is what a Server needs.
type Config struct {
	// Identify tells who is at the other end from the verified certificate of the connection alone. Its error ends the
	// stream; if it is no gRPC status, as PERMISSION_DENIED. Called twice when a stream opens. Required.
	Identify func(ctx context.Context) (Peer, error)
	// If nil: nothing is logged.
	Log *slog.Logger
}

// A Peer is a proxy as its certificate names it.
type Peer struct {
	ID    string // unique; a second stream of the same proxy ends the first
	Group string
	// When the certificate ends, and with it the stream. If zero: never.
	Expires time.Time
}

// A Resource is one resource of a tenant: its name begins with the tenant and a slash, its body is an encoded Config or Secret.
type Resource struct {
	Name    string
	Version string
	Body    []byte // shared with all streams; not to be changed
}

// A Revision is one atomic change of a tenant. The server adds the tenant's Commit to it.
type Revision struct {
	// From 1; grows from one revision of a tenant to the next.
	Number int64
	// For the Commit: over all resources of the tenant once this revision is in.
	Digest []byte
	// What changed since the last revision published; the first published holds all.
	Config, Secret               []Resource
	RemovedConfig, RemovedSecret []string
}

// A Server serves any number of proxies. Its methods may be called at any time and wait for no proxy.
type Server struct {
	identify func(context.Context) (Peer, error)
	log      *slog.Logger

	mu       sync.Mutex // guards what follows; taken before a tenant's
	assigned bool
	closed   bool
	groups   map[string][]string // tenants of each group, sorted
	tenants  map[string]*tenant  // published and not dropped
	streams  map[string]*stream  // by proxy
}

// New makes a server that refuses streams with UNAVAILABLE until Assign has been called.
func New(cfg Config) *Server {
	log := cfg.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Server{identify: cfg.Identify, log: log, groups: map[string][]string{}, tenants: map[string]*tenant{}, streams: map[string]*stream{}}
}

// Register adds the delta ADS stream, and no other method of the service, to a server made with [ServerOptions].
func (s *Server) Register(r grpc.ServiceRegistrar) {
	r.RegisterService(&grpc.ServiceDesc{
		ServiceName: "envoy.service.discovery.v3.AggregatedDiscoveryService",
		HandlerType: (*any)(nil),
		Streams: []grpc.StreamDesc{{
			StreamName: "DeltaAggregatedResources", ServerStreams: true, ClientStreams: true,
			Handler: func(_ any, st grpc.ServerStream) error { return s.serve(st) },
		}},
		Metadata: "envoy/service/discovery/v3/ads.proto",
	}, s)
}

// Publish makes a revision of a tenant the current one and wakes the proxies that serve it.
func (s *Server) Publish(name string, r Revision) {
	s.mu.Lock()
	t := s.tenants[name]
	if t == nil {
		t = newTenant(name)
		s.tenants[name] = t
		for _, st := range s.streams {
			if _, serves := slices.BinarySearch(s.groups[st.peer.Group], name); serves {
				defer st.reassign()
			}
		}
	}
	t.mu.Lock()
	s.mu.Unlock()
	defer t.mu.Unlock()
	t.publishLocked(r)
	for c := range t.cursors {
		c.stream.mark(c)
	}
	t.progressLocked()
}

// Drop forgets a tenant that was deleted; proxies that hold it are told to remove it.
func (s *Server) Drop(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.tenants[name]
	if t == nil {
		return
	}
	delete(s.tenants, name)
	t.mu.Lock()
	defer t.mu.Unlock()
	for c := range t.cursors {
		c.stream.reassign()
	}
	t.progressLocked()
}

// Assign says which tenants each group serves, all groups at once: a group that is missing serves none. Proxies that a
// tenant is taken from are told to remove it and nothing else. Publish all tenants before the first call: a proxy that
// connects may hold resources from earlier, and what is not published yet is neither sent nor removed.
func (s *Server) Assign(groups map[string][]string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	old := s.groups
	s.groups, s.assigned = make(map[string][]string, len(groups)), true
	for group, tenants := range groups {
		tenants = slices.Clone(tenants)
		slices.Sort(tenants)
		s.groups[group] = slices.Compact(tenants)
	}
	for _, st := range s.streams {
		if !slices.Equal(old[st.peer.Group], s.groups[st.peer.Group]) {
			st.reassign()
		}
	}
}

// serving returns the tenants of a group that are published, and the sorted names of all of them.
func (s *Server) serving(group string) (tenants map[string]*tenant, assigned []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	tenants = make(map[string]*tenant, len(s.groups[group]))
	for _, name := range s.groups[group] {
		if t := s.tenants[name]; t != nil {
			tenants[name] = t
		}
	}
	return tenants, s.groups[group] // replaced as a whole, never changed
}

// Disconnect ends the stream of a proxy, whose certificate Identify must refuse by now. It reports whether there was one.
func (s *Server) Disconnect(id string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.streams[id]
	if st != nil {
		st.stop(errRevoked)
	}
	return st != nil
}

// Close ends all streams and refuses new ones: proxies go elsewhere, or come back when there is a server again.
func (s *Server) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	for _, st := range s.streams {
		st.stop(errClosed)
	}
}

// enter makes a stream the one of its proxy. A proxy that lost its connection is back before the server notices, so
// the newer stream wins.
func (s *Server) enter(st *stream) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.assigned || s.closed {
		return false
	}
	if old := s.streams[st.peer.ID]; old != nil {
		old.stop(errReplaced)
	}
	s.streams[st.peer.ID] = st
	return true
}

func (s *Server) leave(st *stream) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.streams[st.peer.ID] == st {
		delete(s.streams, st.peer.ID)
	}
}
