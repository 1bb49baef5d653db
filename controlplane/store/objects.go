package store

import (
	"iter"
	"maps"
	"math"
	"slices"
	"strings"
)

// Objects are a tenant's objects by key. They never change: With makes others at the price of what differs, since most
// edits change one object of a tenant that may have ten thousand. The zero Objects are none.
type Objects struct {
	kinds map[string]versions
}

// versions are the objects of one kind, by key: a base that many share, and what differs from it.
type versions struct {
	base, over map[string]*Object // nil in over: not there
	count      int
}

// ObjectsOf returns the objects with these.
func ObjectsOf(all []*Object) Objects { return Objects{}.With(all, nil) }

// Get returns nil for a key that is not there.
func (o Objects) Get(key string) *Object {
	kind, _, _ := strings.Cut(key, "/")
	return o.kinds[kind].get(key)
}

// Len is how many there are.
func (o Objects) Len() int {
	n := 0
	for _, v := range o.kinds {
		n += v.count
	}
	return n
}

// All yields all of them in the order of their keys.
func (o Objects) All() iter.Seq[*Object] {
	return func(yield func(*Object) bool) {
		for _, kind := range slices.Sorted(maps.Keys(o.kinds)) {
			for object := range o.Kind(kind) {
				if !yield(object) {
					return
				}
			}
		}
	}
}

// Kind yields those of one kind in the order of their names.
func (o Objects) Kind(kind string) iter.Seq[*Object] {
	return func(yield func(*Object) bool) {
		all := slices.Collect(o.kinds[kind].all())
		slices.SortFunc(all, func(a, b *Object) int { return strings.Compare(a.Name, b.Name) })
		for _, object := range all {
			if !yield(object) {
				return
			}
		}
	}
}

// With returns the objects with some put and others, by key, removed.
func (o Objects) With(put []*Object, remove []string) Objects {
	kinds, changes := maps.Clone(o.kinds), map[string]map[string]*Object{}
	if kinds == nil {
		kinds = map[string]versions{}
	}
	note := func(kind, key string, object *Object) {
		if changes[kind] == nil {
			changes[kind] = map[string]*Object{}
		}
		changes[kind][key] = object
	}
	for _, key := range remove {
		kind, _, _ := strings.Cut(key, "/")
		note(kind, key, nil)
	}
	for _, object := range put {
		note(object.Kind, object.Key(), object)
	}
	for kind, changed := range changes {
		kinds[kind] = kinds[kind].with(changed)
	}
	return Objects{kinds}
}

func (v versions) get(key string) *Object {
	if object, ok := v.over[key]; ok {
		return object
	}
	return v.base[key]
}

func (v versions) all() iter.Seq[*Object] {
	return func(yield func(*Object) bool) {
		for _, object := range v.over {
			if object != nil && !yield(object) {
				return
			}
		}
		for key, object := range v.base {
			if _, replaced := v.over[key]; !replaced && !yield(object) {
				return
			}
		}
	}
}

// with makes a new base once the differences are about its square root, which keeps both copies small.
func (v versions) with(changed map[string]*Object) versions {
	next := versions{base: v.base, over: maps.Clone(v.over), count: v.count}
	if next.over == nil {
		next.over = make(map[string]*Object, len(changed))
	}
	for key, object := range changed {
		if v.get(key) != nil {
			next.count--
		}
		if object != nil {
			next.count++
		}
		next.over[key] = object
	}
	if len(next.over) <= max(32, int(math.Sqrt(float64(len(next.base))))) {
		return next
	}
	base := make(map[string]*Object, next.count)
	for object := range next.all() {
		base[object.Key()] = object
	}
	return versions{base: base, count: next.count}
}
