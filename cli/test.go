package cli

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"

	"github.com/spf13/cobra"

	"github.com/sluicegate/sluice/cli/policytest"
	"github.com/sluicegate/sluice/internal/resource"
)

type testOptions struct {
	output
	run, junit string
}

func testCommand(env Env) *cobra.Command {
	var opt testOptions
	cmd := &cobra.Command{
		Use:   "test FILE...",
		Short: "Test policies, offline",
		Long: "Test policies, offline: each test says who asks for what, and what is to become of it. It is answered by the code that the\n" +
			"control plane and the proxies run; targets are played, and nothing is fetched. A folder stands for its *_test.yaml files.\n" +
			"Exit code 0: all passed; 1: some failed; 2: the tests or the configuration are wrong.",
		Example: "  sluice test sluice_test.yaml\n  sluice test policies/ --junit report.xml\n  sluice test sluice_test.yaml --run 'admin'",
		Args:    cobra.MinimumNArgs(1),
		RunE:    func(cmd *cobra.Command, args []string) error { return test(cmd.Context(), env, opt, args) },
	}
	opt.output.flag(cmd)
	cmd.Flags().StringVar(&opt.run, "run", "", "only tests whose names match this regular expression")
	cmd.Flags().StringVar(&opt.junit, "junit", "", "also write a JUnit XML report to this file")
	_ = cmd.MarkFlagFilename("junit", "xml")
	return cmd
}

func test(ctx context.Context, env Env, opt testOptions, args []string) error {
	invalid := func(err error) error { return &codedError{Invalid, fmt.Errorf("sluice: %w", err)} }
	var names *regexp.Regexp
	if opt.run != "" {
		var err error
		if names, err = regexp.Compile(opt.run); err != nil {
			return invalid(fmt.Errorf("--run: %w", err))
		}
	}
	files, err := testFiles(args)
	if err != nil {
		return invalid(err)
	}
	var suites []*policytest.Suite
	wrong := false
	for _, file := range files {
		suite, err := loadTests(env, file)
		if err != nil {
			return invalid(err)
		}
		if suite == nil {
			wrong = true
			continue
		}
		suites = append(suites, suite)
	}
	if wrong {
		return &codedError{code: Invalid}
	}
	var results []policytest.Result
	for _, s := range suites {
		for _, note := range s.Notes() {
			fmt.Fprintf(env.Stderr, "%s: note: %s\n", s.File, note)
		}
		results = append(results, s.Run(ctx, names)...)
	}
	if len(results) == 0 {
		return invalid(fmt.Errorf("--run %q matches no test", opt.run))
	}
	if opt.junit != "" {
		if err := writeJUnit(opt.junit, results); err != nil {
			return err
		}
	}
	failed := 0
	for i := range results {
		if !results[i].Passed() {
			failed++
		}
	}
	value := map[string]any{"passed": len(results) - failed, "failed": failed, "tests": policytest.Values(results)}
	err = opt.print(env.Stdout, value, func(w io.Writer) error { policytest.Print(w, results); return nil })
	if err == nil && failed > 0 {
		err = &codedError{code: Failed}
	}
	return err
}

// testFiles are the files to run: those named, and of folders those that are named as tests.
func testFiles(args []string) ([]string, error) {
	var files []string
	for _, name := range args {
		info, err := os.Stat(name)
		if err != nil {
			return nil, err
		}
		if !info.IsDir() {
			files = append(files, name)
			continue
		}
		found, err := filepath.Glob(filepath.Join(name, "*_test.yaml"))
		if err != nil {
			return nil, err
		}
		if len(found) == 0 {
			return nil, fmt.Errorf("%s holds no *_test.yaml", name)
		}
		files = append(files, found...)
	}
	return files, nil
}

// loadTests tells what is wrong with a file, and then returns none.
func loadTests(env Env, name string) (*policytest.Suite, error) {
	data, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	suite, diagnostics, err := policytest.Load(resource.File{Name: name, Data: data}, func(config []string) ([]resource.File, error) {
		var src source
		for _, c := range config {
			if !filepath.IsAbs(c) {
				c = filepath.Join(filepath.Dir(name), c)
			}
			src.files = append(src.files, c)
		}
		return src.read(env)
	}, env.Getenv)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	printDiagnostics(env.Stderr, diagnostics)
	return suite, nil
}

func writeJUnit(name string, results []policytest.Result) error {
	f, err := os.Create(name)
	if err != nil {
		return &codedError{Invalid, fmt.Errorf("sluice: --junit: %w", err)}
	}
	err = policytest.JUnit(f, results)
	if closing := f.Close(); err == nil {
		err = closing
	}
	return err
}
