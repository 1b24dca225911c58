package transport

import "testing"

// TestProcessorIsOffered: a transfer that nobody waits for offers its processor to the rest of the machine before and after
// each piece, and one that a client waits for keeps it.
func TestProcessorIsOffered(t *testing.T) {
	for class, want := range map[Class]int{Background: 6, First: 6, Waiting: 0} {
		offers := 0
		m := newManners(2, nil)
		m.offer = func() { offers++ }
		w := m.worker()
		for range 3 {
			if err := w.rest(t.Context(), class); err != nil {
				t.Fatal(err)
			}
			w.work(t.Context(), class, maxPiece)
		}
		w.leave()
		if offers != want {
			t.Errorf("class %d: %d offers, want %d", class, offers, want)
		}
	}
}
