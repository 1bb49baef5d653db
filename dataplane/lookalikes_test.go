package dataplane

import (
	"net/http"
	"strings"
	"testing"

	"github.com/sluicegate/sluice/internal/mcptest"
)

// lookAlikes are strings that somebody, or something that folds or normalizes, could take for `safe` or `danger`.
func lookAlikes(name string) []string {
	letters := func(pairs ...string) string { return strings.NewReplacer(pairs...).Replace(name) }
	return []string{
		letters("a", "а"),                                 // Cyrillic
		letters("e", "е"),                                 // Cyrillic
		letters("a", "ɑ"),                                 // Latin alpha
		letters("s", "ſ", "d", "ԁ"),                       // long s, Komi de
		letters("s", "ｓ", "d", "ｄ"),                       // full width
		letters("a", "𝐚"),                                 // mathematical, outside of the BMP
		letters("a", "ª"),                                 // compatibility equivalent
		letters("a", "a\u0301"),                           // a combining accent
		letters("a", "á"),                                 // the same, composed
		letters("a", "a\u00ad"),                           // soft hyphen
		letters("a", "a\u200d"),                           // zero width joiner
		letters("a", "a\ufe0f"),                           // variation selector
		letters("a", "a\U000e0061"),                       // tag
		name + "\u00a0", "\u2060" + name, name + "\u200b", // blanks
		"\u202e" + name, // right to left
		strings.ToUpper(name), strings.ToUpper(name[:1]) + name[1:],
	}
}

// What looks like a name is another one: rules compare bytes, and no target is given what it was not called.
func TestLookAlikes(t *testing.T) {
	t.Parallel()
	type era struct{ client, server string }
	for _, e := range []era{{"2025-11-25", "2025-11-25"}, {"2026-07-28", "2026-07-28"}, {"2025-11-25", "2026-07-28"}, {"2026-07-28", "2025-11-25"}} {
		one, seenByOne := victim(t, e.server == "2026-07-28")
		other, seenByOther := victim(t, e.server == "2026-07-28")
		for _, only := range []bool{false, true} { // rules that hide danger, and rules that allow safe alone
			for _, n := range []int{1, 2} {
				w := behind("a="+one.URL, "a-b="+other.URL)
				w.targets = w.targets[:n]
				for _, target := range w.targets {
					w.policies[target.Name] = hiding()
					if only {
						w.policies[target.Name] = authorization(allow(`has(mcp.tool) && mcp.tool.name == "safe" || has(mcp.prompt) && mcp.prompt.name == "safe" || has(mcp.resource) && mcp.resource.name == "test://files/safe"`))
					}
				}
				p := w.start(t)
				session := ""
				if e.client != "2026-07-28" {
					session = p.initialize(t, e.client)
				}
				ask := func(method, name, params string) (answer, []string) {
					seenByOne.take()
					seenByOther.take()
					header := name
					if strings.IndexFunc(name, func(r rune) bool { return r < ' ' || r > '~' }) >= 0 {
						header = encodeHeader(name)
					}
					got := p.ask(t, e.client, session, method, header, params)
					return got, append(seenByOne.take(), seenByOther.take()...)
				}
				each := func(tool, uri string, check func(what string, got answer, seen []string)) {
					got, seen := ask("tools/call", tool, `"name":`+mustJSON(tool)+`,"arguments":{}`)
					check("tool "+tool, got, seen)
					got, seen = ask("prompts/get", tool, `"name":`+mustJSON(tool))
					check("prompt "+tool, got, seen)
					got, seen = ask("resources/read", uri, `"uri":`+mustJSON(uri))
					check("resource "+uri, got, seen)
					got, seen = ask("completion/complete", "", `"ref":{"type":"ref/prompt","name":`+mustJSON(tool)+`},"argument":{"name":"a","value":""}`)
					check("completion of "+tool, got, seen)
					got, seen = ask("completion/complete", "", `"ref":{"type":"ref/resource","uri":`+mustJSON(uri)+`},"argument":{"name":"a","value":""}`)
					check("completion of "+uri, got, seen)
				}
				prefix, scheme := map[int]string{1: "", 2: "a-b_"}[n], map[int]string{1: "", 2: "a-b+"}[n]
				each(prefix+"safe", scheme+"test://files/safe", func(what string, got answer, seen []string) {
					if len(seen) != 1 || !strings.HasSuffix(seen[0], "safe") {
						t.Errorf("%v, %d targets: %s itself: %d %s; the targets saw %q", e, n, what, got.status, got.body, seen)
					}
				})
				for _, name := range []string{"safe", "danger"} {
					for _, alike := range lookAlikes(name) {
						each(prefix+alike, scheme+"test://files/"+alike, func(what string, got answer, seen []string) {
							if strings.Contains(got.body, `"result"`) && !strings.Contains(what, "completion") {
								t.Errorf("%v, %d targets: %s: %d %s", e, n, what, got.status, got.body)
							}
							for _, s := range seen { // the target is asked for what the client said, if at all
								if only || !strings.HasSuffix(s, alike) {
									t.Errorf("%v, %d targets: %s: a target saw %q", e, n, what, s)
								}
							}
						})
					}
				}
				if n == 1 {
					continue
				}
				for _, target := range []string{"а", "ａ", "A", "a\u00ad", "a\u200d", "\u2060a", "á", "a\u0301", "ª", "a‐b", "a‑b", "a−b", "a－b", "a\u00ad-b", "A-b", "a-B", "a-b\u200b", "a-ｂ"} {
					for _, separators := range [][2]string{{"_", "+"}, {"＿", "＋"}, {"‗", "﹢"}, {"\u200d_", "\u200d+"}} {
						each(target+separators[0]+"safe", target+separators[1]+"test://files/safe", func(what string, got answer, seen []string) {
							if len(seen) > 0 || !strings.Contains(got.body, `"error"`) {
								t.Errorf("%v: %s: %d %s; the targets saw %q", e, what, got.status, got.body, seen)
							}
						})
					}
				}
			}
		}
	}
}

// What one caller holds opens nothing to another: a session, a page of a list, the right to answer a target's question.
func TestOtherPrincipal(t *testing.T) {
	for _, version := range []string{"2025-11-25", "2026-07-28"} {
		for _, n := range []int{1, 2} {
			w, a, b := two(t, version, mcptest.Options{PageSize: 2})
			w.targets = w.targets[:n]
			w.withKeys()
			for _, target := range w.targets {
				w.policies[target.Name] = authorization(require(`apiKey.id == "alice" || has(mcp.tool) && mcp.tool.name == "echo"`))
			}
			p := w.start(t)
			sessions := map[string]string{}
			if version != "2026-07-28" {
				sessions["alice"], sessions["bob"] = p.initialize(t, version, alice...), p.initialize(t, version, bob...)
			}
			list := func(session, cursor string, who []string) answer {
				params := ""
				if cursor != "" {
					params = `"cursor":` + mustJSON(cursor)
				}
				return p.ask(t, version, session, "tools/list", "", params, who...)
			}
			first := list(sessions["alice"], "", alice)
			_, after, ok := strings.Cut(first.body, `"nextCursor":"`)
			cursor, _, _ := strings.Cut(after, `"`)
			if !ok || cursor == "" {
				t.Fatalf("%s, %d targets: no second page: %s", version, n, first.body)
			}
			if got := list(sessions["alice"], cursor, alice); !strings.Contains(got.body, `"tools":[{`) {
				t.Errorf("%s, %d targets: alice's own page: %d %s", version, n, got.status, got.body)
			}
			reached := len(a.Requests()) + len(b.Requests())
			got := list(sessions["bob"], cursor, bob)
			if strings.Contains(got.body, `"tools":[{`) { // nothing on any page but echo is his
				for _, named := range strings.Split(got.body, `"name":"`)[1:] {
					if name, _, _ := strings.Cut(named, `"`); !strings.HasSuffix(name, "echo") {
						t.Errorf("%s, %d targets: bob, with alice's cursor, sees %s", version, n, name)
					}
				}
			}
			if n == 2 && (!strings.Contains(got.body, "-32602") || len(a.Requests())+len(b.Requests()) != reached) {
				t.Errorf("%s: alice's sealed cursor in bob's hands: %d %s", version, got.status, got.body)
			}
			if version == "2026-07-28" {
				continue
			}
			reached = len(a.Requests()) + len(b.Requests())
			for _, method := range []string{http.MethodPost, http.MethodGet, http.MethodDelete} {
				for name, who := range map[string][]string{"bob": bob, "nobody": nil, "a key that is none": {"Authorization", "Bearer key-carol"}} {
					got := p.do(t, method, sessions["alice"], listTools, who...)
					if want := map[bool]int{true: 404, false: 401}[name == "bob"]; got.status != want {
						t.Errorf("%d targets: %s with alice's session as %s: %d %s, want %d", n, method, name, got.status, got.body, want)
					}
				}
			}
			if got := len(a.Requests()) + len(b.Requests()); got != reached {
				t.Errorf("%d targets: the targets saw %d requests of others", n, got-reached)
			}
			// An answer to what a target asks of alice.
			begun := p.post(t, "", `{"jsonrpc":"2.0","id":0,"method":"initialize","params":{"protocolVersion":"`+version+`","capabilities":{"elicitation":{}},"clientInfo":{"name":"raw","version":"1"}}}`, alice...)
			asking := begun.header.Get("Mcp-Session-Id")
			p.post(t, asking, `{"jsonrpc":"2.0","method":"notifications/initialized"}`, alice...)
			stream := p.open(t, http.MethodPost, asking, `{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"`+map[int]string{1: "", 2: "a-b_"}[n]+`elicit","arguments":{}}}`, alice...)
			asked := stream.next(t, "elicitation/create")
			reply := `{"jsonrpc":"2.0","id":` + mustJSON(asked["id"]) + `,"result":{"action":"accept","content":{"name":"Mallory"}}}`
			p.post(t, sessions["bob"], reply, bob...)
			if got := p.post(t, asking, reply, bob...); got.status != 404 {
				t.Errorf("%d targets: bob answers in alice's session: %d %s", n, got.status, got.body)
			}
			if got := p.post(t, asking, strings.Replace(reply, "Mallory", "Alice", 1), alice...); got.status != 202 {
				t.Errorf("%d targets: alice's own answer: %d %s", n, got.status, got.body)
			}
			if result := mustJSON(stream.next(t, "")); !strings.Contains(result, "Hello, Alice!") {
				t.Errorf("%d targets: result = %s", n, result)
			}
		}
	}
}

// What a listen asks for is one thing to all who read it.
func TestListenFilterIsReadOnce(t *testing.T) {
	target := newFuzzed(t, true)
	w := behind(target.URL)
	w.policies["only"] = hiding()
	p := w.start(t)
	for _, filter := range smuggledFilters {
		got := p.serveFuzzed(http.MethodPost, "/mcp", http.Header{"Accept": {"application/json, text/event-stream"}, "Content-Type": {"application/json"},
			"Mcp-Protocol-Version": {"2026-07-28"}, "Mcp-Method": {"subscriptions/listen"}},
			[]byte(`{"jsonrpc":"2.0","id":1,"method":"subscriptions/listen","params":{"notifications":`+filter+`,`+fuzzedMeta+`}}`))
		if got.status != 400 || !strings.Contains(got.body.String(), "-32602") {
			t.Errorf("%s: %d %s", filter, got.status, &got.body)
		}
	}
	for _, complaint := range target.take() {
		t.Errorf("the target complains: %s", complaint)
	}
}
