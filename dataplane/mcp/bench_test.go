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

// BenchmarkMerge is tools/list over ten targets of a hundred tools each, about 0.6 MB, without a cache.
func BenchmarkMerge(b *testing.B) {
	tool := `{"name":"tool-%d","description":"` + string(bytes.Repeat([]byte("d"), 200)) + `","inputSchema":{"type":"object","properties":{"a":{"type":"string","description":"what it is"},"b":{"type":"integer"},"c":{"type":"array","items":{"type":"string"}}},"required":["a"]},"annotations":{"readOnlyHint":true}}`
	result := []byte(`{"tools":[`)
	for i := range 100 {
		if i > 0 {
			result = append(result, ',')
		}
		result = fmt.Appendf(result, tool, i)
	}
	result = append(result, `]}`...)
	b.SetBytes(int64(10 * len(result)))
	b.ReportAllocs()
	var name, out []byte
	for b.Loop() {
		m := NewMerge(Tools, Limits{})
		for range 10 {
			if _, err := m.Add(result, func(it *Item) bool {
				name = append(append(name[:0], "target_"...), it.Name.Value...)
				it.Rename(name)
				return true
			}); err != nil {
				b.Fatal(err)
			}
		}
		out = m.AppendResult(out[:0], Tail{})
	}
}

func BenchmarkURIWriter(b *testing.B) {
	for _, tt := range []struct {
		name string
		body []byte
	}{
		{"200B", []byte(`{"jsonrpc":"2.0","id":17,"result":{"content":[{"type":"text","text":"hello"},{"type":"resource_link","uri":"file:///a","name":"a"}]}}`)},
		{"1MiB", fmt.Appendf(nil, `{"jsonrpc":"2.0","id":17,"result":{"content":[{"type":"text","text":"%s"}]}}`, bytes.Repeat([]byte("p"), 1<<20))},
		{"structured-1MiB", bytes.Replace(structured(1<<20), []byte("params"), []byte("result"), 1)},
	} {
		b.Run(tt.name, func(b *testing.B) {
			b.SetBytes(int64(len(tt.body)))
			b.ReportAllocs()
			var out []byte
			for b.Loop() {
				var err error
				if out, err = RewriteURIs(out[:0], tt.body, prefixed); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
