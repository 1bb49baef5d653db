package dataplane

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/durationpb"

	policyv1 "github.com/sluicegate/sluice/proto/gen/sluice/policy/v1"
	xdsv1 "github.com/sluicegate/sluice/proto/gen/sluice/xds/v1"
)

// scripted is a world of one agent, which does what handler says, with policies in the JSON of their proto.
func scripted(t *testing.T, policies string, handler http.HandlerFunc) (*xdsv1.Target, *world) {
	t.Helper()
	server := httptest.NewServer(handler)
	t.Cleanup(func() {
		server.CloseClientConnections()
		server.Close()
	})
	w := behind()
	target := w.agent("only", server.URL)
	p := &policyv1.Policies{}
	if err := protojson.Unmarshal([]byte(policies), p); err != nil {
		t.Fatal(err)
	}
	w.policies["only"] = p
	return target, w
}

func call(method string) string {
	return fmt.Sprintf(`{"jsonrpc":"2.0","id":1,"method":%q,"params":{}}`, method)
}

const agentSaid = `{"jsonrpc":"2.0","id":1,"result":{"kind":"message","messageId":"m","role":"agent","parts":[]}}`

func answers(w http.ResponseWriter, r *http.Request) {
	_, _ = io.Copy(io.Discard, r.Body)
	w.Header().Set("Content-Type", "application/json")
	if r.Method == http.MethodGet {
		_, _ = io.WriteString(w, `{"url":"http://agent/"}`)
		return
	}
	_, _ = io.WriteString(w, agentSaid)
}

// Whatever reaches an agent costs a token: nothing gets around it by its method, by having no id, or by asking for a card.
func TestAgentLimits(t *testing.T) {
	for name, ask := range map[string]func(p *testProxy) answer{
		"send":   func(p *testProxy) answer { return p.post(t, "", call("message/send")) },
		"vendor": func(p *testProxy) answer { return p.post(t, "", call("vendor/x")) },
		"card":   func(p *testProxy) answer { return get(t, p.URL+"/.well-known/agent-card.json") },
	} {
		var got atomic.Int32
		_, w := scripted(t, `{"localRateLimit":{"limits":[{"maxTokens":2,"fillInterval":"3600s"}]}}`, func(w http.ResponseWriter, r *http.Request) {
			got.Add(1)
			answers(w, r)
		})
		p := w.start(t)
		for range 2 {
			if a := ask(p); a.status != 200 {
				t.Errorf("%s: %d %s", name, a.status, a.body)
			}
		}
		if a := ask(p); a.status != 429 || a.header.Get("Retry-After") == "" || !strings.Contains(a.body, `"error"`) {
			t.Errorf("%s without a token: %d %s", name, a.status, a.body)
		}
		for _, body := range []string{
			`{"jsonrpc":"2.0","method":"message/send","params":{}}`, call("ping"), call("notifications/x"), call("subscriptions/listen"), call(""), call("Message/Send"),
			`{"jsonrpc":"2.0","id":null,"method":"message/send","params":{}}`,
		} {
			if a := p.post(t, "", body); !strings.Contains(a.body, `"error"`) {
				t.Errorf("%s: %d %s", body, a.status, a.body)
			}
		}
		if got.Load() != 2 {
			t.Errorf("%s: the agent got %d", name, got.Load())
		}
	}
}

// An agent runs as many calls at a time as its target says, streams to their end.
func TestAgentConcurrency(t *testing.T) {
	next := make(chan struct{})
	target, w := scripted(t, `{}`, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		w.Header().Set("Content-Type", "text/event-stream")
		_, _ = io.WriteString(w, "data: "+agentSaid+"\n\n")
		_ = http.NewResponseController(w).Flush()
		<-next
	})
	target.Concurrency = &xdsv1.Concurrency{Max: 1}
	p := w.start(t)
	req, _ := http.NewRequestWithContext(t.Context(), http.MethodPost, p.URL, strings.NewReader(call("message/stream")))
	req.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if _, err := bufio.NewReader(resp.Body).ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	if a := p.post(t, "", call("message/send")); a.status != 503 || !strings.Contains(a.body, "busy") || a.header.Get("Retry-After") == "" {
		t.Errorf("a second call: %d %s", a.status, a.body)
	}
	close(next)
	_, _ = io.Copy(io.Discard, resp.Body)
	if a := p.post(t, "", call("message/send")); a.status != 200 {
		t.Errorf("once the first is over: %d %s", a.status, a.body)
	}
}

// A late agent costs its caller an error, at the head or in the stream; and the agent sees that nobody waits.
func TestAgentTimeouts(t *testing.T) {
	left := make(chan struct{}, 10)
	handler := func(begin string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			if begin != "" {
				w.Header().Set("Content-Type", "text/event-stream")
				_, _ = io.WriteString(w, begin)
				_ = http.NewResponseController(w).Flush()
			}
			<-r.Context().Done()
			left <- struct{}{}
		}
	}
	_, w := scripted(t, `{"timeout":{"requestTimeout":"0.2s"}}`, handler(""))
	if a := w.start(t).post(t, "", call("message/send")); a.status != 504 || !strings.Contains(a.body, "in time") || !strings.Contains(a.body, `"id":1`) {
		t.Errorf("no head: %d %s", a.status, a.body)
	}
	<-left
	_, w = scripted(t, `{"timeout":{"backendRequestTimeout":"0.2s"}}`, handler(""))
	if a := w.start(t).post(t, "", call("message/send")); a.status != 504 || !strings.Contains(a.body, "in time") {
		t.Errorf("no head within its own time: %d %s", a.status, a.body)
	}
	<-left
	_, w = scripted(t, `{"timeout":{"requestTimeout":"0.2s"}}`, handler("data: "+agentSaid+"\n\n"))
	if a := w.start(t).post(t, "", call("message/stream")); a.status != 200 || !strings.HasPrefix(a.body, "data: "+agentSaid) || !strings.Contains(a.body, "in time") {
		t.Errorf("a stream that goes on: %d %s", a.status, a.body)
	}
	<-left
	target, w := scripted(t, `{}`, handler(""))
	target.Timeout = durationpb.New(200 * time.Millisecond)
	if a := get(t, w.start(t).URL+"/.well-known/agent-card.json"); a.status != 504 {
		t.Errorf("a card: %d %s", a.status, a.body)
	}
	<-left
}

// What only reads is sent again, what may have done something is not.
func TestAgentRetry(t *testing.T) {
	for method, want := range map[string]int32{"tasks/get": 2, "GetTask": 2, "message/send": 1, "SendMessage": 1, "vendor/x": 1} {
		var got atomic.Int32
		_, w := scripted(t, `{"retry":{"attempts":1,"backoff":"0.001s"}}`, func(w http.ResponseWriter, r *http.Request) {
			if got.Add(1) == 1 {
				http.Error(w, "not now", http.StatusServiceUnavailable)
				return
			}
			answers(w, r)
		})
		a := w.start(t).post(t, "", call(method))
		if got.Load() != want || (a.status == 200) != (want == 2) {
			t.Errorf("%s: asked %d times, %d %s", method, got.Load(), a.status, a.body)
		}
	}
}

// Methods are what they say once decoded, and nothing of a request smuggles a header.
func TestAgentEscapes(t *testing.T) {
	var got atomic.Int32
	_, w := scripted(t, `{"mcpAuthorization":{"rules":[{"deny":"a2a.method == \"tasks/cancel\""},{"deny":"has(a2a.skill) && a2a.skill == \"x\""},{"allow":"true"}]}}`, func(w http.ResponseWriter, r *http.Request) {
		got.Add(1)
		answers(w, r)
	})
	p := w.start(t)
	for _, body := range []string{
		`{"jsonrpc":"2.0","id":1,"method":"tasks\/cancel","params":{}}`,
		`{"jsonrpc":"2.0","id":1,"method":"t\u0061sks/cancel","params":{}}`,
		`{"jsonrpc":"2.0","id":1,"m\u0065thod":"tasks/cancel","params":{}}`,
		`{"jsonrpc":"2.0","id":1,"method":"message/send","m\u0065thod":"tasks/cancel","params":{}}`,
		`{"jsonrpc":"2.0","id":1,"method":"message/send","METHOD":"tasks/cancel","params":{}}`,
		`{"jsonrpc":"2.0","id":1,"method":"Tasks/Cancel","params":{}}`,
		`{"jsonrpc":"2.0","id":1,"method":"message/send","params":{"message":{"metadata":{"skillId":"\u0078"}}}}`,
		`{"jsonrpc":"2.0","id":1,"method":"message/send","params":{"message":{"metadata":{"skillId":"y"}},"message":{"metadata":{"skillId":"x"}}}}`,
		`{"jsonrpc":"2.0","id":1,"method":"message/send","params":{"metadata":{"skillId":["x"]}}}`,
	} {
		if a := p.post(t, "", body); !strings.Contains(a.body, `"error"`) || strings.Contains(a.body, `"result"`) {
			t.Errorf("%s: %d %s", body, a.status, a.body)
		}
	}
	to := *p
	for _, version := range []string{"1.0\r\nX-Evil: 1", "1.0\nX-Evil: 1", "1.0, 2.0", "x"} {
		to.URL = p.URL + "?A2A-Version=" + url.QueryEscape(version)
		if a := to.post(t, "", call("message/send")); a.status != 400 || !strings.Contains(a.body, "A2A-Version") {
			t.Errorf("version %q: %d %s", version, a.status, a.body)
		}
	}
	if got.Load() != 0 {
		t.Errorf("the agent got %d", got.Load())
	}
	to.URL = p.URL + "?A2A-Version=1.0"
	if a := to.post(t, "", call("message/send")); a.status != 200 {
		t.Errorf("a good version: %d %s", a.status, a.body)
	}
}

// A client that reads nothing makes its agent wait and costs no memory; once it is gone so is the agent's stream.
func TestAgentOfHungClient(t *testing.T) {
	var written atomic.Int64
	left := make(chan struct{})
	for _, policies := range []string{`{}`, `{"ai":` + guards("", masks("hunter2")) + `}`} {
		written.Store(0)
		_, w := scripted(t, policies, func(w http.ResponseWriter, r *http.Request) {
			body, _ := io.ReadAll(r.Body)
			if !strings.Contains(string(body), "message/stream") {
				answers(w, r)
				return
			}
			w.Header().Set("Content-Type", "text/event-stream")
			event := []byte("data: " + strings.Replace(agentSaid, `"parts":[]`, `"parts":[{"kind":"text","text":"`+strings.Repeat("x", 64<<10)+`"}]`, 1) + "\n\n")
			for {
				n, err := w.Write(event)
				written.Add(int64(n))
				if err != nil {
					left <- struct{}{}
					return
				}
			}
		})
		p := w.start(t)
		at, _ := url.Parse(p.URL)
		conn, err := net.Dial("tcp", at.Host)
		if err != nil {
			t.Fatal(err)
		}
		body := call("message/stream")
		fmt.Fprintf(conn, "POST /mcp HTTP/1.1\r\nHost: %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", at.Host, len(body), body)
		// Until nothing moves any more while others are served, for which whoever can run gets to.
		for before := int64(-1); before != written.Load() || before == 0; {
			before = written.Load()
			for range 50 {
				if got := p.post(t, "", call("message/send")); got.status != 200 {
					t.Fatalf("another client: %d %s", got.status, got.body)
				}
			}
		}
		if n := written.Load(); n > 64<<20 { // what sockets hold, and no more
			t.Errorf("the agent could write %d bytes to nobody", n)
		}
		_ = conn.Close()
		<-left
	}
}
