package convention

// The reasons of responses that Envoy gives by itself. Package xds has Envoy log them, and package explain returns
// them. The reasons of decisions are those of package authz. docs/troubleshooting.md explains each.
const (
	ReasonPreflight        = "preflight"
	ReasonMethodNotAllowed = "method_not_allowed"
	ReasonNotFound         = "not_found"
	ReasonMalformed        = "malformed"
	ReasonMaintenance      = "maintenance"
	ReasonNoCertificate    = "certificate_missing"
	ReasonUpgradeRefused   = "upgrade_refused"
	ReasonTooManyHeaders   = "too_many_headers"
)
