package policy

import (
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"

	"github.com/sluicegate/sluice/internal/credential"
	policyv1 "github.com/sluicegate/sluice/proto/gen/sluice/policy/v1"
)

const (
	accessTokenType = "urn:ietf:params:oauth:token-type:access_token"
	// reserved are the parameters of a token request that have fields of their own, or that the proxy writes.
	reserved = " grant_type scope resource audience client_id client_secret client_assertion client_assertion_type subject_token subject_token_type" +
		" actor_token actor_token_type requested_token_type "
)

// compileOauth is the client credentials grant.
func compileOauth(a *policyv1.OauthAuth, r Resolver, field string, errs *problems) *tokenAuth {
	out := &tokenAuth{field: field, location: compileLocation(a.GetLocation(), field+".location", errs), tokens: r.tokens()}
	if src := compileClientCredentials(a, r, field, errs); src != nil {
		out.source = func(*Outbound) (*credential.Source, error) { return src, nil }
	}
	return out
}

// compileClientCredentials returns nil where the client's secret is not known, or something is wrong.
func compileClientCredentials(a *policyv1.OauthAuth, r Resolver, field string, errs *problems) *credential.Source {
	params := tokenParams(a.GetScopes(), a.GetResource(), a.GetAudience(), field, errs)
	for _, name := range sortedKeys(a.GetParams()) {
		if name == "" || strings.Contains(reserved, " "+name+" ") {
			errs.add(field+".params."+name, "is written by the proxy or has a field of its own beside `params`")
			continue
		}
		params.Set(name, a.GetParams()[name])
	}
	client, known := compileOauthClient(a.GetClient(), r, field+".client", errs)
	if !known {
		return nil
	}
	return r.scope("").ClientCredentials(client, params)
}

func tokenParams(scopes []string, resource, audience, field string, errs *problems) url.Values {
	params := url.Values{}
	for i, s := range scopes {
		if s == "" || strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r >= 0x7f || r == '"' || r == '\\' }) {
			errs.add(index(field+".scopes", i), "%q is no scope: one each, of visible ASCII without quotes (RFC 6749 section 3.3)", s)
		}
	}
	if len(scopes) > 0 {
		params.Set("scope", strings.Join(scopes, " "))
	}
	if resource != "" {
		if u, err := url.Parse(resource); err != nil || !u.IsAbs() || strings.Contains(resource, "#") {
			errs.add(field+".resource", "%q is no absolute URI without a fragment (RFC 8707 section 2)", resource)
		}
		params.Set("resource", resource)
	}
	if audience != "" {
		params.Set("audience", audience)
	}
	return params
}

var clientMethods = []string{credential.SecretBasic, credential.SecretPost, credential.PrivateKeyJWT, credential.NoClientAuth}

// compileOauthClient reports whether the client is known, with its secret, and right.
func compileOauthClient(c *policyv1.OauthClient, r Resolver, field string, errs *problems) (out credential.Client, known bool) {
	before := len(errs.errs)
	checkEndpoint(c.GetTokenUrl(), field+".tokenUrl", errs)
	if c.GetClientId() == "" {
		errs.add(field+".clientId", "is missing")
	}
	out = credential.Client{TokenURL: c.GetTokenUrl(), ID: c.GetClientId(), Method: c.GetAuthMethod()}
	withSecret, withKey := c.GetClientSecret() != nil, c.GetPrivateKey() != nil
	if out.Method == "" {
		switch {
		case withKey:
			out.Method = credential.PrivateKeyJWT
		case withSecret:
			out.Method = credential.SecretBasic
		default:
			errs.add(field, "says no way to authenticate: give `clientSecret` or `privateKey`, or write authMethod: none")
			return out, false
		}
	}
	takesSecret := out.Method == credential.SecretBasic || out.Method == credential.SecretPost
	takesKey := out.Method == credential.PrivateKeyJWT
	switch {
	case !slices.Contains(clientMethods, out.Method):
		errs.add(field+".authMethod", "%q is none of %s", out.Method, quoteList(clientMethods))
		return out, false
	case withSecret && withKey:
		errs.add(field+".privateKey", "and `clientSecret` cannot both be set; keep the one that %s takes", out.Method)
	case takesSecret && !withSecret:
		errs.add(field+".clientSecret", "is missing, and %s needs it", out.Method)
	case takesKey && !withKey:
		errs.add(field+".privateKey", "is missing, and %s needs it", out.Method)
	case withSecret && !takesSecret:
		errs.add(field+".clientSecret", "is set, and %s sends none; remove it", out.Method)
	case withKey && !takesKey:
		errs.add(field+".privateKey", "is set, and %s signs nothing; remove it", out.Method)
	}
	if !takesKey {
		for _, f := range []struct{ name, value string }{{"keyId", c.GetKeyId()}, {"algorithm", c.GetAlgorithm()}, {"assertionAudience", c.GetAssertionAudience()}} {
			if f.value != "" {
				errs.add(field+"."+f.name, "belongs to private_key_jwt, and the method is %s; remove it", out.Method)
			}
		}
	}
	if len(errs.errs) > before {
		return out, false
	}
	switch {
	case takesSecret:
		out.Secret, known = r.secret(c.GetClientSecret(), field+".clientSecret", errs)
	case takesKey:
		var key string
		if key, known = r.secret(c.GetPrivateKey(), field+".privateKey", errs); known {
			var err error
			if out.Signer, err = credential.NewAssertions(key, c.GetKeyId(), c.GetAlgorithm(), c.GetAssertionAudience()); err != nil {
				errs.add(field+".privateKey", "%v", err)
				known = false
			}
		}
	default:
		known = true
	}
	return out, known
}

// checkEndpoint wants https, for what goes there is secret; http stays on this machine.
func checkEndpoint(raw, field string, errs *problems) {
	if raw == "" {
		errs.add(field, "is missing")
		return
	}
	u, err := url.Parse(raw)
	switch {
	case err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http":
		errs.add(field, "is no https URL")
	case u.User != nil:
		errs.add(field, "holds a user name or password; give them in fields of their own, and remove them here")
	case strings.Contains(raw, "#"):
		errs.add(field, "holds a fragment, which no endpoint may; remove it")
	case u.Scheme == "http" && !isLoopback(u.Hostname()):
		errs.add(field, "is http, which would show secrets on the way; write https (http is for loopback addresses alone)")
	}
}

func isLoopback(host string) bool {
	if strings.EqualFold(host, "localhost") {
		return true
	}
	addr, err := netip.ParseAddr(host)
	return err == nil && addr.Unmap().IsLoopback()
}

// compileExchange is RFC 8693.
func compileExchange(x *policyv1.TokenExchange, r Resolver, field string, errs *problems) *tokenAuth {
	out := &tokenAuth{field: field, location: compileLocation(x.GetLocation(), field+".location", errs), tokens: r.tokens()}
	params := tokenParams(x.GetScopes(), x.GetResource(), x.GetAudience(), field, errs)
	params.Set("subject_token_type", tokenType(x.GetSubjectTokenType(), field+".subjectTokenType", errs))
	if x.GetRequestedTokenType() != "" {
		params.Set("requested_token_type", tokenType(x.GetRequestedTokenType(), field+".requestedTokenType", errs))
	}
	actor, actorKnown := compileActor(x.GetActor(), r, field+".actor", errs)
	client, known := compileOauthClient(x.GetClient(), r, field+".client", errs)
	if !known || !actorKnown || r.tokens() == nil {
		return out
	}
	exchange := r.scope("").Exchange(client, params, actor, r.tokens())
	out.source = func(o *Outbound) (*credential.Source, error) {
		p := o.Call.Principal
		if p == nil || p.Token.IsZero() {
			return nil, NoTokenToExchange
		}
		return exchange.Source(p.ID, p.Token.Reveal()), nil
	}
	return out
}

// NoTokenToExchange refuses a caller who showed no token where tokenExchange needs one; [Route.BearerChallenge] asks for it.
var NoTokenToExchange = &AuthError{Status: http.StatusUnauthorized, Reason: "the target takes a token that is exchanged for the caller's, and the caller showed none"}

func compileActor(a *policyv1.TokenExchangeActor, r Resolver, field string, errs *problems) (out credential.Actor, known bool) {
	if a == nil {
		return out, true
	}
	out.Type = tokenType(a.GetTokenType(), field+".tokenType", errs)
	switch t := a.GetToken().(type) {
	case *policyv1.TokenExchangeActor_Credential:
		out.Token, known = r.secret(t.Credential, field+".credential", errs)
	case *policyv1.TokenExchangeActor_ClientCredentials:
		if t.ClientCredentials.GetLocation() != nil {
			errs.add(field+".clientCredentials.location", "means nothing here: the actor's token goes to the token endpoint alone; remove it")
		}
		out.Source = compileClientCredentials(t.ClientCredentials, r, field+".clientCredentials", errs)
		known = out.Source != nil
	default:
		errs.add(field, "names no token; write one of `credential` and `clientCredentials`")
	}
	return out, known
}

// tokenType is a URI of RFC 8693 section 3; an empty one is an access token's.
func tokenType(uri, field string, errs *problems) string {
	if uri == "" {
		return accessTokenType
	}
	if u, err := url.Parse(uri); err != nil || !u.IsAbs() {
		errs.add(field, "%q is no URI of a token type, such as %s (RFC 8693 section 3)", uri, accessTokenType)
	}
	return uri
}
