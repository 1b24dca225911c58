package auth

// Judge is the work that a name and a password make.
func (a *Authenticator) Judge(name, password string) { _, _, _ = a.judge(name, password) }

// Remembered is how many tokens are remembered.
func (a *Authenticator) Remembered() int {
	a.verified.mu.RLock()
	defer a.verified.mu.RUnlock()
	return len(a.verified.tokens)
}
