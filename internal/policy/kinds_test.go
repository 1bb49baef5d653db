package policy

import (
	"slices"
	"strings"
	"testing"

	policyv1 "github.com/sluicegate/sluice/proto/gen/sluice/policy/v1"
)

// Whoever adds a field to Policies must say here where it means something.
func TestKindsCoverTheProto(t *testing.T) {
	fields := (&policyv1.Policies{}).ProtoReflect().Descriptor().Fields()
	if fields.Len() != len(Kinds()) {
		t.Errorf("%d kinds, %d fields", len(Kinds()), fields.Len())
	}
	for _, k := range Kinds() {
		f := fields.ByName(k.Field)
		if f == nil || f.JSONName() != k.Name {
			t.Errorf("%s: field %v", k.Name, f)
		}
		if k.Phase == RoutePhase && slices.Contains(k.Levels, AtBackend) || k.Phase == TargetPhase && len(k.Levels) != 6 && k.Instead == "" {
			t.Errorf("%s: levels %v", k.Name, k.Levels)
		}
	}
}

func TestCheckLevel(t *testing.T) {
	all := parse(t, `{"cors":{},"jwtAuth":{},"apiKey":{},"mcpAuthorization":{},"backendAuth":{},"backendTLS":{},"requestHeaderModifier":{},"responseHeaderModifier":{},"ai":{},"a2a":{},"mcpAuthentication":{},"basicAuth":{},"localRateLimit":{},"timeout":{},"retry":{}}`).Policies
	for level, want := range map[Level]string{AtPlatform: "", AtTenant: "", AtListener: "", AtRoute: "",
		AtBackend: "policies.cors policies.jwtAuth policies.apiKey policies.mcpAuthentication policies.basicAuth",
		AtTarget:  "policies.cors policies.jwtAuth policies.apiKey policies.mcpAuthentication policies.basicAuth policies.timeout"} {
		var got []string
		for _, e := range CheckLevel(level, all) {
			got = append(got, e.Field)
		}
		if strings.Join(got, " ") != want {
			t.Errorf("%v: %q, want %q", level, got, want)
		}
	}
	if CheckLevel(AtTarget, nil) != nil {
		t.Error("no policies, but errors")
	}
	if Applies("backendTLS", Stdio) || Applies("requestHeaderModifier", Stdio) || !Applies("responseHeaderModifier", Stdio) || !Applies("mcpAuthorization", Stdio) || Applies("nonsense", HTTP) {
		t.Error("Applies")
	}
}

func TestCheckIsFreeOfTransports(t *testing.T) {
	for text, want := range map[string]string{
		`{"backendAuth":{"key":{"credentials":[{"credential":{"value":"v"}}]},"env":"T"}}`:          "",
		`{"backendAuth":{"key":{"credentials":[{"credential":{"value":"v"}}]}}}`:                    "",
		`{"backendAuth":{"key":{"credentials":[{"credential":{"sealed":"f"}}]}}}`:                   "",
		`{"backendAuth":{"aws":{"region":"x","serviceName":"s3"}},"a2a":{}}`:                        "",
		`{"backendAuth":{"aws":{"accessKeyId":{"value":"x"},"serviceName":"s3"}}}`:                  "policies.backendAuth.aws",
		`{"ai":{"promptGuard":{"request":[{"regex":{"rules":[{"pattern":"("}]}}]}}}`:                "policies.ai.promptGuard.request[0].regex.rules[0].pattern",
		`{"ai":{"promptGuard":{"response":[{"regex":{"rules":[{"builtin":"x"}]}}]}}}`:               "policies.ai.promptGuard.response[0].regex.rules[0].builtin",
		`{"ai":{"promptGuard":{"request":[{"regex":{"action":"x","rules":[{"builtin":"ssn"}]}}]}}}`: "policies.ai.promptGuard.request[0].regex.action",
		`{"cors":{"allowOrigins":["x"]}}`:                                                           "policies.cors.allowOrigins[0]",
		`{"mcpAuthorization":{"rules":[{"allow":"x"}]}}`:                                            "policies.mcpAuthorization.rules[0]",
	} {
		got := ""
		if all := FieldErrors(Check(parse(t, text).Policies, Resolver{})); len(all) > 0 {
			got = all[0].Field
		}
		if got != want {
			t.Errorf("%s: %q, want %q", text, got, want)
		}
	}
	if err := Check(nil, Resolver{}); err != nil {
		t.Errorf("nil: %v", err)
	}
}
