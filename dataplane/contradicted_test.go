package dataplane

import (
	"strings"
	"testing"
)

// A method of the other era is unknown to a session, with one target and with several.
func TestListenInASession(t *testing.T) {
	for _, stateless := range []bool{false, true} {
		a, b := newRaw(t, stateless, nil), newRaw(t, false, nil)
		for _, w := range []*world{behind("a=" + a.URL), behind("a="+a.URL, "b="+b.URL)} {
			p := w.start(t)
			got := p.post(t, p.initialize(t, "2025-11-25"), `{"jsonrpc":"2.0","id":1,"method":"subscriptions/listen","params":{"notifications":{"toolsListChanged":true}}}`)
			if got.status != 200 || !strings.Contains(got.body, "-32601") {
				t.Errorf("%d targets: %d %s", len(w.targets), got.status, got.body)
			}
			for _, target := range []*raw{a, b} {
				for _, body := range target.posts.with("subscriptions/listen") {
					t.Errorf("a target was sent %s", body)
				}
			}
		}
	}
}
