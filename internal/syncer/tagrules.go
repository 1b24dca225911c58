package syncer

import "github.com/connected-registry/connected-registry/internal/registry"

// Who may move a tag, in the two directions. What it is decided by is remembered in tags, in owns and in the entries of the
// outbox; the decisions are here alone, and the first line of a table that holds is the one.
//
// Here, to a digest or away, because the parent said so - in a list of its tags, or to a client that asked for the tag before
// it was here:
//
//	since it was asked an entry of the queue      stale  what it said is of before that: it is asked anew at once
//	left that was about the tag or deleted the
//	digest, or the tag came for a client
//	such an entry is in the queue                 keep   the parent has yet to hear of it, and is asked anew when the
//	                                                     entry leaves; a client hears that the tag is not here
//	the parent is being asked of the tag          wait   a list, for the answer: nobody knows which is the newer word
//	for a client
//	a client was given another digest, or a list  aside  the image is kept by its digest; the newer one is on its way
//	said otherwise since this client was answered
//	else                                          move
//
// The store has the last word, in the transaction that moves the tag: what a client pushes in that moment, and what is
// locked, stays.
//
// At the parent, because an entry of the queue wants it. The tag stands there by our doing where an attempt of ours may have
// put it, where it stood before our changes, and where a request may bring it that was given up and is late; with anybody
// else's digest it is a stranger's:
//
//	it is as the entry wants it                   there  nothing is sent, unless a parent of our own kind has yet to hear
//	                                                     that it was pushed
//	the parent has answered for a push before,    past   it was moved after us, and is theirs
//	and has the image, and the tag not by us
//	  the same, where the parent wins, and the    gone   theirs stays, as was decided when our image was sent
//	  push has not moved it
//	the parent has answered for an untag before,  past   it was put there after us
//	and the tag is a stranger's
//	a stranger's                                  over   the newest wins: ours is put over it, which is told
//	  the same, where the parent wins             lost   theirs stays; the image of a push goes there without the tag
//	else                                          send
//
// A parent of our own kind is sent the digest that the look at the tag found, and changes the tag only where it still stands
// there: where it does not, it is looked at and decided again. An older one takes no notice.

// known is what is remembered of a tag that the parent said something of.
type known struct {
	later  bool            // an entry of the queue that was about it, or deleted the digest, left since, or it came for a client
	queued bool            // such an entry is in the queue
	asked  bool            // the parent is being asked of it for a client
	given  registry.Digest // to clients, while the image is on its way; empty for none
}

// verdict is what becomes of the parent's word.
type verdict int

const (
	move verdict = iota
	stale
	keep
	wait
	aside
)

// verdict decides about a tag that the parent said stands at d, empty for nowhere.
func (k known) verdict(d registry.Digest, forClient bool) verdict {
	switch {
	case k.later:
		return stale
	case k.queued:
		return keep
	case k.asked && !forClient:
		return wait
	case k.given != d && (forClient || k.given != ""):
		return aside
	}
	return move
}

// found is how an attempt for an entry finds its tag, or its manifest where it has no tag, at the parent.
type found struct {
	registry.OutboxEntry
	wants   registry.Digest // empty for nowhere
	at      registry.Digest // where it stands; empty for nowhere
	ours    bool            // it may stand there by our doing, but for the last attempt of the entry itself
	has     bool            // the parent has the manifest
	unheard bool            // the parent has yet to hear of the push, whatever it has
	wins    bool            // the parent does, where both have moved the tag
}

// course is what is done about an entry.
type course int

const (
	send course = iota
	over
	there
	past
	gone
	lost
)

// course decides what is done about an entry for a tag or, where it has none, for a manifest.
func (f found) course() course {
	answered := f.State == registry.OutboxDelivered
	stranger := f.Tag != "" && f.at != "" && f.at != f.Put && f.at != f.Digest && !f.ours
	switch {
	case f.at == f.wants && !f.unheard:
		return there
	case answered && f.has && !f.ours && f.wins && f.Put != f.wants:
		return gone
	case answered && (f.has && !f.ours || f.wants == "" && stranger):
		return past
	case stranger && f.wins:
		return lost
	case stranger:
		return over
	}
	return send
}
