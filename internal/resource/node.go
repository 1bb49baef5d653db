package resource

import (
	adminv1 "github.com/sluicegate/sluice/proto/gen/sluice/admin/v1"
)

// A node is one value of a YAML file after anchors, aliases and merge keys are resolved. It knows where it
// was written, so that it may be moved about (short spellings become long ones) and still be found.
type node struct {
	kind    nodeKind
	pos     position
	path    string  // in the file, as written
	text    string  // of a scalar
	final   bool    // made by the loader: not expanded, and good for fields that users cannot write
	entries []entry // of a map, in the file's order, keys distinct
	items   []*node // of a list
}

// An entry of a map stands where its key does.
type entry struct {
	key   string
	pos   position
	value *node
}

type position struct{ line, column int }

func (p position) proto() *adminv1.Position {
	return &adminv1.Position{Line: int32(p.line), Column: int32(p.column)}
}

type nodeKind int

const (
	nullNode nodeKind = iota
	stringNode
	numberNode
	boolNode
	mapNode
	listNode
)

// String says what a node is in an error.
func (k nodeKind) String() string {
	return [...]string{"nothing", "a string", "a number", "true or false", "a map", "a list"}[k]
}

// get returns the value of a key, or nil.
func (n *node) get(key string) *node {
	if e := n.entry(key); e != nil {
		return e.value
	}
	return nil
}

func (n *node) entry(key string) *entry {
	for i := range n.entries {
		if n.entries[i].key == key {
			return &n.entries[i]
		}
	}
	return nil
}

// has tells whether any of the keys is in a map.
func (n *node) has(keys ...string) bool {
	for _, k := range keys {
		if n.get(k) != nil {
			return true
		}
	}
	return false
}

// keys returns those of keys that are in a map.
func (n *node) keys(keys ...string) []string {
	var out []string
	for _, k := range keys {
		if n.has(k) {
			out = append(out, k)
		}
	}
	return out
}

// split divides a map into the entries with one of the keys and the others.
func (n *node) split(keys ...string) (these, others *node) {
	these, others = n.with(), n.with()
	these.entries, others.entries = nil, nil
	for _, e := range n.entries {
		in := false
		for _, k := range keys {
			in = in || e.key == k
		}
		if in {
			these.entries = append(these.entries, e)
		} else {
			others.entries = append(others.entries, e)
		}
	}
	return these, others
}

func (n *node) without(keys ...string) *node {
	_, others := n.split(keys...)
	return others
}

// with returns a copy of a map with further entries.
func (n *node) with(more ...entry) *node {
	c := *n
	c.entries = append(append([]entry(nil), n.entries...), more...)
	return &c
}

// wrap returns a map at a node's place with the node as its one value.
func (n *node) wrap(key string) *node {
	return n.mapOf(entry{key, n.pos, n})
}

// mapOf and listOf return a map and a list of other nodes at a node's place.
func (n *node) mapOf(entries ...entry) *node {
	return &node{kind: mapNode, pos: n.pos, path: n.path, entries: entries}
}

func (n *node) listOf(items ...*node) *node {
	return &node{kind: listNode, pos: n.pos, path: n.path, items: items}
}

// scalar returns a value at a node's place that is taken as it is.
func (n *node) scalar(kind nodeKind, text string) *node {
	return &node{kind: kind, pos: n.pos, path: n.path, text: text, final: true}
}
