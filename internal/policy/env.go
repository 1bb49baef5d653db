package policy

import (
	"crypto/x509"
	"fmt"
	"slices"
	"sync"
	_ "time/tzdata" // rules name time zones, and a proxy's image may hold no data of them

	"github.com/google/cel-go/cel"
	"github.com/google/cel-go/common/types"
	"github.com/google/cel-go/common/types/ref"
	"github.com/google/cel-go/ext"
)

// variable is what a rule may read, as bits of a set.
type variable uint

const (
	varJWT variable = 1 << iota
	varAPIKey
	varSource
	varRequest
	varTenant
	varMethod
	varName // of the item, and its target
	varArguments
	varAnnotations
	varScopes
	varTime
	varBasicAuth
	varAgentMethod
	varSkill
)

// varCaller is what depends on who calls, from where and when.
const varCaller = varJWT | varAPIKey | varBasicAuth | varScopes | varSource | varRequest

// roots are the variables by the names that [Target.Reads] takes.
var roots = map[string]variable{
	"jwt": varJWT, "apiKey": varAPIKey, "basicAuth": varBasicAuth, "scopes": varScopes, "source": varSource, "request": varRequest, "tenant": varTenant,
	"mcp.method": varMethod, "mcp.tool.arguments": varArguments, "mcp.tool.annotations": varAnnotations,
	"a2a.method": varAgentMethod, "a2a.skill": varSkill,
}

// A field of an object that rules read.
type field struct {
	typ   *cel.Type
	reads variable
	get   func(*activation) (any, error)
	isSet func(*activation) bool // nil: always
}

var anyMap = cel.MapType(cel.StringType, cel.DynType)

// objects are the types of mcp, a2a, request and source. Objects, not maps: a field that does not exist is an
// error when a rule is compiled, and the path of what a rule reads stands in its syntax tree.
var objects = map[string]map[string]field{
	"sluice.mcp": {
		"method":   {cel.StringType, varMethod, (*activation).getMethod, (*activation).ofServer},
		"tool":     object("sluice.tool", "mcp.tool", Tool),
		"prompt":   object("sluice.item", "mcp.prompt", Prompt),
		"resource": object("sluice.item", "mcp.resource", Resource, Template),
		"task":     object("sluice.item", "mcp.task", Task),
	},
	"sluice.a2a": {
		"method": {cel.StringType, varAgentMethod, (*activation).getAgentMethod, (*activation).ofAgent},
		"skill":  {cel.StringType, varSkill, (*activation).getSkill, func(a *activation) bool { return a.ofAgent() && a.call.Name != "" }},
		"target": {cel.StringType, varName, (*activation).getAgent, (*activation).ofAgent},
	},
	"sluice.tool": {
		"name":        {cel.StringType, varName, (*activation).getToolName, nil},
		"target":      {cel.StringType, varName, (*activation).getTarget, nil},
		"arguments":   {anyMap, varArguments, (*activation).getArguments, nil},
		"annotations": {anyMap, varAnnotations, (*activation).getAnnotations, (*activation).hasAnnotations},
	},
	"sluice.item": {
		"name":   {cel.StringType, varName, (*activation).getName, nil},
		"target": {cel.StringType, varName, (*activation).getTarget, nil},
	},
	"sluice.request": {
		"method": requestField("method"), "scheme": requestField("scheme"), "host": requestField("host"), "path": requestField("path"),
		"pathAndQuery": requestField("pathAndQuery"), "uri": requestField("uri"),
		"headers":   {cel.MapType(cel.StringType, cel.StringType), varRequest, func(a *activation) (any, error) { return a.getRequest("headers") }, nil},
		"startTime": {cel.TimestampType, varRequest | varTime, (*activation).getStartTime, nil},
	},
	"sluice.source": {
		"address": {cel.StringType, varSource, func(a *activation) (any, error) { return a.getSource("address") }, nil},
		"port":    {cel.IntType, varSource, func(a *activation) (any, error) { return a.getSource("port") }, nil},
		// Of the certificate that the caller showed and the listener verified.
		"certificate": {cel.ObjectType("sluice.certificate"), varSource, func(a *activation) (any, error) {
			if a.certificate() == nil {
				return nil, errNoCertificate
			}
			return a, nil
		}, (*activation).hasCertificate},
		"spiffeId":  certificateText("spiffeId", spiffeID),
		"issuer":    certificateText("issuer", func(c *x509.Certificate) string { return c.Issuer.String() }),
		"subject":   certificateText("subject", func(c *x509.Certificate) string { return c.Subject.String() }),
		"subjectCn": certificateText("subjectCn", func(c *x509.Certificate) string { return c.Subject.CommonName }),
		"subjectAltNames": {cel.ListType(cel.StringType), varSource, func(a *activation) (any, error) {
			c := a.certificate()
			if c == nil {
				return nil, errNoCertificate
			}
			return types.NewStringList(types.DefaultTypeAdapter, subjectAltNames(c)), nil
		}, (*activation).hasCertificate},
	},
	"sluice.certificate": {
		"sha256":       certificateText("certificate.sha256", fingerprint),
		"serialNumber": certificateText("certificate.serialNumber", func(c *x509.Certificate) string { return c.SerialNumber.Text(16) }),
	},
}

// object is a field that is there for calls about some kinds of items alone. Reading it for others is an
// error, so rules ask has(mcp.tool) first.
func object(typeName, path string, kinds ...ItemKind) field {
	absent := unreadable(path + ", and the call is about something else; ask has(" + path + ") first")
	isSet := func(a *activation) bool {
		return slices.Contains(kinds, a.call.Kind) || a.call.Kind == Task && a.call.Tool != "" && kinds[0] == Tool // a task has both
	}
	return field{cel.ObjectType(typeName), varName, func(a *activation) (any, error) {
		if !isSet(a) {
			a.absent = true
			return nil, absent
		}
		return a, nil
	}, isSet}
}

func requestField(name string) field {
	return field{cel.StringType, varRequest, func(a *activation) (any, error) { return a.getRequest(name) }, nil}
}

// provider adds objects to the types that CEL knows.
type provider struct {
	types.Provider
	fields map[string]map[string]*types.FieldType
}

func newProvider(base types.Provider) *provider {
	p := &provider{base, map[string]map[string]*types.FieldType{}}
	for typeName, fields := range objects {
		p.fields[typeName] = map[string]*types.FieldType{}
		for name, f := range fields {
			p.fields[typeName][name] = &types.FieldType{
				Type: f.typ,
				IsSet: func(target any) bool {
					a, ok := target.(*activation)
					return ok && (f.isSet == nil || f.isSet(a))
				},
				GetFrom: func(target any) (any, error) {
					a, ok := target.(*activation)
					if !ok {
						return nil, fmt.Errorf("%s.%s: not readable from %T", typeName, name, target)
					}
					return f.get(a)
				},
			}
		}
	}
	return p
}

func (p *provider) FindStructType(name string) (*types.Type, bool) {
	if _, ok := p.fields[name]; ok {
		return types.NewTypeTypeWithParam(types.NewObjectType(name)), true
	}
	return p.Provider.FindStructType(name)
}

func (p *provider) FindStructFieldNames(name string) ([]string, bool) {
	if fields, ok := p.fields[name]; ok {
		return sortedKeys(fields), true
	}
	return p.Provider.FindStructFieldNames(name)
}

func (p *provider) FindStructFieldType(name, field string) (*types.FieldType, bool) {
	if fields, ok := p.fields[name]; ok {
		f, ok := fields[field]
		return f, ok
	}
	return p.Provider.FindStructFieldType(name, field)
}

// NewValue refuses to make objects: a rule reads them and no more.
func (p *provider) NewValue(name string, fields map[string]ref.Val) ref.Val {
	if _, ok := p.fields[name]; ok {
		return types.NewErr("%s cannot be made by a rule", name)
	}
	return p.Provider.NewValue(name, fields)
}

// environment is CEL's standard library, the network functions (cidr, ip) and our variables. Functions that
// can make a long string of short ones (replace, format) stay out, and patterns are matched within bounds: see matches.
var environment = sync.OnceValues(func() (*cel.Env, error) {
	return cel.NewEnv(
		ext.Network(),
		func(e *cel.Env) (*cel.Env, error) {
			return cel.CustomTypeProvider(newProvider(e.CELTypeProvider()))(e)
		},
		cel.Variable("mcp", cel.ObjectType("sluice.mcp")),
		cel.Variable("a2a", cel.ObjectType("sluice.a2a")),
		cel.Variable("request", cel.ObjectType("sluice.request")),
		cel.Variable("source", cel.ObjectType("sluice.source")),
		cel.Variable("jwt", anyMap),
		cel.Variable("apiKey", anyMap),
		cel.Variable("basicAuth", anyMap),
		cel.Variable("scopes", cel.ListType(cel.StringType)),
		cel.Variable("tenant", cel.StringType),
		patterns,
		cel.CrossTypeNumericComparisons(true),
		cel.ParserExpressionSizeLimit(16<<10),
		cel.ParserRecursionLimit(64),
		cel.ASTValidators(cel.ValidateDurationLiterals(), cel.ValidateTimestampLiterals()),
	)
})
