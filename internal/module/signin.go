package module

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/internal/twin"
	"github.com/connected-registry/connected-registry/internal/upstream"
)

// credentialHost is the document that binds a credential to the host that it was first used for.
const credentialHost = "parent/credential"

// signIn gives the parent its credential, if there is one for it. A credential is good for one host: the one that the
// environment names with it. Where the environment names none it is the first that the configuration names, for as long
// as the credential is the same: whoever can change a twin later cannot send for it.
//
// Errors: DENIED for an identity whose host the environment does not name; what an identity lacks.
func (m *Module) signIn(o *upstream.Options, c registry.Config, same bool) error {
	if twin.IsCloud(o.Endpoint) {
		o.SourceClient = "on-prem/connected-registry/" + m.name
	}
	conn, endpoint := m.env.Connection, c.Parent.GatewayEndpoint
	if m.env.ParentAuth != "" {
		if conn.ParentGatewayEndpoint == "" || !same {
			return registry.ErrDenied.WithMessage("an identity is used for the parent that the environment names: set %s=%s beside %s", twin.EnvParentEndpoint, endpoint, twin.EnvParentAuth)
		}
		identity, err := m.identity()
		if err != nil {
			return err
		}
		o.Identity, o.Alternates = identity, m.env.Alternates
		return nil
	}
	if conn.SyncTokenName == "" {
		o.Alternates = m.env.Alternates // nothing secret goes there
		return nil
	}
	if same && conn.ParentGatewayEndpoint == "" {
		same = m.bound(endpoint)
	}
	if !same {
		m.wrong("credential", registry.StatusDetail{
			Type: "Parent", Code: "CredentialForAnotherParent",
			Description: "the credential is not sent to " + endpoint + ": it belongs to another parent. Set " + twin.EnvParentEndpoint + "=" + endpoint + " or a new connection string on this machine if it is for this one",
		})
		m.log.Warn("the credential is for another parent and is not sent to this one", "parent", endpoint)
		return nil
	}
	m.clear("credential")
	o.Username, o.Password, o.Alternates = conn.SyncTokenName, conn.SyncTokenPassword, m.env.Alternates
	return nil
}

// bound reports whether the credential belongs to a host. The first that asks gets it, for good.
func (m *Module) bound(endpoint string) bool {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	sum := sha256.Sum256([]byte(m.env.Connection.SyncTokenName + "\n" + m.env.Connection.SyncTokenPassword.Reveal()))
	now := boundCredential{Endpoint: endpoint, Credential: hex.EncodeToString(sum[:8])}
	raw, err := m.store.Document(ctx, credentialHost)
	if err != nil {
		m.log.Error("which parent the credential belongs to cannot be read; it is not used", "error", err)
		return false
	}
	var kept boundCredential
	if raw != nil && json.Unmarshal(raw, &kept) == nil && kept.Credential == now.Credential {
		return kept.Endpoint == endpoint
	}
	if raw, err = json.Marshal(now); err == nil {
		err = m.store.PutDocument(ctx, credentialHost, raw)
	}
	if err != nil {
		m.log.Error("which parent the credential belongs to cannot be written; it is not used", "error", err)
	}
	return err == nil
}

// boundCredential says which host a credential is for, without telling the credential.
type boundCredential struct {
	Endpoint   string `json:"endpoint"`
	Credential string `json:"credential"` // the first 64 bits of its SHA-256
}

// identity reads the identity's parts from the variables that Azure's own tools take them from.
func (m *Module) identity() (upstream.Identity, error) {
	get := func(name string) string {
		s, _ := m.o.Lookup(name)
		return strings.TrimSpace(s)
	}
	i := upstream.Identity{
		Kind: upstream.IdentityKind(m.env.ParentAuth), TenantID: get("AZURE_TENANT_ID"), ClientID: get("AZURE_CLIENT_ID"),
		ClientSecret: registry.Secret(get("AZURE_CLIENT_SECRET")), CertificatePath: get("AZURE_CLIENT_CERTIFICATE_PATH"),
		CertificatePassword: registry.Secret(get("AZURE_CLIENT_CERTIFICATE_PASSWORD")), TokenFile: get("AZURE_FEDERATED_TOKEN_FILE"),
		AuthorityHost: get("AZURE_AUTHORITY_HOST"), Audience: get("ACR_AUDIENCE"),
	}
	if !slices.Contains(upstream.IdentityKinds, i.Kind) {
		return i, registry.ErrUnsupported.WithMessage("%s: want %s or one of %v", twin.EnvParentAuth, twin.AuthSyncToken, upstream.IdentityKinds) // not what it is: people put secrets into wrong variables
	}
	if i.Kind == upstream.ManagedIdentity {
		if id := m.env.Connection.ManagedIdentityClientID; id != "" {
			i.ClientID = id
		}
		for _, name := range []string{"IDENTITY_ENDPOINT", "IMDS_ENDPOINT", "MSI_ENDPOINT", "AZURE_POD_IDENTITY_AUTHORITY_HOST"} {
			if u, err := url.Parse(get(name)); err == nil && u.Host != "" {
				i.LocalEndpoints = append(i.LocalEndpoints, u.Scheme+"://"+u.Host)
			}
		}
	}
	return i, nil
}
