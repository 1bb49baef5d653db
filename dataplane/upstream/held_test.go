package upstream

import (
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/sluicegate/sluice/dataplane/mcp"
)

// What waits for streams that nobody has opened is bounded for each session and for all of a target's; a session's end gives its part
// back. A message that came in a batch keeps none of the others.
func TestBacklogsAreBounded(t *testing.T) {
	cfg := Config{}.withDefaults()
	var kept atomic.Int64
	var all []*channel
	note := `{"jsonrpc":"2.0","method":"notifications/message","params":{"level":"info","data":"` + strings.Repeat("x", 512<<10) + `"}}`
	for range 200 {
		ch := newChannel(&cfg, cfg.Log, false)
		ch.pipe, ch.kept = &posted{}, &kept
		for range 4 {
			ch.receive([]byte(note))
		}
		if ch.backlogged > backlogBytes {
			t.Fatalf("a session keeps %d bytes, want at most %d", ch.backlogged, backlogBytes)
		}
		all = append(all, ch)
	}
	sum := 0
	for _, ch := range all {
		for _, msg := range ch.backlog {
			sum += len(msg)
		}
	}
	if sum > backlogsBytes || sum < backlogsBytes*3/4 || int64(sum) != kept.Load() {
		t.Errorf("the sessions keep %d bytes, counted as %d, want at most %d", sum, kept.Load(), backlogsBytes)
	}
	s, err := all[0].attach("")
	if err != nil {
		t.Fatal(err)
	}
	all[0].fail(ErrClosed)
	all[0].detach(s) // which nobody has read
	for _, ch := range all[1:] {
		ch.fail(errors.New("over"))
	}
	if n := kept.Load(); n != 0 {
		t.Errorf("%d bytes are counted when all is over", n)
	}

	ch := newChannel(&cfg, cfg.Log, false)
	ch.pipe = &posted{}
	batch := []byte(`[{"jsonrpc":"2.0","method":"notifications/a"},` + note + `]`)
	ch.receive(batch)
	clear(batch)
	if got := string(ch.backlog[0]); got != `{"jsonrpc":"2.0","method":"notifications/a"}` {
		t.Errorf("a message shares its memory with its batch: %q", got)
	}
}

// Ids of calls that were given up are kept until the peer answers, and no more of them than there is room for.
func TestForgottenIDsAreBounded(t *testing.T) {
	cfg := Config{}.withDefaults()
	ch := newChannel(&cfg, cfg.Log, false)
	ch.pipe = &posted{}
	give := func(n int) (id string) {
		id = fmt.Sprintf(`"%d%s"`, n, strings.Repeat("x", 200))
		m, err := mcp.Scan([]byte(`{"jsonrpc":"2.0","id":`+id+`,"method":"tools/call"}`), mcp.Limits{})
		if err != nil {
			t.Fatal(err)
		}
		k, _, err := ch.open(&m, "s")
		if err != nil {
			t.Fatal(err)
		}
		ch.leave(k)
		return id
	}
	var last string
	for n := range 1000 {
		last = give(n)
		size := 0
		for key := range ch.forgotten {
			size += len(key)
		}
		if size > maxForgottenKey || size != ch.forgetting {
			t.Fatalf("ids of %d bytes are kept, counted as %d, want at most %d", size, ch.forgetting, maxForgottenKey)
		}
	}
	before := len(ch.forgotten)
	ch.receive([]byte(`{"jsonrpc":"2.0","id":` + last + `,"result":{}}`))
	if len(ch.forgotten) != before-1 {
		t.Errorf("an id is kept when its answer came")
	}
}
