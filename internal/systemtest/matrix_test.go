package systemtest

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
)

// The matrix: every client at every revision, or era, that it can be pinned to, with every target. A cell lists and calls, it
// elicits, samples and asks for roots where both ends can, and it hears of updates. What a cell cannot, `cannot` says why;
// the rest must work, through one proxy and through two of which each request takes the other one.
//
// It needs real peers: `make matrix` (interop/matrix.sh). The outcome is testdata/matrix.golden; matrix.sh -update rewrites it.
func TestMatrix(t *testing.T) {
	matrix{"matrix.golden", matrixClients, matrixTargets, matrixColumns, cannot}.test(t)
}

// matrix is which clients meet which targets, what they try there, and why some cannot.
type matrix struct {
	golden  string // the outcome, in testdata
	clients []matrixClient
	targets []matrixTarget
	columns []string
	cannot  []reason
}

func (m matrix) test(t *testing.T) {
	p := peersOf(t)
	f := newFleet(t, 2, "private-network,stdio=*,env=*")
	transport := func(name string) string {
		if p.Targets[name] == "" {
			t.Fatalf("no target %q among the peers", name)
		}
		return p.Targets[name]
	}
	var routes strings.Builder
	for _, target := range m.targets {
		targets := "{name: it, " + transport(cmp.Or(target.peer, target.name)) + "}"
		if target.beside != "" {
			targets += ", {name: other, " + transport(target.beside) + "}"
		}
		fmt.Fprintf(&routes, "    - matches: [{path: {pathPrefix: %s}}]\n      backends:\n      - name: %s\n        mcp: {targets: [%s]}\n", target.path(), target.path()[1:], targets)
	}
	f.apply(fmt.Sprintf("binds:\n- port: %d\n  listeners:\n  - routes:\n%s", f.port, routes.String()))
	hosts := []string{fmt.Sprint(f.host(0), ":", f.port), fmt.Sprint(f.host(1), ":", f.port)}
	for _, way := range []struct{ name, url string }{
		{"one-proxy", "http://" + hosts[0]},
		{"round-robin", newBalancer(t, hosts, nil).URL},
	} {
		t.Run(way.name, func(t *testing.T) {
			outcomes := m.run(t, p, way.url)
			got := outcomes.String()
			fmt.Printf("%s\n%s", t.Name(), got)
			outcomes.explained(t)
			golden(t, m.golden, got, *update && way.name == "one-proxy") // the other must equal it
		})
	}
}

// golden compares with a file of testdata, after it rewrote that if it should.
func golden(t *testing.T, name, got string, rewrite bool) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if rewrite && !t.Failed() {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := gocmp.Diff(strings.Split(string(want), "\n"), strings.Split(got, "\n")); diff != "" {
		t.Errorf("%s differs (-want +got):\n%s", name, diff)
	}
}

// peers is what interop/matrix.sh installed and started.
type peers struct {
	Targets map[string]string   // a target's transport, in YAML
	Clients map[string][]string // a client's command, but for go-sdk's, which is in this process
}

func peersOf(t *testing.T) peers {
	t.Helper()
	file := os.Getenv("SLUICE_MATRIX")
	if file == "" {
		t.Skip("needs real peers: make matrix")
	}
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var p peers
	if err := json.Unmarshal(data, &p); err != nil {
		t.Fatal(err)
	}
	return p
}

func (p peers) client(t *testing.T, name string) cellClient {
	if name == "go" {
		return goCells
	}
	if p.Clients[name] == nil {
		t.Fatalf("no client %q among the peers", name)
	}
	return commandCells(t, name, p.Clients[name])
}

type matrixClient struct {
	name     string
	pins     []string
	parallel int
}

// matrixClients are the clients and what each can be pinned to. TypeScript SDK v1 cannot be pinned: it is at 2025-11-25. `sse` is the
// session era over HTTP+SSE, the transport of 2024-11-05.
var matrixClients = []matrixClient{
	{"go", []string{"2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25", "2026-07-28", "sse"}, 4},
	{"fastmcp", []string{"sse", "legacy", "auto", "2026-07-28"}, 4},
	{"ts-v1", []string{"sse", "2025-11-25"}, 4},
	{"ts-v2", []string{"2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25", "auto", "2026-07-28"}, 4},
	{"inspector", []string{"sse", "legacy", "auto", "modern"}, 2}, // a process for each probe
}

// matrixTarget is a target and what can be tried there.
type matrixTarget struct {
	name   string
	elicit map[string]any
	// Of their URIs and arguments KEY is the cell's own.
	probes []cellProbe
	// Peer is what it is called among the peers. If empty, as here.
	peer string
	// Beside is another of the peers, behind the same endpoint. If empty, none.
	beside string
}

func (m matrixTarget) path() string { return "/" + strings.ReplaceAll(m.name, " ", "-") }

// of are its probes for one cell: with its key, and the names that the endpoint gives to what is the target's.
func (m matrixTarget) of(key string) []cellProbe {
	probes := slices.Clone(m.probes)
	for i := range probes {
		p := &probes[i]
		p.URI = strings.ReplaceAll(p.URI, "KEY", key)
		p.Arguments = maps.Clone(p.Arguments)
		for name, v := range p.Arguments {
			if s, ok := v.(string); ok {
				p.Arguments[name] = strings.ReplaceAll(s, "KEY", key)
			}
		}
		if m.beside == "" {
			continue
		}
		if p.URI != "" {
			p.URI = "it+" + p.URI
		}
		if p.Tool != "" && p.Kind != "pages" {
			p.Tool = "it_" + p.Tool
		}
	}
	return probes
}

var (
	none = map[string]any{}

	everythingProbes = []cellProbe{
		{What: "lists", Kind: "list", Tool: "echo"},
		{What: "calls", Kind: "call", Tool: "echo", Arguments: map[string]any{"message": "hello"}, Want: "hello"},
		{What: "elicits", Kind: "call", Tool: "trigger-elicitation-request", Arguments: none, Want: "Ada"},
		{What: "samples", Kind: "call", Tool: "trigger-sampling-request", Arguments: map[string]any{"prompt": "What is the capital of France?", "maxTokens": 10}, Want: "Paris"},
		{What: "roots", Kind: "call", Tool: "get-roots-list", Arguments: none, Want: "file:///work"},
		{What: "updates", Kind: "update", URI: "demo://resource/dynamic/text/1", Tool: "toggle-subscriber-updates", Timeout: 12_000}, // every 5 s
	}
	matrixTargets = []matrixTarget{
		{name: "go stateful", elicit: map[string]any{"username": "Ada"}, probes: []cellProbe{
			{What: "lists", Kind: "list", Tool: "test_simple_text"},
			{What: "calls", Kind: "call", Tool: "test_simple_text", Arguments: none, Want: "simple text"},
			{What: "elicits", Kind: "call", Tool: "test_elicitation", Arguments: map[string]any{"message": "Who are you?"}, Want: "Ada"},
			{What: "samples", Kind: "call", Tool: "test_sampling", Arguments: map[string]any{"prompt": "What is the capital of France?"}, Want: "Paris"},
			{What: "roots", Kind: "call", Tool: "test_input_required_result_list_roots", Arguments: none, Want: "file:///work"},
			{What: "updates", Kind: "update", URI: "test://watched-resource"}, // every 3 s
		}},
		{name: "go stateless", elicit: map[string]any{"name": "Ada"}, probes: []cellProbe{
			{What: "lists", Kind: "list", Tool: "test_simple_text"},
			{What: "calls", Kind: "call", Tool: "test_simple_text", Arguments: none, Want: "simple text"},
			{What: "elicits", Kind: "call", Tool: "test_input_required_result_elicitation", Arguments: none, Want: "Hello, Ada!"},
			{What: "samples", Kind: "call", Tool: "test_input_required_result_sampling", Arguments: none, Want: "Paris"},
			{What: "roots", Kind: "call", Tool: "test_input_required_result_list_roots", Arguments: none, Want: "file:///work"},
			{What: "updates", Kind: "update", URI: "test://watched-resource"},
		}},
		{name: "everything http", elicit: map[string]any{"name": "Ada"}, probes: everythingProbes},
		{name: "everything sse", elicit: map[string]any{"name": "Ada"}, probes: everythingProbes},
		{name: "everything stdio", elicit: map[string]any{"name": "Ada"}, probes: everythingProbes},
		{name: "memory stdio", probes: []cellProbe{
			{What: "lists", Kind: "list", Tool: "read_graph"},
			{What: "calls", Kind: "call", Tool: "read_graph", Arguments: none, Want: "entities"},
		}},
		{name: "fastmcp", elicit: map[string]any{"name": "Ada"}, probes: []cellProbe{
			{What: "lists", Kind: "list", Tool: "greet"},
			{What: "calls", Kind: "call", Tool: "greet", Arguments: map[string]any{"name": "hello"}, Want: "hello"},
			{What: "elicits", Kind: "call", Tool: "ask", Arguments: none, Want: "Hello, Ada!"},
			{What: "samples", Kind: "call", Tool: "sample", Arguments: none, Want: "Paris"},
			{What: "roots", Kind: "call", Tool: "roots", Arguments: none, Want: "file:///work"},
		}},
	}
	matrixColumns = []string{"lists", "calls", "elicits", "samples", "roots", "updates"}
)

// outcomes are those of a matrix of cells, "client\tpin\ttarget".
type outcomes struct {
	columns []string
	rows    []string
	reasons []reason

	mu   sync.Mutex // guards seen
	seen map[string]map[string]seen

	words map[string]string // "row\tcolumn", where `yes` and `-` do not tell
}

// reason says why some cells cannot do something.
type reason struct {
	cells *regexp.Regexp // of "client pin target column"
	why   string
	times bool // it works at times, and is not tried
}

func because(cells, why string) reason {
	return reason{regexp.MustCompile("^(" + cells + ")$"), why, false}
}

// atTimes is [because] for what works at times.
func atTimes(cells, why string) reason {
	return reason{regexp.MustCompile("^(" + cells + ")$"), why, true}
}

func (o *outcomes) note(s seen) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.seen[s.Cell] == nil {
		o.seen[s.Cell] = map[string]seen{}
	}
	o.seen[s.Cell][s.What] = s
}

// why is why a cell cannot do what a column says, empty if nothing is known.
func (o *outcomes) why(row, column string) string { return o.reason(row, column).why }

func (o *outcomes) reason(row, column string) reason {
	for _, r := range o.reasons {
		if r.cells.MatchString(strings.ReplaceAll(row, "\t", " ") + " " + column) {
			return r
		}
	}
	return reason{}
}

// explained fails the test for each cell that cannot do what nobody knows a reason for, or can in spite of one.
func (o *outcomes) explained(t *testing.T) {
	t.Helper()
	for _, row := range o.rows {
		if s, ok := o.seen[row]["connects"]; ok {
			t.Errorf("%s: cannot connect: %s", row, s.Saw)
			continue
		}
		for _, column := range o.columns {
			if o.words[row+"\t"+column] != "" {
				continue
			}
			s, tried := o.seen[row][column]
			why := o.why(row, column)
			switch {
			case s.OK && why != "":
				t.Errorf("%s %s: works, though %s", row, column, why)
			case !s.OK && why == "" && tried:
				t.Errorf("%s %s: %s", row, column, s.Saw)
			case !s.OK && why == "":
				t.Errorf("%s %s: was not tried, and nobody knows why", row, column)
			}
		}
	}
}

// String is the table: tabs between columns, a row for each cell, the reasons last.
func (o *outcomes) String() string {
	var b strings.Builder
	line := func(row string, cols []string, why string) {
		at := strings.Split(row, "\t")
		fmt.Fprintf(&b, "%-9s\t%-10s\t%-16s", at[0], at[1], at[2])
		for i, c := range cols {
			fmt.Fprintf(&b, "\t%-*s", len(o.columns[i]), c)
		}
		b.WriteString(strings.TrimRight("\t"+why, "\t ") + "\n")
	}
	line("client\tpin\ttarget", o.columns, "why not")
	for _, row := range o.rows {
		var cols, whys []string
		for _, c := range o.columns {
			if word := o.words[row+"\t"+c]; word != "" && o.why(row, c) == "" {
				cols = append(cols, word)
				continue
			} else if word != "" {
				cols, whys = append(cols, word), append(whys, o.why(row, c))
				continue
			}
			if o.seen[row][c].OK {
				cols = append(cols, "yes")
				continue
			}
			cols = append(cols, "-")
			if why := o.why(row, c); !slices.Contains(whys, why) {
				whys = append(whys, why)
			}
		}
		line(row, cols, strings.Join(whys, "; "))
	}
	return b.String()
}

// run runs all cells against the routes at a base URL.
func (m matrix) run(t *testing.T, p peers, base string) *outcomes {
	o := &outcomes{columns: m.columns, reasons: m.cannot, seen: map[string]map[string]seen{}}
	turns, all := make(chan struct{}, 2), sync.WaitGroup{} // clients at a time
	begun := time.Now()
	for _, c := range m.clients {
		var cells []cell
		for _, pin := range c.pins {
			endpoint := "/mcp"
			if pin == "sse" {
				endpoint = "/sse"
			}
			for _, target := range m.targets {
				row := strings.Join([]string{c.name, pin, target.name}, "\t")
				o.rows = append(o.rows, row)
				probes := target.of(strings.NewReplacer("\t", "-", " ", "-", "/", "-").Replace(row + " " + t.Name()))
				if c.name == "inspector" { // its command line answers nothing and does not wait
					probes = probes[:2]
				}
				probes = slices.DeleteFunc(probes, func(p cellProbe) bool { return o.reason(row, p.What).times })
				cells = append(cells, cell{ID: row, Pin: pin, URL: base + target.path() + endpoint, Elicit: target.elicit, Probes: probes, Timeout: 30_000})
			}
		}
		run := p.client(t, c.name)
		all.Go(func() {
			turns <- struct{}{}
			defer func() { <-turns }()
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
			defer cancel()
			if err := run(ctx, cells, c.parallel, o.note); err != nil {
				t.Error(err)
			}
			t.Logf("%s: over after %v", c.name, time.Since(begun).Round(time.Second))
		})
	}
	all.Wait()
	return o
}

// cannot is why some cells cannot do something: one end or the other, never the gateway between.
var cannot = []reason{
	because(`inspector .* (elicits|samples|roots)`, "its command line answers no questions"),
	because(`inspector .* updates`, "its command line does not wait"),
	because(`.* memory stdio (elicits|samples|roots|updates)`, "the server asks nothing and has no resources"),
	because(`.* fastmcp updates`, "the server sends none"),
	because(`(go|fastmcp|ts-v2) (2026-07-28|auto) everything (http|sse|stdio) updates`,
		"the server sends updates in sessions that ask for them by a call, and an anonymous client of the stateless era has one for each request"),
	because(`go 2026-07-28 fastmcp roots`, "go-sdk's client cannot read a roots/list without params"),
}
