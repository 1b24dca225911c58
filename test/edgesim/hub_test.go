package edgesim_test

import (
	"testing"
)

func TestSmoke(t *testing.T) {
	for _, ws := range []bool{false, true} {
		d := device(t)
		c := mustConnect(t, d, login{webSocket: ws})
		c.sub(t, resFilter, patchFilter)
		if got, want := c.twin(t), `{"desired":{"$version":1,"mode":"ReadOnly","n":1},"reported":{"$version":1}}`; got != want {
			t.Fatalf("got %s, want %s", got, want)
		}
	}
}
