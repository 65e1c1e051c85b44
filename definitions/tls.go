package definitions

import (
	"cmp"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"gatepost/certs"
	gatewayv1 "gatepost/proto/gatepost/v1"
	"gatepost/regularfile"
)

// addresses are those on which Envoy accepts connections.
func (g *Gateway) addresses() []netip.AddrPort {
	if g.TLS == nil {
		return []netip.AddrPort{g.Listen}
	}
	return []netip.AddrPort{g.Listen, g.TLS.Listen}
}

// parseTLS parses the listener for HTTPS of a gateway whose other listener is on plain.
func parseTLS(f *findings, m *gatewayv1.Tls, plain netip.AddrPort) *TLS {
	t := tlsOf(m)
	var fault *fault
	t.Listen, fault = parseListen(cmp.Or(m.GetListen(), defaultTLSListen))
	if fault == nil && overlap(t.Listen, plain) {
		fault = aboutTLS.faultf("choose another port", "%s is the address without TLS too (%s)", t.Listen, f.where("listen"))
	}
	f.add("tls.listen", fault)
	f.add("tls.hsts", wholeSeconds(t.HSTS))
	if c := t.ClientCertificates; c != nil && c.Required && !t.Redirect {
		f.add("tls.client_certificates.mode", aboutTLS.faultf("write mode: optional, and client_certificate: true on services, or remove redirect: false",
			"is required, and the listener without TLS serves clients without one (%s)", f.where("tls.redirect")))
	}
	if m.GetAcme() != nil {
		t.ACME = parseACME(f, m.GetAcme(), t.Redirect)
	}
	if len(t.Certificates) == 0 && t.ACME == nil {
		f.add("tls.certificates", aboutFields.faultf("name a certificate and its key: `- {cert_file: shop.pem, key_file: shop.key}`", "is missing"))
	}
	checkCertificateNames(f, t, m)
	return t
}

// checkCertificateNames checks that each certificate is named once, by a file or a domain, and that the default one is
// among them.
func checkCertificateNames(f *findings, t *TLS, m *gatewayv1.Tls) {
	first := map[string]string{} // :: file → field
	for i, c := range t.Certificates {
		field := fmt.Sprintf("tls.certificates[%d].cert_file", i)
		if earlier, twice := first[c.CertFile]; twice {
			f.add(field, twinFault(f, c.CertFile, earlier))
			continue
		}
		first[c.CertFile] = field
	}
	for i, text := range m.GetAcme().GetDomains() {
		domain, field := strings.ToLower(text), fmt.Sprintf("tls.acme.domains[%d]", i)
		if earlier, twice := first[domain]; twice {
			f.add(field, twinFault(f, domain, earlier))
		}
		first[domain] = field
	}
	if d := t.DefaultCertificate; d != "" && first[d] == "" {
		f.add("tls.default_certificate", aboutTLS.faultf("write the cert_file of one of them, or a domain of acme", "%s is none of the certificates (%s)",
			shown(d), f.where("tls.certificates")))
	}
}

// parseUpstreamTLS parses how the upstreams of a service are verified.
func parseUpstreamTLS(f *findings, m *gatewayv1.UpstreamTls, s *Service, field string) *UpstreamTLS {
	u := &UpstreamTLS{CAFile: m.GetCaFile(), CertFile: m.GetCertFile(), KeyFile: m.GetKeyFile(), ServerName: strings.ToLower(m.GetServerName())}
	_, err := netip.ParseAddr(u.ServerName)
	u.IsIP = err == nil
	field += ".upstream_tls"
	switch {
	case *u == UpstreamTLS{}:
		f.add(field, aboutTLS.faultf("write ca_file, cert_file with key_file, or server_name", "is empty"))
	case s.Redirect != nil:
		f.add(field, aboutTLS.faultf("remove it", "is for upstreams, and the service redirects"))
	case len(s.Upstreams) > 0 && !s.Upstreams[0].TLS():
		f.add(field, aboutTLS.faultf("write https there, or remove it", "needs TLS, and the upstreams on %s are %s",
			f.where(strings.TrimSuffix(field, "_tls")+"s"), s.Upstreams[0].Scheme))
	}
	if (u.CertFile == "") != (u.KeyFile == "") {
		have, missing := "cert_file", "key_file"
		if u.CertFile == "" {
			have, missing = missing, have
		}
		f.add(field+"."+have, aboutTLS.faultf("name its "+missing+" too", "has no %s", missing))
	}
	return u
}

// overlap reports whether two sockets cannot be open at the same time.
func overlap(a, b netip.AddrPort) bool {
	wild := a.Addr().IsUnspecified() && (a.Addr().Is6() || b.Addr().Is4()) || b.Addr().IsUnspecified() && (b.Addr().Is6() || a.Addr().Is4())
	return a.Port() == b.Port() && (a.Addr() == b.Addr() || wild)
}

// Path returns the path of a file that the definitions name. A relative one is relative to the definitions file or, if
// the definitions are not in a file, to the working directory.
func (d *Definitions) Path(file string) string {
	if filepath.IsAbs(file) {
		return file
	}
	dir := filepath.Dir(d.Name)
	if info, err := os.Stat(d.Name); err == nil && info.IsDir() {
		dir = d.Name
	}
	return filepath.Join(dir, file)
}

// unreadable is the problem of a file that cannot be read. An empty name is none.
func (d *Definitions) unreadable(file string) *fault {
	if file == "" {
		return nil
	}
	if _, err := regularfile.Read(d.Path(file)); err != nil {
		return aboutNotes.faultf("", "cannot be read: %v", err)
	}
	return nil
}

// checkFiles reads the files that the definitions name, and returns what is wrong with them, and what is probably a
// mistake.
func (d *Definitions) checkFiles(now time.Time) (problems, warnings Problems) {
	wrong, odd := d.read(), d.read()
	d.checkUpstreamFiles(wrong, odd, now)
	if tls := d.Gateway.TLS; tls != nil {
		d.checkServedCertificates(wrong, odd, tls, now)
		if c := tls.ClientCertificates; c != nil {
			_, err := certs.ReadRoots(d.Path(c.CAFile), now)
			wrong.add("tls.client_certificates.ca_file", unusable(err))
		}
		if a := tls.ACME; a != nil {
			wrong.add("tls.acme.ca_file", d.unreadable(a.CAFile))
			if a.EAB != nil {
				wrong.add("tls.acme.eab.hmac_key_file", d.unreadable(a.EAB.HMACKeyFile))
			}
		}
	}
	return wrong.sorted(), odd.sorted()
}

// checkServedCertificates reads the certificates of the listener.
func (d *Definitions) checkServedCertificates(wrong, odd *findings, tls *TLS, now time.Time) {
	first := map[string]string{} // :: name → field of the certificate that serves it
	for i, c := range tls.Certificates {
		field := fmt.Sprintf("tls.certificates[%d].cert_file", i)
		pair, err := certs.ReadServerPair(d.Path(c.CertFile), d.Path(c.KeyFile), now)
		if err != nil {
			wrong.add(field, aboutNotes.faultf("", "cannot be served: %v", err))
			continue
		}
		odd.add(field, expiring(pair.NotAfter, now))
		for _, name := range pair.Names {
			if earlier := first[name]; earlier != "" {
				odd.add(field, aboutNotes.faultf("remove one of them", "%s is also a name of the certificate on %s, which is the one that is served",
					name, odd.where(earlier)))
				continue
			}
			first[name] = field
		}
		if len(pair.Names) == 0 && tls.DefaultCertificate != c.CertFile {
			odd.add(field, aboutNotes.faultf("make it the default_certificate", "has IP addresses alone, for which clients ask without a name"))
		}
	}
}

// checkUpstreamFiles reads the files of upstream_tls.
func (d *Definitions) checkUpstreamFiles(wrong, odd *findings, now time.Time) {
	for i, s := range d.Gateway.Services {
		u, field := s.UpstreamTLS, fmt.Sprintf("services[%d].upstream_tls.", i)
		check := func(field string, notAfter time.Time, err error) {
			if err != nil {
				wrong.add(field, unusable(err))
				return
			}
			odd.add(field, expiring(notAfter, now))
		}
		if u.CAName() != "" {
			roots, err := certs.ReadRoots(d.Path(u.CAFile), now)
			check(field+"ca_file", roots.NotAfter, err)
		}
		if u.PairName() != "" {
			pair, err := certs.ReadClientPair(d.Path(u.CertFile), d.Path(u.KeyFile), now)
			check(field+"cert_file", pair.NotAfter, err)
		}
	}
}

// unusable is the problem of a file that could not be read; nil without an error.
func unusable(err error) *fault {
	if err == nil {
		return nil
	}
	return aboutNotes.faultf("", "cannot be used: %v", err)
}

// expiring is the problem of a certificate that expires soon; nil for others.
func expiring(notAfter, now time.Time) *fault {
	left, soon := certs.DaysLeft(notAfter, now)
	if !soon {
		return nil
	}
	return aboutNotes.faultf("renew it", "expires in %d days", left)
}
