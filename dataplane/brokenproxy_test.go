package dataplane

import (
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/sluicegate/sluice/dataplane/session"
	"github.com/sluicegate/sluice/internal/mcptest"
	xdsv1 "github.com/sluicegate/sluice/proto/gen/sluice/xds/v1"
)

// A proxy that was broken into has the session keys of its tenants, and read alice's ids when she came by. It seals what it
// likes, and here it has bob's credential alone.
type broken struct {
	codec      *session.Codec
	alice, bob session.Scope
}

func breakInto(t *testing.T, w *world, p *testProxy) *broken {
	t.Helper()
	var keys []session.Key
	for _, k := range w.sessionKeys() {
		keys = append(keys, session.Key{ID: [4]byte(k.GetId()), Secret: [32]byte(k.GetKey())})
	}
	codec, err := session.New(keys)
	if err != nil {
		t.Fatal(err)
	}
	scope := func(headers []string) session.Scope {
		r := httptest.NewRequest(http.MethodPost, p.URL, nil)
		r.Header.Set(headers[0], headers[1])
		route, err := p.store.Load().Route(testPort, r)
		if err != nil {
			t.Fatal(err)
		}
		principal, err := route.Authenticate(r)
		if err != nil {
			t.Fatal(err)
		}
		return session.Scope{Tenant: "default", Backend: "default/backend/tools", Principal: principal.ID}
	}
	return &broken{codec, scope(alice), scope(bob)}
}

// session makes alice's session bob's.
func (b *broken) session(t *testing.T, id string) string {
	t.Helper()
	state, err := b.codec.Decode(b.alice, id)
	if err != nil {
		t.Fatal(err)
	}
	forged, err := b.codec.Encode(b.bob, *state)
	if err != nil {
		t.Fatal(err)
	}
	return forged
}

// A call that waits for alice goes on for nobody else.
func TestBrokenProxyAndParkedCalls(t *testing.T) {
	w := behind(mcptest.NewServer(t, mcptest.Options{}).URL).withKeys()
	g := newGroup(t, w, 2)
	owner, mallory := g.proxies[0], g.proxies[1]
	b := breakInto(t, w, owner)
	key, state := owner.asked(t, alice...)
	call, err := b.codec.OpenCall(b.alice, state)
	if err != nil {
		t.Fatal(err)
	}
	for name, p := range map[string]*testProxy{"forwarded": mallory, "at the owner": owner} {
		if got := p.retry(t, `{"`+key+`":{"action":"accept","content":{"name":"Mallory"}}}`, b.codec.SealCall(b.bob, call), bob...); got.result(t).Error.Code != -32602 {
			t.Errorf("%s, bob goes on with alice's call: %d %s", name, got.status, got.body)
		}
	}
	if got := mallory.retry(t, accepted(key), state, alice...); textOf(t, got) != "Hello, Ada!" {
		t.Errorf("alice, after that: %d %s", got.status, got.body)
	}
}

// The parts of a session that live on its owner are its caller's alone.
func TestBrokenProxyAndSessions(t *testing.T) {
	child := mcptest.Stdio("serve")
	for name, target := range map[string]*xdsv1.Target{
		"stdio":   {Transport: &xdsv1.Target_Stdio{Stdio: &xdsv1.StdioTransport{Cmd: child.Path, Args: child.Args, Env: child.Env}}},
		"sse":     {Transport: &xdsv1.Target_Sse{Sse: endpointOf(mcptest.NewServer(t, mcptest.Options{SSE: true}).URL)}},
		"bridged": {Transport: &xdsv1.Target_Mcp{Mcp: endpointOf(statelessOnly(t))}},
	} {
		t.Run(name, func(t *testing.T) {
			w := behind().withKeys()
			target.Name, target.Backend = "it", "default/backend/tools"
			w.targets = append(w.targets, target)
			g := newGroup(t, w, 2)
			owner, mallory := g.proxies[0], g.proxies[1]
			b := breakInto(t, w, owner)
			hello := owner.post(t, "", `{"jsonrpc":"2.0","id":0,"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{"elicitation":{}},"clientInfo":{"name":"raw","version":"1"}}}`, alice...)
			id := hello.header.Get("Mcp-Session-Id")
			owner.post(t, id, `{"jsonrpc":"2.0","method":"notifications/initialized"}`, alice...)
			forged := b.session(t, id)

			call := owner.open(t, http.MethodPost, id, `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"elicit","arguments":{}}}`, alice...)
			question := mustJSON(call.next(t, "elicitation/create")["id"])
			reply := func(name string) string {
				return `{"jsonrpc":"2.0","id":` + question + `,"result":{"action":"accept","content":{"name":"` + name + `"}}}`
			}
			for what, body := range map[string]string{
				"answers": reply("Mallory"), "cancels": `{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":1}}`,
			} {
				if got := mallory.post(t, forged, body, bob...); what == "answers" && got.status < 400 {
					t.Errorf("bob %s: %d %s", what, got.status, got.body)
				}
			}
			if name != "bridged" { // there a call of bob's is his own, whatever session he names
				if got := mallory.post(t, forged, echo("echo", "in alice's child"), bob...); got.status != 404 {
					t.Errorf("bob calls in alice's session: %d %s", got.status, got.body)
				}
			}
			if got := mallory.do(t, http.MethodDelete, forged, "", bob...); got.status >= 500 {
				t.Errorf("bob deletes: %d %s", got.status, got.body)
			}
			if got := mallory.post(t, id, reply("Ada"), alice...); got.status != 202 {
				t.Errorf("alice answers: %d %s", got.status, got.body)
			}
			if got := mustJSON(call.next(t, "")); !strings.Contains(got, "Hello, Ada!") {
				t.Errorf("alice's call: %s", got)
			}
			if got := mallory.post(t, id, echo("echo", "still here"), alice...); !strings.Contains(got.body, "still here") {
				t.Errorf("alice, after that: %d %s", got.status, got.body)
			}
		})
	}
}

// Nobody else speaks into a stream of HTTP+SSE.
func TestBrokenProxyAndStreams(t *testing.T) {
	w := behind(mcptest.NewServer(t, mcptest.Options{}).URL).withKeys()
	w.ssePath = "/sse"
	g := newGroup(t, w, 2)
	owner, mallory := g.proxies[0], g.proxies[1]
	b := breakInto(t, w, owner)
	at := *owner
	at.URL = strings.TrimSuffix(owner.URL, "/mcp") + "/sse"
	stream := at.open(t, http.MethodGet, "", "", append(alice, "Accept", "text/event-stream")...)
	endpoint, err := url.Parse(<-stream.text)
	if err != nil {
		t.Fatal(err)
	}
	b.alice.Backend, b.bob.Backend = "default/route/main", "default/route/main"
	token, err := b.codec.OpenStream(b.alice, endpoint.Query().Get(sseParameter))
	if err != nil {
		t.Fatal(err)
	}
	from := *mallory
	from.URL = strings.TrimSuffix(mallory.URL, "/mcp") + "/sse?" + url.Values{sseParameter: {b.codec.SealStream(b.bob, token)}}.Encode()
	if got := from.post(t, "", `{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2024-11-05","capabilities":{},"clientInfo":{"name":"raw","version":"1"}}}`, bob...); got.status != 404 {
		t.Errorf("bob speaks in alice's stream: %d %s", got.status, got.body)
	}
}
