package policy

import (
	"fmt"
	"regexp"
	"strings"

	"github.com/sluicegate/sluice/internal/credential"
	policyv1 "github.com/sluicegate/sluice/proto/gen/sluice/policy/v1"
)

const cognitiveServices = "https://cognitiveservices.azure.com/.default"

var azureTenant = regexp.MustCompile(`^[A-Za-z0-9.-]+$`)

func compileAzure(a *policyv1.AzureAuth, r Resolver, field string, errs *problems) *tokenAuth {
	out := &tokenAuth{field: field, location: compileLocation(a.GetLocation(), field+".location", errs), tokens: r.tokens()}
	var ways []string
	for _, way := range []struct {
		name string
		set  bool
	}{{"explicitConfig", a.GetExplicitConfig() != nil}, {"implicit", a.GetImplicit() != nil}, {"developerImplicit", a.GetDeveloperImplicit() != nil}} {
		if way.set {
			ways = append(ways, way.name)
		}
	}
	if len(ways) != 1 {
		errs.add(field, "says %d of `explicitConfig`, `implicit` and `developerImplicit`; write one", len(ways))
		return out
	}
	identity := credential.Azure{Scopes: a.GetScopes()}
	if len(identity.Scopes) == 0 {
		identity.Scopes = []string{cognitiveServices}
	}
	for i, s := range identity.Scopes {
		if s == "" || strings.ContainsAny(s, " ,") {
			errs.add(index(field+".scopes", i), "%q is no scope: one each", s)
		}
	}
	cloud, known := "", true
	if a.GetExplicitConfig() == nil {
		cloud = "azure"
		identity.Own, identity.Developer = true, a.GetDeveloperImplicit() != nil
	} else {
		cloud, known = compileExplicitAzure(a.GetExplicitConfig(), &identity, r, field+".explicitConfig", errs)
	}
	if cloud != "" {
		r.identity(cloud, field, errs)
	}
	if !known || out.tokens == nil {
		return out
	}
	src := r.scope(cloud).Azure(identity)
	out.source = func(*Outbound) (*credential.Source, error) { return src, nil }
	return out
}

// compileExplicitAzure returns the cloud whose identity the proxy must have for it, if any.
func compileExplicitAzure(e *policyv1.AzureExplicit, out *credential.Azure, r Resolver, field string, errs *problems) (cloud string, known bool) {
	switch id := e.GetIdentity().(type) {
	case *policyv1.AzureExplicit_ClientSecret:
		at, c := field+".clientSecret", id.ClientSecret
		checkAzureIDs(c.GetTenantId(), c.GetClientId(), false, at, errs)
		checkAuthority(c.GetAuthorityHost(), at+".authorityHost", errs)
		secret, known := r.secret(c.GetClientSecret(), at+".clientSecret", errs)
		out.Secret = &credential.AzureSecret{TenantID: c.GetTenantId(), ClientID: c.GetClientId(), Secret: secret, AuthorityHost: c.GetAuthorityHost()}
		return "", known
	case *policyv1.AzureExplicit_WorkloadIdentity:
		at, w := field+".workloadIdentity", id.WorkloadIdentity
		checkAzureIDs(w.GetTenantId(), w.GetClientId(), true, at, errs)
		checkAuthority(w.GetAuthorityHost(), at+".authorityHost", errs)
		token, known := r.optional(w.GetToken(), at+".token", errs)
		out.Assertion = &credential.AzureAssertion{TenantID: w.GetTenantId(), ClientID: w.GetClientId(), Token: token, AuthorityHost: w.GetAuthorityHost()}
		if w.GetToken() == nil || w.GetTenantId() == "" || w.GetClientId() == "" {
			if w.GetToken() != nil {
				errs.add(at, "with a `token` needs `tenantId` and `clientId` too; without one, all that is unset comes from the environment")
			}
			if w.GetAuthorityHost() != "" { // which would be sent the proxy's own token
				errs.add(at+".authorityHost", "comes from the environment with the proxy's own token; remove it, or give `token`")
			}
			return "azure", known
		}
		return "", known
	case *policyv1.AzureExplicit_ManagedIdentity:
		out.Managed = &credential.AzureManaged{}
		if u := id.ManagedIdentity.GetUserAssignedIdentity(); u != nil {
			out.Managed = &credential.AzureManaged{ClientID: u.GetClientId(), ObjectID: u.GetObjectId(), ResourceID: u.GetResourceId()}
			if *out.Managed == (credential.AzureManaged{}) {
				errs.add(field+".managedIdentity.userAssignedIdentity", "names none; write one of `clientId`, `objectId` and `resourceId`")
			}
		}
		return "azure", true
	}
	errs.add(field, "names no identity; write one of `clientSecret`, `managedIdentity` and `workloadIdentity`")
	return "", false
}

func checkAzureIDs(tenant, client string, mayBeUnset bool, field string, errs *problems) {
	for _, f := range []struct{ name, value string }{{"tenantId", tenant}, {"clientId", client}} {
		switch {
		case f.value == "" && mayBeUnset:
		case f.value == "":
			errs.add(field+"."+f.name, "is missing")
		case !azureTenant.MatchString(f.value):
			errs.add(field+"."+f.name, "%q is no id of Microsoft Entra", shown(f.value))
		}
	}
}

// checkAuthority: the library takes https alone.
func checkAuthority(raw, field string, errs *problems) {
	if raw == "" {
		return
	}
	if !strings.HasPrefix(raw, "https://") {
		errs.add(field, "is no https URL, such as https://login.microsoftonline.com")
		return
	}
	checkEndpoint(raw, field, errs)
}

func index(field string, i int) string { return fmt.Sprintf("%s[%d]", field, i) }
