// Package twin turns the configuration document into registry.Config or into errors that name the field, and brings
// the document here. The document is the desired properties of the module twin; outside IoT Edge the same JSON stands
// in a file. The environment and the connection string of the module are read here too, because they are the part of
// the configuration that a twin must not hold.
//
// A document is validated whole and applied by section, its top-level properties: a section with a bad field keeps
// its old value, the others apply. Who keeps the last good document keeps its bytes, since Parse reads them again
// with the environment of the next start; with them a Record has what tells a newer twin from an older one.
//
// EdgeHub is the module at the hub of its IoT Edge device: it brings the twin, answers direct methods and sends outputs
// and reported properties, which Reported makes of a status and a Reporter keeps current. Workload is what the device's
// security daemon does for the module: signatures, the trust bundle, certificates.
package twin
