package admin

import "net/url"

// The paths of the calls that the commands make too.
const (
	PathStatus   = "/api/v1/status"
	PathOverview = "/api/v1/overview"
	PathServices = "/api/v1/services"
	PathDenials  = "/api/v1/denials"
	PathLookup   = "/api/v1/lookup"

	pathUsers    = "/api/v1/users/"
	pathSessions = "/api/v1/sessions/"
	ofUser       = "/sessions"
)

// PathUserSessions returns the path of a user's sessions.
func PathUserSessions(user string) string { return pathUsers + url.PathEscape(user) + ofUser }

// PathSession returns the path of a session.
func PathSession(id string) string { return pathSessions + url.PathEscape(id) }
