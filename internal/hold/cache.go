package hold

import (
	"container/heap"
	"container/list"
	"hash/maphash"
	"reflect"
	"sync"
	"sync/atomic"
	"time"
)

// Cache holds values for a while, in so many bytes. When these are full, the tenant that has most of them loses what it has not used for
// longest. Keys are spread over shards, so that no lock is shared by all requests. It is safe for concurrent use.
type Cache[K comparable, V any] struct {
	seed   maphash.Seed
	items  atomic.Int64
	own    int // bytes of an item, beside what is said to Put
	shards [cacheShards]shard[K, V]
}

const cacheShards = 16

// itemSize is about what the books take for one item, beside its key and value.
const itemSize = 192

type shard[K comparable, V any] struct {
	mu    sync.Mutex // guards what is below
	items map[tenantKey[K]]*list.Element
	of    map[string]*shelf
	most  shelves // all of them; the fullest first
	size  int
	limit int
}

// shelf is what one tenant has of a shard.
type shelf struct {
	tenant string
	order  list.List // of *item[K, V], last used first
	size   int
	at     int // in shard.most
}

type tenantKey[K comparable] struct {
	tenant string
	key    K
}

type item[K comparable, V any] struct {
	tenantKey[K]
	shelf   *shelf
	value   V
	size    int
	expires time.Time
}

// NewCache returns an empty cache for at most limit bytes. One item may have a sixteenth of that.
func NewCache[K comparable, V any](limit int) *Cache[K, V] {
	c := &Cache[K, V]{seed: maphash.MakeSeed()}
	c.own = itemSize + 2*int(reflect.TypeFor[tenantKey[K]]().Size()) + int(reflect.TypeFor[V]().Size())
	for i := range c.shards {
		s := &c.shards[i]
		s.items, s.of, s.limit = map[tenantKey[K]]*list.Element{}, map[string]*shelf{}, limit/cacheShards
	}
	return c
}

func (c *Cache[K, V]) shard(k tenantKey[K]) *shard[K, V] {
	return &c.shards[maphash.Comparable(c.seed, k)%cacheShards]
}

// Empty takes no lock.
func (c *Cache[K, V]) Empty() bool { return c.items.Load() == 0 }

// Get returns what was put, unless it expired.
func (c *Cache[K, V]) Get(tenant string, key K) (v V, ok bool) {
	k := tenantKey[K]{tenant, key}
	s := c.shard(k)
	s.mu.Lock()
	defer s.mu.Unlock()
	e, ok := s.items[k]
	if !ok {
		return v, false
	}
	it := e.Value.(*item[K, V])
	if !it.expires.IsZero() && !time.Now().Before(it.expires) {
		c.removeLocked(s, e)
		return v, false
	}
	it.shelf.order.MoveToFront(e)
	return it.value, true
}

// Put keeps v until expires (zero: for ever) or until the room is needed. size is what key and v take in bytes, beside the words that
// they are themselves: the memory that their strings, slices and pointers keep alive, which is more than they show where they are part
// of something larger. What is too large for a shard is not kept.
func (c *Cache[K, V]) Put(tenant string, key K, v V, size int, expires time.Time) {
	k := tenantKey[K]{tenant, key}
	size += c.own
	s := c.shard(k)
	s.mu.Lock()
	defer s.mu.Unlock()
	if e, ok := s.items[k]; ok {
		c.removeLocked(s, e)
	}
	if size > s.limit {
		return
	}
	sh := s.of[tenant]
	if sh == nil {
		sh = &shelf{tenant: tenant}
		s.of[tenant] = sh
		heap.Push(&s.most, sh)
	}
	s.items[k] = sh.order.PushFront(&item[K, V]{k, sh, v, size, expires})
	c.items.Add(1)
	s.resizeLocked(sh, size)
	for s.size > s.limit {
		c.removeLocked(s, s.most[0].order.Back())
	}
}

// Drop forgets what was put.
func (c *Cache[K, V]) Drop(tenant string, key K) {
	k := tenantKey[K]{tenant, key}
	s := c.shard(k)
	s.mu.Lock()
	defer s.mu.Unlock()
	if e, ok := s.items[k]; ok {
		c.removeLocked(s, e)
	}
}

// DropAll forgets what which says, of all tenants. It looks at every item.
func (c *Cache[K, V]) DropAll(which func(key K) bool) {
	for i := range c.shards {
		s := &c.shards[i]
		s.mu.Lock()
		for k, e := range s.items {
			if which(k.key) {
				c.removeLocked(s, e)
			}
		}
		s.mu.Unlock()
	}
}

// Held is how many bytes all items take.
func (c *Cache[K, V]) Held() (size int) {
	for i := range c.shards {
		s := &c.shards[i]
		s.mu.Lock()
		size += s.size
		s.mu.Unlock()
	}
	return size
}

func (c *Cache[K, V]) removeLocked(s *shard[K, V], e *list.Element) {
	it := e.Value.(*item[K, V])
	it.shelf.order.Remove(e)
	delete(s.items, it.tenantKey)
	c.items.Add(-1)
	s.resizeLocked(it.shelf, -it.size)
}

// resizeLocked keeps the books after a shelf's change by so many bytes.
func (s *shard[K, V]) resizeLocked(sh *shelf, by int) {
	s.size += by
	if sh.size += by; sh.order.Len() > 0 {
		heap.Fix(&s.most, sh.at)
		return
	}
	heap.Remove(&s.most, sh.at)
	delete(s.of, sh.tenant)
}

// shelves are a heap.
type shelves []*shelf

func (h shelves) Len() int           { return len(h) }
func (h shelves) Less(i, j int) bool { return h[i].size > h[j].size }
func (h shelves) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].at, h[j].at = i, j
}
func (h *shelves) Push(x any) {
	sh := x.(*shelf)
	sh.at = len(*h)
	*h = append(*h, sh)
}
func (h *shelves) Pop() any {
	old := *h
	last := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	return last
}
