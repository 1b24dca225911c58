package auth

// Remembered is how many tokens are remembered.
func (a *Authenticator) Remembered() int {
	a.verified.mu.RLock()
	defer a.verified.mu.RUnlock()
	return len(a.verified.tokens)
}
