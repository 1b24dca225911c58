package registry_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/connected-registry/connected-registry/internal/registry"
)

func TestSecretPrintsNowhere(t *testing.T) {
	const plain = "hunter2"
	type holder struct{ Password registry.Secret }
	s := registry.Secret(plain)
	var log bytes.Buffer
	slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "s", s, "h", holder{s})
	slog.New(slog.NewTextHandler(&log, nil)).Info("x", "s", s, "h", holder{s})
	j, err := json.Marshal(map[string]any{"s": s, "h": holder{s}})
	if err != nil {
		t.Fatal(err)
	}
	all := log.String() + string(j) + fmt.Sprint(s, &s, holder{s}) + fmt.Sprintf("%s %v %+v %#v %q %x %d", s, holder{s}, holder{s}, holder{s}, s, s, s)
	if strings.Contains(all, plain) || strings.Contains(all, fmt.Sprintf("%x", plain)) {
		t.Errorf("the secret is printed: %s", all)
	}
	if s.Reveal() != plain {
		t.Errorf("Reveal() = %q", s.Reveal())
	}
}
