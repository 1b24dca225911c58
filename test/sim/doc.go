// Package sim runs a whole chain in one testing/synctest bubble: a cloud registry, three registries below it as cmd starts
// them (package module), clients, links, volumes and clocks. Time is simulated, so that a run of days takes a second; the
// network is in memory; a volume is a directory that knows what of it would survive a loss of power. What happens is a
// plan, a pure function of a seed: pushes, pulls and deletes at every layer, faults of links, disks, processes and clocks,
// changes of the configuration. After each step the invariants are looked at.
//
// # To see a seed again
//
//	cd test && SIM_SEED=123 go test -count=1 -v -run '^TestSeeds$' ./sim
//
// prints each step with its moment and its result. SIM_SHRINK=1 looks for the fewest steps that still fail, SIM_LOG=1 shows
// the logs of all registries. SIM_SEEDS and SIM_FROM say how many seeds are run, and from which on.
//
// A seed that fails leaves its plan in testdata. Such plans are run first, always: commit them. They are kept as steps and
// not as seeds, because a seed means another plan when a kind of step is added.
//
// # What is looked at
//
//   - What a client was told to be there is there, at the layer that told it, until somebody deletes it.
//   - Whatever a tag points at is complete, has the right bytes, and was pushed to that tag by somebody.
//   - What is here is served within a second, whatever the links do. Nobody waits for an answer for ever.
//   - When all is mended, each layer has what its parent has, within a bound of simulated time.
//   - Each link carries each blob once; again what was removed meanwhile, or was on its way when something broke.
//
// # What is the same each time
//
// Plan, content, ids, chances of the product and of the faults come from the seed, and time moves only when everybody
// waits, so steps have the same results each time. Not determined is the order of what goroutines do at one and the same
// moment: the order of simultaneous requests over a link, and with it which operation of a disk is the n-th (steps "crash
// soon"). Of 80 plans that were run twice, one had another result in one step for that reason.
//
// # What is not simulated
//
// The index file is bbolt's own: a power cut takes it as it is, with all that bbolt has written; the driver in powercut
// cuts inside of its commits. A clock that is set back under a running process is not simulated, since its monotonic clock
// cannot be: clocks jump forward, and back while the registry is down.
package sim
