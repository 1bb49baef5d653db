package api

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/sluicegate/sluice/internal/resource"
	adminv1 "github.com/sluicegate/sluice/proto/gen/sluice/admin/v1"
	policyv1 "github.com/sluicegate/sluice/proto/gen/sluice/policy/v1"
)

func listener(name, set string) *adminv1.Object {
	return &adminv1.Object{Name: name, Set: set, Spec: &adminv1.Object_Listener{Listener: &adminv1.Listener{Port: 3000}}}
}

func value(text string) *policyv1.Credential {
	return &policyv1.Credential{Source: &policyv1.Credential_Value{Value: text}}
}

func secret(name, text string) *adminv1.Object {
	return &adminv1.Object{Name: name, Spec: &adminv1.Object_Secret{Secret: &adminv1.Secret{Value: value(text)}}}
}

func TestSets(t *testing.T) {
	for _, tt := range []struct {
		name        string
		have        []*adminv1.Object
		request     *adminv1.ApplyRequest
		put, remove []string // put: key and set
		conflict    string
	}{
		{"a first set", nil, &adminv1.ApplyRequest{Objects: []*adminv1.Object{listener("a", "")}}, []string{"listener/a default"}, nil, ""},
		{"what is missing goes", []*adminv1.Object{listener("a", "default"), listener("b", "default")},
			&adminv1.ApplyRequest{Objects: []*adminv1.Object{listener("a", "")}}, nil, []string{"listener/b"}, ""},
		{"an empty set removes all of it", []*adminv1.Object{listener("a", "s"), listener("b", "default")},
			&adminv1.ApplyRequest{Set: "s"}, nil, []string{"listener/a"}, ""},
		{"other sets stay", []*adminv1.Object{listener("a", "other"), listener("s", "")},
			&adminv1.ApplyRequest{Set: "mine", Objects: []*adminv1.Object{listener("b", "")}}, []string{"listener/b mine"}, nil, ""},
		{"another set's object", []*adminv1.Object{listener("a", "other")},
			&adminv1.ApplyRequest{Set: "mine", Objects: []*adminv1.Object{listener("a", "")}}, nil, nil, `listener/a belongs to set "other" and cannot come from set "mine"`},
		{"a single document is taken over", []*adminv1.Object{listener("a", "")},
			&adminv1.ApplyRequest{Objects: []*adminv1.Object{listener("a", "")}}, []string{"listener/a default"}, nil, ""},
		{"singles remove nothing", []*adminv1.Object{listener("a", "default"), listener("b", "")},
			&adminv1.ApplyRequest{Single: true, Objects: []*adminv1.Object{listener("c", "")}}, []string{"listener/c "}, nil, ""},
		{"a single keeps its set", []*adminv1.Object{listener("a", "other")},
			&adminv1.ApplyRequest{Single: true, Objects: []*adminv1.Object{{Name: "a", Spec: &adminv1.Object_Listener{Listener: &adminv1.Listener{Port: 1}}}}},
			[]string{"listener/a other"}, nil, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s, p := newServer(t, newConnections())
			view := p.views["acme"]
			for _, o := range tt.have {
				hold(t, view, o)
			}
			plan := &applyPlan{Server: s, tenant: "acme", request: tt.request}
			if err := plan.prepare(); err != nil {
				t.Fatal(err)
			}
			changes, err := plan.plan(t.Context(), p)
			var conflict *Conflict
			if errors.As(err, &conflict) != (tt.conflict != "") || err != nil && !strings.HasPrefix(err.Error(), tt.conflict) {
				t.Fatalf("plan: %v, want %q", err, tt.conflict)
			}
			if err != nil {
				return
			}
			var gotPut, gotRemove []string
			put, remove, _ := Effect(view, changes[0])
			for _, o := range put {
				gotPut = append(gotPut, resource.Key(o)+" "+o.GetSet())
			}
			for _, o := range remove {
				gotRemove = append(gotRemove, o.Key())
			}
			if diff := cmp.Diff([][]string{tt.put, tt.remove}, [][]string{gotPut, gotRemove}); diff != "" {
				t.Errorf("put and remove (-want +got):\n%s", diff)
			}
		})
	}
}

func TestInlineValuesAreLifted(t *testing.T) {
	s, p := newServer(t, newConnections())
	request := &adminv1.ApplyRequest{Single: true, Objects: []*adminv1.Object{secret("s", "hunter2"), secret("t", "hunter2"), secret("u", "other")}}
	before := proto.CloneOf(request)
	plan := &applyPlan{Server: s, tenant: "acme", request: request}
	if err := plan.prepare(); err != nil {
		t.Fatal(err)
	}
	changes, err := plan.plan(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	c := changes[0]
	if len(c.Sealed) != 2 {
		t.Errorf("%d values were lifted, want 2: equal ones are one", len(c.Sealed))
	}
	for _, o := range c.Put {
		if text := protojson.Format(o); strings.Contains(text, "hunter2") || strings.Contains(text, "other") {
			t.Errorf("a value stayed: %s", text)
		}
		if string(c.Sealed[o.GetSecret().GetValue().GetSealed()]) == "" {
			t.Errorf("%s names no lifted value", o.GetName())
		}
	}
	if !proto.Equal(before, request) {
		t.Error("the request was changed")
	}
	// What get shows can be applied again, and a fingerprint that the tenant does not have cannot.
	view := p.views["acme"]
	for _, o := range c.Put {
		hold(t, view, o)
	}
	shown := &adminv1.ApplyRequest{Single: true, Objects: []*adminv1.Object{view.Objects.Get("secret/s").Object}}
	again := &applyPlan{Server: s, tenant: "acme", request: shown}
	if err := again.prepare(); err != nil {
		t.Fatal(err)
	}
	if changes, err = again.plan(t.Context(), p); err != nil {
		t.Fatalf("what get shows: %v", err)
	}
	if put, _, _ := Effect(view, changes[0]); len(put) != 0 {
		t.Errorf("what get shows is a change: %v", put)
	}
	elsewhere := &applyPlan{Server: s, tenant: "default", request: shown}
	if err := elsewhere.prepare(); err != nil {
		t.Fatal(err)
	}
	var invalid *Invalid
	if _, err := elsewhere.plan(t.Context(), p); !errors.As(err, &invalid) || !strings.Contains(err.Error(), "no sealed value") {
		t.Errorf("another tenant's fingerprint: %v", err)
	}
}

func TestAllThatIsWrongAtOnce(t *testing.T) {
	s, _ := newServer(t, newConnections())
	platform := &adminv1.Object{Name: "platform", Spec: &adminv1.Object_Platform{Platform: &adminv1.Platform{}}}
	plan := &applyPlan{Server: s, tenant: "acme", request: &adminv1.ApplyRequest{Objects: []*adminv1.Object{
		{Name: "x"}, listener("a", ""), listener("a", ""), platform}}}
	var invalid *Invalid
	if err := plan.prepare(); !errors.As(err, &invalid) || len(invalid.Diagnostics) != 3 {
		t.Fatalf("prepare: %v", err)
	}
	status := statusOf(invalid)
	if !strings.Contains(status.Error(), "and 2 more") {
		t.Errorf("status: %v", status)
	}
}

func TestLocalPowers(t *testing.T) {
	target := func(t *adminv1.Target) *adminv1.Object {
		t.Backend = "b"
		return &adminv1.Object{Name: "b/t", Spec: &adminv1.Object_Target{Target: t}}
	}
	http := func(host string) *adminv1.Object {
		return target(&adminv1.Target{Transport: &adminv1.Target_Mcp{Mcp: &adminv1.HttpTransport{Host: host, Port: 1}}})
	}
	stdio := target(&adminv1.Target{Transport: &adminv1.Target_Stdio{Stdio: &adminv1.StdioTransport{Cmd: "npx"}}})
	file := target(&adminv1.Target{Policies: &policyv1.Policies{BackendTls: &policyv1.BackendTls{
		Root: &policyv1.Credential{Source: &policyv1.Credential_File{File: "/etc/sluice/ca.pem"}}}}})
	env := target(&adminv1.Target{Policies: &policyv1.Policies{BackendTls: &policyv1.BackendTls{
		Root: &policyv1.Credential{Source: &policyv1.Credential_Env{Env: "SVC_CA"}}}}})
	jwks := func(j *policyv1.Jwks) *adminv1.Object {
		return &adminv1.Object{Name: "l", Spec: &adminv1.Object_Listener{Listener: &adminv1.Listener{Port: 1,
			Enforced: &policyv1.Policies{JwtAuth: &policyv1.JwtAuth{Providers: []*policyv1.JwtProvider{{Jwks: j}}}}}}}
	}
	asks := func(guard *policyv1.Guard) *adminv1.Object {
		return target(&adminv1.Target{Enforced: &policyv1.Policies{Ai: &policyv1.Ai{PromptGuard: &policyv1.PromptGuard{Response: []*policyv1.Guard{guard}}}}})
	}
	webhook := func(url string) *adminv1.Object {
		return asks(&policyv1.Guard{Guard: &policyv1.Guard_Webhook{Webhook: &policyv1.WebhookGuard{Url: url}}})
	}
	auth := func(a *policyv1.BackendAuth) *adminv1.Object {
		return &adminv1.Object{Name: "b", Spec: &adminv1.Object_Backend{Backend: &adminv1.Backend{Enforced: &policyv1.Policies{BackendAuth: a}}}}
	}
	ambient := auth(&policyv1.BackendAuth{Method: &policyv1.BackendAuth_Aws{Aws: &policyv1.AwsAuth{ServiceName: "s3"}}})
	oauth := func(u string) *adminv1.Object {
		return auth(&policyv1.BackendAuth{Method: &policyv1.BackendAuth_Oauth{Oauth: &policyv1.OauthAuth{Client: &policyv1.OauthClient{TokenUrl: u}}}})
	}
	url := func(u string) *adminv1.Object { return jwks(&policyv1.Jwks{Source: &policyv1.Jwks_Url{Url: u}}) }
	for _, tt := range []struct {
		name   string
		object *adminv1.Object
		grants []string
		want   string // of path and message; empty: allowed
	}{
		{"public host", http("api.example.com"), nil, ""},
		{"public address", http("8.8.8.8"), nil, ""},
		{"loopback", http("127.0.0.1"), nil, "mcp.host: 127.0.0.1, a loopback address, is not granted to tenant acme"},
		{"localhost", http("LocalHost"), nil, "mcp.host: 127.0.0.1, a loopback"},
		{"granted loopback", http("127.0.0.1"), []string{"private-network"}, ""},
		{"metadata is more", http("169.254.169.254"), []string{"private-network"}, "metadata service"},
		{"stdio", stdio, []string{"private-network"}, `stdio.cmd: running "npx"`},
		{"another command", stdio, []string{"stdio=node"}, `running "npx"`},
		{"granted command", stdio, []string{"stdio=npx"}, ""},
		{"file", file, nil, `policies.backendTLS.root: reading the proxies' file "/etc/sluice/ca.pem"`},
		{"granted file", file, []string{"file=/etc/sluice/*"}, ""},
		{"env", env, []string{"file=/etc/sluice/*"}, `environment variable "SVC_CA"`},
		{"granted env", env, []string{"env=SVC_*"}, ""},
		{"jwks file", jwks(&policyv1.Jwks{Source: &policyv1.Jwks_File{File: "/k.json"}}), nil, "enforced.jwtAuth.providers[0].jwks: reading"},
		{"jwks at a private address", url("https://10.1.2.3/keys"), nil, "private address"},
		{"the proxies' identity", ambient, []string{"private-network,metadata,identity=gcp"}, "enforced.backendAuth.aws: acting as the proxies themselves at aws"},
		{"granted identity", ambient, []string{"identity=aws"}, ""},
		{"token endpoint at a loopback address", oauth("http://127.0.0.1/t"), nil, "enforced.backendAuth.oauth.client.tokenUrl: 127.0.0.1, a loopback"},
		{"token endpoint at a name", oauth("https://as.example/t"), nil, ""},
		{"jwks at a name", url("https://issuer.example/keys"), nil, ""},
		{"webhook at a private address", webhook("http://10.1.2.3:8080/judge"), nil, "enforced.ai.promptGuard.response[0].webhook.url: 10.1.2.3, a private address"},
		{"webhook, granted", webhook("http://10.1.2.3:8080/judge"), []string{"private-network"}, ""},
		{"moderation at a private address", asks(&policyv1.Guard{Guard: &policyv1.Guard_OpenAiModeration{OpenAiModeration: &policyv1.ModerationGuard{Url: "http://localhost:1"}}}), nil, "enforced.ai.promptGuard.response[0].openAIModeration.url: 127.0.0.1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, p := newServer(t, newConnections())
			view := p.views["acme"]
			view.Grants = tt.grants
			found := powers(view, []*adminv1.Object{tt.object})
			switch {
			case tt.want == "" && len(found) > 0:
				t.Errorf("refused: %s", resource.Format(found[0]))
			case tt.want != "" && (len(found) != 1 || !strings.Contains(resource.Format(found[0]), tt.want)):
				t.Errorf("found %v, want %q", found, tt.want)
			case tt.want != "" && !strings.Contains(found[0].GetHint(), "sluice tenant allow acme "):
				t.Errorf("the hint does not tell the way out: %q", found[0].GetHint())
			}
		})
	}
}

func TestQuoteGrants(t *testing.T) {
	for want, grants := range map[string][]string{"a,b": {"a", "b"}, "'file=/etc/*'": {"file=/etc/*"}} {
		if got := quote(grants); got != want {
			t.Errorf("quote(%q) = %s, want %s", grants, got, want)
		}
	}
}

func TestFindTarget(t *testing.T) {
	_, p := newServer(t, newConnections())
	view := p.views["acme"]
	for _, name := range []string{"a/search", "b/search", "b/files"} {
		backend, _, _ := strings.Cut(name, "/")
		hold(t, view, &adminv1.Object{Name: name, Spec: &adminv1.Object_Target{Target: &adminv1.Target{Backend: backend}}})
	}
	for name, want := range map[string]string{
		"files": "target/b/files", "a/search": "target/a/search",
		"search": "ambiguous; say one of a/search, b/search", "nope": `there is no target "nope"`, "a/files": `there is no target "a/files"`,
	} {
		got, err := find(view.Objects, "target", name, "acme")
		if err != nil {
			got = err.Error()
		}
		if !strings.HasSuffix(got, want) {
			t.Errorf("find(%s) = %q, want %q", name, got, want)
		}
	}
}

func TestUnique(t *testing.T) {
	d := func(m string) *adminv1.Diagnostic { return &adminv1.Diagnostic{Message: m} }
	var got []string
	for _, u := range unique([]*adminv1.Diagnostic{d("a"), d("b"), d("a")}) {
		got = append(got, u.Message)
	}
	if !slices.Equal(got, []string{"a", "b"}) {
		t.Errorf("unique = %q", got)
	}
}

// Looking at what an edit concerns alone finds what looking at everything finds.
func TestConcernedObjectsAreEnough(t *testing.T) {
	_, p := newServer(t, newConnections())
	view := p.views["acme"]
	target := func(change func(*adminv1.Target)) *adminv1.Object {
		spec := &adminv1.Target{Backend: "b", Transport: &adminv1.Target_Mcp{Mcp: &adminv1.HttpTransport{Host: "h.example.com", Port: 443, Path: "/mcp"}}}
		change(spec)
		return &adminv1.Object{Name: "b/t", Spec: &adminv1.Object_Target{Target: spec}}
	}
	key := func(c *policyv1.Credential) *policyv1.Policies {
		return &policyv1.Policies{BackendAuth: &policyv1.BackendAuth{Method: &policyv1.BackendAuth_Key{Key: &policyv1.KeyAuth{Credentials: []*policyv1.LocatedCredential{{Credential: c}}}}}}
	}
	rule := func(text string) *policyv1.Policies {
		return &policyv1.Policies{McpAuthorization: &policyv1.McpAuthorization{Rules: []*policyv1.AuthorizationRule{{Rule: &policyv1.AuthorizationRule_Allow{Allow: text}}}}}
	}
	for _, o := range []*adminv1.Object{
		listener("l", ""), target(func(*adminv1.Target) {}),
		{Name: "b", Spec: &adminv1.Object_Backend{Backend: &adminv1.Backend{}}}, {Name: "b2", Spec: &adminv1.Object_Backend{Backend: &adminv1.Backend{}}},
		{Name: "r", Spec: &adminv1.Object_Route{Route: &adminv1.Route{Listener: "l", Backends: []*adminv1.RouteBackend{{Backend: "b", Weight: 1}, {Backend: "b2", Weight: 1}},
			Enforced: rule("mcp.tool.name == 'x'")}}},
		{Name: "s", Spec: &adminv1.Object_Secret{Secret: &adminv1.Secret{Value: value("v")}}},
	} {
		hold(t, view, o)
	}
	for name, tt := range map[string]struct {
		put   *adminv1.Object
		few   bool
		wrong bool
	}{
		"good":     {target(func(s *adminv1.Target) { s.Description = "d" }), true, false},
		"bad rule": {target(func(s *adminv1.Target) { s.Policies = rule("mcp.tool.name = 1") }), true, true},
		"a secret": {target(func(s *adminv1.Target) {
			s.Policies = key(&policyv1.Credential{Source: &policyv1.Credential_Secret{Secret: "s"}})
		}), true, false},
		"no such secret": {target(func(s *adminv1.Target) {
			s.Policies = key(&policyv1.Credential{Source: &policyv1.Credential_Secret{Secret: "nope"}})
		}), false, true},
		"no such backend": {target(func(s *adminv1.Target) { s.Backend = "nope" }), false, true},
		"means nothing": {target(func(s *adminv1.Target) {
			s.Policies = &policyv1.Policies{Cors: &policyv1.Cors{AllowOrigins: []string{"*"}}}
		}), true, true},
		"reads an unset jwt": {target(func(s *adminv1.Target) { s.Policies = rule("has(jwt.sub)") }), true, false},
		"a new target":       {&adminv1.Object{Name: "b/new", Spec: target(func(*adminv1.Target) {}).Spec}, false, false},
		"a listener":         {listener("l", ""), false, false},
	} {
		t.Run(name, func(t *testing.T) {
			change := Change{Tenant: "acme", Put: []*adminv1.Object{tt.put}}
			objects, few := concerned(view, change)
			if few != tt.few {
				t.Errorf("few = %v with %d objects", few, len(objects))
			}
			texts := func(all []*adminv1.Diagnostic) []string {
				var texts []string
				for _, d := range all {
					texts = append(texts, resource.Format(d))
				}
				slices.Sort(texts)
				return texts
			}
			full := resource.Validate(after(view, change), resource.Context{})
			full = append(full, resource.Flips(after(view, Change{}), after(view, change))...)
			if diff := cmp.Diff(texts(full), texts(validate(view, change))); diff != "" {
				t.Errorf("diagnostics (-all +concerned):\n%s", diff)
			}
			if resource.Failed(full) != tt.wrong {
				t.Errorf("diagnostics: %q", texts(full))
			}
		})
	}
}
