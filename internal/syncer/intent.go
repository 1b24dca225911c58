package syncer

import (
	"context"
	"sync"
)

// intentDocument is there from when an iteration is asked for until whoever asked was answered. A process that is killed
// in between leaves it to the next one, which carries it out.
const intentDocument = "sync/asked"

// intent is the durable part of what was asked for.
type intent struct {
	mu      sync.Mutex // held while the document and the triggers change together
	resumed bool       // the process before was asked; only Run uses it
}

// keepIntent makes durable that an iteration was asked for. Where the disk does not take it, it is carried out without.
func (s *Syncer) keepIntent(ctx context.Context) {
	if err := s.store.PutDocument(ctx, intentDocument, []byte("{}")); err != nil && ctx.Err() == nil {
		s.o.Logger.Warn("that an iteration was asked for cannot be kept; a restart would forget it", "error", err)
	}
}

// recallIntent finds out whether the process before left an iteration that was asked for.
func (s *Syncer) recallIntent(ctx context.Context) {
	doc, err := s.store.Document(ctx, intentDocument)
	if s.intent.resumed = err == nil && len(doc) > 0; s.intent.resumed {
		s.o.Logger.Info("an iteration that was asked for before the restart goes on")
	}
}

// fulfil drops the intent after an iteration, unless somebody asked since it began. complete is whether all came that
// could: what the process before was asked for is nobody's to be told of, so it is tried until then.
func (s *Syncer) fulfil(ctx context.Context, answered, complete bool) {
	if ctx.Err() != nil || s.intent.resumed && !complete || !s.intent.resumed && !answered {
		return
	}
	s.intent.mu.Lock()
	defer s.intent.mu.Unlock()
	s.intent.resumed = false
	if pending, _ := s.triggered(); pending {
		return // by somebody else
	}
	if err := s.store.PutDocument(ctx, intentDocument, nil); err != nil && ctx.Err() == nil {
		s.o.Logger.Warn("an iteration that was asked for cannot be marked as done; a restart would repeat it", "error", err)
	}
}
