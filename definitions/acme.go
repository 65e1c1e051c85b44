package definitions

import (
	"cmp"
	"fmt"
	"net/mail"
	"slices"
	"strings"

	"gatepost/convention"
	gatewayv1 "gatepost/proto/gatepost/v1"
)

// defaultDirectory is that of Let's Encrypt.
const defaultDirectory = "https://acme-v02.api.letsencrypt.org/directory"

// ACME is how certificates are obtained from a CA.
type ACME struct {
	// Domains are the names, each with a certificate of its own, in lower case and sorted.
	Domains []string
	// Email is the contact of the account.
	Email string
	// Directory is the URL of the CA's directory.
	Directory string
	// EAB binds the account to one that exists at the CA. If nil, it is not bound.
	EAB *EAB
	// Challenges are those that may be used, convention.ACMEHTTP01 or convention.ACMETLSALPN01.
	Challenges []string
	// CAFile has the roots of the CA's server; see [Definitions.Path]. If empty, they are the system's.
	CAFile string
}

// EAB is an External Account Binding. HMACKeyFile names a file; see [Definitions.Path].
type EAB struct {
	KeyID, HMACKeyFile string
}

// acmeOf leaves out the domains.
func acmeOf(m *gatewayv1.Acme, redirect bool) *ACME {
	a := &ACME{
		Email: m.GetEmail(), Directory: cmp.Or(m.GetDirectory(), defaultDirectory), Challenges: m.GetChallenges(), CAFile: m.GetCaFile(),
	}
	if e := m.GetEab(); e != nil {
		a.EAB = &EAB{KeyID: e.GetKeyId(), HMACKeyFile: e.GetHmacKeyFile()}
	}
	if len(a.Challenges) == 0 {
		a.Challenges = []string{convention.ACMETLSALPN01}
		if redirect {
			a.Challenges = []string{convention.ACMEHTTP01, convention.ACMETLSALPN01}
		}
	}
	return a
}

// parseACME parses how certificates are obtained for a listener.
func parseACME(f *findings, m *gatewayv1.Acme, redirect bool) *ACME {
	a := acmeOf(m, redirect)
	a.Domains = parseHosts(f, m.GetDomains(), "tls.acme.domains")
	for i, domain := range m.GetDomains() {
		if strings.HasPrefix(domain, "*.") {
			f.add(fmt.Sprintf("tls.acme.domains[%d]", i), aboutTLS.faultf("name each host, or use a certificate in files",
				"%s is a wildcard, for which CAs ask for a DNS record", shown(domain)))
		}
	}
	if parsed, err := mail.ParseAddress(a.Email); err != nil || parsed.Address != a.Email {
		f.add("tls.acme.email", aboutTLS.faultf("write one such as ops@shop.example", "%s is not an email address", shown(a.Email)))
	}
	_, fault := parseAddress(a.Directory, SchemeHTTPS)
	f.add("tls.acme.directory", fault)
	if i := slices.Index(m.GetChallenges(), convention.ACMEHTTP01); i >= 0 && !redirect {
		f.add(fmt.Sprintf("tls.acme.challenges[%d]", i), aboutTLS.faultf("use tls-alpn-01 alone, or remove the other",
			"is answered by the listener that redirects, and tls.redirect is false (%s)", f.where("tls.redirect")))
	}
	return a
}

func (a *ACME) message() *gatewayv1.Acme {
	m := &gatewayv1.Acme{Domains: a.Domains, Email: a.Email, Directory: a.Directory, Challenges: a.Challenges, CaFile: a.CAFile}
	if a.EAB != nil {
		m.Eab = &gatewayv1.ExternalAccount{KeyId: a.EAB.KeyID, HmacKeyFile: a.EAB.HMACKeyFile}
	}
	return m
}
