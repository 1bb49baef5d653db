package policy

import (
	"fmt"
	"strconv"
	"strings"
	"testing"

	"github.com/google/cel-go/common/types/ref"
)

// hostileArguments are large, each in a way of its own. More would take longer to read, and no longer to judge.
func hostileArguments() map[string]string {
	const room = 1 << 20
	list := func(element string) string {
		return "[" + strings.TrimSuffix(strings.Repeat(element+",", room/2/(len(element)+1)), ",") + "]"
	}
	var keys strings.Builder
	for i := 0; keys.Len() < room; i++ {
		fmt.Fprintf(&keys, `"k%d":%d,`, i, i)
	}
	half := strings.Repeat("a", room/2)
	return map[string]string{
		"numbers":       `{"l":` + list("1") + `,"m":` + list("1") + `,"s":"a","t":"a"}`,
		"lists":         `{"l":` + list("[[1]]") + `,"m":` + list("[[1]]") + `,"s":"a","t":"a"}`,
		"strings":       `{"l":` + list(`"aaaaaaaa"`) + `,"m":` + list(`"aaaaaaaa"`) + `,"s":"a","t":"a"}`,
		"keys":          `{"l":{` + strings.TrimSuffix(keys.String(), ",") + `},"m":{},"s":"a","t":"a"}`,
		"two strings":   `{"l":[1,2,3],"m":[1],"s":"` + half + `","t":"` + half + `"}`,
		"a long key":    `{"l":{"` + half + `":1},"m":{},"s":"` + half + `","t":"a"}`,
		"list and text": `{"l":[` + strings.TrimSuffix(strings.Repeat("1,", room/4), ",") + `],"m":[],"s":"` + half + `","t":"a"}`,
	}
}

var hostileRules = []string{
	// Loops in loops, over what a stranger sent.
	`mcp.tool.arguments.l.all(a, mcp.tool.arguments.l.all(b, mcp.tool.arguments.l.all(c, true)))`,
	`mcp.tool.arguments.l.map(a, mcp.tool.arguments.l.map(b, [a, b])).size() > 0`,
	`mcp.tool.arguments.l.filter(a, mcp.tool.arguments.l.exists(b, b == a)).size() > 0`,
	`mcp.tool.arguments.l.exists_one(a, mcp.tool.arguments.l.exists_one(b, a == b))`,
	`mcp.tool.arguments.exists(k, mcp.tool.arguments.exists(n, k == n + "x"))`,
	`mcp.tool.arguments.l.all(a, a in mcp.tool.arguments.l)`,
	// One step that looks at much, often.
	`mcp.tool.arguments.l.all(a, mcp.tool.arguments.l == mcp.tool.arguments.m)`,
	`mcp.tool.arguments.l.all(a, mcp.tool.arguments.s == mcp.tool.arguments.t)`,
	`mcp.tool.arguments.l.all(a, size(mcp.tool.arguments.s) > 0)`,
	`mcp.tool.arguments.l.all(a, mcp.tool.arguments.s.contains("b") || true)`,
	`mcp.tool.arguments.l.all(a, mcp.tool.arguments.s.endsWith(mcp.tool.arguments.t) || true)`,
	`mcp.tool.arguments.l.all(a, mcp.tool.arguments.s in {"a": 1} || true)`,
	`mcp.tool.arguments.l.all(a, has(mcp.tool.arguments.l.x) || jwt[mcp.tool.arguments.s] == 1 || true)`,
	`mcp.tool.arguments.l.all(a, {mcp.tool.arguments.s: a}.size() == 1)`,
	`mcp.tool.arguments.l.all(a, int(mcp.tool.arguments.s) == 1 || true)`,
	`mcp.tool.arguments.l.all(a, timestamp(mcp.tool.arguments.s) < request.startTime || true)`,
	`mcp.tool.arguments.l.all(a, isIP(mcp.tool.arguments.s) || true)`,
	`mcp.tool.arguments.l.all(a, cidr("10.0.0.0/8").containsIP(mcp.tool.arguments.s) || true)`,
	`mcp.tool.arguments.l.all(a, request.startTime.getHours("Europe/Berlin") >= 0)`,
	`mcp.tool.arguments.l.all(a, string(a) == mcp.tool.arguments.s || true)`,
	`mcp.tool.arguments.l.all(a, bytes(mcp.tool.arguments.s).size() > 0)`,
	// Patterns: a few characters that are thousands of instructions.
	`mcp.tool.arguments.s.matches("(a|a)*b") || true`,
	`mcp.tool.arguments.s.matches("[ab]{0,900}c") || true`,
	`mcp.tool.arguments.s.matches("(.{0,30}){0,30}x") || true`,
	`mcp.tool.arguments.l.all(a, mcp.tool.arguments.s.matches("a{0,500}c") || true)`,
	`mcp.tool.arguments.l.all(a, string(a).matches("a{0,500}c") || true)`,
	// What grows.
	`[mcp.tool.arguments.s].map(a, a + a).map(a, a + a).map(a, a + a).map(a, a + a).map(a, a + a).map(a, a + a).map(a, a + a).map(a, a + a).map(a, a + a).map(a, a + a).map(a, a + a).map(a, a + a).exists(a, a == "")`,
	`[mcp.tool.arguments.l].map(a, a + a).map(a, a + a).map(a, a + a).map(a, a + a).map(a, a + a).map(a, a + a).map(a, a + a).map(a, a + a).exists(a, a.exists(b, b == 7))`,
	`[1,2,3,4,5,6,7,8].map(a, [1,2,3,4,5,6,7,8].map(b, [1,2,3,4,5,6,7,8].map(c, [1,2,3,4,5,6,7,8].map(d, mcp.tool.arguments.s + mcp.tool.arguments.s)))).size() == 8`,
	// Many cheap ones.
	"[" + strings.TrimSuffix(strings.Repeat(`size(mcp.tool.arguments.s),`, 500), ",") + "] == [0]",
	strings.TrimSuffix(strings.Repeat(`mcp.tool.arguments.l==mcp.tool.arguments.m||`, 300), "||"),
}

// No rule burns the proxy, whoever wrote it and whatever a client sends. What a decision did is counted, not timed.
func TestNoRuleBurns(t *testing.T) {
	inputs := hostileArguments()
	read := map[string]ref.Val{} // to decode is work too, but of the size of what was sent
	for name, arguments := range inputs {
		a := newActivation(toolCall("echo", arguments), nil, false)
		if read[name] = a.readArguments(); a.invalid != nil {
			t.Fatalf("%s: %v", name, a.invalid)
		}
		a.release()
	}
	stopped := 0
	names := sortedKeys(inputs)
	for i, text := range hostileRules {
		var errs problems
		r := compileRule(text, "rule", "rule", &errs)
		if r == nil {
			t.Errorf("%s: %v", text, errs.err())
			continue
		}
		for _, at := range []int{i, i + 1, i + 3} { // not all with all: each meets the others' like
			name := names[at%len(names)]
			c := toolCall("echo", "")
			c.Principal = admin
			a := newActivation(c, nil, false)
			a.arguments = read[name]
			_, _, err := r.program.Eval(a)
			if err != nil && strings.Contains(err.Error(), "costs too much") {
				stopped++
			} else if a.spent > maxWork {
				t.Errorf("%.80s with %s: spent %d of %d, and went on", text, name, a.spent, maxWork)
			}
			a.release()
		}
	}
	if stopped < len(hostileRules) {
		t.Errorf("%d evaluations were stopped: the rules are too tame to mean anything", stopped)
	}
}

// What people write is not stopped: loops over lists as they come, patterns over names and paths, one look at a long text.
func TestUsualRulesAreNotStopped(t *testing.T) {
	var tags []string
	for i := range 200 {
		tags = append(tags, strconv.Quote("tag-"+strconv.Itoa(i)))
	}
	few := `{"tags":[` + strings.Join(tags, ",") + `],"path":"/srv/data/a.txt","sql":"select * from t","text":"`
	for _, text := range []string{
		`mcp.tool.arguments.tags.all(t, t.startsWith("tag-"))`,
		`mcp.tool.arguments.tags.exists(t, t.matches("^tag-19[0-9]$"))`,
		`mcp.tool.arguments.path.matches("^/srv/(data|tmp)/[a-z./]+$")`,
		`!mcp.tool.arguments.sql.matches("(?i)\\b(drop|delete|truncate)\\b")`,
		`size(mcp.tool.arguments.text) >= 0 && !mcp.tool.arguments.text.contains("DROP TABLE")`,
		`mcp.tool.arguments.tags.map(t, t + "x").size() == 200 && mcp.tool.arguments.tags.filter(t, t == "tag-7") == ["tag-7"]`,
	} {
		target := mustTarget(t, authz(require(text)))
		for _, size := range []int{0, 1 << 10, 8 << 10} {
			if v := target.Admit(toolCall("echo", few+strings.Repeat("x", size)+`"}`)); !v.Allowed {
				t.Errorf("%s with %d bytes more: %+v", text, size, v)
			}
		}
	}
	big := few + strings.Repeat("x", 2<<20) + `"}`
	for _, text := range []string{`mcp.tool.arguments.path.startsWith("/srv/")`, `size(mcp.tool.arguments.text) > 1`, `!mcp.tool.arguments.text.contains("DROP TABLE")`,
		`mcp.tool.arguments.path.matches("^/srv/")`, `"tag-7" in mcp.tool.arguments.tags`} {
		if v := mustTarget(t, authz(require(text))).Admit(toolCall("write", big)); !v.Allowed {
			t.Errorf("%s with 2 MiB: %+v", text, v)
		}
	}
}

func TestPatternsAreBounded(t *testing.T) {
	for rule, want := range map[string]string{
		`mcp.tool.name.matches(mcp.tool.target)`:                                       "must be a literal",
		`mcp.tool.name.matches("a" + "b")`:                                             "must be a literal",
		`mcp.tool.name.matches(1)`:                                                     "must be a literal",
		`matches(mcp.tool.name, "(")`:                                                  "missing closing",
		`mcp.tool.name.matches("((a{100}){10}){1000}")`:                                "invalid repeat count",
		`mcp.tool.name.matches("(a{0,1000}|b{0,1000}|c{0,1000}|d{0,1000}|e{0,1000})")`: "too large",
	} {
		_, err := CompileTarget(authz(allow(rule)), HTTP, Resolver{})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", rule, err, want)
		}
	}
	for rule, want := range map[string]bool{
		`mcp.tool.name.matches("^e.*o$")`: true, `matches(mcp.tool.name, "^e")`: true, `mcp.tool.name.matches("^x")`: false,
		`["echo"].exists(n, n.matches("c"))`: true, `jwt.sub.matches("^a")`: true, `jwt.level.matches("7")`: false,
	} {
		c := toolCall("echo", "")
		c.Principal = admin
		if got := mustTarget(t, authz(allow(rule))).Admit(c).Allowed; got != want {
			t.Errorf("%s: %v, want %v", rule, got, want)
		}
	}
}

// A list has many items, and a decision about each: together they have a bound, too.
func TestWorkOfAList(t *testing.T) {
	roles := make([]any, 300)
	for i := range roles {
		roles[i] = "role-" + strconv.Itoa(i)
	}
	target := mustTarget(t, authz(deny(`jwt.roles.exists(a, jwt.roles.exists(b, a + b == mcp.tool.name))`)))
	c := toolCall("x", "")
	c.Principal, c.Work = &Principal{Claims: map[string]any{"roles": roles}}, &Work{}
	items := 0
	for ; !c.Work.Exhausted(); items++ {
		if items > 1000 {
			t.Fatal("a thousand items, and no end")
		}
		target.AdmitList(c)
	}
	if items < 10 {
		t.Errorf("after %d items", items)
	}
	if target.AdmitList(c).Allowed {
		t.Error("a deny that was not evaluated admits")
	}
	usual := mustTarget(t, tenRules)
	c = toolCall("echo", "")
	c.Principal, c.Work = authenticated(), &Work{}
	for range 10_000 {
		if !usual.AdmitList(c).Allowed {
			t.Fatal("a long list is stopped by usual rules")
		}
	}
}
