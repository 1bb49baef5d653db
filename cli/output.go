package cli

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/goccy/go-yaml"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// output is the -o flag. It is checked before a command does anything.
type output struct{ format string }

var formats = []string{"table", "json", "yaml"}

func (o *output) flag(cmd *cobra.Command) {
	o.format = formats[0]
	cmd.Flags().VarP(o, "output", "o", "table, json or yaml")
	_ = cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions(formats, cobra.ShellCompDirectiveNoFileComp))
}

// Set implements pflag.Value.
func (o *output) Set(s string) error {
	if !slices.Contains(formats, s) {
		return errors.New("want table, json or yaml")
	}
	o.format = s
	return nil
}

func (o *output) String() string { return o.format }
func (o *output) Type() string   { return "format" }

// print writes value as JSON or YAML, or calls table.
func (o *output) print(w io.Writer, value any, table func(io.Writer) error) error {
	switch o.format {
	case "json":
		return writeJSON(w, value)
	case "yaml":
		data, err := asYAML(value)
		if err != nil {
			return err
		}
		_, err = w.Write(data)
		return err
	}
	return table(w)
}

// asYAML goes by way of JSON, so that both have the same fields and whole numbers stay whole. Where text is such that YAML may not
// hold it as it is, or the library does not know how to write it, the JSON is the YAML, in escapes.
func asYAML(value any) ([]byte, error) {
	var data bytes.Buffer
	if err := writeJSON(&data, value); err != nil {
		return nil, err
	}
	if out, err := yaml.JSONToYAML(data.Bytes()); err == nil && bytes.IndexFunc(out, hidden) < 0 && means(out, data.Bytes()) {
		return out, nil
	}
	var escaped []byte
	for _, r := range data.String() {
		if !hidden(r) {
			escaped = utf8.AppendRune(escaped, r)
			continue
		}
		for _, unit := range utf16.AppendRune(nil, r) {
			escaped = fmt.Appendf(escaped, `\u%04x`, unit)
		}
	}
	return escaped, nil
}

// means tells whether YAML is read as the very thing that JSON is.
func means(asYAML, asJSON []byte) bool {
	back, err := yaml.YAMLToJSON(asYAML)
	var got, want any
	return err == nil && json.Unmarshal(back, &got) == nil && json.Unmarshal(asJSON, &want) == nil && reflect.DeepEqual(got, want)
}

func writeJSON(w io.Writer, value any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(value)
}

// hidden tells what a terminal or a reader of lines may obey instead of showing it.
func hidden(r rune) bool { return r != '\n' && !unicode.IsGraphic(r) }

// told is text that others wrote, fit for a terminal: what is hidden shows as an escape.
func told(text string) string {
	if utf8.ValidString(text) && !strings.ContainsFunc(text, hidden) {
		return text
	}
	var b strings.Builder
	for len(text) > 0 {
		r, size := utf8.DecodeRuneInString(text)
		if hidden(r) || r == utf8.RuneError && size == 1 {
			quoted := strconv.Quote(text[:size])
			b.WriteString(quoted[1 : len(quoted)-1])
		} else {
			b.WriteString(text[:size])
		}
		text = text[size:]
	}
	return b.String()
}

// rows prints a table whose first row is the head. A cell stays one.
func rows(w io.Writer, head string, lines func(row func(cells ...any))) error {
	tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(tw, strings.ReplaceAll(head, " ", "\t"))
	lines(func(cells ...any) {
		for i, c := range cells {
			if i > 0 {
				fmt.Fprint(tw, "\t")
			}
			fmt.Fprint(tw, strings.ReplaceAll(told(fmt.Sprint(c)), "\n", `\n`))
		}
		fmt.Fprintln(tw)
	})
	return tw.Flush()
}

// plain turns messages into what encoding/json prints, each field present: integers of 64 bits stay numbers (protojson
// makes strings of them, which jq users trip over) and enums are their last word in lower case.
func plain[M proto.Message](messages []M) []any {
	out := make([]any, 0, len(messages))
	for _, m := range messages {
		out = append(out, plainMessage(m.ProtoReflect()))
	}
	return out
}

// plainOne is [plain] for one message, which must not be one that is shown as a scalar.
func plainOne(m proto.Message) map[string]any { return plainMessage(m.ProtoReflect()).(map[string]any) }

func plainMessage(m protoreflect.Message) any {
	switch v := m.Interface().(type) {
	case *timestamppb.Timestamp:
		return v.AsTime().UTC().Format(time.RFC3339Nano)
	case *durationpb.Duration:
		return v.AsDuration().String()
	case *structpb.Value:
		return v.AsInterface()
	case *structpb.Struct:
		return v.AsMap()
	}
	out := map[string]any{}
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		if !m.Has(f) && (f.Message() != nil && !f.IsList() && !f.IsMap() || f.ContainingOneof() != nil) {
			continue // an absent message has no shape to show
		}
		out[f.JSONName()] = plainField(f, m.Get(f))
	}
	return out
}

func plainField(f protoreflect.FieldDescriptor, v protoreflect.Value) any {
	switch {
	case f.IsMap():
		out := map[string]any{}
		v.Map().Range(func(k protoreflect.MapKey, v protoreflect.Value) bool {
			out[k.String()] = plainScalar(f.MapValue(), v)
			return true
		})
		return out
	case f.IsList():
		out := make([]any, 0, v.List().Len())
		for i := range v.List().Len() {
			out = append(out, plainScalar(f, v.List().Get(i)))
		}
		return out
	}
	return plainScalar(f, v)
}

func plainScalar(f protoreflect.FieldDescriptor, v protoreflect.Value) any {
	switch f.Kind() {
	case protoreflect.MessageKind:
		return plainMessage(v.Message())
	case protoreflect.EnumKind:
		name := string(f.Enum().Values().ByNumber(v.Enum()).Name())
		return strings.ToLower(name[strings.LastIndex(name, "_")+1:])
	}
	return v.Interface()
}

// ago is a time for people.
func ago(t *timestamppb.Timestamp) string {
	if t == nil {
		return "never"
	}
	d := time.Since(t.AsTime())
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%ds ago", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm ago", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh ago", int(d.Hours()))
	}
	return t.AsTime().Local().Format(time.DateOnly)
}

// list is a few names for people.
func list(names []string) string {
	if len(names) == 0 {
		return "-"
	}
	return strings.Join(slices.Sorted(slices.Values(names)), ", ")
}
