package credential

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// issuer is a fetch that a test steers.
type issuer struct {
	mu    sync.Mutex
	asked int
	life  time.Duration // zero: not told
	takes time.Duration
	err   error
}

func (i *issuer) fetch(ctx context.Context) (Token, error) {
	i.mu.Lock()
	i.asked++
	n, life, takes, err := i.asked, i.life, i.takes, i.err
	i.mu.Unlock()
	select {
	case <-time.After(takes):
	case <-ctx.Done():
		return Token{}, ctx.Err()
	}
	if err != nil {
		return Token{}, err
	}
	t := Token{value: fmt.Sprint("token-", n)}
	if life != 0 {
		t.Expires = time.Now().Add(life)
	}
	return t, nil
}

func (i *issuer) set(f func(*issuer)) { i.mu.Lock(); f(i); i.mu.Unlock() }

func (i *issuer) count() int { i.mu.Lock(); defer i.mu.Unlock(); return i.asked }

func (i *issuer) source(parts ...string) *Source {
	return Scope{Tenant: "t"}.source(i.fetch, append(parts, "x")...)
}

func mustGet(t *testing.T, s *Store, src *Source) string {
	t.Helper()
	token, err := s.Get(t.Context(), src)
	if err != nil {
		t.Fatal(err)
	}
	return token.Reveal()
}

func TestOneFetchForAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := &issuer{life: time.Hour, takes: time.Second}
		var s Store
		var all sync.WaitGroup
		for range 100 {
			all.Go(func() {
				// Compiled anew, a policy makes another source of the same credential.
				if got := mustGet(t, &s, i.source()); got != "token-1" {
					t.Errorf("got %s", got)
				}
			})
		}
		all.Wait()
		if got := mustGet(t, &s, i.source()); got != "token-1" || i.count() != 1 {
			t.Errorf("%s after %d fetches", got, i.count())
		}
	})
}

func TestWaiterLeavesAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := &issuer{life: time.Hour, takes: 5 * time.Second}
		var s Store
		impatient, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		var all sync.WaitGroup
		all.Go(func() {
			if _, err := s.Get(impatient, i.source()); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("impatient: %v", err)
			}
		})
		all.Go(func() {
			if got := mustGet(t, &s, i.source()); got != "token-1" {
				t.Errorf("patient got %s", got)
			}
		})
		all.Wait()
		if i.count() != 1 {
			t.Errorf("%d fetches", i.count())
		}
	})
}

func TestRefreshAhead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := &issuer{life: time.Hour, takes: time.Second}
		var s Store
		src := i.source()
		mustGet(t, &s, src)
		time.Sleep(40 * time.Minute)
		if got := mustGet(t, &s, src); got != "token-1" || i.count() != 1 {
			t.Errorf("%s after %d fetches at 40m", got, i.count())
		}
		time.Sleep(15 * time.Minute) // 55m: due, whatever the jitter
		for range 10 {
			if got := mustGet(t, &s, src); got != "token-1" { // nobody waits
				t.Errorf("at 55m: %s", got)
			}
		}
		time.Sleep(2 * time.Second)
		if got := mustGet(t, &s, src); got != "token-2" || i.count() != 2 {
			t.Errorf("%s after %d fetches", got, i.count())
		}
	})
}

func TestFailedRefreshAndRecovery(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := &issuer{life: time.Hour}
		var s Store
		src := i.source()
		mustGet(t, &s, src)
		i.set(func(i *issuer) { i.err = errors.New("down") })
		time.Sleep(55 * time.Minute)
		for range 100 { // good to its end, and the issuer is asked once in a while
			if got := mustGet(t, &s, src); got != "token-1" {
				t.Fatalf("got %s", got)
			}
			time.Sleep(time.Second)
		}
		if n := i.count(); n < 4 || n > 12 {
			t.Errorf("%d fetches in 100 s of trouble", n)
		}
		time.Sleep(5 * time.Minute)
		if _, err := s.Get(t.Context(), src); err == nil || !strings.Contains(err.Error(), "down") {
			t.Errorf("expired: %v", err)
		}
		before := i.count()
		for range 1000 {
			if _, err := s.Get(t.Context(), src); err == nil {
				t.Fatal("no error")
			}
		}
		if i.count() > before+1 {
			t.Errorf("%d fetches for 1000 requests at once", i.count()-before)
		}
		i.set(func(i *issuer) { i.err = nil })
		time.Sleep(maxPause)
		if got := mustGet(t, &s, src); !strings.HasPrefix(got, "token-") {
			t.Errorf("recovered: %s", got)
		}
	})
}

func TestHangingIssuer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := &issuer{takes: time.Hour}
		var s Store
		start := time.Now()
		if _, err := s.Get(t.Context(), i.source()); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v", err)
		}
		if d := time.Since(start); d != fetchTimeout {
			t.Errorf("after %v", d)
		}
	})
}

func TestLives(t *testing.T) {
	for _, tt := range []struct {
		life, good time.Duration // good: at least until then, and not at the end
		refused    bool
	}{
		{0, unsaidLife - maxMargin - time.Second, false},
		{2 * time.Second, time.Second, false},
		{90 * time.Second, 80 * time.Second, false},
		{1000 * time.Hour, maxLife - maxMargin - time.Second, false},
		{-time.Second, 0, true},
		{time.Millisecond, 0, true},
	} {
		synctest.Test(t, func(t *testing.T) {
			i := &issuer{life: tt.life}
			var s Store
			_, err := s.Get(t.Context(), i.source())
			if (err != nil) != tt.refused {
				t.Fatalf("%v: %v", tt.life, err)
			}
			if tt.refused {
				return
			}
			i.set(func(i *issuer) { i.err = errors.New("down") })
			time.Sleep(tt.good)
			if got := mustGet(t, &s, i.source()); got != "token-1" {
				t.Errorf("%v: %s after %v", tt.life, got, tt.good)
			}
			synctest.Wait()
			time.Sleep(maxMargin + 2*time.Second)
			if _, err := s.Get(t.Context(), i.source()); err == nil {
				t.Errorf("%v: used to its very end", tt.life)
			}
		})
	}
}

// A target's clock may be ahead: it says 401 for a token that is good by ours.
func TestReject(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := &issuer{life: time.Hour}
		var s Store
		src := i.source()
		first, err := s.Get(t.Context(), src)
		if err != nil {
			t.Fatal(err)
		}
		if !s.Reject(src, first) {
			t.Error("another was not to be had")
		}
		if !s.Reject(src, first) {
			t.Error("a second request with the same token does not get the new one")
		}
		second, err := s.Get(t.Context(), src)
		if err != nil || second.Reveal() != "token-2" {
			t.Fatalf("%v, %v", second.Reveal(), err)
		}
		if !s.Reject(src, first) {
			t.Error("a late 401 for the old token does not get the new one")
		}
		if s.Reject(src, second) {
			t.Error("a target that refuses each token makes the proxy fetch one for each request")
		}
		if got := mustGet(t, &s, src); got != "token-2" || i.count() != 2 {
			t.Errorf("%s after %d fetches", got, i.count())
		}
		time.Sleep(rejectPause)
		if !s.Reject(src, second) || mustGet(t, &s, src) != "token-3" {
			t.Error("not again after a while")
		}
	})
}

// Sources that differ in anything do not share, be it the tenant, a secret or what the tenant may do.
func TestKeysSeparate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := &issuer{life: time.Hour}
		var s Store
		x := func(principal, token string) *Source {
			return Scope{Tenant: "t"}.forCaller(keyOf("g"), i.fetch, principal, token)
		}
		seen := map[string]int{}
		for n, src := range []*Source{
			Scope{Tenant: "a"}.source(i.fetch, "x", "y"), Scope{Tenant: "b"}.source(i.fetch, "x", "y"), Scope{Tenant: "a", Powers: "p"}.source(i.fetch, "x", "y"),
			Scope{Tenant: "a"}.source(i.fetch, "xy"), Scope{Tenant: "a"}.source(i.fetch, "x", "z"), Scope{Tenant: "a"}.source(i.fetch, "x", "y", ""),
			x("p", "tok"), x("q", "tok"), x("p", "tok2"), x("pt", "ok"), x("", "ptok"),
		} {
			got := mustGet(t, &s, src)
			if other, twice := seen[got]; twice {
				t.Errorf("sources %d and %d share", n, other)
			}
			seen[got] = n
		}
	})
}

// While an issuer is away, its callers together ask it as one would; a no to one caller is no trouble of the others.
func TestGroupBacksOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := &issuer{err: errors.New("down")}
		var s Store
		caller := func(n int) *Source { return Scope{Tenant: "t"}.forCaller(keyOf("g"), i.fetch, fmt.Sprint(n)) }
		for n := range 1000 {
			if _, err := s.Get(t.Context(), caller(n)); err == nil {
				t.Fatal("no error")
			}
		}
		if i.count() > 1 {
			t.Errorf("%d fetches for 1000 callers at once", i.count())
		}
		i.set(func(i *issuer) { i.err, i.life = nil, time.Hour })
		time.Sleep(2 * maxPause)
		before := i.count()
		for n := range 1000 {
			mustGet(t, &s, caller(n))
		}
		if i.count() != before+1000 {
			t.Errorf("%d fetches for 1000 callers after recovery", i.count()-before)
		}

		i.set(func(i *issuer) { i.err = &refusedError{errors.New("invalid_grant")} })
		if _, err := s.Get(t.Context(), caller(5000)); err == nil {
			t.Fatal("no error")
		}
		i.set(func(i *issuer) { i.err = nil })
		mustGet(t, &s, caller(5001))
	})
}

func TestMemoryIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := &issuer{life: time.Hour}
		var s Store
		other := Scope{Tenant: "other"}.source(i.fetch, "x")
		mustGet(t, &s, other)
		for n := range maxEntries + 500 {
			mustGet(t, &s, i.source(fmt.Sprint(n)))
		}
		if n := s.tenants["t"].order.Len(); n != maxEntries || len(s.tenants["t"].entries) != n {
			t.Errorf("%d entries, %d keys", n, len(s.tenants["t"].entries))
		}
		before := i.count()
		mustGet(t, &s, i.source(fmt.Sprint(maxEntries+499))) // the last used is kept
		mustGet(t, &s, other)                                // and so is another tenant's
		if i.count() != before {
			t.Error("what was used last, or another tenant's, was forgotten")
		}
		time.Sleep(2 * time.Hour)
		mustGet(t, &s, i.source("new"))
		if n := s.tenants["t"].order.Len(); n != 1 {
			t.Errorf("%d entries two hours later", n)
		}
	})
}

func TestTokenShowsNowhere(t *testing.T) {
	token := Token{value: "hunter2"}
	token.keys.SecretAccessKey = "hunter2"
	var log strings.Builder
	slog.New(slog.NewJSONHandler(&log, nil)).Info("m", "token", token, "ptr", &token)
	slog.New(slog.NewTextHandler(&log, nil)).Info("m", "token", token, "ptr", &token)
	b, err := json.Marshal(map[string]any{"t": token})
	if err != nil {
		t.Fatal(err)
	}
	log.Write(b)
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
		fmt.Fprintf(&log, verb+verb+verb, token, &token, []Token{token})
	}
	if strings.Contains(log.String(), "hunter2") || strings.Contains(log.String(), fmt.Sprintf("%x", "hunter2")) {
		t.Errorf("shown: %s", log.String())
	}
}

// Tokens can be long, and an issuer gives one for each caller: a tenant has so many bytes for them.
func TestLongTokensAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		asked := 0
		source := func(tenant string, n int) *Source {
			return Scope{Tenant: tenant}.source(func(context.Context) (Token, error) {
				asked++
				return Token{value: strings.Repeat("x", maxTokenSize), Expires: time.Now().Add(time.Hour)}, nil
			}, fmt.Sprint(n))
		}
		var s Store
		mustGet(t, &s, source("other", 0))
		const callers = 2 * maxSize / maxTokenSize
		for n := range callers {
			mustGet(t, &s, source("t", n))
		}
		sh := s.tenants["t"]
		size := 0
		for at := sh.order.Front(); at != nil; at = at.Next() {
			size += len(at.Value.(*entry).token.value)
		}
		if size > maxSize || size < maxSize-maxTokenSize || size != sh.size {
			t.Errorf("tokens of %d bytes are kept, counted as %d, want at most %d", size, sh.size, maxSize)
		}
		before := asked
		mustGet(t, &s, source("t", callers-1))
		mustGet(t, &s, source("other", 0))
		if asked != before {
			t.Error("what was used last, or another tenant's, was forgotten")
		}
		s.Reject(source("t", callers-1), Token{value: strings.Repeat("x", maxTokenSize)})
		time.Sleep(2 * time.Hour)
		mustGet(t, &s, source("t", 0))
		if sh := s.tenants["t"]; sh.size != maxTokenSize {
			t.Errorf("two hours later %d bytes are counted, want those of one token", sh.size)
		}
	})
}
