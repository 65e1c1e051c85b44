package authz

import (
	"strings"

	"gatepost/tokens"
)

// credentials gathers the tokens that a request shows. They may come in several places at once, and must then be one
// token: which of two was meant is not guessed.
type credentials struct {
	token tokens.Hash
	any   bool // whether one was shown
	bad   bool // whether what was shown is no token, or two
}

func (c *credentials) add(token tokens.Token, err error) {
	if err != nil {
		c.bad = true
		return
	}
	h := token.Hash()
	if c.any && h != c.token {
		c.bad = true
	}
	c.token, c.any = h, true
}

func (c *credentials) authorization(value string) {
	if value != "" {
		c.add(tokens.FromAuthorization(value))
	}
}

// shown is what of a request's headers goes on to the upstream once the tokens in them are taken out.
type shown struct {
	cookie, subprotocols rest
	// marked says whether the client offers the subprotocol that names the form alone, without a token: it takes it for
	// an answer where the upstream speaks none.
	marked bool
}

// rest is what is left of a header.
type rest struct {
	changed bool   // whether anything was taken out
	value   string // empty: the header goes as a whole
}

// look takes down the tokens that the request shows in the places which the rule allows beside Authorization.
func (q *request) look(r *rule, c *credentials) (s shown) {
	if r.cookie != "" && q.cookie != "" {
		s.cookie = lookInCookies(q.cookie, r.cookie, c)
	}
	if r.subprotocol != "" && q.subprotocols != "" {
		s.subprotocols, s.marked = lookInSubprotocols(q.subprotocols, r.subprotocol, c)
	}
	return s
}

// lookInCookies reads a Cookie header (RFC 6265 §4.2.1). Envoy joins several by commas, which no browser sends
// (§5.4): one that may have been hidden so is neither looked for nor let through.
func lookInCookies(header, name string, c *credentials) rest {
	var left rest
	var kept []string
	for pair := range strings.SplitSeq(header, ";") {
		pair = strings.Trim(pair, " \t")
		key, value, _ := strings.Cut(pair, "=")
		if strings.TrimRight(key, " \t") == name {
			left.changed = true
			if value = strings.TrimLeft(value, " \t"); value != "" { // a cookie that was cleared shows nothing
				c.add(tokens.Parse(value))
			}
			continue
		}
		if hides(pair, name) {
			c.bad = true
			return rest{changed: true}
		}
		if pair != "" {
			kept = append(kept, pair)
		}
	}
	if left.changed {
		left.value = strings.Join(kept, "; ")
	}
	return left
}

// hides says whether a comma in a cookie is followed by the name.
func hides(pair, name string) bool {
	_, after, found := strings.Cut(pair, ",")
	for found {
		var one string
		one, after, found = strings.Cut(after, ",")
		key, _, _ := strings.Cut(one, "=")
		if strings.Trim(key, " \t") == name {
			return true
		}
	}
	return false
}

// lookInSubprotocols reads a Sec-WebSocket-Protocol header (RFC 6455 §11.3.4), which may come as several.
func lookInSubprotocols(header, name string, c *credentials) (left rest, marked bool) {
	var kept []string
	for one := range strings.SplitSeq(header, ",") {
		one = strings.Trim(one, " \t")
		switch text, found := strings.CutPrefix(one, name+"."); {
		case one == name:
			left.changed, marked = true, true
		case found:
			left.changed = true
			c.add(tokens.Parse(text))
		case one != "":
			kept = append(kept, one)
		}
	}
	if left.changed {
		left.value = strings.Join(kept, ", ")
	}
	return left, marked
}
