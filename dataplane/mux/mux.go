package mux

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"strconv"
	"sync/atomic"
	"time"

	"golang.org/x/sync/singleflight"

	"github.com/sluicegate/sluice/dataplane/bridge/newclient"
	"github.com/sluicegate/sluice/dataplane/bridge/oldclient"
	"github.com/sluicegate/sluice/dataplane/mcp"
	"github.com/sluicegate/sluice/dataplane/session"
	"github.com/sluicegate/sluice/dataplane/snapshot"
	"github.com/sluicegate/sluice/dataplane/upstream"
	"github.com/sluicegate/sluice/internal/hold"
	"github.com/sluicegate/sluice/internal/policy"
)

// Config of a [Mux].
type Config struct {
	// Transport reaches a target, e.g. upstream.Manager.Transport.
	Transport func(*snapshot.Target) upstream.Transport
	// NewClients gives targets with sessions a stateless face. If nil, one of its own.
	NewClients *newclient.Bridge
	// Found is told what a target was found to speak, newest first. May be nil.
	Found func(*snapshot.Target, []string)
	// Sessions takes the sessions that begin, for who opens their ids. If nil, nobody is spared that.
	Sessions *session.Cache
	// Failed is told why a target's answer is of no use to any client. May be nil.
	Failed func(*snapshot.Target, error)
	// ProxyID names this proxy in sessions of which a part lives here alone.
	ProxyID string
	// Log gets what no answer tells. If nil, slog.Default().
	Log *slog.Logger
	// Limits of messages of clients and targets. The zero value means mcp's.
	Limits mcp.Limits
	// FanOut bounds one target's part of a fan-out, unless the target has a timeout. If zero, 30 s.
	FanOut time.Duration
	// Linger bounds how long a session's call goes on after its client has left. If zero, 5 min.
	Linger time.Duration
	// KeepAlive is the interval of comments on idle streams. If zero, 15 s.
	KeepAlive time.Duration
	// Draining returns the channel that is closed when the socket of a request is drained, e.g. listener.Draining.
	// If nil, streams end with their clients alone.
	Draining func(context.Context) <-chan struct{}
}

// Mux serves all backends of a proxy. It is safe for concurrent use.
type Mux struct {
	cfg Config
	log *slog.Logger

	oldclients *oldclient.Bridge
	graves     session.Tombstones
	soft       *hold.Cache[softKey, session.Target]
	levels     *hold.Cache[session.Nonce, string] // what clients have said by logging/setLevel
	eras       *hold.Cache[eraKey, eras]
	pages      *hold.Cache[pageKey, *page]
	catalogs   *hold.Cache[catalogKey, *catalog]
	changed    *hold.Cache[changeKey, *atomic.Uint64]
	taken      *hold.Cache[takenKey, struct{}]
	named      *hold.Cache[string, string]
	documents  *hold.Cache[string, []byte]
	reported   *hold.Cache[string, struct{}]
	tasks      *hold.Cache[taskKey, string] // the tool that made it
	flights    singleflight.Group
	streams    streams
	ids        atomic.Uint64 // of the last request of our own, from a random one on: other proxies ask in the same sessions
}

// New returns a Mux that remembers nothing yet.
func New(cfg Config) *Mux {
	m := &Mux{
		cfg:       cfg,
		log:       cfg.Log,
		soft:      hold.NewCache[softKey, session.Target](32 << 20),
		levels:    hold.NewCache[session.Nonce, string](16 << 20),
		eras:      hold.NewCache[eraKey, eras](16 << 20),
		pages:     hold.NewCache[pageKey, *page](128 << 20),
		catalogs:  hold.NewCache[catalogKey, *catalog](64 << 20),
		changed:   hold.NewCache[changeKey, *atomic.Uint64](8 << 20),
		taken:     hold.NewCache[takenKey, struct{}](16 << 20),
		named:     hold.NewCache[string, string](8 << 20),
		documents: hold.NewCache[string, []byte](16 << 20),
		reported:  hold.NewCache[string, struct{}](4 << 20),
		tasks:     hold.NewCache[taskKey, string](32 << 20),
	}
	m.ids.Store(rand.Uint64())
	if m.log == nil {
		m.log = slog.Default()
	}
	m.oldclients = oldclient.New(oldclient.Config{Transport: cfg.Transport, Log: m.log, Limits: cfg.Limits})
	if m.cfg.NewClients == nil {
		m.cfg.NewClients = newclient.New(newclient.Config{Transport: cfg.Transport, ProxyID: cfg.ProxyID, Log: m.log, Limits: cfg.Limits})
	}
	if m.cfg.Sessions == nil {
		m.cfg.Sessions = &session.Cache{}
	}
	if m.cfg.Found == nil {
		m.cfg.Found = func(*snapshot.Target, []string) {}
	}
	if m.cfg.Failed == nil {
		m.cfg.Failed = func(*snapshot.Target, error) {}
	}
	if m.cfg.Draining == nil {
		m.cfg.Draining = func(context.Context) <-chan struct{} { return nil }
	}
	m.cfg.FanOut = or(cfg.FanOut, 30*time.Second)
	m.cfg.Linger = or(cfg.Linger, 5*time.Minute)
	m.cfg.KeepAlive = or(cfg.KeepAlive, 15*time.Second)
	return m
}

// ownID is the raw id of a request of the proxy's own in a client's session, where no two that are open may have the same.
func (m *Mux) ownID() []byte {
	return append(strconv.AppendUint([]byte(`"sluice-`), m.ids.Add(1), 36), '"')
}

func or(d, zero time.Duration) time.Duration {
	if d == 0 {
		return zero
	}
	return d
}

// Request is one HTTP request for an MCP endpoint, known as far as the path before targets goes.
type Request struct {
	HTTP *http.Request
	// Start is when it began.
	Start time.Time
	// Port that the request came to, to find its route again when the configuration changes under a stream.
	Port      uint16
	Route     *snapshot.Route
	Backend   *snapshot.Backend
	Principal *policy.Principal // nil: anonymous
	Verdict   mcp.Verdict
	Message   *mcp.Message  // of a POST
	Batch     []mcp.Message // where Message is a batch: its elements
	// Codec and Scope of what is sealed for this caller. Codec is nil if the tenant has no keys yet.
	Codec *session.Codec
	Scope session.Scope
	// Session is set in the session era, but for initialize.
	Session *session.State
	// Ends says that a call ends when its client leaves, whatever the revision: nobody can come back for the answer.
	Ends bool
	// Record is filled in for the log line. Not nil.
	Record *Record

	mux  *Mux
	item item // what is asked for, once that is known
	// resumed is the raw id of the request whose stream is resumed; nil: none is, or it is not known.
	resumed []byte
	// responded: the client's stream has the response.
	responded bool
	taken     policy.Taken // tokens of localRateLimit
	// listened are the client's ids of the tasks that a subscriptions/listen is about.
	listened map[taskKey]string
	work     *policy.Work // of a list's decisions; nil else
}

// Record is what became of a request, for the log line and the metrics.
type Record struct {
	// Target's own name; several are joined by commas. Empty: none was asked.
	Target string
	// Name is the item's, as the target knows it.
	Name string
	// Refused is true, and Rule set, if a policy refused.
	Refused bool
	Rule    string
	// Status is the target's HTTP status, 0 if it did not answer.
	Status int
	// Failed is true for an answer that is an error of JSON-RPC.
	Failed bool
	// Err is what went wrong between proxy and target. Not for clients: it may name addresses.
	Err error
}

// Serve answers one request. An error was not answered yet: it is an [*Error] or an [*mcp.Error].
func (m *Mux) Serve(w http.ResponseWriter, x *Request) error {
	x.mux = m
	if t := x.Route.Transparent(); t != nil {
		return x.challenged(t, m.serveTransparent(w, x, t))
	}
	return m.serve(w, x)
}

func (m *Mux) serve(w http.ResponseWriter, x *Request) error {
	switch x.Verdict.Action {
	case mcp.Initialize:
		return m.initialize(w, x)
	case mcp.SessionGet:
		return m.stream(w, x)
	case mcp.SessionEnd:
		return m.end(w, x)
	}
	if x.Message.Kind == mcp.Batch {
		return m.batch(w, x)
	}
	return m.message(w, x)
}

// Deleted reports whether a session of a tenant was ended by its client, as far as this proxy knows.
func (m *Mux) Deleted(tenant string, s *session.State) bool {
	return m.graves.Has(tenant, s.Nonce)
}

// message serves one message of a POST.
func (m *Mux) message(w http.ResponseWriter, x *Request) error {
	switch x.Message.Kind {
	case mcp.Request:
		return m.request(w, x)
	case mcp.Notification:
		return m.notification(w, x)
	default:
		return m.response(w, x)
	}
}

// request finds the way of one request. What no revision has goes on where there is one target alone.
func (m *Mux) request(w http.ResponseWriter, x *Request) error {
	msg := x.Message
	switch msg.Info().Routing {
	case mcp.Unknown:
		if mcp.Disguised(msg.Method) {
			return x.unknownMethod()
		}
	case mcp.Lifecycle:
		switch {
		case msg.Method == "server/discover" && x.stateless():
			return m.discover(w, x)
		case msg.Method == "ping" && !x.stateless():
			return x.answer(w, nil) // liveness is a matter of each leg
		}
	case mcp.FanList:
		return m.list(w, x)
	case mcp.ByName:
		return m.byName(w, x)
	case mcp.ByURI:
		return m.byURI(w, x)
	case mcp.ByRef:
		return m.complete(w, x)
	case mcp.Broadcast:
		return m.setLevel(w, x)
	case mcp.ByTask:
		return m.byTask(w, x)
	case mcp.Listen:
		if !x.stateless() {
			return x.unknownMethod() // a session has a stream of its own
		}
		return m.listen(w, x)
	}
	return m.other(w, x)
}

// stateless reports whether the request stands alone.
func (x *Request) stateless() bool { return x.Verdict.Era == mcp.Stateless }

// revision is the protocol of the client's leg.
func (x *Request) revision() mcp.Revision {
	if x.Session != nil {
		return mcp.Revision(x.Session.Version)
	}
	return x.Verdict.Revision
}

// deadline is what bounds a call of a target, 0 if nothing does.
func deadline(t *snapshot.Target) time.Duration {
	d, _ := t.Policy.Timeouts(t.Config.GetTimeout().AsDuration())
	return d
}

// fanOut bounds what one target may take in a fan-out.
func (m *Mux) fanOut(ctx context.Context, t *snapshot.Target) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, or(deadline(t), m.cfg.FanOut), upstream.ErrTimeout)
}
