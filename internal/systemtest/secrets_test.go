package systemtest

import (
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/sluicegate/sluice/internal/mcptest"
)

// A credential is where it is used, and in no file, log, command or answer beside.
func TestSecretsShowNowhere(t *testing.T) {
	srv := mcptest.NewServer(t, mcptest.Options{})
	f := newFleet(t, 1, "private-network,stdio")
	adminToken, err := os.ReadFile(filepath.Join(f.dir, "cp", "admin.token"))
	if err != nil {
		t.Fatal(err)
	}
	values := map[string]string{ // each long enough not to occur by chance
		"inline": "inline-5up3r-s3cr3t-value", "a Secret": "stored-5up3r-s3cr3t-value", "an older value": "older-5up3r-s3cr3t-value", "an API key": "apikey-5up3r-s3cr3t-value",
		"a child's": "child-5up3r-s3cr3t-value", "in a query": "query-5up3r-s3cr3t-value", "a refused one": "refused-5up3r-s3cr3t-value", "a caller's token": "caller-5up3r-s3cr3t-value",
	}
	var shown strings.Builder // all that any command said
	run := func(args ...string) {
		stdout, stderr, _ := f.run(args...)
		shown.WriteString(stdout + stderr)
	}
	secret := func(value string) string {
		return write(t, "secret.yaml", fmt.Sprintf("kind: Secret\nname: s\nspec: {value: %s}\n", value))
	}
	run("apply", "-f", secret(values["an older value"]))
	run("apply", "-f", secret(values["a Secret"]))
	text := fmt.Sprintf(`binds:
- port: %d
  listeners:
  - routes:
    - policies:
        apiKey: {mode: strict, location: {header: {name: X-Api-Key}}, keys: [{key: %s, metadata: {id: me}}]}
      backends:
      - mcp:
          targets:
          - {name: inline, mcp: {host: %q}, policies: {backendAuth: {key: %s}}}
          - {name: secret, mcp: {host: %[3]q}, policies: {backendAuth: {key: {secret: s}}}}
          - {name: query, mcp: {host: %[3]q}, policies: {backendAuth: {key: {value: %[5]s, location: {queryParameter: {name: token}}}}}}
          - {name: dead, mcp: {host: "http://127.0.0.1:1/mcp"}, policies: {backendAuth: {key: {value: %[5]s, location: {queryParameter: {name: token}}}}}}
          - {name: child, stdio: {cmd: %[6]q, env: {SLUICE_MCPTEST_STDIO: serve}}, policies: {backendAuth: {key: %[7]s, env: TOKEN}}}
          failureMode: failOpen
`, f.port, values["an API key"], srv.URL, values["inline"], values["in a query"], mcptest.Stdio("").Path, values["a child's"])
	file := write(t, "sluice.yaml", text)
	if _, stderr, code := f.run("apply", "-f", file, "--wait", "--timeout", "30s"); code != 0 {
		t.Fatalf("exit %d: %s", code, stderr)
	}

	// Calls that go well and calls that do not.
	s := handshake(t, f.url(0), http.Header{"X-Api-Key": {values["an API key"]}, "Authorization": {"Bearer " + values["a caller's token"]}})
	for tool, want := range map[string]string{"inline": values["inline"], "secret": values["a Secret"]} {
		if got := s.sees(t, f.url(0), tool+"_header", "Authorization"); got != "Bearer "+want {
			t.Errorf("%s got the credential %q", tool, got)
		}
	}
	if got := s.text(t, f.url(0), "child_env", `{"name":"TOKEN"}`); got != values["a child's"] {
		t.Errorf("the child got the credential %q", got)
	}
	for _, tool := range []string{"dead_echo", "query_error", "query_fail", "nobody_x"} {
		shown.WriteString(s.call(t, f.url(0), tool, `{}`).body)
	}
	shown.WriteString(knock(t, f.url(0), http.Header{"X-Api-Key": {values["a caller's token"]}}).body)

	bad := strings.Replace(text, values["inline"], values["a refused one"], 1) + "          nonsense: true\n"
	changed := write(t, "changed.yaml", strings.NewReplacer(values["inline"], values["a refused one"], "apiKey: {mode: strict", "apiKey: {mode: optional").Replace(text))
	for _, args := range [][]string{
		{"validate", "-f", file}, {"validate", "-f", write(t, "bad.yaml", bad)}, {"apply", "-f", write(t, "bad.yaml", bad)}, {"diff", "-f", changed}, {"diff", "-f", changed, "-o", "json"},
		{"apply", "-f", changed, "--dry-run"}, {"apply", "-f", write(t, "wrong.yaml", "kind: Secret\nname: s\nspec: {value: ["+values["a refused one"]+"]}\n")},
		{"apply", "-f", write(t, "wrong.yaml", "kind: Secret\nname: s\nspec: {vaule: "+values["a refused one"]+"}\n")}, {"apply", "-f", write(t, "wrong.yaml", "kind: Secret\nname: s\nspec: "+values["a refused one"]+"\n")},
		{"apply", "-f", write(t, "wrong.yaml", "kind: Secret\nname: s\nspec: {value: $"+strings.ReplaceAll(values["a refused one"], "-", "_")+"}\n")},
		{"get"}, {"get", "-o", "yaml"}, {"get", "-o", "json"}, {"get", "secret", "s", "-o", "json"}, {"get", "target", "inline", "-o", "yaml"}, {"log"}, {"log", "-o", "json"}, {"status", "-o", "json"}, {"proxies", "-o", "json"},
		{"explain", "target", "inline"}, {"explain", "target", "inline", "-o", "json"}, {"explain", "target", "inline", "-f", file, "-o", "json"}, {"token", "list"},
	} {
		run(args...)
	}
	_, metrics := f.proxies[0].ops(t, "/metrics")
	_, goroutines := f.proxies[0].ops(t, "/debug/pprof/goroutine?debug=2")
	_, line := f.proxies[0].ops(t, "/debug/pprof/cmdline")
	shown.WriteString(metrics + goroutines + strings.ReplaceAll(line, f.args[0][4], "")) // the join token was given there by hand
	f.proxies[0].kill(syscall.SIGTERM)
	f.plane.kill(syscall.SIGTERM)

	said := map[string]string{"a command, an answer or the operations port": shown.String(), "the proxy's log": f.proxies[0].stderr.String(), "the control plane's log": f.plane.stderr.String()}
	if err := filepath.WalkDir(f.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if info.Mode().Perm()&0o077 != 0 && !strings.HasSuffix(path, ".pem") && !strings.HasSuffix(path, ".crt") {
			t.Errorf("%s can be read by others: %v", path, info.Mode())
		}
		data, err := os.ReadFile(path)
		if filepath.Base(path) != "admin.token" {
			said[path] = string(data)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if len(said) < 8 {
		t.Fatalf("only %d places were looked at", len(said))
	}
	values["the admin's token"] = strings.TrimSpace(string(adminToken))
	values["the join token"] = f.args[0][4]
	values["a session id"] = s.id
	for what, value := range values {
		for where, text := range said {
			for form, encoded := range map[string]string{"": value, " in base64": base64.StdEncoding.EncodeToString([]byte(value))[:20], " in hex": hex.EncodeToString([]byte(value))} {
				if strings.Contains(text, encoded) {
					t.Errorf("%s is%s in %s", what, form, where)
				}
			}
		}
	}
}
