package mux

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/sluicegate/sluice/dataplane/mcp"
	"github.com/sluicegate/sluice/dataplane/session"
	"github.com/sluicegate/sluice/dataplane/snapshot"
	"github.com/sluicegate/sluice/dataplane/upstream"
	"github.com/sluicegate/sluice/internal/hold"
	"github.com/sluicegate/sluice/internal/policy"
	xdsv1 "github.com/sluicegate/sluice/proto/gen/sluice/xds/v1"
)

// said is a target of 2026-07-28 that answers everything with one body, and counts how often.
type said struct {
	body  string
	asked int
}

func (s *said) Owned() bool { return false }

func (s *said) Do(context.Context, *upstream.Request) (*upstream.Response, error) {
	s.asked++
	return &upstream.Response{Status: http.StatusOK, Header: http.Header{"Content-Type": {mcp.TypeJSON}}, Body: readCloser(s.body), Length: int64(len(s.body))}, nil
}

func readCloser(text string) *body { return &body{*strings.NewReader(text)} }

type body struct{ strings.Reader }

func (*body) Close() error { return nil }

// asking is a caller's request for a list of the only target of a tenant.
func asking(t *testing.T, m *Mux, tenant, principal string) (*Request, *snapshot.Target) {
	t.Helper()
	compiled, err := policy.CompileTarget(&xdsv1.EffectivePolicy{}, policy.HTTP, policy.Resolver{})
	if err != nil {
		t.Fatal(err)
	}
	target := &snapshot.Target{Name: "only", Resource: tenant + "/target/only", Digest: "1", Tenant: &snapshot.Owner{Name: tenant}, Policy: compiled,
		Config: &xdsv1.Target{ProtocolVersions: []string{string(mcp.V20260728)}, Transport: &xdsv1.Target_Mcp{Mcp: &xdsv1.HttpTransport{Host: "h", Port: 80}}}}
	msg, err := mcp.Scan([]byte(`{"jsonrpc":"2.0","id":1,"method":"tools/list","params":{"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{}}}}`), mcp.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	return &Request{mux: m, Backend: &snapshot.Backend{Targets: []*snapshot.Target{target}}, HTTP: httptest.NewRequest("POST", "/mcp", nil), Record: &Record{}, Message: &msg,
		Principal: &policy.Principal{ID: principal}, Verdict: mcp.Verdict{Era: mcp.Stateless, Revision: mcp.V20260728}, Scope: session.Scope{Tenant: tenant, Principal: principal}}, target
}

// Pages are remembered within bounds, and counted as what they keep alive: all that a target says around a list, and the cursor that a
// client made up. Another tenant's stay.
func TestPagesAreBounded(t *testing.T) {
	const room = 4 << 20
	long := strings.Repeat("x", 64<<10)
	for name, tt := range map[string]struct{ result, cursor string }{
		"long list":     {`{"jsonrpc":"2.0","id":1,"result":{"resultType":"complete","ttlMs":60000,"cacheScope":"private","tools":[{"name":"` + long + `","inputSchema":{"type":"object"}}]}}`, ""},
		"beside a list": {`{"jsonrpc":"2.0","id":1,"x":"` + long + `","result":{"resultType":"complete","ttlMs":60000,"cacheScope":"private","tools":[]}}`, ""},
		"long cursor":   {`{"jsonrpc":"2.0","id":1,"result":{"resultType":"complete","ttlMs":60000,"cacheScope":"private","tools":[]}}`, long},
	} {
		t.Run(name, func(t *testing.T) {
			s := &said{body: `{"jsonrpc":"2.0","id":1,"result":{"resultType":"complete","ttlMs":60000,"cacheScope":"private","tools":[]}}`}
			m := New(Config{Transport: func(*snapshot.Target) upstream.Transport { return s }})
			m.pages = hold.NewCache[pageKey, *page](room)
			ask := func(tenant, principal string, cursor *string) {
				x, target := asking(t, m, tenant, principal)
				if _, err := x.page(t.Context(), target, mcp.Tools, cursor, nil); err != nil {
					t.Fatal(err, x.Record.Err)
				}
			}
			ask("modest", "ada", nil)
			s.body = tt.result
			const callers = 200
			for n := range callers {
				cursor := &tt.cursor
				if tt.cursor == "" {
					cursor = nil
				}
				ask("greedy", fmt.Sprint(n), cursor)
			}
			if held := m.pages.Held(); held > room || held < room/2 {
				t.Errorf("%d bytes are counted, want at most %d and most of them", held, room)
			}
			kept := 0
			for n := range callers {
				x, target := asking(t, m, "greedy", fmt.Sprint(n))
				key := x.pageKey(target, mcp.Tools, nil)
				if tt.cursor != "" {
					key = x.pageKey(target, mcp.Tools, &tt.cursor)
				}
				if p := x.cached(target, key); p != nil {
					kept += cap(p.body) + len(key.cursor)
				}
			}
			if kept > room || kept == 0 {
				t.Errorf("pages that take %d bytes are remembered, want at most %d", kept, room)
			}
			before := s.asked
			ask("modest", "ada", nil)
			if s.asked != before {
				t.Error("another tenant's page was forgotten")
			}
		})
	}
}

// A list without end is not gathered.
func TestWholeListIsBounded(t *testing.T) {
	s := &said{body: `{"jsonrpc":"2.0","id":1,"result":{"resultType":"complete","ttlMs":0,"cacheScope":"private","nextCursor":"more","tools":[{"name":"` +
		strings.Repeat("x", 8<<20) + `","inputSchema":{"type":"object"}}]}}`}
	m := New(Config{Transport: func(*snapshot.Target) upstream.Transport { return s }})
	x, target := asking(t, m, "acme", "ada")
	_, err := x.allPages(t.Context(), target, mcp.Tools)
	if err == nil || !strings.Contains(err.Error(), "lists more than") || s.asked != maxWhole>>23 {
		t.Errorf("after %d pages of 8 MiB: %v", s.asked, err)
	}
}

// Which tool made a task is remembered within bounds, however long the ids are that a target makes up.
func TestTasksAreBounded(t *testing.T) {
	m := New(Config{})
	const room = 1 << 20
	m.tasks = hold.NewCache[taskKey, string](room)
	modest, target := asking(t, m, "modest", "ada")
	modest.remember(target, "1", "tool")
	for n := range 1000 {
		greedy, own := asking(t, m, "greedy", "ada")
		greedy.remember(own, fmt.Sprint(n, strings.Repeat("x", 8<<10)), "tool")
	}
	if held := m.tasks.Held(); held > room || held < room/2 {
		t.Errorf("%d bytes are held, want at most %d and most of them", held, room)
	}
	if tool, ok := m.tasks.Get("modest", taskKey{modest.Scope, target.Name, "1"}); !ok || tool != "tool" {
		t.Error("another tenant's task was forgotten")
	}
}

// What waits for the end of a target's event is bounded in bytes: it may never come.
func TestSinkIsBounded(t *testing.T) {
	w := httptest.NewRecorder()
	s := newSink(w, time.Hour)
	defer s.close()
	s.raw([]byte("data: half"))
	for range 100 {
		s.pass(mcp.Event{Data: []byte(strings.Repeat("x", 100<<10)), HasData: true})
	}
	size := 0
	for _, ev := range s.waiting {
		size += len(ev.Data)
	}
	if size > maxWaitingSize || size < maxWaitingSize-(100<<10) || s.size != size {
		t.Errorf("%d bytes wait, counted as %d, want at most %d", size, s.size, maxWaitingSize)
	}
	s.raw([]byte("\n\n"))
	if len(s.waiting) != 0 || s.size != 0 || w.Body.Len() < size {
		t.Errorf("%d events wait, counted as %d bytes, after the event's end", len(s.waiting), s.size)
	}
}

// Ids of events that are too long to come back with are not kept.
func TestLongEventIDs(t *testing.T) {
	m := New(Config{})
	x, target := asking(t, m, "acme", "ada")
	p := &positions{last: map[string]string{}}
	for _, tt := range []struct{ size, kept int }{{100, 100}, {1 << 20, 0}, {16 << 10, 16 << 10}} {
		id := strings.Repeat("x", tt.size)
		if got := p.after(x, target, id); got != id || len(p.last[target.Name]) != tt.kept {
			t.Errorf("of an id of %d bytes %d are kept and %d passed on", tt.size, len(p.last[target.Name]), len(got))
		}
	}
}

// A tenant's open streams are bounded by what is kept of their requests, too.
func TestStreamsAreBounded(t *testing.T) {
	m := New(Config{})
	x, _ := asking(t, m, "", "ada")
	x.Message = &mcp.Message{Body: make([]byte, maxListen)}
	open := func(tenant string) (func(), error) {
		x.Route = &snapshot.Route{Tenant: &snapshot.Tenant{Name: tenant}}
		return m.Hold(x)
	}
	var ends []func()
	for end, err := open("greedy"); err == nil; end, err = open("greedy") {
		ends = append(ends, end)
	}
	if n := len(ends); n > maxStreamSize/maxListen || n < maxStreamSize/maxListen*9/10 {
		t.Errorf("%d streams of %d bytes are open", n, maxListen)
	}
	if _, err := open("modest"); err != nil {
		t.Errorf("another tenant: %v", err)
	}
	ends[0]()
	if _, err := open("greedy"); err != nil {
		t.Errorf("after one has ended: %v", err)
	}
}
