package upstream

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/sluicegate/sluice/internal/mcptest"
	"github.com/sluicegate/sluice/internal/policy"
	xdsv1 "github.com/sluicegate/sluice/proto/gen/sluice/xds/v1"
)

// A target need not answer a call that its client has cancelled, and keeps its stream open (the TypeScript SDK does): the call's turn
// ends all the same. Another session's word, or one about another call, ends nothing.
func TestCancelledCallGivesItsTurn(t *testing.T) {
	srv := mcptest.NewServer(t, mcptest.Options{Wrap: func(http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			body, _ := io.ReadAll(r.Body)
			switch {
			case strings.Contains(string(body), "notifications/cancelled"):
				w.WriteHeader(http.StatusAccepted)
			case strings.Contains(string(body), "unanswered"):
				w.Header().Set("Content-Type", "text/event-stream")
				_ = http.NewResponseController(w).Flush()
				<-r.Context().Done()
			default:
				w.Header().Set("Content-Type", "application/json")
				_, _ = io.WriteString(w, `{"jsonrpc":"2.0","id":9,"result":{}}`)
			}
		})
	}})
	tr := manager(t, nil).Transport(target(t, policy.HTTP, &xdsv1.Target{Transport: &xdsv1.Target_Mcp{Mcp: httpConfig(t, srv.URL)}, Concurrency: &xdsv1.Concurrency{Max: 1}}, nil))
	send := func(session, method, body string) error {
		h := http.Header{"Content-Type": {"application/json"}}
		if session != "" {
			h.Set(sessionHeader, session)
		}
		resp, err := tr.Do(limited(t), &Request{Method: http.MethodPost, Header: h, Body: []byte(body), Call: policy.Call{Method: method}})
		if err == nil && method == "notifications/cancelled" {
			_ = resp.Body.Close()
		} else if err == nil {
			t.Cleanup(func() { _ = resp.Body.Close() })
		}
		return err
	}
	cancel := func(session, id string) {
		t.Helper()
		if err := send(session, "notifications/cancelled", `{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":`+id+`}}`); err != nil {
			t.Fatal(err)
		}
	}
	for _, id := range []string{`7`, `"seven"`} {
		if err := send("a", "tools/call", `{"jsonrpc":"2.0","id":`+id+`,"method":"tools/call","params":{"name":"unanswered"}}`); err != nil {
			t.Fatal(err)
		}
		cancel("b", id)
		cancel("a", `70`)
		cancel("", id)
		if err := send("a", "tools/call", `{"jsonrpc":"2.0","id":8,"method":"tools/call"}`); !errors.Is(err, ErrFull) {
			t.Fatalf("a call beside one that nobody has cancelled: %v", err)
		}
		cancel("a", id)
		cancel("a", id)
		if err := send("b", "tools/call", `{"jsonrpc":"2.0","id":9,"method":"tools/call","params":{"name":"unanswered"}}`); err != nil {
			t.Fatalf("after the call %s was cancelled: %v", id, err)
		}
		if err := send("a", "tools/call", `{"jsonrpc":"2.0","id":8,"method":"tools/call"}`); !errors.Is(err, ErrFull) {
			t.Fatalf("a call that is cancelled twice gives two turns: %v", err)
		}
		cancel("b", `9`)
	}
}

// A child need not answer a call that its client has cancelled, and many do not: the call ends then, without a response, and not with
// its session, by an error that some clients fail at.
func TestCancelledCallOfChildEnds(t *testing.T) {
	for name, meta := range map[string]string{"before anything came": "", "in a stream": `,"_meta":{"progressToken":"p"}`} {
		t.Run(name, func(t *testing.T) {
			c := open(t, manager(t, nil).Transport(stdioTarget(t, "unanswering", nil)))
			begun, over := make(chan error, 1), make(chan string, 1)
			go func() {
				res, err := c.try("POST", `{"jsonrpc":"2.0","id":"slow","method":"tools/call","params":{"name":"never"`+meta+`}}`)
				if begun <- err; err == nil {
					body, err := io.ReadAll(res.Body)
					over <- fmt.Sprint(string(body), err)
				}
			}()
			if meta != "" {
				if err := <-begun; err != nil {
					t.Fatal(err)
				}
				begun <- nil
			}
			for ended := false; !ended; { // it may come before the call
				if res := c.do("POST", `{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":"slow"}}`); res.Status != http.StatusAccepted {
					t.Fatalf("cancelled: %d", res.Status)
				}
				select {
				case err := <-begun:
					if err != nil {
						t.Fatal(err)
					}
					ended = true
				default:
				}
			}
			got := <-over
			if !strings.HasSuffix(got, "<nil>") || strings.Contains(got, `"slow"`) || strings.Contains(got, "progress") != (meta != "") {
				t.Errorf("the cancelled call ends with %q", got)
			}
		})
	}
}
