package policy

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	policyv1 "github.com/sluicegate/sluice/proto/gen/sluice/policy/v1"
)

// timeouts is a compiled Timeout; zero durations are none.
type timeouts struct {
	request, backend time.Duration
	enforced         bool
}

const longestTimeout = 24 * time.Hour

func compileTimeout(t *policyv1.Timeout, field string, errs *problems) (out timeouts) {
	if t.GetRequestTimeout() == nil && t.GetBackendRequestTimeout() == nil {
		errs.add(field, "bounds nothing; set requestTimeout or backendRequestTimeout")
	}
	read := func(d *durationpb.Duration, name string) time.Duration {
		if d != nil && (d.CheckValid() != nil || d.AsDuration() <= 0 || d.AsDuration() > longestTimeout) {
			errs.add(field+"."+name, "is not between 0 and 24h, and a request that may take no time cannot be answered")
		}
		return d.AsDuration()
	}
	out.request, out.backend = read(t.GetRequestTimeout(), "requestTimeout"), read(t.GetBackendRequestTimeout(), "backendRequestTimeout")
	return out
}

// Timeouts are what bounds a call to the end of its answer, and one request of it to the head of the target's; 0 is no
// bound. own is the target's own timeout, 0 if it has none: it replaces both, for it is the most specific, but does not
// exceed what a level enforces.
func (t *Target) Timeouts(own time.Duration) (request, head time.Duration) {
	var set timeouts
	if t != nil {
		set = t.timeouts
	}
	switch {
	case own <= 0:
		return set.request, shorter(set.request, set.backend)
	case !set.enforced:
		return own, own
	}
	request = shorter(own, set.request)
	return request, shorter(request, set.backend)
}

// shorter is the shorter of two bounds; 0 is none.
func shorter(a, b time.Duration) time.Duration {
	if a == 0 || b == 0 {
		return max(a, b)
	}
	return min(a, b)
}

// Retry says how often, and when, a request that a target cannot have processed is sent again.
type Retry struct {
	// Attempts after the first, 1 to 10.
	Attempts int
	backoff  time.Duration
	codes    []uint32
}

const (
	maxAttempts = 10
	// maxRetryWait bounds one wait, whatever was doubled or a target asks for.
	maxRetryWait = 10 * time.Second
)

func compileRetry(r *policyv1.Retry, field string, errs *problems) *Retry {
	out := &Retry{Attempts: int(r.GetAttempts()), backoff: 100 * time.Millisecond, codes: r.GetCodes()}
	switch {
	case r.GetAttempts() == 0:
		errs.add(field+".attempts", "is 0, and nothing would be sent again; give 1 to %d, or remove retry", maxAttempts)
	case r.GetAttempts() > maxAttempts:
		errs.add(field+".attempts", "is %d, and so many would keep a target down that tries to come back; give %d at most", r.GetAttempts(), maxAttempts)
	}
	if b := r.GetBackoff(); b != nil {
		if out.backoff = b.AsDuration(); b.CheckValid() != nil || out.backoff <= 0 || out.backoff > maxRetryWait {
			errs.add(field+".backoff", "is not between 0 and %v", maxRetryWait)
		}
	}
	for i, code := range r.GetCodes() {
		if code != 429 && (code < 500 || code > 599) {
			errs.add(fmt.Sprintf("%s.codes[%d]", field, i), "%d is no status after which the same request may succeed; 429 and 500 to 599 are", code)
		}
		if slices.Index(r.GetCodes(), code) < i {
			errs.add(fmt.Sprintf("%s.codes[%d]", field, i), "%d is given twice", code)
		}
	}
	if len(out.codes) == 0 {
		out.codes = []uint32{503}
	}
	return out
}

// Retry returns nil where nothing is sent again.
func (t *Target) Retry() *Retry {
	if t == nil {
		return nil
	}
	return t.retry
}

// On reports whether a safe request is sent again after an answer of the status.
func (r *Retry) On(status int) bool { return slices.Contains(r.codes, uint32(status)) }

// Wait is how long to wait before attempt n, from 0; after is what the target asks for, 0 if nothing. It is false if that
// is longer than a caller should be kept waiting.
func (r *Retry) Wait(n int, after time.Duration) (time.Duration, bool) {
	if after > maxRetryWait {
		return 0, false
	}
	d := min(r.backoff<<min(n, 16), maxRetryWait)
	if d <= 0 { // doubled beyond what a Duration holds
		d = maxRetryWait
	}
	return max(after, d/2+rand.N(d/2+1)), true // jitter: many proxies must not try in step
}
