package dataplane

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/sluicegate/sluice/internal/mcptest"
)

// Every page of a list has the id of the request for it, as has the refusal of a cursor: also where the proxy keeps the list of an only
// target, and so asks for it in the client's name.
func TestPagesHaveTheirRequestsIDs(t *testing.T) {
	for _, tt := range []struct {
		version   string
		stateless bool // the target
		cache     bool
	}{
		{"2025-11-25", false, false}, {"2025-11-25", false, true}, {"2025-11-25", true, true},
		{"2026-07-28", true, false}, {"2026-07-28", false, false},
	} {
		t.Run(fmt.Sprintf("client of %s, stateless target %v, cache %v", tt.version, tt.stateless, tt.cache), func(t *testing.T) {
			srv := mcptest.NewServer(t, mcptest.Options{Stateless: tt.stateless, PageSize: 5})
			w := behind(srv.URL)
			if tt.cache {
				w.targets[0].ListCache = durationpb.New(time.Minute)
			}
			p := w.start(t)
			var session, meta string
			var headers []string
			if tt.version == "2026-07-28" {
				meta = `"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{}}`
				headers = []string{"MCP-Protocol-Version", "2026-07-28", "Mcp-Method", "tools/list"}
			} else {
				session = p.initialize(t, tt.version)
			}
			id := 0
			list := func(cursor string) (got struct {
				ID     json.RawMessage
				Result struct {
					Tools      []struct{ Name string }
					NextCursor string
				}
				Error *struct{ Code int }
			}) {
				t.Helper()
				id++
				params := meta
				if cursor != "" {
					params = strings.Trim(params+`,"cursor":`+cursor, ",")
				}
				a := p.post(t, session, fmt.Sprintf(`{"jsonrpc":"2.0","id":"page %d","method":"tools/list","params":{%s}}`, id, params), headers...)
				body := a.body
				if _, data, ok := strings.Cut(body, "data: {"); ok {
					body, _, _ = strings.Cut("{"+data, "\n")
				}
				if err := json.Unmarshal([]byte(body), &got); err != nil {
					t.Fatalf("cursor %s: %d %s", cursor, a.status, a.body)
				}
				if want := fmt.Sprintf(`"page %d"`, id); string(got.ID) != want {
					t.Errorf("the page at cursor %s has id %s, want %s", cursor, got.ID, want)
				}
				return got
			}
			walk := func() (names []string) {
				for cursor := ""; ; {
					page := list(cursor)
					for _, tool := range page.Result.Tools {
						names = append(names, tool.Name)
					}
					if page.Error != nil || page.Result.NextCursor == "" {
						return names
					}
					cursor = mustJSON(page.Result.NextCursor)
				}
			}
			first, again := walk(), walk()
			if len(first) < 10 || count(first, "echo") != 1 || strings.Join(first, " ") != strings.Join(again, " ") {
				t.Errorf("pages have %v, and then %v", first, again)
			}
			for _, bad := range []string{`"nonsense"`, `5`} {
				if got := list(bad); got.Error == nil {
					t.Errorf("the cursor %s is no error: %+v", bad, got)
				}
			}
			if got := list(""); got.Error != nil || len(got.Result.Tools) == 0 {
				t.Errorf("after a bad cursor: %+v", got)
			}
		})
	}
}
