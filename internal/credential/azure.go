package credential

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/cloud"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
)

// Azure is an identity at Microsoft Entra. Exactly one of the first four is set.
type Azure struct {
	Secret    *AzureSecret
	Assertion *AzureAssertion
	Managed   *AzureManaged
	// Own is the proxy's own identity: from the environment, workload or managed. With Developer the tools of developers too.
	Own, Developer bool
	Scopes         []string
}

// AzureSecret is an application's secret. An empty AuthorityHost is that of the public cloud.
type AzureSecret struct{ TenantID, ClientID, Secret, AuthorityHost string }

// AzureAssertion is a federated token (workload identity). An empty Token is the file that Azure's webhook names in the
// environment, whence also come what else is empty; that needs the Scope's Identity.
type AzureAssertion struct{ TenantID, ClientID, Token, AuthorityHost string }

// AzureManaged is a managed identity: the system's if all are empty.
type AzureManaged struct{ ClientID, ObjectID, ResourceID string }

// Azure returns the source of a token of Microsoft Entra.
func (s Scope) Azure(a Azure) *Source {
	parts := []string{"azure", strings.Join(a.Scopes, " "), fmt.Sprint(a.Own, a.Developer)}
	dial := s.Identity
	var secret string
	switch {
	case a.Secret != nil:
		dial, secret = s.Dial, a.Secret.Secret
		parts = append(parts, "secret", a.Secret.TenantID, a.Secret.ClientID, a.Secret.Secret, a.Secret.AuthorityHost)
	case a.Assertion != nil:
		dial, secret = s.Dial, a.Assertion.Token // no metadata service takes part, and the authority may be anybody's
		parts = append(parts, "assertion", a.Assertion.TenantID, a.Assertion.ClientID, a.Assertion.Token, a.Assertion.AuthorityHost)
	case a.Managed != nil:
		parts = append(parts, "managed", a.Managed.ClientID, a.Managed.ObjectID, a.Managed.ResourceID)
	}
	hc := newClient(dial)
	return s.source(func(ctx context.Context) (Token, error) {
		t, err := a.fetch(ctx, hc)
		if err != nil {
			return Token{}, fmt.Errorf("microsoft entra: %w", azureError(err, secret))
		}
		return t, nil
	}, parts...)
}

// fetch makes the credential anew: the SDK's own cache would bring back what a target refused.
func (a Azure) fetch(ctx context.Context, hc *http.Client) (Token, error) {
	c, err := a.credential(hc)
	if err != nil {
		return Token{}, err
	}
	got, err := c.GetToken(ctx, policy.TokenRequestOptions{Scopes: a.Scopes})
	if err != nil {
		return Token{}, err
	}
	if err := checkToken(got.Token); err != nil || got.Token == "" {
		return Token{}, errors.New("gave no token that can be sent on")
	}
	return Token{value: got.Token, Expires: got.ExpiresOn}, nil
}

func (a Azure) credential(hc *http.Client) (azcore.TokenCredential, error) {
	options := func(authority string) azcore.ClientOptions {
		o := azcore.ClientOptions{Transport: hc, Retry: policy.RetryOptions{MaxRetries: -1}} // the store tries again
		if authority != "" {
			o.Cloud = cloud.Configuration{ActiveDirectoryAuthorityHost: authority}
		}
		return o
	}
	switch {
	case a.Secret != nil:
		return azidentity.NewClientSecretCredential(a.Secret.TenantID, a.Secret.ClientID, a.Secret.Secret, &azidentity.ClientSecretCredentialOptions{
			ClientOptions: options(a.Secret.AuthorityHost), DisableInstanceDiscovery: a.Secret.AuthorityHost != "",
		})
	case a.Assertion != nil && a.Assertion.Token != "" && a.Assertion.TenantID != "" && a.Assertion.ClientID != "":
		return azidentity.NewClientAssertionCredential(a.Assertion.TenantID, a.Assertion.ClientID,
			func(context.Context) (string, error) { return a.Assertion.Token, nil },
			&azidentity.ClientAssertionCredentialOptions{ClientOptions: options(a.Assertion.AuthorityHost), DisableInstanceDiscovery: a.Assertion.AuthorityHost != ""})
	case a.Assertion != nil:
		return azidentity.NewWorkloadIdentityCredential(&azidentity.WorkloadIdentityCredentialOptions{
			ClientOptions: options(a.Assertion.AuthorityHost), DisableInstanceDiscovery: a.Assertion.AuthorityHost != "",
			TenantID: a.Assertion.TenantID, ClientID: a.Assertion.ClientID,
		})
	case a.Managed != nil:
		return azidentity.NewManagedIdentityCredential(&azidentity.ManagedIdentityCredentialOptions{ClientOptions: options(""), ID: a.Managed.id()})
	case a.Developer:
		return azidentity.NewDefaultAzureCredential(&azidentity.DefaultAzureCredentialOptions{ClientOptions: options("")})
	}
	return ownChain(options(""))
}

func (m AzureManaged) id() azidentity.ManagedIDKind {
	switch {
	case m.ClientID != "":
		return azidentity.ClientID(m.ClientID)
	case m.ObjectID != "":
		return azidentity.ObjectID(m.ObjectID)
	case m.ResourceID != "":
		return azidentity.ResourceID(m.ResourceID)
	}
	return nil
}

// ownChain is the SDK's default chain without the tools of developers. What the environment says nothing of is left out.
func ownChain(o azcore.ClientOptions) (azcore.TokenCredential, error) {
	var chain []azcore.TokenCredential
	if c, err := azidentity.NewEnvironmentCredential(&azidentity.EnvironmentCredentialOptions{ClientOptions: o}); err == nil {
		chain = append(chain, c)
	}
	if c, err := azidentity.NewWorkloadIdentityCredential(&azidentity.WorkloadIdentityCredentialOptions{ClientOptions: o}); err == nil {
		chain = append(chain, c)
	}
	managed, err := azidentity.NewManagedIdentityCredential(&azidentity.ManagedIdentityCredentialOptions{ClientOptions: o})
	if err != nil {
		return nil, err
	}
	return azidentity.NewChainedTokenCredential(append(chain, managed), nil)
}

// azureError keeps of the SDK's errors, which quote whole answers, what an answer's status was and what it is about.
func azureError(err error, secret string) error {
	if failed, ok := errors.AsType[*azidentity.AuthenticationFailedError](err); ok && failed.RawResponse != nil {
		return fmt.Errorf("answered %d: %w", failed.RawResponse.StatusCode, cleanError(err, secret))
	}
	return cleanError(err, secret)
}
