package xds

import (
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	xdsv1 "github.com/sluicegate/sluice/proto/gen/sluice/xds/v1"
)

func wantLines(t *testing.T, what string, got []string, want ...string) {
	t.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%s: frames (-want +got):\n%s", what, diff)
	}
}

func wantSum(t *testing.T, what, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("%s: got %s, want %s", what, got, want)
	}
}

// A revision is Secret frames, then Config frames with the Commit last, and serves once that is ACKed.
func TestRevision(t *testing.T) {
	run(t, func(f *fleet) {
		a := f.tenant("a").publish("x=1", "secret/s=1")
		f.server.Assign(map[string][]string{"g": {"a"}})
		p := f.connect("p@g")
		s := p.next()
		wantLines(t, "first frame", []string{line(s)}, "Secret: a/secret/s=1")
		p.ack(s)
		c := p.next()
		wantLines(t, "second frame", []string{line(c)}, "Config: a/x=1")
		last := p.next()
		wantLines(t, "last frame", []string{line(last)}, "Config: a/commit/a=1")
		p.ack(c)
		wantSum(t, "before the last ACK", f.sum("a", 1), "serving [] refused [] lagging [p]")
		p.ack(last)
		wantSum(t, "after it", f.sum("a", 1), "serving [p] refused [] lagging []")

		a.publish("x=2")
		wantLines(t, "an update", p.settle(), "Config: a/commit/a=2 a/x=2")
		a.publish("secret/s=2")
		wantLines(t, "of a secret alone", p.settle(), "Secret: a/secret/s=2", "Config: a/commit/a=3")
		a.publish()
		wantLines(t, "of nothing", p.settle(), "Config: a/commit/a=4")
		a.publish("-x", "y=1")
		wantLines(t, "a removal", p.settle(), "Config: -a/x a/commit/a=5 a/y=1")
		p.holds(a)
		wantSum(t, "at the end", f.sum("a", 5), "serving [p] refused [] lagging []")
	})
}

// One revision is outstanding at a time; what comes meanwhile is merged into one difference.
func TestMerge(t *testing.T) {
	run(t, func(f *fleet) {
		a := f.tenant("a").publish("x=1", "y=1")
		f.server.Assign(map[string][]string{"g": {"a"}})
		p := f.connect("p@g")
		p.settle()
		a.publish("x=2")
		r := p.next()
		a.publish("x=3").publish("z=1").publish("-z").publish("-y", "x=4", "secret/s=1")
		if more := p.next(); more != nil {
			t.Errorf("a second revision is outstanding: %s", line(more))
		}
		wantSum(t, "at 2", f.sum("a", 2), "serving [] refused [] lagging [p]")
		p.ack(r)
		wantSum(t, "at 2", f.sum("a", 2), "serving [p] refused [] lagging []")
		wantLines(t, "the merged difference", p.settle(), "Secret: a/secret/s=1", "Config: -a/y a/commit/a=6 a/x=4")
		p.holds(a)
	})
}

// A NACK becomes progress, by proxy and resource; what was refused is not sent again until it changes.
func TestRefusal(t *testing.T) {
	run(t, func(f *fleet) {
		a := f.tenant("a").publish("x=1", "y=1")
		f.server.Assign(map[string][]string{"g": {"a"}})
		p, q := f.connect("p@g"), f.connect("q@g")
		p.settle()
		q.settle()
		changed := f.server.Changed("a")
		a.publish("x=bad", "secret/s=1")
		q.settle()
		p.ack(p.next())
		p.nack(p.next(), &xdsv1.Refusal{Type: ConfigType, Name: "a/x", Version: "v-bad", Field: "f", Reason: "no"},
			&xdsv1.Refusal{Name: "b/stranger", Reason: "not a's"})
		wantSum(t, "refused", f.sum("a", 2), "serving [q] refused [p(a/x:no)] lagging []")
		select {
		case <-changed:
		default:
			t.Error("Changed did not tell")
		}
		if more := p.next(); more != nil {
			t.Errorf("sent again after the NACK: %s", line(more))
		}
		states := f.server.Proxies()
		if len(states) != 2 || states[0].ID != "p" || states[0].Revisions["a"] != 2 || len(states[0].Refusals["a"]) != 1 || len(states[1].Refusals) != 0 {
			t.Errorf("Proxies: %+v", states)
		}

		a.publish("y=2")
		r := p.next()
		wantLines(t, "the next revision", []string{line(r)}, "Config: a/commit/a=3 a/y=2")
		p.nack(r) // a client without details
		q.settle()
		wantSum(t, "refused without details", f.sum("a", 3), "serving [q] refused [p(:does not build)] lagging []")

		a.publish("x=good")
		p.settle()
		q.settle()
		wantSum(t, "mended", f.sum("a", 4), "serving [p q] refused [] lagging []")
		wantSum(t, "and so at older revisions", f.sum("a", 2), "serving [p q] refused [] lagging []")
	})
}

// Only the answer to what is outstanding counts.
func TestStaleAnswers(t *testing.T) {
	run(t, func(f *fleet) {
		a := f.tenant("a").publish("x=1")
		f.tenant("b").publish("x=1")
		f.server.Assign(map[string][]string{"g": {"a"}})
		p := f.connect("p@g")
		first := p.next()
		p.settle()
		a.publish("x=2")
		r := p.next()
		for _, nonce := range []string{"", first.Nonce, "a/2/0", "a/2/999", "a/3/x", "b/1/1", "/0/1", "nonsense", "a/2/" + strings.Repeat("9", 40)} {
			p.send(&discovery.DeltaDiscoveryRequest{TypeUrl: ConfigType, ResponseNonce: nonce})
		}
		p.send(&discovery.DeltaDiscoveryRequest{TypeUrl: "type.googleapis.com/envoy.config.cluster.v3.Cluster", ResponseNonce: r.Nonce})
		wantSum(t, "after stale answers", f.sum("a", 2), "serving [] refused [] lagging [p]")
		p.ack(r)
		wantSum(t, "after the right one", f.sum("a", 2), "serving [p] refused [] lagging []")
		p.nack(r)
		wantSum(t, "a second answer changes nothing", f.sum("a", 2), "serving [p] refused [] lagging []")
	})
}

// A stream without Secret gets Config alone; Secret alone has no Commit; the type that comes late begins then.
func TestTypes(t *testing.T) {
	run(t, func(f *fleet) {
		a := f.tenant("a").publish("x=1", "secret/s=1")
		f.server.Assign(map[string][]string{"g": {"a"}})
		c := f.connect("c@g", ConfigType)
		wantLines(t, "Config alone", c.settle(), "Config: a/x=1", "Config: a/commit/a=1")
		s := f.connect("s@g", SecretType)
		wantLines(t, "Secret alone", s.settle(), "Secret: a/secret/s=1")
		wantSum(t, "one that takes no Config is no proxy", f.sum("a", 1), "serving [c] refused [] lagging []")
		a.publish("secret/s=2")
		wantLines(t, "Config alone", c.settle(), "Config: a/commit/a=2")
		wantLines(t, "Secret alone", s.settle(), "Secret: a/secret/s=2")
		a.publish("x=2")
		wantLines(t, "Secret alone", s.settle())
		s.send(&discovery.DeltaDiscoveryRequest{TypeUrl: ConfigType}) // no names: the wildcard's old spelling
		synctest.Wait()
		wantSum(t, "ACKs of secrets are none of a revision", f.sum("a", 2), "serving [c] refused [] lagging [s]")
		wantLines(t, "Config late", s.settle(), "Config: a/x=2", "Config: a/commit/a=3")
		s.holds(a)
		c.settle()
		wantSum(t, "then it is one", f.sum("a", 3), "serving [c s] refused [] lagging []")
	})
}

// A client that comes back says what it has, and gets what differs.
func TestReconnect(t *testing.T) {
	run(t, func(f *fleet) {
		a := f.tenant("a").publish("u=1", "v=1", "w=1", "x=1", "y=1", "secret/s=1")
		old := f.tenant("old").publish("x=1")
		f.server.Assign(map[string][]string{"g": {"a", "old", "later"}})
		p := f.connect("p@g")
		p.settle()
		back := func(had [2]map[string]string) *client {
			c := f.dial("p@g")
			c.read()
			for _, set := range sendOrder {
				for name, version := range had[set] {
					c.held[set][name] = version
				}
				c.send(&discovery.DeltaDiscoveryRequest{TypeUrl: typeURLs[set], ResourceNamesSubscribe: []string{"*"}, InitialResourceVersions: had[set]})
			}
			return c
		}
		p.close()
		q := back(p.held)
		got := q.settle()
		if diff := cmp.Diff(map[string]bool{"Config: a/commit/a=1": true, "Config: old/commit/old=1": true}, setOf(got)); diff != "" {
			t.Errorf("nothing changed: frames (-want +got):\n%s", diff)
		}
		wantSum(t, "nothing changed", f.sum("a", 1), "serving [p] refused [] lagging []")

		q.close()
		synctest.Wait()
		a.publish("-x", "y=2", "z=1", "secret/s=2")
		old.publish("x=2")
		f.server.Assign(map[string][]string{"g": {"a", "later"}})
		q.held[configs]["later/x"] = "v-1"    // assigned, not loaded yet
		q.held[configs]["foreign/x"] = "v-1"  // never was this group's
		q.held[configs]["no-slash"] = "v-1"   // nobody's
		q.held[secrets]["old/secret/s"] = "1" // of a tenant that is gone
		r := back(q.held)
		got = r.settle()
		if diff := cmp.Diff(map[string]bool{
			"Config: -foreign/x -no-slash -old/commit/old -old/x": true, "Secret: -old/secret/s": true,
			"Secret: a/secret/s=2": true, "Config: -a/x a/y=2 a/z=1": true, "Config: a/commit/a=2": true,
		}, setOf(got)); diff != "" {
			t.Errorf("what differs: frames (-want +got):\n%s", diff)
		}
		later := f.tenant("later").publish("x=1", "y=1")
		wantLines(t, "the tenant that was not loaded", r.settle(), "Config: later/y=1", "Config: later/commit/later=1")
		r.holds(a, later)
	})
}

func setOf(lines []string) map[string]bool {
	out := map[string]bool{}
	for _, l := range lines {
		out[l] = true
	}
	return out
}

// A client may subscribe to names: absent ones are said to be, others' are as absent as any.
func TestNames(t *testing.T) {
	run(t, func(f *fleet) {
		a, b := f.tenant("a").publish("x=1", "y=1"), f.tenant("b").publish("x=1")
		f.server.Assign(map[string][]string{"g": {"a"}})
		p := f.dial("p@g")
		p.read()
		p.send(&discovery.DeltaDiscoveryRequest{TypeUrl: ConfigType, ResourceNamesSubscribe: []string{"a/x", "a/none", "b/x", "what"}})
		wantLines(t, "named", p.settle(), "Config: -a/none -b/x -what a/x=1")
		a.publish("y=2")
		b.publish("x=2")
		wantLines(t, "another changed", p.settle())
		wantSum(t, "a skip is in sync", f.sum("a", 2), "serving [p] refused [] lagging []")
		a.publish("x=2", "none=1", "y=3")
		wantLines(t, "named ones changed", p.settle(), "Config: a/none=1 a/x=2")
		p.send(&discovery.DeltaDiscoveryRequest{TypeUrl: ConfigType, ResourceNamesUnsubscribe: []string{"a/x"}, ResourceNamesSubscribe: []string{"a/commit/a"}})
		wantLines(t, "the Commit by name", p.settle(), "Config: a/commit/a=")
		a.publish("x=3", "-none")
		wantLines(t, "after unsubscribing", p.settle(), "Config: -a/none a/commit/a=4")
		names := make([]string, maxNames+1)
		for i := range names {
			names[i] = fmt.Sprint("a/", i)
		}
		p.send(&discovery.DeltaDiscoveryRequest{TypeUrl: ConfigType, ResourceNamesSubscribe: names})
		if err := p.ended(); status.Code(err) != codes.InvalidArgument {
			t.Errorf("too many names: %v", err)
		}
	})
}

// A tenant that is taken from a group is removed from its proxies, whole and alone; given back, it comes whole.
func TestAssign(t *testing.T) {
	run(t, func(f *fleet) {
		a, b := f.tenant("a").publish("x=1", "secret/s=1"), f.tenant("b").publish("x=1")
		f.server.Assign(map[string][]string{"g": {"a", "b"}, "h": {"b"}})
		p, q := f.connect("p@g"), f.connect("q@h")
		p.settle()
		q.settle()
		f.server.Assign(map[string][]string{"g": {"b"}, "h": {"b"}})
		wantLines(t, "taken", p.settle(), "Secret: -a/secret/s", "Config: -a/commit/a -a/x")
		p.holds(b)
		a.publish("x=2", "new=1")
		wantLines(t, "what is not its own", p.settle())
		wantSum(t, "nor does it count", f.sum("a", 2), "serving [] refused [] lagging []")
		f.server.Assign(map[string][]string{"g": {"a", "b"}, "h": {"b"}})
		p.settle()
		p.holds(a, b)

		a.publish("x=3", "-new", "newer=1") // outstanding while the tenant is taken: newer is not known, new is
		r := p.next()
		a.publish("unseen=1", "-x")
		f.server.Assign(map[string][]string{"g": {"b"}, "h": {"b"}})
		p.ack(r)
		wantLines(t, "taken while one is outstanding", p.settle(), "Secret: -a/secret/s", "Config: -a/commit/a -a/newer -a/x")
		p.holds(b)

		f.server.Drop("b")
		wantLines(t, "deleted", p.settle(), "Config: -b/commit/b -b/x")
		b2 := f.tenant("b").publish("y=1")
		wantLines(t, "made again", q.settle(), "Config: -b/commit/b -b/x", "Config: b/y=1", "Config: b/commit/b=1")
		p.settle()
		p.holds(b2)
		q.holds(b2)
	})
}

// Who a stream is and how long it lasts is the certificate's alone to say.
func TestIdentity(t *testing.T) {
	run(t, func(f *fleet) {
		early := f.connect("p@g")
		if err := early.ended(); status.Code(err) != codes.Unavailable {
			t.Errorf("before Assign: %v", err)
		}
		a := f.tenant("a").publish("x=1")
		f.server.Assign(map[string][]string{"g": {"a"}})
		f.refuse["q"] = errors.New("revoked")
		if err := f.connect("q@g").ended(); status.Code(err) != codes.PermissionDenied {
			t.Errorf("refused by Identify: %v", err)
		}
		p := f.connect("p@g")
		p.settle()
		again := f.connect("p@g")
		if err := p.ended(); status.Code(err) != codes.Aborted {
			t.Errorf("replaced by a newer stream: %v", err)
		}
		again.settle()
		again.holds(a)
		wantSum(t, "a proxy counts once", f.sum("a", 1), "serving [p] refused [] lagging []")
		if !f.server.Disconnect("p") || f.server.Disconnect("nobody") {
			t.Error("Disconnect reports whether there was a stream")
		}
		if err := again.ended(); status.Code(err) != codes.PermissionDenied {
			t.Errorf("disconnected: %v", err)
		}
		f.expires["r"] = time.Now().Add(time.Hour)
		r := f.connect("r@g")
		r.settle()
		time.Sleep(time.Hour - time.Second)
		r.settle()
		time.Sleep(2 * time.Second)
		if err := r.ended(); status.Code(err) != codes.Unauthenticated {
			t.Errorf("expired: %v", err)
		}
		if got := f.server.Connected("a"); len(got) != 0 {
			t.Errorf("still connected: %v", got)
		}
		s := f.connect("s@g")
		s.settle()
		f.server.Close()
		if err := s.ended(); status.Code(err) != codes.Unavailable {
			t.Errorf("closed: %v", err)
		}
	})
}

// No other method of the service is there.
func TestOneMethod(t *testing.T) {
	run(t, func(f *fleet) {
		f.server.Assign(nil)
		p := f.dial("p@g")
		p.read()
		stream, err := discovery.NewAggregatedDiscoveryServiceClient(p.conn).StreamAggregatedResources(p.stream.Context())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := stream.Recv(); status.Code(err) != codes.Unimplemented {
			t.Errorf("StreamAggregatedResources: %v", err)
		}
	})
}

// A proxy cannot make the server keep more than so much of what it says, however often it says it.
func TestRefusalsAreBounded(t *testing.T) {
	run(t, func(f *fleet) {
		a := f.tenant("a").publish("x=1", "secret/s=1")
		f.server.Assign(map[string][]string{"g": {"a"}})
		p := f.connect("p@g")
		p.settle()
		a.publish("x=2", "secret/s=2")
		long := strings.Repeat("y", 100<<10)
		refusals := make([]*xdsv1.Refusal, maxRefusals)
		for i := range refusals {
			refusals[i] = &xdsv1.Refusal{Type: ConfigType, Name: fmt.Sprint("a/", i), Reason: "no"}
		}
		refusals[0] = &xdsv1.Refusal{Type: long, Name: "a/" + long, Version: long, Field: long, Reason: long}
		first := p.next()
		for range 5 {
			p.nack(first, refusals...)
		}
		p.settle()
		synctest.Wait()
		got := f.server.Progress("a", 2).Refused
		if len(got) != 1 || len(got[0].Reasons) > maxRefusals {
			t.Fatalf("refusals of %d proxies, want of one at most %d", len(got), maxRefusals)
		}
		size := 0
		for _, r := range got[0].Reasons {
			size += proto.Size(r)
		}
		if size > 100<<10 {
			t.Errorf("what is kept has %d bytes", size)
		}
	})
}

// Who asks for names and does not read the answers is not listened to any further.
func TestUnreadRepliesAreBounded(t *testing.T) {
	run(t, func(f *fleet) {
		f.tenant("a").publish("x=" + strings.Repeat("x", 1<<10))
		f.server.Assign(map[string][]string{"g": {"a"}})
		p := f.dial("p@g") // nobody reads
		const asked = 9_000
		var sent atomic.Int64
		go func() {
			for range asked {
				if p.stream.Send(&discovery.DeltaDiscoveryRequest{TypeUrl: ConfigType, ResourceNamesSubscribe: []string{"a/x"}}) != nil {
					return
				}
				sent.Add(1)
			}
		}()
		synctest.Wait()
		if n := sent.Load(); n == asked {
			t.Errorf("%d requests were taken in", n)
		}
		p.read()
		synctest.Wait()
		if n := sent.Load(); n != asked {
			t.Errorf("%d of %d requests were taken in once the client reads", n, asked)
		}
	})
}

// A stream that was ended counts no more, even while its proxy does not let go of it.
func TestEndedStreamsDoNotCount(t *testing.T) {
	s := New(Config{})
	s.Publish("a", Revision{Number: 1})
	s.Assign(map[string][]string{"g": {"a"}})
	open := func() *stream {
		st := &stream{server: s, peer: Peer{ID: "p", Group: "g"}, end: func(error) {}, wake: make(chan struct{}, 1), cursors: map[string]*cursor{}}
		if !s.enter(st) {
			t.Fatal("not let in")
		}
		if err := st.receive(&request{typeURL: ConfigType}, slog.New(slog.DiscardHandler)); err != nil {
			t.Fatal(err)
		}
		return st
	}
	open()
	open()
	if got := s.Connected("a"); len(got) != 1 {
		t.Errorf("connected: %v, want p once", got)
	}
	s.Disconnect("p")
	if got := s.Connected("a"); len(got) != 0 {
		t.Errorf("connected after Disconnect: %v", got)
	}
}

// Between its request and its answer a proxy never counts as one that serves the tenant.
func TestNewcomersDoNotServeYet(t *testing.T) {
	for _, first := range []string{ConfigType, SecretType} {
		s := New(Config{})
		s.Publish("a", Revision{Number: 1})
		s.Assign(map[string][]string{"g": {"a"}})
		var stop atomic.Bool
		var wg sync.WaitGroup
		wg.Go(func() {
			for !stop.Load() {
				if got := s.Progress("a", 1).Serving; len(got) > 0 {
					t.Errorf("%s: serving before it was given anything: %v", first, got)
					return
				}
			}
		})
		for i := range 2000 {
			st := &stream{server: s, peer: Peer{ID: fmt.Sprint(i), Group: "g"}, end: func(error) {}, wake: make(chan struct{}, 1), cursors: map[string]*cursor{}}
			s.enter(st)
			for _, typeURL := range []string{first, ConfigType} {
				if err := st.receive(&request{typeURL: typeURL}, slog.New(slog.DiscardHandler)); err != nil {
					t.Error(err)
				}
				if typeURL == SecretType {
					if _, err := st.next(); err != nil {
						t.Error(err)
					}
				}
			}
			st.close()
		}
		stop.Store(true)
		wg.Wait()
	}
}
