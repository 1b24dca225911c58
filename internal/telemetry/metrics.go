package telemetry

import (
	"log/slog"
	"net/http"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/connected-registry/connected-registry/internal/registry"
)

// namespace begins the name of every metric of ours.
const namespace = "connected_registry"

// MetricsOptions are what metrics are made of; the zero value works.
type MetricsOptions struct {
	Status func() registry.Status // asked at each scrape; nil: no metrics of the state
	Audit  *AuditLog              // nil: none
	Logger *slog.Logger
}

// Metrics counts what happens, in the form that Prometheus scrapes. Labels hold nothing that a client chose: neither
// names of repositories nor of tokens.
type Metrics struct {
	registry *prometheus.Registry
	requests *prometheus.CounterVec
	seconds  *prometheus.HistogramVec
	logins   *prometheus.CounterVec
	log      *slog.Logger
}

// NewMetrics returns metrics without a request yet.
func NewMetrics(o MetricsOptions) *Metrics {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	m := &Metrics{
		log:      o.Logger,
		registry: prometheus.NewRegistry(),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: namespace, Name: "http_requests_total", Help: "Requests of clients and of layers below, by part of the API, method and status.",
		}, []string{"api", "method", "code"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Namespace: namespace, Name: "http_request_duration_seconds", Help: "Time to answer, bodies included.",
			Buckets: []float64{.001, .005, .025, .1, .5, 2.5, 10, 60, 600},
		}, []string{"api"}),
		logins: prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: namespace, Name: "logins_total", Help: "Requests with credentials, by result.",
		}, []string{"result"}),
	}
	m.registry.MustRegister(m.requests, m.seconds, m.logins, collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), state{o.Status, o.Audit})
	return m
}

// Handler answers a scrape.
func (m *Metrics) Handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{
		ErrorLog: slog.NewLogLogger(m.log.Handler(), slog.LevelDebug), MaxRequestsInFlight: 4, Timeout: 10 * time.Second,
	})
}

// Request counts an answer. api is the part of the API, one of a few words of ours.
func (m *Metrics) Request(api, method string, code int, took time.Duration) {
	switch method {
	case http.MethodGet, http.MethodHead, http.MethodPut, http.MethodPost, http.MethodPatch, http.MethodDelete:
	default:
		method = "other" // a client may send any word
	}
	m.requests.WithLabelValues(api, method, strconv.Itoa(code)).Inc()
	m.seconds.WithLabelValues(api).Observe(took.Seconds())
}

// Login counts a request with credentials; result is one of registry's results.
func (m *Metrics) Login(result string) { m.logins.WithLabelValues(result).Inc() }

// state makes metrics of the status when it is asked.
type state struct {
	status func() registry.Status
	audit  *AuditLog
}

func gauge(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(namespace+"_"+name, help, labels, nil)
}

var (
	descInfo      = gauge("info", "Always 1; what this registry is.", "name", "version", "mode", "instance")
	descState     = gauge("connection_state", "1 for the state that the registry is in towards its parent.", "state")
	descActive    = gauge("active", "1 when the registry is activated at its parent.")
	descSynced    = gauge("last_successful_sync_timestamp_seconds", "When the last good sync iteration ended.")
	descBehind    = gauge("repositories_behind", "Repositories in scope that are not as at the parent.")
	descDetails   = gauge("status_details", "Things that are wrong now, by type.", "type")
	descUsed      = gauge("storage_used_bytes", "Bytes of content in the data volume.")
	descFree      = gauge("storage_free_bytes", "Bytes that are free on the data volume.")
	descObjects   = gauge("storage_objects", "What is in the data volume.", "kind")
	descTransfers = gauge("transfers", "Blobs on their way from the parent.")
	descReceived  = gauge("parent_received_bytes_total", "Bytes of answers of the parent.")
	descSent      = gauge("parent_sent_bytes_total", "Bytes of requests to the parent.")
	descAsked     = gauge("parent_requests_total", "Requests to the parent.")
	descOutbox    = gauge("outbox_entries", "Pushes that are not at the parent yet, by state.", "state")
	descOutboxAge = gauge("outbox_oldest_timestamp_seconds", "When the first push was acknowledged that is not at the parent yet.")
	descAuditLost = gauge("audit_lost_records_total", "Records of the audit log that a full disk lost and that the log does not tell of yet.")
	descAuditOK   = gauge("audit_writable", "1 when the audit log can be written.")
)

// Describe implements prometheus.Collector.
func (state) Describe(ch chan<- *prometheus.Desc) { ch <- descInfo }

// Collect implements prometheus.Collector.
func (s state) Collect(ch chan<- prometheus.Metric) {
	put := func(d *prometheus.Desc, kind prometheus.ValueType, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, kind, v, labels...)
	}
	if s.audit != nil {
		lost, err := s.audit.Trouble()
		put(descAuditLost, prometheus.CounterValue, float64(lost))
		put(descAuditOK, prometheus.GaugeValue, truth(err == nil))
	}
	if s.status == nil {
		return
	}
	st := s.status()
	put(descInfo, prometheus.GaugeValue, 1, st.Name, st.Version, string(st.Mode), st.InstanceID)
	for _, c := range []registry.ConnectionState{registry.Online, registry.Offline, registry.Syncing, registry.Unhealthy} {
		put(descState, prometheus.GaugeValue, truth(st.ConnectionState == c), string(c))
	}
	put(descActive, prometheus.GaugeValue, truth(st.Activation.Status == registry.Active))
	if t := st.Sync.LastSuccessfulSyncEndTime; !t.IsZero() {
		put(descSynced, prometheus.GaugeValue, float64(t.Unix()))
	}
	behind := 0
	for _, r := range st.Repositories {
		if len(r.Behind) > 0 {
			behind++
		}
	}
	put(descBehind, prometheus.GaugeValue, float64(behind))
	wrong := map[string]int{}
	for _, d := range st.StatusDetails {
		wrong[d.Type]++
	}
	for kind, n := range wrong {
		put(descDetails, prometheus.GaugeValue, float64(n), kind)
	}
	put(descUsed, prometheus.GaugeValue, float64(st.Storage.UsedBytes))
	put(descFree, prometheus.GaugeValue, float64(st.Storage.FreeBytes))
	for kind, n := range map[string]int{
		"repositories": st.Storage.Repositories, "tags": st.Storage.Tags, "manifests": st.Storage.Manifests, "blobs": st.Storage.Blobs,
	} {
		put(descObjects, prometheus.GaugeValue, float64(n), kind)
	}
	put(descTransfers, prometheus.GaugeValue, float64(len(st.Transfers)))
	put(descReceived, prometheus.CounterValue, float64(st.Traffic.BytesReceived))
	put(descSent, prometheus.CounterValue, float64(st.Traffic.BytesSent))
	put(descAsked, prometheus.CounterValue, float64(st.Traffic.Requests))
	if o := st.Outbox; o != nil {
		for kind, n := range map[string]int{"pending": o.Pending, "expired": o.Expired, "refused": o.Refused} {
			put(descOutbox, prometheus.GaugeValue, float64(n), kind)
		}
		if !o.Oldest.IsZero() {
			put(descOutboxAge, prometheus.GaugeValue, float64(o.Oldest.Unix()))
		}
	}
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
