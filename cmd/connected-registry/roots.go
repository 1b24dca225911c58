package main

import (
	"crypto/x509"

	"golang.org/x/crypto/x509roots/fallback/bundle"
)

// publicRoots makes the public roots known that the binary brings along, for the image FROM scratch; those of the system
// win. The standard library takes them once. Reading them was a tenth of the start, so it waits until there is a certificate
// to verify.
func publicRoots() {
	pool := x509.NewCertPool()
	for root := range bundle.Roots() {
		cert, err := x509.ParseCertificate(root.Certificate)
		switch {
		case err != nil: // of a later release of the bundle only
		case root.Constraint != nil:
			pool.AddCertWithConstraint(cert, root.Constraint)
		default:
			pool.AddCert(cert)
		}
	}
	x509.SetFallbackRoots(pool)
}
