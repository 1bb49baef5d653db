// Package internal holds what more than one of the planes and the CLI need. This file holds the map of who may import whom.
package internal

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/sluicegate/sluice"

// allowed says which packages of this module each package may import, beside proto/gen and internal/mtls, which all may.
// Do not widen it to make a build pass: a new arrow is a decision (docs/decisions/0001).
var allowed = map[string][]string{
	"internal/mtls":       {},
	"internal/telemetry":  {},
	"internal/credential": {},
	"internal/guard":      {},
	"internal/hold":       {},
	"internal/policy":     {"internal/credential", "internal/guard"},
	"internal/resource":   {"internal/policy"},

	"controlplane/store":  {},
	"controlplane/merge":  {"internal/policy", "internal/resource", "internal/telemetry"},
	"controlplane/xds":    {"internal/telemetry"},
	"controlplane/tenant": {"internal/policy", "internal/resource", "internal/telemetry", "controlplane/store"},
	"controlplane/api":    {"internal/policy", "internal/resource", "internal/telemetry", "controlplane/store", "controlplane/tenant"},
	"controlplane":        {"internal/policy", "internal/resource", "internal/telemetry", "controlplane/*"},

	"dataplane/mcp":              {},
	"dataplane/route":            {},
	"dataplane/session":          {},
	"dataplane/snapshot":         {"internal/policy", "internal/telemetry", "dataplane/route"},
	"dataplane/xds":              {"internal/telemetry", "dataplane/snapshot"},
	"dataplane/peers":            {},
	"dataplane/listener":         {"internal/policy", "internal/telemetry", "dataplane/snapshot"},
	"dataplane/upstream":         {"internal/hold", "internal/policy", "internal/telemetry", "dataplane/snapshot", "dataplane/mcp"},
	"dataplane/bridge/oldclient": {"internal/hold", "internal/policy", "internal/telemetry", "dataplane/snapshot", "dataplane/mcp", "dataplane/session", "dataplane/upstream"},
	"dataplane/mux":              {"internal/guard", "internal/hold", "internal/policy", "internal/telemetry", "dataplane/snapshot", "dataplane/mcp", "dataplane/session", "dataplane/upstream", "dataplane/bridge/oldclient", "dataplane/bridge/newclient"},
	"dataplane/agent":            {"internal/guard", "internal/policy", "dataplane/snapshot", "dataplane/mcp", "dataplane/upstream", "dataplane/mux"},
	"dataplane/bridge/newclient": {"internal/hold", "internal/policy", "internal/telemetry", "dataplane/snapshot", "dataplane/mcp", "dataplane/session", "dataplane/upstream"},
	"dataplane":                  {"internal/policy", "internal/telemetry", "dataplane/*"},

	"cli/demo":       {},
	"cli/rehearsal":  {"internal/policy", "internal/resource", "controlplane", "dataplane"},
	"cli/policytest": {"internal/resource", "controlplane", "cli/rehearsal"},
	"cli":            {"internal/policy", "internal/resource", "internal/telemetry", "controlplane", "dataplane", "cli/demo", "cli/rehearsal", "cli/policytest"},

	"controlplane/cmd/sluice-controlplane": {"controlplane", "internal/telemetry", "internal/policy"},
	"dataplane/cmd/sluice-proxy":           {"dataplane", "internal/telemetry"},
	"cli/cmd/sluice":                       {"cli"},
}

// unlinked says what a binary must not link: a proxy at the edge carries no store, no YAML and no CLI.
var unlinked = map[string][]string{
	"dataplane/cmd/sluice-proxy": {
		"go.etcd.io/bbolt", "go.etcd.io/etcd", "github.com/goccy/go-yaml", "github.com/spf13/cobra",
		module + "/cli", module + "/controlplane", module + "/internal/resource",
	},
	"controlplane/cmd/sluice-controlplane": {module + "/dataplane", module + "/cli"},
}

type pkg struct {
	ImportPath string
	Imports    []string
	Deps       []string
}

func TestImportDirections(t *testing.T) {
	for _, p := range listPackages(t) {
		name := strings.TrimPrefix(p.ImportPath, module+"/")
		if testOnly(name) || strings.HasPrefix(name, "proto/gen/") {
			continue
		}
		may, known := allowed[name]
		if !known {
			t.Errorf("%s is new: say in internal/layout_test.go what it may import, and in its package comment what one decision it hides", name)
			continue
		}
		for _, imported := range p.Imports {
			imported, ours := strings.CutPrefix(imported, module+"/")
			if !ours || imported == "internal/mtls" || strings.HasPrefix(imported, "proto/gen/") {
				continue
			}
			if testOnly(imported) {
				t.Errorf("%s imports %s, which is for tests", name, imported)
				continue
			}
			if !slices.ContainsFunc(may, func(m string) bool {
				parent, all := strings.CutSuffix(m, "/*")
				return m == imported || all && strings.HasPrefix(imported, parent+"/")
			}) {
				t.Errorf("%s must not import %s", name, imported)
			}
		}
	}
}

// testOnly packages are linked into no binary.
func testOnly(name string) bool {
	return name == "internal" || strings.HasPrefix(name, "internal/mcptest") || strings.HasPrefix(name, "internal/systemtest") ||
		strings.HasPrefix(name, "controlplane/killtest") || strings.HasPrefix(name, "bench/")
}

func TestBinariesLinkOnlyTheirOwn(t *testing.T) {
	seen := 0
	for _, p := range listPackages(t) {
		name := strings.TrimPrefix(p.ImportPath, module+"/")
		for _, banned := range unlinked[name] {
			for _, dep := range p.Deps {
				if dep == banned || strings.HasPrefix(dep, banned+"/") {
					t.Errorf("%s links %s", name, dep)
				}
			}
		}
		if unlinked[name] != nil {
			seen++
		}
	}
	if seen != len(unlinked) {
		t.Errorf("found %d of %d binaries", seen, len(unlinked))
	}
}

func listPackages(t *testing.T) []pkg {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Imports,Deps", module+"/...")
	cmd.Dir = ".."
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var packages []pkg
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p pkg
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return packages
		} else if err != nil {
			t.Fatal(err)
		}
		packages = append(packages, p)
	}
}
