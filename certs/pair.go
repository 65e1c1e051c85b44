// Package certs decides whether a certificate may be served, and which ones are.
//
// [Parse], [ParseClient] and [ParseRoots] check what Envoy would refuse, or would serve although no client accepts it.
// A [Set] has what was accepted last, and [Files] follows the files that it comes from: a file that cannot be used
// changes nothing in the Set.
package certs

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"regexp"
	"slices"
	"strings"
	"time"
)

// PrivateKey is a private key in PEM. It cannot be printed.
type PrivateKey struct{ text []byte }

// PEM returns the key for the one that is to use it.
func (k PrivateKey) PEM() []byte { return k.text }

const redacted = "[redacted]"

// String returns "[redacted]".
func (PrivateKey) String() string { return redacted }

// GoString returns "[redacted]".
func (PrivateKey) GoString() string { return redacted }

// LogValue returns "[redacted]".
func (PrivateKey) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalText returns "[redacted]".
func (PrivateKey) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// Pair is a certificate that was checked, and its key. It is immutable.
type Pair struct {
	// Chain is the certificate and its intermediates, in PEM.
	Chain []byte
	Key   PrivateKey
	// Names are the DNS names, in lower case and in the order of the certificate. *. covers one label.
	Names []string
	// Addresses are the IP addresses, which no client names in a handshake.
	Addresses []net.IP
	// NotBefore is from when it is valid, and NotAfter when it expires.
	NotBefore, NotAfter time.Time
}

// Soon is the number of days from which on a certificate expires soon: validation and the log warn, and the status has
// it.
const Soon = 21

// DaysLeft returns the number of whole days until a certificate expires, negative afterwards, and whether that is soon.
func DaysLeft(notAfter, now time.Time) (days int, soon bool) {
	days = int(math.Floor(notAfter.Sub(now).Hours() / 24))
	return days, days < Soon
}

// Parse returns the pair of a certificate for servers. The key must be that of the first certificate, and each further
// certificate must have signed the one before it.
func Parse(chain, key []byte, now time.Time) (Pair, error) {
	p, leaf, err := parse(chain, key, now)
	switch {
	case err != nil:
		return Pair{}, err
	case len(p.Names)+len(p.Addresses) == 0:
		return Pair{}, errors.New("the certificate has no names: clients ignore its subject (issue it with subject alternative names)")
	case slices.ContainsFunc(p.Names, func(name string) bool { return !serverName.MatchString(name) }):
		return Pair{}, fmt.Errorf("one of its names cannot be served by Envoy: %q (issue it with host names, which may begin with `*.`)", p.Names)
	case !isFor(leaf, x509.ExtKeyUsageServerAuth):
		return Pair{}, errors.New("the certificate is not for servers (issue it with the extended key usage serverAuth)")
	}
	return p, nil
}

// ParseClient returns the pair of a certificate that a client presents. It needs no names.
func ParseClient(chain, key []byte, now time.Time) (Pair, error) {
	p, leaf, err := parse(chain, key, now)
	if err == nil && !isFor(leaf, x509.ExtKeyUsageClientAuth) {
		return Pair{}, errors.New("the certificate is not for clients (issue it with the extended key usage clientAuth)")
	}
	return p, err
}

// serverName matches the names that Envoy can look for. For another one it would refuse the whole listener.
var serverName = regexp.MustCompile(`^(\*\.)?[a-z0-9_-]+(\.[a-z0-9_-]+)*$`)

// isFor reports whether a certificate may be used for something. One that names no use may be used for all.
func isFor(leaf *x509.Certificate, usage x509.ExtKeyUsage) bool {
	return len(leaf.ExtKeyUsage)+len(leaf.UnknownExtKeyUsage) == 0 || slices.Contains(leaf.ExtKeyUsage, usage) ||
		slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageAny)
}

// parse checks what is the same for servers and clients.
func parse(chainPEM, keyPEM []byte, now time.Time) (Pair, *x509.Certificate, error) {
	chain, clean, err := certificates(chainPEM)
	if err != nil {
		return Pair{}, nil, err
	}
	key, err := keyBlock(keyPEM)
	if err != nil {
		return Pair{}, nil, err
	}
	leaf := chain[0]
	if _, err := tls.X509KeyPair(clean, key); err != nil {
		return Pair{}, nil, mismatch(chain, key, err)
	}
	if err := errors.Join(strong(leaf), ordered(chain), current(leaf, now)); err != nil {
		return Pair{}, nil, err
	}
	p := Pair{Chain: clean, Key: PrivateKey{key}, Addresses: leaf.IPAddresses, NotBefore: leaf.NotBefore, NotAfter: leaf.NotAfter}
	for _, name := range leaf.DNSNames {
		p.Names = append(p.Names, strings.ToLower(strings.TrimSuffix(name, ".")))
	}
	return p, leaf, nil
}

// certificates returns the certificates of a text, and them alone in PEM.
func certificates(text []byte) (all []*x509.Certificate, clean []byte, err error) {
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			continue // such as the key, in a file that has both
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, nil, fmt.Errorf("certificate %d cannot be read: %w", len(all)+1, err)
		}
		all, clean = append(all, cert), append(clean, pem.EncodeToMemory(&pem.Block{Type: block.Type, Bytes: block.Bytes})...)
	}
	if len(all) == 0 {
		return nil, nil, errors.New("there is no certificate in PEM (-----BEGIN CERTIFICATE-----)")
	}
	return all, clean, nil
}

// keyBlock returns the private key of a text, and it alone, in PEM.
func keyBlock(text []byte) ([]byte, error) {
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		switch {
		case !strings.HasSuffix(block.Type, "PRIVATE KEY"):
		case strings.HasPrefix(block.Type, "ENCRYPTED") || strings.Contains(block.Headers["Proc-Type"], "ENCRYPTED"):
			return nil, errors.New("the key is encrypted (decrypt it: openssl pkey -in old.key -out new.key)")
		default:
			return pem.EncodeToMemory(&pem.Block{Type: block.Type, Bytes: block.Bytes}), nil
		}
	}
	return nil, errors.New("there is no private key in PEM (-----BEGIN PRIVATE KEY-----)")
}

// mismatch explains why a key is not that of the first certificate.
func mismatch(chain []*x509.Certificate, key []byte, err error) error {
	for i, cert := range chain[1:] {
		one := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})
		if _, err := tls.X509KeyPair(one, key); err == nil {
			return fmt.Errorf("the key is that of certificate %d (write the certificate of the server first, then those that have signed it)", i+2)
		}
	}
	return fmt.Errorf("the key is not that of the certificate: %w", err)
}

// strong refuses keys that Envoy refuses.
func strong(leaf *x509.Certificate) error {
	switch key := leaf.PublicKey.(type) {
	case *rsa.PublicKey:
		if bits := key.N.BitLen(); bits < 2048 {
			return fmt.Errorf("the RSA key has %d bits (issue the certificate with 2048 at least)", bits)
		}
		return nil
	case *ecdsa.PublicKey:
		if slices.Contains([]elliptic.Curve{elliptic.P256(), elliptic.P384(), elliptic.P521()}, key.Curve) {
			return nil
		}
	case ed25519.PublicKey:
		return nil
	}
	return errors.New("the key is of a kind that Envoy does not take (issue the certificate with ECDSA P-256 or RSA)")
}

// ordered checks that each certificate has signed the one before it.
func ordered(chain []*x509.Certificate) error {
	for i, issuer := range chain[1:] {
		if err := chain[i].CheckSignatureFrom(issuer); err != nil {
			return fmt.Errorf("certificate %d has not signed certificate %d (write the certificate of the server first, then those that have signed it): %w",
				i+2, i+1, err)
		}
	}
	return nil
}

func current(cert *x509.Certificate, now time.Time) error {
	switch {
	case now.After(cert.NotAfter):
		return fmt.Errorf("the certificate expired on %s", cert.NotAfter.UTC().Format(time.RFC3339))
	case now.Before(cert.NotBefore):
		return fmt.Errorf("the certificate is not valid before %s (compare the clock of this machine)", cert.NotBefore.UTC().Format(time.RFC3339))
	}
	return nil
}
