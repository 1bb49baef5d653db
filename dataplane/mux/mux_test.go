package mux

import (
	"encoding/json"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sluicegate/sluice/dataplane/mcp"
	"github.com/sluicegate/sluice/dataplane/snapshot"
	xdsv1 "github.com/sluicegate/sluice/proto/gen/sluice/xds/v1"
)

// What the proxy itself says never lands inside an event that passes through, however that is cut.
func TestSinkKeepsEventsWhole(t *testing.T) {
	for _, end := range []string{"\n", "\r\n", "\r"} {
		stream := strings.ReplaceAll("id: 1\ndata: {\"a\":\ndata: 1}\n\n: note\n\ndata: {\"b\":2}\n\n", "\n", end)
		for size := 1; size < len(stream); size++ {
			w := httptest.NewRecorder()
			s := newSink(w, time.Hour)
			for i := 0; i < len(stream); i += size {
				s.raw([]byte(stream[i:min(i+size, len(stream))]))
				s.message([]byte(`{"own":1}`))
			}
			s.close()
			var got []string
			events := mcp.NewEventReader(w.Body, 0)
			for {
				ev, err := events.Next()
				if err != nil {
					break
				}
				if ev.HasData && string(ev.Data) != `{"own":1}` {
					got = append(got, string(ev.ID)+" "+string(ev.Data))
				}
			}
			if diff := cmp.Diff([]string{"1 {\"a\":\n1}", " {\"b\":2}"}, got); diff != "" {
				t.Fatalf("pieces of %d, lines end in %q (-want +got):\n%s", size, end, diff)
			}
		}
	}
}

func TestSinkHoldsAndKeepsAlive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := httptest.NewRecorder()
		s := newSink(w, 15*time.Second)
		written := func() string { // since it was asked last
			s.mu.Lock()
			defer s.mu.Unlock()
			defer w.Body.Reset()
			return w.Body.String()
		}
		s.hold()
		s.message([]byte(`{"own":1}`))
		time.Sleep(20 * time.Second)
		if got := written(); got != "" {
			t.Errorf("before the first event: %q", got)
		}
		s.raw([]byte("data: {\"ack\":1}\n\n"))
		if got := written(); !strings.HasPrefix(got, "data: {\"ack\":1}\n\n") || !strings.Contains(got, `{"own":1}`) {
			t.Errorf("after it: %q", got)
		}
		written()
		time.Sleep(40 * time.Second)
		if n := strings.Count(written(), ": keep-alive"); n != 2 {
			t.Errorf("%d comments in 40 s, want 2", n)
		}
		s.raw([]byte("data: half"))
		written()
		time.Sleep(time.Minute)
		if got := written(); got != "" {
			t.Errorf("inside an event: %q", got)
		}
		s.close()
		time.Sleep(time.Minute)
		s.message([]byte(`{}`))
		if got := written(); got != "" {
			t.Errorf("after its end: %q", got)
		}
	})
}

func TestMergeServers(t *testing.T) {
	m := newServerMerge()
	for _, result := range []string{
		`{"capabilities":{"tools":{},"resources":{"subscribe":false},"tasks":{"list":{}},"extensions":{"x/y":{"types":["a"]}}},"instructions":"one"}`,
		`{"capabilities":{"tools":{"listChanged":true},"resources":{"subscribe":true},"logging":{},"tasks":{"cancel":{}},"extensions":{"x/y":{"v":1,"types":["b","a"]},"x/z":{}}},"ttlMs":500,"cacheScope":"public"}`,
	} {
		says, err := parseServer([]byte(result))
		if err != nil {
			t.Fatal(err)
		}
		m.add("a", says)
	}
	var got map[string]any
	if err := json.Unmarshal(m.initializeResult("2025-11-25", missing{}), &got); err != nil {
		t.Fatal(err)
	}
	want := map[string]any{
		"protocolVersion": "2025-11-25", "serverInfo": map[string]any{"name": "sluice", "version": "1"}, "instructions": "## a\n\none",
		"capabilities": map[string]any{"tools": map[string]any{"listChanged": true}, "resources": map[string]any{"subscribe": true}, "logging": map[string]any{},
			"tasks":      map[string]any{"list": map[string]any{}, "cancel": map[string]any{}},
			"extensions": map[string]any{"x/y": map[string]any{"v": 1.0, "types": []any{"a", "b"}}, "x/z": map[string]any{}}},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("initialize (-want +got):\n%s", diff)
	}
	if err := json.Unmarshal(m.discoverResult("2026-07-28", false, missing{}), &got); err != nil {
		t.Fatal(err)
	}
	if got["resultType"] != "complete" || got["ttlMs"] != 0.0 || got["cacheScope"] != "private" || got["tools"] != nil {
		t.Errorf("discover: %v", got)
	}
}

// The place of a target is sealed into sessions: the same on every proxy and in every build.
func TestPlaceIsStable(t *testing.T) {
	target := func(tls bool, host string, port uint32, path string) *snapshot.Target {
		return &snapshot.Target{Config: &xdsv1.Target{Transport: &xdsv1.Target_Mcp{Mcp: &xdsv1.HttpTransport{Tls: tls, Host: host, Port: port, Path: path}}}}
	}
	if got := place(target(false, "h", 80, "/mcp")); got != 0xec482dc4 {
		t.Errorf("place = %#x; sessions of other proxies would be taken for those of another server", got)
	}
	seen := map[uint32]bool{}
	for _, other := range []*snapshot.Target{
		target(false, "h", 80, "/mcp"), target(true, "h", 80, "/mcp"), target(false, "i", 80, "/mcp"), target(false, "h", 81, "/mcp"),
		target(false, "h", 80, "/mcq"), target(false, "h/", 80, "mcp"),
	} {
		if p := place(other); seen[p] {
			t.Errorf("two servers at one place: %v", other.Config)
		} else {
			seen[p] = true
		}
	}
}
