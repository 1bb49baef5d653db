package dataplane

import (
	"strings"
	"testing"

	"github.com/sluicegate/sluice/internal/mcptest"
	xdsv1 "github.com/sluicegate/sluice/proto/gen/sluice/xds/v1"
)

// A target that was down when a listen began is listened to when it is back: the client hears that its lists changed, and of what
// it says from then on. Of its resources the client hears nothing, for the acknowledgement did not promise it.
func TestListenToTargetThatComesLater(t *testing.T) {
	const ack = `data: {"jsonrpc":"2.0","method":"notifications/subscriptions/acknowledged","params":{"notifications":{"toolsListChanged":true,"resourceSubscriptions":["x:y"]}}}` + "\n\n"
	asked := make(chan string, 8)
	late := newRaw(t, true, map[string]func(*mcptest.Conn, rawCall){"subscriptions/listen": func(c *mcptest.Conn, req rawCall) {
		asked <- req.body
		c.Send(eventsHead, chunk(ack), chunk(`data: {"jsonrpc":"2.0","method":"notifications/tools/list_changed","params":{"said":"late"}}`+"\n\n"))
		c.Hang()
	}})
	there := newRaw(t, true, map[string]func(*mcptest.Conn, rawCall){"subscriptions/listen": func(c *mcptest.Conn, req rawCall) {
		c.Send(eventsHead, chunk(ack))
		c.Hang()
	}})
	at, up := replaced(t, "", late.URL)
	w := behind("late="+at, "there="+there.URL)
	w.backend.FailureMode = xdsv1.Backend_FAILURE_MODE_FAIL_OPEN
	for _, target := range w.targets {
		target.ProtocolVersions = []string{"2026-07-28"}
	}
	s := w.start(t).listen(t, `"L"`, `{"toolsListChanged":true,"resourceSubscriptions":["late+x:y","there+x:y"]}`)
	if got := mustJSON(s.next(t, "notifications/subscriptions/acknowledged")); strings.Contains(got, "late+") || !strings.Contains(got, "there+x:y") {
		t.Errorf("acknowledged: %s", got)
	}
	up()
	if body := <-asked; strings.Contains(body, "x:y") {
		t.Errorf("the target is asked for what the client was refused: %s", body)
	}
	var told []string
	for len(told) == 0 || !strings.Contains(told[len(told)-1], `"late"`) {
		told = append(told, mustJSON(s.next(t, "notifications/tools/list_changed")))
	}
	if len(told) != 2 || !strings.Contains(told[0], `subscriptionId":"L"`) {
		t.Errorf("the client was told %v", told)
	}
}
