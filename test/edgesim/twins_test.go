package edgesim_test

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/connected-registry/connected-registry/test/edgesim"
)

func raw(s string) json.RawMessage { return json.RawMessage(s) }

// report sends reported properties and returns the status.
func (c *client) report(t *testing.T, patch string) string {
	t.Helper()
	c.pub(t, reportedTopic+"r", patch)
	m := c.next(t, "$iothub/twin/res/")
	if m.payload != "" {
		t.Errorf("answer with payload %s", m.payload)
	}
	return strings.TrimPrefix(m.topic, "$iothub/twin/res/")
}

func TestReported(t *testing.T) {
	d := device(t)
	c := mustConnect(t, d, login{})
	c.sub(t, resFilter)
	for _, tt := range []struct{ patch, want string }{
		{`{"a":{"b":1,"c":"x"}}`, "204/?$rid=r"},
		{`{"a":{"b":null},"d":[1,2]}`, "204/?$rid=r"},
		{`{"$version":1}`, "400/?$rid=r"},
		{`{"l":[null]}`, "400/?$rid=r"},
		{`nonsense`, "500/?$rid=r"},
		{`[1]`, "500/?$rid=r"},
		{`{} {}`, "500/?$rid=r"},
	} {
		if got := c.report(t, tt.patch); got != tt.want {
			t.Errorf("%s: got %s, want %s", tt.patch, got, tt.want)
		}
	}
	wait(t, d, "reported in the cloud", func() bool { return d.Twin("mod").ReportedVersion > 1 })
	doc, err := json.Marshal(d.Twin("mod").Reported)
	if err != nil || string(doc) != `{"a":{"c":"x"},"d":[1,2]}` {
		t.Errorf("reported %s %v", doc, err)
	}
	c.pub(t, "$iothub/twin/PATCH/properties/reported/", `{"z":1}`) // no request id, no answer
	c.nothing(t, "$iothub/twin/res/")
}

func TestOffline(t *testing.T) {
	const full = `{"desired":{"$version":1,"mode":"ReadOnly","n":1},"reported":{"$version":1}}`
	d := device(t)
	d.SetCloud(false)
	c := mustConnect(t, d, login{})
	c.sub(t, resFilter, patchFilter)
	if got := c.twin(t); got != `{"desired":{},"reported":{}}` {
		t.Errorf("no cache: %s", got)
	}
	if got := c.report(t, `{"up":1}`); got != "204/?$rid=r" {
		t.Errorf("reported offline: %s", got)
	}
	if got := c.twin(t); got != `{"desired":{},"reported":{"up":1}}` {
		t.Errorf("a stored twin of reported properties only: %s", got)
	}
	if d.Twin("mod").ReportedVersion != 1 {
		t.Error("reported properties reached a cloud that is away")
	}
	d.SetCloud(true) // the stored twin was never fetched: the difference is sent at once
	if m := c.next(t, "$iothub/twin/PATCH"); m.payload != `{"$version":1,"mode":"ReadOnly","n":1}` {
		t.Errorf("patch %s", m.payload)
	}
	if got := c.twin(t); got != strings.Replace(full, `"reported":{"$version":1}`, `"reported":{"$version":2,"up":1}`, 1) {
		t.Errorf("online: %s", got)
	}
}

func TestStaleCache(t *testing.T) {
	for name, tt := range map[string]struct {
		sync time.Duration
		want string // the patch when the cloud comes back; empty is none
	}{
		"fetched just now":   {time.Hour, ""},
		"fetched long since": {time.Nanosecond, `{"$version":2,"mode":null,"n":2,"new":{"x":[1]}}`},
	} {
		t.Run(name, func(t *testing.T) {
			d := device(t, func(o *edgesim.Options) { o.Timing.TwinSync = tt.sync })
			c := mustConnect(t, d, login{})
			c.sub(t, resFilter, patchFilter)
			before := c.twin(t)
			d.SetCloud(false)
			update(t, d, `{"n":2,"mode":null,"new":{"x":[1]}}`)
			c.nothing(t, "$iothub/twin/PATCH")
			if got := c.twin(t); got != before {
				t.Errorf("cached twin %s, want %s", got, before)
			}
			d.SetCloud(true)
			if tt.want == "" {
				c.nothing(t, "$iothub/twin/PATCH")
			} else if m := c.next(t, "$iothub/twin/PATCH"); m.payload != tt.want {
				t.Errorf("difference %s", m.payload)
			}
			d.ForgetTwin("mod")
			if _, ok := d.CachedTwin("mod"); ok {
				t.Error("still cached")
			}
		})
	}
}

// TestVersionGap misses a patch while absent: with the next one edgeHub notices, and sends the difference.
func TestVersionGap(t *testing.T) {
	d := device(t, func(o *edgesim.Options) { o.Timing.TwinSync = time.Hour })
	c := mustConnect(t, d, login{})
	c.sub(t, resFilter)
	before := c.twin(t)
	update(t, d, `{"missed":true}`) // without a subscription the cloud sends edgeHub nothing
	d.SetCloud(false)
	if got := c.twin(t); got != before {
		t.Errorf("stored twin %s, want %s", got, before)
	}
	d.SetCloud(true)
	c.sub(t, patchFilter)
	update(t, d, `{"n":2}`)
	if m := c.next(t, "$iothub/twin/PATCH"); m.payload != `{"$version":3,"missed":true,"n":2}` {
		t.Errorf("patch %s", m.payload)
	}
	update(t, d, `{"n":3}`)
	if m := c.next(t, "$iothub/twin/PATCH"); m.payload != `{"$version":4,"n":3}` {
		t.Errorf("patch %s", m.payload)
	}
	if twin, ok := d.CachedTwin("mod"); !ok || twin.DesiredVersion != 4 || twin.Desired["missed"] != true {
		t.Errorf("stored twin %+v", twin)
	}
}

func TestHangingCloud(t *testing.T) {
	d := device(t) // an operation gives up after 333 ms
	c := mustConnect(t, d, login{})
	c.sub(t, resFilter)
	d.SetFaults(func(f *edgesim.Faults) { f.CloudHang = true })
	start := time.Now()
	if got := c.twin(t); got != `{"desired":{},"reported":{}}` {
		t.Errorf("got %s", got)
	}
	if took := time.Since(start); took < 300*time.Millisecond {
		t.Errorf("answered after %s", took)
	}
}

func TestReplaceDesired(t *testing.T) {
	d := device(t)
	c := mustConnect(t, d, login{})
	c.sub(t, resFilter, patchFilter)
	v, err := d.ReplaceDesired("mod", map[string]any{"only": true})
	if err != nil || v != 2 {
		t.Fatal(v, err)
	}
	if m := c.next(t, "$iothub/twin/PATCH"); m.payload != `{"$version":2,"mode":null,"n":null,"only":true}` {
		t.Errorf("patch %s", m.payload)
	}
	for _, bad := range []any{1, raw(`{`), map[string]any{"a b": 1}, map[string]any{"a": strings.Repeat("x", 4097)}} {
		if _, err := d.UpdateDesired("mod", bad); err == nil {
			t.Errorf("%v was accepted", bad)
		}
	}
	if _, err := d.UpdateDesired("nobody", map[string]any{}); err == nil {
		t.Error("a twin of nobody was updated")
	}
}

func TestTwinFaults(t *testing.T) {
	d := device(t)
	c := mustConnect(t, d, login{})
	c.sub(t, resFilter, patchFilter)
	c.twin(t)

	d.SetFaults(func(f *edgesim.Faults) { f.LoseResponses = 1 })
	c.pub(t, "$iothub/twin/GET/?$rid=lost", "")
	c.nothing(t, "$iothub/twin/res/")
	c.twin(t)

	d.SetFaults(func(f *edgesim.Faults) { f.TwinStatus = 429 })
	if got := c.report(t, `{"a":1}`); got != "429/?$rid=r" {
		t.Errorf("got %s", got)
	}
	d.SetFaults(func(f *edgesim.Faults) { f.TwinStatus, f.ResponseDelay = 0, 200*time.Millisecond })
	start := time.Now()
	c.twin(t)
	if took := time.Since(start); took < 200*time.Millisecond {
		t.Errorf("answered after %s", took)
	}
	d.SetFaults(func(f *edgesim.Faults) { f.ResponseDelay, f.LosePatches = 0, 1 })
	update(t, d, `{"n":2}`)
	update(t, d, `{"n":3}`)
	if m := c.next(t, "$iothub/twin/PATCH"); m.payload != `{"$version":3,"n":3}` {
		t.Errorf("patch %s", m.payload)
	}
	d.SetFaults(func(f *edgesim.Faults) { f.ReorderPatches = true })
	for _, n := range []string{"4", "5", "6"} {
		update(t, d, `{"n":`+n+`}`)
	}
	for _, n := range []string{"5", "4", "6"} {
		if m := c.next(t, "$iothub/twin/PATCH"); m.payload != `{"$version":`+n+`,"n":`+n+`}` {
			t.Errorf("patch %s, want version %s", m.payload, n)
		}
	}
	d.SetFaults(func(f *edgesim.Faults) { *f = edgesim.Faults{Duplicate: true} })
	update(t, d, `{"n":7}`)
	a := c.next(t, "$iothub/twin/PATCH")
	if a.dup { // the patch before was still being sent when the fault came
		a = c.next(t, "$iothub/twin/PATCH")
	}
	if b := c.next(t, "$iothub/twin/PATCH"); a.payload != b.payload || a.dup || !b.dup {
		t.Errorf("%+v, %+v", a, b)
	}
	if s := d.Status("mod"); s.TwinGets != 4 || s.Patches != 5 {
		t.Errorf("counted %d requests, %d patches", s.TwinGets, s.Patches)
	}
}
