package snapshot

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sluicegate/sluice/internal/policy"
	xdsv1 "github.com/sluicegate/sluice/proto/gen/sluice/xds/v1"
)

// Type URLs of the two types that a proxy is given.
const (
	ConfigType = "type.googleapis.com/sluice.xds.v1.Config"
	SecretType = "type.googleapis.com/sluice.xds.v1.Secret"
)

// ErrDrift means that what the store would hold after an Update is not what the control plane holds: something was
// lost on the way. The Update was not applied.
var ErrDrift = errors.New("the digest of the revision is not that of the resources received")

// Config of a [Store].
type Config struct {
	// Bind opens the socket for a port and keeps it, or says why it cannot be had; it is asked before a listener
	// becomes active, and again for one that is. If nil, every port can be had.
	Bind func(port uint16) error
	// ReadFile reads files that policies and listeners name. If nil, from disk, up to 1 MiB.
	ReadFile func(path string) ([]byte, error)
	// LookupEnv reads the proxy's variables. If nil, os.LookupEnv.
	LookupEnv func(name string) (string, bool)
	// Poll is how often files are looked at and ports that could not be bound are tried again. If zero, 2 s.
	Poll time.Duration
	// Disk keeps the last good configuration. If nil, nothing is kept.
	Disk *Disk
	// MaxStale is how long configuration from disk serves without being confirmed; then its routes answer 503. It counts
	// from when a control plane was last there. If zero, 24 h; if negative, for ever.
	MaxStale time.Duration
	// Loopback says that listeners are bound to a loopback address, so that only loopback names can be meant by a Host
	// header which no listener or route names.
	Loopback bool
	// Runtime is what compiled policies share. If nil, the store makes one.
	Runtime *policy.Runtime
	// If nil, nothing is logged.
	Log *slog.Logger
}

// Store holds what each tenant was given and the Index compiled from it. It is safe for concurrent use.
type Store struct {
	cfg   Config
	index atomic.Pointer[Index]
	dirty chan struct{} // holds one: something is to be written to disk

	writing sync.Mutex // held while the whole is written to disk; taken before mu

	mu          sync.Mutex // guards what is below and the disk's journal, and orders swaps
	tenants     map[string]*tenant
	files       map[string]fileContent
	moved       map[string]bool // files that a unit found changed: for the next poll to tell their other readers
	subscribers map[int]func(old, new *Index)
	nextID      int
	connected   bool
	seen        time.Time // when a control plane was last connected
	unwritable  bool      // the last write to disk went wrong: Run tries again, Apply does not wait for it
}

// Resource is one resource as the control plane sent it.
type Resource struct {
	Type, Name, Version string
	// Body is an encoded sluice.xds.v1.Config or Secret; not changed by anyone.
	Body []byte
}

// Key names a resource.
type Key struct {
	Type, Name string
}

// Update is one revision of one tenant: what differs from the one before.
type Update struct {
	Tenant   string
	Revision int64
	// Digest is that of the Commit; if empty, it is not checked.
	Digest  []byte
	Set     []Resource
	Removed []Key
}

// New makes a store that serves nothing yet.
func New(cfg Config) *Store {
	if cfg.Bind == nil {
		cfg.Bind = func(uint16) error { return nil }
	}
	if cfg.ReadFile == nil {
		cfg.ReadFile = readFile
	}
	if cfg.LookupEnv == nil {
		cfg.LookupEnv = os.LookupEnv
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Runtime == nil {
		cfg.Runtime = policy.NewRuntime()
	}
	cfg.Poll = cmp.Or(cfg.Poll, 2*time.Second)
	cfg.MaxStale = cmp.Or(cfg.MaxStale, 24*time.Hour)
	s := &Store{
		cfg:         cfg,
		dirty:       make(chan struct{}, 1),
		tenants:     map[string]*tenant{},
		files:       map[string]fileContent{},
		moved:       map[string]bool{},
		subscribers: map[int]func(old, new *Index){},
	}
	s.index.Store(&Index{})
	return s
}

// Load returns the active Index, never nil.
func (s *Store) Load() *Index { return s.index.Load() }

// Subscribe has f called after each swap, in order, by the goroutine that swapped; f must not call the store but for
// Load. What was active before is not told.
func (s *Store) Subscribe(f func(old, new *Index)) (cancel func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	id := s.nextID
	s.nextID++
	s.subscribers[id] = f
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.subscribers, id)
	}
}

// Apply makes a revision the active one, at once and whole, but for the units that do not build: all that the tenant
// has of those now, from this revision or earlier, is returned, ordered by name. The error is [ErrDrift].
// When it returns, the revision survives the process: who is told that it serves may count on that.
func (s *Store) Apply(u Update) ([]*xdsv1.Refusal, error) {
	refusals, kept, err := s.accept(u)
	if err == nil && !kept {
		s.write()
	}
	return refusals, err
}

func (s *Store) accept(u Update) (refusals []*xdsv1.Refusal, kept bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.tenants[u.Tenant]
	if t == nil {
		t = newTenant(u.Tenant)
	}
	next := t.stage(u)
	if len(u.Digest) > 0 && string(u.Digest) != string(next.digest[:]) {
		return nil, false, ErrDrift
	}
	s.tenants[u.Tenant] = t
	t.take(next, u.Revision)
	s.build(t)
	s.swap(t.name)
	return t.refusals(), s.journalLocked(record{Update: u}), nil
}

// Drop removes a tenant and all it has.
func (s *Store) Drop(name string) {
	if !s.drop(name) {
		s.write()
	}
}

func (s *Store) drop(name string) (kept bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.tenants[name] == nil {
		return true
	}
	delete(s.tenants, name)
	s.swap(name)
	return s.journalLocked(record{Drop: name})
}

// Versions claims what is held: name to version, by type URL. Resources that were refused and Commits are claimed
// with an empty version, which no resource has: they are sent again, or removed, when a stream begins.
func (s *Store) Versions() map[string]map[string]string {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := map[string]map[string]string{ConfigType: {}, SecretType: {}}
	for _, t := range s.tenants {
		refused := map[string]bool{}
		for _, r := range t.refusals() {
			refused[r.GetName()] = true
		}
		for key, r := range t.resources {
			version := r.Version
			if r.err != nil || refused[key.Name] || r.config.GetCommit() != nil {
				version = ""
			}
			out[key.Type][key.Name] = version
		}
	}
	return out
}

// Forget makes Versions claim nothing of a tenant as active, so that all of it is sent again.
func (s *Store) Forget(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.tenants[name]
	if t == nil {
		return
	}
	for key, r := range t.resources {
		fresh := *r
		fresh.Version = ""
		t.resources[key] = &fresh
	}
	t.digest = t.computeDigest()
}

// SetConnected tells whether a control plane is there: what is on disk is good for MaxStale from the last time it was.
func (s *Store) SetConnected(on bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.connected = on
	s.seen = time.Now()
}

// Run looks at files, tries refused ports again and writes to disk, until ctx ends; then it writes a last time.
func (s *Store) Run(ctx context.Context) error {
	poll := time.NewTicker(s.cfg.Poll)
	defer poll.Stop()
	var write <-chan time.Time
	var lastWrite, nextWrite time.Time // the start of the last, and when the next may be
	for {
		select {
		case <-ctx.Done():
			if write != nil || len(s.dirty) > 0 {
				s.write()
			}
			return context.Cause(ctx)
		case <-s.dirty:
			if write == nil { // at once where it can be: what a proxy said it serves should survive its death
				write = time.After(time.Until(nextWrite))
			}
		case <-write:
			write = nil
			lastWrite = time.Now()
			s.write()
			nextWrite = time.Now().Add(20 * time.Since(lastWrite)) // under churn, a large one shall not keep a core busy
		case <-poll.C:
			s.poll()
			if s.cfg.MaxStale > 0 && time.Since(lastWrite) > s.cfg.MaxStale/24 {
				s.mu.Lock()
				if s.connected { // so that a restart knows how lately this was confirmed
					s.save()
				}
				s.mu.Unlock()
			}
		}
	}
}

// poll builds again what reads a file that has changed, and what could not bind its port.
func (s *Store) poll() {
	s.mu.Lock()
	used := map[string]bool{}
	for _, t := range s.tenants {
		for what := range t.readers {
			if what.file != "" {
				used[what.file] = true
			}
		}
	}
	maps.DeleteFunc(s.files, func(path string, _ fileContent) bool { return !used[path] })
	s.mu.Unlock()

	read := map[string]fileContent{}
	for path := range used { // without the lock: a slow disk must not hold up a revision
		read[path] = s.readNow(path)
	}

	s.mu.Lock()
	defer s.mu.Unlock()
	for path, now := range read {
		if old, ok := s.files[path]; !ok || old.hash == now.hash && !s.moved[path] {
			delete(read, path) // what is left has changed
		} else {
			s.files[path] = now
			delete(s.moved, path)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(s.tenants)) {
		t := s.tenants[name]
		for path := range read {
			t.touch(source{file: path})
		}
		touched := t.retry || len(t.dirty) > 0
		expired := t.stale && s.cfg.MaxStale > 0 && time.Since(s.seen) > s.cfg.MaxStale
		if touched && s.build(t) || expired != t.expired {
			if expired && !t.expired {
				s.cfg.Log.Error("configuration from disk is too old to serve", "tenant", name, "seen", s.seen, "max_stale", s.cfg.MaxStale)
			}
			t.expired = expired
			s.swap(name)
		}
	}
}

// swap makes an Index with the tenant as it is now, and tells the subscribers.
func (s *Store) swap(name string) {
	old := s.index.Load()
	now := old.with(name, s.tenants[name])
	s.index.Store(now)
	for _, id := range slices.Sorted(maps.Keys(s.subscribers)) {
		s.subscribers[id](old, now)
	}
}

func (s *Store) save() {
	if s.cfg.Disk == nil {
		return
	}
	select {
	case s.dirty <- struct{}{}:
	default:
	}
}

type fileContent struct {
	data []byte
	err  error
	hash [32]byte // of data or of the error's text
}

// read always goes to the disk: a unit that is built sees what is there now.
func (s *Store) read(path string) fileContent {
	f := s.readNow(path)
	if old, ok := s.files[path]; ok && old.hash != f.hash {
		s.moved[path] = true
	}
	s.files[path] = f
	return f
}

func (s *Store) readNow(path string) fileContent {
	data, err := s.cfg.ReadFile(path)
	f := fileContent{data: data, err: err, hash: sha256.Sum256(data)}
	if err != nil {
		f.hash = sha256.Sum256([]byte("error: " + err.Error()))
	}
	return f
}

func readFile(path string) ([]byte, error) {
	const limit = 1 << 20
	info, err := os.Stat(path)
	if err != nil {
		return nil, reason(err)
	}
	if !info.Mode().IsRegular() { // a pipe would block for ever
		return nil, errors.New("not a regular file")
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, reason(err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, reason(err)
	}
	if len(data) > limit {
		return nil, fmt.Errorf("the file is larger than %d bytes", limit)
	}
	return data, nil
}

// reason takes the path out of an error: who reports it names the file already.
func reason(err error) error {
	var path *os.PathError
	if errors.As(err, &path) {
		return path.Err
	}
	return err
}

// tenantOf is the first part of a resource name.
func tenantOf(name string) string {
	tenant, _, _ := strings.Cut(name, "/")
	return tenant
}
