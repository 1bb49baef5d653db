package mux

import (
	"context"
	"sync"
	"time"
)

// lingering is the context of a call that goes on for a while after its client has left. Every call has one, and nearly
// all end before anything of it is needed: contexts of the library, each in its parent's map of children, would cost more
// than reading the call. It has the AfterFunc that package context looks for, and no cause but its error.
type lingering struct {
	client context.Context
	values context.Context
	linger time.Duration

	mu    sync.Mutex
	err   error         // guarded by mu; not nil: it is over
	done  chan struct{} // guarded by mu; nil: nobody has asked for it
	after []func()      // guarded by mu; nil elements were stopped
	room  [2]func()     // of after
	timer *time.Timer   // guarded by mu; to watch, then to end
	stop  func() bool   // guarded by mu; ends the watch on the client; nil: there is none
}

// watchAfter is how long a call runs before anybody looks whether its client is still there.
const watchAfter = time.Second

// linger returns a context with the client's values that ends with end, or at the latest so long after the client left.
func linger(client context.Context, d time.Duration) *lingering {
	l := &lingering{client: client, values: context.WithoutCancel(client), linger: d}
	l.after = l.room[:0]
	l.mu.Lock() // the timer may fire before it is kept
	defer l.mu.Unlock()
	l.timer = time.AfterFunc(min(watchAfter, d), l.watch)
	return l
}

// watch waits for the client to leave.
func (l *lingering) watch() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err == nil {
		l.stop = context.AfterFunc(l.client, l.left)
	}
}

// left begins the time that remains.
func (l *lingering) left() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err == nil {
		l.timer = time.AfterFunc(l.linger, l.end)
	}
}

// end ends the context, once.
func (l *lingering) end() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err != nil {
		return
	}
	l.err = context.Canceled
	l.timer.Stop()
	if l.stop != nil {
		l.stop()
	}
	if l.done != nil {
		close(l.done)
	}
	for _, f := range l.after {
		if f != nil {
			go f()
		}
	}
	l.after, l.room = nil, [2]func(){}
}

// AfterFunc is that of [context.AfterFunc].
func (l *lingering) AfterFunc(f func()) (stop func() bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err != nil {
		go f()
		return func() bool { return false }
	}
	i := len(l.after)
	l.after = append(l.after, f)
	return func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		if i >= len(l.after) || l.after[i] == nil {
			return false
		}
		l.after[i] = nil
		return true
	}
}

// Done implements [context.Context].
func (l *lingering) Done() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.done == nil {
		l.done = make(chan struct{})
		if l.err != nil {
			close(l.done)
		}
	}
	return l.done
}

// Err implements [context.Context].
func (l *lingering) Err() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}

// Deadline implements [context.Context].
func (l *lingering) Deadline() (time.Time, bool) { return time.Time{}, false }

// Value implements [context.Context].
func (l *lingering) Value(key any) any { return l.values.Value(key) }
