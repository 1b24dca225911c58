package syncer

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/internal/transport"
)

// deliver tries one entry and keeps what came of it.
func (c *climber) deliver(ctx context.Context, set Settings, p Pusher, kind registry.ParentKind, f *flight) result {
	d := delivery{c: c, set: set, p: p, kind: kind, flight: f, e: f.entry}
	if d.e.Tag != "" && set.First.MatchTag(d.e.Repository, d.e.Tag) {
		ctx = transport.WithClass(ctx, transport.First)
	}
	var err error
	switch d.e.Action {
	case registry.OutboxPush:
		err = d.again(ctx, d.push)
	case registry.OutboxUntag:
		err = d.again(ctx, d.untag)
	case registry.OutboxDelete:
		err = d.remove(ctx)
	default:
		err = registry.ErrUnsupported.WithMessage("an entry of an unknown kind: %q", d.e.Action)
	}
	if errors.Is(err, errSuperseded) {
		return result{entry: d.e, gone: true} // what became of it is in the queue as it is read next
	}
	if err == nil {
		c.lacks(d.e.Seq, nil)
		if d.delivered {
			return result{entry: d.e}
		}
		return result{entry: d.e, gone: true}
	}
	return d.failed(ctx, err)
}

// delivery is one attempt for one entry.
type delivery struct {
	c         *climber
	set       Settings
	p         Pusher
	kind      registry.ParentKind
	flight    *flight
	e         registry.OutboxEntry
	delivered bool // it is to be looked at once more
	demand    demand
}

// errSuperseded ends an attempt for an entry that a client changed meanwhile.
var errSuperseded = errors.New("a client changed the tag meanwhile")

// at returns the digest that a reference has at the parent; empty when there is none.
func (d *delivery) at(ctx context.Context, ref registry.Reference) (registry.Digest, error) {
	desc, err := d.set.Parent.ResolveManifest(registry.WithLocal(ctx), d.e.Repository, ref)
	if errors.Is(err, registry.ErrManifestUnknown) || errors.Is(err, registry.ErrNameUnknown) {
		d.c.s.contact(nil)
		return "", nil
	}
	d.c.s.contact(err)
	if err != nil {
		return "", err
	}
	return desc.Digest, nil
}

// push brings a manifest with all below it, and moves the tag.
func (d *delivery) push(ctx context.Context) error {
	e := d.e
	byDigest, ref := registry.DigestReference(e.Digest), registry.DigestReference(e.Digest)
	if e.Tag != "" {
		ref = registry.TagReference(e.Tag)
	}
	at, err := d.at(ctx, ref)
	if err != nil {
		return err
	}
	has := at == e.Digest
	if e.Tag != "" && !has {
		have, err := d.at(ctx, byDigest)
		if err != nil {
			return err
		}
		has = have == e.Digest
	}
	f := d.found(e.Digest, at, has)
	what := f.course()
	switch what {
	case there:
		return d.there(ctx)
	case past:
		if err := d.refer(ctx); err != nil {
			return err
		}
		return d.done(ctx)
	case gone:
		return d.lost(ctx, e.Digest, at)
	case lost:
		ref = byDigest
	}
	if what != lost || !has || f.unheard {
		request := ctx
		if ref.Tag != "" {
			request = d.only(ctx, at)
		}
		err := d.put(request, ref, has, func() error { return d.attempt(ctx, at, e.Digest, what == over) })
		if at == e.Digest && isRefusal(err) {
			return d.there(ctx) // it stands where it is to be, and may not be moved to there
		}
		if err != nil {
			return err
		}
	}
	if what == lost && !d.forgetful() {
		return d.lost(ctx, e.Digest, at)
	}
	if what == lost && e.Put == e.Digest { // it is not what we put there that was moved
		d.e.Put = ""
		if ok, err := d.c.outbox.OutboxAttempt(ctx, d.e, false); err != nil {
			return local(err)
		} else if !ok {
			return errSuperseded
		}
	}
	return d.sure(ctx)
}

// there is for a manifest that is at the parent already: by an attempt of which no answer came, or by somebody else, and in
// either case maybe since a moment.
func (d *delivery) there(ctx context.Context) error {
	if err := d.refer(ctx); err != nil {
		return err
	}
	return d.seen(ctx)
}

// refer has a manifest that is at the parent listed among what refers to its subject: an attempt that ended early may not
// have come so far.
func (d *delivery) refer(ctx context.Context) error {
	m, err := d.manifest(ctx, d.e.Digest)
	if err != nil {
		return nil // one that cannot be read here is no reason to keep the entry
	}
	err = d.p.Refer(ctx, d.e.Repository, m)
	d.c.s.contact(err)
	return err
}

// unheard reports whether a parent that has what is wanted has yet to hear that it was pushed. One of our own kind may have
// it from above, where it was deleted meanwhile, and would follow that; pushed to it, it climbs from there.
func (d *delivery) unheard() bool {
	answered := d.e.Tag != "" && d.e.Put == d.e.Digest && d.e.Base != d.e.Digest
	return d.kind == registry.KindConnected && d.e.State != registry.OutboxDelivered && !answered
}

// found is how this attempt, for an entry that wants a tag at a digest, finds the tag and the manifest.
func (d *delivery) found(wants, at registry.Digest, has bool) found {
	return found{
		OutboxEntry: d.e, wants: wants, at: at, has: has, ours: d.ours(at), unheard: wants != "" && d.unheard(),
		wins: d.set.Conflict == registry.ParentWins,
	}
}

// attempt notes durably that the tag, which stands at the parent at one digest, is about to be put at another: an answer
// that is lost with this process then makes no conflict of ours with ours. A conflict is told of with it, once.
func (d *delivery) attempt(ctx context.Context, at, put registry.Digest, overwrites bool) error {
	known := d.e
	if d.e.Put = put; at != "" { // a parent without the tag may have lost with its power that it took it away
		d.e.Base = at
	}
	if err := d.before(ctx, at, known); err != nil {
		return err
	}
	ok, err := d.c.outbox.OutboxAttempt(ctx, d.e, overwrites)
	switch {
	case err != nil:
		return local(err)
	case !ok:
		return errSuperseded
	case overwrites:
		d.tell(ctx, put, at, false)
	}
	return nil
}

// tell keeps how a conflict was decided.
func (d *delivery) tell(ctx context.Context, ours, theirs registry.Digest, parentWins bool) {
	d.c.tell(ctx, registry.OutboxConflict{
		Time: d.c.s.o.Clock.Now(), Repository: d.e.Repository, Tag: d.e.Tag, Ours: ours, Theirs: theirs, ParentWins: parentWins, Principal: d.e.Principal,
	})
}

// put sends what the parent lacks, and then the manifest. A parent that turns out to lack what it seemed to have is sent
// all of it, once.
func (d *delivery) put(ctx context.Context, ref registry.Reference, there bool, attempt func() error) error {
	m, err := d.manifest(ctx, d.e.Digest)
	if err != nil {
		return err
	}
	for {
		if !there {
			if err := d.below(ctx, m, 0, map[registry.Digest]bool{}); err != nil {
				return err
			}
		}
		if ref.Tag != "" {
			if err := attempt(); err != nil {
				return err
			}
		}
		err := d.putManifest(ctx, ref, d.e.Digest, m)
		if !there || !(errors.Is(err, registry.ErrManifestBlobUnknown) || errors.Is(err, registry.ErrBlobUnknown)) {
			return err
		}
		there = false
	}
}

func (d *delivery) putManifest(ctx context.Context, ref registry.Reference, digest registry.Digest, m registry.Manifest) error {
	return d.write(ctx, own{Tag: ref.Tag, Digest: digest}, func() error {
		_, err := d.p.PutManifest(ctx, d.e.Repository, ref, m)
		return err
	})
}

// manifest reads a manifest that was pushed here.
func (d *delivery) manifest(ctx context.Context, digest registry.Digest) (registry.Manifest, error) {
	m, err := d.c.s.store.GetManifest(ctx, d.e.Repository, registry.DigestReference(digest))
	if err != nil {
		return m, local(fmt.Errorf("the manifest %s cannot be read here: %w", digest, err))
	}
	return m, nil
}

// local marks an error as of this registry, so that its code is not taken for the parent's answer.
func local(err error) error { return &localError{err} }

type localError struct{ err error }

func (e *localError) Error() string { return e.err.Error() }
func (e *localError) Unwrap() error { return e.err }

// below brings what a manifest refers to: children with all that is below them, then blobs. What is not here, because a
// client referred to what the parent has, is the parent's to find.
func (d *delivery) below(ctx context.Context, m registry.Manifest, depth int, seen map[registry.Digest]bool) error {
	refs, err := registry.ParseManifest(m.MediaType, m.Bytes)
	if err != nil {
		return err
	}
	if depth > maxDepth {
		return registry.ErrManifestInvalid.WithMessage("%s is an index of more than %d levels", d.e.Digest, maxDepth)
	}
	for _, child := range refs.Manifests {
		if seen[child.Digest] {
			continue
		}
		seen[child.Digest] = true
		if err := d.child(ctx, child, depth, seen); err != nil {
			return err
		}
	}
	for _, b := range refs.Blobs {
		if seen[b.Digest] {
			continue
		}
		seen[b.Digest] = true
		if err := d.blob(ctx, b); err != nil {
			return err
		}
	}
	return nil
}

func (d *delivery) child(ctx context.Context, child registry.Descriptor, depth int, seen map[registry.Digest]bool) error {
	ref := registry.DigestReference(child.Digest)
	if have, err := d.at(ctx, ref); err != nil || have == child.Digest {
		return err
	}
	m, err := d.c.s.store.GetManifest(ctx, d.e.Repository, ref)
	if errors.Is(err, registry.ErrManifestUnknown) {
		return nil // a platform that is not kept here; the parent says whether it has it
	}
	if err != nil {
		return local(err)
	}
	if err := d.below(ctx, m, depth+1, seen); err != nil {
		return err
	}
	return d.putManifest(ctx, ref, child.Digest, m)
}

// blob brings one blob, unless another entry is bringing it: then it is mounted when that is done.
func (d *delivery) blob(ctx context.Context, b registry.Descriptor) error {
	c := d.c
	if err := c.blobs.lock(ctx, b.Digest); err != nil {
		return err
	}
	defer c.blobs.unlock(b.Digest)
	if size, ok := c.s.store.StatContent(ctx, b.Digest); !ok || size != b.Size {
		_, err := d.set.Parent.ResolveBlob(registry.WithLocal(ctx), d.e.Repository, b.Digest)
		if errors.Is(err, registry.ErrBlobUnknown) {
			return local(fmt.Errorf("the blob %s is neither here nor at the parent", b.Digest))
		}
		return err
	}
	c.sending(d.flight, b, 0)
	defer c.sending(d.flight, registry.Descriptor{}, 0)
	err := d.p.PushBlob(ctx, registry.BlobPush{
		Repository: d.e.Repository, Descriptor: b, From: c.holders(ctx, d.e.Repository, b.Digest),
		Session: c.sessions.get(d.set.ParentName, d.e.Repository, b.Digest),
		Note:    func(s string) { c.noteSession(ctx, d.set.ParentName, d.e.Repository, b.Digest, s) },
		Open:    func(ctx context.Context) (registry.BlobReader, error) { return c.s.store.OpenContent(ctx, b.Digest) },
		Moved:   func(n int64) { c.sending(d.flight, b, n) },
	})
	c.s.contact(err)
	if err == nil {
		c.has(b.Digest, d.e.Repository)
	}
	return err
}

// untag removes a tag at the parent.
func (d *delivery) untag(ctx context.Context) error {
	at, err := d.at(ctx, registry.TagReference(d.e.Tag))
	if err != nil {
		return err
	}
	switch d.found("", at, false).course() {
	case there:
		return d.seen(ctx)
	case past:
		return d.done(ctx)
	case lost:
		return d.lost(ctx, "", at)
	case over:
		if err := d.attempt(ctx, at, "", true); err != nil {
			return err
		}
	}
	err = d.write(ctx, own{Tag: d.e.Tag}, func() error { return d.p.DeleteTag(d.only(ctx, at), d.e.Repository, d.e.Tag) })
	if err != nil && !errors.Is(err, registry.ErrManifestUnknown) && !errors.Is(err, registry.ErrNameUnknown) {
		return err
	}
	return d.sure(ctx)
}

// remove deletes a manifest at the parent.
func (d *delivery) remove(ctx context.Context) error {
	err := d.write(ctx, own{Digest: d.e.Digest, Gone: true}, func() error { return d.p.DeleteManifest(ctx, d.e.Repository, d.e.Digest) })
	if errors.Is(err, registry.ErrManifestUnknown) || errors.Is(err, registry.ErrNameUnknown) {
		return d.seen(ctx) // what is not there is deleted
	}
	if err != nil {
		return err
	}
	return d.sure(ctx)
}

// done takes the entry out of the queue: the parent has it. Its tag is the parent's from now on; a ReadOnly registry does
// not keep it when it is out of scope, and no change of the parent will tell of it again.
func (d *delivery) done(ctx context.Context) error {
	if err := d.c.leave(ctx, d.e, d.c.outbox.OutboxDone); err != nil {
		return err
	}
	if d.set.Mode == registry.ReadOnly && d.e.Tag != "" && !d.set.Scope.MatchTag(d.e.Repository, d.e.Tag) {
		return d.c.resync(ctx)
	}
	return nil
}

// lost takes the entry, which wanted the tag at ours, out of the queue: the tag stays with the parent, at theirs.
func (d *delivery) lost(ctx context.Context, ours, theirs registry.Digest) error {
	err := d.c.leave(ctx, d.e, func(ctx context.Context, seq uint64) error { return d.c.outbox.OutboxLost(ctx, seq, theirs) })
	if err != nil {
		return err
	}
	d.tell(ctx, ours, theirs, true)
	return d.c.resync(ctx)
}

// sure ends an attempt that the parent has answered for. That means that it is on its disk, or else it is asked once more
// in a while.
func (d *delivery) sure(ctx context.Context) error { return d.settle(ctx, d.forgetful()) }

// seen ends an attempt that finds the parent as it is to be. That was looked for, or an attempt of which no answer came
// may have made it so a moment ago.
func (d *delivery) seen(ctx context.Context) error {
	return d.settle(ctx, d.forgetful() && d.e.State != registry.OutboxDelivered)
}

// settle takes the entry out of the queue, unless it is to be looked for once more: because the answer is to be confirmed,
// or because a request that was given up may yet arrive and undo it. Until then the parent's word does not count.
func (d *delivery) settle(ctx context.Context, confirm bool) error {
	now := d.c.s.o.Clock.Now()
	var next time.Time
	if until := d.c.own.late(now, d.set.ParentName, d.e); !until.IsZero() {
		next = now.Add(min(until.Sub(now), lookAfter))
	}
	if confirm {
		next = now.Add(cmp.Or(d.c.s.o.ConfirmAfter, confirmAfter))
	}
	if next.IsZero() {
		return d.done(ctx)
	}
	d.e.State, d.e.Attempts, d.e.Error, d.e.NextAttempt, d.delivered = registry.OutboxDelivered, d.e.Attempts+1, "", next, true
	if err := d.c.outbox.OutboxNote(ctx, d.e); err != nil {
		return local(err)
	}
	return nil
}

// failed keeps why an attempt failed, and when the next is.
func (d *delivery) failed(ctx context.Context, err error) result {
	if ctx.Err() != nil {
		return result{entry: d.e, err: err} // interrupted: no attempt
	}
	s := d.c.s
	var mine *localError
	isLocal := errors.As(err, &mine)
	if !isLocal && isAnswer(err) && !s.alone(ctx, d.set, err) {
		return result{entry: d.e, err: err, away: true}
	}
	if !isLocal && d.kind == registry.KindConnected && isRefusal(err) {
		if why := s.meet(ctx, d.set, nil); why != nil { // all of it is refused, until the layers fit together again
			return result{entry: d.e, err: why, away: true}
		}
	}
	d.e.Attempts++
	d.e.State, d.e.Error = registry.OutboxWaiting, message(err)
	if now, ok := d.c.entry(ctx, d.e.Seq); ok && !isUnderWay(now) {
		d.e.State = now.State // its time ended while it was on its way
	}
	if lacks := d.c.lacks(d.e.Seq, err); !isLocal && (isRefusal(err) || lacks) {
		d.e.State, d.e.NextAttempt = registry.OutboxRefused, time.Time{}
	} else {
		d.e.NextAttempt = s.o.Clock.Now().Add(s.rowPause(d.e.Attempts, err))
	}
	s.o.Logger.Warn("a change could not be delivered", "entry", d.e.Seq, "action", d.e.Action, "repository", d.e.Repository, "tag", d.e.Tag,
		"digest", d.e.Digest, "state", d.e.State, "error", err)
	if nerr := d.c.outbox.OutboxNote(ctx, d.e); nerr != nil {
		s.o.Logger.Error("the outbox cannot be written", "entry", d.e.Seq, "error", nerr)
	}
	return result{entry: d.e, err: err}
}

// lacks keeps how often in a row a fresh token did not carry the right for an entry, and reports whether that is a no.
func (c *climber) lacks(seq uint64, err error) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !errors.Is(err, registry.ErrNotGranted) {
		delete(c.lacking, seq)
		return false
	}
	if c.lacking[seq]++; c.lacking[seq] < grantTries {
		return false
	}
	delete(c.lacking, seq)
	return true
}

// refusals are the codes with which a parent says no for good.
var refusals = []*registry.Error{
	registry.ErrDenied, registry.ErrUnsupported, registry.ErrLocked, registry.ErrNameInvalid, registry.ErrNameUnknown, registry.ErrTagInvalid,
	registry.ErrManifestInvalid, registry.ErrSizeInvalid, registry.ErrConflict,
}

func isRefusal(err error) bool {
	for _, r := range refusals {
		if errors.Is(err, r) {
			return true
		}
	}
	return false
}

// rowPause grows with each attempt, with jitter over its upper half, and is never shorter than the parent asks for.
func (s *Syncer) rowPause(attempts int, err error) time.Duration {
	d := backoffCap
	if attempts < 12 {
		d = min(backoffCap, rowFloor<<(max(attempts, 1)-1))
	}
	d = time.Duration((0.5 + s.o.Rand()/2) * float64(d))
	var e *registry.Error
	if errors.As(err, &e) {
		d = max(d, min(e.RetryAfter, backoffCap))
	}
	return d
}
