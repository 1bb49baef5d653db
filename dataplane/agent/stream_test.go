package agent

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sluicegate/sluice/dataplane/mcp"
)

// client is where a queue writes to.
type client struct {
	mu   sync.Mutex // guards the rest
	got  bytes.Buffer
	gone bool
}

func (c *client) Write(b []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.gone {
		return 0, errors.New("gone")
	}
	return c.got.Write(b)
}

func (c *client) said() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return strings.ReplaceAll(strings.ReplaceAll(c.got.String(), "data: ", ""), "\n\n", " ")
}

func newQueue() (*queue, *client, *int) {
	c, left := &client{}, 0
	return &queue{out: mcp.NewEventWriter(c, func() error { return nil }), gone: func() { left++ }}, c, &left
}

func event(text string) *heldEvent {
	return &heldEvent{ev: mcp.Event{Data: []byte(text), HasData: true}, original: []byte(text)}
}

// Events wait no longer than they have to, and never change places.
func TestQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q, c, _ := newQueue()
		q.put(event("a"), 0)
		if got := c.said(); got != "a " {
			t.Errorf("what is not held: %q", got)
		}
		q.put(event("b"), holdTime)
		time.Sleep(holdTime / 2)
		q.put(event("c"), 0)
		q.put(event("d"), holdTime)
		if got := c.said(); got != "a " {
			t.Errorf("before its time: %q", got)
		}
		time.Sleep(holdTime / 2)
		synctest.Wait()
		if got := c.said(); got != "a b c " {
			t.Errorf("at b's time: %q", got)
		}
		q.mu.Lock()
		d := q.heldLocked(0)
		d.ev.Data = []byte("D")
		q.mu.Unlock()
		time.Sleep(holdTime / 2)
		synctest.Wait()
		if got := c.said(); got != "a b c D " {
			t.Errorf("at d's time: %q", got)
		}
		q.put(event("e"), holdTime)
		dropped := event("f")
		dropped.dropped = true
		q.put(dropped, holdTime)
		q.put(event("g"), holdTime)
		q.close()
		if got := c.said(); got != "a b c D e g " {
			t.Errorf("at the end: %q", got)
		}
		time.Sleep(time.Minute) // the clock has stopped
	})
}

// What waits is bounded in number and size.
func TestQueueIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, size := range []int{1, 100 << 10, 2 << 20} {
			q, c, _ := newQueue()
			want := 0
			for i := range 2 * maxHeld {
				if i*size > 8<<20 {
					break
				}
				q.put(event(fmt.Sprintf("%0*d", size, i)), holdTime)
				want++
				q.mu.Lock()
				if len(q.held) > maxHeld || q.size > maxSize {
					t.Fatalf("%d events of %d bytes wait", len(q.held), q.size)
				}
				q.mu.Unlock()
			}
			q.close()
			said := strings.Fields(c.said())
			if len(said) != want || !strings.HasSuffix(said[want-1], fmt.Sprint(want-1)) {
				t.Errorf("%d of %d events came", len(said), want)
			}
		}
	})
}

// A client that is gone ends the agent's stream, also while events wait.
func TestQueueWithoutClient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q, c, left := newQueue()
		q.put(event("a"), holdTime)
		q.put(event("b"), holdTime)
		c.mu.Lock()
		c.gone = true
		c.mu.Unlock()
		time.Sleep(2 * holdTime)
		synctest.Wait()
		q.close()
		if *left != 1 {
			t.Errorf("told %d times", *left)
		}
	})
}

// Voices are bounded: an agent may name as many artifacts as it likes.
func TestPiecesAreBounded(t *testing.T) {
	p := &pieces{}
	for i := range 10 * maxVoices {
		if _, err := p.add(fmt.Appendf(nil, `{"result":{"artifact":{"artifactId":"%d","parts":[{"text":"x"}]}}}`, i)); err != nil {
			t.Fatal(err)
		}
		if len(p.voices) > maxVoices {
			t.Fatalf("%d voices", len(p.voices))
		}
	}
}

func TestMethods(t *testing.T) {
	for method, want := range map[string][3]bool{ // misspelt, MCP's, safe
		"message/send": {}, "tasks/get": {false, false, true}, "GetTask": {false, false, true}, "Tasks/Get": {true, false, false}, "gettask": {true, false, false},
		"vendor/method": {}, "tools/call": {false, true, false}, "ping": {false, true, false}, "notifications/x": {false, true, false}, "MeSSage/Stream": {true, false, false},
		"meſſage/send": {true, false, false},
	} {
		if got := [3]bool{misspelt(method), ofMCP(method), safe(method)}; got != want {
			t.Errorf("%s: %v, want %v", method, got, want)
		}
	}
	for version, want := range map[string]bool{"": true, "1.0": true, "0.3": true, "1.0\r\nX-Evil: 1": false, "1.0,0.3": false, strings.Repeat("1", 50): false} {
		if isVersion(version) != want {
			t.Errorf("%q is a version: %v", version, !want)
		}
	}
}

// Cards are read strictly, and nothing of theirs leads past the proxy.
func TestRewriteCard(t *testing.T) {
	const at = "https://gw.example/mcp/a"
	for name, tt := range map[string]struct{ card, want string }{
		"0.3": {`{"protocolVersion":"0.3.0","url":"http://a/","preferredTransport":"JSONRPC","additionalInterfaces":[{"url":"http://b/","transport":"GRPC"},{"url":"http://a/","transport":"JSONRPC"}],"x":{"url":"kept"}}`,
			`{"protocolVersion":"0.3.0","url":"` + at + `","preferredTransport":"JSONRPC","additionalInterfaces":[{"url":"` + at + `","transport":"JSONRPC"}],"x":{"url":"kept"}}`},
		"0.2": {`{"url":"http://a/"}`, `{"url":"` + at + `"}`},
		"0.3 that prefers gRPC": {`{"url":"http://a/","preferredTransport":"GRPC","additionalInterfaces":[{"url":"http://b/","transport":"JSONRPC"}]}`,
			`{"url":"` + at + `","preferredTransport":"JSONRPC","additionalInterfaces":[{"url":"` + at + `","transport":"JSONRPC"}]}`},
		"1.0": {`{"name":"n","supportedInterfaces":[{"url":"http://a/","protocolBinding":"HTTP+JSON","protocolVersion":"1.0"},{"url":"http://a/","protocolBinding":"JSONRPC","protocolVersion":"1.0","tenant":"t"}],"signatures":[]}`,
			`{"name":"n","supportedInterfaces":[{"url":"` + at + `","protocolBinding":"JSONRPC","protocolVersion":"1.0","tenant":"t"}]}`},
		"of both": {`{"url":"http://a/","supportedInterfaces":[{"url":"http://a/","protocolBinding":"JSONRPC","protocolVersion":"1.0"},{"url":"http://b/","protocolBinding":"JSONRPC","protocolVersion":"1.0"}]}`,
			`{"url":"` + at + `","supportedInterfaces":[{"url":"` + at + `","protocolBinding":"JSONRPC","protocolVersion":"1.0"}]}`},
		"of 1.0 and gRPC of 0.3": {`{"url":"http://a/","preferredTransport":"GRPC","additionalInterfaces":[],"supportedInterfaces":[{"url":"http://a/","protocolBinding":"JSONRPC"}]}`,
			`{"supportedInterfaces":[{"url":"` + at + `","protocolBinding":"JSONRPC"}]}`},
		"escaped names":  {`{"u\u0072l":"http://a/","n\u0061me":"\ud83d\ude00"}`, `{"url":"` + at + `","name":"\ud83d\ude00"}`},
		"null":           {`{"url":"http://a/","preferredTransport":null,"additionalInterfaces":null,"skills":null}`, `{"url":"` + at + `","preferredTransport":"JSONRPC","additionalInterfaces":[],"skills":[]}`},
		"skills":         {`{"url":"http://a/","skills":[{"id":"s\u0068own","x":1},{"id":"hidden"},{"name":"none"},{"id":7}]}`, `{"url":"` + at + `","skills":[{"id":"s\u0068own","x":1}]}`},
		"another case":   {`{"Url":"http://a/"}`, ""},
		"in an element":  {`{"supportedInterfaces":[{"URL":"http://a/","protocolBinding":"JSONRPC"}]}`, ""},
		"twice":          {`{"url":"http://a/","u\u0072l":"http://b/"}`, ""},
		"skill twice":    {`{"url":"http://a/","skills":[{"id":"shown","id":"hidden"}]}`, ""},
		"no interface":   {`{"name":"n"}`, ""},
		"no list":        {`{"url":"http://a/","additionalInterfaces":{}}`, ""},
		"no object":      {`[{"url":"http://a/"}]`, ""},
		"broken":         {`{"url":"http://a/"`, ""},
		"deep":           {`{"url":"http://a/","x":` + strings.Repeat("[", 100000) + strings.Repeat("]", 100000) + `}`, ""},
		"an error's":     {`{"jsonrpc":"2.0","id":null,"error":{"code":-32600,"message":"m"}}`, ""},
		"too many":       {`{"supportedInterfaces":[` + strings.Repeat(`{"url":"http://a/","protocolBinding":"JSONRPC"},`, maxInterfaces) + `{}]}`, ""},
		"of no binding":  {`{"supportedInterfaces":[{"url":"http://a/"}]}`, ""},
		"of other cases": {`{"supportedInterfaces":[{"url":"http://a/","protocolBinding":"jsonrpc"}]}`, ""},
	} {
		got, err := rewriteCard([]byte(tt.card), at, func(skill string) bool { return skill == "shown" })
		if string(got) != tt.want || (err == nil) != (tt.want != "") {
			t.Errorf("%s: %.300s %v\nwant %s", name, got, err, tt.want)
		}
	}
}
