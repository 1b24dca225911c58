package store

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"go.etcd.io/bbolt"

	"github.com/connected-registry/connected-registry/internal/registry"
)

// migrations[i] turns version i+1 into i+2. All that are needed run in one transaction with the new number, so that a
// power cut in the middle leaves the old version. Each adds an index that it left behind to testdata.
var migrations = []migration{
	func(*bbolt.Tx) error { return nil }, // 2: the seal, which each migration makes anew
	func(*bbolt.Tx) error { return nil }, // 3: without its log the index may not be what was acknowledged, see cover.go
	func(*bbolt.Tx) error { return nil }, // 4: its snapshots are packed, see pack.go
}

type migration func(*bbolt.Tx) error

// keptName is the copy of an index as it was before its migration from a version: what the release before can use.
func keptName(version uint64) string { return fmt.Sprintf("%s.schema-%d", indexName, version) }

// migrate makes a new index, or brings an older one up to the version after the last migration, with a copy of what was
// there in dir. Errors: UNSUPPORTED for a newer one.
func migrate(db *bbolt.DB, instanceID, dir string, list []migration) error {
	target := uint64(len(list) + 1)
	version := uint64(0) // none: a new file
	err := db.View(func(btx *bbolt.Tx) error {
		meta := btx.Bucket(bucketMeta)
		if meta == nil {
			return nil
		}
		var n int
		if version, n = binary.Uvarint(meta.Get(keySchemaVersion)); n <= 0 || version == 0 {
			return errDamaged
		}
		return nil
	})
	switch {
	case err != nil:
		return err
	case version == target: // a start without news writes nothing
		return complete(db)
	case version > target:
		return registry.ErrUnsupported.WithMessage("the data volume was written by a newer release (schema %d, this release knows %d): "+
			"start that release again, or use an empty volume", version, target)
	case version == 0:
		return db.Update(func(btx *bbolt.Tx) error { return initialise(btx, instanceID, target) })
	}
	if err := keep(db, filepath.Join(dir, keptName(version))); err != nil {
		return fmt.Errorf("copy of the index before its migration from schema %d: %w", version, err)
	}
	err = db.Update(func(btx *bbolt.Tx) error {
		for v := version; v < target; v++ {
			if err := list[v-1](btx); err != nil {
				return fmt.Errorf("migration of the index from schema %d: %w", v, err)
			}
		}
		if err := btx.Bucket(bucketMeta).Put(keySchemaVersion, binary.AppendUvarint(nil, target)); err != nil {
			return err
		}
		return reseal(btx)
	})
	return errors.Join(err, complete(db))
}

// keep copies an index durably.
func keep(db *bbolt.DB, path string) error {
	err := db.View(func(btx *bbolt.Tx) error { return btx.CopyFile(path, 0o600) })
	if err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return err
	}
	return OSFS{}.SyncDir(filepath.Dir(path))
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

func initialise(btx *bbolt.Tx, instanceID string, version uint64) error {
	for _, name := range [][]byte{bucketMeta, bucketBlobs, bucketRepos, bucketChanges, bucketLocks, bucketDocuments} {
		if _, err := btx.CreateBucket(name); err != nil {
			return err
		}
	}
	meta := btx.Bucket(bucketMeta)
	rows := map[string][]byte{
		string(keySchemaVersion): binary.AppendUvarint(nil, version),
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
	return reseal(btx)
}
