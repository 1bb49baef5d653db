// Package api is what operators and proxies ask the control plane: who calls, may they, is it valid; then one edit for
// the publisher, and the outcome told.
package api

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"google.golang.org/grpc"

	"github.com/sluicegate/sluice/controlplane/store"
	"github.com/sluicegate/sluice/controlplane/tenant"
	"github.com/sluicegate/sluice/internal/mtls"
	adminv1 "github.com/sluicegate/sluice/proto/gen/sluice/admin/v1"
	fleetv1 "github.com/sluicegate/sluice/proto/gen/sluice/fleet/v1"
	xdsv1 "github.com/sluicegate/sluice/proto/gen/sluice/xds/v1"
)

// MaxMessage is the largest admin message: a configuration of ten thousand targets is some 10 MB.
const MaxMessage = 256 << 20

// Config holds what the API stands on. All fields are needed but those that say otherwise.
type Config struct {
	Store     store.Store
	Registry  *tenant.Registry
	Vault     *tenant.Vault
	CA        *mtls.CA
	Publisher Publisher
	Fleet     Fleet
	// If nil, slog.Default().
	Log *slog.Logger
	// If nil, time.Now.
	Now func() time.Time
}

// Publisher owns the tenants' configuration. Each call of Submit is one edit of its loop.
type Publisher interface {
	// View returns what is published of a tenant, or of [tenant.Platform]; false if there is no such tenant.
	View(name string) (*View, bool)
	// Views returns all tenants by name, without the platform's.
	Views() []*View
	// Submit does an edit: checked, stored, published, in this order. An error is a *[Invalid], a *[Conflict] or a
	// *[Missing] if it is the caller's.
	Submit(ctx context.Context, e Edit) (*Outcome, error)
	Explain(ctx context.Context, tenant, target string) (*adminv1.ExplainResponse, error)
	// Groups returns for each group the tenants that it serves.
	Groups() map[string][]string
	// Warnings returns what is bad at run time in the control plane itself, e.g. keys that cannot be fetched.
	Warnings(tenant string) []*adminv1.ObjectStatus
	// Origin returns the operator's object and field that a refusal is about, e.g. `target/tools/search`.
	Origin(tenant string, r *xdsv1.Refusal) (object, field string)
}

// Fleet knows what connected proxies serve.
type Fleet interface {
	// Connected returns the ids of proxies that are connected and serve the tenant.
	Connected(tenant string) []string
	// Progress tells of each proxy that Connected returns how far it is with a revision.
	Progress(tenant string, revision int64) Progress
	// Changed is closed at the next change of Connected or Progress.
	Changed(tenant string) <-chan struct{}
	// Serving returns for each connected proxy the revisions that it serves, by tenant.
	Serving() map[string]map[string]int64
	Disconnect(proxy string)
}

// Progress of a revision. A proxy that serves a later one serves it.
type Progress struct {
	Serving []string
	// By proxy: those that have it but could not build all of it.
	Refused map[string][]*xdsv1.Refusal
}

// View is one tenant as published. It is never changed once it is here.
type View struct {
	tenant.Info
	Revision int64
	// By key. Inline credentials are sealed.
	Objects store.Objects
	// Fingerprints of the sealed values that the objects name, and how often.
	Sealed map[string]int
	// Above all tenants; nil if there is none.
	Platform *adminv1.Object
}

// Edit is one request for the publisher's loop.
type Edit struct {
	// Whose revision the outcome tells.
	Tenant  string
	Actor   string
	Comment string
	// If not empty: the outcome is kept, and a second edit with the same id and Request gets it again.
	RequestID string
	// Fingerprint of the request.
	Request string
	// If not 0: the head that the tenant must have.
	IfRevision int64
	DryRun     bool
	// Plan says what becomes of tenants, as they are when the edit is its turn. It must not change what it sees and may
	// be called more than once.
	Plan func(ctx context.Context, at World) ([]Change, error)
}

// World is what a plan sees.
type World interface {
	View(name string) (*View, bool)
}

// Change is what an edit does to one tenant or to the platform.
type Change struct {
	Tenant string
	// Objects that are made or replaced; those that are the same are no change. No inline credential is left in them.
	Put []*adminv1.Object
	// Keys of objects that go.
	Remove []string
	// Values lifted out of Put, by fingerprint.
	Sealed map[string][]byte
	// If not nil, the tenant's new grants.
	Grants *[]string
	// The tenant is made, or removed with all it has.
	Create, Drop bool
	// Warnings and notes, told with the outcome.
	Diagnostics []*adminv1.Diagnostic
}

// Outcome of an edit.
type Outcome struct {
	// The head of Edit.Tenant afterwards.
	Revision int64
	// Objects that the edit changed, as they were and as they are; for a repeated request those of the first time.
	Before, After []*adminv1.Object
	Diagnostics   []*adminv1.Diagnostic
}

// Invalid says all that is wrong with an edit.
type Invalid struct {
	Diagnostics []*adminv1.Diagnostic
}

// Conflict says that somebody else was faster, or owns what was to be changed. Its text is for the operator.
type Conflict struct {
	Reason string
}

// Missing says that something is not there. Its text is for the operator.
type Missing struct {
	Reason string
}

func (e *Conflict) Error() string { return e.Reason }
func (e *Missing) Error() string  { return e.Reason }

// Server answers both services.
type Server struct {
	Config
	reports *reports
}

// New returns a server. It has no goroutines of its own.
func New(c Config) (*Server, error) {
	if c.Store == nil || c.Registry == nil || c.Vault == nil || c.CA == nil || c.Publisher == nil || c.Fleet == nil {
		return nil, errors.New("api: Store, Registry, Vault, CA, Publisher and Fleet are needed")
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	return &Server{Config: c, reports: newReports()}, nil
}

// Admin returns the gRPC server of the admin port; its options are complete but for the transport's.
func (s *Server) Admin(options ...grpc.ServerOption) *grpc.Server {
	g := grpc.NewServer(append(options,
		grpc.MaxRecvMsgSize(MaxMessage), grpc.MaxSendMsgSize(MaxMessage),
		grpc.UnaryInterceptor(s.adminUnary), grpc.StreamInterceptor(s.adminStream))...)
	adminv1.RegisterAdminServer(g, admin{Server: s})
	return g
}

// Proxies returns the gRPC server of the xDS port with the fleet service; register adds the aggregated discovery service.
func (s *Server) Proxies(register func(grpc.ServiceRegistrar), options ...grpc.ServerOption) *grpc.Server {
	g := grpc.NewServer(append(options,
		grpc.UnaryInterceptor(s.fleetUnary), grpc.StreamInterceptor(s.fleetStream))...)
	fleetv1.RegisterFleetServer(g, fleet{Server: s})
	register(g)
	return g
}

// admin and fleet keep the methods of the two services apart: both would be Server's else.
type admin struct {
	adminv1.UnimplementedAdminServer
	*Server
}

type fleet struct {
	fleetv1.UnimplementedFleetServer
	*Server
}
