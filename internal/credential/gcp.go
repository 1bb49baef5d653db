package credential

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"cloud.google.com/go/compute/metadata"
	"golang.org/x/oauth2"
	"golang.org/x/oauth2/google"
)

// GCP is an identity at Google: that of JSON (a service account's key, an external account, …), or if it is empty
// application default credentials, which need the Scope's Identity.
type GCP struct {
	JSON     string
	Scopes   []string // of an access token
	Audience string   // of an id token; empty: an access token
	// AWS connects to the metadata service of AWS too, for an external account that is an AWS identity. Nil: it does not.
	AWS DialFunc
}

// GCP returns the source of a Google token.
func (s Scope) GCP(g GCP) *Source {
	dial := s.Dial
	switch {
	case g.JSON == "":
		dial = s.Identity
	case g.AWS != nil:
		dial = g.AWS
	}
	hc := newClient(dial)
	return s.source(func(ctx context.Context) (Token, error) {
		t, err := g.fetch(ctx, hc)
		if err != nil {
			return Token{}, fmt.Errorf("google: %w", cleanError(err, g.secrets()...))
		}
		return t, nil
	}, "gcp", g.JSON, strings.Join(g.Scopes, " "), g.Audience)
}

func (g GCP) secrets() []string {
	var f struct {
		PrivateKey   string `json:"private_key"`
		ClientSecret string `json:"client_secret"`
		RefreshToken string `json:"refresh_token"`
	}
	_ = json.Unmarshal([]byte(g.JSON), &f)
	return []string{f.PrivateKey, f.ClientSecret, f.RefreshToken}
}

func (g GCP) fetch(ctx context.Context, hc *http.Client) (Token, error) {
	file := []byte(g.JSON)
	if g.JSON == "" {
		var err error
		if file, err = adcFile(); err != nil {
			return Token{}, err
		}
		if file == nil {
			return g.fromMetadata(ctx, hc)
		}
	}
	kind, err := fileType(file)
	if err != nil {
		return Token{}, err
	}
	ctx = context.WithValue(ctx, oauth2.HTTPClient, hc)
	if g.Audience != "" {
		return g.idToken(ctx, hc, kind, file)
	}
	return fromFile(ctx, kind, file, g.Scopes)
}

func fromFile(ctx context.Context, kind google.CredentialsType, file []byte, scopes []string) (Token, error) {
	c, err := google.CredentialsFromJSONWithTypeAndParams(ctx, file, kind, google.CredentialsParams{Scopes: scopes})
	if err != nil {
		return Token{}, err
	}
	t, err := c.TokenSource.Token()
	if err != nil {
		return Token{}, err
	}
	return bearer(t.AccessToken, t.Expiry)
}

func bearer(value string, expires time.Time) (Token, error) {
	if value == "" {
		return Token{}, errors.New("gave no token")
	}
	if err := checkToken(value); err != nil {
		return Token{}, err
	}
	return Token{value: value, Expires: expires}, nil
}

func fileType(file []byte) (google.CredentialsType, error) {
	var f struct {
		Type string `json:"type"`
	}
	if err := json.Unmarshal(file, &f); err != nil || f.Type == "" {
		return "", errors.New("the credential is no JSON of Google's with a type")
	}
	return google.CredentialsType(f.Type), nil
}

// adcFile reads the file of application default credentials; nil: there is none. The library would do this too, but
// then ask the metadata service by a client of its own, which dials where it likes.
func adcFile() ([]byte, error) {
	if path := os.Getenv("GOOGLE_APPLICATION_CREDENTIALS"); path != "" {
		return os.ReadFile(path)
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return nil, nil
	}
	config := cmp.Or(os.Getenv("CLOUDSDK_CONFIG"), filepath.Join(home, ".config", "gcloud"))
	b, err := os.ReadFile(filepath.Join(config, "application_default_credentials.json"))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	return b, err
}

// fromMetadata asks the metadata server of the machine for its service account's token.
func (g GCP) fromMetadata(ctx context.Context, hc *http.Client) (Token, error) {
	const account = "instance/service-accounts/default/"
	c := metadata.NewWithOptions(&metadata.Options{Client: hc})
	if g.Audience != "" {
		text, err := c.GetWithContext(ctx, account+"identity?"+url.Values{"audience": {g.Audience}, "format": {"full"}}.Encode())
		if err != nil {
			return Token{}, fmt.Errorf("metadata server: %w", err)
		}
		return bearer(text, expiryOf(text))
	}
	query := ""
	if len(g.Scopes) > 0 {
		query = "?" + url.Values{"scopes": {strings.Join(g.Scopes, ",")}}.Encode()
	}
	text, err := c.GetWithContext(ctx, account+"token"+query)
	if err != nil {
		return Token{}, fmt.Errorf("metadata server: %w", err)
	}
	return parseAnswer([]byte(text), time.Now())
}

const cloudPlatform = "https://www.googleapis.com/auth/cloud-platform"

// idToken returns a token that says who the identity is to the audience: a service account signs for one itself, what
// impersonates an account asks IAM for one.
func (g GCP) idToken(ctx context.Context, hc *http.Client, kind google.CredentialsType, file []byte) (Token, error) {
	switch kind {
	case google.ServiceAccount:
		c, err := google.JWTConfigFromJSON(file)
		if err != nil {
			return Token{}, err
		}
		c.UseIDToken, c.PrivateClaims = true, map[string]any{"target_audience": g.Audience}
		t, err := c.TokenSource(ctx).Token()
		if err != nil {
			return Token{}, err
		}
		return bearer(t.AccessToken, t.Expiry)
	case google.ExternalAccount, google.ImpersonatedServiceAccount:
		return g.impersonatedID(ctx, hc, kind, file)
	}
	return Token{}, fmt.Errorf("a credential of type %s gives no id token; a service account does", kind)
}

// impersonatedID asks IAM as the identity underneath (iamcredentials, projects.serviceAccounts.generateIdToken).
func (g GCP) impersonatedID(ctx context.Context, hc *http.Client, kind google.CredentialsType, file []byte) (Token, error) {
	var f struct {
		URL       string          `json:"service_account_impersonation_url"`
		Delegates []string        `json:"delegates"`
		Source    json.RawMessage `json:"source_credentials"`
	}
	if err := json.Unmarshal(file, &f); err != nil {
		return Token{}, errors.New("the credential is no JSON of Google's")
	}
	at, ok := strings.CutSuffix(f.URL, ":generateAccessToken")
	if !ok {
		return Token{}, errors.New("the credential impersonates no service account (service_account_impersonation_url), and only one has id tokens")
	}
	under := []byte(f.Source)
	if kind == google.ExternalAccount {
		fields := map[string]json.RawMessage{}
		if err := json.Unmarshal(file, &fields); err != nil {
			return Token{}, err
		}
		delete(fields, "service_account_impersonation_url")
		under, _ = json.Marshal(fields) // what was read as JSON is JSON
	}
	underKind, err := fileType(under)
	if err != nil {
		return Token{}, err
	}
	base, err := fromFile(ctx, underKind, under, []string{cloudPlatform})
	if err != nil {
		return Token{}, err
	}
	ask, _ := json.Marshal(map[string]any{"audience": g.Audience, "includeEmail": true, "delegates": f.Delegates}) // cannot fail
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, at+":generateIdToken", bytes.NewReader(ask))
	if err != nil {
		return Token{}, err
	}
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("Authorization", "Bearer "+base.value)
	resp, err := hc.Do(r)
	if err != nil {
		return Token{}, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return Token{}, err
	}
	var a struct {
		Token string `json:"token"`
	}
	if resp.StatusCode != http.StatusOK || json.Unmarshal(body, &a) != nil {
		return Token{}, fmt.Errorf("generateIdToken answered %d", resp.StatusCode)
	}
	return bearer(a.Token, expiryOf(a.Token))
}
