package systemtest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sluicegate/sluice/internal/mcptest"
)

// A peer is a target of the table: a real server of one transport.
type peer struct {
	kind      string // mcp (sessions alone), mcp-stateless (no sessions), sse, stdio (both eras), a2a
	transport string // as targets name it
	host      string // URL; empty for stdio
	requests  func() []mcptest.Request
}

// yaml is the peer as the transport of a target.
func (p *peer) yaml() string {
	if p.transport != "stdio" {
		return fmt.Sprintf("%s: {host: %q}", p.transport, p.host)
	}
	child := mcptest.Stdio("serve")
	return fmt.Sprintf("stdio: {cmd: %q, env: {SLUICE_MCPTEST_STDIO: serve}}", child.Path)
}

var peerKinds = []string{"mcp", "mcp-stateless", "sse", "stdio", "a2a"}

func newPeer(t *testing.T, kind string, secure bool) *peer {
	p := &peer{kind: kind, transport: strings.TrimSuffix(kind, "-stateless")}
	switch kind {
	case "stdio":
		p.requests = func() []mcptest.Request { return nil }
	case "a2a":
		a := newAgent(t, secure)
		p.host, p.requests = a.URL, a.Requests
	default:
		srv := mcptest.NewServer(t, mcptest.Options{Stateless: kind == "mcp-stateless", SSE: kind == "sse", TLS: secure, Wrap: flaky(kind == "mcp-stateless")})
		p.host, p.requests = srv.URL, srv.Requests
	}
	return p
}

// flaky refuses a request whose id begins with "flaky" the first time it sees it. A server without sessions takes no
// initialize.
func flaky(stateless bool) func(http.Handler) http.Handler {
	var seen sync.Map
	return func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			body, _ := io.ReadAll(r.Body)
			r.Body = io.NopCloser(bytes.NewReader(body))
			var message struct {
				ID     any
				Method string
			}
			_ = json.Unmarshal(body, &message)
			if stateless && message.Method == "initialize" {
				w.Header().Set("Content-Type", "application/json")
				w.WriteHeader(http.StatusNotFound)
				_, _ = io.WriteString(w, `{"jsonrpc":"2.0","id":0,"error":{"code":-32601,"message":"Method not found"}}`)
				return
			}
			if id, _ := message.ID.(string); strings.HasPrefix(id, "flaky") {
				if _, twice := seen.LoadOrStore(id, true); !twice {
					http.Error(w, "not now", http.StatusServiceUnavailable)
					return
				}
			}
			h.ServeHTTP(w, r)
		})
	}
}

// agent speaks as much of A2A v0.3 as the table asks for: its card, and message/send, which it answers with the text that
// it was sent ("slow" takes its time), and tasks/get.
type agent struct {
	URL  string
	mu   sync.Mutex // guards reqs
	reqs []mcptest.Request
}

func newAgent(t *testing.T, secure bool) *agent {
	a := &agent{}
	serve := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet {
			w.Header().Set("Content-Type", "application/json")
			fmt.Fprintf(w, `{"protocolVersion":"0.3.0","name":"probe agent","description":"echoes","version":"1","url":%q,"preferredTransport":"JSONRPC",`+
				`"capabilities":{},"defaultInputModes":["text/plain"],"defaultOutputModes":["text/plain"],"skills":[{"id":"echo","name":"echo","description":"echoes","tags":[]}]}`, a.URL)
			return
		}
		var call struct {
			ID     json.RawMessage
			Method string
			Params struct {
				Message struct{ Parts []struct{ Text string } }
			}
		}
		if err := json.NewDecoder(r.Body).Decode(&call); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		if call.Method == "tasks/get" {
			fmt.Fprintf(w, `{"jsonrpc":"2.0","id":%s,"result":{"kind":"task","id":"one","contextId":"c","status":{"state":"completed"}}}`, call.ID)
			return
		}
		text := ""
		for _, p := range call.Params.Message.Parts {
			text += p.Text
		}
		if text == "slow" {
			select {
			case <-r.Context().Done():
				return
			case <-time.After(slowMillis * time.Millisecond): // what it is for: an answer that takes long
			}
			text = "done"
		}
		quoted, _ := json.Marshal(text)
		fmt.Fprintf(w, `{"jsonrpc":"2.0","id":%s,"result":{"kind":"message","messageId":"m2","role":"agent","parts":[{"kind":"text","text":%s}]}}`, call.ID, quoted)
	})
	wrapped := flaky(false)(serve)
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		a.mu.Lock()
		a.reqs = append(a.reqs, mcptest.Request{Method: r.Method, URL: r.URL.String(), Header: r.Header.Clone()})
		a.mu.Unlock()
		wrapped.ServeHTTP(w, r)
	}))
	srv.Config.ErrorLog = discard
	if secure {
		srv.StartTLS()
	} else {
		srv.Start()
	}
	t.Cleanup(srv.Close)
	a.URL = srv.URL + "/"
	return a
}

// Requests returns what came in so far, in order.
func (a *agent) Requests() []mcptest.Request {
	a.mu.Lock()
	defer a.mu.Unlock()
	return append([]mcptest.Request(nil), a.reqs...)
}

// A caller is a client of one endpoint of the table, in one era; agents have none.
type caller struct {
	url, host, era string
	header         http.Header
}

const slowMillis = 400

var ids atomic.Int64

// with is the caller with one more header.
func (c caller) with(name, value string) caller {
	h := http.Header{}
	for k, v := range c.header {
		h[k] = v
	}
	h.Set(name, value)
	c.header = h
	return c
}

// say makes the target repeat a text.
func (c caller) say(t *testing.T, text string) answer {
	t.Helper()
	if c.era == "" {
		return c.message(t, text)
	}
	quoted, _ := json.Marshal(map[string]string{"text": text})
	return c.request(t, `"say"`, "tools/call", "echo", fmt.Sprintf(`"name":"echo","arguments":%s`, quoted))
}

// slow makes the target take its time; the answer is "done".
func (c caller) slow(t *testing.T) answer {
	t.Helper()
	if c.era == "" {
		return c.message(t, "slow")
	}
	return c.request(t, `"slow"`, "tools/call", "slow", fmt.Sprintf(`"name":"slow","arguments":{"ms":%d}`, slowMillis))
}

// read asks for what may be asked for twice, of a target that refuses the first time.
func (c caller) read(t *testing.T) answer {
	t.Helper()
	id := fmt.Sprintf(`"flaky-%d"`, ids.Add(1))
	if c.era == "" {
		return c.post(t, "", fmt.Sprintf(`{"jsonrpc":"2.0","id":%s,"method":"tasks/get","params":{"id":"one"}}`, id))
	}
	return c.request(t, id, "resources/read", "test://static/one", `"uri":"test://static/one"`)
}

func (c caller) message(t *testing.T, text string) answer {
	t.Helper()
	quoted, _ := json.Marshal(text)
	return c.post(t, "", fmt.Sprintf(`{"jsonrpc":"2.0","id":"say","method":"message/send","params":{"message":{"kind":"message","messageId":"m1","role":"user","parts":[{"kind":"text","text":%s}]}}}`, quoted))
}

// request sends one request of MCP, in a session of its own where the era has them. A session that cannot be begun is the
// answer.
func (c caller) request(t *testing.T, id, method, name, params string) answer {
	t.Helper()
	if c.era == "2026-07-28" {
		body := fmt.Sprintf(`{"jsonrpc":"2.0","id":%s,"method":%q,"params":{%s,"_meta":{"io.modelcontextprotocol/protocolVersion":%q,"io.modelcontextprotocol/clientInfo":{"name":"table","version":"1"},"io.modelcontextprotocol/clientCapabilities":{}}}}`, id, method, params, c.era)
		return c.with("Mcp-Protocol-Version", c.era).with("Mcp-Method", method).with("Mcp-Name", name).post(t, "", body)
	}
	begun := c.post(t, "", initialize)
	session := begun.header.Get("Mcp-Session-Id")
	if session == "" {
		return begun
	}
	if got := c.post(t, session, `{"jsonrpc":"2.0","method":"notifications/initialized"}`); got.status != http.StatusAccepted {
		return got
	}
	got := c.post(t, session, fmt.Sprintf(`{"jsonrpc":"2.0","id":%s,"method":%q,"params":{%s}}`, id, method, params))
	c.do(t, http.MethodDelete, session, "") // a child has no more to do
	return got
}

func (c caller) post(t *testing.T, session, body string) answer {
	t.Helper()
	return c.do(t, http.MethodPost, session, body)
}

func (c caller) do(t *testing.T, method, id, body string) answer {
	t.Helper()
	req := (&session{id: id, header: c.header}).request(t, method, c.url, body)
	req.Host = c.host
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer{resp.StatusCode, resp.Header, string(data)}
}

// says reports whether an answer is a result with a text in it.
func (a answer) says(text string) bool {
	return a.status == http.StatusOK && strings.Contains(a.body, text) && strings.Contains(a.body, `"result"`) && !strings.Contains(a.body, `"isError":true`)
}
