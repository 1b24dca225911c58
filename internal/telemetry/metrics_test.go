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
				Sync:         registry.SyncStatus{LastSuccessfulSyncEndTime: time.Unix(1_800_000_000, 0)},
				Storage:      registry.StorageStatus{Blobs: 7},
				Outbox:       &registry.OutboxStatus{Pending: 3, Oldest: time.Unix(1_700_000_000, 0)},
				Repositories: []registry.RepositoryState{{Repository: "a"}, {Repository: "b", Behind: []registry.TagState{{Tag: "1"}}}},
			}
		},
	})
	m.Request("v2", http.MethodGet, 200, 3*time.Millisecond)
	m.Request("v2", "SPLINTER", 405, time.Millisecond)
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
		`connected_registry_http_requests_total{api="v2",code="200",method="GET"} 1`,
		`connected_registry_http_requests_total{api="v2",code="405",method="other"} 1`,
		`connected_registry_logins_total{result="denied"} 1`,
		`connected_registry_audit_writable 1`,
	} {
		if !strings.Contains(body, want+"\n") {
			t.Errorf("no line %s", want)
		}
	}
	if w.Code != http.StatusOK || strings.Contains(body, "SPLINTER") {
		t.Errorf("status %d:\n%s", w.Code, body)
	}
}
