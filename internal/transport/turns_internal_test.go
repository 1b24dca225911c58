package transport

import (
	"net/http"
	"net/http/httptest"
	"testing"
	"testing/synctest"
	"time"
)

// TestTurnGoesToWhoWaits: who has used up a turn, stands still for a client or ends gives it to who waits, at that moment;
// before that it is given up only where it waits for the link.
func TestTurnGoesToWhoWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, began := newManners(2, nil), time.Now() // one works at a time
		a, b, c := m.worker(), m.worker(), m.worker()
		works := func(w *worker, n int) (done chan struct{}) {
			done = make(chan struct{})
			go func() {
				defer close(done)
				w.work(t.Context(), Background, n)
			}()
			synctest.Wait()
			return done
		}
		has := func(done chan struct{}, want bool, who string) {
			t.Helper()
			synctest.Wait()
			select {
			case <-done:
			default:
				if want {
					t.Fatalf("%s has no turn", who)
				}
				return
			}
			if !want {
				t.Fatalf("%s has a turn beside another", who)
			}
		}
		rests := func(w *worker) {
			t.Helper()
			if err := w.rest(t.Context(), Background); err != nil {
				t.Fatal(err)
			}
		}
		has(works(a, stint), true, "the first")
		second := works(b, 1)
		has(second, false, "the second")
		rests(a)
		has(second, true, "the second, after the first's stint")
		rests(b)
		has(works(a, 1), true, "the first, while the second waits for the link")
		third := works(c, 1)
		has(third, false, "the third")
		rests(a)
		has(third, false, "the third, which was not told") // it looks itself after a breath
		has(works(b, 1), true, "the second again")
		b.leave()
		has(third, true, "the third, since the second ended")
		if took := time.Since(began); took != 0 {
			t.Errorf("it took %v", took)
		}
		second = works(b, 1)
		m.asked.Add(1)
		go c.rest(t.Context(), Background)
		has(second, true, "the second, while the third stands still for a client")
		if took := time.Since(began); took != 0 {
			t.Errorf("it took %v", took)
		}
	})
}

// TestAhead: a request counts when it begins and when it ends, and is answered.
func TestAhead(t *testing.T) {
	link := NewLink(LinkOptions{})
	asked := &link.manners.asked
	h := link.Ahead(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if n := asked.Load(); n != 1 {
			t.Errorf("counted %d times at its beginning", n)
		}
		w.WriteHeader(http.StatusTeapot)
	}))
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest("GET", "/v2/", nil))
	if n := asked.Load(); n != 2 || w.Code != http.StatusTeapot {
		t.Errorf("counted %d times, answered %d", n, w.Code)
	}
}
