package redistest

import (
	"crypto/tls"
	"path/filepath"
	"testing"

	"gatepost/testcert"
)

// Certificates are the PEM files of a test CA and of a client certificate that it signed.
type Certificates struct {
	CAFile, CertFile, KeyFile string
}

// StartTLS starts a server that only accepts TLS, with a certificate for 127.0.0.1 and localhost,
// from clients with a certificate of the same CA.
func StartTLS(t testing.TB, args ...string) (*Server, Certificates) {
	t.Helper()
	dir := t.TempDir()
	ca := testcert.New(t)
	serverCert, serverKey := filepath.Join(dir, "server.pem"), filepath.Join(dir, "server.key")
	ca.Issue(serverCert, serverKey)
	client := Certificates{ca.Write(filepath.Join(dir, "ca.pem")), filepath.Join(dir, "client.pem"), filepath.Join(dir, "client.key")}
	ca.Issue(client.CertFile, client.KeyFile)
	pair, err := tls.LoadX509KeyPair(client.CertFile, client.KeyFile)
	if err != nil {
		t.Fatal(err)
	}
	secured := &tls.Config{RootCAs: ca.Pool(), Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}
	args = append([]string{"--tls-cert-file", serverCert, "--tls-key-file", serverKey, "--tls-ca-cert-file", client.CAFile}, args...)
	return start(t, secured, args), client
}
