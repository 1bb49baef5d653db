package resource

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"

	adminv1 "github.com/sluicegate/sluice/proto/gen/sluice/admin/v1"
)

var update = flag.Bool("update", false, "rewrite the golden files with what is so now")

// environment is what variables hold in the golden files.
var environment = map[string]string{
	"SERVICE_A_API_KEY": "key-a", "SERVICE_B_API_KEY": "key-b", "PORT": "4000", "EMPTY": "", "HOST": "h.example.com",
}

func testEnv(name string) (string, bool) {
	v, ok := environment[name]
	return v, ok
}

// TestGolden loads and validates the *.yaml files of each archive together. Its comment may hold the words
// `partial` and `offline`, which set the Context. `objects` is what they mean, `diagnostics` what is said.
func TestGolden(t *testing.T) {
	archives, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(archives) == 0 {
		t.Fatalf("no archives: %v", err)
	}
	for _, path := range archives {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".txtar"), func(t *testing.T) {
			archive, err := txtar.ParseFile(path)
			if err != nil {
				t.Fatal(err)
			}
			var files []File
			for _, f := range archive.Files {
				if strings.HasSuffix(f.Name, ".yaml") {
					files = append(files, File{f.Name, f.Data})
				}
			}
			words := strings.Fields(string(archive.Comment))
			objects, diagnostics := outcome(files, Context{Partial: slices.Contains(words, "partial"), Offline: slices.Contains(words, "offline")})
			golden(t, path, archive, map[string]string{"objects": objects, "diagnostics": diagnostics})
		})
	}
}

// TestSeeds holds what each of the page's examples means, the files being exactly the page's.
func TestSeeds(t *testing.T) {
	seeds, err := filepath.Glob("testdata/seeds/*.yaml")
	if err != nil || len(seeds) != 5 {
		t.Fatalf("found %d seeds (%v), want 5", len(seeds), err)
	}
	for _, path := range seeds {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".yaml"), func(t *testing.T) {
			data, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			objects, diagnostics := outcome([]File{{filepath.Base(path), data}}, Context{})
			want := strings.TrimSuffix(path, ".yaml") + ".golden"
			archive, err := txtar.ParseFile(want)
			if err != nil && !*update {
				t.Fatal(err)
			} else if err != nil {
				archive = &txtar.Archive{}
			}
			golden(t, want, archive, map[string]string{"objects": objects, "diagnostics": diagnostics})
		})
	}
}

// outcome loads, validates unless that is pointless, and writes all as text.
func outcome(files []File, whole Context) (objects, diagnostics string) {
	set, ds := Load(files, testEnv)
	if !Failed(ds) {
		ds = append(ds, Validate(set.Objects, whole)...)
	}
	var out bytes.Buffer
	for _, o := range set.Objects {
		if out.Len() > 0 {
			out.WriteString("---\n")
		}
		out.Write(Encode(o))
	}
	if Failed(ds) {
		out.Reset() // what was read of a bad file is nobody's business
	}
	return out.String(), formatAll(ds)
}

func formatAll(ds []*adminv1.Diagnostic) string {
	var b strings.Builder
	for _, d := range ds {
		b.WriteString(Format(d) + "\n")
	}
	return b.String()
}

// golden compares results with the files of their names in an archive, or rewrites them.
func golden(t *testing.T, path string, archive *txtar.Archive, got map[string]string) {
	t.Helper()
	kept := archive.Files[:0:0]
	for _, f := range archive.Files {
		want, ok := got[f.Name]
		if !ok {
			kept = append(kept, f)
			continue
		}
		if diff := cmp.Diff(string(f.Data), want); diff != "" && !*update {
			t.Errorf("%s (-want +got):\n%s", f.Name, diff)
		}
	}
	if !*update {
		if len(archive.Files) != len(kept)+len(got) {
			t.Errorf("%s lacks some of objects and diagnostics; run the test with -update", path)
		}
		return
	}
	for _, name := range []string{"objects", "diagnostics"} {
		kept = append(kept, txtar.File{Name: name, Data: []byte(got[name])})
	}
	archive.Files = kept
	if err := os.WriteFile(path, txtar.Format(archive), 0o644); err != nil {
		t.Fatal(err)
	}
}
