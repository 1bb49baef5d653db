package mcp

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"reflect"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"
)

// Messages to start from.
var seeds = []string{
	`{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"a_b","arguments":{"x":[1.5e3,"é\n",null,true]},"_meta":{"progressToken":1}}}`,
	`{"jsonrpc":"2.0","id":"\u0041","method":"completion/complete","params":{"ref":{"type":"ref/resource","uri":"a"}}}`,
	`[{"jsonrpc":"2.0","id":1,"method":"ping"},{"jsonrpc":"2.0","method":"x","params":{}}]`,
	`{"jsonrpc":"2.0","id":1,"result":{"content":[{"uri":"a","resource":{"uri":"\ud83d\ude00"}}],"contents":[{"uri":""}],"messages":[{"content":{"uri":"b"}}],"tools":[{"_meta":{"ui":{"resourceUri":"c"}}}]}}`,
	`{"jsonrpc":"2.0","id":null,"error":{"code":-32700,"message":"x"}}`,
	`{"jsonrpc":"2.0","id":1,"method":"m","params":{"name":"a","Name":"b"}}`,
	`{"tools":[{"name":"a","annotations":{},"inputSchema":{"properties":{"x":{"type":"string","x-mcp-header":"X"}}}},{"name":"b"}],"nextCursor":"c","ttlMs":5,"_meta":{}}`,
	"{\"a\":\"\xff\"}", `{"a":1}}`, `"\ud800"`, `-0.1E-5`, "[[[[]]]]", "{\"\u212a\":1}",
}

// strictJSON is what Scan demands of a text, by the standard library. That takes bad UTF-8 and any depth.
func strictJSON(b []byte) bool { return json.Valid(b) && utf8.Valid(b) && nesting(b) <= maxDepth }

func nesting(b []byte) (deepest int) {
	depth := 0
	for d := json.NewDecoder(bytes.NewReader(b)); ; {
		token, err := d.Token()
		if err != nil {
			return deepest
		}
		switch token {
		case json.Delim('{'), json.Delim('['):
			depth++
			deepest = max(deepest, depth)
		case json.Delim('}'), json.Delim(']'):
			depth--
		}
	}
}

// halfCharacter reports whether a string of b has an escape that is half of a character, which Go's decoder replaces and we refuse
// in a URI (RFC 8259, section 8.2).
func halfCharacter(b []byte) bool {
	for d := json.NewDecoder(bytes.NewReader(b)); ; {
		token, err := d.Token()
		if err != nil {
			return false
		}
		if s, ok := token.(string); ok && strings.ContainsRune(s, utf8.RuneError) {
			return true
		}
	}
}

func FuzzScan(f *testing.F) {
	for _, s := range seeds {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		m, err := Scan(body, Limits{Depth: maxDepth})
		var e *Error
		if err != nil && !errors.As(err, &e) {
			t.Fatalf("%T is no *Error", err)
		}
		valid := strictJSON(body)
		if syntax := e != nil && (e.Code == CodeParse || strings.Contains(e.Message, "nested")); syntax == valid {
			t.Fatalf("valid is %v, but Scan says %v", valid, err)
		}
		if err != nil {
			if m.Kind != Invalid || !json.Valid(e.Append(nil)) {
				t.Fatalf("kind %v, answer %s", m.Kind, e.Append(nil))
			}
			return
		}
		if m.Kind == Batch {
			return
		}
		agreesWithDecoder(t, body, &m)
		// Replacing values by themselves changes nothing.
		var edits Edits
		for _, s := range []Span{m.ID, m.MethodSpan, m.Arguments, m.Name.Span} {
			if s.Present() {
				edits.Replace(s, s.Of(body))
			}
		}
		if same := edits.Apply(nil, body); !bytes.Equal(same, body) {
			t.Fatalf("edits made %q", same)
		}
		// A new name is read back, and all else is as it was.
		if m.Name.IsString() {
			edits.Reset()
			edits.String(m.Name.Span, append([]byte("t_"), m.Name.Value...))
			again, err := Scan(edits.Apply(nil, body), Limits{Depth: maxDepth})
			if err != nil || again.Name.String() != "t_"+m.Name.String() || !bytes.Equal(again.RawID(), m.RawID()) || !bytes.Equal(again.Arguments.Of(again.Body), m.Arguments.Of(body)) {
				t.Fatalf("after an edit: %s: %v", again.Body, err)
			}
		}
	})
}

// agreesWithDecoder compares m with what encoding/json, which matches names without case, makes of body.
func agreesWithDecoder(t *testing.T, body []byte, m *Message) {
	var want struct {
		ID     json.RawMessage
		Method json.RawMessage
		Params json.RawMessage
		Result json.RawMessage
	}
	if err := json.Unmarshal(body, &want); err != nil {
		t.Fatalf("encoding/json refuses what Scan took: %v", err)
	}
	var method string
	if want.Method != nil && json.Unmarshal(want.Method, &method) != nil || method != m.Method {
		t.Fatalf("method is %q, want %s", m.Method, want.Method)
	}
	var params struct {
		Name, URI, Cursor any
		Arguments         json.RawMessage
		Meta              json.RawMessage `json:"_meta"`
	}
	if want.Params != nil {
		if err := json.Unmarshal(want.Params, &params); err != nil {
			t.Fatalf("params: %v", err)
		}
	}
	for name, pair := range map[string][2][]byte{
		"id": {m.RawID(), want.ID}, "params": {m.Params.Of(body), want.Params}, "result": {m.Result.Of(body), want.Result},
		"arguments": {m.Arguments.Of(body), params.Arguments}, "_meta": {m.Meta.Span.Of(body), params.Meta},
	} {
		if !bytes.Equal(pair[0], pair[1]) {
			t.Fatalf("%s is %q, want %q", name, pair[0], pair[1])
		}
	}
	for name, pair := range map[string]struct {
		got  Text
		want any
	}{"name": {m.Name, params.Name}, "uri": {m.URI, params.URI}, "cursor": {m.Cursor, params.Cursor}} {
		if s, isString := pair.want.(string); isString != pair.got.IsString() || s != pair.got.String() {
			t.Fatalf("%s is %q, want %v", name, pair.got.Value, pair.want)
		}
	}
}

func FuzzScanBatch(f *testing.F) {
	for _, s := range seeds {
		f.Add([]byte(s))
		f.Add([]byte("[" + s + "]"))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		batch, err := ScanBatch(body, Limits{Depth: maxDepth})
		if err != nil {
			return
		}
		var want []json.RawMessage
		if json.Unmarshal(body, &want) != nil || len(want) != len(batch) {
			t.Fatalf("%d elements, want %d", len(batch), len(want))
		}
		for i, m := range batch {
			if !bytes.Equal(m.Body, want[i]) || m.Kind == Invalid {
				t.Fatalf("element %d is %q, want %q", i, m.Body, want[i])
			}
		}
	})
}

func FuzzUnambiguous(f *testing.F) {
	for _, s := range seeds {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, value []byte) {
		if Unambiguous(value, Limits{Depth: maxDepth}) == nil && !strictJSON(value) {
			t.Fatal("no JSON was taken")
		}
		if err := Members(value, Limits{}, []string{"name"}, func(name, v []byte) error {
			if !strictJSON(v) {
				t.Fatalf("member %q is %q", name, v)
			}
			return nil
		}); err == nil && !strictJSON(value) {
			t.Fatal("no JSON was taken by Members")
		}
		if p, err := ParseParamHeaders(value); err == nil {
			h := map[string][]string{}
			if p.Set(h, value) == nil && p.Check(h, value) != nil && len(h) == len(p) {
				t.Fatalf("headers %v do not agree with the arguments they were made from", h)
			}
		}
	})
}

func FuzzMerge(f *testing.F) {
	for _, s := range seeds {
		f.Add([]byte(s), uint8(Tools))
	}
	f.Add([]byte(`{"resources":[{"uri":"a"}]}`), uint8(Resources))
	f.Add([]byte(`{"resourceTemplates":[{"uriTemplate":"a"}]}`), uint8(Templates))
	f.Fuzz(func(t *testing.T, result []byte, list uint8) {
		l := List(list%4 + 1)
		m := NewMerge(l, Limits{Depth: maxDepth})
		var names []string
		_, err := m.Add(result, func(it *Item) bool {
			name := it.Name
			if l == Resources {
				name = it.URI
			} else if l == Templates {
				name = it.URITemplate
			}
			names = append(names, "t_"+name.String())
			if to := []byte(names[len(names)-1]); l == Tools || l == Prompts {
				it.Rename(to)
			} else {
				it.SetURI(to)
			}
			return true
		})
		out := m.AppendResult(nil, Tail{Revision: V20260728})
		var got map[string]json.RawMessage
		if json.Unmarshal(out, &got) != nil || !utf8.Valid(out) {
			t.Fatalf("merged to %q", out)
		}
		if err != nil {
			if m.Len() != 0 {
				t.Fatal("items of a bad result were kept")
			}
			return
		}
		if !strictJSON(result) {
			t.Fatal("a result that is no JSON was taken")
		}
		var items []map[string]any
		if json.Unmarshal(got[l.Member()], &items) != nil || len(items) != len(names) {
			t.Fatalf("%d items, want %d: %s", len(items), len(names), out)
		}
		member := [...]string{"", "name", "name", "uri", "uriTemplate"}[l]
		for i, it := range items {
			if it[member] != names[i] {
				t.Fatalf("item %d is %v, want %q", i, it[member], names[i])
			}
		}
	})
}

func FuzzRewriteURIs(f *testing.F) {
	for _, s := range seeds {
		f.Add([]byte(s), uint16(10))
	}
	for _, tt := range uriCases {
		f.Add([]byte(tt.in), uint16(len(tt.in)/2))
	}
	f.Fuzz(func(t *testing.T, body []byte, cut uint16) {
		whole, err := RewriteURIs(nil, body, prefixed)
		var out bytes.Buffer
		w := NewURIWriter(&out, prefixed)
		n := min(int(cut), len(body))
		_, err1 := w.Write(body[:n])
		_, err2 := w.Write(body[n:])
		parts := errors.Join(err1, err2, w.Close())
		if (err == nil) != (parts == nil) || err == nil && !bytes.Equal(whole, out.Bytes()) {
			t.Fatalf("whole %q %v, in parts %q %v", whole, err, out.Bytes(), parts)
		}
		var before, after any
		if !strictJSON(body) || Unambiguous(body, Limits{Depth: maxDepth}) != nil || json.Unmarshal(body, &before) != nil {
			return // twofold names: a map keeps one of them
		}
		if err != nil {
			if halfCharacter(body) {
				return
			}
			t.Fatalf("good JSON was refused: %v", err)
		}
		if err := json.Unmarshal(whole, &after); err != nil || !reflect.DeepEqual(rewriteDecoded(before), after) {
			t.Fatalf("became %q (%v)", whole, err)
		}
	})
}

// FuzzRewriteTasks: what is rewritten is what a reader of the whole finds at the same places, and all else keeps its bytes.
func FuzzRewriteTasks(f *testing.F) {
	for _, tt := range slices.Concat(taskCases, uriCases) {
		f.Add([]byte(tt.in), uint16(7))
	}
	f.Fuzz(func(t *testing.T, body []byte, cut uint16) {
		whole, err := Rewrite(nil, body, Rewrites{URI: prefixed, Task: tasked})
		var out bytes.Buffer
		w := NewRewriter(&out, Rewrites{URI: prefixed, Task: tasked})
		n := min(int(cut), len(body))
		_, err1 := w.Write(body[:n])
		_, err2 := w.Write(body[n:])
		parts := errors.Join(err1, err2, w.Close())
		if (err == nil) != (parts == nil) || err == nil && !bytes.Equal(whole, out.Bytes()) {
			t.Fatalf("whole %q %v, in parts %q %v", whole, err, out.Bytes(), parts)
		}
		if same, err2 := Rewrite(nil, body, Rewrites{Task: func([]byte) []byte { return nil }}); err == nil && (err2 != nil || !bytes.Equal(same, body)) {
			t.Fatalf("nothing to do became %q %v", same, err2)
		}
		var before, after any
		if !strictJSON(body) || Unambiguous(body, Limits{Depth: maxDepth}) != nil || json.Unmarshal(body, &before) != nil {
			return // twofold names: a map keeps one of them
		}
		if err != nil {
			if halfCharacter(body) {
				return
			}
			t.Fatalf("good JSON was refused: %v", err)
		}
		if err := json.Unmarshal(whole, &after); err != nil || !reflect.DeepEqual(tasksDecoded(before), after) {
			t.Fatalf("became %q (%v)", whole, err)
		}
	})
}

// FuzzRewriteID: whatever a target calls its message, said however often and in whatever spelling, it has the id that it was asked
// with, and all else keeps its value.
func FuzzRewriteID(f *testing.F) {
	for _, s := range seeds {
		f.Add([]byte(s), uint16(9))
	}
	for _, s := range []string{
		`{"id":8,"result":{}}`, `{"\u0069d":-8.0e1 ,"id":"8"}`, `[{"id":8},{"id":null},{"result":{"id":8}}]`, `{"id":[8]}`, `{"id":{"id":8}}`, `{"id":8`, `{"id":8"}`,
	} {
		f.Add([]byte(s), uint16(6))
	}
	r := Rewrites{ID: []byte(`"mine"`), URI: prefixed}
	f.Fuzz(func(t *testing.T, body []byte, cut uint16) {
		whole, err := Rewrite(nil, body, r)
		var out bytes.Buffer
		w := NewRewriter(&out, r)
		n := min(int(cut), len(body))
		_, err1 := w.Write(body[:n])
		_, err2 := w.Write(body[n:])
		parts := errors.Join(err1, err2, w.Close())
		if (err == nil) != (parts == nil) || err == nil && !bytes.Equal(whole, out.Bytes()) {
			t.Fatalf("whole %q %v, in parts %q %v", whole, err, out.Bytes(), parts)
		}
		if !strictJSON(body) {
			return
		}
		if err == nil {
			for _, id := range topIDs(t, whole) {
				if id[0] == '"' && id != `"mine"` || id[0] == '-' || '0' <= id[0] && id[0] <= '9' {
					t.Fatalf("the id %s is left in %q", id, whole)
				}
			}
		}
		var before, after any
		if Unambiguous(body, Limits{Depth: maxDepth}) != nil || json.Unmarshal(body, &before) != nil {
			return // twofold names: a map keeps one of them
		}
		if err != nil {
			if halfCharacter(body) {
				return
			}
			t.Fatalf("good JSON was refused: %v", err)
		}
		mine := func(v any) {
			m, _ := v.(map[string]any)
			switch m["id"].(type) {
			case string, float64:
				m["id"] = "mine"
			}
		}
		mine(before)
		if batch, ok := before.([]any); ok {
			for _, m := range batch {
				mine(m)
			}
		}
		if err := json.Unmarshal(whole, &after); err != nil || !reflect.DeepEqual(rewriteDecoded(before), after) {
			t.Fatalf("became %q (%v)", whole, err)
		}
	})
}

// topIDs is each value of a member id of a message, or of a batch's messages, as it is written; also of names that are said twice.
func topIDs(t *testing.T, body []byte) (ids []string) {
	d := json.NewDecoder(bytes.NewReader(body))
	batch := false
	for depth := 0; ; {
		tok, err := d.Token()
		if err == io.EOF {
			return ids
		}
		if err != nil {
			t.Fatalf("%v in %q", err, body)
		}
		switch tok {
		case json.Delim('['):
			if depth++; depth == 1 {
				batch = true
				continue
			}
		case json.Delim('{'):
			if depth++; depth == 1 || depth == 2 && batch {
				for d.More() {
					name, err := d.Token()
					var value json.RawMessage
					if err = errors.Join(err, d.Decode(&value)); err != nil {
						t.Fatalf("%v in %q", err, body)
					}
					if name == "id" {
						ids = append(ids, string(value))
					}
				}
			}
		case json.Delim(']'), json.Delim('}'):
			depth--
		}
	}
}

func FuzzEvents(f *testing.F) {
	for _, tt := range streams {
		f.Add([]byte(tt.in), uint16(3))
	}
	f.Fuzz(func(t *testing.T, stream []byte, cut uint16) {
		whole := readAll(bytes.NewReader(stream), 1<<10)
		n := min(int(cut), len(stream))
		parts := readAll(io.MultiReader(bytes.NewReader(stream[:n]), bytes.NewReader(stream[n:])), 1<<10)
		if !reflect.DeepEqual(whole, parts) {
			t.Fatalf("whole %q, in parts %q", whole, parts)
		}
		// What is written is read back.
		var out bytes.Buffer
		w := NewEventWriter(&out, nil)
		var want []string
		for events := NewEventReader(bytes.NewReader(stream), 0); ; {
			e, err := events.Next()
			if err != nil {
				break
			}
			if w.Write(e) == nil {
				want = append(want, show(e))
			}
		}
		got := readAll(&out, 0)
		if got = got[:len(got)-1]; len(got)+len(want) > 0 && !reflect.DeepEqual(got, want) {
			t.Fatalf("read back %q, want %q", got, want)
		}
		// No data, whatever it holds, forges a field.
		var forged bytes.Buffer
		NewEventWriter(&forged, nil).Message(stream)
		if got := readAll(&forged, 0); len(got) != 2 || !strings.HasPrefix(got[0], `type "message", data `) {
			t.Fatalf("data became %q", got)
		}
	})
}

func FuzzHeaderValue(f *testing.F) {
	for _, s := range []string{"a", "é", " a ", "=?base64?YQ==?=", "a\nb", "=?base64??=", "\xff"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, value string) {
		DecodeHeader(value)
		if !utf8.ValidString(value) {
			return
		}
		header := EncodeHeader(value)
		if back, ok := DecodeHeader(header); !ok || back != value || strings.ContainsFunc(header, func(r rune) bool { return r < ' ' || r > '~' }) {
			t.Fatalf("%q became %q and came back as %q %v", value, header, back, ok)
		}
	})
}
