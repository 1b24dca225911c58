// Package twin turns the configuration document into registry.Config or into errors that name the field, and brings
// the document here. The document is the desired properties of the module twin; outside IoT Edge the same JSON stands
// in a file. The environment and the connection string of the module are read here too, because they are the part of
// the configuration that a twin must not hold.
//
// A document is validated whole and applied by section, its top-level properties: a section with a bad field keeps
// its old value, the others apply. Who keeps the last good document keeps its bytes, since Parse reads them again
// with the environment of the next start.
package twin
