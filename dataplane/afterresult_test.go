package dataplane

import (
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/sluicegate/sluice/internal/mcptest"
)

// A call whose response has come is over for its client, though its target does not end the stream before its time is up.
func TestOneResponseThoughTheStreamTimesOut(t *testing.T) {
	for _, targets := range []int{1, 2} {
		target := newRaw(t, false, map[string]func(*mcptest.Conn, rawCall){"tools/call": func(c *mcptest.Conn, req rawCall) {
			c.Send(eventsHead, chunk("data: "+req.result(`{"content":[]}`)+"\n\n"))
			c.Hang()
		}})
		w, tool := behind("a="+target.URL, "b="+newRaw(t, false, nil).URL), "a_t"
		if targets == 1 {
			w, tool = behind("a="+target.URL), "t"
		}
		w.targets[0].Timeout = durationpb.New(300 * time.Millisecond)
		p := w.start(t)
		id := p.initialize(t, "2025-11-25")
		got := p.post(t, id, echo(tool, "x"))
		if strings.Count(got.body, `"id":7`) != 1 || strings.Contains(got.body, "did not answer") {
			t.Errorf("%d targets: %s", targets, got.body)
		}
	}
}
