package mcp

import (
	"bytes"
	"fmt"
	"math"
	"net/http"
	"strconv"
	"strings"
)

// ParamHeaders are the arguments of a tool that 2026-07-28 repeats in Mcp-Param-* headers, as its inputSchema's
// x-mcp-header says. Nil: none.
type ParamHeaders []paramHeader

type paramHeader struct {
	path   []string // names of properties, from the arguments down
	header string   // with the prefix, canonical
}

// Size is about how many bytes they take: more than the schema that they stand in, where they stand deep.
func (p ParamHeaders) Size() (n int) {
	for _, h := range p {
		n += 40 + len(h.header)
		for _, name := range h.path {
			n += 16 + len(name)
		}
	}
	return n
}

// ToolParams are the ParamHeaders of the tools of a list that have any. The zero value is of none.
type ToolParams struct {
	byName map[string]ParamHeaders
	size   int
}

// maxToolParams bounds what is kept of one list.
const maxToolParams = 1 << 20

// ErrLongList says that more would have to be kept of a list than is.
var ErrLongList = fmt.Errorf("the tools have headers for their arguments that take more than %d bytes", maxToolParams)

// Add reads a page of the list, the raw result of tools/list. Bad annotations are passed over: they make clients hide the tool. An
// error is that of [ReadList], or [ErrLongList].
func (t *ToolParams) Add(result []byte, lim Limits) (Page, error) {
	return ReadList(Tools, result, lim, func(it *Item) error {
		p, err := ParseParamHeaders(it.InputSchema.Of(it.Raw))
		if err != nil || len(p) == 0 {
			return nil
		}
		name := it.Name.String()
		if t.size += 128 + len(name) + p.Size(); t.size > maxToolParams {
			return ErrLongList
		}
		if t.byName == nil {
			t.byName = map[string]ParamHeaders{}
		}
		t.byName[name] = p
		return nil
	})
}

// Of returns the headers of a tool.
func (t *ToolParams) Of(tool string) ParamHeaders { return t.byName[tool] }

// Size is about how many bytes t takes.
func (t *ToolParams) Size() int { return 64 + t.size }

// ParseParamHeaders reads x-mcp-header in a tool's inputSchema. An error says why the annotation is invalid, and
// with it the tool: a client over HTTP has to leave it out of tools/list.
func ParseParamHeaders(inputSchema []byte) (ParamHeaders, error) {
	if !bytes.Contains(inputSchema, []byte("mcp-header")) && !bytes.Contains(inputSchema, []byte(`\u`)) {
		return nil, nil // the annotation can only be written with these bytes
	}
	var p paramParser
	if err := p.schema(inputSchema, nil, true); err != nil {
		return nil, err
	}
	return p.found, nil
}

type paramParser struct {
	found ParamHeaders
	on    map[string]int // by header: its place in found
}

const annotation = "x-mcp-header"

// schema walks one schema at path. reachable: by a chain of "properties" alone.
func (p *paramParser) schema(raw []byte, path []string, reachable bool) error {
	if len(raw) == 0 || raw[0] != '{' {
		return nil // true and false are schemas too
	}
	var kind, header []byte
	err := Members(raw, Limits{}, nil, func(name, value []byte) error {
		switch string(name) {
		case "type":
			kind = value
		case annotation:
			header = value
		case "properties":
			return p.properties(value, path, reachable)
		case "const", "default", "enum", "examples": // values, not schemas
		default:
			return p.elsewhere(value, path)
		}
		return nil
	})
	if err != nil || header == nil {
		return err
	}
	where := strings.Join(path, ".")
	if !reachable || len(path) == 0 {
		return fmt.Errorf("%s below property %q: it may only stand on properties that are reached by \"properties\" alone", annotation, where)
	}
	name, ok := Unquote(header)
	if !ok || !isToken(name) {
		return fmt.Errorf("property %q: %s is %s, which is no header name", where, annotation, clip(header))
	}
	if !primitive(kind) {
		return fmt.Errorf("property %q: %s needs type string, integer or boolean", where, annotation)
	}
	full := http.CanonicalHeaderKey(HeaderParam + string(name))
	if i, twice := p.on[full]; twice {
		return fmt.Errorf("property %q: %s %q stands on property %q too", where, annotation, name, strings.Join(p.found[i].path, "."))
	}
	if p.on == nil {
		p.on = map[string]int{}
	}
	p.on[full] = len(p.found)
	p.found = append(p.found, paramHeader{path, full})
	return nil
}

func (p *paramParser) properties(raw []byte, path []string, reachable bool) error {
	if len(raw) == 0 || raw[0] != '{' {
		return nil
	}
	return Members(raw, Limits{}, nil, func(name, value []byte) error {
		return p.schema(value, append(path[:len(path):len(path)], string(name)), reachable)
	})
}

// elsewhere looks for annotations below any other keyword, where none may stand: the value may be a schema, a
// map of schemas, a list of them, or none of that.
func (p *paramParser) elsewhere(raw []byte, path []string) error {
	switch {
	case len(raw) > 0 && raw[0] == '{':
		return p.schema(raw, path, false)
	case len(raw) > 0 && raw[0] == '[':
		return Elements(raw, Limits{}, func(value []byte) error { return p.elsewhere(value, path) })
	}
	return nil
}

// primitive reports whether a schema's type is one that a header can carry, null aside.
func primitive(raw []byte) bool {
	if len(raw) == 0 {
		return false
	}
	if raw[0] != '[' {
		t, _ := Unquote(raw)
		return string(t) == "string" || string(t) == "integer" || string(t) == "boolean"
	}
	n, ok := 0, true
	err := Elements(raw, Limits{}, func(value []byte) error {
		if string(value) != `"null"` {
			ok = ok && primitive(value)
			n++
		}
		return nil
	})
	return err == nil && ok && n == 1
}

// isToken reports whether name is a field name of HTTP: 1*tchar.
func isToken(name []byte) bool {
	for _, c := range name {
		switch {
		case '0' <= c && c <= '9', 'A' <= c && c <= 'Z', 'a' <= c && c <= 'z', strings.IndexByte("!#$%&'*+-.^_`|~", c) >= 0:
		default:
			return false
		}
	}
	return len(name) > 0
}

// Check compares the headers with the arguments of a call (raw; nil: none). The error is nil or an [*Error]
// with 400 and -32020, whose ID the caller sets. Other Mcp-Param-* headers are not judged.
func (p ParamHeaders) Check(h http.Header, arguments []byte) error {
	for _, b := range p {
		value, err := b.value(arguments)
		if err != nil {
			return err
		}
		if err := b.check(h.Values(b.header), value); err != nil {
			return err
		}
	}
	return nil
}

func (b paramHeader) check(sent []string, value []byte) error {
	name := strings.Join(b.path, ".")
	switch {
	case len(sent) > 1:
		return refusal(400, CodeHeaderMismatch, "%s was sent %d times", b.header, len(sent))
	case value == nil && len(sent) == 1:
		return refusal(400, CodeHeaderMismatch, "%s was sent, but argument %q is absent or null", b.header, name)
	case value == nil:
		return nil
	case len(sent) == 0:
		return refusal(400, CodeHeaderMismatch, "the %s header is missing, which argument %q needs", b.header, name)
	}
	decoded, ok := DecodeHeader(sent[0])
	if !ok {
		return refusal(400, CodeHeaderMismatch, "%s holds invalid characters or bad Base64", b.header)
	}
	want, number, ok := headerText(value)
	if !ok {
		return refusal(400, CodeHeaderMismatch, "argument %q is no string, boolean or integer within ±(2^53-1), as %s needs", name, b.header)
	}
	if number {
		got, isInt := integer([]byte(decoded))
		if isInt && strconv.FormatInt(got, 10) == want {
			return nil
		}
	} else if decoded == want {
		return nil
	}
	return refusal(400, CodeHeaderMismatch, "%s is %q, but argument %q says %q", b.header, clip([]byte(decoded)), name, clip([]byte(want)))
}

// Set sets the headers that a call with these arguments (raw; nil: none) carries and removes those it does not.
func (p ParamHeaders) Set(h http.Header, arguments []byte) error {
	for _, b := range p {
		h.Del(b.header)
		value, err := b.value(arguments)
		if err != nil {
			return err
		}
		if text, _, ok := headerText(value); ok {
			h[b.header] = []string{EncodeHeader(text)}
		}
	}
	return nil
}

// value finds the argument's raw value; nil where it is absent or null.
func (b paramHeader) value(arguments []byte) ([]byte, error) {
	value := arguments
	for i := range b.path {
		if len(value) == 0 || value[0] != '{' {
			return nil, nil
		}
		object := value
		value = nil
		err := Members(object, Limits{Bytes: maxBytes, Depth: maxDepth}, b.path[i:i+1], func(name, v []byte) error {
			if string(name) == b.path[i] {
				value = v
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	if string(value) == "null" {
		return nil, nil
	}
	return value, nil
}

// headerText is a raw value as a header says it, before encoding. number: it is an integer.
func headerText(raw []byte) (text string, number, ok bool) {
	if len(raw) == 0 {
		return "", false, false
	}
	switch raw[0] {
	case '"':
		t, ok := Unquote(raw)
		return string(t), false, ok
	case 't', 'f':
		return string(raw), false, true
	case '-', '0', '1', '2', '3', '4', '5', '6', '7', '8', '9':
		n, ok := integer(raw)
		return strconv.FormatInt(n, 10), true, ok
	}
	return "", false, false
}

// integer reads a number that is one, in the range where JavaScript's are exact; 42.0 is 42.
func integer(text []byte) (int64, bool) {
	s := scanner{b: text}
	if len(text) == 0 || s.number(0) != len(text) {
		return 0, false
	}
	const safe = 1<<53 - 1
	f, err := strconv.ParseFloat(string(text), 64)
	if err != nil || f != math.Trunc(f) || math.Abs(f) > safe {
		return 0, false
	}
	return int64(f), true
}
