package mux

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

func TestLinger(t *testing.T) {
	for _, tt := range []struct {
		name         string
		leave, end   time.Duration // when the client leaves and the call ends; 0: never
		from, before time.Duration // when the context ends
	}{
		{"the call ends", 0, 3 * time.Second, 3 * time.Second, 3 * time.Second},
		{"it ends at once", 0, time.Millisecond, time.Millisecond, time.Millisecond},
		{"the client leaves early", 10 * time.Millisecond, 0, time.Minute, time.Minute + 2*watchAfter},
		{"the client leaves late", time.Hour, 0, time.Hour + time.Minute, time.Hour + time.Minute},
		{"the call ends after the client left", time.Second, 30 * time.Second, 30 * time.Second, 30 * time.Second},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				type key struct{}
				client, leave := context.WithCancelCause(context.WithValue(t.Context(), key{}, "v"))
				defer leave(nil)
				start := time.Now()
				if tt.leave > 0 {
					time.AfterFunc(tt.leave, func() { leave(errors.New("the client left")) })
				}
				l := linger(client, time.Minute)
				if tt.end > 0 {
					time.AfterFunc(tt.end, l.end)
				}
				told := make(chan time.Duration, 1)
				context.AfterFunc(l, func() { told <- time.Since(start) })
				stopped := l.AfterFunc(func() { t.Error("what was stopped ran") })
				if !stopped() || stopped() {
					t.Error("stop says once that it stopped it")
				}
				child, cancel := context.WithTimeout(l, 24*time.Hour)
				defer cancel()
				if l.Err() != nil || context.Cause(l) != nil || child.Value(key{}) != "v" {
					t.Errorf("it begins with %v, cause %v, value %v", l.Err(), context.Cause(l), child.Value(key{}))
				}
				<-l.Done()
				if at := time.Since(start); at < tt.from || at > tt.before {
					t.Errorf("ends after %v, want %v to %v", at, tt.from, tt.before)
				}
				if at := <-told; at < tt.from || at > tt.before {
					t.Errorf("AfterFunc ran after %v, want %v to %v", at, tt.from, tt.before)
				}
				synctest.Wait()
				if !errors.Is(l.Err(), context.Canceled) || !errors.Is(context.Cause(l), context.Canceled) || child.Err() == nil {
					t.Errorf("it ended with %v, cause %v, its child with %v", l.Err(), context.Cause(l), child.Err())
				}
				ran := make(chan struct{})
				if stop := l.AfterFunc(func() { close(ran) }); stop() {
					t.Error("what began at once cannot be stopped")
				}
				<-ran
				l.end()
			})
		})
	}
}
