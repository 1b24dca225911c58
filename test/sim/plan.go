package sim

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/connected-registry/connected-registry/internal/registry"
)

// layers is how many registries are below the cloud.
const layers = 3

// plan is all that happens in a run: a pure function of its seed.
type plan struct {
	seed       uint64
	connected  bool // the cloud is a registry of our own kind, else one that nobody of this project wrote
	quiet      bool // nothing breaks: then the links have to carry each byte once
	fork       bool // the two lowest layers are both below the highest one: two floors of one building
	writers    int  // so many layers from the top are ReadWrite
	scope      [layers]int
	cron       [layers]int
	pull       bool
	parentWins bool // a tag that moved at the parent as well stays there, at every layer
	steps      []step
}

// step is one thing that happens. What it means beyond its kind is in the kind.
type step struct {
	kind  *kind
	pause time.Duration // before it
	layer int
	repo  int
	tag   int
	image int
	n     int
}

func (s step) String() string {
	text := s.kind.name
	if s.kind.layer {
		text += fmt.Sprintf(" layer%d", top-s.layer)
	}
	if s.kind.content {
		text += fmt.Sprintf(" %s:%s #%d", repositories[s.repo], tags[s.tag], s.image)
	}
	return fmt.Sprintf("%s (%d)", text, s.n)
}

// top is the number of the layer below the cloud.
const top = 2 + layers

// kind is what a step does.
type kind struct {
	name    string
	weight  int
	fault   bool // not in a quiet run
	layer   bool // it is about one layer
	content bool // it is about a tag or an image
	do      func(w *world, s step) string
}

// The choices of a configuration. Scopes take whole repositories, patterns of tags, or nothing of one.
var (
	scopes = []string{"acme/app acme/tool line/plc", "acme/app acme/tool line/plc", "acme/app acme/tool", "acme/app:v* acme/tool line/plc", "acme/app line/plc:latest"}
	crons  = []string{"* * * * *", "* * * * *", "* * * * *", "*/15 * * * *", "7 * * * *"}
)

// settings may take long to come round: how long for each of crons.
var rounds = []time.Duration{0, 0, 0, 15 * time.Minute, time.Hour}

// newPlan makes the plan of a seed.
func newPlan(seed uint64) plan {
	chance := rand.New(rand.NewPCG(seed, 0x5eed))
	p := plan{
		seed: seed, connected: chance.IntN(3) == 0, quiet: chance.IntN(5) == 0,
		writers: min(chance.IntN(2*layers), layers), pull: chance.IntN(4) != 0, fork: chance.IntN(3) == 0,
	}
	for i := range layers {
		p.scope[i], p.cron[i] = chance.IntN(len(scopes)), chance.IntN(len(crons))
	}
	sum := 0
	for _, k := range kinds {
		if !k.fault || !p.quiet {
			sum += k.weight
		}
	}
	for i := range 20 + chance.IntN(41) {
		s := step{layer: chance.IntN(layers), repo: chance.IntN(len(repositories)), tag: chance.IntN(len(tags)), n: chance.IntN(1000)}
		s.image = chance.IntN(60)
		switch chance.IntN(4) {
		case 0: // at once: what was begun is under way
		case 1:
			s.pause = time.Duration(chance.IntN(500)) * time.Millisecond
		default:
			s.pause = time.Duration(chance.IntN(40000)) * time.Millisecond
		}
		at := chance.IntN(sum)
		if i < 4 {
			at = 0 // something to begin with
		}
		for _, k := range kinds {
			if k.fault && p.quiet {
				continue
			}
			if at -= k.weight; at < 0 {
				s.kind = k
				break
			}
		}
		p.steps = append(p.steps, s)
	}
	p.add(rand.New(rand.NewPCG(seed, 0x1a7e)))
	return p
}

// add adds what came later to a plan, from chances of its own: the plans of the seeds stay what they were, but for that.
func (p *plan) add(chance *rand.Rand) {
	p.parentWins = chance.IntN(3) == 0
	for _, k := range laterKinds {
		if p.quiet || chance.IntN(4) != 0 {
			continue
		}
		s := step{
			kind: k, pause: time.Duration(chance.IntN(40000)) * time.Millisecond, layer: chance.IntN(max(p.writers, 1)),
			repo: chance.IntN(len(repositories)), tag: chance.IntN(len(tags)), image: chance.IntN(60), n: chance.IntN(1000),
		}
		at := 4 + chance.IntN(len(p.steps)-4)
		p.steps = slices.Insert(p.steps, at, s)
	}
}

// above is the parent of a layer; -1 is the cloud.
func (p plan) above(layer int) int {
	if p.fork && layer == layers-1 {
		return 0
	}
	return layer - 1
}

// below reports whether one layer is another, or somewhere below it.
func (p plan) below(layer, other int) bool {
	for layer >= 0 && layer != other {
		layer = p.above(layer)
	}
	return layer == other
}

func (p plan) mode(layer int) registry.Mode {
	if layer < p.writers {
		return registry.ReadWrite
	}
	return registry.ReadOnly
}
