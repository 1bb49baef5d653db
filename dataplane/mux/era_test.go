package mux

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
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

// replaced is a server that has one era at a time.
type replaced struct {
	stateless bool
	status    int // of its refusals

	mu  sync.Mutex
	got []string // guarded by mu
}

func (*replaced) Owned() bool { return false }

func (s *replaced) Do(_ context.Context, r *upstream.Request) (*upstream.Response, error) {
	var m struct {
		ID     json.RawMessage
		Method string
	}
	_ = json.Unmarshal(r.Body, &m)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.got = append(s.got, m.Method)
	say := func(status int, body []byte) (*upstream.Response, error) {
		return &upstream.Response{Status: status, Header: http.Header{"Content-Type": {mcp.TypeJSON}}, Body: io.NopCloser(strings.NewReader(string(body)))}, nil
	}
	sessions := r.Header.Get(mcp.HeaderSession) != "" || m.Method == "initialize"
	switch {
	case r.Method != http.MethodPost:
		return say(http.StatusMethodNotAllowed, nil)
	case s.stateless && sessions:
		return say(s.status, mcp.AppendError(nil, m.ID, mcp.CodeUnsupportedVersion, "Unsupported protocol version", []byte(`{"supported":["2026-07-28"]}`)))
	case !s.stateless && !sessions:
		return say(s.status, []byte(`{"jsonrpc":"2.0","id":null,"error":{"code":-32000,"message":"Bad Request: Mcp-Session-Id header is required"}}`))
	case m.Method == "server/discover":
		return say(200, mcp.AppendResult(nil, m.ID, []byte(`{"resultType":"complete","supportedVersions":["2026-07-28"],"capabilities":{"tools":{}},"serverInfo":{"name":"s","version":"1"}}`)))
	case m.Method == "initialize":
		resp, err := say(200, mcp.AppendResult(nil, m.ID, []byte(`{"protocolVersion":"2025-11-25","capabilities":{"tools":{}},"serverInfo":{"name":"s","version":"1"}}`)))
		resp.Header.Set(mcp.HeaderSession, "s1")
		return resp, err
	case m.ID == nil:
		return say(http.StatusAccepted, nil)
	}
	return say(200, mcp.AppendResult(nil, m.ID, []byte(`{"tools":[]}`)))
}

// A server that is replaced by one of the other era is found out by the first request, which is then sent in the way that
// the new one takes; but not if the server may have done what it was asked.
func TestReplacedServer(t *testing.T) {
	for _, tt := range []struct {
		name      string
		stateless bool // the first server
		status    int
		method    string
		want      int
		calls     int // that the new server has seen of the method
	}{
		{"by one with sessions", true, 400, "tools/list", 200, 2},
		{"by a stateless one", false, 400, "tools/list", 200, 2},
		{"that may have done it", true, 500, "tools/call", 500, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &replaced{stateless: tt.stateless, status: tt.status}
				m := New(Config{Transport: func(*snapshot.Target) upstream.Transport { return s }})
				compiled, err := policy.CompileTarget(&xdsv1.EffectivePolicy{}, policy.HTTP, policy.Resolver{})
				if err != nil {
					t.Fatal(err)
				}
				target := &snapshot.Target{Name: "a", Resource: "a", Digest: "1", Tenant: &snapshot.Owner{Name: "acme"}, Config: &xdsv1.Target{}, Policy: compiled}
				m.cfg.NewClients.Retain([]*snapshot.Target{target})
				send := func() int {
					body := []byte(`{"jsonrpc":"2.0","id":7,"method":"` + tt.method + `","params":{"name":"x","_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{}}}}`)
					msg, err := mcp.Scan(body, mcp.Limits{})
					if err != nil {
						t.Fatal(err)
					}
					x := &Request{mux: m, Backend: &snapshot.Backend{Targets: []*snapshot.Target{target}}, HTTP: httptest.NewRequest("POST", "/mcp", nil), Record: &Record{},
						Message: &msg, Verdict: mcp.Verdict{Era: mcp.Stateless}, Scope: session.Scope{Principal: "ada"}}
					resp, err := x.send(t.Context(), target, outgoing{body: body, method: tt.method})
					if err != nil {
						t.Fatal(err)
					}
					_ = resp.Body.Close()
					return resp.Status
				}
				if got := send(); got != 200 {
					t.Fatalf("the first server answers %d", got)
				}
				time.Sleep(reprobe + time.Second)
				s.mu.Lock()
				s.stateless, s.got = !s.stateless, nil
				s.mu.Unlock()
				if got := send(); got != tt.want {
					t.Errorf("the second server's answer is %d, want %d", got, tt.want)
				}
				if err := m.cfg.NewClients.Close(t.Context()); err != nil {
					t.Error(err)
				}
				synctest.Wait()
				s.mu.Lock()
				defer s.mu.Unlock()
				if got := len(slices.DeleteFunc(slices.Clone(s.got), func(m string) bool { return m != tt.method })); got != tt.calls {
					t.Errorf("%d calls of %s, want %d: %v", got, tt.method, tt.calls, s.got)
				}
			})
		})
	}
}
