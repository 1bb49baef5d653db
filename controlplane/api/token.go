package api

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/sluicegate/sluice/controlplane/store"
	"github.com/sluicegate/sluice/controlplane/tenant"
	"github.com/sluicegate/sluice/internal/mtls"
	adminv1 "github.com/sluicegate/sluice/proto/gen/sluice/admin/v1"
)

const (
	maxCertificates = 10_000
	maxTTL          = 365 * 24 * time.Hour // of certificates handed out by hand
)

// CreateToken makes a token; its text is told here and nowhere else.
func (a admin) CreateToken(ctx context.Context, r *adminv1.CreateTokenRequest) (*adminv1.CreateTokenResponse, error) {
	ttl := r.GetTtl().AsDuration()
	if ttl < 0 {
		return nil, invalidArgument("a token that ends %s ago is no use", -ttl)
	}
	var t tenant.Token
	var text string
	var err error
	switch r.GetType() {
	case adminv1.CreateTokenRequest_TYPE_JOIN:
		if err := a.checkGroup(r.GetGroup()); err != nil {
			return nil, err
		}
		t, text, err = a.Registry.CreateJoinToken(ctx, a.CA.Pin(), r.GetGroup(), r.GetName(), r.GetUses(), ttl)
	default:
		t, text, err = a.createAdminToken(ctx, r, ttl)
	}
	if err != nil {
		return nil, err
	}
	response := &adminv1.CreateTokenResponse{Id: t.ID, Token: text}
	if !t.Expires.IsZero() {
		response.Expires = timestamppb.New(t.Expires)
	}
	return response, nil
}

// checkGroup refuses a group that is not there: its proxies would serve nothing.
func (a admin) checkGroup(group string) error {
	if _, ok := a.Publisher.Groups()[group]; group != "" && !ok {
		return &Missing{Reason: fmt.Sprintf("there is no group %q; create it with `sluice group set %s TENANT...`", group, group)}
	}
	return nil
}

func (a admin) createAdminToken(ctx context.Context, r *adminv1.CreateTokenRequest, ttl time.Duration) (tenant.Token, string, error) {
	role, err := tenant.ParseRole(r.GetRole())
	if err != nil {
		return tenant.Token{}, "", invalidArgument("%v", err)
	}
	name := r.GetTenant()
	if (role == tenant.PlatformAdmin) != (name == "") {
		return tenant.Token{}, "", invalidArgument("role %s and tenant %q do not go together: tenant roles need a tenant, platform-admin has none", role, name)
	}
	return a.Registry.CreateAdminToken(ctx, role, name, r.GetName(), ttl, func() error {
		if _, ok := a.Publisher.View(name); name != "" && !ok || name == tenant.Platform {
			return noTenant(name)
		}
		return nil
	})
}

// ListTokens returns what is known of the tokens, which is not their text.
func (a admin) ListTokens(context.Context, *adminv1.ListTokensRequest) (*adminv1.ListTokensResponse, error) {
	response := &adminv1.ListTokensResponse{}
	for _, t := range a.Registry.Tokens() {
		info := &adminv1.TokenInfo{Id: t.ID, Name: t.Name, Type: adminv1.CreateTokenRequest_TYPE_ADMIN, Role: t.Role.String(),
			Tenant: t.Tenant, Group: t.Group, UsesLeft: t.Uses}
		if t.Type == tenant.JoinToken {
			info.Type = adminv1.CreateTokenRequest_TYPE_JOIN
		}
		if !t.Expires.IsZero() {
			info.Expires = timestamppb.New(t.Expires)
		}
		response.Tokens = append(response.Tokens, info)
	}
	return response, nil
}

// RevokeToken ends a token.
func (a admin) RevokeToken(ctx context.Context, r *adminv1.RevokeTokenRequest) (*adminv1.RevokeTokenResponse, error) {
	err := a.Registry.RevokeToken(ctx, r.GetId())
	if errors.Is(err, store.ErrNotFound) {
		err = status.Errorf(codes.NotFound, "there is no token with id %q; `sluice token list` shows them", r.GetId())
	}
	return &adminv1.RevokeTokenResponse{}, err
}

// IssueCertificates makes keys and certificates for xDS clients that cannot join by themselves.
func (a admin) IssueCertificates(ctx context.Context, r *adminv1.IssueCertificatesRequest) (*adminv1.IssueCertificatesResponse, error) {
	group, count, ttl := r.GetGroup(), int(r.GetCount()), r.GetTtl().AsDuration()
	if group == "" {
		group = tenant.Default
	}
	if err := a.checkGroup(group); err != nil {
		return nil, err
	}
	if ttl == 0 {
		ttl = mtls.DefaultTTL
	}
	if count < 1 || count > maxCertificates || ttl < 0 || ttl > maxTTL {
		return nil, invalidArgument("want 1 to %d certificates for at most %s, not %d for %s", maxCertificates, maxTTL, count, ttl)
	}
	proxies, err := a.Registry.Enrol(ctx, group, group+"-client", count, ttl)
	if err != nil {
		return nil, err
	}
	response := &adminv1.IssueCertificatesResponse{Root: pemText("CERTIFICATE", a.CA.Certificate().Raw)}
	for _, p := range proxies {
		issued, err := a.issue(p, ttl)
		if err != nil {
			return nil, err
		}
		response.Certificates = append(response.Certificates, issued)
	}
	return response, nil
}

func (a admin) issue(p tenant.Proxy, ttl time.Duration) (*adminv1.IssuedCertificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return nil, err
	}
	certs, err := a.CA.Sign(mtls.Request{CSR: csr, ID: mtls.ID{Group: p.Group, Proxy: p.ID}, TTL: ttl})
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return &adminv1.IssuedCertificate{Name: p.ID, Certificate: pemText("CERTIFICATE", certs.Chain[0]), Key: pemText("PRIVATE KEY", der)}, nil
}

func pemText(kind string, der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
}

// RevokeProxy refuses a proxy's certificate from now on and ends its connection.
func (a admin) RevokeProxy(ctx context.Context, r *adminv1.RevokeProxyRequest) (*adminv1.RevokeProxyResponse, error) {
	err := a.Registry.Revoke(ctx, r.GetName())
	if errors.Is(err, store.ErrNotFound) {
		return nil, status.Errorf(codes.NotFound, "there is no proxy %q; `sluice proxies` shows them", r.GetName())
	}
	if err != nil {
		return nil, err
	}
	a.Fleet.Disconnect(r.GetName())
	a.reports.forget(r.GetName())
	return &adminv1.RevokeProxyResponse{}, nil
}
