package dataplane

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"

	"github.com/sluicegate/sluice/dataplane/snapshot"
	"github.com/sluicegate/sluice/dataplane/upstream"
	"github.com/sluicegate/sluice/internal/policy"
)

// Rehearsal is the request path of a proxy that has no socket, no disk and no targets: what would leave for a target is
// handed to a function, after the policies that change requests. It answers `sluice test`, so it shares serve.go and all below it
// with a proxy that serves. It fetches nothing by itself: what it is given must not name what is fetched. It is safe for
// concurrent use.
type Rehearsal struct{ proxy *proxy }

// RehearsalConfig is what a [Rehearsal] serves and who plays the targets.
type RehearsalConfig struct {
	Tenant    string
	Resources []RehearsalResource
	// Play answers a request for a target. Required; called by many goroutines.
	Play func(Sent) Answer
}

// RehearsalResource is one resource of a tenant, as a control plane sends it.
type RehearsalResource struct {
	Secret        bool // sluice.xds.v1.Secret; else Config
	Name, Version string
	Body          []byte
}

// Sent is one HTTP request as it leaves for a target. Nobody changes it.
type Sent struct {
	// Target is the target's own name, Resource its full resource name.
	Target, Resource string
	Method           string
	// URL is nil for a stdio target.
	URL    *url.URL
	Header http.Header
	Body   []byte
	// Env is what backendAuth adds to a stdio child's environment, NAME=value.
	Env []string
}

// Answer is a target's. A zero Status is 200.
type Answer struct {
	Status int
	Header http.Header
	Body   []byte
	// Err, if not nil, is why the request could not leave, as [policy.Target.Outgoing] would have it; the rest is zero.
	Err error
}

// Performance is what became of one request of a client.
type Performance struct {
	// Status, Header and Body are what the client got.
	Status int
	Header http.Header
	Body   []byte
	// Route and Backend are own names of what served it; empty where it did not come so far.
	Route, Backend string
	// Target is the own name of the target that it was for; several are joined by commas.
	Target string
	// Principal is the name in the log, empty for anonymous.
	Principal string
	// Refused is true if a policy for targets refused, and Rule what decided, as the log has it.
	Refused bool
	Rule    string
	// Err is what only the log tells; nil for none.
	Err error
}

// NewRehearsal builds what a proxy would. The error joins what a proxy would refuse.
func NewRehearsal(cfg RehearsalConfig) (*Rehearsal, error) {
	store := snapshot.New(snapshot.Config{
		ReadFile:  func(string) ([]byte, error) { return nil, policy.ErrUnknown },
		LookupEnv: func(string) (string, bool) { return "", false },
	})
	p := newProxy(proxyParts{Store: store, ProxyID: "rehearsal", Transport: func(t *snapshot.Target) upstream.Transport { return &played{t, cfg.Play} }})
	update := snapshot.Update{Tenant: cfg.Tenant, Revision: 1}
	for _, r := range cfg.Resources {
		typ := snapshot.ConfigType
		if r.Secret {
			typ = snapshot.SecretType
		}
		update.Set = append(update.Set, snapshot.Resource{Type: typ, Name: r.Name, Version: r.Version, Body: r.Body})
	}
	refused, err := store.Apply(update)
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, r := range refused {
		errs = append(errs, fmt.Errorf("%s: %s: %s", r.GetName(), r.GetField(), r.GetReason()))
	}
	return &Rehearsal{p}, errors.Join(errs...)
}

// Serve sends a request through the path, as if it had come to port at a time.
func (h *Rehearsal) Serve(port uint16, r *http.Request, at time.Time) Performance {
	w := &recorder{header: http.Header{}}
	x := exchange{proxy: h.proxy, port: port, w: answering{ResponseWriter: w, limit: writeTime}, r: r, started: at}
	if err := x.serve(); err != nil {
		x.refuse(err)
	}
	out := Performance{
		Status: w.status, Header: w.header, Body: w.body.Bytes(),
		Target: x.record.Target, Refused: x.record.Refused, Rule: x.record.Rule, Err: errors.Join(x.record.Err, x.err),
	}
	if x.route != nil {
		out.Route = x.route.Name
	}
	if x.backend != nil {
		out.Backend = x.backend.Name
	}
	if x.principal != nil {
		out.Principal = x.principal.Name
	}
	return out
}

// played is a target of which somebody else has the part.
type played struct {
	t    *snapshot.Target
	play func(Sent) Answer
}

// Owned is false: whatever its kind, a target that is played holds no session here.
func (p *played) Owned() bool { return false }

// Do does what a transport promises to do before a request leaves.
func (p *played) Do(ctx context.Context, r *upstream.Request) (*upstream.Response, error) {
	fail := func(err error) error {
		return &upstream.Error{Tenant: p.t.Tenant.Name, Target: p.t.Resource, Op: "authenticate", Err: err}
	}
	if p.t.Refused != nil && p.t.Policy == nil {
		return nil, fail(p.t.Refused)
	}
	if r.Header == nil {
		r.Header = http.Header{}
	}
	sent := Sent{Target: p.t.Name, Resource: p.t.Resource, Method: r.Method, URL: upstream.URL(p.t), Env: p.t.Policy.ChildEnv()}
	out := policy.Outbound{Method: r.Method, URL: sent.URL, Header: r.Header, Body: r.Body, Call: &r.Call}
	if sent.URL != nil { // a child is given what it is given when it starts
		if err := p.t.Policy.Outgoing(ctx, &out); err != nil {
			return nil, fail(err)
		}
	}
	sent.Header, sent.Body = r.Header.Clone(), bytes.Clone(r.Body)
	if sent.URL != nil {
		sent.Header.Set("Host", sent.URL.Host)
	}
	answer := p.play(sent)
	if answer.Err != nil {
		return nil, fail(answer.Err)
	}
	res := &upstream.Response{Status: answer.Status, Header: answer.Header, Body: io.NopCloser(bytes.NewReader(answer.Body)), Length: int64(len(answer.Body))}
	if res.Status == 0 {
		res.Status = http.StatusOK
	}
	if res.Header == nil {
		res.Header = http.Header{}
	}
	if len(answer.Body) == 0 {
		res.Body = http.NoBody
	}
	return res, nil
}

// recorder keeps an answer. A request is served by one goroutine, which is done with it when Serve returns.
type recorder struct {
	header http.Header
	status int
	body   bytes.Buffer
}

func (w *recorder) Header() http.Header { return w.header }

func (w *recorder) WriteHeader(status int) {
	if w.status == 0 && status >= 200 {
		w.status = status
	}
}

func (w *recorder) Write(b []byte) (int, error) {
	w.WriteHeader(http.StatusOK)
	return w.body.Write(b)
}

// Flush implements [http.Flusher]: streams ask for it.
func (w *recorder) Flush() { w.WriteHeader(http.StatusOK) }
