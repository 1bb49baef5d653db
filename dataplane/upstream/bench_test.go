package upstream

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"syscall"
	"testing"
	"time"

	"github.com/sluicegate/sluice/internal/mcptest"
)

// The peer answers with as little work as possible, in the same process: compare the two, not with other machines.
// cpu-µs/op is the process's, so it has the peer's share in it; client-only figures need bench/.
func BenchmarkCall(b *testing.B) {
	const result = `{"jsonrpc":"2.0","id":1,"result":{"content":[{"type":"text","text":"0123456789abcdef0123"}]}}`
	reply := fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nDate: Mon, 23 Nov 2026 13:00:00 GMT\r\nContent-Length: %d\r\n\r\n%s", len(result), result)
	peer := mcptest.NewScript(b, func(c *mcptest.Conn) {
		buf := make([]byte, 16<<10)
		n := 0
		for {
			m, err := c.Conn.Read(buf[n:])
			if err != nil {
				return
			}
			if n += m; bytes.HasSuffix(buf[:n], []byte("}}")) {
				n = 0
				io.WriteString(c.Conn, reply)
			}
		}
	})
	body := []byte(`{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"echo","arguments":{"text":"0123456789abcdef0123456789abcdef0123456789abcdef"}}}`)
	header := func() http.Header {
		return http.Header{"Content-Type": {"application/json"}, "Accept": {"application/json, text/event-stream"},
			"Mcp-Session-Id": {"0123456789abcdef"}, "Mcp-Protocol-Version": {"2025-11-25"}}
	}
	run := func(b *testing.B, one func(ctx context.Context)) {
		ctx, cancel := context.WithCancel(b.Context())
		defer cancel()
		one(ctx)
		b.ReportAllocs()
		var before, after syscall.Rusage
		syscall.Getrusage(syscall.RUSAGE_SELF, &before)
		b.ResetTimer()
		b.SetParallelism(8)
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				one(ctx)
			}
		})
		b.StopTimer()
		syscall.Getrusage(syscall.RUSAGE_SELF, &after)
		cpu := time.Duration(after.Utime.Nano() + after.Stime.Nano() - before.Utime.Nano() - before.Stime.Nano())
		b.ReportMetric(float64(cpu.Nanoseconds())/1000/float64(b.N), "cpu-µs/op")
	}
	b.Run("sluice", func(b *testing.B) {
		tr := manager(b, nil).Transport(httpTarget(b, peer.URL, nil))
		run(b, func(ctx context.Context) {
			res, err := tr.Do(ctx, &Request{Method: http.MethodPost, Header: header(), Body: body})
			if err != nil {
				b.Fatal(err)
			}
			io.Copy(io.Discard, res.Body)
			res.Body.Close()
		})
	})
	b.Run("net-http", func(b *testing.B) {
		tr := &http.Transport{MaxIdleConnsPerHost: 256, DisableCompression: true}
		defer tr.CloseIdleConnections()
		run(b, func(ctx context.Context) {
			req, err := http.NewRequestWithContext(ctx, http.MethodPost, peer.URL, bytes.NewReader(body))
			if err != nil {
				b.Fatal(err)
			}
			req.Header = header()
			res, err := tr.RoundTrip(req)
			if err != nil {
				b.Fatal(err)
			}
			io.Copy(io.Discard, res.Body)
			res.Body.Close()
		})
	})
	// The floor: the peer, and a bare write and read per call.
	b.Run("bare", func(b *testing.B) {
		tr := manager(b, nil).Transport(httpTarget(b, peer.URL, nil)).(*endpoint)
		pool := tr.wire.(*h1pool)
		conns := make(chan *h1conn, 1024)
		request := append([]byte("POST /mcp HTTP/1.1\r\nHost: x\r\nContent-Length: 150\r\n\r\n"), body...)
		run(b, func(ctx context.Context) {
			var c *h1conn
			select {
			case c = <-conns:
			default:
				var err error
				if c, err = pool.dial(ctx, tr.t.Tenant.Grants); err != nil {
					b.Fatal(err)
				}
			}
			if _, err := c.nc.Write(request); err != nil {
				b.Fatal(err)
			}
			if _, err := c.nc.Read(c.buf); err != nil {
				b.Fatal(err)
			}
			conns <- c
		})
	})
}

// What `concurrency` costs a call that need not wait.
func BenchmarkTurns(b *testing.B) {
	var s turns
	r := post(toolCall("7", "echo", `{"text":"hi"}`))
	r.Header.Set(sessionHeader, "a session")
	b.ReportAllocs()
	for b.Loop() {
		if err := s.take(b.Context(), 8, 0); err != nil {
			b.Fatal(err)
		}
		s.hold(r)()
	}
}
