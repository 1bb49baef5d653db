package dataplane

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// differCell is who talks to whom.
type differCell struct {
	name            string
	modern, bridged bool // the client's era; the targets have the other
	targets         []string
	proxies         int
}

func (c differCell) stateless() bool { return c.modern != c.bridged }

func differCells() (all []differCell) {
	for _, targets := range [][]string{{"only"}, {"alpha", "beta"}} {
		for _, proxies := range []int{1, 2} {
			for _, c := range []differCell{{name: "L→L"}, {name: "M→M", modern: true}, {name: "L→M", bridged: true}, {name: "M→L", modern: true, bridged: true}} {
				c.targets, c.proxies = targets, proxies
				c.name += fmt.Sprintf(", targets %d, proxies %d", len(targets), proxies)
				all = append(all, c)
			}
		}
	}
	return all
}

// What real clients see through a proxy, and real servers of them, is what they see without: random plans, of which each seed is one,
// run both ways. SLUICE_DIFFER=FROM-TO runs those seeds in each cell.
func TestDiffers(t *testing.T) {
	from, to := uint64(0), uint64(0)
	if span := os.Getenv("SLUICE_DIFFER"); span != "" {
		a, b, _ := strings.Cut(span, "-")
		from, _ = strconv.ParseUint(a, 10, 64)
		to, _ = strconv.ParseUint(b, 10, 64)
	}
	for _, c := range differCells() {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			for seed := from; seed <= to; seed++ {
				t.Run(fmt.Sprint(seed), func(t *testing.T) { c.differs(t, seed) })
			}
		})
	}
}

func (c differCell) differs(t *testing.T, seed uint64) {
	d := drawer{chance: chance{rand.New(rand.NewPCG(seed, 7))}, cell: c}
	version := "2026-07-28"
	if !c.modern {
		version = d.pick("2025-11-25", "2025-11-25", "2025-06-18", "2025-03-26", "2024-11-05")
	}
	plan := d.plan(12 + d.IntN(20))
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()

	direct := &runner{sides: map[string]*side{}}
	for _, name := range c.targets {
		s := newActor(t, name, c.modern)
		direct.servers = append(direct.servers, s)
		direct.sides[name] = newSide(s.URL, version)
	}
	if err := direct.run(ctx, plan); err != nil {
		t.Fatalf("without a proxy: %v", err)
	}

	through := &runner{sides: map[string]*side{}, prefix: len(c.targets) > 1}
	var at []string
	for _, name := range c.targets {
		s := newActor(t, name, c.stateless())
		through.servers = append(through.servers, s)
		at = append(at, name+"="+s.URL)
	}
	w := behind(at...)
	url := ""
	if c.proxies > 1 {
		w.peersWait = patience // a machine with too much to do is no proxy that is gone
		url = newGroup(t, w, c.proxies).URL
	} else {
		url = w.start(t).URL
	}
	one := newSide(url, version)
	for _, name := range c.targets {
		through.sides[name] = one
	}
	if err := through.run(ctx, plan); err != nil {
		t.Fatalf("through a proxy: %v", err)
	}

	plan = append([]op{{id: "begin", do: "begin"}, {id: "end", do: "end"}}, plan...)
	for _, o := range plan {
		if diff := cmp.Diff(c.saw(direct, o), c.saw(through, o)); diff != "" {
			t.Errorf("%s, %s\n(-direct +through):\n%s", version, o, diff)
		}
	}
	if diff := cmp.Diff(c.heard(direct), c.heard(through)); diff != "" {
		t.Errorf("on streams that stand (-direct +through):\n%s", diff)
	}
}

// saw is what both ends saw of an op, without what cannot be equal.
func (c differCell) saw(r *runner, o op) (lines []string) {
	for _, s := range r.distinct() {
		s.mu.Lock()
		lines = append(lines, c.normal(o, s.saw[o.id])...)
		s.mu.Unlock()
	}
	if len(c.targets) > 1 && o.target == "" { // one client with the work of two
		lines = slices.DeleteFunc(lines, func(l string) bool { return !strings.HasPrefix(l, "= ") })
		slices.Sort(lines)
		if !isList(o.do) {
			return slices.Compact(lines)
		}
		return lines
	}
	for _, x := range r.servers {
		x.mu.Lock()
		for _, l := range c.normal(o, x.saw[o.id]) {
			lines = append(lines, x.name+" saw "+l)
		}
		x.mu.Unlock()
	}
	return lines
}

func isList(do string) bool {
	return slices.Contains([]string{"tools", "prompts", "resources", "templates"}, do)
}

// heard are the messages on streams that stand. Their order is each target's own.
func (c differCell) heard(r *runner) (lines []string) {
	for _, s := range r.distinct() {
		s.mu.Lock()
		lines = append(lines, c.normal(op{}, s.heard)...)
		s.mu.Unlock()
	}
	slices.Sort(lines)
	return lines
}

// normalisation takes out of a line what is not the same with a proxy, and why it is not. It says whether the line stays.
type normalisation struct {
	cells []string // begin so; nil: all
	ops   string   // begin so; "": all
	why   string
	do    func(line string) (string, bool)
}

func without(pattern string) func(string) (string, bool) { return rewritten(pattern, "") }

func rewritten(pattern, with string) func(string) (string, bool) {
	re := regexp.MustCompile(pattern)
	return func(line string) (string, bool) { return re.ReplaceAllString(line, with), true }
}

func none(pattern string) func(string) (string, bool) {
	re := regexp.MustCompile(pattern)
	return func(line string) (string, bool) { return line, !re.MatchString(line) }
}

// decoded changes the JSON of a line, and writes it anew.
func decoded(change func(m map[string]any)) func(string) (string, bool) {
	return func(line string) (string, bool) {
		i := strings.Index(line, "{")
		if i < 0 {
			return line, true
		}
		d := json.NewDecoder(strings.NewReader(line[i:]))
		d.UseNumber()
		var m map[string]any
		if d.Decode(&m) != nil {
			return line, true
		}
		change(m)
		for _, at := range []string{"params", "result"} {
			if in, ok := m[at].(map[string]any); ok {
				change(in)
			}
		}
		return line[:i] + mustJSON(m), true
	}
}

var bridges = []string{"L→M", "M→L"}

var normalisations = []normalisation{
	{nil, "", "ids", rewritten(`"io.modelcontextprotocol/subscriptionId":("[^"]*"|\d+)`, `"io.modelcontextprotocol/subscriptionId":0`)},
	{[]string{"L→L"}, "", "the header came with 2025-06-18; go-sdk's client sends it in all revisions", without(` Mcp-Protocol-Version=(2024-11-05|2025-03-26)`)},
	{[]string{"several"}, "", "a URI that changes is written anew", decoded(func(map[string]any) {})},
	{[]string{"several"}, "begin", "what a proxy says of itself", decoded(func(m map[string]any) { delete(m, "instructions"); delete(m, "serverInfo") })},
	{nil, "cancel", "of what comes before a client leaves, some is lost with it", none(`^(http|<) `)},

	{bridges, "", "whether an answer is a stream is for whom gives it to say", none(`^http `)},
	{bridges, "", "headers are those of the target's era", without(`^Accept=\S* .*?(Content-Type=\S*|Mcp-[A-Z]\S*) \B`)},
	{bridges, "", "a session asks within a call, where the stateless era has another request", none(`^\{.*"inputResponses":`)},
	{bridges, "", "what the eras do not have in common, and what is left where it stood", decoded(func(m map[string]any) {
		delete(m, "resultType")
		delete(m, "ttlMs")
		delete(m, "cacheScope")
		if meta, ok := m["_meta"].(map[string]any); ok {
			for _, key := range []string{"protocolVersion", "clientInfo", "clientCapabilities", "logLevel", "serverInfo", "subscriptionId"} {
				delete(meta, "io.modelcontextprotocol/"+key)
			}
			if len(meta) == 0 {
				delete(m, "_meta")
			}
		}
	})},
	{nil, "ping", "a proxy answers for itself", none(`^(http|Accept=|\{) ?`)},
	{[]string{"L→M"}, "level", "each request says the level", none(`^\{`)},
	{[]string{"L→M"}, "subscribe", "a subscription is a stream at the target", none(`^\{`)},
	{[]string{"L→M"}, "unsubscribe", "a subscription is a stream at the target", none(`^\{`)},
	{[]string{"L→M"}, "cancel-asked", "a call that asked is over at a stateless target", none(`^cancelled$`)},
}

func (c differCell) normal(o op, lines []string) (out []string) {
	for _, line := range lines {
		keep := true
		if len(c.targets) > 1 {
			line = prefixes.ReplaceAllString(line, "")
		}
		for _, n := range normalisations {
			if n.cells != nil && !slices.ContainsFunc(n.cells, func(cell string) bool {
				return strings.HasPrefix(c.name, cell) || cell == "several" && len(c.targets) > 1
			}) || !strings.HasPrefix(o.do, n.ops) {
				continue
			}
			if line, keep = n.do(line); !keep {
				break
			}
		}
		if keep {
			out = append(out, c.questions(line)...)
		}
	}
	return ordered(out)
}

var prefixes = regexp.MustCompile(`\b(alpha|beta)(_|\+)`)

// questions makes a line of each question that a bridge puts together, or splits: which are asked at once is told by time alone.
func (c differCell) questions(line string) []string {
	if !strings.HasPrefix(c.name, "M→L") || !strings.HasPrefix(line, "< ") || !strings.Contains(line, `"inputRequests"`) {
		return []string{line}
	}
	var m struct {
		Result struct {
			InputRequests map[string]json.RawMessage // a session has no place for the key
		}
	}
	if err := json.Unmarshal([]byte(line[2:]), &m); err != nil {
		return []string{line + err.Error()}
	}
	var all []string
	for _, q := range m.Result.InputRequests {
		all = append(all, "asks "+string(q))
	}
	return all
}

// ordered sorts questions that come one after the other: servers ask them at once.
func ordered(lines []string) []string {
	isQuestion := regexp.MustCompile(`^asks |"method":"(elicitation/create|sampling/createMessage|roots/list)"`)
	for i := 0; i < len(lines); i++ {
		n := i
		for n < len(lines) && strings.HasPrefix(lines[n], lines[i][:1]) && isQuestion.MatchString(lines[n]) {
			n++
		}
		slices.Sort(lines[i:n])
		i = max(i, n-1)
	}
	return lines
}
