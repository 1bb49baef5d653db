package resource

import (
	"maps"
	"slices"
	"strings"

	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/sluicegate/sluice/internal/policy"
)

// frame makes what is no message of its own: the three forms, as load.go reads them.
func (g *schemas) frame() {
	for kind, level := range levels {
		g.policies(kind, level)
	}
	g.policies("short", policy.AtRoute, policy.AtBackend) // each kind goes to where it means something
	g.definitions["target"] = g.target()

	spec := func(kind string) node07 {
		if kind == "target" {
			return g.definitions["target"].(node07)
		}
		desc := specs.ByName(protoreflect.Name(kind)).Message()
		return g.spelled(desc, g.object(desc))
	}
	name := node07{"type": "string"}
	g.definitions["targetOfBackend"] = edited(spec("target"), []string{"backend", "index"}, node07{"name": name}, "name")
	targets := node07{"type": "array", "items": ref("targetOfBackend")}

	backend := func(level string) node07 {
		return edited(spec("backend"), nil, node07{"targets": targets, "policies": ref("policies." + level), "enforced": ref("policies." + level)})
	}
	port := node07{"anyOf": []any{node07{"type": "integer", "minimum": 1, "maximum": 65535}, variableText}}
	g.definitions["backend"] = edited(backend("backend"), nil, nil, "targets")
	g.definitions["short"] = edited(backend("short"), nil, node07{"port": port}, "targets")

	inline := node07{"type": "object", "additionalProperties": false, "properties": node07{
		"name": name, "description": name, "mcp": ref("backend"), "policies": ref("policies.backend"), "enforced": ref("policies.backend"),
	}, "required": []any{"mcp"}}
	weight := node07{"weight": spec("route")["properties"].(node07)["backends"].(node07)["items"].(node07)}
	reference := g.object(specs.ByName("route").Message().Fields().ByName("backends").Message())
	weight["weight"] = reference["properties"].(node07)["weight"]
	g.definitions["namedBackend"] = edited(inline, nil, nil, "name", "mcp")
	g.definitions["routeBackend"] = node07{"if": required("backend"), "then": reference, "else": edited(inline, nil, weight)}
	g.definitions["routeOfListener"] = edited(spec("route"), []string{"listener"}, node07{"name": name, "backends": node07{"type": "array", "items": ref("routeBackend")}})
	g.definitions["listenerOfBind"] = edited(spec("listener"), []string{"port"}, node07{"name": name, "routes": node07{"type": "array", "items": ref("routeOfListener")}})
	g.definitions["bind"] = node07{"type": "object", "additionalProperties": false, "required": []any{"port", "listeners"},
		"properties": node07{"port": port, "listeners": node07{"type": "array", "items": ref("listenerOfBind")}}}

	whole := spec("tenant")
	whole["description"] = "The whole content of a set, in the long form (binds) or the short one (mcp). Policies here are the tenant's own."
	g.definitions["file"] = edited(whole, nil, node07{
		"binds": node07{"type": "array", "items": ref("bind")}, "mcp": ref("short"), "backends": node07{"type": "array", "items": ref("namedBackend")},
	})
	g.documents(spec, targets)
}

// documents are single ones: the kind decides what the spec is.
func (g *schemas) documents(spec func(kind string) node07, targets node07) {
	var kinds, branches []any
	for _, kind := range Kinds() {
		spellings := []any{kind, strings.ToUpper(kind[:1]) + kind[1:]}
		kinds = append(kinds, spellings...)
		s := spec(kind)
		if kind == "backend" {
			s = edited(s, nil, node07{"targets": targets})
		}
		g.definitions["spec."+kind] = s
		then := node07{"properties": node07{"spec": ref("spec." + kind)}}
		if kind != "platform" && kind != "tenant" { // of which there is one
			then["required"] = []any{"name"}
		}
		branches = append(branches, node07{"if": node07{"properties": node07{"kind": node07{"enum": spellings}}}, "then": then})
	}
	g.definitions["document"] = node07{"type": "object", "additionalProperties": false, "required": []any{"kind", "spec"},
		"properties": node07{"kind": node07{"enum": kinds}, "name": node07{"type": "string"}, "spec": node07{"type": "object"}}, "allOf": branches}
}

// edited is an object's schema with fewer, other and required properties.
func edited(s node07, without []string, with node07, required ...string) node07 {
	out, properties := maps.Clone(s), maps.Clone(s["properties"].(node07))
	for _, name := range without {
		delete(properties, name)
	}
	maps.Copy(properties, with)
	out["properties"] = properties
	if len(required) > 0 {
		all := slices.Clone(listOf(s["required"]))
		for _, name := range required {
			if !slices.Contains(all, any(name)) {
				all = append(all, name)
			}
		}
		out["required"] = all
	}
	return out
}

func listOf(v any) []any {
	list, _ := v.([]any)
	return list
}
