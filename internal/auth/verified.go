package auth

import (
	"crypto/sha256"
	"sync"
	"time"
)

// maxVerified is how many tokens are remembered. What is kept of one is at most as large as the token, typically less
// than a kilobyte.
const maxVerified = 512

// verified remembers which access tokens had a good signature, so that a client that sends the same one with each of its
// requests is not parsed each time. It knows them by their SHA-256. What can change is asked anew at every use: the time,
// the keys that are in force, and what the holder may do.
type verified struct {
	mu     sync.RWMutex
	tokens map[[sha256.Size]byte]verifiedToken
}

type verifiedToken struct {
	claims claims
	key    string // id of the key that signed it
}

// in reports whether the token is good at this time.
func (v verifiedToken) in(now time.Time) bool {
	c := v.claims
	return now.Before(c.ExpiresAt.Time) && !now.Before(c.NotBefore.Time) && (c.IssuedAt == nil || !now.Before(c.IssuedAt.Time))
}

func (v *verified) get(sum [sha256.Size]byte) (verifiedToken, bool) {
	v.mu.RLock()
	defer v.mu.RUnlock()
	t, ok := v.tokens[sum]
	return t, ok
}

// put makes room by forgetting any other token.
func (v *verified) put(sum [sha256.Size]byte, t verifiedToken) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.tokens == nil {
		v.tokens = map[[sha256.Size]byte]verifiedToken{}
	}
	for other := range v.tokens {
		if len(v.tokens) < maxVerified {
			break
		}
		delete(v.tokens, other)
	}
	v.tokens[sum] = t
}
