package policy

import (
	"context"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sluicegate/sluice/internal/guard"
)

// judging is a service that guards ask.
type judging struct {
	*httptest.Server
	mu     sync.Mutex
	bodies []string
	heads  []http.Header
	conns  map[string]bool
}

func newJudging(t *testing.T, secure bool, answer func(w http.ResponseWriter, r *http.Request, body []byte)) *judging {
	j := &judging{conns: map[string]bool{}}
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		j.mu.Lock()
		j.bodies, j.heads, j.conns[r.RemoteAddr] = append(j.bodies, string(body)), append(j.heads, r.Header.Clone()), true
		j.mu.Unlock()
		answer(w, r, body)
	})
	if secure {
		j.Server = httptest.NewTLSServer(h)
	} else {
		j.Server = httptest.NewServer(h)
	}
	t.Cleanup(func() { j.CloseClientConnections(); j.Close() })
	return j
}

func says(text string) func(http.ResponseWriter, *http.Request, []byte) {
	return func(w http.ResponseWriter, _ *http.Request, _ []byte) { _, _ = io.WriteString(w, text) }
}

// judgedBy compiles one request guard on a proxy whose tenant may dial loopback addresses.
func judgedBy(t *testing.T, guardJSON string, grants ...string) *Target {
	t.Helper()
	g, err := ParseGrants(grants)
	if err != nil {
		t.Fatal(err)
	}
	target, err := CompileTarget(parse(t, `{"ai":{"promptGuard":{"request":[`+guardJSON+`]}}}`), HTTP,
		Resolver{Runtime: NewRuntime(), Tenant: "acme", Grants: g, Secret: func(name string) ([]byte, error) { return []byte("s3cret-" + name + "\n"), nil }})
	if err != nil {
		t.Fatal(err)
	}
	return target
}

const searchCall = `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"a_search","arguments":{"q":"one","n":1e400,"list":["tw\u006f",""]}}}`

func (t *Target) guardCall(ctx context.Context, message string) (string, error, error) {
	c := &Call{Tenant: "acme", Target: "a", Method: "tools/call", Kind: Tool, Name: "search", Principal: &Principal{ID: "jwt:https://issuer\x00ada", Name: "ada"},
		Arguments: []byte(`{"q":"one"}`)}
	out, note, err := t.Guard(ctx, c, ToTarget, []byte(message), guard.FromClient("tools/call"))
	return string(out), note, err
}

func TestWebhookContract(t *testing.T) {
	var answer string
	j := newJudging(t, false, func(w http.ResponseWriter, _ *http.Request, _ []byte) { _, _ = io.WriteString(w, answer) })
	target := judgedBy(t, `{"webhook":{"url":"`+j.URL+`/judge?k=1","credential":{"secret":"hook"},"headers":{"X-Tool":{"expression":"mcp.tool.name"},"X-Fixed":{"value":"f"}}}}`, "private-network")

	answer = `{"action":"pass"}`
	if out, note, err := target.guardCall(t.Context(), searchCall); out != searchCall || note != nil || err != nil {
		t.Errorf("pass: %s, %v, %v", out, note, err)
	}
	answer = `{"action":"mask","content":[{"path":"/params/arguments/list/0","text":"<2>\n"}],"reason":"","future":{}}`
	want := strings.Replace(searchCall, `"tw\u006f"`, `"<2>\n"`, 1)
	if out, _, err := target.guardCall(t.Context(), searchCall); out != want || err != nil {
		t.Errorf("mask: %s, %v", out, err)
	}
	answer = `{"action":"reject","reason":"because"}`
	_, _, err := target.guardCall(t.Context(), searchCall)
	if g, ok := errors.AsType[*GuardError](err); !ok || g.Undecided || g.Rule != "policies.ai.promptGuard.request[0]" || strings.Contains(g.Message, "because") || !strings.Contains(fmt.Sprint(g.Err), "because") {
		t.Errorf("reject: %#v", err)
	}
	if _, _, err := target.guardCall(t.Context(), `{"params":{"arguments":{"a":"x","a":"y"}}}`); err == nil {
		t.Error("a member given twice is not refused")
	}
	asked := len(j.bodies)
	if out, _, err := target.guardCall(t.Context(), `{"params":{"arguments":{"n":1}}}`); err != nil || out != `{"params":{"arguments":{"n":1}}}` || len(j.bodies) != asked {
		t.Errorf("nothing to ask about: %s, %v, asked %d times", out, err, len(j.bodies)-asked)
	}

	var sent map[string]any
	if err := json.Unmarshal([]byte(j.bodies[0]), &sent); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string]any{
		"tenant": "acme", "target": "a", "direction": "request", "method": "tools/call", "name": "search",
		"principal": map[string]any{"id": "jwt:https://issuer ada", "name": "ada"},
		"content":   []any{map[string]any{"path": "/params/arguments/q", "text": "one"}, map[string]any{"path": "/params/arguments/list/0", "text": "two"}},
	}, sent); diff != "" {
		t.Errorf("sent (-want +got):\n%s", diff)
	}
	h := j.heads[0]
	if h.Get("Authorization") != "Bearer s3cret-hook" || h.Get("X-Tool") != "search" || h.Get("X-Fixed") != "f" || h.Get("Content-Type") != "application/json" {
		t.Errorf("headers: %v", h)
	}
	if len(j.conns) != 1 {
		t.Errorf("%d connections for %d requests", len(j.conns), len(j.bodies))
	}
}

// What a service does wrong, or not at all, refuses by default and passes where the policy says so; both say why.
func TestJudgesThatFail(t *testing.T) {
	hang := make(chan struct{})
	t.Cleanup(func() { close(hang) })
	hung := func(_ http.ResponseWriter, r *http.Request, _ []byte) {
		select {
		case <-hang:
		case <-r.Context().Done():
		}
	}
	drip := func(w http.ResponseWriter, r *http.Request, body []byte) {
		_, _ = io.WriteString(w, `{"action":`)
		_ = http.NewResponseController(w).Flush()
		hung(w, r, body)
	}
	huge := func(w http.ResponseWriter, _ *http.Request, _ []byte) {
		for range 1 << 10 {
			if _, err := io.WriteString(w, strings.Repeat(" ", 1<<10)); err != nil {
				return
			}
		}
		_, _ = io.WriteString(w, `{"action":"pass"}`)
	}
	redirect := func(w http.ResponseWriter, r *http.Request, _ []byte) {
		http.Redirect(w, r, "/elsewhere", http.StatusTemporaryRedirect)
	}
	webhook := `{"webhook":{"url":"%s","timeout":"0.2s","credential":{"value":"s3cret"}%s}}`
	moderation := `{"openAIModeration":{"url":"%s","timeout":"0.2s","categories":["violence"],"credential":{"value":"s3cret"}%s}}`
	for name, tt := range map[string]struct {
		guard  string
		answer func(http.ResponseWriter, *http.Request, []byte)
		says   string
	}{
		"hangs":          {webhook, hung, "no answer within 200ms"},
		"drips":          {webhook, drip, "no answer within 200ms"},
		"huge":           {webhook, huge, "more than"},
		"garbage":        {webhook, says("<html>oops</html>"), "no JSON"},
		"two answers":    {webhook, says(`{"action":"pass"}{"action":"reject"}`), "no JSON"},
		"empty":          {webhook, says(""), "no JSON"},
		"no action":      {webhook, says(`{}`), `action ""`},
		"another action": {webhook, says(`{"action":"PASS"}`), `action "PASS"`},
		"a status": {webhook, func(w http.ResponseWriter, _ *http.Request, _ []byte) {
			w.WriteHeader(503)
			_, _ = io.WriteString(w, `{"action":"pass"}`)
		}, "status is 503"},
		"redirects":        {webhook, redirect, "status is 307"},
		"masks nothing":    {webhook, says(`{"action":"mask"}`), "no content"},
		"another path":     {webhook, says(`{"action":"mask","content":[{"path":"/params/name","text":"x"}]}`), "not asked about"},
		"no text":          {webhook, says(`{"action":"mask","content":[{"path":"/params/arguments/q"}]}`), "no text"},
		"moderation hangs": {moderation, hung, "no answer within 200ms"},
		"too few results":  {moderation, says(`{"results":[]}`), "0 results for 2"},
		"no verdict":       {moderation, says(`{"results":[{},{}]}`), "without `flagged`"},
		"no such category": {moderation, says(`{"results":[{"flagged":false,"categories":{"hate":false}},{"flagged":false,"categories":{"hate":false}}]}`), `no category "violence"`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			j := newJudging(t, false, tt.answer)
			guarded := judgedBy(t, fmt.Sprintf(tt.guard, j.URL, ""), "private-network")
			_, note, err := guarded.guardCall(t.Context(), searchCall)
			g, ok := errors.AsType[*GuardError](err)
			if !ok || !g.Undecided || note != nil || !strings.Contains(fmt.Sprint(g.Err), tt.says) || !strings.Contains(g.Message, "policies.ai.promptGuard.request[0]") {
				t.Errorf("closed: %v (%v), want …%s…", err, g, tt.says)
			}
			out, note, err := judgedBy(t, fmt.Sprintf(tt.guard, j.URL, `,"failureMode":"FAILURE_MODE_FAIL_OPEN"`), "private-network").guardCall(t.Context(), searchCall)
			if out != searchCall || err != nil || note == nil || !strings.Contains(note.Error(), tt.says) {
				t.Errorf("open: %v, %v, want …%s…", note, err, tt.says)
			}
			if err := guarded.Trouble(); err == nil || !strings.Contains(err.Error(), tt.says) || !strings.HasPrefix(err.Error(), "policies.ai.promptGuard.request[0]: ") {
				t.Errorf("the operator is told %v", err)
			}
			if all := fmt.Sprint(g, g.Err, note); strings.Contains(all, "s3cret") || strings.Contains(all, j.URL) {
				t.Errorf("tells a secret, or where: %s", all)
			}
			j.mu.Lock()
			defer j.mu.Unlock()
			if len(j.bodies) != 2 {
				t.Errorf("%d requests for two questions: a redirect was followed, or something sent again", len(j.bodies))
			}
		})
	}
}

// Trouble is over when there is a decision, whichever; who leaves early says nothing of the service.
func TestTroubleWithJudges(t *testing.T) {
	var answer atomic.Pointer[string]
	say := func(s string) { answer.Store(&s) }
	j := newJudging(t, false, func(w http.ResponseWriter, _ *http.Request, _ []byte) { _, _ = io.WriteString(w, *answer.Load()) })
	target := judgedBy(t, `{"regex":{"rules":[{"pattern":"stop"}]}},{"webhook":{"url":"`+j.URL+`"}}`, "private-network")
	for _, tt := range []struct {
		answer, message string
		trouble         bool
	}{
		{`{"action":"pass"}`, searchCall, false},
		{`oops`, searchCall, true},
		{`{"action":"pass"}`, strings.Replace(searchCall, `"one"`, `"stop"`, 1), true}, // it was not asked
		{`{"action":"reject","reason":"x"}`, searchCall, false},
	} {
		say(tt.answer)
		_, _, _ = target.guardCall(t.Context(), tt.message)
		if err := target.Trouble(); (err != nil) != tt.trouble {
			t.Errorf("after %s: %v", tt.answer, err)
		}
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	_, _, _ = target.guardCall(gone, searchCall)
	if err := target.Trouble(); err != nil {
		t.Errorf("after a caller who left: %v", err)
	}
	if err := (*Target)(nil).Trouble(); err != nil {
		t.Error(err)
	}
}

// Guards dial within the tenant's grants.
func TestJudgesAndGrants(t *testing.T) {
	j := newJudging(t, false, says(`{"action":"pass"}`))
	_, _, err := judgedBy(t, `{"webhook":{"url":"`+j.URL+`"}}`).guardCall(t.Context(), searchCall)
	if g, ok := errors.AsType[*GuardError](err); !ok || !strings.Contains(fmt.Sprint(g.Err), "private-network") || len(j.bodies) > 0 {
		t.Errorf("without a grant: %v", err)
	}
}

func TestWebhookTLS(t *testing.T) {
	j := newJudging(t, true, says(`{"action":"pass"}`))
	ca, _ := json.Marshal(string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: j.Certificate().Raw})))
	if _, _, err := judgedBy(t, `{"webhook":{"url":"`+j.URL+`"}}`, "private-network").guardCall(t.Context(), searchCall); err == nil {
		t.Error("an unknown authority is trusted")
	}
	target := judgedBy(t, `{"webhook":{"url":"`+j.URL+`","tls":{"root":{"value":`+string(ca)+`},"hostname":"example.com"}}}`, "private-network")
	if _, _, err := target.guardCall(t.Context(), searchCall); err != nil {
		t.Errorf("with its root: %v", errors.Unwrap(err))
	}
}

func TestModeration(t *testing.T) {
	var answer string
	j := newJudging(t, false, func(w http.ResponseWriter, _ *http.Request, _ []byte) { _, _ = io.WriteString(w, answer) })
	results := func(flagged bool, hate, violence string) string {
		r := fmt.Sprintf(`{"flagged":%v,"categories":{"hate":%s,"violence":%s},"category_scores":{"hate":0.1}}`, flagged, hate, violence)
		return `{"id":"modr-1","model":"m","results":[{"flagged":false,"categories":{"hate":false,"violence":false}},` + r + `]}`
	}
	any := judgedBy(t, `{"openAIModeration":{"url":"`+j.URL+`","credential":{"value":"k"},"model":"m1"}}`, "private-network")
	violence := judgedBy(t, `{"openAIModeration":{"url":"`+j.URL+`","categories":["violence"]}}`, "private-network")
	for _, tt := range []struct {
		answer        string
		any, violence bool // passes
	}{
		{results(false, "false", "false"), true, true}, {results(true, "true", "false"), false, true}, {results(true, "false", "true"), false, false}, {results(true, "true", "null"), false, true},
	} {
		answer = tt.answer
		for target, passes := range map[*Target]bool{any: tt.any, violence: tt.violence} {
			_, _, err := target.guardCall(t.Context(), searchCall)
			if g, _ := errors.AsType[*GuardError](err); passes != (err == nil) || err != nil && g.Undecided {
				t.Errorf("%s: %v", tt.answer, err)
			}
		}
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	found := false
	for i, b := range j.bodies {
		found = found || strings.TrimSpace(b) == `{"model":"m1","input":["one","two"]}` && j.heads[i].Get("Authorization") == "Bearer k"
	}
	if !found {
		t.Errorf("sent %s", j.bodies)
	}
}
