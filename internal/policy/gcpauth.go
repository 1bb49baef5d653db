package policy

import (
	"encoding/json"
	"errors"
	"strings"

	"github.com/sluicegate/sluice/internal/credential"
	policyv1 "github.com/sluicegate/sluice/proto/gen/sluice/policy/v1"
)

const cloudPlatform = "https://www.googleapis.com/auth/cloud-platform"

func compileGCP(g *policyv1.GcpAuth, r Resolver, field string, errs *problems) *tokenAuth {
	out := &tokenAuth{field: field, location: compileLocation(g.GetLocation(), field+".location", errs), tokens: r.tokens()}
	id := g.GetType() == "idToken"
	switch {
	case !id && g.GetType() != "" && g.GetType() != "accessToken":
		errs.add(field+".type", "%q is neither idToken nor accessToken", g.GetType())
	case !id && g.GetAudience() != "":
		errs.add(field+".audience", "belongs to `type: idToken`")
	case id && len(g.GetScopes()) > 0:
		errs.add(field+".scopes", "belong to `type: accessToken`; an idToken has an audience")
	}
	for i, s := range g.GetScopes() {
		if s == "" || strings.ContainsAny(s, " ,") {
			errs.add(index(field+".scopes", i), "%q is no scope: one each", s)
		}
	}
	account := credential.GCP{Scopes: g.GetScopes()}
	if !id && len(account.Scopes) == 0 {
		account.Scopes = []string{cloudPlatform}
	}
	cloud := ""
	if g.GetCredential() == nil {
		cloud = "gcp"
		r.identity(cloud, field, errs)
	} else {
		text, known := r.secret(g.GetCredential(), field+".credential", errs)
		if !known {
			return out
		}
		before := len(errs.errs)
		onAWS := checkGoogleFile([]byte(text), r, field+".credential", errs)
		if len(errs.errs) > before {
			return out
		}
		account.JSON = text
		if onAWS {
			account.AWS = r.Grants.dialIdentity("aws")
		}
	}
	if out.tokens == nil {
		return out
	}
	scope := r.scope(cloud)
	if !id {
		src := scope.GCP(account)
		out.source = func(*Outbound) (*credential.Source, error) { return src, nil }
		return out
	}
	if account.Audience = g.GetAudience(); account.Audience != "" {
		src := scope.GCP(account)
		out.source = func(*Outbound) (*credential.Source, error) { return src, nil }
		return out
	}
	out.source = func(o *Outbound) (*credential.Source, error) {
		if o.URL == nil || o.URL.Host == "" {
			return nil, &CredentialError{field, errors.New("the audience is the target's origin, which is not known; give `audience`")}
		}
		own := account
		own.Audience = o.URL.Scheme + "://" + o.URL.Host
		return scope.GCP(own), nil
	}
	return out
}

// googleFile is what a credential's JSON says of where tokens come from; see google.aip.dev/auth/4117.
type googleFile struct {
	Type             string `json:"type"`
	PrivateKey       string `json:"private_key"`
	ClientEmail      string `json:"client_email"`
	TokenURI         string `json:"token_uri"`
	TokenURL         string `json:"token_url"`
	ImpersonationURL string `json:"service_account_impersonation_url"`
	Source           *struct {
		File          string          `json:"file"`
		URL           string          `json:"url"`
		Executable    json.RawMessage `json:"executable"`
		Certificate   json.RawMessage `json:"certificate"`
		EnvironmentID string          `json:"environment_id"`
		RegionURL     string          `json:"region_url"`
		VerifyURL     string          `json:"regional_cred_verification_url"`
		SessionURL    string          `json:"imdsv2_session_token_url"`
	} `json:"credential_source"`
	Under json.RawMessage `json:"source_credentials"`
}

// checkGoogleFile looks at a credential that a tenant gave, which may name files, programs and addresses of the proxy's:
// each needs its grant, and programs are not run at all. It reports whether the proxy's identity at AWS is used.
func checkGoogleFile(text []byte, r Resolver, field string, errs *problems) (onAWS bool) {
	var f googleFile
	if json.Unmarshal(text, &f) != nil {
		errs.add(field, "is no JSON of a Google credential")
		return false
	}
	url := func(name, value string) {
		if value != "" {
			checkEndpoint(value, field+"."+name, errs)
		}
	}
	url("token_uri", f.TokenURI)
	url("token_url", f.TokenURL)
	url("service_account_impersonation_url", f.ImpersonationURL)
	switch f.Type {
	case "service_account":
		if f.PrivateKey == "" || f.ClientEmail == "" {
			errs.add(field, "is a service account without private_key or client_email")
		} else if _, err := credential.NewAssertions(f.PrivateKey, "", "", ""); err != nil {
			errs.add(field+".private_key", "%v", err)
		}
	case "authorized_user":
	case "impersonated_service_account":
		if f.ImpersonationURL == "" || len(f.Under) == 0 {
			errs.add(field, "impersonates a service account without service_account_impersonation_url or source_credentials")
			return false
		}
		return checkGoogleFile(f.Under, r, field+".source_credentials", errs)
	case "external_account":
		return checkExternalAccount(&f, r, field, errs)
	default:
		errs.add(field, "is a credential of type %q; service_account, external_account, impersonated_service_account and authorized_user are understood", shown(f.Type))
	}
	return false
}

func checkExternalAccount(f *googleFile, r Resolver, field string, errs *problems) (onAWS bool) {
	at := field + ".credential_source"
	s := f.Source
	switch {
	case s == nil:
		errs.add(at, "is missing")
	case len(s.Executable) > 0:
		errs.add(at+".executable", "is a program, and policies run none; give a file or a url")
	case len(s.Certificate) > 0:
		errs.add(at+".certificate", "is not supported; give a file or a url")
	case strings.HasPrefix(s.EnvironmentID, "aws"):
		r.identity("aws", at, errs)
		for _, f := range []struct{ name, value string }{{"url", s.URL}, {"region_url", s.RegionURL}, {"imdsv2_session_token_url", s.SessionURL}} {
			if f.value != "" && !strings.HasPrefix(f.value, "http://169.254.169.254/") && !strings.HasPrefix(f.value, "http://[fd00:ec2::254]/") {
				errs.add(at+"."+f.name, "is not the metadata service of AWS, http://169.254.169.254/…")
			}
		}
		if s.VerifyURL != "" {
			checkEndpoint(strings.ReplaceAll(s.VerifyURL, "{region}", "region"), at+".regional_cred_verification_url", errs)
		}
		return true
	case s.File != "":
		if _, err := lookUp(r.File, s.File); err != nil && !errors.Is(err, ErrUnknown) {
			errs.add(at+".file", "%v", lookUpError("file", s.File, err))
		}
	case s.URL != "":
		checkEndpoint(s.URL, at+".url", errs)
	default:
		errs.add(at, "names no source; give a file or a url")
	}
	return false
}
