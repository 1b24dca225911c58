package twin

import (
	"context"
	"errors"
	"sync/atomic"
	"time"
)

var (
	errRenew = errors.New("edgeHub: the token is to be renewed")
	errEnded = errors.New("edgeHub: the connection has ended")
	errMute  = errors.New("edgeHub: no answer; connecting anew")
)

// taker decides about twins and posts documents. It lives from link to link.
type taker struct {
	last   Record
	slot   chan<- Document
	posted bool // something was
	before Document
}

// post hands a document to whoever watches. It does not wait for them: newest takes it at once.
func (t *taker) post(d Document) {
	if t.posted && same(d, t.before) {
		return
	}
	t.posted, t.before = true, d
	t.slot <- d
}

// failed posts why there is no twin, once, unless there was one.
func (t *taker) failed(err error) {
	if !t.posted {
		t.post(Document{Err: err})
	}
}

// take posts a twin, or why it is not taken.
func (t *taker) take(r Record) error {
	if err := Accept(t.last, r); err != nil {
		t.post(Document{Err: err, Version: r.Version, Generation: r.Generation})
		return err
	}
	t.last = r
	t.post(Document{Raw: r.Raw, Version: r.Version, Generation: r.Generation})
	return nil
}

// session is the use of one link.
type session struct {
	hub    *EdgeHub
	taker  *taker
	link   link
	hints  chan struct{}
	hinted atomic.Int64 // the highest version that a patch on this link had
	proven bool         // the twin was asked for and an answer came
	told   bool         // Connected knows the reported properties
	pause  time.Duration
}

// hint is called for each patch, by the link's goroutines.
func (s *session) hint(version int64) {
	for old := s.hinted.Load(); version > old && !s.hinted.CompareAndSwap(old, version); old = s.hinted.Load() {
	}
	select {
	case s.hints <- struct{}{}:
	default:
	}
}

// serve uses the link until it ends, answers no more, or its token is to be renewed. The error says which.
func (s *session) serve(ctx context.Context) error {
	life := s.hub.o.TokenLife
	renew := time.NewTimer(time.Duration(tokenRenew * float64(life)))
	defer renew.Stop()
	latest := time.NewTimer(time.Duration(tokenLatest * float64(life)))
	defer latest.Stop()
	refresh := time.NewTimer(0)
	defer refresh.Stop()
	s.pause = refreshFloor
	settling := false
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-s.link.lost():
			return errEnded
		case <-latest.C:
			return errRenew
		case <-renew.C:
			if s.hub.isQuiet() {
				return errRenew
			}
			renew.Reset(quiet)
		case <-s.hints:
			if !settling { // not later with each patch: a stream of them would put it off for ever
				refresh.Reset(refreshSettle)
				settling = true
			}
		case <-refresh.C:
			settling = false
			next, err := s.refresh(ctx)
			if err != nil {
				return err
			}
			refresh.Reset(next)
		}
	}
}

// refresh asks for the twin and returns when to ask again. An error ends the link.
func (s *session) refresh(ctx context.Context) (time.Duration, error) {
	hinted := s.hinted.Load()
	body, err := s.get(ctx)
	var answer *HubError
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return 0, errMute
	case errors.As(err, &answer):
		s.prove(nil)
		s.taker.failed(err)
		return s.later(), nil
	case err != nil:
		return 0, err
	}
	record, reported, err := ParseTwin(body, s.hub.edge.Generation)
	if err != nil {
		s.prove(nil)
		s.taker.post(Document{Err: err})
		return s.later(), nil
	}
	if reported == nil {
		reported = map[string]any{}
	}
	s.prove(reported)
	if err := s.taker.take(record); err != nil {
		s.hub.o.Log.Warn("edgeHub: the twin is not taken; what was in force stays", "reason", err)
		return s.later(), nil
	}
	if record.Version < hinted { // edgeHub told of a newer one
		return s.later(), nil
	}
	s.pause = refreshFloor
	return s.hub.o.RefreshEvery, nil
}

// get asks for the twin, a second time when the answer got lost.
func (s *session) get(ctx context.Context) ([]byte, error) {
	for try := 1; ; try++ {
		bounded, cancel := context.WithTimeout(ctx, s.hub.o.AnswerTimeout)
		body, err := s.link.get(bounded)
		cancel()
		if err == nil || !errors.Is(err, context.DeadlineExceeded) || try == 2 {
			return body, err
		}
		s.hub.o.Log.Debug("edgeHub: no answer; asking again", "after", s.hub.o.AnswerTimeout)
	}
}

// prove puts the link in use: it works both ways.
func (s *session) prove(reported map[string]any) {
	if !s.proven {
		s.hub.set(s.link, nil)
		s.hub.o.Log.Info("edgeHub: connected", "gateway", s.hub.edge.GatewayHostname)
	}
	if s.hub.o.Connected != nil && (!s.proven || !s.told && reported != nil) {
		s.hub.o.Connected(reported)
	}
	s.proven = true
	s.told = s.told || reported != nil
}

// later is when to ask again for what was not good, with growing pauses.
func (s *session) later() time.Duration {
	d := s.pause
	s.pause = min(2*s.pause, refreshCap)
	return d
}
