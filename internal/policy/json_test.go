package policy

import (
	"encoding/json"
	"fmt"
	"testing"
	"unicode/utf8"

	"github.com/google/cel-go/common/types"
	"github.com/google/go-cmp/cmp"
)

func TestDecodeObject(t *testing.T) {
	got, err := decodeObject([]byte(" {\"a\":[1,-0,1.0,1e2,9223372036854775807,9223372036854775808,-1.5e-3],\n\"s\":\"\\u00e9\\ud83d\\ude00\\n\\/x\\b\\f\\r\\t\\\"\\\\\", \"o\":{},\"l\":[],\"n\":null,\"t\":true,\"f\":false} "), nil)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]any{"a": []any{int64(1), int64(0), 1.0, 100.0, int64(9223372036854775807), 9223372036854775808.0, -0.0015},
		"s": "é😀\n/x\b\f\r\t\"\\", "o": map[string]any{}, "l": []any{}, "n": nil, "t": true, "f": false}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// What decodeObject takes, encoding/json takes too and reads alike: it is stricter, never laxer.
func FuzzDecodeObject(f *testing.F) {
	for _, s := range []string{`{}`, `{"a":1,"A":2}`, `{"a":"\ud83d\ude00","b":[1.5e3,-0,null,true]}`, `{"a":1,"a":2}`, `{"a":01}`, `{"a":"\ud800"}`, `{"a":1}x`, "{\"a\":\"\xff\"}", `{"a":{"b":{"c":[[]]}}}`, `{"ſ":1}`, `{"a":-}`, `{"a":1.}`, `{"a":tru}`} {
		f.Add([]byte(s))
	}
	names := &readNames{}
	names.add("key")
	f.Fuzz(func(t *testing.T, data []byte) {
		got, err := decodeObject(data, names)
		forRules, refused := decodeForRules(data, names)
		if fmt.Sprint(err) != fmt.Sprint(refused) {
			t.Fatalf("%q: %v, for rules %v", data, err, refused)
		}
		if err != nil {
			return
		}
		if !utf8.Valid(data) {
			t.Fatalf("%q is invalid UTF-8", data)
		}
		var want map[string]any
		if err := json.Unmarshal(data, &want); err != nil {
			t.Fatalf("%q: encoding/json: %v", data, err)
		}
		if toCEL(got).Equal(forRules) != types.True {
			t.Fatalf("%q: rules read %v, not %v", data, types.Format(forRules), types.Format(toCEL(got)))
		}
		if diff := cmp.Diff(floats(want), floats(got)); diff != "" {
			t.Fatalf("%q (-encoding/json +got):\n%s", data, diff)
		}
	})
}

// floats makes all numbers float64, and -0 0, as far as encoding/json tells them apart.
func floats(v any) any {
	switch v := v.(type) {
	case map[string]any:
		for k, e := range v {
			v[k] = floats(e)
		}
	case []any:
		for i, e := range v {
			v[i] = floats(e)
		}
	case int64:
		return float64(v)
	case float64:
		return v + 0
	}
	return v
}
