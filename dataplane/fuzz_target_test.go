package dataplane

import (
	"bytes"
	"encoding/json"
	"math/bits"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/sluicegate/sluice/internal/mcptest"
	xdsv1 "github.com/sluicegate/sluice/proto/gen/sluice/xds/v1"
)

// The target leg: whatever a target answers.

// attack is what a target says in place of one of its answers. $ID in it is the id of the request.
type attack struct {
	stateless bool   // the target's era
	sse       bool   // HTTP+SSE; what it says comes on its stream
	method    string // the request that is answered so; "GET" is the standing stream
	form      byte   // how the bytes are wrapped: see answers
	bytes     []byte
}

// attacker is a target that answers all but one method as it should, over bare TCP.
type attacker struct {
	*mcptest.Script
	now atomic.Pointer[attack]

	mu      sync.Mutex
	streams []*mcptest.Conn // guarded by mu: GET streams of HTTP+SSE
}

func newAttacker(t testing.TB) *attacker {
	a := &attacker{}
	a.Script = mcptest.NewScript(t, func(c *mcptest.Conn) {
		for {
			r, body := c.Read()
			if r == nil {
				return
			}
			if !a.serve(c, r, body) {
				return
			}
		}
	})
	return a
}

// serve answers one request; false: the connection ends.
func (a *attacker) serve(c *mcptest.Conn, r *http.Request, body []byte) bool {
	now := a.now.Load()
	var m struct {
		ID     json.RawMessage
		Method string
	}
	_ = json.Unmarshal(body, &m)
	if r.Method == http.MethodGet {
		if now.sse {
			a.mu.Lock()
			a.streams = append(a.streams, c)
			a.mu.Unlock()
			c.Send("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\nevent: endpoint\ndata: /mcp?s=1\n\n")
			c.Hang()
			return false
		}
		if now.method == "GET" {
			now.answer(c, "1")
			return false
		}
		c.Answer(405, "", "")
		return true
	}
	if r.Method == http.MethodDelete {
		c.Answer(204, "", "")
		return true
	}
	if now.sse {
		c.Answer(202, "", "")
		a.mu.Lock()
		defer a.mu.Unlock()
		for _, stream := range a.streams {
			if m.Method == now.method && m.ID != nil {
				stream.Send(string(now.filled(string(m.ID))) + "\n\n")
				_ = stream.Close()
			} else if answer := wellAnswered(m.Method, string(m.ID), false); m.ID != nil {
				stream.Send("data: " + answer + "\n\n")
			}
		}
		return true
	}
	if m.Method == now.method {
		now.answer(c, string(m.ID))
		return false
	}
	switch {
	case m.ID == nil:
		c.Answer(202, "", "")
	case now.stateless && m.Method == "initialize", !now.stateless && m.Method == "server/discover":
		c.Answer(404, "application/json", `{"jsonrpc":"2.0","id":`+string(m.ID)+`,"error":{"code":-32601,"message":"Method not found"}}`)
	default:
		c.Answer(200, "application/json", wellAnswered(m.Method, string(m.ID), now.stateless), "Mcp-Session-Id: s")
	}
	return true
}

func wellAnswered(method, id string, stateless bool) string {
	result := fuzzedResults[method]
	if stateless {
		result = strings.TrimSuffix(`"resultType":"complete","ttlMs":0,"cacheScope":"private",`+result, ",")
	}
	return `{"jsonrpc":"2.0","id":` + id + `,"result":{` + result + `}}`
}

func (x *attack) filled(id string) []byte {
	return bytes.ReplaceAll(x.bytes, []byte("$ID"), []byte(id))
}

// answer says the attack's bytes in its form.
func (x *attack) answer(c *mcptest.Conn, id string) {
	what := string(x.filled(id))
	switch x.form % 5 {
	case 0:
		c.Answer(200, "application/json", what)
	case 1: // an event stream that ends with the connection
		c.Send("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n" + what)
	case 2: // the result of a good answer
		c.Answer(200, "application/json", `{"jsonrpc":"2.0","id":`+id+`,"result":`+what+`}`)
	case 3: // one event of a good stream, before the answer
		c.Send("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: " + what + "\n\ndata: " + wellAnswered(x.method, id, x.stateless) + "\n\n")
	case 4: // all of HTTP
		c.Send(what)
	}
	_ = c.Close()
}

// attacked are the requests whose answers are attacked.
var attacked = []string{"server/discover", "initialize", "tools/list", "tools/call", "subscriptions/listen", "GET", "resources/read", "prompts/list"}

// FuzzTargetLeg: no panic, nothing left behind, a bounded amount of memory, an answer that is HTTP and MCP, and another target
// of the same endpoint that goes on as if nothing were.
func FuzzTargetLeg(f *testing.F) {
	for how := range uint16(1 << 8) {
		if how>>5&7 > 5 || how>>4&1 != how&1 || how>>3&1 != 0 && how&1 == 0 && how>>2&1 == 0 || bits.OnesCount16(how)&1 != 0 { // a quarter of them is enough to begin with
			continue
		}
		id := `{"jsonrpc":"2.0","id":$ID,`
		switch how & 3 {
		case 0:
			f.Add(how, byte(0), []byte(id+`"result":{"content":[{"type":"text","text":"x"}]}}`))
			f.Add(how, byte(0), []byte(id+`"error":{"code":0,"message":"x","data":{"n":1e400}}}`))
			f.Add(how, byte(2), []byte(`{"resultType":"complete","tools":[{"name":"x","inputSchema":{"type":"object","properties":{"r":{"type":"string","x-mcp-header":"R"}}}}],"nextCursor":"","ttlMs":1,"cacheScope":"public"}`))
			f.Add(how, byte(3), []byte(`{"jsonrpc":"2.0","id":0,"method":"elicitation/create","params":{"message":"?","requestedSchema":{"type":"object","properties":{}}}}`))
			f.Add(how, byte(3), []byte(`{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":1.0,"progress":1}}`))
			f.Add(how, byte(1), []byte("id: 1\nretry: 5\ndata:\n\n: x\r\ndata: "+id+"\rdata: \"result\":{}}\n\n"))
		case 1:
			f.Add(how, byte(2), []byte(`{"resultType":"input_required","inputRequests":{"q":{"method":"elicitation/create","params":{"message":"?"}}},"requestState":"s"}`))
			f.Add(how, byte(2), []byte(`{"supportedVersions":["2026-07-28","x"],"capabilities":{"tools":{"listChanged":true},"x":{"y":1e400}},"_meta":{"io.modelcontextprotocol/serverInfo":{"name":"n","version":"1"}}}`))
			f.Add(how, byte(0), []byte(id+`"error":{"code":-32022,"message":"no","data":{"supported":["2026-07-28"]}}}`))
			f.Add(how, byte(3), []byte(`{"jsonrpc":"2.0","method":"notifications/subscriptions/acknowledged","params":{"_meta":{"io.modelcontextprotocol/subscriptionId":1},"notifications":{}}}`))
		case 2:
			f.Add(how, byte(4), []byte("HTTP/1.1 404 Not Found\r\nContent-Type: application/json\r\nMcp-Session-Id: minted\r\nContent-Length: 2\r\n\r\n{}"))
			f.Add(how, byte(4), []byte("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n5\r\ndata:\r\n0\r\n\r\n"))
			f.Add(how, byte(0), []byte(`{"jsonrpc":"2.0","error":{"code":-32000,"message":"Bad Request"},"id":null}`))
			f.Add(how, byte(0), []byte(`[`+id+`"result":{}}]`))
		case 3:
			f.Add(how, byte(2), []byte(`{"protocolVersion":"2025-06-18","capabilities":{"tools":{}},"serverInfo":{"name":"n","version":"1"}}`))
			f.Add(how, byte(2), []byte(`{"contents":[{"uri":"a:b","text":"x"}],"content":[{"type":"resource_link","uri":"a:b","name":"x"}]}`))
			f.Add(how, byte(3), []byte(`{"jsonrpc":"2.0","method":"notifications/tools/list_changed"}`))
			f.Add(how, byte(0), []byte("<html>"))
		}
	}

	bad, good := newAttacker(f), newFuzzed(f, true)
	at := endpointOf(bad.URL)
	f.Fuzz(func(t *testing.T, how uint16, form byte, what []byte) {
		now := &attack{stateless: how&1 != 0, method: attacked[how>>5&7], form: form, bytes: what}
		modern := how&2 != 0 // the client's era
		if how&(1<<3) != 0 && !now.stateless {
			now.sse = true
		}
		bad.now.Store(now)
		bad.mu.Lock()
		bad.streams = nil
		bad.mu.Unlock()
		w := behind("a="+bad.URL, "b="+good.URL)
		if now.sse {
			w.targets[0].Transport = &xdsv1.Target_Sse{Sse: at}
		}
		if how&(1<<2) != 0 {
			w.targets = w.targets[:1]
		}
		w.backend.FailureMode = xdsv1.Backend_FAILURE_MODE_FAIL_OPEN
		w.targets[0].Timeout = durationpb.New(500 * time.Millisecond)
		p, stop := w.quietly(t)
		defer stop()
		c := attackedClient{testProxy: p, modern: modern, prefix: "a_"}
		if len(w.targets) == 1 {
			c.prefix = ""
		}
		address := []string{bad.Addr, strings.TrimSuffix(strings.TrimPrefix(good.URL, "http://"), "/mcp")}
		if !modern {
			r := c.send(t, "initialize", "", `"protocolVersion":"2025-11-25","capabilities":{"elicitation":{}},"clientInfo":{"name":"f","version":"1"}`)
			r.check(t, address...)
			c.session = r.sent.Get("Mcp-Session-Id")
		}
		for _, one := range [][3]string{
			{"server/discover"}, {"tools/list"}, {"prompts/list"}, {"tools/call", c.prefix + "safe", `"name":"` + c.prefix + `safe","arguments":{"region":"eu"}`},
			{"resources/read", "a+test://files/safe", `"uri":"a+test://files/safe"`}, {"subscriptions/listen", "", `"notifications":{"toolsListChanged":true,"resourceSubscriptions":["a+test://files/safe"]}`},
		} {
			if !modern && (one[0] == "server/discover" || one[0] == "subscriptions/listen") || one[0] == "prompts/list" && now.method != one[0] || one[0] == "resources/read" && now.method != one[0] ||
				one[0] == "subscriptions/listen" && now.method != one[0] && now.method != "GET" {
				continue
			}
			if !modern && c.session == "" {
				break
			}
			now.check(t, c.send(t, one[0], one[1], one[2]), modern == now.stateless && (len(w.targets) == 1 || one[0] == "tools/call" || one[0] == "resources/read"), address)
		}
		if len(w.targets) == 2 && (modern || c.session != "") {
			r := c.send(t, "tools/call", "b_safe", `"name":"b_safe","arguments":{"region":"eu"}`)
			if r.status != 200 || !strings.Contains(r.body.String(), `"text":"safe"`) {
				t.Errorf("the other target: %d %s", r.status, r.body.String())
			}
		}
		for _, complaint := range good.take() {
			t.Errorf("the other target complains: %s", complaint)
		}
		stop()
		settled(t, 400)
		bounded(t)
	})
}

// attackedClient sends what a client sends, of either era.
type attackedClient struct {
	*testProxy
	modern          bool
	prefix, session string
}

func (c *attackedClient) send(t *testing.T, method, name, params string) *reply {
	t.Helper()
	h := http.Header{"Content-Type": {"application/json"}, "Accept": {"application/json, text/event-stream"}}
	if c.modern {
		h["Mcp-Protocol-Version"], h["Mcp-Method"] = []string{"2026-07-28"}, []string{method}
		if name != "" {
			h["Mcp-Name"] = []string{name}
		}
		if method == "tools/call" {
			h["Mcp-Param-Region"] = []string{"eu"}
		}
		if params != "" {
			params += ","
		}
		params += fuzzedMeta
	} else if c.session != "" {
		h["Mcp-Session-Id"] = []string{c.session}
	}
	return c.serveFuzzed(http.MethodPost, "/mcp", h, []byte(`{"jsonrpc":"2.0","id":1,"method":"`+method+`","params":{`+params+`}}`))
}

var fuzzedRuns atomic.Int64

// check holds an answer to what it has to be. A target's answer to a client of its own era is passed on as it comes, less what is
// spliced (names, ids): that it is no JSON its client finds out.
func (x *attack) check(t *testing.T, r *reply, passed bool, address []string) {
	t.Helper()
	what := x.filled("1")
	if passed && !x.sse && r.status < 400 && (bytes.Contains(what, bytes.TrimSpace(r.body.Bytes())) || x.form%5 != 0 || !json.Valid(what)) {
		return
	}
	r.check(t, address...)
}

// bounded looks now and then whether memory grows.
func bounded(t *testing.T) {
	if fuzzedRuns.Add(1)%512 != 0 {
		return
	}
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	if m.HeapAlloc > 512<<20 {
		t.Fatalf("%d MiB are held", m.HeapAlloc>>20)
	}
}
