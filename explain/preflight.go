package explain

import (
	"fmt"
	"slices"
	"strings"

	"gatepost/definitions"
)

// preflightReason returns what a browser concludes from the response to a preflight (Fetch
// standard, "CORS-preflight fetch"), and what to change if it does not send the request.
func (e *Explainer) preflightReason(x *exchange, service *definitions.Service) (why, change string) {
	if x.origin == "" {
		return "a browser will not make the call: its origin is not on the list", e.listOrigin(x)
	}
	var faults, changes []string
	method := x.header.value("access-control-request-method")
	if !listed(x.reply.header.value("access-control-allow-methods"), method, func(a, b string) bool { return a == b }) {
		if slices.Contains([]string{"GET", "HEAD", "POST"}, method) { // CORS-safelisted: no preflight restricts these
			return fmt.Sprintf("%s is not allowed here; the browser sends %s all the same, and gets 405", method, method), e.addMethod(method, service)
		}
		faults, changes = append(faults, method+" is not allowed here"), append(changes, e.addMethod(method, service))
	}
	var missing []string
	for name := range strings.SplitSeq(x.header.value("access-control-request-headers"), ",") {
		if name = strings.Trim(name, " \t"); name != "" && !listed(x.reply.header.value("access-control-allow-headers"), name, strings.EqualFold) {
			missing = append(missing, name)
		}
	}
	switch len(missing) {
	case 0:
	case 1:
		faults = append(faults, fmt.Sprintf("the header %s is not in cors.allow_headers", missing[0]))
		changes = append(changes, fmt.Sprintf("add it to cors.allow_headers in %s", e.definitions.Name))
	default:
		faults = append(faults, fmt.Sprintf("the headers %s are not in cors.allow_headers", strings.Join(missing, ", ")))
		changes = append(changes, fmt.Sprintf("add them to cors.allow_headers in %s", e.definitions.Name))
	}
	if len(faults) == 0 {
		return "the response lists what the browser may send", ""
	}
	return "a browser does not send the request: " + strings.Join(faults, ", and "), strings.Join(changes, ", and ")
}

// listed reports whether a comma-separated list has the value.
func listed(list, value string, equal func(a, b string) bool) bool {
	for one := range strings.SplitSeq(list, ",") {
		if equal(strings.TrimSpace(one), value) {
			return true
		}
	}
	return false
}

// addMethod returns how to allow a method. The methods of the gateway's own paths are fixed.
func (e *Explainer) addMethod(method string, service *definitions.Service) string {
	if service == nil {
		return "send a method that is allowed"
	}
	return fmt.Sprintf("add %s to allowed_methods of %q at %s", method, service.Name, e.location(service))
}
