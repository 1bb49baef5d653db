package session

import (
	"hash/maphash"
	"strings"
	"sync/atomic"
	"time"
)

// Cache spares the opening of ids that were sealed or opened here a moment ago: a client sends the same one with each
// request. The zero value is ready, and safe for concurrent use.
//
// It is bounded by its slots and by maxCached, and an id that it does not hold costs what it costs without it. Only what
// is good goes in, so that ids that strangers make up cannot push out what is held.
type Cache struct {
	seed  atomic.Pointer[maphash.Seed]
	slots [cacheSlots]atomic.Pointer[opened]
}

const (
	cacheSlots = 1 << 13
	maxCached  = 1280 // the longest id that is held, with its scope: an entry takes about twice that, so all take at most some 20 MB
)

// opened is what one id opens to. The codec stands in it by number, lest keys outlive their codec.
type opened struct {
	codec uint64
	scope Scope
	id    string
	state *State
}

// Encode is [Codec.Encode].
func (c *Cache) Encode(codec *Codec, scope Scope, s State) (string, error) {
	plain, err := s.record()
	if err != nil {
		return "", err
	}
	id := codec.seal(kindSession, scope, plain)
	if tooLong(scope, id) {
		return id, nil
	}
	if state, err := stateOf(scope, plain); err == nil { // not s: it may share memory with much that is no longer needed
		c.slot(id).Store(&opened{codec: codec.serial, scope: scope, id: id, state: state})
	}
	return id, nil
}

// Decode is [Codec.Decode]. Requests share the State that it returns: it must not be changed.
func (c *Cache) Decode(codec *Codec, scope Scope, id string) (*State, error) {
	if tooLong(scope, id) {
		return codec.Decode(scope, id)
	}
	slot := c.slot(id)
	if o := slot.Load(); o != nil && o.codec == codec.serial && o.id == id && o.scope == scope {
		if !time.Now().Before(o.state.Expires) {
			return nil, ErrInvalid
		}
		return o.state, nil
	}
	state, err := codec.Decode(scope, id)
	if err == nil {
		slot.Store(&opened{codec: codec.serial, scope: scope, id: strings.Clone(id), state: state})
	}
	return state, err
}

func tooLong(s Scope, id string) bool {
	return len(s.Tenant)+len(s.Backend)+len(s.Principal)+len(id) > maxCached
}

func (c *Cache) slot(id string) *atomic.Pointer[opened] {
	return &c.slots[maphash.String(c.hashSeed(), id)%cacheSlots]
}

func (c *Cache) hashSeed() maphash.Seed {
	if s := c.seed.Load(); s != nil {
		return *s
	}
	s := maphash.MakeSeed()
	if c.seed.CompareAndSwap(nil, &s) {
		return s
	}
	return *c.seed.Load()
}
