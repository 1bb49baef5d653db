package credential

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Ways to authenticate at a token endpoint (RFC 7591 section 2, `token_endpoint_auth_method`).
const (
	SecretBasic   = "client_secret_basic"
	SecretPost    = "client_secret_post"
	PrivateKeyJWT = "private_key_jwt"
	NoClientAuth  = "none"
)

// Client is who asks a token endpoint (RFC 6749 section 2.3).
type Client struct {
	TokenURL string
	ID       string
	Method   string // one of those above
	Secret   string // with SecretBasic and SecretPost
	// Signer makes the assertions of PrivateKeyJWT.
	Signer *Assertions
}

func (c Client) key() []string {
	return []string{"client", c.TokenURL, c.ID, c.Method, c.Secret, c.Signer.key()}
}

// ClientCredentials returns the source of a client's own token (RFC 6749 section 4.4). Params are those of the request
// beside grant_type and what c adds.
func (s Scope) ClientCredentials(c Client, params url.Values) *Source {
	form := clone(params)
	form.Set("grant_type", "client_credentials")
	endpoint := newClient(s.Dial)
	return s.source(func(ctx context.Context) (Token, error) {
		return c.request(ctx, endpoint, clone(form), "")
	}, append(c.key(), form.Encode())...)
}

// Exchange exchanges callers' tokens (RFC 8693).
type Exchange struct {
	scope    Scope
	client   Client
	form     url.Values
	actor    func(context.Context) (string, error)
	endpoint *http.Client
	group    Key
}

// Actor is who acts for the caller: a token as it is, or one that a source gives. The zero value is nobody.
type Actor struct {
	Token  string
	Source *Source
	Type   string // RFC 8693 section 3
}

// Exchange returns the exchange of callers' tokens at c. Params are those of the request beside grant_type, the tokens and what
// c adds; store keeps the actor's token.
func (s Scope) Exchange(c Client, params url.Values, actor Actor, store *Store) *Exchange {
	x := &Exchange{scope: s, client: c, form: clone(params), endpoint: newClient(s.Dial)}
	x.form.Set("grant_type", "urn:ietf:params:oauth:grant-type:token-exchange")
	parts := append(c.key(), x.form.Encode(), actor.Token, actor.Type)
	switch {
	case actor.Source != nil:
		parts = append(parts, string(actor.Source.key[:]))
		x.actor = func(ctx context.Context) (string, error) {
			t, err := store.Get(ctx, actor.Source)
			if err != nil {
				return "", fmt.Errorf("the actor's token: %w", err)
			}
			return t.value, nil
		}
	case actor.Token != "":
		x.actor = func(context.Context) (string, error) { return actor.Token, nil }
	}
	if x.actor != nil {
		x.form.Set("actor_token_type", actor.Type)
	}
	x.group = keyOf(append([]string{s.Tenant, s.Powers}, parts...)...)
	return x
}

// Source is that of the token that one caller's token is exchanged for. Its key is of the principal and of the very token:
// no two callers share, and a caller with another token (other scopes, say) gets another.
func (x *Exchange) Source(principal, subjectToken string) *Source {
	return x.scope.forCaller(x.group, func(ctx context.Context) (Token, error) {
		form := clone(x.form)
		form.Set("subject_token", subjectToken)
		var actor string
		if x.actor != nil {
			var err error
			if actor, err = x.actor(ctx); err != nil {
				return Token{}, err
			}
			form.Set("actor_token", actor)
		}
		return x.client.request(ctx, x.endpoint, form, subjectToken, actor)
	}, principal, subjectToken)
}

func clone(v url.Values) url.Values {
	out := url.Values{}
	for k, values := range v {
		out[k] = slices.Clone(values)
	}
	return out
}

// request asks a token endpoint. No error holds the client's secret or one of secrets.
func (c Client) request(ctx context.Context, hc *http.Client, form url.Values, secrets ...string) (Token, error) {
	token, err := c.ask(ctx, hc, form, append(secrets, c.Secret))
	if err != nil {
		return Token{}, fmt.Errorf("token endpoint %s: %w", hostOf(c.TokenURL), err)
	}
	return token, nil
}

func (c Client) ask(ctx context.Context, hc *http.Client, form url.Values, secrets []string) (Token, error) {
	switch c.Method {
	case SecretPost:
		form.Set("client_id", c.ID)
		form.Set("client_secret", c.Secret)
	case PrivateKeyJWT:
		assertion, err := c.Signer.sign(c.ID, c.TokenURL, time.Now())
		if err != nil {
			return Token{}, err
		}
		secrets = append(secrets, assertion)
		form.Set("client_id", c.ID)
		form.Set("client_assertion_type", "urn:ietf:params:oauth:client-assertion-type:jwt-bearer")
		form.Set("client_assertion", assertion)
	case NoClientAuth:
		form.Set("client_id", c.ID)
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, c.TokenURL, strings.NewReader(form.Encode()))
	if err != nil {
		return Token{}, cleanError(err, secrets...)
	}
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	r.Header.Set("Accept", "application/json")
	if c.Method == SecretBasic { // RFC 6749 section 2.3.1: both are form-encoded first
		r.SetBasicAuth(url.QueryEscape(c.ID), url.QueryEscape(c.Secret))
	}
	resp, err := hc.Do(r)
	if err != nil {
		if cause, ok := errors.AsType[*url.Error](err); ok {
			err = cause.Err // the URL is told already
		}
		return Token{}, cleanError(err, secrets...)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return Token{}, cleanError(err, secrets...)
	}
	if resp.StatusCode != http.StatusOK {
		return Token{}, errorAnswer(resp, body, secrets)
	}
	return parseAnswer(body, time.Now())
}

// errorAnswer tells what an endpoint said (RFC 6749 section 5.2), as far as it is fit for a log line.
func errorAnswer(resp *http.Response, body []byte, secrets []string) error {
	if resp.StatusCode/100 == 3 {
		return fmt.Errorf("answered %d, a redirect, which is not followed with a secret: give the address itself", resp.StatusCode)
	}
	var said struct {
		Code        string `json:"error"`
		Description string `json:"error_description"`
	}
	if json.Unmarshal(body, &said) != nil || said.Code == "" {
		return fmt.Errorf("answered %d without an OAuth error", resp.StatusCode)
	}
	text := clean(said.Code, secrets...)
	if said.Description != "" {
		text += ": " + clean(said.Description, secrets...)
	}
	err := fmt.Errorf("answered %d, %s", resp.StatusCode, text)
	switch {
	case resp.StatusCode/100 != 4 || resp.StatusCode == http.StatusTooManyRequests:
	case said.Code == "invalid_client", said.Code == "unauthorized_client", said.Code == "unsupported_grant_type":
		// About the proxy, whoever calls.
	default:
		return &refusedError{err}
	}
	return err
}

const maxTokenSize = 64 << 10

// parseAnswer reads a successful answer (RFC 6749 section 5.1, RFC 8693 section 2.2.1).
func parseAnswer(body []byte, now time.Time) (Token, error) {
	var a struct {
		AccessToken string          `json:"access_token"`
		TokenType   string          `json:"token_type"`
		ExpiresIn   json.RawMessage `json:"expires_in"`
	}
	if err := json.Unmarshal(body, &a); err != nil {
		return Token{}, errors.New("answered 200 with what is no JSON of a token; is it a token endpoint?")
	}
	if a.AccessToken == "" {
		return Token{}, errors.New("answered 200 without an access_token")
	}
	if err := checkToken(a.AccessToken); err != nil {
		return Token{}, err
	}
	// N_A: what is exchanged for need not be an access token.
	if a.TokenType != "" && !strings.EqualFold(a.TokenType, "Bearer") && !strings.EqualFold(a.TokenType, "N_A") {
		return Token{}, fmt.Errorf("gave a token of type %q, and only bearer tokens can be sent on", clean(a.TokenType))
	}
	life, err := parseLife(string(a.ExpiresIn))
	if err != nil {
		return Token{}, err
	}
	t := Token{value: a.AccessToken}
	if life > 0 {
		t.Expires = now.Add(life)
	}
	return t, nil
}

// checkToken refuses what could break out of its place in a request.
func checkToken(token string) error {
	if len(token) > maxTokenSize {
		return fmt.Errorf("gave a token of %d bytes, more than the %d that are sent on", len(token), maxTokenSize)
	}
	if strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r >= 0x7f }) {
		return errors.New("gave a token with a blank, a line break or another character that no token may hold (RFC 6750)")
	}
	return nil
}

// parseLife reads expires_in: seconds, by some servers as a string. Zero: not told.
func parseLife(text string) (time.Duration, error) {
	if unquoted, err := strconv.Unquote(text); err == nil {
		text = strings.TrimSpace(unquoted)
	}
	if text == "" || text == "null" {
		return 0, nil
	}
	seconds, err := strconv.ParseFloat(text, 64)
	switch {
	case (err != nil && !errors.Is(err, strconv.ErrRange)) || math.IsNaN(seconds):
		return 0, fmt.Errorf("gave a token with expires_in %q, which is no number of seconds", clean(text))
	case seconds < 1:
		return 0, fmt.Errorf("gave a token with expires_in %s, which has expired on arrival", clean(text))
	}
	return time.Duration(min(seconds, maxLife.Seconds()) * float64(time.Second)), nil
}

// hostOf names an endpoint in errors without what may be secret in its URL.
func hostOf(raw string) string {
	u, err := url.Parse(raw)
	if err != nil {
		return "(its URL does not parse)"
	}
	return u.Scheme + "://" + u.Host + u.EscapedPath()
}
