package resource

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	adminv1 "github.com/sluicegate/sluice/proto/gen/sluice/admin/v1"
)

// Severities, by their short names.
const (
	severityError   = adminv1.Diagnostic_SEVERITY_ERROR
	severityWarning = adminv1.Diagnostic_SEVERITY_WARNING
	severityNote    = adminv1.Diagnostic_SEVERITY_NOTE
)

// Format returns a diagnostic as one line: `file:line:col: path: what is wrong; the way out`. What is no
// error says so before its path.
func Format(d *adminv1.Diagnostic) string {
	var b strings.Builder
	if d.GetFile() != "" {
		b.WriteString(d.GetFile() + ":")
		if p := d.GetPosition(); p.GetLine() > 0 {
			fmt.Fprintf(&b, "%d:%d:", p.GetLine(), p.GetColumn())
		}
		b.WriteString(" ")
	}
	switch d.GetSeverity() {
	case severityWarning:
		b.WriteString("warning: ")
	case severityNote:
		b.WriteString("note: ")
	}
	if d.GetPath() != "" {
		b.WriteString(d.GetPath() + ": ")
	}
	b.WriteString(d.GetMessage())
	if d.GetHint() != "" {
		b.WriteString("; " + d.GetHint())
	}
	return b.String()
}

// Failed tells whether any of the diagnostics is an error.
func Failed(diagnostics []*adminv1.Diagnostic) bool {
	return slices.ContainsFunc(diagnostics, isError)
}

func isError(d *adminv1.Diagnostic) bool {
	return d.GetSeverity() <= severityError // unspecified counts as one
}

// Diagnose returns a diagnostic about a field of an object, e.g. `policies.mcpAuthorization.rules[1]`, with
// its file, position and path as far as the object knows them: a field without a place of its own has that
// of the nearest one around it. An empty field is the object itself.
func Diagnose(o *adminv1.Object, severity adminv1.Diagnostic_Severity, field, message, hint string) *adminv1.Diagnostic {
	d := &adminv1.Diagnostic{Severity: severity, Message: message, Hint: hint}
	src := o.GetSource()
	if src.GetFile() == "" {
		d.Path = Key(o)
		if field != "" {
			d.Path += ": " + field
		}
		return d
	}
	d.File = src.GetFile()
	d.Position, d.Path = locate(src, field)
	return d
}

// locate finds the position of a field and its path as written.
func locate(src *adminv1.Source, field string) (*adminv1.Position, string) {
	for at := field; at != ""; at = parent(at) {
		p, ok := src.GetFields()[at]
		if !ok {
			continue
		}
		path := p.GetPath()
		if path == "" {
			path = join(src.GetPath(), at)
		}
		return &adminv1.Position{Line: p.GetLine(), Column: p.GetColumn()}, path + field[len(at):]
	}
	path := src.GetPath()
	if field != "" {
		path = join(path, field)
	}
	return src.GetPosition(), path
}

// parent cuts the last step off a path: `a.b[1]` → `a.b` → `a` → "".
func parent(path string) string {
	return path[:max(strings.LastIndexByte(path, '.'), strings.LastIndexByte(path, '['), 0)]
}

// Place returns `file:line` of a field of an object or of the nearest known one around it; "" if the object
// comes from no file.
func Place(o *adminv1.Object, field string) string {
	src := o.GetSource()
	if src.GetFile() == "" {
		return ""
	}
	p, _ := locate(src, field)
	return fmt.Sprintf("%s:%d", src.GetFile(), p.GetLine())
}

// sortDiagnostics brings diagnostics into the order of their files and places, errors of one place
// first. The order is the same each time.
func sortDiagnostics(diagnostics []*adminv1.Diagnostic, files []File) {
	order := map[string]int{}
	for i, f := range files {
		order[f.Name] = i
	}
	slices.SortStableFunc(diagnostics, func(a, b *adminv1.Diagnostic) int {
		return cmp.Or(
			cmp.Compare(order[a.GetFile()], order[b.GetFile()]),
			cmp.Compare(a.GetFile(), b.GetFile()),
			cmp.Compare(a.GetPosition().GetLine(), b.GetPosition().GetLine()),
			cmp.Compare(a.GetPosition().GetColumn(), b.GetPosition().GetColumn()),
			cmp.Compare(a.GetSeverity(), b.GetSeverity()),
			cmp.Compare(a.GetPath(), b.GetPath()),
			cmp.Compare(a.GetMessage(), b.GetMessage()),
		)
	})
}

// didYouMean returns the hint that names the candidate nearest to a misspelt name, or "" if none is near.
func didYouMean(name string, candidates []string) string {
	best, bestDistance := "", 1+max(2, len(name)/3)
	for _, c := range candidates {
		if d := distance(strings.ToLower(name), strings.ToLower(c)); d < bestDistance && d < len(c) {
			best, bestDistance = c, d
		}
	}
	if best == "" {
		return ""
	}
	return fmt.Sprintf("did you mean %q?", best)
}

// distance is the number of insertions, deletions and replacements between two names.
func distance(a, b string) int {
	if len(a) > 64 { // no name of ours is that long
		return len(a)
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			diagonal, row[j+1] = row[j+1], min(row[j+1]+1, row[j]+1, diagonal+cost)
		}
	}
	return row[len(b)]
}

// list writes names as `a`, `a or b`, `a, b or c`.
func list(names []string) string {
	if len(names) < 2 {
		return strings.Join(names, "")
	}
	return strings.Join(names[:len(names)-1], ", ") + " or " + names[len(names)-1]
}
