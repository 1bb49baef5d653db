package mcp

import (
	"bytes"
	"fmt"
	"testing"
)

func call(pad int) []byte {
	return fmt.Appendf(nil, `{"jsonrpc":"2.0","id":17,"method":"tools/call","params":{"name":"t3_tool-7","arguments":{"m":"abc","pad":"%s"},"_meta":{"progressToken":17}}}`, bytes.Repeat([]byte("p"), pad))
}

// structured is a body of small members, where little can be skipped fast.
func structured(size int) []byte {
	b := []byte(`{"jsonrpc":"2.0","id":17,"method":"tools/call","params":{"name":"t3_tool-7","arguments":{"rows":[`)
	for i := 0; len(b) < size; i++ {
		if i > 0 {
			b = append(b, ',')
		}
		b = fmt.Appendf(b, `{"id":%d,"name":"row %d","ok":true,"score":%d.5,"tags":["a","b"],"none":null}`, i, i, i)
	}
	return append(b, `]}}}`...)
}

func BenchmarkScan(b *testing.B) {
	stateless := []byte(`{"jsonrpc":"2.0","id":17,"method":"tools/call","params":{"name":"t3_tool-7","arguments":{"m":"abc"},"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientInfo":{"name":"c","version":"1"},"io.modelcontextprotocol/clientCapabilities":{}}}}`)
	for _, tt := range []struct {
		name string
		body []byte
	}{
		{"200B", call(64)}, {"4KB", call(4096)}, {"1MiB", call(1 << 20)},
		{"stateless", stateless}, {"structured-1MiB", structured(1 << 20)},
		{"japanese-1MiB", bytes.ReplaceAll(call(1<<18), []byte("pppp"), []byte("日本語 "))},
	} {
		b.Run(tt.name, func(b *testing.B) {
			b.SetBytes(int64(len(tt.body)))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := Scan(tt.body, Limits{}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
