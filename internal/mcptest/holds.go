package mcptest

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"sync"
	"testing"

	"github.com/modelcontextprotocol/go-sdk/mcp"
)

const holdsEnv = "SLUICE_MCPTEST_HOLDS"

// Holds counts calls by their key, and holds each until it is let go or cancelled. It shows what becomes of calls in flight, and that
// none runs twice. Its tool, for any number of servers:
//
//	hold {key}    reports progress once it holds, if the caller wants it; then "held KEY", or an error if cancelled first
//	runs {key}    how often hold was called with that key; it waits until none of these calls is held
type Holds struct {
	// URL is where children that serve the tool ask; see [Holds.Stdio].
	URL string

	mu    sync.Mutex // guards calls and what is in them
	calls map[string]*heldCall
	wake  chan struct{} // closed and replaced at each change
}

type heldCall struct {
	runs, cancelled int
	held            int
	letGo           chan struct{}
	open            bool // letGo is closed
}

// NewHolds returns holds that last as long as the test; at its end all are let go.
func NewHolds(t testing.TB) *Holds {
	h := &Holds{calls: map[string]*heldCall{}, wake: make(chan struct{})}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		key := r.URL.Query().Get("key")
		switch r.URL.Path {
		case "/hold":
			holding := func() {
				w.WriteHeader(http.StatusOK)
				_ = http.NewResponseController(w).Flush()
			}
			if err := h.hold(r.Context(), key, holding); err == nil {
				_, _ = io.WriteString(w, "held")
			}
		case "/runs":
			if n, err := h.over(r.Context(), key); err == nil {
				_, _ = fmt.Fprint(w, n)
			}
		}
	}))
	h.URL = s.URL
	t.Cleanup(func() {
		h.LetAllGo()
		s.CloseClientConnections()
		s.Close()
	})
	return h
}

// Add gives a server the tool.
func (h *Holds) Add(s *mcp.Server) {
	addHold(s, holder{hold: h.hold, runs: func(ctx context.Context, key string) (string, error) {
		n, err := h.over(ctx, key)
		return fmt.Sprint(n), err
	}})
}

// Stdio returns how to start a stdio server with the tool.
func (h *Holds) Stdio() Command {
	c := Stdio("hold")
	c.Env[holdsEnv] = h.URL
	return c
}

// Runs says how often hold was called with that key.
func (h *Holds) Runs(key string) int { return h.read(key).runs }

// Cancelled says how many calls with that key were cancelled while they were held.
func (h *Holds) Cancelled(key string) int { return h.read(key).cancelled }

// Changed is closed at the next change of any call.
func (h *Holds) Changed() <-chan struct{} {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.wake
}

// LetAllGo ends all calls that are held, as they should.
func (h *Holds) LetAllGo() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, c := range h.calls {
		if !c.open {
			c.open = true
			close(c.letGo)
		}
	}
}

// Wrap makes the end of an HTTP request the end of its call, as the stateless era has it; go-sdk's stateless server goes on.
func (h *Holds) Wrap(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), requestKey{}, r.Context())))
	})
}

type requestKey struct{}

func (h *Holds) read(key string) heldCall {
	h.mu.Lock()
	defer h.mu.Unlock()
	if c := h.calls[key]; c != nil {
		return heldCall{runs: c.runs, cancelled: c.cancelled, held: c.held}
	}
	return heldCall{}
}

// over waits until no call with that key is held, and says how many there were.
func (h *Holds) over(ctx context.Context, key string) (runs int, err error) {
	for {
		changed := h.Changed()
		if c := h.read(key); c.held == 0 {
			return c.runs, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return 0, context.Cause(ctx)
		}
	}
}

// changedLocked wants mu held.
func (h *Holds) changedLocked() {
	close(h.wake)
	h.wake = make(chan struct{})
}

func (h *Holds) hold(ctx context.Context, key string, holding func()) error {
	h.mu.Lock()
	c := h.calls[key]
	if c == nil {
		c = &heldCall{letGo: make(chan struct{})}
		h.calls[key] = c
	}
	c.runs++
	c.held++
	h.changedLocked()
	h.mu.Unlock()
	defer func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		c.held--
		h.changedLocked()
	}()
	holding()
	if request, ok := ctx.Value(requestKey{}).(context.Context); ok {
		var cancel context.CancelCauseFunc
		ctx, cancel = context.WithCancelCause(ctx)
		defer cancel(nil)
		defer context.AfterFunc(request, func() { cancel(context.Cause(request)) })()
	}
	select {
	case <-c.letGo:
		return nil
	case <-ctx.Done():
		h.mu.Lock()
		defer h.mu.Unlock()
		c.cancelled++
		h.changedLocked()
		return context.Cause(ctx)
	}
}

// holder is [Holds], here or in another process. hold calls holding once it holds.
type holder struct {
	hold func(ctx context.Context, key string, holding func()) error
	runs func(ctx context.Context, key string) (string, error)
}

// holdAt asks the holds at a URL. Whoever ends the request has cancelled the call.
func holdAt(base string) holder {
	ask := func(ctx context.Context, what, key string, begun func()) (string, error) {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, base+"/"+what+"?key="+url.QueryEscape(key), nil)
		if err != nil {
			return "", err
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return "", err
		}
		defer resp.Body.Close()
		begun()
		body, err := io.ReadAll(resp.Body)
		return string(body), err
	}
	return holder{
		hold: func(ctx context.Context, key string, holding func()) error {
			body, err := ask(ctx, "hold", key, holding)
			if err == nil && body != "held" {
				err = io.ErrUnexpectedEOF
			}
			return err
		},
		runs: func(ctx context.Context, key string) (string, error) { return ask(ctx, "runs", key, func() {}) },
	}
}

type keyArgs struct {
	Key string `json:"key"`
}

func addHold(s *mcp.Server, h holder) {
	mcp.AddTool(s, &mcp.Tool{Name: "hold", Description: "Holds the call"},
		func(ctx context.Context, r *mcp.CallToolRequest, a keyArgs) (*mcp.CallToolResult, any, error) {
			var failed error
			err := h.hold(ctx, a.Key, func() {
				if token := r.Params.GetProgressToken(); token != nil {
					failed = r.Session.NotifyProgress(ctx, &mcp.ProgressNotificationParams{ProgressToken: token, Progress: 1})
				}
			})
			if err == nil {
				err = failed
			}
			if err != nil {
				return nil, nil, err
			}
			return text("held " + a.Key), nil, nil
		})
	mcp.AddTool(s, &mcp.Tool{Name: "runs", Description: "Counts the calls that were held"},
		func(ctx context.Context, _ *mcp.CallToolRequest, a keyArgs) (*mcp.CallToolResult, any, error) {
			n, err := h.runs(ctx, a.Key)
			return text(n), nil, err
		})
}
