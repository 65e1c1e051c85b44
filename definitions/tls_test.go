package definitions

import (
	"crypto/x509"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gatepost/testcert"
)

// TestValidationReadsTheFilesOfCertificates: relative to the definitions, which are a file or a folder.
func TestValidationReadsTheFilesOfCertificates(t *testing.T) {
	t.Parallel()
	dir, ca := t.TempDir(), testcert.New(t)
	issue := func(name string, template *x509.Certificate) {
		ca.IssueAs(filepath.Join(dir, name+".pem"), filepath.Join(dir, name+".key"), template)
	}
	far := time.Now().AddDate(0, 0, 90)
	issue("good", &x509.Certificate{DNSNames: []string{"shop.example"}, NotAfter: far})
	issue("twin", &x509.Certificate{DNSNames: []string{"shop.example", "twin.example"}, NotAfter: far})
	issue("soon", &x509.Certificate{DNSNames: []string{"soon.example"}, NotAfter: time.Now().Add(5*24*time.Hour + time.Hour)})
	for name, c := range map[string]struct {
		tls  string
		want []string // problems, or warnings of valid definitions
	}{
		"good":     {"certificates: [{cert_file: good.pem, key_file: good.key}]", nil},
		"absolute": {"certificates: [{cert_file: " + dir + "/good.pem, key_file: good.key}]", nil},
		"warnings": {`certificates:
    - {cert_file: good.pem, key_file: good.key}
    - {cert_file: twin.pem, key_file: twin.key}
    - {cert_file: soon.pem, key_file: soon.key}`, []string{
			"5:19: tls.certificates[1].cert_file: shop.example is also a name of the certificate on line 4, which is the one that is served (remove one of them)",
			"6:19: tls.certificates[2].cert_file: expires in 5 days (renew it)",
		}},
		"problems": {`certificates:
    - {cert_file: good.pem, key_file: twin.key}
    - {cert_file: nothing.pem, key_file: good.key}`, []string{
			"4:19: tls.certificates[0].cert_file: cannot be served: DIR/good.pem with DIR/twin.key: the key is not that of the certificate: tls: private key does not match public key",
			"5:19: tls.certificates[1].cert_file: cannot be served: reading a certificate: open DIR/nothing.pem: no such file or directory",
		}},
	} {
		t.Run(name, func(t *testing.T) {
			for _, path := range []string{filepath.Join(dir, name+".yaml"), filepath.Join(dir, name, "a.yaml")} {
				text := "# TLS\ntls:\n  " + c.tls + "\nservices: []\n"
				source := path
				if filepath.Dir(path) != dir { // a folder, in which the paths begin
					source, text = filepath.Dir(path), strings.ReplaceAll(strings.ReplaceAll(text, "file: ", "file: ../"), "..//", "/")
				}
				if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
				report := Validation{}.Check(source)
				got := report.Problems
				if report.OK {
					got = report.Warnings
				}
				var lines []string
				for _, p := range got {
					line := strings.ReplaceAll(strings.TrimPrefix(p.String(), path+":"), dir, "DIR")
					lines = append(lines, strings.ReplaceAll(line, " of DIR/warnings/a.yaml", ""))
				}
				have, _ := json.MarshalIndent(lines, "", " ")
				if want, _ := json.MarshalIndent(c.want, "", " "); string(have) != string(want) || report.OK != (name != "problems") {
					t.Errorf("%s: %s\nwant %s", source, have, want)
				}
			}
		})
	}
}

// A service that is closed from now on does not stay open because Envoy rejects it.
func TestAFormThatIsOpenToMoreIsWeaker(t *testing.T) {
	t.Parallel()
	open := &Service{Authenticate: true}
	for what, closed := range map[string]*Service{
		"a client without a certificate": {Authenticate: true, ClientCertificate: true},
		"requests during maintenance":    {Authenticate: true, Maintenance: &Maintenance{}},
	} {
		if !weaker(open, closed) || weaker(closed, open) {
			t.Errorf("the former form of a service would let in %s", what)
		}
	}
}
