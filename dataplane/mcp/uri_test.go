package mcp

import (
	"bytes"
	"encoding/json"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"
)

// prefixed rewrites URIs as a gateway does; those of the scheme keep: it leaves alone.
func prefixed(uri []byte) []byte {
	if bytes.HasPrefix(uri, []byte("keep:")) {
		return nil
	}
	return append([]byte("t+"), uri...)
}

var uriCases = []struct{ name, in, want string }{
	{"call", `{"jsonrpc":"2.0","id":1,"result":{"content":[{"type":"resource_link","uri":"file:///a"},{"type":"resource","resource":{"uri":"b:\/\u0062","text":"uri"}},{"type":"text","text":"\"uri\":\"x\" \\"}],"structuredContent":{"content":[{"uri":"c"}],"uri":"d"},"uri":"e"}}`,
		`{"jsonrpc":"2.0","id":1,"result":{"content":[{"type":"resource_link","uri":"t+file:///a"},{"type":"resource","resource":{"uri":"t+b:/b","text":"uri"}},{"type":"text","text":"\"uri\":\"x\" \\"}],"structuredContent":{"content":[{"uri":"c"}],"uri":"d"},"uri":"e"}}`},
	{"read", `{"result":{"contents":[{"uri":"a","blob":"AAAA"},{"text":"","uri":"keep:\u0061"}]},"id":"result","jsonrpc":"2.0"}`,
		`{"result":{"contents":[{"uri":"t+a","blob":"AAAA"},{"text":"","uri":"keep:\u0061"}]},"id":"result","jsonrpc":"2.0"}`},
	{"prompt", ` { "result" : { "messages" : [ { "role":"user", "content" : { "uri" : "a" , "resource":{"uri":"b"} } }, {"content":[{"uri":"c"}],"uri":"x"} ], "content": {"uri":"d"} } } `,
		` { "result" : { "messages" : [ { "role":"user", "content" : { "uri" : "t+a" , "resource":{"uri":"t+b"} } }, {"content":[{"uri":"t+c"}],"uri":"x"} ], "content": {"uri":"t+d"} } } `},
	{"apps", `{"result":{"tools":[{"name":"n","_meta":{"ui":{"resourceUri":"ui://a","x":{"resourceUri":"y"}},"ui/resourceUri":"ui://b"}}],"_meta":{"ui":{"resourceUri":"ui://c"}}}}`,
		`{"result":{"tools":[{"name":"n","_meta":{"ui":{"resourceUri":"t+ui://a","x":{"resourceUri":"y"}},"ui/resourceUri":"t+ui://b"}}],"_meta":{"ui":{"resourceUri":"t+ui://c"}}}}`},
	{"escaped names", `{"r\u0065sult":{"\u0063ontent":[{"\u0075\u0072\u0069":"a","\"uri":"x","uri\\":"y","uri\"":"z"}]}}`,
		`{"r\u0065sult":{"\u0063ontent":[{"\u0075\u0072\u0069":"t+a","\"uri":"x","uri\\":"y","uri\"":"z"}]}}`},
	{"long names", `{"result":{"` + strings.Repeat(`\"`, 200) + `":1,"` + strings.Repeat("x", 200) + `":{"content":[{"uri":"x"}]},"` + strings.Repeat(`\\`, 60) + `":[],"content":[{"uri":"a"}]}}`,
		`{"result":{"` + strings.Repeat(`\"`, 200) + `":1,"` + strings.Repeat("x", 200) + `":{"content":[{"uri":"x"}]},"` + strings.Repeat(`\\`, 60) + `":[],"content":[{"uri":"t+a"}]}}`},
	{"other types", `{"result":{"content":[[{"uri":"x"}],1,"uri",null,{"uri":{"uri":"x"}},{"uri":["x"]},{"uri":1},{"resource":["uri"]}],"contents":{"uri":"x"},"messages":{"content":{"uri":"x"}},"tools":"x"}}`,
		`{"result":{"content":[[{"uri":"x"}],1,"uri",null,{"uri":{"uri":"x"}},{"uri":["x"]},{"uri":1},{"resource":["uri"]}],"contents":{"uri":"x"},"messages":{"content":{"uri":"x"}},"tools":"x"}}`},
	{"empty ones", `{"result":{"content":[],"contents":[{}],"messages":[{"content":{}}]},"a":{},"b":[]}`, `{"result":{"content":[],"contents":[{}],"messages":[{"content":{}}]},"a":{},"b":[]}`},
	{"not a result", `{"method":"m","params":{"content":[{"uri":"x"}],"result":{"content":[{"uri":"x"}]}}}`, `{"method":"m","params":{"content":[{"uri":"x"}],"result":{"content":[{"uri":"x"}]}}}`},
	{"batch", `[{"result":{"content":[{"uri":"a"}]}},[{"result":{"content":[{"uri":"x"}]}}]]`, `[{"result":{"content":[{"uri":"t+a"}]}},[{"result":{"content":[{"uri":"x"}]}}]]`},
	{"scalar", `5`, `5`}, {"string", `"a\\"`, `"a\\"`},
	{"empty URI", `{"result":{"contents":[{"uri":""}]}}`, `{"result":{"contents":[{"uri":"t+"}]}}`},
	{"twice", `{"result":{"contents":[{"uri":"a","uri":"b"}]}}`, `{"result":{"contents":[{"uri":"t+a","uri":"t+b"}]}}`},
}

func TestURIsAreRewrittenWhateverTheBorders(t *testing.T) {
	for _, tt := range uriCases {
		t.Run(tt.name, func(t *testing.T) {
			whole, err := RewriteURIs([]byte("<"), []byte(tt.in), prefixed)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff("<"+tt.want, string(whole)); diff != "" {
				t.Fatalf("rewritten (-want +got):\n%s", diff)
			}
			for cut := range len(tt.in) + 1 {
				var out bytes.Buffer
				w := NewURIWriter(&out, prefixed)
				for _, part := range []string{tt.in[:cut], tt.in[cut:]} {
					if _, err := io.WriteString(w, part); err != nil {
						t.Fatal(err)
					}
				}
				if err := w.Close(); err != nil || out.String() != tt.want {
					t.Fatalf("cut at %d: %v\n%s", cut, err, out.String())
				}
			}
			var out bytes.Buffer
			w := NewURIWriter(&out, prefixed)
			if _, err := io.Copy(w, iotest.OneByteReader(strings.NewReader(tt.in))); err != nil || out.String() != tt.want {
				t.Fatalf("byte by byte: %v\n%s", err, out.String())
			}
		})
	}
}

func TestURIWriterPassesOnWhatItCan(t *testing.T) {
	var out bytes.Buffer
	w := NewURIWriter(&out, prefixed)
	for _, step := range []struct{ in, out string }{
		{`{"result":{"content":[{"text":"half`, `{"result":{"content":[{"text":"half`},
		{` a text","uri`, ` a text",`},
		{`":"fi`, `"uri":`},
		{`le:"`, `"t+file:"`},
		{`}`, `}`},
	} {
		out.Reset()
		if _, err := io.WriteString(w, step.in); err != nil || out.String() != step.out {
			t.Errorf("%q gave %q (%v), want %q", step.in, out.String(), err, step.out)
		}
	}
}

func TestURIWriterRefuses(t *testing.T) {
	for _, bad := range []string{
		``, `{`, `{"result":{"content":[{"uri":"a`, `{"a" 1}`, `{"a":1 2}`, `{"a":1]`, `[1}`, `{} {}`, `{1:2}`, `}`, `]`, `:`, `{"result":{"content":[{"uri":"\x"}]}}`,
		`{"result":{"content":[{"uri":"\ud800"}]}}`, `{"result":{"content":[{"uri":"` + strings.Repeat("x", longestURI+1) + `"}]}}`, `{"a":1"b":2}`,
	} {
		if out, err := RewriteURIs(nil, []byte(bad), prefixed); err == nil {
			t.Errorf("%.80q became %.80q", bad, out)
		}
	}
	w := NewURIWriter(io.Discard, prefixed)
	if _, err := w.Write([]byte("}")); err == nil {
		t.Fatal("} was taken")
	}
	if _, err := w.Write([]byte("{}")); err == nil || w.Close() == nil {
		t.Error("an error was forgotten")
	}
}

func TestURIWriterHoldsLittle(t *testing.T) {
	w := NewURIWriter(io.Discard, prefixed)
	io.WriteString(w, `{"result":{"content":[{"uri":"a","x":[`)
	part := []byte(strings.Repeat(`[{"text":"`+strings.Repeat("x", 1000)+`"},1],`, 30))
	if n := testing.AllocsPerRun(20, func() { w.Write(part) }); n > 0 {
		t.Errorf("%v allocations for each write", n)
	}
	if held := cap(w.held) + cap(w.out); held > 2*len(part) {
		t.Errorf("holds %d bytes", held)
	}
}

// rewriteDecoded is what the rewriter should do, on a decoded value.
func rewriteDecoded(v any) any {
	object := func(v any, f func(map[string]any)) {
		if m, ok := v.(map[string]any); ok {
			f(m)
		}
	}
	array := func(v any, f func(any)) {
		if a, ok := v.([]any); ok {
			for _, e := range a {
				f(e)
			}
		}
	}
	uri := func(m map[string]any, name string) {
		if s, ok := m[name].(string); ok {
			if to := prefixed([]byte(s)); to != nil {
				m[name] = string(to)
			}
		}
	}
	meta := func(v any) {
		object(v, func(m map[string]any) {
			uri(m, "ui/resourceUri")
			object(m["ui"], func(m map[string]any) { uri(m, "resourceUri") })
		})
	}
	resource := func(v any) { object(v, func(m map[string]any) { uri(m, "uri") }) }
	block := func(v any) {
		resource(v)
		object(v, func(m map[string]any) { resource(m["resource"]) })
	}
	content := func(v any) {
		block(v)
		array(v, block)
	}
	message := func(v any) {
		object(v, func(m map[string]any) {
			object(m["result"], func(m map[string]any) {
				content(m["content"])
				array(m["contents"], resource)
				array(m["messages"], func(v any) { object(v, func(m map[string]any) { content(m["content"]) }) })
				array(m["tools"], func(v any) { object(v, func(m map[string]any) { meta(m["_meta"]) }) })
				meta(m["_meta"])
			})
		})
	}
	message(v)
	array(v, message)
	return v
}

func TestRewriterAgreesWithTheDecodedForm(t *testing.T) {
	for _, tt := range uriCases {
		if tt.name == "twice" {
			continue // a map keeps one
		}
		var in, want any
		if json.Unmarshal([]byte(tt.in), &in) != nil || json.Unmarshal([]byte(tt.want), &want) != nil {
			t.Fatalf("%s is no JSON", tt.name)
		}
		if diff := cmp.Diff(want, rewriteDecoded(in)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, diff)
		}
	}
}
