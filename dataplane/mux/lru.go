package mux

import (
	"container/list"
	"hash/maphash"
	"sync"
	"sync/atomic"
	"time"
)

// lru is a bounded cache: what was not used longest goes first. Keys are spread over shards, so that no lock is shared
// by all requests.
type lru[K comparable, V any] struct {
	seed   maphash.Seed
	held   atomic.Int64
	shards [16]shard[K, V]
}

type shard[K comparable, V any] struct {
	mu    sync.Mutex
	items map[K]*list.Element // guarded by mu; values are *entry[K, V]
	order list.List           // guarded by mu; last used first
	cost  int                 // guarded by mu
	limit int
	held  *atomic.Int64
}

type entry[K comparable, V any] struct {
	key     K
	value   V
	cost    int
	expires time.Time
}

// newLRU returns a cache whose items' costs add up to at most limit.
func newLRU[K comparable, V any](limit int) *lru[K, V] {
	c := &lru[K, V]{seed: maphash.MakeSeed()}
	for i := range c.shards {
		c.shards[i].items = map[K]*list.Element{}
		c.shards[i].limit, c.shards[i].held = limit/len(c.shards), &c.held
	}
	return c
}

func (c *lru[K, V]) shard(k K) *shard[K, V] {
	return &c.shards[maphash.Comparable(c.seed, k)%uint64(len(c.shards))]
}

// empty takes no lock.
func (c *lru[K, V]) empty() bool { return c.held.Load() == 0 }

// get returns what was put, unless it expired.
func (c *lru[K, V]) get(k K) (v V, ok bool) {
	s := c.shard(k)
	s.mu.Lock()
	defer s.mu.Unlock()
	e, ok := s.items[k]
	if !ok {
		return v, false
	}
	it := e.Value.(*entry[K, V])
	if !it.expires.IsZero() && !time.Now().Before(it.expires) {
		s.removeLocked(e)
		return v, false
	}
	s.order.MoveToFront(e)
	return it.value, true
}

// put keeps v until expires (zero: for ever) or until the room is needed. What costs more than a shard is not kept.
func (c *lru[K, V]) put(k K, v V, cost int, expires time.Time) {
	s := c.shard(k)
	s.mu.Lock()
	defer s.mu.Unlock()
	if e, ok := s.items[k]; ok {
		s.removeLocked(e)
	}
	if cost > s.limit {
		return
	}
	s.held.Add(1)
	s.items[k] = s.order.PushFront(&entry[K, V]{k, v, cost, expires})
	for s.cost += cost; s.cost > s.limit; {
		s.removeLocked(s.order.Back())
	}
}

func (c *lru[K, V]) drop(k K) {
	s := c.shard(k)
	s.mu.Lock()
	defer s.mu.Unlock()
	if e, ok := s.items[k]; ok {
		s.removeLocked(e)
	}
}

func (s *shard[K, V]) removeLocked(e *list.Element) {
	it := s.order.Remove(e).(*entry[K, V])
	delete(s.items, it.key)
	s.cost -= it.cost
	s.held.Add(-1)
}
