package systemtest

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/sluicegate/sluice/internal/mcptest"
)

// Calls in flight, behind two proxies. A call that its client leaves is cancelled at the target, though what says so goes to the other
// proxy. Then one proxy is killed while it has a hand in calls: as the one that the client talks to, or as the owner of what the call
// needs. Those calls end in an error at once; all others in their result; and none has run twice, which a target that counts calls
// by their key shows.
//
// go-sdk's client is always there, real clients of others with `make matrix`.
func TestProxyKilled(t *testing.T) {
	h := mcptest.NewHolds(t)
	f := newFleet(t, 2, "private-network,stdio=*,env=*")
	f.apply(holdingConfig(t, f.port, h))
	hosts := []string{fmt.Sprint(f.host(0), ":", f.port), fmt.Sprint(f.host(1), ":", f.port)}
	var p peers
	if file := os.Getenv("SLUICE_MATRIX"); file != "" {
		p = peersOf(t)
	}

	o := &outcomes{columns: flightColumns, reasons: cannotInFlight, seen: map[string]map[string]seen{}}
	for _, c := range flightClients {
		if c.name != "go" && p.Clients == nil {
			continue
		}
		for _, pin := range c.pins {
			for _, target := range holdingTargets {
				o.rows = append(o.rows, strings.Join([]string{c.name, pin, target}, "\t"))
			}
		}
	}
	t.Run("cancelled", func(t *testing.T) { cancelled(t, p, o, h, newBalancer(t, hosts, nil).URL) })
	t.Run("killed", func(t *testing.T) { killed(t, p, o, h, f, newBalancer(t, hosts, callsAt).URL) })
	if t.Failed() {
		return
	}
	got := o.String()
	fmt.Printf("%s\n%s", t.Name(), got)
	o.explained(t)
	if p.Clients != nil {
		golden(t, "inflight.golden", got)
	}
}

var (
	flightClients = []struct {
		name string
		pins []string
	}{
		{"go", []string{"2025-11-25", "2026-07-28"}},
		{"fastmcp", []string{"legacy", "2026-07-28"}},
		{"ts-v1", []string{"2025-11-25"}},
		{"ts-v2", []string{"2025-11-25", "2026-07-28"}},
	}
	holdingTargets = []string{"stateful", "stateless", "sse", "stdio"}
	flightColumns  = append([]string{"cancels"}, deaths...)
	// deaths are how the first proxy can be in a call's way when it dies: as the one that the client talks to, or as the one that began
	// the session, and owns it where a session has an owner; before anything was answered, or in a stream that has begun.
	deaths = []string{"entry", "owner", "entry, streaming", "owner, streaming"}
)

// holdingConfig has a route to each of the targets that hold calls.
func holdingConfig(t *testing.T, port int, h *mcptest.Holds) string {
	t.Helper()
	child := h.Stdio()
	env, err := json.Marshal(child.Env)
	if err != nil {
		t.Fatal(err)
	}
	transports := map[string]string{"stdio": fmt.Sprintf("stdio: {cmd: %q, env: %s}", child.Path, env)}
	for name, o := range map[string]mcptest.Options{"stateful": {}, "stateless": {Stateless: true}, "sse": {SSE: true}} {
		o.Bare = true
		s := mcptest.NewServer(t, o)
		h.Add(s.MCP)
		kind := "mcp"
		if o.SSE {
			kind = "sse"
		}
		transports[name] = fmt.Sprintf("%s: {host: %q}", kind, s.URL)
	}
	var routes strings.Builder
	for _, name := range holdingTargets {
		fmt.Fprintf(&routes, "    - matches: [{path: {pathPrefix: %[1]s}}]\n      backends:\n      - {name: %[2]s, mcp: {targets: [{name: it, %[3]s}]}}\n", routeTo(name), name, transports[name])
	}
	return fmt.Sprintf("binds:\n- port: %d\n  listeners:\n  - routes:\n%s", port, routes.String())
}

// routeTo is a target's path. FastMCP's client speaks HTTP+SSE to any path with a part /sse.
func routeTo(target string) string { return "/to-" + target }

// eachClient runs the cells of each client, all at once.
func eachClient(t *testing.T, p peers, cells map[string][]cell, report func(seen)) {
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	var all sync.WaitGroup
	for name, cells := range cells {
		run := p.client(t, name)
		all.Go(func() {
			if err := run(ctx, cells, len(cells), report); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
}

// cancelled has each client leave a call that runs, and call again.
func cancelled(t *testing.T, p peers, o *outcomes, h *mcptest.Holds, base string) {
	cells := map[string][]cell{}
	for _, row := range o.rows {
		at := strings.Split(row, "\t")
		key := "left by " + strings.Join(at, " ")
		cells[at[0]] = append(cells[at[0]], cell{ID: row, Pin: at[1], URL: base + routeTo(at[2]), Timeout: 30_000, Probes: []cellProbe{
			{What: "leaves", Kind: "cancel", Tool: "hold", Arguments: map[string]any{"key": key}},
			{What: "goes on", Kind: "call", Tool: "runs", Arguments: map[string]any{"key": key}, Want: "1"},
		}})
	}
	eachClient(t, p, cells, o.note)
	for _, row := range o.rows {
		key := "left by " + strings.ReplaceAll(row, "\t", " ")
		s := seen{Cell: row, What: "cancels", OK: true}
		for _, what := range []string{"connects", "leaves", "goes on"} {
			if step, ok := o.seen[row][what]; ok && !step.OK {
				s.OK, s.Saw = false, what+": "+step.Saw
			}
		}
		for late := time.After(10 * time.Second); s.OK && h.Cancelled(key) == 0; {
			select {
			case <-h.Changed():
			case <-late:
				s.OK, s.Saw = false, "the target never heard of it"
			}
		}
		if n := h.Runs(key); s.OK && n != 1 {
			t.Errorf("%s: ran %d times", key, n)
		}
		o.note(s)
	}
}

// callsAt is the choice of a balancer whose paths begin with the proxy that calls of `hold` go to; all else goes to the other one.
func callsAt(r *http.Request, body []byte) int {
	at := int(r.URL.Path[1] - '0')
	r.URL.Path = r.URL.Path[2:]
	if strings.Contains(string(body), `"hold"`) {
		return at
	}
	return 1 - at
}

// killed kills the first proxy while it is the entry, or the owner, of calls.
func killed(t *testing.T, p peers, o *outcomes, h *mcptest.Holds, f *fleet, base string) {
	cells, keys := map[string][]cell{}, map[string]string{} // by cell
	for i, what := range deaths {
		for _, row := range o.rows {
			c := strings.Split(row, "\t")
			id := row + "\t" + what
			keys[id] = strings.ReplaceAll(id, "\t", " ")
			at, kind := i%2, "call"
			if strings.Contains(what, "streaming") {
				kind = "stream"
			}
			cells[c[0]] = append(cells[c[0]], cell{ID: id, Pin: c[1], URL: fmt.Sprint(base, "/", at, routeTo(c[2])), Timeout: 120_000, Probes: []cellProbe{
				{What: what, Kind: kind, Tool: "hold", Arguments: map[string]any{"key": keys[id]}, Want: "held"},
			}})
		}
	}
	var killedAt atomic.Int64
	var mu sync.Mutex // guards ended
	ended, changed := map[string]endedCall{}, make(chan struct{}, 1)
	finished := make(chan struct{})
	go func() {
		defer close(finished)
		eachClient(t, p, cells, func(s seen) {
			mu.Lock()
			defer mu.Unlock()
			ended[s.Cell] = endedCall{s, time.Since(time.Unix(0, killedAt.Load()))}
			select {
			case changed <- struct{}{}:
			default:
			}
		})
	}()
	count := func(of func(id string) bool) (n int) {
		mu.Lock()
		defer mu.Unlock()
		for id := range keys {
			if of(id) {
				n++
			}
		}
		return n
	}
	await := func(what string, limit time.Duration, ok func() bool) bool {
		for late := time.After(limit); !ok(); {
			select {
			case <-h.Changed():
			case <-changed:
			case <-late:
				t.Logf("not within %v: %s", limit, what)
				return false
			}
		}
		return true
	}
	if !await("all calls run", time.Minute, func() bool {
		return count(func(id string) bool { return h.Runs(keys[id]) > 0 || ended[id].What != "" }) == len(keys)
	}) {
		t.Error("not all calls were begun")
	}
	killedAt.Store(time.Now().UnixNano())
	f.proxies[0].kill(syscall.SIGKILL)
	// Whoever the first proxy had a hand in fails while the target still holds.
	await("errors of all that must fail", 10*time.Second, func() bool {
		return count(func(id string) bool { return ended[id].What != "" || o.survives(id) }) == len(keys)
	})
	h.LetAllGo()
	<-finished

	var slowest time.Duration
	for id, key := range keys {
		cut := strings.LastIndexByte(id, '\t')
		row, what := id[:cut], id[cut+1:]
		e, ok := ended[id]
		if n := h.Runs(key); n > 1 {
			t.Errorf("%s: ran %d times", key, n)
		} else if n == 0 {
			t.Errorf("%s: never ran: %s", key, e.Saw)
		}
		if !ok {
			t.Errorf("%s: no outcome", key)
			continue
		}
		if !e.OK && e.after > slowest {
			slowest = e.after
		}
		o.note(seen{Cell: row, What: what, OK: e.OK, Saw: e.Saw})
		fmt.Printf("%s: %v after %v: %s\n", key, e.OK, e.after.Round(time.Millisecond), e.Saw)
	}
	t.Logf("the last error came %v after the kill", slowest.Round(time.Millisecond))
}

type endedCall struct {
	seen
	after time.Duration // since the kill
}

// survives says whether a call is expected to come to its end.
func (o *outcomes) survives(id string) bool {
	cut := strings.LastIndexByte(id, '\t')
	return o.why(id[:cut], id[cut+1:]) == ""
}

var cannotInFlight = []reason{}

var _ = slices.Contains[[]string]
