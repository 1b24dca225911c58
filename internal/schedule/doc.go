// Package schedule answers when synchronisation and garbage collection run: a five-field cron expression in UTC, and
// a window in ISO 8601 form that bounds an iteration. Everything here is a pure function of the times that it is
// given; nothing reads a clock or starts a timer.
//
// The grammar is that of Azure Container Registry's syncProperties: schedule, syncWindow and messageTtl.
package schedule
