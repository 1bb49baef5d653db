package cli

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sluicegate/sluice/internal/resource"
)

// TestRead: what -f takes, in the order in which it is taken.
func TestRead(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	for name, data := range map[string]string{
		"one.yaml": "1", "conf/b.yml": "b", "conf/a.yaml": "a", "conf/deep/c.json": "c", "conf/readme.md": "no", "conf/.a.yaml.swp": "no", "conf/.git/x.yaml": "no", ".hidden/x.yaml": "x", "mount/..2026/a.yaml": "a", "bare/x.txt": "no", "links/a.yaml": "a",
		"tests/a_test.yaml": "tests: []", "tried/a.yaml": "a", "tried/a_test.yaml": "config: a.yaml\ntests: []", "tried/load_test.yaml": "mcp: {targets: []}", "tried/a.schema.json": `{"$schema": "http://json-schema.org/draft-07/schema#"}`,
	} {
		if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(data), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for link, to := range map[string]string{
		"mount/..data": "..2026", "mount/a.yaml": "..data/a.yaml", // as Kubernetes mounts a ConfigMap
		"current":    "conf", // as releases are switched
		"links/more": "../conf",
	} {
		if err := os.Symlink(to, link); err != nil {
			t.Fatal(err)
		}
	}
	for _, tt := range []struct {
		name  string
		files []string
		want  []resource.File
		err   string
	}{
		{"a file", []string{"one.yaml"}, []resource.File{{Name: "one.yaml", Data: []byte("1")}}, ""},
		{"standard input and a file", []string{"-", "one.yaml"}, []resource.File{{Name: "-", Data: []byte("stdin")}, {Name: "one.yaml", Data: []byte("1")}}, ""},
		{"a folder", []string{"conf"}, []resource.File{
			{Name: "conf/a.yaml", Data: []byte("a")}, {Name: "conf/b.yml", Data: []byte("b")}, {Name: "conf/deep/c.json", Data: []byte("c")}}, ""},
		{"a mounted folder", []string{"mount"}, []resource.File{{Name: "mount/a.yaml", Data: []byte("a")}}, ""},
		{"a hidden folder that is named", []string{".hidden"}, []resource.File{{Name: ".hidden/x.yaml", Data: []byte("x")}}, ""},
		{"a folder without any", []string{"bare"}, nil, "bare holds no configuration"},
		{"a link to a folder", []string{"current"}, []resource.File{
			{Name: "current/a.yaml", Data: []byte("a")}, {Name: "current/b.yml", Data: []byte("b")}, {Name: "current/deep/c.json", Data: []byte("c")}}, ""},
		{"nothing there", []string{"nowhere"}, nil, "nowhere: no such file"},
		{"a folder with tests and a schema", []string{"tried"}, []resource.File{
			{Name: "tried/a.yaml", Data: []byte("a")}, {Name: "tried/load_test.yaml", Data: []byte("mcp: {targets: []}")}}, ""},
		{"a folder with tests alone", []string{"tests"}, nil, "tests holds no configuration"},
		{"tests that are named", []string{"tried/a_test.yaml"}, []resource.File{{Name: "tried/a_test.yaml", Data: []byte("config: a.yaml\ntests: []")}}, ""},
		{"a folder with a link to one", []string{"links"}, nil, "links/more is a link to a folder"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := source{files: tt.files}
			got, err := s.read(Env{Stdin: strings.NewReader("stdin")})
			if (err != nil) != (tt.err != "") || err != nil && !strings.Contains(err.Error(), tt.err) {
				t.Fatalf("error %v, want one with %q", err, tt.err)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("read (-want +got):\n%s", diff)
			}
		})
	}
}

// TestAlsoWrong: one wrong line must not hide another, nor be told twice in other words.
func TestAlsoWrong(t *testing.T) {
	const file = `mcp:
  targets:
  - name: a
    mcp: {host: $UNSET_VARIABLE}
  - name: b
    stdio: {cmd: 7}
  - name: B
    mcp:
      host: https://b.example.com/mcp
    policies:
      mcpAuthorization: {rules: ["mcp.tool.name ="]}
  - name: c
    mpc: {host: "https://c.example.com/mcp"}
`
	set, told := resource.Load([]resource.File{{Name: "f.yaml", Data: []byte(file)}}, nil)
	var got []string
	for _, d := range alsoWrong(set.Objects, told) {
		line, _, _ := strings.Cut(resource.Format(d), ": ")
		got = append(got, line+" "+d.Path)
	}
	want := []string{
		"f.yaml:4:17 mcp.targets[0].mcp.host",
		"f.yaml:6:18 mcp.targets[1].stdio.cmd",
		"f.yaml:7:5 mcp.targets[2].name",
		"f.yaml:11:34 mcp.targets[2].policies.mcpAuthorization.rules[0]",
		"f.yaml:13:5 mcp.targets[3]",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("places (-want +got):\n%s", diff)
	}
}
