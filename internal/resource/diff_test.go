package resource

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	adminv1 "github.com/sluicegate/sluice/proto/gen/sluice/admin/v1"
	policyv1 "github.com/sluicegate/sluice/proto/gen/sluice/policy/v1"
)

func TestDiff(t *testing.T) {
	for _, tt := range []struct{ name, old, new, want string }{
		{"no change but place and comments", "mcp: {targets: [{name: a, mcp: {host: http://h}}]}\n",
			"# moved\nmcp:\n  port: 3000\n  targets:\n  - {mcp: {host: 'http://h:80/mcp'}, name: a}\n", ""},
		{"created and deleted", "mcp: {targets: [{name: a, mcp: {host: http://h}}]}\n", "mcp: {targets: [{name: b, mcp: {host: http://other}}]}\n",
			"delete target mcp/a\ncreate target mcp/b\n"},
		{"fields", "mcp: {targets: [{name: a, mcp: {host: http://h}, policies: {mcpAuthorization: {rules: ['true', 'false']}}}]}\n",
			"mcp: {port: 3001, targets: [{name: a, mcp: {host: http://h/x}, timeout: 5s, policies: {mcpAuthorization: {rules: [{deny: 'true'}]}}}]}\n",
			`update listener mcp: port: 3000 → 3001
update target mcp/a: mcp.host: http://h/mcp → http://h/x; policies.mcpAuthorization.rules[0].allow: "true" → ; policies.mcpAuthorization.rules[0].deny:  → "true"; policies.mcpAuthorization.rules[1]: {allow: "false"} → ; timeout:  → 5s
`},
		{"a secret's value", "mcp: {targets: [{name: a, mcp: {host: http://h}, policies: {backendAuth: {key: one}}}]}\n",
			"mcp: {targets: [{name: a, mcp: {host: http://h}, policies: {backendAuth: {key: two}}}]}\n",
			`update target mcp/a: policies.backendAuth.key.credentials[0].credential.value: "[redacted]" → "[redacted]"` + "\n"},
		{"to a file", "mcp: {targets: [{name: a, mcp: {host: http://h}, policies: {backendAuth: {key: one}}}]}\n",
			"mcp: {targets: [{name: a, mcp: {host: http://h}, policies: {backendAuth: {key: {file: /f}}}}]}\n",
			`update target mcp/a: policies.backendAuth.key.credentials[0].credential.value: "[redacted]" → ; policies.backendAuth.key.credentials[0].credential.file:  → /f` + "\n"},
		{"a target renamed", "mcp: {targets: [{name: a, mcp: {host: http://h}}]}\n", "mcp: {targets: [{name: b, mcp: {host: http://h}}]}\n",
			"delete target mcp/a\ncreate target mcp/b (was mcp/a)\n"},
		{"an unnamed listener moved to another port takes all with it",
			"binds: [{port: 1, listeners: [{routes: [{backends: [{mcp: {targets: [{name: a, mcp: {host: http://h}}]}}]}]}]}]\n",
			"binds: [{port: 1, listeners: [{name: l, routes: [{backends: [{mcp: {targets: [{name: a, mcp: {host: http://h}}]}}]}]}]}]\n",
			`create listener l (was port-1)
delete listener port-1
create route l-route-1 (was port-1-route-1)
delete route port-1-route-1
create backend l-route-1-backend-1 (was port-1-route-1-backend-1)
delete backend port-1-route-1-backend-1
create target l-route-1-backend-1/a (was port-1-route-1-backend-1/a)
delete target port-1-route-1-backend-1/a
`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			load := func(yaml string) []*adminv1.Object {
				set, diagnostics := Load([]File{{"f.yaml", []byte(yaml)}}, nil)
				if len(diagnostics) > 0 {
					t.Fatal(formatAll(diagnostics))
				}
				return set.Objects
			}
			if diff := cmp.Diff(tt.want, changesText(Diff(load(tt.old), load(tt.new)))); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// manyTargets are n targets whose credentials alone tell them apart.
func manyTargets(n int, prefix string) (out []*adminv1.Object) {
	for i := range n {
		key := &policyv1.Policies{BackendAuth: &policyv1.BackendAuth{Method: &policyv1.BackendAuth_Key{Key: &policyv1.KeyAuth{
			Credentials: []*policyv1.LocatedCredential{{Credential: &policyv1.Credential{Source: &policyv1.Credential_Value{Value: fmt.Sprint("secret-", i)}}}}}}}}
		out = append(out, &adminv1.Object{Name: fmt.Sprintf("b/%s%d", prefix, i), Spec: &adminv1.Object_Target{Target: &adminv1.Target{Backend: "b", Policies: key}}})
	}
	return out
}

// Each created object finds the deleted one of its content, credentials included.
func TestRenamesAmongMany(t *testing.T) {
	const n = 1000
	if changes := Diff(nil, manyTargets(n, "new")); len(changes) != n || changes[0].GetRenamedFrom() != "" {
		t.Errorf("%d changes, the first %v, want %d creates", len(changes), changes[0], n)
	}
	found := 0
	for _, c := range Diff(manyTargets(n, "old"), manyTargets(n, "new")) {
		if c.GetOp() == adminv1.Change_OP_CREATE && c.GetRenamedFrom() == strings.Replace(c.GetName(), "new", "old", 1) {
			found++
		}
	}
	if found != n {
		t.Errorf("%d of %d renames found", found, n)
	}
}

// BenchmarkRenames must not grow with the square of the objects: it took minutes when each was compared with each.
func BenchmarkRenames(b *testing.B) {
	for _, n := range []int{500, 5000} {
		before, after := manyTargets(n, "old"), manyTargets(n, "new")
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			for b.Loop() {
				Diff(before, after)
			}
		})
	}
}

func TestFlips(t *testing.T) {
	const head = "mcp:\n  targets:\n"
	one, two := "  - {name: a, mcp: {host: http://a}}\n", "  - {name: b, mcp: {host: http://b}}\n"
	for _, tt := range []struct{ name, old, new, want string }{
		{"a second target", head + one, head + one + two, "the names of 1 target get prefixes"},
		{"a target less", head + one + two, head + two, "the names of 1 target lose their prefixes"},
		{"always", head + one, "mcp:\n  prefixMode: always\n  targets:\n" + one, "f.yaml:2:3: warning: mcp.prefixMode: backend \"mcp\": the names of 1 target get prefixes"},
		{"never", "mcp:\n  prefixMode: never\n  targets:\n" + one, "mcp:\n  prefixMode: never\n  targets:\n" + one + two, ""},
		{"first targets", "mcp: {targets: []}\n", head + one + two, ""},
		{"a third", head + one + two, head + one + two + "  - {name: c, mcp: {host: http://c}}\n", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			old, _ := Load([]File{{"f.yaml", []byte(tt.old)}}, nil)
			new, _ := Load([]File{{"f.yaml", []byte(tt.new)}}, nil)
			got := formatAll(Flips(old.Objects, new.Objects))
			if !strings.Contains(got, tt.want) || (tt.want == "") != (got == "") {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

func changesText(changes []*adminv1.Change) string {
	var b strings.Builder
	for _, c := range changes {
		b.WriteString(strings.ToLower(strings.TrimPrefix(c.GetOp().String(), "OP_")) + " " + c.GetKind() + " " + c.GetName())
		if c.GetRenamedFrom() != "" {
			b.WriteString(" (was " + c.GetRenamedFrom() + ")")
		}
		for i, f := range c.GetFields() {
			b.WriteString([]string{": ", "; "}[min(i, 1)] + f.GetPath() + ": " + f.GetBefore() + " → " + f.GetAfter())
		}
		b.WriteString("\n")
	}
	return b.String()
}
