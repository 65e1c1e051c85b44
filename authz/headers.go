package authz

import "strconv"

// HeaderStreamDuration is the request header that limits how long the stream to the upstream may live, in milliseconds.
// Envoy's router removes it. (Envoy docs, "Router", x-envoy-upstream-stream-duration-ms.)
const HeaderStreamDuration = "x-envoy-upstream-stream-duration-ms"

// headerChanges are what an allow changes in a request on its way to the upstream, and in the response.
type headerChanges struct {
	set    []field // replaces all headers of the same name
	remove []string
	// response is added to the upstream's response if that has no header of its name. Without a name: nothing.
	response field
}

// headerChanges returns the changes of a decision that lets the request pass.
//
// The response for a public route removes the identity header. The filter before this one has removed the client's
// already, but if that filter were ever missing or placed behind this one, the client could choose its identity.
func (d *Decision) headerChanges() (c headerChanges) {
	if d.Reason == ReasonTokenKnown {
		c.set = append(c.set, field{d.rule.userHeader, d.User})
		if d.left > 0 {
			c.set = append(c.set, field{HeaderStreamDuration, strconv.FormatInt(milliseconds(d.left), 10)})
		}
	} else {
		c.remove = append(c.remove, d.rule.userHeader)
	}
	if d.rule.forwardToken {
		return c
	}
	if d.Reason == ReasonTokenKnown { // on public routes Envoy removes it if it is a token of ours
		c.remove = append(c.remove, headerAuthorization)
	}
	c.replace(headerCookie, d.stripped.cookie)
	c.replace(headerSubprotocols, d.stripped.subprotocols)
	if d.stripped.marked {
		c.response = field{headerSubprotocols, d.rule.subprotocol}
	}
	return c
}

// replace replaces a header by its remainder.
func (c *headerChanges) replace(name string, r remainder) {
	switch {
	case !r.changed:
	case r.value == "":
		c.remove = append(c.remove, name)
	default:
		c.set = append(c.set, field{name, r.value})
	}
}
