package registry

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
	"strconv"
	"time"
)

// Code is an error code of the OCI distribution specification, or one of the few that registries add to it.
type Code string

// Codes of the OCI distribution spec 1.1 ("Error codes"), then those in common use that it does not list.
const (
	CodeBlobUnknown         Code = "BLOB_UNKNOWN"
	CodeBlobUploadInvalid   Code = "BLOB_UPLOAD_INVALID"
	CodeBlobUploadUnknown   Code = "BLOB_UPLOAD_UNKNOWN"
	CodeDigestInvalid       Code = "DIGEST_INVALID"
	CodeManifestBlobUnknown Code = "MANIFEST_BLOB_UNKNOWN"
	CodeManifestInvalid     Code = "MANIFEST_INVALID"
	CodeManifestUnknown     Code = "MANIFEST_UNKNOWN"
	CodeNameInvalid         Code = "NAME_INVALID"
	CodeNameUnknown         Code = "NAME_UNKNOWN"
	CodeSizeInvalid         Code = "SIZE_INVALID"
	CodeUnauthorized        Code = "UNAUTHORIZED"
	CodeDenied              Code = "DENIED"
	CodeUnsupported         Code = "UNSUPPORTED"
	CodeTooManyRequests     Code = "TOOMANYREQUESTS"

	CodeTagInvalid   Code = "TAG_INVALID"                   // distribution, ACR
	CodeRangeInvalid Code = "RANGE_INVALID"                 // distribution: a chunk out of order
	CodePageInvalid  Code = "PAGINATION_NUMBER_INVALID"     // distribution
	CodeUnavailable  Code = "UNAVAILABLE"                   // distribution: 503, try again
	CodeDiskError    Code = "DiskError"                     // ACR connected registry: no space or no permission
	CodeInternal     Code = "UNKNOWN"                       // distribution: a fault of this registry
	CodeDisallowed   Code = "REGISTRY_DISALLOWED_OPERATION" // ACR: locked
	CodeTagUnknown   Code = "TAG_UNKNOWN"                   // ACR, in its own API
	CodeConflict     Code = "CONFLICT"                      // two layers that do not fit together
	CodePrecondition Code = "PRECONDITION"                  // Harbor: 412, what If-Match or If-None-Match asks for is not so
	CodeActivated    Code = "ALREADY_ACTIVATED"             // ACR: another instance of a connected registry is active
)

// status is the HTTP status that each code is answered with, unless an Error carries its own.
var status = map[Code]int{
	CodeBlobUnknown:         http.StatusNotFound,
	CodeBlobUploadInvalid:   http.StatusBadRequest,
	CodeBlobUploadUnknown:   http.StatusNotFound,
	CodeDigestInvalid:       http.StatusBadRequest,
	CodeManifestBlobUnknown: http.StatusBadRequest,
	CodeManifestInvalid:     http.StatusBadRequest,
	CodeManifestUnknown:     http.StatusNotFound,
	CodeNameInvalid:         http.StatusBadRequest,
	CodeNameUnknown:         http.StatusNotFound,
	CodeSizeInvalid:         http.StatusBadRequest,
	CodeUnauthorized:        http.StatusUnauthorized,
	CodeDenied:              http.StatusForbidden,
	CodeUnsupported:         http.StatusMethodNotAllowed,
	CodeTooManyRequests:     http.StatusTooManyRequests,
	CodeTagInvalid:          http.StatusBadRequest,
	CodeRangeInvalid:        http.StatusRequestedRangeNotSatisfiable,
	CodePageInvalid:         http.StatusBadRequest,
	CodeUnavailable:         http.StatusServiceUnavailable,
	CodeDiskError:           http.StatusInsufficientStorage,
	CodeInternal:            http.StatusInternalServerError,
	CodeConflict:            http.StatusConflict,
	CodePrecondition:        http.StatusPreconditionFailed,
	CodeActivated:           http.StatusConflict,
	CodeDisallowed:          http.StatusMethodNotAllowed,
	CodeTagUnknown:          http.StatusNotFound,
}

// Error is what a client is told: a code, a sentence that says what is wrong and what to do, and details.
// Two Errors are the same to errors.Is when their codes are equal.
type Error struct {
	Code       Code
	Message    string
	Detail     any           // marshalled as JSON into the error body; nil for none
	Status     int           // HTTP status; 0 takes the one of the code
	RetryAfter time.Duration // > 0 becomes a Retry-After header, rounded up to seconds
	Err        error         // the cause, for the log only: it may name files and hosts, so no client sees it
}

// The errors without a particular message, for errors.Is and as a start for WithMessage, WithDetail and Wrap.
var (
	ErrBlobUnknown         = &Error{Code: CodeBlobUnknown, Message: "blob unknown to registry"}
	ErrBlobUploadInvalid   = &Error{Code: CodeBlobUploadInvalid, Message: "blob upload invalid"}
	ErrBlobUploadUnknown   = &Error{Code: CodeBlobUploadUnknown, Message: "blob upload unknown to registry"}
	ErrDigestInvalid       = &Error{Code: CodeDigestInvalid, Message: "provided digest did not match uploaded content"}
	ErrManifestBlobUnknown = &Error{Code: CodeManifestBlobUnknown, Message: "manifest references a manifest or blob unknown to registry"}
	ErrManifestInvalid     = &Error{Code: CodeManifestInvalid, Message: "manifest invalid"}
	ErrManifestUnknown     = &Error{Code: CodeManifestUnknown, Message: "manifest unknown"}
	ErrNameInvalid         = &Error{Code: CodeNameInvalid, Message: "invalid repository name"}
	ErrNameUnknown         = &Error{Code: CodeNameUnknown, Message: "repository name not known to registry"}
	ErrSizeInvalid         = &Error{Code: CodeSizeInvalid, Message: "provided length did not match content length"}
	ErrUnauthorized        = &Error{Code: CodeUnauthorized, Message: "authentication required"}
	ErrDenied              = &Error{Code: CodeDenied, Message: "This operation is not allowed on this registry."}
	ErrUnsupported         = &Error{Code: CodeUnsupported, Message: "the operation is unsupported"}
	ErrTooManyRequests     = &Error{Code: CodeTooManyRequests, Message: "too many requests"}
	ErrTagInvalid          = &Error{Code: CodeTagInvalid, Message: "invalid tag name"}
	ErrRangeInvalid        = &Error{Code: CodeRangeInvalid, Message: "invalid content range"}
	ErrPageInvalid         = &Error{Code: CodePageInvalid, Message: "invalid number of results requested"}
	ErrUnavailable         = &Error{Code: CodeUnavailable, Message: "service unavailable"}
	ErrDisk                = &Error{Code: CodeDiskError, Message: "No space left on device."}
	ErrInternal            = &Error{Code: CodeInternal, Message: "internal error"}
	ErrConflict            = &Error{Code: CodeConflict, Message: "conflict"}
	ErrPrecondition        = &Error{Code: CodePrecondition, Message: "precondition failed"}
	ErrLocked              = &Error{Code: CodeDisallowed, Message: "The operation is disallowed on this registry, repository or image. " +
		"View troubleshooting steps at https://aka.ms/acr/faq/#why-does-my-pull-or-push-request-fail-with-disallowed-operation"}
	ErrActivated = &Error{Code: CodeActivated, Message: "Failed to activate the connected registry as it is already activated by another instance. " +
		"Only one instance is supported at any time."}
	ErrTagUnknown = &Error{Code: CodeTagUnknown, Message: "the specified tag does not exist"}
)

// Error returns code, message and cause: a line for the log, not for the client.
func (e *Error) Error() string {
	if e.Err != nil {
		return fmt.Sprintf("%s: %s: %v", e.Code, e.Message, e.Err)
	}
	return fmt.Sprintf("%s: %s", e.Code, e.Message)
}

// ErrNotGranted is the cause of an UNAUTHORIZED whose credential the parent's token server takes: it makes a token, and
// that does not carry the right to do this.
var ErrNotGranted = errors.New("the credential is good and does not carry the right")

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Is reports whether target is an Error of the same code.
func (e *Error) Is(target error) bool {
	var t *Error
	return errors.As(target, &t) && t.Code == e.Code
}

// HTTPStatus returns the status to answer with.
func (e *Error) HTTPStatus() int {
	if e.Status != 0 {
		return e.Status
	}
	if s, ok := status[e.Code]; ok {
		return s
	}
	return http.StatusInternalServerError
}

// WithMessage returns a copy of e with another message. The message is for the client: it names the field, the
// value and what to do, never a file of this machine or a credential.
func (e *Error) WithMessage(format string, args ...any) *Error {
	c := *e
	c.Message = fmt.Sprintf(format, args...)
	return &c
}

// WithDetail returns a copy of e with the given detail.
func (e *Error) WithDetail(detail any) *Error {
	c := *e
	c.Detail = detail
	return &c
}

// WithRetryAfter returns a copy of e that tells the client when to try again.
func (e *Error) WithRetryAfter(d time.Duration) *Error {
	c := *e
	c.RetryAfter = d
	return &c
}

// Wrap returns a copy of e with err as its cause.
func (e *Error) Wrap(err error) *Error {
	c := *e
	c.Err = err
	return &c
}

// AsError returns err as an Error. An error of any other kind becomes UNKNOWN with err as its cause, so that a
// client never sees the text of an error that was not written for it.
func AsError(err error) *Error {
	var e *Error
	if errors.As(err, &e) {
		return e
	}
	return ErrInternal.Wrap(err)
}

// Body returns the JSON that the client gets (OCI distribution spec, "Error codes").
func (e *Error) Body() []byte {
	type entry struct {
		Code    Code   `json:"code"`
		Message string `json:"message"`
		Detail  any    `json:"detail,omitempty"`
	}
	encode := func(detail any) ([]byte, error) {
		return json.Marshal(map[string][]entry{"errors": {{e.Code, e.Message, detail}}})
	}
	body, err := encode(e.Detail)
	if err != nil {
		body, _ = encode(nil) // a detail that JSON cannot say is no reason to say nothing
	}
	return append(body, '\n')
}

// WriteHTTP answers with e: status, Retry-After, body.
func (e *Error) WriteHTTP(w http.ResponseWriter) {
	h := w.Header()
	h.Set("Content-Type", "application/json; charset=utf-8")
	if e.RetryAfter > 0 {
		h.Set("Retry-After", strconv.Itoa(int(math.Ceil(e.RetryAfter.Seconds()))))
	}
	body := e.Body()
	h.Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(e.HTTPStatus())
	_, _ = w.Write(body) // the client may be gone; there is nobody else to tell
}
