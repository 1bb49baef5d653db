package dataplane

import (
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/sluicegate/sluice/internal/mcptest"
)

// The stream of a client of HTTP+SSE is its session (2024-11-05, transports): with it end the calls that still run, for nobody can come
// back for their answers, and the session at the target.
func TestSSEClientThatLeavesEndsItsCalls(t *testing.T) {
	started, gone, deleted := make(chan struct{}), make(chan struct{}), make(chan struct{})
	target := newRaw(t, false, map[string]func(*mcptest.Conn, rawCall){
		"tools/call": func(c *mcptest.Conn, _ rawCall) {
			c.Send(eventsHead)
			close(started)
			c.Hang()
			close(gone)
		},
		http.MethodDelete: func(c *mcptest.Conn, _ rawCall) {
			c.Answer(http.StatusNoContent, "", "")
			close(deleted)
		},
	})
	w := behind(target.URL)
	w.ssePath = "/sse"
	c := openSSE(t, w.start(t), false)
	c.post(t, echo("t", "x"))
	<-started
	c.leave()
	for what, end := range map[string]<-chan struct{}{"the call": gone, "the session": deleted} {
		waitFor(t, what+" to end at the target", func() bool {
			select {
			case <-end:
				return true
			default:
				return false
			}
		})
	}
}

// However many calls of one stream run, what their targets wait for gets through: the answer to what they asked, and a cancel.
func TestSSEClientsAnswerBesideAllTheirCalls(t *testing.T) {
	release := make(chan struct{})
	var calls sync.WaitGroup
	calls.Add(maxPosts)
	target := newRaw(t, false, map[string]func(*mcptest.Conn, rawCall){
		"tools/call": func(c *mcptest.Conn, req rawCall) {
			c.Send(eventsHead)
			calls.Done()
			<-release
			c.Send(chunk("data: "+req.result(`{"content":[]}`)+"\n\n"), "0\r\n\r\n")
		},
		http.MethodPost: func(c *mcptest.Conn, _ rawCall) {
			c.Answer(http.StatusAccepted, "", "")
			close(release)
		},
	})
	w := behind(target.URL)
	w.ssePath = "/sse"
	c := openSSE(t, w.start(t), false)
	for i := range maxPosts {
		c.post(t, strings.Replace(echo("t", "x"), `"id":7`, fmt.Sprintf(`"id":%d`, 100+i), 1))
	}
	calls.Wait()
	c.post(t, `{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":100}}`)
	if target.counted("notifications/cancelled") != 1 {
		t.Error("the target does not hear of the cancel")
	}
	c.post(t, `{"jsonrpc":"2.0","id":"asked","result":{}}`)
	for range maxPosts {
		c.next(t)
	}
}
