package xds

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"io"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"gatepost/envoy/envoytest"
)

// The alerts with which a server refuses a handshake (RFC 8446 §6.2, RFC 7507).
const (
	alertHandshakeFailure = 40
	alertProtocolVersion  = 70
	alertFallback         = 86
	// closed stands for a connection that the server ends without an alert.
	closed = 255
)

// fallbackSuite is how a client reports that it tried a newer version before (RFC 7507).
const fallbackSuite = 0x5600

// everySuite returns the numbers of all registered cipher suites, and those between them: without encryption, without
// authentication, for export, with CBC or RC4, and without forward secrecy.
func everySuite() (all []uint16) {
	for _, block := range [][2]uint16{{0x1301, 0x1307}, {0x0001, 0x00ff}, {0xc001, 0xc0ff}, {0xcca8, 0xccae}, {0xd001, 0xd005}} {
		for suite := block[0]; suite <= block[1]; suite++ {
			all = append(all, suite)
		}
	}
	return all
}

func words(all ...uint16) (out []byte) {
	for _, word := range all {
		out = binary.BigEndian.AppendUint16(out, word)
	}
	return out
}

// sized is some bytes after their length, in two bytes.
func sized(parts ...[]byte) []byte {
	all := bytes.Join(parts, nil)
	return append(words(uint16(len(all))), all...)
}

// clientHello is the record of a client that offers one version, cipher suites and methods of compression.
func clientHello(name string, version uint16, suites []uint16, compressions ...byte) []byte {
	extensions := [][]byte{
		words(0), sized(sized([]byte{0}, sized([]byte(name)))), // server_name
		words(10), sized(sized(words(uint16(tls.X25519), uint16(tls.CurveP256)))), // supported_groups
		words(11), sized([]byte{1, 0}), // ec_point_formats
		words(13), sized(sized(words(0x0403, 0x0804, 0x0401, 0x0203, 0x0201))), // signature_algorithms
	}
	if version == tls.VersionTLS13 { // without a key, so the server answers with a HelloRetryRequest
		extensions = append(extensions, words(43), sized([]byte{2}, words(version)), words(51), sized(sized()))
	}
	hello := bytes.Join([][]byte{
		words(min(version, tls.VersionTLS12)), make([]byte, 32), {0}, sized(words(suites...)), {byte(len(compressions))}, compressions, sized(extensions...),
	}, nil)
	return slices.Concat([]byte{22}, words(tls.VersionTLS10), sized([]byte{1, 0}, sized(hello)))
}

// serverHello is what a server answers to a clientHello: what it has chosen, or an alert.
type serverHello struct {
	suite       uint16
	compression byte
	alert       byte
}

func (g *httpsGateway) hello(t *testing.T, record []byte) (out serverHello) {
	t.Helper()
	conn, err := net.DialTimeout("tcp", g.tlsAddr, envoytest.Deadline)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(envoytest.Deadline)); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Write(record); err != nil {
		t.Fatal(err)
	}
	head := make([]byte, 5)
	if _, err := io.ReadFull(conn, head); err != nil {
		return serverHello{alert: closed}
	}
	body := make([]byte, binary.BigEndian.Uint16(head[3:]))
	if _, err := io.ReadFull(conn, body); err != nil {
		t.Fatalf("reading the record of the server: %v", err)
	}
	if head[0] == 21 {
		return serverHello{alert: body[1]}
	}
	after := body[4+2+32:] // the length of the message, the version, the random value
	after = after[1+int(after[0]):]
	return serverHello{suite: binary.BigEndian.Uint16(after), compression: after[2]}
}

// offered returns the cipher suites with which a server name is served by a version, and the alert for all others.
func (g *httpsGateway) offered(t *testing.T, name string, version uint16) (taken []string, alert byte) {
	t.Helper()
	compressions := []byte{1, 0}
	if version == tls.VersionTLS13 { // which has none
		compressions = compressions[1:]
	}
	for left := everySuite(); ; {
		got := g.hello(t, clientHello(name, version, left, compressions...))
		if got.alert != 0 {
			slices.Sort(taken)
			return taken, got.alert
		}
		if got.compression != 0 {
			t.Errorf("%s: the server compresses", name)
		}
		taken = append(taken, tls.CipherSuiteName(got.suite))
		left = slices.DeleteFunc(left, func(suite uint16) bool { return suite == got.suite })
	}
}

// TestTheOffersOfTLS has a client offer all that there is, as scanners do: old versions are refused, and what the
// listener takes are the cipher suites in docs/howto/tls.md: authenticated encryption with forward secrecy.
func TestTheOffersOfTLS(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("../docs/howto/tls.md")
	if err != nil {
		t.Fatal(err)
	}
	g := startHTTPS(t, "", "", "a.example", "rsa.example")
	latest := startHTTPS(t, "", "  min_version: \"1.3\"\n", "a.example")
	for _, version := range []uint16{tls.VersionTLS10, tls.VersionTLS11} {
		if got := g.hello(t, clientHello("a.example", version, everySuite(), 0)); got.alert != alertProtocolVersion {
			t.Errorf("%s: %+v", tls.VersionName(version), got)
		}
	}
	if got := g.hello(t, clientHello("a.example", 0x0300, everySuite(), 0)); got.suite != 0 {
		t.Errorf("SSL 3.0: %+v", got)
	}
	if got := latest.hello(t, clientHello("a.example", tls.VersionTLS12, everySuite(), 0)); got.alert != alertProtocolVersion {
		t.Errorf("TLS 1.2, with min_version 1.3: %+v", got)
	}
	for _, c := range []struct {
		version uint16
		gateway *httpsGateway
		name    string
		want    []string
	}{
		{tls.VersionTLS12, g, "a.example", []string{"TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256", "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384", "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256"}},
		{tls.VersionTLS12, g, "rsa.example", []string{"TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256", "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384", "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256"}},
		{tls.VersionTLS13, g, "a.example", []string{"TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256"}},
		{tls.VersionTLS13, latest, "a.example", []string{"TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256"}},
	} {
		got, alert := c.gateway.offered(t, c.name, c.version)
		if !slices.Equal(got, c.want) || alert != alertHandshakeFailure {
			t.Errorf("%s of %s: %q, and the alert %d for others; want %q", tls.VersionName(c.version), c.name, got, alert, c.want)
		}
		for _, suite := range c.want {
			if !strings.Contains(string(page), suite) {
				t.Errorf("docs/howto/tls.md does not list %s", suite)
			}
		}
	}
	if got := g.hello(t, clientHello("a.example", tls.VersionTLS12, append(everySuite(), fallbackSuite), 0)); got.alert != alertFallback {
		t.Errorf("a client that was made to fall back: %+v", got)
	}
}

// TestNoRenegotiation: a client that begins a second handshake in its connection is cut off.
func TestNoRenegotiation(t *testing.T) {
	t.Parallel()
	openssl, err := exec.LookPath("openssl")
	if err != nil {
		t.Skip("this test needs openssl")
	}
	g := startHTTPS(t, "", "", "a.example")
	command := exec.CommandContext(t.Context(), openssl, "s_client", "-connect", g.tlsAddr, "-servername", "a.example", "-tls1_2")
	stdin, err := command.StdinPipe() // stays open, so that the server ends it
	if err != nil {
		t.Fatal(err)
	}
	defer stdin.Close()
	if _, err := io.WriteString(stdin, "R\n"); err != nil {
		t.Fatal(err)
	}
	out, err := command.CombinedOutput()
	if text := string(out); err == nil || !strings.Contains(text, "Cipher is ECDHE") || !strings.Contains(text, "RENEGOTIATING") || !strings.Contains(text, "renegotiation") {
		t.Errorf("openssl ended with %v and\n%s", err, text)
	}
}
