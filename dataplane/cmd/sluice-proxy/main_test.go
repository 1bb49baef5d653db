package main

import (
	"context"
	"io"
	"os/exec"
	"strings"
	"testing"
)

// TestLinksNoStore: the edge program is a proxy and nothing else.
func TestLinksNoStore(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	deps := strings.Fields(string(out))
	if len(deps) < 100 {
		t.Fatalf("only %d dependencies: the list is not what it should be", len(deps))
	}
	for _, dep := range deps {
		for _, banned := range []string{
			"go.etcd.io/", "github.com/spf13/cobra", "github.com/sluicegate/sluice/cli", "github.com/sluicegate/sluice/controlplane",
			"github.com/sluicegate/sluice/internal/resource", "github.com/goccy/go-yaml", "testing",
		} {
			if dep == strings.TrimSuffix(banned, "/") || strings.HasPrefix(dep, banned) && banned != "testing" {
				t.Errorf("links %s", dep)
			}
		}
	}
}

func TestFlags(t *testing.T) {
	for _, tt := range []struct {
		args []string
		err  string
	}{
		{[]string{"extra"}, "all settings are flags"},
		{[]string{"-no-such-flag"}, "no-such-flag"},
		{[]string{"-log-level", "loud"}, "loud"},
		{nil, "--data-dir"},
	} {
		if err := run(context.Background(), tt.args, io.Discard, io.Discard); err == nil || !strings.Contains(err.Error(), tt.err) {
			t.Errorf("run(%q) = %v, want an error with %q", tt.args, err, tt.err)
		}
	}
}
