package credential

import (
	"container/list"
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"
)

const (
	fetchTimeout = 20 * time.Second // of one attempt, whoever waits for it
	maxLife      = 24 * time.Hour   // however long an issuer says that a token is good
	unsaidLife   = 5 * time.Minute  // where he does not say
	maxMargin    = 10 * time.Second // before its end a token is not sent any more: it has a way to go
	firstPause   = time.Second      // after a failure; doubled with each
	maxPause     = time.Minute
	rejectPause  = time.Minute // a token that targets refuse is got anew at most this often
	maxEntries   = 4096        // of one tenant
	maxSize      = 16 << 20    // bytes of its tokens
	idleLife     = time.Hour   // of a caller's entry that he does not ask for
	sweepPause   = time.Minute
)

// A Store keeps tokens. It is safe for concurrent use, and the zero value is ready. A token is refreshed in the
// background before it expires, by one attempt at a time however many ask; if that fails it is used to its end. A failure is
// kept for a while, longer each time, so that an issuer in trouble is not asked by every request. Memory is bounded for
// each tenant: what was not used for longest goes first.
type Store struct {
	mu      sync.Mutex // guards all below, and the entries
	tenants map[string]*shelf
}

// shelf is what is kept for one tenant.
type shelf struct {
	entries map[Key]*list.Element // of *entry
	order   *list.List            // the last used first
	size    int                   // of all tokens, in bytes
	swept   time.Time
}

type entry struct {
	key    Key
	caller bool // of one caller; else of all that a policy serves
	used   time.Time

	token   Token
	got     bool      // token is one
	ends    time.Time // when token must not be sent any more
	renewAt time.Time
	refused time.Time // when a target last refused a token of this entry

	flight *flight // nil: nobody is asking the issuer

	// Of this credential; and, in the entry of its group, of the issuer itself.
	failure  error
	failures int
	retryAt  time.Time
}

// flight is an attempt to get a token.
type flight struct {
	done chan struct{} // closed at its end; then err is there to be read
	err  error
}

// Get returns a token of s that is good now. It waits for one no longer than ctx; others who wait for the same go on.
func (s *Store) Get(ctx context.Context, src *Source) (Token, error) {
	for {
		token, wait, err := s.look(src)
		if wait == nil {
			return token, err
		}
		select {
		case <-wait.done:
			if wait.err != nil {
				return Token{}, wait.err
			}
		case <-ctx.Done():
			return Token{}, fmt.Errorf("waiting for the issuer: %w", context.Cause(ctx))
		}
	}
}

// look returns a token, an error, or a flight to wait for.
func (s *Store) look(src *Source) (Token, *flight, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	shelf := s.shelfLocked(src.tenant, now)
	e := shelf.entryLocked(src.key, now)
	e.caller = src.group != src.key
	if e.got && now.Before(e.ends) {
		if e.flight == nil && !now.Before(e.renewAt) && s.blockedLocked(shelf, src, e, now) == nil {
			s.startLocked(shelf, src, e)
		}
		return e.token, nil, nil
	}
	if e.flight == nil {
		if err := s.blockedLocked(shelf, src, e, now); err != nil {
			return Token{}, nil, err
		}
		s.startLocked(shelf, src, e)
	}
	return Token{}, e.flight, nil
}

// blockedLocked returns the failure after which it is too early to ask again. While an issuer is in trouble one
// credential at a time asks it, so that a thousand callers are not a thousand attempts.
func (s *Store) blockedLocked(shelf *shelf, src *Source, e *entry, now time.Time) error {
	if e.failure != nil && now.Before(e.retryAt) {
		return e.failure
	}
	if g := shelf.groupLocked(src); g != nil && g.failure != nil {
		if now.Before(g.retryAt) {
			return g.failure
		}
		g.retryAt = now.Add(fetchTimeout) // until this attempt has told
	}
	return nil
}

// startLocked asks the issuer. The attempt belongs to nobody who waits: it ends by itself, or at its timeout.
func (s *Store) startLocked(shelf *shelf, src *Source, e *entry) {
	f := &flight{done: make(chan struct{})}
	e.flight = f
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), fetchTimeout)
		defer cancel()
		token, err := src.fetch(ctx)
		s.mu.Lock()
		defer s.mu.Unlock()
		e.flight, f.err = nil, err
		now := time.Now()
		if err == nil {
			f.err = shelf.takeLocked(e, token, now)
		}
		s.settleLocked(shelf, src, e, f.err, now)
		close(f.done)
	}()
}

// takeLocked keeps an entry's token.
func (sh *shelf) takeLocked(e *entry, t Token, now time.Time) error {
	life := unsaidLife
	if !t.Expires.IsZero() {
		if life = min(t.Expires.Sub(now), maxLife); life < time.Second {
			return fmt.Errorf("the issuer gave a token that expires at once, at %s", t.Expires.UTC().Format(time.RFC3339))
		}
	}
	sh.size += t.size() - e.token.size()
	e.token, e.got = t, true
	for at := sh.order.Back(); at != nil && sh.size > maxSize; {
		other, before := at.Value.(*entry), at.Prev()
		if other != e && other.flight == nil {
			sh.removeLocked(at)
		}
		at = before
	}
	e.ends = now.Add(life - min(maxMargin, life/10))
	// Not all at the same time: proxies that started together would also refresh together.
	e.renewAt = now.Add(time.Duration(float64(life) * (0.7 + 0.15*rand.Float64())))
	return nil
}

// settleLocked remembers how an attempt ended.
func (s *Store) settleLocked(shelf *shelf, src *Source, e *entry, err error, now time.Time) {
	group := shelf.groupLocked(src)
	if err == nil {
		e.failure, e.failures = nil, 0
		if group != nil {
			group.failure, group.failures = nil, 0
		}
		return
	}
	e.failLocked(err, now)
	if src.group == src.key {
		return
	}
	if isRefusal(err) { // the issuer works, and says no to this caller
		if group != nil {
			group.failure, group.failures = nil, 0
		}
		return
	}
	shelf.entryLocked(src.group, now).failLocked(err, now)
}

func (e *entry) failLocked(err error, now time.Time) {
	pause := min(firstPause<<min(e.failures, 10), maxPause)
	e.failure, e.failures = err, e.failures+1
	e.retryAt = now.Add(pause/2 + rand.N(pause/2+1))
}

// Reject says that a target refused a token of src. It reports whether [Store.Get] may bring another: the token is
// dropped then. A target that refuses each does not make the proxy fetch one for each request.
func (s *Store) Reject(src *Source, refused Token) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	shelf := s.shelfLocked(src.tenant, now)
	e := shelf.entryLocked(src.key, now)
	if !e.got || e.token.value != refused.value {
		return true // another one is there, or on its way
	}
	if !e.refused.IsZero() && now.Sub(e.refused) < rejectPause {
		return false
	}
	shelf.size -= e.token.size()
	e.refused, e.token, e.got = now, Token{}, false
	return true
}

func (s *Store) shelfLocked(tenant string, now time.Time) *shelf {
	if s.tenants == nil {
		s.tenants = map[string]*shelf{}
	}
	sh := s.tenants[tenant]
	if sh == nil {
		sh = &shelf{entries: map[Key]*list.Element{}, order: list.New(), swept: now}
		s.tenants[tenant] = sh
	}
	if now.Sub(sh.swept) >= sweepPause {
		sh.swept = now
		s.sweepLocked(now)
	}
	return sh
}

// sweepLocked forgets, for all tenants, the tokens of callers who have gone, and those that have ended.
func (s *Store) sweepLocked(now time.Time) {
	for name, sh := range s.tenants {
		for at := sh.order.Back(); at != nil; {
			e, before := at.Value.(*entry), at.Prev()
			switch idle := now.Sub(e.used); {
			case e.flight != nil:
			case e.caller && idle >= idleLife, idle >= sweepPause && !now.Before(e.ends) && !now.Before(e.retryAt):
				sh.removeLocked(at)
			}
			at = before
		}
		if sh.order.Len() == 0 && sh.swept.Before(now.Add(-idleLife)) {
			delete(s.tenants, name)
		}
	}
}

func (sh *shelf) entryLocked(k Key, now time.Time) *entry {
	if at := sh.entries[k]; at != nil {
		sh.order.MoveToFront(at)
		e := at.Value.(*entry)
		e.used = now
		return e
	}
	for at := sh.order.Back(); at != nil && sh.order.Len() >= maxEntries; {
		e, before := at.Value.(*entry), at.Prev()
		if e.flight == nil { // whose entry must be there when it lands
			sh.removeLocked(at)
		}
		at = before
	}
	e := &entry{key: k, used: now}
	sh.entries[k] = sh.order.PushFront(e)
	return e
}

func (sh *shelf) removeLocked(at *list.Element) {
	e := sh.order.Remove(at).(*entry)
	delete(sh.entries, e.key)
	sh.size -= e.token.size()
}

// groupLocked returns what is known of the issuer of a source for one caller; nil: nothing is.
func (sh *shelf) groupLocked(src *Source) *entry {
	if src.group == src.key {
		return nil
	}
	if at := sh.entries[src.group]; at != nil {
		return at.Value.(*entry)
	}
	return nil
}
