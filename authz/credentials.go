package authz

import (
	"strings"

	"gatepost/tokens"
)

// credentials collects the tokens that a request presents. They may be in several places at once, but must then be the
// same token.
type credentials struct {
	token tokens.Hash
	any   bool // whether there is one
	bad   bool // whether there is a malformed one, or two different ones
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

// strippedHeaders are the request's headers without the tokens in them, as the upstream receives them.
type strippedHeaders struct {
	cookie, subprotocols remainder
	// marked reports whether the client offers the prefix itself as a subprotocol. The gateway may then select it if the
	// upstream selects none.
	marked bool
}

// remainder is a header without the tokens in it.
type remainder struct {
	changed bool   // whether anything was removed
	value   string // empty: the whole header is removed
}

// extractCredentials adds the tokens in the places that the rule allows beside Authorization.
func (q *Request) extractCredentials(r *rule, c *credentials) (s strippedHeaders) {
	if r.cookie != "" && q.cookie != "" {
		s.cookie = fromCookies(q.cookie, r.cookie, c)
	}
	if r.subprotocol != "" && q.subprotocols != "" {
		s.subprotocols, s.marked = fromSubprotocols(q.subprotocols, r.subprotocol, c)
	}
	return s
}

// fromCookies reads a Cookie header (RFC 6265 §4.2.1). Envoy joins several by commas, and no browser sends several
// (§5.4): if a comma may hide the cookie, the token counts as malformed and the header is removed.
func fromCookies(header, name string, c *credentials) remainder {
	var left remainder
	var kept []string
	for pair := range strings.SplitSeq(header, ";") {
		pair = strings.Trim(pair, " \t")
		key, value, _ := strings.Cut(pair, "=")
		if strings.TrimRight(key, " \t") == name {
			left.changed = true
			if value = strings.TrimLeft(value, " \t"); value != "" { // a cleared cookie carries no token
				c.add(tokens.Parse(value))
			}
			continue
		}
		if hidesCookie(pair, name) {
			c.bad = true
			return remainder{changed: true}
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

// hidesCookie reports whether a comma in a cookie is followed by the name.
func hidesCookie(pair, name string) bool {
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

// fromSubprotocols reads a Sec-WebSocket-Protocol header (RFC 6455 §11.3.4), which may be repeated.
func fromSubprotocols(header, name string, c *credentials) (left remainder, marked bool) {
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
