package systemtest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"github.com/sluicegate/sluice/internal/mcptest"
)

// The five examples of the page that Sluice makes true, with nothing replaced but commands and hosts.
// With SLUICE_NPM set the stdio servers are the reference ones from npm (`make interop` does so); else they are Go's.

// servers says what stands in for the commands of an example.
type servers struct {
	replacer *strings.Replacer
	echo     string // a tool of the first server that gives its argument `key` back
	key      string
	second   string // a tool of the second server
}

func stdioServers(t *testing.T) servers {
	if os.Getenv("SLUICE_NPM") != "" {
		second := fmt.Sprintf(`args: ["@modelcontextprotocol/server-filesystem", %q]`, t.TempDir())
		return servers{
			replacer: strings.NewReplacer(`args: ["@mycompany/restricted-server"]`, second, `args: ["@mycompany/admin-server"]`, second),
			echo:     "echo", key: "message", second: "list_allowed_directories",
		}
	}
	child := mcptest.Stdio("serve")
	command := fmt.Sprintf("args: []\n            cmd: %q\n            env: {SLUICE_MCPTEST_STDIO: serve}", child.Path)
	// `cmd: npx` stands before `args`; a key given twice is an error, so it goes.
	return servers{
		replacer: strings.NewReplacer("              cmd: npx\n", "",
			`args: ["@modelcontextprotocol/server-everything"]`, strings.ReplaceAll(command, "\n            ", "\n              "),
			`args: ["@mycompany/restricted-server"]`, strings.ReplaceAll(command, "\n            ", "\n              "),
			`args: ["@mycompany/admin-server"]`, strings.ReplaceAll(command, "\n            ", "\n              ")),
		echo: "echo", key: "text", second: "add",
	}
}

// example reads a seed, with another port and after replacements.
func example(t *testing.T, name string, port int, r *strings.Replacer) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("../resource/testdata/seeds", name))
	if err != nil {
		t.Fatal(err)
	}
	replaced := r.Replace(string(data))
	out := strings.Replace(replaced, "port: 3000", fmt.Sprint("port: ", port), 1)
	if out == replaced {
		t.Fatalf("%s has no port to replace", name)
	}
	return write(t, name, out)
}

// serve runs `sluice up` with a file and returns the endpoint, and an admin for it.
func serve(t *testing.T, env []string, file string, port int) (string, admin) {
	t.Helper()
	dir := t.TempDir()
	env = append(env, "npm_config_yes=true") // npx asks before it fetches, and there is nobody to answer
	p := start(t, env, "up", "-f", file, "--data-dir", dir, "--admin-addr", "127.0.0.1:0", "--xds-addr", "127.0.0.1:0", "--ops-addr", "127.0.0.1:0")
	if want := fmt.Sprint("127.0.0.1:", port); !slices.Contains(p.Listeners, want) {
		t.Fatalf("listeners %v lack %s", p.Listeners, want)
	}
	return fmt.Sprintf("http://127.0.0.1:%d/mcp", port), newAdmin(t, p, dir)
}

// bothEras runs a test with clients of each era. The servers from npm speak the session era alone.
func bothEras(t *testing.T, test func(t *testing.T, version string)) {
	t.Helper()
	for _, version := range []string{"2025-11-25", "2026-07-28"} {
		if version == "2026-07-28" && os.Getenv("SLUICE_NPM") != "" {
			continue
		}
		t.Run(version, func(t *testing.T) { test(t, version) })
	}
}

// client connects in an era, with a token or without.
func client(t *testing.T, url, token, version string) *mcptest.Client {
	t.Helper()
	o := mcptest.ClientOptions{Version: version}
	if token != "" {
		o.Header = http.Header{"Authorization": {"Bearer " + token}}
	}
	return mcptest.Connect(t, url, o)
}

func TestSeedAuthorization(t *testing.T) {
	s, port := stdioServers(t), freePort(t)
	url, _ := serve(t, nil, example(t, "older-authorization.yaml", port, s.replacer), port)
	bothEras(t, func(t *testing.T, version string) {
		client := client(t, url, "", version)
		names := client.ToolNames(t)
		if !slices.Contains(names, "public-tools_"+s.echo) {
			t.Errorf("an anonymous client does not see the public tools: %v", names)
		}
		if i := slices.IndexFunc(names, func(n string) bool { return strings.HasPrefix(n, "admin-tools_") }); i >= 0 {
			t.Errorf("an anonymous client sees %s", names[i])
		}
		if got := client.Call(t, "public-tools_"+s.echo, map[string]any{s.key: "hi"}); !strings.Contains(got, "hi") {
			t.Errorf("echo gave %q", got)
		}
		if got, err := client.TryCall(t.Context(), "admin-tools_"+s.second, nil); err == nil {
			t.Errorf("an anonymous client called an admin tool: %q", got)
		}
	})
}

func TestSeedAuthentication(t *testing.T) {
	bothEras(t, func(t *testing.T, version string) {
		o := mcptest.Options{TLS: true, Stateless: version == "2026-07-28"}
		a, b := mcptest.NewServer(t, o), mcptest.NewServer(t, o)
		roots := write(t, "roots.pem", string(a.CA)+string(b.CA))
		for _, name := range []string{"older-authentication.yaml", "newer-authentication.yaml"} {
			t.Run(name, func(t *testing.T) {
				port := freePort(t)
				file := example(t, name, port, strings.NewReplacer(
					"https://service-a.example.com/mcp", a.URL, "https://service-b.example.com/mcp", b.URL,
					"sni: service-a.example.com", "sni: example.com", "sni: service-b.example.com", "sni: example.com"))
				env := []string{"SSL_CERT_FILE=" + roots, "SERVICE_A_API_KEY=key-of-a", "SERVICE_B_API_KEY=key-of-b"}
				url, admin := serve(t, env, file, port)
				client := client(t, url, "", version)
				for target, want := range map[string]string{"service-a": "Bearer key-of-a", "service-b": "Bearer key-of-b"} {
					if got := client.Call(t, target+"_header", map[string]any{"name": "Authorization"}); got != want {
						t.Errorf("%s got the credential %q, want %q", target, got, want)
					}
				}
				for _, what := range [][]string{{"get", "-o", "yaml"}, {"get", "-o", "json"}, {"log", "-o", "json"}, {"explain", "target", "service-a", "-o", "json"}} {
					if out := admin.must(what...); strings.Contains(out, "key-of-") {
						t.Errorf("sluice %v shows a credential:\n%s", what, out)
					}
				}
			})
		}
	})
}

func TestSeedInheritance(t *testing.T) {
	key := newSigner(t, "k1")
	s, port := stdioServers(t), freePort(t)
	// The one addition to the page: who verifies tokens.
	jwtAuth := fmt.Sprintf("cors:\n          allowOrigins: [\"*\"]\n        jwtAuth: {mode: optional, issuer: https://issuer.example.com, audiences: [sluice], jwks: '%s'}", key.jwks(t))
	file := example(t, "older-inheritance.yaml", port, s.replacer)
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	with := strings.Replace(string(data), "cors:\n          allowOrigins: [\"*\"]", jwtAuth, 1)
	if with == string(data) {
		t.Fatal("the example has no cors to stand beside")
	}
	url, admin := serve(t, nil, write(t, "inheritance.yaml", with), port)
	good := jwt.Claims{Issuer: "https://issuer.example.com", Subject: "ada", Audience: jwt.Audience{"sluice"}, Expiry: jwt.NewNumericDate(time.Now().Add(time.Hour))}

	bothEras(t, func(t *testing.T, version string) {
		t.Run("anonymous", func(t *testing.T) {
			client := client(t, url, "", version)
			for _, n := range client.ToolNames(t) {
				if !strings.HasPrefix(n, "public-server_") {
					t.Errorf("sees %s", n)
				}
			}
			if got := client.Call(t, "public-server_"+s.echo, map[string]any{s.key: "hi"}); !strings.Contains(got, "hi") {
				t.Errorf("echo gave %q", got)
			}
			_, refused := client.TryCall(t.Context(), "restricted-server_"+s.second, nil)
			_, unknown := client.TryCall(t.Context(), "restricted-server_no-such-tool", nil)
			if refused == nil || unknown == nil {
				t.Fatalf("restricted tool: %v, unknown tool: %v; want both refused", refused, unknown)
			}
			if a, b := strings.ReplaceAll(refused.Error(), s.second, "X"), strings.ReplaceAll(unknown.Error(), "no-such-tool", "X"); a != b {
				t.Errorf("a refusal tells that the tool exists:\n%s\n%s", a, b)
			}
		})
		t.Run("with a token", func(t *testing.T) {
			client := client(t, url, key.sign(t, good), version)
			names := client.ToolNames(t)
			for _, want := range []string{"public-server_" + s.echo, "restricted-server_" + s.second} {
				if !slices.Contains(names, want) {
					t.Errorf("does not see %s", want)
				}
			}
			if _, err := client.TryCall(t.Context(), "restricted-server_"+s.second, map[string]any{"a": 1, "b": 2}); err != nil {
				t.Errorf("calling a restricted tool: %v", err)
			}
		})
	})
	expired, wrongAudience := good, good
	expired.Expiry = jwt.NewNumericDate(time.Now().Add(-time.Hour))
	wrongAudience.Audience = jwt.Audience{"somebody else"}
	for name, token := range map[string]string{
		"forged":         newSigner(t, "k1").sign(t, good),
		"expired":        key.sign(t, expired),
		"wrong audience": key.sign(t, wrongAudience),
		"alg none":       unsigned(t, good),
	} {
		t.Run(name, func(t *testing.T) {
			s := &session{header: http.Header{"Authorization": {"Bearer " + token}}}
			got := s.do(t, "POST", url, `{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{},"clientInfo":{"name":"x","version":"1"}}}`)
			if got.status != 401 || !strings.HasPrefix(got.header.Get("WWW-Authenticate"), "Bearer") {
				t.Errorf("got %d %q %s", got.status, got.header.Get("WWW-Authenticate"), got.body)
			}
		})
	}
	t.Run("explain", func(t *testing.T) {
		for target, from := range map[string]string{"public-server": "target/public-server", "restricted-server": "backend/"} {
			var e struct {
				Policies map[string]struct {
					From  string
					Value map[string]any
				}
			}
			out := admin.must("explain", "target", target, "-o", "json")
			if err := json.Unmarshal([]byte(out), &e); err != nil {
				t.Fatal(err)
			}
			if got := e.Policies["mcpAuthorization"]; !strings.HasPrefix(got.From, from) || got.Value["rules"] == nil {
				t.Errorf("%s: mcpAuthorization is from %q with %v, want %q", target, got.From, got.Value, from)
			}
			if text := admin.must("explain", "target", target); !strings.Contains(text, "inheritance.yaml:") {
				t.Errorf("explain names no line:\n%s", text)
			}
		}
	})
}

func TestSeedLLM(t *testing.T) {
	bothEras(t, func(t *testing.T, version string) {
		o := mcptest.Options{TLS: true, Stateless: version == "2026-07-28"}
		production, sandbox := mcptest.NewServer(t, o), mcptest.NewServer(t, o)
		port := freePort(t)
		file := example(t, "older-llm.yaml", port, strings.NewReplacer("https://prod-llm.example.com", production.URL, "https://sandbox-llm.example.com", sandbox.URL))
		url, admin := serve(t, []string{"SSL_CERT_FILE=" + write(t, "roots.pem", string(production.CA)+string(sandbox.CA))}, file, port)
		client := client(t, url, "", version)
		for _, word := range []string{"my password is x", "a secret"} {
			before := len(production.Requests())
			got, err := client.TryCall(t.Context(), "production-llm_echo", map[string]any{"text": word})
			if err == nil || strings.Contains(got, word) {
				t.Errorf("production took %q: %q", word, got)
			} else if strings.Contains(err.Error(), word) {
				t.Errorf("the refusal repeats what it refuses: %v", err)
			}
			for _, r := range production.Requests()[before:] {
				if r.Header.Get("Mcp-Method") == "tools/call" {
					t.Errorf("%q reached production", word)
				}
			}
			if got := client.Call(t, "sandbox-llm_echo", map[string]any{"text": word}); got != word {
				t.Errorf("sandbox made %q of %q", got, word)
			}
		}
		if got := client.Call(t, "production-llm_echo", map[string]any{"text": "hello"}); got != "hello" {
			t.Errorf("production made %q of what nothing is wrong with", got)
		}
		if out := admin.must("explain", "target", "production-llm"); !strings.Contains(out, "older-llm.yaml:") || !strings.Contains(out, "ai") {
			t.Errorf("explain does not name the guard's place:\n%s", out)
		}
	})
}

// signer makes tokens and the key set that verifies them.
type signer struct {
	key *ecdsa.PrivateKey
	id  string
}

func newSigner(t *testing.T, id string) signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return signer{key, id}
}

func (s signer) jwks(t *testing.T) string {
	t.Helper()
	set, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: s.key.Public(), KeyID: s.id, Algorithm: "ES256", Use: "sig"}}})
	if err != nil {
		t.Fatal(err)
	}
	return string(set)
}

func (s signer) sign(t *testing.T, claims jwt.Claims) string {
	t.Helper()
	sig, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: s.key, KeyID: s.id}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	token, err := jwt.Signed(sig).Claims(claims).Serialize()
	if err != nil {
		t.Fatal(err)
	}
	return token
}

func unsigned(t *testing.T, claims jwt.Claims) string {
	t.Helper()
	payload, err := json.Marshal(claims)
	if err != nil {
		t.Fatal(err)
	}
	b64 := base64.RawURLEncoding.EncodeToString
	return b64([]byte(`{"alg":"none","typ":"JWT"}`)) + "." + b64(payload) + "."
}
