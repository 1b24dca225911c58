package edgesim

import "time"

// Faults are the switches. The zero value is a healthy device. Counters count down as the fault strikes; a negative
// one never ends.
type Faults struct {
	// edgeHub, connections
	ConnackDelay  time.Duration // the CONNACK comes that late
	Refuse        byte          // this return code instead of 0: 3 server unavailable, 5 not authorised
	DropConnects  int           // that many connections are closed instead of answered
	BlackHole     bool          // bytes in both directions wait until it ends; connections stay open
	HubDown       bool          // nothing listens on the ports of edgeHub; connections are cut
	WrongCert     bool          // edgeHub presents a certificate of an unknown authority
	WrongHostCert bool          // edgeHub presents a certificate for another name
	ExpiredCert   bool          // edgeHub presents a certificate that ended yesterday

	// edgeHub, twins and methods
	LoseResponses   int           // that many answers to twin requests are not sent
	ResponseDelay   time.Duration // answers to twin requests come that late
	TwinStatus      int           // twin requests are answered by this status, as 429 or 500, and do nothing
	Duplicate       bool          // each message with QoS 1 is sent twice
	LosePatches     int           // that many desired patches are not sent
	ReorderPatches  bool          // each second patch is sent before the first
	LoseMethods     int           // that many method requests are not sent; their callers get 504
	RefuseSubscribe bool          // subscriptions are answered by 0x80

	// the cloud, besides SetCloud
	CloudHang bool // operations on the cloud give up after Timing.CloudOperation, as long as SetCloud(true) holds

	// the device
	Clock time.Duration // the device's clock is that far ahead of Options.Now

	// the workload API
	WorkloadDown   bool          // connections are refused
	WorkloadStatus int           // every request is answered by this status
	WorkloadDelay  time.Duration // every answer comes that late
	WorkloadBroken bool          // answers are cut in the middle
	WrongBundle    bool          // trust-bundle holds an unrelated root
	EmptyBundle    bool          // trust-bundle holds nothing
}

// SetFaults changes the switches; what the change implies (sockets closed, connections cut) is done on return. After
// Close it does nothing.
func (d *Device) SetFaults(change func(*Faults)) {
	d.switching.Lock()
	defer d.switching.Unlock()
	d.mu.Lock()
	if d.closed {
		d.mu.Unlock()
		return
	}
	was := d.faults
	change(&d.faults)
	now := d.faults
	d.bumpLocked()
	d.mu.Unlock()

	d.hole.set(now.BlackHole)
	if was.HubDown != now.HubDown {
		if now.HubDown {
			d.hub.stopListening()
			d.hub.cutAll()
		} else if err := d.hub.listen(); err != nil {
			d.log.Error("edgeHub cannot listen again", "error", err)
		}
	}
	if was.WorkloadDown != now.WorkloadDown {
		for _, w := range d.workloads() {
			if now.WorkloadDown {
				w.stop()
			} else if err := w.listen(); err != nil {
				d.log.Error("the workload API cannot listen again", "error", err)
			}
		}
	}
}

// Faults returns the switches as they stand.
func (d *Device) Faults() Faults {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.faults
}

// strike reports whether a counted fault strikes now, and counts it.
func (d *Device) strike(counter func(*Faults) *int) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	n := counter(&d.faults)
	if *n == 0 {
		return false
	}
	if *n > 0 {
		*n--
	}
	d.bumpLocked()
	return true
}
