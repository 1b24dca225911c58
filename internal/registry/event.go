package registry

import (
	"encoding/json"
	"time"
)

// EventAction is what happened to an artifact.
type EventAction string

// The actions that are told of.
const (
	EventPush   EventAction = "push"
	EventDelete EventAction = "delete"

	// Of what waits for the parent.
	EventExpired  EventAction = "expired"  // it was not delivered within messageTtl
	EventRefused  EventAction = "refused"  // the parent said no for good
	EventConflict EventAction = "conflict" // the tag had moved at the parent as well as here
)

// The types of events (Azure Event Grid, "Azure Container Registry as an Event Grid source").
const (
	EventImagePushed  = "Microsoft.ContainerRegistry.ImagePushed"
	EventImageDeleted = "Microsoft.ContainerRegistry.ImageDeleted"
)

// The types of events that Azure does not have.
const (
	EventChangeExpired = "ConnectedRegistry.ChangeExpired"
	EventChangeRefused = "ConnectedRegistry.ChangeRefused"
	EventTagConflict   = "ConnectedRegistry.TagConflict"
)

var eventTypes = map[EventAction]string{
	EventPush: EventImagePushed, EventDelete: EventImageDeleted,
	EventExpired: EventChangeExpired, EventRefused: EventChangeRefused, EventConflict: EventTagConflict,
}

// EventOutbox is what an event says of a change that waits, or waited, for the parent.
type EventOutbox struct {
	Entry       uint64       `json:"entry"` // its number, as "outbox list" shows it
	Action      OutboxAction `json:"action"`
	Time        time.Time    `json:"time"` // when it was acknowledged
	Principal   string       `json:"principal,omitempty"`
	Error       string       `json:"error,omitempty"`       // of the last attempt
	Conflict    Conflict     `json:"conflict,omitempty"`    // how it was decided
	Parent      Digest       `json:"parent,omitempty"`      // where the tag stood at the parent
	Overwritten Digest       `json:"overwritten,omitempty"` // which of the two the tag does not stand at any more; it stays pullable by digest
}

// Event says that an artifact came or went here, or what became of a change that waits for the parent.
type Event struct {
	ID         string    // unique; the same when an event is delivered again
	Time       time.Time // when it happened
	Action     EventAction
	Repository string
	Tag        string     // empty for a manifest without a tag, and when a manifest is deleted
	Target     Descriptor // the manifest; of a deleted one the size may be unknown, 0
	Topic      string     // resource of the registry, see EventTopic
	Registry   string     // name of the connected registry
	Outbox     *EventOutbox
}

// EventTopic is the topic of a connected registry's events, as much of the resource ID as is known here: a registry on
// the floor knows no subscription. cloud is the name of the cloud registry at the top; it may be empty.
func EventTopic(cloud, name string) string {
	topic := "/providers/Microsoft.ContainerRegistry"
	if cloud != "" {
		topic += "/registries/" + cloud
	}
	return topic + "/connectedRegistries/" + name
}

// Type returns the event's type.
func (e Event) Type() string { return eventTypes[e.Action] }

// Subject returns the repository alone of what was deleted, and otherwise repository:tag where there is a tag.
func (e Event) Subject() string {
	if e.Action != EventDelete && e.Tag != "" {
		return e.Repository + ":" + e.Tag
	}
	return e.Repository
}

// eventEnvelope is the schema of Event Grid, data version 2.0.
type eventEnvelope struct {
	ID              string    `json:"id"`
	Topic           string    `json:"topic"`
	Subject         string    `json:"subject"`
	EventType       string    `json:"eventType"`
	Data            eventData `json:"data"`
	DataVersion     string    `json:"dataVersion"`
	MetadataVersion string    `json:"metadataVersion"`
	EventTime       time.Time `json:"eventTime"`
}

type eventData struct {
	ID                string      `json:"id"`
	Timestamp         time.Time   `json:"timestamp"`
	Action            EventAction `json:"action"`
	Target            eventTarget `json:"target"`
	ConnectedRegistry struct {
		Name string `json:"name"`
	} `json:"connectedregistry"` // in lower case: what subscriptions filter by
	Outbox *EventOutbox `json:"outbox,omitempty"` // ours
}

type eventTarget struct {
	MediaType  string `json:"mediaType"`
	Size       int64  `json:"size,omitempty"`
	Digest     Digest `json:"digest"`
	Length     int64  `json:"length,omitempty"` // the same as size
	Repository string `json:"repository"`
	Tag        string `json:"tag,omitempty"`
}

// MarshalJSON returns the event as Azure's connected registry sends it: the envelope of Event Grid, data version 2.0,
// with data.connectedregistry.name.
func (e Event) MarshalJSON() ([]byte, error) {
	out := eventEnvelope{
		ID: e.ID, Topic: e.Topic, Subject: e.Subject(), EventType: e.Type(), DataVersion: "2.0", MetadataVersion: "1", EventTime: e.Time.UTC(),
		Data: eventData{
			ID: e.ID, Timestamp: e.Time.UTC(), Action: e.Action, Outbox: e.Outbox,
			Target: eventTarget{
				MediaType: e.Target.MediaType, Size: e.Target.Size, Digest: e.Target.Digest, Length: e.Target.Size,
				Repository: e.Repository, Tag: e.Tag,
			},
		},
	}
	out.Data.ConnectedRegistry.Name = e.Registry
	return json.Marshal(out)
}

// UnmarshalJSON reads what MarshalJSON wrote, so that a queue may keep events as they are sent.
func (e *Event) UnmarshalJSON(raw []byte) error {
	var in eventEnvelope
	if err := json.Unmarshal(raw, &in); err != nil {
		return err
	}
	*e = Event{
		ID: in.ID, Time: in.EventTime, Action: in.Data.Action, Repository: in.Data.Target.Repository, Tag: in.Data.Target.Tag,
		Target: Descriptor{MediaType: in.Data.Target.MediaType, Size: in.Data.Target.Size, Digest: in.Data.Target.Digest},
		Topic:  in.Topic, Registry: in.Data.ConnectedRegistry.Name, Outbox: in.Data.Outbox,
	}
	return nil
}
