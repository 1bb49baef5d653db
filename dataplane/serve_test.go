package dataplane

import (
	"fmt"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/sluicegate/sluice/internal/mcptest"
	xdsv1 "github.com/sluicegate/sluice/proto/gen/sluice/xds/v1"
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

// Whatever the transport or the manner of a target, its tools work.
func TestTransports(t *testing.T) {
	t.Parallel()
	child := mcptest.Stdio("serve")
	sse := mcptest.NewServer(t, mcptest.Options{SSE: true})
	sessionless := mcptest.NewServer(t, mcptest.Options{Stateless: true})
	stdio := &xdsv1.Target{Transport: &xdsv1.Target_Stdio{Stdio: &xdsv1.StdioTransport{Cmd: child.Path, Args: child.Args, Env: child.Env}}}
	for _, tt := range []struct {
		name, version string
		target        *xdsv1.Target
		elicits       bool // asks by a request on the stream
	}{
		{"stdio", "2025-11-25", stdio, true},
		{"stdio", "2026-07-28", stdio, false},
		{"sse", "2025-06-18", &xdsv1.Target{Transport: &xdsv1.Target_Sse{Sse: endpointOf(sse.URL)}}, true},
		{"no session id", "2025-11-25", &xdsv1.Target{Transport: &xdsv1.Target_Mcp{Mcp: endpointOf(sessionless.URL)}}, true},
	} {
		for _, n := range []int{1, 2} {
			t.Run(fmt.Sprintf("%s %s, %d targets", tt.name, tt.version, n), func(t *testing.T) {
				web := mcptest.NewServer(t, mcptest.Options{Stateless: tt.version == "2026-07-28"})
				w := behind()
				own := proto.CloneOf(tt.target)
				own.Name, own.Backend = "it", "default/backend/tools"
				w.targets = append(w.targets, own)
				prefix := ""
				if n == 2 {
					prefix = "it_"
					w.add("web", &xdsv1.Target_Mcp{Mcp: endpointOf(web.URL)})
				}
				cli := mcptest.Connect(t, w.start(t).URL, mcptest.ClientOptions{Version: tt.version})
				if got := cli.Call(t, prefix+"echo", map[string]any{"text": "hi"}); got != "hi" {
					t.Errorf("echo = %q", got)
				}
				if names := cli.ToolNames(t); count(names, prefix+"echo") != 1 {
					t.Errorf("tools: %v", names)
				}
				if tt.elicits {
					if got := cli.Call(t, prefix+"elicit", nil); got != "Hello, Ada!" {
						t.Errorf("elicit = %q", got)
					}
				}
				cli.Call(t, prefix+"progress", map[string]any{"n": 2})
			})
		}
	}
}
