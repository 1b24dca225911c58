package distribution

import (
	"context"
	"encoding/json"
	"errors"
	"math"
	"net/http"
	"strconv"
	"time"

	"github.com/connected-registry/connected-registry/internal/registry"
)

// errorBody is the JSON of an error (OCI distribution spec, "Error codes").
type errorBody struct {
	Errors []errorEntry `json:"errors"`
}

type errorEntry struct {
	Code    registry.Code `json:"code"`
	Message string        `json:"message"`
	Detail  any           `json:"detail,omitempty"`
}

// listed has codes that registries add to those of the specification and what a client that knows only those is told. It
// names all codes that an error 4xx of /v2/ may have (OCI distribution spec, "Error Codes"); the one that is not among
// them is ACR's, for what is locked.
var listed = map[registry.Code]registry.Code{
	registry.CodeTagInvalid:   registry.CodeManifestInvalid,
	registry.CodeRangeInvalid: registry.CodeBlobUploadInvalid,
	registry.CodePageInvalid:  registry.CodeUnsupported,
}

// writeError answers with the error. It is the only place that does, and nothing may have been written before.
func (s *server) writeError(w http.ResponseWriter, r *http.Request, err error) {
	e := asError(err)
	status := e.HTTPStatus()
	if status >= http.StatusInternalServerError {
		s.logger.Error("request failed", "method", r.Method, "path", r.URL.Path, "status", status, "error", err)
	} else {
		s.logger.Debug("request refused", "method", r.Method, "path", r.URL.Path, "status", status, "error", err)
	}
	h := w.Header()
	for _, key := range []string{"Etag", "Docker-Content-Digest", "Content-Length"} {
		h.Del(key) // they speak of content that is not sent
	}
	switch {
	case status != http.StatusUnauthorized:
		h.Del("Www-Authenticate")
	case h.Get("Www-Authenticate") == "":
		s.access.ChallengeFor(h, r, "", "")
	}
	if e.RetryAfter > 0 {
		h.Set("Retry-After", strconv.FormatInt(int64(math.Ceil(e.RetryAfter.Seconds())), 10))
	}
	if r.Method == http.MethodHead {
		h.Set("Content-Type", "application/json")
		w.WriteHeader(status)
		return
	}
	code := e.Code
	if c, ok := listed[code]; ok {
		code = c
	}
	body := errorBody{Errors: []errorEntry{{Code: code, Message: e.Message, Detail: e.Detail}}}
	if _, err := json.Marshal(e.Detail); err != nil {
		body.Errors[0].Detail = nil
	}
	_ = writeJSON(w, status, "application/json", body) // it was marshalled once
}

// asError makes an Error of any error; one that says that time or patience ended is no fault of this registry.
func asError(err error) *registry.Error {
	var e *registry.Error
	if !errors.As(err, &e) && (errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)) {
		return registry.ErrUnavailable.WithRetryAfter(time.Second).Wrap(err)
	}
	return registry.AsError(err)
}
