package mcp

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

// FuzzScanPart: one pass finds what two find.
func FuzzScanPart(f *testing.F) {
	for _, body := range []string{
		`{"jsonrpc":"2.0","id":1,"result":{"tools":[{"name":"a"},{"name":"b","annotations":{"k":1}}],"nextCursor":"\u0063","ttlMs":5,"cacheScope":"public","_meta":{"x":1}}}`,
		` {"result": {"tools": [ {"name":"a"} ] } ,"id":"x","jsonrpc":"2.0"} `,
		`{"jsonrpc":"2.0","id":1,"result":{"tools":[{"name":"a"},{}]}}`,
		`{"jsonrpc":"2.0","id":1,"result":{"tools":[{"name":"a","Name":"b"}]}}`,
		`{"jsonrpc":"2.0","id":1,"result":{"tools":[{"name":"a"}{]}}`,
		`{"jsonrpc":"2.0","id":1,"result":{"tools":{}}}`,
		`{"jsonrpc":"2.0","id":1,"result":{"tools":[]},"Result":1}`,
		`{"jsonrpc":"2.0","id":1,"result":{"tools":[]},"result":{"tools":[{"name":"a"}]}}`,
		`{"jsonrpc":"2.0","id":1,"result":[1]}`,
		`{"jsonrpc":"2.0","id":1,"result":{}}`,
		`{"jsonrpc":"2.0","id":1,"error":{"code":1,"message":""}}`,
		`{"jsonrpc":"2.0","method":"x"}`,
		`[{"result":{}}]`,
		`{"jsonrpc":"2.0","id":1,"result":{"tools":[{"name":"a","x":[[[[[[[[[[]]]]]]]]]]}]}}`,
	} {
		f.Add([]byte(body))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		lim := Limits{Depth: 12}
		keep := func(it *Item) bool {
			it.Rename([]byte("t_" + it.Name.String()))
			return it.Name.String() != "drop"
		}
		want, wantErr := Scan(body, lim)
		got, part, ok, err := ScanPart(Tools, nil, body, lim, keep)
		if (wantErr == nil) != (err == nil) {
			t.Fatalf("error %v, want %v", err, wantErr)
		}
		if diff := cmp.Diff(want, got); err == nil && diff != "" {
			t.Errorf("message (-Scan +ScanPart):\n%s", diff)
		}
		if err != nil || !want.Result.Present() {
			if ok {
				t.Error("there is a part without a result")
			}
			return
		}
		wantPart, wantErr := ReadPart(Tools, nil, want.Result.Of(body), lim, keep)
		if ok != (wantErr == nil) {
			t.Fatalf("ok is %v, but ReadPart says %v", ok, wantErr)
		}
		if ok {
			if diff := cmp.Diff(cutPart(wantPart, want.Result.Start), cutPart(part, 0)); diff != "" {
				t.Errorf("part (-ReadPart +ScanPart):\n%s", diff)
			}
		}
	})
}

// cutPart makes the one span of a part relative to the body.
func cutPart(p Part, start int32) Part {
	if p.Page.NextCursor.Present() {
		p.Page.NextCursor.Span.Start += start
		p.Page.NextCursor.Span.End += start
	}
	return p
}
