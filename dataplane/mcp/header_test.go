package mcp

import (
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestEncodeHeader(t *testing.T) {
	for _, tt := range []struct{ value, want string }{ // the specification's examples first
		{"us-west1", "us-west1"},
		{"Hello, 世界", "=?base64?SGVsbG8sIOS4lueVjA==?="},
		{" padded ", "=?base64?IHBhZGRlZCA=?="},
		{"line1\nline2", "=?base64?bGluZTEKbGluZTI=?="},
		{"=?base64?literal?=", "=?base64?PT9iYXNlNjQ/bGl0ZXJhbD89?="},
		{"=?base64?literal", "=?base64?literal"},
		{"literal?=", "literal?="},
		{"", ""}, {"a b", "a b"}, {"\ta", "=?base64?CWE=?="}, {"a\x7f", "=?base64?YX8=?="},
	} {
		if got := EncodeHeader(tt.value); got != tt.want {
			t.Errorf("%q became %q, want %q", tt.value, got, tt.want)
		}
		if got, ok := DecodeHeader(tt.want); !ok || got != tt.value {
			t.Errorf("%q came back as %q %v", tt.value, got, ok)
		}
	}
	for _, tt := range []struct {
		header, want string
		ok           bool
	}{
		{"Hello, 世界", "Hello, 世界", true}, {"  a  ", "a", true}, {"=?BASE64?YQ==?=", "=?BASE64?YQ==?=", true},
		{"=?base64?SGVsbG8?=", "", false}, {"=?base64?SGVs!!!bG8=?=", "", false}, {"=?base64?SGVsbG9=?=", "", false}, {"=?base64?/w==?=", "", false},
		{"\xff", "", false}, {"a\x00b", "", false}, {"a\nb", "", false},
	} {
		if got, ok := DecodeHeader(tt.header); ok != tt.ok || ok && got != tt.want {
			t.Errorf("%q is %q %v, want %q %v", tt.header, got, ok, tt.want, tt.ok)
		}
	}
}

func TestCheckHeaders(t *testing.T) {
	const tool = `"method":"tools/call","params":{"name":"get \u00e9"}`
	for _, tt := range []struct {
		name, body string
		header     http.Header
		says       string // "": good
	}{
		{"raw UTF-8", tool, http.Header{"Mcp-Method": {"tools/call"}, "Mcp-Name": {"get é"}}, ""},
		{"Base64", tool, http.Header{"Mcp-Method": {"tools/call"}, "Mcp-Name": {"=?base64?Z2V0IMOp?="}}, ""},
		{"white space around", tool, http.Header{"Mcp-Method": {" tools/call"}, "Mcp-Name": {"  get é\t"}}, ""},
		{"other name", tool, http.Header{"Mcp-Method": {"tools/call"}, "Mcp-Name": {"get e"}}, "Mcp-Name is"},
		{"no name", tool, http.Header{"Mcp-Method": {"tools/call"}}, "Mcp-Name header is missing"},
		{"two names", tool, http.Header{"Mcp-Method": {"tools/call"}, "Mcp-Name": {"get é", "get é"}}, "2 times"},
		{"bad Base64", tool, http.Header{"Mcp-Method": {"tools/call"}, "Mcp-Name": {"=?base64?Z2V0IMOp=?="}}, "bad Base64"},
		{"no method", tool, http.Header{"Mcp-Name": {"get é"}}, "Mcp-Method header is missing"},
		{"method in capitals", tool, http.Header{"Mcp-Method": {"TOOLS/CALL"}, "Mcp-Name": {"get é"}}, "Mcp-Method is"},
		{"two methods", tool, http.Header{"Mcp-Method": {"tools/call", "tools/list"}, "Mcp-Name": {"get é"}}, "2 times"},
		{"uri", `"method":"resources/read","params":{"uri":"file:///a"}`, http.Header{"Mcp-Method": {"resources/read"}, "Mcp-Name": {"file:///a"}}, ""},
		{"other uri", `"method":"resources/read","params":{"uri":"file:///a","name":"x"}`, http.Header{"Mcp-Method": {"resources/read"}, "Mcp-Name": {"x"}}, "Mcp-Name is"},
		{"task", `"method":"tasks/get","params":{"taskId":"7"}`, http.Header{"Mcp-Method": {"tasks/get"}, "Mcp-Name": {"8"}}, "Mcp-Name is"},
		{"task without a name", `"method":"tasks/get","params":{"taskId":"7"}`, http.Header{"Mcp-Method": {"tasks/get"}}, ""},
		{"list", `"method":"tools/list"`, http.Header{"Mcp-Method": {"tools/list"}}, ""},
		{"name that the body lacks", `"method":"tools/call","params":{}`, http.Header{"Mcp-Method": {"tools/call"}, "Mcp-Name": {"x"}}, "needs params.name"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m, err := Scan([]byte(`{"jsonrpc":"2.0","id":"i",`+tt.body+`}`), Limits{})
			if err != nil {
				t.Fatal(err)
			}
			err = CheckHeaders(tt.header, &m)
			if tt.says == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			e := asError(t, err)
			if e.Status != 400 || e.Code != CodeHeaderMismatch && !strings.HasPrefix(tt.says, "needs") || string(e.ID) != `"i"` || !strings.Contains(e.Message, tt.says) {
				t.Errorf("got %d %v id %s", e.Status, e, e.ID)
			}
		})
	}
}

func TestSetHeaders(t *testing.T) {
	for _, tt := range []struct {
		revision Revision
		want     http.Header
	}{
		{V20250326, http.Header{"Other": {"x"}}},
		{V20251125, http.Header{"Other": {"x"}, "Mcp-Protocol-Version": {"2025-11-25"}}},
		{V20260728, http.Header{"Other": {"x"}, "Mcp-Protocol-Version": {"2026-07-28"}, "Mcp-Method": {"tools/call"}, "Mcp-Name": {"=?base64?w6k=?="}}},
	} {
		h := http.Header{"Mcp-Method": {"old"}, "Mcp-Name": {"old"}, "Mcp-Protocol-Version": {"old"}, "Other": {"x"}}
		SetHeaders(h, tt.revision, "tools/call", "é")
		if diff := cmp.Diff(tt.want, h); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.revision, diff)
		}
	}
}

func TestParamHeaders(t *testing.T) {
	const schema = `{"type":"object","properties":{"region":{"type":"string","x-mcp-header":"Region"},"n":{"type":["integer","null"],"x-mcp-header":"count"},
		"deep":{"type":"object","properties":{"x-mcp-header":{"type":"boolean","x-mcp-header":"Flag"}}},"free":{"default":{"x-mcp-header":1},"enum":[{"x-mcp-header":2}]}}}`
	params, err := ParseParamHeaders([]byte(schema))
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name, arguments string
		header          http.Header
		says            string // "": good
	}{
		{"all", `{"region":"us","n":42,"deep":{"x-mcp-header":true}}`, http.Header{"Mcp-Param-Region": {"us"}, "Mcp-Param-Count": {"42"}, "Mcp-Param-Flag": {"true"}}, ""},
		{"none", `{}`, nil, ""},
		{"no arguments", ``, nil, ""},
		{"null", `{"region":null}`, nil, ""},
		{"others are not judged", `{}`, http.Header{"Mcp-Param-Other": {"x"}}, ""},
		{"Base64", `{"region":"Hello"}`, http.Header{"Mcp-Param-Region": {"=?base64?SGVsbG8=?="}}, ""},
		{"no prefix is literal", `{"region":"SGVsbG8="}`, http.Header{"Mcp-Param-Region": {"SGVsbG8="}}, ""},
		{"no suffix is literal", `{"region":"=?base64?SGVsbG8="}`, http.Header{"Mcp-Param-Region": {"=?base64?SGVsbG8="}}, ""},
		{"escapes in the body", `{"re\u0067ion":"u\u0073"}`, http.Header{"Mcp-Param-Region": {"us"}}, ""},
		{"numbers by value", `{"n":42.0}`, http.Header{"Mcp-Param-Count": {"4.2e1"}}, ""},
		{"empty string", `{"region":""}`, http.Header{"Mcp-Param-Region": {""}}, ""},
		{"bad padding", `{"region":"Hello"}`, http.Header{"Mcp-Param-Region": {"=?base64?SGVsbG8?="}}, "bad Base64"},
		{"bad characters", `{"region":"Hello"}`, http.Header{"Mcp-Param-Region": {"=?base64?SGVs!!!bG8=?="}}, "bad Base64"},
		{"missing", `{"region":"x"}`, nil, "header is missing"},
		{"differs", `{"region":"x"}`, http.Header{"Mcp-Param-Region": {"y"}}, "Mcp-Param-Region is"},
		{"for null", `{"region":null}`, http.Header{"Mcp-Param-Region": {"null"}}, "absent or null"},
		{"for absent", `{}`, http.Header{"Mcp-Param-Region": {""}}, "absent or null"},
		{"twice", `{"region":"x"}`, http.Header{"Mcp-Param-Region": {"x", "x"}}, "2 times"},
		{"number differs", `{"n":42}`, http.Header{"Mcp-Param-Count": {"43"}}, "Mcp-Param-Count is"},
		{"number is words", `{"n":42}`, http.Header{"Mcp-Param-Count": {"0x2a"}}, "Mcp-Param-Count is"},
		{"fraction", `{"n":4.5}`, http.Header{"Mcp-Param-Count": {"4.5"}}, "no string, boolean or integer"},
		{"unsafe integer", `{"n":9007199254740992}`, http.Header{"Mcp-Param-Count": {"9007199254740992"}}, "no string, boolean or integer"},
		{"object", `{"region":{}}`, http.Header{"Mcp-Param-Region": {"{}"}}, "no string, boolean or integer"},
		{"given twice in the body", `{"region":"a","region":"b"}`, http.Header{"Mcp-Param-Region": {"a"}}, "twice"},
		{"given in capitals", `{"region":"a","Region":"b"}`, http.Header{"Mcp-Param-Region": {"a"}}, "Region"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := params.Check(tt.header, []byte(tt.arguments))
			if tt.says == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if e := asError(t, err); e.Status != 400 || !strings.Contains(e.Message, tt.says) {
				t.Errorf("got %d %v, want %q", e.Status, e, tt.says)
			}
		})
	}
	h := http.Header{"Mcp-Param-Flag": {"old"}, "Mcp-Param-Other": {"x"}}
	if err := params.Set(h, []byte(`{"region":" é","n":-42.0,"deep":null}`)); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(http.Header{"Mcp-Param-Region": {"=?base64?IMOp?="}, "Mcp-Param-Count": {"-42"}, "Mcp-Param-Other": {"x"}}, h); diff != "" {
		t.Errorf("Set (-want +got):\n%s", diff)
	}
}

func TestBadParamHeaders(t *testing.T) {
	property := func(s string) string {
		return `{"properties":{"a":{"type":"string","x-mcp-header":"A"},"b":` + s + `}}`
	}
	for _, tt := range []struct {
		schema string
		good   bool
	}{
		{`{}`, true}, {`true`, true}, {property(`{"type":"integer","x-mcp-header":"B"}`), true}, {property(`true`), true},
		{property(`{"type":"string","x-mcp-header":"a"}`), false},
		{property(`{"type":"string","x-mcp-header":""}`), false},
		{property(`{"type":"string","x-mcp-header":"a b"}`), false},
		{property(`{"type":"string","x-mcp-header":"a\r\nb"}`), false},
		{property(`{"type":"string","x-mcp-header":"é"}`), false},
		{property(`{"type":"string","x-mcp-header":1}`), false},
		{property(`{"type":"number","x-mcp-header":"B"}`), false},
		{property(`{"type":"object","x-mcp-header":"B"}`), false},
		{property(`{"type":["string","integer"],"x-mcp-header":"B"}`), false},
		{property(`{"x-mcp-header":"B"}`), false},
		{property(`{"x\u002dmcp\u002dheader":"B"}`), false},
		{property(`{"type":"array","items":{"type":"string","x-mcp-header":"B"}}`), false},
		{property(`{"items":{"properties":{"c":{"type":"string","x-mcp-header":"B"}}}}`), false},
		{property(`{"anyOf":[{"type":"string","x-mcp-header":"B"}]}`), false},
		{`{"$defs":{"x":{"type":"string","x-mcp-header":"B"}}}`, false},
		{`{"x-mcp-header":"B","type":"string"}`, false},
		{`{"x-mcp-header":`, false},
	} {
		if _, err := ParseParamHeaders([]byte(tt.schema)); (err == nil) != tt.good {
			t.Errorf("%s: error %v, want good %v", tt.schema, err, tt.good)
		}
	}
}
