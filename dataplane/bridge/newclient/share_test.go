package newclient

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sluicegate/sluice/dataplane/session"
	"github.com/sluicegate/sluice/dataplane/snapshot"
	"github.com/sluicegate/sluice/dataplane/upstream"
	"github.com/sluicegate/sluice/internal/hold"
	xdsv1 "github.com/sluicegate/sluice/proto/gen/sluice/xds/v1"
)

// callers runs f in a bubble with faces of one target for several callers, each of whose requests has a session of its own.
func callers(t *testing.T, s *target, cfg Config, f func(t *testing.T, face func(principal string) upstream.Transport)) {
	t.Helper()
	codec, err := session.New([]session.Key{{ID: [4]byte{1}}})
	if err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		cfg.Transport, cfg.ProxyID = func(*snapshot.Target) upstream.Transport { return s }, "p"
		b := New(cfg)
		only := &snapshot.Target{Name: "only", Resource: "only", Digest: "1", Tenant: &snapshot.Owner{Name: "acme"}, Config: &xdsv1.Target{SessionScope: &xdsv1.SessionScope{Share: xdsv1.SessionScope_SHARE_NONE}}}
		f(t, func(principal string) upstream.Transport {
			return b.Stateless(only, Caller{Codec: codec, Scope: session.Scope{Principal: principal}})
		})
		if err := b.Close(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

// able calls a tool in the name of a client that can be asked.
func able(ctx context.Context, face upstream.Transport, params string) (*upstream.Response, error) {
	body := `{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"x"` + params + `,"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{"elicitation":{}}}}}`
	return face.Do(ctx, &upstream.Request{Method: http.MethodPost, Header: http.Header{}, Body: []byte(body)})
}

func said(t *testing.T, resp *upstream.Response, err error) string {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return strconv.Itoa(resp.Status) + " " + string(raw)
}

// One caller has at most half of what a target has here, so that others are served; anonymous callers, of whom nobody knows how
// many they are, have all of it.
func TestShareOfSessions(t *testing.T) {
	for _, tt := range []struct {
		principal string
		most      int
		refusal   string
	}{
		{"ada", 2, "you use as many sessions of target"},
		{"", 4, "too many open sessions"},
	} {
		t.Run("caller "+tt.principal, func(t *testing.T) {
			s := &target{on: map[string]func(context.Context, *message) (*upstream.Response, error){"tools/call": standing}}
			callers(t, s, Config{MaxSessions: 4}, func(t *testing.T, face func(string) upstream.Transport) {
				var open []io.Closer
				hold := func(principal string) {
					t.Helper()
					resp, err := do(t.Context(), face(principal), "tools/call", `"name":"x"`)
					if err != nil || resp.Status != http.StatusOK {
						t.Fatalf("%+v %v", resp, err)
					}
					open = append(open, resp.Body)
				}
				for range tt.most {
					hold(tt.principal)
				}
				for _, method := range []string{"tools/call", "server/discover", "subscriptions/listen"} {
					resp, err := do(t.Context(), face(tt.principal), method, `"name":"x","notifications":{}`)
					if got := said(t, resp, err); !strings.HasPrefix(got, "503 ") || !strings.Contains(got, tt.refusal) || resp.Header.Get("Retry-After") == "" {
						t.Errorf("%s: %s %v", method, got, resp.Header)
					}
				}
				if tt.principal != "" {
					hold("bob")
				}
				_ = open[0].Close()
				synctest.Wait()
				hold(tt.principal)
				for _, body := range open {
					_ = body.Close()
				}
			})
		})
	}
}

// Nor can one caller fill the room for calls that wait for their clients.
func TestShareOfParkedCalls(t *testing.T) {
	s := &target{on: map[string]func(context.Context, *message) (*upstream.Response, error){
		"tools/call": func(ctx context.Context, _ *message) (*upstream.Response, error) {
			r, w := io.Pipe()
			go func() {
				_, _ = io.WriteString(w, `data: {"jsonrpc":"2.0","id":1,"method":"elicitation/create","params":{}}`+"\n\n")
			}()
			return events(ctx, r), nil
		},
	}}
	callers(t, s, Config{MaxParked: 4}, func(t *testing.T, face func(string) upstream.Transport) {
		for n, want := range []string{"input_required", "input_required", "as many calls of the target wait for you"} {
			resp, err := able(t.Context(), face("ada"), "")
			if got := said(t, resp, err); !strings.Contains(got, want) {
				t.Errorf("call %d: %s, want %s", n, got, want)
			}
		}
		resp, err := able(t.Context(), face("bob"), "")
		if got := said(t, resp, err); !strings.Contains(got, "input_required") {
			t.Errorf("another caller: %s", got)
		}
		time.Sleep(5*time.Minute + time.Second)
		if n := s.count("notifications/cancelled"); n != 4 {
			t.Errorf("%d calls were cancelled, want 4", n)
		}
		resp, err = able(t.Context(), face("ada"), "")
		if got := said(t, resp, err); !strings.Contains(got, "input_required") {
			t.Errorf("afterwards: %s", got)
		}
	})
}

// What calls keep while they wait is bounded in bytes, for each tenant and of it each caller, and counted with all that they keep: the
// target's ids, too. Whatever ends the wait gives it back.
func TestParkedCallsAreBounded(t *testing.T) {
	const room = 1 << 20
	pad := strings.Repeat("x", 32<<10)
	s := &target{on: map[string]func(context.Context, *message) (*upstream.Response, error){
		"tools/call": func(ctx context.Context, _ *message) (*upstream.Response, error) {
			r, w := io.Pipe()
			go func() {
				_, _ = io.WriteString(w, `data: {"jsonrpc":"2.0","id":"`+pad+`","method":"elicitation/create","params":{"message":"`+pad+`"}}`+"\n\n")
			}()
			return events(ctx, r), nil
		},
	}}
	codec, err := session.New([]session.Key{{ID: [4]byte{1}}})
	if err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		b := New(Config{Transport: func(*snapshot.Target) upstream.Transport { return s }, ProxyID: "p"})
		b.asked = hold.NewBudget(room)
		call := func(tenant, caller string, n int) string {
			only := &snapshot.Target{Name: "only", Resource: fmt.Sprint(tenant, "/only", n), Digest: tenant, Tenant: &snapshot.Owner{Name: tenant}, Config: &xdsv1.Target{}}
			resp, err := able(t.Context(), b.Stateless(only, Caller{Codec: codec, Scope: session.Scope{Tenant: tenant, Principal: caller}}), "")
			return said(t, resp, err)
		}
		fill := func(caller string) (n int) {
			for n < 100 && strings.Contains(call("greedy", caller, n), "input_required") { // at another target each
				n++
			}
			return n
		}
		if n := fill("ada"); n != 7 {
			t.Errorf("%d calls of one caller wait, each with 68 KiB, want 7 in half of 1 MiB", n)
		}
		if n := fill(""); n < 7 || n > 9 {
			t.Errorf("%d calls of others wait in what is left, want 7 to 9", n)
		}
		if held := b.asked.Held("greedy"); held > room || held < room*7/8 {
			t.Errorf("a tenant holds %d bytes, want at most %d and most of them", held, room)
		}
		if got := call("modest", "ada", 0); !strings.Contains(got, "input_required") {
			t.Errorf("another tenant is told %.200s", got)
		}
		time.Sleep(5*time.Minute + time.Second)
		if held := b.asked.Held("greedy") + b.asked.Held("modest"); held != 0 {
			t.Errorf("%d bytes are held of calls that nobody came back to", held)
		}
		if err := b.Close(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

// Where a caller has his share, his own unused sessions make room, and nobody else's.
func TestShareMakesOwnRoom(t *testing.T) {
	s := &target{}
	synctest.Test(t, func(t *testing.T) {
		b := New(Config{MaxSessions: 4, Transport: func(*snapshot.Target) upstream.Transport { return s }})
		only := &snapshot.Target{Name: "only", Resource: "only", Digest: "1", Tenant: &snapshot.Owner{Name: "acme"}, Config: &xdsv1.Target{}}
		for n, principal := range []string{"bob", "ada", "ada", "ada", "ada", "bob"} {
			body := `{"jsonrpc":"2.0","id":7,"method":"tools/list","params":{"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{"x":` + strconv.Itoa(n%5) + `}}}}`
			resp, err := b.Stateless(only, Caller{Scope: session.Scope{Principal: principal}}).Do(t.Context(), &upstream.Request{Method: http.MethodPost, Body: []byte(body)})
			if got := said(t, resp, err); !strings.HasPrefix(got, "200") {
				t.Errorf("%s: %s", principal, got)
			}
			time.Sleep(time.Second)
		}
		if n := s.count("initialize"); n != 5 {
			t.Errorf("%d sessions were begun, want 5: one of bob's, which he finds again", n)
		}
		if err := b.Close(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

// children is a target that has no more than so many sessions, as one of processes does.
type children struct {
	*target
	most int
	seq  int             // guarded by target.mu
	open map[string]bool // guarded by target.mu; by session
}

func (*children) Owned() bool { return true }

func (c *children) Do(ctx context.Context, r *upstream.Request) (*upstream.Response, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	id := r.Header.Get("Mcp-Session-Id")
	switch {
	case r.Method == http.MethodDelete:
		delete(c.open, id)
		return status(http.StatusNoContent), nil
	case id != "" && !c.open[id]:
		return status(http.StatusNotFound), nil
	case id != "":
		c.mu.Unlock()
		defer c.mu.Lock()
		return c.target.Do(ctx, r)
	}
	if len(c.open) >= c.most {
		resp := answered(http.StatusServiceUnavailable, []byte(`{"jsonrpc":"2.0","id":"sluice-initialize","error":{"code":-32603,"message":"full"}}`))
		resp.Header.Set("Retry-After", "5")
		resp.Full = true
		return resp, nil
	}
	c.seq++
	id = strconv.Itoa(c.seq)
	c.open[id] = true
	resp := begun(&message{ID: []byte(`"sluice-initialize"`)})
	resp.Header.Set("Mcp-Session-Id", id)
	return resp, nil
}

// Sessions that are only kept for who may come back keep nobody out of a target that has no room for more.
func TestUnusedSessionsMakeRoom(t *testing.T) {
	s := &children{target: &target{on: map[string]func(context.Context, *message) (*upstream.Response, error){"tools/call": standing}}, most: 3, open: map[string]bool{}}
	synctest.Test(t, func(t *testing.T) {
		b := New(Config{Transport: func(*snapshot.Target) upstream.Transport { return s }})
		only := &snapshot.Target{Name: "only", Resource: "only", Tenant: &snapshot.Owner{Name: "acme"}, Config: &xdsv1.Target{}}
		ask := func(principal, method string, caps int) *upstream.Response {
			t.Helper()
			body := `{"jsonrpc":"2.0","id":7,"method":"` + method + `","params":{"name":"x","_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{"x":` + strconv.Itoa(caps) + `}}}}`
			resp, err := b.Stateless(only, Caller{Scope: session.Scope{Principal: principal}}).Do(t.Context(), &upstream.Request{Method: http.MethodPost, Body: []byte(body)})
			if err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Second)
			return resp
		}
		for n, tt := range []struct {
			principal string
			caps      int
		}{{"ada", 1}, {"bob", 1}, {"ada", 2}, {"ada", 3}, {"cyd", 1}, {"dan", 1}, {"eve", 1}} {
			if got := said(t, ask(tt.principal, "tools/list", tt.caps), nil); !strings.HasPrefix(got, "200") {
				t.Errorf("request %d, of %s: %s", n, tt.principal, got)
			}
		}
		var open []io.Closer
		for _, principal := range []string{"ada", "bob", "cyd"} {
			open = append(open, ask(principal, "tools/call", 1).Body)
		}
		resp := ask("dan", "tools/list", 1)
		after := resp.Header.Get("Retry-After")
		if got := said(t, resp, nil); got != `503 {"jsonrpc":"2.0","id":7,"error":{"code":-32603,"message":"full"}}` || after != "5" {
			t.Errorf("while all are in use: %s, again after %q", got, after)
		}
		for _, body := range open {
			_ = body.Close()
		}
		if err := b.Close(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

// Who leaves before his session has begun holds its place until it has: else any number could be begun at once.
func TestSessionsOfThoseWhoLeave(t *testing.T) {
	var mu sync.Mutex
	open, most := 0, 0
	s := &target{}
	s.on = map[string]func(context.Context, *message) (*upstream.Response, error){
		"initialize": func(_ context.Context, m *message) (*upstream.Response, error) {
			mu.Lock()
			open++
			most = max(most, open)
			mu.Unlock()
			time.Sleep(10 * time.Second)
			mu.Lock()
			open--
			mu.Unlock()
			return begun(m), nil
		},
	}
	for _, principal := range []string{"", "ada"} { // each request has its own session, or those with the same capabilities do
		most = 0
		synctest.Test(t, func(t *testing.T) {
			b := New(Config{MaxSessions: 4, Transport: func(*snapshot.Target) upstream.Transport { return s }})
			face := b.Stateless(&snapshot.Target{Name: "only", Resource: "only", Tenant: &snapshot.Owner{Name: "acme"}, Config: &xdsv1.Target{}}, Caller{Scope: session.Scope{Principal: principal}})
			ask := func(n int) error {
				ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
				defer cancel()
				body := `{"jsonrpc":"2.0","id":7,"method":"tools/list","params":{"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{"x":` + strconv.Itoa(n) + `}}}}`
				_, err := face.Do(ctx, &upstream.Request{Method: http.MethodPost, Body: []byte(body)})
				return err
			}
			for n := range 100 {
				_ = ask(n)
			}
			mu.Lock()
			if want := hold.Share(4, principal); most != want {
				t.Errorf("caller %q: %d sessions were being begun at once, want %d", principal, most, want)
			}
			mu.Unlock()
			time.Sleep(time.Minute)
			if err := ask(101); err == nil {
				t.Errorf("caller %q is refused still", principal)
			}
			if err := b.Close(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
}

// The retry of a parked call that does not get its turn in time is no request that its target has not seen: nothing may send it again.
func TestRetryWithoutTurn(t *testing.T) {
	codec, err := session.New([]session.Key{{ID: [4]byte{1}}})
	if err != nil {
		t.Fatal(err)
	}
	asks := true
	s := owned{&target{on: map[string]func(context.Context, *message) (*upstream.Response, error){
		"GET": standing,
		"tools/call": func(ctx context.Context, _ *message) (*upstream.Response, error) {
			r, w := io.Pipe()
			if asks {
				go func() {
					_, _ = io.WriteString(w, `data: {"jsonrpc":"2.0","id":1,"method":"elicitation/create","params":{}}`+"\n\n")
				}()
			}
			return events(ctx, r), nil
		},
	}}}
	synctest.Test(t, func(t *testing.T) {
		b := New(Config{Transport: func(*snapshot.Target) upstream.Transport { return s }})
		face := b.Stateless(&snapshot.Target{Name: "only", Resource: "only", Tenant: &snapshot.Owner{Name: "acme"}, Config: &xdsv1.Target{}}, Caller{Codec: codec, Scope: session.Scope{Principal: "ada"}})
		resp, err := able(t.Context(), face, "")
		got := said(t, resp, err)
		_, state, _ := strings.Cut(got, `"requestState":"`)
		state, _, _ = strings.Cut(state, `"`)
		asks = false
		running, err := able(t.Context(), face, "")
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := able(ctx, face, `,"requestState":"`+state+`","inputResponses":{"elicitation-1":{"action":"accept"}}`); err == nil || upstream.NotSent(err) {
			t.Errorf("%v", err)
		}
		_ = running.Body.Close()
		synctest.Wait()
		if n := s.count("notifications/cancelled"); n != 2 {
			t.Errorf("%d calls were cancelled, want both", n)
		}
		if err := b.Close(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

// A target that asks without end is answered that it is too much, and its client is asked what is not.
func TestQuestionsWithoutEnd(t *testing.T) {
	s := &target{on: map[string]func(context.Context, *message) (*upstream.Response, error){
		"tools/call": func(ctx context.Context, _ *message) (*upstream.Response, error) {
			r, w := io.Pipe()
			go func() {
				for n := range 300 {
					_, _ = fmt.Fprintf(w, `data: {"jsonrpc":"2.0","id":%d,"method":"elicitation/create","params":{}}`+"\n\n", n)
				}
			}()
			return events(ctx, r), nil
		},
	}}
	callers(t, s, Config{}, func(t *testing.T, face func(string) upstream.Transport) {
		resp, err := able(t.Context(), face("ada"), "")
		if n := strings.Count(said(t, resp, err), `"elicitation/create"`); n != maxAsks {
			t.Errorf("the client is asked %d questions, want %d", n, maxAsks)
		}
		synctest.Wait()
		if n := s.count(""); n != 300-maxAsks {
			t.Errorf("%d questions are refused, want %d", n, 300-maxAsks)
		}
	})
}
