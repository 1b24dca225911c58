package transport

import (
	"context"
	"errors"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/go-retryablehttp"
)

// Retries are few and quick: who asked knows better when to come back than a transport does.
const (
	retryMax     = 1 // after the first attempt
	retryWaitMin = 100 * time.Millisecond
	retryWaitMax = 5 * time.Second // a server that asks for more is not asked again here

	// MaxRetryAfter bounds what a server can ask for with Retry-After.
	MaxRetryAfter = 15 * time.Minute
)

// RetryAfter reads the header: seconds or a date, between 0 and MaxRetryAfter; 0 when there is none. A date is taken
// against the server's own Date, since the clock of a device may be years off.
func RetryAfter(h http.Header) time.Duration {
	v := strings.TrimSpace(h.Get("Retry-After"))
	if v == "" {
		return 0
	}
	if strings.Trim(v, "0123456789") == "" {
		seconds, err := strconv.Atoi(v)
		if err != nil || seconds > int(MaxRetryAfter/time.Second) {
			return MaxRetryAfter
		}
		return time.Duration(seconds) * time.Second
	}
	until, err := http.ParseTime(v)
	now, noDate := http.ParseTime(h.Get("Date"))
	if err != nil || noDate != nil {
		return 0
	}
	return min(max(until.Sub(now), 0), MaxRetryAfter)
}

// retrier repeats what is idempotent and failed quickly.
type retrier struct {
	once  http.RoundTripper
	again retryablehttp.RoundTripper
}

func newRetrier(random func() float64, next http.RoundTripper) *retrier {
	c := retryablehttp.NewClient()
	c.Logger = nil // it would log addresses with what stands in their query
	c.RetryMax, c.RetryWaitMin, c.RetryWaitMax = retryMax, retryWaitMin, retryWaitMax
	c.CheckRetry = shouldRetry
	c.ErrorHandler = retryablehttp.PassthroughErrorHandler
	c.Backoff = func(least, most time.Duration, attempt int, resp *http.Response) time.Duration {
		return backoff(random, least, most, attempt, resp)
	}
	c.HTTPClient = &http.Client{
		Transport:     next,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }, // decided above
	}
	return &retrier{once: next, again: retryablehttp.RoundTripper{Client: c}}
}

// RoundTrip implements http.RoundTripper.
func (r *retrier) RoundTrip(req *http.Request) (*http.Response, error) {
	bodyless := req.Body == nil || req.Body == http.NoBody
	if bodyless && (req.Method == http.MethodGet || req.Method == http.MethodHead) {
		return r.again.RoundTrip(req)
	}
	return r.once.RoundTrip(req)
}

// shouldRetry takes another attempt after a connection that broke and after a gateway that stumbled, not after what
// took long, was refused, or was asked to wait for.
func shouldRetry(ctx context.Context, resp *http.Response, err error) (bool, error) {
	if ctx.Err() != nil {
		return false, nil
	}
	if err != nil {
		slow := errors.Is(err, ErrNoAnswer) || errors.Is(err, ErrTooSlow)
		var timeout interface{ Timeout() bool }
		slow = slow || (errors.As(err, &timeout) && timeout.Timeout())
		return !slow && !refused(err), nil
	}
	switch resp.StatusCode {
	case http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return RetryAfter(resp.Header) <= retryWaitMax, nil
	}
	return false, nil
}

// backoff is full jitter over an exponential time, and never before a Retry-After that shouldRetry let pass.
func backoff(random func() float64, least, most time.Duration, attempt int, resp *http.Response) time.Duration {
	d := time.Duration(random() * float64(min(least<<min(attempt+1, 16), most)))
	if resp != nil {
		d = max(d, RetryAfter(resp.Header))
	}
	return min(d, most)
}
