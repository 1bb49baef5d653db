package systemtest

import (
	"strings"
	"testing"

	"github.com/sluicegate/sluice/internal/mcptest"
)

// The page's example of a guarded target: what its patterns match is refused there, however it is written, and nowhere else.
func TestGuardsHoweverWritten(t *testing.T) {
	production, sandbox := mcptest.NewServer(t, mcptest.Options{TLS: true}), mcptest.NewServer(t, mcptest.Options{TLS: true})
	port := freePort(t)
	file := example(t, "older-llm.yaml", port, strings.NewReplacer("https://prod-llm.example.com", production.URL, "https://sandbox-llm.example.com", sandbox.URL))
	url, admin := serve(t, []string{"SSL_CERT_FILE=" + write(t, "roots.pem", string(production.CA)+string(sandbox.CA))}, file, port)
	raw := handshake(t, url, nil)
	count := func(target string) string {
		t.Helper()
		got := raw.call(t, url, target+"_count", `{}`)
		if !strings.Contains(got.body, `"text"`) {
			t.Fatalf("count: %d %s", got.status, got.body)
		}
		return got.body[strings.Index(got.body, `"text"`):]
	}
	for _, arguments := range []string{`{"text":"my password is x"}`, `{"text":"\u0070assword"}`, `{"te\u0078t":"the \u0073ecret"}`, `{"password":"x"}`, `{"text":"x","deep":[{"y":"secrets"}]}`} {
		got := raw.call(t, url, "production-llm_echo", arguments)
		if got.status != 200 || !strings.Contains(got.body, `"code":-32602`) || !strings.Contains(got.body, "refused by policies.ai.promptGuard.request[0]") {
			t.Errorf("production took %s: %d %s", arguments, got.status, got.body)
		}
		if got := raw.call(t, url, "sandbox-llm_echo", arguments); strings.Contains(got.body, "promptGuard") || strings.Contains(got.body, `"error"`) {
			t.Errorf("sandbox refused %s: %d %s", arguments, got.status, got.body)
		}
	}
	if got := raw.call(t, url, "production-llm_echo", `{"text":"a word"}`); !strings.Contains(got.body, "a word") {
		t.Errorf("production refused what is fine: %d %s", got.status, got.body)
	}
	before := count("production-llm")
	if got := raw.call(t, url, "production-llm_count", `{"x":"password"}`); !strings.Contains(got.body, "-32602") {
		t.Errorf("count: %s", got.body)
	}
	if after := count("production-llm"); strings.Replace(after, `"2"`, `"1"`, 1) != before {
		t.Errorf("count was %s and is %s after a refusal", before, after)
	}
	if out := admin.must("explain", "target", "production-llm"); !strings.Contains(out, "ai") || !strings.Contains(out, "older-llm.yaml:12") {
		t.Errorf("explain:\n%s", out)
	}
}

// What is wrong with a guard is told at its place, before anything runs.
func TestBadGuards(t *testing.T) {
	dir := t.TempDir()
	plane := start(t, nil, "controlplane", "--data-dir", dir, "--admin-addr", "127.0.0.1:0", "--xds-addr", "127.0.0.1:0", "--ops-addr", "127.0.0.1:0")
	a := newAdmin(t, plane, dir)
	for ai, says := range map[string]string{
		`{promptGuard: [{regex: {deny: [{pattern: "("}]}}]}`:                                            "promptGuard",
		`{promptGuard: {response: [{regex: {rules: [{pattern: "x{9999}"}]}}]}}`:                         "response[0].regex.rules[0].pattern",
		`{promptGuard: {request: [{regex: {rules: [{builtin: passport}]}}]}}`:                           "creditCard",
		`{promptGuard: {request: [{webhook: {url: "http://127.0.0.1:1/judge"}}]}}`:                      "private-network",
		`{promptGuard: {response: [{openAIModeration: {url: "http://10.0.0.1/v1"}}]}}`:                  "private-network",
		`{promptGuard: {request: [{webhook: {url: "https://h.example", timeout: 1h}}]}}`:                "timeout",
		`{promptGuard: {request: [{webhook: {url: "https://h.example", credential: {secret: nope}}}]}}`: "nope",
		`{modelAliases: {"a*b*": c}}`: "more than one",
	} {
		file := write(t, "guards.yaml", "mcp:\n  port: 3000\n  targets:\n  - name: t\n    mcp: {host: https://t.example}\n    policies:\n      ai: "+ai+"\n")
		_, stderr, code := a.run("apply", "-f", file)
		if code != 2 || !strings.Contains(stderr, says) || !strings.Contains(stderr, "guards.yaml:7:") {
			t.Errorf("%s: exit %d\n%s\nwant %q and its place", ai, code, stderr, says)
		}
	}
}
