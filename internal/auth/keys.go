package auth

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"slices"
	"sync"
	"time"

	"github.com/connected-registry/connected-registry/internal/registry"
)

// keysDocument is where the keys are kept.
const keysDocument = "auth/token-keys"

const (
	keySize = 32 // bytes, as RFC 7518 wants for HS256
	// keyLife is how long a key signs; it then verifies for as long as what it signed may live.
	keyLife = 30 * 24 * time.Hour
	// maxKeys bounds the keys that are kept, whatever the clock does.
	maxKeys = 8
)

// signingKey is one key of the ring.
type signingKey struct {
	ID     string    `json:"kid"`
	Secret []byte    `json:"secret"`
	Made   time.Time `json:"made"`
}

// keyRing is the document: the keys, the newest last, and the name of this registry in its own tokens.
type keyRing struct {
	Audience string       `json:"audience"`
	Keys     []signingKey `json:"keys"`
}

// keys are the keys in use. No key, no token: until Open has been called, every Bearer token is refused.
type keys struct {
	mu   sync.RWMutex
	docs registry.Documents
	ring keyRing
}

// Open reads the keys that sign tokens, and makes them at the first start. Where they cannot be kept, they are good
// until the process ends: clients then ask for new tokens.
func (a *Authenticator) Open(ctx context.Context, docs registry.Documents) {
	a.keys.mu.Lock()
	defer a.keys.mu.Unlock()
	a.keys.docs = docs
	raw, err := docs.Document(ctx, keysDocument)
	if err != nil {
		a.logger.Warn("the keys of access tokens cannot be read; tokens of an earlier start are refused", "error", err)
	}
	var ring keyRing
	if json.Unmarshal(raw, &ring) == nil && ring.Audience != "" {
		a.keys.ring = ring
		a.keys.ring.Keys = slices.DeleteFunc(ring.Keys, func(k signingKey) bool { return len(k.Secret) != keySize || k.ID == "" })
	}
	if a.keys.ring.Audience == "" {
		a.keys.ring.Audience = randomText(12)
	}
	a.rotate(ctx, a.clock.Now())
}

// signer returns the key that signs now, and a new one when it is time for that; false before Open.
func (a *Authenticator) signer(ctx context.Context) (signingKey, string, bool) {
	now := a.clock.Now()
	a.keys.mu.RLock()
	k, ok := a.keys.ring.current(now)
	audience := a.keys.ring.Audience
	a.keys.mu.RUnlock()
	if ok {
		return k, audience, true
	}
	a.keys.mu.Lock()
	defer a.keys.mu.Unlock()
	if a.keys.docs == nil {
		return signingKey{}, "", false
	}
	a.rotate(ctx, now)
	return a.keys.ring.Keys[len(a.keys.ring.Keys)-1], a.keys.ring.Audience, true
}

// current returns the newest key when it still signs. A key of the future was made before the clock was set back.
func (r keyRing) current(now time.Time) (signingKey, bool) {
	if len(r.Keys) == 0 {
		return signingKey{}, false
	}
	k := r.Keys[len(r.Keys)-1]
	age := now.Sub(k.Made)
	return k, age < keyLife && age > -keyLife
}

// rotate makes a new key where none signs, and drops those whose tokens have all ended. The caller holds the lock.
func (a *Authenticator) rotate(ctx context.Context, now time.Time) {
	ring := &a.keys.ring
	if _, ok := ring.current(now); ok {
		return
	}
	ring.Keys = slices.DeleteFunc(slices.Clone(ring.Keys), func(k signingKey) bool { return now.Sub(k.Made) > keyLife+refreshLife })
	if len(ring.Keys) >= maxKeys {
		ring.Keys = ring.Keys[len(ring.Keys)-maxKeys+1:]
	}
	secret := make([]byte, keySize)
	_, _ = rand.Read(secret) // never fails, as its documentation says
	ring.Keys = append(ring.Keys, signingKey{ID: randomText(9), Secret: secret, Made: now})
	raw, err := json.Marshal(ring)
	if err == nil {
		err = a.keys.docs.PutDocument(ctx, keysDocument, raw)
	}
	if err != nil {
		a.logger.Warn("the keys of access tokens cannot be kept; the tokens end with this process", "error", err)
	}
}

// verifier returns a key by its id, and the audience that tokens must have.
func (a *Authenticator) verifier(id string) (secret []byte, ok bool) {
	a.keys.mu.RLock()
	defer a.keys.mu.RUnlock()
	for _, k := range a.keys.ring.Keys {
		if k.ID == id {
			return k.Secret, true
		}
	}
	return nil, false
}

func (a *Authenticator) audience() string {
	a.keys.mu.RLock()
	defer a.keys.mu.RUnlock()
	return a.keys.ring.Audience
}

// randomText returns n random bytes as text.
func randomText(n int) string {
	b := make([]byte, n)
	_, _ = rand.Read(b)
	return base64.RawURLEncoding.EncodeToString(b)
}
