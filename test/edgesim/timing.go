package edgesim

import "time"

// Timing holds the periods of edgeHub. A zero field is the real one.
type Timing struct {
	Reauthenticate time.Duration // between checks for expired tokens; 5 minutes
	MethodHold     time.Duration // from a subscription to the release of queued methods; 3 s
	TwinSync       time.Duration // least time between twin synchronisations after the cloud came back; 2 minutes
	CloudOperation time.Duration // after which an operation on a hanging cloud gives up; 20 s
	ReportedPush   time.Duration // reported properties gather that long before they go to the cloud; 5 s
	Handshake      time.Duration // for TLS and for the CONNECT packet; 30 s
}

// Scaled returns the real periods divided by n, for tests that cannot wait.
func Scaled(n int) Timing {
	t := Timing{}.withDefaults()
	d := time.Duration(n)
	return Timing{
		Reauthenticate: t.Reauthenticate / d,
		MethodHold:     t.MethodHold / d,
		TwinSync:       t.TwinSync / d,
		CloudOperation: t.CloudOperation / d,
		ReportedPush:   t.ReportedPush / d,
		Handshake:      t.Handshake,
	}
}

func (t Timing) withDefaults() Timing {
	for _, f := range []struct {
		field *time.Duration
		real  time.Duration
	}{
		{&t.Reauthenticate, 5 * time.Minute},
		{&t.MethodHold, 3 * time.Second},
		{&t.TwinSync, 2 * time.Minute},
		{&t.CloudOperation, 20 * time.Second},
		{&t.ReportedPush, 5 * time.Second},
		{&t.Handshake, 30 * time.Second},
	} {
		if *f.field == 0 {
			*f.field = f.real
		}
	}
	return t
}
