package convention

// The request headers that Envoy writes for every part behind it. It removes a client's own.
const (
	// HeaderClientAddress has the client's address. It must come with a Check if clients come through trusted proxies: the
	// source of a Check is the proxy then.
	HeaderClientAddress = "x-envoy-external-address"
	// HeaderRequestID has the id of the request. Clients receive it too if there is an access log.
	HeaderRequestID = "x-request-id"
)
