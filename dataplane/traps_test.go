package dataplane

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sluicegate/sluice/internal/mcptest"
)

// TestTraps is the index of what is easily got wrong between two eras of one protocol: each trap drives a whole proxy, with real
// or lying targets over loopback. In a name, L is the era of sessions and M the stateless one; L→M is an old client at a new server.
func TestTraps(t *testing.T) {
	t.Parallel()
	for _, trap := range []struct {
		name  string
		tests map[string]func(*testing.T)
	}{
		{"01-initialize-with-stateless-headers", one(trapInitialize)},
		{"02-ids-and-cursors-that-look-empty", map[string]func(*testing.T){"ids": trapIDs, "cursors": trapCursors}},
		{"03-client-leaves", map[string]func(*testing.T){"same era": clientLeaves, "M→L": bridgeClientLeaves, "L→M": trapOldClientLeaves}},
		{"04-unsupported-version-for-ever", map[string]func(*testing.T){"every answer": trapVersionLoop, "initialize": bridgeRefusedSession}},
		{"05-acknowledged-comes-first", map[string]func(*testing.T){"slow and fast targets": trapAcknowledged, "M→M": listenRaw, "M→L": bridgeListen}},
		{"06-one-cache-scope-for-all-pages", one(trapCacheScope)},
		{"07-retry-of-another", map[string]func(*testing.T){"principal, edits, arguments": bridgeRetry, "expired": bridgeParkedExpires}},
		{"08-asks-outside-of-calls", one(bridgeAsksOutsideOfCalls)},
		{"09-cancelled-on-another-proxy", one(trapCancelElsewhere)},
		{"10-session-id-of-more-than-8-KiB", map[string]func(*testing.T){"of a client": trapLongSession, "of targets": trapLongTargetSession, "of capabilities": tooManyTargets}},
		{"11-not-found-is-not-the-session", map[string]func(*testing.T){"a lost session": targetLosesSession, "another 404": trapNotFound, "M→L": bridgeLostSession}},
		{"12-events-in-pieces", map[string]func(*testing.T){"forms": trapEvents, "16 MiB": trapLargeEvent}},
		{"13-mcp-name", one(trapName)},
		{"14-bad-x-mcp-header", one(trapParamHeader)},
		{"15-configuration-changes-under-way", map[string]func(*testing.T){"mid-page": trapChangeMidPage, "mid-parked call": trapChangeMidCall, "mid-listen": trapChangeMidListen}},
		{"16-errors-with-null-id", map[string]func(*testing.T){"each cell": trapNullID, "M→L": bridgeBadAnswers}},
		{"17-session-minted-on-an-error", one(trapMinted)},
	} {
		t.Run(trap.name, func(t *testing.T) {
			for name, test := range trap.tests {
				if name == "" {
					test(t)
					continue
				}
				t.Run(name, test)
			}
		})
	}
}

func one(test func(*testing.T)) map[string]func(*testing.T) {
	return map[string]func(*testing.T){"": test}
}

// cells are the four pairs of a client's era and a target's.
var cells = []struct {
	name      string
	client    string // the client's version
	stateless bool   // the target's era
}{
	{"L→L", "2025-11-25", false}, {"M→M", "2026-07-28", true}, {"L→M", "2025-11-25", true}, {"M→L", "2026-07-28", false},
}

// eachCell runs a test for each pair of eras.
func eachCell(t *testing.T, test func(t *testing.T, client string, stateless bool)) {
	t.Helper()
	for _, c := range cells {
		t.Run(c.name, func(t *testing.T) { test(t, c.client, c.stateless) })
	}
}

// begun is the session of a client at a version, "" for one of 2026-07-28.
func (p *testProxy) begun(t testing.TB, version string, headers ...string) string {
	t.Helper()
	if version == "2026-07-28" {
		return ""
	}
	return p.initialize(t, version, headers...)
}

// raw is a target of one era that says byte for byte what a test wants, and what any server says to the rest.
type raw struct {
	*mcptest.Script
	stateless bool
	posts     posts

	mu      sync.Mutex
	headers []http.Header                                 // of POSTs; guarded by mu
	answers map[string]func(c *mcptest.Conn, req rawCall) // by method; guarded by mu
}

// rawCall is a request as its target got it.
type rawCall struct {
	method, id, body string
	header           http.Header
}

// result is an answer's whole text.
func (r rawCall) result(inner string) string {
	return `{"jsonrpc":"2.0","id":` + r.id + `,"result":` + inner + `}`
}

func newRaw(t testing.TB, stateless bool, answers map[string]func(c *mcptest.Conn, req rawCall)) *raw {
	g := &raw{stateless: stateless, answers: answers}
	g.Script = mcptest.NewScript(t, func(c *mcptest.Conn) {
		for {
			r, body := c.Read()
			if r == nil {
				return
			}
			g.serve(c, r, body)
		}
	})
	return g
}

// on changes how a method is answered; nil: as any server does.
func (g *raw) on(method string, answer func(c *mcptest.Conn, req rawCall)) {
	g.mu.Lock()
	defer g.mu.Unlock()
	next := map[string]func(c *mcptest.Conn, req rawCall){method: answer}
	for m, a := range g.answers {
		if m != method {
			next[m] = a
		}
	}
	g.answers = next
}

// last is the header of the last POST that holds a text.
func (g *raw) header(t testing.TB, text string) http.Header {
	t.Helper()
	g.mu.Lock()
	defer g.mu.Unlock()
	g.posts.mu.Lock()
	defer g.posts.mu.Unlock()
	for i := len(g.headers) - 1; i >= 0; i-- {
		if strings.Contains(g.posts.all[i], text) {
			return g.headers[i]
		}
	}
	t.Fatalf("the target got no %s", text)
	return nil
}

func (g *raw) serve(c *mcptest.Conn, r *http.Request, body []byte) {
	var m struct {
		ID     json.RawMessage
		Method string
	}
	_ = json.Unmarshal(body, &m)
	g.mu.Lock()
	answer := g.answers[cmp.Or(m.Method, r.Method)]
	if answer == nil {
		answer = g.answers["*"]
	}
	if r.Method == http.MethodPost {
		g.posts.add(string(body))
		g.headers = append(g.headers, r.Header)
	}
	g.mu.Unlock()
	switch {
	case answer != nil:
		answer(c, rawCall{m.Method, string(m.ID), string(body), r.Header})
	case r.Method != http.MethodPost:
		c.Answer(405, "", "")
	case m.ID == nil || m.Method == "":
		c.Answer(202, "", "")
	case g.stateless && m.Method == "initialize", !g.stateless && m.Method == "server/discover":
		c.Answer(404, "application/json", `{"jsonrpc":"2.0","id":`+string(m.ID)+`,"error":{"code":-32601,"message":"Method not found"}}`)
	case m.Method == "initialize":
		c.Answer(200, "application/json", wellAnswered(m.Method, string(m.ID), false), "Mcp-Session-Id: s")
	default:
		c.JSON(wellAnswered(m.Method, string(m.ID), g.stateless))
	}
}

// counted are requests of a method at a target.
func (g *raw) counted(method string) int {
	return len(g.posts.with(fmt.Sprintf("%q", method)))
}

// dial is a bare connection to the proxy.
func (p *testProxy) dial(t testing.TB) net.Conn {
	t.Helper()
	u, err := url.Parse(p.URL)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.Dial("tcp", u.Host)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func isTimeout(err error) bool {
	timeout, ok := errors.AsType[net.Error](err)
	return ok && timeout.Timeout()
}

// waiting returns what ends a test that has waited for too long.
func waiting(t testing.TB) func() {
	deadline := time.Now().Add(10 * time.Second)
	return func() {
		t.Helper()
		if time.Now().After(deadline) {
			t.Fatal("waited in vain")
		}
	}
}
