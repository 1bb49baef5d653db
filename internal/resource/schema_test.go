package resource

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"
	"github.com/rogpeppe/go-internal/txtar"
	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/sluicegate/sluice/internal/policy"
)

func compiled(t *testing.T, schema []byte) *jsonschema.Schema {
	t.Helper()
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(schema))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	if err := c.AddResource("sluice.schema.json", doc); err != nil {
		t.Fatal(err)
	}
	s, err := c.Compile("sluice.schema.json")
	if err != nil {
		t.Fatalf("the schema itself is wrong: %v", err)
	}
	return s
}

// validates checks each document of a YAML file.
func validates(t *testing.T, s *jsonschema.Schema, data []byte) error {
	t.Helper()
	dec := yaml.NewDecoder(bytes.NewReader(data))
	for {
		var v any
		if err := dec.Decode(&v); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			t.Fatalf("%s: %v", data, err)
		}
		asJSON, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		instance, err := jsonschema.UnmarshalJSON(bytes.NewReader(asJSON))
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Validate(instance); err != nil {
			return err
		}
	}
}

// What Load takes, the schema takes.
func TestSchemaTakesWhatLoads(t *testing.T) {
	s := compiled(t, Schema())
	files := map[string][]byte{}
	archives, err := filepath.Glob("testdata/*.txtar")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range archives {
		archive, err := txtar.ParseFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range archive.Files {
			if strings.HasSuffix(f.Name, ".yaml") {
				files[path+"/"+f.Name] = f.Data
			}
		}
	}
	seeds, err := filepath.Glob("testdata/seeds/*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range append(seeds, "../../cli/demo/sluice.yaml") {
		if files[path], err = os.ReadFile(path); err != nil {
			t.Fatal(err)
		}
	}
	checked := 0
	for name, data := range files {
		set, diagnostics := Load([]File{{name, data}}, func(n string) (string, bool) { return environment[n], true })
		if Failed(append(diagnostics, Validate(set.Objects, Context{Offline: true, Partial: set.Single})...)) {
			continue
		}
		checked++
		if err := validates(t, s, data); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if checked < 12 {
		t.Errorf("only %d files were checked", checked)
	}
}

// What is wrong by its shape, the schema refuses; Load does too.
func TestSchemaRefuses(t *testing.T) {
	s := compiled(t, Schema())
	target := func(policies string) string {
		return "mcp: {targets: [{name: t, mcp: {host: http://h}, policies: {" + policies + "}}]}"
	}
	if err := validates(t, s, []byte(target("retry: {attempts: 1}"))); err != nil {
		t.Fatalf("the frame of what follows: %v", err)
	}
	for _, file := range []string{
		"- a", "mcp: []", "nothing: {}", "kind: Nothing\nspec: {}", "kind: Target\nspec: {mcp: {host: h}}", "kind: Listener\nname: a", "kind: Route\nname: a\nspec: {targets: []}",
		"mcp: {}", "mcp: {targets: [{mcp: {host: h}}]}", "mcp: {targets: [{name: 1, mcp: {host: h}}]}", "mcp: {targets: [{name: a}]}", "mcp: {targets: [{name: a, mcp: {host: h}, stdio: {cmd: c}}]}",
		"mcp: {targets: [{name: a, mcp: {host: h}, backend: b}]}", "mcp: {port: '3000', targets: []}", "mcp: {port: 70000, targets: []}", "mcp: {prefixMode: sometimes, targets: []}",
		"binds: [{port: 1}]", "binds: [{listeners: []}]", "binds: [{port: 1, listeners: [{port: 1}]}]", "binds: [{port: 1, listeners: [{routes: [{listener: l}]}]}]",
		"binds: [{port: 1, listeners: [{routes: [{backends: [{backend: b, mcp: {targets: []}}]}]}]}]", "binds: [{port: 1, listeners: [{routes: [{backends: [{}]}]}]}]",
		"backends: [{mcp: {targets: []}}]", "backends: [{name: b}]", "sessionTtl: 5\nmcp: {targets: []}", "sessionTtl: soon\nmcp: {targets: []}",
		target("mcpAuthorisation: {}"), target("mcpAuthorization: {rules: 'true'}"), target("mcpAuthorization: {rules: [{permit: x}]}"), target("mcpAuthorization: {rules: [{allow: x, deny: y}]}"),
		target("backendAuth: {}"), target("backendAuth: {key: a, passthrough: {}}"), target("backendAuth: {key: {secrets: a}}"), target("backendAuth: {key: a, credentials: [b]}"),
		target("backendAuth: {key: {secret: a, location: {body: {}}}}"), target("backendTLS: {minTLSVersion: '1.2'}"), target("backendTLS: {alpn: h2}"), target("backendTLS: {insecure: 'yes'}"),
		target("requestHeaderModifier: {set: [a]}"), target("requestHeaderModifier: {set: {a: 1}}"), target("ai: {promptGuard: [{regex: {deny: [{patern: x}]}}]}"), target("ai: {promptGuard: [{}]}"),
		target("localRateLimit: [{maxTokens: many}]"), target("localRateLimit: [{type: tokens}]"), target("timeout: {requestTimeout: 1s}"), target("cors: {}"), target("jwtAuth: {}"),
		"mcp: {targets: [{name: a, stdio: {cmd: c}, policies: {backendTLS: {}}}]}", "mcp: {targets: [{name: a, sse: {host: h}, enforced: {a2a: {}}}]}",
		"kind: Backend\nname: b\nspec: {policies: {cors: {}}}",
	} {
		if validates(t, s, []byte(file)) == nil {
			t.Errorf("the schema takes\n%s", file)
		}
		set, diagnostics := Load([]File{{"f.yaml", []byte(file)}}, testEnv)
		if !Failed(append(diagnostics, Validate(set.Objects, Context{Offline: true, Partial: set.Single})...)) {
			t.Errorf("Load takes\n%s", file)
		}
	}
}

// A kind is in the schema of the levels where it means something, and of no other; on a target, also by its transport.
func TestSchemaFollowsTheRegistry(t *testing.T) {
	s := compiled(t, Schema())
	values := map[string]string{
		"mcpAuthorization": "{rules: ['true']}", "backendAuth": "{key: k}", "localRateLimit": "[{maxTokens: 1, fillInterval: 1s}]",
		"jwtAuth": "{issuer: i, jwks: '{}'}", "mcpAuthentication": "{issuer: i}", "basicAuth": "{htpasswd: x}", "timeout": "{requestTimeout: 1s}", "retry": "{attempts: 1}",
		"apiKey": "{keys: [k]}", "ai": "{}", "a2a": "{}",
	}
	for _, k := range policy.Kinds() {
		value := values[k.Name]
		if value == "" {
			value = "{}"
		}
		for kind, level := range levels {
			spec := map[string]string{"listener": "port: 1, ", "route": "listener: l, ", "target": "backend: b, mcp: {host: h}, "}[kind]
			file := fmt.Sprintf("kind: %s\nname: %s\nspec: {%spolicies: {%s: %s}}", kind, kind, spec, k.Name, value)
			want := false
			for _, l := range k.Levels {
				want = want || l == level
			}
			if err := validates(t, s, []byte(file)); (err == nil) != want {
				t.Errorf("%s: valid %v, want %v: %v", file, err == nil, want, err)
			}
		}
		for transport, of := range map[policy.Transport]string{policy.HTTP: "mcp: {host: h}", policy.SSE: "sse: {host: h}", policy.Stdio: "stdio: {cmd: c}", policy.A2A: "a2a: {host: h}"} {
			file := fmt.Sprintf("kind: target\nname: b/t\nspec: {%s, policies: {%s: %s}}", of, k.Name, value)
			want := policy.Applies(k.Name, transport)
			for _, l := range k.Levels {
				if l == policy.AtTarget {
					if err := validates(t, s, []byte(file)); (err == nil) != want {
						t.Errorf("%s: valid %v, want %v: %v", file, err == nil, want, err)
					}
				}
			}
		}
	}
}

// A short spelling that Load understands must be in the schema.
func TestSchemaKnowsTheSpellings(t *testing.T) {
	for name, sh := range shapes {
		if sh.rewrite != nil && spellings[name] == nil && !unspelled[name] && !strings.HasSuffix(string(name), ".Request") {
			t.Errorf("%s may be written otherwise than its fields: say how in spellings", name)
		}
	}
	for _, want := range []string{`"A CEL expression of type bool. In YAML a plain string is `, `"description": "A Credential is a secret value or where to find it.`} {
		if !strings.Contains(string(Schema()), want) {
			t.Errorf("no description %q: has `make generate` run?", want)
		}
	}
}

// Tests have a schema of the same making.
func TestSchemaOfTests(t *testing.T) {
	s := compiled(t, SchemaOfTests())
	good := `
config: sluice.yaml
targets: {a: {tools: [x, {name: y, annotations: {readOnlyHint: true}}], resources: ["file:///a"]}}
tests:
- {name: a, principal: anonymous, request: {tool: x}, expect: {allowed: true, listed: [x]}}
- {name: b, principal: {apiKey: ci}, source: 10.0.0.1, request: {method: ping}, expect: {refused: true, sent: {headers: {a: null}}, list: {prompts: [p]}}}
`
	if err := validates(t, s, []byte(good)); err != nil {
		t.Error(err)
	}
	if _, _, diagnostics := LoadTests(File{"t.yaml", []byte(good)}); len(diagnostics) > 0 {
		t.Error(Format(diagnostics[0]))
	}
	for _, bad := range []string{"tests: {}", "config: 1", "tests: [{nam: a}]", "tests: [{name: a, principal: bob}]", "tests: [{name: a, request: {tool: x, prompt: y}}]", "tests: [{name: a, expect: {refused: false}}]"} {
		if validates(t, s, []byte(bad)) == nil {
			t.Errorf("the schema takes %s", bad)
		}
	}
}
