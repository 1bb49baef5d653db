package cli

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/status"

	"github.com/sluicegate/sluice/internal/resource"
	adminv1 "github.com/sluicegate/sluice/proto/gen/sluice/admin/v1"
)

// source is the -f flag: the files that a command reads, as one configuration.
type source struct{ files fileNames }

// fileNames is a flag's list of files, with commas between them or given several times.
type fileNames []string

// Set implements pflag.Value. No name is no file: an empty variable of a script must not become an empty configuration,
// which would remove all that there is.
func (f *fileNames) Set(s string) error {
	names := strings.Split(s, ",")
	if slices.Contains(names, "") {
		return errors.New("names no file")
	}
	*f = append(*f, names...)
	return nil
}

func (f *fileNames) String() string { return strings.Join(*f, ",") }
func (f *fileNames) Type() string   { return "strings" }

func (s *source) flags(cmd *cobra.Command) {
	cmd.Flags().VarP(&s.files, "file", "f", "configuration file or folder of .yaml files (hidden folders, tests and schemas in it are left out); - for standard input")
	_ = cmd.MarkFlagRequired("file")
	_ = cmd.MarkFlagFilename("file", "yaml", "yml", "json")
}

// load reads and parses. All that is wrong goes to stderr at once.
func (s *source) load(env Env) (resource.Set, error) {
	files, err := s.read(env)
	if err != nil {
		return resource.Set{}, &codedError{Invalid, fmt.Errorf("sluice: %w", err)}
	}
	set, diagnostics := resource.Load(files, env.Getenv)
	if resource.Failed(diagnostics) {
		printDiagnostics(env.Stderr, alsoWrong(set.Objects, diagnostics))
		return resource.Set{}, &codedError{code: Invalid}
	}
	printDiagnostics(env.Stderr, diagnostics)
	return set, nil
}

// alsoWrong adds to what is told of files with errors what else is wrong with their objects, so that all is told at once.
// What is at, around, within or beside a place that is told may only follow from that and is left out, and so are
// references to what may not have been read.
func alsoWrong(objects []*adminv1.Object, told []*adminv1.Diagnostic) []*adminv1.Diagnostic {
	follows := func(d *adminv1.Diagnostic) bool {
		return slices.ContainsFunc(told, func(t *adminv1.Diagnostic) bool {
			return t.File == d.File && (strings.HasPrefix(d.Path, t.Path) || strings.HasPrefix(t.Path, d.Path) || around(t.Path) == around(d.Path))
		})
	}
	all := slices.Clone(told)
	for _, d := range resource.Validate(objects, resource.Context{Partial: true}) {
		if d.Severity <= adminv1.Diagnostic_SEVERITY_ERROR && !follows(d) {
			all = append(all, d)
		}
	}
	order := map[string]int{} // of the files, as they were given
	for _, d := range told {
		if _, ok := order[d.File]; !ok {
			order[d.File] = len(order)
		}
	}
	slices.SortStableFunc(all, func(a, b *adminv1.Diagnostic) int {
		return cmp.Or(cmp.Compare(order[a.File], order[b.File]), cmp.Compare(a.File, b.File),
			cmp.Compare(a.Position.GetLine(), b.Position.GetLine()), cmp.Compare(a.Position.GetColumn(), b.Position.GetColumn()))
	})
	return all
}

// around cuts the last field off a path.
func around(path string) string { return path[:max(strings.LastIndexByte(path, '.'), 0)] }

func (s *source) read(env Env) ([]resource.File, error) {
	var files []resource.File
	for _, name := range s.files {
		if name == "-" {
			data, err := io.ReadAll(env.Stdin)
			if err != nil {
				return nil, err
			}
			files = append(files, resource.File{Name: "-", Data: data})
			continue
		}
		info, err := os.Stat(name)
		if err != nil {
			return nil, err
		}
		names, before := []string{name}, len(files)
		if info.IsDir() {
			if names, err = yamlFiles(name); err != nil {
				return nil, err
			}
		}
		for _, n := range names {
			data, err := os.ReadFile(n)
			if err != nil {
				return nil, err
			}
			file := resource.File{Name: n, Data: data}
			if beside := strings.HasSuffix(n, "_test.yaml") || strings.HasSuffix(n, ".schema.json"); beside && info.IsDir() && resource.Beside(file) {
				continue
			}
			files = append(files, file)
		}
		if len(files) == before { // nothing is no configuration: it would remove all that there is
			return nil, fmt.Errorf("%s holds no configuration in .yaml, .yml or .json files", name)
		}
	}
	return files, nil
}

// yamlFiles lists a folder's files, without those of hidden folders: .git is no configuration, and Kubernetes mounts a ConfigMap as
// links to files that lie in one. The folder may itself be a link; one within it is refused, since what is not read is removed.
func yamlFiles(dir string) ([]string, error) {
	root := dir + string(filepath.Separator) // what a link leads to, not the link
	var names []string
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		hidden := path != root && err == nil && strings.HasPrefix(d.Name(), ".")
		switch {
		case err != nil:
			return err
		case d.IsDir() && hidden:
			return fs.SkipDir
		case d.IsDir():
			return nil
		case slices.Contains([]string{".yaml", ".yml", ".json"}, filepath.Ext(path)):
			names = append(names, path)
		case d.Type()&fs.ModeSymlink != 0 && !hidden:
			if info, err := os.Stat(path); err == nil && info.IsDir() {
				return fmt.Errorf("%s is a link to a folder, which is not followed: give that folder a -f of its own", path)
			}
		}
		return nil
	})
	return names, err
}

func printDiagnostics(w io.Writer, diagnostics []*adminv1.Diagnostic) {
	for _, d := range diagnostics {
		fmt.Fprintln(w, told(resource.Format(d)))
	}
}

// refusal prints the diagnostics that an error of the admin API carries; without any it returns the error as it is.
func refusal(env Env, err error) error {
	s, ok := status.FromError(err)
	if !ok {
		return err
	}
	for _, detail := range s.Details() {
		if d, ok := detail.(*adminv1.Diagnostics); ok && len(d.Diagnostics) > 0 {
			printDiagnostics(env.Stderr, d.Diagnostics)
			return &codedError{code: codeOf(err), err: errors.New("sluice: nothing was applied")}
		}
	}
	return err
}
