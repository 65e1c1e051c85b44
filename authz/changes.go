package authz

import "strconv"

// headerStreamDuration is the request header by which Envoy's router learns how long the stream to the upstream may live, in
// milliseconds; it takes the header out. (Envoy docs, "Router", x-envoy-upstream-stream-duration-ms.)
const headerStreamDuration = "x-envoy-upstream-stream-duration-ms"

// changes are what an allow does to a request on its way to the upstream.
type changes struct {
	set    [4]field // each put in the place of all that the request has under its name
	sets   int
	remove [3]string
	drops  int
	// answer is put into the upstream's answer where that has none of its name; without a name: nothing.
	answer field
}

// changes returns what follows from a verdict that lets the request pass.
//
// A public route's answer names the identity header in remove: the filter before this one has taken out what the
// client sent, but where it is ever missing or put behind this one, an answer without a word about the
// header would let a client say who it is.
func (v *verdict) changes() (c changes) {
	if v.reason == tokenKnown {
		c.put(v.rule.userHeader, v.user)
		if v.left > 0 {
			c.put(headerStreamDuration, strconv.FormatInt(milliseconds(v.left), 10))
		}
	} else {
		c.drop(v.rule.userHeader)
	}
	if v.rule.forwardToken {
		return c
	}
	if v.reason == tokenKnown { // on public routes Envoy removes it, if it is a token of ours
		c.drop(headerAuthorization)
	}
	c.leave(headerCookie, v.shown.cookie)
	c.leave(headerSubprotocols, v.shown.subprotocols)
	if v.shown.marked {
		c.answer = field{headerSubprotocols, v.rule.subprotocol}
	}
	return c
}

func (c *changes) put(name, value string) {
	c.set[c.sets] = field{name, value}
	c.sets++
}

func (c *changes) drop(name string) {
	c.remove[c.drops] = name
	c.drops++
}

// leave leaves of a header what is left of it.
func (c *changes) leave(name string, r rest) {
	switch {
	case !r.changed:
	case r.value == "":
		c.drop(name)
	default:
		c.put(name, r.value)
	}
}
