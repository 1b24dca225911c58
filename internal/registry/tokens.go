package registry

import (
	"encoding/hex"
	"encoding/json"
	"strings"
	"time"
)

// TokenSet is client tokens of one source with the scope maps that they name: the configuration document, a file of
// tokens, or the parent. A scope map of one source is not seen by the tokens of another.
type TokenSet struct {
	ScopeMaps    map[string]ScopeMap    `json:"scopeMaps,omitempty"`
	ClientTokens map[string]ClientToken `json:"clientTokens,omitempty"`
}

// Select returns the tokens of the names, with their scope maps; the name * takes all. What there is not is left out.
func (s TokenSet) Select(names []string) TokenSet {
	out := TokenSet{ScopeMaps: map[string]ScopeMap{}, ClientTokens: map[string]ClientToken{}}
	take := func(name string) {
		t, ok := s.ClientTokens[name]
		if !ok {
			return
		}
		out.ClientTokens[name] = t
		if m, ok := s.ScopeMaps[t.ScopeMap]; ok {
			out.ScopeMaps[t.ScopeMap] = m
		}
	}
	for _, name := range names {
		if name != "*" {
			take(strings.ToLower(name))
			continue
		}
		for name := range s.ClientTokens {
			take(name)
		}
	}
	return out
}

// tokenJSON is a client token as the configuration document has it.
type tokenJSON struct {
	ScopeMap  string    `json:"scopeMap"`
	Status    string    `json:"status"`
	Password1 string    `json:"password1,omitempty"`
	Expiry1   time.Time `json:"expiry1,omitzero"`
	Password2 string    `json:"password2,omitempty"`
	Expiry2   time.Time `json:"expiry2,omitzero"`
}

const hashPrefix = "sha256:"

// MarshalJSON returns the token with the hashes of its passwords, as the configuration document has it.
func (t ClientToken) MarshalJSON() ([]byte, error) {
	out := tokenJSON{ScopeMap: t.ScopeMap, Status: "disabled"}
	if t.Enabled {
		out.Status = "enabled"
	}
	for i, p := range t.Passwords {
		text := hashPrefix + hex.EncodeToString(p.SHA256[:])
		switch i {
		case 0:
			out.Password1, out.Expiry1 = text, p.Expiry
		case 1:
			out.Password2, out.Expiry2 = text, p.Expiry
		}
	}
	return json.Marshal(out)
}

// UnmarshalJSON reads what MarshalJSON wrote; fields that it does not know are a later version's. A status other than
// enabled, and a hash of another kind, give no access.
func (t *ClientToken) UnmarshalJSON(raw []byte) error {
	var in tokenJSON
	if err := json.Unmarshal(raw, &in); err != nil {
		return err
	}
	*t = ClientToken{ScopeMap: in.ScopeMap, Enabled: in.Status == "enabled"}
	for _, p := range []struct {
		text   string
		expiry time.Time
	}{{in.Password1, in.Expiry1}, {in.Password2, in.Expiry2}} {
		if p.text == "" {
			continue
		}
		digits, ok := strings.CutPrefix(p.text, hashPrefix)
		sum, err := hex.DecodeString(digits)
		if !ok || err != nil || len(sum) != 32 {
			continue
		}
		t.Passwords = append(t.Passwords, TokenPassword{SHA256: [32]byte(sum), Expiry: p.expiry})
	}
	return nil
}
