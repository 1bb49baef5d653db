package resource

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"

	adminv1 "github.com/sluicegate/sluice/proto/gen/sluice/admin/v1"
)

// A decoder reads the nodes of one file into messages, guided by nothing but their descriptors and the
// shapes of shapes.go. It goes on after an error, to tell all of them at once.
type decoder struct {
	file     string
	env      func(string) (string, bool) // nil: $ is no variable
	required func(string) (string, bool) // env for variables without a default; nil: env
	problems []problem
}

func (d *decoder) fail(p position, path, message, hint string) {
	d.problems = append(d.problems, problem{p, path, message, hint})
}

func (d *decoder) failNode(n *node, message, hint string) { d.fail(n.pos, n.path, message, hint) }

// want reports a node that is not of a kind, and whether it is.
func (d *decoder) want(n *node, kind nodeKind) bool {
	if n.kind == kind {
		return true
	}
	d.wrongType(n, kind.String(), kind)
	return false
}

func (d *decoder) wrongType(n *node, wanted string, kind nodeKind) {
	hint := ""
	switch {
	case n.kind == nullNode:
		hint = "remove the key, or give it a value"
		if kind == mapNode {
			hint = "remove the key, or write {}"
		}
	case kind == stringNode && (n.kind == numberNode || n.kind == boolNode):
		hint = fmt.Sprintf("quote it: %q", n.text)
	case kind == listNode && n.kind == stringNode && len(n.text) < 40 && !strings.Contains(n.text, "\n"):
		hint = fmt.Sprintf("write [%q]", n.text)
	case kind == listNode:
		hint = "begin its lines with -"
	}
	d.failNode(n, fmt.Sprintf("expected %s, found %s", wanted, n.kind), hint)
}

// fields checks that a map of a file's frame (what is no message of its own) has no keys but these, and
// returns false for what is no map.
func (d *decoder) fields(n *node, refused map[string]string, names ...string) bool {
	if !d.want(n, mapNode) {
		return false
	}
	for _, e := range n.entries {
		if !slices.Contains(names, e.key) {
			d.unknown(n, e, refused, names)
		}
	}
	return true
}

func (d *decoder) unknown(n *node, e entry, refused map[string]string, valid []string) {
	if hint, ok := refused[e.key]; ok {
		d.fail(e.pos, n.path, fmt.Sprintf("%q is not supported", e.key), hint)
		return
	}
	hint := didYouMean(e.key, valid)
	if hint == "" && len(valid) == 0 {
		hint = "it has no fields"
	} else if hint == "" {
		hint = "valid are " + strings.Join(slices.Sorted(slices.Values(valid)), ", ")
	}
	d.fail(e.pos, n.path, fmt.Sprintf("unknown field %q", e.key), hint)
}

// string returns the expanded text of a string node.
func (d *decoder) string(n *node) (string, bool) {
	if !d.want(n, stringNode) {
		return "", false
	}
	s, _, ok := d.expand(n)
	return s, ok
}

func (d *decoder) expand(n *node) (s string, expanded, ok bool) {
	if n.kind != stringNode || n.final || d.env == nil {
		return n.text, false, true
	}
	required := d.required
	if required == nil {
		required = d.env
	}
	s, expanded, err := expand(n.text, d.env, required)
	if err != nil {
		hint := "write $$ for a dollar sign"
		if strings.Contains(err.Error(), "is not set") {
			hint = "set it, give a default (${NAME:-default}), or write $$ for a dollar sign"
		}
		d.failNode(n, err.Error(), hint)
	}
	return s, expanded, err == nil
}

// uint reads a whole number; one that came from a variable may be quoted.
func (d *decoder) uint(n *node, bits int) (uint64, bool) {
	s, expanded, ok := d.expand(n)
	if !ok {
		return 0, false
	}
	if n.kind != numberNode && !expanded {
		hint := ""
		if _, err := strconv.ParseUint(n.text, 10, bits); n.kind == stringNode && err == nil {
			hint = "leave out the quotes"
		}
		d.failNode(n, fmt.Sprintf("expected a number, found %s", n.kind), hint)
		return 0, false
	}
	v, err := strconv.ParseUint(s, 10, bits)
	if err != nil {
		message := fmt.Sprintf("%s is no whole number from 0 to %d", s, uint64(1)<<bits-1)
		if expanded { // what a variable holds may be a secret that went astray
			message = fmt.Sprintf("the value of %s is no whole number from 0 to %d", n.text, uint64(1)<<bits-1)
		}
		d.failNode(n, message, "")
	}
	return v, err == nil
}

func (d *decoder) bool(n *node) (v, ok bool) {
	s, expanded, ok := d.expand(n)
	switch {
	case !ok:
		return false, false
	case n.kind == boolNode, expanded && (s == "true" || s == "false"):
		return s == "true", true
	}
	hint := ""
	if n.text == "true" || n.text == "false" {
		hint = "leave out the quotes"
	}
	d.failNode(n, fmt.Sprintf("expected true or false, found %s", n.kind), hint)
	return false, false
}

// A scope is where in an object's spec the decoder is, and keeps the places.
type scope struct {
	*decoder
	source *adminv1.Source
	at     string   // path in the spec
	extra  []string // further fields of this map that were taken out before: an unknown one may mean them
}

func (s scope) in(field string) scope {
	s.at, s.extra = join(s.at, field), nil
	return s
}

// mark keeps the place of the current path, unless the lookup through the nearest known one around it would
// find the same.
func (s scope) mark(p position, path string) {
	known, knownPath := locate(s.source, s.at)
	if int(known.GetLine()) == p.line && int(known.GetColumn()) == p.column && knownPath == path {
		return
	}
	pos := p.proto()
	if path != join(s.source.GetPath(), s.at) {
		pos.Path = path
	}
	if s.source.Fields == nil {
		s.source.Fields = map[string]*adminv1.Position{}
	}
	s.source.Fields[s.at] = pos
}

// message reads a map into a message. What is wrong is reported; the rest is read.
func (s scope) message(n *node, m protoreflect.Message) {
	switch v := m.Interface().(type) {
	case *structpb.Struct:
		if s.want(n, mapNode) {
			proto.Merge(v, s.structure(n))
		}
		return
	case *durationpb.Duration:
		s.duration(n, v)
		return
	}
	sh := shapes[m.Descriptor().FullName()]
	if sh.rewrite != nil {
		if n = sh.rewrite(s.decoder, n); n == nil {
			return
		}
	}
	if !s.want(n, mapNode) {
		return
	}
	set, unknown := map[protoreflect.Name]entry{}, false
	for _, e := range n.entries {
		name := e.key
		if full, ok := sh.alias[name]; ok {
			name = full
		}
		fd := m.Descriptor().Fields().ByJSONName(name)
		if fd == nil || slices.Contains(sh.hidden, name) && !e.value.final {
			s.unknown(n, e, sh.refuse, append(validFields(m.Descriptor(), sh), s.extra...))
			unknown = true
			continue
		}
		if before, twice := set[fd.Name()]; twice {
			s.fail(e.pos, n.path, fmt.Sprintf("%q and %q are the same field", before.key, e.key), "remove one")
			continue
		}
		if o := fd.ContainingOneof(); o != nil {
			if before, twice := set[o.Name()]; twice {
				s.fail(e.pos, n.path, fmt.Sprintf("%q and %q cannot both be set", before.key, e.key), "remove one")
				continue
			}
			set[o.Name()] = e
		}
		set[fd.Name()] = e
		s.in(name).field(e, m, fd, slices.Contains(sh.literal, name))
	}
	for i := range m.Descriptor().Oneofs().Len() {
		o := m.Descriptor().Oneofs().Get(i)
		if _, ok := set[o.Name()]; !ok && !unknown && !o.IsSynthetic() { // an unknown field may be the one that is missing
			s.failNode(n, fmt.Sprintf("one of %s must be set", list(oneofFields(o, sh))), "")
		}
	}
}

// validFields are the names that may be written in a message: what an unknown one is compared with.
func validFields(desc protoreflect.MessageDescriptor, sh shape) []string {
	names := slices.Clone(sh.also)
	for i := range desc.Fields().Len() {
		if name := desc.Fields().Get(i).JSONName(); !slices.Contains(sh.hidden, name) {
			names = append(names, name)
		}
	}
	for alias := range sh.alias {
		names = append(names, alias)
	}
	return names
}

func oneofFields(o protoreflect.OneofDescriptor, sh shape) []string {
	var names []string
	for i := range o.Fields().Len() {
		if name := o.Fields().Get(i).JSONName(); !slices.Contains(sh.hidden, name) {
			names = append(names, name)
		}
	}
	return names
}

// field reads the value of one entry.
func (s scope) field(e entry, m protoreflect.Message, fd protoreflect.FieldDescriptor, literal bool) {
	n := e.value
	s.mark(e.pos, n.path)
	switch {
	case fd.IsMap():
		if !s.want(n, mapNode) {
			return
		}
		values := m.Mutable(fd).Map()
		for _, e := range n.entries {
			if fd.MapValue().Message() != nil {
				v := values.NewValue()
				s.in(e.key).mark(e.pos, e.value.path)
				s.in(e.key).message(e.value, v.Message())
				values.Set(protoreflect.ValueOfString(e.key).MapKey(), v)
				continue
			}
			if text, ok := s.text(e.value, literal); ok {
				values.Set(protoreflect.ValueOfString(e.key).MapKey(), protoreflect.ValueOfString(text))
			}
			s.in(e.key).mark(e.pos, e.value.path)
		}
	case fd.IsList():
		if !s.want(n, listNode) {
			return
		}
		values := m.Mutable(fd).List()
		for i, item := range n.items {
			place := s
			place.at, place.extra = index(s.at, i), nil
			place.mark(item.pos, item.path)
			if fd.Message() != nil {
				place.message(item, values.AppendMutable().Message())
			} else if v, ok := place.scalar(item, fd, literal); ok {
				values.Append(v)
			}
		}
	case fd.Message() != nil:
		s.message(n, m.Mutable(fd).Message())
	default:
		if v, ok := s.scalar(n, fd, literal); ok {
			m.Set(fd, v)
		}
	}
}

// text reads a string, expanded unless it is literal.
func (s scope) text(n *node, literal bool) (string, bool) {
	if literal {
		return n.text, s.want(n, stringNode)
	}
	return s.string(n)
}

func (s scope) scalar(n *node, fd protoreflect.FieldDescriptor, literal bool) (protoreflect.Value, bool) {
	switch fd.Kind() {
	case protoreflect.StringKind:
		v, ok := s.text(n, literal)
		return protoreflect.ValueOfString(v), ok
	case protoreflect.BoolKind:
		v, ok := s.bool(n)
		return protoreflect.ValueOfBool(v), ok
	case protoreflect.Uint32Kind:
		v, ok := s.uint(n, 32)
		return protoreflect.ValueOfUint32(uint32(v)), ok
	case protoreflect.EnumKind:
		v, ok := s.enum(n, fd.Enum())
		return protoreflect.ValueOfEnum(v), ok
	}
	panic("resource: no YAML form of " + string(fd.FullName())) // a test walks all fields
}

// enum reads a value by its name without the prefix, in lower camel case: FAILURE_MODE_FAIL_OPEN is failOpen.
func (s scope) enum(n *node, ed protoreflect.EnumDescriptor) (protoreflect.EnumNumber, bool) {
	text, ok := s.string(n)
	if !ok {
		return 0, false
	}
	var names []string
	for i := 1; i < ed.Values().Len(); i++ {
		v := ed.Values().Get(i)
		if enumName(v) == text {
			return v.Number(), true
		}
		names = append(names, enumName(v))
	}
	hint := didYouMean(text, names)
	if hint == "" {
		hint = "valid are " + strings.Join(names, ", ")
	}
	s.failNode(n, fmt.Sprintf("unknown value %q", text), hint)
	return 0, false
}

// enumName is how YAML spells an enum's value.
func enumName(v protoreflect.EnumValueDescriptor) string {
	enum := v.Parent().(protoreflect.EnumDescriptor)
	prefix := len(strings.TrimSuffix(string(enum.Values().Get(0).Name()), "UNSPECIFIED"))
	words := strings.Split(strings.ToLower(string(v.Name())[prefix:]), "_")
	for i, w := range words[1:] {
		words[i+1] = strings.ToUpper(w[:1]) + w[1:]
	}
	return strings.Join(words, "")
}

func (s scope) duration(n *node, v *durationpb.Duration) {
	if n.kind == numberNode {
		s.failNode(n, "expected a duration, found a number", fmt.Sprintf("give its unit: %ss", n.text))
		return
	}
	text, ok := s.string(n)
	if !ok {
		return
	}
	dur, err := time.ParseDuration(text)
	if err != nil || dur < 0 {
		s.failNode(n, fmt.Sprintf("%q is no duration", text), "write e.g. 500ms, 5s, 10m or 24h")
		return
	}
	proto.Merge(v, durationpb.New(dur))
}

// structure reads a map without a schema.
func (s scope) structure(n *node) *structpb.Struct {
	out := &structpb.Struct{Fields: map[string]*structpb.Value{}}
	for _, e := range n.entries {
		out.Fields[e.key] = s.value(e.value)
	}
	return out
}

func (s scope) value(n *node) *structpb.Value {
	switch n.kind {
	case stringNode:
		s.redacted(n)
		text, _ := s.string(n)
		return structpb.NewStringValue(text)
	case boolNode:
		return structpb.NewBoolValue(n.text == "true")
	case numberNode:
		v, err := parseNumber(n.text)
		if err != nil {
			s.failNode(n, err.Error(), "")
		}
		return structpb.NewNumberValue(v)
	case mapNode:
		return structpb.NewStructValue(s.structure(n))
	case listNode:
		out := &structpb.ListValue{}
		for _, item := range n.items {
			out.Values = append(out.Values, s.value(item))
		}
		return structpb.NewListValue(out)
	}
	return structpb.NewNullValue()
}

// parseNumber reads a number as JSON writes it; YAML's octals, separators and infinities are refused, since
// readers differ about them.
func parseNumber(text string) (float64, error) {
	v, err := strconv.ParseFloat(strings.TrimPrefix(text, "+"), 64)
	digits := strings.TrimLeft(text, "+-")
	if err != nil && !errors.Is(err, strconv.ErrRange) || strings.ContainsAny(text, "_xXpPiInN") || len(digits) > 1 && digits[0] == '0' && digits[1] >= '0' && digits[1] <= '9' {
		return 0, fmt.Errorf("%s is no plain decimal number", text)
	}
	if err != nil {
		return 0, fmt.Errorf("%s is out of range", text)
	}
	return v, nil
}
