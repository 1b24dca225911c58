package main

import (
	"strings"
	"testing"
	"time"

	"github.com/connected-registry/connected-registry/internal/registry"
)

func TestProgress(t *testing.T) {
	s := registry.Status{Sync: registry.SyncStatus{BytesBehind: 30 << 20, BytesPerSecond: 1 << 20, EstimatedEndTime: time.Date(2026, 11, 22, 1, 2, 3, 0, time.UTC)}}
	for i := range 12 {
		s.Transfers = append(s.Transfers, registry.TransferStatus{
			Repository: "acme/vision", Digest: "sha256:0123456789abcdef", Size: 12, Received: int64(i), Waiting: i == 1,
		})
	}
	lines := progress(s)
	text := strings.Join(lines, "\n")
	if len(lines) != maxBars+2 {
		t.Errorf("%d lines", len(lines))
	}
	for _, want := range []string{
		"[..............................] sha256:0123456789ab acme/vision 0 B of 12 B\n", "1 B of 12 B, waiting for the link\n",
		"[###############...............]", "\nand 2 more\n30.0 MiB to come at 1.0 MiB/s, done at about 2026-11-22 01:02:03",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is not in\n%s", want, text)
		}
	}
	s.Sync.EstimatedEndTime = time.Time{}
	if got := outlook(s); got != "30.0 MiB to come, waiting for the link" {
		t.Errorf("%q", got)
	}
	for _, b := range []string{bar(5, 0), bar(-1, 3), bar(9, 3)} {
		if len(b) != barWidth+2 {
			t.Errorf("%q", b)
		}
	}
}
