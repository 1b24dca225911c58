package nested

import (
	"context"
	"io"
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/distribution/distribution/v3/configuration"
	"github.com/distribution/distribution/v3/registry/handlers"
	_ "github.com/distribution/distribution/v3/registry/storage/driver/filesystem" // the driver that the configuration names
	"github.com/sirupsen/logrus"

	"github.com/connected-registry/connected-registry/test/cloud"
)

// kind is a kind of registry above the top layer. Nobody of this project wrote one of them.
type kind struct {
	name  string
	start func(t *testing.T) string // returns where it listens
	all   string                    // the scope that takes everything; olareg has no catalog, so it takes no pattern

	referrers bool // it has the referrers API; else nobody takes a deleted one out of the tag that stands in for it
}

var kinds = []kind{
	{"olareg", startOlareg, "acme/app acme/tool acme/docker acme/recipe", true},
	{"distribution", startDistribution, "acme/*", false},
}

// eachKind runs a test under each of them.
func eachKind(t *testing.T, test func(t *testing.T, k kind)) {
	for _, k := range kinds {
		t.Run(k.name, func(t *testing.T) { test(t, k) })
	}
}

func startOlareg(t *testing.T) string {
	t.Helper()
	c, err := cloud.Start("")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c.Addr
}

func startDistribution(t *testing.T) string {
	t.Helper()
	logrus.SetOutput(io.Discard) // it logs each request through the global logger
	config := &configuration.Configuration{Storage: configuration.Storage{
		"filesystem":  configuration.Parameters{"rootdirectory": t.TempDir()},
		"delete":      configuration.Parameters{"enabled": true},
		"maintenance": configuration.Parameters{"uploadpurging": map[any]any{"enabled": false}},
	}}
	config.Catalog.MaxEntries = 1000
	config.HTTP.Secret = "of no use outside this test"
	ctx, cancel := context.WithCancel(context.Background())
	app := handlers.NewApp(ctx, config)
	return serve(t, app, func() {
		cancel()
		if err := app.Shutdown(); err != nil {
			t.Error(err)
		}
	})
}

// serve answers with the handler on a free port until the test ends.
func serve(t *testing.T, h http.Handler, closed func()) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second}
	done := make(chan struct{})
	go func() {
		_ = server.Serve(ln) // ends with Close
		close(done)
	}()
	t.Cleanup(func() {
		_ = server.Close()
		<-done
		closed()
	})
	return ln.Addr().String()
}
