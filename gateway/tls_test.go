package gateway

import (
	"bytes"
	"crypto/tls"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gatepost/envoy"
	"gatepost/testcert"
)

// Otherwise every client could cause three file reads per connection.
func TestCertificatesAreReadOnceASecondAtMost(t *testing.T) {
	dir, ca, log := t.TempDir(), testcert.New(t), bytes.Buffer{}
	cert, key := filepath.Join(dir, envoy.TLSCert), filepath.Join(dir, envoy.TLSKey)
	issue := func() []byte {
		ca.Issue(cert, key)
		pair, err := tls.LoadX509KeyPair(cert, key)
		if err != nil {
			t.Fatal(err)
		}
		return pair.Certificate[0]
	}
	ca.Write(filepath.Join(dir, envoy.TLSCA))
	now := time.Now()
	before := issue()
	m, err := newMutualTLS(dir, slog.New(slog.NewTextHandler(&log, nil)), func() time.Time { return now })
	if err != nil {
		t.Fatal(err)
	}
	shows := func(when string, want []byte) {
		t.Helper()
		config, err := m.config("h2").GetConfigForClient(nil)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(config.Certificates[0].Certificate[0], want) || config.NextProtos[0] != "h2" {
			t.Errorf("%s: another certificate, or the protocols %v", when, config.NextProtos)
		}
	}
	renewed := issue()
	now = now.Add(readEvery - 1)
	shows("within the second", before)
	now = now.Add(1)
	shows("after it", renewed)
	if err := os.WriteFile(cert, []byte("no certificate"), 0o600); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		now = now.Add(readEvery)
		shows("while the files cannot be used", renewed)
	}
	if n := strings.Count(log.String(), "reading --grpc-tls failed"); n != 1 {
		t.Errorf("logged %d times, want once", n)
	}
}
