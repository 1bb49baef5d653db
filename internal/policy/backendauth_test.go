package policy

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"

	policyv1 "github.com/sluicegate/sluice/proto/gen/sluice/policy/v1"
)

// authPolicy is a policy of backendAuth alone.
func authPolicy(auth string) string { return `{"backendAuth":` + auth + `}` }

// quoted makes text a JSON string.
func quoted(text string) string {
	b, _ := json.Marshal(text)
	return string(b)
}

// refusing grants no identity, as a tenant without grants has none.
func refusing(r Resolver) Resolver {
	r.Identity = func(cloud string) error { return fmt.Errorf("no identity=%s", cloud) }
	r.File = func(path string) ([]byte, error) { return nil, errors.New("no file=" + path) }
	return r
}

func TestBackendAuthRefusals(t *testing.T) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	small, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	asPEM := func(k *rsa.PrivateKey) string {
		return string(pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(k)}))
	}
	public, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	const (
		static   = `"accessKeyId":{"value":"AK"},"secretAccessKey":{"value":"SK"}`
		signs    = static + `,"region":"eu-west-1","serviceName":"s3"`
		role     = `"roleArn":"arn:aws:iam::123456789012:role/r"`
		endpoint = `"tokenUrl":"https://as.example/token","clientId":"c"`
		secret   = endpoint + `,"clientSecret":{"value":"s"}`
	)
	oauth := func(client string) string { return `{"oauth":{"client":{` + client + `}}}` }
	google := func(file string) string { return `{"gcp":{"credential":{"value":` + quoted(file) + `}}}` }
	external := func(source string) string {
		return google(`{"type":"external_account","token_url":"https://sts.googleapis.com/v1/token","credential_source":` + source + `}`)
	}
	for _, tt := range []struct{ auth, field, reason string }{
		{`{}`, "", "says no method; write one of `key`, `passthrough`, `aws`, `gcp`, `azure`, `basic`, `oauth`, `tokenExchange`"},
		{`{"basic":{"password":{"value":"p"}}}`, ".basic.username", "is missing"},
		{`{"basic":{"username":"a:b","password":{"value":"p"}}}`, ".basic.username", "colon"},
		{`{"basic":{"username":"a"}}`, ".basic.password", "no source"},
		{`{"basic":{"username":"a","password":{"value":"p\u0000"}}}`, ".basic.password", "control character"},
		{`{"basic":{"username":"a","password":{"value":"p"}},"env":"X"}`, ".env", "names a variable of a stdio child"},

		{`{"aws":{` + static + `,"region":"eu-west-1"}}`, ".aws.serviceName", "is missing"},
		{`{"aws":{` + static + `,"serviceName":"s3"}}`, ".aws.region", `environment variable "AWS_REGION"`},
		{`{"aws":{` + static + `,"serviceName":"s3","region":"EU West"}}`, ".aws.region", "no region"},
		{`{"aws":{"accessKeyId":{"value":"AK"},"region":"eu-west-1","serviceName":"s3"}}`, ".aws", "needs both"},
		{`{"aws":{"sessionToken":{"value":"T"},"region":"eu-west-1","serviceName":"s3"}}`, ".aws.sessionToken", "belongs to"},
		{`{"aws":{"accessKeyId":{"value":"A K"},"secretAccessKey":{"value":"SK"},"region":"eu-west-1","serviceName":"s3"}}`, ".aws.accessKeyId", "blank"},
		{`{"aws":{` + signs + `,"webIdentity":{` + role + `,"token":{"value":"t"}}}}`, ".aws.webIdentity", "cannot both be set"},
		{`{"aws":{"region":"eu-west-1","serviceName":"s3","webIdentity":{"roleArn":"r","token":{"value":"t"}}}}`, ".aws.webIdentity.roleArn", "no ARN of a role"},
		{`{"aws":{"region":"eu-west-1","serviceName":"s3","webIdentity":{` + role + `}}}`, ".aws.webIdentity.token", "no source"},
		{`{"aws":{` + signs + `,"stsEndpoint":"https://sts.example"}}`, ".aws.stsEndpoint", "belongs to `assumeRole` or `webIdentity`"},
		{`{"aws":{` + signs + `,"stsEndpoint":"http://sts.example","assumeRole":{` + role + `}}}`, ".aws.stsEndpoint", "is http"},
		{`{"aws":{` + signs + `,"assumeRole":{}}}`, ".aws.assumeRole.roleArn", "no ARN of a role"},
		{`{"aws":{` + signs + `,"assumeRole":{` + role + `,"duration":"60s"}}}`, ".aws.assumeRole.duration", "1m0s is out of range"},
		{`{"aws":{` + signs + `,"assumeRole":{` + role + `,"duration":"46800s"}}}`, ".aws.assumeRole.duration", "13h0m0s is out of range"},
		{`{"aws":{` + signs + `,"assumeRole":{` + role + `,"externalId":"a b"}}}`, ".aws.assumeRole.externalId", "no external id"},
		{`{"aws":{` + signs + `,"assumeRole":{` + role + `,"sessionName":{"value":"a b"}}}}`, ".aws.assumeRole.sessionName", "no name of a session"},
		{`{"aws":{` + signs + `,"assumeRole":{` + role + `,"sessionName":{"expression":"1"}}}}`, ".aws.assumeRole.sessionName.expression", "is of type int, not string"},
		{`{"aws":{` + signs + `,"assumeRole":{` + role + `,"tags":[{"key":"t","value":{"expression":"jwt.sub =="}}]}}}`, ".aws.assumeRole.tags[0].value.expression", "Syntax error"},
		{`{"aws":{` + signs + `,"assumeRole":{` + role + `,"tags":[{"key":"t","value":{"value":"a;b"}}]}}}`, ".aws.assumeRole.tags[0].value", "no value of a tag"},
		{`{"aws":{` + signs + `,"assumeRole":{` + role + `,"tags":[{"key":"t","value":{"value":"a"}},{"key":"T","value":{"value":"b"}}]}}}`, ".aws.assumeRole.tags[1].key", "another tag"},
		{`{"aws":{"region":"eu-west-1","serviceName":"s3"}}`, ".aws", "no identity=aws"},

		{`{"gcp":{}}`, ".gcp", "no identity=gcp"},
		{`{"gcp":{"type":"x","credential":{"env":"` + "GOOD" + `"}}}`, ".gcp.type", "neither idToken nor accessToken"},
		{`{"gcp":{"audience":"a","credential":{"env":"GOOD"}}}`, ".gcp.audience", "belongs to `type: idToken`"},
		{`{"gcp":{"type":"idToken","scopes":["a"],"credential":{"env":"GOOD"}}}`, ".gcp.scopes", "belong to `type: accessToken`"},
		{google(`nonsense`), ".gcp.credential", "no JSON"},
		{google(`{"type":"gdch_service_account"}`), ".gcp.credential", `of type "gdch_service_account"`},
		{google(`{"type":"service_account"}`), ".gcp.credential", "without private_key"},
		{google(`{"type":"service_account","client_email":"a@b","private_key":"x"}`), ".gcp.credential.private_key", "no private key"},
		{google(`{"type":"authorized_user","token_uri":"http://evil.example"}`), ".gcp.credential.token_uri", "is http"},
		{external(`{"executable":{"command":"/bin/sh"}}`), ".gcp.credential.credential_source.executable", "policies run none"},
		{external(`{"certificate":{"use_default_certificate_config":true}}`), ".gcp.credential.credential_source.certificate", "not supported"},
		{external(`{"file":"/etc/passwd"}`), ".gcp.credential.credential_source.file", "no file=/etc/passwd"},
		{external(`{"url":"http://169.254.169.254/latest"}`), ".gcp.credential.credential_source.url", "is http"},
		{external(`{"environment_id":"aws1"}`), ".gcp.credential.credential_source", "no identity=aws"},
		{google(`{"type":"impersonated_service_account","service_account_impersonation_url":"https://x","source_credentials":{"type":"external_account","credential_source":{"executable":{"command":"x"}}}}`),
			".gcp.credential.source_credentials.credential_source.executable", "policies run none"},

		{`{"azure":{}}`, ".azure", "says 0 of"},
		{`{"azure":{"implicit":{},"developerImplicit":{}}}`, ".azure", "says 2 of"},
		{`{"azure":{"implicit":{}}}`, ".azure", "no identity=azure"},
		{`{"azure":{"developerImplicit":{}}}`, ".azure", "no identity=azure"},
		{`{"azure":{"explicitConfig":{}}}`, ".azure.explicitConfig", "names no identity"},
		{`{"azure":{"explicitConfig":{"managedIdentity":{}}}}`, ".azure", "no identity=azure"},
		{`{"azure":{"explicitConfig":{"workloadIdentity":{}}}}`, ".azure", "no identity=azure"},
		{`{"azure":{"explicitConfig":{"workloadIdentity":{"tenantId":"t","clientId":"c","token":{"value":"x"},"authorityHost":"http://h"}}}}`, ".azure.explicitConfig.workloadIdentity.authorityHost", "no https URL"},
		{`{"azure":{"explicitConfig":{"clientSecret":{"clientId":"c","clientSecret":{"value":"s"}}}}}`, ".azure.explicitConfig.clientSecret.tenantId", "is missing"},
		{`{"azure":{"explicitConfig":{"clientSecret":{"tenantId":"a/b","clientId":"c","clientSecret":{"value":"s"}}}}}`, ".azure.explicitConfig.clientSecret.tenantId", "no id"},
		{`{"azure":{"scopes":["a b"],"explicitConfig":{"clientSecret":{"tenantId":"t","clientId":"c","clientSecret":{"value":"s"}}}}}`, ".azure.scopes[0]", "no scope"},

		{oauth(`"clientId":"c","clientSecret":{"value":"s"}`), ".oauth.client.tokenUrl", "is missing"},
		{oauth(`"tokenUrl":"https://as.example/token","clientSecret":{"value":"s"}`), ".oauth.client.clientId", "is missing"},
		{oauth(endpoint), ".oauth.client", "says no way to authenticate"},
		{oauth(secret + `,"authMethod":"tls_client_auth"`), ".oauth.client.authMethod", "is none of"},
		{oauth(secret + `,"privateKey":{"value":"k"}`), ".oauth.client.privateKey", "cannot both be set"},
		{oauth(secret + `,"authMethod":"none"`), ".oauth.client.clientSecret", "none sends none"},
		{oauth(secret + `,"authMethod":"private_key_jwt"`), ".oauth.client.privateKey", "is missing"},
		{oauth(endpoint + `,"authMethod":"client_secret_post"`), ".oauth.client.clientSecret", "is missing"},
		{oauth(secret + `,"keyId":"k"`), ".oauth.client.keyId", "belongs to private_key_jwt"},
		{oauth(`"tokenUrl":"http://as.example/token","clientId":"c","authMethod":"none"`), ".oauth.client.tokenUrl", "is http"},
		{oauth(`"tokenUrl":"ftp://as.example","clientId":"c","authMethod":"none"`), ".oauth.client.tokenUrl", "no https URL"},
		{oauth(`"tokenUrl":"https://u:p@as.example","clientId":"c","authMethod":"none"`), ".oauth.client.tokenUrl", "user name or password"},
		{oauth(endpoint + `,"privateKey":{"value":"s3cret-that-is-no-key"}`), ".oauth.client.privateKey", "no private key"},
		{oauth(endpoint + `,"privateKey":{"value":` + quoted(asPEM(small)) + `}`), ".oauth.client.privateKey", "1024 bits"},
		{oauth(endpoint + `,"privateKey":{"value":` + quoted(string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: public}))) + `}`), ".oauth.client.privateKey", "no private key"},
		{oauth(endpoint + `,"privateKey":{"value":` + quoted(`{"kty":"oct","k":"c2VjcmV0"}`) + `}`), ".oauth.client.privateKey", "symmetric"},
		{oauth(endpoint + `,"algorithm":"ES256","privateKey":{"value":` + quoted(asPEM(key)) + `}`), ".oauth.client.privateKey", "ES256 does not fit the key, which takes RS256"},
		{oauth(endpoint + `,"algorithm":"none","privateKey":{"value":` + quoted(asPEM(key)) + `}`), ".oauth.client.privateKey", "does not fit"},
		{`{"oauth":{"client":{` + secret + `},"scopes":["a b"]}}`, ".oauth.scopes[0]", "no scope"},
		{`{"oauth":{"client":{` + secret + `},"resource":"x"}}`, ".oauth.resource", "no absolute URI"},
		{`{"oauth":{"client":{` + secret + `},"params":{"grant_type":"password"}}}`, ".oauth.params.grant_type", "field of its own"},
		{`{"oauth":{"client":{` + secret + `},"location":{"header":{"name":"Host"}}}}`, ".oauth.location.header.name", "address"},

		{`{"tokenExchange":{}}`, ".tokenExchange.client.tokenUrl", "is missing"},
		{`{"tokenExchange":{"client":{` + secret + `},"subjectTokenType":"jwt"}}`, ".tokenExchange.subjectTokenType", "no URI of a token type"},
		{`{"tokenExchange":{"client":{` + secret + `},"actor":{}}}`, ".tokenExchange.actor", "names no token"},
		{`{"tokenExchange":{"client":{` + secret + `},"actor":{"clientCredentials":{"client":{` + endpoint + `}}}}}`, ".tokenExchange.actor.clientCredentials.client", "says no way"},
		{`{"tokenExchange":{"client":{` + secret + `},"actor":{"clientCredentials":{"client":{` + secret + `},"location":{"header":{"name":"X"}}}}}}`, ".tokenExchange.actor.clientCredentials.location", "means nothing here"},
	} {
		r := refusing(testResolver)
		r.Env = func(name string) (string, error) {
			if name == "GOOD" {
				return `{"type":"service_account","client_email":"a@b","private_key":` + quoted(asPEM(key)) + `}`, nil
			}
			return "", errors.New("is not set where the proxy runs")
		}
		_, err := CompileTarget(parse(t, authPolicy(tt.auth)), HTTP, r)
		found := FieldErrors(err)
		if len(found) == 0 || found[0].Field != "policies.backendAuth"+tt.field || !strings.Contains(found[0].Reason, tt.reason) {
			t.Errorf("%s: %v, want %s: …%s…", tt.auth, err, tt.field, tt.reason)
		}
		if err != nil && (strings.Contains(err.Error(), "s3cret") || strings.Contains(err.Error(), "PRIVATE")) {
			t.Errorf("%s: the error shows the secret: %v", tt.auth, err)
		}
	}
}

// Whatever method the proto has, a stdio target takes it or says why it does not.
func TestBackendAuthOnStdio(t *testing.T) {
	for _, method := range authMethods() {
		for _, env := range []string{"", `,"env":"TOKEN"`} {
			_, err := CompileTarget(parse(t, authPolicy(`{"`+method+`":{}`+env+`}`)), Stdio, Resolver{})
			found := FieldErrors(err)
			if method == "key" {
				continue // see TestRefusedAtCompile and TestChildEnv
			}
			if len(found) != 1 || found[0].Field != "policies.backendAuth."+method || !strings.Contains(found[0].Reason, "use `key` with `env`") {
				t.Errorf("%s%s: %v", method, env, err)
			}
		}
	}
}

// The control plane knows no secrets: what it compiles is right as far as it can see, and never sends anything.
func TestBackendAuthUnknown(t *testing.T) {
	for _, auth := range []string{
		`{"basic":{"username":"u","password":{"sealed":"f"}}}`,
		`{"aws":{"accessKeyId":{"sealed":"f"},"secretAccessKey":{"sealed":"g"},"serviceName":"s3"}}`,
		`{"aws":{"serviceName":"s3"}}`,
		`{"aws":{"serviceName":"s3","region":"x","webIdentity":{"roleArn":"arn:aws:iam::123456789012:role/r","token":{"file":"/t"}}}}`,
		`{"gcp":{}}`, `{"gcp":{"type":"idToken","credential":{"sealed":"f"}}}`,
		`{"azure":{"implicit":{}}}`, `{"azure":{"explicitConfig":{"clientSecret":{"tenantId":"t","clientId":"c","clientSecret":{"sealed":"f"}}}}}`,
		`{"oauth":{"client":{"tokenUrl":"https://a/t","clientId":"c","privateKey":{"sealed":"f"}}}}`,
		`{"oauth":{"client":{"tokenUrl":"https://a/t","clientId":"c","authMethod":"none"}}}`,
		`{"tokenExchange":{"client":{"tokenUrl":"https://a/t","clientId":"c","authMethod":"none"},"actor":{"credential":{"sealed":"f"}}}}`,
	} {
		target, err := CompileTarget(parse(t, authPolicy(auth)), HTTP, Resolver{})
		if err != nil {
			t.Errorf("%s: %v", auth, err)
			continue
		}
		h := http.Header{}
		err = outgoing(target, h, nil, &Principal{Token: NewSecret("t")})
		if _, own := errors.AsType[*CredentialError](err); !own || len(h) > 0 {
			t.Errorf("%s: sent %v, %v", auth, h, err)
		}
	}
}

func TestBasic(t *testing.T) {
	// The example of RFC 7617 section 2.
	target, err := CompileTarget(parse(t, authPolicy(`{"basic":{"username":"Aladdin","password":{"value":"open sesame"}}}`)), HTTP, testResolver)
	if err != nil {
		t.Fatal(err)
	}
	h := http.Header{}
	if err := outgoing(target, h, nil, nil); err != nil {
		t.Fatal(err)
	}
	if got := h.Get("Authorization"); got != "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==" {
		t.Errorf("Authorization: %s", got)
	}
}

func TestBackendAuthNeeds(t *testing.T) {
	for auth, want := range map[string]string{
		`{"key":{}}`:                            "map[] map[]",
		`{"aws":{}}`:                            "map[aws:aws] map[aws.stsEndpoint:]",
		`{"aws":{"assumeRole":{}}}`:             "map[aws:aws] map[aws.stsEndpoint:]",
		`{"aws":{"accessKeyId":{"value":"x"}}}`: "map[] map[aws.stsEndpoint:]",
		`{"aws":{"webIdentity":{}}}`:            "map[] map[aws.stsEndpoint:]",
		`{"gcp":{}}`:                            "map[gcp:gcp] map[]",
		`{"gcp":{"credential":{"value":"x"}}}`:  "map[] map[]",
		`{"oauth":{"client":{"tokenUrl":"u"}}}`: "map[] map[oauth.client.tokenUrl:u]",
		`{"tokenExchange":{"client":{"tokenUrl":"u"},"actor":{"clientCredentials":{"client":{"tokenUrl":"v"}}}}}`: "map[] map[tokenExchange.actor.clientCredentials.client.tokenUrl:v tokenExchange.client.tokenUrl:u]",
	} {
		a := &policyv1.BackendAuth{}
		if err := protojson.Unmarshal([]byte(auth), a); err != nil {
			t.Fatal(err)
		}
		identities, urls := BackendAuthNeeds(a)
		if got := fmt.Sprint(identities, " ", urls); strings.ReplaceAll(got, "  ", " ") != want {
			t.Errorf("%s: %s, want %s", auth, got, want)
		}
	}
	for auth, want := range map[string]bool{
		`{"implicit":{}}`: true, `{"developerImplicit":{}}`: true, `{"explicitConfig":{"managedIdentity":{}}}`: true, `{"explicitConfig":{"workloadIdentity":{}}}`: true,
		`{"explicitConfig":{"workloadIdentity":{"token":{"value":"x"}}}}`: false, `{"explicitConfig":{"clientSecret":{}}}`: false,
	} {
		a := &policyv1.BackendAuth{}
		if err := protojson.Unmarshal([]byte(`{"azure":`+auth+`}`), a); err != nil {
			t.Fatal(err)
		}
		if identities, _ := BackendAuthNeeds(a); (len(identities) == 1) != want {
			t.Errorf("%s: %v", auth, identities)
		}
	}
}

const awsStatic = `"accessKeyId":{"value":"AK"},"secretAccessKey":{"value":"SK"},"region":"eu-west-1","serviceName":"execute-api"`

func TestPerCaller(t *testing.T) {
	const role = `"assumeRole":{"roleArn":"arn:aws:iam::123456789012:role/r"`
	for auth, want := range map[string]bool{
		`{"passthrough":{}}`: true,
		`{"tokenExchange":{"client":{"tokenUrl":"https://a/t","clientId":"c","authMethod":"none"}}}`: true,
		`{"oauth":{"client":{"tokenUrl":"https://a/t","clientId":"c","authMethod":"none"}}}`:         false,
		`{"key":{"credentials":[{"credential":{"value":"v"}}]}}`:                                     false,
		`{"aws":{` + awsStatic + `}}`:                                                                                 false,
		`{"aws":{` + awsStatic + `,` + role + `}}}`:                                                                   false,
		`{"aws":{` + awsStatic + `,` + role + `,"sessionName":{"expression":"tenant"}}}}`:                             false,
		`{"aws":{` + awsStatic + `,` + role + `,"sessionName":{"expression":"jwt.sub"}}}}`:                            true,
		`{"aws":{` + awsStatic + `,` + role + `,"tags":[{"key":"k","value":{"expression":"string(apiKey.team)"}}]}}}`: true,
	} {
		target, err := CompileTarget(parse(t, authPolicy(auth)), HTTP, Resolver{})
		if err != nil {
			t.Errorf("%s: %v", auth, err)
		} else if target.PerCaller() != want {
			t.Errorf("%s: %v", auth, !want)
		}
	}
}

// What a caller brings into a session's name or tag is taken as it is, or not at all.
func TestSessionOfCaller(t *testing.T) {
	r := testResolver
	r.Runtime = NewRuntime()
	target, err := CompileTarget(parse(t, authPolicy(`{"aws":{`+awsStatic+`,"assumeRole":{"roleArn":"arn:aws:iam::123456789012:role/r","sessionName":{"expression":"jwt.sub"},"tags":[{"key":"team","value":{"expression":"jwt.team"}}]}}}`)), HTTP, r)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		claims map[string]any
		want   string // of the error; empty: the session
	}{
		{map[string]any{"sub": "ada@example.com", "team": "Blue team"}, ""},
		{map[string]any{"sub": "auth0|ada", "team": "b"}, "assumeRole.sessionName"},
		{map[string]any{"sub": "a", "team": "b"}, "assumeRole.sessionName"},
		{map[string]any{"sub": strings.Repeat("a", 65), "team": "b"}, "assumeRole.sessionName"},
		{map[string]any{"sub": "ada\r\nx", "team": "b"}, "assumeRole.sessionName"},
		{map[string]any{"team": "b"}, "assumeRole.sessionName"},
		{map[string]any{"sub": "ada", "team": "a;b"}, "assumeRole.tags[team]"},
		{map[string]any{"sub": "ada", "team": 7}, "assumeRole.tags[team]"},
		{map[string]any{"sub": "ada", "team": strings.Repeat("é", 257)}, "assumeRole.tags[team]"},
	} {
		role, err := target.auth.aws.role.of(&Call{Principal: &Principal{Claims: tt.claims}})
		switch {
		case tt.want == "" && (err != nil || role.SessionName != "ada@example.com" || role.Tags["team"] != "Blue team"):
			t.Errorf("%v: %+v, %v", tt.claims, role, err)
		case tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want) || strings.ContainsAny(err.Error(), "\r\n")):
			t.Errorf("%v: %v, want %s", tt.claims, err, tt.want)
		}
		if tt.want == "" {
			continue
		}
		h := http.Header{}
		err = outgoing(target, h, &url.URL{Scheme: "https", Host: "h", Path: "/"}, &Principal{Claims: tt.claims})
		if _, own := errors.AsType[*CredentialError](err); !own || len(h) > 0 {
			t.Errorf("%v: sent %v, %v", tt.claims, h, err)
		}
	}
}
