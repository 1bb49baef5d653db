package newclient

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sluicegate/sluice/dataplane/mcp"
	"github.com/sluicegate/sluice/dataplane/session"
	"github.com/sluicegate/sluice/dataplane/snapshot"
	"github.com/sluicegate/sluice/dataplane/upstream"
	"github.com/sluicegate/sluice/internal/hold"
	xdsv1 "github.com/sluicegate/sluice/proto/gen/sluice/xds/v1"
)

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

// A session has room for so many resources; the client is told which of them it will hear of. With the listen all are given back,
// also by a target that takes no time for it.
func TestManyResources(t *testing.T) {
	s := &target{}
	s.on = map[string]func(context.Context, *message) (*upstream.Response, error){
		"GET": standing,
		"resources/unsubscribe": func(ctx context.Context, _ *message) (*upstream.Response, error) {
			<-ctx.Done()
			return nil, context.Cause(ctx)
		},
	}
	bridged(t, s, func(t *testing.T, b *Bridge, face upstream.Transport) {
		_, other := listen(t, face, `{"resourceSubscriptions":["test://other"]}`)
		uris := []string{"test://twice", "test://twice"}
		for n := range 6000 {
			uris = append(uris, fmt.Sprintf("test://%d", n))
		}
		raw := string(marshal(filter{URIs: uris}))
		honoured, body := listen(t, face, raw)
		var got filter
		if err := json.Unmarshal([]byte(honoured), &got); err != nil {
			t.Fatal(err)
		}
		if n := len(got.URIs); n < 3000 || n > 4000 || got.URIs[0] != "test://twice" || got.URIs[1] != "test://0" {
			t.Errorf("%d resources are honoured: %.100s", n, honoured)
		}
		_ = body.Close()
		time.Sleep(time.Minute)
		for p := range b.pools["only"].all {
			p.mu.Lock()
			if len(p.watched) != 1 || p.watching != len("test://other")+watchSize {
				t.Errorf("%d resources are kept, counted as %d bytes", len(p.watched), p.watching)
			}
			p.mu.Unlock()
		}
		_ = other.Close()
	})
}

// So have all the sessions of a tenant together, of which a caller can have many; what ends a session gives its part back.
func TestResourcesOfManySessions(t *testing.T) {
	const room = 1 << 20
	s := &target{on: map[string]func(context.Context, *message) (*upstream.Response, error){"GET": standing}}
	var all []string
	for n := range 8 {
		all = append(all, fmt.Sprintf(`"test://%d%s"`, n, strings.Repeat("x", 8<<10)))
	}
	uris := `{"resourceSubscriptions":[` + strings.Join(all, ",") + `]}`
	synctest.Test(t, func(t *testing.T) {
		b := New(Config{Transport: func(*snapshot.Target) upstream.Transport { return s }, ProxyID: "p"})
		b.watched = hold.NewBudget(room)
		listens := func(tenant, caller string, n int) (honoured int, body io.ReadCloser) {
			only := &snapshot.Target{Name: "only", Resource: fmt.Sprint(tenant, "/only", n), Digest: "1", Tenant: &snapshot.Owner{Name: tenant}, Config: &xdsv1.Target{}}
			raw, body := listen(t, b.Stateless(only, Caller{Scope: session.Scope{Tenant: tenant, Principal: caller}}), uris)
			var got filter
			if err := json.Unmarshal([]byte(raw), &got); err != nil {
				t.Fatal(err)
			}
			return len(got.URIs), body
		}
		var bodies []io.Closer
		total := 0
		for n := range 20 {
			honoured, body := listens("greedy", "ada", n)
			bodies = append(bodies, body)
			total += honoured
		}
		if total < 50 || total > 64 {
			t.Errorf("%d resources of 8 KiB are honoured, want some 60 in half of 1 MiB", total)
		}
		honoured, body := listens("modest", "ada", 0)
		if bodies = append(bodies, body); honoured != 8 {
			t.Errorf("%d resources of another tenant are honoured, want 8", honoured)
		}
		for _, body := range bodies[:10] {
			_ = body.Close() // the last of a session's unsubscribes
		}
		b.Retain(nil) // ends the others' sessions
		for _, body := range bodies[10:] {
			_ = body.Close()
		}
		time.Sleep(time.Minute)
		if held := b.watched.Held("greedy") + b.watched.Held("modest"); held != 0 {
			t.Errorf("%d bytes are held when nobody listens", held)
		}
		if err := b.Close(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

// A listen whose session is lost ends where nothing can take its place: the client's next one brings what is missing, or hears why not.
func TestListenThatCannotGoOn(t *testing.T) {
	for name, tt := range map[string]struct {
		answer func(m *message) *upstream.Response // to initialize and all else
		change bool                                // of the configuration
	}{
		"the credential is refused":     {answer: func(*message) *upstream.Response { return status(http.StatusUnauthorized) }},
		"the target is configured anew": {answer: func(*message) *upstream.Response { return status(http.StatusBadGateway) }, change: true},
		"the target speaks the other era": {answer: func(m *message) *upstream.Response {
			return answered(400, mcp.AppendError(nil, m.ID, -32601, "no", nil))
		}},
	} {
		t.Run(name, func(t *testing.T) {
			s := &target{}
			broken, ended := false, make(chan struct{})
			refuse := func(_ context.Context, m *message) (*upstream.Response, error) {
				if !broken {
					return begun(m), nil
				}
				return tt.answer(m), nil
			}
			s.on = map[string]func(context.Context, *message) (*upstream.Response, error){
				"GET": func(ctx context.Context, m *message) (*upstream.Response, error) {
					if broken {
						return status(http.StatusNotFound), nil
					}
					r, w := io.Pipe()
					go func() {
						select {
						case <-ended:
						case <-ctx.Done():
						}
						_ = w.Close()
					}()
					return events(ctx, r), nil
				},
				"initialize": refuse,
			}
			bridged(t, s, func(t *testing.T, b *Bridge, face upstream.Transport) {
				ended = make(chan struct{})
				b.Retain([]*snapshot.Target{{Resource: "only", Digest: "1"}})
				_, body := listen(t, face, `{"toolsListChanged":true}`)
				broken = true
				close(ended)
				time.Sleep(10 * time.Second)
				if tt.change {
					b.Retain([]*snapshot.Target{{Resource: "only", Digest: "2"}})
					broken, ended = false, make(chan struct{})
				}
				late := time.AfterFunc(time.Hour, func() { _ = body.Close() })
				defer late.Stop()
				var last *mcp.Message
				events := mcp.NewEventReader(body, 1<<20)
				for {
					ev, err := events.Next()
					if err == io.EOF {
						break
					}
					if err != nil {
						t.Fatal(err)
					}
					m, err := mcp.Scan(slices.Clone(ev.Data), mcp.Limits{})
					if err != nil {
						t.Fatal(err)
					}
					last = &m
				}
				if last == nil || last.Kind != mcp.Response || !last.Result.Present() {
					t.Errorf("it ended without a result: %+v", last)
				}
				_ = body.Close()
			})
		})
	}
}

// What was heard before a listen ends is told before it ends.
func TestListenTellsAllBeforeItEnds(t *testing.T) {
	s := &target{on: map[string]func(context.Context, *message) (*upstream.Response, error){"GET": standing}}
	for range 16 {
		bridged(t, s, func(t *testing.T, b *Bridge, face upstream.Transport) {
			_, body := listen(t, face, `{"toolsListChanged":true}`)
			for p := range b.pools["only"].all {
				p.missed()
			}
			b.Retain(nil)
			if err := body.(*listenBody).wait(); err != nil { // Read has just seen that there is nothing yet
				t.Fatal(err)
			}
			if m := nextMessage(t, body); m.Method != "notifications/tools/list_changed" {
				t.Fatalf("got %s", m.Body)
			}
			_ = body.Close()
		})
	}
}

// A target that offers no stream any more, or not with this credential, brings no news: the client is told, not left waiting.
func TestListenWithoutStream(t *testing.T) {
	for _, code := range []int{http.StatusMethodNotAllowed, http.StatusUnauthorized} {
		s := &target{}
		gets := 0
		s.on = map[string]func(context.Context, *message) (*upstream.Response, error){
			"GET": func(ctx context.Context, _ *message) (*upstream.Response, error) {
				if gets++; gets > 1 {
					return status(code), nil
				}
				return events(ctx, io.NopCloser(strings.NewReader(": hello\n\n"))), nil
			},
		}
		bridged(t, s, func(t *testing.T, b *Bridge, face upstream.Transport) {
			honoured, body := listen(t, face, `{"toolsListChanged":true}`)
			if honoured != `{"toolsListChanged":true}` {
				t.Errorf("%d: honoured %s", code, honoured)
			}
			late := time.AfterFunc(time.Hour, func() { _ = body.Close() })
			defer late.Stop()
			if m := nextMessage(t, body); !m.Result.Present() {
				t.Errorf("%d: got %s", code, m.Body)
			}
			if honoured, again := listen(t, face, `{"toolsListChanged":true}`); honoured != `{}` {
				t.Errorf("%d: the next listen is honoured %s", code, honoured)
			} else {
				_ = again.Close()
			}
			_ = body.Close()
		})
	}
}

// Ids and tokens are told apart by what they mean, also where a float64 cannot.
func TestIDKeys(t *testing.T) {
	for _, tt := range []struct {
		a, b string
		same bool
	}{
		{`1`, `1.0`, true}, {`1`, `"1"`, false}, {`"a"`, `"\u0061"`, true}, {`9007199254740992`, `9007199254740993`, false}, {`1e400`, `1e401`, false},
	} {
		if same := idKey([]byte(tt.a)) == idKey([]byte(tt.b)); same != tt.same {
			t.Errorf("%s and %s: same %t", tt.a, tt.b, same)
		}
	}
}
