package store

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync"
	"time"

	"go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
)

const (
	schema    = 1
	maxBatch  = 512 // commits that share an fsync
	lockWait  = time.Second
	spaceMark = "t/"     // a tenant's bucket is spaceMark + its name
	leastFile = 4 * 4096 // what bbolt begins a file with
	mmapSize  = 64 << 20 // address space, not file: fewer remaps, which wait for readers
)

var (
	clusterBucket = []byte("cluster")
	headKey       = []byte("head") // a space's revision; no key of an Edit may be it
	schemaKey     = []byte("schema")
)

// Bolt is a Store in one file. One process at a time may have it open.
type Bolt struct {
	db      *bbolt.DB
	commits chan *commit
	closing chan struct{}
	done    chan struct{} // closed when the commit loop is over
	close   func() error

	mu       sync.Mutex // guards watchers
	watchers map[*Watcher]bool
}

var _ Store = (*Bolt)(nil)

type commit struct {
	txn   Txn
	reply chan error
}

var errDamaged = errors.New("it is damaged or was cut short: put a backup of it there")

var errClosed = errors.New("the store is closed")

// OpenBolt opens the file at path, which it makes if it is not there. The caller closes it.
func OpenBolt(path string) (*Bolt, error) {
	_, statErr := os.Stat(path)
	db, err := openFile(path)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	if err := initialise(db); err != nil {
		return nil, errors.Join(fmt.Errorf("open %s: %w", path, err), db.Close())
	}
	if errors.Is(statErr, os.ErrNotExist) { // a new file is only safe once its directory is
		if err := syncDir(filepath.Dir(path)); err != nil {
			return nil, errors.Join(err, db.Close())
		}
	}
	b := &Bolt{
		db: db, commits: make(chan *commit), closing: make(chan struct{}), done: make(chan struct{}),
		watchers: map[*Watcher]bool{},
	}
	b.close = sync.OnceValue(func() error {
		close(b.closing)
		<-b.done
		return b.db.Close()
	})
	go b.run()
	return b, nil
}

// openFile opens a file of bbolt, and refuses one that is damaged: bbolt maps it to memory, and reading behind the end of one
// that was cut would be the end of the process.
func openFile(path string) (db *bbolt.DB, err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if v := recover(); v != nil {
			err = errDamaged
		}
	}()
	if info, err := os.Stat(path); err == nil && info.Size() > 0 && info.Size() < leastFile {
		return nil, errDamaged
	}
	db, err = bbolt.Open(path, 0o600, &bbolt.Options{
		Timeout: lockWait, FreelistType: bbolt.FreelistMapType, InitialMmapSize: mmapSize,
	})
	switch {
	case errors.Is(err, berrors.ErrTimeout):
		return nil, errors.New("another process holds it; is a control plane running on this data directory?")
	case errors.Is(err, berrors.ErrInvalid), errors.Is(err, berrors.ErrChecksum):
		return nil, fmt.Errorf("%w (%w)", errDamaged, err)
	case err != nil:
		return nil, err
	}
	info, err := os.Stat(path)
	if err == nil {
		err = db.View(func(tx *bbolt.Tx) error {
			if tx.Size() > info.Size() {
				return errDamaged
			}
			return nil
		})
	}
	if err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return db, nil
}

func initialise(db *bbolt.DB) error {
	have := uint64(0)
	if err := db.View(func(tx *bbolt.Tx) error {
		if bucket := tx.Bucket(clusterBucket); bucket != nil {
			have = decode(bucket.Get(schemaKey))
		}
		return nil
	}); err != nil {
		return err
	}
	switch {
	case have == schema:
		return nil
	case have > schema:
		return fmt.Errorf("it has schema %d, this program knows up to %d; use a newer one", have, schema)
	}
	return db.Update(func(tx *bbolt.Tx) error {
		bucket, err := tx.CreateBucketIfNotExists(clusterBucket)
		if err != nil {
			return err
		}
		return bucket.Put(schemaKey, encode(schema))
	})
}

func syncDir(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// Close waits for the commits that are under way.
func (b *Bolt) Close() error { return b.close() }

// Check walks all pages of the file and returns all that is wrong with it.
func (b *Bolt) Check() error {
	var wrong []error
	err := b.db.View(func(tx *bbolt.Tx) error {
		for err := range tx.Check() {
			wrong = append(wrong, err)
		}
		return nil
	})
	return errors.Join(append(wrong, err)...)
}

// Commit implements [Store]. Once its commit is in the queue it waits for the outcome even if ctx ends: an
// answer that leaves the outcome open helps nobody, and an fsync is short.
func (b *Bolt) Commit(ctx context.Context, txn Txn) error {
	for _, e := range txn {
		if err := e.check(); err != nil {
			return err
		}
	}
	c := &commit{txn: txn, reply: make(chan error, 1)}
	select {
	case b.commits <- c:
		return <-c.reply
	case <-b.closing:
		return errClosed
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (e Edit) check() error {
	bad := func(key string) bool { return key == "" || key == string(headKey) || key == string(schemaKey) }
	for _, key := range e.Delete {
		if bad(key) {
			return fmt.Errorf("key %q is reserved", key)
		}
	}
	for _, pairs := range []map[string][]byte{e.Put, e.Claim} {
		for key := range pairs {
			if bad(key) {
				return fmt.Errorf("key %q is reserved", key)
			}
		}
	}
	return nil
}

// run is the one writer. What arrives while an fsync runs shares the next one.
func (b *Bolt) run() {
	defer close(b.done)
	for {
		select {
		case <-b.closing:
			return
		case first := <-b.commits:
			b.commit(b.gather(first))
		}
	}
}

func (b *Bolt) gather(first *commit) []*commit {
	batch := []*commit{first}
	for len(batch) < maxBatch {
		select {
		case c := <-b.commits:
			batch = append(batch, c)
		default:
			return batch
		}
	}
	return batch
}

// commit does a batch in one bbolt transaction. A commit that cannot be done, since a condition of it does not hold or a
// key is none, is answered and taken out, and the rest is done again from the start: bbolt has no transactions within
// transactions.
func (b *Bolt) commit(batch []*commit) {
	for len(batch) > 0 {
		failed := -1
		var events []Event
		err := b.db.Update(func(tx *bbolt.Tx) error {
			for i, c := range batch {
				touched, err := perform(tx, c.txn)
				if err != nil {
					failed = i
					return err
				}
				events = append(events, touched...)
			}
			return nil
		})
		var conflict *ConflictError
		var taken *TakenError
		if failed >= 0 {
			if !errors.As(err, &conflict) && !errors.As(err, &taken) {
				err = fmt.Errorf("commit to %s: %w", b.db.Path(), err)
			}
			batch[failed].reply <- err
			batch = append(batch[:failed:failed], batch[failed+1:]...)
			continue
		}
		if err != nil {
			err = fmt.Errorf("commit to %s: %w", b.db.Path(), err)
		} else {
			b.tell(events)
		}
		for _, c := range batch {
			c.reply <- err
		}
		return
	}
}

func (b *Bolt) tell(events []Event) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for w := range b.watchers {
		w.add(events)
	}
}

func perform(tx *bbolt.Tx, txn Txn) ([]Event, error) {
	var events []Event
	for _, e := range txn {
		event, err := performEdit(tx, e)
		if err != nil {
			return nil, err
		}
		events = append(events, event)
	}
	return events, nil
}

func performEdit(tx *bbolt.Tx, e Edit) (Event, error) {
	name := bucketOf(e.Space)
	bucket := tx.Bucket(name)
	head := int64(0)
	if bucket != nil {
		head = int64(decode(bucket.Get(headKey)))
	}
	if e.If != Unchecked && e.If != head {
		return Event{}, &ConflictError{Space: e.Space, Have: head, Want: e.If}
	}
	event := Event{Space: e.Space, Revision: head}
	if e.Drop && bucket != nil {
		if err := tx.DeleteBucket(name); err != nil {
			return event, err
		}
		bucket, event = nil, Event{Space: e.Space, Dropped: true}
	}
	if e.Drop && len(e.Put)+len(e.Claim) == 0 && e.Revision == 0 {
		return event, nil
	}
	if bucket == nil {
		var err error
		if bucket, err = tx.CreateBucket(name); err != nil {
			return event, err
		}
	}
	for _, key := range e.Delete {
		if err := bucket.Delete([]byte(key)); err != nil {
			return event, err
		}
	}
	for key, value := range e.Claim {
		if have := bucket.Get([]byte(key)); have != nil && !bytes.Equal(have, value) {
			return event, &TakenError{Key: key}
		}
		if err := bucket.Put([]byte(key), value); err != nil {
			return event, err
		}
	}
	for key, value := range e.Put {
		if err := bucket.Put([]byte(key), value); err != nil {
			return event, err
		}
	}
	if e.Revision != 0 {
		event.Revision, event.Dropped = e.Revision, false
		return event, bucket.Put(headKey, encode(uint64(e.Revision)))
	}
	return event, nil
}

// Get implements [Store].
func (b *Bolt) Get(_ context.Context, space, key string) (value []byte, err error) {
	err = b.db.View(func(tx *bbolt.Tx) error {
		if bucket := tx.Bucket(bucketOf(space)); bucket != nil {
			value = bytes.Clone(bucket.Get([]byte(key))) // the slice dies with the transaction
		}
		return nil
	})
	if err == nil && value == nil {
		err = ErrNotFound
	}
	return value, err
}

// Range implements [Store].
func (b *Bolt) Range(ctx context.Context, space string, q Query) (pairs []Pair, err error) {
	err = b.db.View(func(tx *bbolt.Tx) error {
		bucket := tx.Bucket(bucketOf(space))
		if bucket == nil {
			return nil
		}
		c, prefix := bucket.Cursor(), []byte(q.Prefix)
		start, step := func() ([]byte, []byte) { return c.Seek(prefix) }, c.Next
		if q.Reverse {
			start, step = func() ([]byte, []byte) { return last(c, prefix) }, c.Prev
		}
		for k, v := start(); k != nil && bytes.HasPrefix(k, prefix); k, v = step() {
			if q.Limit > 0 && len(pairs) == q.Limit {
				return nil
			}
			if bytes.Equal(k, headKey) || bytes.Equal(k, schemaKey) {
				continue
			}
			pairs = append(pairs, Pair{Key: string(k), Value: bytes.Clone(v)})
			if len(pairs)%1024 == 0 && ctx.Err() != nil {
				return context.Cause(ctx)
			}
		}
		return nil
	})
	return pairs, err
}

// last puts c on the last key that begins with prefix.
func last(c *bbolt.Cursor, prefix []byte) ([]byte, []byte) {
	end := bytes.Clone(prefix)
	for len(end) > 0 && end[len(end)-1] == 0xff {
		end = end[:len(end)-1]
	}
	if len(end) == 0 {
		return c.Last()
	}
	end[len(end)-1]++ // the first key behind all that begin with prefix
	if k, _ := c.Seek(end); k == nil {
		return c.Last()
	}
	return c.Prev()
}

// Revision implements [Store].
func (b *Bolt) Revision(_ context.Context, space string) (revision int64, err error) {
	err = b.db.View(func(tx *bbolt.Tx) error {
		if bucket := tx.Bucket(bucketOf(space)); bucket != nil {
			revision = int64(decode(bucket.Get(headKey)))
		}
		return nil
	})
	return revision, err
}

// Spaces implements [Store].
func (b *Bolt) Spaces(context.Context) (names []string, err error) {
	err = b.db.View(func(tx *bbolt.Tx) error {
		return tx.ForEach(func(name []byte, _ *bbolt.Bucket) error {
			if space, ok := bytes.CutPrefix(name, []byte(spaceMark)); ok {
				names = append(names, string(space))
			}
			return nil
		})
	})
	return names, err
}

// Watch implements [Store].
func (b *Bolt) Watch() *Watcher {
	w := newWatcher(func(w *Watcher) {
		b.mu.Lock()
		defer b.mu.Unlock()
		delete(b.watchers, w)
	})
	b.mu.Lock()
	defer b.mu.Unlock()
	b.watchers[w] = true
	return w
}

func bucketOf(space string) []byte {
	if space == Cluster {
		return clusterBucket
	}
	return []byte(spaceMark + space)
}

func encode(n uint64) []byte { return binary.BigEndian.AppendUint64(nil, n) }

func decode(b []byte) uint64 {
	if len(b) != 8 {
		return 0
	}
	return binary.BigEndian.Uint64(b)
}
