// Package access tests who may do what, on the real chain of handlers and on the real binary: every route with every
// kind of permission in both modes, the classes of faults that registries had, and that no secret gets out.
package access
