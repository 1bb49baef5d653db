package controlplane

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"

	"github.com/sluicegate/sluice/internal/policy"
)

// fetcher gets small documents through a tenant's dialer.
type fetcher struct{ client *http.Client }

func newFetcher(grants policy.Grants) fetcher {
	transport := &http.Transport{DialContext: grants.DialContext, DisableKeepAlives: true, MaxResponseHeaderBytes: 64 << 10}
	return fetcher{&http.Client{Transport: transport, Timeout: fetchTimeout, CheckRedirect: func(r *http.Request, via []*http.Request) error {
		if len(via) > maxRedirects {
			return errors.New("too many redirects")
		}
		if via[0].URL.Scheme == "https" && r.URL.Scheme != "https" {
			return errors.New("redirected from https to http")
		}
		return nil
	}}}
}

// get returns up to one byte more than maxKeySet of the body. An error names the URL.
func (f fetcher) get(ctx context.Context, url, accept string) (body []byte, status int, err error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, 0, fmt.Errorf("%s: %w", url, err)
	}
	request.Header.Set("Accept", accept)
	response, err := f.client.Do(request)
	if err != nil {
		return nil, 0, err // a *url.Error names the URL
	}
	defer response.Body.Close()
	if body, err = io.ReadAll(io.LimitReader(response.Body, maxKeySet+1)); err != nil {
		return nil, 0, fmt.Errorf("%s: %w", url, err)
	}
	return body, response.StatusCode, nil
}

// discover finds the URL of an issuer's key set in its metadata, in the places and the order of MCP's authorization
// (RFC 8414 section 3.1, OpenID Connect Discovery 1.0 section 4). A document of another issuer is refused: whoever serves it
// must not vouch for tokens in this one's name.
func (f fetcher) discover(ctx context.Context, issuer string) (jwksURI string, err error) {
	var tried []string
	for _, at := range metadataURLs(issuer) {
		body, status, err := f.get(ctx, at, "application/json")
		if err != nil {
			return "", fmt.Errorf("issuer %s: metadata: %w", issuer, err) // the next one is at the same host
		}
		if status != http.StatusOK {
			tried = append(tried, fmt.Sprintf("%s answers %d", at, status))
			continue
		}
		var metadata struct {
			Issuer  string `json:"issuer"`
			JwksURI string `json:"jwks_uri"`
		}
		if err := json.Unmarshal(body, &metadata); err != nil {
			tried = append(tried, at+" is no JSON object")
			continue
		}
		if metadata.Issuer != issuer {
			return "", fmt.Errorf("issuer %s: its metadata at %s is that of %q: write the issuer as it calls itself", issuer, at, metadata.Issuer)
		}
		u, err := url.Parse(metadata.JwksURI)
		if err != nil || u.Host == "" || u.Scheme != "https" && (u.Scheme != "http" || strings.HasPrefix(issuer, "https:")) {
			return "", fmt.Errorf("issuer %s: its metadata at %s has no jwks_uri to fetch keys from (%q): give jwks", issuer, at, metadata.JwksURI)
		}
		return metadata.JwksURI, nil
	}
	return "", fmt.Errorf("issuer %s: no metadata: %s; give jwks: {url: …}", issuer, strings.Join(tried, ", "))
}

func metadataURLs(issuer string) []string {
	u, err := url.Parse(issuer)
	if err != nil {
		return nil // compiling the policy has told of it
	}
	path := strings.TrimSuffix(u.EscapedPath(), "/")
	origin := u.Scheme + "://" + u.Host
	urls := []string{origin + "/.well-known/oauth-authorization-server" + path, origin + "/.well-known/openid-configuration" + path}
	if path != "" {
		urls = append(urls, origin+path+"/.well-known/openid-configuration")
	}
	return urls
}
