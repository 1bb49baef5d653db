package policy

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/sluicegate/sluice/internal/guard"
	policyv1 "github.com/sluicegate/sluice/proto/gen/sluice/policy/v1"
	xdsv1 "github.com/sluicegate/sluice/proto/gen/sluice/xds/v1"
)

// BenchmarkKinds is what each kind of policy costs one call, by its YAML name: docs/performance.md has the table. What a
// token or a password costs once is not in it, but for what is called `first`.
func BenchmarkKinds(b *testing.B) {
	of := map[string]func(*testing.B){
		"mcpAuthorization": benchmarkAuthorization, "backendAuth": benchmarkBackendAuth, "backendTLS": benchmarkBackendTLS,
		"requestHeaderModifier": benchmarkRequestHeaders, "responseHeaderModifier": benchmarkResponseHeaders, "ai": benchmarkAi, "a2a": benchmarkA2a,
		"cors": benchmarkCors, "jwtAuth": benchmarkJwtAuth, "apiKey": benchmarkAPIKey, "mcpAuthentication": benchmarkMcpAuthentication,
		"basicAuth": benchmarkBasicAuth, "localRateLimit": benchmarkRateLimit, "timeout": benchmarkTimeout, "retry": benchmarkRetry,
	}
	for _, k := range Kinds() {
		if of[k.Name] == nil {
			b.Errorf("nobody knows what %s costs: give it a benchmark", k.Name)
			continue
		}
		b.Run(k.Name, of[k.Name])
	}
}

// each measures f.
func each(b *testing.B, name string, f func() error) {
	b.Run(name, func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if err := f(); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// served compiles policies of a target whose tenant may dial loopback addresses.
func served(b *testing.B, policies string) *Target {
	b.Helper()
	g, err := ParseGrants([]string{"private-network"})
	if err != nil {
		b.Fatal(err)
	}
	target, err := CompileTarget(parse(b, policies), HTTP, Resolver{Grants: g, Runtime: NewRuntime(), Tenant: "acme"})
	if err != nil {
		b.Fatal(err)
	}
	return target
}

func benchmarkAuthorization(b *testing.B) {
	admitted := func(name string, target *Target, c *Call, admit func(*Target, *Call) Verdict) {
		each(b, name, func() error {
			if v := admit(target, c); !v.Allowed {
				return fmt.Errorf("refused by %s", v.Rule)
			}
			return nil
		})
	}
	one := toolCall("echo", `{"x":1}`)
	one.Principal = authenticated()
	admitted("one rule", mustTarget(b, authz(allow("mcp.tool.name == 'echo'"))), one, (*Target).Admit)
	admitted("ten rules", mustTarget(b, tenRules), one, (*Target).Admit)
	admitted("ten rules, an item of a list", mustTarget(b, tenRules), one, (*Target).AdmitList)
	path := toolCall("echo", `{"path":"/tmp/a","tags":["a","b"],"n":1}`)
	admitted("two rules over arguments", mustTarget(b, authz(allow("mcp.tool.arguments.path.startsWith('/tmp/')"), deny("mcp.tool.arguments.tags.exists(t, t == 'x')"))), path, (*Target).Admit)
	admitted("ten rules over arguments", mustTarget(b, tenRulesOverArguments()), path, (*Target).Admit)
	large := toolCall("echo", `{"path":"/tmp/a","text":"`+strings.Repeat("0123456789", 1000)+`"}`)
	admitted("a rule over arguments of 10 KiB", mustTarget(b, authz(allow("mcp.tool.arguments.path.startsWith('/tmp/')"))), large, (*Target).Admit)
	hint := toolCall("echo", `{}`)
	hint.Annotations = []byte(`{"readOnlyHint":true,"title":"Echo"}`)
	admitted("a rule over annotations", mustTarget(b, authz(allow("mcp.tool.annotations.readOnlyHint"))), hint, (*Target).Admit)
}

func tenRulesOverArguments() *xdsv1.EffectivePolicy {
	var ten []*policyv1.AuthorizationRule
	for i := range 9 {
		ten = append(ten, deny(fmt.Sprintf("mcp.tool.arguments.path.startsWith('/secret%d/')", i)))
	}
	return authz(append(ten, allow("'a' in mcp.tool.arguments.tags"))...)
}

func benchmarkBackendAuth(b *testing.B) {
	endpoint := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, `{"access_token":"t","token_type":"bearer","expires_in":36000}`)
	}))
	defer endpoint.Close()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		b.Fatal(err)
	}
	serviceAccount := mustJSON(map[string]string{"type": "service_account", "client_email": "a@b.test", "token_uri": endpoint.URL,
		"private_key": string(pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)}))})
	client := `"client":{"tokenUrl":"` + endpoint.URL + `","clientId":"c","authMethod":"none"}`
	for _, bb := range []struct{ name, auth string }{
		{"key", `{"key":{"credentials":[{"credential":{"value":"k"}}]}}`},
		{"key in the query", `{"key":{"credentials":[{"credential":{"value":"k"},"location":{"queryParameter":{"name":"k"}}}]}}`},
		{"basic", `{"basic":{"username":"u","password":{"value":"p"}}}`},
		{"passthrough", `{"passthrough":{}}`},
		{"oauth, its token at hand", `{"oauth":{` + client + `}}`},
		{"tokenExchange, the caller's at hand", `{"tokenExchange":{` + client + `}}`},
		{"gcp, its token at hand", `{"gcp":{"credential":{"value":` + quoted(serviceAccount) + `}}}`},
		{"aws, signing 1 KiB", `{"aws":{` + awsStatic + `}}`},
	} {
		target := served(b, authPolicy(bb.auth))
		o := &Outbound{Method: http.MethodPost, Header: http.Header{}, URL: &url.URL{}, Body: []byte(strings.Repeat("x", 1024)), Call: &Call{Principal: &Principal{ID: "p", Token: NewSecret("subject")}}}
		u := url.URL{Scheme: "https", Host: "api.example.com", Path: "/mcp"}
		contentType, accept, session := []string{"application/json"}, []string{"application/json, text/event-stream"}, []string{"s"}
		each(b, bb.name, func() error {
			clear(o.Header)
			o.Header["Content-Type"], o.Header["Accept"], o.Header["Mcp-Session-Id"] = contentType, accept, session
			*o.URL = u
			return target.Outgoing(b.Context(), o)
		})
	}
}

// A call takes a connection that is there; what TLS costs is a handshake for each that is not.
func benchmarkBackendTLS(b *testing.B) {
	ca := newAuthority(b)
	cert, key := ca.issue(b, nil)
	pair, err := tls.X509KeyPair([]byte(cert), []byte(key))
	if err != nil {
		b.Fatal(err)
	}
	handshake := func(client *tls.Config) error {
		here, there := net.Pipe()
		defer here.Close()
		defer there.Close()
		failed := make(chan error, 1)
		go func() {
			failed <- tls.Server(there, &tls.Config{Certificates: []tls.Certificate{pair}, SessionTicketsDisabled: true}).Handshake()
		}()
		if err := tls.Client(here, client).Handshake(); err != nil {
			return err
		}
		return <-failed
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(ca.pem))
	each(b, "a handshake of crypto,tls", func() error { return handshake(&tls.Config{RootCAs: roots, ServerName: "mcp.test"}) })
	for _, bb := range []struct{ name, policy string }{
		{"a handshake with root and hostname", `"hostname":"mcp.test"`}, {"a handshake with root and a pinned name", `"hostname":"x.test","subjectAltNames":["mcp.test"]`},
	} {
		target := served(b, `{"backendTLS":{"root":{"value":`+quoted(ca.pem)+`},`+bb.policy+`}}`)
		each(b, bb.name, func() error { return handshake(target.TLS()) })
	}
}

func benchmarkRequestHeaders(b *testing.B) {
	set := func(n int, value string) string {
		var set []string
		for i := range n {
			set = append(set, fmt.Sprintf(`"X-H%d":%s`, i, value))
		}
		return fmt.Sprintf(tenSet, strings.Join(set, ","))
	}
	for _, bb := range []struct{ name, policies string }{
		{"one literal", set(1, `{"value":"acme"}`)}, {"ten literal", set(10, `{"value":"acme"}`)},
		{"one by CEL", set(1, `{"expression":"jwt.sub"}`)}, {"ten by CEL", set(10, `{"expression":"jwt.sub"}`)},
	} {
		target := mustTarget(b, parse(b, bb.policies))
		out := &Outbound{Method: http.MethodPost, Header: http.Header{}, Call: caller("tools/call", Tool, `{}`)}
		out.Call.Principal.jwt = toCEL(out.Call.Principal.Claims)
		each(b, bb.name, func() error {
			clear(out.Header)
			return target.Outgoing(context.Background(), out)
		})
	}
}

func benchmarkResponseHeaders(b *testing.B) {
	for _, bb := range []struct{ name, value string }{{"one literal", `{"value":"acme"}`}, {"one by CEL", `{"expression":"jwt.sub"}`}} {
		target := mustTarget(b, parse(b, `{"responseHeaderModifier":{"set":{"X-Team":`+bb.value+`},"remove":["Retry-After"]}}`))
		c := caller("tools/call", Tool, `{}`)
		c.Principal.jwt = toCEL(c.Principal.Claims)
		h := http.Header{}
		each(b, bb.name, func() error {
			clear(h)
			return target.Response(h, c)
		})
	}
}

// benchmarkAi is what a policy adds to package guard's own figures, and what asking costs beside the judge's own time.
func benchmarkAi(b *testing.B) {
	const rules = `{"regex":{"action":"mask","rules":[{"builtin":"email"},{"builtin":"creditCard"},{"builtin":"phoneNumber"},{"builtin":"ssn"}]}}`
	text := strings.Repeat("The quarterly report of 2026-11-26 lists 42 items, among them a lamp (No. 7), two chairs and a table. ", 10)
	call := []byte(`{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"search","arguments":{"q":` + quoted(text) + `}}}`)
	guarded := func(name, policy string) {
		target := served(b, `{"ai":{"promptGuard":{"request":[`+policy+`]}}}`)
		c := toolCall("search", `{}`)
		each(b, name, func() error {
			_, note, err := target.Guard(b.Context(), c, ToTarget, call, guard.FromClient("tools/call"))
			if note != nil {
				return note
			}
			return err
		})
	}
	guarded("four built-ins, 1 KiB", rules)
	judge := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		_, _ = io.WriteString(w, map[string]string{"/hook": `{"action":"pass"}`, "/moderation": `{"results":[{"flagged":false}]}`}[r.URL.Path])
	}))
	defer judge.Close()
	guarded("a webhook on loopback, 1 KiB", `{"webhook":{"url":"`+judge.URL+`/hook"}}`)
	guarded("moderation on loopback, 1 KiB", `{"openAIModeration":{"url":"`+judge.URL+`/moderation","credential":{"value":"k"}}}`)
	filling := served(b, `{"ai":{"defaults":{"limit":10},"overrides":{"safe":true},"modelAliases":{"gpt-*":"local"}}}`)
	arguments := []byte(`{"q":"lamp","model":"gpt-5","n":1}`)
	each(b, "a default, an override and an alias", func() error {
		_, err := filling.FillArguments(arguments, func(string) bool { return true })
		return err
	})
}

func benchmarkA2a(b *testing.B) {
	target := mustTarget(b, authz(allow("a2a.method == 'message/send' && a2a.skill == 'search'")))
	c := toolCall("search", "")
	c.Method, c.Kind, c.Arguments = "message/send", Agent, nil
	each(b, "a rule over method and skill", func() error {
		if v := target.Admit(c); !v.Allowed {
			return fmt.Errorf("refused by %s", v.Rule)
		}
		return nil
	})
}

func benchmarkCors(b *testing.B) {
	rt := mustRoute(b, `{"cors":{"allowOrigins":["https://app.example.com","https://*.example.org"],"allowCredentials":true}}`)
	for _, bb := range []struct{ name, origin string }{{"no page", ""}, {"a page's call", "https://x.example.org"}} {
		r := request("")
		if bb.origin != "" {
			r.Header.Set("Origin", bb.origin)
		}
		h := http.Header{}
		each(b, bb.name, func() error {
			clear(h)
			if !rt.AllowOrigin(r, false) {
				return fmt.Errorf("%s is refused", bb.origin)
			}
			rt.ResponseHeaders(h, r, false)
			return nil
		})
	}
}

// authenticates measures how long it takes a route to know who sent r.
func authenticates(b *testing.B, name string, r *http.Request, route func() *Route) {
	each(b, name, func() error {
		p, err := route().Authenticate(r)
		if err == nil && p == nil {
			return fmt.Errorf("nobody is known")
		}
		return err
	})
}

func benchmarkJwtAuth(b *testing.B) {
	rt, err := CompileRoute(jwtPolicy(0, inline("https://idp.test", jwks(b, jose.JSONWebKey{Key: &keys().rsa.PublicKey}, jose.JSONWebKey{Key: &keys().ec.PublicKey}))), Resolver{})
	if err != nil {
		b.Fatal(err)
	}
	known := request(sign(b, jose.RS256, keys().rsa, "", claimsAt(time.Now())))
	authenticates(b, "a token seen before", known, func() *Route { return rt })
	for _, bb := range []struct {
		name string
		alg  jose.SignatureAlgorithm
		key  any
	}{{"first, RS256", jose.RS256, keys().rsa}, {"first, ES256", jose.ES256, keys().ec}} {
		r := request(sign(b, bb.alg, bb.key, "", claimsAt(time.Now())))
		authenticates(b, bb.name, r, func() *Route {
			for i := range rt.jwt.verified.shards {
				rt.jwt.verified.shards[i].entries, rt.jwt.verified.shards[i].size = nil, 0
			}
			return rt
		})
	}
}

func benchmarkMcpAuthentication(b *testing.B) {
	rt := protected(b, known(3000), `,"scopes":["read"]`)
	r := at("http://mcp.test:3000/mcp", sign(b, jose.ES256, keys().ec, "", claimsAt(time.Now(), `{"aud":"http://mcp.test:3000/mcp","scope":"read write"}`)))
	authenticates(b, "a token seen before", r, func() *Route { return rt })
}

func benchmarkAPIKey(b *testing.B) {
	var many []string
	for i := range 1000 {
		many = append(many, fmt.Sprintf(`{"key":{"value":"key-%d"},"metadata":{"id":"%d"}}`, i, i))
	}
	rt := mustRoute(b, `{"apiKey":{"mode":"MODE_STRICT","keys":[`+strings.Join(many, ",")+`]}}`)
	authenticates(b, "one of 1,000", request("key-500"), func() *Route { return rt })
}

func benchmarkBasicAuth(b *testing.B) {
	rt, err := basicRoute(1, "user:"+vector, Resolver{Runtime: NewRuntime()})
	if err != nil {
		b.Fatal(err)
	}
	authenticates(b, "a password seen within a minute", basicRequest("user:U*U"), func() *Route { return rt })
}

func benchmarkRateLimit(b *testing.B) {
	for _, bb := range []struct{ name, key string }{{"one bucket", ""}, {"a bucket for each caller and tool", `,"key":"jwt.sub + mcp.tool.name"`}} {
		target := limited(b, Resolver{Runtime: NewRuntime(), Tenant: "acme"}, "route/r", `{"maxTokens":1000000000,"fillInterval":"1s"`+bb.key+`}`)
		c := toolCall("echo", `{}`)
		c.Principal = authenticated()
		each(b, bb.name, func() error { return target.Take(c, &Taken{}) })
	}
}

func benchmarkTimeout(b *testing.B) {
	target := mustTarget(b, parse(b, `{"timeout":{"requestTimeout":"30s"}}`))
	each(b, "how long", func() error {
		if d, _ := target.Timeouts(0); d == 0 {
			return fmt.Errorf("no bound")
		}
		return nil
	})
}

func benchmarkRetry(b *testing.B) {
	target := mustTarget(b, parse(b, `{"retry":{"attempts":3}}`))
	each(b, "an answer that needs none", func() error {
		if target.Retry().On(200) {
			return fmt.Errorf("200 is sent again")
		}
		return nil
	})
}
