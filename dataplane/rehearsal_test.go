package dataplane

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/sluicegate/sluice/dataplane/snapshot"
	policyv1 "github.com/sluicegate/sluice/proto/gen/sluice/policy/v1"
)

// A rehearsal decides as a proxy does, and shows what a target would be sent.
func TestRehearsal(t *testing.T) {
	w := behind("a=http://a.example.com:80", "b=http://b.example.com:80")
	w.policies["a"] = &policyv1.Policies{
		McpAuthorization:      &policyv1.McpAuthorization{Rules: []*policyv1.AuthorizationRule{{Rule: &policyv1.AuthorizationRule_Allow{Allow: `mcp.tool.name == "read"`}}}},
		RequestHeaderModifier: &policyv1.HeaderModifier{Set: map[string]*policyv1.Value{"x-tenant": {Kind: &policyv1.Value_Value{Value: "acme"}}}},
		BackendAuth: &policyv1.BackendAuth{Method: &policyv1.BackendAuth_Key{Key: &policyv1.KeyAuth{Credentials: []*policyv1.LocatedCredential{
			{Credential: &policyv1.Credential{Source: &policyv1.Credential_Secret{Secret: "default/secret/key"}}}}}}},
	}
	w.secrets = map[string]string{"key": "k1"}
	var seen []Sent
	r := rehearse(t, w, func(s Sent) Answer {
		var m struct {
			ID     json.RawMessage
			Method string
		}
		if err := json.Unmarshal(s.Body, &m); err != nil {
			t.Fatal(err)
		}
		result := map[string]string{
			"server/discover": `{"resultType":"complete","supportedVersions":["2026-07-28"],"capabilities":{"tools":{}},"_meta":{}}`,
			"tools/list":      `{"resultType":"complete","tools":[{"name":"read","inputSchema":{}},{"name":"write","inputSchema":{}}]}`,
			"tools/call":      `{"resultType":"complete","content":[{"type":"text","text":"done"}]}`,
		}[m.Method]
		if m.Method == "tools/call" {
			seen = append(seen, s)
		}
		return Answer{Header: http.Header{"Content-Type": {"application/json"}}, Body: fmt.Appendf(nil, `{"jsonrpc":"2.0","id":%s,"result":%s}`, m.ID, result)}
	})

	if got := string(ask(t, r, "tools/list", "", `{}`).Body); !strings.Contains(got, `"a_read"`) || strings.Contains(got, `"a_write"`) || !strings.Contains(got, `"b_write"`) {
		t.Errorf("listed: %s", got)
	}
	if p := ask(t, r, "tools/call", "a_write", `{"name":"a_write"}`); !p.Refused || !strings.Contains(string(p.Body), "Unknown tool: a_write") || len(seen) > 0 {
		t.Errorf("a_write: %+v %s, sent %v", p, p.Body, seen)
	}
	if p := ask(t, r, "tools/call", "a_read", `{"name":"a_read"}`); p.Refused || p.Target != "a" || !strings.Contains(string(p.Body), "done") || !strings.Contains(p.Rule, "rules[0]") {
		t.Errorf("a_read: %+v %s", p, p.Body)
	}
	if len(seen) != 1 || seen[0].Header.Get("X-Tenant") != "acme" || seen[0].Header.Get("Authorization") != "Bearer k1" ||
		seen[0].URL.String() != "http://a.example.com/" || !strings.Contains(string(seen[0].Body), `"name":"read"`) {
		t.Errorf("sent %+v", seen)
	}
}

// What a proxy would refuse is an error, with its place.
func TestRehearsalOfWhatDoesNotBuild(t *testing.T) {
	w := behind("a=http://a.example.com:80")
	w.policies["only"] = &policyv1.Policies{}
	w.policies["a"] = &policyv1.Policies{McpAuthorization: &policyv1.McpAuthorization{}}
	if _, err := NewRehearsal(rehearsalOf(w, nil)); err == nil || !strings.Contains(err.Error(), "default/binding/main/tools/a: policies.mcpAuthorization.rules: is empty") {
		t.Errorf("got %v", err)
	}
}

func rehearsalOf(w *world, play func(Sent) Answer) RehearsalConfig {
	cfg := RehearsalConfig{Tenant: "default", Play: play}
	for _, r := range w.update(1).Set {
		cfg.Resources = append(cfg.Resources, RehearsalResource{Secret: r.Type == snapshot.SecretType, Name: r.Name, Version: r.Version, Body: r.Body})
	}
	return cfg
}

func rehearse(t *testing.T, w *world, play func(Sent) Answer) *Rehearsal {
	t.Helper()
	r, err := NewRehearsal(rehearsalOf(w, play))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// ask sends a request of 2026-07-28; params are an object, to which _meta is added.
func ask(t *testing.T, r *Rehearsal, method, name, params string) Performance {
	t.Helper()
	meta := `"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientInfo":{"name":"t","version":"1"},"io.modelcontextprotocol/clientCapabilities":{}}`
	if params != "{}" {
		meta = "," + meta
	}
	body := `{"jsonrpc":"2.0","id":1,"method":"` + method + `","params":` + params[:len(params)-1] + meta + `}}`
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://gateway.example.com/mcp", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.RemoteAddr = "203.0.113.1:4000"
	req.Header = http.Header{"Content-Type": {"application/json"}, "Accept": {"application/json, text/event-stream"}, "Mcp-Protocol-Version": {"2026-07-28"}, "Mcp-Method": {method}}
	if name != "" {
		req.Header.Set("Mcp-Name", name)
	}
	return r.Serve(testPort, req, time.Now())
}
