package resource

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/lexer"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"
)

// What a file may cost. Nobody writes such a file; who does, wants to see the loader burst.
const (
	maxFile    = 8 << 20
	maxDepth   = 64      // of maps and lists within each other
	maxAliased = 100_000 // values that aliases repeat
)

// A problem is what is wrong at a place of one file.
type problem struct {
	pos           position
	path          string
	message, hint string
}

// parse returns the documents of a YAML file, without the empty ones. It is the one function that knows the
// YAML library, and the only guard against what the library does not expect.
func parse(data []byte) (docs []*node, problems []problem) {
	one := func(p position, message, hint string) ([]*node, []problem) {
		return nil, []problem{{pos: p, message: message, hint: hint}}
	}
	start := position{1, 1}
	if len(data) > maxFile {
		return one(start, fmt.Sprintf("the file has %d bytes; %d are the limit", len(data), maxFile), "split it")
	}
	data = bytes.TrimPrefix(data, []byte("\xef\xbb\xbf"))
	data = bytes.ReplaceAll(data, []byte("\r\n"), []byte("\n")) // the library counts them twice after a comment
	if i := invalidUTF8(data); i >= 0 {
		line := bytes.Count(data[:i], []byte("\n")) + 1
		column := utf8.RuneCount(data[bytes.LastIndexByte(data[:i], '\n')+1:i]) + 1
		return one(position{line, column}, "the file is not valid UTF-8", "")
	}
	defer func() {
		if r := recover(); r != nil { // the library's, on input it did not foresee
			docs, problems = one(start, fmt.Sprintf("this is no YAML that can be read (%v)", r), "")
		}
	}()
	tokens := lexer.Tokenize(string(data))
	if p, deep := tooDeep(tokens); deep {
		return one(p, fmt.Sprintf("more than %d maps and lists within each other", maxDepth), "")
	}
	file, err := parser.Parse(tokens, 0, parser.AllowDuplicateMapKey())
	if err != nil {
		var y yaml.Error
		if errors.As(err, &y) && y.GetToken() != nil {
			return one(at(y.GetToken()), y.GetMessage(), "")
		}
		return one(start, err.Error(), "")
	}
	t := tree{anchors: map[string]ast.Node{}}
	for _, doc := range file.Docs {
		if doc == nil || doc.Body == nil {
			continue
		}
		clear(t.anchors) // they end with their document
		if n := t.node(doc.Body, "", 0); n != nil && n.kind != nullNode {
			docs = append(docs, n)
		}
	}
	return docs, t.problems
}

func invalidUTF8(data []byte) int {
	for i := 0; i < len(data); {
		r, size := utf8.DecodeRune(data[i:])
		if r == utf8.RuneError && size == 1 {
			return i
		}
		i += size
	}
	return -1
}

// tooDeep finds the first value that lies deeper than maxDepth, before the parser, which recurses, sees it.
func tooDeep(tokens token.Tokens) (position, bool) {
	flow, run := 0, 0
	var columns []int // of the block maps and lists around the token, if all of them nest
	for _, t := range tokens {
		switch t.Type {
		case token.MappingStartType, token.SequenceStartType:
			flow++
		case token.MappingEndType, token.SequenceEndType:
			flow--
		}
		switch t.Type {
		case token.AnchorType, token.TagType, token.MappingKeyType:
			run++ // each may hold the next
		case token.StringType, token.MappingValueType, token.SequenceEntryType:
			run = 0
		}
		if flow <= 0 {
			for len(columns) > 0 && columns[len(columns)-1] > t.Position.Column {
				columns = columns[:len(columns)-1]
			}
			if len(columns) == 0 || columns[len(columns)-1] < t.Position.Column {
				columns = append(columns, t.Position.Column)
			}
		}
		// A line has at most a key, its colon, an anchor, a tag and a value as columns of their own beside what nests.
		if flow > maxDepth || run > maxDepth || len(columns) > maxDepth+5 {
			return at(t), true
		}
	}
	return position{}, false
}

func at(t *token.Token) position {
	return position{t.Position.Line, t.Position.Column}
}

// A tree turns the library's syntax tree into nodes.
type tree struct {
	anchors  map[string]ast.Node
	open     []string // anchors whose value is being read
	aliased  int      // values made through aliases
	aliases  int      // aliases that lead to the current value
	problems []problem
}

func (t *tree) fail(p position, path, message, hint string) *node {
	t.problems = append(t.problems, problem{p, path, message, hint})
	return nil
}

// node returns nil for what it reported as a problem.
func (t *tree) node(n ast.Node, path string, depth int) *node {
	if n == nil || n.GetToken() == nil {
		return &node{path: path, pos: position{1, 1}}
	}
	p := at(n.GetToken())
	if depth > maxDepth {
		return t.fail(p, path, fmt.Sprintf("more than %d maps and lists within each other", maxDepth), "")
	}
	if t.aliases > 0 {
		if t.aliased++; t.aliased == maxAliased {
			t.fail(p, path, fmt.Sprintf("aliases repeat more than %d values", maxAliased), "")
		}
		if t.aliased >= maxAliased {
			return nil
		}
	}
	scalar := func(kind nodeKind, text string) *node {
		return &node{kind: kind, pos: p, path: path, text: text}
	}
	switch n := n.(type) {
	case *ast.NullNode:
		return scalar(nullNode, "")
	case *ast.StringNode:
		return scalar(stringNode, n.Value)
	case *ast.LiteralNode:
		return scalar(stringNode, n.Value.Value)
	case *ast.IntegerNode, *ast.FloatNode, *ast.InfinityNode, *ast.NanNode:
		return scalar(numberNode, n.GetToken().Value)
	case *ast.BoolNode:
		return scalar(boolNode, strings.ToLower(n.Token.Value))
	case *ast.MappingNode:
		return t.mapping(n.Values, p, path, depth)
	case *ast.MappingValueNode:
		return t.mapping([]*ast.MappingValueNode{n}, p, path, depth)
	case *ast.SequenceNode:
		out := &node{kind: listNode, pos: p, path: path}
		for i, v := range n.Values {
			if item := t.node(v, index(path, i), depth+1); item != nil {
				out.items = append(out.items, item)
			}
		}
		return out
	case *ast.AnchorNode:
		name := n.Name.GetToken().Value
		t.anchors[name] = n.Value
		t.open = append(t.open, name)
		defer func() { t.open = t.open[:len(t.open)-1] }()
		return t.node(n.Value, path, depth)
	case *ast.AliasNode:
		return t.alias(n, path, depth)
	case *ast.TagNode:
		return t.fail(p, path, fmt.Sprintf("the tag %s is not supported", n.Start.Value), "leave it out; quotes make a string")
	case *ast.DirectiveNode:
		return t.fail(p, path, "YAML directives are not supported", "leave it out")
	}
	return t.fail(p, path, "this kind of YAML value is not supported", "")
}

// alias reads the anchored value once more, at the path of the alias.
func (t *tree) alias(n *ast.AliasNode, path string, depth int) *node {
	p, name := at(n.GetToken()), n.Value.GetToken().Value
	value, ok := t.anchors[name]
	if !ok {
		return t.fail(p, path, fmt.Sprintf("no anchor &%s before this alias", name), "")
	}
	for _, open := range t.open {
		if open == name {
			return t.fail(p, path, fmt.Sprintf("the alias *%s stands within its own anchor", name), "")
		}
	}
	t.aliases++
	t.open = append(t.open, name)
	defer func() { t.aliases--; t.open = t.open[:len(t.open)-1] }()
	return t.node(value, path, depth)
}

func (t *tree) mapping(values []*ast.MappingValueNode, p position, path string, depth int) *node {
	out := &node{kind: mapNode, pos: p, path: path}
	seen := map[string]position{}
	var merged []*node
	for i, v := range values {
		kp := at(v.Key.GetToken())
		if i == 0 && (kp.line < p.line || kp.line == p.line && kp.column < p.column) {
			out.pos = kp // the library gives a block map the place of its first colon
		}
		if v.Key.IsMergeKey() {
			merged = append(merged, t.merge(v.Value, kp, path, depth)...)
			continue
		}
		key, ok := t.key(v.Key, path)
		if !ok {
			continue
		}
		if first, twice := seen[key]; twice {
			t.fail(kp, path, fmt.Sprintf("%q is given twice, first in line %d", key, first.line), "remove one")
			continue
		}
		seen[key] = kp
		if value := t.node(v.Value, join(path, key), depth+1); value != nil {
			if value.kind == nullNode {
				value.pos = kp // what is not there has no place of its own
			}
			out.entries = append(out.entries, entry{key, kp, value})
		}
	}
	// What is written wins over what is merged, an earlier map over a later one.
	for _, m := range merged {
		for _, e := range m.entries {
			if _, ok := seen[e.key]; !ok {
				seen[e.key] = e.pos
				out.entries = append(out.entries, e)
			}
		}
	}
	return out
}

// merge returns the maps of a merge key (`<<: *a` or `<<: [*a, *b]`).
func (t *tree) merge(value ast.Node, p position, path string, depth int) []*node {
	n := t.node(value, path, depth+1)
	switch {
	case n == nil:
		return nil
	case n.kind == mapNode:
		return []*node{n}
	case n.kind != listNode:
		t.fail(p, path, "<< wants a map or a list of maps", "")
		return nil
	}
	for _, item := range n.items {
		if item.kind != mapNode {
			t.fail(item.pos, path, "<< wants a map or a list of maps", "")
			return nil
		}
		rebase(item, item.path, path)
	}
	return n.items
}

// rebase gives a node and all below it the path of its new place.
func rebase(n *node, from, to string) {
	n.path = strings.TrimPrefix(to+strings.TrimPrefix(n.path, from), ".")
	for _, e := range n.entries {
		rebase(e.value, from, to)
	}
	for _, item := range n.items {
		rebase(item, from, to)
	}
}

// key returns a map's key as text: any scalar will do.
func (t *tree) key(k ast.MapKeyNode, path string) (string, bool) {
	p := at(k.GetToken())
	var n ast.Node = k
	if m, ok := n.(*ast.MappingKeyNode); ok {
		n = m.Value
	}
	switch n := n.(type) {
	case *ast.StringNode:
		return n.Value, true
	case *ast.LiteralNode:
		return n.Value.Value, true
	case *ast.IntegerNode, *ast.FloatNode, *ast.BoolNode:
		return n.GetToken().Value, true
	}
	t.fail(p, path, "a key must be a plain string", "")
	return "", false
}
