package resource

import (
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"

	adminv1 "github.com/sluicegate/sluice/proto/gen/sluice/admin/v1"
	policyv1 "github.com/sluicegate/sluice/proto/gen/sluice/policy/v1"
)

// Encode returns an object as a single document, which [Load] reads back as the same object. An inline value
// of a credential, which no stored object has, shows as [Redacted] and does not load.
func Encode(o *adminv1.Object) []byte {
	kind := Kind(o)
	var y yamlWriter
	if kind == "" {
		return nil
	}
	name := o.GetName()
	if kind == "target" {
		name = TargetName(o) // the spec names the backend
	}
	document := shown{fields: []shownField{
		{"kind", shown{text: strings.ToUpper(kind[:1]) + kind[1:]}},
		{"name", shown{text: name, expands: true}},
		{"spec", showSpec(o)},
	}}
	y.fields(document.fields, 0)
	return []byte(y.String())
}

// shown is a value as it is written: a map, a list or a scalar. Zero fields of messages are left out.
type shown struct {
	fields  []shownField // of a map, if not nil
	items   []shown      // of a list, if not nil
	text    string       // of a scalar
	bare    bool         // a number or truth value
	expands bool         // a string in which $ must be doubled
	secret  string       // what text stands for, if redacted; never written, only compared
}

type shownField struct {
	name  string
	value shown
}

func showSpec(o *adminv1.Object) shown {
	s, ok := spec(o).(protoreflect.ProtoMessage)
	if !ok {
		return shown{fields: []shownField{}}
	}
	return show(s.ProtoReflect())
}

// Show returns what a message of an object holds as it would be written in YAML, as values for JSON and
// tables: maps, lists, strings, float64 and bool. Credentials are redacted.
func Show(m protoreflect.ProtoMessage) any {
	return show(m.ProtoReflect()).plain()
}

func (s shown) plain() any {
	switch {
	case s.fields != nil:
		out := make(map[string]any, len(s.fields))
		for _, f := range s.fields {
			out[f.name] = f.value.plain()
		}
		return out
	case s.items != nil:
		out := make([]any, len(s.items))
		for i, item := range s.items {
			out[i] = item.plain()
		}
		return out
	case !s.bare:
		return s.text
	case s.text == "null":
		return nil
	case s.text == "true", s.text == "false":
		return s.text == "true"
	}
	v, err := strconv.ParseFloat(s.text, 64)
	if err != nil {
		return s.text
	}
	return v
}

func show(m protoreflect.Message) shown {
	switch v := m.Interface().(type) {
	case *structpb.Struct:
		return showStruct(v)
	case *durationpb.Duration:
		return shown{text: durationText(v.AsDuration())}
	case *policyv1.Credential:
		if value, ok := v.GetSource().(*policyv1.Credential_Value); ok {
			return shown{fields: []shownField{{"value", shown{text: Redacted, secret: value.Value}}}}
		}
	case *policyv1.Value:
		if literal, ok := v.GetKind().(*policyv1.Value_Value); ok {
			return shown{text: literal.Value, expands: true}
		}
	case *adminv1.HttpTransport:
		return showTransport(v)
	}
	out := shown{fields: []shownField{}}
	literal := shapes[m.Descriptor().FullName()].literal
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		fd := fields.Get(i)
		if leftOut(m, fd) {
			continue
		}
		out.fields = append(out.fields, shownField{fd.JSONName(), showField(m, fd, !slices.Contains(literal, fd.JSONName()))})
	}
	return out
}

// durationText writes 1h0m0s as 1h.
func durationText(d time.Duration) string {
	text := d.String()
	if strings.HasSuffix(text, "m0s") {
		text = strings.TrimSuffix(text, "0s")
	}
	if strings.HasSuffix(text, "h0m") {
		text = strings.TrimSuffix(text, "0m")
	}
	return text
}

// leftOut tells what need not be written: what is unset, and numbers whose default is not 0.
func leftOut(m protoreflect.Message, fd protoreflect.FieldDescriptor) bool {
	switch v := m.Interface().(type) {
	case *adminv1.RouteBackend:
		if fd.Name() == "weight" {
			return v.GetWeight() == 1
		}
	case *adminv1.Target:
		if fd.Name() == "index" {
			return v.GetIndex() == LastIndex
		}
	}
	return !m.Has(fd)
}

func showField(m protoreflect.Message, fd protoreflect.FieldDescriptor, expands bool) shown {
	v := m.Get(fd)
	switch {
	case fd.IsMap():
		out := shown{fields: []shownField{}}
		v.Map().Range(func(k protoreflect.MapKey, v protoreflect.Value) bool {
			value := shown{text: v.String(), expands: true}
			if fd.MapValue().Message() != nil {
				value = show(v.Message())
			}
			out.fields = append(out.fields, shownField{k.String(), value})
			return true
		})
		slices.SortFunc(out.fields, func(a, b shownField) int { return strings.Compare(a.name, b.name) })
		return out
	case fd.IsList():
		out := shown{items: []shown{}}
		for i := range v.List().Len() {
			out.items = append(out.items, showValue(v.List().Get(i), fd, expands))
		}
		return out
	}
	return showValue(v, fd, expands)
}

func showValue(v protoreflect.Value, fd protoreflect.FieldDescriptor, expands bool) shown {
	switch fd.Kind() {
	case protoreflect.MessageKind:
		return show(v.Message())
	case protoreflect.EnumKind:
		if ev := fd.Enum().Values().ByNumber(v.Enum()); ev != nil {
			return shown{text: enumName(ev)}
		}
		return shown{text: strconv.Itoa(int(v.Enum())), bare: true}
	case protoreflect.StringKind:
		return shown{text: v.String(), expands: expands}
	}
	return shown{text: fmt.Sprint(v.Interface()), bare: true}
}

func showStruct(s *structpb.Struct) shown {
	out := shown{fields: []shownField{}}
	for name, v := range s.GetFields() {
		out.fields = append(out.fields, shownField{name, showAny(v)})
	}
	slices.SortFunc(out.fields, func(a, b shownField) int { return strings.Compare(a.name, b.name) })
	return out
}

func showAny(v *structpb.Value) shown {
	switch v := v.GetKind().(type) {
	case *structpb.Value_StructValue:
		return showStruct(v.StructValue)
	case *structpb.Value_ListValue:
		out := shown{items: []shown{}}
		for _, item := range v.ListValue.GetValues() {
			out.items = append(out.items, showAny(item))
		}
		return out
	case *structpb.Value_StringValue:
		return shown{text: v.StringValue, expands: true}
	case *structpb.Value_NumberValue:
		return shown{text: quoteNumber(v.NumberValue), bare: true}
	case *structpb.Value_BoolValue:
		return shown{text: strconv.FormatBool(v.BoolValue), bare: true}
	}
	return shown{text: "null", bare: true}
}

func quoteNumber(v float64) string { return strconv.FormatFloat(v, 'g', -1, 64) }

// showTransport writes a URL. What no URL could say, e.g. a path that does not begin with /, is no valid
// object and shows as its fields.
func showTransport(t *adminv1.HttpTransport) shown {
	scheme, usual := "http", uint32(80)
	if t.GetTls() {
		scheme, usual = "https", 443
	}
	host := t.GetHost()
	if a, err := netip.ParseAddr(host); err == nil && a.Is6() {
		host = "[" + host + "]"
	}
	if t.GetPort() != usual {
		host = net.JoinHostPort(t.GetHost(), strconv.Itoa(int(t.GetPort())))
	}
	return shown{fields: []shownField{{"host", shown{text: scheme + "://" + host + t.GetPath(), expands: true}}}}
}

// A yamlWriter writes block style, two columns for each level.
type yamlWriter struct{ strings.Builder }

func (y *yamlWriter) fields(fields []shownField, indent int) {
	for i, f := range fields {
		if i > 0 || indent == 0 || !strings.HasSuffix(y.String(), "- ") {
			y.WriteString(strings.Repeat(" ", indent))
		}
		y.WriteString(scalarText(f.name, false) + ":")
		y.value(f.value, indent)
	}
}

func (y *yamlWriter) value(s shown, indent int) {
	switch {
	case s.fields != nil && len(s.fields) == 0:
		y.WriteString(" {}\n")
	case s.fields != nil:
		y.WriteString("\n")
		y.fields(s.fields, indent+2)
	case s.items != nil && len(s.items) == 0:
		y.WriteString(" []\n")
	case s.items != nil:
		y.WriteString("\n")
		for _, item := range s.items {
			y.item(item, indent)
		}
	default:
		y.WriteString(" " + s.scalar() + "\n")
	}
}

func (y *yamlWriter) item(s shown, indent int) {
	y.WriteString(strings.Repeat(" ", indent) + "-")
	switch {
	case len(s.fields) > 0:
		y.WriteString(" ")
		y.fields(s.fields, indent+2)
	case len(s.items) > 0: // a list in a list is rare enough for a line of its own
		y.value(s, indent+2)
	default:
		y.value(s, indent)
	}
}

func (s shown) scalar() string {
	if s.bare {
		return s.text
	}
	text := s.text
	if s.expands {
		text = strings.ReplaceAll(text, "$", "$$")
	}
	return scalarText(text, true)
}

// scalarText writes a string plain where every reader takes it for that very string, else in double quotes,
// of which YAML knows all of JSON's escapes.
func scalarText(text string, value bool) string {
	plain := text != "" && !looksTyped(text) && text[len(text)-1] != ':' && text[len(text)-1] != ' '
	for i, c := range text {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', c == '_', c == '/':
		case i > 0 && ('0' <= c && c <= '9' || strings.ContainsRune("-.+@=();$", c)):
		case i > 0 && c == ' ' && value && text[i-1] != ' ' && text[i-1] != ':':
		case i > 0 && c == ':' && value:
		default:
			plain = false
		}
	}
	switch {
	case plain && !strings.Contains(text, ": "), durationLike.MatchString(text):
		return text
	case strings.Contains(text, `"`) && !strings.ContainsFunc(text, func(c rune) bool { return c < ' ' || c > '~' || c == '\'' }):
		return "'" + text + "'" // CEL stays readable
	}
	return quoteYAML(text)
}

var durationLike = regexp.MustCompile(`^([0-9]+(h|m|s|ms))+$`)

// looksTyped tells whether some reader of YAML takes a word for a truth value or nothing.
func looksTyped(text string) bool {
	switch strings.ToLower(text) {
	case "true", "false", "yes", "no", "on", "off", "y", "n", "null":
		return true
	}
	return false
}

func quoteYAML(text string) string {
	var b strings.Builder
	b.WriteByte('"')
	for _, c := range text {
		switch {
		case c == '"' || c == '\\':
			b.WriteString("\\" + string(c))
		case c == '\n':
			b.WriteString(`\n`)
		case c == '\t':
			b.WriteString(`\t`)
		case c == '\r':
			b.WriteString(`\r`)
		case c < 0x20 || c == 0x7f || c >= 0x80 && c <= 0xa0 || c == 0x2028 || c == 0x2029 || c == 0xfeff:
			fmt.Fprintf(&b, `\u%04x`, c)
		default:
			b.WriteRune(c)
		}
	}
	b.WriteByte('"')
	return b.String()
}
