// Package convention holds what two parts of the gateway must agree on and neither can own: the paths under which Envoy
// reaches the token handler, the bodies and challenges that more than one part sends, the form of a JSON response, and
// the sections of the documentation that messages name. It also has the form of a client's text on a terminal.
package convention

// The paths of the token handler. xds rewrites the paths below tokens.path to them, and tokens/endpoint serves them.
const (
	PathLogin      = "/token"
	PathRevoke     = "/token/revoke"
	PathRefresh    = "/token/refresh"
	PathIntrospect = "/token/introspect"
	PathSessions   = "/token/sessions" // a session has its id as one more segment
)
