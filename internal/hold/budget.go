package hold

import "sync"

// Budget bounds what is held for tenants that must not be dropped: somebody relies on it, or was promised it. Each tenant has its own
// bytes, and of these each caller that is known by name at most half. It is safe for concurrent use.
type Budget struct {
	limit int

	mu      sync.Mutex
	tenants map[string]*account // guarded by mu; of those that hold anything
}

type account struct {
	size int
	of   map[string]int // by caller
}

// NewBudget gives each tenant so many bytes.
func NewBudget(limit int) *Budget { return &Budget{limit: limit, tenants: map[string]*account{}} }

// Take takes n bytes for a caller of a tenant, "" being the anonymous one, and reports whether there are as many: if not, it takes none.
func (b *Budget) Take(tenant, caller string, n int) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	a := b.tenants[tenant]
	if a == nil {
		a = &account{of: map[string]int{}}
	}
	if a.size+n > b.limit || a.of[caller]+n > Share(b.limit, caller) {
		return false
	}
	a.size += n
	a.of[caller] += n
	b.tenants[tenant] = a
	return true
}

// Give gives n bytes back that were taken.
func (b *Budget) Give(tenant, caller string, n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	a := b.tenants[tenant]
	if a == nil {
		return
	}
	a.size -= n
	if a.of[caller] -= n; a.of[caller] <= 0 {
		delete(a.of, caller)
	}
	if len(a.of) == 0 {
		delete(b.tenants, tenant)
	}
}

// Held is how many bytes a tenant has.
func (b *Budget) Held(tenant string) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	if a := b.tenants[tenant]; a != nil {
		return a.size
	}
	return 0
}
