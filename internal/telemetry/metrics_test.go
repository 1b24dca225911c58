package telemetry_test

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/internal/telemetry"
)

func TestScrape(t *testing.T) {
	m := telemetry.NewMetrics(telemetry.MetricsOptions{
		Audit: telemetry.NewAuditLog(telemetry.AuditOptions{}),
		Status: func() registry.Status {
			return registry.Status{
				Name: "line5", Version: "1.2.3", Mode: registry.ReadWrite, ConnectionState: registry.Syncing,
				Sync:          registry.SyncStatus{LastSuccessfulSyncEndTime: time.Unix(1_800_000_000, 0)},
				Storage:       registry.StorageStatus{Blobs: 7},
				Outbox:        &registry.OutboxStatus{Pending: 3, Bytes: 5, Oldest: time.Unix(1_700_000_000, 0), Error: "no \"right\"", Held: true},
				StatusDetails: []registry.StatusDetail{{Type: "a \"b\\\n"}, {Type: "a \"b\\\n"}},
				Repositories:  []registry.RepositoryState{{Repository: "a"}, {Repository: "b", Behind: []registry.TagState{{Tag: "1"}}}},
			}
		},
	})
	m.Request("v2", http.MethodGet, 200, 3*time.Millisecond)
	m.Request("v2", "SPLINTER", 405, 20*time.Minute)
	m.Login(registry.AuditDenied)
	w := httptest.NewRecorder()
	m.Handler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", http.NoBody))
	body := w.Body.String()
	for _, want := range []string{
		`connected_registry_info{instance="",mode="ReadWrite",name="line5",version="1.2.3"} 1`,
		`connected_registry_connection_state{state="Syncing"} 1`,
		`connected_registry_connection_state{state="Online"} 0`,
		`connected_registry_last_successful_sync_timestamp_seconds 1.8e+09`,
		`connected_registry_repositories_behind 1`,
		`connected_registry_storage_objects{kind="blobs"} 7`,
		`connected_registry_outbox_entries{state="pending"} 3`,
		`connected_registry_outbox_bytes 5`,
		`connected_registry_outbox_last_failure{held="true",reason="no \"right\""} 1`,
		`connected_registry_http_requests_total{api="v2",code="200",method="GET"} 1`,
		`connected_registry_http_requests_total{api="v2",code="405",method="other"} 1`,
		`connected_registry_logins_total{result="denied"} 1`,
		`connected_registry_http_request_duration_seconds_bucket{api="v2",le="0.001"} 0`,
		`connected_registry_http_request_duration_seconds_bucket{api="v2",le="0.005"} 1`,
		`connected_registry_http_request_duration_seconds_bucket{api="v2",le="600"} 1`,
		`connected_registry_http_request_duration_seconds_bucket{api="v2",le="+Inf"} 2`,
		`connected_registry_http_request_duration_seconds_count{api="v2"} 2`,
		`connected_registry_http_request_duration_seconds_sum{api="v2"} 1200.003`,
		`connected_registry_status_details{type="a \"b\\\n"} 2`,
		`connected_registry_audit_writable 1`,
	} {
		if !strings.Contains(body, want+"\n") {
			t.Errorf("no line %s", want)
		}
	}
	families(t, body)
	if w.Code != http.StatusOK || strings.Contains(body, "SPLINTER") {
		t.Errorf("status %d:\n%s", w.Code, body)
	}
}

// families fails unless each of our metrics is one block: a line of HELP with text, a line of TYPE, then its values,
// as the text format asks.
func families(t *testing.T, body string) {
	t.Helper()
	seen, name, lines := map[string]bool{}, "", 0
	for line := range strings.Lines(body) {
		line = strings.TrimSuffix(line, "\n")
		if help, ok := strings.CutPrefix(line, "# HELP connected_registry_"); ok {
			var text string
			if name != "" && lines == 0 {
				t.Errorf("%s has no value", name)
			}
			name, text, _ = strings.Cut(help, " ")
			if seen[name] || text == "" {
				t.Errorf("%s is there twice or without a text", name)
			}
			seen[name], lines = true, 0
			continue
		}
		if kind, ok := strings.CutPrefix(line, "# TYPE connected_registry_"); ok {
			of, word, _ := strings.Cut(kind, " ")
			if of != name || lines != 0 || (word == "counter") != strings.HasSuffix(name, "_total") {
				t.Errorf("%s is not the TYPE of %s", line, name)
			}
			continue
		}
		if value, ok := strings.CutPrefix(line, "connected_registry_"); ok {
			lines++
			if !strings.HasPrefix(value, name) {
				t.Errorf("%s is among the values of %s", line, name)
			}
		}
	}
	if len(seen) < 15 || !strings.Contains(body, "\nprocess_resident_memory_bytes ") || !strings.Contains(body, "\ngo_goroutines ") {
		t.Errorf("only %d metrics of ours, or none of the process:\n%s", len(seen), body)
	}
}
