package registry

// ReadinessState says how much of an image is here.
type ReadinessState string

// Complete can be pulled with the parent away; Partial lacks content that the parent is known to have; Unknown is not
// here and the parent could not be asked; OutOfScope is neither here nor configured to come here; Absent is what the
// parent does not have either.
const (
	Complete   ReadinessState = "Complete"
	Partially  ReadinessState = "Partial"
	Unknown    ReadinessState = "Unknown"
	OutOfScope ReadinessState = "OutOfScope"
	Absent     ReadinessState = "Absent"
)

// ImageReadiness is one image of a deployment.
type ImageReadiness struct {
	Image        string         `json:"image"` // as it was asked for
	State        ReadinessState `json:"state"`
	Digest       Digest         `json:"digest,omitempty"`
	MissingBytes int64          `json:"missingBytes"`
	MissingBlobs int            `json:"missingBlobs"`
	Reason       string         `json:"reason,omitempty"`
}

// Readiness answers: can this deployment be rolled out now, without the link, and if not, what is missing?
type Readiness struct {
	Ready        bool             `json:"ready"` // every image is Complete
	Images       []ImageReadiness `json:"images"`
	MissingBytes int64            `json:"missingBytes"` // over all images, shared content once
	FreeBytes    int64            `json:"freeBytes"`    // on the data volume, above its reserve
	Fits         bool             `json:"fits"`         // the missing bytes fit into the free ones
}
