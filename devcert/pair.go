package devcert

import (
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
)

// pair is a certificate and its key. It cannot be printed.
type pair struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func (*pair) String() string       { return "[redacted]" }
func (*pair) GoString() string     { return "[redacted]" }
func (*pair) LogValue() slog.Value { return slog.StringValue("[redacted]") }

func readPair(certFile, keyFile string) (*pair, error) {
	read, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		return nil, fmt.Errorf("reading %s and %s: %w", certFile, keyFile, err)
	}
	key, ok := read.PrivateKey.(*ecdsa.PrivateKey)
	if !ok {
		return nil, errors.New(keyFile + " is not an ECDSA key")
	}
	return &pair{cert: read.Leaf, key: key}, nil
}

func (p *pair) certPEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: p.cert.Raw})
}

func (p *pair) keyPEM() []byte {
	der, err := x509.MarshalPKCS8PrivateKey(p.key)
	if err != nil {
		panic(err) // P-256 is known to it
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}
