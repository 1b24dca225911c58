package telemetry

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/VictoriaMetrics/metrics"

	"github.com/connected-registry/connected-registry/internal/registry"
)

// namespace begins the name of every metric of ours.
const namespace = "connected_registry"

// buckets are the upper limits of http_request_duration_seconds, in seconds.
var buckets = [...]float64{.001, .005, .025, .1, .5, 2.5, 10, 60, 600}

// MetricsOptions are what metrics are made of; the zero value works.
type MetricsOptions struct {
	Status func() registry.Status // asked at each scrape; nil: no metrics of the state
	Audit  *AuditLog              // nil: none
	Logger *slog.Logger
}

// Metrics counts what happens, in the form that Prometheus scrapes. Labels hold nothing that a client chose: neither
// names of repositories nor of tokens.
type Metrics struct {
	requests, logins counted
	mu               sync.RWMutex
	answers          map[answer]*metrics.Counter // of requests: a line is written once; under mu
	seconds          durations
	status           func() registry.Status
	audit            *AuditLog
	log              *slog.Logger
}

// family is one metric, with as many lines as its labels have values.
type family struct {
	name, kind, help string
	labels           []string
}

// counted is a family that is counted here, not asked of somebody else. It has a set of its own: its lines stay
// together below its HELP and TYPE, which the library would write for the whole process or not at all.
type counted struct {
	family
	set *metrics.Set
}

var (
	requests = family{"http_requests_total", "counter", "Requests of clients and of layers below, by part of the API, method and status.", []string{"api", "code", "method"}}
	seconds  = family{"http_request_duration_seconds", "histogram", "Time to answer, bodies included.", []string{"api"}}
	logins   = family{"logins_total", "counter", "Requests with credentials, by result.", []string{"result"}}
)

// NewMetrics returns metrics without a request yet.
func NewMetrics(o MetricsOptions) *Metrics {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return &Metrics{
		requests: counted{requests, metrics.NewSet()}, logins: counted{logins, metrics.NewSet()},
		answers: map[answer]*metrics.Counter{}, status: o.Status, audit: o.Audit, log: o.Logger,
	}
}

// Handler answers a scrape, in the text format of Prometheus, version 0.0.4.
func (m *Metrics) Handler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		var body bytes.Buffer
		m.write(&body)
		w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
		if _, err := w.Write(body.Bytes()); err != nil {
			m.log.Debug("a scrape was not taken", "error", err)
		}
	})
}

func (m *Metrics) write(w *bytes.Buffer) {
	for _, c := range []counted{m.requests, m.logins} {
		c.head(w)
		c.set.WritePrometheus(w)
	}
	m.seconds.write(w)
	m.writeState(w)
	metrics.WriteProcessMetrics(w)
	metrics.WriteFDMetrics(w)
}

// answer is what an answer is counted under.
type answer struct {
	api, method string
	code        int
}

// Request counts an answer. api is the part of the API, one of a few words of ours.
func (m *Metrics) Request(api, method string, code int, took time.Duration) {
	switch method {
	case http.MethodGet, http.MethodHead, http.MethodPut, http.MethodPost, http.MethodPatch, http.MethodDelete:
	default:
		method = "other" // a client may send any word
	}
	m.answered(answer{api, method, code}).Inc()
	m.seconds.observe(api, took.Seconds())
}

func (m *Metrics) answered(a answer) *metrics.Counter {
	m.mu.RLock()
	c := m.answers[a]
	m.mu.RUnlock()
	if c != nil {
		return c
	}
	c = m.requests.set.GetOrCreateCounter(m.requests.line(a.api, strconv.Itoa(a.code), a.method))
	m.mu.Lock()
	defer m.mu.Unlock()
	m.answers[a] = c
	return c
}

// Login counts a request with credentials; result is one of registry's results.
func (m *Metrics) Login(result string) {
	m.logins.set.GetOrCreateCounter(m.logins.line(result)).Inc()
}

// durations is a histogram with the label api. The library's own has buckets of a form that Prometheus does not read.
type durations struct {
	mu    sync.Mutex
	byAPI map[string]*duration
}

// duration has the observations up to each limit and above the limit before; the last are above all limits.
type duration struct {
	observed [len(buckets) + 1]uint64
	sum      float64 // seconds
}

func (d *durations) observe(api string, took float64) {
	i, _ := slices.BinarySearch(buckets[:], took) // a limit belongs to its bucket
	d.mu.Lock()
	defer d.mu.Unlock()
	of := d.byAPI[api]
	if of == nil {
		if d.byAPI == nil {
			d.byAPI = map[string]*duration{}
		}
		of = &duration{}
		d.byAPI[api] = of
	}
	of.observed[i]++
	of.sum += took
}

// write writes the buckets with what is below them too, as the format wants.
func (d *durations) write(w io.Writer) {
	d.mu.Lock()
	defer d.mu.Unlock()
	seconds.head(w)
	bucket, sum, count := seconds.with("_bucket", "api", "le"), seconds.with("_sum", "api"), seconds.with("_count", "api")
	for _, api := range slices.Sorted(maps.Keys(d.byAPI)) {
		of, total := d.byAPI[api], uint64(0)
		for i, n := range of.observed {
			limit := "+Inf"
			if i < len(buckets) {
				limit = strconv.FormatFloat(buckets[i], 'g', -1, 64)
			}
			total += n
			metrics.WriteCounterUint64(w, bucket.line(api, limit), total)
		}
		metrics.WriteCounterFloat64(w, sum.line(api), of.sum)
		metrics.WriteCounterUint64(w, count.line(api), total)
	}
}

// with is a part of a histogram.
func (f family) with(suffix string, labels ...string) family {
	f.name += suffix
	f.labels = labels
	return f
}

// maxReason bounds the text of a label, in bytes.
const maxReason = 200

// escape is for the value of a label.
var escape = strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`)

// line is the name of the family with the values of its labels.
func (f family) line(values ...string) string {
	var b strings.Builder
	b.WriteString(namespace + "_" + f.name)
	between := byte('{')
	for i, v := range values {
		b.WriteByte(between)
		b.WriteString(f.labels[i] + `="` + escape.Replace(v) + `"`)
		between = ','
	}
	if len(values) > 0 {
		b.WriteByte('}')
	}
	return b.String()
}

// head says what the lines are that follow.
func (f family) head(w io.Writer) {
	fmt.Fprintf(w, "# HELP %[1]s_%[2]s %[3]s\n# TYPE %[1]s_%[2]s %[4]s\n", namespace, f.name, f.help, f.kind)
}

// value writes a family of a single line.
func (f family) value(w io.Writer, v float64, labels ...string) {
	f.head(w)
	metrics.WriteGaugeFloat64(w, f.line(labels...), v)
}

// values writes a family with one label, by its value.
func values[K ~string](w io.Writer, f family, byLabel map[K]float64) {
	if len(byLabel) == 0 {
		return
	}
	f.head(w)
	for _, label := range slices.Sorted(maps.Keys(byLabel)) {
		metrics.WriteGaugeFloat64(w, f.line(string(label)), byLabel[label])
	}
}

func gauge(name, help string, labels ...string) family { return family{name, "gauge", help, labels} }

func counter(name, help string) family { return family{name, "counter", help, nil} }

var (
	theInfo      = gauge("info", "Always 1; what this registry is.", "instance", "mode", "name", "version")
	theState     = gauge("connection_state", "1 for the state that the registry is in towards its parent.", "state")
	theActive    = gauge("active", "1 when the registry is activated at its parent.")
	theSynced    = gauge("last_successful_sync_timestamp_seconds", "When the last good sync iteration ended.")
	theBehind    = gauge("repositories_behind", "Repositories in scope that are not as at the parent.")
	theDetails   = gauge("status_details", "Things that are wrong now, by type.", "type")
	theUsed      = gauge("storage_used_bytes", "Bytes of content in the data volume.")
	theFree      = gauge("storage_free_bytes", "Bytes that are free on the data volume.")
	theObjects   = gauge("storage_objects", "What is in the data volume.", "kind")
	theTransfers = gauge("transfers", "Blobs on their way from the parent.")
	theReceived  = counter("parent_received_bytes_total", "Bytes of answers of the parent.")
	theSent      = counter("parent_sent_bytes_total", "Bytes of requests to the parent.")
	theAsked     = counter("parent_requests_total", "Requests to the parent.")
	theOutbox    = gauge("outbox_entries", "Pushes that are not at the parent yet, by state.", "state")
	theOutboxLen = gauge("outbox_bytes", "Content of pushes that are not at the parent yet, each blob once; the parent may have some of it.")
	theOutboxWhy = gauge("outbox_last_failure", "1 with why the last change could not be delivered; nothing after one that could.", "held", "reason")
	theOutboxAge = gauge("outbox_oldest_timestamp_seconds", "When the first push was acknowledged that is not at the parent yet.")
	theAuditLost = counter("audit_lost_records_total", "Records of the audit log that a full disk lost and that the log does not tell of yet.")
	theAuditLast = counter("audit_records_total", "Number of the last record of the audit log.")
	theAuditSync = counter("audit_synced_records_total", "Number of the last record of the audit log that is on the disk for good.")
	theAuditOK   = gauge("audit_writable", "1 when the audit log can be written.")
)

// writeState makes metrics of the status when it is asked.
func (m *Metrics) writeState(w io.Writer) {
	if m.audit != nil {
		lost, err := m.audit.Trouble()
		theAuditLost.value(w, float64(lost))
		last, synced := m.audit.Reached()
		theAuditLast.value(w, float64(last))
		theAuditSync.value(w, float64(synced))
		theAuditOK.value(w, truth(err == nil))
	}
	if m.status == nil {
		return
	}
	st := m.status()
	theInfo.value(w, 1, st.InstanceID, string(st.Mode), st.Name, st.Version)
	states := map[registry.ConnectionState]float64{}
	for _, c := range []registry.ConnectionState{registry.Online, registry.Offline, registry.Syncing, registry.Unhealthy} {
		states[c] = truth(st.ConnectionState == c)
	}
	values(w, theState, states)
	theActive.value(w, truth(st.Activation.Status == registry.Active))
	if t := st.Sync.LastSuccessfulSyncEndTime; !t.IsZero() {
		theSynced.value(w, float64(t.Unix()))
	}
	behind := 0
	for _, r := range st.Repositories {
		if len(r.Behind) > 0 {
			behind++
		}
	}
	theBehind.value(w, float64(behind))
	wrong := map[string]float64{}
	for _, d := range st.StatusDetails {
		wrong[d.Type]++
	}
	values(w, theDetails, wrong)
	theUsed.value(w, float64(st.Storage.UsedBytes))
	theFree.value(w, float64(st.Storage.FreeBytes))
	values(w, theObjects, map[string]float64{
		"repositories": float64(st.Storage.Repositories), "tags": float64(st.Storage.Tags),
		"manifests": float64(st.Storage.Manifests), "blobs": float64(st.Storage.Blobs),
	})
	theTransfers.value(w, float64(len(st.Transfers)))
	theReceived.value(w, float64(st.Traffic.BytesReceived))
	theSent.value(w, float64(st.Traffic.BytesSent))
	theAsked.value(w, float64(st.Traffic.Requests))
	if o := st.Outbox; o != nil {
		values(w, theOutbox, map[string]float64{"pending": float64(o.Pending), "expired": float64(o.Expired), "refused": float64(o.Refused)})
		theOutboxLen.value(w, float64(o.Bytes))
		if o.Error != "" {
			theOutboxWhy.value(w, 1, strconv.FormatBool(o.Held), strings.ToValidUTF8(o.Error[:min(len(o.Error), maxReason)], ""))
		}
		if !o.Oldest.IsZero() {
			theOutboxAge.value(w, float64(o.Oldest.Unix()))
		}
	}
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
