package upstream

import (
	"context"
	"math/rand/v2"
	"strconv"
	"sync"
	"time"

	"github.com/sluicegate/sluice/internal/hold"
)

// slots bounds the processes of a target of a tenant, whatever snapshots and policies they are from.
type slots struct {
	mu      sync.Mutex // guards what is below
	used    int
	leaving int           // of them, that were asked to go
	change  chan struct{} // closed when one is gone; nil: nobody waits
}

// slotsError says that there is no room for one more process.
type slotsError struct{ most int }

func (e *slotsError) Error() string {
	return "all " + strconv.Itoa(e.most) + " processes of the target are in use"
}

// take takes a place of at most most. It waits only for those that are about to be free.
func (s *slots) take(ctx context.Context, most int) error {
	for {
		s.mu.Lock()
		if s.used < most {
			s.used++
			s.mu.Unlock()
			return nil
		}
		if s.leaving == 0 {
			s.mu.Unlock()
			return &slotsError{most}
		}
		if s.change == nil {
			s.change = make(chan struct{})
		}
		change := s.change
		s.mu.Unlock()
		select {
		case <-change:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// leave says that a process was asked to go.
func (s *slots) leave() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.leaving++
}

// give gives a place back. left says that leave was called for it.
func (s *slots) give(left bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.used--
	if left {
		s.leaving--
	}
	if s.change != nil {
		close(s.change)
		s.change = nil
	}
}

func (s *slots) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.used
}

// maxShared bounds the sessions of a shared process.
const maxShared = 10_000

// full tells why a caller can have no more sessions, in words for him; "": he can.
func (s *sessions) full(whose string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	most := hold.Share(s.most, whose)
	if s.most == 0 || len(s.byID) < most {
		return ""
	}
	if len(s.byID) >= s.most {
		return "the target has as many sessions on this proxy as it may"
	}
	own := 0
	for _, sn := range s.byID {
		if sn.whose == whose {
			own++
		}
	}
	if own >= most {
		return "you have as many sessions at the target on this proxy as one caller may; end one of yours"
	}
	return ""
}

// maxBackoff bounds the time between two starts.
const maxBackoff = 30 * time.Second

// backoff spaces out starts that fail: full jitter, so that many proxies do not start in step.
type backoff struct {
	mu    sync.Mutex // guards what is below
	fails int
	until time.Time
	why   error
}

// wait is how long to leave it alone, and why.
func (b *backoff) wait() (time.Duration, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return time.Until(b.until), b.why
}

func (b *backoff) failed(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	most := min(maxBackoff, 250*time.Millisecond<<min(b.fails, 10))
	b.fails++
	b.until, b.why = time.Now().Add(rand.N(most)), err
}

func (b *backoff) ok() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.fails, b.until, b.why = 0, time.Time{}, nil
}

// note counts the end of a channel, once: soon after its start it is a failure.
func (b *backoff) note(started time.Time, why error) {
	b.mu.Lock()
	counted := b.why == why
	b.mu.Unlock()
	if counted {
		return
	}
	if time.Since(started) > settled {
		b.ok()
		return
	}
	b.failed(why)
}

// sleep waits, or returns why ctx ended.
func sleep(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return nil
	}
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
