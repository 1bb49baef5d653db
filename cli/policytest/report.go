package policytest

import (
	"encoding/xml"
	"fmt"
	"io"
	"strings"
	"time"
)

// Passed tells whether all that was expected came.
func (r *Result) Passed() bool { return len(r.Failures) == 0 }

// Print writes a line for each test, and below those that failed what was expected, what came, and which rule decided.
func Print(w io.Writer, results []Result) {
	failed := 0
	for i := range results {
		r := &results[i]
		if r.Passed() {
			fmt.Fprintf(w, "ok    %s  %s\n", r.Place, r.Name)
			continue
		}
		failed++
		fmt.Fprintf(w, "FAIL  %s  %s\n", r.Place, r.Name)
		for _, line := range r.lines() {
			fmt.Fprintf(w, "      %s\n", line)
		}
	}
	fmt.Fprintf(w, "%d passed, %d failed\n", len(results)-failed, failed)
}

func (r *Result) lines() []string {
	var lines []string
	for _, f := range r.Failures {
		if f.What == "" {
			lines = append(lines, "cannot be run: "+f.Got)
			continue
		}
		lines = append(lines, f.Place+": "+f.What, "  expected "+f.Want, "  got      "+f.Got)
	}
	if d := r.Decision; d.Rule != "" {
		line := "decided by " + d.Rule
		if d.Place != "" {
			line += "  " + d.Place
		}
		if lines = append(lines, line); d.Text != "" {
			lines = append(lines, "  "+strings.Join(strings.Fields(d.Text), " "))
		}
	}
	for _, n := range r.Notes {
		lines = append(lines, "note: "+n)
	}
	return lines
}

// Values are results as they are printed with -o json.
func Values(results []Result) []any {
	out := make([]any, 0, len(results))
	for i := range results {
		r := &results[i]
		failures := make([]any, 0, len(r.Failures))
		for _, f := range r.Failures {
			failures = append(failures, map[string]any{"place": f.Place, "what": f.What, "want": f.Want, "got": f.Got})
		}
		v := map[string]any{"file": r.Suite, "name": r.Name, "place": r.Place, "passed": r.Passed(), "failures": failures}
		if d := r.Decision; d.Rule != "" {
			v["decision"] = map[string]any{"rule": d.Rule, "level": d.Level, "place": d.Place, "text": d.Text}
		}
		if len(r.Notes) > 0 {
			v["notes"] = r.Notes
		}
		out = append(out, v)
	}
	return out
}

// The form that CI systems read as JUnit's: https://github.com/testmoapp/junitxml, and of old the Ant task's schema.
type (
	junitSuites struct {
		XMLName  xml.Name     `xml:"testsuites"`
		Name     string       `xml:"name,attr"`
		Tests    int          `xml:"tests,attr"`
		Failures int          `xml:"failures,attr"`
		Errors   int          `xml:"errors,attr"`
		Time     string       `xml:"time,attr"`
		Suites   []junitSuite `xml:"testsuite"`
	}
	junitSuite struct {
		Name     string      `xml:"name,attr"`
		Tests    int         `xml:"tests,attr"`
		Failures int         `xml:"failures,attr"`
		Errors   int         `xml:"errors,attr"`
		Skipped  int         `xml:"skipped,attr"`
		Time     string      `xml:"time,attr"`
		File     string      `xml:"file,attr"`
		Cases    []junitCase `xml:"testcase"`
	}
	junitCase struct {
		Name      string        `xml:"name,attr"`
		Classname string        `xml:"classname,attr"`
		Time      string        `xml:"time,attr"`
		File      string        `xml:"file,attr"`
		Line      string        `xml:"line,attr"`
		Failure   *junitProblem `xml:"failure"`
		Error     *junitProblem `xml:"error"`
	}
	junitProblem struct {
		Message string `xml:"message,attr"`
		Type    string `xml:"type,attr"`
		Text    string `xml:",chardata"`
	}
)

// JUnit writes results as JUnit XML: a suite for each file, an error for a test that could not be run.
func JUnit(w io.Writer, results []Result) error {
	all := junitSuites{Name: "sluice test"}
	var total time.Duration
	var took []time.Duration
	for i := range results {
		r := &results[i]
		if n := len(all.Suites); n == 0 || all.Suites[n-1].Name != r.Suite {
			all.Suites, took = append(all.Suites, junitSuite{Name: r.Suite, File: r.Suite}), append(took, 0)
		}
		suite := &all.Suites[len(all.Suites)-1]
		line := r.Place[strings.LastIndexByte(r.Place, ':')+1:]
		c := junitCase{Name: r.Name, Classname: r.Suite, Time: seconds(r.Took), File: r.Suite, Line: line}
		if !r.Passed() {
			first := r.Failures[0]
			p := &junitProblem{Message: fmt.Sprintf("%s: expected %s, got %s", first.What, first.Want, first.Got), Type: "expectation", Text: strings.Join(r.lines(), "\n")}
			if first.What == "" {
				p.Message, p.Type = first.Got, "rehearsal"
				c.Error = p
				suite.Errors++
				all.Errors++
			} else {
				c.Failure = p
				suite.Failures++
				all.Failures++
			}
		}
		suite.Cases = append(suite.Cases, c)
		suite.Tests++
		all.Tests++
		took[len(took)-1] += r.Took
		suite.Time = seconds(took[len(took)-1])
		total += r.Took
	}
	all.Time = seconds(total)
	if _, err := io.WriteString(w, xml.Header); err != nil {
		return err
	}
	enc := xml.NewEncoder(w)
	enc.Indent("", "  ")
	if err := enc.Encode(all); err != nil {
		return err
	}
	_, err := io.WriteString(w, "\n")
	return err
}

func seconds(d time.Duration) string { return fmt.Sprintf("%.3f", d.Seconds()) }
