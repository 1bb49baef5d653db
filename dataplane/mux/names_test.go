package mux

import (
	"math/rand/v2"
	"testing"

	"github.com/sluicegate/sluice/dataplane/session"
	"github.com/sluicegate/sluice/dataplane/snapshot"
	xdsv1 "github.com/sluicegate/sluice/proto/gen/sluice/xds/v1"
)

func backendOf(mode xdsv1.Backend_PrefixMode, names ...string) *snapshot.Backend {
	b := &snapshot.Backend{Prefix: mode}
	for _, n := range names {
		b.Targets = append(b.Targets, &snapshot.Target{Name: n})
	}
	return b
}

// Whatever a target calls its tools and resources, the client's name leads back to that target and that name.
func TestNamesLeadBack(t *testing.T) {
	targets := []string{"a", "a-b", "b", "a-b-c", "z9"}
	tricky := []string{"", "_", "__", "b_c", "-b_c", "_b", "a_a", "a-b_x", "a", "a-b", "+", "a+b", "ünï_c", "x y", `"`, "\n", "a_", "_a-b_"}
	parts := []string{"a", "-", "b", "_", "+", "c", ":", "/", "a-b", ""}
	for range 2000 {
		s := ""
		for range rand.IntN(6) {
			s += parts[rand.IntN(len(parts))]
		}
		tricky = append(tricky, s)
	}
	x := &Request{Backend: backendOf(xdsv1.Backend_PREFIX_MODE_CONDITIONAL, targets...)}
	seen := map[string][2]string{}
	for _, target := range x.Backend.Targets {
		for _, name := range tricky {
			shown := x.clientName(target, name)
			if got, own := x.byPrefix(shown); got != target || own != name {
				t.Fatalf("tool %q of %q is shown as %q, which leads to %v, %q", name, target.Name, shown, got, own)
			}
			if other, taken := seen[shown]; taken && other != [2]string{target.Name, name} {
				t.Fatalf("%q stands for %v and for %q of %q", shown, other, name, target.Name)
			}
			seen[shown] = [2]string{target.Name, name}
			uri := x.clientURI(target, name)
			if got, own := x.byURI(uri); got != target || own != name {
				t.Fatalf("URI %q of %q is shown as %q, which leads to %v, %q", name, target.Name, uri, got, own)
			}
		}
	}
}

// Where nothing is prefixed, everything goes to the one target as it is, also what looks like a prefix.
func TestBareNames(t *testing.T) {
	only := &Request{Backend: backendOf(xdsv1.Backend_PREFIX_MODE_CONDITIONAL, "a")}
	// A session that began with `a` alone keeps a's names when `b` joins.
	kept := &Request{Backend: backendOf(xdsv1.Backend_PREFIX_MODE_CONDITIONAL, "a", "b"), Session: &session.State{Targets: []session.Target{{Name: "a"}}}}
	for _, uri := range []string{"", "a+x", "file:///x", "c+x"} {
		for name, x := range map[string]*Request{"one target": only, "another joined": kept} {
			if got, own := x.byURI(uri); got == nil || got.Name != "a" || own != uri {
				t.Errorf("%s: %q leads to %v, %q", name, uri, got, own)
			}
		}
	}
	if got, own := kept.byURI("b+x"); got == nil || got.Name != "b" || own != "x" {
		t.Errorf("the new target's URI leads to %v, %q", got, own)
	}
	if kept.prefixed() || only.prefixed() || kept.alone() != nil || only.alone() == nil {
		t.Error("prefixes where there are none")
	}
	// And one that began with two keeps the prefixes when one is left.
	left := &Request{Backend: backendOf(xdsv1.Backend_PREFIX_MODE_CONDITIONAL, "a"), Session: &session.State{Prefixed: true, Several: true}}
	if got, own := left.byPrefix("a_x"); got == nil || own != "x" || left.alone() != nil || !left.wraps(left.Backend.Targets[0]) {
		t.Errorf("a_x leads to %v, %q", got, own)
	}
}

func TestUnknownNames(t *testing.T) {
	x := &Request{Backend: backendOf(xdsv1.Backend_PREFIX_MODE_ALWAYS, "a", "a-b")}
	for _, name := range []string{"", "a", "c_x", "a-_x", "A_x", "a-b-_x", "_x"} {
		if got, own := x.byPrefix(name); got != nil {
			t.Errorf("%q leads to %q, %q", name, got.Name, own)
		}
		if got, own := x.byURI(name); got != nil {
			t.Errorf("URI %q leads to %q, %q", name, got.Name, own)
		}
	}
}
