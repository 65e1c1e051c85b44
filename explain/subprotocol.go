package explain

import (
	"fmt"
	"strings"

	"gatepost/tokens"
)

// unreadToken is a token that a client offers as a WebSocket subprotocol in a form that the definitions do not name.
type unreadToken struct {
	fingerprint string
	name        string // what stands before the token and its dot; empty: nothing
}

// unreadTokenOf returns the first such token of a request; nil: it has none.
func (e *Explainer) unreadTokenOf(x *exchange) *unreadToken {
	read := e.served.Tokens.Subprotocol
	for one := range strings.SplitSeq(x.client.value("sec-websocket-protocol"), ",") {
		one = strings.Trim(one, " \t")
		if read != "" && strings.HasPrefix(one, read+".") {
			continue
		}
		dot := strings.LastIndexByte(one, '.') // a token has none
		if token, err := tokens.Parse(one[dot+1:]); err == nil {
			return &unreadToken{token.Hash().String(), one[:max(dot, 0)]}
		}
	}
	return nil
}

// step says that the token is not read, and why.
func (t *unreadToken) step(e *Explainer, x *exchange) string {
	place := "by itself"
	if t.name != "" {
		place = fmt.Sprintf("after %q", t.name+".")
	}
	says := fmt.Sprintf("a token (%s) is offered as a subprotocol %s and is not read: tokens.subprotocol is ", t.fingerprint, place)
	if read := e.served.Tokens.Subprotocol; read != "" {
		says += read
	} else {
		says += "not set"
	}
	if x.forward != nil && e.taker(x.route) != nil {
		says += "; the upstream receives it"
	}
	return says
}

// change says how the token can be read.
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
