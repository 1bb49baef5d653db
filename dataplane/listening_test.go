package dataplane

import (
	"net/http"
	"strings"
	"testing"

	"github.com/sluicegate/sluice/internal/mcptest"
)

// A listen stays open, and so would all that its client sent with it.
func TestListenIsSmall(t *testing.T) {
	p := behind(mcptest.NewServer(t, mcptest.Options{Stateless: true}).URL).start(t)
	padded := func(size int) string {
		return `"notifications":{"toolsListChanged":true,"resourceSubscriptions":["file:///` + strings.Repeat("x", size) + `"]}`
	}
	if got := p.call(t, "2026-07-28", "", "subscriptions/listen", "", padded(128<<10)); got.status != http.StatusRequestEntityTooLarge || !strings.Contains(got.body, "spread the resources over several") {
		t.Errorf("%d %s", got.status, got.body)
	}
}
