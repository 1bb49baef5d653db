package merge

import (
	"iter"
	"maps"
	"math"
)

// A table is an immutable map that is cheap to change: versions of it share a large base and differ in a small map of
// changes over it. So an Output of ten thousand resources can be derived, thrown away or kept for the price of the change.
type table[V any] struct {
	base map[string]V
	over map[string]slot[V]
}

type slot[V any] struct {
	v    V
	gone bool
}

func (t table[V]) get(key string) (V, bool) {
	if s, ok := t.over[key]; ok {
		return s.v, !s.gone
	}
	v, ok := t.base[key]
	return v, ok
}

func (t table[V]) all() iter.Seq2[string, V] {
	return func(yield func(string, V) bool) {
		for k, s := range t.over {
			if !s.gone && !yield(k, s.v) {
				return
			}
		}
		for k, v := range t.base {
			if _, over := t.over[k]; !over && !yield(k, v) {
				return
			}
		}
	}
}

// A draft is a table being changed; the table that it began with stays as it was.
type draft[V any] struct {
	table[V]
	own bool // over is the draft's own
}

func (d *draft[V]) set(key string, v V) { d.put(key, slot[V]{v: v}) }

func (d *draft[V]) remove(key string) {
	if _, ok := d.get(key); ok {
		d.put(key, slot[V]{gone: true})
	}
}

func (d *draft[V]) put(key string, s slot[V]) {
	if !d.own {
		d.over, d.own = maps.Clone(d.over), true
		if d.over == nil {
			d.over = map[string]slot[V]{}
		}
	}
	d.over[key] = s
}

// done returns the changed table. The base is rebuilt once the changes are about its square root, which keeps both the
// copying of changes and the rebuilding small.
func (d *draft[V]) done() table[V] {
	if len(d.over) <= max(32, int(math.Sqrt(float64(len(d.base))))) {
		return d.table
	}
	base := make(map[string]V, len(d.base)+len(d.over))
	for k, v := range d.all() {
		base[k] = v
	}
	return table[V]{base: base}
}
