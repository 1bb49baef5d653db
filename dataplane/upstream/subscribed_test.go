package upstream

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sluicegate/sluice/dataplane/mcp"
	"github.com/sluicegate/sluice/dataplane/snapshot"
)

// answering is a peer of a shared channel that refuses what it has not, and keeps what it is told.
type answering struct {
	ch   *channel
	said []string // method and URI
}

func (p *answering) send(_ context.Context, msg []byte, _ *Request) (*Response, error) {
	p.post(msg)
	return nil, nil
}

func (p *answering) post(msg []byte) {
	m, err := mcp.Scan(msg, mcp.Limits{})
	if err != nil {
		panic(err)
	}
	p.said = append(p.said, strings.TrimPrefix(m.Method, "resources/")+" "+m.URI.String())
	answer := mcp.AppendResult(nil, m.RawID(), nil)
	if strings.HasPrefix(m.URI.String(), "none:") {
		answer = mcp.AppendError(nil, m.RawID(), mcp.CodeResourceNotFound, "no such resource", nil)
	}
	go p.ch.receive(answer)
}

func (p *answering) leave()                {}
func (p *answering) close(context.Context) {}

// sharedChannel is a shared channel to such a peer, and what subscribes a session there: the answer's body.
func sharedChannel(t *testing.T) (*channel, *answering, func(session, method, uri string) string) {
	cfg := Config{}.withDefaults()
	ch := newChannel(&cfg, cfg.Log, true)
	peer := &answering{ch: ch}
	ch.pipe = peer
	o := &owned{t: &snapshot.Target{}, health: &health{}}
	return ch, peer, func(session, method, uri string) string {
		t.Helper()
		m, err := mcp.Scan(fmt.Appendf(nil, `{"jsonrpc":"2.0","id":1,"method":"resources/%s","params":{"uri":%q}}`, method, uri), mcp.Limits{})
		if err != nil {
			t.Fatal(err)
		}
		res, err := o.exchange(limited(t), &Request{}, &m, nil, ch, session)
		if err != nil {
			t.Fatal(err)
		}
		return text(t, res)
	}
}

// The one peer of several sessions hears of a resource as long as one of them wants it, and not after that: also where a session
// ends without a word.
func TestSharedSubscriptions(t *testing.T) {
	ch, peer, ask := sharedChannel(t)
	for _, s := range []struct{ session, method, uri string }{
		{"a", "subscribe", "test:both"}, {"b", "subscribe", "test:both"}, {"a", "subscribe", "test:a"}, {"b", "subscribe", "test:b"},
		{"a", "subscribe", "none:x"}, {"b", "unsubscribe", "none:x"}, {"a", "unsubscribe", "test:both"},
	} {
		ask(s.session, s.method, s.uri)
	}
	ch.forget("a")
	ch.forget("b")
	want := []string{"subscribe test:both", "subscribe test:both", "subscribe test:a", "subscribe test:b", "subscribe none:x", "unsubscribe none:x",
		"unsubscribe test:a", "unsubscribe test:b", "unsubscribe test:both"}
	got := append([]string(nil), peer.said...)
	if len(got) == len(want) && got[7] > got[8] { // b's two end in any order
		got[7], got[8] = got[8], got[7]
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("what the peer was told (-want +got):\n%s", diff)
	}
	eventually(t, "its answers come", func() bool {
		ch.mu.Lock()
		defer ch.mu.Unlock()
		return len(ch.forgotten) == 0
	})
	if len(ch.subscribed) != 0 || len(ch.wanted) != 0 || ch.subscribes != 0 {
		t.Errorf("it keeps %v, %v, %d bytes", ch.subscribed, ch.wanted, ch.subscribes)
	}
}

// What sessions subscribe to at a shared peer is bounded, and a session that reaches its bound is told so and takes none of the
// others' room.
func TestSharedSubscriptionsAreBounded(t *testing.T) {
	ch, _, ask := sharedChannel(t)
	long := strings.Repeat("x", 32<<10)
	refused := func(session string) (after int, why string) {
		for n := range 10_000 {
			if got := ask(session, "subscribe", fmt.Sprintf("test:%s%d", long, n)); strings.Contains(got, `"error"`) {
				return n, got
			}
		}
		t.Fatal("nothing was refused")
		return 0, ""
	}
	if n, why := refused("a"); n != 7 || !strings.Contains(why, "unsubscribe from some") {
		t.Errorf("one session: after %d, %s", n, why)
	}
	ask("a", "unsubscribe", "test:"+long+"0")
	if n, _ := refused("a"); n != 7 { // what it has again costs nothing
		t.Errorf("after it unsubscribed from one: after %d", n)
	}
	if got := ask("b", "subscribe", "test:b"); strings.Contains(got, `"error"`) {
		t.Errorf("another session: %s", got)
	}
	why := ""
	for n := 0; n < 100 && !strings.Contains(why, "together"); n++ {
		_, why = refused(fmt.Sprint(n))
	}
	if !strings.Contains(why, "together") || ch.subscribes > maxSubscribed {
		t.Errorf("all sessions: %d bytes, %s", ch.subscribes, why)
	}
	ch.forget("0")
	if got := ask("b", "subscribe", "test:c"); strings.Contains(got, `"error"`) {
		t.Errorf("after a session ended: %s", got)
	}
}

// A client that comes back for its stream has the one: each message goes on one stream alone (2025-11-25, transports, Multiple Connections).
// And a session's call that nobody waits for is no cancelled one.
func TestSharedSessionIsASession(t *testing.T) {
	cfg := Config{}.withDefaults()
	ch := newChannel(&cfg, cfg.Log, true)
	peer := &posted{}
	ch.pipe = peer
	first, err := ch.attach("a")
	if err != nil {
		t.Fatal(err)
	}
	second, err := ch.attach("a")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ch.attach("b"); err != nil {
		t.Fatal(err)
	}
	ch.receive([]byte(`{"jsonrpc":"2.0","method":"notifications/tools/list_changed"}`))
	if msg, _, err := first.next(limited(t)); err == nil {
		t.Errorf("the older stream was told %s", msg)
	}
	if msg, _, err := second.next(limited(t)); err != nil || !strings.Contains(string(msg), "list_changed") {
		t.Errorf("the newer stream: %s %v", msg, err)
	}
	ch.detach(first)
	if !ch.serves("a") || !ch.serves("b") {
		t.Error("the end of the older stream ended another")
	}
	for from, want := range map[string]int{"a": 0, "": 1} {
		m, err := mcp.Scan([]byte(`{"jsonrpc":"2.0","id":1,"method":"tools/call"}`), mcp.Limits{})
		if err != nil {
			t.Fatal(err)
		}
		k, _, err := ch.open(&m, from)
		if err != nil {
			t.Fatal(err)
		}
		before := len(peer.said)
		ch.leave(k)
		if n := len(peer.said) - before; n != want {
			t.Errorf("session %q: %d cancellations, want %d", from, n, want)
		}
	}
}
