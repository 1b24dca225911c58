package powercut

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sync/errgroup"

	"github.com/connected-registry/connected-registry/internal/registry/registrytest"
	"github.com/connected-registry/connected-registry/internal/store"
)

const (
	// large is the option of a volume that is filled before the first start.
	large = "large"
	// largeRepos is how many repositories there are, fillers how many push at once, and largeSize and largeInodes what
	// the volume has room for.
	largeRepos  = 50
	fillers     = 64
	largeSize   = 2 << 30
	largeInodes = "200000"
)

// largeImages is how many images there are, of four blobs each.
func largeImages() int {
	if long {
		return 25_000
	}
	return 2_500
}

// fill puts so many images into an empty volume and leaves the log of the index nearly as long as it gets, which is what
// a start after a cut has to read.
func fill(ctx context.Context, dir string) error {
	s, err := store.Open(ctx, dir, store.Options{})
	if err != nil {
		return err
	}
	images := 0
	push := func(n int) error {
		var group errgroup.Group
		group.SetLimit(fillers)
		for range n {
			i := images
			images++
			group.Go(func() error {
				image := registrytest.NewImage(uint64(1_000_000+i), 100, 200)
				return registrytest.Push(ctx, s, fmt.Sprintf("large/r%02d", i%largeRepos), fmt.Sprint("v", i), image)
			})
		}
		return group.Wait()
	}
	err = push(largeImages())
	for more := 0; err == nil && fileSize(dir, "redo-1") < fileSize(dir, "meta.db")/4*3/4 && more < 100; more++ {
		err = push(200)
	}
	return errors.Join(err, s.Close())
}

// fileSize is the size of a file of the data volume, in bytes; 0 of none.
func fileSize(dir, name string) int64 {
	info, err := os.Stat(filepath.Join(dir, name))
	if err != nil {
		return 0
	}
	return info.Size()
}
