package module

import (
	"context"

	"github.com/connected-registry/connected-registry/internal/transport"
)

// usedBudget is the document of what was used of the byte budgets.
const usedBudget = "transfer/budget"

// newLink makes the gate of all bytes to and from the parent. It outlives a change of the parent.
func (m *Module) newLink(ctx context.Context) *transport.Link {
	kept, err := m.store.Document(ctx, usedBudget)
	if err != nil {
		m.log.Error("the use of the byte budget cannot be read: it counts from zero", "error", err)
	}
	keep := context.WithoutCancel(ctx) // the last bytes are counted while the module stops
	return transport.NewLink(transport.LinkOptions{
		Now: m.clock.Now, Kept: kept, Logger: m.log, Busy: m.o.Busy,
		Keep: func(used []byte) error { return m.store.PutDocument(keep, usedBudget, used) },
	})
}
