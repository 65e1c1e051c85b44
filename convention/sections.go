package convention

// Section is the anchor of a heading in docs/troubleshooting.md. Messages name the section that explains them. Tests
// check that each has its heading.
type Section string

// The sections about validation messages, log records, and outcomes of logins and calls.
const (
	SectionFile      Section = "the-file"
	SectionFields    Section = "fields-and-values"
	SectionPaths     Section = "paths"
	SectionAddresses Section = "addresses"
	SectionHosts     Section = "hosts"
	SectionFailures  Section = "upstreams-that-fail"
	SectionTLS       Section = "tls"
	SectionOrigins   Section = "origins-cookies-public-services"
	SectionNotes     Section = "warnings-notes-and-envoy"
	SectionOutcomes  Section = "outcomes-of-logins-and-calls"
	SectionLogEvents Section = "log-events"
)

// SectionOfReason returns the section about a reason of a decision or of an explanation. Each has a section of its own.
func SectionOfReason(reason string) Section { return Section(reason) }

// String returns the page and the anchor.
func (s Section) String() string { return "docs/troubleshooting.md#" + string(s) }
