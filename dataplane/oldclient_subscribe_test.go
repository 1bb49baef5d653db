package dataplane

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/sluicegate/sluice/internal/mcptest"
)

// A stateless target's refusal of a resource is the answer to who subscribes to it, and costs him nothing else.
func TestOldClientSubscriptionRefused(t *testing.T) {
	for name, refuse := range map[string]func(w http.ResponseWriter, id json.RawMessage){
		"by an error": func(w http.ResponseWriter, id json.RawMessage) {
			w.Header().Set("Content-Type", "application/json")
			fmt.Fprintf(w, `{"jsonrpc":"2.0","id":%s,"error":{"code":-32602,"message":"nothing to watch"}}`, id)
		},
		"by what it honours": func(w http.ResponseWriter, id json.RawMessage) {
			w.Header().Set("Content-Type", "text/event-stream")
			fmt.Fprintf(w, `data: {"jsonrpc":"2.0","method":"notifications/subscriptions/acknowledged","params":{"notifications":{},"_meta":{"io.modelcontextprotocol/subscriptionId":%s}}}`+"\n\n", id)
			fmt.Fprintf(w, `data: {"jsonrpc":"2.0","id":%s,"result":{"resultType":"complete"}}`+"\n\n", id)
		},
	} {
		t.Run(name, func(t *testing.T) {
			srv := mcptest.NewServer(t, mcptest.Options{Stateless: true, Wrap: func(next http.Handler) http.Handler {
				return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					body, _ := io.ReadAll(r.Body)
					r.Body = io.NopCloser(strings.NewReader(string(body)))
					var m struct {
						ID     json.RawMessage
						Method string
						Params struct {
							Notifications struct{ ResourceSubscriptions []string }
						}
					}
					_ = json.Unmarshal(body, &m)
					if m.Method == "subscriptions/listen" && slices.Contains(m.Params.Notifications.ResourceSubscriptions, "test://none") {
						refuse(w, m.ID)
						return
					}
					next.ServeHTTP(w, r)
				})
			}})
			w := behind(srv.URL)
			w.targets[0].ProtocolVersions = []string{"2026-07-28"}
			p := w.start(t)
			session := p.initialize(t, "2025-11-25")
			stream := p.open(t, http.MethodGet, session, "")
			for uri, taken := range map[string]bool{"test://none": false, "test://watched": true} {
				got := p.post(t, session, `{"jsonrpc":"2.0","id":1,"method":"resources/subscribe","params":{"uri":"`+uri+`"}}`)
				if got.status != 200 || strings.Contains(got.last(), `"result":{}`) != taken {
					t.Errorf("%s: %d %s", uri, got.status, got.body)
				}
			}
			// The session's own listen follows a moment later.
			waitFor(t, "an update", func() bool {
				p.post(t, session, `{"jsonrpc":"2.0","id":2,"method":"tools/call","params":{"name":"touch","arguments":{}}}`)
				select {
				case msg := <-stream.msgs:
					return msg["method"] == "notifications/resources/updated"
				default:
					return false
				}
			})
		})
	}
}
