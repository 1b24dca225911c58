// Package sim runs a whole chain in one testing/synctest bubble: a cloud registry, three registries below it, in a row or two of
// them side by side, as cmd starts them (package module), clients, links, volumes and clocks. Time is simulated, so that a run of days takes a second; the
// network is in memory; a volume is a directory that knows what of it would survive a loss of power. What happens is a
// plan, a pure function of a seed: pushes, pulls and deletes at every layer, two clients at one tag,
// faults of links, disks, processes, clocks and of the cloud, changes of the configuration. After each step the invariants are looked at.
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
//   - Then no conflict was told of a tag that clients of one place alone moved.
//   - Then nothing is called pushed that no queue tells the parent of, and what was deleted at a layer is not in the cloud.
//   - A tag that was moved at a parent of our own kind, when that had answered for all that was pushed before, stays so,
//     whatever arrives late there.
//   - Each link carries each blob once; again what was removed meanwhile, or was on its way when something broke.
//
// # What it sees
//
// The product was broken in these ways, one at a time. Right of each are some of the seeds 1 to 40, or of the kept plans, that
// failed then:
//
//	a collection that knows no leases                             12 15 19 20 23 24 28 30 31 32
//	partial content of all digests in one file                    1 2 4 6 7 8 9 10 11 12 and 15 more
//	what the parent has of a tag goes over a queued push          11 15 24 28
//	a superseded move of a tag is delivered after the newer one   35
//	a delete does not climb                                       32 35
//	the first entry of the queue is dropped at each start         1 24 36
//	no fsync of a file                                            1 37 40
//	a parent without a sync is not asked again                    30 40; kept plans 292 364 409 822 942
//	a sync settles what the parent may yet lose                   kept plans 292 822 942
//	a parent that lost a tag alone is taken for one who moved it  kept plans 364 409
//	a cursor is kept over one that was dropped                    kept plan 262
//	a parent returns to before two pushes, taken for another's    kept plans parent-cut-twice, parent-cut-twice-newest
//	a request that arrives late is taken for another's            149; kept plans late-put, late-put-layers
//	a request that arrives late moves a tag back                  kept plans late-put-moved, late-put-moved-layers
//	what a layer has from above counts as delivered to it         kept plan pushed-again-after-delete
//	what lost a conflict counts as delivered at once              101; kept plan conflict-lost-with-power
//
// It does not see a row of the index before its file has its name, since the log brings small content back, nor a push whose
// entry of the queue is written in a transaction of its own: each start queues what was pushed and is in no queue. The
// powercut driver and the store's own tests are for these.
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
// A host that sends for hours what it was given for a connection that is closed: what is late is so for 25 minutes at most,
// and is lost when the wall clock of its sender jumps, which says for how long it may be on its way.
//
// A disk that is slow: whoever waits for a lock waits outside of what a bubble knows of, and its time would stand still.
// Bytes that change on their way or at rest: the links of the simulation have no TLS, and rot is the store's own tests'.
//
// The index file is bbolt's own: a power cut takes it as it is, with all that bbolt has written; the driver in powercut
// cuts inside of its commits. A clock that is set back under a running process is not simulated, since its monotonic clock
// cannot be: clocks jump forward, and back while the registry is down.
package sim
