package systemtest

import (
	"bufio"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sluicegate/sluice/internal/mcptest"
)

// tenants are red and blue, whose proxy p0 they share, and green with a proxy of its own, p1. Each has a
// listener of its own host, all at one port.
type tenants struct {
	*fleet
	red, blue, green admin
	servers          map[string]*mcptest.Server
}

func newTenants(t *testing.T) *tenants {
	t.Helper()
	dir := t.TempDir()
	f := &fleet{dir: dir, port: freePort(t)}
	f.plane = start(t, nil, "controlplane", "--data-dir", filepath.Join(dir, "cp"), "--admin-addr", "127.0.0.1:0", "--xds-addr", "127.0.0.1:0", "--ops-addr", "127.0.0.1:0")
	f.admin = newAdmin(t, f.plane, filepath.Join(dir, "cp"))
	w := &tenants{fleet: f, servers: map[string]*mcptest.Server{}}
	for _, name := range []string{"red", "blue", "green"} {
		f.must("tenant", "create", name, "--allow", "private-network")
		w.servers[name] = mcptest.NewServer(t, mcptest.Options{Name: name + "-server", PageSize: 3})
	}
	f.must("group", "set", "shared", "red", "blue")
	f.must("group", "set", "far", "green")
	for i, group := range []string{"shared", "far"} {
		token := f.must("token", "create", "--type", "join", "--group", group)
		args := []string{"proxy", "--xds-addr", f.plane.XDS, "--join-token", token, "--data-dir", filepath.Join(dir, group), "--ops-addr", "127.0.0.1:0", "--bind", f.host(i), "--name", group + "-proxy"}
		f.args, f.proxies = append(f.args, args), append(f.proxies, start(t, nil, args...))
	}
	for name, a := range map[string]*admin{"red": &w.red, "blue": &w.blue, "green": &w.green} {
		*a = f.actor(f.must("token", "create", "--tenant", name, "--role", "tenant-admin"))
		a.must("apply", "-f", write(t, "secret.yaml", fmt.Sprintf("kind: Secret\nname: %[1]s-secret\nspec: {value: %[1]s-value}\n", name)))
		a.must("apply", "-f", write(t, name+".yaml", w.config(name, "true")), "--wait", "--comment", name+"-comment")
	}
	return w
}

func (w *tenants) config(name, rule string) string {
	return fmt.Sprintf(`binds:
- port: %[1]d
  listeners:
  - name: %[2]s-listener
    hostname: %[2]s.test
    routes:
    - name: %[2]s-route
      backends:
      - name: %[2]s-backend
        mcp:
          policies:
            backendAuth: {key: {secret: %[2]s-secret}}
            mcpAuthorization: {rules: ['%[4]s']}
          targets:
          - {name: %[2]s-target, mcp: {host: %[3]q}}
          - {name: second, mcp: {host: %[3]q}}
`, w.port, name, w.servers[name].URL, rule)
}

// at is a client that calls a tenant's host at the shared proxy.
func (w *tenants) at(tenant string) *hosted {
	return &hosted{session: session{}, url: w.url(0), host: tenant + ".test"}
}

// hosted is a session that names a host.
type hosted struct {
	session
	url, host string
}

func (h *hosted) send(t *testing.T, method, body string) answer {
	t.Helper()
	resp := h.open(t, method, body)
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer{resp.StatusCode, resp.Header, string(data)}
}

func (h *hosted) open(t *testing.T, method, body string) *http.Response {
	t.Helper()
	req := h.request(t, method, h.url, body)
	req.Host = h.host
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	return resp
}

func (h *hosted) connect(t *testing.T) *hosted {
	t.Helper()
	got := h.send(t, "POST", strings.Replace(initialize, `"capabilities":{}`, `"capabilities":{"elicitation":{}}`, 1))
	if h.id = got.header.Get("Mcp-Session-Id"); got.status != 200 || h.id == "" {
		t.Fatalf("%s: %d %s", h.host, got.status, got.body)
	}
	h.send(t, "POST", `{"jsonrpc":"2.0","method":"notifications/initialized"}`)
	return h
}

// A tenant's admin looks for the other tenants, and finds nothing: what is there and not theirs answers as what is not.
func TestTenantsCannotSeeOneAnother(t *testing.T) {
	w := newTenants(t)
	silent := func(what string, out string) {
		t.Helper()
		for _, word := range []string{"blue", "green", "far-proxy"} {
			if strings.Contains(out, word) {
				t.Errorf("%s tells red of %s:\n%s", what, word, out)
			}
		}
	}

	for _, args := range [][]string{
		{"get", "-o", "json"}, {"get", "target", "-o", "yaml"}, {"get", "secret"}, {"log", "-o", "json"}, {"status", "-o", "json"}, {"proxies", "-o", "json"}, {"proxies"},
		{"explain", "target", "red-target", "-o", "json"}, {"diff", "-f", write(t, "red.yaml", w.config("red", "false"))},
	} {
		out := w.red.must(args...)
		silent(strings.Join(args, " "), out)
		if !strings.Contains(out, "red") && !strings.Contains(out, "shared-proxy") && args[0] != "diff" {
			t.Errorf("sluice %v tells red nothing of its own:\n%s", args, out)
		}
	}
	// A port of blue's on the proxy that they share.
	extra := freePort(t)
	w.blue.must("apply", "-f", write(t, "extra.yaml", fmt.Sprintf("kind: Listener\nname: blue-extra\nspec: {port: %d}\n---\nkind: Route\nname: blue-extra\nspec: {listener: blue-extra, backends: [{backend: blue-backend}]}\n", extra)), "--wait")
	until(t, "the proxy reports the port", func() bool { return strings.Contains(w.must("proxies", "-o", "json"), fmt.Sprint(extra)) })
	var proxies []struct {
		Name, Ops string
		Listeners []string
		Revisions map[string]any
	}
	if err := json.Unmarshal([]byte(w.red.must("proxies", "-o", "json")), &proxies); err != nil {
		t.Fatal(err)
	}
	if len(proxies) != 1 || len(proxies[0].Revisions) != 1 || proxies[0].Revisions["red"] == nil || proxies[0].Ops != "" ||
		!slices.Equal(proxies[0].Listeners, []string{fmt.Sprintf("%s:%d", w.host(0), w.port)}) {
		t.Errorf("red sees the proxies %+v, not just its own port", proxies)
	}

	// The same call about something that exists and something that does not. BLUE and NONE are replaced.
	for _, args := range [][]string{
		{"get", "-o", "json", "--tenant", "BLUE"}, {"get", "target", "BLUE-target", "--tenant", "BLUE"}, {"log", "--tenant", "BLUE"}, {"status", "--tenant", "BLUE"}, {"proxies", "--tenant", "BLUE"},
		{"explain", "target", "BLUE-target", "--tenant", "BLUE"}, {"rollback", "--to", "1", "--tenant", "BLUE"}, {"delete", "target", "BLUE-target", "--tenant", "BLUE"},
		{"apply", "-f", write(t, "x.yaml", "kind: Secret\nname: x\nspec: {value: y}\n"), "--tenant", "BLUE"}, {"diff", "-f", write(t, "y.yaml", "kind: Secret\nname: x\nspec: {value: y}\n"), "--tenant", "BLUE"},
		{"get", "target", "BLUE-target"}, {"get", "secret", "BLUE-secret"}, {"get", "tenant", "BLUE"}, {"explain", "target", "BLUE-target"}, {"delete", "backend", "BLUE-backend"},
		{"tenant", "list"}, {"tenant", "delete", "BLUE"}, {"tenant", "create", "BLUE"}, {"tenant", "allow", "BLUE", "*"}, {"group", "list"}, {"group", "set", "BLUE", "red"}, {"group", "delete", "shared"},
		{"token", "list"}, {"token", "create", "--tenant", "BLUE", "--role", "tenant-admin"}, {"token", "create", "--tenant", "red", "--role", "platform-admin"}, {"token", "create", "--type", "join", "--group", "far"},
		{"token", "revoke", "BLUE"}, {"token", "cert", "--out", t.TempDir()}, {"proxies", "revoke", "far-proxy"}, {"get", "platform", "platform"}, {"get", "group", "BLUE"},
	} {
		with := func(name string) (string, int) {
			var real []string
			for _, arg := range args {
				real = append(real, strings.ReplaceAll(arg, "BLUE", name))
			}
			stdout, stderr, code := w.red.run(real...)
			return strings.ReplaceAll(stdout+stderr, name, "BLUE"), code
		}
		there, code := with("blue")
		not, code2 := with("none")
		if code == 0 || code != code2 || there != not {
			t.Errorf("sluice %v: exit %d %swhere it is there, exit %d %swhere it is not", args, code, there, code2, not)
		}
		silent(strings.Join(args, " "), strings.ReplaceAll(there, "far-proxy", ""))
	}
	for _, name := range []string{"blue-secret", "blue/blue-secret", "blue/secret/blue-secret", "../blue/blue-secret", "nobody-secret"} {
		config := strings.Replace(w.config("red", "true"), "secret: red-secret", fmt.Sprintf("secret: %q", name), 1)
		stdout, stderr, code := w.red.run("apply", "-f", write(t, "red.yaml", config))
		if code != 2 {
			t.Errorf("a Secret %q: exit %d %s%s", name, code, stdout, stderr)
		}
		silent("a missing Secret", strings.ReplaceAll(stderr, name, ""))
	}
	// Blue's place is taken, and by whom is not said; nor may it be found out beside it.
	config := strings.Replace(w.config("red", "true"), "hostname: red.test", "hostname: blue.test", 1)
	_, stderr, code := w.red.run("apply", "-f", write(t, "red.yaml", config))
	if code == 0 || !strings.Contains(stderr, "red.yaml:") {
		t.Errorf("red took blue's host: exit %d %s", code, stderr)
	}
	silent("a taken place", strings.ReplaceAll(stderr, "blue.test", ""))

	// Blue did nothing that red could have done to it.
	if out := w.blue.must("log", "-o", "json"); strings.Contains(out, "red") {
		t.Errorf("blue's log tells of red:\n%s", out)
	}
	if got := w.at("blue").connect(t).send(t, "POST", `{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"blue-target_header","arguments":{"name":"Authorization"}}}`); !strings.Contains(got.body, "blue-value") {
		t.Errorf("blue: %d %s", got.status, got.body)
	}
	if strings.Contains(w.proxies[1].stderr.String(), "red") || strings.Contains(w.proxies[1].stderr.String(), "blue") {
		t.Error("green's proxy heard of red or blue")
	}
	if _, metrics := w.proxies[1].ops(t, "/metrics"); strings.Contains(metrics, `"red"`) || !strings.Contains(metrics, `"green"`) {
		t.Errorf("green's proxy counts\n%s", metrics)
	}
}

// What was sealed for one tenant is at another, or for another session, as if it had never been.
func TestSealedThingsStayHome(t *testing.T) {
	w := newTenants(t)
	red, blue := w.at("red").connect(t), w.at("blue").connect(t)
	second := w.at("red").connect(t)
	same := func(what string, a, b answer) {
		t.Helper()
		if a.status != b.status || a.body != b.body {
			t.Errorf("%s tells that it exists:\n%d %s\n%d %s", what, a.status, a.body, b.status, b.body)
		}
	}

	for _, method := range []string{"POST", "GET", "DELETE"} {
		body := ""
		if method == "POST" {
			body = `{"jsonrpc":"2.0","id":1,"method":"ping"}`
		}
		stolen, made := w.at("blue"), w.at("blue")
		stolen.id, made.id = red.id, "no-such-session"
		got := stolen.send(t, method, body)
		if got.status != 404 {
			t.Errorf("%s with red's session at blue: %d %s", method, got.status, got.body)
		}
		same(method+" with red's session", got, made.send(t, method, body))
	}

	list := func(h *hosted, cursor string) answer {
		return h.send(t, "POST", fmt.Sprintf(`{"jsonrpc":"2.0","id":1,"method":"tools/list","params":{"cursor":%q}}`, cursor))
	}
	cursor := red.send(t, "POST", `{"jsonrpc":"2.0","id":1,"method":"tools/list"}`).reply(t).Result.NextCursor
	if cursor == "" {
		t.Fatal("the list has one page")
	}
	for _, word := range []string{"red", "target", "page"} {
		if plain, _ := base64.RawURLEncoding.DecodeString(cursor); strings.Contains(cursor+string(plain), word) {
			t.Errorf("the cursor %q can be read", cursor)
		}
	}
	if got := list(red, cursor).reply(t); got.Error != nil || len(got.Result.Tools) == 0 {
		t.Errorf("red's cursor at red: %+v", got)
	}
	got := list(blue, cursor)
	if r := got.reply(t); r.Error == nil || r.Error.Code != -32602 {
		t.Errorf("red's cursor at blue: %d %s", got.status, got.body)
	}
	same("red's cursor", got, list(blue, "no-such-cursor"))

	// A question that red's server asks red's client.
	resp := red.open(t, "POST", `{"jsonrpc":"2.0","id":9,"method":"tools/call","params":{"name":"red-target_elicit","arguments":{}}}`)
	defer resp.Body.Close()
	lines := make(chan string, 16)
	go func() {
		defer close(lines)
		for sc := bufio.NewScanner(resp.Body); sc.Scan(); {
			if data, ok := strings.CutPrefix(sc.Text(), "data:"); ok && strings.TrimSpace(data) != "" {
				lines <- data
			}
		}
	}()
	next := func() (line string) {
		t.Helper()
		select {
		case line = <-lines:
		case <-time.After(20 * time.Second):
			t.Fatal("nothing comes")
		}
		return line
	}
	var question struct {
		ID     json.RawMessage
		Method string
	}
	if line := next(); json.Unmarshal([]byte(line), &question) != nil || question.Method != "elicitation/create" {
		t.Fatalf("the server asked %s", line)
	}
	reply := func(name string) string {
		return fmt.Sprintf(`{"jsonrpc":"2.0","id":%s,"result":{"action":"accept","content":{"name":%q}}}`, question.ID, name)
	}
	for who, h := range map[string]*hosted{"blue": blue, "another session of red": second} {
		got := h.send(t, "POST", reply("Mallory"))
		made := h.send(t, "POST", strings.Replace(reply("Mallory"), string(question.ID), `"no-such-request"`, 1))
		made.body = strings.Replace(made.body, `"no-such-request"`, string(question.ID), 1)
		same("red's question, answered by "+who, got, made)
	}
	if got := red.send(t, "POST", reply("Ada")); got.status != 202 {
		t.Errorf("red's own answer: %d %s", got.status, got.body)
	}
	if line := next(); !strings.Contains(line, "Hello, Ada!") {
		t.Errorf("the call ended with %s", line)
	}
	if names := blue.send(t, "POST", `{"jsonrpc":"2.0","id":1,"method":"tools/list"}`); names.reply(t).Error != nil {
		t.Errorf("blue in the end: %s", names.body)
	}
	if !slices.ContainsFunc(w.servers["blue"].Requests(), func(r mcptest.Request) bool { return r.Header.Get("Authorization") == "Bearer blue-value" }) {
		t.Error("blue's server was never called with blue's key")
	}
	for name, srv := range w.servers {
		for _, r := range srv.Requests() {
			if got := r.Header.Get("Authorization"); got != "Bearer "+name+"-value" {
				t.Errorf("%s's server was called with %q", name, got)
			}
		}
	}
}
