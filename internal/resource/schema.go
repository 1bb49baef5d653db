package resource

import (
	"encoding/json"
	"maps"
	"slices"
	"strings"

	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/sluicegate/sluice/internal/policy"
	adminv1 "github.com/sluicegate/sluice/proto/gen/sluice/admin/v1"
	policyv1 "github.com/sluicegate/sluice/proto/gen/sluice/policy/v1"
	testv1 "github.com/sluicegate/sluice/proto/gen/sluice/test/v1"
)

// draft is what editors know best: yaml-language-server validates by draft-07 whatever a schema says.
const draft = "http://json-schema.org/draft-07/schema#"

// Schema returns the JSON Schema (draft-07) of configuration files in all three forms, made from what [Load] reads by: the protos'
// descriptors and comments, the short spellings, and the registry of policies, so that a kind which means nothing at a level
// is not in that level's schema. What [Load] takes the schema takes; what only values decide ([Validate]) it does not know.
func Schema() []byte {
	g := newSchemas()
	g.frame()
	return g.document(node07{
		"title": "Sluice configuration",
		"if":    node07{"type": "object", "required": []any{"kind"}},
		"then":  ref("document"),
		"else":  ref("file"),
	})
}

// SchemaOfTests is [Schema] for files of policy tests.
func SchemaOfTests() []byte {
	g := newSchemas()
	root := g.message((&testv1.File{}).ProtoReflect().Descriptor())
	return g.document(node07{"title": "Sluice policy tests", "allOf": []any{root}})
}

// node07 is a JSON Schema.
type node07 map[string]any

func ref(name string) node07 { return node07{"$ref": "#/definitions/" + name} }

// schemas makes schemas of messages. Each is made once, and referred to.
type schemas struct {
	definitions map[string]any
	comments    map[protoreflect.FullName]string
}

func newSchemas() *schemas { return &schemas{definitions: map[string]any{}, comments: comments()} }

func (g *schemas) document(root node07) []byte {
	root["$schema"], root["definitions"] = draft, g.definitions
	data, err := json.MarshalIndent(root, "", "  ")
	if err != nil {
		panic("resource: schema: " + err.Error()) // it holds nothing that cannot be JSON
	}
	return append(data, '\n')
}

// message refers to the schema of a message.
func (g *schemas) message(desc protoreflect.MessageDescriptor) node07 {
	switch desc.FullName() {
	case "google.protobuf.Struct":
		return node07{"type": "object"}
	case "google.protobuf.Duration":
		return node07{"type": "string", "pattern": `^([0-9.]+(ns|us|µs|ms|s|m|h))+$|^0$|\$`}
	}
	name := definitionOf(desc)
	if _, known := g.definitions[name]; !known {
		g.definitions[name] = nil // a message may hold itself
		g.definitions[name] = g.spelled(desc, g.object(desc))
	}
	return ref(name)
}

func definitionOf(desc protoreflect.MessageDescriptor) string {
	name := strings.TrimPrefix(string(desc.FullName()), "sluice.")
	return strings.Replace(name, ".v1.", ".", 1)
}

// spelled adds to a message's own form what else may be written for it.
func (g *schemas) spelled(desc protoreflect.MessageDescriptor, own node07) node07 {
	if spell := spellings[desc.FullName()]; spell != nil {
		own = spell(g, own)
	}
	if text := g.comments[desc.FullName()]; text != "" {
		own["description"] = text
	}
	return own
}

// object is a message as a map of its fields.
func (g *schemas) object(desc protoreflect.MessageDescriptor) node07 {
	sh := shapes[desc.FullName()]
	properties := node07{}
	for i := range desc.Fields().Len() {
		fd := desc.Fields().Get(i)
		if !slices.Contains(sh.hidden, fd.JSONName()) {
			properties[fd.JSONName()] = g.field(fd)
		}
	}
	for alias, name := range sh.alias {
		properties[alias] = properties[name]
	}
	own := node07{"type": "object", "additionalProperties": false, "properties": properties}
	var choices []any
	for i := range desc.Oneofs().Len() {
		if o := desc.Oneofs().Get(i); !o.IsSynthetic() {
			choices = append(choices, node07{"oneOf": choice(o, sh)})
		}
	}
	if len(choices) > 0 {
		own["allOf"] = choices
	}
	return own
}

// choice wants one of the fields of a oneof, by any of its names.
func choice(o protoreflect.OneofDescriptor, sh shape) []any {
	var all []any
	for _, name := range oneofFields(o, sh) {
		all = append(all, required(name))
	}
	for _, alias := range slices.Sorted(maps.Keys(sh.alias)) {
		if slices.Contains(oneofFields(o, sh), sh.alias[alias]) {
			all = append(all, required(alias))
		}
	}
	return all
}

func required(names ...string) node07 {
	all := make([]any, len(names))
	for i, n := range names {
		all[i] = n
	}
	return node07{"required": all}
}

// field is the schema of a field's value, with what the proto says of it.
func (g *schemas) field(fd protoreflect.FieldDescriptor) node07 {
	var s node07
	switch {
	case fd.IsMap() && fd.MapValue().Message() != nil:
		s = node07{"type": "object", "additionalProperties": g.message(fd.MapValue().Message())}
	case fd.IsMap():
		s = node07{"type": "object", "additionalProperties": node07{"type": "string"}}
	case fd.IsList():
		s = node07{"type": "array", "items": g.value(fd)}
	default:
		s = g.value(fd)
	}
	text := g.comments[fd.FullName()]
	if o := fd.ContainingOneof(); text == "" && o != nil {
		text = g.comments[o.FullName()]
	}
	if text != "" {
		if _, refers := s["$ref"]; refers { // what stands beside a reference is not read in draft-07
			s = node07{"allOf": []any{s}}
		}
		s["description"] = text
	}
	return s
}

// variable is a string that a variable fills in.
var variableText = node07{"type": "string", "pattern": `\$`}

func (g *schemas) value(fd protoreflect.FieldDescriptor) node07 {
	switch fd.Kind() {
	case protoreflect.MessageKind:
		if fd.Message().FullName() == policyPackage+"Policies" {
			return ref("policies." + strings.ToLower(string(fd.ContainingMessage().Name())))
		}
		return g.message(fd.Message())
	case protoreflect.BoolKind:
		return node07{"anyOf": []any{node07{"type": "boolean"}, variableText}}
	case protoreflect.Uint32Kind:
		return node07{"anyOf": []any{node07{"type": "integer", "minimum": 0}, variableText}}
	case protoreflect.EnumKind:
		var names []any
		for i := 1; i < fd.Enum().Values().Len(); i++ {
			names = append(names, enumName(fd.Enum().Values().Get(i)))
		}
		return node07{"anyOf": []any{node07{"enum": names}, variableText}}
	}
	return node07{"type": "string"}
}

// policies are the kinds that mean something at one of some levels.
func (g *schemas) policies(name string, at ...policy.Level) {
	own := g.object((&policyv1.Policies{}).ProtoReflect().Descriptor())
	properties := own["properties"].(node07)
	for _, k := range policy.Kinds() {
		if !slices.ContainsFunc(at, func(l policy.Level) bool { return slices.Contains(k.Levels, l) }) {
			delete(properties, k.Name)
		}
	}
	g.definitions["policies."+name] = own
}

// target is a target with the kinds that mean something on its transport.
func (g *schemas) target() node07 {
	s := g.object((&adminv1.Target{}).ProtoReflect().Descriptor())
	for transport, t := range map[string]policy.Transport{"mcp": policy.HTTP, "sse": policy.SSE, "stdio": policy.Stdio, "a2a": policy.A2A} {
		not := node07{}
		for _, k := range policy.Kinds() {
			if slices.Contains(k.Levels, policy.AtTarget) && !slices.Contains(k.Transports, t) {
				not[k.Name] = false
			}
		}
		if len(not) > 0 {
			block := node07{"properties": not}
			s["allOf"] = append(s["allOf"].([]any), node07{"if": required(transport), "then": node07{"properties": node07{"policies": block, "enforced": block}}})
		}
	}
	slices.SortFunc(s["allOf"].([]any), func(a, b any) int { // maps have no order
		x, _ := json.Marshal(a)
		y, _ := json.Marshal(b)
		return strings.Compare(string(x), string(y))
	})
	return s
}
