package rehearsal

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"reflect"
	"strings"
	"time"

	policyv1 "github.com/sluicegate/sluice/proto/gen/sluice/policy/v1"
)

// Principal is who calls: at most one of its fields is set, or claims and a key. The zero Principal is anonymous. It is
// shown to the verifiers of the route, which are those of a proxy.
type Principal struct {
	// Claims of a token. What a verifier asks for at least (iss, aud, exp) is filled in where it is not here.
	Claims map[string]any
	// APIKey is metadata that one key of the route has. Nil: none is shown.
	APIKey map[string]any
	// User of basicAuth.
	User string
}

// shown is what a request carries of a principal.
type shown struct {
	header http.Header
	query  url.Values
	token  string // of the header; to be told by its name
}

var errNobodyVerifies = errors.New("the principal would be anonymous")

// show makes what p shows on a route with these policies, whose endpoint has a URL. The error says what p lacks there.
func (s *standIns) show(p Principal, route *policyv1.Policies, endpoint string) (shown, error) {
	out := shown{header: http.Header{}, query: url.Values{}}
	if p.Claims != nil {
		providers, location := route.GetJwtAuth().GetProviders(), route.GetJwtAuth().GetLocation()
		resource := ""
		if own := route.GetMcpAuthentication(); len(own.GetProviders()) > 0 {
			providers, location = own.GetProviders(), nil
			if resource = own.GetResource(); resource == "" {
				resource = endpoint
			}
		}
		if len(providers) == 0 {
			return out, fmt.Errorf("no jwtAuth or mcpAuthentication on the route verifies tokens: %w", errNobodyVerifies)
		}
		token, err := s.sign(p.Claims, providers, resource)
		if err != nil {
			return out, err
		}
		out.token = token
		out.put(location, token)
	}
	if p.APIKey != nil {
		if route.GetApiKey() == nil {
			return out, fmt.Errorf("no apiKey on the route knows keys: %w", errNobodyVerifies)
		}
		value, err := s.key(p.APIKey, route.GetApiKey())
		if err != nil {
			return out, err
		}
		if out.put(route.GetApiKey().GetLocation(), value); len(out.header["Authorization"]) > 1 {
			return out, errors.New("a token and a key belong into one header, and one of them fits")
		}
	}
	if p.User != "" {
		if route.GetBasicAuth() == nil {
			return out, fmt.Errorf("no basicAuth on the route knows users: %w", errNobodyVerifies)
		}
		out.header.Add("Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte(p.User+":"+password)))
	}
	return out, nil
}

// sign makes a token of claims for the provider that they name, or the first.
func (s *standIns) sign(claims map[string]any, providers []*policyv1.JwtProvider, resource string) (string, error) {
	all := map[string]any{"exp": time.Now().Add(time.Hour).Unix()}
	provider := providers[0]
	for _, p := range providers {
		if p.GetIssuer() == claims["iss"] {
			provider = p
		}
	}
	all["iss"] = provider.GetIssuer()
	if resource != "" {
		all["aud"] = resource
	}
	if len(provider.GetAudiences()) > 0 {
		all["aud"] = provider.GetAudiences()[0]
	}
	maps.Copy(all, claims)
	payload, err := json.Marshal(all)
	if err != nil {
		return "", err
	}
	signed, err := s.signer.Sign(payload)
	if err != nil {
		return "", err
	}
	return signed.CompactSerialize()
}

// key finds the one key of a policy whose metadata has all that is wanted.
func (s *standIns) key(wanted map[string]any, policy *policyv1.ApiKeyAuth) (string, error) {
	var found, all []string
	for _, k := range policy.GetKeys() {
		metadata := k.GetMetadata().AsMap()
		fits := true
		for name, value := range wanted {
			fits = fits && reflect.DeepEqual(metadata[name], value)
		}
		if fits {
			found = append(found, s.keys[k.GetKeyHash()])
		}
		all = append(all, fmt.Sprint(metadata))
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		return "", fmt.Errorf("no key of the route's apiKey has the metadata %v; there are %s", wanted, strings.Join(all, ", "))
	}
	return "", fmt.Errorf("%d keys of the route's apiKey have the metadata %v; tell them apart", len(found), wanted)
}

// put adds a credential at its place; an unset one is a bearer token's.
func (s *shown) put(l *policyv1.Location, value string) {
	switch place := l.GetPlace().(type) {
	case *policyv1.Location_QueryParameter:
		s.query.Set(place.QueryParameter.GetName(), value)
	case *policyv1.Location_Cookie:
		s.header.Add("Cookie", place.Cookie.GetName()+"="+value)
	case *policyv1.Location_Header:
		s.header.Add(place.Header.GetName(), place.Header.GetPrefix()+value)
	default:
		s.header.Add("Authorization", "Bearer "+value)
	}
}
