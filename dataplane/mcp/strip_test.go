package mcp

import "testing"

func TestStrip(t *testing.T) {
	for _, tt := range []struct{ raw, want string }{
		{`{}`, `{}`},
		{`{"a":1}`, `{}`},
		{` { "a" : 1 , "b" : 2e400 } `, ` {  "b" : 2e400 } `},
		{`{ "b":1 , "a":2 }`, `{ "b":1  }`},
		{`{ "a":2 }`, `{  }`},
		{`{"b":1 ,"z":1, "a" :2,"c":3}`, `{"b":1 ,"c":3}`},
		{`{"b":1 ,"z":1, "a" :2}`, `{"b":1 }`},
		{`{"a":1,"z":2}`, `{}`},
		{`{"b":9223372036854775808,"a":{"a":1},"c":{"a":1}}`, `{"b":9223372036854775808,"c":{"a":1}}`},
		{`{"b":1,"c":[1, 2] }`, `{"b":1,"c":[1, 2] }`},
		{`{"\u0061":1,"b":"\u0061"}`, `{"b":"\u0061"}`},
		{`{"x":1,"z":3}`, `{"x":1,"z":3}`},
		{`{"x":1,"z":3,"y":{}}`, `{"x":1,"y":{}}`},
	} {
		names := []string{"a"}
		if tt.raw != `{"x":1,"z":3}` {
			names = []string{"z", "a"}
		}
		got, err := Strip([]byte("~"), []byte(tt.raw), Limits{}, names...)
		if err != nil || string(got) != "~"+tt.want {
			t.Errorf("%s: %s, %v, want %s", tt.raw, got, err, tt.want)
		}
	}
	for _, bad := range []string{``, `[]`, `{"a":1,"a":2}`, `{"a":1,"A":2}`, `{"b":1} x`, `{"b":}`, `{"b" 1}`, `{"b":1 "a":2}`} {
		if got, err := Strip(nil, []byte(bad), Limits{}, "a"); err == nil {
			t.Errorf("%s: %s and no error", bad, got)
		}
	}
}
