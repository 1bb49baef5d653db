package dataplane

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/modelcontextprotocol/go-sdk/mcp"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/sluicegate/sluice/internal/mcptest"
)

// posts records what a target is sent.
type posts struct {
	mu  sync.Mutex
	all []string // guarded by mu
}

func (p *posts) wrap(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost {
			body, _ := io.ReadAll(r.Body)
			p.add(string(body))
			r.Body = io.NopCloser(strings.NewReader(string(body)))
		}
		next.ServeHTTP(w, r)
	})
}

func (p *posts) add(body string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.all = append(p.all, body)
}

// with are those that hold a text.
func (p *posts) with(text string) (found []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, body := range p.all {
		if strings.Contains(body, text) {
			found = append(found, body)
		}
	}
	return found
}

const canElicit = `{"elicitation":{}}`

// asked calls the tool elicit and returns what the client is asked: the key and the requestState.
func (p *testProxy) asked(t *testing.T, headers ...string) (key, state string) {
	t.Helper()
	got := p.stateless(t, "tools/call", "elicit", `"name":"elicit","arguments":{"a":1,"b":[2]}`, append(headers, "caps", canElicit)...)
	return questionOf(t, got)
}

func questionOf(t *testing.T, got answer) (key, state string) {
	t.Helper()
	r := got.result(t)
	if got.status != 200 || r.ResultType != "input_required" || len(r.InputRequests) != 1 || r.RequestState == "" {
		t.Fatalf("%d %s, want one question", got.status, got.body)
	}
	for key, request := range r.InputRequests {
		if request.Method != "elicitation/create" || request.Params["message"] == nil {
			t.Errorf("asked %v", request)
		}
		return key, r.RequestState
	}
	return "", ""
}

// retry comes back with answers.
func (p *testProxy) retry(t *testing.T, responses, state string, headers ...string) answer {
	t.Helper()
	return p.stateless(t, "tools/call", "elicit", `"name":"elicit","arguments":{ "b" : [2],"a":1},"inputResponses":`+responses+`,"requestState":"`+state+`"`, append(headers, "caps", canElicit)...)
}

func accepted(key string) string {
	return `{"` + key + `":{"action":"accept","content":{"name":"Ada"}}}`
}

func bridgeRetry(t *testing.T) {
	seen := &posts{}
	w := behind(mcptest.NewServer(t, mcptest.Options{Wrap: seen.wrap}).URL).withKeys()
	p := w.start(t)

	t.Run("answered", func(t *testing.T) {
		key, state := p.asked(t, alice...)
		calls := len(seen.with(`"tools/call"`))
		if got := p.retry(t, accepted(key), state, alice...); got.status != 200 || textOf(t, got) != "Hello, Ada!" {
			t.Errorf("%d %s", got.status, got.body)
		}
		if n := len(seen.with(`"tools/call"`)) - calls; n != 0 {
			t.Errorf("the target was called %d times more", n)
		}
		if got := p.retry(t, accepted(key), state, alice...); got.result(t).Error.Code != -32602 || !strings.Contains(got.body, "not run again") {
			t.Errorf("a second time: %s", got.body)
		}
		if n := len(seen.with(`"tools/call"`)) - calls; n != 0 {
			t.Errorf("after the second time, the target was called %d times more", n)
		}
	})
	t.Run("declined", func(t *testing.T) {
		key, state := p.asked(t, alice...)
		if got := p.retry(t, `{"`+key+`":{"action":"decline"}}`, state, alice...); textOf(t, got) != "declined" {
			t.Errorf("%s", got.body)
		}
	})
	t.Run("more than was asked", func(t *testing.T) {
		key, state := p.asked(t, alice...)
		if got := p.retry(t, `{"x":{"action":"accept"},"y":1,`+accepted(key)[1:], state, alice...); textOf(t, got) != "Hello, Ada!" {
			t.Errorf("%s", got.body)
		}
	})
	t.Run("less than was asked", func(t *testing.T) {
		key, state := p.asked(t, alice...)
		for _, responses := range []string{`{}`, `{"wrong":{"action":"accept"}}`, `{"` + key + `":7}`, `[]`, `null`} {
			again, next := questionOf(t, p.retry(t, responses, state, alice...))
			if again != key || next == state {
				t.Errorf("%s: asked %q anew, want %q in another state", responses, again, key)
			}
			if got := p.retry(t, accepted(key), state, alice...); got.result(t).Error.Code != -32602 {
				t.Errorf("the state before: %s", got.body)
			}
			state = next
		}
		if got := p.retry(t, accepted(key), state, alice...); textOf(t, got) != "Hello, Ada!" {
			t.Errorf("%s", got.body)
		}
	})
	t.Run("refused", func(t *testing.T) {
		key, state := p.asked(t, alice...)
		before := len(seen.with(`"result"`))
		retry := func(method, name, params, state string, who []string) answer {
			return p.stateless(t, method, name, params+`,"inputResponses":`+accepted(key)+`,"requestState":"`+state+`"`, append([]string{"caps", canElicit}, who...)...)
		}
		const tool, args = `"name":"elicit"`, `"arguments":{"a":1,"b":[2]}`
		for name, got := range map[string]answer{
			"another principal": retry("tools/call", "elicit", tool+","+args, state, bob),
			"edited":            retry("tools/call", "elicit", tool+","+args, state+"-TAMPERED", alice),
			"nonsense":          retry("tools/call", "elicit", tool+","+args, "x", alice),
			"empty":             retry("tools/call", "elicit", tool+","+args, "", alice),
			"other arguments":   retry("tools/call", "elicit", tool+`,"arguments":{"a":1,"b":[3]}`, state, alice),
			"no arguments":      retry("tools/call", "elicit", tool, state, alice),
			"another tool":      retry("tools/call", "sample", `"name":"sample",`+args, state, alice),
			"another method":    retry("prompts/get", "elicit", tool+","+args, state, alice),
		} {
			if r := got.result(t); r.Error.Code != -32602 || !strings.Contains(r.Error.Message, "requestState") {
				t.Errorf("%s: %s", name, got.body)
			}
		}
		if n := len(seen.with(`"result"`)); n != before {
			t.Errorf("the target got %d answers", n-before)
		}
		if got := p.retry(t, accepted(key), state, alice...); textOf(t, got) != "Hello, Ada!" {
			t.Errorf("afterwards: %s", got.body)
		}
	})
	t.Run("elsewhere", func(t *testing.T) {
		key, state := p.asked(t, alice...)
		if got := w.startAs(t, "proxy-2", "127.0.0.1:0").retry(t, accepted(key), state, alice...); got.status != 503 || !strings.Contains(got.body, "proxy-1") {
			t.Errorf("another proxy: %d %s", got.status, got.body)
		}
		if got := w.start(t).retry(t, accepted(key), state, alice...); got.result(t).Error.Code != -32602 {
			t.Errorf("the proxy, started anew: %s", got.body)
		}
	})
}

// A call that nobody comes back to is cancelled at its target.
func bridgeParkedExpires(t *testing.T) {
	seen := &posts{}
	w := behind(mcptest.NewServer(t, mcptest.Options{Wrap: seen.wrap}).URL)
	w.targets[0].Timeout = durationpb.New(500 * time.Millisecond)
	p := w.start(t)
	key, state := p.asked(t)
	waitFor(t, "notifications/cancelled", func() bool { return len(seen.with("notifications/cancelled")) > 0 })
	if body := seen.with("notifications/cancelled")[0]; !strings.Contains(body, `"requestId":7,`) {
		t.Errorf("cancelled: %s", body)
	}
	if got := p.retry(t, accepted(key), state); got.result(t).Error.Code != -32602 {
		t.Errorf("afterwards: %s", got.body)
	}
}

// A client that leaves has cancelled, with the id that the target knows, also on a later round.
func bridgeClientLeaves(t *testing.T) {
	started, cancelled := make(chan struct{}, 1), make(chan struct{}, 1)
	seen := &posts{}
	srv := mcptest.NewServer(t, mcptest.Options{Wrap: seen.wrap})
	srv.MCP.AddTool(tool("hang"), func(ctx context.Context, _ *mcp.CallToolRequest) (*mcp.CallToolResult, error) {
		started <- struct{}{}
		<-ctx.Done()
		cancelled <- struct{}{}
		return nil, ctx.Err()
	})
	p := behind(srv.URL).start(t)
	ctx, leave := context.WithCancel(t.Context())
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, p.URL, strings.NewReader(`{"jsonrpc":"2.0","id":"nine","method":"tools/call","params":{"name":"hang","arguments":{},`+
		`"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{}}}}`))
	if err != nil {
		t.Fatal(err)
	}
	for name, value := range map[string]string{"Accept": "application/json, text/event-stream", "Content-Type": "application/json",
		"MCP-Protocol-Version": "2026-07-28", "Mcp-Method": "tools/call", "Mcp-Name": "hang"} {
		req.Header.Set(name, value)
	}
	go func() {
		<-started
		leave()
	}()
	if resp, err := http.DefaultClient.Do(req); err == nil {
		_, _ = io.ReadAll(resp.Body)
		_ = resp.Body.Close()
	}
	<-cancelled
	if got := seen.with("notifications/cancelled"); len(got) != 1 || !strings.Contains(got[0], `"requestId":"nine"`) {
		t.Errorf("cancelled: %v", got)
	}
}

// What a target asks at once is one question to the client; what it asks later is another round of the same call.
func TestBridgeSeveralQuestions(t *testing.T) {
	for _, scope := range []bool{false, true} {
		srv := mcptest.NewServer(t, mcptest.Options{Bare: true})
		ask := func(ctx context.Context, r *mcp.CallToolRequest, what string) string {
			res, err := r.Session.Elicit(ctx, &mcp.ElicitParams{Message: what, RequestedSchema: map[string]any{"type": "object", "properties": map[string]any{"name": map[string]any{"type": "string"}}}})
			if err != nil {
				return err.Error()
			}
			return fmt.Sprint(res.Content["name"])
		}
		srv.MCP.AddTool(tool("survey"), func(ctx context.Context, r *mcp.CallToolRequest) (*mcp.CallToolResult, error) {
			var got [3]string
			var wg sync.WaitGroup
			for i := range got {
				wg.Go(func() { got[i] = ask(ctx, r, fmt.Sprint("one of three: ", i)) })
			}
			wg.Wait()
			last := ask(ctx, r, "one more")
			return &mcp.CallToolResult{Content: []mcp.Content{&mcp.TextContent{Text: strings.Join(append(got[:], last), " ")}}}, nil
		})
		w := behind(srv.URL)
		if scope {
			w.targets[0].SessionScope = sharedByCaller
		}
		p := w.start(t)
		got := p.stateless(t, "tools/call", "survey", `"name":"survey"`, "caps", canElicit)
		first := got.result(t)
		if len(first.InputRequests) != 3 {
			t.Fatalf("%d questions at once, want 3: %s", len(first.InputRequests), got.body)
		}
		var answers []string
		for key := range first.InputRequests {
			answers = append(answers, `"`+key+`":{"action":"accept","content":{"name":"Ada"}}`)
		}
		next := func(state, answers string) answer {
			return p.stateless(t, "tools/call", "survey", `"name":"survey","requestState":"`+state+`","inputResponses":{`+answers+`}`, "caps", canElicit)
		}
		// Two of the answers: the third is asked for again.
		got = next(first.RequestState, strings.Join(answers[:2], ","))
		second := got.result(t)
		if len(second.InputRequests) != 1 {
			t.Fatalf("after two answers of three: %s", got.body)
		}
		for key := range second.InputRequests {
			if !strings.Contains(answers[2], `"`+key+`"`) {
				t.Errorf("asked again for %q, want the one of %s", key, answers[2])
			}
		}
		got = next(second.RequestState, answers[2])
		third := got.result(t)
		if len(third.InputRequests) != 1 {
			t.Fatalf("the second round: %s", got.body)
		}
		for key, request := range third.InputRequests {
			if request.Params["message"] != "one more" {
				t.Errorf("asked %v", request)
			}
			got = next(third.RequestState, `"`+key+`":{"action":"accept","content":{"name":"Eve"}}`)
		}
		if text := textOf(t, got); text != "Ada Ada Ada Eve" {
			t.Errorf("%s", text)
		}
	}
}

// Calls of one session that ask at the same time do not mix up their answers, whatever tells them apart.
func TestBridgeConcurrentQuestions(t *testing.T) {
	for transport, make := range oldTargets {
		t.Run(transport, func(t *testing.T) {
			w := make(t)
			w.targets[0].SessionScope = sharedByCaller
			p := w.start(t)
			key, state := p.asked(t) // one alone tells by which way this target asks
			if got := p.retry(t, accepted(key), state); textOf(t, got) != "Hello, Ada!" {
				t.Fatal(got.body)
			}
			var wg sync.WaitGroup
			for i := range 4 {
				wg.Go(func() {
					for range 3 {
						name := fmt.Sprint("name-", i)
						key, state := p.asked(t)
						got := p.retry(t, `{"`+key+`":{"action":"accept","content":{"name":"`+name+`"}}}`, state)
						if text := textOf(t, got); text != "Hello, "+name+"!" {
							t.Errorf("%s got %q", name, text)
						}
					}
				})
			}
			wg.Wait()
		})
	}
}
