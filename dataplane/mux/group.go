package mux

import (
	"fmt"
	"net/http"
	"runtime/debug"
	"sync"
)

// group runs parts of one request at a time. What panics in one goes on in wait, where the request was begun: it ends that request, as it
// would without goroutines, and not the process with those of all tenants.
type group struct {
	wg sync.WaitGroup

	mu    sync.Mutex
	broke any // guarded by mu; of the first that panicked
}

func (g *group) run(part func()) {
	g.wg.Go(func() {
		defer func() {
			r := recover()
			if r == nil {
				return
			}
			if r != http.ErrAbortHandler {
				r = fmt.Sprintf("%v\n\n%s", r, debug.Stack()) // of where it was, not of wait
			}
			g.mu.Lock()
			defer g.mu.Unlock()
			if g.broke == nil {
				g.broke = r
			}
		}()
		part()
	})
}

func (g *group) wait() {
	g.wg.Wait()
	if g.broke != nil {
		panic(g.broke)
	}
}
