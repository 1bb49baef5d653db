package mcp

import "testing"

func TestRemoveMembers(t *testing.T) {
	for _, tt := range []struct{ in, drop, want string }{
		{`{"a":1,"b":2,"c":3}`, "a", `{"b":2,"c":3}`},
		{`{"a":1,"b":2,"c":3}`, "b", `{"a":1,"c":3}`},
		{`{"a":1,"b":2,"c":3}`, "c", `{"a":1,"b":2}`},
		{`{"a":1,"b":2,"c":3}`, "ab", `{"c":3}`},
		{`{"a":1,"b":2,"c":3}`, "ac", `{"b":2}`},
		{`{"a":1,"b":2,"c":3}`, "bc", `{"a":1}`},
		{`{"a":1,"b":2,"c":3}`, "abc", `{}`},
		{`{ "a" : {"x":[1, 2]} , "b":2 }`, "a", `{ "b":2 }`},
		{`{ "a" : 1e400 , "\u0062":{} }`, "b", `{ "a" : 1e400 }`},
		{`{ "a" : 1 }`, "a", `{  }`},
		{`{}`, "a", `{}`},
		{`{"a":1}`, "", `{"a":1}`},
	} {
		// Somewhere inside a body, with what looks like members around it.
		body := `{"x":` + tt.in + `,"a":0}`
		at := Span{5, int32(5 + len(tt.in))}
		var e Edits
		err := e.RemoveMembers([]byte(body), at, func(name []byte) bool {
			for _, d := range tt.drop {
				if string(name) == string(d) {
					return true
				}
			}
			return false
		})
		if err != nil {
			t.Fatal(err)
		}
		if got, want := string(e.Apply(nil, []byte(body))), `{"x":`+tt.want+`,"a":0}`; got != want {
			t.Errorf("%s less %q: %s, want %s", tt.in, tt.drop, got, want)
		}
	}
}

func TestRemoveElements(t *testing.T) {
	body := []byte(`{"t":[ {"n":"a"}, 2 ,{"n":"c"} ]}`)
	var e Edits
	err := e.RemoveElements(body, Span{5, int32(len(body) - 1)}, func(v Span) bool { return string(v.Of(body)) == "2" })
	if err != nil {
		t.Fatal(err)
	}
	if got, want := string(e.Apply(nil, body)), `{"t":[ {"n":"a"} ,{"n":"c"} ]}`; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}
