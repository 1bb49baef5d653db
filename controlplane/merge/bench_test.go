package merge

import (
	"fmt"
	"slices"
	"testing"
	"time"

	adminv1 "github.com/sluicegate/sluice/proto/gen/sluice/admin/v1"
	policyv1 "github.com/sluicegate/sluice/proto/gen/sluice/policy/v1"
)

// large is a tenant with n targets in backends of 20, half of which have policies of their own.
func large(n int) Inputs {
	in := Inputs{Tenant: "acme", VersionKey: testKey}
	rule := func(cel string) *policyv1.Policies {
		return &policyv1.Policies{McpAuthorization: &policyv1.McpAuthorization{Rules: []*policyv1.AuthorizationRule{{Rule: &policyv1.AuthorizationRule_Allow{Allow: cel}}}}}
	}
	add := func(name string, o *adminv1.Object) { o.Name = name; in.Objects = append(in.Objects, o) }
	add("l", &adminv1.Object{Spec: &adminv1.Object_Listener{Listener: &adminv1.Listener{Port: 3000}}})
	for i := range n {
		b := fmt.Sprint("b", i/20)
		if i%20 == 0 {
			add(b, &adminv1.Object{Spec: &adminv1.Object_Backend{Backend: &adminv1.Backend{Policies: rule("true")}}})
			add("r"+b, &adminv1.Object{Spec: &adminv1.Object_Route{Route: &adminv1.Route{Listener: "l", Backends: []*adminv1.RouteBackend{{Backend: b}}}}})
		}
		t := &adminv1.Target{Backend: b, Index: uint32(i % 20), Transport: &adminv1.Target_Mcp{Mcp: &adminv1.HttpTransport{Host: "https://h.example/mcp"}}}
		if i%2 == 0 {
			t.Policies = rule(fmt.Sprintf("mcp.tool.name == 'tool-%d'", i))
		}
		add(fmt.Sprintf("%s/t%d", b, i), &adminv1.Object{Spec: &adminv1.Object_Target{Target: t}})
	}
	return in
}

// edited is in with another description, or another policy, of its i-th target.
func edited(in Inputs, i, step int) Inputs {
	in.Objects = slices.Clone(in.Objects)
	for j := len(in.Objects) - 1 - i; ; j-- {
		if old := in.Objects[j].GetTarget(); old != nil {
			policies := old.Policies
			if step%2 == 1 {
				policies = &policyv1.Policies{RequestHeaderModifier: &policyv1.HeaderModifier{Set: map[string]*policyv1.Value{"x": {Kind: &policyv1.Value_Value{Value: fmt.Sprint(step)}}}}}
			}
			in.Objects[j] = &adminv1.Object{Name: in.Objects[j].Name, Spec: &adminv1.Object_Target{Target: &adminv1.Target{
				Backend: old.Backend, Index: old.Index, Transport: old.Transport, Policies: policies, Description: fmt.Sprint(step)}}}
			return in
		}
	}
}

// One edited target among ten thousand costs a small part of deriving them all.
func TestUpdateCostsTheChange(t *testing.T) {
	in := large(10_000)
	start := time.Now()
	out, err := Derive(in)
	if err != nil {
		t.Fatal(err)
	}
	full := time.Since(start)
	const edits = 100
	start = time.Now()
	for step := range edits {
		in = edited(in, step*90, step)
		next, delta, err := out.Update(in)
		if err != nil {
			t.Fatal(err)
		}
		if n := len(delta.Config); n < 1 || n > 3 || len(delta.Secret) > 0 {
			t.Fatalf("step %d: an edited target changed %d resources", step, n)
		}
		out = next
	}
	if each := time.Since(start) / edits; each > full/30 {
		t.Errorf("an update took %v, deriving all %v: want less than a thirtieth", each, full)
	}
}

func BenchmarkDerive10000(b *testing.B) {
	in := large(10_000)
	for b.Loop() {
		if _, err := Derive(in); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkUpdate10000(b *testing.B) {
	in := large(10_000)
	out, err := Derive(in)
	if err != nil {
		b.Fatal(err)
	}
	step := 0
	for b.Loop() {
		step++
		in = edited(in, step%10_000, step)
		if out, _, err = out.Update(in); err != nil {
			b.Fatal(err)
		}
	}
}
