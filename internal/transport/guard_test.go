package transport

import "testing"

// TestReaches: a registry's own data endpoint may have a private address, and nothing that looks like one.
func TestReaches(t *testing.T) {
	azure, err := newHosts("https://Contoso.azurecr.io", nil, []string{"https://mirror:8443"})
	if err != nil {
		t.Fatal(err)
	}
	other, err := newHosts("https://parent:8000", nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	for addr, want := range map[string]bool{
		"contoso.azurecr.io:443":                         true,
		"mirror:8443":                                    true,
		"contoso.westeurope.data.azurecr.io:443":         true,
		"CONTOSO.westeurope.data.azurecr.io:443":         true,
		"contoso.westeurope.data.azurecr.io:8443":        false,
		"contoso.data.azurecr.io:443":                    false,
		"contoso..data.azurecr.io:443":                   false,
		"contoso.a.b.data.azurecr.io:443":                false,
		"fabrikam.westeurope.data.azurecr.io:443":        false,
		"contoso.westeurope.data.azurecr.io.evil.io:443": false,
		"contoso.westeurope.data.azurecr.cn:443":         false,
		"evilcontoso.westeurope.data.azurecr.io:443":     false,
	} {
		if got := azure.reaches(addr); got != want {
			t.Errorf("%s: %v, want %v", addr, got, want)
		}
	}
	if other.reaches("parent.westeurope.data.azurecr.io:443") {
		t.Error("a registry elsewhere has no data endpoint")
	}
}
