package snapshot

import (
	"bytes"
	"cmp"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/base64"
	"encoding/gob"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/sluicegate/sluice/internal/mtls"
)

const (
	diskFile   = "config.sealed"
	diskOlder  = "config.sealed.1"
	diskFormat = "sluice-config-1\n" // at the file's head, and authenticated with the rest
	diskKey    = "proxy.key"
)

// Disk keeps the last good configuration in a directory, in two generations, sealed with AES-256-GCM: whoever reads or
// changes the files without the key learns and achieves nothing. It does not protect against who can read the key.
type Disk struct {
	dir  string
	aead cipher.AEAD
	bad  bool // the newest generation: it must not push out the older one

	journal       journal  // of the running process
	before, since []string // journals that the older generation needs alone, and those from the newest one on
}

// OpenDisk uses the key in keyFile: 32 bytes as hex or base64. If keyFile is empty, the key is dir/proxy.key, which is
// made (0600) if it is not there.
func OpenDisk(dir, keyFile string) (*Disk, error) {
	path := cmp.Or(keyFile, filepath.Join(dir, diskKey))
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) && keyFile == "" {
		key := make([]byte, 32)
		rand.Read(key) //nolint:errcheck // never fails
		text = []byte(hex.EncodeToString(key) + "\n")
		err = mtls.WriteFile(path, text)
	}
	if err != nil {
		return nil, fmt.Errorf("disk key: %w", err)
	}
	if info, err := os.Stat(path); err == nil && info.Mode().Perm()&0o007 != 0 {
		return nil, fmt.Errorf("disk key %s can be read by every user (mode %04o): chmod 600 %s", path, info.Mode().Perm(), path)
	}
	key, err := parseKey(strings.TrimSpace(string(text)))
	if err != nil {
		return nil, fmt.Errorf("disk key %s: %w", path, err)
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		return nil, err
	}
	return &Disk{dir: dir, aead: aead}, nil
}

func parseKey(text string) ([]byte, error) {
	for _, decode := range []func(string) ([]byte, error){hex.DecodeString, base64.StdEncoding.DecodeString, base64.RawURLEncoding.DecodeString} {
		if key, err := decode(text); err == nil && len(key) == 32 {
			return key, nil
		}
	}
	return nil, errors.New("it must hold 32 bytes as hex or base64, e.g. from `openssl rand -hex 32`")
}

// saved is what is on disk.
type saved struct {
	// Seen is when a control plane was last connected.
	Seen    time.Time
	Tenants []savedTenant
	// Journal holds what became active after this.
	Journal string
}

type savedTenant struct {
	Name      string
	Revision  int64
	Resources []Resource
	// Kept holds, for each unit that serves an older form, what that was made of: without it, a restart would turn a
	// refused change into an outage.
	Kept map[string][]Resource
}

func (d *Disk) save(s saved) error {
	var plain bytes.Buffer
	if err := gob.NewEncoder(&plain).Encode(s); err != nil {
		return err
	}
	sealed := d.aead.Seal([]byte(diskFormat), nil, plain.Bytes(), []byte(diskFormat))
	current := filepath.Join(d.dir, diskFile)
	// Stopped between the two, this leaves the older generation alone, which load finds.
	if !d.bad {
		if err := os.Rename(current, filepath.Join(d.dir, diskOlder)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	pushed := !d.bad
	d.bad = false
	if err := mtls.WriteFile(current, sealed); err != nil {
		return err
	}
	d.forgetJournals(s.Journal, pushed)
	return nil
}

// load returns the newest generation that is whole. If there is none at all, the error is fs.ErrNotExist; if only the
// newest is bad, it returns the older one together with the reason.
func (d *Disk) load() (*saved, error) {
	var errs []error
	for _, name := range []string{diskFile, diskOlder} {
		path := filepath.Join(d.dir, name)
		s, err := d.open(path)
		if err == nil {
			return s, errors.Join(errs...)
		}
		if !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, fmt.Errorf("%s: %w", path, err))
			d.bad = d.bad || name == diskFile
		}
	}
	if len(errs) == 0 {
		return nil, fs.ErrNotExist
	}
	return nil, errors.Join(errs...)
}

func (d *Disk) open(path string) (*saved, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	sealed, ok := bytes.CutPrefix(data, []byte(diskFormat))
	if !ok {
		return nil, errors.New("not a sealed configuration of this version")
	}
	plain, err := d.aead.Open(nil, nil, sealed, []byte(diskFormat))
	if err != nil {
		return nil, errors.New("it was changed or cut, or sealed with another key")
	}
	s := &saved{}
	if err := gob.NewDecoder(bytes.NewReader(plain)).Decode(s); err != nil {
		return nil, err
	}
	return s, nil
}

// write saves what is active. A failure is logged: serving goes on.
func (s *Store) write() {
	s.writing.Lock()
	defer s.writing.Unlock()
	s.mu.Lock()
	if s.connected {
		s.seen = time.Now()
	}
	out := saved{Seen: s.seen}
	for _, name := range slices.Sorted(maps.Keys(s.tenants)) {
		out.Tenants = append(out.Tenants, s.tenants[name].export())
	}
	var err error
	out.Journal, err = s.cfg.Disk.rotate()
	s.mu.Unlock() // bodies are immutable: sealing and writing need no lock
	if err == nil {
		err = s.cfg.Disk.save(out)
	}
	s.mu.Lock()
	s.unwritable = err != nil
	s.cfg.Disk.journal.found = s.cfg.Disk.journal.found || err == nil
	s.mu.Unlock()
	if err != nil {
		s.cfg.Log.Error("last good configuration was not written", "err", err)
	}
}

func (t *tenant) export() savedTenant {
	out := savedTenant{Name: t.name, Revision: t.revision, Kept: map[string][]Resource{}}
	for _, r := range t.resources {
		out.Resources = append(out.Resources, r.Resource)
	}
	for name, u := range t.refused {
		if u.form == nil {
			continue
		}
		for _, i := range u.good.resources {
			if i.resource != nil {
				out.Kept[name] = append(out.Kept[name], i.resource.Resource)
			}
		}
	}
	return out
}

// Restore activates what is on disk, marked stale, and tells whether there was anything. An error says what is wrong with
// the newest file; the older one is used then, if it is good. Call it before anything else.
func (s *Store) Restore() (bool, error) {
	if s.cfg.Disk == nil {
		return false, nil
	}
	disk, err := s.cfg.Disk.load()
	if disk == nil {
		if errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
		return false, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	records, broken := s.cfg.Disk.replay(disk.Journal)
	err = errors.Join(err, broken)
	s.seen = disk.Seen
	if len(records) > 0 {
		s.seen = records[len(records)-1].Seen
	}
	expired := s.cfg.MaxStale > 0 && time.Since(s.seen) > s.cfg.MaxStale
	for _, from := range disk.Tenants {
		t := newTenant(from.Name)
		t.take(t.stage(Update{Set: from.Resources}), from.Revision)
		t.stale, t.expired = true, expired
		t.buildInfo()
		for name, resources := range from.Kept {
			s.rebuild(t, name, resources)
		}
		s.tenants[t.name] = t
		s.build(t)
		s.swap(t.name)
	}
	for _, r := range records {
		if broken := s.resume(r, expired); broken != nil {
			return true, errors.Join(err, broken)
		}
	}
	return len(s.tenants) > 0, err
}

// rebuild makes the older form that a unit kept, from what it was made of.
func (s *Store) rebuild(t *tenant, name string, resources []Resource) {
	old := newTenant(t.name)
	old.take(old.stage(Update{Set: resources}), 0)
	old.info = t.info
	if old.resources[Key{ConfigType, name}] == nil {
		return
	}
	b := &builder{s: s, t: old, in: inputs{done: true, grants: t.info.from}}
	if form, _ := b.unit(name); len(b.refused) == 0 {
		t.add(&unit{name: name, kind: kindOf(name), form: form, good: b.in})
	}
}
