// Package registrytest holds what every implementation of registry.Registry is tested with: the conformance suite
// ([Test], and [TestReader] for what only reads), the plain in-memory registry ([NewMemory]) that passes it, and
// makers of images, indexes and referrers whose bytes follow from a seed.
//
// The suite asks for what the interfaces in package registry promise and for nothing that they leave open.
package registrytest
