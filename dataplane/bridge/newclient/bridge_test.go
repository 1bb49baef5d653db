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

	"github.com/google/go-cmp/cmp"

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
		resp := result(&m, `{"protocolVersion":"2025-11-25","capabilities":{"tools":{"listChanged":true},"resources":{"subscribe":true}},"serverInfo":{"name":"s","version":"0"}}`)
		resp.Header.Set(mcp.HeaderSession, "s1")
		return resp, nil
	case r.Method != http.MethodPost:
		return status(http.StatusMethodNotAllowed), nil
	case m.ID == nil || m.Method == "":
		return status(http.StatusAccepted), nil
	}
	return result(&m, `{}`), nil
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
		f(t, b, b.Stateless(&snapshot.Target{Name: "only", Resource: "only", Digest: "1", Config: &xdsv1.Target{}}, Caller{Scope: session.Scope{Principal: "ada"}}))
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

// A target hears in order what is wanted of a resource: the end of one listen does not undo the beginning of the next.
func TestSubscribingAgain(t *testing.T) {
	slow := make(chan struct{})
	s := &target{}
	s.on = map[string]func(context.Context, *message) (*upstream.Response, error){
		"GET": standing,
		"resources/unsubscribe": func(_ context.Context, m *message) (*upstream.Response, error) {
			<-slow
			return result(m, `{}`), nil
		},
	}
	bridged(t, s, func(t *testing.T, _ *Bridge, face upstream.Transport) {
		slow = make(chan struct{})
		_, first := listen(t, face, `{"resourceSubscriptions":["test://a"]}`)
		_ = first.Close()
		synctest.Wait()
		begun := make(chan io.ReadCloser)
		go func() {
			_, second := listen(t, face, `{"resourceSubscriptions":["test://a"]}`)
			begun <- second
		}()
		synctest.Wait()
		if diff := cmp.Diff([]string{"resources/subscribe", "resources/unsubscribe"}, s.of("resources/subscribe", "resources/unsubscribe")); diff != "" {
			t.Errorf("while it unsubscribes (-want +got):\n%s", diff)
		}
		close(slow)
		second := <-begun
		if diff := cmp.Diff([]string{"resources/subscribe", "resources/unsubscribe", "resources/subscribe"}, s.of("resources/subscribe", "resources/unsubscribe")); diff != "" {
			t.Errorf("afterwards (-want +got):\n%s", diff)
		}
		_ = second.Close()
	})
}

// A resource that the target refuses is honoured to nobody, also not to who comes while it is still asked.
func TestSubscribingRefused(t *testing.T) {
	s := &target{}
	s.on = map[string]func(context.Context, *message) (*upstream.Response, error){
		"GET": standing,
		"resources/subscribe": func(_ context.Context, m *message) (*upstream.Response, error) {
			time.Sleep(time.Second)
			return answered(http.StatusOK, mcp.AppendError(nil, m.ID, mcp.CodeResourceNotFound, "no such resource", nil)), nil
		},
	}
	bridged(t, s, func(t *testing.T, _ *Bridge, face upstream.Transport) {
		var wg sync.WaitGroup
		for range 2 {
			wg.Go(func() {
				honoured, body := listen(t, face, `{"toolsListChanged":true,"resourceSubscriptions":["test://a"]}`)
				if want := `{"toolsListChanged":true}`; honoured != want {
					t.Errorf("honoured %s, want %s", honoured, want)
				}
				_ = body.Close()
			})
		}
		wg.Wait()
	})
}

// Sessions that do not last are begun ever more slowly, and a server that routes POST alone has lost none.
func TestListenWithoutLastingSessions(t *testing.T) {
	for name, tt := range map[string]struct {
		get    func(n int) int // status of the nth GET of a session
		most   int             // sessions in a minute
		honour string
	}{
		"no route for GET":        {func(int) int { return 404 }, 1, `{}`},
		"lost with each stream":   {func(n int) int { return map[bool]int{true: 200, false: 404}[n == 1] }, 8, `{"toolsListChanged":true}`},
		"the stream breaks often": {func(int) int { return 200 }, 1, `{"toolsListChanged":true}`},
	} {
		t.Run(name, func(t *testing.T) {
			s := &target{}
			gets := 0
			s.on = map[string]func(context.Context, *message) (*upstream.Response, error){
				"notifications/initialized": func(context.Context, *message) (*upstream.Response, error) {
					gets = 0
					return status(202), nil
				},
				"GET": func(ctx context.Context, _ *message) (*upstream.Response, error) {
					gets++
					if code := tt.get(gets); code != 200 {
						return status(code), nil
					}
					return events(ctx, io.NopCloser(strings.NewReader(": hello\n\n"))), nil
				},
			}
			bridged(t, s, func(t *testing.T, _ *Bridge, face upstream.Transport) {
				honoured, body := listen(t, face, `{"toolsListChanged":true}`)
				if honoured != tt.honour {
					t.Errorf("honoured %s, want %s", honoured, tt.honour)
				}
				go func() { _, _ = io.Copy(io.Discard, body) }()
				time.Sleep(time.Minute)
				if n := s.count("initialize"); n > tt.most {
					t.Errorf("%d sessions in a minute, want at most %d", n, tt.most)
				}
				_ = body.Close()
			})
		})
	}
}

// The standing stream is opened again when the target wants it to be (2025-11-25, transports: clients must respect `retry`).
func TestStreamRetry(t *testing.T) {
	s := &target{}
	s.on = map[string]func(context.Context, *message) (*upstream.Response, error){
		"GET": func(ctx context.Context, _ *message) (*upstream.Response, error) {
			return events(ctx, io.NopCloser(strings.NewReader("retry: 7000\n\n"))), nil
		},
	}
	bridged(t, s, func(t *testing.T, _ *Bridge, face upstream.Transport) {
		_, body := listen(t, face, `{"toolsListChanged":true}`)
		time.Sleep(time.Minute)
		s.mu.Lock()
		var last time.Time
		for i, method := range s.got {
			if method != "GET" {
				continue
			}
			if wait := s.at[i].Sub(last); !last.IsZero() && wait < 7*time.Second {
				t.Errorf("opened again after %s", wait)
			}
			last = s.at[i]
		}
		s.mu.Unlock()
		if s.count("GET") < 3 {
			t.Errorf("the stream was opened %d times", s.count("GET"))
		}
		_ = body.Close()
	})
}

// What a client does not read costs no more memory than it is worth: it hears of the whole where there are too many parts.
func TestSlowListener(t *testing.T) {
	s := &target{}
	said, say := io.Pipe()
	s.on = map[string]func(context.Context, *message) (*upstream.Response, error){
		"GET": func(ctx context.Context, _ *message) (*upstream.Response, error) { return events(ctx, said), nil },
	}
	bridged(t, s, func(t *testing.T, _ *Bridge, face upstream.Transport) {
		said, say = io.Pipe()
		_, body := listen(t, face, `{"toolsListChanged":true,"resourceSubscriptions":["test://a"]}`)
		pad := strings.Repeat("x", 1000)
		for n := range 4000 {
			fmt.Fprintf(say, `data: {"jsonrpc":"2.0","method":"notifications/resources/updated","params":{"uri":"test://a/%d","x":"%s"}}`+"\n\n", n, pad)
		}
		synctest.Wait()
		l := body.(*listenBody).l
		kept := 0
		for what, raw := range l.pending {
			kept += len(what) + len(raw)
		}
		if kept > 1<<20 || kept != l.bytes {
			t.Errorf("%d bytes are kept, counted as %d", kept, l.bytes)
		}
		heard := map[string]bool{}
		for range 2 {
			m := nextMessage(t, body)
			heard[m.Method+" "+m.URI.String()] = true
		}
		if want := map[string]bool{"notifications/tools/list_changed ": true, "notifications/resources/updated test://a": true}; !cmp.Equal(want, heard) {
			t.Errorf("heard %v, want %v", heard, want)
		}
		_ = body.Close()
	})
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
