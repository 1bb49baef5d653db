package credential

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"sort"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/credentials/endpointcreds"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	"github.com/aws/aws-sdk-go-v2/service/sts/types"
	"github.com/aws/smithy-go"
	"github.com/aws/smithy-go/logging"
)

// AWSKeys are static keys.
type AWSKeys struct{ AccessKeyID, SecretAccessKey, SessionToken string }

// AWS is an identity at AWS. Keys, web identity or neither: then the proxy's own, which needs the Scope's Identity.
type AWS struct {
	scope    Scope
	region   string
	endpoint string // of STS; empty: that of the region
	sts      *http.Client
	store    *Store

	static *Token  // nil: base gives it
	base   *Source // nil with static
}

// AWS returns an identity, keys being static ones if not nil. An empty region is the proxy's AWS_REGION. The store keeps what the
// steps to a role give.
func (s Scope) AWS(region, stsEndpoint string, keys *AWSKeys, web *AWSWebIdentity, store *Store) *AWS {
	a := &AWS{scope: s, region: region, endpoint: stsEndpoint, sts: newClient(s.Dial), store: store}
	switch {
	case keys != nil:
		a.static = &Token{keys: aws.Credentials{AccessKeyID: keys.AccessKeyID, SecretAccessKey: keys.SecretAccessKey, SessionToken: keys.SessionToken}}
	case web != nil:
		a.base = s.source(func(ctx context.Context) (Token, error) { return a.webIdentity(ctx, *web) },
			"aws web identity", region, stsEndpoint, web.RoleARN, web.Token, web.SessionName)
	default:
		ambient := newClient(s.Identity)
		a.base = s.source(func(ctx context.Context) (Token, error) { return a.ambient(ctx, ambient) }, "aws ambient")
	}
	return a
}

// AWSWebIdentity is a role that an OIDC token opens (sts:AssumeRoleWithWebIdentity).
type AWSWebIdentity struct{ RoleARN, Token, SessionName string }

// AWSRole is a role to assume, in a session of a name and with tags.
type AWSRole struct {
	ARN, SessionName, ExternalID string
	Duration                     time.Duration // zero: 1 h
	Tags                         map[string]string
}

// Keys returns the keys to sign with: those of a session of role, or if role is nil of the identity itself.
func (a *AWS) Keys(ctx context.Context, role *AWSRole) (Token, error) {
	if role == nil {
		return a.own(ctx)
	}
	return a.store.Get(ctx, a.session(*role))
}

func (a *AWS) own(ctx context.Context) (Token, error) {
	if a.static != nil {
		return *a.static, nil
	}
	return a.store.Get(ctx, a.base)
}

// session is the source of a role's session. Who is given the same name and tags is given the same session.
func (a *AWS) session(role AWSRole) *Source {
	identity := a.identity()
	group := keyOf(a.scope.Tenant, a.scope.Powers, "aws role", string(identity[:]), a.region, a.endpoint, role.ARN, role.ExternalID, role.Duration.String())
	parts := []string{role.SessionName}
	keys := make([]string, 0, len(role.Tags))
	for k := range role.Tags {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	for _, k := range keys {
		parts = append(parts, k, role.Tags[k])
	}
	return a.scope.forCaller(group, func(ctx context.Context) (Token, error) { return a.assume(ctx, role, keys) }, parts...)
}

func (a *AWS) identity() Key {
	if a.static == nil {
		return a.base.key
	}
	k := a.static.keys
	return keyOf(k.AccessKeyID, k.SecretAccessKey, k.SessionToken)
}

func (a *AWS) assume(ctx context.Context, role AWSRole, tags []string) (Token, error) {
	own, err := a.own(ctx)
	if err != nil {
		return Token{}, err
	}
	in := &sts.AssumeRoleInput{RoleArn: &role.ARN, RoleSessionName: &role.SessionName}
	if role.ExternalID != "" {
		in.ExternalId = &role.ExternalID
	}
	if role.Duration > 0 {
		in.DurationSeconds = aws.Int32(int32(role.Duration / time.Second))
	}
	for _, k := range tags {
		in.Tags = append(in.Tags, types.Tag{Key: aws.String(k), Value: aws.String(role.Tags[k])})
	}
	client, err := a.client(own.keys)
	if err != nil {
		return Token{}, err
	}
	out, err := client.AssumeRole(ctx, in)
	if err != nil {
		return Token{}, awsError("AssumeRole", err, own.keys.SecretAccessKey, own.keys.SessionToken)
	}
	return sessionToken(out.Credentials)
}

func (a *AWS) webIdentity(ctx context.Context, web AWSWebIdentity) (Token, error) {
	client, err := a.client(aws.Credentials{})
	if err != nil {
		return Token{}, err
	}
	out, err := client.AssumeRoleWithWebIdentity(ctx, &sts.AssumeRoleWithWebIdentityInput{
		RoleArn: &web.RoleARN, RoleSessionName: &web.SessionName, WebIdentityToken: &web.Token,
	})
	if err != nil {
		return Token{}, awsError("AssumeRoleWithWebIdentity", err, web.Token)
	}
	return sessionToken(out.Credentials)
}

func (a *AWS) client(keys aws.Credentials) (*sts.Client, error) {
	region, err := a.Region()
	if err != nil {
		return nil, err
	}
	o := sts.Options{Region: region, HTTPClient: a.sts, Retryer: aws.NopRetryer{}}
	if keys.AccessKeyID != "" {
		o.Credentials = credentials.StaticCredentialsProvider{Value: keys}
	}
	if a.endpoint != "" {
		o.BaseEndpoint = &a.endpoint
	}
	return sts.New(o), nil
}

// Region is that of signatures.
func (a *AWS) Region() (string, error) {
	if a.region != "" {
		return a.region, nil
	}
	for _, name := range []string{"AWS_REGION", "AWS_DEFAULT_REGION"} {
		if v := os.Getenv(name); v != "" {
			return v, nil
		}
	}
	return "", errors.New("no region is set: give `region`, or set AWS_REGION where the proxy runs")
}

// ambient asks the SDK's default chain anew, so that changed variables, files and roles are found.
func (a *AWS) ambient(ctx context.Context, hc *http.Client) (Token, error) {
	if os.Getenv("AWS_CA_BUNDLE") != "" { // for which the SDK wants a client that dials as it likes
		return Token{}, errors.New("the proxy's AWS identity: AWS_CA_BUNDLE is not supported; name the bundle in SSL_CERT_FILE instead, and unset it")
	}
	cfg, err := config.LoadDefaultConfig(ctx, config.WithHTTPClient(hc), config.WithRetryer(func() aws.Retryer { return aws.NopRetryer{} }),
		config.WithEndpointCredentialOptions(func(o *endpointcreds.Options) { o.HTTPClient = hc }), config.WithLogger(logging.Nop{}))
	if err != nil {
		return Token{}, fmt.Errorf("the proxy's AWS identity: %w", cleanError(err))
	}
	keys, err := cfg.Credentials.Retrieve(ctx)
	if err != nil {
		return Token{}, fmt.Errorf("the proxy's AWS identity: %w", cleanError(err))
	}
	t := Token{keys: keys}
	if keys.CanExpire {
		t.Expires = keys.Expires
	}
	return t, nil
}

func sessionToken(c *types.Credentials) (Token, error) {
	if c == nil || aws.ToString(c.AccessKeyId) == "" || aws.ToString(c.SecretAccessKey) == "" || c.Expiration == nil {
		return Token{}, errors.New("STS answered without keys")
	}
	return Token{
		keys:    aws.Credentials{AccessKeyID: *c.AccessKeyId, SecretAccessKey: *c.SecretAccessKey, SessionToken: aws.ToString(c.SessionToken)},
		Expires: *c.Expiration,
	}, nil
}

// awsError says what STS said, and whether it was about this request alone.
func awsError(op string, err error, secrets ...string) error {
	if api, ok := errors.AsType[smithy.APIError](err); ok {
		text := fmt.Errorf("sts:%s: %s: %s", op, clean(api.ErrorCode(), secrets...), clean(api.ErrorMessage(), secrets...))
		if api.ErrorFault() != smithy.FaultServer && api.ErrorCode() != "Throttling" && api.ErrorCode() != "InvalidClientTokenId" {
			return &refusedError{text}
		}
		return text
	}
	return fmt.Errorf("sts:%s: %w", op, cleanError(err, secrets...))
}

// unsigned headers may change on the way, by what passes requests on for AWS too.
var unsigned = []string{"Authorization", "Accept-Encoding", "Connection", "Content-Length", "Host", "Keep-Alive", "Proxy-Connection", "Te",
	"Traceparent", "Tracestate", "Trailer", "Transfer-Encoding", "Upgrade", "User-Agent", "X-Amzn-Trace-Id"}

// Sign signs a request with Signature Version 4: method, URL with its query, headers and the whole body. It writes the headers
// of the signature into h, in place of what anybody put there. Nothing may change after.
func (t Token) Sign(ctx context.Context, method string, u *url.URL, h http.Header, body []byte, service, region string, now time.Time) error {
	sum := sha256.Sum256(body)
	hash := hex.EncodeToString(sum[:])
	for _, name := range []string{"Authorization", "X-Amz-Date", "X-Amz-Security-Token", "X-Amz-Content-Sha256"} {
		delete(h, name)
	}
	s3 := service == "s3" || strings.HasPrefix(service, "s3-")
	if s3 {
		h["X-Amz-Content-Sha256"] = []string{hash} // which S3 alone demands beside the signature
	}
	target := *u
	r := &http.Request{Method: method, URL: &target, Host: u.Host, Header: h.Clone()}
	for _, name := range unsigned {
		delete(r.Header, name)
	}
	err := v4.NewSigner().SignHTTP(ctx, t.keys, r, hash, service, region, now.UTC(), func(o *v4.SignerOptions) {
		o.DisableURIPathEscaping = s3 // all others sign the path escaped once more
	})
	if err != nil {
		return fmt.Errorf("signing the request: %w", cleanError(err, t.keys.SecretAccessKey))
	}
	for _, name := range []string{"Authorization", "X-Amz-Date", "X-Amz-Security-Token"} {
		if v := r.Header.Values(name); len(v) > 0 {
			h[name] = v
		}
	}
	return nil
}
