// Package nested runs chains of registries in one process, under registries that nobody of this project wrote, over
// links that count and break. Its figures are what `go test -v` prints.
package nested

import (
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m,
		// distribution has no way to end it.
		goleak.IgnoreTopFunction("github.com/docker/go-events.(*Broadcaster).run"))
}
