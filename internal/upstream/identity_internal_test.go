package upstream

import (
	"strings"
	"testing"

	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"

	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/internal/transport"
)

// TestAuthority: who makes the tokens follows from the cloud that the registry is in, and for a cloud of one's own, such as
// Azure Stack Hub, from the environment.
func TestAuthority(t *testing.T) {
	for host, want := range map[string]string{
		"contoso.azurecr.io": "login.microsoftonline.com", "contoso.azurecr.io:443": "login.microsoftonline.com",
		"contoso.azurecr.us": "login.microsoftonline.us", "contoso.azurecr.us:443": "login.microsoftonline.us",
		"contoso.azurecr.cn": "login.chinacloudapi.cn", "contoso.azurecr.us.evil.example": "login.microsoftonline.com",
	} {
		c, custom := authorityFor(Identity{}, host)
		if !strings.Contains(c.ActiveDirectoryAuthorityHost, "//"+want+"/") || custom {
			t.Errorf("%s: %s, custom %t; want %s", host, c.ActiveDirectoryAuthorityHost, custom, want)
		}
	}
	c, custom := authorityFor(Identity{AuthorityHost: "https://adfs.stack.example/"}, "contoso.azurecr.us")
	if c.ActiveDirectoryAuthorityHost != "https://adfs.stack.example/" || !custom {
		t.Errorf("a cloud of one's own: %s, custom %t", c.ActiveDirectoryAuthorityHost, custom)
	}
	// azidentity takes each of them; only https is one.
	i := Identity{Kind: ClientSecret, TenantID: "adfs", ClientID: "app", ClientSecret: registry.Secret("x")}
	for _, host := range []string{"", "https://adfs.stack.example/", "https://login.microsoftonline.us/"} {
		i.AuthorityHost = host
		source, err := newTokenSource(i, "contoso.azurecr.cn", transport.ClientOptions{})
		if _, ok := source.(*azidentity.ClientSecretCredential); !ok || err != nil {
			t.Errorf("%s: %T, %v", host, source, err)
		}
	}
	i.AuthorityHost = "http://adfs.stack.example/"
	if _, err := newTokenSource(i, "contoso.azurecr.io", transport.ClientOptions{}); err == nil {
		t.Error("an authority over http")
	}
}
