package oldclient

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sluicegate/sluice/dataplane/mcp"
	"github.com/sluicegate/sluice/dataplane/session"
	"github.com/sluicegate/sluice/dataplane/snapshot"
	"github.com/sluicegate/sluice/dataplane/upstream"
	"github.com/sluicegate/sluice/internal/hold"
	xdsv1 "github.com/sluicegate/sluice/proto/gen/sluice/xds/v1"
)

// room is what bridges of these tests have for each sort of what they keep.
const room = 1 << 20

// many runs f in a bubble with a bridge, and what makes clients of it: each is of a tenant and a caller, and has the nth session.
func many(t *testing.T, s *target, f func(t *testing.T, b *Bridge, of func(tenant, caller string, n int) client)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		b := New(Config{Transport: func(*snapshot.Target) upstream.Transport { return s }})
		b.servers, b.params, b.soft.room = hold.NewCache[serverKey, *server](room), hold.NewCache[paramsKey, *mcp.ToolParams](room), hold.NewBudget(room)
		f(t, b, func(tenant, caller string, n int) client {
			return client{t, b, b.Sessions(
				&snapshot.Target{Name: "only", Resource: tenant + "/only", Digest: tenant, Config: &xdsv1.Target{}, Tenant: &snapshot.Owner{Name: tenant}},
				Client{Principal: caller, Session: &session.State{
					Nonce: session.Nonce{byte(n >> 8), byte(n)}, Version: "2025-11-25", ClientInfo: `{}`, Capabilities: `{}`, Expires: time.Now().Add(time.Hour),
				}},
			)}
		})
	})
}

const initialize = `{"jsonrpc":"2.0","id":7,"method":"initialize","params":{}}`

// What a target says of itself and of its tools is remembered within bounds, whatever it says and how many callers it says it to; and
// not at the expense of another tenant's.
func TestTargetThatSaysMuch(t *testing.T) {
	pad := strings.Repeat("x", 16<<10)
	said := func(text string) map[string]func(context.Context, *message) (*upstream.Response, error) {
		return map[string]func(context.Context, *message) (*upstream.Response, error){
			"server/discover": func(_ context.Context, m *message) (*upstream.Response, error) {
				return complete(m, `"ttlMs":60000,"cacheScope":"private","capabilities":{},"instructions":"`+text+`"`), nil
			},
			"tools/list": func(_ context.Context, m *message) (*upstream.Response, error) {
				return complete(m, `"tools":[{"name":"`+text+`","inputSchema":{"type":"object","properties":{"a":{"type":"string","x-mcp-header":"A"}}}}]`), nil
			},
		}
	}
	s := &target{on: said("short")}
	many(t, s, func(t *testing.T, b *Bridge, of func(tenant, caller string, n int) client) {
		other := of("modest", "ada", 0)
		other.must(initialize)
		other.must(toolCall)
		s.on = said(pad)
		const callers = 100
		for n := range callers {
			c := of("greedy", fmt.Sprint(n), n)
			c.must(initialize)
			c.must(toolCall)
			if held := b.servers.Held(); held > room {
				t.Fatalf("discovers of %d callers take %d bytes, want at most %d", n+1, held, room)
			}
			if held := b.params.Held(); held > room {
				t.Fatalf("lists of %d callers take %d bytes, want at most %d", n+1, held, room)
			}
		}
		if b.servers.Held() < room/4 || b.params.Held() < room/4 {
			t.Errorf("only %d and %d bytes are held: was anything remembered?", b.servers.Held(), b.params.Held())
		}
		other.must(initialize)
		other.must(toolCall)
		if discovers, lists := s.count("server/discover"), s.count("tools/list"); discovers != callers+1 || lists != callers+1 {
			t.Errorf("the target was asked %d and %d times, want %d each: another tenant's was forgotten", discovers, lists, callers+1)
		}
	})
}

// A list of tools whose headers take more than is kept of one makes calls fail, with the cause, and holds nothing. Deep properties
// take more than they are long.
func TestToolsWithManyHeaders(t *testing.T) {
	leaf := new(strings.Builder)
	for n := range 1000 {
		fmt.Fprintf(leaf, `"p%d":{"type":"string","x-mcp-header":"H%d"},`, n, n)
	}
	schema := `{"type":"object","properties":{` + strings.TrimSuffix(leaf.String(), ",") + `}}`
	for range 100 {
		schema = `{"type":"object","properties":{"d":` + schema + `}}`
	}
	s := &target{on: map[string]func(context.Context, *message) (*upstream.Response, error){
		"tools/list": func(_ context.Context, m *message) (*upstream.Response, error) {
			return complete(m, `"tools":[{"name":"t","inputSchema":`+schema+`},{"name":"u","inputSchema":`+schema+`}]`), nil
		},
	}}
	many(t, s, func(t *testing.T, b *Bridge, of func(tenant, caller string, n int) client) {
		got := whole(t, of("acme", "ada", 0).must(toolCall))
		if !strings.Contains(got, `target \"only\" cannot be called: the tools have headers`) || !strings.Contains(got, `"id":7`) {
			t.Errorf("the client is told %s", got)
		}
		if n := b.params.Held(); n != 0 {
			t.Errorf("%d bytes are held", n)
		}
	})
}

// Log levels and subscriptions live as long as their sessions, of which a caller can have any number: each tenant has room for so many
// bytes of them, and no other tenant's depend on it.
func TestSubscriptionsOfManySessions(t *testing.T) {
	s := &target{}
	subscribe := func(method string) string {
		return `{"jsonrpc":"2.0","id":7,"method":"resources/` + method + `","params":{"uri":"test://` + strings.Repeat("x", 16<<10) + `"}}`
	}
	const refused = "too many subscriptions"
	many(t, s, func(t *testing.T, b *Bridge, of func(tenant, caller string, n int) client) {
		fill := func(caller string, from int) (sessions int) {
			for sessions < 1000 && !strings.Contains(whole(t, of("greedy", caller, from+sessions).must(subscribe("subscribe"))), refused) {
				sessions++
			}
			return sessions
		}
		if n := fill("ada", 0); n < 25 || n > 32 {
			t.Errorf("one caller has %d sessions with 16 KiB in half of 1 MiB", n)
		}
		if n := fill("", 1000); n < 25 || n > 35 {
			t.Errorf("all others have %d in what is left", n)
		}
		if held := b.soft.room.Held("greedy"); held > room || held < room-(32<<10) {
			t.Errorf("a tenant holds %d bytes, want nearly %d", held, room)
		}
		if got := whole(t, of("modest", "ada", 3000).must(subscribe("subscribe"))); strings.Contains(got, "error") {
			t.Errorf("another tenant is told %s", got)
		}
		// What is given up makes room: a subscription, a session, time.
		of("greedy", "ada", 0).must(subscribe("unsubscribe"))
		if got := whole(t, of("greedy", "ada", 4000).must(subscribe("subscribe"))); strings.Contains(got, refused) {
			t.Error("there is no room after one was given up")
		}
		if _, err := of("greedy", "ada", 1).Do(t.Context(), &upstream.Request{Method: http.MethodDelete, Header: http.Header{}}); err != nil {
			t.Fatal(err)
		}
		if got := whole(t, of("greedy", "ada", 4001).must(subscribe("subscribe"))); strings.Contains(got, refused) {
			t.Error("there is no room after a session ended")
		}
		time.Sleep(2 * time.Hour)
		of("greedy", "ada", 5000).must(`{"jsonrpc":"2.0","id":7,"method":"logging/setLevel","params":{"level":"info"}}`)
		if held := b.soft.room.Held("greedy"); held != softSize || len(b.soft.states) != 1 {
			t.Errorf("after all sessions expired %d bytes of %d are held, want %d of one", held, len(b.soft.states), softSize)
		}
	})
}
