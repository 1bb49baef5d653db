package telemetry

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
)

func TestLogger(t *testing.T) {
	var out bytes.Buffer
	log, err := NewLogger(&out, "json", "warn")
	if err != nil {
		t.Fatal(err)
	}
	log.Info("hidden")
	log.Warn("shown", "tenant", "t")
	var line map[string]any
	if err := json.Unmarshal(out.Bytes(), &line); err != nil || line["msg"] != "shown" || line["tenant"] != "t" {
		t.Errorf("logged %s (%v)", out.Bytes(), err)
	}
	for _, bad := range [][2]string{{"xml", ""}, {"", "loud"}} {
		if _, err := NewLogger(io.Discard, bad[0], bad[1]); err == nil {
			t.Errorf("NewLogger(%q) takes it", bad)
		}
	}
	if log, err := NewLogger(io.Discard, "", ""); err != nil || log.Enabled(t.Context(), slog.LevelDebug) || !log.Enabled(t.Context(), slog.LevelInfo) {
		t.Errorf("the default level is not info (%v)", err)
	}
}

func TestOps(t *testing.T) {
	ready := errors.New("no configuration yet")
	registry := NewRegistry()
	handler := Ops{Registry: registry, Ready: func() (string, error) { return "stale", ready }}.Handler()
	get := func(path string) (int, string) {
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, httptest.NewRequest("GET", path, nil))
		return w.Code, w.Body.String()
	}
	if code, body := get("/healthz"); code != 200 || body != "ok\n" {
		t.Errorf("/healthz: %d %q", code, body)
	}
	if code, body := get("/readyz"); code != 503 || !strings.Contains(body, "no configuration yet") {
		t.Errorf("/readyz before ready: %d %q", code, body)
	}
	ready = nil
	if code, body := get("/readyz"); code != 200 || body != "stale\n" {
		t.Errorf("/readyz: %d %q", code, body)
	}
	if code, body := get("/metrics"); code != 200 || !strings.Contains(body, "go_goroutines") {
		t.Errorf("/metrics: %d", code)
	}
	if code, _ := get("/debug/pprof/goroutine?debug=1"); code != 200 {
		t.Errorf("/debug/pprof: %d", code)
	}
	if code, _ := get("/"); code != 404 {
		t.Errorf("/: %d", code)
	}
}

func TestOpsServeEnds(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := contextWithCancel(t)
	done := make(chan error)
	go func() {
		done <- Ops{Registry: NewRegistry(), Ready: func() (string, error) { return "ok", nil }}.Serve(ctx, l)
	}()
	resp, err := http.Get("http://" + l.Addr().String() + "/readyz")
	if err != nil || resp.StatusCode != 200 {
		t.Fatalf("GET /readyz: %v", err)
	}
	resp.Body.Close()
	http.DefaultClient.CloseIdleConnections()
	stop()
	if err := <-done; err != nil {
		t.Errorf("Serve() = %v", err)
	}
}

func TestCallLine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		calls := NewCalls(prometheus.NewRegistry(), &out)
		calls.Done(&Call{
			Start: time.Date(2026, 1, 2, 3, 4, 5, 6000, time.UTC), Duration: 1500 * time.Microsecond,
			Tenant: "acme", Route: "r", Backend: "b", Target: "t", Revision: 7, Method: "tools/call", Name: "a\"b\\c\n\u2028\xff☃",
			Principal: "jo", Source: "127.0.0.1", Verdict: "allow", Rule: "mcp.tool.name == 'x'", Status: 200, Upstream: 201, Outcome: OutcomeOK,
		})
		time.Sleep(flushPeriod + time.Millisecond)
		synctest.Wait()
		if bytes.Count(out.Bytes(), []byte("\n")) != 1 {
			t.Fatalf("not one line: %q", out.Bytes())
		}
		var got map[string]any
		if err := json.Unmarshal(out.Bytes(), &got); err != nil {
			t.Fatalf("%v: %s", err, out.Bytes())
		}
		want := map[string]any{
			"time": "2026-01-02T03:04:05.000006Z", "msg": "call", "tenant": "acme", "route": "r", "backend": "b", "target": "t", "revision": 7.0,
			"method": "tools/call", "name": "a\"b\\c\n\ufffd\ufffd☃", "principal": "jo", "source": "127.0.0.1", "verdict": "allow",
			"rule": "mcp.tool.name == 'x'", "status": 200.0, "upstream_status": 201.0, "outcome": "ok", "duration_ms": 1.5,
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("line (-want +got):\n%s", diff)
		}
		calls.Close()
	})
}

func FuzzAppendString(f *testing.F) {
	f.Add("a\"\\\x00\u2028\xff")
	f.Add(strings.Repeat("é", maxText))
	f.Fuzz(func(t *testing.T, s string) {
		b := appendString(nil, s)
		var got string
		if err := json.Unmarshal(b, &got); err != nil || !utf8.Valid(b) || bytes.ContainsAny(b, "\n\r") {
			t.Fatalf("appendString(%q) = %q: %v", s, b, err)
		}
		if utf8.ValidString(s) && len(s) <= maxText && !strings.ContainsAny(s, "\u2028\u2029") && got != s {
			t.Errorf("appendString(%q) reads back as %q", s, got)
		}
	})
}

func TestCallMetrics(t *testing.T) {
	registry := prometheus.NewRegistry()
	var out countingWriter
	calls := NewCalls(registry, &out)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 200 {
				calls.Done(&Call{Tenant: "acme", Target: "t", Method: "tools/call", Outcome: OutcomeOK})
				calls.Done(&Call{Tenant: "other", Target: "t", Method: "made/up", Outcome: OutcomeDenied})
			}
		})
	}
	wg.Wait()
	calls.Close()
	if out.lines != 3200 {
		t.Errorf("%d lines, want 3200", out.lines)
	}
	body := metrics(t, registry)
	for _, want := range []string{
		`sluice_calls_total{method="tools/call",outcome="ok",target="t",tenant="acme"} 1600`,
		`sluice_calls_total{method="other",outcome="denied",target="t",tenant="other"} 1600`,
		`sluice_call_duration_seconds_count{target="t",tenant="acme"} 1600`,
	} {
		if !strings.Contains(body, want) {
			t.Errorf("no %s in\n%s", want, body)
		}
	}
	calls.Forget("acme", "")
	if body := metrics(t, registry); strings.Contains(body, "acme") || !strings.Contains(body, `tenant="other"`) {
		t.Errorf("Forget kept or lost too much:\n%s", body)
	}
}

func TestDoneDoesNotAllocate(t *testing.T) {
	calls := NewCalls(prometheus.NewRegistry(), io.Discard)
	defer calls.Close()
	call := &Call{Start: time.Now(), Tenant: "acme", Target: "t", Method: "tools/call", Name: "search", Outcome: OutcomeOK, Status: 200}
	for range 1000 {
		calls.Done(call)
	}
	if n := testing.AllocsPerRun(1000, func() { calls.Done(call) }); n > 2 {
		t.Errorf("Done allocates %v times, want at most 2", n)
	}
}

func contextWithCancel(t *testing.T) (context.Context, context.CancelFunc) {
	return context.WithCancel(t.Context())
}

func metrics(t *testing.T, r *prometheus.Registry) string {
	t.Helper()
	w := httptest.NewRecorder()
	Ops{Registry: r}.Handler().ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	return w.Body.String()
}

type countingWriter struct{ lines int }

func (c *countingWriter) Write(b []byte) (int, error) {
	if len(b) == 0 || b[0] != '{' || b[len(b)-1] != '\n' {
		return 0, errors.New("not whole lines")
	}
	c.lines += bytes.Count(b, []byte("\n"))
	return len(b), nil
}
