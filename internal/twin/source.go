package twin

import "context"

// Document is what a source has at one moment: the configuration document, or why it has none.
type Document struct {
	Raw []byte // as it is; nil when Err is set
	Err error  // gone, unreadable or ErrStale; the last good document stays in force
	// Version is the twin's $version, and Generation that of the module's identity (IOTEDGE_MODULEGENERATIONID); zero
	// for a file.
	Version    int64
	Generation string
}

// Source brings the configuration document.
type Source interface {
	// Name is how the status calls the source: file, twin.
	Name() string
	// Watch sends what the source has, at once and then whenever it has changed. A receiver that is slow gets the
	// newest and not what was between. The channel is closed when ctx ends.
	Watch(ctx context.Context) <-chan Document
}
