// Package testcert decides which certificates tests show each other: all are of one CA, made for the test.
package testcert

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// CA is a certificate authority of a test.
type CA struct {
	t    testing.TB
	cert *x509.Certificate
	key  crypto.Signer
}

// New makes a CA.
func New(t testing.TB) *CA {
	t.Helper()
	c := &CA{t: t}
	c.cert, c.key = c.sign(&x509.Certificate{
		Subject:               pkix.Name{CommonName: "test CA"},
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign,
	})
	return c
}

// Pool returns the CA as the roots of a client or a server.
func (c *CA) Pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(c.cert)
	return pool
}

// Write writes the CA's certificate to a file, in PEM, and returns its path.
func (c *CA) Write(path string) string {
	c.t.Helper()
	if err := os.WriteFile(path, c.PEM(), 0o600); err != nil {
		c.t.Fatal(err)
	}
	return path
}

// Issue writes a certificate for 127.0.0.1 and localhost, for servers and clients, and its key.
func (c *CA) Issue(certFile, keyFile string) {
	c.t.Helper()
	c.IssueAs(certFile, keyFile, &x509.Certificate{
		Subject:     pkix.Name{CommonName: filepath.Base(certFile)},
		DNSNames:    []string{"localhost"},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	})
}

// IssueAs writes a certificate with the names and times of a template, and its key. It is for servers and clients,
// unless the template says otherwise.
func (c *CA) IssueAs(certFile, keyFile string, template *x509.Certificate) {
	c.t.Helper()
	cert, key := c.Sign(template)
	for path, text := range map[string][]byte{certFile: cert, keyFile: key} {
		if err := os.WriteFile(path, text, 0o600); err != nil {
			c.t.Fatal(err)
		}
	}
}

// Sign returns a certificate with the names and times of a template, and its key, in PEM. The key is one of RSA if the
// template's PublicKeyAlgorithm is, else ECDSA.
func (c *CA) Sign(template *x509.Certificate) (cert, key []byte) {
	c.t.Helper()
	template.KeyUsage = x509.KeyUsageDigitalSignature
	if template.ExtKeyUsage == nil {
		template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	}
	signed, private := c.sign(template)
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		c.t.Fatal(err)
	}
	return encode("CERTIFICATE", signed.Raw), encode("PRIVATE KEY", der)
}

// Intermediate returns a CA that this one has signed.
func (c *CA) Intermediate() *CA {
	c.t.Helper()
	out := &CA{t: c.t}
	out.cert, out.key = c.sign(&x509.Certificate{
		Subject: pkix.Name{CommonName: "test intermediate"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	})
	return out
}

// PEM returns the CA's certificate.
func (c *CA) PEM() []byte { return encode("CERTIFICATE", c.cert.Raw) }

// sign makes a key and a certificate for it, signed by the CA, or by itself if there is no CA yet. It is valid for a
// day, unless the template has times.
func (c *CA) sign(template *x509.Certificate) (*x509.Certificate, crypto.Signer) {
	c.t.Helper()
	var key crypto.Signer
	var err error
	if template.PublicKeyAlgorithm == x509.RSA {
		key, err = rsa.GenerateKey(rand.Reader, 2048)
	} else {
		key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	}
	if err != nil {
		c.t.Fatal(err)
	}
	parent, parentKey := c.cert, c.key
	if parent == nil {
		parent, parentKey = template, key
	}
	template.SerialNumber = big.NewInt(time.Now().UnixNano())
	if template.NotBefore.IsZero() {
		template.NotBefore = time.Now().Add(-time.Hour)
	}
	if template.NotAfter.IsZero() {
		template.NotAfter = time.Now().Add(24 * time.Hour)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), parentKey)
	if err != nil {
		c.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		c.t.Fatal(err)
	}
	return cert, key
}

func encode(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}
