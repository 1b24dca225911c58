package store

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"go.etcd.io/bbolt"

	"github.com/connected-registry/connected-registry/internal/registry"
)

// schemaVersion is what this binary reads and writes.
const schemaVersion = 1

// migrations[i] turns version i+1 into i+2. Each runs in one transaction with the new number, and needs a test of its
// own with an index that the older version wrote.
var migrations = []func(*bbolt.Tx) error{}

// migrate makes a new index, or brings an older one up to schemaVersion. Errors: UNSUPPORTED for a newer one.
func migrate(db *bbolt.DB, instanceID string) error {
	current := false
	err := db.View(func(btx *bbolt.Tx) error { // a start without news writes nothing
		if meta := btx.Bucket(bucketMeta); meta != nil {
			current = bytes.Equal(meta.Get(keySchemaVersion), binary.AppendUvarint(nil, schemaVersion))
		}
		return nil
	})
	if err != nil || current {
		return errors.Join(err, complete(db))
	}
	return db.Update(func(btx *bbolt.Tx) error {
		meta := btx.Bucket(bucketMeta)
		if meta == nil {
			return initialise(btx, instanceID)
		}
		version, n := binary.Uvarint(meta.Get(keySchemaVersion))
		if n <= 0 {
			return errDamaged
		}
		if version > schemaVersion {
			return registry.ErrUnsupported.WithMessage("the data volume was written by a newer release (schema %d, this release knows %d): "+
				"start that release again, or use an empty volume", version, schemaVersion)
		}
		for v := version; v < schemaVersion; v++ {
			if err := migrations[v-1](btx); err != nil {
				return fmt.Errorf("migration of the index from schema %d: %w", v, err)
			}
			if err := meta.Put(keySchemaVersion, binary.AppendUvarint(nil, v+1)); err != nil {
				return err
			}
		}
		return nil
	})
}

// complete checks that the top of the tree is there.
func complete(db *bbolt.DB) error {
	return db.View(func(btx *bbolt.Tx) error {
		for _, name := range [][]byte{bucketBlobs, bucketRepos, bucketChanges, bucketDocuments} {
			if btx.Bucket(name) == nil {
				return errDamaged
			}
		}
		return nil
	})
}

func initialise(btx *bbolt.Tx, instanceID string) error {
	for _, name := range [][]byte{bucketMeta, bucketBlobs, bucketRepos, bucketChanges, bucketLocks, bucketDocuments} {
		if _, err := btx.CreateBucket(name); err != nil {
			return err
		}
	}
	meta := btx.Bucket(bucketMeta)
	rows := map[string][]byte{
		string(keySchemaVersion): binary.AppendUvarint(nil, schemaVersion),
		string(keyInstanceID):    []byte(instanceID),
		string(keyChangeSeq):     {0},
		string(keyChangeFloor):   {0},
		string(keyCounts):        counts{}.encode(),
	}
	for k, v := range rows {
		if err := meta.Put([]byte(k), v); err != nil {
			return err
		}
	}
	return nil
}
