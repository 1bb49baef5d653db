package upstream

import (
	"context"
	"sync"
)

// Background is work that nobody waits for but who closes its owner. Other than with a [sync.WaitGroup], work may begin while that waits:
// what ends a session may come from anywhere, and late. The zero value has none. It is safe for concurrent use.
type Background struct {
	mu   sync.Mutex
	n    int           // guarded by mu
	idle chan struct{} // guarded by mu; closed when n is 0 again
}

// Go runs f in a goroutine of its own.
func (b *Background) Go(f func()) {
	b.mu.Lock()
	if b.n++; b.n == 1 {
		b.idle = make(chan struct{})
	}
	b.mu.Unlock()
	go func() {
		defer func() {
			b.mu.Lock()
			defer b.mu.Unlock()
			if b.n--; b.n == 0 {
				close(b.idle)
			}
		}()
		f()
	}()
}

// Wait waits until there is none, or ctx is done.
func (b *Background) Wait(ctx context.Context) error {
	for {
		b.mu.Lock()
		n, idle := b.n, b.idle
		b.mu.Unlock()
		if n == 0 {
			return nil
		}
		select {
		case <-idle:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
