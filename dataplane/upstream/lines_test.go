package upstream

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sluicegate/sluice/dataplane/mcp"
)

// posted is a pipe that keeps what is said to the peer.
type posted struct{ said [][]byte }

func (p *posted) send(context.Context, []byte, *Request) (*Response, error) { return nil, nil }
func (p *posted) post(msg []byte)                                           { p.said = append(p.said, msg) }
func (p *posted) leave()                                                    {}
func (p *posted) close(context.Context)                                     {}

// FuzzLines: whatever a child writes, its callers get whole messages alone, each call at most one response and that under its own
// id, and what is kept for later is bounded.
func FuzzLines(f *testing.F) {
	for _, shared := range []bool{false, true} {
		for _, lines := range []string{
			`{"jsonrpc":"2.0","id":1,"result":{}}` + "\n" + `{"jsonrpc":"2.0","id":"b","result":{"_meta":{"io.modelcontextprotocol/subscriptionId":"b"}}}` + "\r\n",
			`{"jsonrpc":"2.0","id":null,"error":{"code":-32700,"message":"x"}}`, `{"jsonrpc":"2.0","error":{"code":-1,"message":"x"}}` + "\n\n\n",
			`{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":1.0,"progress":1}}`, "Listening on stdio\n{}\n[]\n",
			`[{"jsonrpc":"2.0","id":1,"method":"roots/list"},{"jsonrpc":"2.0","id":2,"result":{}},{"jsonrpc":"2.0","method":"ping","id":0}]`,
			`{"jsonrpc":"2.0","method":"notifications/subscriptions/acknowledged","params":{"_meta":{"io.modelcontextprotocol/subscriptionId":2}}}`,
			`{"jsonrpc":"2.0","method":"notifications/resources/updated","params":{"uri":"a:b"}}`, strings.Repeat(`{"jsonrpc":"2.0","method":"x"}`+"\n", 300),
			`{"jsonrpc":"2.0","id":1.0,"result":{"a":1}}` + "\n" + `{"jsonrpc":"2.0","id":1,"result":{"a":2}}`, strings.Repeat("x", 2000) + "\n",
		} {
			f.Add(shared, []byte(lines))
		}
	}
	cfg := Config{MaxQueued: 4 << 10, MaxMessage: 1 << 10}.withDefaults()
	f.Fuzz(func(t *testing.T, shared bool, output []byte) {
		if len(output) > 32<<10 {
			return // more than a pipe holds
		}
		peer := &posted{}
		ch := newChannel(&cfg, cfg.Log, shared)
		ch.pipe = peer
		ids := []string{`1`, `"b"`}
		var calls []*call
		for i, body := range []string{`{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"_meta":{"progressToken":1}}}`, `{"jsonrpc":"2.0","id":"b","method":"subscriptions/listen"}`} {
			m, err := mcp.Scan([]byte(body), mcp.Limits{})
			if err != nil {
				t.Fatal(err)
			}
			k, _, err := ch.open(&m, string(rune('a'+i)))
			if err != nil {
				t.Fatal(err)
			}
			calls = append(calls, k)
		}
		standing, err := ch.attach("a")
		if err != nil {
			t.Fatal(err)
		}
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		if _, err := w.Write(output); err != nil {
			t.Fatal(err)
		}
		w.Close()
		c := &child{ch: ch, stdout: r, log: cfg.Log}
		c.reaped = true // there is no process
		c.readOutput(cfg.MaxMessage)
		ch.mu.Lock()
		if len(ch.backlog) > backlogMessages || ch.backlogged > backlogBytes || int64(ch.backlogged) != ch.kept.Load() {
			t.Errorf("%d messages of %d bytes are kept, counted as %d", len(ch.backlog), ch.backlogged, ch.kept.Load())
		}
		ch.mu.Unlock()
		ch.fail(errors.New("over"))
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		read := func(s *stream, id string) {
			for {
				msg, last, err := s.next(ctx)
				if err != nil {
					if ctx.Err() != nil {
						t.Fatal("a reader waits for ever")
					}
					return
				}
				m, err := mcp.Scan(msg, mcp.Limits{})
				if err != nil || !json.Valid(msg) {
					t.Fatalf("a caller got %q: %v", msg, err)
				}
				if last != (m.Kind == mcp.Response) || last && (id == "" || string(m.RawID()) != id && !sameID(m.RawID(), id)) {
					t.Errorf("the caller of %s got %s, last %v", id, msg, last)
				}
				if last {
					return
				}
			}
		}
		for i, k := range calls {
			read(k.out, ids[i])
		}
		read(standing, "")
		ch.mu.Lock()
		defer ch.mu.Unlock()
		if len(ch.backlog) != 0 || ch.kept.Load() != 0 {
			t.Errorf("%d messages are kept when all is over, counted as %d bytes", len(ch.backlog), ch.kept.Load())
		}
		for _, msg := range peer.said {
			if _, err := mcp.Scan(msg, mcp.Limits{}); err != nil {
				t.Errorf("the peer was told %q: %v", msg, err)
			}
		}
	})
}

// sameID: the peer may write a number in another form.
func sameID(a []byte, b string) bool {
	one, _ := idKey(a)
	other, _ := idKey([]byte(b))
	return one == other
}

// What a target can make the log say is bounded: a program that talks to people on its standard output does it without end.
func TestWarningsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		cfg := Config{}.withDefaults()
		ch := newChannel(&cfg, slog.New(slog.NewTextHandler(&log, nil)), true)
		ch.pipe = &posted{}
		for range 2000 {
			ch.receive([]byte("Listening"))
			ch.receive([]byte(`{"jsonrpc":"2.0","id":1,"method":"roots/list"}`))
		}
		if n := strings.Count(log.String(), "\n"); n != logBurst {
			t.Errorf("%d lines are logged, want %d", n, logBurst)
		}
		log.Reset()
		time.Sleep(time.Minute)
		ch.receive([]byte("Listening"))
		if got := log.String(); strings.Count(got, "\n") != 1 || !strings.Contains(got, "dropped=3900") {
			t.Errorf("a minute later: %s", got)
		}
	})
}
