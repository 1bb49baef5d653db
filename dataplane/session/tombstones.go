package session

import (
	"sync"
	"sync/atomic"
	"time"
)

// Tombstones remembers sessions that were deleted, until their ids expire by themselves. The zero value is ready.
//
// It is this proxy's memory alone, and bounded: another proxy opens a deleted id as long as it has not expired, and then
// finds the targets' own sessions gone. Past the bound the oldest is forgotten first.
type Tombstones struct {
	held   atomic.Int64
	shards [32]graveyard // by nonce: no lock that all requests share
}

const maxGraves = 4096 // per shard; 131,072 in all, 5 MB

type graveyard struct {
	mu    sync.RWMutex
	until map[Nonce]int64 // guarded by mu; when the id expires, in Unix seconds
	order []Nonce         // guarded by mu; oldest first
}

// Add buries a session.
func (t *Tombstones) Add(s *State) {
	g := &t.shards[int(s.Nonce[0])%len(t.shards)]
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.until == nil {
		g.until = map[Nonce]int64{}
	}
	if _, again := g.until[s.Nonce]; again {
		return
	}
	now := time.Now().Unix()
	drop := 0
	for drop < len(g.order) && (len(g.order)-drop >= maxGraves || g.until[g.order[drop]] <= now) {
		delete(g.until, g.order[drop])
		drop++
	}
	g.order = append(g.order[drop:], s.Nonce)
	g.until[s.Nonce] = s.Expires.Unix()
	t.held.Add(int64(1 - drop))
}

// Has reports whether the session was deleted here.
func (t *Tombstones) Has(n Nonce) bool {
	if t.held.Load() == 0 { // the usual case costs no lock
		return false
	}
	g := &t.shards[int(n[0])%len(t.shards)]
	g.mu.RLock()
	defer g.mu.RUnlock()
	_, dead := g.until[n]
	return dead
}
