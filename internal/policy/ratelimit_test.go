package policy

import (
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// limited compiles limits of a level, in YAML's JSON, for a target.
func limited(t testing.TB, r Resolver, level, limits string) *Target {
	t.Helper()
	p := parse(t, `{"localRateLimit":{"limits":[`+limits+`]}}`)
	p.From = map[string]string{"localRateLimit": level}
	target, err := CompileTarget(p, HTTP, r)
	if err != nil {
		t.Fatal(err)
	}
	return target
}

// wait is how long a call has to wait for its token, 0 if it has got it.
func wait(t testing.TB, target *Target, c *Call) time.Duration {
	t.Helper()
	err := target.Take(c, &Taken{})
	if err == nil {
		return 0
	}
	limit, ok := errors.AsType[*LimitError](err)
	if !ok || limit.Key != nil {
		t.Fatal(err)
	}
	return limit.Retry
}

func TestTokensComeBackEvenly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		target := limited(t, Resolver{Runtime: NewRuntime()}, "tenant/acme", `{"maxTokens":3,"tokensPerFill":2,"fillInterval":"10s"}`)
		c := caller("tools/call", Tool, "{}")
		for range 3 {
			if d := wait(t, target, c); d != 0 {
				t.Fatalf("a full bucket has no token for %v", d)
			}
		}
		if d := wait(t, target, c); d != 5*time.Second {
			t.Errorf("an empty bucket has none for %v, want 5 s", d)
		}
		time.Sleep(4 * time.Second)
		if d := wait(t, target, c); d != time.Second {
			t.Errorf("4 s later none for %v, want 1 s: who asks too early must not have to wait longer for that", d)
		}
		time.Sleep(time.Second)
		if d := wait(t, target, c); d != 0 {
			t.Errorf("5 s later none for %v", d)
		}
		time.Sleep(time.Hour)
		got := 0
		for wait(t, target, c) == 0 {
			got++
		}
		if got != 3 {
			t.Errorf("%d tokens after an hour, want what fits: 3", got)
		}
	})
}

// What limits with a bucket in common, and what without.
func TestBucketsOfLevels(t *testing.T) {
	const one = `{"maxTokens":1,"fillInterval":"3600s"}`
	const keyed = `{"maxTokens":1,"fillInterval":"3600s","key":"tenant + mcp.tool.name"}`
	r := Resolver{Tenant: "acme", TargetName: "acme/target/b/one", Runtime: NewRuntime()}
	other := r
	other.TargetName = "acme/target/b/other"
	third := r
	third.TargetName = "acme/target/b/third"
	globex := r
	globex.Tenant = "globex"
	call := func(tool string) *Call {
		c := caller("tools/call", Tool, "{}")
		c.Name = tool
		return c
	}
	for _, tt := range []struct {
		name          string
		first, second *Target
		a, b          *Call
		shared        bool
	}{
		{"one backend's, two targets", limited(t, r, "backend/b", one), limited(t, other, "backend/b", one), call("x"), call("y"), true},
		{"two backends'", limited(t, r, "backend/c", one), limited(t, r, "backend/d", one), call("x"), call("x"), false},
		{"two targets' own", limited(t, r, "target/one", one), limited(t, other, "target/one", one), call("x"), call("x"), false},
		{"a target's own, compiled twice", limited(t, third, "target/b/third", one), limited(t, third, "target/b/third", one), call("x"), call("x"), true},
		{"the platform's, of two tenants", limited(t, r, "platform", one), limited(t, globex, "platform", one), call("x"), call("x"), false},
		{"a limit that changed", limited(t, r, "route/r", one), limited(t, r, "route/r", `{"maxTokens":2,"fillInterval":"3600s"}`), call("x"), call("x"), false},
		{"two keys", limited(t, r, "route/k", keyed), limited(t, r, "route/k", keyed), call("x"), call("y"), false},
		{"one key", limited(t, r, "route/l", keyed), limited(t, other, "route/l", keyed), call("x"), call("x"), true},
	} {
		if wait(t, tt.first, tt.a) != 0 {
			t.Errorf("%s: the first call is refused", tt.name)
		}
		if refused := wait(t, tt.second, tt.b) != 0; refused != tt.shared {
			t.Errorf("%s: refused %v, want %v", tt.name, refused, tt.shared)
		}
	}
}

// A request takes one token of each bucket, whatever number of targets it is for; and all of them or none.
func TestTokensOfOneRequest(t *testing.T) {
	r := Resolver{Runtime: NewRuntime()}
	a := limited(t, r, "backend/b", `{"maxTokens":2,"fillInterval":"3600s"}`)
	b := limited(t, r, "backend/b", `{"maxTokens":2,"fillInterval":"3600s"}`)
	c := caller("tools/list", None, "")
	for range 2 {
		taken := &Taken{}
		for _, target := range []*Target{a, b, a} {
			if err := target.Take(c, taken); err != nil {
				t.Fatalf("a request takes more than one token: %v", err)
			}
		}
	}
	if wait(t, b, c) == 0 {
		t.Error("the third request has a token too")
	}

	both := limited(t, r, "backend/c", `{"maxTokens":5,"fillInterval":"3600s"},{"maxTokens":1,"fillInterval":"3600s"}`)
	for range 20 {
		_ = both.Take(c, &Taken{})
	}
	if err := both.Take(c, &Taken{}); err == nil || !strings.Contains(err.Error(), "backend/c localRateLimit.limits[1]") {
		t.Errorf("after 20 that the second limit refused: %v; the first has got its tokens back, so the second refuses", err)
	}
	if _, err := CompileTarget(parse(t, `{"localRateLimit":{}}`), HTTP, r); err == nil {
		t.Error("no limits at all are compiled")
	}
	if err := (*Target)(nil).Take(c, &Taken{}); err != nil {
		t.Error(err)
	}
}

func TestManyTakeAtOnce(t *testing.T) {
	target := limited(t, Resolver{Runtime: NewRuntime()}, "", `{"maxTokens":50,"fillInterval":"86400s","key":"mcp.tool.name"}`)
	var wg sync.WaitGroup
	var mu sync.Mutex
	got := 0
	for range 8 {
		wg.Go(func() {
			for range 20 {
				if target.Take(caller("tools/call", Tool, "{}"), &Taken{}) == nil {
					mu.Lock()
					got++
					mu.Unlock()
				}
			}
		})
	}
	wg.Wait()
	if got != 50 {
		t.Errorf("%d tokens were taken of 50", got)
	}
}

// Whoever sends keys of his own decides no more than what he himself gets.
func TestKeysAreBounded(t *testing.T) {
	target := limited(t, Resolver{Runtime: NewRuntime()}, "", `{"maxTokens":1,"fillInterval":"86400s","key":"request.headers[\"x-text\"]"}`)
	c := caller("initialize", None, "")
	for i := range bucketShards * maxBucketsPerShard * 2 {
		c.HTTP.Header["X-Text"] = []string{fmt.Sprintf("%0*d", i%300, i)}
		if err := target.Take(c, &Taken{}); err != nil {
			t.Fatalf("key %d: %v", i, err)
		}
	}
	n := 0
	for i := range target.limits[0].buckets.shards {
		s := &target.limits[0].buckets.shards[i]
		n += len(s.byKey)
		for key := range s.byKey {
			if len(key) > maxKeySize {
				t.Fatalf("a key of %d bytes is kept", len(key))
			}
		}
	}
	if n > bucketShards*maxBucketsPerShard {
		t.Errorf("%d buckets are kept", n)
	}
}

// Buckets go with the last policy that has them, and not before.
func TestBucketsGoWithTheirLimit(t *testing.T) {
	rt := NewRuntime()
	r := Resolver{Runtime: rt}
	const one = `{"maxTokens":1,"fillInterval":"3600s"}`
	c := caller("initialize", None, "")
	first := limited(t, r, "backend/b", one)
	_ = wait(t, first, c)
	second := limited(t, r, "backend/b", one)
	runtime.GC()
	if wait(t, second, c) == 0 {
		t.Error("a policy that is compiled anew forgets what callers took")
	}
	runtime.KeepAlive(second)
	left := func() int {
		rt.limits.mu.Lock()
		defer rt.limits.mu.Unlock()
		return len(rt.limits.byID)
	}
	for range 1000 {
		runtime.GC()
		if left() == 0 {
			return
		}
		runtime.Gosched()
	}
	t.Errorf("%d limits are kept that nothing has", left())
}

func TestKeysThatFail(t *testing.T) {
	withRuntime := Resolver{Runtime: NewRuntime()}
	for _, tt := range []struct {
		r       Resolver
		key     string
		call    *Call
		want    string
		invalid bool
	}{
		{withRuntime, `mcp.tool.name`, caller("initialize", None, ""), "localRateLimit.limits[0].key: reads mcp.tool", false},
		{withRuntime, `string(mcp.tool.arguments.n)`, caller("tools/call", Tool, `{"n":1,"n":2}`), "", true},
		{Resolver{}, `tenant`, caller("initialize", None, ""), "is not known here", false},
	} {
		target := limited(t, tt.r, "", `{"maxTokens":1,"fillInterval":"3600s","key":"`+tt.key+`"}`)
		err := target.Take(tt.call, &Taken{})
		limit, ok := errors.AsType[*LimitError](err)
		if !ok || limit.Key == nil || (limit.Key.Invalid != nil) != tt.invalid || !strings.Contains(strings.ReplaceAll(limit.Error(), "the expression ", ""), tt.want) {
			t.Errorf("%s: %v", tt.key, err)
		}
	}
	for key, want := range map[string]bool{`mcp.tool.name`: true, `has(mcp.tool) ? mcp.tool.name : ""`: false, `tenant`: false, `jwt.sub`: false, `(`: false} {
		if got := KeyRefusesOthers(key); got != want {
			t.Errorf("%s refuses others: %v", key, got)
		}
	}
}

func TestTimeouts(t *testing.T) {
	compile := func(text string, enforced bool) *Target {
		p := parse(t, text)
		if enforced {
			p.Enforced = []string{"timeout"}
		}
		target, err := CompileTarget(p, HTTP, Resolver{})
		if err != nil {
			t.Fatal(err)
		}
		return target
	}
	const s = time.Second
	both := `{"timeout":{"requestTimeout":"30s","backendRequestTimeout":"5s"}}`
	for _, tt := range []struct {
		target             *Target
		own, request, head time.Duration
	}{
		{nil, 0, 0, 0},
		{nil, 7 * s, 7 * s, 7 * s},
		{compile(`{}`, false), 0, 0, 0},
		{compile(both, false), 0, 30 * s, 5 * s},
		{compile(both, false), 60 * s, 60 * s, 60 * s},
		{compile(both, false), 1 * s, 1 * s, 1 * s},
		{compile(both, true), 60 * s, 30 * s, 5 * s},
		{compile(both, true), 10 * s, 10 * s, 5 * s},
		{compile(both, true), 1 * s, 1 * s, 1 * s},
		{compile(`{"timeout":{"requestTimeout":"3s"}}`, false), 0, 3 * s, 3 * s},
		{compile(`{"timeout":{"backendRequestTimeout":"3s"}}`, false), 0, 0, 3 * s},
		{compile(`{"timeout":{"backendRequestTimeout":"3s"}}`, true), 9 * s, 9 * s, 3 * s},
	} {
		request, head := tt.target.Timeouts(tt.own)
		if diff := cmp.Diff([]time.Duration{tt.request, tt.head}, []time.Duration{request, head}); diff != "" {
			t.Errorf("own timeout %v (-want +got):\n%s", tt.own, diff)
		}
	}
}

func TestRetryWaits(t *testing.T) {
	target, err := CompileTarget(parse(t, `{"retry":{"attempts":10,"backoff":"0.2s"}}`), HTTP, Resolver{})
	if err != nil {
		t.Fatal(err)
	}
	r := target.Retry()
	for n := range 40 {
		for range 20 {
			most := maxRetryWait
			if n < 10 {
				most = min(most, 200*time.Millisecond<<n)
			}
			if d, ok := r.Wait(n, 0); !ok || d < most/2 || d > most {
				t.Fatalf("attempt %d waits %v, want %v to %v", n, d, most/2, most)
			}
		}
	}
	if d, ok := r.Wait(0, 3*time.Second); !ok || d != 3*time.Second {
		t.Errorf("a target that asks for 3 s is asked again after %v", d)
	}
	if _, ok := r.Wait(0, 11*time.Second); ok {
		t.Error("a caller waits longer than a target may make him")
	}
	if !r.On(503) || r.On(500) || r.On(429) {
		t.Error("codes by default are not 503 alone")
	}
	if (*Target)(nil).Retry() != nil {
		t.Error("no policy, but a retry")
	}
}
