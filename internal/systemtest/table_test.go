package systemtest

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sluicegate/sluice/internal/mcptest"
	"github.com/sluicegate/sluice/internal/policy"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// The table of policies: kind × level × kind of target × era of the client. Each cell is enforced, as real clients and
// servers see it, or refused by validate with a reason and its place; or the kind is inherited where it means nothing,
// which validate says, and then the target works as if it were not there. There is no fourth.
//
// It walks the registry: a kind without a probe fails. Eras that a target does not speak are cells of their own. The outcome is testdata/table.golden; go test -run TestTable -update rewrites it.
func TestTable(t *testing.T) {
	table := newTable(t)
	for _, k := range policy.Kinds() {
		pr, ok := table.probes[k.Name]
		if !ok {
			t.Errorf("kind %s has no probe: add one to probes, or nobody knows whether it works", k.Name)
			continue
		}
		t.Run(k.Name, func(t *testing.T) { table.walk(t, k, pr) })
	}
	for name := range table.probes {
		if !slices.ContainsFunc(policy.Kinds(), func(k policy.KindInfo) bool { return k.Name == name }) {
			t.Errorf("a probe for %s, which is no kind", name)
		}
	}
	if t.Failed() || strings.Contains(flag.Lookup("test.run").Value.String(), "/") {
		return
	}
	golden := filepath.Join("testdata", "table.golden")
	if *update {
		if err := os.WriteFile(golden, []byte(table.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), table.String()); diff != "" {
		t.Errorf("the table has changed (-want +got):\n%s", diff)
	}
}

var (
	tableLevels = []policy.Level{policy.AtPlatform, policy.AtTenant, policy.AtListener, policy.AtRoute, policy.AtBackend, policy.AtTarget}
	tableEras   = []string{"2025-11-25", "2026-07-28"}
)

// column is a kind of target and the era of its client.
type column struct{ kind, era string }

func (c column) transport() string { return strings.TrimSuffix(c.kind, "-stateless") }

// name is the column's in names of objects, paths and hosts.
func (c column) name() string {
	if c.era == "" {
		return c.kind
	}
	return c.kind + "-" + c.era[:4]
}

// table is one fleet, the peers, and what came out.
type table struct {
	*fleet
	probes  map[string]probe
	peers   map[bool]map[column]*peer // by whether they are secure
	columns []column
	unknown map[column]string // eras that a kind of target does not speak: what the client is told

	mu       sync.Mutex        // guards outcomes
	outcomes map[string]string // "kind level target era"
}

func newTable(t *testing.T) *table {
	w := &table{fleet: newFleet(t, 1, "private-network,stdio,env=*"), probes: probes(t), peers: map[bool]map[column]*peer{false: {}, true: {}},
		unknown: map[column]string{}, outcomes: map[string]string{}}
	for _, kind := range peerKinds {
		eras := tableEras
		if kind == "a2a" {
			eras = []string{""} // agents have none
		}
		for _, era := range eras {
			c := column{kind, era}
			w.columns = append(w.columns, c)
			for _, secure := range []bool{false, true} {
				w.peers[secure][c] = newPeer(t, kind, secure)
			}
		}
	}
	// What each target speaks without any policy.
	w.apply(w.config(t, w.columns, nil, "", nil, probe{}))
	for _, c := range w.columns {
		got := w.caller(c, "control", "").say(t, "hi")
		switch says := reasonOf(got); {
		case got.says("hi"):
		case strings.Contains(says, "does not speak"):
			w.unknown[c] = says
		default:
			t.Fatalf("%s without a policy: %d %s", c.name(), got.status, got.body)
		}
	}
	return w
}

// reasonOf is the message of an error.
func reasonOf(a answer) string {
	found := regexp.MustCompile(`"message":"((?:[^"\\]|\\.)*)"`).FindStringSubmatch(a.body)
	if found == nil {
		return a.body
	}
	return strings.ReplaceAll(found[1], `\"`, `"`)
}

// walk fills the cells of one kind.
func (w *table) walk(t *testing.T, k policy.KindInfo, pr probe) {
	live := map[policy.Level][]column{}
	for _, level := range tableLevels {
		for _, kind := range peerKinds {
			eras := w.erasOf(kind)
			c := column{kind, eras[0]}
			outcome := w.refusal(t, level, c, k, pr)
			for _, c.era = range eras {
				switch {
				case outcome != "":
					w.note(k, level, c, outcome)
				case w.unknown[c] != "" && !pr.agent(c):
					w.note(k, level, c, "era not spoken: "+w.unknown[c])
				default:
					live[level] = append(live[level], c)
				}
			}
		}
	}
	w.below(t, k, pr, live)
	for _, level := range []policy.Level{policy.AtPlatform, policy.AtTenant} {
		w.above(t, k, pr, level, live[level])
	}
}

func (w *table) erasOf(kind string) []string {
	var eras []string
	for _, c := range w.columns {
		if c.kind == kind {
			eras = append(eras, c.era)
		}
	}
	return eras
}

// refusal is what validate says of a cell that is to be nothing but that, else "".
func (w *table) refusal(t *testing.T, level policy.Level, c column, k policy.KindInfo, pr probe) string {
	out := w.validate(t, level, c, k.Name, pr.policy(c.transport()), pr)
	for line := range strings.Lines(out) {
		found := regexp.MustCompile(`^cell\.yaml:\d+:\d+: (note: |warning: )?(.*)$`).FindStringSubmatch(strings.TrimSpace(line))
		switch {
		case found == nil:
			t.Errorf("%s at %v on %s: validate says something without a place: %s", k.Name, level, c.kind, line)
		case found[1] == "":
			if !strings.Contains(found[2], k.Name) {
				t.Errorf("%s at %v on %s is refused without being named: %s", k.Name, level, c.kind, line)
			}
			return "refused: " + found[2]
		}
	}
	return ""
}

// notApplicable tells whether validate says that a kind is inherited by a target on which it means nothing.
func (w *table) notApplicable(t *testing.T, level policy.Level, c column, k policy.KindInfo, pr probe) bool {
	out := w.validate(t, level, c, k.Name, pr.policy(c.transport()), pr)
	return strings.Contains(out, "note: ") && strings.Contains(out, k.Name+" of ") && strings.Contains(out, "does not apply here")
}

// below walks the levels of one file: listener, route, backend and target, and the control without the policy.
func (w *table) below(t *testing.T, k policy.KindInfo, pr probe, live map[policy.Level][]column) {
	levels := []policy.Level{policy.AtListener, policy.AtRoute, policy.AtBackend, policy.AtTarget}
	var controls []column
	for _, c := range w.columns {
		if slices.ContainsFunc(tableLevels, func(l policy.Level) bool { return slices.Contains(live[l], c) }) {
			controls = append(controls, c)
		}
	}
	if len(controls) == 0 {
		return
	}
	w.fleet.t = t
	w.apply(w.config(t, controls, levels, k.Name, live, pr))
	t.Run("cells", func(t *testing.T) {
		for _, c := range controls {
			t.Run(c.name(), func(t *testing.T) {
				t.Parallel()
				if !slices.Contains(pr.inherent, c.transport()) {
					if in, saw := pr.inEffect(t, w.caller(c, "control", ""), w.peer(c, pr)); in {
						t.Errorf("without the policy it seems to be in effect: %d %v %s", saw.status, saw.header, saw.body)
					}
				}
				for _, level := range levels {
					if slices.Contains(live[level], c) {
						host := ""
						if level == policy.AtListener {
							host = c.name()
						}
						w.cell(t, k, pr, level, c, w.caller(c, level.String(), host))
					}
				}
			})
		}
	})
}

// above walks a level that is a document of its own, over everything. One kind may need another policy for each transport.
func (w *table) above(t *testing.T, k policy.KindInfo, pr probe, level policy.Level, columns []column) {
	groups := map[string][]column{}
	for _, c := range columns {
		p := pr.policy(c.transport())
		groups[p] = append(groups[p], c)
	}
	for p, columns := range groups {
		w.fleet.t = t
		w.apply(w.config(t, columns, nil, k.Name, nil, pr))
		document := func(policies string) string {
			return write(t, "level.yaml", fmt.Sprintf("kind: %s\nname: %s\nspec: {policies: {%s}}\n", title(level), level, policies))
		}
		w.must("apply", "-f", document(k.Name+": "+p), "--wait", "--timeout", "30s")
		t.Run(level.String(), func(t *testing.T) {
			for _, c := range columns {
				t.Run(c.name(), func(t *testing.T) {
					t.Parallel()
					w.cell(t, k, pr, level, c, w.caller(c, "control", ""))
				})
			}
		})
		w.fleet.t = t
		w.must("apply", "-f", document(""), "--wait", "--timeout", "30s")
	}
}

func title(l policy.Level) string { return strings.ToUpper(l.String()[:1]) + l.String()[1:] }

// cell looks at one cell that validate lets pass.
func (w *table) cell(t *testing.T, k policy.KindInfo, pr probe, level policy.Level, c column, at caller) {
	if w.notApplicable(t, level, c, k, pr) {
		if got := at.say(t, "hi"); !got.says("hi") {
			t.Errorf("%v: what does not apply is in the way: %d %s", level, got.status, got.body)
		}
		w.note(k, level, c, "not applicable: inherited where it means nothing, and validate says so")
		return
	}
	in, saw := pr.inEffect(t, at, w.peer(c, pr))
	if !in {
		t.Errorf("%v: neither refused nor in effect: %d %v %s", level, saw.status, saw.header, saw.body)
		return
	}
	w.note(k, level, c, "enforced")
}

// peer is the target of a column for a probe.
func (w *table) peer(c column, pr probe) *peer {
	p := w.peers[pr.secure && c.kind != "stdio"][c]
	if pr.agent(c) {
		own, agent := *p, w.peers[false][column{kind: "a2a"}]
		own.host, own.requests = agent.host, agent.requests
		return &own
	}
	return p
}

func (w *table) caller(c column, level, listener string) caller {
	host := "plain.test"
	if listener != "" {
		host = listener + ".test"
	}
	return caller{url: w.endpoint(0, "/"+level+"-"+c.name()), host: host, era: c.era}
}

// transportYAML is the transport of a column's target.
func (w *table) transportYAML(t *testing.T, c column, pr probe, name string) string {
	p := w.peer(c, pr)
	if pr.target != nil {
		return pr.target(t, p, name)
	}
	return p.yaml()
}

// config has a listener plain.test with a route, backend and target for the control and each level of each column, and for
// the listener's level a listener for each column.
func (w *table) config(t *testing.T, controls []column, levels []policy.Level, kind string, live map[policy.Level][]column, pr probe) string {
	var routes, listeners, backends strings.Builder
	add := func(c column, level string) {
		name := level + "-" + c.name()
		own := func(at policy.Level) string {
			if level != at.String() {
				return ""
			}
			return fmt.Sprintf("policies: {%s: %s}", kind, pr.policy(c.transport()))
		}
		comma := func(s string) string {
			if s != "" {
				s = ", " + s
			}
			return s
		}
		route := fmt.Sprintf("    - {name: %s, matches: [{path: {pathPrefix: /%[1]s}}], backends: [{backend: %[1]s}]%s}\n", name, comma(own(policy.AtRoute)))
		if level == policy.AtListener.String() {
			fmt.Fprintf(&listeners, "  - name: %s\n    hostname: %[1]s.test\n    %s\n    routes:\n%s", c.name(), own(policy.AtListener), route)
		} else {
			routes.WriteString(route)
		}
		fmt.Fprintf(&backends, "- name: %s\n  mcp:\n", name)
		if p := own(policy.AtBackend); p != "" {
			fmt.Fprintf(&backends, "    %s\n", p)
		}
		fmt.Fprintf(&backends, "    targets: [{name: %s, %s%s}]\n", c.name(), w.transportYAML(t, c, pr, name), comma(own(policy.AtTarget)))
	}
	for _, c := range controls {
		add(c, "control")
	}
	for _, level := range levels {
		for _, c := range live[level] {
			add(c, level.String())
		}
	}
	return fmt.Sprintf("binds:\n- port: %d\n  listeners:\n  - name: plain\n    hostname: plain.test\n    routes:\n%s%sbackends:\n%s", w.port, routes.String(), listeners.String(), backends.String())
}

// validate is what `sluice validate` says of one cell by itself, as documents.
func (w *table) validate(t *testing.T, level policy.Level, c column, kind, value string, pr probe) string {
	own := func(at policy.Level) string {
		if at != level {
			return ""
		}
		return fmt.Sprintf("policies: {%s: %s}", kind, value)
	}
	comma := func(at policy.Level) string {
		if at != level {
			return ""
		}
		return ", " + own(at)
	}
	documents := fmt.Sprintf(`kind: Platform
name: platform
spec: {%s}
---
kind: Tenant
name: tenant
spec: {%s}
---
kind: Listener
name: l
spec: {port: 3000%s}
---
kind: Route
name: r
spec: {listener: l, backends: [{backend: b}]%s}
---
kind: Backend
name: b
spec: {%s}
---
kind: Target
name: b/t
spec: {index: 0, %s%s}
`, own(policy.AtPlatform), own(policy.AtTenant), comma(policy.AtListener), comma(policy.AtRoute), own(policy.AtBackend), w.transportYAML(t, c, pr, "validated"), comma(policy.AtTarget))
	file := write(t, "cell.yaml", documents)
	_, stderr, code := admin{t, nil}.run("validate", "-f", file)
	if code != 0 && code != 2 {
		t.Fatalf("validate: exit %d\n%s\n%s", code, stderr, documents)
	}
	return strings.ReplaceAll(stderr, filepath.Dir(file)+"/", "")
}

func (w *table) note(k policy.KindInfo, level policy.Level, c column, outcome string) {
	outcome = strings.NewReplacer(mcptest.Stdio("serve").Path, "PROGRAM").Replace(outcome)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.outcomes[strings.Join([]string{k.Name, level.String(), c.kind, c.era}, " ")] = outcome
}

// String is the table as text: a grid for each kind, and beneath it what is said in full.
func (w *table) String() string {
	var b strings.Builder
	b.WriteString("Rewritten by: go test ./internal/systemtest -run 'TestTable$' -update\n")
	for _, k := range policy.Kinds() {
		fmt.Fprintf(&b, "\n%-22s", k.Name)
		for _, c := range w.columns {
			fmt.Fprintf(&b, " %-18s", c.name())
		}
		var said []string
		for _, level := range tableLevels {
			fmt.Fprintf(&b, "\n  %-20s", level)
			for _, c := range w.columns {
				outcome, reason, _ := strings.Cut(w.outcomes[strings.Join([]string{k.Name, level.String(), c.kind, c.era}, " ")], ": ")
				if reason != "" {
					if !slices.Contains(said, reason) {
						said = append(said, reason)
					}
					outcome = fmt.Sprintf("%s [%d]", outcome, slices.Index(said, reason)+1)
				}
				fmt.Fprintf(&b, " %-18s", outcome)
			}
		}
		b.WriteByte('\n')
		for i, reason := range said {
			fmt.Fprintf(&b, "  [%d] %s\n", i+1, reason)
		}
	}
	return regexp.MustCompile(` +\n`).ReplaceAllString(b.String(), "\n")
}
