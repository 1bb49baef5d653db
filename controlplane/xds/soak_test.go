package xds

import (
	"bytes"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
)

// Random edits, assignments, slow proxies and reconnects: no proxy ever receives a name or a frame of a tenant that it does
// not serve, nothing is sent twice, and in the end each holds exactly what it should.
func TestIsolation(t *testing.T) {
	for seed := range 25 {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			run(t, func(f *fleet) { newSoak(f, seed).steps(150) })
		})
	}
}

type soak struct {
	*fleet
	*rand.Rand
	sources map[string]*source
	groups  map[string][]string
	proxies map[string]*client
	// Tenants whose frames a proxy may still get: those that its group had at any time since it was last in sync.
	may map[string]map[string]bool
}

func newSoak(f *fleet, seed int) *soak {
	s := &soak{fleet: f, Rand: rand.New(rand.NewPCG(uint64(seed), 3)), sources: map[string]*source{}, groups: map[string][]string{},
		proxies: map[string]*client{}, may: map[string]map[string]bool{}}
	for i := range 4 {
		name := fmt.Sprint("t", i)
		s.sources[name] = f.tenant(name).publish("r0=1", "secret/s0=1")
	}
	s.assign()
	for i := range 6 {
		s.connect(fmt.Sprintf("p%d@g%d", i, i%3), nil)
	}
	return s
}

func (s *soak) connect(proxy string, had *[2]map[string]string) {
	c := s.dial(proxy)
	c.read()
	s.proxies[proxy] = c
	s.inSync(proxy)
	for _, set := range sendOrder {
		r := &discovery.DeltaDiscoveryRequest{TypeUrl: typeURLs[set], ResourceNamesSubscribe: []string{"*"}}
		if had != nil {
			c.held[set], r.InitialResourceVersions = had[set], maps.Clone(had[set])
			for name := range had[set] {
				s.may[proxy][name[:2]] = true // it named them itself
			}
		}
		c.send(r)
	}
}

func (s *soak) anyone() string { i := s.IntN(6); return fmt.Sprintf("p%d@g%d", i, i%3) }

func (s *soak) assign() {
	for i := range 3 {
		var tenants []string
		for j := range 4 {
			if s.IntN(2) == 0 {
				tenants = append(tenants, fmt.Sprint("t", j))
			}
		}
		s.groups[fmt.Sprint("g", i)] = tenants
	}
	s.server.Assign(s.groups)
	for proxy, may := range s.may {
		for _, tenant := range s.groups[proxy[3:]] {
			may[tenant] = true
		}
	}
}

// inSync: the proxy has read and answered all that there is for it.
func (s *soak) inSync(proxy string) {
	s.may[proxy] = map[string]bool{}
	for _, tenant := range s.groups[proxy[3:]] {
		s.may[proxy][tenant] = true
	}
}

func (s *soak) steps(n int) {
	for range n {
		switch s.IntN(12) {
		case 0:
			s.assign()
		case 1:
			name := fmt.Sprint("t", s.IntN(4))
			s.server.Drop(name)
			s.sources[name] = s.tenant(name)
		case 2: // a proxy loses its connection and is back with what it had
			proxy := s.anyone()
			c := s.proxies[proxy]
			c.close()
			synctest.Wait()
			s.connect(proxy, &c.held)
		case 3, 4, 5, 6:
			src := s.sources[fmt.Sprint("t", s.IntN(4))]
			var edits []string
			for i := range 4 {
				name := [...]string{"r", "r", "secret/s"}[s.IntN(3)] + fmt.Sprint(i)
				set := configs
				if strings.HasPrefix(name, "secret/") {
					set = secrets
				}
				if _, exists := src.all[set][src.tenant+"/"+name]; exists && s.IntN(2) == 0 {
					edits = append(edits, "-"+name)
				} else {
					edits = append(edits, fmt.Sprintf("%s=%d", name, s.IntN(1000)))
				}
			}
			src.publish(edits...)
		default: // one proxy reads a frame; often it answers
			proxy := s.anyone()
			c := s.proxies[proxy]
			if r := c.next(); r != nil {
				s.check(proxy, r)
				if s.IntN(5) == 0 {
					c.nack(r)
				} else {
					c.ack(r)
				}
			} else {
				s.inSync(proxy)
			}
		}
		synctest.Wait()
	}
	for _, src := range s.sources { // one that was dropped and is assigned stays as it was until it is published again
		src.publish("r0=last")
	}
	for proxy, c := range s.proxies {
		for r := c.next(); r != nil; r = c.next() {
			s.check(proxy, r)
			c.ack(r)
		}
		var want []*source
		for _, tenant := range s.groups[proxy[3:]] {
			want = append(want, s.sources[tenant])
		}
		c.holds(want...)
	}
	for proxy, c := range s.proxies { // silence: whatever happens to the others' tenants, not a frame
		for name, src := range s.sources {
			if !slices.Contains(s.groups[proxy[3:]], name) {
				src.publish("r0=silence")
			}
		}
		if r := c.next(); r != nil {
			s.t.Errorf("%s, which serves %v, got %s", proxy, s.groups[proxy[3:]], line(r))
		}
		for _, other := range s.proxies {
			if other != c {
				other.settle()
			}
		}
	}
}

// check holds a frame to the tenants that the proxy may hear of.
func (s *soak) check(proxy string, r *discovery.DeltaDiscoveryResponse) {
	names := slices.Clone(r.RemovedResources)
	for _, res := range r.Resources {
		names = append(names, res.Name)
	}
	for _, name := range names {
		if !s.may[proxy][name[:2]] {
			s.t.Errorf("%s, which serves %v, got %s", proxy, s.groups[proxy[3:]], line(r))
		}
	}
}

// Proxies that never read cost the others nothing, however large the updates: not a frame, not a moment.
func TestStuckProxies(t *testing.T) {
	run(t, func(f *fleet) {
		a := f.tenant("a")
		big := strings.Repeat("x", 100<<10)
		var edits []string
		for i := range 100 { // 10 MB, far beyond any window
			edits = append(edits, fmt.Sprintf("r%d=0%s", i, big))
		}
		a.publish(edits...)
		f.server.Assign(map[string][]string{"g": {"a"}})
		healthy := []*client{f.connect("p0@g"), f.connect("p1@g")}
		for _, c := range healthy {
			c.settle()
		}
		var stuck []*client
		for i := range 20 {
			c := f.dial(fmt.Sprintf("stuck%d@g", i)) // nobody reads
			for _, typeURL := range []string{SecretType, ConfigType} {
				c.send(&discovery.DeltaDiscoveryRequest{TypeUrl: typeURL, ResourceNamesSubscribe: []string{"*"}})
			}
			stuck = append(stuck, c)
		}
		synctest.Wait()
		start := time.Now()
		for round := 1; round <= 10; round++ {
			for i := range edits {
				edits[i] = fmt.Sprintf("r%d=%d%s", i, round, big)
			}
			a.publish(edits...)
			for _, c := range healthy {
				c.settle()
			}
		}
		if d := time.Since(start); d != 0 { // the bubble's clock: it moves only while everyone waits
			t.Errorf("the others waited %v", d)
		}
		for _, c := range healthy {
			c.holds(a)
		}
		p := f.server.Progress("a", a.number)
		if diff := cmp.Diff([]string{"p0", "p1"}, p.Serving); diff != "" || len(p.Lagging) != 20 {
			t.Errorf("Progress: serving %v, %d lagging", p.Serving, len(p.Lagging))
		}
		if !f.server.Disconnect("stuck0") {
			t.Error("stuck0 is not connected")
		}
		synctest.Wait()
		if got := len(f.server.Connected("a")); got != 21 {
			t.Errorf("%d connected after one of 22 was disconnected", got)
		}
		stuck[1].read() // one wakes up: it gets what was on the way, and then the present
		stuck[1].settle()
		stuck[1].holds(a)
	})
}

// Many resources come in frames of bounded size, whatever changes meanwhile, and requests that list them all are read.
func TestLarge(t *testing.T) {
	run(t, func(f *fleet) {
		a := f.tenant("a")
		var edits []string
		for i := range 40_000 {
			edits = append(edits, fmt.Sprintf("target/backend-%d/target-with-a-name-of-some-length-%d=%0100d", i/100, i, i))
		}
		a.publish(edits...)
		f.server.Assign(map[string][]string{"g": {"a"}})
		p := f.connect("p@g")
		for i := 0; ; i++ {
			r := p.next()
			if r == nil {
				break
			}
			if i < 30 { // layouts change under the newcomer's feet
				a.publish(fmt.Sprintf("new-%d=%s", i, strings.Repeat("y", 100<<10)), "-"+strings.SplitN(edits[i], "=", 2)[0])
			}
			p.ack(r)
		}
		p.holds(a)

		for name, version := range p.held[configs] { // versions as long as the longest in use elsewhere: 64 hex digits
			p.held[configs][name] = version + strings.Repeat("0", 44)
		}
		p.close()
		q := f.dial("p@g")
		q.read()
		r := &discovery.DeltaDiscoveryRequest{TypeUrl: ConfigType, ResourceNamesSubscribe: []string{"*"}, InitialResourceVersions: p.held[configs]}
		if size := proto.Size(r); size < 4<<20 {
			t.Fatalf("a request of %d bytes proves nothing about the limit of 4 MiB", size)
		}
		q.send(r)
		q.settle()
		q.holds(a)
	})
}

// The log tells the difference from any revision that it reaches back to, however it was trimmed.
func TestLog(t *testing.T) {
	for seed := range 10 {
		rnd := rand.New(rand.NewPCG(uint64(seed), 5))
		s := newSet(configs)
		s.trimAt = 20
		history := []map[string]string{{}} // by revision
		oldest := int64(0)
		for revision := int64(1); revision <= 400; revision++ {
			now := maps.Clone(history[revision-1])
			var changed []Resource
			var removed []string
			for _, i := range rnd.Perm(30)[:rnd.IntN(5)] {
				name := fmt.Sprint("n", i)
				if _, ok := now[name]; ok && rnd.IntN(2) == 0 {
					removed = append(removed, name)
					delete(now, name)
				} else {
					changed = append(changed, Resource{Name: name, Version: fmt.Sprint(revision), Body: []byte(strings.Repeat("b", rnd.IntN(4<<10)))})
					now[name] = fmt.Sprint(revision)
				}
			}
			history = append(history, now)
			s.change(revision, changed, removed)
			if rnd.IntN(50) == 0 {
				oldest = max(oldest, revision-int64(rnd.IntN(30)))
			}
			s.trimAt = min(s.trimAt, 40)
			s.trim(func() int64 { return max(0, oldest) })
			if s.base > max(0, oldest) {
				t.Fatalf("seed %d revision %d: trimmed to %d, though %d is needed", seed, revision, s.base, oldest)
			}
			from := s.base + rnd.Int64N(revision-s.base+1)
			bodies, ok := s.difference(from, nil)
			if !ok {
				t.Fatalf("seed %d: the log from %d does not reach back to %d", seed, s.base, from)
			}
			got := maps.Clone(history[from])
			for _, body := range bodies {
				var r discovery.DeltaDiscoveryResponse
				if err := proto.Unmarshal(body, &r); err != nil {
					t.Fatal(err)
				}
				for _, res := range r.Resources {
					got[res.Name] = res.Version
				}
				for _, name := range r.RemovedResources {
					delete(got, name)
				}
			}
			if diff := cmp.Diff(now, got); diff != "" {
				t.Fatalf("seed %d: from %d to %d (-want +got):\n%s", seed, from, revision, diff)
			}
		}
		if len(s.log) > 2*s.count+minLog {
			t.Errorf("seed %d: a log of %d entries for %d resources", seed, len(s.log), s.count)
		}
	}
}

// Ever new names while one proxy hangs: the log stays bounded, and who hangs loses its place rather than memory.
func TestLogIsBounded(t *testing.T) {
	s := newSet(configs)
	for revision := int64(1); revision <= 50_000; revision++ {
		var gone []string
		if revision > 1 {
			gone = []string{fmt.Sprint("n", revision-1)}
		}
		s.change(revision, []Resource{{Name: fmt.Sprint("n", revision), Version: "v"}}, gone)
		s.trim(func() int64 { return 1 })
	}
	if len(s.log) > 8*minLog {
		t.Errorf("a log of %d entries for one resource", len(s.log))
	}
	if _, ok := s.since(1); ok {
		t.Error("the log claims to know what it dropped")
	}
	if _, ok := s.difference(50_000-10, nil); !ok {
		t.Error("the log forgot the last revisions")
	}
}

// What we read of a request is what the generated code reads; what that refuses, we do not crash on.
func FuzzRequest(f *testing.F) {
	seed, err := proto.Marshal(&discovery.DeltaDiscoveryRequest{TypeUrl: ConfigType, ResponseNonce: "a/1/1",
		ResourceNamesSubscribe: []string{"*", "a/x"}, ResourceNamesUnsubscribe: []string{"b"}, InitialResourceVersions: map[string]string{"a/x": "1", "": ""}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(seed)
	f.Add([]byte{0x2a, 0x05, 0x0a, 0x03, 'a', '/', 'x'})
	f.Add([]byte{0x3a, 0x00})
	f.Fuzz(func(t *testing.T, data []byte) {
		var got request
		err := got.parse(bytes.Clone(data))
		var want discovery.DeltaDiscoveryRequest
		if proto.Unmarshal(data, &want) != nil {
			return
		}
		if err != nil {
			t.Fatalf("parse: %v, of a good request %v", err, &want)
		}
		versions := map[string]string{}
		for _, cl := range got.versions {
			versions[string(cl.name)] = string(cl.version)
		}
		if got.typeURL != want.TypeUrl || got.nonce != want.ResponseNonce || !slices.Equal(got.subscribe, want.ResourceNamesSubscribe) ||
			!slices.Equal(got.unsubscribe, want.ResourceNamesUnsubscribe) || !maps.Equal(versions, want.InitialResourceVersions) ||
			(got.failure != nil) != (want.ErrorDetail != nil) {
			t.Errorf("parse: %+v, want %v", got, &want)
		}
	})
}
