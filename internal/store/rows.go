package store

import (
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"strings"

	"github.com/connected-registry/connected-registry/internal/registry"
)

// Algorithms of a digest key, in the order of their names, so that keys sort as digests do.
const (
	algSHA256 byte = 1
	algSHA512 byte = 2
)

// digestKey is a digest as a key: one byte of algorithm and the raw hash, 33 or 65 bytes.
func digestKey(d registry.Digest) []byte {
	alg, text, _ := strings.Cut(d.String(), ":")
	key := []byte{algSHA256}
	if alg == "sha512" {
		key[0] = algSHA512
	}
	key, err := hex.AppendDecode(key, []byte(text))
	if err != nil {
		return []byte{0} // no such key: digests are parsed before they come here
	}
	return key
}

// cutDigest reads a digest key from the front of b and returns the rest.
func cutDigest(b []byte) (d registry.Digest, rest []byte, ok bool) {
	if len(b) == 0 {
		return "", nil, false
	}
	prefix, n := "sha256:", 32
	switch b[0] {
	case algSHA256:
	case algSHA512:
		prefix, n = "sha512:", 64
	default:
		return "", nil, false
	}
	if len(b) < 1+n {
		return "", nil, false
	}
	return registry.Digest(prefix + hex.EncodeToString(b[1:1+n])), b[1+n:], true
}

// keyDigest reads a key that is one digest.
func keyDigest(b []byte) (registry.Digest, bool) {
	d, rest, ok := cutDigest(b)
	return d, ok && len(rest) == 0
}

// reader reads the fields of a row one after the other; after the first that does not fit, all are zero.
type reader struct {
	b   []byte
	bad bool
}

func (r *reader) uint() uint64 {
	v, n := binary.Uvarint(r.b)
	if n <= 0 {
		r.bad, r.b = true, nil
		return 0
	}
	r.b = r.b[n:]
	return v
}

func (r *reader) int() int64 { return int64(r.uint()) }

func (r *reader) text() string {
	n := r.uint()
	if n > uint64(len(r.b)) {
		r.bad, r.b = true, nil
		return ""
	}
	s := string(r.b[:n])
	r.b = r.b[n:]
	return s
}

func (r *reader) digest() registry.Digest {
	d, rest, ok := cutDigest(r.b)
	if !ok {
		r.bad, r.b = true, nil
		return ""
	}
	r.b = rest
	return d
}

func (r *reader) err() error {
	if r.bad || len(r.b) != 0 {
		return errDamaged
	}
	return nil
}

func putText(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

func putInt(b []byte, v int64) []byte { return binary.AppendUvarint(b, uint64(v)) }

// blobRow is content that is here.
type blobRow struct {
	size      int64
	at        int64 // unix seconds of the commit
	fetched   bool  // came from a link and belongs to no repository yet: kept as long as a partial is
	recovered bool  // found beside a lost index and belongs to no repository yet
}

func (r blobRow) encode() []byte {
	return putInt(putInt(putInt(nil, r.size), r.at), bit(r.fetched, 1)|bit(r.recovered, 2))
}

func decodeBlob(b []byte) (row blobRow, err error) {
	r := reader{b: b}
	row.size, row.at = r.int(), r.int()
	flags := r.uint()
	row.fetched, row.recovered = flags&1 != 0, flags&2 != 0
	if row.size < 0 {
		return row, errDamaged
	}
	return row, r.err()
}

// bit is value when set, else 0.
func bit(set bool, value int64) int64 {
	if set {
		return value
	}
	return 0
}

// mediaTypes has the code of each usual media type; 0 is followed by the text.
var mediaTypes = []string{
	"", registry.MediaTypeImageManifest, registry.MediaTypeImageIndex,
	registry.MediaTypeDockerManifest, registry.MediaTypeDockerList,
}

func putMediaType(b []byte, s string) []byte {
	for i, m := range mediaTypes {
		if i > 0 && m == s {
			return putInt(b, int64(i))
		}
	}
	return putText(putInt(b, 0), s)
}

func (r *reader) mediaType() string {
	code := r.uint()
	if code == 0 {
		return r.text()
	}
	if code >= uint64(len(mediaTypes)) {
		r.bad, r.b = true, nil
		return ""
	}
	return mediaTypes[code]
}

// target is what a manifest row keeps of a descriptor.
type target struct {
	digest registry.Digest
	size   int64
}

// manifestRow is a manifest of a repository, and what it refers to, so that collection opens no file.
type manifestRow struct {
	mediaType string
	size      int64
	pushed    bool  // a client pushed it: only a client removes it
	pinned    bool  // fetched by digest, without a tag: it does not go when some tag goes
	loose     int64 // unix seconds since when synchronisation took its last tag away; 0: not so
	created   int64 // unix seconds since when it is in the repository; 0 in rows of before this was kept
	subject   registry.Digest
	children  []target // manifests of an index
	blobs     []target // config and layers
}

func (r manifestRow) encode() []byte {
	b := putInt(nil, bit(r.pushed, 1)|bit(r.pinned, 2)|bit(r.subject != "", 4)|bit(r.created != 0, 8))
	b = putInt(putInt(putMediaType(b, r.mediaType), r.size), r.loose)
	if r.created != 0 {
		b = putInt(b, r.created)
	}
	if r.subject != "" {
		b = append(b, digestKey(r.subject)...)
	}
	for _, list := range [][]target{r.children, r.blobs} {
		b = putInt(b, int64(len(list)))
		for _, t := range list {
			b = putInt(append(b, digestKey(t.digest)...), t.size)
		}
	}
	return b
}

func decodeManifest(b []byte) (row manifestRow, err error) {
	r := reader{b: b}
	flags := r.uint()
	row.pushed, row.pinned = flags&1 != 0, flags&2 != 0
	row.mediaType, row.size, row.loose = r.mediaType(), r.int(), r.int()
	if flags&8 != 0 {
		row.created = r.int()
	}
	if flags&4 != 0 {
		row.subject = r.digest()
	}
	for _, list := range []*[]target{&row.children, &row.blobs} {
		for n := r.uint(); n > 0 && !r.bad; n-- {
			*list = append(*list, target{r.digest(), r.int()})
		}
	}
	return row, r.err()
}

// newManifestRow keeps what the index needs of a manifest.
func newManifestRow(m registry.Descriptor, refs registry.References) manifestRow {
	row := manifestRow{mediaType: m.MediaType, size: m.Size}
	if refs.Subject != nil {
		row.subject = refs.Subject.Digest
	}
	for _, d := range refs.Manifests {
		row.children = append(row.children, target{d.Digest, d.Size})
	}
	for _, d := range refs.Blobs {
		row.blobs = append(row.blobs, target{d.Digest, d.Size})
	}
	return row
}

// tagRow is where a tag points.
type tagRow struct {
	digest  registry.Digest
	pushed  bool
	at      int64 // unix seconds of the last move
	seq     uint64
	created int64 // unix seconds; in rows of before this was kept it is at
}

func (r tagRow) encode() []byte {
	b := append(putInt(nil, bit(r.pushed, 1)|bit(r.created != r.at, 2)), digestKey(r.digest)...)
	b = putInt(putInt(b, r.at), int64(r.seq))
	if r.created != r.at {
		b = putInt(b, r.created)
	}
	return b
}

func decodeTag(b []byte) (row tagRow, err error) {
	r := reader{b: b}
	flags := r.uint()
	row.pushed = flags&1 != 0
	row.digest, row.at, row.seq = r.digest(), r.int(), r.uint()
	if row.created = row.at; flags&2 != 0 {
		row.created = r.int()
	}
	return row, r.err()
}

// referrerRow is the entry of a referrers list.
type referrerRow struct {
	seq        uint64
	descriptor registry.Descriptor // without the digest, which is in the key
}

func (r referrerRow) encode() ([]byte, error) {
	var annotations string
	if len(r.descriptor.Annotations) > 0 {
		body, err := json.Marshal(r.descriptor.Annotations)
		if err != nil {
			return nil, err
		}
		annotations = string(body)
	}
	b := putMediaType(putInt(nil, int64(r.seq)), r.descriptor.MediaType)
	return putText(putText(putInt(b, r.descriptor.Size), r.descriptor.ArtifactType), annotations), nil
}

func decodeReferrer(b []byte) (row referrerRow, err error) {
	r := reader{b: b}
	row.seq = r.uint()
	row.descriptor.MediaType, row.descriptor.Size, row.descriptor.ArtifactType = r.mediaType(), r.int(), r.text()
	annotations := r.text()
	if err := r.err(); err != nil {
		return row, err
	}
	if annotations != "" && json.Unmarshal([]byte(annotations), &row.descriptor.Annotations) != nil {
		return row, errDamaged
	}
	return row, nil
}

// Kinds of a change.
const (
	changeTag      = 'T' // a tag moved
	changeGone     = 'D' // a tag went
	changeReferrer = 'R' // a referrer came
	changeUnrefer  = 'U' // a referrer went, and its subject is here
)

// tombstone reports whether the row is of what is not here any more.
func (r changeRow) tombstone() bool { return r.kind == changeGone || r.kind == changeUnrefer }

// changeRow is one step of the content, for children that ask what is new.
type changeRow struct {
	kind    byte
	at      int64 // unix seconds
	repo    string
	tag     string          // kinds T and D
	subject registry.Digest // kinds R and U
	digest  registry.Digest // kinds R and U
}

func (r changeRow) encode() []byte {
	b := putText(putInt([]byte{r.kind}, r.at), r.repo)
	if r.kind == changeReferrer || r.kind == changeUnrefer {
		return append(append(b, digestKey(r.subject)...), digestKey(r.digest)...)
	}
	return putText(b, r.tag)
}

func decodeChange(b []byte) (row changeRow, err error) {
	if len(b) == 0 {
		return row, errDamaged
	}
	r := reader{b: b[1:]}
	row.kind, row.at, row.repo = b[0], r.int(), r.text()
	switch row.kind {
	case changeReferrer, changeUnrefer:
		row.subject, row.digest = r.digest(), r.digest()
	case changeTag, changeGone:
		row.tag = r.text()
	default:
		return row, errDamaged
	}
	return row, r.err()
}
