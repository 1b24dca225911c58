package registry

import (
	"context"
	"time"
)

// OutboxAction is what a client did here and the parent has to learn.
type OutboxAction string

// The actions of the outbox. A push by digest and a push by tag are OutboxPush; Tag tells them apart.
const (
	OutboxPush   OutboxAction = "push"   // manifest, and the tag where there is one
	OutboxUntag  OutboxAction = "untag"  // the tag went, its manifest stays
	OutboxDelete OutboxAction = "delete" // the manifest went, with every tag that pointed at it
)

// OutboxState is where an entry stands.
type OutboxState string

// The states of an entry. A waiting one is tried. A delivered one counts as waiting everywhere: the parent has answered
// for it with the same digest, and is asked once more before the entry goes, because not every registry has on disk what
// it answers for. The others keep their content until somebody decides.
const (
	OutboxWaiting   OutboxState = "waiting"
	OutboxDelivered OutboxState = "delivered"
	OutboxExpired   OutboxState = "expired" // older than messageTtl
	OutboxRefused   OutboxState = "refused" // the parent said no for good: a lock, a scope, a permission, a quota
)

// OutboxEntry is one acknowledged change that is not at the parent yet.
type OutboxEntry struct {
	Seq         uint64       `json:"seq"` // order of acknowledgement
	Action      OutboxAction `json:"action"`
	Repository  string       `json:"repository"`
	Tag         string       `json:"tag,omitempty"`
	Digest      Digest       `json:"digest,omitempty"`
	MediaType   string       `json:"mediaType,omitempty"`
	Base        Digest       `json:"base,omitempty"` // where the tag stood at the parent when it moved here, or was seen there last; empty: nowhere
	Put         Digest       `json:"put,omitempty"`  // what may stand there since, by an attempt of which no answer came
	Tags        []string     `json:"tags,omitempty"` // of a delete: those that go with the manifest
	Principal   string       `json:"principal,omitempty"`
	Time        time.Time    `json:"time"` // of the acknowledgement
	State       OutboxState  `json:"state"`
	Attempts    int          `json:"attempts"`
	NextAttempt time.Time    `json:"nextAttempt,omitzero"`
	Requeued    time.Time    `json:"requeued,omitzero"` // when somebody made it waiting again; messageTtl counts from here then
	Error       string       `json:"error,omitempty"`   // of the last attempt
}

// OutboxConflict is how it was decided when a tag had moved at the parent as well as here.
type OutboxConflict struct {
	Time       time.Time `json:"time"`
	Repository string    `json:"repository"`
	Tag        string    `json:"tag"`
	Ours       Digest    `json:"ours,omitempty"` // empty: the tag was removed here
	Theirs     Digest    `json:"theirs"`         // where it stood at the parent
	ParentWins bool      `json:"parentWins,omitempty"`
	Principal  string    `json:"principal,omitempty"` // who pushed
}

// Outbox is the queue of what climbs. Its rows are written in the transaction of the change that they tell of.
type Outbox interface {
	// OutboxEntries lists entries in order of Seq, from the one after "after" on, at most limit (1 to MaxPage).
	OutboxEntries(ctx context.Context, after uint64, limit int) ([]OutboxEntry, error)
	// OutboxDone removes an entry that the parent has answered for with the same digest. A tag that still stands where
	// the entry put it counts as the parent's from now on. An entry that is gone already is no error.
	OutboxDone(ctx context.Context, seq uint64) error
	// OutboxLost removes an entry whose tag stays with the parent, at theirs (conflict: parentWins), or which is given up
	// (empty): what was pushed here stays under its digest until the grace of garbage collection ends, the tag counts as
	// the parent's and follows it.
	OutboxLost(ctx context.Context, seq uint64, theirs Digest) error
	// OutboxAttempt keeps, before an entry changes its tag at the parent, that the tag stands at e.Base there and may
	// stand at e.Put soon, so that no later change takes the one for somebody else's when the answer is lost. overwrites
	// is whether somebody else moved it to e.Base. ok is false when the entry is gone or became another one meanwhile:
	// then the tag is not to be changed.
	OutboxAttempt(ctx context.Context, e OutboxEntry, overwrites bool) (ok bool, err error)
	// OutboxNote keeps state, attempts, next attempt, requeued and error of an entry. One that is gone is no error.
	OutboxNote(ctx context.Context, e OutboxEntry) error
	// OutboxExpire marks waiting entries as expired that have waited since before a time, and returns how many.
	OutboxExpire(ctx context.Context, before time.Time) (int, error)
	// OutboxChanged is closed when an entry was added, or made waiting again, after the call.
	OutboxChanged() <-chan struct{}
	// OutboxStatus sums up.
	OutboxStatus(ctx context.Context) (OutboxStatus, error)
}
