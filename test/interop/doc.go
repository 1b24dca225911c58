// Package interop drives the real binary with real clients. Its tests have the build tag interop, because they need
// programs that are not Go: `make test-interop` installs them and runs the tests.
package interop
