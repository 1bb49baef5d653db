package xds

import (
	"cmp"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"hash/maphash"
	"slices"
	"sync"

	"google.golang.org/protobuf/proto"

	xdsv1 "github.com/sluicegate/sluice/proto/gen/sluice/xds/v1"
)

// The two sets of resources that a tenant has.
const (
	configs = iota
	secrets
)

var typeURLs = [...]string{configs: ConfigType, secrets: SecretType}

// sendOrder puts credentials before what refers to them, and the Commit last.
var sendOrder = [...]int{secrets, configs}

// A tenant is the current resources of one tenant and the log of what changed.
type tenant struct {
	name string

	mu      sync.Mutex // guards what follows; held for no longer than encoding a frame takes
	head    int64
	commit  Resource
	sets    [2]set
	cursors map[*cursor]struct{}
	changed chan struct{} // closed at the next change of progress; nil: nobody waits
}

func newTenant(name string) *tenant {
	t := &tenant{name: name, cursors: map[*cursor]struct{}{}}
	for i := range t.sets {
		t.sets[i] = newSet(i)
	}
	return t
}

// commitName is that of the tenant's Commit.
func commitName(tenant string) string { return tenant + "/commit/" + tenant }

// publishLocked takes a revision in.
func (t *tenant) publishLocked(r Revision) {
	t.head = r.Number
	body, err := proto.MarshalOptions{Deterministic: true}.Marshal(&xdsv1.Config{Resource: &xdsv1.Config_Commit{
		Commit: &xdsv1.Commit{Revision: r.Number, Digest: r.Digest}}})
	if err != nil {
		panic(fmt.Sprintf("marshal a Commit: %v", err)) // a number and bytes
	}
	sum := sha256.Sum256(body)
	t.commit = Resource{Name: commitName(t.name), Version: base64.RawURLEncoding.EncodeToString(sum[:12]), Body: body}
	t.sets[configs].change(r.Number, r.Config, r.RemovedConfig)
	t.sets[secrets].change(r.Number, r.Secret, r.RemovedSecret)
	for i := range t.sets {
		t.sets[i].trim(func() int64 { return t.oldestLocked(i) })
	}
}

// oldestLocked is the oldest revision from which a connected proxy will need a difference.
func (t *tenant) oldestLocked(set int) int64 {
	oldest := t.head
	for c := range t.cursors {
		oldest = min(oldest, c.sent[set])
	}
	return oldest
}

// progressLocked wakes who waits for a change of progress.
func (t *tenant) progressLocked() {
	if t.changed != nil {
		close(t.changed)
		t.changed = nil
	}
}

// A set is a tenant's resources of one type. They lie in buckets by hash of the name, and each bucket keeps its encoded form
// until one of its resources changes: newcomers share it, and an update makes one bucket stale, not the whole.
type set struct {
	id      int
	buckets []bucket
	layout  int // counts changes of the number of buckets
	count   int
	bytes   int

	log    []entry // by revision
	base   int64   // differences from before it can no longer be told
	trimAt int     // length of the log at which to look for what nobody needs

	// Encoded differences from a revision to the head, shared by all cursors that are there.
	frames map[int64][][]byte
}

type bucket struct {
	resources map[string]*resource
	bodies    [][]byte // nil: stale
}

type resource struct {
	Resource
	created, changed int64 // revisions
}

// An entry says that a revision changed a name. existed: the name was there before.
type entry struct {
	revision int64
	name     string
	existed  bool
}

const minLog = 1024

var seed = maphash.MakeSeed()

func newSet(id int) set {
	return set{id: id, buckets: make([]bucket, 1), trimAt: minLog, frames: map[int64][][]byte{}}
}

func (s *set) index(name string) int {
	return int(maphash.String(seed, name) & uint64(len(s.buckets)-1))
}

func (s *set) bucket(name string) *bucket { return &s.buckets[s.index(name)] }

func (s *set) get(name string) *resource { return s.bucket(name).resources[name] }

func (s *set) change(revision int64, changed []Resource, removed []string) {
	for i := range changed {
		s.put(revision, changed[i])
	}
	for _, name := range removed {
		b := s.bucket(name)
		if r := b.resources[name]; r != nil {
			delete(b.resources, name)
			b.bodies = nil
			s.count--
			s.bytes -= resourceSize(&r.Resource)
			s.log = append(s.log, entry{revision, name, true})
		}
	}
	clear(s.frames) // all lead to the old head, where nobody goes any more
	s.spread()
}

func (s *set) put(revision int64, r Resource) {
	b := s.bucket(r.Name)
	now := &resource{Resource: r, created: revision, changed: revision}
	was := b.resources[r.Name]
	if was != nil {
		now.created = was.created
		s.bytes -= resourceSize(&was.Resource)
	} else {
		s.count++
	}
	s.bytes += resourceSize(&r)
	if b.resources == nil {
		b.resources = map[string]*resource{}
	}
	b.resources[r.Name] = now
	b.bodies = nil
	s.log = append(s.log, entry{revision, r.Name, was != nil})
}

// spread keeps buckets at about half a frame.
func (s *set) spread() {
	want := 1
	for s.bytes/want > maxFrame/2 {
		want *= 2
	}
	if want <= len(s.buckets) && len(s.buckets) <= want*4 {
		return
	}
	old := s.buckets
	s.buckets = make([]bucket, want)
	s.layout++
	for i := range old {
		for name, r := range old[i].resources {
			b := s.bucket(name)
			if b.resources == nil {
				b.resources = map[string]*resource{}
			}
			b.resources[name] = r
		}
	}
}

// all yields every resource.
func (s *set) all(yield func(*resource) bool) {
	for i := range s.buckets {
		for _, r := range s.buckets[i].resources {
			if !yield(r) {
				return
			}
		}
	}
}

// page is a bucket, encoded.
func (s *set) page(i int) [][]byte {
	b := &s.buckets[i]
	if b.bodies == nil {
		names := make([]string, 0, len(b.resources))
		for name := range b.resources {
			names = append(names, name)
		}
		slices.Sort(names)
		c := chunker{set: s.id, bodies: [][]byte{}}
		for _, name := range names {
			c.resource(&b.resources[name].Resource)
		}
		b.bodies = c.bodies
	}
	return b.bodies
}

// since returns the entries after a revision; false if the log does not reach back that far.
func (s *set) since(from int64) ([]entry, bool) {
	if from < s.base {
		return nil, false
	}
	i, _ := slices.BinarySearchFunc(s.log, from+1, func(e entry, revision int64) int { return cmp.Compare(e.revision, revision) })
	return s.log[i:], true
}

// difference encodes what changed after a revision, for all who are there; false as for since. If last is not nil it is
// encoded last.
func (s *set) difference(from int64, last *Resource) ([][]byte, bool) {
	if bodies, ok := s.frames[from]; ok {
		return bodies, true
	}
	entries, ok := s.since(from)
	if !ok {
		return nil, false
	}
	c := chunker{set: s.id}
	s.choose(entries, nil, &c)
	if last != nil {
		c.resource(last)
	}
	s.frames[from] = c.bodies
	return c.bodies, true
}

// choose adds what the entries lead to: a resource as it is now, or its removal if the client can have it. If names is
// not nil, of these names alone.
func (s *set) choose(entries []entry, names map[string]bool, c *chunker) {
	var gone map[string]bool // names that are no more and were looked at
	for _, e := range entries {
		if names != nil && !names[e.name] {
			continue
		}
		if r := s.get(e.name); r != nil {
			if r.changed == e.revision { // else a later entry
				c.resource(&r.Resource)
			}
			continue
		}
		if gone[e.name] {
			continue
		}
		if gone == nil {
			gone = map[string]bool{}
		}
		gone[e.name] = true
		if e.existed { // its first entry: it was there at the client's revision
			c.removed(e.name)
		}
	}
}

// trim drops entries that no connected proxy needs (a proxy that comes back lists what it has), then all but the last of
// each name. Only proxies that hang while ever new names come and go could make the log longer than the set: those
// lose their place.
func (s *set) trim(oldest func() int64) {
	if len(s.log) < s.trimAt {
		return
	}
	if from := oldest(); from > s.base {
		keep, _ := s.since(from)
		s.log, s.base = slices.Clone(keep), from
	}
	limit := 2*s.count + minLog
	if len(s.log) > limit {
		s.log = lastOfEach(s.log)
	}
	if len(s.log) > limit {
		cut := len(s.log) - limit/2
		for cut < len(s.log) && s.log[cut].revision == s.log[cut-1].revision {
			cut++
		}
		s.base = s.log[cut-1].revision
		s.log = slices.Clone(s.log[cut:])
	}
	s.trimAt = 2*len(s.log) + minLog
}

// lastOfEach keeps the last entry of each name. Whether the name was there before the first is all that is known then.
func lastOfEach(log []entry) []entry {
	last := make(map[string]int, len(log))
	existed := map[string]bool{}
	for i, e := range log {
		last[e.name] = i
		if e.existed {
			existed[e.name] = true
		}
	}
	out := make([]entry, 0, len(last))
	for i, e := range log {
		if last[e.name] == i {
			e.existed = existed[e.name]
			out = append(out, e)
		}
	}
	return out
}
