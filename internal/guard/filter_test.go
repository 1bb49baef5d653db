package guard

import (
	"bytes"
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func patternOf(t testing.TB, masks bool, expressions ...string) *Filter {
	t.Helper()
	var rules []Rule
	for i, e := range expressions {
		r, err := Pattern(fmt.Sprint("rules[", i, "]"), e)
		if err != nil {
			t.Fatal(err)
		}
		rules = append(rules, r)
	}
	return NewFilter(masks, rules)
}

func TestApply(t *testing.T) {
	password := patternOf(t, false, ".*password.*")
	hide := patternOf(t, true, "hunter[0-9]+")
	email := filterOf(t, true, "email")
	for name, tt := range map[string]struct {
		filters []*Filter
		shape   *Shape
		in      string
		want    string // "": the same bytes
		rule    string // of a rejection
	}{
		"rejects":                    {[]*Filter{password}, FromClient("tools/call"), `{"method":"tools/call","params":{"name":"x","arguments":{"q":"my password is"}}}`, "", "rules[0]"},
		"escaped":                    {[]*Filter{password}, FromClient("tools/call"), `{"params":{"arguments":{"q":["\u0070assword"]}}}`, "", "rules[0]"},
		"a name in arguments":        {[]*Filter{password}, FromClient("tools/call"), `{"params":{"arguments":{"\u0070assword":1}}}`, "", "rules[0]"},
		"a number in arguments":      {[]*Filter{patternOf(t, false, `4111\d{12}`)}, FromClient("tools/call"), `{"params":{"arguments":{"card":4111111111111111}}}`, "", "rules[0]"},
		"not the item's name":        {[]*Filter{password}, FromClient("tools/call"), `{"params":{"name":"password","arguments":{"q":"x"}}}`, "", ""},
		"not a progress token":       {[]*Filter{password}, FromClient("tools/call"), `{"params":{"_meta":{"progressToken":"password","io.modelcontextprotocol/x":{"a":"password"}},"arguments":{}}}`, "", ""},
		"the free part of _meta":     {[]*Filter{password}, FromClient("tools/call"), `{"params":{"_meta":{"acme/note":"password"},"arguments":{}}}`, "", "rules[0]"},
		"prompt arguments":           {[]*Filter{password}, FromClient("prompts/get"), `{"params":{"name":"p","arguments":{"q":"password"}}}`, "", "rules[0]"},
		"completion":                 {[]*Filter{password}, FromClient("completion/complete"), `{"params":{"ref":{"name":"password"},"argument":{"name":"password","value":"a password"}}}`, "", "rules[0]"},
		"completion context":         {[]*Filter{password}, FromClient("completion/complete"), `{"params":{"argument":{"name":"x","value":""},"context":{"arguments":{"a":"password"}}}}`, "", "rules[0]"},
		"an elicitation's answer":    {[]*Filter{password}, FromClient(""), `{"id":1,"result":{"action":"accept","content":{"type":"password"}}}`, "", "rules[0]"},
		"a sampling answer":          {[]*Filter{hide}, FromClient(""), `{"id":1,"result":{"role":"assistant","content":{"type":"text","text":"hunter2"},"model":"m"}}`, `{"id":1,"result":{"role":"assistant","content":{"type":"text","text":"<MASKED>"},"model":"m"}}`, ""},
		"input responses":            {[]*Filter{hide}, FromClient("tools/call"), `{"params":{"requestState":"hunter2","inputResponses":{"a":{"action":"accept","content":{"n":"hunter2"}}}}}`, `{"params":{"requestState":"hunter2","inputResponses":{"a":{"action":"accept","content":{"n":"<MASKED>"}}}}}`, ""},
		"a method of somebody's own": {[]*Filter{password}, FromClient("acme/do"), `{"params":{"name":"password"}}`, "", "rules[0]"},
		"resources/read has no text": {[]*Filter{password}, FromClient("resources/read"), `{"params":{"uri":"x://password"}}`, "", ""},

		"masks, and nothing else": {[]*Filter{email}, Response("tools/call"),
			"{ \"id\" : 1e400,\t\"result\":{\"content\":[{\"type\":\"text\",\"text\":\"caf\\u00e9 a@b.example\"}],\n \"structuredContent\":{\"big\":9223372036854775808,\"n\":1.0e+5,\"to\":\"c@d.example\",\"a@b.example\":1},\"isError\":false, \"x\":null}}",
			"{ \"id\" : 1e400,\t\"result\":{\"content\":[{\"type\":\"text\",\"text\":\"café <EMAIL_ADDRESS>\"}],\n \"structuredContent\":{\"big\":9223372036854775808,\"n\":1.0e+5,\"to\":\"<EMAIL_ADDRESS>\",\"a@b.example\":1},\"isError\":false, \"x\":null}}", ""},
		"quotes what it writes":         {[]*Filter{email}, Response(""), `{"result":{"content":[{"text":"\"\\\n\u0001 a@b.example 😀 \ud83d\ude00"}]}}`, `{"result":{"content":[{"text":"\"\\\n\u0001 <EMAIL_ADDRESS> 😀 😀"}]}}`, ""},
		"data and blob that are base64": {[]*Filter{patternOf(t, true, "AAAA")}, Response(""), `{"result":{"content":[{"type":"image","data":"AAAA","mimeType":"AAAA"},{"type":"resource","resource":{"uri":"AAAA","blob":"AAAA","text":"AAAA"}}]}}`, `{"result":{"content":[{"type":"image","data":"AAAA","mimeType":"AAAA"},{"type":"resource","resource":{"uri":"AAAA","blob":"AAAA","text":"<MASKED>"}}]}}`, ""},
		"data that is text":             {[]*Filter{password}, Response(""), `{"result":{"content":[{"type":"text","data":"the password is"}]}}`, "", "rules[0]"},
		"a type that is none":           {[]*Filter{password}, Response(""), `{"result":{"content":[{"type":"password"}]}}`, "", "rules[0]"},
		"resource contents":             {[]*Filter{hide}, Response("resources/read"), `{"result":{"contents":[{"uri":"hunter2","text":"hunter2"}]}}`, `{"result":{"contents":[{"uri":"hunter2","text":"<MASKED>"}]}}`, ""},
		"prompt messages":               {[]*Filter{hide}, Response("prompts/get"), `{"result":{"description":"hunter2","messages":[{"role":"user","content":{"type":"text","text":"hunter2"}}]}}`, `{"result":{"description":"<MASKED>","messages":[{"role":"user","content":{"type":"text","text":"<MASKED>"}}]}}`, ""},
		"resource links":                {[]*Filter{hide}, Response("tools/call"), `{"result":{"content":[{"type":"resource_link","uri":"hunter2:","name":"hunter2","description":"hunter2"}]}}`, `{"result":{"content":[{"type":"resource_link","uri":"hunter2:","name":"<MASKED>","description":"<MASKED>"}]}}`, ""},
		"tool lists": {[]*Filter{hide}, Response("tools/list"),
			`{"result":{"tools":[{"name":"hunter2","description":"hunter2","inputSchema":{"type":"object","required":["hunter2"],"properties":{"hunter2":{"type":"string","enum":["hunter2"],"description":"hunter2"},"type":{"description":"hunter2"}}}}],"nextCursor":"hunter2"}}`,
			`{"result":{"tools":[{"name":"hunter2","description":"<MASKED>","inputSchema":{"type":"object","required":["hunter2"],"properties":{"hunter2":{"type":"string","enum":["hunter2"],"description":"<MASKED>"},"type":{"description":"<MASKED>"}}}}],"nextCursor":"hunter2"}}`, ""},
		"instructions":   {[]*Filter{hide}, Response("initialize"), `{"result":{"serverInfo":{"name":"hunter2"},"instructions":"hunter2"}}`, `{"result":{"serverInfo":{"name":"hunter2"},"instructions":"<MASKED>"}}`, ""},
		"errors":         {[]*Filter{hide}, Response("tools/call"), `{"error":{"code":-32000,"message":"hunter2","data":{"m":"hunter2"}}}`, `{"error":{"code":-32000,"message":"<MASKED>","data":{"m":"<MASKED>"}}}`, ""},
		"log data":       {[]*Filter{hide}, FromServer("notifications/message"), `{"params":{"level":"info","logger":"hunter2","data":{"type":"hunter2"}}}`, `{"params":{"level":"info","logger":"<MASKED>","data":{"type":"<MASKED>"}}}`, ""},
		"progress":       {[]*Filter{hide}, FromServer("notifications/progress"), `{"params":{"progressToken":"hunter2","progress":1,"message":"hunter2"}}`, `{"params":{"progressToken":"hunter2","progress":1,"message":"<MASKED>"}}`, ""},
		"task":           {[]*Filter{hide}, FromServer("notifications/tasks"), `{"params":{"taskId":"hunter2","statusMessage":"hunter2","result":{"content":[{"type":"resource_link","uri":"hunter2","name":"hunter2"}]},"_meta":{"io.modelcontextprotocol/related-task":{"taskId":"hunter2"}}}}`, `{"params":{"taskId":"hunter2","statusMessage":"<MASKED>","result":{"content":[{"type":"resource_link","uri":"hunter2","name":"<MASKED>"}]},"_meta":{"io.modelcontextprotocol/related-task":{"taskId":"hunter2"}}}}`, ""},
		"sampling":       {[]*Filter{hide}, FromServer("sampling/createMessage"), `{"params":{"messages":[{"role":"user","content":{"type":"text","text":"hunter2"}}],"systemPrompt":"hunter2"}}`, `{"params":{"messages":[{"role":"user","content":{"type":"text","text":"<MASKED>"}}],"systemPrompt":"<MASKED>"}}`, ""},
		"elicitation":    {[]*Filter{hide}, FromServer("elicitation/create"), `{"params":{"message":"hunter2","requestedSchema":{"type":"object","properties":{"type":{"title":"hunter2","type":"string"}}}}}`, `{"params":{"message":"<MASKED>","requestedSchema":{"type":"object","properties":{"type":{"title":"<MASKED>","type":"string"}}}}}`, ""},
		"input requests": {[]*Filter{hide}, Response("tools/call"), `{"result":{"resultType":"input_required","requestState":"hunter2","inputRequests":{"a":{"method":"elicitation/create","params":{"message":"hunter2"}}}}}`, `{"result":{"resultType":"input_required","requestState":"hunter2","inputRequests":{"a":{"method":"elicitation/create","params":{"message":"<MASKED>"}}}}}`, ""},
		"an agent's message": {[]*Filter{hide}, Agent, `{"id":"hunter2","method":"message/send","params":{"message":{"kind":"message","messageId":"hunter2","role":"user","parts":[{"kind":"text","text":"hunter2"},{"kind":"data","data":{"id":"hunter2"}},{"kind":"file","file":{"name":"hunter2","bytes":"hunter2"}}]}}}`,
			`{"id":"hunter2","method":"message/send","params":{"message":{"kind":"message","messageId":"hunter2","role":"user","parts":[{"kind":"text","text":"<MASKED>"},{"kind":"data","data":{"id":"<MASKED>"}},{"kind":"file","file":{"name":"<MASKED>","bytes":"hunter2"}}]}}}`, ""},
		"an agent's task": {[]*Filter{hide}, Agent, `{"id":1,"result":{"id":"hunter2","status":{"state":"completed","message":{"parts":[{"text":"hunter2"}]}},"artifacts":[{"artifactId":"hunter2","name":"hunter2"}]}}`,
			`{"id":1,"result":{"id":"hunter2","status":{"state":"completed","message":{"parts":[{"text":"<MASKED>"}]}},"artifacts":[{"artifactId":"hunter2","name":"<MASKED>"}]}}`, ""},
		"a member given twice":       {[]*Filter{hide}, Response(""), `{"result":{"content":[{"text":"a","text":"hunter2","Text":"hunter3"}]}}`, `{"result":{"content":[{"text":"a","text":"<MASKED>","Text":"<MASKED>"}]}}`, ""},
		"an escaped member":          {[]*Filter{hide}, Response(""), `{"res\u0075lt":{"content":[{"\u0075ri":"hunter2","te\u0078t":"hunter3"}]}}`, `{"res\u0075lt":{"content":[{"\u0075ri":"hunter2","te\u0078t":"<MASKED>"}]}}`, ""},
		"one filter after the other": {[]*Filter{patternOf(t, true, "b+"), patternOf(t, false, "abc"), patternOf(t, true, "MASKED")}, Response(""), `{"result":{"x":"abc"}}`, `{"result":{"x":"a<<MASKED>>c"}}`, ""},
		"what overlaps":              {[]*Filter{patternOf(t, true, "abcd", "cdef", "f.*")}, Response(""), `{"result":{"x":"xabcdefy"}}`, `{"result":{"x":"x<MASKED>"}}`, ""},
	} {
		t.Run(name, func(t *testing.T) {
			got, found, err := Apply(tt.filters, []byte(tt.in), tt.shape)
			if err != nil {
				t.Fatal(err)
			}
			rule := ""
			if found != nil {
				rule = found.Rule
			}
			if rule != tt.rule {
				t.Fatalf("rejected by %q, want %q", rule, tt.rule)
			}
			if found != nil {
				return
			}
			want := tt.want
			if want == "" {
				want = tt.in
				if &got[0] != &[]byte(tt.in)[0] && string(got) != tt.in {
					t.Errorf("changed to %s", got)
				}
			}
			if diff := cmp.Diff(want, string(got)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if !json.Valid(got) {
				t.Errorf("no JSON: %s", got)
			}
		})
	}
}

func TestApplyReturnsTheMessageItself(t *testing.T) {
	in := []byte(`{"result":{"content":[{"type":"text","text":"nothing \u0041 here"}]}}`)
	got, _, err := Apply([]*Filter{filterOf(t, true, Builtins()...), patternOf(t, false, "x+y")}, in, Response(""))
	if err != nil || &got[0] != &in[0] || len(got) != len(in) {
		t.Errorf("a copy, or %v", err)
	}
}

func TestApplyBadJSON(t *testing.T) {
	deep := strings.Repeat("[", maxDepth+1) + strings.Repeat("]", maxDepth+1)
	for _, in := range []string{``, `{`, `{"a"}`, `{"a":"`, `{"a":"\`, `[1,`, `{"result":{"x":"y"}} z`, `{"result":` + deep + `}`} {
		if _, _, err := Apply([]*Filter{filterOf(t, true, "email")}, []byte(in), Response("")); err == nil {
			t.Errorf("%.40s: no error", in)
		}
	}
}

func TestPattern(t *testing.T) {
	for _, tt := range []struct {
		expression, text string
		want             bool
	}{
		{".*password.*", "a password b", true}, {".*password.*", "PASSWORD", false}, {"(?i)password", "PaSSword", true}, {"(?i)password", "paſſword", true},
		{"(?i)kilo", "\u212ailo", true}, {"(?i)kilo", "kilt", false}, {"a(b|c)d", "acd", true}, {"(?:secret){2}", "secretsecret", true}, {"^top", "x\ntop", false}, {"(?m)^top", "x\ntop", true},
		{`\bid\b`, "an id.", true}, {`\d{4}`, "123", false}, {"é+", "café", true}, {"(?s).*x.*y.*", "x\ny", true}, {".*x.*y.*", "x\ny", false}, {"ab?c", "ac", true}, {"(?i)É", "é", true},
	} {
		p, err := compilePattern(tt.expression)
		if err != nil {
			t.Fatal(err)
		}
		if got := p.matches([]byte(tt.text)); got != tt.want || got != p.re.MatchString(tt.text) {
			t.Errorf("%s in %q: %v", tt.expression, tt.text, got)
		}
		if hits := p.find(nil, []byte(tt.text), &Rule{}); (len(hits) > 0) != tt.want {
			t.Errorf("%s in %q: %v", tt.expression, tt.text, hits)
		}
	}
	for expression, says := range map[string]string{
		"(": "no RE2", "(?=a)": "no RE2", `(a)\1`: "no RE2", "a{1001}": "beyond", strings.Repeat("(", 1001) + strings.Repeat(")", 1001): "beyond",
		"a*": "empty string", "(x)?": "empty string", "": "empty string", "^": "empty string", strings.Repeat("a", 9<<10): "bytes", "[a-z]{999}[a-z]{999}[a-z]{999}[a-z]{999}[a-z]{999}": "instructions",
	} {
		if _, err := Pattern("", expression); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%.30s: %v, want …%s…", expression, err, says)
		}
	}
}

func TestTexts(t *testing.T) {
	in := []byte(`{"id":1,"params":{"name":"t","arguments":{"a/b":["x","\u0079"],"":{"~":"z","n":1}}}}`)
	texts, err := Texts(in, FromClient("tools/call"))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, x := range texts {
		got = append(got, x.Path+"="+x.Value)
	}
	if diff := cmp.Diff([]string{"/params/arguments/a~1b/0=x", "/params/arguments/a~1b/1=y", "/params/arguments//~0=z"}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	same, other := "y", "\"new\""
	out := Replace(in, texts, []*string{nil, &same, &other})
	if want := `{"id":1,"params":{"name":"t","arguments":{"a/b":["x","\u0079"],"":{"~":"\"new\"","n":1}}}}`; string(out) != want {
		t.Errorf("replaced: %s", out)
	}
}

func TestMembers(t *testing.T) {
	in := []byte(` { "a" : 1 , "\u0062":{"c":[1,"}"]}, "a":"x" } `)
	var got []string
	if err := Members(in, func(name []byte, from, to int) error {
		got = append(got, string(name)+"="+string(in[from:to]))
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"a=1", `b={"c":[1,"}"]}`, `a="x"`}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	for _, bad := range []string{``, `[]`, `{"a"}`, `{"a":}`, `{"a":1`, `{} x`, `{"a":1 "b":2}`} {
		if err := Members([]byte(bad), func([]byte, int, int) error { return nil }); err == nil {
			t.Errorf("%s: no error", bad)
		}
	}
}

// What is split over messages is found with its last part, and nothing that one of them holds alone is found twice.
func TestTrail(t *testing.T) {
	shape := FromServer("notifications/progress")
	progress := func(text string) []byte {
		return []byte(`{"method":"notifications/progress","params":{"message":` + string(AppendString(nil, []byte(text))) + `}}`)
	}
	for name, tt := range map[string]struct {
		filters []*Filter
		texts   []string
		want    []string // as masked; "!" is rejected
	}{
		"two":       {[]*Filter{filterOf(t, true, "secrets")}, []string{"key AKIAIOSF", "ODNN7EXAMPLE ok"}, []string{"key <SECRET>", "<SECRET> ok"}},
		"three":     {[]*Filter{filterOf(t, true, "secrets")}, []string{"AKIA", "IOSFODNN", "7EXAMPLE"}, []string{"<SECRET>", "<SECRET>", "<SECRET>"}},
		"by letter": {[]*Filter{filterOf(t, true, "creditCard")}, strings.Split("4111111111111111", ""), strings.Split(strings.Repeat("<CREDIT_CARD>,", 16), ",")[:16]},
		"a pattern": {[]*Filter{patternOf(t, true, "hunter2")}, []string{"my hun", "ter2!"}, []string{"my <MASKED>", "<MASKED>!"}},
		"rejected":  {[]*Filter{patternOf(t, false, ".*password.*")}, []string{"my pass", "word is"}, []string{"!", "!"}},
		"alone":     {[]*Filter{patternOf(t, true, ".*password.*")}, []string{"one line", "my password is"}, []string{"one line", "<MASKED>"}},
		"nothing":   {[]*Filter{filterOf(t, true, Builtins()...)}, []string{"1/10", "2/10", "3/10", "done"}, []string{"1/10", "2/10", "3/10", "done"}},
		"escaped":   {[]*Filter{patternOf(t, true, "hunter2")}, []string{"\t\"hun", "ter2\n"}, []string{"\t\"<MASKED>", "<MASKED>\n"}},
		"long":      {[]*Filter{patternOf(t, true, "hunter2")}, []string{strings.Repeat("x", 3*maxTrail) + "hun", "ter2" + strings.Repeat("y", 3*maxTrail)}, []string{strings.Repeat("x", 3*maxTrail) + "<MASKED>", "<MASKED>" + strings.Repeat("y", 3*maxTrail)}},
		"a key": {[]*Filter{filterOf(t, true, "secrets")}, append([]string{"-----BEGIN PRIVATE KEY-----\n"}, append(strings.SplitAfter(strings.Repeat(strings.Repeat("M", 63)+"\n", 20), "\n")[:20], "-----END PRIVATE KEY-----\n")...),
			append([]string{"<SECRET>"}, append(strings.Split(strings.Repeat("<SECRET>,", 20), ",")[:20], "<SECRET>\n")...)},
	} {
		t.Run(name, func(t *testing.T) {
			var trail Trail
			extras := make([][]Extra, len(tt.texts))
			rejected := make([]bool, len(tt.texts))
			for i, text := range tt.texts {
				splits, err := trail.Add(tt.filters, uint64(i), progress(text), shape)
				if err != nil {
					t.Fatal(err)
				}
				for _, s := range splits {
					extras[s.Message] = append(extras[s.Message], s.Extra)
					rejected[s.Message] = rejected[s.Message] || s.Finding != nil
				}
				if len(trail.text) > maxTrail {
					t.Fatalf("remembers %d bytes", len(trail.text))
				}
			}
			var got []string
			for i, text := range tt.texts {
				out, found, err := Apply(tt.filters, progress(text), shape, extras[i]...)
				if err != nil {
					t.Fatal(err)
				}
				if found != nil || rejected[i] {
					got = append(got, "!")
					continue
				}
				texts, err := Texts(out, shape)
				if err != nil {
					t.Fatal(err)
				}
				got = append(got, texts[0].Value)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// FuzzApply: JSON stays JSON, with the same numbers, names and structure; what does not match stays the same bytes.
func FuzzApply(f *testing.F) {
	for _, s := range []string{
		`{"result":{"content":[{"type":"text","text":"a@b.example 4111111111111111 \ud800"}]}}`, `{"params":{"arguments":{"a":[1e400,-0,"x\u0000"]}}}`,
		`{"result":{"x":"AKIAIOSFODNN7EXAMPLE +1 202-555-0123 GB82WEST12345698765432 046 454 286 123-45-6789"}}`,
		`{"result":{"x":"-----BEGIN PRIVATE KEY-----\nx"}}`, `{"error":{"message":"eyJhbGciOiJIUzI1NiJ9.e30.x"}}`, `[`, `"\`, `{"a":1}{"b":2}`,
	} {
		f.Add([]byte(s))
	}
	filters := []*Filter{filterOf(f, true, Builtins()...), patternOf(f, true, "[a-c]+@", "(?i)secret.*")}
	shapes := []*Shape{free, Response(""), FromClient("tools/call"), FromServer("notifications/message"), FromServer("sampling/createMessage"), FromClient("")}
	f.Fuzz(func(t *testing.T, in []byte) {
		before := bytes.Clone(in)
		for _, shape := range shapes {
			out, _, err := Apply(filters, in, shape)
			if !bytes.Equal(before, in) {
				t.Fatal("the input was changed")
			}
			if !json.Valid(in) {
				continue
			}
			if err != nil {
				t.Fatalf("%s: %v", in, err)
			}
			if !json.Valid(out) {
				t.Fatalf("%q became %q, which is no JSON", in, out)
			}
			if !reflect.DeepEqual(skeleton(in), skeleton(out)) {
				t.Fatalf("%q became %q: more than strings has changed", in, out)
			}
			texts, err := Texts(in, shape)
			if err != nil {
				t.Fatal(err)
			}
			if same := Replace(in, texts, make([]*string, len(texts))); !bytes.Equal(same, in) {
				t.Fatalf("%q became %q though nothing is replaced", in, same)
			}
			found := false
			for _, x := range texts {
				for _, f := range filters {
					found = found || len(f.find(nil, []byte(x.Value), lastName(x.Path))) > 0
				}
			}
			if !found && !bytes.Equal(in, out) {
				t.Fatalf("%q became %q though nothing is found", in, out)
			}
			var trail Trail
			for n := range uint64(3) {
				if _, err := trail.Add(filters, n, in, shape); err != nil {
					t.Fatal(err)
				}
			}
		}
	})
}

// lastName is the member that a path ends in; elements of arrays stand where the array does.
func lastName(path string) []byte {
	steps := strings.Split(path, "/")
	for i := len(steps) - 1; i > 0; i-- {
		if strings.Trim(steps[i], "0123456789") != "" {
			return []byte(strings.NewReplacer("~1", "/", "~0", "~").Replace(steps[i]))
		}
	}
	return nil
}

// skeleton is all of a text but its strings: names in order, numbers as they are written.
func skeleton(text []byte) []string {
	var out []string
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.UseNumber()
	for {
		tok, err := dec.Token()
		if err != nil {
			return out
		}
		if _, ok := tok.(string); ok {
			out = append(out, "string")
			continue
		}
		out = append(out, fmt.Sprint(tok))
	}
}

func resultOf(size int) []byte {
	line := "The quarterly report of 2026-11-26 lists 42 items, among them a lamp (No. 7), two chairs and a table; see page 12. "
	return []byte(`{"jsonrpc":"2.0","id":1,"result":{"content":[{"type":"text","text":"` + strings.Repeat(line, size/len(line)+1)[:size] + `"}]}}`)
}

func BenchmarkApply(b *testing.B) {
	patterns := func(n int) *Filter {
		var deny []string
		for i := range n {
			deny = append(deny, fmt.Sprintf("(?i)code ?name[: ]+%c%c[a-z]*", 'a'+i/26, 'a'+i%26))
		}
		return patternOf(b, false, deny...)
	}
	filters := []struct {
		name string
		*Filter
	}{
		{"email", filterOf(b, true, "email")}, {"four built-ins", filterOf(b, true, "email", "creditCard", "phoneNumber", "ssn")}, {"all built-ins", filterOf(b, true, Builtins()...)},
		{"1 pattern", patterns(1)}, {"10 patterns", patterns(10)}, {"100 patterns", patterns(100)},
		// Patterns that hold no text which every match has: the automaton has to look at all of it.
		{"1 pattern without words", patternOf(b, false, `[a-f0-9]{8}-[a-f0-9]{4}`)},
	}
	run := func(name string, f *Filter, in []byte) {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(in)))
			b.ReportAllocs()
			for b.Loop() {
				if _, _, err := Apply([]*Filter{f}, in, Response("tools/call")); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	for _, f := range filters {
		for _, size := range []int{1, 10, 100} {
			run(fmt.Sprintf("%s/%dKiB", f.name, size), f.Filter, resultOf(size<<10))
		}
	}
	run("four built-ins/10KiB, two masked", filters[1].Filter, bytes.Replace(resultOf(10<<10), []byte("two chairs"), []byte("bob@example.com 4111111111111111"), 1))
}
