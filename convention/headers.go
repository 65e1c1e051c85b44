package convention

// The request headers that Envoy writes for every part behind it. It removes a client's own, unless it appends to them.
const (
	// HeaderClientAddress has the client's address. It must come with a Check if clients come through trusted proxies: the
	// source of a Check is the proxy then.
	HeaderClientAddress = "x-envoy-external-address"
	// HeaderForwardedFor has the peer's address at its end. What is before that comes from the client.
	HeaderForwardedFor = "x-forwarded-for"
	// HeaderRequestID has the id of the request. Clients receive it too if there is an access log.
	HeaderRequestID = "x-request-id"
)

// HeaderIdentity is the request header with the user's id, if the definitions do not name another one.
const HeaderIdentity = "x-user-id"
