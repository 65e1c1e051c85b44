package definitions

import (
	"strings"

	"google.golang.org/protobuf/reflect/protoreflect"
)

// foreignField is a field of another gateway's configuration.
type foreignField struct {
	// field is the corresponding field here. It is empty if there is none.
	field  protoreflect.Name
	remedy string
}

// meant is a foreign field that has the same meaning as a field here.
func meant(field protoreflect.Name) foreignField {
	return foreignField{field, "did you mean " + string(field) + "?"}
}

// whereItRuns is the remedy for other names of the address of a service.
var whereItRuns = foreignField{"upstreams", `did you mean upstreams? write a list of addresses, such as upstreams: ["http://orders:8080"]`}

// foreignFields are field names that users of nginx, Traefik, Kong, Envoy and Caddy know, and that nearest cannot find.
// :: message → name in lower case without hyphens and underscores → field
var foreignFields = map[protoreflect.Name]map[string]foreignField{
	"Gateway": {
		"routes": meant("services"), "routers": meant("services"), "apis": meant("services"), "locations": meant("services"),
		"upstreams": {"", "write upstreams below each of services"},
		"bind":      meant("listen"), "address": meant("listen"), "entrypoints": meant("listen"), "listeners": meant("listen"),
		"port":           {"listen", "did you mean listen? write an IP address and a port, such as listen: 0.0.0.0:5500"},
		"auth":           {"tokens", "the login is tokens.authenticator; whether a service needs a token is its field authenticate"},
		"jwt":            {"tokens", "the gateway issues its tokens itself; see tokens.authenticator"},
		"trustedproxies": {"client_addresses", "write client_addresses: {trusted_proxies: [10.0.0.0/8]}"},
		"proxyprotocol":  {"client_addresses", "write client_addresses: {trusted_proxies: [10.0.0.0/8], proxy_protocol: true}"},
		"realip":         meant("client_addresses"), "forwardedheaders": meant("client_addresses"),
		"redis":    {"", "give --redis URL to gatepost, or set GATEPOST_REDIS"},
		"loglevel": {"", "give --log-level to gatepost, or set GATEPOST_LOG_LEVEL"},
	},
	"Service": {
		"methods": meant("allowed_methods"), "verbs": meant("allowed_methods"),
		"auth": meant("authenticate"), "authentication": meant("authenticate"), "secured": meant("authenticate"),
		"protected": meant("authenticate"), "requireauth": meant("authenticate"),
		"public":      {"authenticate", "write authenticate: false for a public service"},
		"anonymous":   {"authenticate", "write authenticate: false for a public service"},
		"stripprefix": {"keep_prefix", "remove it: the prefix is stripped unless keep_prefix is true"},
		"strippath":   {"keep_prefix", "remove it: the prefix is stripped unless keep_prefix is true"},
		"prefix":      meant("path"), "pathprefix": meant("path"), "location": meant("path"), "route": meant("path"),
		"paths":    {"path", "did you mean path? a service has one; write one service for each"},
		"host":     {"hosts", `did you mean hosts? write a list of names that clients use; where the service runs is in upstreams`},
		"hostname": meant("hosts"), "hostnames": meant("hosts"), "domain": meant("hosts"), "domains": meant("hosts"),
		"servername": meant("hosts"), "virtualhosts": meant("hosts"),
		"url": whereItRuns, "urls": whereItRuns, "uri": whereItRuns, "backend": whereItRuns, "backends": whereItRuns, "target": whereItRuns,
		"targets": whereItRuns, "server": whereItRuns, "servers": whereItRuns, "proxypass": whereItRuns, "endpoints": whereItRuns, "address": whereItRuns,
		"port":           {"upstreams", `write the port in upstreams, such as ["http://orders:8080"]`},
		"timeoutms":      {"timeout", "did you mean timeout? write it with its unit, such as timeout: 1500ms"},
		"timeoutseconds": {"timeout", "did you mean timeout? write it with its unit, such as timeout: 15s"},
		"readtimeout":    meant("timeout"), "proxyreadtimeout": meant("timeout"), "requesttimeout": meant("timeout"),
		"ws":   meant("websocket"),
		"cors": {"", "cors stands at the top of the file, for all services"},
	},
	"Tokens": {
		"ttl": meant("lifetime"), "expiry": meant("lifetime"), "expiresin": meant("lifetime"),
		"auth": meant("authenticator"), "url": {"", "write it below authenticator"},
	},
	"Cors": {
		"origins":        {"", "origins stands at the top of the file"},
		"alloworigins":   {"", "did you mean origins? it stands at the top of the file"},
		"allowedorigins": {"", "did you mean origins? it stands at the top of the file"},
		"methods":        {"", "browsers receive the allowed_methods of each service"},
		"allowmethods":   {"", "browsers receive the allowed_methods of each service"},
		"allowedmethods": {"", "browsers receive the allowed_methods of each service"},
		"headers":        meant("allow_headers"), "exposedheaders": meant("expose_headers"), "credentials": meant("allow_credentials"),
	},
	"Authenticator": {
		"timeoutms": {"timeout", "did you mean timeout? write it with its unit, such as timeout: 1500ms"},
		"uri":       meant("url"), "address": meant("url"), "endpoint": meant("url"), "upstream": meant("url"),
	},
}

// foreign returns the field that corresponds to a name of another gateway.
func foreign(message protoreflect.MessageDescriptor, name string) (foreignField, bool) {
	plain := strings.NewReplacer("_", "", "-", "").Replace(strings.ToLower(name))
	found, ok := foreignFields[message.Name()][plain]
	return found, ok
}
