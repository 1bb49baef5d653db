package dataplane

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"os"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"github.com/sluicegate/sluice/dataplane/agent"
	"github.com/sluicegate/sluice/dataplane/listener"
	"github.com/sluicegate/sluice/dataplane/mcp"
	"github.com/sluicegate/sluice/dataplane/mux"
	"github.com/sluicegate/sluice/dataplane/peers"
	"github.com/sluicegate/sluice/dataplane/route"
	"github.com/sluicegate/sluice/dataplane/session"
	"github.com/sluicegate/sluice/dataplane/snapshot"
	"github.com/sluicegate/sluice/internal/policy"
	"github.com/sluicegate/sluice/internal/telemetry"
)

// maxBody is the largest body a client may send; mcp.Limits has the same for messages.
const maxBody = 16 << 20

// bodyTime is how long a client may take to send a body.
const bodyTime = 30 * time.Second

// proxy is the request path. It is safe for concurrent use.
type proxy struct {
	bodyTime  time.Duration
	writeTime time.Duration
	parts     proxyParts
	log       *slog.Logger
	mux       *mux.Mux
	codecs    sync.Map // tenant's name → *tenantCodec
	streams   sync.Map // session.Nonce → *sseStream: of clients of HTTP+SSE
	sessions  session.Cache
}

// tenantCodec is made once for the keys of a snapshot's tenant.
type tenantCodec struct {
	tenant *snapshot.Tenant
	codec  *session.Codec // nil: the tenant has no keys
}

// handlers is the request path for every port.
func handlers(parts proxyParts) func(port uint16) http.Handler { return newProxy(parts).handler }

// newProxy returns a proxy that serves what the store holds at the time of each request.
func newProxy(parts proxyParts) *proxy {
	p := &proxy{bodyTime: bodyTime, writeTime: writeTime, parts: parts, log: parts.Log}
	if p.log == nil {
		p.log = slog.New(slog.DiscardHandler)
	}
	if p.parts.Transport == nil {
		p.parts.Transport = parts.Upstreams.Transport
	}
	p.mux = mux.New(mux.Config{
		Transport:  p.parts.Transport,
		NewClients: parts.NewClients,
		Found:      p.parts.Found,
		Sessions:   &p.sessions,
		Failed:     p.parts.Failed,
		ProxyID:    parts.ProxyID,
		Log:        p.log,
		Limits:     mcp.Limits{Bytes: maxBody},
		Draining:   listener.Draining,
	})
	parts.Store.Subscribe(func(old, now *snapshot.Index) {
		p.codecs.Range(func(name, _ any) bool {
			if now.Tenant(name.(string)) == nil {
				p.codecs.Delete(name)
			}
			return true
		})
		p.mux.Changed(old, now)
	})
	return p
}

// handler serves one port.
func (p *proxy) handler(port uint16) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		x := exchange{proxy: p, port: port, w: answering{ResponseWriter: w, limit: p.writeTime}, r: r, started: time.Now()}
		defer x.tell()
		defer x.failed()
		if r.ContentLength != 0 {
			// The server has no read timeout, which would end event streams; a body that never comes must end all the same, also where
			// nobody asks for it: net/http reads it before it answers.
			_ = http.NewResponseController(w).SetReadDeadline(x.started.Add(p.bodyTime)) // every connection of ours can
		}
		err := x.serve()
		if elsewhere, ok := errors.AsType[*peers.Elsewhere](err); ok {
			err = x.forward(elsewhere.Owner)
		}
		if err != nil {
			x.refuse(err)
		}
	})
}

// failed ends a request in which the proxy itself has made a mistake. net/http would log it among what strangers do wrong.
func (x *exchange) failed() {
	r := recover()
	if r == nil {
		return
	}
	if r != http.ErrAbortHandler {
		x.record.Err = errors.New("a mistake of the proxy: see its log")
		x.proxy.log.Error("a request failed by a mistake of the proxy; please report it", "panic", r, "stack", string(debug.Stack()))
		if x.w.status == 0 {
			x.refuse(&httpError{http.StatusInternalServerError, "the proxy made a mistake; its log says which"})
			return
		}
	}
	panic(http.ErrAbortHandler) // the client must not take it for a whole answer
}

// exchange is one HTTP request and what becomes of it.
type exchange struct {
	proxy   *proxy
	port    uint16
	w       answering
	r       *http.Request
	started time.Time

	route     *snapshot.Route
	backend   *snapshot.Backend
	principal *policy.Principal
	raw       []byte // the body of a POST, whole
	message   *mcp.Message
	batch     []mcp.Message
	record    mux.Record
	owner     string // the proxy that the request was forwarded to
	err       error
}

// serve is the request path. Its error has not been answered yet.
func (x *exchange) serve() error {
	index := x.proxy.parts.Store.Load() // one view for the whole request, whatever is pushed meanwhile
	if path, ok := strings.CutPrefix(x.r.URL.Path, policy.WellKnownResource); ok && (path == "" || path[0] == '/') {
		if answered, err := x.metadata(index, path); answered || err != nil {
			return err
		}
	}
	var err error
	if x.route, err = index.Route(x.port, x.r); err != nil {
		return &httpError{http.StatusNotFound, err.Error()}
	}
	if x.route.Refused != nil {
		x.record.Err = x.route.Refused
		return &httpError{http.StatusServiceUnavailable, "this proxy refused the route's configuration"}
	}
	if !x.hostAllowed() {
		return errForeignHost
	}
	if !x.route.Policy.AllowOrigin(x.r, x.proxy.parts.Loopback) {
		return &httpError{http.StatusForbidden, "the Origin is not allowed: add it to cors.allowOrigins of the route"}
	}
	if x.route.Policy.Preflight(&x.w, x.r, x.proxy.parts.Loopback) { // before authentication: browsers show no credentials
		return nil
	}
	x.route.Policy.ResponseHeaders(x.w.Header(), x.r, x.proxy.parts.Loopback)
	if x.principal, err = x.route.Authenticate(x.r); err != nil {
		return err
	}
	if place, err := agent.Find(x.route, x.r.URL, x.steadily); err != nil {
		return &httpError{http.StatusNotFound, err.Error()}
	} else if place != nil {
		return x.serveAgent(place)
	}
	if x.overSSE() {
		return x.serveSSE()
	}
	if err := x.read("application/json", "text/event-stream"); err != nil {
		return err
	}
	verdict, err := mcp.Classify(mcp.Exchange{HTTPMethod: x.r.Method, Header: x.r.Header, Message: x.message, Batch: x.batch})
	if err != nil {
		return err
	}
	codec := x.proxy.codec(x.route.Tenant)
	state, scope, err := x.session(verdict, codec)
	if err != nil {
		return err
	}
	return x.proxy.mux.Serve(&x.w, &mux.Request{ // admission → target → upstream → response policies
		HTTP: x.r, Start: x.started, Port: x.port, Route: x.route, Backend: x.backend, Principal: x.principal, Verdict: verdict,
		Message: x.message, Batch: x.batch, Codec: codec, Scope: scope, Session: state, Record: &x.record,
		Ends: x.r.Context().Value(ofStream{}) != nil,
	})
}

var errForeignHost = &httpError{http.StatusForbidden, "the Host header is no name of this listener: a page of another site may have sent the request"}

// serveAgent goes on with a request whose target speaks A2A.
func (x *exchange) serveAgent(at *agent.Place) error {
	x.backend = at.Backend
	if err := x.read(); err != nil {
		return err
	}
	return agent.Serve(x.proxy.mux, &x.w, &mux.Request{
		HTTP: x.r, Start: x.started, Port: x.port, Route: x.route, Backend: x.backend, Principal: x.principal,
		Message: x.message, Batch: x.batch, Record: &x.record,
	}, at)
}

// hostAllowed checks Host where no listener or route names the hosts it serves: on a loopback address only loopback
// names can be meant, and any other is a page that rebinds its own name to this machine.
func (x *exchange) hostAllowed() bool {
	if x.route.Named() || !x.proxy.parts.Loopback {
		return true
	}
	name := route.Hostname(x.r.Host)
	if addr, err := netip.ParseAddr(name); err == nil {
		return addr.Unmap().IsLoopback()
	}
	return name == "localhost" || strings.HasSuffix(name, ".localhost")
}

// metadata answers with the document about a protected resource (RFC 9728 section 3). It is for everybody, before
// authentication and whatever page asks: it is what tells them how to authenticate. False, if the path is no resource's.
func (x *exchange) metadata(index *snapshot.Index, path string) (answered bool, err error) {
	if path == "/" {
		path = ""
	}
	found, path := index.Resource(x.port, x.r, path)
	if found == nil {
		return false, nil
	}
	if x.route = found; !x.hostAllowed() {
		return true, errForeignHost
	}
	h := x.w.Header()
	h.Set("Access-Control-Allow-Origin", "*")
	switch x.r.Method {
	case http.MethodGet, http.MethodHead:
	case http.MethodOptions:
		h.Set("Access-Control-Allow-Methods", "GET, HEAD, OPTIONS")
		h.Set("Access-Control-Allow-Headers", "*")
		h.Set("Access-Control-Max-Age", "3600")
		x.w.WriteHeader(http.StatusNoContent)
		return true, nil
	default:
		h.Set("Allow", "GET, HEAD, OPTIONS")
		return true, &httpError{http.StatusMethodNotAllowed, "the metadata of a protected resource is read with GET"}
	}
	if t := found.Transparent(); t != nil {
		x.backend = found.Backends[0]
		document, err := x.proxy.mux.ResourceMetadata(&mux.Request{HTTP: x.r, Start: x.started, Port: x.port, Route: found, Backend: x.backend, Record: &x.record}, t, path)
		if err != nil {
			return true, err
		}
		h.Set("Content-Type", "application/json")
		h.Set("Cache-Control", "no-store") // it names the host that was asked
		_, _ = x.w.Write(document)         // the client is gone: nobody to tell
		return true, nil
	}
	document := found.Policy.Metadata(x.r, path)
	if document == nil {
		return true, &httpError{http.StatusServiceUnavailable, "nothing says by which name the resource is reached: set mcpAuthentication's resource, or hostnames without wildcards"}
	}
	h.Set("Content-Type", "application/json")
	h.Set("Cache-Control", "max-age=300")
	_, _ = x.w.Write(document) // the client is gone: nobody to tell
	return true, nil
}

// read takes the body of a POST apart, whose sender must take all of answers for one.
func (x *exchange) read(answers ...string) error {
	if x.r.Method != http.MethodPost {
		return nil
	}
	if kind, _, _ := strings.Cut(x.r.Header.Get("Content-Type"), ";"); !strings.EqualFold(strings.TrimSpace(kind), "application/json") {
		return &httpError{http.StatusUnsupportedMediaType, "a POST needs Content-Type: application/json"}
	}
	for _, kind := range answers {
		if !mcp.Accepts(x.r.Header, kind) {
			return &mcp.Error{Status: http.StatusNotAcceptable, Code: mcp.CodeInvalidRequest, Message: "Accept must list " + strings.Join(answers, " and ")}
		}
	}
	if err := x.body(); err != nil {
		return err
	}
	msg, err := mcp.Scan(x.raw, mcp.Limits{Bytes: maxBody})
	if err != nil {
		return err
	}
	if msg.Kind == mcp.Batch {
		if x.batch, err = mcp.ScanBatch(x.raw, mcp.Limits{Bytes: maxBody}); err != nil {
			return err
		}
	}
	x.message = &msg
	return nil
}

// body reads all of it into raw. After an error the deadline stays: what is left of the body is not waited for either.
func (x *exchange) body() (err error) {
	if x.raw, err = x.readBody(); err == nil {
		_ = http.NewResponseController(x.w.ResponseWriter).SetReadDeadline(time.Time{})
	}
	return err
}

// readBody reads into one buffer of the right size, where the client says how long it is.
func (x *exchange) readBody() ([]byte, error) {
	tooLarge := &mcp.Error{Status: http.StatusRequestEntityTooLarge, Code: mcp.CodeInvalidRequest, Message: "the body is larger than 16 MiB"}
	if x.r.ContentLength > maxBody {
		return nil, tooLarge
	}
	if n := x.r.ContentLength; n >= 0 && n <= 64<<10 { // more is not made room for on a client's word alone
		body := make([]byte, n)
		if _, err := io.ReadFull(x.r.Body, body); err != nil {
			return nil, x.brokeOff(err)
		}
		return body, nil
	}
	body, err := io.ReadAll(http.MaxBytesReader(&x.w, x.r.Body, maxBody))
	if _, over := errors.AsType[*http.MaxBytesError](err); over {
		return nil, tooLarge
	}
	if err != nil {
		return nil, x.brokeOff(err)
	}
	return body, nil
}

func (x *exchange) brokeOff(err error) error {
	x.record.Err = err
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return &mcp.Error{Status: http.StatusRequestTimeout, Code: mcp.CodeParse, Message: "the body did not come in time"}
	}
	return &mcp.Error{Status: http.StatusBadRequest, Code: mcp.CodeParse, Message: "the body broke off"}
}

// session opens the session of a request and finds the backend it belongs to. Without one, it chooses a backend.
func (x *exchange) session(v mcp.Verdict, codec *session.Codec) (*session.State, session.Scope, error) {
	scope := session.Scope{Tenant: x.route.Tenant.Name}
	if x.principal != nil {
		scope.Principal = x.principal.ID
	}
	if v.Era == mcp.Sessions && x.route.Transparent() != nil {
		scope.Principal = session.AnyBearer
	}
	if len(x.route.Backends) == 0 {
		return nil, scope, &httpError{http.StatusServiceUnavailable, "the route has no backend"}
	}
	if v.Action == mcp.Call || v.Action == mcp.Initialize {
		if x.backend = x.ofTask(codec, scope); x.backend == nil {
			x.backend = x.choose(v.Era == mcp.Stateless)
		}
		scope.Backend = x.backend.Resource
		if owner := x.waitsAt(codec, scope); owner != "" && owner != x.proxy.parts.ProxyID {
			return nil, scope, &peers.Elsewhere{Owner: owner}
		}
		return nil, scope, nil
	}
	var id []byte
	if x.message != nil {
		id = x.message.RawID()
	}
	if codec != nil {
		for _, b := range x.route.Backends {
			scope.Backend = b.Resource
			state, err := x.proxy.sessions.Decode(codec, scope, v.Session)
			if err != nil || x.proxy.mux.Deleted(x.route.Tenant.Name, state) {
				continue
			}
			x.backend = b
			if state.Owner != "" && state.Owner != x.proxy.parts.ProxyID {
				return nil, scope, &peers.Elsewhere{Owner: state.Owner}
			}
			return state, scope, nil
		}
	}
	return nil, scope, &mcp.Error{Status: http.StatusNotFound, Code: -32001, ID: id, Message: "Session not found"}
}

// waitsAt is the proxy where the call of a retry waits; "" if none does. It is asked before any policy, for the owner applies them all.
func (x *exchange) waitsAt(codec *session.Codec, scope session.Scope) string {
	if codec == nil || x.message == nil || !x.message.RequestState.IsString() {
		return ""
	}
	call, err := codec.OpenCall(scope, x.message.RequestState.String())
	if err != nil || call.ID == (session.CallID{}) {
		return "" // the target's own, or no good: the bridge says so
	}
	return call.Owner
}

// codec returns the tenant's, made anew when its snapshot changes.
func (p *proxy) codec(t *snapshot.Tenant) *session.Codec {
	if v, ok := p.codecs.Load(t.Name); ok {
		if c := v.(*tenantCodec); c.tenant == t {
			return c.codec
		}
	}
	keys := make([]session.Key, 0, len(t.Keys))
	for _, k := range t.Keys {
		if len(k.ID) == 4 && len(k.Key) == 32 {
			keys = append(keys, session.Key{ID: [4]byte(k.ID), Secret: [32]byte(k.Key)})
		}
	}
	c := &tenantCodec{tenant: t}
	if len(keys) > 0 {
		var err error
		if c.codec, err = session.New(keys); err != nil {
			p.log.Error("session keys cannot be used", "tenant", t.Name, "err", err)
		}
	}
	p.codecs.Store(t.Name, c)
	return c.codec
}

// httpError is a refusal before the request is known to be MCP.
type httpError struct {
	status int
	text   string
}

func (e *httpError) Error() string { return e.text }

// refuse answers an error, once.
func (x *exchange) refuse(err error) {
	x.err = err
	if x.w.status != 0 {
		return // too late: the answer has begun
	}
	if auth, ok := errors.AsType[*policy.AuthError](err); ok {
		if auth.Challenge != "" {
			x.w.Header()["Www-Authenticate"] = []string{auth.Challenge}
		}
		http.Error(&x.w, auth.Reason, auth.Status)
		return
	}
	if plain, ok := errors.AsType[*httpError](err); ok {
		http.Error(&x.w, plain.text, plain.status)
		return
	}
	mux.Answer(&x.w, err)
}

// tell counts the exchange and writes its line.
func (x *exchange) tell() {
	if x.proxy.parts.Calls == nil {
		return
	}
	c := telemetry.Call{
		Start: x.started, Duration: time.Since(x.started), Method: x.r.Method, Source: x.r.RemoteAddr,
		Owner: x.owner, Peer: peers.From(x.r.Context()),
		Target: x.record.Target, Name: x.record.Name, Rule: x.record.Rule, Status: x.w.status, Upstream: x.record.Status, Verdict: "allow",
	}
	if x.route != nil {
		c.Tenant, c.Route, c.Revision = x.route.Tenant.Name, x.route.Name, x.route.Tenant.Revision
	}
	if x.backend != nil {
		c.Backend = x.backend.Name
	}
	if x.principal != nil {
		c.Principal = x.principal.Name
	}
	if x.message != nil {
		switch {
		case x.message.Method != "":
			c.Method = x.message.Method
		default:
			c.Method = x.message.Kind.String()
		}
	}
	if x.record.Err != nil {
		c.Err = x.record.Err.Error()
	} else if x.err != nil {
		c.Err = x.err.Error()
	}
	c.Outcome = x.outcome()
	if c.Outcome == telemetry.OutcomeDenied || c.Outcome == telemetry.OutcomeUnauth {
		c.Verdict = "deny"
	}
	x.proxy.parts.Calls.Done(&c)
}

func (x *exchange) outcome() string {
	_, auth := errors.AsType[*policy.AuthError](x.err)
	switch {
	case x.record.Refused:
		return telemetry.OutcomeDenied
	case auth:
		return telemetry.OutcomeUnauth
	case x.err == nil && x.r.Context().Err() != nil && errors.Is(context.Cause(x.r.Context()), context.Canceled) && x.message != nil && x.w.status == 0:
		return telemetry.OutcomeCanceled
	case x.w.status == http.StatusServiceUnavailable:
		return telemetry.OutcomeUnavailable
	case x.w.status >= 500, x.record.Failed:
		return telemetry.OutcomeError
	case x.w.status >= 400, x.err != nil:
		return telemetry.OutcomeInvalid
	}
	return telemetry.OutcomeOK
}
