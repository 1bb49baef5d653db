package controlplane

import (
	"fmt"
	"strings"
	"testing"

	adminv1 "github.com/sluicegate/sluice/proto/gen/sluice/admin/v1"
)

// BenchmarkApply is one object into a tenant that has many, over the admin port, to stable storage.
func BenchmarkApply(b *testing.B) {
	for _, n := range []int{1000, 10000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			r := start(b, b.TempDir())
			var text strings.Builder
			text.WriteString("binds:\n- port: 3000\n  listeners:\n  - routes:\n    - backends:\n      - mcp:\n          targets:\n")
			for i := range n {
				fmt.Fprintf(&text, "          - {name: t%d, mcp: {host: https://t%d.example.com}, policies: {backendAuth: {key: secret-%d}}}\n", i, i, i)
			}
			set := load(b, text.String())
			if _, err := r.Apply(b.Context(), &adminv1.ApplyRequest{Objects: set.Objects}); err != nil {
				b.Fatalf("%v%s", err, diagnosticsOf(err))
			}
			target, err := r.Get(b.Context(), &adminv1.GetRequest{Kind: "target", Name: "t7"})
			if err != nil {
				b.Fatal(err)
			}
			i := 0
			for b.Loop() {
				i++
				target.GetTarget().Description = fmt.Sprint(i)
				if _, err := r.Apply(b.Context(), &adminv1.ApplyRequest{Single: true, Objects: []*adminv1.Object{target}}); err != nil {
					b.Fatalf("%v%s", err, diagnosticsOf(err))
				}
			}
		})
	}
}
