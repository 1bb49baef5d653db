package dataplane

import (
	"net/http"
	"strings"
	"testing"

	"github.com/sluicegate/sluice/internal/mcptest"
)

// A mistake of the proxy's own ends its request alone, and says so.
func TestMistakeOfTheProxy(t *testing.T) {
	w := behind(mcptest.NewServer(t, mcptest.Options{}).URL)
	p := w.start(t)
	store := p.parts.Store
	p.parts.Store = nil // where each request looks first
	if got := p.post(t, "", `{}`); got.status != http.StatusInternalServerError || !strings.Contains(got.body, "the proxy made a mistake") {
		t.Errorf("%d %s", got.status, got.body)
	}
	waitFor(t, "the access log tells", func() bool { return strings.Contains(p.lines.String(), "a mistake of the proxy") })
	p.parts.Store = store
	if got := p.call(t, "2026-07-28", "", "tools/list", "", ""); got.status != 200 {
		t.Errorf("the next request: %d %s", got.status, got.body)
	}
}
