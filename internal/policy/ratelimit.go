package policy

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"weak"

	policyv1 "github.com/sluicegate/sluice/proto/gen/sluice/policy/v1"
)

const (
	// maxBuckets of one limit, in each of its shards. A request's own key decides the shard.
	bucketShards, maxBucketsPerShard = 16, 4096
	// longestFill bounds how long an empty bucket takes to fill.
	longestFill = 366 * 24 * time.Hour
	// maxKeySize is the longest key that is kept as it is; of longer ones a hash is.
	maxKeySize = 128
)

// A rateLimit is a compiled RateLimit: a token bucket for each key.
type rateLimit struct {
	place   string        // for the log line
	field   string        // e.g. `localRateLimit.limits[0].key`
	step    time.Duration // in which one token comes back
	fill    time.Duration // in which an empty bucket fills
	key     text          // its rule is nil: one bucket for all
	keyed   bool
	buckets *buckets // nil: this process limits nobody
}

func compileRateLimit(l *policyv1.LocalRateLimit, level string, r Resolver, field string, errs *problems) []*rateLimit {
	if len(l.GetLimits()) == 0 {
		errs.add(field+".limits", "is empty, and would limit nothing; write at least one limit, or remove localRateLimit")
	}
	var limits []*rateLimit
	for i, in := range l.GetLimits() {
		at := fmt.Sprintf("%s.limits[%d]", field, i)
		limit := &rateLimit{field: fmt.Sprintf("localRateLimit.limits[%d].key", i), place: strings.TrimSpace(fmt.Sprintf("%s localRateLimit.limits[%d]", level, i))}
		tokens, interval := int64(in.GetTokensPerFill()), in.GetFillInterval().AsDuration()
		if tokens == 0 {
			tokens = int64(in.GetMaxTokens())
		}
		switch {
		case in.GetMaxTokens() == 0:
			errs.add(at+".maxTokens", "is 0, and would refuse every request; give a number above 0")
		case tokens > int64(in.GetMaxTokens()):
			errs.add(at+".tokensPerFill", "is more than maxTokens, and what does not fit into the bucket is lost; make it %d at most", in.GetMaxTokens())
		case in.GetFillInterval() == nil:
			errs.add(at+".fillInterval", "is missing; write how long %d tokens take to come back, e.g. 1m", tokens)
		case in.GetFillInterval().CheckValid() != nil || interval <= 0:
			errs.add(at+".fillInterval", "is not above zero")
		case interval > longestFill || float64(interval)*float64(in.GetMaxTokens())/float64(tokens) > float64(longestFill):
			errs.add(at+".fillInterval", "would take an empty bucket more than a year to fill")
		default:
			limit.step = max(1, interval/time.Duration(tokens))
			limit.fill = limit.step * time.Duration(in.GetMaxTokens())
		}
		if in.GetKey() != "" {
			limit.keyed, limit.key = true, compileTextExpression(in.GetKey(), at+".key", errs)
		}
		if r.Runtime != nil {
			scope := level
			if strings.HasPrefix(level, "target/") {
				scope = r.TargetName // unlike the level's name it says which backend's
			}
			// A limit that changes begins anew: a debt under the old one says nothing under the new one.
			limit.buckets = r.Runtime.limits.of(fmt.Sprintf("%q %q %d %d %d %q", r.Tenant, scope, i, limit.step, limit.fill, in.GetKey()))
		}
		limits = append(limits, limit)
	}
	return limits
}

// Taken are the tokens that one request has taken: whatever number of targets it is for, it takes one of each bucket. The
// zero value has taken none. It is not safe for concurrent use.
type Taken struct{ from []*bucket }

// A LimitError refuses a request that a localRateLimit has no token for.
type LimitError struct {
	Rule  string        // place of the limit, for the log line
	Retry time.Duration // after which there is one
	Key   *ValueError   // what is wrong with the key; nil: there is no token
}

func (e *LimitError) Error() string {
	if e.Key != nil {
		return e.Key.Error()
	}
	return e.Rule + ": too many requests"
}

// Limited reports whether calls take tokens.
func (t *Target) Limited() bool { return t != nil && len(t.limits) > 0 }

// Take takes a token of each bucket that a call is counted in, but for those that the request has taken already: of all
// of them or, with a *LimitError, of none. A limit whose key fails refuses.
func (t *Target) Take(c *Call, taken *Taken) error {
	if t == nil || len(t.limits) == 0 {
		return nil
	}
	began := len(taken.from)
	for _, l := range t.limits {
		b, now, err := l.bucket(c)
		if err == nil && !taken.has(b) {
			if wait := b.take(l.step, l.fill, now); wait > 0 {
				err = &LimitError{Rule: l.place, Retry: wait}
			} else {
				taken.from = append(taken.from, b)
			}
		}
		if err != nil {
			t.giveBack(taken, began)
			return err
		}
	}
	return nil
}

// giveBack returns what one Take took before it failed. Its limits stand in the order of their buckets.
func (t *Target) giveBack(taken *Taken, began int) {
	steps := t.limits
	for _, b := range taken.from[began:] {
		for steps[0].buckets == nil || !steps[0].buckets.owns(b) {
			steps = steps[1:]
		}
		b.full.Add(-int64(steps[0].step))
	}
	taken.from = taken.from[:began]
}

func (t *Taken) has(b *bucket) bool {
	for _, other := range t.from {
		if other == b {
			return true
		}
	}
	return false
}

func (l *rateLimit) bucket(c *Call) (*bucket, int64, error) {
	if l.buckets == nil {
		return nil, 0, l.keyError("is not known here", nil)
	}
	now := int64(time.Since(l.buckets.epoch))
	if !l.keyed {
		return &l.buckets.only, now, nil
	}
	key, err := l.key.of(c)
	if err != nil {
		invalid, _ := errors.AsType[*invalidArguments](err)
		return nil, 0, l.keyError(err.Error(), invalid)
	}
	return l.buckets.find(key, now), now, nil
}

func (l *rateLimit) keyError(why string, invalid *invalidArguments) error {
	e := &LimitError{Rule: l.place, Key: &ValueError{Field: l.field, Reason: why}}
	if invalid != nil {
		e.Key.Invalid = invalid.error
	}
	return e
}

// A bucket says when it will be full, as time since its limit's epoch: each token that is taken puts that off by a step
// (GCRA, the generic cell rate algorithm). So it needs no lock, and nobody has to fill it.
type bucket struct {
	full  atomic.Int64
	owner *buckets
}

// take takes a token, or returns how long until there is one.
func (b *bucket) take(step, fill time.Duration, now int64) time.Duration {
	for {
		was := b.full.Load()
		next := max(was, now) + int64(step)
		if wait := next - now - int64(fill); wait > 0 {
			return time.Duration(wait)
		}
		if b.full.CompareAndSwap(was, next) {
			return 0
		}
	}
}

// buckets are those of one limit.
type buckets struct {
	epoch  time.Time
	only   bucket // of a limit without a key
	shards [bucketShards]bucketShard
}

type bucketShard struct {
	mu    sync.RWMutex // guards byKey
	byKey map[string]*bucket
}

func (b *buckets) owns(one *bucket) bool { return one.owner == b }

// find returns the bucket of a key, and makes it.
func (b *buckets) find(key string, now int64) *bucket {
	if len(key) > maxKeySize {
		sum := sha256.Sum256([]byte(key))
		key = string(sum[:])
	}
	h := uint32(2166136261) // FNV-1a
	for i := range len(key) {
		h = (h ^ uint32(key[i])) * 16777619
	}
	s := &b.shards[h%bucketShards]
	s.mu.RLock()
	found := s.byKey[key]
	s.mu.RUnlock()
	if found != nil {
		return found
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if found = s.byKey[key]; found != nil {
		return found
	}
	if s.byKey == nil {
		s.byKey = map[string]*bucket{}
	}
	if len(s.byKey) >= maxBucketsPerShard {
		s.makeRoomLocked(now)
	}
	found = &bucket{owner: b}
	s.byKey[strings.Clone(key)] = found
	return found
}

// makeRoomLocked looks at a few buckets, in no order that a caller could choose, and drops those that are full, which are as
// good as none; if there are none, the fullest of them. It never leaves more than it found.
func (s *bucketShard) makeRoomLocked(now int64) {
	const few = 64
	seen, dropped := 0, false
	var fullest string
	best := int64(0)
	for key, b := range s.byKey {
		at := b.full.Load()
		if at <= now {
			delete(s.byKey, key)
			dropped = true
		} else if seen == 0 || at < best {
			fullest, best = key, at
		}
		if seen++; seen == few {
			break
		}
	}
	if !dropped {
		delete(s.byKey, fullest)
	}
}

// limits finds the buckets of limits that are compiled anew. It keeps none alive: those of a limit that is gone go with
// the last policy that had it. The zero value is ready.
type limits struct {
	mu   sync.Mutex // guards byID
	byID map[string]weak.Pointer[buckets]
}

func (l *limits) of(id string) *buckets {
	l.mu.Lock()
	defer l.mu.Unlock()
	if b := l.byID[id].Value(); b != nil {
		return b
	}
	if l.byID == nil {
		l.byID = map[string]weak.Pointer[buckets]{}
	}
	b := &buckets{epoch: time.Now()}
	b.only.owner = b
	l.byID[id] = weak.Make(b)
	runtime.AddCleanup(b, func(id string) {
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.byID[id].Value() == nil { // else the limit is back
			delete(l.byID, id)
		}
	}, id)
	return b
}

// KeyRefusesOthers reports whether a limit's key is in error for requests that call no tool, and so refuses them all,
// initialize among them: it reads what they have not without asking has(mcp.tool) first. An expression that does not
// compile is none.
func KeyRefusesOthers(expression string) bool {
	var errs problems
	t := compileTextExpression(expression, "", &errs)
	if t.rule == nil {
		return false
	}
	r := &http.Request{Method: http.MethodPost, Host: "any", URL: &url.URL{Path: "/"}, Header: http.Header{}, RemoteAddr: "192.0.2.1:1"}
	_, err := t.of(&Call{Method: "initialize", HTTP: r})
	_, ofTool := t.of(&Call{Method: "tools/call", Kind: Tool, Name: "any", HTTP: r})
	return err != nil && ofTool == nil
}
