package session

import (
	"sync"
	"time"
)

// Tombstones remembers sessions that were deleted, until their ids expire by themselves. The zero value is ready.
//
// It is this proxy's memory alone, and bounded for each tenant: another proxy opens a deleted id as long as it has not expired, and then
// finds the targets' own sessions gone. Past the bound the tenant's oldest is forgotten first. Graves hold no pointers, for there can be
// so many that a collector would have to follow.
type Tombstones struct {
	tenants sync.Map     // *graveyard by name
	adding  sync.RWMutex // held by who buries, and alone by who drops what is empty
}

const (
	graveShards = 32   // by nonce: no lock that all requests share
	maxGraves   = 4096 // per shard; 131,072 of a tenant, 7 MB
)

type graveyard [graveShards]graves

type graves struct {
	mu    sync.RWMutex
	until map[Nonce]int64 // guarded by mu; when the id expires, in Unix seconds
	order []Nonce         // guarded by mu; oldest first
}

// Add buries a session of a tenant.
func (t *Tombstones) Add(tenant string, s *State) {
	if _, ok := t.tenants.Load(tenant); !ok {
		t.sweep()
	}
	t.adding.RLock()
	defer t.adding.RUnlock()
	yard, ok := t.tenants.Load(tenant)
	if !ok {
		yard, _ = t.tenants.LoadOrStore(tenant, &graveyard{})
	}
	yard.(*graveyard)[int(s.Nonce[0])%graveShards].add(s.Nonce, s.Expires.Unix())
}

// Has reports whether the session was deleted here.
func (t *Tombstones) Has(tenant string, n Nonce) bool {
	yard, ok := t.tenants.Load(tenant)
	return ok && yard.(*graveyard)[int(n[0])%graveShards].has(n)
}

// sweep drops the tenants that have no grave any more, for they may be gone.
func (t *Tombstones) sweep() {
	t.adding.Lock()
	defer t.adding.Unlock()
	now := time.Now().Unix()
	t.tenants.Range(func(tenant, yard any) bool {
		left := 0
		for i := range yard.(*graveyard) {
			left += yard.(*graveyard)[i].expire(now)
		}
		if left == 0 {
			t.tenants.Delete(tenant)
		}
		return true
	})
}

func (g *graves) add(n Nonce, until int64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.until == nil {
		g.until = map[Nonce]int64{}
	}
	if _, again := g.until[n]; again {
		return
	}
	g.expireLocked(time.Now().Unix())
	if len(g.order) >= maxGraves {
		delete(g.until, g.order[0])
		g.order = g.order[1:]
	}
	g.order = append(g.order, n)
	g.until[n] = until
}

func (g *graves) has(n Nonce) bool {
	g.mu.RLock()
	defer g.mu.RUnlock()
	_, dead := g.until[n]
	return dead
}

// expire forgets what has expired, oldest first, and returns how many are left.
func (g *graves) expire(now int64) (left int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.expireLocked(now)
	return len(g.order)
}

func (g *graves) expireLocked(now int64) {
	for len(g.order) > 0 && g.until[g.order[0]] <= now {
		delete(g.until, g.order[0])
		g.order = g.order[1:]
	}
}
