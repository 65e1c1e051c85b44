package explain

import (
	"fmt"
	"strings"

	"gatepost/tokens"
)

// unreadToken is a token that a client offers as a WebSocket subprotocol in a form that the
// definitions do not accept.
type unreadToken struct {
	fingerprint string
	name        string // the text before the token and its dot; can be empty
}

// unreadTokenOf returns the first unread token of a request, or nil.
func (e *Explainer) unreadTokenOf(x *exchange) *unreadToken {
	read := e.served.Tokens.Subprotocol
	for one := range strings.SplitSeq(x.client.value("sec-websocket-protocol"), ",") {
		one = strings.Trim(one, " \t")
		if read != "" && strings.HasPrefix(one, read+".") {
			continue
		}
		dot := strings.LastIndexByte(one, '.') // a token contains no dot
		if token, err := tokens.Parse(one[dot+1:]); err == nil {
			return &unreadToken{token.Hash().String(), one[:max(dot, 0)]}
		}
	}
	return nil
}

// step describes the token and the reason that it is not read.
func (t *unreadToken) step(e *Explainer, x *exchange) string {
	place := "by itself"
	if t.name != "" {
		place = fmt.Sprintf("after %q", t.name+".")
	}
	text := fmt.Sprintf("a token (%s) is offered as a subprotocol %s and is not read: tokens.subprotocol is ", t.fingerprint, place)
	if read := e.served.Tokens.Subprotocol; read != "" {
		text += read
	} else {
		text += "not set"
	}
	if x.forward != nil && e.serviceOf(x.route) != nil {
		text += "; the upstream receives it"
	}
	return text
}

// change returns how to offer the token so that it is read.
func (t *unreadToken) change(e *Explainer) string {
	if read := e.served.Tokens.Subprotocol; read != "" {
		return fmt.Sprintf("offer it as %s.TOKEN", read)
	}
	name := t.name
	if name == "" {
		name = "gatepost.bearer"
	}
	return fmt.Sprintf("set tokens.subprotocol: %s in %s, and offer it as %s.TOKEN", name, e.definitions.Name, name)
}
