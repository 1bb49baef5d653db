package merge

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	adminv1 "github.com/sluicegate/sluice/proto/gen/sluice/admin/v1"
	policyv1 "github.com/sluicegate/sluice/proto/gen/sluice/policy/v1"
	xdsv1 "github.com/sluicegate/sluice/proto/gen/sluice/xds/v1"
)

func authz(rule string) *policyv1.Policies {
	return &policyv1.Policies{McpAuthorization: &policyv1.McpAuthorization{Rules: []*policyv1.AuthorizationRule{{Rule: &policyv1.AuthorizationRule_Allow{Allow: rule}}}}}
}

func tlsTo(host string) *policyv1.Policies {
	return &policyv1.Policies{BackendTls: &policyv1.BackendTls{Hostname: host}}
}

// The merge, as a table: the rows are levels from the outermost to the target's own.
func TestEffective(t *testing.T) {
	both := func(a, b *policyv1.Policies) *policyv1.Policies {
		out := proto.CloneOf(a)
		proto.Merge(out, b)
		return out
	}
	platform := func(p, enforced *policyv1.Policies) Level {
		return Level{Name: "platform", Policies: p, Enforced: enforced}
	}
	backend := func(p, enforced *policyv1.Policies) Level {
		return Level{Name: "backend/b", Policies: p, Enforced: enforced}
	}
	target := func(p, enforced *policyv1.Policies) Level {
		return Level{Name: "target/t", Policies: p, Enforced: enforced}
	}
	for _, tt := range []struct {
		name     string
		levels   []Level
		want     *policyv1.Policies
		from     map[Kind]string
		enforced []string // levels whose authorization must admit too
	}{
		{"nothing", nil, &policyv1.Policies{}, map[Kind]string{}, nil},
		{"levels without policies", []Level{platform(nil, nil), target(&policyv1.Policies{}, nil)}, &policyv1.Policies{}, map[Kind]string{}, nil},
		{"one level", []Level{backend(authz("b"), nil)}, authz("b"), map[Kind]string{"mcpAuthorization": "backend/b"}, nil},
		{"the most specific wins", []Level{platform(authz("p"), nil), backend(authz("b"), nil), target(authz("t"), nil)}, authz("t"),
			map[Kind]string{"mcpAuthorization": "target/t"}, nil},
		{"kind by kind", []Level{backend(both(authz("b"), tlsTo("b")), nil), target(tlsTo("t"), nil)}, both(authz("b"), tlsTo("t")),
			map[Kind]string{"mcpAuthorization": "backend/b", "backendTLS": "target/t"}, nil},
		{"a kind whole, not field by field",
			[]Level{backend(&policyv1.Policies{BackendTls: &policyv1.BackendTls{Insecure: true}}, nil), target(tlsTo("t"), nil)}, tlsTo("t"),
			map[Kind]string{"backendTLS": "target/t"}, nil},
		{"enforced is not replaced below", []Level{backend(nil, tlsTo("b")), target(tlsTo("t"), nil)}, tlsTo("b"), map[Kind]string{"backendTLS": "backend/b"}, nil},
		{"enforced replaces above", []Level{platform(tlsTo("p"), nil), backend(nil, tlsTo("b"))}, tlsTo("b"), map[Kind]string{"backendTLS": "backend/b"}, nil},
		{"of two enforced the outermost wins", []Level{platform(nil, tlsTo("p")), backend(nil, tlsTo("b")), target(tlsTo("t"), nil)}, tlsTo("p"),
			map[Kind]string{"backendTLS": "platform"}, nil},
		{"enforced beside policies of one level", []Level{backend(tlsTo("ordinary"), tlsTo("enforced"))}, tlsTo("enforced"), map[Kind]string{"backendTLS": "backend/b"}, nil},
		{"enforced authorization stands beside", []Level{platform(nil, authz("p")), backend(authz("b"), nil), target(authz("t"), nil)}, authz("t"),
			map[Kind]string{"mcpAuthorization": "target/t"}, []string{"platform"}},
		{"all of it", []Level{platform(authz("x"), authz("p")), backend(nil, authz("b")), target(nil, authz("t"))}, authz("x"),
			map[Kind]string{"mcpAuthorization": "platform"}, []string{"platform", "backend/b", "target/t"}},
		{"alone", []Level{platform(nil, authz("p"))}, &policyv1.Policies{}, map[Kind]string{}, []string{"platform"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := Effective(tt.levels...)
			if diff := cmp.Diff(tt.want, got.Policies, protocmp.Transform()); diff != "" {
				t.Errorf("Policies (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(tt.from, got.From); diff != "" {
				t.Errorf("From (-want +got):\n%s", diff)
			}
			var enforced []string
			for _, e := range got.Enforced {
				enforced = append(enforced, e.Level)
			}
			if diff := cmp.Diff(tt.enforced, enforced); diff != "" {
				t.Errorf("Enforced (-want +got):\n%s", diff)
			}
		})
	}
}

// What holds whatever the levels are.
func TestEffectiveProperties(t *testing.T) {
	for seed := range 2000 {
		e := &editor{Rand: rand.New(rand.NewPCG(uint64(seed), 11))}
		levels := make([]Level, 1+e.IntN(6))
		for i := range levels {
			levels[i] = Level{Name: fmt.Sprint("level", i), Policies: e.some(), Enforced: e.rarely()}
		}
		before := fmt.Sprint(levels)
		got := Effective(levels...)
		if fmt.Sprint(levels) != before {
			t.Fatalf("seed %d: the levels were changed", seed)
		}
		cut := e.IntN(len(levels))
		upper := Effective(levels[:cut+1]...)
		for _, fd := range kinds {
			kind := fd.JSONName()
			from := slices.IndexFunc(levels, func(l Level) bool { return l.Name == got.From[kind] })
			if (from >= 0) != got.Policies.ProtoReflect().Has(fd) {
				t.Fatalf("seed %d: %s: From and Policies differ", seed, kind)
			}
			set := slices.ContainsFunc(levels, func(l Level) bool {
				return pick(l.Policies, fd) != nil || kind != authorization && pick(l.Enforced, fd) != nil
			})
			if set != (from >= 0) {
				t.Fatalf("seed %d: %s is set at a level: %v, in the outcome: %v", seed, kind, set, from >= 0)
			}
			if from < 0 {
				continue
			}
			outermost := slices.IndexFunc(levels, func(l Level) bool { return pick(l.Enforced, fd) != nil })
			if kind != authorization && outermost >= 0 {
				if from != outermost {
					t.Fatalf("seed %d: %s is of level %d, and enforced by level %d", seed, kind, from, outermost)
				}
				if outermost <= cut && upper.From[kind] != got.From[kind] {
					t.Fatalf("seed %d: %s, enforced by level %d, changes with what is below level %d", seed, kind, outermost, cut)
				}
			} else if slices.ContainsFunc(levels[from+1:], func(l Level) bool { return pick(l.Policies, fd) != nil }) {
				t.Fatalf("seed %d: %s of level %d stands over a more specific one", seed, kind, from)
			}
		}
		narrower := map[string]bool{}
		for _, e := range got.Enforced {
			narrower[e.Level] = true
		}
		for _, l := range levels {
			if narrower[l.Name] != (l.Enforced.GetMcpAuthorization() != nil) {
				t.Fatalf("seed %d: authorization enforced by %s got lost, or came from nowhere", seed, l.Name)
			}
		}
	}
}

// The two vocabularies of enums are one: serveBackend converts by number.
func TestEnumsAgree(t *testing.T) {
	for n, name := range adminv1.Backend_PrefixMode_name {
		if xdsv1.Backend_PrefixMode_name[n] != name {
			t.Errorf("prefix mode %d is %s and %s", n, name, xdsv1.Backend_PrefixMode_name[n])
		}
	}
	for n, name := range adminv1.Backend_FailureMode_name {
		if xdsv1.Backend_FailureMode_name[n] != name {
			t.Errorf("failure mode %d is %s and %s", n, name, xdsv1.Backend_FailureMode_name[n])
		}
	}
	for n, name := range adminv1.SessionScope_Share_name {
		if xdsv1.SessionScope_Share_name[n] != name {
			t.Errorf("session scope %d is %s and %s", n, name, xdsv1.SessionScope_Share_name[n])
		}
	}
	if len(adminv1.Backend_PrefixMode_name) != len(xdsv1.Backend_PrefixMode_name) || len(adminv1.Backend_FailureMode_name) != len(xdsv1.Backend_FailureMode_name) {
		t.Error("an enum has grown on one side")
	}
}
