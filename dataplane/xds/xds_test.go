package xds

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/sluicegate/sluice/dataplane/snapshot"
	xdsv1 "github.com/sluicegate/sluice/proto/gen/sluice/xds/v1"
)

type stream = grpc.BidiStreamingServer[discoveryv3.DeltaDiscoveryRequest, discoveryv3.DeltaDiscoveryResponse]

// server plays the control plane: serve has a stream to itself.
type server struct {
	discoveryv3.UnimplementedAggregatedDiscoveryServiceServer
	serve func(n int, s stream) error

	mu      sync.Mutex // guards streams
	streams int
}

func (s *server) DeltaAggregatedResources(st stream) error {
	s.mu.Lock()
	s.streams++
	n := s.streams
	s.mu.Unlock()
	return s.serve(n, st)
}

func (s *server) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.streams
}

// start runs a client against serve, all in the bubble.
func start(t *testing.T, store Store, serve func(n int, s stream) error) (*Client, *server, func()) {
	t.Helper()
	listener := bufconn.Listen(64 << 10)
	srv := &server{serve: serve}
	g := grpc.NewServer()
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(g, srv)
	served := make(chan struct{})
	go func() { defer close(served); g.Serve(listener) }()
	c := New(Config{
		Store: store, Proxy: "p", Group: "g",
		Dial: func() (*grpc.ClientConn, error) {
			return grpc.NewClient("passthrough:///bufconn", grpc.WithTransportCredentials(insecure.NewCredentials()),
				grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) }))
		},
	})
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	return c, srv, func() {
		stop()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("Run() = %v", err)
		}
		g.Stop()
		listener.Close()
		<-served
	}
}

// fakeStore notes what it is told.
type fakeStore struct {
	mu       sync.Mutex // guards all below
	events   []string
	versions map[string]map[string]string
	refuse   []*xdsv1.Refusal
	err      error
}

func (f *fakeStore) Apply(u snapshot.Update) ([]*xdsv1.Refusal, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var names []string
	for _, r := range u.Set {
		names = append(names, "+"+r.Name+"@"+r.Version+"="+string(r.Body[:min(len(r.Body), 3)]))
	}
	for _, r := range u.Removed {
		names = append(names, "-"+r.Name)
	}
	slices.Sort(names)
	f.events = append(f.events, fmt.Sprintf("apply %s %d %x %v", u.Tenant, u.Revision, u.Digest, names))
	return f.refuse, f.err
}

func (f *fakeStore) note(format string, args ...any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.events = append(f.events, fmt.Sprintf(format, args...))
}

func (f *fakeStore) Drop(tenant string)   { f.note("drop %s", tenant) }
func (f *fakeStore) Forget(tenant string) { f.note("forget %s", tenant) }
func (f *fakeStore) SetConnected(on bool) { f.note("connected %v", on) }
func (f *fakeStore) Versions() map[string]map[string]string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.versions
}

func (f *fakeStore) take() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := f.events
	f.events = nil
	return out
}

// response makes one of name@version pairs; the body is the name's last letter, or a Commit.
func response(t testing.TB, typ, nonce string, set map[string]string, removed ...string) *discoveryv3.DeltaDiscoveryResponse {
	t.Helper()
	r := &discoveryv3.DeltaDiscoveryResponse{TypeUrl: typ, Nonce: nonce, RemovedResources: removed}
	for _, name := range slices.Sorted(maps.Keys(set)) {
		body := []byte(name[len(name)-1:])
		if _, kind, _ := split(name); kind == "commit" {
			var err error
			body, err = proto.Marshal(&xdsv1.Config{Resource: &xdsv1.Config_Commit{Commit: &xdsv1.Commit{Revision: 7, Digest: []byte{0xd}}}})
			if err != nil {
				t.Fatal(err)
			}
		}
		r.Resources = append(r.Resources, &discoveryv3.Resource{Name: name, Version: set[name], Resource: &anypb.Any{TypeUrl: typ, Value: body}})
	}
	return r
}

// subscriptions reads the two requests that a stream begins with.
func subscriptions(t *testing.T, s stream) map[string]*discoveryv3.DeltaDiscoveryRequest {
	t.Helper()
	out := map[string]*discoveryv3.DeltaDiscoveryRequest{}
	for _, want := range []string{snapshot.SecretType, snapshot.ConfigType} {
		r, err := s.Recv()
		if err != nil {
			t.Errorf("subscription: %v", err)
			return out
		}
		if r.GetTypeUrl() != want || !slices.Equal(r.GetResourceNamesSubscribe(), []string{"*"}) || r.GetNode().GetId() != "p" || r.GetNode().GetCluster() != "g" {
			t.Errorf("subscription %v, want * of %s", r, want)
		}
		out[want] = r
	}
	return out
}

// exchange sends a response and returns what the client answers to it.
func exchange(t *testing.T, s stream, r *discoveryv3.DeltaDiscoveryResponse) *discoveryv3.DeltaDiscoveryRequest {
	t.Helper()
	if err := s.Send(r); err != nil {
		t.Errorf("send: %v", err)
		return nil
	}
	answer, err := s.Recv()
	if err != nil {
		t.Errorf("no answer to %s: %v", r.GetNonce(), err)
		return nil
	}
	if answer.GetResponseNonce() != r.GetNonce() || answer.GetTypeUrl() != r.GetTypeUrl() {
		t.Errorf("answer %v to %s of %s", answer, r.GetNonce(), r.GetTypeUrl())
	}
	return answer
}

func hang(s stream) error { <-s.Context().Done(); return nil }

func TestChunksAreStagedUntilTheirCommit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &fakeStore{}
		c, _, stop := start(t, store, func(_ int, s stream) error {
			subscriptions(t, s)
			for _, r := range []*discoveryv3.DeltaDiscoveryResponse{
				response(t, snapshot.SecretType, "1", map[string]string{"acme/secret/s": "v1"}),
				response(t, snapshot.ConfigType, "2", map[string]string{"acme/target/b/x": "v1", "acme/target/b/y": "v1", "other/route/r": "v1"}, "acme/route/old"),
			} {
				if ack := exchange(t, s, r); ack.GetErrorDetail() != nil {
					t.Errorf("a chunk was refused: %v", ack)
				}
				if events := store.take(); slices.ContainsFunc(events, func(e string) bool { return e[0] == 'a' }) {
					t.Errorf("applied before the Commit: %v", events)
				}
			}
			// A later word on a name replaces an earlier one, in both directions; another tenant's chunk waits on.
			last := response(t, snapshot.ConfigType, "3", map[string]string{"acme/target/b/x": "v2", "acme/route/old": "v3", "acme/commit/acme": "c"}, "acme/target/b/y")
			if ack := exchange(t, s, last); ack.GetErrorDetail() != nil {
				t.Errorf("the Commit was refused: %v", ack)
			}
			return hang(s)
		})
		synctest.Wait()
		want := []string{"apply acme 7 0d [+acme/commit/acme@c=J\x05\b +acme/route/old@v3=d +acme/secret/s@v1=s +acme/target/b/x@v2=x -acme/target/b/y]"}
		if diff := cmp.Diff(want, store.take()); diff != "" {
			t.Errorf("events (-want +got):\n%s", diff)
		}
		if !c.State().Connected || c.Conn() == nil {
			t.Error("not connected")
		}
		select {
		case <-c.Synced():
		default:
			t.Error("not synced after a Commit")
		}
		stop()
	})
}

func TestNackHoldsTypedRefusals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		refusal := &xdsv1.Refusal{Type: snapshot.ConfigType, Name: "acme/binding/r/b/x", Version: "v1", Field: "policies.mcpAuthorization.rules[1]", Reason: "syntax"}
		store := &fakeStore{refuse: []*xdsv1.Refusal{refusal}}
		_, _, stop := start(t, store, func(_ int, s stream) error {
			subscriptions(t, s)
			detail := exchange(t, s, response(t, snapshot.ConfigType, "1", map[string]string{"acme/commit/acme": "c"})).GetErrorDetail()
			if detail.GetCode() != int32(codes.InvalidArgument) || len(detail.GetDetails()) != 1 {
				t.Errorf("NACK %v", detail)
				return nil
			}
			var got xdsv1.Refusal
			if err := detail.GetDetails()[0].UnmarshalTo(&got); err != nil || !proto.Equal(&got, refusal) {
				t.Errorf("refusal %v, %v, want %v", &got, err, refusal)
			}
			// The stream goes on, and what was mended is ACKed.
			store.mu.Lock()
			store.refuse = nil
			store.mu.Unlock()
			if ack := exchange(t, s, response(t, snapshot.ConfigType, "2", map[string]string{"acme/commit/acme": "d"})); ack.GetErrorDetail() != nil {
				t.Errorf("answer to the mended revision: %v", ack)
			}
			return hang(s)
		})
		synctest.Wait()
		stop()
	})
}

func TestStagedChunksDieWithTheStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &fakeStore{versions: map[string]map[string]string{
			snapshot.ConfigType: {"acme/route/r": "v1", "acme/commit/acme": ""}, snapshot.SecretType: {"acme/secret/s": "v2"},
		}}
		_, srv, stop := start(t, store, func(n int, s stream) error {
			subs := subscriptions(t, s)
			for typ, versions := range store.versions {
				if diff := cmp.Diff(versions, subs[typ].GetInitialResourceVersions()); diff != "" {
					t.Errorf("stream %d claims of %s (-want +got):\n%s", n, typ, diff)
				}
			}
			if n == 1 {
				exchange(t, s, response(t, snapshot.ConfigType, "1", map[string]string{"acme/target/b/lost": "v1"}))
				return status.Error(codes.Unavailable, "restarting")
			}
			exchange(t, s, response(t, snapshot.ConfigType, "1", map[string]string{"acme/commit/acme": "c"}))
			return hang(s)
		})
		time.Sleep(time.Second)
		want := []string{"connected true", "connected false", "connected true", "apply acme 7 0d [+acme/commit/acme@c=J\x05\b]"}
		if diff := cmp.Diff(want, store.take()); diff != "" {
			t.Errorf("events (-want +got):\n%s", diff)
		}
		if srv.count() != 2 {
			t.Errorf("%d streams, want 2", srv.count())
		}
		stop()
	})
}

func TestTenantRemoved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &fakeStore{}
		_, _, stop := start(t, store, func(_ int, s stream) error {
			subscriptions(t, s)
			exchange(t, s, response(t, snapshot.SecretType, "1", nil, "acme/secret/s"))
			ack := exchange(t, s, response(t, snapshot.ConfigType, "2", nil, "acme/route/r", "acme/commit/acme"))
			if ack.GetErrorDetail() != nil {
				t.Errorf("answer %v", ack)
			}
			return hang(s)
		})
		synctest.Wait()
		if diff := cmp.Diff([]string{"connected true", "drop acme"}, store.take()); diff != "" {
			t.Errorf("events (-want +got):\n%s", diff)
		}
		stop()
	})
}

func TestDriftIsHealedByANewStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &fakeStore{err: snapshot.ErrDrift}
		c, srv, stop := start(t, store, func(n int, s stream) error {
			subscriptions(t, s)
			if n == 1 {
				if err := s.Send(response(t, snapshot.ConfigType, "1", map[string]string{"acme/commit/acme": "c"})); err != nil {
					t.Error(err)
				}
				if answer, err := s.Recv(); err == nil {
					t.Errorf("a revision that drifted was answered: %v", answer)
				}
				return nil
			}
			return hang(s)
		})
		synctest.Wait()
		if err := c.State().Err; c.State().Connected || !errors.Is(err, snapshot.ErrDrift) {
			t.Errorf("state %+v", c.State())
		}
		if diff := cmp.Diff([]string{"connected true", "apply acme 7 0d [+acme/commit/acme@c=J\x05\b]", "forget acme", "connected false"}, store.take()); diff != "" {
			t.Errorf("events (-want +got):\n%s", diff)
		}
		time.Sleep(time.Second)
		if srv.count() != 2 {
			t.Errorf("%d streams, want 2", srv.count())
		}
		stop()
	})
}

// TestSilenceIsAnEmptyConfiguration: nothing to serve is an answer too, or a new proxy would never be ready.
func TestSilenceIsAnEmptyConfiguration(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &fakeStore{}
		c, _, stop := start(t, store, func(_ int, s stream) error { subscriptions(t, s); return hang(s) })
		time.Sleep(silence - time.Millisecond)
		select {
		case <-c.Synced():
			t.Error("synced too soon")
		default:
		}
		time.Sleep(10 * time.Millisecond)
		select {
		case <-c.Synced():
		default:
			t.Error("never synced")
		}
		stop()
	})
}

func TestBackoff(t *testing.T) {
	for _, tt := range []struct {
		failures int
		max      time.Duration
	}{{0, 200 * time.Millisecond}, {1, 400 * time.Millisecond}, {5, 6400 * time.Millisecond}, {8, 30 * time.Second}, {1000, 30 * time.Second}} {
		var sum, largest time.Duration
		const n = 2000
		for range n {
			d := backoff(tt.failures, errors.New("x"))
			sum += d
			largest = max(largest, d)
		}
		if mean := sum / n; largest > tt.max || mean < tt.max*4/10 || mean > tt.max*6/10 {
			t.Errorf("after %d failures: mean %v, at most %v, want full jitter up to %v", tt.failures, mean, largest, tt.max)
		}
	}
	told, err := status.New(codes.ResourceExhausted, "later").WithDetails(&errdetails.RetryInfo{RetryDelay: durationpb.New(10 * time.Second)})
	if err != nil {
		t.Fatal(err)
	}
	if d := backoff(0, told.Err()); d < 10*time.Second {
		t.Errorf("told to wait for 10s, waits for %v", d)
	}
}

// TestAttemptsGetRarer: while the control plane is away, attempts get rarer; a stream that is taken and ended at once is no success.
func TestAttemptsGetRarer(t *testing.T) {
	for name, serve := range map[string]func(int, stream) error{
		"refused": func(int, stream) error { return status.Error(codes.PermissionDenied, "no") },
		"ended after a revision": func(_ int, s stream) error {
			s.Recv()
			s.Recv()
			s.Send(response(t, snapshot.ConfigType, "1", map[string]string{"acme/commit/acme": "c"}))
			s.Recv()
			return nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				_, srv, stop := start(t, &fakeStore{}, serve)
				time.Sleep(5 * time.Minute)
				if n := srv.count(); n < 12 || n > 60 {
					t.Errorf("%d attempts in five minutes, want about 25", n)
				}
				stop()
			})
		})
	}
}

func TestNonsenseEndsTheStream(t *testing.T) {
	for name, r := range map[string]*discoveryv3.DeltaDiscoveryResponse{
		"no tenant":    response(t, snapshot.ConfigType, "1", map[string]string{"acme": "v"}),
		"removed name": response(t, snapshot.ConfigType, "1", nil, "/x"),
		"another type": {TypeUrl: snapshot.ConfigType, Nonce: "1", Resources: []*discoveryv3.Resource{{Name: "acme/route/r", Resource: &anypb.Any{TypeUrl: snapshot.SecretType}}}},
		"no Commit":    {TypeUrl: snapshot.ConfigType, Nonce: "1", Resources: []*discoveryv3.Resource{{Name: "acme/commit/acme", Resource: &anypb.Any{TypeUrl: snapshot.ConfigType, Value: []byte{1}}}}},
		"no resource":  {TypeUrl: snapshot.ConfigType, Nonce: "1", Resources: []*discoveryv3.Resource{{Name: "acme/route/r"}}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				store := &fakeStore{}
				c, _, stop := start(t, store, func(_ int, s stream) error {
					subscriptions(t, s)
					s.Send(r)
					return hang(s)
				})
				synctest.Wait()
				if s := c.State(); s.Connected || s.Err == nil {
					t.Errorf("state %+v, want an error", s)
				}
				if events := store.take(); slices.ContainsFunc(events, func(e string) bool { return e[0] == 'a' }) {
					t.Errorf("events %v", events)
				}
				stop()
			})
		})
	}
}

// TestRealStore runs a revision, a tampered one and the resync through the real store.
func TestRealStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := snapshot.New(snapshot.Config{})
		body, err := proto.Marshal(&xdsv1.Config{Resource: &xdsv1.Config_TenantInfo{TenantInfo: &xdsv1.TenantInfo{}}})
		if err != nil {
			t.Fatal(err)
		}
		info := func(nonce, version string, digest []byte) *discoveryv3.DeltaDiscoveryResponse {
			r := response(t, snapshot.ConfigType, nonce, map[string]string{"acme/tenant/acme": version, "acme/commit/acme": version})
			r.Resources[0].Resource.Value, _ = proto.Marshal(&xdsv1.Config{Resource: &xdsv1.Config_Commit{Commit: &xdsv1.Commit{Revision: 3, Digest: digest}}})
			r.Resources[1].Resource.Value = body
			return r
		}
		claims := make(chan map[string]string, 10)
		_, _, stop := start(t, store, func(n int, s stream) error {
			claims <- subscriptions(t, s)[snapshot.ConfigType].GetInitialResourceVersions()
			if n == 1 {
				exchange(t, s, info("1", "v1", nil))
				s.Send(info("2", "v2", make([]byte, 32)))
			}
			return hang(s)
		})
		time.Sleep(time.Second)
		if got := store.Load().Tenant("acme"); got == nil || got.Revision != 3 {
			t.Errorf("tenant %+v, want revision 3", got)
		}
		if diff := cmp.Diff(map[string]string(nil), <-claims); diff != "" {
			t.Errorf("first claims (-want +got):\n%s", diff)
		}
		if diff := cmp.Diff(map[string]string{"acme/tenant/acme": "", "acme/commit/acme": ""}, <-claims); diff != "" {
			t.Errorf("claims after drift (-want +got):\n%s", diff)
		}
		stop()
	})
}
