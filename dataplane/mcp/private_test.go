package mcp

import (
	"bytes"
	"testing"
)

func TestMakePrivate(t *testing.T) {
	for result, want := range map[string]string{
		`{"tools":[],"cacheScope":"public","ttlMs":1}`:                    `{"tools":[],"cacheScope":"private","ttlMs":1}`,
		`{"cacheScope":"p\u0075blic"}`:                                    `{"cacheScope":"private"}`,
		`{"cache\u0053cope":"public"}`:                                    `{"cache\u0053cope":"private"}`,
		`{"cacheScope":"public","cacheScope":"public"}`:                   `{"cacheScope":"private","cacheScope":"private"}`,
		`{"cacheScope":7}`:                                                `{"cacheScope":7}`,
		`{"cacheScope":["public"]}`:                                       `{"cacheScope":["public"]}`,
		`{"tools":[{"cacheScope":"public"}],"x":{"cacheScope":"public"}}`: `{"tools":[{"cacheScope":"public"}],"x":{"cacheScope":"public"}}`,
		`{"contents":[{"uri":"a://b","text":"\"cacheScope\":\"public\""}], "cacheScope" : "public" }`: `{"contents":[{"uri":"a://b","text":"\"cacheScope\":\"public\""}], "cacheScope" : "private" }`,
		`{}`:  `{}`,
		`{"a`: `{"a`,
	} {
		if got := string(MakePrivate([]byte(result))); got != want {
			t.Errorf("%s: %s, want %s", result, got, want)
		}
		message, whole := `{"jsonrpc":"2.0","id":1,"result":`+result+`}`, `{"jsonrpc":"2.0","id":1,"result":`+want+`}`
		if result == `{"a` {
			continue
		}
		var out bytes.Buffer
		u := NewURIWriter(&out, nil)
		u.MakePrivate()
		for i := range message { // whatever the borders
			if _, err := u.Write([]byte(message[i : i+1])); err != nil {
				t.Fatal(err)
			}
		}
		if err := u.Close(); err != nil || out.String() != whole {
			t.Errorf("%s: %s (%v), want %s", message, out.String(), err, whole)
		}
	}
}

func TestDisguised(t *testing.T) {
	for method, want := range map[string]bool{
		"tools/call": false, "initialize": false, "x/unknown": false, "": false, "tools/callx": false, "tools.call": false,
		"Tools/Call": true, "tools/call ": true, "tools/\tcall": true, "tools/call\x00": true, "tool\u017f/call": true, "tas\u212as/get": true,
		"tools\u200b/call": true, "logging/setlevel": true,
	} {
		if got := Disguised(method); got != want {
			t.Errorf("%q: %v, want %v", method, got, want)
		}
	}
}
