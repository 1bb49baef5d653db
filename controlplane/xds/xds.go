// Package xds streams revisions of tenants to proxies over delta ADS (envoy.service.discovery.v3).
//
// Each tenant is an append-only log of the names that its revisions changed. A connected proxy is a cursor into the
// logs of the tenants that its group serves, with at most one revision of each outstanding: a slow proxy costs its cursor,
// and gets one merged difference when it is back. What is sent is encoded once and shared by all proxies that need it.
//
// A revision is sent as Secret frames, then Config frames, the last of which holds the tenant's Commit. The ACK of that
// frame means that the proxy serves the revision; a NACK of it names what the proxy could not build.
package xds

import (
	"context"
	"log/slog"
	"time"

	"google.golang.org/grpc"

	xdsv1 "github.com/sluicegate/sluice/proto/gen/sluice/xds/v1"
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
	// Grows from one revision of a tenant to the next.
	Number int64
	// For the Commit: over all resources of the tenant once this revision is in.
	Digest []byte
	// What changed since the last revision published; the first published holds all.
	Config, Secret               []Resource
	RemovedConfig, RemovedSecret []string
}

// New makes a server that refuses streams with UNAVAILABLE until Assign has been called.
func New(cfg Config) *Server { panic("") }

type Server struct{}

// ServerOptions are the options that a gRPC server with this service on it must be made with: the codec that sends
// shared frames, small buffers, message limits and keepalive. Other services on it are served as ever.
func ServerOptions() []grpc.ServerOption { panic("") }

// Register adds the delta ADS stream, and no other method of the service, to a server made with [ServerOptions].
func (s *Server) Register(r grpc.ServiceRegistrar) { panic("") }

// Publish makes a revision of a tenant the current one and wakes the proxies that serve it. It never blocks on one.
func (s *Server) Publish(tenant string, r Revision) { panic("") }

// Drop forgets a tenant that was deleted; proxies that hold it are told to remove it.
func (s *Server) Drop(tenant string) { panic("") }

// Assign says which tenants each group serves, all groups at once: a group that is missing serves none. Proxies that a
// tenant is taken from are told to remove it and nothing else. Publish all tenants before the first call: a proxy that
// connects may hold resources from earlier, and what is not published yet is neither sent nor removed.
func (s *Server) Assign(groups map[string][]string) { panic("") }

// Connected lists the proxies with a stream that serve the tenant, sorted.
func (s *Server) Connected(tenant string) []string { panic("") }

// Progress tells how far the connected proxies of a tenant are with a revision.
func (s *Server) Progress(tenant string, revision int64) Progress { panic("") }

// Changed returns a channel that is closed when Progress of the tenant may have changed. A revision to a thousand
// proxies changes it thousands of times: wait a few milliseconds before looking again.
func (s *Server) Changed(tenant string) <-chan struct{} { panic("") }

// Proxies lists the proxies with a stream, sorted by id.
func (s *Server) Proxies() []ProxyState { panic("") }

// Disconnect ends the stream of a proxy, whose certificate Identify must refuse by now. It reports whether there was one.
func (s *Server) Disconnect(id string) bool { panic("") }

// Progress holds each connected proxy of a tenant in exactly one of its lists, sorted.
type Progress struct {
	// The last revision published. If 0: none.
	Head int64
	// Proxies that serve the revision or a later one as it was written.
	Serving []string
	// Proxies that have it but could not build all of it, or of a later one.
	Refused []Refusal
	// Proxies that have not answered yet.
	Lagging []string
}

// A Refusal is one proxy's and its reasons, at least one.
type Refusal struct {
	Proxy string
	// Those without a Name are about the revision as a whole, from clients that give no details.
	Reasons []*xdsv1.Refusal
}

// ProxyState is one connected proxy.
type ProxyState struct {
	Peer
	Since time.Time
	// Revision that it serves, by tenant, whole or with refusals. Tenants that it has not answered for are missing.
	Revisions map[string]int64
	// By tenant, where there are any.
	Refusals map[string][]*xdsv1.Refusal
}
