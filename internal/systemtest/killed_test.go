package systemtest

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
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

	o := &outcomes{columns: flightColumns, reasons: cannotInFlight, seen: map[string]map[string]seen{}, words: map[string]string{}}
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
	got := o.String()
	fmt.Printf("%s\n%s", t.Name(), got)
	o.explained(t)
	if p.Clients != nil {
		golden(t, "inflight.golden", got, *update)
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
		if o.Stateless {
			o.Wrap = h.Wrap
		}
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
func eachClient(ctx context.Context, t *testing.T, p peers, cells map[string][]cell, report func(seen)) {
	var all sync.WaitGroup
	for name, cells := range cells {
		run := p.client(t, name)
		all.Go(func() {
			if err := run(ctx, cells, len(cells), report); err != nil && ctx.Err() == nil {
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
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	eachClient(ctx, t, p, cells, o.note)
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

// owned says whether the session of a row has an owner: an old client's, where the target is a child, an HTTP+SSE upstream, or bridged.
func owned(row string) bool {
	at := strings.Split(row, "\t")
	return at[1] != "2026-07-28" && at[2] != "stateful"
}

// afterDeath is how a call has to end when the first proxy dies.
func (o *outcomes) afterDeath(row, death string) string {
	switch {
	case o.why(row, death) != "":
		return "waits"
	case strings.HasPrefix(death, "entry"), owned(row):
		return "error"
	}
	return "result"
}

// cannotInFlight is why some clients are not told: there is nobody left who could.
var cannotInFlight = []reason{
	because(`ts-v[12] .* entry, streaming`, "the client waits on when a stream breaks off without an answer, whatever broke"),
}

// killed kills the first proxy while it is the entry, or the owner, of calls.
func killed(t *testing.T, p peers, o *outcomes, h *mcptest.Holds, f *fleet, base string) {
	type place struct{ row, death string }
	cells, places := map[string][]cell{}, map[string]place{} // by key, which is the cell's id
	for i, death := range deaths {
		for _, row := range o.rows {
			c := strings.Split(row, "\t")
			key := strings.Join(append(c, death), " ")
			places[key] = place{row, death}
			kind := "call"
			if strings.Contains(death, "streaming") {
				kind = "stream"
			}
			cells[c[0]] = append(cells[c[0]], cell{ID: key, Pin: c[1], URL: fmt.Sprint(base, "/", i%2, routeTo(c[2])), Timeout: 150_000, Probes: []cellProbe{
				{What: death, Kind: kind, Tool: "hold", Arguments: map[string]any{"key": key}, Want: "held"},
			}})
		}
	}
	var mu sync.Mutex // guards ended
	ended, changed := map[string]endedCall{}, make(chan struct{}, 1)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	finished := make(chan struct{})
	go func() {
		defer close(finished)
		eachClient(ctx, t, p, cells, func(s seen) {
			mu.Lock()
			defer mu.Unlock()
			if ctx.Err() == nil { // what is reported after that, the test itself broke off
				ended[s.Cell] = endedCall{s, time.Now()}
			}
			select {
			case changed <- struct{}{}:
			default:
			}
		})
	}()
	// await waits until all calls are so far, and names those that are not.
	await := func(what string, limit time.Duration, ok func(key string, done bool) bool) {
		late := time.After(limit)
		for {
			wake := h.Changed()
			var missing []string
			mu.Lock()
			for key := range places {
				if _, done := ended[key]; !ok(key, done) {
					missing = append(missing, key)
				}
			}
			mu.Unlock()
			if len(missing) == 0 {
				return
			}
			select {
			case <-wake:
			case <-changed:
			case <-late:
				t.Errorf("not within %v: %s: %s", limit, what, strings.Join(missing, "; "))
				return
			}
		}
	}
	must := func(key string) string { return o.afterDeath(places[key].row, places[key].death) }

	await("the call is held", time.Minute, func(key string, done bool) bool { return done || h.Runs(key) > 0 })
	at := time.Now()
	f.proxies[0].kill(syscall.SIGKILL)
	// The errors come while the target still holds.
	await("the client is told that its call is lost", 20*time.Second, func(key string, done bool) bool { return done || must(key) != "error" })
	h.LetAllGo()
	await("the call ends", 20*time.Second, func(key string, done bool) bool { return done || must(key) != "result" })
	cancel() // some wait for ever
	<-finished

	var slowest time.Duration
	for key, in := range places {
		e, done := ended[key]
		outcome := "waits"
		if done && e.OK {
			outcome = "result"
		} else if done {
			outcome = "error"
			slowest = max(slowest, e.at.Sub(at))
		}
		o.words[in.row+"\t"+in.death] = outcome
		if n := h.Runs(key); n != 1 {
			t.Errorf("%s: ran %d times: %s", key, n, e.Saw)
		}
		if want := must(key); outcome != want {
			t.Errorf("%s: %s, want %s: %s", key, outcome, want, e.Saw)
		}
		if done && !e.OK && e.at.Before(at) {
			t.Errorf("%s: failed before anything was killed: %s", key, e.Saw)
		}
	}
	t.Logf("%d calls in flight; the last error came %v after the kill", len(places), slowest.Round(time.Millisecond))
}

type endedCall struct {
	seen
	at time.Time
}

// A call that waits for its client's answers on a proxy that is killed is lost: the retry is told so by the other one, and the target
// is not asked again.
func TestParkedCallLost(t *testing.T) {
	var calls atomic.Int64
	target := mcptest.NewServer(t, mcptest.Options{Wrap: func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			body, err := io.ReadAll(r.Body)
			if err != nil {
				return
			}
			if strings.Contains(string(body), `"tools/call"`) {
				calls.Add(1)
			}
			r.Body = io.NopCloser(bytes.NewReader(body))
			next.ServeHTTP(w, r)
		})
	}})
	f := newFleet(t, 2, "private-network")
	f.apply(fmt.Sprintf("mcp:\n  port: %d\n  targets:\n  - name: old\n    mcp: {host: %q}\n", f.port, target.URL))
	call := func(proxy int, more string) answer {
		t.Helper()
		s := session{header: http.Header{"Mcp-Protocol-Version": {"2026-07-28"}, "Mcp-Method": {"tools/call"}, "Mcp-Name": {"elicit"}}}
		return s.do(t, "POST", f.url(proxy), `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"elicit","arguments":{},`+more+
			`"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientInfo":{"name":"raw","version":"1"},"io.modelcontextprotocol/clientCapabilities":{"elicitation":{}}}}}`)
	}
	asked := call(0, "")
	var asks struct {
		Result struct {
			InputRequests map[string]any
			RequestState  string
		}
	}
	if err := json.Unmarshal([]byte(asked.message()), &asks); err != nil || len(asks.Result.InputRequests) != 1 {
		t.Fatalf("want a question: %d %s (%v)", asked.status, asked.body, err)
	}
	var key string
	for key = range asks.Result.InputRequests {
	}
	f.proxies[0].kill(syscall.SIGKILL)
	got := call(1, fmt.Sprintf(`"requestState":%q,"inputResponses":{%q:{"action":"accept","content":{"name":"Ada"}}},`, asks.Result.RequestState, key))
	if got.status != 503 || !strings.Contains(got.body, "-32603") || !strings.Contains(got.body, "p0") {
		t.Errorf("the retry: %d %s; want 503, and -32603 naming the owner", got.status, got.body)
	}
	if n := calls.Load(); n != 1 {
		t.Errorf("the target was called %d times", n)
	}
}

// message is the last one of an answer, whether it is an event stream or not.
func (a answer) message() string {
	if at := strings.LastIndex(a.body, "data: "); at >= 0 {
		return strings.TrimSpace(a.body[at+len("data: "):])
	}
	return a.body
}
