package xds

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Why a stream ends.
var (
	errNotReady = status.Error(codes.Unavailable, "the control plane is still loading: try again")
	errClosed   = status.Error(codes.Unavailable, "the control plane is shutting down")
	errReplaced = status.Error(codes.Aborted, "another stream of the same proxy has begun; two proxies must not share a certificate")
	errRevoked  = status.Error(codes.PermissionDenied, "the proxy's certificate has been revoked")
	errExpired  = status.Error(codes.Unauthenticated, "the certificate has expired: renew it and connect again")
	errLost     = status.Error(codes.Aborted, "fell too far behind: connect again with initial_resource_versions")
	errNames    = status.Errorf(codes.InvalidArgument, "more than %d resource names are subscribed: subscribe to * instead", maxNames)
)

// maxNames bounds what a client that subscribes by name makes the server remember.
const maxNames = 10_000

// maxReplies is how many answers to subscriptions by name wait to be sent before the next request is read.
const maxReplies = 16

// A stream is one proxy's. run alone touches its fields, but for those that say otherwise.
type stream struct {
	server *Server
	peer   Peer
	since  time.Time
	end    context.CancelCauseFunc // by stop
	ended  atomic.Bool             // it counts no more
	wake   chan struct{}           // holds at most one

	mu    sync.Mutex // guards marks, moved and the cursors' marked
	marks []*cursor  // tenants with something new
	moved bool       // the tenants to serve may be others

	subscribed [2]subscription
	cursors    map[string]*cursor
	claims     [2]map[string][]claim // of tenants that are assigned and not published yet
	turns      []*cursor             // who may have something to send, first come first served
	replies    []frame               // to subscriptions by name, and removals of what is nobody's
	nonces     uint64                // numbers of nonces given

	lastSent    uint64 // number of the nonce sent last
	answeredAll bool   // it was answered: the proxy has read all
}

// A subscription is what a client asked for of one type.
type subscription struct {
	asked    bool
	wildcard bool
	names    map[string]bool
}

// serve is the handler of the method.
func (s *Server) serve(grpcStream grpc.ServerStream) error {
	ctx, end := context.WithCancelCause(grpcStream.Context())
	defer end(nil)
	st := &stream{server: s, since: time.Now(), end: end, wake: make(chan struct{}, 1), cursors: map[string]*cursor{}, answeredAll: true}
	var err error
	if st.peer, err = s.identity(ctx); err != nil {
		return err
	}
	if !s.enter(st) {
		return errNotReady
	}
	defer st.close()
	if _, err = s.identity(ctx); err != nil { // revoked before Disconnect could find the stream
		return err
	}
	log := s.log.With("proxy", st.peer.ID, "group", st.peer.Group)
	log.Info("proxy connected")
	err = st.run(ctx, grpcStream, log)
	log.Info("proxy disconnected", "err", err)
	return err
}

func (s *Server) identity(ctx context.Context) (Peer, error) {
	peer, err := s.identify(ctx)
	if _, isStatus := status.FromError(err); err != nil && !isStatus {
		err = status.Error(codes.PermissionDenied, err.Error())
	}
	return peer, err
}

// run serves one proxy. Nothing is queued for it but its place: what to send is looked up when it can be sent.
func (s *stream) run(ctx context.Context, grpcStream grpc.ServerStream, log *slog.Logger) error {
	requests, hungUp := receive(ctx, grpcStream)
	sent, sending := make(chan error, 1), false
	var expired <-chan time.Time
	if !s.peer.Expires.IsZero() {
		timer := time.NewTimer(time.Until(s.peer.Expires))
		defer timer.Stop()
		expired = timer.C
	}
	for ctx.Err() == nil {
		if !sending {
			f, err := s.next()
			if err != nil {
				return err
			}
			if f != nil {
				sending = true
				s.send(grpcStream, f, sent)
			}
		}
		asks := requests
		if len(s.replies) >= maxReplies {
			asks = nil // who does not read is not listened to
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-expired:
			return errExpired
		case err := <-hungUp:
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		case r := <-asks:
			if err := s.receive(r, log); err != nil {
				return err
			}
		case err := <-sent:
			if err != nil {
				return err
			}
			sending = false
		case <-s.wake:
			s.collect()
		}
	}
	return context.Cause(ctx)
}

// send sends a frame, and then its outcome to sent. SendMsg blocks while the proxy does not read; then it must not keep run
// from ending the stream, so it has a goroutine of its own, which the end of the stream ends. But if all that was sent
// before has been answered, gRPC holds nothing of this stream and takes one frame of any size at once: that is nearly
// always so, and saves a goroutine for each update and proxy.
func (s *stream) send(grpcStream grpc.ServerStream, f *frame, sent chan<- error) {
	_, s.lastSent, _ = parseNonce(f.nonce)
	if s.answeredAll {
		s.answeredAll = false
		sent <- grpcStream.SendMsg(f)
		return
	}
	go func() { sent <- grpcStream.SendMsg(f) }()
}

// receive reads requests until the stream ends, which run's return brings about.
func receive(ctx context.Context, grpcStream grpc.ServerStream) (<-chan *request, <-chan error) {
	requests, hungUp := make(chan *request), make(chan error, 1)
	go func() {
		for {
			r := &request{}
			if err := grpcStream.RecvMsg(r); err != nil {
				hungUp <- err
				return
			}
			select {
			case requests <- r:
			case <-ctx.Done():
				return
			}
		}
	}()
	return requests, hungUp
}

// mark is called, by anybody, when a tenant has something new.
func (s *stream) mark(c *cursor) {
	s.mu.Lock()
	if !c.marked {
		c.marked = true
		s.marks = append(s.marks, c)
	}
	s.mu.Unlock()
	s.rouse()
}

// reassign is called, by anybody, when the tenants to serve may be others.
func (s *stream) reassign() {
	s.mu.Lock()
	s.moved = true
	s.mu.Unlock()
	s.rouse()
}

func (s *stream) rouse() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// collect takes in what mark and reassign left.
func (s *stream) collect() {
	s.mu.Lock()
	marks, moved := s.marks, s.moved
	s.marks, s.moved = nil, false
	for _, c := range marks {
		c.marked = false
	}
	s.mu.Unlock()
	for _, c := range marks {
		s.turn(c)
	}
	if moved {
		s.reconcile()
	}
}

// turn lets a cursor look for something to send.
func (s *stream) turn(c *cursor) {
	if !c.queued && s.cursors[c.tenant.name] == c {
		c.queued = true
		s.turns = append(s.turns, c)
	}
}

// next returns the next frame, or nil: tenants take turns, frame by frame.
func (s *stream) next() (*frame, error) {
	if len(s.replies) > 0 {
		f := s.replies[0]
		s.replies = slices.Delete(s.replies, 0, 1)
		return &f, nil
	}
	for len(s.turns) > 0 {
		c := s.turns[0]
		s.turns = slices.Delete(s.turns, 0, 1)
		c.queued = false
		f, err := c.next()
		if f != nil {
			s.turn(c)
		}
		if f != nil || err != nil {
			return f, err
		}
		s.settle(c)
	}
	return nil, nil
}

// settle forgets a tenant whose removal is through.
func (s *stream) settle(c *cursor) {
	if !c.departed || c.open {
		return
	}
	c.tenant.mu.Lock()
	delete(c.tenant.cursors, c)
	c.tenant.mu.Unlock()
	delete(s.cursors, c.tenant.name)
	s.reconcile() // it may have been given back meanwhile
}

// reconcile gives the stream a cursor for each tenant that it is to serve, and lets the others leave.
func (s *stream) reconcile() {
	if !s.subscribed[configs].asked && !s.subscribed[secrets].asked {
		return
	}
	tenants, assigned := s.server.serving(s.peer.Group)
	s.disown(assigned)
	for name, c := range s.cursors {
		if leaving := tenants[name] != c.tenant; leaving != c.leaving && !c.departed {
			c.tenant.mu.Lock()
			c.leaving = leaving
			c.tenant.progressLocked()
			c.tenant.mu.Unlock()
			s.turn(c)
		}
	}
	for name, t := range tenants {
		if s.cursors[name] == nil {
			s.join(t)
		}
	}
}

func (s *stream) join(t *tenant) {
	c := &cursor{stream: s, tenant: t}
	s.cursors[t.name] = c
	t.mu.Lock()
	c.sent = [2]int64{t.head, t.head}
	c.counts = s.subscribed[configs].asked
	for set := range s.subscribed {
		if s.subscribed[set].wildcard {
			c.beginLocked(set, s.claims[set][t.name])
			delete(s.claims[set], t.name)
		}
	}
	t.cursors[c] = struct{}{}
	t.progressLocked()
	t.mu.Unlock()
	s.turn(c)
}

// stop ends the stream, by anybody. It counts no more from then on, even while a proxy that does not read keeps run from seeing it.
func (s *stream) stop(cause error) {
	s.ended.Store(true)
	s.end(cause)
}

// close undoes what the stream left with others.
func (s *stream) close() {
	s.ended.Store(true)
	s.server.leave(s)
	for _, c := range s.cursors {
		c.tenant.mu.Lock()
		delete(c.tenant.cursors, c)
		c.tenant.progressLocked()
		c.tenant.mu.Unlock()
	}
}

// nonce gives the next nonce. The number in it is the stream's, so that none comes twice.
func (s *stream) nonce(tenant string, revision int64) string {
	s.nonces++
	return tenant + "/" + strconv.FormatInt(revision, 10) + "/" + strconv.FormatUint(s.nonces, 10)
}

// parseNonce is the inverse of nonce.
func parseNonce(nonce string) (tenant string, number uint64, ok bool) {
	tenant, rest, _ := strings.Cut(nonce, "/")
	_, last, _ := strings.Cut(rest, "/")
	number, err := strconv.ParseUint(last, 10, 64)
	return tenant, number, err == nil
}
