package registry

import (
	"fmt"
	"io"
	"log/slog"
)

// Secret is a password or a token. It prints as *** wherever text is made of it, so that it gets into no log, error
// text or status; Reveal returns what it is.
type Secret string

const hidden = "***"

// Reveal returns the secret itself, for the request that needs it.
func (s Secret) Reveal() string { return string(s) }

// Format prints *** for every verb, the wrong ones too.
func (Secret) Format(f fmt.State, _ rune) {
	_, _ = io.WriteString(f, hidden) // a fmt.State keeps its own errors
}

// String returns ***.
func (Secret) String() string { return hidden }

// GoString returns ***, for %#v.
func (Secret) GoString() string { return hidden }

// MarshalJSON returns "***". A Secret is no map key: encoding/json would write it out.
func (Secret) MarshalJSON() ([]byte, error) { return []byte(`"` + hidden + `"`), nil }

// LogValue returns ***.
func (Secret) LogValue() slog.Value { return slog.StringValue(hidden) }
