package session

import (
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// What is held must open nothing that the codec itself would not open.
func TestCacheRefuses(t *testing.T) {
	c := codec(t, newKey, oldKey)
	id, err := c.Encode(alice, state())
	if err != nil {
		t.Fatal(err)
	}
	other := alice
	other.Principal = "jwt:https://idp\x00mallory"
	elsewhere := alice
	elsewhere.Backend = "acme/backend/other"
	var cache Cache
	for _, tt := range []struct {
		name  string
		codec *Codec
		scope Scope
		id    string
		good  bool
	}{
		{"first", c, alice, id, true},
		{"again", c, alice, id, true},
		{"another principal", c, other, id, false},
		{"another backend", c, elsewhere, id, false},
		{"key withdrawn", codec(t, oldKey), alice, id, false},
		{"cut", c, alice, id[:len(id)-1], false},
		{"changed", c, alice, id[:len(id)-1] + "!", false},
		{"after all that", c, alice, id, true},
		{"another codec with the key", codec(t, newKey), alice, id, true},
	} {
		s, err := cache.Decode(tt.codec, tt.scope, tt.id)
		if good := err == nil; good != tt.good || !good && !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v, want good %v", tt.name, err, tt.good)
			continue
		}
		if tt.good {
			if diff := cmp.Diff(state(), *s); diff != "" {
				t.Errorf("%s (-want +got):\n%s", tt.name, diff)
			}
		}
	}
}

func TestCacheHolds(t *testing.T) {
	c := codec(t, newKey)
	var cache Cache
	for _, tt := range []struct {
		name             string
		extra, principal int
		held             bool
	}{{"usual", 0, 0, true}, {"long", 1 << 10, 0, false}, {"long principal", 0, 1 << 10, false}} {
		s, scope := state(), alice
		s.ClientInfo += strings.Repeat(" ", tt.extra)
		scope.Principal += strings.Repeat("x", tt.principal)
		id, err := c.Encode(scope, s)
		if err != nil {
			t.Fatal(err)
		}
		first, err := cache.Decode(c, scope, id)
		if err != nil {
			t.Fatal(err)
		}
		second, err := cache.Decode(c, scope, id)
		if err != nil || (first == second) != tt.held {
			t.Errorf("%s: held %v (%v), want %v", tt.name, first == second, err, tt.held)
		}
	}
}

// What was sealed here is held as what it opens to.
func TestCacheEncode(t *testing.T) {
	c := codec(t, newKey)
	var cache Cache
	id, err := cache.Encode(c, alice, state())
	if err != nil {
		t.Fatal(err)
	}
	opened, err := c.Decode(alice, id)
	if err != nil {
		t.Fatal(err)
	}
	first, err := cache.Decode(c, alice, id)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(opened, first); diff != "" {
		t.Errorf("held (-opened +held):\n%s", diff)
	}
	mallory := alice
	mallory.Principal = "jwt:https://idp\x00mallory"
	if _, err := cache.Decode(c, mallory, id); !errors.Is(err, ErrInvalid) {
		t.Errorf("another principal: %v", err)
	}
	large := state()
	large.ClientInfo = strings.Repeat(" ", MaxClientSize)
	if _, err := cache.Encode(c, alice, large); err == nil {
		t.Error("a state that is too large was sealed")
	}
}

// A proxy opens no id that it has just sealed.
func TestCacheSparesOpening(t *testing.T) {
	c := codec(t, newKey)
	var cache Cache
	id, err := cache.Encode(c, alice, state())
	if err != nil {
		t.Fatal(err)
	}
	if n := testing.AllocsPerRun(100, func() {
		if _, err := cache.Decode(c, alice, id); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("opening it allocates %v times", n)
	}
}

func TestCacheExpiry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := codec(t, newKey)
		s := state()
		s.Expires = time.Now().Add(time.Hour)
		id, err := c.Encode(alice, s)
		if err != nil {
			t.Fatal(err)
		}
		var cache Cache
		for _, tt := range []struct {
			after time.Duration
			want  error
		}{{0, nil}, {time.Hour - time.Second, nil}, {time.Second, ErrInvalid}} {
			time.Sleep(tt.after)
			if _, err := cache.Decode(c, alice, id); !errors.Is(err, tt.want) {
				t.Errorf("after %v: %v, want %v", tt.after, err, tt.want)
			}
		}
	})
}
