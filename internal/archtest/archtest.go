// Package archtest holds the rules of internal/README.md as a test. It reads the sources themselves, not the answer of
// a tool, because go test caches by the files that a test opens: a forbidden import is seen at once.
package archtest
