package upstream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/sluicegate/sluice/internal/mcptest"
	"github.com/sluicegate/sluice/internal/policy"
	xdsv1 "github.com/sluicegate/sluice/proto/gen/sluice/xds/v1"
)

func TestTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s turns
		for range 2 {
			if err := s.take(t.Context(), 2, 0); err != nil {
				t.Fatal(err)
			}
		}
		if err := s.take(t.Context(), 2, 0); !errors.Is(err, ErrFull) {
			t.Errorf("a third of two: %v", err)
		}
		var mu sync.Mutex
		var order []int
		for i := range 4 {
			go func() {
				if err := s.take(t.Context(), 2, time.Minute); err != nil {
					t.Error(err)
				}
				mu.Lock()
				order = append(order, i)
				mu.Unlock()
			}()
			synctest.Wait() // so that the order is known
		}
		for range 4 {
			s.give()
			synctest.Wait()
		}
		if !slices.Equal(order, []int{0, 1, 2, 3}) {
			t.Errorf("served in the order %v", order)
		}

		// Whom the time or his context ends, loses his place, and holds nobody up.
		started := time.Now()
		if err := s.take(t.Context(), 2, 3*time.Second); !errors.Is(err, ErrFull) || time.Since(started) != 3*time.Second {
			t.Errorf("after %v: %v", time.Since(started), err)
		}
		ctx, cancel := context.WithTimeoutCause(t.Context(), time.Second, ErrTimeout)
		defer cancel()
		narrow := make(chan error, 1)
		go func() { narrow <- s.take(ctx, 1, time.Minute) }()
		synctest.Wait()
		wide := make(chan error, 1)
		go func() { wide <- s.take(t.Context(), 3, time.Minute) }()
		synctest.Wait()
		if err := <-narrow; !errors.Is(err, ErrTimeout) {
			t.Errorf("the context's end: %v", err)
		}
		if err := <-wide; err != nil {
			t.Errorf("who stood behind it and has a wider bound: %v", err)
		}
		for range 3 {
			s.give()
		}
		if !s.idle() {
			t.Error("turns are left over")
		}
	})
}

// A turn that comes while its waiter gives up is his or the next one's, never lost.
func TestTurnsAreNotLost(t *testing.T) {
	var s turns
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for i := range 300 {
				ctx, cancel := context.WithTimeout(t.Context(), time.Duration(i%50)*time.Microsecond)
				if s.take(ctx, 2, time.Duration(i%40+1)*time.Microsecond) == nil {
					s.give()
				}
				cancel()
			}
		})
	}
	wg.Wait()
	if !s.idle() {
		t.Errorf("%d turns are lost, %d wait", s.running, s.waiting.Len())
	}
}

// Each way on which a call can end gives its turn back; what a call may wait for takes none; the bound holds over
// snapshots.
func TestConcurrency(t *testing.T) {
	release := make(chan struct{})
	arrived := make(chan struct{}, 8)
	srv := mcptest.NewServer(t, mcptest.Options{Wrap: func(http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			body, _ := io.ReadAll(r.Body)
			switch {
			case strings.Contains(string(body), "hang"):
				arrived <- struct{}{}
				select {
				case <-release:
				case <-r.Context().Done():
				}
			case strings.Contains(string(body), "break"):
				panic(http.ErrAbortHandler)
			case strings.Contains(string(body), "stream"):
				w.Header().Set("Content-Type", "text/event-stream")
				_, events, _ := strings.Cut(string(body), `"stream"`)
				_, _ = io.WriteString(w, events)
				_ = http.NewResponseController(w).Flush()
				<-r.Context().Done()
				return
			}
			w.Header().Set("Content-Type", "application/json")
			fmt.Fprint(w, "{}")
		})
	}})
	m := manager(t, nil)
	limited := func() Transport {
		return m.Transport(target(t, policy.HTTP, &xdsv1.Target{Transport: &xdsv1.Target_Mcp{Mcp: httpConfig(t, srv.URL)},
			Concurrency: &xdsv1.Concurrency{Max: 1, Wait: durationpb.New(0)}}, nil))
	}
	call := func(ctx context.Context, tr Transport, method, body string) (*Response, error) {
		return tr.Do(ctx, &Request{Method: http.MethodPost, Header: http.Header{"Content-Type": {"application/json"}}, Body: []byte(body), Call: policy.Call{Method: method}})
	}
	free := func(what string) {
		t.Helper()
		resp, err := call(t.Context(), limited(), "tools/call", `"ok"`)
		if err != nil {
			t.Fatalf("after %s the turn is not free: %v", what, err)
		}
		_ = resp.Body.Close()
	}
	free("nothing")

	// While one call runs, another of whatever snapshot is refused, and what belongs to it goes through.
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		_, err := call(ctx, limited(), "tools/call", `"hang"`)
		done <- err
	}()
	<-arrived
	if _, err := call(t.Context(), limited(), "tools/call", `"ok"`); !errors.Is(err, ErrFull) || !NotSent(err) || !strings.Contains(err.Error(), "acme/target/tools/one") {
		t.Errorf("a second call: %v", err)
	}
	for _, method := range []string{"", "notifications/cancelled", "subscriptions/listen"} {
		resp, err := call(t.Context(), limited(), method, `"ok"`)
		if err != nil {
			t.Fatalf("%q beside a call: %v", method, err)
		}
		_ = resp.Body.Close()
	}
	cancel()
	if err := <-done; err == nil {
		t.Error("a cancelled call succeeds")
	}
	free("a cancelled call")

	if _, err := call(t.Context(), limited(), "tools/call", `"break"`); err == nil {
		t.Error("a broken connection is no error")
	}
	free("a broken connection")

	resp, err := call(t.Context(), limited(), "tools/call", `"stream"`)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := call(t.Context(), limited(), "tools/call", `"ok"`); !errors.Is(err, ErrFull) {
		t.Errorf("beside a stream: %v", err)
	}
	_ = resp.Body.Close()
	_ = resp.Body.Close()
	free("a stream that is closed, twice")

	// A stream that stays open has told its response all the same.
	for ends, events := range map[string]string{
		"\n": "event: message\ndata: {\"jsonrpc\":\"2.0\",\"id\":1,\"result\":{}}\n\n", "\r\n": "id: 1\r\ndata:\r\n\r\ndata: {\"jsonrpc\":\"2.0\",\r\ndata: \"id\":1,\"error\":{}}\r\n\r\n",
	} {
		resp, err = call(t.Context(), limited(), "tools/call", `"stream"`+events)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(resp.Body, make([]byte, len(events))); err != nil {
			t.Fatal(err)
		}
		free(fmt.Sprintf("a response, with lines that end in %q", ends))
		_ = resp.Body.Close()
		free("the end of its stream")
	}
	const question = "data: {\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"ping\"}\n\n"
	resp, err = call(t.Context(), limited(), "tools/call", `"stream"`+question)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(resp.Body, make([]byte, len(question))); err != nil {
		t.Fatal(err)
	}
	if _, err := call(t.Context(), limited(), "tools/call", `"ok"`); !errors.Is(err, ErrFull) {
		t.Errorf("after a request of the target: %v", err)
	}
	_ = resp.Body.Close()
	close(release)
}
