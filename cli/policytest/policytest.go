// Package policytest runs tests of policies that are written in YAML: who asks for what, and what is to become of it. What a test
// asks is answered by package rehearsal, so that it is the proxy's own code that passes or fails.
//
// The proto sluice.test.v1 is what may be written in a file; its comments say what it means.
package policytest

import (
	"context"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"time"

	"github.com/sluicegate/sluice/cli/rehearsal"
	"github.com/sluicegate/sluice/controlplane"
	"github.com/sluicegate/sluice/internal/resource"
	adminv1 "github.com/sluicegate/sluice/proto/gen/sluice/admin/v1"
	testv1 "github.com/sluicegate/sluice/proto/gen/sluice/test/v1"
)

// Suite is a file of tests with the configuration that it is about.
type Suite struct {
	// File is its name.
	File    string
	tests   *testv1.File
	places  *adminv1.Object // has the file's places as its source
	objects []*adminv1.Object
	notes   []string
}

// Result is what became of one test.
type Result struct {
	Suite string
	Name  string
	// Place is `file:line` of the test.
	Place string
	// Failures are what was expected and did not come; none: it passed.
	Failures []Failure
	// Decision is the rule that decided about the request; zero where none did.
	Decision rehearsal.Decision
	// Notes are what was otherwise than in a proxy.
	Notes []string
	Took  time.Duration
}

// Failure is one expectation that did not hold, or why a test could not be run.
type Failure struct {
	// Place is `file:line` of the expectation.
	Place string
	// What was looked at, e.g. `sent.headers.x-tenant`; empty if the test could not be run.
	What      string
	Want, Got string
}

// Load reads a file of tests and its configuration. read returns the files of the configuration, whose names are as written; env is
// the process's. If [resource.Failed], there is no suite. The error is read's.
func Load(file resource.File, read func(names []string) ([]resource.File, error), env func(string) (string, bool)) (*Suite, []*adminv1.Diagnostic, error) {
	tests, places, diagnostics := resource.LoadTests(file)
	if resource.Failed(diagnostics) {
		return nil, diagnostics, nil
	}
	s := &Suite{File: file.Name, tests: tests, places: &adminv1.Object{Source: places}}
	names := tests.GetConfig()
	if len(names) == 0 {
		names = []string{"sluice.yaml"}
	}
	files, err := read(names)
	if err != nil {
		return nil, nil, err
	}
	unset := map[string]bool{}
	set, diagnostics := resource.LoadOffline(files, func(name string) (string, bool) {
		if v, ok := tests.GetEnv()[name]; ok {
			return v, true
		}
		return env(name)
	}, func(name string) string {
		unset[name] = true
		return standIn(name)
	})
	if !resource.Failed(diagnostics) {
		diagnostics = append(diagnostics, controlplane.Validate(set.Objects, set.Single)...)
	}
	for _, name := range slices.Sorted(maps.Keys(unset)) {
		s.notes = append(s.notes, fmt.Sprintf("%s is not set, and reads %s; set it in env of the tests if that matters", name, standIn(name)))
	}
	s.objects = set.Objects
	if resource.Failed(diagnostics) {
		for _, n := range s.notes {
			diagnostics = append(diagnostics, &adminv1.Diagnostic{Severity: adminv1.Diagnostic_SEVERITY_NOTE, File: file.Name, Message: n})
		}
		return nil, diagnostics, nil
	}
	return s, nil, nil
}

func standIn(name string) string { return "<env:" + name + ">" }

// Notes are what is otherwise than in a proxy in all tests of the suite.
func (s *Suite) Notes() []string { return s.notes }

// Run runs the tests whose names a pattern matches; nil matches all.
func (s *Suite) Run(ctx context.Context, names *regexp.Regexp) []Result {
	var all []Result
	for i, t := range s.tests.GetTests() {
		if names != nil && !names.MatchString(t.GetName()) {
			continue
		}
		started := time.Now()
		at := fmt.Sprintf("tests[%d]", i)
		r := run{suite: s, test: t, at: at, result: Result{Suite: s.File, Name: t.GetName(), Place: resource.Place(s.places, at)}}
		r.run(ctx)
		r.result.Took = time.Since(started)
		all = append(all, r.result)
	}
	return all
}
