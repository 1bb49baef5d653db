package hold

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"
)

func TestCache(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := NewCache[int, string](cacheShards * 4096)
		if !c.Empty() {
			t.Error("a new cache is not empty")
		}
		c.Put("a", 1, "one", 1, time.Now().Add(time.Minute))
		c.Put("a", 1, "uno", 1, time.Now().Add(time.Minute))
		c.Put("a", 2, "huge", 4096, time.Time{})
		if v, ok := c.Get("a", 1); !ok || v != "uno" {
			t.Errorf("1 = %q, %v", v, ok)
		}
		if _, ok := c.Get("b", 1); ok {
			t.Error("another tenant found it")
		}
		if _, ok := c.Get("a", 2); ok {
			t.Error("what is larger than there is room was kept")
		}
		time.Sleep(time.Minute)
		if _, ok := c.Get("a", 1); ok || !c.Empty() || c.Held() != 0 {
			t.Error("1 outlived its time")
		}
		for i := range 1000 {
			c.Put("a", i, "", 100, time.Time{})
			c.Get("a", 0) // used all the time
		}
		if n := c.Held(); n > cacheShards*4096 || n < cacheShards*2048 {
			t.Errorf("%d bytes are held, want at most %d, and most of them used", n, cacheShards*4096)
		}
		if _, ok := c.Get("a", 0); !ok {
			t.Error("what was used last is gone")
		}
		c.Drop("a", 0)
		if _, ok := c.Get("a", 0); ok {
			t.Error("dropped, and still there")
		}
		c.DropAll(func(int) bool { return true })
		if !c.Empty() || c.Held() != 0 {
			t.Errorf("all was dropped, and %d bytes are held", c.Held())
		}
	})
}

// Whatever one tenant puts, the others keep what they have, as long as it has most.
func TestCacheIsFair(t *testing.T) {
	c := NewCache[int, int](cacheShards << 16)
	modest := func(tenant int) string { return fmt.Sprint("modest", tenant) }
	for tenant := range 10 {
		c.Put(modest(tenant), 0, tenant, 1000, time.Time{})
	}
	for i := range 10_000 {
		c.Put("greedy", i, 0, rand.IntN(1<<15), time.Time{})
		if n := c.Held(); n > cacheShards<<16 {
			t.Fatalf("%d bytes are held, want at most %d", n, cacheShards<<16)
		}
	}
	for tenant := range 10 {
		if _, ok := c.Get(modest(tenant), 0); !ok {
			t.Errorf("tenant %d lost to another what it had", tenant)
		}
	}
	// One that comes late gets its room from who has most.
	for i := range 100 {
		c.Put("late", i, 0, 1000, time.Time{})
	}
	for i := range 100 {
		if _, ok := c.Get("late", i); !ok {
			t.Errorf("item %d of who came late is gone", i)
		}
	}
}

// The books agree with what is there, whatever was done.
func TestCacheCounts(t *testing.T) {
	c := NewCache[int, int](cacheShards * 8192)
	for range 20_000 {
		tenant, k := fmt.Sprint(rand.IntN(5)), rand.IntN(200)
		switch rand.IntN(4) {
		case 0:
			c.Drop(tenant, k)
		case 1:
			c.Get(tenant, k)
		default:
			c.Put(tenant, k, k, rand.IntN(3000), time.Time{})
		}
	}
	items := 0
	for i := range c.shards {
		s := &c.shards[i]
		size, of := 0, map[string]int{}
		for k, e := range s.items {
			it := e.Value.(*item[int, int])
			size += it.size
			of[k.tenant] += it.size
		}
		items += len(s.items)
		if size != s.size || len(of) != len(s.of) || len(of) != len(s.most) {
			t.Errorf("shard %d: %d bytes of %d tenants; the books say %d of %d and %d", i, size, len(of), s.size, len(s.of), len(s.most))
		}
		for tenant, n := range of {
			if sh := s.of[tenant]; sh == nil || sh.size != n || s.most[sh.at] != sh || n > s.most[0].size {
				t.Errorf("shard %d: tenant %s has %d bytes; the books say %+v", i, tenant, n, sh)
			}
		}
	}
	if int64(items) != c.items.Load() {
		t.Errorf("%d items; the books say %d", items, c.items.Load())
	}
}

func TestBudget(t *testing.T) {
	b := NewBudget(100)
	for _, tt := range []struct {
		tenant, caller string
		n              int
		want           bool
	}{
		{"a", "ada", 40, true},
		{"a", "ada", 11, false}, // more than half
		{"a", "ada", 10, true},
		{"a", "bob", 50, true},
		{"a", "eve", 1, false},
		{"a", "", 1, false},
		{"b", "", 100, true}, // the anonymous ones may have all
		{"b", "ada", 1, false},
		{"c", "ada", 101, false},
	} {
		if got := b.Take(tt.tenant, tt.caller, tt.n); got != tt.want {
			t.Errorf("Take(%q, %q, %d) = %v, want %v", tt.tenant, tt.caller, tt.n, got, tt.want)
		}
	}
	b.Give("a", "ada", 50)
	if got := b.Held("a"); got != 50 {
		t.Errorf("a holds %d bytes, want 50", got)
	}
	if !b.Take("a", "eve", 50) {
		t.Error("what was given back cannot be taken")
	}
	b.Give("a", "eve", 50)
	b.Give("a", "bob", 50)
	b.Give("b", "", 100)
	if len(b.tenants) != 0 {
		t.Errorf("nothing is held, and %d tenants are on the books", len(b.tenants))
	}
}
