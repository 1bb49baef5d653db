package oldclient

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sluicegate/sluice/dataplane/mcp"
	"github.com/sluicegate/sluice/dataplane/session"
	"github.com/sluicegate/sluice/dataplane/snapshot"
	"github.com/sluicegate/sluice/dataplane/upstream"
	xdsv1 "github.com/sluicegate/sluice/proto/gen/sluice/xds/v1"
)

// target is a server of 2026-07-28 in memory, so that tests have the time in their hands. What it is not told to answer, it answers as
// such a server does.
type target struct {
	on map[string]func(ctx context.Context, m *message) (*upstream.Response, error)

	mu  sync.Mutex
	got []string // guarded by mu; methods
}

// message is one that a target got.
type message struct {
	ID     json.RawMessage
	Method string
	Params struct {
		InputResponses map[string]json.RawMessage
		Notifications  struct{ ResourceSubscriptions []string }
	}
	header http.Header
}

func (*target) Owned() bool { return false }

func (s *target) Do(ctx context.Context, r *upstream.Request) (*upstream.Response, error) {
	m := message{header: r.Header}
	if err := json.Unmarshal(r.Body, &m); err != nil {
		return nil, err
	}
	s.mu.Lock()
	s.got = append(s.got, m.Method)
	s.mu.Unlock()
	if f := s.on[m.Method]; f != nil {
		return f(ctx, &m)
	}
	switch m.Method {
	case "server/discover":
		return complete(&m, `"ttlMs":60000,"cacheScope":"private","capabilities":{"logging":{},"tools":{"listChanged":true},"resources":{"subscribe":true}}`), nil
	case "tools/list":
		return complete(&m, `"tools":[]`), nil
	case "subscriptions/listen":
		resp, _ := heeded(ctx, &m)
		return resp, nil
	}
	return complete(&m, `"content":[]`), nil
}

// count tells how often a method came.
func (s *target) count(method string) (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, m := range s.got {
		if m == method {
			n++
		}
	}
	return n
}

func complete(m *message, members string) *upstream.Response {
	return jsonResponse(http.StatusOK, mcp.AppendResult(nil, m.ID, []byte(`{"resultType":"complete",`+members+`}`)), nil)
}

// asks is the answer that wants input of the client.
func asks(m *message, requests string) *upstream.Response {
	return jsonResponse(http.StatusOK, mcp.AppendResult(nil, m.ID, []byte(`{"resultType":"input_required","requestState":"s","inputRequests":`+requests+`}`)), nil)
}

// heeded is a listen that honours all that was asked for, and the end where more of its events are written.
func heeded(ctx context.Context, m *message) (*upstream.Response, *io.PipeWriter) {
	r, w := io.Pipe()
	context.AfterFunc(ctx, func() { _ = r.CloseWithError(context.Cause(ctx)) })
	honoured, _ := json.Marshal(m.Params.Notifications)
	go say(w, `{"jsonrpc":"2.0","method":"notifications/subscriptions/acknowledged","params":{"notifications":`+string(honoured)+`}}`)
	return &upstream.Response{Status: http.StatusOK, Header: http.Header{"Content-Type": {mcp.TypeStream}}, Body: r}, w
}

func say(w io.Writer, msg string) { _, _ = io.WriteString(w, "data: "+msg+"\n\n") }

// client is one of the session era, with a session at a target.
type client struct {
	t *testing.T
	b *Bridge
	upstream.Transport
}

// bridged runs f in a bubble with a client that can be asked everything.
func bridged(t *testing.T, s *target, f func(t *testing.T, c client)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		b := New(Config{Transport: func(*snapshot.Target) upstream.Transport { return s }})
		f(t, client{t, b, b.Sessions(
			&snapshot.Target{Name: "only", Resource: "only", Digest: "1", Config: &xdsv1.Target{}, Tenant: &snapshot.Owner{Name: "acme"}},
			Client{Principal: "ada", Session: &session.State{
				Nonce: session.Nonce{1}, Version: "2025-11-25", ClientInfo: `{"name":"c","version":"0"}`, Capabilities: `{"elicitation":{},"roots":{},"sampling":{}}`,
				Expires: time.Now().Add(24 * time.Hour),
			}},
		)})
	})
}

// post sends a message.
func (c client) post(ctx context.Context, body string) (*upstream.Response, error) {
	return c.Do(ctx, &upstream.Request{Method: http.MethodPost, Header: http.Header{}, Body: []byte(body)})
}

// must is post of what is answered.
func (c client) must(body string) *upstream.Response {
	c.t.Helper()
	resp, err := c.post(c.t.Context(), body)
	if err != nil {
		c.t.Fatal(err)
	}
	return resp
}

// get opens the session's stream.
func (c client) get(ctx context.Context) *upstream.Response {
	c.t.Helper()
	resp, err := c.Do(ctx, &upstream.Request{Method: http.MethodGet, Header: http.Header{}})
	if err != nil {
		c.t.Fatal(err)
	}
	return resp
}

const toolCall = `{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"t","arguments":{}}}`

// next reads the next message of a stream.
func next(t *testing.T, events *mcp.EventReader) *mcp.Message {
	t.Helper()
	ev, err := events.Next()
	if err != nil {
		t.Fatal(err)
	}
	m, err := mcp.Scan(slices.Clone(ev.Data), mcp.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	return &m
}

func whole(t *testing.T, resp *upstream.Response) string {
	t.Helper()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(body)
}

// Whoever waits for what several share waits no longer than he may himself, and the others get it all the same.
func TestTimeOfWhatIsShared(t *testing.T) {
	for _, method := range []string{"server/discover", "tools/list"} {
		t.Run(method, func(t *testing.T) {
			s := &target{on: map[string]func(context.Context, *message) (*upstream.Response, error){method: func(ctx context.Context, m *message) (*upstream.Response, error) {
				select {
				case <-time.After(20 * time.Second):
				case <-ctx.Done():
					return nil, context.Cause(ctx)
				}
				return complete(m, `"tools":[],"capabilities":{"logging":{}}`), nil
			}}}
			body := toolCall
			if method == "server/discover" {
				body = `{"jsonrpc":"2.0","id":7,"method":"logging/setLevel","params":{"level":"info"}}`
			}
			bridged(t, s, func(t *testing.T, c client) {
				ctx, cancel := context.WithTimeoutCause(t.Context(), 5*time.Second, upstream.ErrTimeout)
				defer cancel()
				other := make(chan error, 1)
				began := time.Now()
				go func() {
					time.Sleep(time.Second)
					_, err := c.post(t.Context(), body)
					other <- err
				}()
				if _, err := c.post(ctx, body); !errors.Is(err, upstream.ErrTimeout) {
					t.Errorf("the error is %v", err)
				}
				if took := time.Since(began); took != 5*time.Second {
					t.Errorf("who may wait for 5 s waited for %v", took)
				}
				if err := <-other; err != nil || s.count(method) != 1 {
					t.Errorf("the other got %v, and the target was asked %d times", err, s.count(method))
				}
			})
		})
	}
}

// Of several questions the first refusal ends the call: the client is told that the others need no answer any more, and one that comes
// all the same, or twice, is no error, which some clients take for the end of the session.
func TestAnswersThatComeLate(t *testing.T) {
	s := &target{on: map[string]func(context.Context, *message) (*upstream.Response, error){"tools/call": func(_ context.Context, m *message) (*upstream.Response, error) {
		return asks(m, `{"a":{"method":"roots/list"},"b":{"method":"roots/list"}}`), nil
	}}}
	bridged(t, s, func(t *testing.T, c client) {
		events := mcp.NewEventReader(c.must(toolCall).Body, 1<<20)
		a, b := string(next(t, events).RawID()), string(next(t, events).RawID())
		answer := func(id, what string) int { return c.must(`{"jsonrpc":"2.0","id":` + id + `,` + what + `}`).Status }
		if got := answer(a, `"error":{"code":-1,"message":"no"}`); got != http.StatusAccepted {
			t.Errorf("a refusal: %d", got)
		}
		if m := next(t, events); m.Method != "notifications/cancelled" || string(m.RequestID.Of(m.Body)) != b {
			t.Errorf("the client is not told that %s is void: %s", b, m.Body)
		}
		if m := next(t, events); string(m.RawID()) != "7" || !m.Error.Present() {
			t.Errorf("the call ends with %s", m.Body)
		}
		synctest.Wait()
		for _, id := range []string{a, b} {
			if got := answer(id, `"result":{"roots":[]}`); got != http.StatusAccepted {
				t.Errorf("an answer that comes too late: %d", got)
			}
		}
		if got := answer(`"sluice-made-up"`, `"result":{}`); got != http.StatusBadRequest {
			t.Errorf("an answer to what nobody asked: %d", got)
		}
		stranger := client{t, c.b, c.b.Sessions(&snapshot.Target{Name: "only", Config: &xdsv1.Target{}, Tenant: &snapshot.Owner{Name: "acme"}}, Client{Session: &session.State{Nonce: session.Nonce{2}}})}
		if got := stranger.must(`{"jsonrpc":"2.0","id":` + b + `,"result":{}}`).Status; got != http.StatusBadRequest {
			t.Errorf("an answer by another session: %d", got)
		}
	})
}

// What a target makes its client answer is held until all of it is there: no more than one message could bring.
func TestAnswersThatAreTooMuch(t *testing.T) {
	many := `{"k":{"method":"roots/list"}`
	for i := range maxAsked {
		many += `,"k` + strconv.Itoa(i) + `":{"method":"roots/list"}`
	}
	many += "}"
	for _, tt := range []struct {
		name, requests string
		answers        int
		want           string
	}{
		{"in bytes", `{"a":{"method":"roots/list"},"b":{"method":"roots/list"},"c":{"method":"roots/list"}}`, 3, "too large"},
		{"in number", many, 0, "at once"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := &target{on: map[string]func(context.Context, *message) (*upstream.Response, error){"tools/call": func(_ context.Context, m *message) (*upstream.Response, error) {
				if m.Params.InputResponses != nil {
					return complete(m, `"content":[]`), nil
				}
				return asks(m, tt.requests), nil
			}}}
			bridged(t, s, func(t *testing.T, c client) {
				events := mcp.NewEventReader(c.must(toolCall).Body, 1<<24)
				var ids []string
				for range tt.answers {
					ids = append(ids, string(next(t, events).RawID()))
				}
				large := `"result":{"roots":[],"x":"` + strings.Repeat("x", 6<<20) + `"}`
				for _, id := range slices.Backward(ids) { // the call waits for the first meanwhile
					c.must(`{"jsonrpc":"2.0","id":` + id + `,` + large + `}`)
				}
				m := next(t, events)
				for m.Kind == mcp.Notification {
					m = next(t, events)
				}
				if !m.Error.Present() || !strings.Contains(string(m.Body), tt.want) {
					t.Errorf("the call ends with %.200s", m.Body)
				}
			})
		})
	}
}

// A list of tools that fails is no reason to call them without their headers for as long as one is believed.
func TestToolsThatFailToList(t *testing.T) {
	lists := 0
	s := &target{on: map[string]func(context.Context, *message) (*upstream.Response, error){"tools/list": func(_ context.Context, m *message) (*upstream.Response, error) {
		if lists++; lists == 1 {
			return refuse(http.StatusOK, m.ID, mcp.CodeInternal, "not now"), nil
		}
		return complete(m, `"tools":[]`), nil
	}}}
	bridged(t, s, func(t *testing.T, c client) {
		for range 3 {
			if got := whole(t, c.must(toolCall)); !strings.Contains(got, `"content"`) {
				t.Errorf("a call: %s", got)
			}
		}
		if lists != 2 {
			t.Errorf("the tools were listed %d times, want 2", lists)
		}
	})
}

// A listen that a target does not keep is begun ever more slowly, one that fails for now is begun again, and one that it does not
// have is not.
func TestListensThatEnd(t *testing.T) {
	for name, tt := range map[string]struct {
		answer      func(context.Context, *message) (*upstream.Response, error)
		least, most int // listens in a minute
	}{
		"at once": {func(ctx context.Context, m *message) (*upstream.Response, error) {
			resp, w := heeded(ctx, m)
			go func() {
				time.Sleep(time.Millisecond)
				_ = w.Close()
			}()
			return resp, nil
		}, 4, 8},
		"refused for now": {func(_ context.Context, m *message) (*upstream.Response, error) {
			return refuse(http.StatusOK, m.ID, mcp.CodeInternal, "not now"), nil
		}, 4, 8},
		"unknown": {func(_ context.Context, m *message) (*upstream.Response, error) {
			return refuse(http.StatusNotFound, m.ID, mcp.CodeMethodNotFound, "Method not found"), nil
		}, 1, 1},
	} {
		t.Run(name, func(t *testing.T) {
			s := &target{on: map[string]func(context.Context, *message) (*upstream.Response, error){
				"subscriptions/listen": tt.answer,
				"server/discover": func(_ context.Context, m *message) (*upstream.Response, error) {
					return complete(m, `"capabilities":{"tools":{"listChanged":true}}`), nil
				},
			}}
			bridged(t, s, func(t *testing.T, c client) {
				ctx, cancel := context.WithCancel(t.Context())
				body := c.get(ctx).Body
				go func() { _, _ = io.Copy(io.Discard, body) }()
				time.Sleep(time.Minute)
				if n := s.count("subscriptions/listen"); n < tt.least || n > tt.most {
					t.Errorf("%d listens in a minute, want %d to %d", n, tt.least, tt.most)
				}
				cancel()
				_ = body.Close()
				synctest.Wait()
			})
		})
	}
}
