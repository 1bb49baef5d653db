package mcp

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// asError is err as an *Error, or the end of the test.
func asError(t *testing.T, err error) *Error {
	t.Helper()
	var e *Error
	if !errors.As(err, &e) {
		t.Fatalf("error is %v (%T), want an *Error", err, err)
	}
	return e
}

// found lists what a message holds, by name.
func found(m *Message) map[string]string {
	out := map[string]string{}
	raw := func(name string, s Span) {
		if s.Present() {
			out[name] = string(s.Of(m.Body))
		}
	}
	text := func(name string, t Text) {
		raw(name, t.Span)
		if t.IsString() {
			out[name] = t.String() + " = " + out[name]
		}
	}
	raw("id", m.ID)
	raw("params", m.Params)
	raw("result", m.Result)
	raw("error", m.Error)
	raw("arguments", m.Arguments)
	raw("inputResponses", m.InputResponses)
	raw("task", m.Task)
	raw("filter", m.Filter)
	raw("capabilities", m.Capabilities)
	raw("clientInfo", m.ClientInfo)
	raw("progressToken", m.ProgressToken)
	raw("requestId", m.RequestID)
	raw("ref", m.Ref.Span)
	raw("_meta", m.Meta.Span)
	raw("_meta.progressToken", m.Meta.ProgressToken)
	raw("_meta.clientInfo", m.Meta.ClientInfo)
	raw("_meta.clientCapabilities", m.Meta.ClientCapabilities)
	raw("_meta.subscriptionId", m.Meta.SubscriptionID)
	text("name", m.Name)
	text("uri", m.URI)
	text("cursor", m.Cursor)
	text("level", m.Level)
	text("taskId", m.TaskID)
	text("requestState", m.RequestState)
	text("version", m.Version)
	text("ref.type", m.Ref.Type)
	text("ref.name", m.Ref.Name)
	text("ref.uri", m.Ref.URI)
	text("_meta.version", m.Meta.Version)
	text("_meta.logLevel", m.Meta.LogLevel)
	if m.Method != "" {
		out["method"] = m.Method
	}
	return out
}

func TestScanFindsWhatIsRoutedOn(t *testing.T) {
	for _, tt := range []struct {
		name, body string
		kind       Kind
		want       map[string]string
	}{
		{"call", `{"jsonrpc":"2.0","id":1.50,"method":"tools/call","params":{"name":"a_b","arguments":{"x":[1,"}"]},"_meta":{"progressToken":"t","k":1}}}`,
			Request, map[string]string{"id": "1.50", "method": "tools/call", "name": `a_b = "a_b"`, "arguments": `{"x":[1,"}"]}`,
				"_meta": `{"progressToken":"t","k":1}`, "_meta.progressToken": `"t"`,
				"params": `{"name":"a_b","arguments":{"x":[1,"}"]},"_meta":{"progressToken":"t","k":1}}`}},
		{"escapes and white space", " {\r\n\t\"na\\u006de\" : 1, \"m\\u0065thod\" : \"tools\\/call\" ,\"id\":\"\\u00e9\\\"\", \"jsonrpc\":\"2\\u002e0\", \"params\":{ \"n\\u0061me\" : \"\\ud83d\\ude00_\\n\" } } ",
			Request, map[string]string{"id": `"\u00e9\""`, "method": "tools/call", "name": "😀_\n = \"\\ud83d\\ude00_\\n\"", "params": `{ "n\u0061me" : "\ud83d\ude00_\n" }`}},
		{"id 0", `{"jsonrpc":"2.0","id":0,"method":"ping"}`, Request, map[string]string{"id": "0", "method": "ping"}},
		{"id empty", `{"jsonrpc":"2.0","id":"","method":"ping"}`, Request, map[string]string{"id": `""`, "method": "ping"}},
		{"id 2^63", `{"jsonrpc":"2.0","id":9223372036854775808,"method":"ping"}`, Request, map[string]string{"id": "9223372036854775808", "method": "ping"}},
		{"id -1E+9", `{"jsonrpc":"2.0","id":-1E+9,"method":"ping","params":null}`, Request, map[string]string{"id": "-1E+9", "method": "ping", "params": "null"}},
		{"read", `{"jsonrpc":"2.0","id":1,"method":"resources/read","params":{"uri":"file:///a","requestState":"s","inputResponses":{"k":{}}}}`,
			Request, map[string]string{"id": "1", "method": "resources/read", "uri": `file:///a = "file:///a"`, "requestState": `s = "s"`, "inputResponses": `{"k":{}}`,
				"params": `{"uri":"file:///a","requestState":"s","inputResponses":{"k":{}}}`}},
		{"ref", `{"jsonrpc":"2.0","id":1,"method":"completion/complete","params":{"ref":{"type":"ref/prompt","name":"p","uri":"u","x":{}}}}`,
			Request, map[string]string{"id": "1", "method": "completion/complete", "ref": `{"type":"ref/prompt","name":"p","uri":"u","x":{}}`,
				"ref.type": `ref/prompt = "ref/prompt"`, "ref.name": `p = "p"`, "ref.uri": `u = "u"`, "params": `{"ref":{"type":"ref/prompt","name":"p","uri":"u","x":{}}}`}},
		{"stateless meta", `{"jsonrpc":"2.0","id":1,"method":"m","params":{"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientInfo":{"a":1},"io.modelcontextprotocol/clientCapabilities":{},"io.modelcontextprotocol/logLevel":"info","io.modelcontextprotocol/subscriptionId":7}}}`,
			Request, map[string]string{"id": "1", "method": "m", "_meta.version": `2026-07-28 = "2026-07-28"`, "_meta.clientInfo": `{"a":1}`, "_meta.clientCapabilities": `{}`,
				"_meta.logLevel": `info = "info"`, "_meta.subscriptionId": "7",
				"params": `{"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientInfo":{"a":1},"io.modelcontextprotocol/clientCapabilities":{},"io.modelcontextprotocol/logLevel":"info","io.modelcontextprotocol/subscriptionId":7}}`,
				"_meta":  `{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientInfo":{"a":1},"io.modelcontextprotocol/clientCapabilities":{},"io.modelcontextprotocol/logLevel":"info","io.modelcontextprotocol/subscriptionId":7}`}},
		{"initialize", `{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-06-18","capabilities":{"roots":{}},"clientInfo":{"name":"c"}}}`,
			Request, map[string]string{"id": "1", "method": "initialize", "version": `2025-06-18 = "2025-06-18"`, "capabilities": `{"roots":{}}`, "clientInfo": `{"name":"c"}`,
				"params": `{"protocolVersion":"2025-06-18","capabilities":{"roots":{}},"clientInfo":{"name":"c"}}`}},
		{"the rest of params", `{"jsonrpc":"2.0","id":1,"method":"m","params":{"cursor":"","level":"debug","taskId":"t","task":{"ttl":1},"notifications":{"a":true}}}`,
			Request, map[string]string{"id": "1", "method": "m", "cursor": ` = ""`, "level": `debug = "debug"`, "taskId": `t = "t"`, "task": `{"ttl":1}`, "filter": `{"a":true}`,
				"params": `{"cursor":"","level":"debug","taskId":"t","task":{"ttl":1},"notifications":{"a":true}}`}},
		{"progress", `{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":12345678901234567890,"progress":1}}`,
			Notification, map[string]string{"method": "notifications/progress", "progressToken": "12345678901234567890", "params": `{"progressToken":12345678901234567890,"progress":1}`}},
		{"cancelled", `{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":"a","reason":"b"}}`,
			Notification, map[string]string{"method": "notifications/cancelled", "requestId": `"a"`, "params": `{"requestId":"a","reason":"b"}`}},
		{"name that is no string", `{"jsonrpc":"2.0","id":1,"method":"x/y","params":{"name":[1],"ref":3}}`,
			Request, map[string]string{"id": "1", "method": "x/y", "name": "[1]", "ref": "3", "params": `{"name":[1],"ref":3}`}},
		{"result", `{"jsonrpc":"2.0","id":"x","result":{"id":1,"ID":2,"a":{"a":1,"a":2}}}`, Response, map[string]string{"id": `"x"`, "result": `{"id":1,"ID":2,"a":{"a":1,"a":2}}`}},
		{"error", `{"jsonrpc":"2.0","id":null,"error":{"code":0,"message":""}}`, Response, map[string]string{"id": "null", "error": `{"code":0,"message":""}`}},
		{"error without id", `{"jsonrpc":"2.0","error":{}}`, Response, map[string]string{"error": "{}"}},
		{"what is not read may be twofold", `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"arguments":{"name":1,"name":2,"Name":3},"x":{"a":1,"a":1}}}`,
			Request, map[string]string{"id": "1", "method": "tools/call", "arguments": `{"name":1,"name":2,"Name":3}`, "params": `{"arguments":{"name":1,"name":2,"Name":3},"x":{"a":1,"a":1}}`}},
		{"batch", ` [{"jsonrpc":"2.0","id":1,"method":"ping"}, 1]`, Batch, map[string]string{}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m, err := Scan([]byte(tt.body), Limits{})
			if err != nil {
				t.Fatal(err)
			}
			if m.Kind != tt.kind {
				t.Errorf("kind is %v, want %v", m.Kind, tt.kind)
			}
			if diff := cmp.Diff(tt.want, found(&m)); diff != "" {
				t.Errorf("found (-want +got):\n%s", diff)
			}
		})
	}
}

func TestScanRefuses(t *testing.T) {
	envelope := func(params string) string {
		return `{"jsonrpc":"2.0","id":"é","method":"tools/call","params":` + params + `}`
	}
	for _, tt := range []struct {
		name, body string
		code       int
		id         string // of the answer
		says       string // part of the message
	}{
		{"nothing", ``, CodeParse, "", "ends where a value"},
		{"white space", ` `, CodeParse, "", "ends where a value"},
		{"open object", `{`, CodeParse, "", "member's name"},
		{"trailing bytes", `{"jsonrpc":"2.0","id":1,"method":"ping"} x`, CodeParse, "", "follow"},
		{"two messages", `{"jsonrpc":"2.0","id":1,"method":"ping"}{}`, CodeParse, "", "follow"},
		{"comma at the end", `{"jsonrpc":"2.0","id":1,"method":"ping",}`, CodeParse, "", "name is missing"},
		{"comma at an array's end", envelope(`{"x":[1,]}`), CodeParse, "", "no JSON value"},
		{"mismatched", envelope(`{"x":[1}}`), CodeParse, "", "missing"},
		{"no comma", envelope(`{"x":1 "y":2}`), CodeParse, "", "missing"},
		{"no colon", envelope(`{"x" 1}`), CodeParse, "", "':'"},
		{"NUL", "{\"jsonrpc\":\"2.0\",\x00\"id\":1}", CodeParse, "", ""},
		{"byte order mark", "\ufeff{}", CodeParse, "", "no JSON value"},
		{"control character", envelope("{\"x\":\"a\nb\"}"), CodeParse, "", "control"},
		{"bad UTF-8", envelope("{\"x\":\"aaaaaaaaaaaaaaaa\xff\"}"), CodeParse, "", "UTF-8"},
		{"overlong UTF-8", envelope("{\"x\":\"\xc0\xaf\"}"), CodeParse, "", "UTF-8"},
		{"encoded surrogate", envelope("{\"x\":\"\xed\xa0\x80\"}"), CodeParse, "", "UTF-8"},
		{"cut UTF-8", envelope("{\"x\":\"\xe2\x84\"}"), CodeParse, "", "UTF-8"},
		{"bad UTF-8 in a name", envelope("{\"\xff\":1}"), CodeParse, "", "UTF-8"},
		{"bad escape", envelope(`{"x":"\x"}`), CodeParse, "", "escape"},
		{"short escape", envelope(`{"x":"\u12"}`), CodeParse, "", "escape"},
		{"plus", envelope(`{"x":+1}`), CodeParse, "", "no JSON value"},
		{"leading zero", envelope(`{"x":01}`), CodeParse, "", "missing"},
		{"bare fraction", envelope(`{"x":1.}`), CodeParse, "", "number"},
		{"bare exponent", envelope(`{"x":1e}`), CodeParse, "", "number"},
		{"bare minus", envelope(`{"x":-}`), CodeParse, "", "number"},
		{"NaN", envelope(`{"x":NaN}`), CodeParse, "", "no JSON value"},
		{"half a literal", envelope(`{"x":tru}`), CodeParse, "", "no JSON value"},
		{"single quotes", envelope(`{'x':1}`), CodeParse, "", "name is missing"},
		{"comment", envelope(`{/**/}`), CodeParse, "", "name is missing"},
		{"syntax counts before meaning", `{"jsonrpc":"1.0","id":1,"method":"ping"`, CodeParse, "", ""},

		{"scalar", `"x"`, CodeInvalidRequest, "", "object"},
		{"empty object", `{}`, CodeInvalidRequest, "", "jsonrpc"},
		{"old version", `{"jsonrpc":"1.0","id":4,"method":"ping"}`, CodeInvalidRequest, "4", "jsonrpc"},
		{"version is a number", `{"jsonrpc":2.0,"id":4,"method":"ping"}`, CodeInvalidRequest, "4", "jsonrpc"},
		{"no version", `{"id":4,"method":"ping"}`, CodeInvalidRequest, "4", "jsonrpc"},
		{"no method", `{"jsonrpc":"2.0","id":4}`, CodeInvalidRequest, "4", "method"},
		{"method is a number", `{"jsonrpc":"2.0","id":4,"method":1}`, CodeInvalidRequest, "4", "method"},
		{"id null", `{"jsonrpc":"2.0","id":null,"method":"ping"}`, CodeInvalidRequest, "", "id"},
		{"id true", `{"jsonrpc":"2.0","id":true,"method":"ping"}`, CodeInvalidRequest, "", "id"},
		{"id object", `{"jsonrpc":"2.0","id":{},"method":"ping"}`, CodeInvalidRequest, "", "id"},
		{"two ids", `{"jsonrpc":"2.0","id":1,"method":"ping","id":2}`, CodeInvalidRequest, "", `"id" twice`},
		{"method and result", `{"jsonrpc":"2.0","id":1,"method":"ping","result":1}`, CodeInvalidRequest, "", "neither"},
		{"result and error", `{"jsonrpc":"2.0","id":1,"error":{},"result":1}`, CodeInvalidRequest, "", "either"},
		{"result without id", `{"jsonrpc":"2.0","result":1}`, CodeInvalidRequest, "", "id"},
		{"error is a string", `{"jsonrpc":"2.0","id":1,"error":"x"}`, CodeInvalidRequest, "", "error"},
		{"params array", envelope(`[1]`), CodeInvalidRequest, `"é"`, "params"},
		{"meta array", envelope(`{"_meta":[]}`), CodeInvalidRequest, `"é"`, "_meta"},
		{"name twice", envelope(`{"name":"safe","name":"danger"}`), CodeInvalidRequest, `"é"`, `"name" twice`},
		{"name twice, once escaped", envelope(`{"name":"safe","n\u0061me":"danger"}`), CodeInvalidRequest, `"é"`, `"name" twice`},
		{"name in capitals", envelope(`{"name":"safe","NAME":"danger"}`), CodeInvalidRequest, `"é"`, `"NAME"`},
		{"name in capitals alone", envelope(`{"Name":"danger"}`), CodeInvalidRequest, `"é"`, `"Name"`},
		{"escaped capital", envelope(`{"\u004eame":"danger"}`), CodeInvalidRequest, `"é"`, `"Name"`},
		{"Kelvin sign", envelope("{\"tas\u212aId\":1}"), CodeInvalidRequest, `"é"`, "taskId"},
		{"Kelvin sign, escaped", envelope(`{"progressTo\u212aen":1}`), CodeInvalidRequest, `"é"`, "progressToken"},
		{"long s", envelope("{\"argument\u017f\":{}}"), CodeInvalidRequest, `"é"`, "arguments"},
		{"long s in the envelope", "{\"jsonrpc\":\"2.0\",\"id\":3,\"method\":\"m\",\"param\u017f\":{}}", CodeInvalidRequest, "3", "params"},
		{"Method", `{"jsonrpc":"2.0","id":3,"method":"m","Method":"n"}`, CodeInvalidRequest, "3", "Method"},
		{"unknown name twice", envelope(`{"zz":1,"z\u007a":2}`), CodeInvalidRequest, `"é"`, `"zz" twice`},
		{"in ref", envelope(`{"ref":{"type":"ref/prompt","name":"a","Name":"b"}}`), CodeInvalidRequest, `"é"`, "params.ref"},
		{"in meta", envelope(`{"_meta":{"progressToken":1,"ProgressToken":2}}`), CodeInvalidRequest, `"é"`, "params._meta"},
		{"half a surrogate pair in a name", envelope(`{"name":"\ud800x"}`), CodeInvalidRequest, `"é"`, "surrogate"},
		{"half a surrogate pair in a key", envelope(`{"\udc00":"x"}`), CodeInvalidRequest, `"é"`, "surrogate"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m, err := Scan([]byte(tt.body), Limits{})
			e := asError(t, err)
			if m.Kind != Invalid {
				t.Errorf("kind is %v", m.Kind)
			}
			if e.Code != tt.code || e.Status != 400 || string(e.ID) != tt.id || !strings.Contains(e.Message, tt.says) {
				t.Errorf("got %d %d id %q %q; want %d with %q and id %q", e.Status, e.Code, e.ID, e.Message, tt.code, tt.says, tt.id)
			}
		})
	}
}

func TestManyUnknownNamesStayCheap(t *testing.T) {
	var b bytes.Buffer
	b.WriteString(`{"jsonrpc":"2.0","id":1,"method":"m","params":{`)
	for i := range 200_000 { // quadratic work would take minutes
		b.WriteByte('"')
		b.WriteString(strings.Repeat("k", 3))
		b.Write(append(b.AvailableBuffer(), byte('a'+i%26), byte('a'+i/26%26), byte('a'+i/676%26), byte('a'+i/17576%26)))
		b.WriteString(`":0,`)
	}
	twice := b.String() + `"kkkaaaa":1}}`
	if _, err := Scan([]byte(b.String()+`"x":1}}`), Limits{}); err != nil {
		t.Error(err)
	}
	if _, err := Scan([]byte(twice), Limits{}); err == nil {
		t.Error("a name given twice among many was taken")
	}
}

func TestLimits(t *testing.T) {
	deep := func(n int) []byte { // n containers in all
		n -= 2
		return []byte(`{"jsonrpc":"2.0","id":1,"method":"m","params":{"x":` + strings.Repeat("[", n) + strings.Repeat("]", n) + `}}`)
	}
	for _, tt := range []struct {
		name   string
		body   []byte
		lim    Limits
		status int // 0: good
	}{
		{"at the default depth", deep(256), Limits{}, 0},
		{"below the default depth", deep(257), Limits{}, 400},
		{"at a depth", deep(5), Limits{Depth: 5}, 0},
		{"below a depth", deep(6), Limits{Depth: 5}, 400},
		{"at the greatest depth", deep(1024), Limits{Depth: 1 << 30}, 0},
		{"below the greatest depth", deep(1025), Limits{Depth: 1 << 30}, 400},
		{"size", deep(3), Limits{Bytes: len(deep(3))}, 0},
		{"too large", deep(3), Limits{Bytes: len(deep(3)) - 1}, 413},
		{"objects and arrays", []byte(`{"jsonrpc":"2.0","id":1,"method":"m","params":{"x":[{"a":[{}]},{"a":[{}]}]}}`), Limits{Depth: 6}, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Scan(tt.body, tt.lim)
			if tt.status == 0 && err != nil || tt.status != 0 && asError(t, err).Status != tt.status {
				t.Errorf("error %v, want status %d", err, tt.status)
			}
		})
	}
}

func TestScanAllocatesNothing(t *testing.T) {
	body := structured(10_000)
	if n := testing.AllocsPerRun(10, func() {
		if _, err := Scan(body, Limits{}); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("Scan made %v allocations", n)
	}
}

func TestScanBatch(t *testing.T) {
	batch, err := ScanBatch([]byte(` [ {"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"x"}} , {"jsonrpc":"2.0","method":"notifications/initialized"},{"jsonrpc":"2.0","id":"r","result":{}} ] `), Limits{})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for i := range batch {
		got = append(got, batch[i].Kind.String()+" "+string(batch[i].RawID())+" "+batch[i].Name.String())
	}
	if diff := cmp.Diff([]string{"request 1 x", "notification  ", `response "r" `}, got); diff != "" {
		t.Errorf("batch (-want +got):\n%s", diff)
	}
	ping := `{"jsonrpc":"2.0","id":1,"method":"ping"}`
	for _, tt := range []struct {
		name, body string
		code       int
		says       string
	}{
		{"empty", `[]`, CodeInvalidRequest, "empty"},
		{"no array", ping, CodeInvalidRequest, "no array"},
		{"broken", `[` + ping, CodeParse, "']'"},
		{"no comma", `[` + ping + ping + `]`, CodeParse, "','"},
		{"comma at the end", `[` + ping + `,]`, CodeParse, "no JSON value"},
		{"trailing bytes", `[` + ping + `]]`, CodeParse, "follow"},
		{"bad element", `[` + ping + `,{"jsonrpc":"2.0"}]`, CodeInvalidRequest, "element 1"},
		{"nested", `[[` + ping + `]]`, CodeInvalidRequest, "is a batch"},
		{"too many", `[` + ping + `,` + ping + `,` + ping + `]`, CodeInvalidRequest, "more than 2"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := ScanBatch([]byte(tt.body), Limits{Batch: 2})
			if e := asError(t, err); e.Code != tt.code || !strings.Contains(e.Message, tt.says) {
				t.Errorf("got %v; want %d with %q", e, tt.code, tt.says)
			}
		})
	}
}

func TestMembers(t *testing.T) {
	var got []string
	f := func(name, value []byte) error {
		got = append(got, string(name)+"="+string(value))
		return nil
	}
	if err := Members([]byte(` {"a":1, "b\n" : {"x":[1, 2]} } `), Limits{}, []string{"a"}, f); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"a=1", "b\n={\"x\":[1, 2]}"}, got); diff != "" {
		t.Errorf("members (-want +got):\n%s", diff)
	}
	for _, bad := range []string{`[]`, `{"a":1,"a":2}`, `{"A":1}`, `{"a":1}x`, `{`, ``} {
		if err := Members([]byte(bad), Limits{}, []string{"a"}, f); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
	stop := errors.New("stop")
	if err := Members([]byte(`{"a":1}`), Limits{}, nil, func(_, _ []byte) error { return stop }); err != stop {
		t.Errorf("error %v is not the callback's", err)
	}
}

func TestUnambiguous(t *testing.T) {
	for _, tt := range []struct {
		value string
		good  bool
	}{
		{`{"a":[{"a":1},{"a":2}],"b":{"a":3}}`, true}, {`[]`, true}, {`1`, true}, {` "x" `, true}, {`{"straße":1,"strasse":2}`, true},
		{`{"a":1,"a":1}`, false}, {`{"x":[{"path":1,"Path":1}]}`, false}, {`{"k":1,"\u212a":1}`, false}, {`{"Σ":1,"ς":2}`, false},
		{`{"é":1,"É":2}`, false}, {`{"a":1}}`, false}, {`{"a"}`, false}, {`[1,]`, false}, {``, false}, {`{"\ud800":1}`, false},
	} {
		if err := Unambiguous([]byte(tt.value), Limits{}); (err == nil) != tt.good {
			t.Errorf("%s: error %v, want good %v", tt.value, err, tt.good)
		}
	}
	if err := Unambiguous(bytes.Repeat([]byte("["), 1<<20), Limits{}); err == nil {
		t.Error("a very deep value was taken")
	}
}

func TestStringsAtEveryOffset(t *testing.T) {
	for _, special := range []string{`\"`, `\\`, `\u0041`, "é", "日", "😀", "\x7f", " ", "!", "#"} {
		for n := range 70 { // across the borders of words
			text := strings.Repeat("x", n) + special + strings.Repeat("y", 70-n)
			body := []byte(`{"jsonrpc":"2.0","id":1,"method":"m","params":{"name":"` + text + `"}}`)
			m, err := Scan(body, Limits{})
			if err != nil {
				t.Fatalf("%d %q: %v", n, special, err)
			}
			var want string
			if err := json.Unmarshal([]byte(`"`+text+`"`), &want); err != nil || m.Name.String() != want {
				t.Fatalf("%d %q: name is %q, want %q (%v)", n, special, m.Name, want, err)
			}
		}
	}
	for _, bad := range []string{"\x00", "\x1f", "\n", "\x80", "\xff", "\xc3", "\xed\xa0\x80", "\xf4\x90\x80\x80"} {
		for n := range 70 {
			if _, err := Scan([]byte(`{"jsonrpc":"2.0","id":1,"method":"m","params":{"x":"`+strings.Repeat("x", n)+bad+strings.Repeat("y", 70-n)+`"}}`), Limits{}); err == nil {
				t.Fatalf("%q at %d was taken", bad, n)
			}
		}
	}
}

func TestElements(t *testing.T) {
	var got []string
	f := func(value []byte) error {
		got = append(got, string(value))
		return nil
	}
	if err := Elements([]byte(` [ "a" ,{"x":[1, 2]},null] `), Limits{}, f); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{`"a"`, `{"x":[1, 2]}`, "null"}, got); diff != "" {
		t.Errorf("elements (-want +got):\n%s", diff)
	}
	for _, bad := range []string{`{}`, `[1`, `[1]x`, ``, `[01]`} {
		if err := Elements([]byte(bad), Limits{}, func([]byte) error { t.Errorf("%q: f was called", bad); return nil }); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
	if err := Elements([]byte(`[]`), Limits{}, f); err != nil {
		t.Error(err)
	}
	stop := errors.New("stop")
	if err := Elements([]byte(`[1]`), Limits{}, func([]byte) error { return stop }); err != stop {
		t.Errorf("error %v is not the callback's", err)
	}
}

func TestErrorCode(t *testing.T) {
	for _, tt := range []struct {
		body string
		code int
		ok   bool
	}{
		{`"error":{"message":"m","code":-32601}`, -32601, true}, {`"error":{"code":0}`, 0, true}, {`"error":{}`, 0, false},
		{`"error":{"code":"x"}`, 0, false}, {`"error":{"code":1,"code":2}`, 0, false}, {`"result":{"code":1}`, 0, false},
	} {
		m, err := Scan([]byte(`{"jsonrpc":"2.0","id":1,`+tt.body+`}`), Limits{})
		if err != nil {
			t.Fatal(err)
		}
		if code, ok := m.ErrorCode(); ok != tt.ok || ok && code != tt.code {
			t.Errorf("%s: %d %v, want %d %v", tt.body, code, ok, tt.code, tt.ok)
		}
	}
}
