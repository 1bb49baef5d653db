package snapshot

import (
	"fmt"
	"testing"

	xdsv1 "github.com/sluicegate/sluice/proto/gen/sluice/xds/v1"
)

// BenchmarkApply changes one of a tenant's 5,000 targets.
func BenchmarkApply(b *testing.B) {
	s := New(Config{})
	p := newPlane(b, s, "acme")
	p.fill(3000)
	for i := range 5000 {
		name := fmt.Sprint("t", i)
		p.set("target/b/"+name, httpTarget("acme", name, uint32(i)))
		p.set("binding/r/b/"+name, &xdsv1.Binding{Route: "acme/route/r", Target: "acme/target/b/" + name})
	}
	p.push()
	i := 0
	for b.Loop() {
		i++
		t := httpTarget("acme", "t7", 7)
		t.Description = fmt.Sprint(i)
		u := Update{Tenant: "acme", Revision: int64(i), Set: []Resource{{ConfigType, "acme/target/b/t7", fmt.Sprint(i), p.marshal(&xdsv1.Config{Resource: &xdsv1.Config_Target{Target: t}})}}}
		if _, err := s.Apply(u); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkRoute finds the route of a request among 1,000 tenants on one port.
func BenchmarkRoute(b *testing.B) {
	s := New(Config{})
	for i := range 1000 {
		p := newPlane(b, s, fmt.Sprint("t", i))
		p.fill(3000)
		p.set("listener/main", &xdsv1.Listener{Port: 3000, Hostnames: []string{fmt.Sprintf("t%d.test", i)}})
		p.good()
	}
	r := tlsRequest("", "t500.test")
	ix := s.Load()
	b.ReportAllocs()
	for b.Loop() {
		if found, err := ix.Route(3000, r); err != nil || found.Tenant.Name != "t500" {
			b.Fatal(found, err)
		}
	}
}
