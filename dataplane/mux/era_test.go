package mux

import (
	"context"
	"encoding/json"
	"errors"
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

// A session at a server that is replaced by one of the other era is over, or goes on in one that is begun there, as with a server that
// has lost it.
func TestReplacedServerOfASession(t *testing.T) {
	for name, tt := range map[string]struct {
		stateless    bool // the first server
		reinitialize bool
		method       string
	}{
		"over":                                {true, false, "tools/list"},
		"over for a call":                     {true, false, "tools/call"},
		"begun again":                         {true, true, "tools/list"},
		"begun again for a call":              {true, true, "tools/call"},
		"over at a stateless server":          {false, false, "tools/call"},
		"bridged again at a stateless server": {false, true, "tools/call"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &replaced{stateless: tt.stateless, status: 400}
				m := New(Config{Transport: func(*snapshot.Target) upstream.Transport { return s }})
				compiled, err := policy.CompileTarget(&xdsv1.EffectivePolicy{}, policy.HTTP, policy.Resolver{})
				if err != nil {
					t.Fatal(err)
				}
				target := &snapshot.Target{Name: "a", Resource: "a", Digest: "1", Tenant: &snapshot.Owner{Name: "acme"}, Config: &xdsv1.Target{Reinitialize: tt.reinitialize}, Policy: compiled}
				leg := session.Target{Name: "a", ID: "s1", Version: "2025-11-25", Place: place(target)}
				if tt.stateless {
					leg.ID, leg.Version = "", "2026-07-28"
				}
				state := &session.State{
					Version: "2025-11-25", Capabilities: "{}", ClientInfo: `{"name":"c","version":"1"}`, Expires: time.Now().Add(time.Hour),
					Targets: []session.Target{leg},
				}
				send := func() (*upstream.Response, error) {
					body := []byte(`{"jsonrpc":"2.0","id":7,"method":"` + tt.method + `","params":{"name":"x"}}`)
					msg, err := mcp.Scan(body, mcp.Limits{})
					if err != nil {
						t.Fatal(err)
					}
					x := &Request{
						mux: m, Backend: &snapshot.Backend{Targets: []*snapshot.Target{target}}, HTTP: httptest.NewRequest("POST", "/mcp", nil), Record: &Record{},
						Message: &msg, Verdict: mcp.Verdict{Era: mcp.Sessions}, Session: state,
					}
					resp, err := x.send(t.Context(), target, outgoing{body: body, method: tt.method})
					if err == nil {
						_ = resp.Body.Close()
					}
					return resp, err
				}
				if resp, err := send(); err != nil || resp.OtherEra {
					t.Fatalf("the first server: %+v, %v", resp, err)
				}
				time.Sleep(reprobe + time.Second)
				s.mu.Lock()
				s.stateless, s.got = !s.stateless, nil
				s.mu.Unlock()
				for range 2 {
					resp, err := send()
					gone, _ := errors.AsType[*mcp.Error](err)
					switch {
					case tt.reinitialize && (err != nil || resp.Status != http.StatusOK || resp.OtherEra):
						t.Errorf("%+v, %v", resp, err)
					case !tt.reinitialize && (gone == nil || gone.Status != http.StatusNotFound):
						t.Errorf("%+v, %v, want 404", resp, err)
					}
				}
				synctest.Wait()
				s.mu.Lock()
				defer s.mu.Unlock()
				if !tt.stateless {
					return
				}
				begun := len(slices.DeleteFunc(slices.Clone(s.got), func(m string) bool { return m != "initialize" }))
				if want := map[bool]int{false: 1, true: 2}[tt.reinitialize]; begun != want { // the probe's, and the session's
					t.Errorf("%d sessions were begun, want %d: %v", begun, want, s.got)
				}
			})
		})
	}
}
