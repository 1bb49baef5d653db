package dataplane

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	policyv1 "github.com/sluicegate/sluice/proto/gen/sluice/policy/v1"
)

// A playedAgent is one agent behind a proxy without sockets, so that a test may have a clock of its own.
type playedAgent struct {
	*Rehearsal
	contentType, answer string
	sent                []Sent
}

func playAgent(t *testing.T, policies *policyv1.Policies) *playedAgent {
	t.Helper()
	w := behind()
	w.agent("only", "http://agent.test:80/")
	w.policies["only"] = policies
	a := &playedAgent{contentType: "application/json"}
	cfg := RehearsalConfig{Tenant: "default", Play: func(s Sent) Answer {
		a.sent = append(a.sent, s)
		return Answer{Header: http.Header{"Content-Type": {a.contentType}}, Body: []byte(a.answer)}
	}}
	for _, r := range w.update(1).Set {
		cfg.Resources = append(cfg.Resources, RehearsalResource{Secret: strings.HasSuffix(r.Type, ".Secret"), Name: r.Name, Version: r.Version, Body: r.Body})
	}
	var err error
	if a.Rehearsal, err = NewRehearsal(cfg); err != nil {
		t.Fatal(err)
	}
	return a
}

func (a *playedAgent) ask(t *testing.T, body string) Performance {
	t.Helper()
	r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "http://localhost/mcp", strings.NewReader(body))
	r.Header = http.Header{"Content-Type": {"application/json"}, "Accept": {"application/json, text/event-stream"}}
	return a.Serve(testPort, r, time.Now())
}

// allText are the texts of all parts in an answer or stream, joined.
func allText(t *testing.T, body []byte) string {
	t.Helper()
	var all strings.Builder
	var read func(v any)
	read = func(v any) {
		switch v := v.(type) {
		case []any:
			for _, e := range v {
				read(e)
			}
		case map[string]any:
			if text, ok := v["text"].(string); ok {
				all.WriteString(text)
			}
			for _, name := range []string{"params", "message", "result", "status", "artifact", "artifactUpdate", "statusUpdate", "artifacts", "parts"} {
				read(v[name])
			}
		}
	}
	for line := range strings.Lines(string(body)) {
		line = strings.TrimSpace(strings.TrimPrefix(line, "data:"))
		if !strings.HasPrefix(line, "{") {
			continue
		}
		var v any
		if err := json.Unmarshal([]byte(line), &v); err != nil {
			t.Fatalf("%v in %s", err, line)
		}
		read(v)
	}
	return all.String()
}

// Events of both revisions.
func artifact03(id, text string) string {
	return fmt.Sprintf(`data: {"jsonrpc":"2.0","id":1,"result":{"kind":"artifact-update","taskId":"t","contextId":"c","append":true,"artifact":{"artifactId":%q,"parts":[{"kind":"text","text":%q}]}}}`+"\n\n", id, text)
}

func artifact10(id, text string) string {
	return fmt.Sprintf(`data: {"jsonrpc":"2.0","id":1,"result":{"artifactUpdate":{"taskId":"t","contextId":"c","append":true,"artifact":{"artifactId":%q,"parts":[{"text":%q}]}}}}`+"\n\n", id, text)
}

func status03(text string) string {
	return fmt.Sprintf(`data: {"jsonrpc":"2.0","id":1,"result":{"kind":"status-update","taskId":"t","contextId":"c","final":false,"status":{"state":"working","message":{"kind":"message","messageId":"m","role":"agent","parts":[{"kind":"text","text":%q}]}}}}`+"\n\n", text)
}

const askStream = `{"jsonrpc":"2.0","id":1,"method":"message/stream","params":{"message":{"kind":"message","messageId":"m","role":"user","parts":[{"kind":"text","text":"go"}]}}}`

// What is split over several events is found, in each artifact and in all that is said, and no part of it leaves; order and all
// else are the agent's.
func TestAgentPieces(t *testing.T) {
	for name, tt := range map[string]struct{ stream, mask, reject string }{
		"0.3":                    {artifact03("a", "the hun") + artifact03("a", "ter2 it is"), "the <MASKED><MASKED> it is", "the hun"},
		"1.0":                    {artifact10("a", "the hun") + artifact10("a", "ter2 it is"), "the <MASKED><MASKED> it is", ""},
		"in three":               {artifact03("a", "x") + artifact03("a", "hu") + artifact03("a", "nte") + artifact03("a", "r2") + artifact03("a", "y"), "x<MASKED><MASKED><MASKED>y", "x"},
		"letters":                {artifact03("a", "h") + artifact03("a", "u") + artifact03("a", "n") + artifact03("a", "t") + artifact03("a", "e") + artifact03("a", "r") + artifact03("a", "2"), strings.Repeat("<MASKED>", 7), ""},
		"statuses":               {status03("hun") + status03("ter2"), "<MASKED><MASKED>", ""},
		"through artifacts":      {artifact03("a", "hun") + artifact03("b", "ter2"), "<MASKED><MASKED>", ""},
		"with another between":   {artifact03("a", "hun") + artifact03("b", "something else") + artifact03("a", "ter2"), "<MASKED>something else<MASKED>", "something else"},
		"with a status between":  {artifact03("a", "hun") + status03("at work") + artifact03("a", "ter2"), "<MASKED>at work<MASKED>", "at work"},
		"with a comment between": {artifact03("a", "hun") + ": hello\n\n" + artifact03("a", "ter2"), "<MASKED><MASKED>", ""},
		"nothing":                {artifact03("a", "hunt") + artifact03("a", " on"), "hunt on", "hunt on"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := playAgent(t, aiPolicy(t, guards("", masks("hunter2"))))
				a.contentType, a.answer = "text/event-stream", tt.stream
				p := a.ask(t, askStream)
				if got := allText(t, p.Body); got != tt.mask || p.Status != 200 || strings.Contains(string(p.Body), `"error"`) {
					t.Errorf("masked: %d %q, want %q in\n%s", p.Status, got, tt.mask, p.Body)
				}
				a = playAgent(t, aiPolicy(t, guards("", rejects("hunter2"))))
				a.contentType, a.answer = "text/event-stream", tt.stream+artifact03("a", "after")
				p = a.ask(t, askStream)
				got, refused := allText(t, p.Body), strings.Contains(string(p.Body), `"error"`)
				if name == "nothing" {
					if got != tt.reject+"after" || refused {
						t.Errorf("rejected for nothing: %s", p.Body)
					}
					return
				}
				if !refused || !p.Refused || strings.Contains(got, "ter2") || strings.Contains(got, "after") || !strings.Contains(string(p.Body), "-32603") {
					t.Errorf("rejected: %q refused %v in\n%s", got, p.Refused, p.Body)
				}
			})
		})
	}
}

// The parts of one message are pieces as well: as an agent keeps what it has streamed, or as a client sends it.
func TestAgentParts(t *testing.T) {
	task := `{"jsonrpc":"2.0","id":1,"result":{"kind":"task","id":"t","contextId":"c","status":{"state":"completed"},"artifacts":[{"artifactId":"a","parts":[{"kind":"text","text":"the hun"},{"kind":"text","text":"ter2"}]}]}}`
	get := `{"jsonrpc":"2.0","id":1,"method":"tasks/get","params":{"id":"t"}}`
	a := playAgent(t, aiPolicy(t, guards("", masks("hunter2"))))
	a.answer = task
	if p := a.ask(t, get); allText(t, p.Body) != "the <MASKED><MASKED>" {
		t.Errorf("a task's parts: %s", p.Body)
	}
	a = playAgent(t, aiPolicy(t, guards("", rejects("hunter2"))))
	a.answer = task
	if p := a.ask(t, get); !p.Refused || !strings.Contains(string(p.Body), "-32603") || strings.Contains(string(p.Body), "ter2") {
		t.Errorf("a task's parts, rejected: %s", p.Body)
	}
	send := `{"jsonrpc":"2.0","id":1,"method":"message/send","params":{"message":{"kind":"message","messageId":"m","role":"user","parts":[{"kind":"text","text":"the h\u0075n"},{"kind":"text","text":"ter2"}]}}}`
	a = playAgent(t, aiPolicy(t, guards(masks("hunter2"), "")))
	a.answer = `{"jsonrpc":"2.0","id":1,"result":{}}`
	if a.ask(t, send); len(a.sent) != 1 || allText(t, a.sent[0].Body) != "the <MASKED><MASKED>" {
		t.Errorf("a message's parts: %s", a.sent)
	}
	a = playAgent(t, aiPolicy(t, guards(rejects("hunter2"), "")))
	if p := a.ask(t, send); len(a.sent) != 0 || !p.Refused || !strings.Contains(string(p.Body), "-32602") {
		t.Errorf("a message's parts, rejected: %s", p.Body)
	}
}

// Masked messages are the agent's in all else.
func TestAgentMasksTextAlone(t *testing.T) {
	a := playAgent(t, aiPolicy(t, guards("", masks("hunter2"))))
	const before, after = `{"jsonrpc": "2.0","id":1,"result":{"kind":"message","messageId":"hunter2","role":"agent","n":1.50,"parts":[{"kind":"text","text":"`, `"},{"kind":"data","data":{"big":12345678901234567890}}]}}`
	a.answer = before + "h\\u0075nter2" + after
	if p := a.ask(t, askStream); string(p.Body) != before+"<MASKED>"+after {
		t.Error(cmp.Diff(before+"<MASKED>"+after, string(p.Body)))
	}
}

// Guards see cards as they see lists, and leave them cards.
func TestAgentCardGuards(t *testing.T) {
	const card = `{"name":"agent","description":"ask hunter2","protocolVersion":"0.3.0","url":"http://hunter2/","preferredTransport":"JSONRPC","skills":[{"id":"hunter2","name":"says hunter2"}]}`
	ask := func(a *playedAgent) Performance {
		a.answer = card
		return a.Serve(testPort, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "http://localhost/mcp/.well-known/agent-card.json", nil), time.Now())
	}
	want := `{"name":"agent","description":"ask <MASKED>","protocolVersion":"0.3.0","url":"http://localhost/mcp","preferredTransport":"JSONRPC","skills":[{"id":"hunter2","name":"says <MASKED>"}]}`
	if p := ask(playAgent(t, aiPolicy(t, guards("", masks("hunter2", "JSONRPC", "0.3.0"))))); p.Status != 200 || string(p.Body) != want {
		t.Errorf("masked: %d %s", p.Status, cmp.Diff(want, string(p.Body)))
	}
	if p := ask(playAgent(t, aiPolicy(t, guards("", rejects("hunter2"))))); p.Status != 403 || !p.Refused || strings.Contains(string(p.Body), "hunter2") {
		t.Errorf("rejected: %d %s", p.Status, p.Body)
	}
}
