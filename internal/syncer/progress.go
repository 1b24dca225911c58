package syncer

import (
	"cmp"
	"errors"
	"maps"
	"slices"
	"time"

	"github.com/connected-registry/connected-registry/internal/registry"
)

// begin marks an iteration as under way.
func (s *Syncer) begin(it iteration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := &s.state.sync
	st.SyncState = registry.SyncSyncing
	st.LastSyncStartTime = s.o.Clock.Now()
	switch {
	case it.asked:
		st.SyncTrigger = registry.TriggerManualResync
	case st.LastSuccessfulSyncEndTime.IsZero():
		st.SyncTrigger = registry.TriggerInitialSync
	default:
		st.SyncTrigger = ""
	}
}

// finish records the result of an iteration and returns its error.
func (s *Syncer) finish(set Settings, was registry.Traffic, out outcome) error {
	if out.err == nil {
		out.err = s.failedTags()
	}
	now := s.o.Clock.Now()
	s.mu.Lock()
	st := &s.state.sync
	if out.err != nil && st.SyncState != registry.SyncSyncing {
		st.LastSyncStartTime = now // it ended before it began: nobody could be asked
	}
	st.LastSyncEndTime, st.TagsMoved, st.TagsRemoved, st.TagsFailed, st.Error = now, out.moved, out.removed, out.failed, ""
	if set.Parent != nil && was != (registry.Traffic{}) {
		after := set.Parent.Traffic()
		st.Requests, st.BytesReceived = after.Requests-was.Requests, after.BytesReceived-was.BytesReceived
	}
	before := s.state.failed
	s.state.failed = nil
	switch {
	case out.err == nil:
		st.SyncState, st.LastSuccessfulSyncEndTime = registry.SyncSucceeded, now
	case errors.Is(out.err, errWindow):
		st.SyncState, st.Error = registry.SyncTimedOut, errWindow.Error()
	case errors.Is(out.err, registry.ErrBudget):
		st.SyncState, st.Error = registry.SyncTimedOut, message(out.err)
	default:
		st.SyncState, st.Error = registry.SyncFailed, message(out.err)
		s.state.failed = out.err
		if before == nil || errors.Is(before, registry.ErrDisk) != errors.Is(out.err, registry.ErrDisk) {
			s.state.since.failed = now
		}
	}
	s.mu.Unlock()
	s.keepHistory(set, now)
	if out.err != nil {
		s.o.Logger.Warn("sync iteration ended early", "parent", set.ParentName, "error", out.err)
	} else if out.moved+out.removed > 0 {
		s.o.Logger.Info("sync iteration done", "parent", set.ParentName, "tagsMoved", out.moved, "tagsRemoved", out.removed)
	}
	if out.err != nil && !out.whole {
		return partialError{out.err}
	}
	return out.err
}

// message is the client's text of an error where it has one.
func message(err error) string {
	var e *registry.Error
	if errors.As(err, &e) {
		return e.Message
	}
	return err.Error()
}

func (s *Syncer) setNext(at time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.state.sync.NextSyncTime = at
}

// recordRepositories sets the state of each repository before the plan is carried out: behind by what it fetches, and by
// what failed and is left alone for a while.
func (s *Syncer) recordRepositories(l listing, p plan, local map[string][]registry.LocalTag) {
	s.mu.Lock()
	defer s.mu.Unlock()
	repos := s.state.repos
	resting, lacks := s.failedStates(), s.state.lacks
	s.state.lacks = map[subject][]registry.Descriptor{}
	if l.all || len(l.complete) > 0 {
		maps.DeleteFunc(repos, func(repo string, _ registry.RepositoryState) bool { return l.all || l.complete[repo] })
	}
	for repo, tags := range local {
		r := repos[repo]
		r.Repository, r.Tags = repo, len(tags)-len(p.untag[repo])
		repos[repo] = r
	}
	for _, w := range p.fetch {
		r := repos[w.repo]
		r.Repository = w.repo
		for _, t := range w.tags {
			r.Behind = append(slices.DeleteFunc(slices.Clone(r.Behind), func(b registry.TagState) bool { return b.Tag == t }),
				registry.TagState{Tag: t, Digest: w.digest})
		}
		repos[w.repo] = r
	}
	for key, b := range resting {
		r := repos[key.repo]
		if slices.ContainsFunc(r.Behind, func(t registry.TagState) bool { return t.Tag == b.Tag }) {
			continue
		}
		r.Repository, r.Behind = key.repo, append(slices.Clone(r.Behind), b)
		repos[key.repo] = r
		if blobs, ok := lacks[subject{key.repo, b.Digest}]; ok {
			s.state.lacks[subject{key.repo, b.Digest}] = blobs
		}
	}
	for _, b := range l.broken {
		r := repos[b.repo]
		r.Repository = b.repo
		r.Behind = append(slices.DeleteFunc(slices.Clone(r.Behind), func(t registry.TagState) bool { return t.Tag == b.tag }),
			registry.TagState{Tag: b.tag, Error: message(b.err)})
		repos[b.repo] = r
	}
}

// failedStates returns the tags that failed by themselves, as they are shown. The caller holds mu.
func (s *Syncer) failedStates() map[tagName]registry.TagState {
	states := map[tagName]registry.TagState{}
	for _, r := range s.retries {
		c := r.change
		if c.Tag == "" {
			continue
		}
		state := registry.TagState{Tag: c.Tag, Digest: c.Digest, Error: message(r.err)}
		for _, b := range s.state.repos[c.Repository].Behind {
			if b.Tag == c.Tag && b.Digest == c.Digest {
				state.Bytes = b.Bytes
			}
		}
		states[tagName{c.Repository, c.Tag}] = state
	}
	return states
}

// recordSizes records how many bytes the tags of measured images are behind.
func (s *Syncer) recordSizes(wants []want) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, w := range wants {
		if len(w.lacks) > 0 {
			s.state.lacks[subject{w.repo, w.digest}] = w.lacks
		}
		r := s.state.repos[w.repo]
		r.Behind = slices.Clone(r.Behind)
		for i, b := range r.Behind {
			if b.Digest == w.digest && slices.Contains(w.tags, b.Tag) {
				r.Behind[i].Bytes = 0
				if b.Tag == w.tags[0] { // several tags of one image wait for the same bytes
					r.Behind[i].Bytes = w.bytes
				}
			}
		}
		s.state.repos[w.repo] = r
	}
}

// recordTags records that an image arrived or failed.
func (s *Syncer) recordTags(w want) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if w.err == nil {
		delete(s.state.lacks, subject{w.repo, w.digest})
	}
	r := s.state.repos[w.repo]
	r.Repository = w.repo
	r.Behind = slices.Clone(r.Behind)
	for _, tag := range w.tags {
		i := slices.IndexFunc(r.Behind, func(b registry.TagState) bool { return b.Tag == tag })
		switch {
		case i < 0:
		case w.err == nil:
			r.Behind = slices.Delete(r.Behind, i, i+1)
		default:
			r.Behind[i].Error = message(w.err)
		}
	}
	if w.err == nil {
		if tags, terr := s.store.TagStates(s.base, w.repo); terr == nil {
			r.Tags = len(slices.DeleteFunc(tags, func(t registry.LocalTag) bool { return t.Digest == "" }))
		}
	}
	s.state.repos[w.repo] = r
}

// repoFailed records that a repository as a whole could not be synced.
func (s *Syncer) repoFailed(repo string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.state.repos[repo] = registry.RepositoryState{Repository: repo, Behind: []registry.TagState{{Error: message(err)}}}
}

// Describe fills in what the syncer knows of the registry's status.
func (s *Syncer) Describe(out *registry.Status) {
	defer s.up.describe(out)
	transfers, left := s.fetch.snapshot(), s.stillLeft()
	slices.SortFunc(transfers, func(a, b registry.TransferStatus) int { return cmp.Compare(a.Digest, b.Digest) })
	s.mu.Lock()
	defer s.mu.Unlock()
	out.Transfers = transfers
	out.Parent = s.state.parent
	out.Budgets = s.o.Link.Budgets()
	out.LastActivityTime = s.state.lastContact
	out.Sync = s.state.sync
	out.History = slices.Clone(s.state.history)
	out.Repositories = s.repositoryStates(left)
	s.estimate(out)
	if s.settings.Parent != nil {
		out.Traffic = s.settings.Parent.Traffic()
	}
	out.StatusDetails = append(out.StatusDetails, s.details()...)
	out.ConnectionState = s.connection(len(transfers) > 0, out.StatusDetails)
}

// details lists what is wrong, each with the time since when. The caller holds mu.
func (s *Syncer) details() []registry.StatusDetail {
	var list []registry.StatusDetail
	add := func(kind, code string, at time.Time, err error) {
		if err != nil {
			list = append(list, registry.StatusDetail{Type: kind, Code: code, Description: message(err), Timestamp: at})
		}
	}
	st := &s.state
	disk := errors.Is(st.failed, registry.ErrDisk)
	if disk {
		add("Disk", string(registry.CodeDiskError), st.since.failed, st.failed)
	}
	add("Parent", "ParentUnreachable", st.since.failure, st.failure)
	refusal := "ParentRefused"
	if errors.Is(st.refused, registry.ErrActivated) {
		refusal = string(registry.CodeActivated)
	}
	add("Parent", refusal, st.since.refused, st.refused)
	if !disk && st.failure == nil && st.refused == nil { // otherwise that is why
		add("Sync", "SyncFailed", st.since.failed, st.failed)
	}
	return list
}

// connection derives the state that ACR names. The caller holds mu.
func (s *Syncer) connection(transfers bool, details []registry.StatusDetail) registry.ConnectionState {
	switch {
	case s.settings.Parent == nil || s.state.failure != nil || s.state.lastContact.IsZero():
		return registry.Offline
	case len(details) > 0:
		return registry.Unhealthy
	case transfers || s.state.sync.SyncState == registry.SyncSyncing:
		return registry.Syncing
	}
	return registry.Online
}

// patternsFailed records that the parent has no catalog in which the repositories of patterns could be found.
func (s *Syncer) patternsFailed(set Settings, err error) {
	for _, r := range set.Scope {
		if r.IsPattern() {
			s.repoFailed(r.Repository, err)
		}
	}
}
