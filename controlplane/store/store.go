// Package store keeps what the control plane must not lose: transactions over keys that begin with a tenant,
// and the records of a tenant laid out in them. It is the only package that knows bbolt.
package store

import (
	"context"
	"errors"
	"fmt"
	"sync"
)

// Cluster is the space of what belongs to no tenant. No tenant's name is empty.
const Cluster = ""

// Store holds keys in spaces: one for each tenant and [Cluster]. Each space has a revision, 0 before its first
// commit. It is the whole of what a backing database must do; its methods may be called at the same time.
type Store interface {
	// Get returns a copy of the value of key in space, or ErrNotFound.
	Get(ctx context.Context, space, key string) ([]byte, error)
	// Range returns copies of the pairs that q asks for, of one moment, in the order of their keys.
	Range(ctx context.Context, space string, q Query) ([]Pair, error)
	// Revision returns the space's revision; 0 for a space that is not there.
	Revision(ctx context.Context, space string) (int64, error)
	// Spaces returns the tenants' spaces in order, without Cluster.
	Spaces(ctx context.Context) ([]string, error)
	// Commit does all of txn or nothing. When it returns nil, txn is on stable storage. A condition that does not
	// hold is a *ConflictError or a *TakenError.
	Commit(ctx context.Context, txn Txn) error
	// Watch reports the spaces that commits touch from now on.
	Watch() *Watcher
	Close() error
}

// Query selects pairs of one space.
type Query struct {
	Prefix string
	// If true the last key comes first.
	Reverse bool
	// If 0: no limit.
	Limit int
}

// Pair is a key with its value.
type Pair struct {
	Key   string
	Value []byte
}

// Txn is edits that are done in order, all or none. A space may come more than once.
type Txn []Edit

// Edit changes one space.
type Edit struct {
	Space string
	// The revision that the space must have. If Unchecked: any.
	If int64
	// The revision that the space has afterwards. If 0 it stays as it is.
	Revision int64
	// If true, all that the space held is removed before the rest is done.
	Drop   bool
	Delete []string
	Put    map[string][]byte
	// Put, but a key that holds another value is a *TakenError.
	Claim map[string][]byte
}

// Unchecked as Edit.If asks for no revision.
const Unchecked int64 = -1

// ErrNotFound is returned for a key that is not there.
var ErrNotFound = errors.New("not found")

// ConflictError says that a space was not at the revision that a commit asked for.
type ConflictError struct {
	Space      string
	Have, Want int64
}

func (e *ConflictError) Error() string {
	return fmt.Sprintf("tenant %q is at revision %d, not %d", e.Space, e.Have, e.Want)
}

// TakenError says that a claimed key holds another value. The value stays out of the text: it names the holder.
type TakenError struct {
	Key string
}

func (e *TakenError) Error() string { return fmt.Sprintf("%s is taken", e.Key) }

// Event says that a space changed.
type Event struct {
	Space    string
	Revision int64
	Dropped  bool
}

// Watcher collects events until they are read. Of a space it keeps the last event alone, so that a slow reader
// costs one entry for each space and never a commit.
type Watcher struct {
	wake  chan struct{} // holds at most one
	close func()

	mu      sync.Mutex // guards pending
	pending map[string]Event
}

func newWatcher(stop func(*Watcher)) *Watcher {
	w := &Watcher{wake: make(chan struct{}, 1), pending: map[string]Event{}}
	w.close = sync.OnceFunc(func() { stop(w) })
	return w
}

func (w *Watcher) add(events []Event) {
	w.mu.Lock()
	for _, e := range events {
		w.pending[e.Space] = e
	}
	w.mu.Unlock()
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// Next waits for events and returns them in no order, or the cause of ctx.
func (w *Watcher) Next(ctx context.Context) ([]Event, error) {
	for {
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-w.wake:
		}
		w.mu.Lock()
		events := make([]Event, 0, len(w.pending))
		for _, e := range w.pending {
			events = append(events, e)
		}
		clear(w.pending)
		w.mu.Unlock()
		if len(events) > 0 {
			return events, nil
		}
	}
}

// Close ends the watch.
func (w *Watcher) Close() { w.close() }
