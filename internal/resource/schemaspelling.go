package resource

import (
	_ "embed"
	"maps"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"

	policyv1 "github.com/sluicegate/sluice/proto/gen/sluice/policy/v1"
)

// spellings say in a schema what the rewrite functions of shapes understand: own is a message's own form. A test holds that each
// shape with a rewrite is here, or among those that take nothing but the message's own fields.
var spellings map[protoreflect.FullName]func(g *schemas, own node07) node07

// unspelled rewrite without taking anything that the message's fields do not.
var unspelled = map[protoreflect.FullName]bool{
	policyPackage + "BackendTls": true, adminPackage + "ListenerTls": true, // a string is a Credential already
	adminPackage + "RouteBackend": true, adminPackage + "Target": true,
	policyPackage + "BasicAuth": true, // only its dollar signs
}

func init() {
	text, list := node07{"type": "string"}, func(items node07) node07 { return node07{"type": "array", "items": items} }
	or := func(short node07) func(*schemas, node07) node07 {
		return func(_ *schemas, own node07) node07 { return node07{"anyOf": []any{short, own}} }
	}
	orText := or(text)
	fields := func(of func(g *schemas) node07) func(*schemas, node07) node07 {
		return func(g *schemas, own node07) node07 { return edited(own, nil, of(g)) }
	}
	of := func(m proto.Message) protoreflect.MessageDescriptor { return m.ProtoReflect().Descriptor() }
	credential := func(g *schemas) node07 { return g.message(of(&policyv1.Credential{})) }
	sourcesOf := func(g *schemas) node07 {
		return node07{"value": credential(g), "secret": text, "file": text, "env": text, "sealed": text}
	}
	client := func(g *schemas) node07 { return g.object(of(&policyv1.OauthClient{}))["properties"].(node07) }
	provider := func(g *schemas) node07 {
		p := maps.Clone(g.object(of(&policyv1.JwtProvider{}))["properties"].(node07))
		p["jwtValidationOptions"] = claimsOption(text)
		return p
	}
	spellings = map[protoreflect.FullName]func(*schemas, node07) node07{
		policyPackage + "Credential":        orText,
		policyPackage + "AuthorizationRule": orText,
		policyPackage + "Value":             orText,
		policyPackage + "ApiKey":            orText,
		policyPackage + "AwsTag":            fields(func(*schemas) node07 { return node07{"expression": text} }),
		policyPackage + "OauthAuth":         fields(client),
		policyPackage + "TokenExchange":     fields(client),
		policyPackage + "RateLimit":         fields(func(*schemas) node07 { return node07{"type": node07{"enum": []any{"requests"}}} }),
		policyPackage + "LocalRateLimit": func(g *schemas, own node07) node07 {
			return node07{"anyOf": []any{list(g.message(of(&policyv1.RateLimit{}))), own}}
		},
		adminPackage + "Concurrency":        or(node07{"type": "integer", "minimum": 1}),
		adminPackage + "SessionScope":       or(node07{"enum": []any{"principal", "none"}}),
		policyPackage + "McpAuthentication": fields(provider),
		policyPackage + "JwtAuth":           fields(provider),
		policyPackage + "JwtProvider":       fields(func(*schemas) node07 { return node07{"jwtValidationOptions": claimsOption(text)} }),
		policyPackage + "Jwks": func(_ *schemas, own node07) node07 {
			set := node07{"type": "object", "properties": node07{"keys": list(node07{"type": "object"})}, "required": []any{"keys"}}
			own = edited(own, nil, node07{"inline": node07{"anyOf": []any{text, set}}})
			return node07{"anyOf": []any{text, set, own}}
		},
		policyPackage + "BackendAuth": func(g *schemas, own node07) node07 {
			own = edited(own, nil, node07{"credentials": list(g.message(of(&policyv1.LocatedCredential{})))})
			one := own["allOf"].([]any)[0].(node07)
			own["allOf"] = []any{node07{"oneOf": append(listOf(one["oneOf"]), required("credentials"))}}
			return own
		},
		policyPackage + "KeyAuth": func(g *schemas, own node07) node07 {
			located := edited(own, []string{"credentials"}, sourcesOf(g))
			located["properties"].(node07)["location"] = g.message(of(&policyv1.Location{}))
			return node07{"anyOf": []any{text, own, located}}
		},
		policyPackage + "LocatedCredential": func(g *schemas, own node07) node07 {
			all := sourcesOf(g)
			all["key"] = credential(g)
			return node07{"anyOf": []any{text, edited(own, nil, all)}}
		},
		policyPackage + "PromptGuard": func(g *schemas, own node07) node07 {
			return node07{"anyOf": []any{list(g.message(of(&policyv1.Guard{}))), own}}
		},
		policyPackage + "RegexGuard": fields(func(g *schemas) node07 { return node07{"deny": list(g.message(of(&policyv1.RegexRule{})))} }),
		adminPackage + "Listener": fields(func(*schemas) node07 {
			return node07{"hostname": text, "protocol": node07{"enum": []any{"HTTP", "HTTPS"}}}
		}),

		testPackage + "File":             fields(func(*schemas) node07 { return node07{"config": node07{"anyOf": []any{text, list(text)}}} }),
		testPackage + "Tool":             orText,
		testPackage + "Prompt":           orText,
		testPackage + "Resource":         orText,
		testPackage + "ResourceTemplate": orText,
		testPackage + "Skill":            orText,
		testPackage + "Source":           orText,
		testPackage + "Names":            or(list(text)),
		testPackage + "Refusal":          or(node07{"anyOf": []any{text, node07{"const": true}}}),
		testPackage + "Principal": func(_ *schemas, own node07) node07 {
			own = edited(own, nil, node07{"apiKey": node07{"type": []any{"string", "object"}}})
			return node07{"anyOf": []any{node07{"const": "anonymous"}, own}}
		},
	}
}

func claimsOption(text node07) node07 {
	return node07{"type": "object", "additionalProperties": false, "properties": node07{"requiredClaims": node07{"type": "array", "items": text}}}
}

// source is the protos with their comments, which generated code leaves out. `make generate` writes it.
//
//go:embed protos.binpb
var source []byte

// comments are those before messages, fields and oneofs, by full name.
func comments() map[protoreflect.FullName]string {
	var set descriptorpb.FileDescriptorSet
	if err := proto.Unmarshal(source, &set); err != nil {
		panic("resource: protos.binpb: " + err.Error()) // generated, and a test reads it
	}
	all := map[protoreflect.FullName]string{}
	for _, f := range set.GetFile() {
		for _, l := range f.GetSourceCodeInfo().GetLocation() {
			name, ok := named(f, l.GetPath())
			if text := strings.TrimSpace(l.GetLeadingComments()); ok && text != "" {
				all[name] = strings.Join(strings.Fields(text), " ")
			}
		}
	}
	return all
}

// named is what stands at a path of a file's descriptor: 4 are messages, in these 2 fields, 3 messages and 8 oneofs.
func named(f *descriptorpb.FileDescriptorProto, path []int32) (protoreflect.FullName, bool) {
	if len(path) < 2 || path[0] != 4 {
		return "", false
	}
	m := f.GetMessageType()[path[1]]
	name := f.GetPackage() + "." + m.GetName()
	for path = path[2:]; len(path) >= 2; path = path[2:] {
		switch {
		case path[0] == 3:
			m = m.GetNestedType()[path[1]]
			name += "." + m.GetName()
		case path[0] == 2 && len(path) == 2:
			return protoreflect.FullName(name + "." + m.GetField()[path[1]].GetName()), true
		case path[0] == 8 && len(path) == 2:
			return protoreflect.FullName(name + "." + m.GetOneofDecl()[path[1]].GetName()), true
		default:
			return "", false
		}
	}
	return protoreflect.FullName(name), len(path) == 0
}
