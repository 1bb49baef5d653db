package cli_test

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/sluicegate/sluice/cli"
	"github.com/sluicegate/sluice/cli/policytest"
	"github.com/sluicegate/sluice/controlplane"
	"github.com/sluicegate/sluice/internal/policy"
	"github.com/sluicegate/sluice/internal/resource"
	adminv1 "github.com/sluicegate/sluice/proto/gen/sluice/admin/v1"
	policyv1 "github.com/sluicegate/sluice/proto/gen/sluice/policy/v1"
)

var update = flag.Bool("update", false, "rewrite what is generated in docs/policies.md")

const (
	kindsBegin = "<!-- kinds: generated -->\n"
	kindsEnd   = "<!-- kinds: end -->\n"
)

// TestKindsTable holds the table of docs/policies.md to the registry; `make generate` rewrites it.
func TestKindsTable(t *testing.T) {
	const file = "../docs/policies.md"
	page, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, found := bytes.Cut(page, []byte(kindsBegin))
	_, after, ended := bytes.Cut(rest, []byte(kindsEnd))
	if !found || !ended {
		t.Fatalf("%s has no place for the table", file)
	}
	want := slices.Concat(before, []byte(kindsBegin), []byte(kindsTable()), []byte(kindsEnd), after)
	if bytes.Equal(page, want) {
		return
	}
	if !*update {
		t.Fatalf("%s is not what the registry says: run `make generate`", file)
	}
	if err := os.WriteFile(file, want, 0o644); err != nil {
		t.Fatal(err)
	}
}

func kindsTable() string {
	var b strings.Builder
	b.WriteString("| kind | acts | levels | targets | elsewhere |\n|---|---|---|---|---|\n")
	for _, k := range policy.Kinds() {
		acts := "for a target"
		if k.Phase == policy.RoutePhase {
			acts = "before a target is known"
		}
		levels := names(k.Levels, []policy.Level{policy.AtPlatform, policy.AtTenant, policy.AtListener, policy.AtRoute, policy.AtBackend, policy.AtTarget})
		targets := names(k.Transports, []policy.Transport{policy.HTTP, policy.SSE, policy.Stdio, policy.A2A})
		fmt.Fprintf(&b, "| [`%s`](policies/%s.md) | %s | %s | %s | %s |\n", k.Name, k.Name, acts, levels, targets, k.Instead)
	}
	return b.String()
}

// names are those of a list; of all there are, `all`; of a run from the first, `… to …`.
func names[T fmt.Stringer](some, all []T) string {
	var words []string
	for _, v := range some {
		words = append(words, v.String())
	}
	switch {
	case len(some) == len(all):
		return "all"
	case len(some) > 3:
		return words[0] + " to " + words[len(words)-1]
	}
	return strings.Join(words, ", ")
}

// TestPolicyPages runs the example and the tests of each page of docs/policies. Each kind has a page with both, so that none can
// be added without.
func TestPolicyPages(t *testing.T) {
	pages, err := filepath.Glob("../docs/policies/*.md")
	if err != nil {
		t.Fatal(err)
	}
	kinds := map[string]bool{}
	for _, k := range policy.Kinds() {
		kinds[k.Name] = true
	}
	for _, page := range pages {
		name := strings.TrimSuffix(filepath.Base(page), ".md")
		if !kinds[name] {
			t.Errorf("%s is about no kind of policy", page)
		}
		delete(kinds, name)
		t.Run(name, func(t *testing.T) { testPage(t, name, page) })
	}
	for _, k := range policy.Kinds() {
		if kinds[k.Name] {
			t.Errorf("%s has no page docs/policies/%s.md", k.Name, k.Name)
		}
	}
}

func testPage(t *testing.T, kind, page string) {
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	config, tests := blocks(string(text))
	if config == "" {
		t.Fatal("has no ```yaml block with a configuration")
	}
	anything := func(string) (string, bool) { return "anything", true }
	set, diagnostics := resource.Load([]resource.File{{Name: page, Data: []byte(config)}}, anything)
	if !resource.Failed(diagnostics) {
		diagnostics = append(diagnostics, controlplane.Validate(set.Objects, set.Single)...)
	}
	for _, d := range diagnostics {
		if d.Severity <= adminv1.Diagnostic_SEVERITY_ERROR {
			t.Error("the example: " + resource.Format(d))
		}
	}
	if t.Failed() {
		return
	}
	if !slices.ContainsFunc(set.Objects, func(o *adminv1.Object) bool { return sets(o, kind) }) {
		t.Errorf("the example sets no %s", kind)
	}
	if tests == "" {
		t.Fatal("has no ```yaml block that begins with `# sluice test`")
	}
	suite, diagnostics, err := policytest.Load(resource.File{Name: page, Data: []byte("config: example.yaml\n" + tests)}, func([]string) ([]resource.File, error) {
		return []resource.File{{Name: "example.yaml", Data: []byte(config)}}, nil
	}, anything)
	for _, d := range diagnostics {
		t.Error(resource.Format(d))
	}
	if err != nil || suite == nil {
		t.Fatalf("the tests cannot be run: %v", err)
	}
	results := suite.Run(t.Context(), nil)
	for i := range results {
		if !results[i].Passed() {
			var b strings.Builder
			policytest.Print(&b, results[i:i+1])
			t.Error(b.String())
		}
	}
}

// sets reports whether a level sets or enforces a kind.
func sets(o *adminv1.Object, kind string) bool {
	policies, enforced := resource.Policies(o)
	for _, k := range policy.Kinds() {
		if k.Name != kind {
			continue
		}
		for _, p := range []*policyv1.Policies{policies, enforced} {
			if m := p.ProtoReflect(); m.IsValid() && m.Has(m.Descriptor().Fields().ByName(k.Field)) {
				return true
			}
		}
	}
	return false
}

// blocks are the first fenced block of YAML, and the one that is marked as its tests.
func blocks(page string) (config, tests string) {
	for _, block := range strings.Split(page, "\n```yaml\n")[1:] {
		text, _, _ := strings.Cut(block, "\n```")
		switch {
		case strings.HasPrefix(text, "# sluice test"):
			tests = text + "\n"
		case config == "":
			config = text + "\n"
		}
	}
	return config, tests
}

// TestExamples runs the examples' own tests, as a user would.
func TestExamples(t *testing.T) {
	var stdout, stderr bytes.Buffer
	code := cli.Run(t.Context(), cli.Env{Args: []string{"test", "../docs/examples"}, Stdin: strings.NewReader(""), Stdout: &stdout, Stderr: &stderr,
		Getenv: func(string) (string, bool) { return "", false }})
	if code != cli.Done || !strings.Contains(stdout.String(), " passed, 0 failed") || stderr.Len() > 0 {
		t.Errorf("sluice test docs/examples: exit %d\n%s%s", code, &stdout, &stderr)
	}
}

// TestConfigurations validates what pages without tests show.
func TestConfigurations(t *testing.T) {
	for _, name := range []string{"README.md", "docs/targets.md"} {
		page, err := os.ReadFile("../" + name)
		if err != nil {
			t.Fatal(err)
		}
		_, config, _ := strings.Cut(string(page), "```yaml\n")
		config, _, ok := strings.Cut(config, "```\n")
		if !ok {
			t.Fatalf("%s has no configuration", name)
		}
		var stdout, stderr bytes.Buffer
		code := cli.Run(t.Context(), cli.Env{Args: []string{"validate", "-f", "-"}, Stdin: strings.NewReader(config), Stdout: &stdout, Stderr: &stderr,
			Getenv: func(name string) (string, bool) { return "key", name == "SEARCH_API_KEY" }})
		if code != cli.Done || stderr.Len() > 0 {
			t.Errorf("%s: exit %d\n%s%s", name, code, &stdout, &stderr)
		}
	}
}
