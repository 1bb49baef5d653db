package newclient

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sluicegate/sluice/dataplane/mcp"
	"github.com/sluicegate/sluice/dataplane/session"
	"github.com/sluicegate/sluice/dataplane/snapshot"
	"github.com/sluicegate/sluice/dataplane/upstream"
	"github.com/sluicegate/sluice/internal/policy"
	xdsv1 "github.com/sluicegate/sluice/proto/gen/sluice/xds/v1"
)

// target is a server of the era of sessions in memory, so that tests have the time in their hands. What it is not told to
// answer, it answers as such a server does.
type target struct {
	// on answers requests by method, of HTTP for what is no POST; nil is as usual. Responses have the method "".
	on map[string]func(ctx context.Context, m *message) (*upstream.Response, error)

	mu  sync.Mutex
	got []string    // guarded by mu; methods
	at  []time.Time // guarded by mu; when they came
}

// message is one that a target got.
type message struct {
	ID     json.RawMessage
	Method string
	Params struct{ URI string }
}

func (*target) Owned() bool { return false }

func (s *target) Do(ctx context.Context, r *upstream.Request) (*upstream.Response, error) {
	var m message
	if r.Method == http.MethodPost {
		if err := json.Unmarshal(r.Body, &m); err != nil {
			return nil, err
		}
	} else {
		m.Method = r.Method
	}
	s.mu.Lock()
	s.got, s.at = append(s.got, m.Method), append(s.at, time.Now())
	s.mu.Unlock()
	if f := s.on[m.Method]; f != nil {
		return f(ctx, &m)
	}
	switch {
	case m.Method == "initialize":
		return begun(&m), nil
	case r.Method != http.MethodPost:
		return status(http.StatusMethodNotAllowed), nil
	case m.ID == nil || m.Method == "":
		return status(http.StatusAccepted), nil
	}
	return result(&m, `{}`), nil
}

// begun is an answer to initialize.
func begun(m *message) *upstream.Response {
	resp := result(m, `{"protocolVersion":"2025-11-25","capabilities":{"tools":{"listChanged":true},"resources":{"subscribe":true}},"serverInfo":{"name":"s","version":"0"}}`)
	resp.Header.Set(mcp.HeaderSession, "s1")
	return resp
}

func result(m *message, raw string) *upstream.Response {
	return answered(http.StatusOK, mcp.AppendResult(nil, m.ID, []byte(raw)))
}

func status(code int) *upstream.Response {
	return &upstream.Response{Status: code, Header: http.Header{}, Body: http.NoBody}
}

// events is an event stream: what r says, to its end.
func events(ctx context.Context, r io.ReadCloser) *upstream.Response {
	context.AfterFunc(ctx, func() { _ = r.Close() })
	return &upstream.Response{Status: http.StatusOK, Header: http.Header{"Content-Type": {mcp.TypeStream}}, Body: r}
}

// standing is a GET stream that says nothing.
func standing(ctx context.Context, _ *message) (*upstream.Response, error) {
	r, _ := io.Pipe()
	return events(ctx, r), nil
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

// of are those of some methods, in their order.
func (s *target) of(methods ...string) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(s.got), func(m string) bool { return !slices.Contains(methods, m) })
}

// bridged runs f in a bubble with a face of a target, whose sessions one caller shares.
func bridged(t *testing.T, s *target, f func(t *testing.T, b *Bridge, face upstream.Transport)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		b := New(Config{Transport: func(*snapshot.Target) upstream.Transport { return s }, ProxyID: "p"})
		f(t, b, b.Stateless(&snapshot.Target{Name: "only", Resource: "only", Digest: "1", Tenant: &snapshot.Owner{Name: "acme"}, Config: &xdsv1.Target{}}, Caller{Scope: session.Scope{Principal: "ada"}}))
		if err := b.Close(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

// do sends a request of 2026-07-28 with id 7.
func do(ctx context.Context, face upstream.Transport, method, params string) (*upstream.Response, error) {
	body := `{"jsonrpc":"2.0","id":7,"method":"` + method + `","params":{` + params + `,"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{}}}}`
	return face.Do(ctx, &upstream.Request{Method: http.MethodPost, Header: http.Header{}, Body: []byte(body)})
}

// listen opens a listen and returns what is honoured, and its stream.
func listen(t *testing.T, face upstream.Transport, filter string) (honoured string, body io.ReadCloser) {
	t.Helper()
	resp, err := do(t.Context(), face, "subscriptions/listen", `"notifications":`+filter)
	if err != nil {
		t.Fatal(err)
	}
	m := nextMessage(t, resp.Body)
	return string(m.Filter.Of(m.Body)), resp.Body
}

func nextMessage(t *testing.T, body io.Reader) *mcp.Message {
	t.Helper()
	ev, err := mcp.NewEventReader(body, 1<<20).Next()
	if err != nil {
		t.Fatal(err)
	}
	m, err := mcp.Scan(slices.Clone(ev.Data), mcp.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	return &m
}

// A target that asks faster than it takes answers waits for itself, and holds nothing but its own stream.
func TestTargetThatAsksWithoutEnd(t *testing.T) {
	s := &target{}
	var mu sync.Mutex
	open, most := 0, 0
	s.on = map[string]func(context.Context, *message) (*upstream.Response, error){
		"": func(ctx context.Context, _ *message) (*upstream.Response, error) {
			mu.Lock()
			open++
			most = max(most, open)
			mu.Unlock()
			<-ctx.Done()
			mu.Lock()
			open--
			mu.Unlock()
			return nil, context.Cause(ctx)
		},
		"tools/call": func(ctx context.Context, m *message) (*upstream.Response, error) {
			all := strings.Repeat(`data: {"jsonrpc":"2.0","id":1,"method":"ping"}`+"\n\n", 1000) + "data: " + string(mcp.AppendResult(nil, m.ID, []byte(`{}`))) + "\n\n"
			return events(ctx, io.NopCloser(strings.NewReader(all))), nil
		},
	}
	bridged(t, s, func(t *testing.T, _ *Bridge, face upstream.Transport) {
		resp, err := do(t.Context(), face, "tools/call", `"name":"x"`)
		if err != nil {
			t.Fatal(err)
		}
		if m := nextMessage(t, resp.Body); !m.Result.Present() {
			t.Errorf("%s", m.Body)
		}
		_ = resp.Body.Close()
		mu.Lock()
		defer mu.Unlock()
		if most > maxTelling {
			t.Errorf("%d answers at once", most)
		}
	})
}

// Who stops waiting for an answer says so (2025-11-25, lifecycle: timeouts).
func TestTimeoutCancels(t *testing.T) {
	s := &target{}
	s.on = map[string]func(context.Context, *message) (*upstream.Response, error){
		"tools/call": func(context.Context, *message) (*upstream.Response, error) {
			return nil, &upstream.Error{Op: "read head", Sent: true, Err: upstream.ErrTimeout}
		},
	}
	bridged(t, s, func(t *testing.T, _ *Bridge, face upstream.Transport) {
		if _, err := do(t.Context(), face, "tools/call", `"name":"x"`); !errors.Is(err, upstream.ErrTimeout) {
			t.Errorf("%v", err)
		}
		synctest.Wait()
		if n := s.count("notifications/cancelled"); n != 1 {
			t.Errorf("cancelled %d times", n)
		}
	})
}

// What a client does not read stays with the target.
func TestSlowCaller(t *testing.T) {
	var read atomic.Int64
	s := &target{}
	s.on = map[string]func(context.Context, *message) (*upstream.Response, error){
		"tools/call": func(ctx context.Context, m *message) (*upstream.Response, error) {
			all := strings.Repeat(`data: {"jsonrpc":"2.0","method":"vendor/news","params":{"x":"`+strings.Repeat("x", 256<<10)+`"}}`+"\n\n", 20) +
				"data: " + string(mcp.AppendResult(nil, m.ID, []byte(`{}`))) + "\n\n"
			return events(ctx, counted{strings.NewReader(all), &read}), nil
		},
	}
	bridged(t, s, func(t *testing.T, _ *Bridge, face upstream.Transport) {
		resp, err := do(t.Context(), face, "tools/call", `"name":"x"`)
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if n := read.Load(); n > 3<<20 {
			t.Errorf("%d bytes were read for nobody", n)
		}
		n, last := 0, &mcp.Message{}
		for events := mcp.NewEventReader(resp.Body, 1<<20); ; n++ {
			ev, err := events.Next()
			if err != nil {
				break
			}
			m, err := mcp.Scan(slices.Clone(ev.Data), mcp.Limits{})
			if err != nil {
				t.Fatal(err)
			}
			last = &m
		}
		if n != 21 || !last.Result.Present() {
			t.Errorf("%d messages, the last %.100s", n, last.Body)
		}
		_ = resp.Body.Close()
	})
}

// counted counts what is read.
type counted struct {
	io.Reader
	n *atomic.Int64
}

func (c counted) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	c.n.Add(int64(n))
	return n, err
}

func (counted) Close() error { return nil }

// A target that has forgotten a session is given another, in whatever words it says so, and the call is run once.
func TestForgottenSession(t *testing.T) {
	for name, refusal := range map[string]func(m *message) *upstream.Response{
		"404": func(*message) *upstream.Response { return status(404) },
		"as the TypeScript SDK's examples": func(m *message) *upstream.Response {
			return answered(400, mcp.AppendError(nil, m.ID, -32000, "Bad Request: No valid session ID provided", nil))
		},
		"as plain text": func(*message) *upstream.Response {
			return &upstream.Response{Status: 400, Header: http.Header{"Content-Type": {"text/plain"}}, Body: io.NopCloser(strings.NewReader("Invalid or missing session ID"))}
		},
	} {
		t.Run(name, func(t *testing.T) {
			forgotten, ran := false, 0
			s := &target{}
			s.on = map[string]func(context.Context, *message) (*upstream.Response, error){
				"notifications/initialized": func(context.Context, *message) (*upstream.Response, error) {
					forgotten = false
					return status(202), nil
				},
				"tools/call": func(_ context.Context, m *message) (*upstream.Response, error) {
					if forgotten {
						return refusal(m), nil
					}
					ran++
					return result(m, `{}`), nil
				},
			}
			bridged(t, s, func(t *testing.T, _ *Bridge, face upstream.Transport) {
				for range 2 {
					resp, err := do(t.Context(), face, "tools/call", `"name":"x"`)
					if err != nil {
						t.Fatal(err)
					}
					if body, _ := io.ReadAll(resp.Body); resp.Status != 200 || !strings.Contains(string(body), `"result"`) {
						t.Errorf("%d %s", resp.Status, body)
					}
					forgotten = true
				}
				if n := s.count("initialize"); n != 2 || ran != 2 {
					t.Errorf("%d sessions, and %d calls were run", n, ran)
				}
			})
		})
	}
}

// A session keeps nothing that its client, or its target, can make as long as it likes.
func TestSessionsAreSmall(t *testing.T) {
	s := &target{}
	bridged(t, s, func(t *testing.T, b *Bridge, face upstream.Transport) {
		heap := func() uint64 {
			runtime.GC()
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			return m.HeapAlloc
		}
		before := heap()
		pad := strings.Repeat("x", 256<<10)
		for n := range 16 {
			body := fmt.Sprintf(`{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"x","arguments":{"x":%q},"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/logLevel":%q,"io.modelcontextprotocol/clientInfo":{"name":%q},"io.modelcontextprotocol/clientCapabilities":{"x":"%d%s"}}}}`, pad, pad, pad, n, pad)
			m, err := mcp.Scan([]byte(body), mcp.Limits{})
			if err != nil {
				t.Fatal(err)
			}
			resp, err := face.Do(t.Context(), &upstream.Request{Method: http.MethodPost, Header: http.Header{}, Body: m.Body, Call: policy.Call{Method: "tools/call", Arguments: m.Arguments.Of(m.Body)}})
			if err != nil {
				t.Fatal(err)
			}
			_, _ = io.Copy(io.Discard, resp.Body)
			_ = resp.Body.Close()
		}
		if grown := int64(heap() - before); grown > 4<<20 || s.count("initialize") != 16 {
			t.Errorf("%d sessions keep %d bytes", s.count("initialize"), grown)
		}
		runtime.KeepAlive(b)
		s.on = map[string]func(context.Context, *message) (*upstream.Response, error){"initialize": func(_ context.Context, m *message) (*upstream.Response, error) {
			return result(m, `{"protocolVersion":"2025-11-25","capabilities":{},"serverInfo":{"name":"`+pad+`"}}`), nil
		}}
		if _, err := do(t.Context(), face, "tools/list", `"x":1`); err == nil || !strings.Contains(err.Error(), "more than 131072 bytes") {
			t.Errorf("a target that says much of itself: %v", err)
		}
	})
}

// A session that the bridge cannot use, whatever is wrong with it, is ended: it costs its target, and where sessions live here, a process.
func TestUselessSessionsEnd(t *testing.T) {
	refusal := func(m *message) *upstream.Response {
		return answered(http.StatusOK, mcp.AppendError(nil, m.ID, mcp.CodeInternal, "no", nil))
	}
	silence := func(*message) *upstream.Response {
		r, _ := io.Pipe()
		return &upstream.Response{Status: http.StatusOK, Header: http.Header{"Content-Type": {mcp.TypeStream}}, Body: r}
	}
	for name, tt := range map[string]struct {
		answer  func(m *message) *upstream.Response
		owned   bool
		goodbye int
	}{
		"a version that nobody knows":  {func(m *message) *upstream.Response { return result(m, `{"protocolVersion":"1999-01-01"}`) }, false, 1},
		"more than is kept":            {func(m *message) *upstream.Response { return result(m, `{"x":"`+strings.Repeat("x", maxServer)+`"}`) }, false, 1},
		"an error":                     {refusal, false, 0}, // some servers hand out an id with every answer
		"an error, in a session here":  {refusal, true, 1},
		"no answer, in a session here": {silence, true, 1},
	} {
		t.Run(name, func(t *testing.T) {
			s := &target{}
			s.on = map[string]func(context.Context, *message) (*upstream.Response, error){
				"initialize": func(ctx context.Context, m *message) (*upstream.Response, error) {
					resp := tt.answer(m)
					resp.Header.Set(mcp.HeaderSession, "s1")
					body := resp.Body
					context.AfterFunc(ctx, func() { _ = body.Close() })
					return resp, nil
				},
			}
			synctest.Test(t, func(t *testing.T) {
				b := New(Config{Transport: func(*snapshot.Target) upstream.Transport {
					if tt.owned {
						return owned{s}
					}
					return s
				}})
				face := b.Stateless(&snapshot.Target{Name: "only", Resource: "only", Tenant: &snapshot.Owner{Name: "acme"}, Config: &xdsv1.Target{}}, Caller{Scope: session.Scope{Principal: "ada"}})
				if _, err := do(t.Context(), face, "tools/list", `"x":1`); err == nil {
					t.Error("it was used")
				}
				synctest.Wait()
				if n := s.count(http.MethodDelete); n != tt.goodbye {
					t.Errorf("it was ended %d times, want %d", n, tt.goodbye)
				}
				if err := b.Close(t.Context()); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// A call goes on in a session that was given up meanwhile, and what its target asks there is answered.
func TestCallInLostSession(t *testing.T) {
	s := &target{}
	var said *io.PipeReader
	s.on = map[string]func(context.Context, *message) (*upstream.Response, error){
		"prompts/get": func(ctx context.Context, _ *message) (*upstream.Response, error) { return events(ctx, said), nil },
	}
	bridged(t, s, func(t *testing.T, b *Bridge, face upstream.Transport) {
		var say *io.PipeWriter
		said, say = io.Pipe()
		resp, err := do(t.Context(), face, "prompts/get", `"name":"x"`)
		if err != nil {
			t.Fatal(err)
		}
		for session := range b.pools["only"].all {
			session.lost()
		}
		for range 8 {
			fmt.Fprint(say, `data: {"jsonrpc":"2.0","id":1,"method":"ping"}`+"\n\n")
		}
		synctest.Wait()
		if n := s.count(""); n != 8 {
			t.Errorf("%d of 8 pings were answered", n)
		}
		_ = resp.Body.Close()
	})
}

// What a target refuses a credential with comes whole, and its connection is given back whoever still waits for it.
func TestRefusalComesWhole(t *testing.T) {
	s := &target{}
	var closed atomic.Bool
	s.on = map[string]func(context.Context, *message) (*upstream.Response, error){
		"tools/call": func(ctx context.Context, _ *message) (*upstream.Response, error) {
			r, w := io.Pipe()
			go func() {
				for range 3 {
					_, _ = io.WriteString(w, "why ")
				}
				_ = w.Close()
			}()
			resp := events(ctx, r)
			resp.Status, resp.Header = http.StatusUnauthorized, http.Header{"Www-Authenticate": {"Bearer"}}
			resp.Body = noted{r, &closed}
			return resp, nil
		},
	}
	bridged(t, s, func(t *testing.T, _ *Bridge, face upstream.Transport) {
		resp, err := do(t.Context(), face, "tools/call", `"name":"x"`)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		if resp.Status != http.StatusUnauthorized || string(body) != "why why why " || err != nil || resp.Header.Get("Www-Authenticate") == "" {
			t.Errorf("%d %q %v", resp.Status, body, err)
		}
		if !closed.Load() {
			t.Error("the target's answer is still open")
		}
	})
}

// noted notes that it was closed.
type noted struct {
	io.ReadCloser
	closed *atomic.Bool
}

func (n noted) Close() error {
	n.closed.Store(true)
	return n.ReadCloser.Close()
}

// owned is a target whose requests come by a channel that all calls share.
type owned struct{ *target }

func (owned) Owned() bool { return true }

// With the bridge also those calls end that wait for their turn in a session.
func TestCloseWhileWaitingForTurn(t *testing.T) {
	s := owned{&target{on: map[string]func(context.Context, *message) (*upstream.Response, error){"tools/call": standing}}}
	synctest.Test(t, func(t *testing.T) {
		b := New(Config{Transport: func(*snapshot.Target) upstream.Transport { return s }})
		face := b.Stateless(&snapshot.Target{Name: "only", Resource: "only", Tenant: &snapshot.Owner{Name: "acme"}, Config: &xdsv1.Target{}}, Caller{Scope: session.Scope{Principal: "ada"}})
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		resp, err := able(ctx, face, "")
		if err != nil {
			t.Fatal(err)
		}
		over := make(chan error, 1)
		go func() {
			_, err := able(ctx, face, "")
			over <- err
		}()
		synctest.Wait()
		if err := b.Close(t.Context()); err != nil {
			t.Error(err)
		}
		synctest.Wait()
		select {
		case err := <-over:
			if !upstream.NotSent(err) {
				t.Errorf("%v; the target has not seen it", err)
			}
		default:
			t.Error("it still waits")
		}
		_ = resp.Body.Close()
	})
}
