package resource

import (
	"fmt"
	"strings"

	"google.golang.org/protobuf/reflect/protoreflect"

	adminv1 "github.com/sluicegate/sluice/proto/gen/sluice/admin/v1"
	testv1 "github.com/sluicegate/sluice/proto/gen/sluice/test/v1"
)

// testPackage is that of the messages of tests, which are written in the same YAML as configuration.
const testPackage = "sluice.test.v1."

// testShapes are what may be written beside the fields of those messages.
func testShapes() map[protoreflect.FullName]shape {
	return map[protoreflect.FullName]shape{
		testPackage + "File":             {rewrite: oneOrMore("config")},
		testPackage + "Tool":             {rewrite: short("name")},
		testPackage + "Prompt":           {rewrite: short("name")},
		testPackage + "Resource":         {rewrite: short("uri")},
		testPackage + "ResourceTemplate": {rewrite: short("uriTemplate")},
		testPackage + "Skill":            {rewrite: short("id")},
		testPackage + "Source":           {rewrite: short("address")},
		testPackage + "Principal":        {rewrite: principal},
		testPackage + "Request":          {refuse: map[string]string{"name": "write tool: NAME, or prompt: NAME"}},
		testPackage + "Names":            {rewrite: names, hidden: []string{"nothing"}},
		testPackage + "Refusal":          {rewrite: refusal},
	}
}

// LoadTests reads a file of policy tests. Its places are by path, e.g. `tests[1].expect.sent.headers`. All that is wrong is told
// at once; if [Failed], the tests are what could be read. `$` is no variable in it.
func LoadTests(f File) (*testv1.File, *adminv1.Source, []*adminv1.Diagnostic) {
	d := &decoder{file: f.Name}
	docs, problems := parse(f.Data)
	d.problems = problems
	tests, source := &testv1.File{}, &adminv1.Source{File: f.Name}
	switch {
	case len(docs) == 0 && len(problems) == 0:
		d.fail(position{1, 1}, "", "the file is empty", "write config: FILE and tests: […]")
	case len(docs) > 1:
		d.failNode(docs[1], "a file of tests is one document", "put the other into a file of its own")
	}
	if len(docs) > 0 {
		source.Position = docs[0].pos.proto()
		scope{decoder: d, source: source}.message(docs[0], tests.ProtoReflect())
		d.tests(docs[0], tests)
	}
	var diagnostics []*adminv1.Diagnostic
	for _, p := range d.problems {
		diagnostics = append(diagnostics, &adminv1.Diagnostic{
			Severity: severityError, File: f.Name, Position: p.pos.proto(), Path: p.path, Message: p.message, Hint: p.hint,
		})
	}
	sortDiagnostics(diagnostics, []File{f})
	return tests, source, diagnostics
}

// tests finds what is missing.
func (d *decoder) tests(doc *node, f *testv1.File) {
	if doc.kind != mapNode {
		return
	}
	for _, key := range []string{"config", "tests"} {
		switch n := doc.get(key); {
		case n == nil && key == "tests":
			d.failNode(doc, `"tests" is missing`, "")
		case n == nil:
		case n.kind == listNode && len(n.items) == 0:
			d.failNode(n, "holds nothing, and would test nothing", "")
		}
	}
	n := doc.get("tests")
	if n == nil || n.kind != listNode || len(n.items) != len(f.Tests) {
		return
	}
	seen := map[string]int{}
	for i, t := range f.Tests {
		item := n.items[i]
		if item.kind != mapNode {
			continue
		}
		if t.Name == "" && !item.has("name") {
			d.failNode(item, `"name" is missing`, "")
		} else if line, twice := seen[t.Name]; twice {
			d.failNode(item, fmt.Sprintf("%q is the name of the test in line %d too", t.Name, line), "rename one")
		}
		seen[t.Name] = item.pos.line
		switch e := item.get("expect"); {
		case e == nil:
			d.failNode(item, `"expect" is missing`, "a test that expects nothing cannot fail")
		case e.kind == mapNode && len(e.entries) == 0:
			d.failNode(e, "expects nothing, and could not fail", "")
		case t.Request == nil && !item.has("request") && e.has("allowed", "refused", "sent", "received"):
			d.failNode(item, `"request" is missing`, "say what is asked for, e.g. request: {tool: NAME}")
		case e.has("allowed") && e.has("refused") && t.GetExpect().GetAllowed():
			d.failNode(e, `"allowed" and "refused" cannot both hold`, "remove one")
		}
	}
}

// oneOrMore makes a string in a field a list of one.
func oneOrMore(field string) func(*decoder, *node) *node {
	return func(_ *decoder, n *node) *node {
		e := n.entry(field)
		if e == nil || e.value.kind != stringNode {
			return n
		}
		return n.without(field).with(entry{field, e.pos, e.value.listOf(e.value)})
	}
}

// principal: `anonymous` is nobody, and a string for a key is its id.
func principal(d *decoder, n *node) *node {
	if n.kind == stringNode {
		if n.text != "anonymous" {
			d.failNode(n, fmt.Sprintf("%q is no principal", n.text), "write anonymous, {jwt: CLAIMS}, {apiKey: ID} or {basic: USER}")
			return nil
		}
		return n.mapOf()
	}
	if e := n.entry("apiKey"); e != nil && e.value.kind == stringNode {
		return n.without("apiKey").with(entry{"apiKey", e.pos, e.value.wrap("id")})
	}
	return n
}

// names: a list is tools, an empty one is no name at all.
func names(_ *decoder, n *node) *node {
	switch {
	case n.kind == listNode && len(n.items) == 0:
		return n.scalar(boolNode, "true").wrap("nothing")
	case n.kind == listNode:
		return n.wrap("tools")
	}
	return n
}

// refusal: `true` is any.
func refusal(d *decoder, n *node) *node {
	switch {
	case n.kind == boolNode && n.text == "true":
		return n.mapOf()
	case n.kind == boolNode:
		d.failNode(n, "false expects nothing", "write allowed: true")
		return nil
	case n.kind == stringNode && strings.TrimSpace(n.text) != "":
		return n.wrap("because")
	}
	return n
}
