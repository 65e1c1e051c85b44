// Package convention holds what two parts of the gateway must agree on and neither can own. That is the paths under
// which Envoy reaches the token handler, headers and metrics that one part writes and another reads, and the bodies and
// challenges that more than one part sends. It also has the form of a JSON response, the sections of the documentation
// that messages name, and the form of a client's text on a terminal.
package convention

// The paths of the token handler. xds rewrites tokens.path and the paths below it to them; tokens/endpoint serves them.
const (
	PathLogin      = "/token"
	PathRevoke     = PathLogin + BelowRevoke
	PathRefresh    = PathLogin + BelowRefresh
	PathIntrospect = PathLogin + BelowIntrospect
	PathSessions   = PathLogin + BelowSessions
)

// The other calls, below tokens.path.
const (
	BelowRevoke     = "/revoke"
	BelowRefresh    = "/refresh"
	BelowIntrospect = "/introspect"
	BelowSessions   = "/sessions" // a session has its id as one more segment
)
