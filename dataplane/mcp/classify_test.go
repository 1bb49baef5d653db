package mcp

import (
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const meta2026 = `"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{}}`

func TestClassify(t *testing.T) {
	header := func(pairs ...string) http.Header {
		h := http.Header{}
		for i := 0; i < len(pairs); i += 2 {
			h.Add(pairs[i], pairs[i+1])
		}
		return h
	}
	request := func(method, params string) string {
		return `{"jsonrpc":"2.0","id":7,"method":"` + method + `","params":{` + params + `}}`
	}
	const version, session = "MCP-Protocol-Version", "Mcp-Session-Id"
	list, call := request("tools/list", meta2026), request("tools/call", `"name":"a","arguments":{},`+meta2026)
	onlyStateless, onlySessions := []Revision{V20260728}, []Revision{V20250618, V20251125}
	for _, tt := range []struct {
		name   string
		method string // "": POST
		header http.Header
		body   string
		serves []Revision
		want   Verdict
		status int // of the refusal
		code   int
		id     string
	}{
		// Row 1: the stateless era.
		{name: "stateless list", header: header(version, "2026-07-28", "Mcp-Method", "tools/list"), body: list, want: Verdict{Action: Call, Era: Stateless, Revision: V20260728}},
		{name: "stateless call, session headers ignored", header: header(version, "2026-07-28", "mcp-method", "tools/call", "Mcp-Name", "a", session, "x", "Last-Event-ID", "y"), body: call,
			want: Verdict{Action: Call, Era: Stateless, Revision: V20260728}},
		{name: "header missing", header: header("Mcp-Method", "tools/list"), body: list, status: 400, code: CodeHeaderMismatch, id: "7"},
		{name: "header and body differ", header: header(version, "2025-11-25", "Mcp-Method", "tools/list"), body: list, status: 400, code: CodeHeaderMismatch, id: "7"},
		{name: "header known, body strange", header: header(version, "2026-07-28"), body: strings.Replace(list, "2026-07-28", "v999.0.0", 1), status: 400, code: CodeHeaderMismatch, id: "7"},
		{name: "header twice", header: header(version, "2026-07-28", version, "2025-11-25", "Mcp-Method", "tools/list"), body: list, status: 400, code: CodeHeaderMismatch, id: "7"},
		{name: "no _meta", header: header(version, "2026-07-28", "Mcp-Method", "tools/list"), body: request("tools/list", ``), status: 400, code: CodeInvalidParams, id: "7"},
		{name: "no version in _meta", header: header(version, "2026-07-28"), body: request("server/discover", `"_meta":{"io.modelcontextprotocol/clientCapabilities":{}}`), status: 400, code: CodeInvalidParams, id: "7"},
		{name: "version is a number", header: header(version, "2026-07-28"), body: request("server/discover", `"_meta":{"io.modelcontextprotocol/protocolVersion":1}`), status: 400, code: CodeInvalidParams, id: "7"},
		{name: "no capabilities in _meta", header: header(version, "2026-07-28", "Mcp-Method", "server/discover"), body: request("server/discover", `"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28"}`), status: 400, code: CodeInvalidParams, id: "7"},
		{name: "capabilities are a list", header: header(version, "2026-07-28", "Mcp-Method", "server/discover"), body: strings.Replace(request("server/discover", meta2026), "{}", "[]", 1), status: 400, code: CodeInvalidParams, id: "7"},
		{name: "unknown version in both", header: header(version, "v999.0.0"), body: strings.Replace(list, "2026-07-28", "v999.0.0", 1), status: 400, code: CodeUnsupportedVersion, id: "7"},
		{name: "version to come", header: header(version, "2099-01-01"), body: strings.Replace(list, "2026-07-28", "2099-01-01", 1), status: 400, code: CodeUnsupportedVersion, id: "7"},
		{name: "session version in both", header: header(version, "2025-11-25"), body: strings.Replace(list, "2026-07-28", "2025-11-25", 1), serves: onlyStateless, status: 400, code: CodeUnsupportedVersion, id: "7"},
		{name: "stateless not served", header: header(version, "2026-07-28", "Mcp-Method", "tools/list"), body: list, serves: onlySessions, status: 400, code: CodeUnsupportedVersion, id: "7"},
		{name: "removed: initialize", header: header(version, "2026-07-28", "Mcp-Method", "initialize"), body: request("initialize", `"protocolVersion":"2026-07-28",`+meta2026), status: 404, code: CodeMethodNotFound, id: "7"},
		{name: "removed: ping", header: header(version, "2026-07-28", "Mcp-Method", "ping"), body: request("ping", meta2026), status: 404, code: CodeMethodNotFound, id: "7"},
		{name: "removed: setLevel", header: header(version, "2026-07-28", "Mcp-Method", "logging/setLevel"), body: request("logging/setLevel", meta2026), status: 404, code: CodeMethodNotFound, id: "7"},
		{name: "removed: subscribe", header: header(version, "2026-07-28", "Mcp-Method", "resources/subscribe"), body: request("resources/subscribe", meta2026), status: 404, code: CodeMethodNotFound, id: "7"},
		{name: "servers' method", header: header(version, "2026-07-28", "Mcp-Method", "sampling/createMessage"), body: request("sampling/createMessage", meta2026), status: 404, code: CodeMethodNotFound, id: "7"},
		{name: "an extension's method", header: header(version, "2026-07-28", "Mcp-Method", "x/y"), body: request("x/y", meta2026), want: Verdict{Action: Call, Era: Stateless, Revision: V20260728}},
		{name: "no Mcp-Method", header: header(version, "2026-07-28"), body: list, status: 400, code: CodeHeaderMismatch, id: "7"},
		{name: "other Mcp-Method", header: header(version, "2026-07-28", "Mcp-Method", "prompts/list"), body: list, status: 400, code: CodeHeaderMismatch, id: "7"},
		{name: "no Mcp-Name", header: header(version, "2026-07-28", "Mcp-Method", "tools/call"), body: call, status: 400, code: CodeHeaderMismatch, id: "7"},
		{name: "other Mcp-Name", header: header(version, "2026-07-28", "Mcp-Method", "tools/call", "Mcp-Name", "b"), body: call, status: 400, code: CodeHeaderMismatch, id: "7"},
		{name: "stateless notification", header: header(version, "2026-07-28"), body: `{"jsonrpc":"2.0","method":"notifications/cancelled"}`, want: Verdict{Action: Call, Era: Stateless, Revision: V20260728}},
		{name: "stateless notification of a version to come", header: header(version, "2099-01-01"), body: `{"jsonrpc":"2.0","method":"x"}`, status: 400, code: CodeUnsupportedVersion},
		{name: "stateless response", header: header(version, "2026-07-28"), body: `{"jsonrpc":"2.0","id":1,"result":{}}`, status: 400, code: CodeInvalidRequest},
		{name: "stateless batch", header: header(version, "2026-07-28"), body: `[` + list + `]`, status: 400, code: CodeInvalidRequest},
		{name: "nothing said, only stateless served", body: request("tools/list", ``), serves: onlyStateless, status: 400, code: CodeHeaderMismatch, id: "7"},

		// Row 2: initialize.
		{name: "initialize", body: request("initialize", `"protocolVersion":"2025-06-18"`), want: Verdict{Action: Initialize, Era: Sessions, Revision: V20250618}},
		{name: "initialize with a header", header: header(version, "2025-11-25"), body: request("initialize", `"protocolVersion":"2025-11-25"`), want: Verdict{Action: Initialize, Era: Sessions, Revision: V20251125}},
		{name: "initialize at 2026-07-28", body: request("initialize", `"protocolVersion":"2026-07-28"`), want: Verdict{Action: Initialize, Era: Sessions, Revision: V20251125}},
		{name: "initialize at an unknown version", body: request("initialize", `"protocolVersion":"1900-01-01"`), want: Verdict{Action: Initialize, Era: Sessions, Revision: V20251125}},
		{name: "initialize at a version not served", body: request("initialize", `"protocolVersion":"2024-11-05"`), serves: onlySessions, want: Verdict{Action: Initialize, Era: Sessions, Revision: V20251125}},
		{name: "initialize without a version", body: request("initialize", ``), status: 400, code: CodeInvalidParams, id: "7"},
		{name: "initialize in a session", header: header(session, "x"), body: request("initialize", `"protocolVersion":"2025-06-18"`), status: 400, code: CodeInvalidRequest, id: "7"},
		{name: "initialize, only stateless served", body: request("initialize", `"protocolVersion":"2025-06-18"`), serves: onlyStateless, status: 400, code: CodeUnsupportedVersion, id: "7"},

		// Rows 3 and 4: in a session, or without one.
		{name: "in a session", header: header(session, "x", version, "2025-06-18"), body: request("tools/list", ``), want: Verdict{Action: SessionPost, Era: Sessions, Revision: V20250618, Session: "x"}},
		{name: "response in a session", header: header(session, "x", version, "2025-06-18"), body: `{"jsonrpc":"2.0","id":1,"result":{}}`, want: Verdict{Action: SessionPost, Era: Sessions, Revision: V20250618, Session: "x"}},
		{name: "old client in a session", header: header(session, "x"), body: request("tools/list", ``), want: Verdict{Action: SessionPost, Era: Sessions, Revision: V20250326, Session: "x"}},
		{name: "bad version in a session", header: header(session, "x", version, "invalid"), body: request("tools/list", ``), status: 400, code: CodeInvalidRequest, id: "7"},
		{name: "version not served in a session", header: header(session, "x", version, "2025-03-26"), body: request("tools/list", ``), serves: onlySessions, status: 400, code: CodeInvalidRequest, id: "7"},
		{name: "two sessions", header: header(session, "x", session, "y"), body: request("tools/list", ``), status: 400, code: CodeInvalidRequest, id: "7"},
		{name: "no session", header: header(version, "2025-06-18"), body: request("tools/list", ``), status: 400, code: CodeInvalidRequest, id: "7"},
		{name: "nothing", body: request("tools/list", ``), status: 400, code: CodeInvalidRequest, id: "7"},

		// Rows 5 and 6: GET and DELETE.
		{name: "GET", method: "GET", header: header(session, "x", version, "2025-06-18", "Accept", "text/event-stream", "Last-Event-ID", "9"), want: Verdict{Action: SessionGet, Era: Sessions, Revision: V20250618, Session: "x", LastID: "9"}},
		{name: "GET without Accept", method: "GET", header: header(session, "x"), status: 400, code: CodeInvalidRequest},
		{name: "GET without session", method: "GET", header: header("Accept", "text/event-stream"), status: 400, code: CodeInvalidRequest},
		{name: "GET, stateless", method: "GET", header: header(version, "2026-07-28", session, "x"), status: 405, code: CodeInvalidRequest},
		{name: "GET, only stateless served", method: "GET", header: header(session, "x"), serves: onlyStateless, status: 405, code: CodeInvalidRequest},
		{name: "DELETE", method: "DELETE", header: header(session, "x"), want: Verdict{Action: SessionEnd, Era: Sessions, Revision: V20250326, Session: "x"}},
		{name: "DELETE without session", method: "DELETE", status: 400, code: CodeInvalidRequest},
		{name: "DELETE, only stateless served", method: "DELETE", header: header(session, "x"), serves: onlyStateless, status: 405, code: CodeInvalidRequest},
		{name: "PUT", method: "PUT", status: 405, code: CodeInvalidRequest},

		// Row 7: batches.
		{name: "batch", header: header(session, "x"), body: `[` + request("tools/list", ``) + `]`, want: Verdict{Action: SessionPost, Era: Sessions, Revision: V20250326, Session: "x"}},
		{name: "batch with its version", header: header(session, "x", version, "2025-03-26"), body: `[` + request("tools/list", ``) + `]`, want: Verdict{Action: SessionPost, Era: Sessions, Revision: V20250326, Session: "x"}},
		{name: "batch, later", header: header(session, "x", version, "2025-06-18"), body: `[` + request("tools/list", ``) + `]`, status: 400, code: CodeInvalidRequest},
		{name: "batch with initialize", header: header(session, "x"), body: `[` + request("initialize", ``) + `]`, status: 400, code: CodeInvalidRequest},
		{name: "batch without session", body: `[` + request("tools/list", ``) + `]`, status: 400, code: CodeInvalidRequest},
	} {
		t.Run(tt.name, func(t *testing.T) {
			x := Exchange{HTTPMethod: tt.method, Header: tt.header, Serves: tt.serves}
			if tt.method == "" {
				x.HTTPMethod = http.MethodPost
				m, err := Scan([]byte(tt.body), Limits{})
				if err != nil {
					t.Fatal(err)
				}
				if x.Message = &m; m.Kind == Batch {
					if x.Batch, err = ScanBatch(m.Body, Limits{}); err != nil {
						t.Fatal(err)
					}
				}
			}
			v, err := Classify(x)
			if tt.status == 0 {
				if err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(tt.want, v); diff != "" {
					t.Errorf("verdict (-want +got):\n%s", diff)
				}
				return
			}
			e := asError(t, err)
			if e.Status != tt.status || e.Code != tt.code || string(e.ID) != tt.id {
				t.Errorf("refused with %d %v id %q; want %d %d id %q", e.Status, e, e.ID, tt.status, tt.code, tt.id)
			}
			if v.Action != Refused || (e.Status == 405) != (e.Allow != "") {
				t.Errorf("action %v, Allow %q", v.Action, e.Allow)
			}
		})
	}
}

func TestUnsupportedVersionData(t *testing.T) {
	m, err := Scan([]byte(`{"jsonrpc":"2.0","id":301,"method":"server/discover","params":{"_meta":{"io.modelcontextprotocol/protocolVersion":"v\"9"}}}`), Limits{})
	if err != nil {
		t.Fatal(err)
	}
	_, err = Classify(Exchange{HTTPMethod: "POST", Header: http.Header{"Mcp-Protocol-Version": {`v"9`}}, Message: &m, Serves: []Revision{V20250618, V20260728}})
	want := `{"jsonrpc":"2.0","id":301,"error":{"code":-32022,"message":"Unsupported protocol version","data":{"supported":["2026-07-28","2025-06-18"],"requested":"v\"9"}}}`
	if diff := cmp.Diff(want, string(asError(t, err).Append(nil))); diff != "" {
		t.Errorf("answer (-want +got):\n%s", diff)
	}
}

func TestAccepts(t *testing.T) {
	for _, tt := range []struct {
		accept []string
		want   bool
	}{
		{nil, false}, {[]string{"application/json, text/event-stream"}, true}, {[]string{"application/json", "Text/Event-Stream;q=0.1"}, true},
		{[]string{"*/*"}, true}, {[]string{"text/*"}, true}, {[]string{"text/html"}, false}, {[]string{"text/event-stream; q=0"}, false}, {[]string{"text/event-stream;q=0.0, application/*"}, false},
	} {
		if got := Accepts(http.Header{"Accept": tt.accept}, "text/event-stream"); got != tt.want {
			t.Errorf("%q: %v", tt.accept, got)
		}
	}
}

func TestMethods(t *testing.T) {
	for _, tt := range []struct {
		method  string
		routing Routing
		sends   []Revision // in which a client may send it
	}{
		{"initialize", Lifecycle, revisions[:4]},
		{"server/discover", Lifecycle, revisions[4:]},
		{"tools/call", ByName, revisions},
		{"resources/read", ByURI, revisions},
		{"resources/subscribe", ByURI, revisions[:4]},
		{"completion/complete", ByRef, revisions},
		{"resources/templates/list", FanList, revisions},
		{"logging/setLevel", Broadcast, revisions[:4]},
		{"tasks/get", ByTask, revisions[3:]},
		{"tasks/result", ByTask, revisions[3:4]},
		{"tasks/update", ByTask, revisions[4:]},
		{"tasks/list", FanList, revisions[3:4]},
		{"subscriptions/listen", Listen, revisions[4:]},
		{"notifications/cancelled", ByRequest, revisions},
		{"notifications/roots/list_changed", Broadcast, revisions[:4]},
		{"elicitation/create", FromServer, nil},
		{"notifications/message", FromServer, nil},
		{"vendor/thing", Unknown, revisions},
	} {
		info := Methods(tt.method)
		if info.Routing != tt.routing || info.Notification != strings.HasPrefix(tt.method, "notifications/") {
			t.Errorf("%s: %+v", tt.method, info)
		}
		for _, r := range revisions {
			if got := r.MethodAllowed(tt.method); got != slices.Contains(tt.sends, r) {
				t.Errorf("%s in %s: %v", tt.method, r, got)
			}
		}
	}
	for l := Tools; l <= Templates; l++ {
		if info := Methods(l.Method()); info.List != l || info.Routing != FanList {
			t.Errorf("%s: %+v", l.Method(), info)
		}
	}
}

func TestTarget(t *testing.T) {
	for _, tt := range []struct{ body, want string }{
		{`"method":"tools/call","params":{"name":"n","uri":"u"}`, "n"}, {`"method":"resources/read","params":{"name":"n","uri":"u"}`, "u"},
		{`"method":"tasks/get","params":{"taskId":"t"}`, "t"}, {`"method":"tools/list"`, ""}, {`"method":"prompts/get","params":{"name":""}`, ""},
		{`"method":"tools/call","params":{}`, "-32602"}, {`"method":"tools/call"`, "-32602"}, {`"method":"tools/call","params":null`, "-32602"}, {`"method":"resources/read","params":{"uri":5}`, "-32602"},
	} {
		m, err := Scan([]byte(`{"jsonrpc":"2.0","id":1,`+tt.body+`}`), Limits{})
		if err != nil {
			t.Fatal(err)
		}
		target, err := m.Target()
		if tt.want == "-32602" {
			if e := asError(t, err); e.Code != CodeInvalidParams || string(e.ID) != "1" {
				t.Errorf("%s: %v", tt.body, e)
			}
		} else if err != nil || target.String() != tt.want {
			t.Errorf("%s: %q %v, want %q", tt.body, target, err, tt.want)
		}
	}
}

func TestRevisions(t *testing.T) {
	var got []string
	for _, r := range append(Revisions(), "2099-01-01", "") {
		flags := []string{string(r), r.Era().String()}
		for name, has := range map[string]bool{"batch": r.AllowsBatch(), "header": r.SendsVersionHeader(), "sessions": r.HasSessions(), "resultType": r.HasResultType(), "asks": r.HasServerRequests(), "hangup": r.CancelsOnDisconnect()} {
			if has {
				flags = append(flags, name)
			}
		}
		slices.Sort(flags[2:])
		got = append(got, strings.Join(flags, " "))
	}
	if diff := cmp.Diff([]string{"2024-11-05 sessions asks sessions", "2025-03-26 sessions asks batch sessions", "2025-06-18 sessions asks header sessions",
		"2025-11-25 sessions asks header sessions", "2026-07-28 stateless hangup header resultType", "2099-01-01 none", " none"}, got); diff != "" {
		t.Errorf("revisions (-want +got):\n%s", diff)
	}
	if V20251125.ResourceNotFound() != -32002 || V20260728.ResourceNotFound() != -32602 {
		t.Error("resource not found has the wrong code")
	}
}
