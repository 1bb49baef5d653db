package systemtest

import (
	"fmt"
	"net/url"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/sluicegate/sluice/internal/mcptest"
)

// However an address of this machine is spelled, a tenant without the grant reaches nothing there: it is refused when it
// is applied, or when it is used.
func TestAddressesAreGuarded(t *testing.T) {
	srv := mcptest.NewServer(t, mcptest.Options{})
	u, err := url.Parse(srv.URL)
	if err != nil {
		t.Fatal(err)
	}
	f := newFleet(t, 1, "stdio=npx")
	target := func(host, policies string) string {
		return fmt.Sprintf("mcp:\n  port: %d\n  targets:\n  - {name: t, %s%s}\n", f.port, host, policies)
	}
	for _, host := range []string{"127.0.0.1", "localhost", "LOCALHOST", "a.localhost", "localhost.", "127.1", "2130706433", "0x7f000001", "0177.0.0.1", "[::1]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "0.0.0.0", "[::]", "169.254.169.254", "[fd00:ec2::254]", "10.0.0.1"} {
		stdout, stderr, code := f.run("apply", "-f", write(t, "sluice.yaml", target(fmt.Sprintf("mcp: {host: %q}", "http://"+host+":"+u.Port()+"/mcp"), "")), "--wait")
		switch code {
		case 2:
			if !strings.Contains(stderr, "sluice.yaml:4:") {
				t.Errorf("%s: refused without its place: %s", host, stderr)
			}
		case 0:
			if got := knock(t, f.url(0), nil); got.status < 500 || strings.Contains(got.body, "127.0.0.1") {
				t.Errorf("%s: %d %s", host, got.status, got.body)
			}
		default:
			t.Errorf("%s: exit %d %s%s", host, code, stdout, stderr)
		}
	}
	for _, config := range []string{
		target("stdio: {cmd: sh}", ""), target("stdio: {cmd: /usr/bin/npx}", ""), target("stdio: {cmd: ./npx}", ""), target("stdio: {cmd: npx/../sh}", ""), target(`stdio: {cmd: "npx "}`, ""),
		target(fmt.Sprintf("sse: {host: %q}", strings.Replace(srv.URL, "/mcp", "/sse", 1)), ""),
		strings.Replace(target("mcp: {host: https://mcp.example.com}", ""), "  targets:", fmt.Sprintf("  policies: {jwtAuth: {issuer: x, jwks: {url: %q}}}\n  targets:", srv.URL), 1),
		strings.Replace(target("mcp: {host: https://mcp.example.com}", ""), "  targets:", "  policies: {jwtAuth: {issuer: x, jwks: {file: /etc/passwd}}}\n  targets:", 1),
		target("mcp: {host: https://mcp.example.com}", ", policies: {backendTLS: {root: {file: /etc/ssl/ca.pem}}}"), target("mcp: {host: https://mcp.example.com}", ", policies: {backendTLS: {root: /etc/ssl/ca.pem}}"),
		target("mcp: {host: https://mcp.example.com}", ", policies: {backendAuth: {key: {env: HOME}}}"),
	} {
		if got := f.refused(t, config); !strings.Contains(got, "grant") {
			t.Errorf("refused without the way out: %s\n%s", got, config)
		}
	}
	if got := srv.Requests(); len(got) > 0 {
		t.Errorf("the server was reached: %+v", got)
	}
	// Private does not mean metadata.
	f.must("tenant", "allow", "default", "private-network")
	if got := f.refused(t, target("mcp: {host: http://169.254.169.254/mcp}", "")); !strings.Contains(got, "metadata") {
		t.Errorf("a metadata address: %s", got)
	}
}

// What is taken away ends at once, on the proxies too.
func TestGrantsTakenAway(t *testing.T) {
	srv := mcptest.NewServer(t, mcptest.Options{})
	f := newFleet(t, 1, "private-network,stdio")
	f.apply(fmt.Sprintf("mcp:\n  port: %d\n  failureMode: failOpen\n  targets:\n  - {name: net, mcp: {host: %q}}\n  - {name: child, stdio: {cmd: %q, env: {SLUICE_MCPTEST_STDIO: serve}}}\n", f.port, srv.URL, mcptest.Stdio("").Path))
	s := handshake(t, f.url(0), nil)
	for _, tool := range []string{"net_echo", "child_echo"} {
		if got := s.text(t, f.url(0), tool, `{"text":"hi"}`); got != "hi" {
			t.Fatalf("%s: %s", tool, got)
		}
	}
	f.must("tenant", "allow", "default", "env=NOTHING")
	until(t, "the proxy knows", func() bool { return s.call(t, f.url(0), "net_echo", `{"text":"hi"}`).status >= 500 })
	reached := len(srv.Requests())
	for _, tool := range []string{"net_echo", "child_echo"} {
		if got := s.call(t, f.url(0), tool, `{"text":"hi"}`); got.status < 500 || strings.Contains(got.body, `"hi"`) {
			t.Errorf("a live session calls %s: %d %s", tool, got.status, got.body)
		}
	}
	knock(t, f.url(0), nil)
	if n := len(srv.Requests()); n != reached {
		t.Errorf("%d requests reached the target", n-reached)
	}
}

// What the platform enforces no tenant undoes, in lists and in calls; explain says whose word it is.
func TestPlatformEnforces(t *testing.T) {
	w := newTenants(t)
	platform := func(rule string) string {
		return write(t, "platform.yaml", fmt.Sprintf("kind: Platform\nname: platform\nspec:\n  enforced:\n    mcpAuthorization: {rules: [{deny: '%s'}]}\n", rule))
	}
	if _, stderr, code := w.red.run("apply", "-f", platform("false")); code == 0 || strings.Contains(stderr, "panic") {
		t.Errorf("a tenant applied the platform's policies: exit %d %s", code, stderr)
	}
	red := w.at("red").connect(t)
	call := func(tool string) string {
		return red.send(t, "POST", fmt.Sprintf(`{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":%q,"arguments":{"text":"hi"}}}`, tool)).body
	}
	if got := call("red-target_echo"); !strings.Contains(got, `"hi"`) {
		t.Fatal(got)
	}
	w.must("apply", "-f", platform(`mcp.tool.name == "echo"`))
	until(t, "red's proxy has it", func() bool { return !strings.Contains(call("red-target_echo"), `"hi"`) })
	if a, b := call("red-target_echo"), call("red-target_nosuch"); strings.Replace(a, "echo", "X", 1) != strings.Replace(b, "nosuch", "X", 1) {
		t.Errorf("the refusal tells that the tool is there:\n%s\n%s", a, b)
	}
	if got := call("red-target_count"); !strings.Contains(got, `"result"`) {
		t.Errorf("another tool: %s", got)
	}
	// Red tries to allow it again.
	w.red.must("apply", "-f", write(t, "red.yaml", w.config("red", `mcp.tool.name == "echo"`)), "--wait")
	if got := call("red-target_echo"); strings.Contains(got, `"hi"`) {
		t.Errorf("the tenant undid what the platform enforces: %s", got)
	}
	if out := w.red.must("explain", "target", "red-target"); !strings.Contains(out, "platform") || !strings.Contains(out, "enforced") {
		t.Errorf("explain:\n%s", out)
	}
}

// `sluice up` follows its file: a good change is served, a bad one is reported and changes nothing.
func TestUpFollowsItsFile(t *testing.T) {
	srv := named(t, "a", "x", "y")
	port := freePort(t)
	config := func(rule string) string {
		return fmt.Sprintf("mcp:\n  port: %d\n  targets:\n  - {name: a, mcp: {host: %q}, policies: {mcpAuthorization: {rules: ['%s']}}}\n", port, srv.URL, rule)
	}
	file := write(t, "sluice.yaml", config("true"))
	dir := t.TempDir()
	p := start(t, nil, "up", "-f", file, "--data-dir", dir, "--admin-addr", "127.0.0.1:0", "--xds-addr", "127.0.0.1:0", "--ops-addr", "127.0.0.1:0")
	at := fmt.Sprintf("http://127.0.0.1:%d/mcp", port)
	s := handshake(t, at, nil)
	if names := s.tools(t, at); len(names) != 2 {
		t.Fatalf("tools are %v", names)
	}
	replace(t, file, config(`mcp.tool.name == "y"`))
	until(t, "the change is served", func() bool { return slices.Equal(s.tools(t, at), []string{"y"}) })
	replace(t, file, config(`mcp.tool.nam ==`))
	until(t, "the error is reported", func() bool { return strings.Contains(p.stderr.String(), "sluice.yaml:4:") })
	if names := s.tools(t, at); !slices.Equal(names, []string{"y"}) {
		t.Errorf("after a bad change tools are %v", names)
	}
	if err := os.WriteFile(file, []byte(config("true")), 0o600); err != nil { // in place, as some editors do
		t.Fatal(err)
	}
	until(t, "the mended file is served", func() bool { return len(s.tools(t, at)) == 2 })
}
