package xds

import (
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"

	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	resourcev3 "github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// typeSecret is the type of a secret in metrics and messages. Secrets are no part of a version, so they are not among
// the typeNames.
const typeSecret = "secret"

// SetSecrets has each Envoy served these secrets: the certificates and CAs that listeners and clusters name. They are
// the whole set, and take the place of the former one; no version changes. It may be called at any time.
//
// An Envoy gets the secrets that it subscribes to by name, and only changed ones. A secret that is not in the set is
// sent once it is. Each has a response of its own, since Envoy stops at the first bad secret of a response. After a
// NACK all are sent again, since Envoy may then have skipped others (envoyproxy/envoy#42438). The rejected one is not,
// until it changes.
func (s *Server) SetSecrets(secrets []*tlsv3.Secret) {
	all := make(map[string]*resource, len(secrets))
	for _, secret := range secrets {
		one, err := newResource(secret)
		if err != nil {
			s.log.Error("a secret cannot be sent to Envoy", "certificate", strings.ToValidUTF8(secret.GetName(), "?"), "error", err)
			continue
		}
		all[secret.GetName()] = one
	}
	s.publisher.serveSecrets(set{}.with(all))
}

// serveSecrets makes these the secrets that every Envoy is served.
func (p *publisher) serveSecrets(secrets set) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.secrets = secrets
	for w := range p.open {
		if w.request.GetTypeUrl() == resourcev3.SecretType && w.answerSecret() {
			delete(p.open, w)
		}
	}
}

// The versions that an Envoy has of secrets may have one of these suffixes.
const (
	secretRefused = " refused" // the Envoy has rejected it
	secretRetried = " retried" // it has been sent in the place of a rejected one, and is not answered yet
)

// unanswered is the key, among the versions that an Envoy has, of the nonce and the name of the secret that it has yet
// to answer. No secret has this name.
const unanswered = ""

// answerSecret sends the first secret that is new to the Envoy, once it has answered the one before, and reports
// whether it did.
func (w *watch) answerSecret() bool {
	has := w.subscription.ReturnedResources()
	if has[unanswered] != "" {
		return false
	}
	for _, one := range w.of.secrets.all {
		_, wanted := w.subscription.SubscribedResources()[one.name]
		if version, _, _ := strings.Cut(has[one.name], " "); wanted && version != one.version {
			w.out <- &secretResponse{response: response{watch: w, version: one.version, changed: []named{one}}}
			return true
		}
	}
	removed := slices.Sorted(maps.Keys(has))
	removed = slices.DeleteFunc(removed, func(name string) bool { return w.of.secrets.get(name) != nil })
	if len(removed) == 0 {
		return false
	}
	w.out <- &secretResponse{response: response{watch: w, removed: removed}}
	return true
}

// secretAnswered notes the ACK or NACK of a secret, if the request is one. After a NACK, and after an ACK in the place
// of a rejected secret, the others count as not sent.
func (w *watch) secretAnswered() {
	has := w.subscription.ReturnedResources()
	nonce, name, _ := strings.Cut(has[unanswered], " ")
	if nonce == "" || nonce != w.request.GetResponseNonce() {
		return
	}
	delete(has, unanswered)
	version, there := has[name]
	if !there {
		return // removed, or not subscribed to any more
	}
	sent, mark, _ := strings.Cut(version, " ")
	switch {
	case w.request.GetErrorDetail() != nil:
		has[name] = sent + secretRefused
		maps.DeleteFunc(has, func(_, version string) bool { return !strings.HasSuffix(version, secretRefused) })
	case " "+mark == secretRetried:
		clear(has)
		has[name] = sent
	}
}

// secretResponse is a response with one secret, or with the names of removed ones.
type secretResponse struct {
	response
	message *discoveryv3.DeltaDiscoveryResponse
}

// GetDeltaDiscoveryResponse keeps the message: the server writes the nonce into it before it is sent.
func (r *secretResponse) GetDeltaDiscoveryResponse() (_ *discoveryv3.DeltaDiscoveryResponse, err error) {
	r.message, err = r.response.GetDeltaDiscoveryResponse()
	return r.message, err
}

// GetNextVersionMap notes what was sent. The server calls it after it has sent the response.
func (r *secretResponse) GetNextVersionMap() map[string]string {
	r.of.mu.Lock()
	defer r.of.mu.Unlock()
	has := r.subscription.ReturnedResources()
	has[unanswered] = r.message.GetNonce() + " "
	for _, one := range r.changed {
		has[unanswered] += one.name
		former := has[one.name]
		has[one.name] = one.version
		if strings.HasSuffix(former, secretRefused) {
			has[one.name] += secretRetried
		}
	}
	for _, name := range r.removed {
		delete(has, name)
	}
	return has
}

// GetReturnedResources is GetNextVersionMap.
func (r *secretResponse) GetReturnedResources() map[string]string { return r.GetNextVersionMap() }

// secrets is what one Envoy makes of the secrets that it is sent.
type secrets struct {
	nonce, name string            // of the last response, and of the secret in it
	rejected    map[string]string // :: name → why it is rejected
}

// secretSent notes what is about to be sent.
func (s *Server) secretSent(e *envoy, resp *discoveryv3.DeltaDiscoveryResponse) {
	e.secrets.nonce, e.secrets.name = resp.GetNonce(), ""
	for _, one := range resp.GetResources() {
		e.secrets.name = one.GetName()
	}
	for _, name := range resp.GetRemovedResources() {
		delete(e.secrets.rejected, name)
	}
	s.metrics.pushes.WithLabelValues(typeSecret).Inc()
}

// noSecrets is why a peer is sent no secret.
const noSecrets = "private keys are sent over a Unix socket, over loopback, or with --grpc-tls alone"

// secretRequested notes a subscription to secrets, or the ACK or NACK of one.
func (s *Server) secretRequested(e *envoy, req *discoveryv3.DeltaDiscoveryRequest) error {
	if slices.Contains(req.GetResourceNamesSubscribe(), "*") {
		return status.Error(codes.InvalidArgument, "Gatepost serves secrets by name: do not subscribe to *")
	}
	if !e.Trusted && !net.ParseIP(e.peer).IsLoopback() {
		if req.GetResponseNonce() == "" && e.secrets.rejected == nil {
			e.secrets.rejected = map[string]string{"all": noSecrets}
			s.logged(e, func() {
				s.log.Error("an Envoy is sent no secrets", "node", e.Node, "address", e.Address, "reason", noSecrets)
			})
		}
		req.ResourceNamesSubscribe = nil // nothing of it is kept
		return nil
	}
	for _, name := range req.GetResourceNamesUnsubscribe() {
		delete(e.secrets.rejected, name)
	}
	if req.GetResponseNonce() == "" || req.GetResponseNonce() != e.secrets.nonce || e.secrets.name == "" {
		return nil
	}
	name := e.secrets.name
	e.secrets.nonce, e.secrets.name = "", ""
	if req.GetErrorDetail() == nil {
		delete(e.secrets.rejected, name)
		s.metrics.acks.WithLabelValues(typeSecret).Inc()
		return nil
	}
	reason := bounded(req.GetErrorDetail().GetMessage(), maxLogged)
	if e.secrets.rejected == nil {
		e.secrets.rejected = map[string]string{}
	}
	e.secrets.rejected[name] = reason
	s.metrics.nacks.WithLabelValues(typeSecret).Inc()
	s.logged(e, func() {
		s.log.Error("an Envoy has rejected a secret, and keeps the one before", "node", e.Node, "address", e.Address,
			"certificate", name, "reason", reason)
	})
	return nil
}

// RejectedSecrets returns the secrets that an Envoy has rejected, or is not sent, and why, sorted.
func (s *Server) RejectedSecrets(id int64) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []string
	if e := s.envoys[id]; e != nil {
		for name, reason := range e.secrets.rejected {
			out = append(out, fmt.Sprintf("%s: %s", name, reason))
		}
	}
	slices.Sort(out)
	return out
}
