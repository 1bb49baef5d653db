package api

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"net/url"
	"slices"
	"strings"

	"github.com/sluicegate/sluice/internal/policy"
	"github.com/sluicegate/sluice/internal/resource"
	adminv1 "github.com/sluicegate/sluice/proto/gen/sluice/admin/v1"
	policyv1 "github.com/sluicegate/sluice/proto/gen/sluice/policy/v1"
)

// need is a local power that an object uses and that is not granted.
type need struct {
	field string // path in the object's spec
	what  string
	grant string // that would allow it; empty: nothing would
}

// needs lists the local powers that an object uses beyond the grants. What only shows at use, such as the address
// that a name resolves to, is checked there again.
func needs(o *adminv1.Object, grants policy.Grants) []need {
	var all []need
	for path, c := range resource.Credentials(o) {
		switch source := c.GetSource().(type) {
		case *policyv1.Credential_File:
			all = append(all, fileNeeds(path, source.File, grants)...)
		case *policyv1.Credential_Env:
			if !grants.Env(source.Env) {
				all = append(all, need{path, fmt.Sprintf("reading the proxies' environment variable %q", source.Env), "env=" + source.Env})
			}
		}
	}
	if t := o.GetTarget(); t != nil {
		all = append(all, targetNeeds(t, grants)...)
	}
	sets := Jwks(o)
	for _, field := range slices.Sorted(maps.Keys(sets)) {
		switch source := sets[field].GetSource().(type) {
		case *policyv1.Jwks_File:
			all = append(all, fileNeeds(field, source.File, grants)...)
		case *policyv1.Jwks_Url:
			all = append(all, urlNeeds("", map[string]string{field: source.Url}, grants)...)
		case *policyv1.Jwks_Issuer:
			all = append(all, urlNeeds("", map[string]string{field: source.Issuer}, grants)...)
		}
	}
	policies, enforced := resource.Policies(o)
	all = append(all, urlNeeds("policies.ai.", policy.AiNeeds(policies.GetAi()), grants)...)
	all = append(all, urlNeeds("enforced.ai.", policy.AiNeeds(enforced.GetAi()), grants)...)
	all = append(all, authNeeds("policies.backendAuth.", policies.GetBackendAuth(), grants)...)
	return append(all, authNeeds("enforced.backendAuth.", enforced.GetBackendAuth(), grants)...)
}

// authNeeds checks identities of the proxies' own, and where tokens come from.
func authNeeds(block string, a *policyv1.BackendAuth, grants policy.Grants) []need {
	var all []need
	identities, urls := policy.BackendAuthNeeds(a)
	for _, field := range slices.Sorted(maps.Keys(identities)) {
		if cloud := identities[field]; !grants.Identity(cloud) {
			all = append(all, need{block + field, fmt.Sprintf("acting as the proxies themselves at %s", cloud), "identity=" + cloud})
		}
	}
	return append(all, urlNeeds(block, urls, grants)...)
}

func fileNeeds(field, file string, grants policy.Grants) []need {
	if grants.File(file) {
		return nil
	}
	grant := "file=" + file
	if _, err := policy.ParseGrants([]string{grant}); err != nil || strings.Contains(file, ",") {
		grant = "file" // any: a relative path depends on where a proxy was started
	}
	return []need{{field, fmt.Sprintf("reading the proxies' file %q", file), grant}}
}

func targetNeeds(t *adminv1.Target, grants policy.Grants) []need {
	switch transport := t.GetTransport().(type) {
	case *adminv1.Target_Stdio:
		if cmd := transport.Stdio.GetCmd(); !grants.Stdio(cmd) {
			return []need{{"stdio.cmd", fmt.Sprintf("running %q on the proxies", cmd), "stdio=" + cmd}}
		}
	case *adminv1.Target_Mcp:
		return hostNeeds("mcp.host", transport.Mcp.GetHost(), grants)
	case *adminv1.Target_A2A:
		return hostNeeds("a2a.host", transport.A2A.GetHost(), grants)
	case *adminv1.Target_Sse:
		return hostNeeds("sse.host", transport.Sse.GetHost(), grants)
	}
	return nil
}

// urlNeeds checks what policies dial.
func urlNeeds(block string, urls map[string]string, grants policy.Grants) []need {
	var all []need
	for _, field := range slices.Sorted(maps.Keys(urls)) {
		if u, err := url.Parse(urls[field]); err == nil && u.Host != "" {
			all = append(all, hostNeeds(block+field, u.Hostname(), grants)...)
		}
	}
	return all
}

// hostNeeds checks an address that is written as such. Any other name is checked when it has been resolved.
func hostNeeds(field, host string, grants policy.Grants) []need {
	if strings.EqualFold(host, "localhost") {
		host = "127.0.0.1"
	}
	addr, err := netip.ParseAddr(host)
	if err != nil {
		return nil
	}
	var refused *policy.AddressError
	if !errors.As(grants.Dial(addr), &refused) {
		return nil
	}
	return []need{{field, fmt.Sprintf("%s, %s,", host, refused.Class), refused.Grant}}
}

// Jwks returns the key sets that an object's policies name, or leave to an issuer's metadata, by the path of each.
func Jwks(o *adminv1.Object) map[string]*policyv1.Jwks {
	all := map[string]*policyv1.Jwks{}
	policies, enforced := resource.Policies(o)
	for at, p := range map[string]*policyv1.Policies{"policies": policies, "enforced": enforced} {
		for i, provider := range p.GetJwtAuth().GetProviders() {
			if provider.GetJwks() != nil {
				all[fmt.Sprintf("%s.jwtAuth.providers[%d].jwks", at, i)] = provider.GetJwks()
			}
		}
		for i, provider := range p.GetMcpAuthentication().GetProviders() {
			all[fmt.Sprintf("%s.mcpAuthentication.providers[%d].jwks", at, i)] = policy.ProviderJwks(provider)
		}
	}
	return all
}
