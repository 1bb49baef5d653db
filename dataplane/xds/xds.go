// Package xds is the delta ADS client of a proxy: it subscribes, stages what comes until its Commit, has it activated
// and says what became of it.
//
// A revision comes as chunks of Secrets and Config, of one tenant at a time or of several in turn. Chunks are ACKed when
// they arrive; the one with the tenant's Commit is ACKed once the revision serves, or NACKed with what of it does not
// build. What was staged without a Commit dies with the stream: on reconnect only what is active is claimed.
package xds

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/sluicegate/sluice/dataplane/snapshot"
	xdsv1 "github.com/sluicegate/sluice/proto/gen/sluice/xds/v1"
)

// Store is what a Client activates revisions in; [snapshot.Store] is one.
type Store interface {
	Apply(snapshot.Update) ([]*xdsv1.Refusal, error)
	Drop(tenant string)
	Versions() map[string]map[string]string
	Forget(tenant string)
	SetConnected(bool)
}

// Config of a [Client].
type Config struct {
	// Dial makes a connection for one attempt; the Client closes it.
	Dial func() (*grpc.ClientConn, error)
	// Store is where revisions go.
	Store Store
	// Proxy and Group are told as hints; what counts is the certificate.
	Proxy, Group string
	// If nil, nothing is logged.
	Log *slog.Logger
	// Committed is told of each revision that was activated, with the number of units refused. May be nil.
	Committed func(tenant string, revision int64, refused int)
}

// State is how a Client stands.
type State struct {
	Connected bool
	// Since is when Connected last changed.
	Since time.Time
	// Err is why it is not connected; nil if it is or was not tried yet.
	Err error
}

// Client keeps one stream. Make it with [New] and run it once.
type Client struct {
	cfg    Config
	synced chan struct{}

	mu    sync.Mutex // guards what is below
	state State
	conn  *grpc.ClientConn
}

const (
	minBackoff = 200 * time.Millisecond
	maxBackoff = 30 * time.Second
	// A control plane that has nothing for this proxy says nothing. After this long, silence means that.
	silence = time.Second
	// A stream that lived this long was a good one.
	settled = 5 * time.Second
	// A NACK lists no more than this: it has to fit into one message.
	maxRefusals = 1000
)

// New returns a client that has not dialled.
func New(cfg Config) *Client {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Committed == nil {
		cfg.Committed = func(string, int64, int) {}
	}
	return &Client{cfg: cfg, synced: make(chan struct{})}
}

// Synced is closed once a first revision is active, or it is clear that there is none for this proxy.
func (c *Client) Synced() <-chan struct{} { return c.synced }

// State tells whether there is a control plane.
func (c *Client) State() State {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.state
}

// Conn is the connection of the stream, nil if there is none now. It serves other calls as long as it lives.
func (c *Client) Conn() *grpc.ClientConn {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.conn
}

func (c *Client) setState(conn *grpc.ClientConn, err error) {
	c.mu.Lock()
	changed := c.state.Connected != (conn != nil)
	c.conn = conn
	c.state.Connected, c.state.Err = conn != nil, err
	if changed {
		c.state.Since = time.Now()
	}
	c.mu.Unlock()
	if changed {
		c.cfg.Store.SetConnected(conn != nil)
	}
}

// Run connects, and again with full jitter between 0.2 s and 30 s whenever the stream ends, until ctx does. It returns
// ctx's cause.
func (c *Client) Run(ctx context.Context) error {
	for failures := 0; ; failures++ {
		start := time.Now()
		err := c.attempt(ctx)
		c.setState(nil, err)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		// A stream that is taken and soon ended again, e.g. by another proxy with the same identity, is a failure too.
		if time.Since(start) > settled && !errors.Is(err, snapshot.ErrDrift) {
			failures = 0
		}
		wait := backoff(failures, err)
		c.cfg.Log.Warn("no control plane", "err", err, "retry_in", wait.Round(time.Millisecond))
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(wait):
		}
	}
}

// backoff is full jitter, so that a fleet does not come back as one. A server that says when to come back is obeyed.
func backoff(failures int, err error) time.Duration {
	wait := rand.N(min(minBackoff<<min(failures, 16), maxBackoff) + 1)
	for _, d := range status.Convert(err).Details() {
		if retry, ok := d.(*errdetails.RetryInfo); ok {
			wait += min(retry.GetRetryDelay().AsDuration(), maxBackoff)
		}
	}
	return wait
}

// attempt runs one stream to its end.
func (c *Client) attempt(ctx context.Context) error {
	conn, err := c.cfg.Dial()
	if err != nil {
		return err
	}
	defer conn.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := discoveryv3.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(ctx)
	if err != nil {
		return err
	}
	s := &session{c: c, stream: stream, staged: map[string]*staging{}}
	if err := s.subscribe(); err != nil {
		if _, reason := stream.Recv(); reason != nil { // a Send says io.EOF alone
			err = reason
		}
		return err
	}
	responses := make(chan *discoveryv3.DeltaDiscoveryResponse) // no room: what is not read yet holds the server back
	failed := make(chan error, 1)
	go func() {
		for {
			response, err := stream.Recv()
			if err != nil {
				failed <- err
				return
			}
			select {
			case responses <- response:
			case <-ctx.Done():
				failed <- context.Cause(ctx)
				return
			}
		}
	}()
	quiet := time.NewTimer(silence)
	defer quiet.Stop()
	for {
		select {
		case err := <-failed:
			return err
		case <-quiet.C:
			c.setState(conn, nil)
			c.markSynced()
		case response := <-responses:
			c.setState(conn, nil)
			quiet.Reset(silence)
			err := s.receive(response)
			if errors.Is(err, io.EOF) { // the server ended the stream; why, Recv says
				return drain(responses, failed)
			}
			if err != nil {
				cancel()
				<-failed
				return err
			}
		}
	}
}

func drain(responses <-chan *discoveryv3.DeltaDiscoveryResponse, failed <-chan error) error {
	for {
		select {
		case <-responses:
		case err := <-failed:
			return err
		}
	}
}

func (c *Client) markSynced() {
	select {
	case <-c.synced:
	default:
		close(c.synced)
	}
}

// session is one stream. One goroutine uses it.
type session struct {
	c      *Client
	stream grpc.BidiStreamingClient[discoveryv3.DeltaDiscoveryRequest, discoveryv3.DeltaDiscoveryResponse]
	staged map[string]*staging
}

// staging is what came of a tenant since its last Commit. A later word on a name replaces an earlier one.
type staging struct {
	set     map[snapshot.Key]snapshot.Resource
	removed map[snapshot.Key]bool
}

func (s *session) subscribe() error {
	versions := s.c.cfg.Store.Versions()
	node := &corev3.Node{Id: s.c.cfg.Proxy, Cluster: s.c.cfg.Group, UserAgentName: "sluice-proxy"}
	for _, typ := range []string{snapshot.SecretType, snapshot.ConfigType} { // what Config refers to comes first
		err := s.stream.Send(&discoveryv3.DeltaDiscoveryRequest{
			Node: node, TypeUrl: typ, ResourceNamesSubscribe: []string{"*"}, InitialResourceVersions: versions[typ],
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// receive stages one response, activates the tenants whose Commit is in it, and answers.
func (s *session) receive(r *discoveryv3.DeltaDiscoveryResponse) error {
	var commits []*commit
	var dropped []string
	for _, res := range r.GetResources() {
		if typ := res.GetResource().GetTypeUrl(); typ != r.GetTypeUrl() {
			return fmt.Errorf("the control plane sent %s as %q in a response of type %q", res.GetName(), typ, r.GetTypeUrl())
		}
		tenant, kind, err := split(res.GetName())
		if err != nil {
			return err
		}
		key := snapshot.Key{Type: r.GetTypeUrl(), Name: res.GetName()}
		st := s.stage(tenant)
		delete(st.removed, key)
		st.set[key] = snapshot.Resource{Type: key.Type, Name: key.Name, Version: res.GetVersion(), Body: res.GetResource().GetValue()}
		if kind == "commit" && r.GetTypeUrl() == snapshot.ConfigType {
			c, err := parseCommit(tenant, res.GetResource().GetValue())
			if err != nil {
				return err
			}
			commits = append(commits, c)
		}
	}
	for _, name := range r.GetRemovedResources() {
		tenant, kind, err := split(name)
		if err != nil {
			return err
		}
		if kind == "commit" && r.GetTypeUrl() == snapshot.ConfigType {
			dropped = append(dropped, tenant)
			continue
		}
		key := snapshot.Key{Type: r.GetTypeUrl(), Name: name}
		st := s.stage(tenant)
		delete(st.set, key)
		st.removed[key] = true
	}
	for _, tenant := range dropped {
		delete(s.staged, tenant)
		s.c.cfg.Store.Drop(tenant)
		s.c.cfg.Log.Info("tenant removed", "tenant", tenant)
	}
	refusals, err := s.activate(commits)
	if err != nil {
		return err
	}
	return s.answer(r, refusals)
}

func (s *session) stage(tenant string) *staging {
	st := s.staged[tenant]
	if st == nil {
		st = &staging{set: map[snapshot.Key]snapshot.Resource{}, removed: map[snapshot.Key]bool{}}
		s.staged[tenant] = st
	}
	return st
}

type commit struct {
	tenant   string
	revision int64
	digest   []byte
}

func parseCommit(tenant string, body []byte) (*commit, error) {
	var config xdsv1.Config
	if err := proto.Unmarshal(body, &config); err != nil {
		return nil, fmt.Errorf("the control plane sent a Commit of tenant %s that cannot be read: %w", tenant, err)
	}
	if config.GetCommit() == nil {
		return nil, fmt.Errorf("the control plane sent a Commit of tenant %s that is none", tenant)
	}
	return &commit{tenant, config.GetCommit().GetRevision(), config.GetCommit().GetDigest()}, nil
}

// split takes tenant and kind from `<tenant>/<kind>/<name>`; `<tenant>/session-keys` is a kind without a name.
func split(name string) (tenant, kind string, err error) {
	tenant, rest, ok := strings.Cut(name, "/")
	if !ok || tenant == "" || rest == "" {
		return "", "", fmt.Errorf("the control plane sent a resource named %q: it names no tenant and kind", name)
	}
	kind, _, _ = strings.Cut(rest, "/")
	return tenant, kind, nil
}

func (s *session) activate(commits []*commit) (refusals []*xdsv1.Refusal, err error) {
	for _, c := range commits {
		st := s.stage(c.tenant)
		delete(s.staged, c.tenant)
		update := snapshot.Update{Tenant: c.tenant, Revision: c.revision, Digest: c.digest}
		for _, r := range st.set {
			update.Set = append(update.Set, r)
		}
		for key := range st.removed {
			update.Removed = append(update.Removed, key)
		}
		start := time.Now()
		refused, err := s.c.cfg.Store.Apply(update)
		if errors.Is(err, snapshot.ErrDrift) {
			// What is held is not what the control plane thinks. Nothing of it is claimed next time.
			s.c.cfg.Store.Forget(c.tenant)
			return nil, fmt.Errorf("tenant %s, revision %d: %w", c.tenant, c.revision, err)
		}
		if err != nil {
			return nil, fmt.Errorf("tenant %s, revision %d: %w", c.tenant, c.revision, err)
		}
		s.c.markSynced()
		s.c.cfg.Committed(c.tenant, c.revision, len(refused))
		log := s.c.cfg.Log.With("tenant", c.tenant, "revision", c.revision, "duration", time.Since(start))
		for _, r := range refused[:min(len(refused), 10)] {
			log.Error("refused", "name", r.GetName(), "version", r.GetVersion(), "field", r.GetField(), "reason", r.GetReason())
		}
		log.Info("revision active", "changed", len(update.Set)+len(update.Removed), "refused", len(refused))
		refusals = append(refusals, refused...)
	}
	return refusals, nil
}

func (s *session) answer(r *discoveryv3.DeltaDiscoveryResponse, refusals []*xdsv1.Refusal) error {
	request := &discoveryv3.DeltaDiscoveryRequest{TypeUrl: r.GetTypeUrl(), ResponseNonce: r.GetNonce()}
	if len(refusals) > 0 {
		nack, err := nack(refusals)
		if err != nil {
			return err
		}
		request.ErrorDetail = nack
	}
	return s.stream.Send(request)
}

func nack(refusals []*xdsv1.Refusal) (*rpcstatus.Status, error) {
	names := []string{}
	for _, r := range refusals {
		if !slices.Contains(names, r.GetName()) && len(names) < 3 {
			names = append(names, r.GetName())
		}
	}
	out := &rpcstatus.Status{
		Code:    int32(codes.InvalidArgument),
		Message: fmt.Sprintf("%d refusals, among them of %s: %s", len(refusals), strings.Join(names, ", "), refusals[0].GetReason()),
	}
	for _, r := range refusals[:min(len(refusals), maxRefusals)] {
		detail, err := anypb.New(r)
		if err != nil {
			return nil, err
		}
		out.Details = append(out.Details, detail)
	}
	return out, nil
}
