package module

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/internal/twin"
)

const (
	// reportEvery is how often the status is looked at for reported properties; only what changed is sent.
	reportEvery = 5 * time.Second
	// lastGood is the document that was last in force without an error; a start without its source uses it.
	lastGood = "config/last-good"
)

// newEdgeHub makes the module twin's source, or nil where there is no IoT Edge or a configuration file takes its place.
func (m *Module) newEdgeHub(last twin.Record) *twin.EdgeHub {
	if !m.hasTwin() {
		return nil
	}
	m.reporter = twin.NewReporter(func(ctx context.Context, p map[string]any) error { return m.hub.Report(ctx, p) }, twin.ReporterOptions{Log: m.log})
	return twin.NewEdgeHub(m.edge, m.work, twin.EdgeHubOptions{
		Last: last, Methods: m.directMethod, Connected: m.reporter.Resend,
		Product: "connected-registry/" + m.o.Version, Clock: m.clock, Dial: m.o.DialEdgeHub, Log: m.log,
	})
}

// hasTwin reports whether the configuration is a module twin's.
func (m *Module) hasTwin() bool { return m.work != nil && m.o.ConfigFile == "" && m.o.Source == nil }

// watch follows the source of the configuration: the file that was named, else the module twin, else nothing.
func (m *Module) watch(ctx context.Context) {
	var source twin.Source
	switch {
	case m.o.Source != nil:
		source = m.o.Source
	case m.o.ConfigFile != "":
		source = twin.NewFile(m.o.ConfigFile, twin.FileOptions{Log: m.log})
	case m.hub != nil:
		source = m.hub
	default:
		return
	}
	for doc := range source.Watch(ctx) {
		m.take(ctx, source.Name(), doc)
	}
}

// report keeps the reported properties as the status is.
func (m *Module) report(ctx context.Context) {
	if m.hub == nil {
		return
	}
	done := make(chan struct{})
	go func() { defer close(done); m.reporter.Run(ctx) }()
	ticker := time.NewTicker(reportEvery)
	defer ticker.Stop()
	for {
		m.mu.Lock()
		acks := m.acks
		m.mu.Unlock()
		m.reporter.Set(twin.Reported(m.Status(ctx), acks))
		select {
		case <-ctx.Done():
			<-done
			return
		case <-ticker.C:
		}
	}
}

// directMethod answers a direct method of IoT Hub: 200 and the answer, or the status and body of the error.
func (m *Module) directMethod(ctx context.Context, name string, payload []byte) (int, []byte) {
	out, err := m.Invoke(registry.WithOrigin(ctx, "IoT Hub"), name, payload)
	if err != nil {
		e := registry.AsError(err)
		return e.HTTPStatus(), e.Body()
	}
	body, err := json.Marshal(out)
	if err != nil {
		e := registry.AsError(err)
		return e.HTTPStatus(), e.Body()
	}
	return 200, body
}

// keep stores a document that is in force without an error.
func (m *Module) keep(ctx context.Context, doc twin.Document) {
	body, err := twin.EncodeRecord(twin.RecordOf(doc))
	if err == nil {
		err = m.store.PutDocument(context.WithoutCancel(ctx), lastGood, body)
	}
	if err != nil {
		m.log.Error("the configuration is in force but could not be kept for the next start", "error", err)
	}
}

// lastRecord returns what keep stored.
func (m *Module) lastRecord(ctx context.Context) twin.Record {
	body, err := m.store.Document(ctx, lastGood)
	var record twin.Record
	if err == nil && body != nil {
		record, err = twin.DecodeRecord(body)
	}
	if err != nil {
		m.log.Error("the last good configuration cannot be read; starting with defaults", "error", err)
	}
	return record
}

// unavailable notes that a source has no document to use; what was in force stays.
func (m *Module) unavailable(from string, err error) {
	m.log.Error("the configuration cannot be used; what was in force stays", "source", from, "error", err)
	code := "ConfigurationUnavailable"
	if errors.Is(err, twin.ErrStale) {
		code = "ConfigurationStale"
	}
	m.wrong("source", registry.StatusDetail{
		Type: "Configuration", Code: code,
		Description: "the " + from + " cannot be used (" + err.Error() + "); the last good configuration stays in force",
	})
}

// proxyTrouble is the entry of the status for repositories in scope whose path the stock API proxy of a layer with a
// registry takes for a path of edgeHub: it sends every path with twins/ in it there, and clients get status 500.
func proxyTrouble(scope registry.Scope, at time.Time) []registry.StatusDetail {
	var list []registry.StatusDetail
	for _, rule := range scope {
		if !strings.Contains(strings.TrimSuffix(rule.Repository, "*")+"/", "twins/") {
			continue
		}
		list = append(list, registry.StatusDetail{
			Type: "Configuration", Code: "RepositoryBehindProxy", Timestamp: at,
			Description: fmt.Sprintf("repositories: the stock API proxy sends paths with twins/ to edgeHub, so %s cannot be pulled through it: "+
				"give the repository another name, or pull it without the proxy", rule.Repository),
		})
	}
	return list
}
