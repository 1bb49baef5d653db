package mux

import (
	"fmt"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sluicegate/sluice/dataplane/mcp"
	"github.com/sluicegate/sluice/dataplane/snapshot"
	"github.com/sluicegate/sluice/internal/policy"
	policyv1 "github.com/sluicegate/sluice/proto/gen/sluice/policy/v1"
	xdsv1 "github.com/sluicegate/sluice/proto/gen/sluice/xds/v1"
)

// passing is a gate of a target whose secrets are masked, and what came through it, with the time since it began.
func passing(t *testing.T) (*gate, func() []string) {
	t.Helper()
	compiled, err := policy.CompileTarget(&xdsv1.EffectivePolicy{Policies: &policyv1.Policies{Ai: &policyv1.Ai{PromptGuard: &policyv1.PromptGuard{
		Response: []*policyv1.Guard{{Guard: &policyv1.Guard_Regex{Regex: &policyv1.RegexGuard{Action: "mask", Rules: []*policyv1.RegexRule{{Rule: &policyv1.RegexRule_Builtin{Builtin: "secrets"}}}}}}},
	}}}}, policy.HTTP, policy.Resolver{})
	if err != nil {
		t.Fatal(err)
	}
	target := &snapshot.Target{Name: "a", Tenant: &snapshot.Owner{Name: "acme"}, Config: &xdsv1.Target{}, Policy: compiled}
	x := &Request{mux: New(Config{}), Backend: &snapshot.Backend{Targets: []*snapshot.Target{target}}, HTTP: httptest.NewRequest("POST", "/mcp", nil), Record: &Record{}}
	began := time.Now()
	var came []string
	g := x.gate(target, nil, func(ev mcp.Event) {
		text := string(ev.Data)
		for _, cut := range []string{`{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":1,"message":"`, `"}}`} {
			text = strings.Replace(text, cut, "", 1)
		}
		came = append(came, fmt.Sprint(time.Since(began).Milliseconds(), " ", text))
	})
	return g, func() []string {
		g.mu.Lock()
		defer g.mu.Unlock()
		return slices.Clone(came)
	}
}

func progress(text string) mcp.Event {
	return mcp.Event{Data: []byte(`{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":1,"message":"` + text + `"}}`), HasData: true}
}

const response = `{"jsonrpc":"2.0","id":1,"result":{}}`

// A message waits for what the next one may add, no longer than it must, and what follows it waits its turn.
func TestGateHolds(t *testing.T) {
	for name, tt := range map[string]struct {
		say  func(pass func(mcp.Event))
		want []string
	}{
		"alone": {func(pass func(mcp.Event)) {
			pass(progress("a"))
		}, []string{"200 a"}},
		"in time": {func(pass func(mcp.Event)) {
			pass(progress("AKIAIOSF"))
			time.Sleep(150 * time.Millisecond)
			pass(progress("ODNN7EXAMPLE"))
		}, []string{"200 <SECRET>", "350 <SECRET>"}},
		"too late for the first part": {func(pass func(mcp.Event)) {
			pass(progress("AKIAIOSF"))
			time.Sleep(time.Second)
			pass(progress("ODNN7EXAMPLE"))
		}, []string{"200 AKIAIOSF", "1200 <SECRET>"}},
		"what follows waits": {func(pass func(mcp.Event)) {
			pass(progress("AKIA"))
			pass(mcp.Event{Data: []byte(`{"jsonrpc":"2.0","method":"notifications/tools/list_changed"}`), HasData: true})
			pass(mcp.Event{ID: []byte("7"), HasID: true})
			time.Sleep(100 * time.Millisecond)
			pass(progress("IOSFODNN7EXAMPLE"))
		}, []string{"200 <SECRET>", `200 {"jsonrpc":"2.0","method":"notifications/tools/list_changed"}`, "200 ", "300 <SECRET>"}},
		"a response lets go": {func(pass func(mcp.Event)) {
			pass(progress("a"))
			pass(progress("b"))
			pass(mcp.Event{Data: []byte(response), HasData: true})
			time.Sleep(time.Second)
			pass(mcp.Event{Data: []byte(`{"jsonrpc":"2.0","method":"notifications/tools/list_changed"}`), HasData: true})
		}, []string{"0 a", "0 b", "0 " + response, `1000 {"jsonrpc":"2.0","method":"notifications/tools/list_changed"}`}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g, came := passing(t)
				tt.say(func(ev mcp.Event) {
					if err := g.pass(ev); err != nil {
						t.Fatal(err)
					}
				})
				time.Sleep(time.Second)
				synctest.Wait()
				if diff := cmp.Diff(tt.want, came()); diff != "" {
					t.Errorf("(-want +got):\n%s", diff)
				}
				g.close()
			})
		})
	}
}

// A target that talks without end takes no more memory than the bounds, and loses nothing.
func TestGateIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, came := passing(t)
		const n = 10_000
		for i := range n {
			if err := g.pass(progress(fmt.Sprint("line ", i))); err != nil {
				t.Fatal(err)
			}
			g.mu.Lock()
			if len(g.held) > maxHeld || g.size > maxSize || len(g.trails) > maxTrails {
				t.Fatalf("holds %d messages of %d bytes, %d trails", len(g.held), g.size, len(g.trails))
			}
			g.mu.Unlock()
		}
		g.close()
		if got := came(); len(got) != n || got[n-1] != fmt.Sprint("0 line ", n-1) {
			t.Errorf("%d of %d came", len(got), n)
		}
		big := strings.Repeat("x", maxSize)
		for range 3 {
			if err := g.pass(progress(big)); err != nil {
				t.Fatal(err)
			}
		}
		if g.size > maxSize || len(g.held) > 1 {
			t.Errorf("holds %d messages of %d bytes", len(g.held), g.size)
		}
	})
}
