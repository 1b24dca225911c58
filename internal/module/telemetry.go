package module

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"time"

	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/internal/twin"
)

const (
	// auditDir is where the audit log is in the data volume.
	auditDir = "audit"
	// enabled is the value of logging.auditLogStatus that switches it on.
	enabled = "Enabled"
	// operator is who commands and direct methods act for.
	operator = "operator"
)

// reads are the methods that change nothing, and so are not in the audit log.
var reads = map[string]bool{"getStatus": true, "listRepositories": true, "listClientTokens": true, "list": true, "getReadiness": true, "outboxList": true}

// startAudit continues the log of the process before.
func (m *Module) startAudit(ctx context.Context, on bool) {
	if err := m.audit.Open(filepath.Join(m.dataDir, auditDir)); err != nil {
		m.log.Error("the audit log cannot be read; it goes on when it can", "error", err)
	}
	m.audit.Enable(ctx, on)
	m.audit.Audit(ctx, registry.AuditRecord{
		Category: registry.AuditAdministration, Operation: "start", Principal: operator, Result: registry.AuditSuccess, Detail: m.o.Version,
	})
}

// auditConfiguration records a document: where it came from, what it hashes to and how much of it is in force.
func (m *Module) auditConfiguration(ctx context.Context, from string, doc twin.Document, errs []registry.FieldError) {
	r := registry.AuditRecord{Category: registry.AuditConfiguration, Operation: "apply", Principal: operator, From: from, Result: registry.AuditSuccess}
	r.Detail = fmt.Sprintf("document sha256:%x", sha256.Sum256(doc.Raw))
	if len(errs) > 0 {
		r.Result = registry.AuditFailed
		r.Detail += fmt.Sprintf(", %d fields not in force, the first is %s", len(errs), errs[0].Path)
	}
	m.audit.Audit(ctx, r)
}

// auditMethod records what the operator asked for.
func (m *Module) auditMethod(ctx context.Context, name string, err error) {
	if !reads[name] {
		m.audit.Audit(ctx, registry.AuditRecord{Category: registry.AuditAdministration, Operation: name, Principal: operator}.End(err))
	}
}

// auditTrouble is what is wrong with the log now.
func (m *Module) auditTrouble() []registry.StatusDetail {
	lost, err := m.audit.Trouble()
	if err == nil {
		return nil
	}
	return []registry.StatusDetail{{
		Type: "Disk", Code: string(registry.CodeDiskError), Timestamp: m.clock.Now(),
		Description: fmt.Sprintf("the audit log cannot be written, %d records are lost so far: %v", lost, err),
	}}
}

// controlOrigin says who is on the other end of a connection to the control socket.
func controlOrigin(ctx context.Context, c net.Conn) context.Context {
	return registry.WithOrigin(ctx, "control socket"+peer(c))
}

// metered counts the answers of a part of the API.
func (m *Module) metered(api string, h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		began := m.uptime()
		answer := &answered{ResponseWriter: w}
		defer func() { m.metrics.Request(api, r.Method, answer.status(), m.uptime()-began) }()
		h.ServeHTTP(answer, r)
	})
}

// answered remembers the status of an answer. It keeps the ways past it: sendfile, and the deadlines of the connection.
type answered struct {
	http.ResponseWriter
	code int
}

func (a *answered) WriteHeader(code int) {
	if a.code == 0 && code >= http.StatusOK {
		a.code = code
	}
	a.ResponseWriter.WriteHeader(code)
}

// ReadFrom lets the connection use sendfile.
func (a *answered) ReadFrom(r io.Reader) (int64, error) {
	if rf, ok := a.ResponseWriter.(io.ReaderFrom); ok {
		return rf.ReadFrom(r)
	}
	return io.Copy(struct{ io.Writer }{a.ResponseWriter}, r)
}

// Unwrap is for http.ResponseController.
func (a *answered) Unwrap() http.ResponseWriter { return a.ResponseWriter }

func (a *answered) status() int {
	if a.code == 0 {
		return http.StatusOK
	}
	return a.code
}

// scrapeStatus is the status for a scrape.
func (m *Module) scrapeStatus(ctx context.Context) registry.Status {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	return m.Status(ctx)
}
