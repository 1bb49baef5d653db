package merge

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/sluicegate/sluice/internal/policy"
	"github.com/sluicegate/sluice/internal/resource"
	adminv1 "github.com/sluicegate/sluice/proto/gen/sluice/admin/v1"
	policyv1 "github.com/sluicegate/sluice/proto/gen/sluice/policy/v1"
	xdsv1 "github.com/sluicegate/sluice/proto/gen/sluice/xds/v1"
)

// load reads YAML as an operator wrote it; the inputs have no secrets, as those of a file.
func load(t *testing.T, yaml string) Inputs {
	t.Helper()
	set, diagnostics := resource.Load([]resource.File{{Name: "file.yaml", Data: []byte(strings.ReplaceAll(yaml, "\t", "  "))}}, func(string) (string, bool) { return "", false })
	if resource.Failed(diagnostics) {
		t.Fatal(diagnostics)
	}
	in := Inputs{Tenant: "acme"}
	for _, o := range set.Objects {
		if o.GetPlatform() != nil {
			in.Platform = o
		} else {
			in.Objects = append(in.Objects, o)
		}
	}
	return in
}

const inheritance = `
binds:
- port: 3000
  listeners:
  - name: web
    routes:
    - name: main
      policies:
        cors: {allowOrigins: ["*"]}
        mcpAuthorization: {rules: ['mcp.tool.name == "route"']}
      backends:
      - name: tools
        mcp:
          policies:
            mcpAuthorization: {rules: ['has(jwt.sub)'], explainDenials: true}
            backendTLS: {root: /etc/ca.pem, hostname: inner.example}
            backendAuth: {key: "hunter2-inline"}
          targets:
          - name: search
            mcp: {host: https://search.example/mcp}
            policies:
              mcpAuthorization: {rules: ['true']}
              backendTLS: {hostname: search.example}
          - name: local
            stdio: {cmd: npx}
            policies:
              backendAuth: {key: {secret: local-key}, env: LOCAL_KEY}
`

// words shows an explanation in short lines.
func words(e *adminv1.ExplainResponse) (out []string) {
	for _, r := range e.Routes {
		out = append(out, fmt.Sprintf("%s/%s through route %q of %q", e.Backend, e.Target, r.Route, r.Listener))
		for _, p := range r.Policies {
			line := fmt.Sprintf("%s from %s at %s", p.Kind, p.From, p.Place)
			if p.Enforced {
				line += " enforced"
			}
			if p.NotApplicable != "" {
				line += ": " + p.NotApplicable
			}
			for _, re := range p.Replaced {
				line += fmt.Sprintf("; replaced %s at %s dropping %v", re.From, re.Place, re.DroppedFields)
			}
			out = append(out, line)
		}
	}
	return out
}

func TestExplain(t *testing.T) {
	in := load(t, inheritance)
	e, err := Explain(in, "search")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{
		`tools/search through route "main" of "web"`,
		"mcpAuthorization from target/search at file.yaml:22; replaced backend/tools at file.yaml:15 dropping [explainDenials]; replaced route/main at file.yaml:10 dropping []",
		"backendAuth from backend/tools at file.yaml:17",
		"backendTLS from target/search at file.yaml:23; replaced backend/tools at file.yaml:16 dropping [root]",
		"cors from route/main at file.yaml:9",
	}, words(e)); diff != "" {
		t.Errorf("search (-want +got):\n%s", diff)
	}
	if got := e.Routes[0].Policies[0].Value.AsInterface(); !cmp.Equal(got, map[string]any{"rules": []any{map[string]any{"allow": "true"}}}) && !cmp.Equal(got, map[string]any{"rules": []any{"true"}}) {
		t.Errorf("value of mcpAuthorization: %v", got)
	}
	if text := protojson.Format(e); strings.Contains(text, "hunter2") {
		t.Errorf("a credential shows:\n%s", text)
	}

	if e, err = Explain(in, "tools/local"); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{
		`tools/local through route "main" of "web"`,
		"mcpAuthorization from backend/tools at file.yaml:15; replaced route/main at file.yaml:10 dropping []",
		"backendAuth from target/local at file.yaml:27; replaced backend/tools at file.yaml:17 dropping []",
		"backendTLS from backend/tools at file.yaml:16: backendTLS means nothing on a stdio target",
		"cors from route/main at file.yaml:9",
	}, words(e)); diff != "" {
		t.Errorf("local (-want +got):\n%s", diff)
	}
	for name, want := range map[string]string{
		"serch": `target "serch" is not there; targets are tools/local, tools/search`,
	} {
		if _, err := Explain(in, name); err == nil || err.Error() != want {
			t.Errorf("Explain(%q): %v, want %s", name, err, want)
		}
	}
}

func TestExplainEnforced(t *testing.T) {
	in := load(t, `
kind: Platform
name: platform
spec:
  enforced:
    mcpAuthorization: {rules: [{deny: 'mcp.tool.name == "rm"'}]}
    requestHeaderModifier: {set: {x-a: platform}}
---
kind: Backend
name: b
spec:
  policies:
    requestHeaderModifier: {set: {x-a: backend}, remove: [x-b]}
  enforced:
    mcpAuthorization: {rules: ['true']}
---
kind: Target
name: t
spec: {backend: b, mcp: {host: "https://t.example/mcp"}}
---
kind: Target
name: other
spec: {backend: c, mcp: {host: "https://t.example/mcp"}}
---
kind: Target
name: other
spec: {backend: d, mcp: {host: "https://t.example/mcp"}}
`)
	e, err := Explain(in, "t")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{
		`b/t through route "" of ""`,
		"mcpAuthorization from platform at file.yaml:6 enforced",
		"mcpAuthorization from backend/b at file.yaml:15 enforced",
		"requestHeaderModifier from platform at file.yaml:7 enforced; replaced backend/b at file.yaml:13 dropping [remove]",
	}, words(e)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if _, err := Explain(in, "other"); err == nil || err.Error() != `target "other" is in several backends: say c/other or d/other` {
		t.Errorf("an ambiguous name: %v", err)
	}
}

func formatted(diagnostics []*adminv1.Diagnostic) (out []string) {
	for _, d := range diagnostics {
		out = append(out, resource.Format(d))
	}
	return out
}

// What does not build is told at the level and place that it came from, once, whatever chains it is in.
func TestCheck(t *testing.T) {
	in := load(t, `
kind: Listener
name: web
spec:
  port: 3443
  tls: {cert: {secret: cert}, key: {secret: wrong-key}}
---
kind: Route
name: main
spec:
  listener: web
  backends: [{backend: b}]
  policies:
    jwtAuth: {issuer: i, jwks: "{}", mode: strict}
---
kind: Backend
name: b
spec:
  policies:
    backendTLS: {root: {secret: root}}
    backendAuth: {key: {secret: missing}}
  enforced:
    requestHeaderModifier: {set: {x-a: '1'}}
---
kind: Target
name: one
spec: {backend: b, mcp: {host: "https://t.example/mcp"}}
---
kind: Target
name: two
spec: {backend: b, mcp: {host: "https://t.example/mcp"}, policies: {mcpAuthorization: {rules: ['true']}}}
---
kind: Target
name: three
spec: {backend: b, stdio: {cmd: npx}, policies: {backendAuth: {key: {file: /etc/key}, env: KEY}}}
`)
	if found := Check(in); !slices.ContainsFunc(formatted(found), func(s string) bool { return strings.HasPrefix(s, "file.yaml:14:") }) || len(found) != 1 {
		t.Errorf("offline, where secrets are not known: %v, want the key set at line 14 alone", formatted(found))
	}
	cert, key := keyPair(t)
	_, wrong := keyPair(t)
	in.Secrets = map[string][]byte{"acme/secret/cert": cert, "acme/secret/wrong-key": wrong, "acme/secret/root": []byte("no PEM")}
	in.VersionKey = testKey
	got := formatted(Check(in))
	want := []string{"file.yaml:6:", "file.yaml:14:", "file.yaml:20:", "file.yaml:21:"}
	if len(got) != len(want) {
		t.Fatalf("found:\n%s\nwant one for each of %v", strings.Join(got, "\n"), want)
	}
	for i := range want {
		if !strings.HasPrefix(got[i], want[i]) {
			t.Errorf("found %s, want it at %s", got[i], want[i])
		}
	}
	for i, what := range []string{"tls.cert", "jwtAuth", "backendTLS.root", "backendAuth.key"} {
		if !strings.Contains(got[i], what) {
			t.Errorf("found %s, want the path of %s", got[i], what)
		}
	}

	out, err := Derive(in)
	if err != nil {
		t.Fatal(err)
	}
	fixed := in
	fixed.Secrets = map[string][]byte{"acme/secret/cert": cert, "acme/secret/wrong-key": key, "acme/secret/root": cert, "acme/secret/missing": []byte("k")}
	next, _, err := out.Update(fixed)
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range next.Check(nil) {
		if !strings.Contains(d.Path, "jwtAuth") {
			t.Errorf("after the secrets were mended: %s", resource.Format(d))
		}
	}
	if found := next.Check(next); len(found) != 0 {
		t.Errorf("nothing differs, and yet %v", formatted(found))
	}
	if found := out.Check(next); len(found) != 3 {
		t.Errorf("back to the bad secrets: %v, want what they break, and not the key set that stays", formatted(found))
	}
}

func keyPair(t *testing.T) (cert, key []byte) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{"a.example"}, IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &k.PublicKey, k)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})
}

// A kind that means nothing on a target is resource.Validate's to tell, as an error or a note.
func TestCheckLeavesWhatValidateTells(t *testing.T) {
	in := load(t, `
mcp:
  port: 3000
  targets:
  - name: t
    stdio: {cmd: "true"}
    policies:
      a2a: {}
`)
	if found := Check(in); len(found) != 0 {
		t.Errorf("found %v", formatted(found))
	}
}

// A proxy's refusal of a merged policy leads back to the level that set what it refused.
func TestOrigin(t *testing.T) {
	in := withoutInline(load(t, inheritance))
	in.Secrets["acme/secret/local-key"] = []byte("k")
	out, err := Derive(in)
	if err != nil {
		t.Fatal(err)
	}
	policyOf := func(binding string) string {
		r, ok := out.config.get("acme/binding/" + binding)
		var c xdsv1.Config
		if err := proto.Unmarshal(r.Body, &c); err != nil || !ok {
			t.Fatalf("binding %s: %v %v", binding, ok, err)
		}
		return c.GetBinding().GetEffectivePolicy()
	}
	var sealed string
	for r := range out.Secret() {
		if strings.Contains(string(r.Body), "hunter2") {
			sealed = r.Name
		}
	}
	for _, tt := range []struct{ name, field, object, wantField string }{
		{policyOf("main/tools/search"), "policies.mcpAuthorization.rules[0]", "target/tools/search", "policies.mcpAuthorization.rules[0]"},
		{policyOf("main/tools/local"), "policies.mcpAuthorization.rules[0]", "backend/tools", "policies.mcpAuthorization.rules[0]"},
		{policyOf("main/tools/local"), "policies.backendAuth", "target/tools/local", "policies.backendAuth"},
		{policyOf("main/tools/search"), "", "target/tools/search", ""},
		{"acme/policy/gone", "policies.mcpAuthorization", "policy/gone", "policies.mcpAuthorization"},
		{"acme/binding/main/tools/search", "", "target/tools/search", ""},
		{"acme/target/tools/search", "mcp", "target/tools/search", "mcp"},
		{"acme/listener/web", "tls.cert", "listener/web", "tls.cert"},
		{"acme/secret/local-key", "", "secret/local-key", ""},
		{sealed, "", "backend/tools", "policies.backendAuth.key.credentials[0].credential"},
		{"other/target/t/t", "f", "other/target/t/t", "f"},
	} {
		object, field := out.Origin(&xdsv1.Refusal{Name: tt.name, Field: tt.field})
		if object != tt.object || field != tt.wantField {
			t.Errorf("Origin(%s, %s) = %s, %s; want %s, %s", tt.name, tt.field, object, field, tt.object, tt.wantField)
		}
	}
}

// No value reaches Config, and what is served of a credential is a name.
func TestCredentialsOnTheWire(t *testing.T) {
	in := load(t, inheritance)
	in.VersionKey = testKey
	if _, err := Derive(in); err == nil || !strings.Contains(err.Error(), "backend/tools") || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("an inline value: %v, want an error that names the object and not the value", err)
	}
	in = withoutInline(in)
	out, err := Derive(in)
	if err != nil {
		t.Fatal(err)
	}
	for r := range out.Config() {
		if strings.Contains(string(r.Body), "hunter2") {
			t.Errorf("%s holds a credential", r.Name)
		}
	}
	versions := map[string]string{}
	for r := range out.Secret() {
		if contentVersion(r.Body) == r.Version {
			t.Errorf("the version of %s is a plain hash", r.Name)
		}
		versions[r.Name] = r.Version
	}
	if len(versions) != 1 {
		t.Errorf("secrets %v, want the inline one (the other is not known)", versions)
	}
	in.VersionKey = []byte("another key")
	again, delta, err := out.Update(in)
	if err != nil || len(delta.Secret) != 1 || len(delta.Config) != 0 {
		t.Errorf("with another key: %v, %d secrets and %d configs changed", err, len(delta.Secret), len(delta.Config))
	}
	in.VersionKey = nil
	if _, _, err := again.Update(in); err == nil {
		t.Error("secrets without a key for their versions")
	}
}

// A chain names an EffectivePolicy by who is in it: edits keep the name, targets share it, and a stdio target does not
// share what means nothing to it.
func TestChains(t *testing.T) {
	in := withoutInline(load(t, inheritance))
	out, err := Derive(in)
	if err != nil {
		t.Fatal(err)
	}
	policies := map[string]*xdsv1.EffectivePolicy{}
	for r := range out.Config() {
		var c xdsv1.Config
		if err := proto.Unmarshal(r.Body, &c); err != nil {
			t.Fatal(err)
		}
		if p := c.GetEffectivePolicy(); p != nil {
			policies[r.Name] = p
		}
	}
	if len(policies) != 3 { // the route's own, and one for each target
		t.Errorf("%d effective policies, want 3", len(policies))
	}
	for name, p := range policies {
		if p.From["mcpAuthorization"] == "backend/tools" && (p.Policies.BackendTls != nil || p.From["backendTLS"] != "") {
			t.Errorf("%s, of a stdio target, has backendTLS", name)
		}
		if p.Policies.Cors != nil && len(p.From) > 1 {
			t.Errorf("%s mixes phases: %v", name, p.From)
		}
	}
	// another rule at the backend: one policy changes, no binding
	for i, o := range in.Objects {
		if o.GetBackend() != nil {
			o = proto.CloneOf(o)
			o.GetBackend().Policies.McpAuthorization.ExplainDenials = false
			in.Objects = slices.Clone(in.Objects)
			in.Objects[i] = o
		}
	}
	_, delta, err := out.Update(in)
	if err != nil {
		t.Fatal(err)
	}
	if len(delta.Config) != 1 || !strings.HasPrefix(delta.Config[0].Name, "acme/policy/") || len(delta.RemovedConfig) != 0 {
		t.Errorf("the edit changed %v and removed %v", delta.Config, delta.RemovedConfig)
	}
	// thousands of targets, few chains
	shared := large(400)
	for _, o := range shared.Objects {
		if t := o.GetTarget(); t != nil {
			t.Policies = nil
		}
	}
	shared.Platform = &adminv1.Object{Name: "platform", Spec: &adminv1.Object_Platform{Platform: &adminv1.Platform{Enforced: authz("true")}}}
	before, err := Derive(shared)
	if err != nil {
		t.Fatal(err)
	}
	shared.Platform = &adminv1.Object{Name: "platform", Spec: &adminv1.Object_Platform{Platform: &adminv1.Platform{Enforced: authz("false")}}}
	if _, delta, err = before.Update(shared); err != nil || len(delta.Config) != 20 {
		t.Errorf("an edit of the platform over 400 targets in 20 backends changed %d resources (%v), want one for each chain", len(delta.Config), err)
	}
}

func TestEndpoints(t *testing.T) {
	for _, tt := range []struct {
		in   *adminv1.HttpTransport
		want string // empty: an error
	}{
		{&adminv1.HttpTransport{Host: "h"}, "http h 80 /mcp"},
		{&adminv1.HttpTransport{Host: "h", Tls: true}, "https h 443 /mcp"},
		{&adminv1.HttpTransport{Host: "h", Port: 8080, Path: "/a?b=c"}, "http h 8080 /a?b=c"},
		{&adminv1.HttpTransport{Host: "h", Path: "a"}, "http h 80 /a"},
		{&adminv1.HttpTransport{Host: "https://h/x?y=z"}, "https h 443 /x?y=z"},
		{&adminv1.HttpTransport{Host: "https://h"}, "https h 443 /mcp"},
		{&adminv1.HttpTransport{Host: "http://[::1]:9/"}, "http ::1 9 /"},
		{&adminv1.HttpTransport{Host: "[::1]", Port: 9}, "http ::1 9 /mcp"},
		{&adminv1.HttpTransport{Host: "h:81"}, "http h 81 /mcp"},
		{&adminv1.HttpTransport{}, ""},
		{&adminv1.HttpTransport{Host: "ftp://h"}, ""},
		{&adminv1.HttpTransport{Host: "https://user:secret@h"}, ""},
		{&adminv1.HttpTransport{Host: "h:70000"}, ""},
	} {
		got, err := serveEndpoint(tt.in, "/mcp")
		text := ""
		if err == nil {
			text = fmt.Sprint(map[bool]string{true: "https", false: "http"}[got.Tls], " ", got.Host, " ", got.Port, " ", got.Path)
		}
		if text != tt.want {
			t.Errorf("%v: %q, %v; want %q", tt.in, text, err, tt.want)
		}
		if err != nil && strings.Contains(err.Error(), "secret") {
			t.Errorf("the error shows the password: %v", err)
		}
	}
}

// The registry of kinds and the proto agree, so that no kind is lost between them.
func TestKinds(t *testing.T) {
	var all mask
	for _, k := range policy.Kinds() {
		if maskOf(k.Name) == 0 {
			t.Errorf("kind %s is no field of Policies", k.Name)
		}
		all |= maskOf(k.Name)
	}
	if got := routeClass.kinds | httpClass.kinds | stdioClass.kinds; got != all || len(all.fields()) != len(kinds) {
		t.Errorf("classes hold %b, the registry %b, the proto %d kinds", got, all, len(kinds))
	}
}

// What Explain tells is what is served: the same kinds, from the same levels, with the same words, on every way to every target.
func TestExplainIsWhatIsServed(t *testing.T) {
	told := 0
	for seed := range 40 {
		e := newEditor(seed)
		var in Inputs
		for range 30 {
			in = e.edit()
		}
		o, err := Derive(in)
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		config, _ := byName(o)
		resourceOf := func(name string) *xdsv1.Config {
			var c xdsv1.Config
			if err := proto.Unmarshal(config[name].Body, &c); err != nil {
				t.Fatal(err)
			}
			return &c
		}
		for _, target := range in.Objects {
			if target.GetTarget() == nil {
				continue
			}
			explained, err := Explain(in, target.GetName())
			if err != nil {
				t.Fatal(err)
			}
			for _, r := range explained.Routes {
				binding := resourceOf("acme/binding/" + r.Route + "/" + target.GetName()).GetBinding()
				if r.Route == "" || binding == nil && !slices.ContainsFunc(in.Objects, func(o *adminv1.Object) bool { return resource.Key(o) == "backend/"+explained.Backend }) {
					continue // nothing is served
				}
				want := map[string]string{}
				for _, name := range []string{binding.GetEffectivePolicy(), resourceOf(binding.GetRoute()).GetRoute().GetEffectivePolicy()} {
					p := resourceOf(name).GetEffectivePolicy()
					for kind, from := range p.GetFrom() {
						want[kind+" of "+from] = shown(p.GetPolicies(), kind)
					}
					for _, a := range p.GetEnforcedAuthorization() {
						want["enforced of "+a.GetLevel()] = fmt.Sprint(resource.Show(a.GetAuthorization()))
					}
				}
				got := map[string]string{}
				for _, p := range r.Policies {
					what := p.Kind + " of " + p.From
					if p.Kind == authorization && p.Enforced {
						what = "enforced of " + p.From
					}
					if p.NotApplicable == "" {
						got[what] = fmt.Sprint(p.Value.AsInterface())
						told++
					}
				}
				if diff := cmp.Diff(want, got); diff != "" {
					t.Fatalf("seed %d: %s on route %s (-served +explained):\n%s", seed, target.GetName(), r.Route, diff)
				}
			}
		}
	}
	if told < 100 {
		t.Errorf("%d policies were compared", told)
	}
}

// shown is a served policy in the words of the one that it was made from.
func shown(p *policyv1.Policies, kind string) string {
	for _, fd := range kinds {
		if fd.JSONName() == kind {
			text := fmt.Sprint(resource.Show(pick(p, fd).Interface()))
			return strings.NewReplacer("secret:acme/sealed/", "sealed:", "secret:acme/secret/", "secret:").Replace(text)
		}
	}
	return ""
}
