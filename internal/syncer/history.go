package syncer

import (
	"context"
	"encoding/json"
	"maps"
	"slices"
	"time"

	"github.com/connected-registry/connected-registry/internal/registry"
)

const (
	// historyDocument holds the last iterations, and when the last one of the schedule was done.
	historyDocument = "sync/history"
	// maxHistory bounds the iterations that are kept.
	maxHistory = 32
	// historyEvery is the least time between two writes of a history to which nothing was added.
	historyEvery = 10 * time.Minute
)

// historyState is the document of the history.
type historyState struct {
	Key        string                   `json:"key"`           // what Done is good for, as of a cursor
	Done       time.Time                `json:"done,omitzero"` // end of the last iteration that needs no other
	Succeeded  time.Time                `json:"succeeded,omitzero"`
	Iterations []registry.SyncIteration `json:"iterations,omitempty"`
}

// recall takes over the history of the process before, and returns when an iteration of the schedule was done last, so
// that a restart alone is no reason for another. It is zero where the configuration is another one.
func (s *Syncer) recall(ctx context.Context) time.Time {
	body, err := s.store.Document(ctx, historyDocument)
	var h historyState
	if err != nil || json.Unmarshal(body, &h) != nil {
		return time.Time{}
	}
	set, _ := s.snapshot()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.state.history = h.Iterations[:min(len(h.Iterations), maxHistory)]
	s.state.sync.LastSuccessfulSyncEndTime = h.Succeeded
	if h.Key != cursorKey(set) || set.Schedule.Schedule.Continuous() {
		return time.Time{}
	}
	return h.Done
}

// keepHistory adds the iteration that has just ended, if there is something to tell of it, and makes the history durable:
// at once when there is, else now and then, and with a continuous schedule not at all.
func (s *Syncer) keepHistory(set Settings, now time.Time) {
	s.mu.Lock()
	st := s.state.sync
	last := registry.SyncIteration{}
	if len(s.state.history) > 0 {
		last = s.state.history[0]
	}
	news := st.TagsMoved+st.TagsRemoved > 0 || st.SyncState != last.State || st.Error != last.Error
	if news {
		s.state.history = slices.Insert(s.state.history, 0, registry.SyncIteration{
			Trigger: st.SyncTrigger, State: st.SyncState, StartTime: st.LastSyncStartTime, EndTime: st.LastSyncEndTime,
			Requests: st.Requests, BytesReceived: st.BytesReceived,
			TagsMoved: st.TagsMoved, TagsRemoved: st.TagsRemoved, TagsFailed: st.TagsFailed, Error: st.Error,
		})
		s.state.history = s.state.history[:min(len(s.state.history), maxHistory)]
	}
	old := now.Sub(s.state.kept).Abs() >= historyEvery
	write := old && (news || !set.Schedule.Schedule.Continuous()) || news && st.TagsMoved+st.TagsRemoved > 0 || s.state.kept.IsZero()
	h := historyState{Key: cursorKey(set), Succeeded: st.LastSuccessfulSyncEndTime, Iterations: slices.Clone(s.state.history)}
	if st.SyncState != registry.SyncFailed || st.TagsFailed > 0 {
		h.Done = now
	}
	if write {
		s.state.kept = now
	}
	s.mu.Unlock()
	if !write {
		return
	}
	body, err := json.Marshal(h)
	if err == nil {
		err = s.store.PutDocument(s.base, historyDocument, body)
	}
	if err != nil {
		s.o.Logger.Warn("the history of the synchronisation cannot be kept", "error", err)
	}
}

// repositoryStates lists the repositories with what each is behind, of which so many bytes of each image are left, and
// when what failed is tried again. The caller holds mu.
func (s *Syncer) repositoryStates(left map[subject]int64) []registry.RepositoryState {
	var list []registry.RepositoryState
	for _, name := range slices.Sorted(maps.Keys(s.state.repos)) {
		r := s.state.repos[name]
		r.Behind = slices.Clone(r.Behind)
		r.BytesBehind = 0
		for i, b := range r.Behind {
			if now, ok := left[subject{name, b.Digest}]; ok && b.Bytes > 0 {
				b.Bytes = now
				r.Behind[i].Bytes = now
			}
			r.BytesBehind += b.Bytes
			if again, ok := s.retries[name+":"+b.Tag]; ok {
				r.Behind[i].NextAttempt = again.next
			} else if b.Error != "" {
				r.Behind[i].NextAttempt = s.state.sync.NextSyncTime
			}
		}
		list = append(list, r)
	}
	return list
}

// estimate adds how many bytes are still to come and, unless all of them wait for the link, when they will be here at
// its speed.
func (s *Syncer) estimate(out *registry.Status) {
	for _, r := range out.Repositories {
		out.Sync.BytesBehind += r.BytesBehind
	}
	speed, _ := expectedSpeed(s.o.Link.Speed())
	out.Sync.BytesPerSecond = speed
	moves := s.state.failure == nil && (len(out.Transfers) == 0 ||
		slices.ContainsFunc(out.Transfers, func(t registry.TransferStatus) bool { return !t.Waiting }))
	if out.Sync.SyncState == registry.SyncSyncing && out.Sync.BytesBehind > 0 && speed > 0 && moves {
		left := time.Duration(float64(out.Sync.BytesBehind) / float64(speed) * float64(time.Second))
		out.Sync.EstimatedEndTime = s.o.Clock.Now().Add(left)
	}
}

// expectedSpeed is how fast the link will be, in bytes per second, and whether that was measured or configured.
func expectedSpeed(measured, limit int64) (speed int64, from registry.SpeedSource) {
	switch {
	case measured > 0 && (limit == 0 || measured < limit):
		return measured, registry.SpeedMeasured
	case limit > 0:
		return limit, registry.SpeedConfigured
	}
	return 0, registry.SpeedUnknown
}
