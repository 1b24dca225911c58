package transport

import "testing"

// TestProcessorIsOffered: a transfer that nobody waits for offers its processor to the rest of the machine before and after
// each piece, has the runtime look for clients while it works on it, and one that a client waits for does neither.
func TestProcessorIsOffered(t *testing.T) {
	for class, want := range map[Class]int{Background: 6, First: 6, Waiting: 0} {
		offers, looks := 0, 0
		m := newManners(2, nil)
		m.offer, m.look = func() { offers++ }, func() { looks++ }
		w := m.worker()
		for range 3 {
			if err := w.rest(t.Context(), class); err != nil {
				t.Fatal(err)
			}
			w.work(t.Context(), class, maxPiece)
		}
		w.leave()
		if offers != want || looks != want/2 {
			t.Errorf("class %d: %d offers and %d looks, want %d and %d", class, offers, looks, want, want/2)
		}
	}
}
