// Package conformance names the OCI distribution specification's own suite, so that its version and its sums are pinned
// apart from what the other tests need. The test in ../interop runs it against the real binary.
package conformance

import _ "github.com/opencontainers/distribution-spec/conformance" // 63 cases, in its test files
