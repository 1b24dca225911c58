// Package hostile sends requests of any shape to the real binary: nearly right ones and none at all, over HTTP/1.1, TLS
// and HTTP/2, to a registry that takes pushes and to one below it that fetches what it is asked for. Each request that
// HTTP lets a server answer has to get an answer, none of them is a fault of the registry, and all that was there before
// is there afterwards.
//
// HOSTILE_SEED and HOSTILE_REQUESTS repeat a run; CHAOS=long sends 600,000.
package hostile
