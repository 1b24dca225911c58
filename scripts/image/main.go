// Command image builds the product's container image without a container engine: static binaries for each platform,
// each alone in an image FROM scratch, under one index, as an OCI image layout (OCI image spec, image-layout.md).
// The same sources and the same version of Go give the same bytes.
//
// The image holds no CA certificates: the binary carries the public roots for where the system has none. A site mounts
// its own at /etc/ssl/certs, or gives a bundle at build time with -ca.
//
// Usage, from the root of the repository: go run ./scripts/image [-out DIR] [-version V]
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "image:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("image", flag.ContinueOnError)
	out := flags.String("out", "dist/image", "directory of the OCI image layout; it is replaced")
	pkg := flags.String("package", "./cmd/connected-registry", "package to build")
	version := flags.String("version", "dev", "version, also the name of the image in the layout")
	revision := flags.String("revision", "", "commit, for the image's labels")
	platforms := flags.String("platforms", "linux/amd64,linux/arm64,linux/arm/v7", "platforms, with commas between them")
	binaries := flags.String("binaries", "", "directory that the binaries are put in as well, as connected-registry-OS-ARCH")
	ca := flags.String("ca", "", "PEM file to put at /etc/ssl/certs/ca-certificates.crt")
	if err := flags.Parse(args); err != nil {
		return err
	}
	spec := Spec{Version: *version, Revision: *revision, Created: created()}
	if *ca != "" {
		pem, err := os.ReadFile(*ca)
		if err != nil {
			return err
		}
		spec.CA = pem
	}
	if *binaries == "" {
		tmp, err := os.MkdirTemp("", "connected-registry-image-")
		if err != nil {
			return err
		}
		defer os.RemoveAll(tmp)
		*binaries = tmp
	}
	for name := range strings.SplitSeq(*platforms, ",") {
		begin := time.Now()
		p, err := parsePlatform(name)
		if err != nil {
			return err
		}
		file := filepath.Join(*binaries, "connected-registry-"+strings.ReplaceAll(name, "/", "-"))
		if err := build(ctx, *pkg, file, spec, p); err != nil {
			return err
		}
		body, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		spec.Binaries = append(spec.Binaries, Binary{Platform: p, Body: body})
		fmt.Printf("%-14s %5.1f MiB  %4.1f s\n", name, float64(len(body))/(1<<20), time.Since(begin).Seconds())
	}
	index, err := Write(*out, spec)
	if err != nil {
		return err
	}
	fmt.Printf("%s  %s\n", index.Digest, *out)
	return nil
}

// created is when the sources were made: SOURCE_DATE_EPOCH (seconds), so that a build can be repeated.
func created() time.Time {
	seconds, err := strconv.ParseInt(os.Getenv("SOURCE_DATE_EPOCH"), 10, 64)
	if err != nil {
		seconds = 0
	}
	return time.Unix(seconds, 0).UTC()
}

// parsePlatform takes os/arch[/variant].
func parsePlatform(s string) (ocispec.Platform, error) {
	part := strings.Split(s, "/")
	if len(part) < 2 || len(part) > 3 {
		return ocispec.Platform{}, fmt.Errorf("platform %q: want os/arch[/variant]", s)
	}
	p := ocispec.Platform{OS: part[0], Architecture: part[1]}
	if len(part) == 3 {
		p.Variant = part[2]
	}
	return p, nil
}

// build makes one static binary. The version control stamp is left out: it would tie the bytes to the checkout.
func build(ctx context.Context, pkg, out string, spec Spec, p ocispec.Platform) error {
	stamp := fmt.Sprintf("-s -w -X main.version=%s -X main.built=%s", spec.Version, spec.Created.Format(time.RFC3339))
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=false",
		"-ldflags", stamp, "-o", out, pkg)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS="+p.OS, "GOARCH="+p.Architecture,
		"GOARM="+strings.TrimPrefix(p.Variant, "v"))
	cmd.Stderr = os.Stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("go build for %s/%s: %w", p.OS, p.Architecture, err)
	}
	return nil
}
