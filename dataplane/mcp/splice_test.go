package mcp

import (
	"encoding/json"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestEditsLeaveOtherBytesAlone(t *testing.T) {
	body := []byte(` {"jsonrpc":"2.0", "id":1.0,"method":"completion/complete","params":{"ref":{"type":"ref/prompt","name":"a_b"},"cursor" : "c\u0061","x":1e400,"_meta":{"progressToken":1}}}`)
	m, err := Scan(body, Limits{})
	if err != nil {
		t.Fatal(err)
	}
	var e Edits
	e.Replace(m.Meta.ProgressToken, []byte(`"sealed"`)) // out of order
	e.String(m.Ref.Name.Span, []byte("b\"\n\x01é\xff"))
	e.Replace(m.ID, []byte("7"))
	e.String(m.Cursor.Span, nil)
	want := ` {"jsonrpc":"2.0", "id":7,"method":"completion/complete","params":{"ref":{"type":"ref/prompt","name":"b\"\n\u0001é` + "\ufffd" + `"},"cursor" : "","x":1e400,"_meta":{"progressToken":"sealed"}}}`
	if got := string(e.Apply([]byte("<"), body)); got != "<"+want {
		t.Errorf("got  %s\nwant <%s", got, want)
	}
	e.Reset()
	if got := e.Apply(nil, body); string(got) != string(body) || e.Len() != 0 {
		t.Errorf("after Reset: %s", got)
	}
	for i := range 10 { // more than fit in place
		e.Insert(body, m.Params, "k", []byte{byte('0' + i)})
		e.Reset()
	}
}

func TestInsertAndRemove(t *testing.T) {
	for _, tt := range []struct{ name, params, insert, remove string }{
		{"only member", `{"cursor":"a"}`, `{"new":[1],"cursor":"a"}`, `{}`},
		{"first", `{"cursor":"a","b":1}`, `{"new":[1],"cursor":"a","b":1}`, `{"b":1}`},
		{"last", `{ "b":1 , "cursor" : "a" }`, `{"new":[1], "b":1 , "cursor" : "a" }`, `{ "b":1  }`},
		{"middle", `{"b":1,"cur\u0073or":"a" ,"c":2}`, `{"new":[1],"b":1,"cur\u0073or":"a" ,"c":2}`, `{"b":1,"c":2}`},
		{"name with quotes before", `{"x\"\\":1,"cursor":"a"}`, `{"new":[1],"x\"\\":1,"cursor":"a"}`, `{"x\"\\":1}`},
		{"empty", `{ }`, `{"new":[1] }`, `{ }`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			head, tail := `{"jsonrpc":"2.0","id":1,"method":"tools/list","params":`, `}`
			body := []byte(head + tt.params + tail)
			m, err := Scan(body, Limits{})
			if err != nil {
				t.Fatal(err)
			}
			var e Edits
			e.Insert(body, m.Params, "new", []byte("[1]"))
			if got := string(e.Apply(nil, body)); got != head+tt.insert+tail {
				t.Errorf("Insert: got %s", got)
			}
			e.Reset()
			if m.Cursor.Present() {
				e.Remove(body, m.Cursor.Span)
			}
			if got := string(e.Apply(nil, body)); got != head+tt.remove+tail {
				t.Errorf("Remove: got %s", got)
			}
		})
	}
}

func TestBuildersKeepIDs(t *testing.T) {
	for _, id := range []string{`0`, `""`, `1.5`, `9223372036854775808`, `-0`, `1E5`, `"\u0000\"é"`} {
		for name, b := range map[string][]byte{
			"request":  AppendRequest(nil, []byte(id), "tools/\"call", []byte(`{"name":"x"}`)),
			"bare":     AppendRequest(nil, []byte(id), "ping", nil),
			"result":   AppendResult(nil, []byte(id), []byte(`{"a":1}`)),
			"nothing":  AppendResult(nil, []byte(id), nil),
			"error":    AppendError(nil, []byte(id), -32603, "it \"broke\"\n", []byte(`{"x":1}`)),
			"an Error": (&Error{Code: 1, Message: "m", ID: []byte(id)}).Append(nil),
		} {
			m, err := Scan(b, Limits{})
			if err != nil {
				t.Fatalf("%s %s: %s: %v", name, id, b, err)
			}
			if string(m.RawID()) != id {
				t.Errorf("%s: id is %s, want %s", name, m.RawID(), id)
			}
		}
	}
	for got, want := range map[string]string{
		string(AppendNotification(nil, "n", []byte(`{}`))):    `{"jsonrpc":"2.0","method":"n","params":{}}`,
		string(AppendNotification(nil, "n", nil)):             `{"jsonrpc":"2.0","method":"n"}`,
		string(AppendError(nil, nil, -32700, "m", nil)):       `{"jsonrpc":"2.0","error":{"code":-32700,"message":"m"}}`,
		string(AppendError(nil, []byte("null"), 0, "m", nil)): `{"jsonrpc":"2.0","id":null,"error":{"code":0,"message":"m"}}`,
	} {
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("built (-want +got):\n%s", diff)
		}
	}
}

func TestAppendStringIsJSON(t *testing.T) {
	for _, text := range []string{"", "plain", "\x00\x1f\x7f\"\\/\b\f\n\r\t", "日本😀", "<&>\u2028", "\xff\xc3é\xe2\x84", "aaaaaaaaaaaaaaaaaaaa\"b"} {
		var got string
		if err := json.Unmarshal(AppendString(nil, text), &got); err != nil || got != string([]rune(text)) {
			t.Errorf("%q became %q (%v)", text, got, err)
		}
		if same := AppendString(nil, []byte(text)); string(same) != string(AppendString(nil, text)) {
			t.Errorf("%q: bytes and string differ", text)
		}
	}
}
