package convention

import "log/slog"

// Event is what a log record is about, in a few words that stay the same if the message changes. Log records have it as
// event.action, a field of the Elastic Common Schema. docs/troubleshooting.md explains each.
type Event string

// The events of Gatepost's own log. The access log of Envoy has none.
const (
	EventRequestDenied         Event = "request-denied"
	EventRequestUndecided      Event = "request-undecided"
	EventLogin                 Event = "login"
	EventRefresh               Event = "refresh"
	EventRevoke                Event = "revoke"
	EventSessionEnded          Event = "session-ended"
	EventDefinitionsRead       Event = "definitions-read"
	EventDefinitionsApplied    Event = "definitions-applied"
	EventDefinitionsRejected   Event = "definitions-rejected"
	EventCertificateRequested  Event = "certificate-requested"
	EventCertificateChallenged Event = "certificate-challenged"
	EventCertificateRenewed    Event = "certificate-renewed"
	EventCertificateFailed     Event = "certificate-failed"
	EventAdminRefused          Event = "admin-refused"
	EventAdminLinkOpened       Event = "admin-link-opened"
	EventAdminRollback         Event = "admin-rollback"
	EventAdminForgive          Event = "admin-forgive"
)

// MessageWithoutModule is the log message for an Envoy without the module: from its start, or after it has rejected the
// module. It has no event.
const MessageWithoutModule = "Envoy does not check tokens by itself, it asks about each request"

// Attr returns the attribute of a log record about the event.
func (e Event) Attr() slog.Attr { return slog.String("event.action", string(e)) }
