package upstream

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"strings"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/cloud"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"

	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/internal/transport"
)

// IdentityKind is a way to get a token of Microsoft Entra ID.
type IdentityKind string

// The kinds of identity; each is azidentity's credential of that name.
const (
	ManagedIdentity   IdentityKind = "ManagedIdentity"   // of the virtual machine, the Arc server or the pod
	WorkloadIdentity  IdentityKind = "WorkloadIdentity"  // a federated token in a file
	ClientSecret      IdentityKind = "ClientSecret"      // a service principal
	ClientCertificate IdentityKind = "ClientCertificate" // a service principal
	AzureCLI          IdentityKind = "AzureCLI"          // the person who ran az login, on a laptop
)

// IdentityKinds are all kinds.
var IdentityKinds = []IdentityKind{ManagedIdentity, WorkloadIdentity, ClientSecret, ClientCertificate, AzureCLI}

// Identity says who asks Microsoft Entra ID. The zero value is nobody.
type Identity struct {
	Kind                IdentityKind
	TenantID            string // all kinds but ManagedIdentity need it; AzureCLI may do without
	ClientID            string // of a user-assigned identity or an application; empty is the system-assigned one
	ClientSecret        registry.Secret
	CertificatePath     string // PEM or PKCS#12 with the key
	CertificatePassword registry.Secret
	TokenFile           string   // the federated token of WorkloadIdentity
	AuthorityHost       string   // https://host; empty follows from the registry's cloud
	Audience            string   // empty is https://containerregistry.azure.net
	LocalEndpoints      []string // scheme://host[:port] of what hands out managed identities; nil is Azure's link-local address
}

// Who names the identity for a person.
func (i Identity) Who() string {
	if i.ClientID == "" {
		return string(i.Kind)
	}
	return string(i.Kind) + " " + i.ClientID
}

const (
	// registryAudience is what tokens for any Azure Container Registry are made for, in every public and sovereign cloud.
	registryAudience = "https://containerregistry.azure.net"
	// instanceMetadata is where virtual machines ask for their managed identity.
	instanceMetadata = "http://169.254.169.254"
)

// clouds maps the end of a registry's name to its cloud; every other name is in the public one.
var clouds = map[string]cloud.Configuration{
	".azurecr.us": cloud.AzureGovernment,
	".azurecr.cn": cloud.AzureChina,
}

// authorityFor is where the tokens for a registry come from.
func authorityFor(i Identity, host string) (c cloud.Configuration, custom bool) {
	if i.AuthorityHost != "" {
		return cloud.Configuration{ActiveDirectoryAuthorityHost: i.AuthorityHost}, true
	}
	name, _, _ := strings.Cut(host, ":")
	for suffix, c := range clouds {
		if strings.HasSuffix(name, suffix) {
			return c, false
		}
	}
	return cloud.AzurePublic, false
}

// newTokenSource returns azidentity's credential. What it asks for tokens goes through a guarded client of its own: the
// parent's never talks to the authority, and the authority's never to the parent.
//
// Errors: what is missing for this kind of identity, and a certificate that cannot be read.
func newTokenSource(i Identity, host string, o transport.ClientOptions) (azcore.TokenCredential, error) {
	authority, custom := authorityFor(i, host)
	o.Origin, o.Data = strings.TrimRight(authority.ActiveDirectoryAuthorityHost, "/"), nil
	if o.Realms = i.LocalEndpoints; len(o.Realms) == 0 {
		o.Realms = []string{instanceMetadata}
	}
	if u, err := url.Parse(o.Origin); err != nil || u.Scheme != "https" {
		return nil, fmt.Errorf("authority host %q: want https://host", authority.ActiveDirectoryAuthorityHost)
	}
	client, err := transport.NewClient(o)
	if err != nil {
		return nil, err
	}
	options := policy.ClientOptions{
		Cloud: authority, Transport: client.HTTP(),
		Telemetry: policy.TelemetryOptions{Disabled: true},
	}
	need := func(name, value string) error {
		if value == "" {
			return fmt.Errorf("%s needs %s", i.Kind, name)
		}
		return nil
	}
	switch i.Kind {
	case ManagedIdentity:
		mi := &azidentity.ManagedIdentityCredentialOptions{ClientOptions: options}
		if i.ClientID != "" {
			mi.ID = azidentity.ClientID(i.ClientID)
		}
		return azidentity.NewManagedIdentityCredential(mi)
	case WorkloadIdentity:
		if err := errors.Join(need("AZURE_TENANT_ID", i.TenantID), need("AZURE_CLIENT_ID", i.ClientID), need("AZURE_FEDERATED_TOKEN_FILE", i.TokenFile)); err != nil {
			return nil, err
		}
		return azidentity.NewWorkloadIdentityCredential(&azidentity.WorkloadIdentityCredentialOptions{
			ClientOptions: options, ClientID: i.ClientID, TenantID: i.TenantID, TokenFilePath: i.TokenFile, DisableInstanceDiscovery: custom,
		})
	case ClientSecret:
		if err := errors.Join(need("AZURE_TENANT_ID", i.TenantID), need("AZURE_CLIENT_ID", i.ClientID), need("AZURE_CLIENT_SECRET", i.ClientSecret.Reveal())); err != nil {
			return nil, err
		}
		return azidentity.NewClientSecretCredential(i.TenantID, i.ClientID, i.ClientSecret.Reveal(), &azidentity.ClientSecretCredentialOptions{
			ClientOptions: options, DisableInstanceDiscovery: custom,
		})
	case ClientCertificate:
		if err := errors.Join(need("AZURE_TENANT_ID", i.TenantID), need("AZURE_CLIENT_ID", i.ClientID), need("AZURE_CLIENT_CERTIFICATE_PATH", i.CertificatePath)); err != nil {
			return nil, err
		}
		return newCertificateSource(i, options, custom)
	case AzureCLI:
		return azidentity.NewAzureCLICredential(&azidentity.AzureCLICredentialOptions{TenantID: i.TenantID})
	}
	return nil, fmt.Errorf("identity %q: want one of %v", i.Kind, IdentityKinds)
}

// maxCertificate bounds the file of a client certificate in bytes.
const maxCertificate = 1 << 20

func newCertificateSource(i Identity, options policy.ClientOptions, custom bool) (azcore.TokenCredential, error) {
	info, err := os.Stat(i.CertificatePath)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > maxCertificate {
		return nil, fmt.Errorf("%s: want a file of at most %d bytes", i.CertificatePath, maxCertificate)
	}
	raw, err := os.ReadFile(i.CertificatePath)
	if err != nil {
		return nil, err
	}
	certs, key, err := azidentity.ParseCertificates(raw, []byte(i.CertificatePassword.Reveal()))
	if err != nil {
		return nil, fmt.Errorf("%s: want a certificate with its RSA key, in PEM or PKCS#12: %w", i.CertificatePath, err)
	}
	return azidentity.NewClientCertificateCredential(i.TenantID, i.ClientID, certs, key, &azidentity.ClientCertificateCredentialOptions{
		ClientOptions: options, DisableInstanceDiscovery: custom,
	})
}

// entraToken gets a token of Microsoft Entra ID for the registry.
//
// Errors: UNAUTHORIZED where the identity is refused or there is none here; UNAVAILABLE.
func (e *entra) entraToken(ctx context.Context) (string, error) {
	audience := e.identity.Audience
	if audience == "" {
		audience = registryAudience
	}
	t, err := e.source.GetToken(ctx, policy.TokenRequestOptions{Scopes: []string{strings.TrimRight(audience, "/") + "/.default"}})
	if err == nil {
		return t.Token, nil
	}
	if ctx.Err() != nil {
		return "", context.Cause(ctx)
	}
	var known *registry.Error
	if errors.As(err, &known) {
		return "", known
	}
	var failed *azidentity.AuthenticationFailedError
	if errors.As(err, &failed) {
		if r := failed.RawResponse; r != nil && r.StatusCode >= http.StatusInternalServerError {
			return "", registry.ErrUnavailable.WithMessage("Microsoft Entra ID answers HTTP %d to %s", r.StatusCode, e.identity.Who())
		}
		return "", registry.ErrUnauthorized.WithMessage("Microsoft Entra ID gives %s no token: %s", e.identity.Who(), entraReason(failed))
	}
	return "", registry.ErrUnauthorized.WithMessage("%s has no token here: %s", e.identity.Who(), firstLine(err.Error()))
}

// entraReason is Microsoft's own code for what is wrong, such as AADSTS7000215, with its first sentence.
func entraReason(err error) string {
	text := err.Error()
	if at := strings.Index(text, "AADSTS"); at >= 0 {
		text = text[at:]
		if end := strings.IndexAny(text, "\"\\\r\n"); end >= 0 {
			text = text[:end]
		}
	}
	return firstLine(text)
}

func firstLine(s string) string {
	s, _, _ = strings.Cut(strings.TrimSpace(s), "\n")
	return clip(strings.TrimSpace(s))
}
