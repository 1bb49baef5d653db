package systemtest

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/sluicegate/sluice/internal/mcptest"
)

// What is wrong is told at its place with the way out, when a file is validated and when it is applied, and nothing of it is
// applied. What only the control plane can see, validate notes.
func TestBadInput(t *testing.T) {
	nowhere := httptest.NewServer(nil)
	nowhere.Close()
	f := newFleet(t, 1, "private-network")
	good := fmt.Sprintf("mcp:\n  port: %d\n  targets:\n  - {name: a, mcp: {host: \"http://h.example/\"}}\n", f.port)
	f.apply(good)
	onTarget := func(transport, policies string) string {
		return fmt.Sprintf("mcp:\n  port: %d\n  targets:\n  - name: a\n    %s\n    policies:\n      %s\n", f.port, transport, policies)
	}
	const http, stdio = `mcp: {host: "http://h.example/"}`, `stdio: {cmd: x}`
	onRoute := func(policies string) string {
		return fmt.Sprintf("binds:\n- port: %d\n  listeners:\n  - routes:\n    - policies:\n        %s\n      backends:\n      - {name: b, mcp: {targets: [{name: a, mcp: {host: \"http://h.example/\"}}]}}\n", f.port, policies)
	}
	for _, tt := range []struct {
		name, config string // the place of what is wrong is at ^
		says         string
		offline      string // what validate notes there instead; "": the same; "-": nothing
	}{
		{"a kind that acts before a target is known", onTarget(http, "^cors: {allowOrigins: ['*']}"), "set it at platform, tenant, listener, route", ""},
		{"TLS to a child", onTarget(stdio, "^backendTLS: {hostname: h}"), "remove it", ""},
		{"an agent that is a child", onTarget(stdio, "^a2a: {}"), "remove it", ""},
		{"a credential that a child has no place for", onTarget(stdio, "^backendAuth: {key: v}"), "name the child's environment variable", ""},
		{"a timeout at a target", onTarget(http, "^timeout: {requestTimeout: 1s}"), "timeout: 5s beside its policies", ""},
		{"an unknown kind", onTarget(http, "^mcpAuthorisation: {rules: ['true']}"), `did you mean "mcpAuthorization"?`, ""},
		{"a rule that ends too early", onTarget(http, "mcpAuthorization: {rules: [^'mcp.tool.name ==']}"), "something is missing at the end, at character 17", ""},
		{"a rule of an unknown field", onTarget(http, "mcpAuthorization: {rules: [^{deny: 'mcp.tol.name == \"x\"'}]}"), "mcp has method, tool.", ""},
		{"a header value that does not compile", onTarget(http, "requestHeaderModifier: {set: {X-A: {^expression: 'jwt.'}}}"), "cannot stand here", ""},
		{"a bucket's key that does not compile", onTarget(http, "localRateLimit: [{maxTokens: 1, fillInterval: 1s, ^key: 'jwt.sub +'}]"), "something is missing at the end", ""},
		{"a pattern that repeats too often", onTarget(http, "ai: {promptGuard: {request: [{regex: {rules: [{^pattern: 'x{2000}'}]}}]}}"), "beyond what RE2 takes", ""},
		{"a pattern with look-ahead", onTarget(http, "ai: {promptGuard: {response: [{regex: {rules: [{^pattern: '(?=x)'}]}}]}}"), "neither look-around nor back references", ""},
		{"a pattern that is too large", onTarget(http, "ai: {promptGuard: {request: [{regex: {rules: [{^pattern: '(abcdefghij){900}'}]}}]}}"), "split it into several rules", ""},
		{"an unknown secret", onTarget(http, "backendAuth: {key: {^secret: nope}}"), "apply a document with kind: Secret first", "it must exist when they are applied"},
		{"an unknown variable", onTarget(http, "backendAuth: {key: ^$SLUICE_TEST_NOT_SET}"), "give a default", ""},
		{"a file that is not granted", onTarget(http, "backendAuth: {key: {^file: /etc/key}}"), "sluice tenant allow", "-"},
		{"an identity that is not granted", onTarget(http, "backendAuth: {^gcp: {}}"), "identity=gcp", "-"},
		{"a JWKS that cannot be fetched", onRoute("jwtAuth: {issuer: 'https://i.example', ^jwks: {url: '" + nowhere.URL + "/jwks'}}"), "it must be reachable from there", "the control plane fetches it"},
		{"an issuer that cannot be found", onRoute("mcpAuthentication: ^{issuer: '" + nowhere.URL + "'}"), "it must be reachable from there", "the control plane fetches it"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f.t = t
			before, after, ok := strings.Cut(tt.config, "^")
			if !ok {
				t.Fatal("no place")
			}
			place := fmt.Sprintf("%d:%d: ", 1+strings.Count(before, "\n"), len(before)-strings.LastIndex(before, "\n"))
			file := write(t, "bad.yaml", before+after)
			if got := f.refused(t, before+after); !strings.Contains(got, "sluice.yaml:"+place) || !strings.Contains(got, tt.says) {
				t.Errorf("apply: want %s and %q\n%s", place, tt.says, got)
			}
			_, stderr, code := f.run("validate", "-f", file)
			switch tt.offline {
			case "":
				if code != 2 || !strings.Contains(stderr, "bad.yaml:"+place) || !strings.Contains(stderr, tt.says) {
					t.Errorf("validate: exit %d, want %s and %q\n%s", code, place, tt.says, stderr)
				}
			case "-": // grants are known to the control plane alone
				if code != 0 {
					t.Errorf("validate: exit %d\n%s", code, stderr)
				}
			default:
				if code != 0 || !regexp.MustCompile(`bad\.yaml:`+place+`note: .*`+tt.offline).MatchString(stderr) {
					t.Errorf("validate: exit %d, want a note at %s with %q\n%s", code, place, tt.offline, stderr)
				}
			}
		})
	}
	f.t = t
	if out := f.must("status"); !strings.Contains(out, "revision 2 (head 2): 1 of 1 connected proxies serve it") {
		t.Errorf("after all that:\n%s", out)
	}
}

// What fails when it runs fails closed on its own target, status says which and why, and the others go on.
func TestTroubleOfOneTarget(t *testing.T) {
	down := httptest.NewServer(nil)
	down.Close()
	var judges atomic.Bool
	judge := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if judges.Load() {
			fmt.Fprint(w, `{"action":"pass"}`)
		}
	}))
	defer judge.Close()
	page := func(status int, kind, body string) string {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", kind)
			w.WriteHeader(status)
			fmt.Fprint(w, body)
		}))
		t.Cleanup(s.Close)
		return fmt.Sprintf("mcp: {host: %q}", s.URL)
	}
	silent := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body) // or nobody sees that the proxy has left
		<-r.Context().Done()
	}))
	defer silent.Close()
	server := mcptest.NewServer(t, mcptest.Options{})
	secure := mcptest.NewServer(t, mcptest.Options{TLS: true})
	targets := []struct{ name, transport, policies, says string }{
		{"well", fmt.Sprintf("mcp: {host: %q}", server.URL), "{}", ""},
		{"judged", fmt.Sprintf("mcp: {host: %q}", server.URL), fmt.Sprintf("{ai: {promptGuard: {request: [{webhook: {url: %q}}]}}}", judge.URL), "policies.ai.promptGuard.request[0]: the answer is no JSON"},
		{"unjudged", fmt.Sprintf("mcp: {host: %q}", server.URL), fmt.Sprintf("{ai: {promptGuard: {request: [{webhook: {url: %q, failureMode: failOpen}}]}}}", down.URL), "connection refused"},
		{"tokenless", fmt.Sprintf("mcp: {host: %q}", server.URL), fmt.Sprintf("{backendAuth: {oauth: {tokenUrl: %q, clientId: c, clientSecret: hush-hush}}}", down.URL), "backendAuth"},
		{"untrusted", fmt.Sprintf("mcp: {host: %q}", secure.URL), "{}", "certificate"},
		{"gone", fmt.Sprintf("mcp: {host: %q}", down.URL), "{}", "connection refused"},
		{"keyless", fmt.Sprintf("mcp: {host: %q}", server.URL), "{backendAuth: {key: {file: /nowhere/key}}}", "/nowhere/key"},
		{"elsewhere", page(404, "text/plain", "404 page not found"), "{}", "answered 404 with text/plain, which is no MCP: is its URL that of an MCP endpoint?"},
		{"login", page(200, "text/html", "<html>"), "{}", "answered 200 with text/html, which is no MCP"},
		{"moved", page(308, "text/html", ""), "{}", "redirects are not followed"},
		{"refusing", page(401, "text/plain", ""), "{}", "refused the proxy's credentials (401)"},
		{"garbled", page(200, "application/json", `{"jsonrpc":`), "{}", "cannot be read: mcp: no valid JSON"},
		{"silent", fmt.Sprintf("timeout: 1s, mcp: {host: %q}", silent.URL), "{}", "no answer within the target's timeout"},
		{"babbler", `timeout: 1s, stdio: {cmd: sh, args: ["-c", "while read l; do echo Starting; done"]}`, "{}", "no answer within the target's timeout; it sent what is no message"},
		{"quitter", `stdio: {cmd: sh, args: ["-c", "exit 3"]}`, "{}", "the process ended: exit status 3"},
	}
	f := newFleet(t, 1, "private-network,file=/nowhere/*,stdio=sh")
	var routes, backends strings.Builder
	for _, x := range targets {
		fmt.Fprintf(&routes, "    - {name: %[1]s, matches: [{path: {pathPrefix: /%[1]s}}], backends: [{backend: %[1]s}]}\n", x.name)
		fmt.Fprintf(&backends, "- {name: %[1]s, mcp: {targets: [{name: %[1]s, %[2]s, policies: %[3]s}]}}\n", x.name, x.transport, x.policies)
	}
	config := fmt.Sprintf("binds:\n- port: %d\n  listeners:\n  - routes:\n%sbackends:\n%s", f.port, routes.String(), backends.String())
	if stdout, stderr, code := f.run("apply", "-f", write(t, "sluice.yaml", config), "--wait", "--timeout", "30s"); code != 4 || !strings.Contains(stderr, "target/keyless/keyless: policies.backendAuth.key") {
		t.Fatalf("apply: exit %d\n%s%s", code, stdout, stderr)
	}
	works := func(name string) bool {
		url := f.endpoint(0, "/"+name)
		got := knock(t, url, nil)
		if got.status != 200 {
			return false
		}
		return strings.Contains(handshake(t, url, nil).call(t, url, "echo", `{"text":"hi"}`).body, `"text":"hi"`)
	}
	for _, x := range targets {
		if got, want := works(x.name), x.name == "well" || x.name == "unjudged"; got != want {
			t.Errorf("%s works: %v, want %v", x.name, got, want)
		}
	}
	line := func(status, name string) string {
		return regexp.MustCompile(`(?m)^target/` + name + `/.*$`).FindString(status)
	}
	for _, x := range targets {
		if x.says == "" {
			continue
		}
		until(t, "status tells of "+x.name, func() bool {
			found := line(f.must("status"), x.name)
			return strings.Contains(found, x.says) && strings.Contains(found, "p0") && (strings.Contains(found, "Degraded") || strings.Contains(found, "Refused"))
		})
	}
	if found := line(f.must("status"), "well"); found != "" {
		t.Errorf("of what is well: %s", found)
	}
	judges.Store(true)
	if !works("judged") {
		t.Error("judged does not work with its judge back")
	}
	until(t, "status forgets what is over", func() bool { return line(f.must("status"), "judged") == "" })
	if !works("well") {
		t.Error("what was well is not any more")
	}
}
