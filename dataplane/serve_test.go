package dataplane

import (
	"testing"

	"github.com/sluicegate/sluice/internal/mcptest"
)

func TestOneTarget(t *testing.T) {
	for _, version := range []string{"2025-03-26", "2025-06-18", "2025-11-25", "2026-07-28"} {
		t.Run(version, func(t *testing.T) {
			srv := mcptest.NewServer(t, mcptest.Options{Stateless: version == "2026-07-28"})
			p := behind(srv.URL).start(t)
			cli := mcptest.Connect(t, p.URL, mcptest.ClientOptions{Version: version})
			if got := cli.Call(t, "echo", map[string]any{"text": "hi"}); got != "hi" {
				t.Errorf("echo = %q", got)
			}
			if got := cli.Call(t, "elicit", nil); got != "Hello, Ada!" {
				t.Errorf("elicit = %q", got)
			}
		})
	}
}
