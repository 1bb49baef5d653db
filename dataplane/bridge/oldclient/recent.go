package oldclient

import (
	"sync"
	"time"
)

// recent remembers at most limit values for a while. When it is full, any that is old goes, and else any.
type recent[K comparable, V any] struct {
	limit int

	mu    sync.Mutex // guards what is below
	items map[K]kept[V]
}

type kept[V any] struct {
	value   V
	expires time.Time
}

func newRecent[K comparable, V any](limit int) *recent[K, V] {
	return &recent[K, V]{limit: limit, items: map[K]kept[V]{}}
}

func (r *recent[K, V]) get(key K) (v V, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	it, ok := r.items[key]
	if !ok || !time.Now().Before(it.expires) {
		return v, false
	}
	return it.value, true
}

func (r *recent[K, V]) put(key K, v V, age time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, there := r.items[key]; !there && len(r.items) >= r.limit {
		r.makeRoomLocked()
	}
	r.items[key] = kept[V]{v, time.Now().Add(age)}
}

func (r *recent[K, V]) makeRoomLocked() {
	now, looked := time.Now(), 0
	for key, it := range r.items { // in no order
		if looked++; !now.Before(it.expires) || looked == 1 {
			delete(r.items, key)
		}
		if looked == 64 {
			return
		}
	}
}
