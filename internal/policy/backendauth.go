package policy

import (
	"encoding/base64"
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"strings"

	"github.com/sluicegate/sluice/internal/credential"
	policyv1 "github.com/sluicegate/sluice/proto/gen/sluice/policy/v1"
)

// backendAuth is how the proxy authenticates to a target over HTTP. At most one of its fields is set.
type backendAuth struct {
	credentials []placed
	passthrough *location
	unverified  bool       // with passthrough: whatever token the caller shows
	resource    *url.URL   // with unverified: how clients reach the route; nil: as they do
	token       *tokenAuth // gcp, azure, oauth, tokenExchange
	aws         *awsAuth
}

type placed struct {
	location location
	value    Secret
	unknown  bool // compiled where the value cannot be known
}

var envName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

// compileBackendAuth returns what goes into requests, or into the environment of a stdio child.
func compileBackendAuth(a *policyv1.BackendAuth, t Transport, r Resolver, field string, errs *problems) (*backendAuth, []string) {
	if method := methodName(a); method != "" && method != "key" && (t == Stdio || t == anyTransport && a.GetEnv() != "") {
		errs.add(field+"."+method, "%s; use `key` with `env`", needsRequests[method])
		return nil, nil
	}
	if t == Stdio && a.GetEnv() == "" {
		errs.add(field+".env", "is needed on a stdio target: name the child's environment variable that receives the credential")
		return nil, nil
	}
	if t != Stdio && t != anyTransport && a.GetEnv() != "" {
		errs.add(field+".env", "names a variable of a stdio child, and this target is reached over HTTP; remove it, or set backendAuth on the target itself")
		return nil, nil
	}
	if a.GetEnv() != "" && (!envName.MatchString(a.GetEnv()) || strings.HasPrefix(a.GetEnv(), "SLUICE_")) {
		errs.add(field+".env", "%q is no environment variable of a child; use letters, digits and _, and not SLUICE_*", a.GetEnv())
		return nil, nil
	}
	switch m := a.GetMethod().(type) {
	case *policyv1.BackendAuth_Key:
		credentials := compileKey(m.Key, r, field+".key", errs)
		if a.GetEnv() == "" {
			return &backendAuth{credentials: credentials}, nil
		}
		return nil, compileChildEnv(a.GetEnv(), m.Key, credentials, field+".key", errs)
	case *policyv1.BackendAuth_Passthrough:
		l := compileLocation(m.Passthrough.GetLocation(), field+".passthrough.location", errs)
		if m.Passthrough.GetUnverified() && (t == SSE || t == A2A) {
			errs.add(field+".passthrough.unverified", "needs a target of streamable HTTP (`mcp`), whose every answer can be the 401 that tells the client where to get a token; use a method that needs no answer of the target's")
		}
		var resource *url.URL
		switch r := m.Passthrough.GetResource(); {
		case r != "" && !m.Passthrough.GetUnverified():
			errs.add(field+".passthrough.resource", "says how clients reach a target that judges their tokens itself, and means nothing without unverified; remove it")
		case r != "":
			resource = compileResource(r, field+".passthrough.resource", errs)
		}
		return &backendAuth{passthrough: &l, unverified: m.Passthrough.GetUnverified(), resource: resource}, nil
	case *policyv1.BackendAuth_Basic:
		return &backendAuth{credentials: compileBasic(m.Basic, r, field+".basic", errs)}, nil
	case *policyv1.BackendAuth_Aws:
		return &backendAuth{aws: compileAWS(m.Aws, r, field+".aws", errs)}, nil
	case *policyv1.BackendAuth_Gcp:
		return &backendAuth{token: compileGCP(m.Gcp, r, field+".gcp", errs)}, nil
	case *policyv1.BackendAuth_Azure:
		return &backendAuth{token: compileAzure(m.Azure, r, field+".azure", errs)}, nil
	case *policyv1.BackendAuth_Oauth:
		return &backendAuth{token: compileOauth(m.Oauth, r, field+".oauth", errs)}, nil
	case *policyv1.BackendAuth_TokenExchange:
		return &backendAuth{token: compileExchange(m.TokenExchange, r, field+".tokenExchange", errs)}, nil
	default:
		errs.add(field, "says no method; write one of %s", quoteList(authMethods()))
	}
	return nil, nil
}

// needsRequests says why a method means nothing on a stdio target, whose child gets what it gets when it starts.
var needsRequests = map[string]string{
	"passthrough":   "sends on each caller's token, and a stdio child has no place to receive it",
	"basic":         "is a header of HTTP requests, and a stdio child gets none",
	"aws":           "signs HTTP requests, and a stdio child gets none",
	"gcp":           "obtains tokens that expire, and a stdio child has no place to receive a new one",
	"azure":         "obtains tokens that expire, and a stdio child has no place to receive a new one",
	"oauth":         "obtains tokens that expire, and a stdio child has no place to receive a new one",
	"tokenExchange": "obtains a token for each caller, and a stdio child has no place to receive it",
}

// methodName is the YAML name of the method that is set, or empty.
func methodName(a *policyv1.BackendAuth) string {
	m := a.ProtoReflect()
	if f := m.WhichOneof(m.Descriptor().Oneofs().ByName("method")); f != nil {
		return f.JSONName()
	}
	return ""
}

func authMethods() []string {
	fields := (&policyv1.BackendAuth{}).ProtoReflect().Descriptor().Oneofs().ByName("method").Fields()
	var names []string
	for i := range fields.Len() {
		names = append(names, fields.Get(i).JSONName())
	}
	return names
}

func compileKey(k *policyv1.KeyAuth, r Resolver, field string, errs *problems) []placed {
	if len(k.GetCredentials()) == 0 {
		errs.add(field, "holds no credential")
	}
	var out []placed
	taken := map[string]bool{}
	for i, c := range k.GetCredentials() {
		at := field
		if len(k.GetCredentials()) > 1 {
			at = fmt.Sprintf("%s.credentials[%d]", field, i)
		}
		p := placed{location: compileLocation(c.GetLocation(), at+".location", errs)}
		place := p.location
		place.prefix = ""
		if key := fmt.Sprint(place); taken[key] {
			errs.add(at+".location", "is the place of another credential too; only one fits there")
		} else {
			taken[key] = true
		}
		value, err := r.credential(c.GetCredential())
		switch {
		case errors.Is(err, ErrUnknown):
			p.unknown = true
		case err != nil:
			errs.add(at, "%v", err)
		case !p.location.valid(value.Reveal()):
			errs.add(at, "the value holds what its place cannot carry, such as a line break or a blank at an end")
		}
		p.value = value
		out = append(out, p)
	}
	return out
}

func compileChildEnv(name string, k *policyv1.KeyAuth, credentials []placed, field string, errs *problems) []string {
	if len(credentials) != 1 {
		errs.add(field, "holds %d credentials, and `env` names one variable; keep one credential", len(credentials))
		return nil
	}
	if k.GetCredentials()[0].GetLocation() != nil {
		errs.add(field+".location", "is a place in an HTTP request, and `env` hands the credential to a stdio child; remove one of them")
	}
	if strings.ContainsRune(credentials[0].value.Reveal(), 0) {
		errs.add(field, "the value holds a NUL byte, which no environment variable can")
	}
	if credentials[0].unknown {
		return nil
	}
	return []string{name + "=" + credentials[0].value.Reveal()}
}

// compileBasic makes RFC 7617's header of a name and a password.
func compileBasic(b *policyv1.BasicCredential, r Resolver, field string, errs *problems) []placed {
	control := func(r rune) bool { return r < ' ' || r == 0x7f }
	switch name := b.GetUsername(); {
	case name == "":
		errs.add(field+".username", "is missing")
	case strings.Contains(name, ":") || strings.ContainsFunc(name, control):
		errs.add(field+".username", "holds a colon or a control character, which no user name may (RFC 7617)")
	}
	p := placed{location: location{header: "Authorization", prefix: "Basic "}}
	password, known := r.secret(b.GetPassword(), field+".password", errs)
	if strings.ContainsFunc(password, control) {
		errs.add(field+".password", "holds a control character, which no password may (RFC 7617)")
	}
	p.unknown = !known
	p.value = Secret{base64.StdEncoding.EncodeToString([]byte(b.GetUsername() + ":" + password))}
	return []placed{p}
}

// secret resolves c. It is not known where its value is elsewhere, and where something is wrong, which errs tells.
func (r Resolver) secret(c *policyv1.Credential, field string, errs *problems) (value string, known bool) {
	s, err := r.credential(c)
	switch {
	case errors.Is(err, ErrUnknown):
		return "", false
	case err != nil:
		errs.add(field, "%v", err)
		return "", false
	}
	return s.Reveal(), true
}

// optional is secret for one that may be unset: then it is known to be empty.
func (r Resolver) optional(c *policyv1.Credential, field string, errs *problems) (value string, known bool) {
	if c == nil {
		return "", true
	}
	return r.secret(c, field, errs)
}

// identity asks for the power to act as the proxy itself at a cloud.
func (r Resolver) identity(cloud, field string, errs *problems) {
	if r.Identity == nil {
		return
	}
	if err := r.Identity(cloud); err != nil && !errors.Is(err, ErrUnknown) {
		errs.add(field, "%v", err)
	}
}

// scope is within what a policy's credentials are obtained; cloud is whose identity they may use, if any.
func (r Resolver) scope(cloud string) credential.Scope {
	s := credential.Scope{Tenant: r.Tenant, Powers: r.Grants.String(), Dial: r.Grants.DialContext}
	if cloud != "" {
		s.Identity = r.Grants.dialIdentity(cloud)
	}
	return s
}

// tokens is where they are kept; nil where nothing is ever fetched.
func (r Resolver) tokens() *credential.Store {
	if r.Runtime == nil {
		return nil
	}
	return &r.Runtime.tokens
}

// BackendAuthNeeds finds what a needs of the proxies beyond its credentials: of which clouds' identities, by the field that uses
// it, and which URLs they ask. Fields are below the policy; what only its secrets' values tell is found at compile.
func BackendAuthNeeds(a *policyv1.BackendAuth) (identities, urls map[string]string) {
	identities, urls = map[string]string{}, map[string]string{}
	client := func(field string, c *policyv1.OauthClient) { urls[field+".client.tokenUrl"] = c.GetTokenUrl() }
	switch m := a.GetMethod().(type) {
	case *policyv1.BackendAuth_Aws:
		urls["aws.stsEndpoint"] = m.Aws.GetStsEndpoint()
		if m.Aws.GetAccessKeyId() == nil && m.Aws.GetSecretAccessKey() == nil && m.Aws.GetWebIdentity() == nil {
			identities["aws"] = "aws"
		}
	case *policyv1.BackendAuth_Gcp:
		if m.Gcp.GetCredential() == nil {
			identities["gcp"] = "gcp"
		}
	case *policyv1.BackendAuth_Azure:
		e := m.Azure.GetExplicitConfig()
		w := e.GetWorkloadIdentity()
		switch {
		case e == nil:
			identities["azure"] = "azure"
		case e.GetManagedIdentity() != nil:
			identities["azure.explicitConfig.managedIdentity"] = "azure"
		case w != nil && w.GetToken() == nil:
			identities["azure.explicitConfig.workloadIdentity"] = "azure"
		}
		urls["azure.explicitConfig.clientSecret.authorityHost"] = e.GetClientSecret().GetAuthorityHost()
		urls["azure.explicitConfig.workloadIdentity.authorityHost"] = w.GetAuthorityHost()
	case *policyv1.BackendAuth_Oauth:
		client("oauth", m.Oauth.GetClient())
	case *policyv1.BackendAuth_TokenExchange:
		client("tokenExchange", m.TokenExchange.GetClient())
		if actor := m.TokenExchange.GetActor().GetClientCredentials(); actor != nil {
			client("tokenExchange.actor.clientCredentials", actor.GetClient())
		}
	}
	return identities, urls
}
