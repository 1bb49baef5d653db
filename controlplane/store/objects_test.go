package store

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// Random changes of Objects are those of a plain map, and the Objects before stay what they were.
func TestObjects(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	held, want := Objects{}, map[string]string{}
	for step := range 400 {
		var put []*Object
		var remove []string
		before := maps.Clone(want)
		for range r.IntN(6) {
			o := &Object{Kind: []string{"route", "target"}[r.IntN(2)], Name: fmt.Sprint("n", r.IntN(150)), Hash: fmt.Sprint(step)}
			switch {
			case slices.Contains(remove, o.Key()) || slices.ContainsFunc(put, func(p *Object) bool { return p.Key() == o.Key() }):
			case r.IntN(3) == 0:
				remove = append(remove, o.Key())
				delete(want, o.Key())
			default:
				put = append(put, o)
				want[o.Key()] = o.Hash
			}
		}
		next := held.With(put, remove)
		for what, c := range map[string]struct {
			got  Objects
			want map[string]string
		}{"before": {held, before}, "after": {next, want}} {
			got := map[string]string{}
			var order []string
			for o := range c.got.All() {
				got[o.Key()] = o.Hash
				order = append(order, o.Key())
				if c.got.Get(o.Key()) != o {
					t.Fatalf("step %d: Get(%q) is not what All yields", step, o.Key())
				}
			}
			if diff := cmp.Diff(c.want, got); diff != "" || c.got.Len() != len(c.want) {
				t.Fatalf("step %d, %s: Len %d (-want +got):\n%s", step, what, c.got.Len(), diff)
			}
			if !slices.IsSorted(order) || len(order) != len(got) {
				t.Fatalf("step %d, %s: order %v", step, what, order)
			}
		}
		for _, key := range remove {
			if next.Get(key) != nil {
				t.Fatalf("step %d: %q is still there", step, key)
			}
		}
		held = next
	}
}
