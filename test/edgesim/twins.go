package edgesim

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"
)

// patch is a desired patch on its way to a module.
type patch struct {
	topic   string
	payload []byte
}

// reorderHold is how long the first of two reordered patches waits for the second.
const reorderHold = 500 * time.Millisecond

var (
	errNoModule = errors.New("no such module")
	errETag     = errors.New("the twin was changed in between")
)

// cloudReachable asks the link to the cloud; a hanging one costs the time of an operation first.
func (d *Device) cloudReachable(ctx context.Context) bool {
	d.mu.Lock()
	online, hang := d.online, d.faults.CloudHang
	d.mu.Unlock()
	if !online {
		return false
	}
	if hang {
		pause(ctx, d.opts.Timing.CloudOperation)
		return false
	}
	return true
}

// answerTwinGet is edgeHub's answer to a GET: the cloud's twin, else the stored one, else an empty one.
func (d *Device) answerTwinGet(ctx context.Context, c *connection, rid string) {
	d.mu.Lock()
	if m := d.modules[c.module]; m != nil {
		m.twinGets++
	}
	d.mu.Unlock()
	if d.twinFault(ctx, c, rid) {
		return
	}
	fromCloud := d.cloudReachable(ctx)
	d.mu.Lock()
	defer d.mu.Unlock()
	m := d.modules[c.module]
	if m == nil {
		return
	}
	twin := Twin{}
	switch {
	case fromCloud:
		twin = m.cloud.Twin
		m.cache = &cachedTwin{Twin: twin.clone(), synced: time.Now()}
	case m.cache != nil:
		twin = m.cache.Twin
	}
	d.respondLocked(c, 200, rid, twin.document())
}

// twinFault delays a twin request's answer, loses it or makes it an error; it is true when the request is done with.
func (d *Device) twinFault(ctx context.Context, c *connection, rid string) bool {
	f := d.Faults()
	if !pause(ctx, f.ResponseDelay) {
		return true
	}
	if f.TwinStatus != 0 {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.respondLocked(c, f.TwinStatus, rid, nil)
		return true
	}
	return false
}

// respondLocked answers a twin request over the connection that asked.
func (d *Device) respondLocked(c *connection, status int, rid string, payload []byte) {
	m := d.modules[c.module]
	if m == nil || m.conn != c || rid == "" {
		return
	}
	if n := &d.faults.LoseResponses; *n != 0 {
		if *n > 0 {
			*n--
		}
		d.bumpLocked()
		return
	}
	d.deliverLocked(m, fmt.Sprintf("%s%d/?$rid=%s", twinResponse, status, rid), payload)
}

// answerReported stores a patch of reported properties, answers 204 whether the cloud is there or not, and lets it go
// to the cloud later.
func (d *Device) answerReported(ctx context.Context, c *connection, rid string, payload []byte) {
	if d.twinFault(ctx, c, rid) {
		return
	}
	patch, err := decodeObject(payload)
	status := 500 // what is no JSON
	if err == nil {
		status = 204
		if err = validateTwin(patch); err != nil {
			status = 400
		}
	}
	if err != nil {
		d.log.Info("reported properties refused", "module", c.module, "error", err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	m := d.modules[c.module]
	if m == nil {
		return
	}
	if status == 204 {
		if m.cache == nil { // edgeHub then stores a twin without desired properties
			m.cache = &cachedTwin{}
		}
		m.cache.Reported = mergePatch(m.cache.Reported, patch)
		m.pending = mergePending(m.pending, patch)
		d.schedulePushLocked(m)
		d.bumpLocked()
	}
	d.respondLocked(c, status, rid, nil)
}

// mergePending gathers patches: a null stays one, since it has to delete in the cloud.
func mergePending(pending, patch map[string]any) map[string]any {
	if pending == nil {
		pending = map[string]any{}
	}
	for k, v := range patch {
		below, isObject := v.(map[string]any)
		was, wasObject := pending[k].(map[string]any)
		if isObject && wasObject {
			pending[k] = mergePending(was, below)
		} else {
			pending[k] = cloneValue(v)
		}
	}
	return pending
}

func (d *Device) schedulePushLocked(m *moduleState) {
	if m.pushing {
		return
	}
	m.pushing = true
	d.spawnLocked(func(ctx context.Context) {
		pause(ctx, d.opts.Timing.ReportedPush)
		reachable := d.cloudReachable(ctx)
		d.mu.Lock()
		defer d.mu.Unlock()
		m.pushing = false
		if reachable && ctx.Err() == nil {
			d.pushLocked(m)
		}
	})
}

func (d *Device) pushLocked(m *moduleState) {
	if len(m.pending) == 0 {
		return
	}
	m.cloud.Reported = mergePatch(m.cloud.Reported, m.pending)
	m.cloud.ReportedVersion++
	m.cloud.etag++
	m.pending = nil
	d.bumpLocked()
}

// SetCloud connects the device to its cloud or cuts it off. When it comes back, waiting reported properties go up and
// modules that are connected get the difference of their desired properties as a patch, unless their twin was fetched
// within Timing.TwinSync.
func (d *Device) SetCloud(online bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.online == online {
		return
	}
	d.online = online
	d.bumpLocked()
	if !online {
		return
	}
	for _, m := range d.modules {
		d.pushLocked(m)
		if m.conn != nil && m.cache != nil && time.Since(m.cache.synced) > d.opts.Timing.TwinSync {
			d.syncLocked(m)
		}
	}
}

// syncLocked makes edgeHub's stored twin the cloud's and sends the module the difference.
func (d *Device) syncLocked(m *moduleState) {
	was := m.cache.Twin
	m.cache = &cachedTwin{Twin: m.cloud.Twin.clone(), synced: time.Now()}
	diff := diffPatch(was.Desired, m.cloud.Desired)
	if was.DesiredVersion != m.cloud.DesiredVersion || len(diff) > 0 {
		d.sendPatchLocked(m, diff, m.cloud.DesiredVersion)
	}
}

// UpdateDesired merges a patch into a module's desired properties in the cloud, as an operator does, and returns the
// new version. patch renders as a JSON object; null deletes.
func (d *Device) UpdateDesired(module string, patch any) (int64, error) {
	return d.changeDesired(module, patch, "", true)
}

// ReplaceDesired replaces a module's desired properties in the cloud.
func (d *Device) ReplaceDesired(module string, document any) (int64, error) {
	return d.changeDesired(module, document, "", false)
}

func (d *Device) changeDesired(module string, change any, etag string, merge bool) (int64, error) {
	o, err := toObject(change)
	if err != nil {
		return 0, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	m := d.modules[module]
	if m == nil {
		return 0, errNoModule
	}
	if !m.cloud.allows(etag) {
		return 0, errETag
	}
	base := m.cloud.Desired
	if !merge {
		base = nil
	}
	after := mergePatch(base, o)
	if err := validateTwin(after); err != nil {
		return 0, err
	}
	delta := diffPatch(m.cloud.Desired, after)
	if merge {
		delta = o
	}
	m.cloud.Desired = after
	m.cloud.DesiredVersion++
	m.cloud.etag++
	d.bumpLocked()
	d.cloudPatchLocked(m, delta)
	return m.cloud.DesiredVersion, nil
}

// allows compares an If-Match header; empty and * match always.
func (c cloudTwin) allows(etag string) bool {
	return etag == "" || etag == "*" || etag == c.etagString()
}

func (c cloudTwin) etagString() string { return "AAAAAAA" + strconv.Itoa(c.etag) }

// cloudPatchLocked is what reaches edgeHub of a change in the cloud: the hub sends patches only for modules that have
// subscribed, and nothing is sent later.
func (d *Device) cloudPatchLocked(m *moduleState, delta map[string]any) {
	if !d.online || d.faults.CloudHang || m.conn == nil || !hasFilter(m.session, patchFilter) {
		return
	}
	if m.cache == nil {
		d.sendPatchLocked(m, delta, m.cloud.DesiredVersion)
		return
	}
	if m.cache.DesiredVersion+1 != m.cloud.DesiredVersion {
		d.syncLocked(m)
		return
	}
	m.cache.Desired = mergePatch(m.cache.Desired, delta)
	m.cache.DesiredVersion = m.cloud.DesiredVersion
	d.sendPatchLocked(m, delta, m.cloud.DesiredVersion)
}

// sendPatchLocked sends a desired patch to a module that is present and has subscribed.
func (d *Device) sendPatchLocked(m *moduleState, delta map[string]any, version int64) {
	if n := &d.faults.LosePatches; *n != 0 {
		if *n > 0 {
			*n--
		}
		return
	}
	payload, err := json.Marshal(withVersion(delta, version))
	if err != nil {
		return
	}
	p := patch{fmt.Sprintf("%s?$version=%d", patchFilter, version), payload}
	if d.faults.ReorderPatches && m.held == nil {
		m.held = &p
		d.spawnLocked(func(ctx context.Context) {
			pause(ctx, reorderHold)
			d.mu.Lock()
			defer d.mu.Unlock()
			if m.held == &p {
				m.held = nil
				d.countPatchLocked(m, p)
			}
		})
		return
	}
	d.countPatchLocked(m, p)
	if held := m.held; held != nil {
		m.held = nil
		d.countPatchLocked(m, *held)
	}
}

func (d *Device) countPatchLocked(m *moduleState, p patch) {
	if d.deliverLocked(m, p.topic, p.payload) {
		m.patches++
		d.bumpLocked()
	}
}

// Twin returns a module's twin in the cloud.
func (d *Device) Twin(module string) Twin {
	d.mu.Lock()
	defer d.mu.Unlock()
	if m := d.modules[module]; m != nil {
		return m.cloud.Twin.clone()
	}
	return Twin{}
}

// CachedTwin returns what edgeHub has stored of a module's twin; false when nothing.
func (d *Device) CachedTwin(module string) (Twin, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if m := d.modules[module]; m != nil && m.cache != nil {
		return m.cache.Twin.clone(), true
	}
	return Twin{}, false
}

// ForgetTwin empties what edgeHub has stored of a module's twin, as a device that was set up anew.
func (d *Device) ForgetTwin(module string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if m := d.modules[module]; m != nil {
		m.cache = nil
	}
}
