package policy

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"github.com/sluicegate/sluice/internal/credential"
)

// Outbound is a request on its way to a target.
type Outbound struct {
	Method string
	URL    *url.URL // the caller's own copy; nil: it cannot change
	Header http.Header
	Body   []byte
	Call   *Call // who calls, and for what

	source *credential.Source // of token
	token  credential.Token   // that the request carries
}

// A CredentialError says that the proxy could not obtain its credential for a target. It holds no secret, and the
// request was not sent.
type CredentialError struct {
	Field string // of the method, e.g. `policies.backendAuth.oauth`
	Err   error
}

func (e *CredentialError) Error() string { return e.Field + ": " + e.Err.Error() }
func (e *CredentialError) Unwrap() error { return e.Err }

var (
	errNotHere  = errors.New("the credential is not known here")
	errFixedURL = errors.New("the credential belongs into a URL that cannot change")
	errNoPlace  = errors.New("the token holds what its place cannot carry")
)

// Outgoing makes a request ready: requestHeaderModifier, then backendAuth, so that no header replaces a credential and
// a signature covers all. It changes o's Header and URL, and may wait for a token, within ctx. An error names what could not be
// had; the request must not be sent then: a [*CredentialError], or under tokenExchange an [*AuthError] for a caller
// who showed no token. Under passthrough such a caller sends none: the target answers as to anyone.
func (t *Target) Outgoing(ctx context.Context, o *Outbound) error {
	if t == nil {
		return nil
	}
	if err := t.request.apply(o.Header, o.Call); err != nil {
		return err
	}
	if t.auth == nil {
		return nil
	}
	for _, c := range t.auth.credentials {
		if c.unknown {
			return &CredentialError{"policies.backendAuth", errNotHere}
		}
		if !c.location.put(o.Header, o.URL, c.value.Reveal()) {
			return &CredentialError{"policies.backendAuth", errFixedURL}
		}
	}
	if l, p := t.auth.passthrough, o.Call.Principal; l != nil && p != nil && !p.Token.IsZero() && p.Unverified == t.auth.unverified {
		if !l.valid(p.Token.Reveal()) {
			return &CredentialError{"policies.backendAuth.passthrough", errNoPlace}
		}
		if !l.put(o.Header, o.URL, p.Token.Reveal()) {
			return &CredentialError{"policies.backendAuth.passthrough", errFixedURL}
		}
	}
	if t.auth.token != nil {
		return t.auth.token.apply(ctx, o)
	}
	if t.auth.aws != nil {
		return t.auth.aws.apply(ctx, o)
	}
	return nil
}

// Renew makes o, which Outgoing made ready and the target answered with 401, ready to be sent once more with another token. It
// reports false, and o must not be sent again, where there is none to be had: the credential is no token, or
// another was refused a moment ago.
func (t *Target) Renew(ctx context.Context, o *Outbound) (bool, error) {
	if t == nil || t.auth == nil || t.auth.token == nil || o.source == nil || !t.auth.token.tokens.Reject(o.source, o.token) {
		return false, nil
	}
	if err := t.auth.token.apply(ctx, o); err != nil {
		return false, err
	}
	return true, nil
}

// Passthrough reports whether callers' tokens are sent on, so that the target's 401 is for them to read.
func (t *Target) Passthrough() bool { return t != nil && t.auth != nil && t.auth.passthrough != nil }

// Unverified reports whether any bearer token that a caller shows is sent on, for the target alone to judge.
func (t *Target) Unverified() bool { return t.Passthrough() && t.auth.unverified }

// tokenAuth sends a token that expires.
type tokenAuth struct {
	field    string
	location location
	// source is where the token of a request comes from. Nil: not known here.
	source func(o *Outbound) (*credential.Source, error)
	tokens *credential.Store // nil: nothing is fetched here
}

func (a *tokenAuth) apply(ctx context.Context, o *Outbound) error {
	if a.source == nil || a.tokens == nil {
		return &CredentialError{a.field, errNotHere}
	}
	src, err := a.source(o)
	if err != nil {
		return err
	}
	token, err := a.tokens.Get(ctx, src)
	if err != nil {
		return &CredentialError{a.field, err}
	}
	if !a.location.valid(token.Reveal()) {
		return &CredentialError{a.field, errNoPlace}
	}
	if !a.location.put(o.Header, o.URL, token.Reveal()) {
		return &CredentialError{a.field, errFixedURL}
	}
	o.source, o.token = src, token
	return nil
}

// awsAuth signs requests.
type awsAuth struct {
	field    string
	identity *credential.AWS // nil: not known here
	service  string
	role     *awsRole // nil: the identity itself signs
	tokens   *credential.Store
}

func (a *awsAuth) apply(ctx context.Context, o *Outbound) error {
	if a.identity == nil || a.tokens == nil {
		return &CredentialError{a.field, errNotHere}
	}
	if o.URL == nil {
		return &CredentialError{a.field, errors.New("the signature covers a URL that is not known")}
	}
	role, err := a.role.of(o.Call)
	if err != nil {
		return &CredentialError{a.field, err}
	}
	region, err := a.identity.Region()
	if err != nil {
		return &CredentialError{a.field, err}
	}
	keys, err := a.identity.Keys(ctx, role)
	if err != nil {
		return &CredentialError{a.field, err}
	}
	if err := keys.Sign(ctx, o.Method, o.URL, o.Header, o.Body, a.service, region, time.Now()); err != nil {
		return &CredentialError{a.field, fmt.Errorf("signing: %w", err)}
	}
	return nil
}
