// Package registry is the vocabulary of the product: the nouns of the OCI distribution specification and of the
// connected registry, the errors that clients see, and the small interfaces that every layer speaks.
//
// It performs no I/O and imports no other package of the product. Whatever stores, serves, fetches or filters
// content is an implementation of the interfaces in registry.go, named by the technology or the role that it adds.
// Each of them passes the suite in registrytest.
package registry
