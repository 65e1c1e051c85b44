package gateway

import (
	"bytes"
	"crypto/x509"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gatepost/certs"
	"gatepost/definitions"
	"gatepost/testcert"
)

// Of two certificates with one name, Envoy is sent the first for it: it refuses a listener with both.
func TestANameIsServedByTheFirstCertificateThatHasIt(t *testing.T) {
	t.Parallel()
	ca, set := testcert.New(t), certs.NewSet(func() {})
	put := func(name string, names ...string) {
		cert, key := ca.Sign(&x509.Certificate{DNSNames: names})
		pair, err := certs.Parse(cert, key, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		set.Put(name, pair)
	}
	put("a", "shop.example", "a.example")
	put("b", "b.example", "Shop.example", "b.example")
	put("c", "a.example")
	tls := &definitions.TLS{
		Certificates:       []definitions.Certificate{{CertFile: "a"}, {CertFile: "missing"}, {CertFile: "b"}, {CertFile: "c"}},
		DefaultCertificate: "c",
	}
	if got, want := fmt.Sprint(serving(tls, set)), "[{a [shop.example a.example] false} {b [b.example] false} {c [] true}]"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

// A change to certificates that cannot be served, such as a misspelt name of a file, does not end what is served.
func TestAChangeDoesNotEndWhatIsServed(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	testcert.New(t).Issue(filepath.Join(dir, "good.pem"), filepath.Join(dir, "good.key"))
	with := func(tls string) *definitions.Definitions {
		d, err := definitions.Parse(filepath.Join(dir, "gateway.yaml"), []byte("services: []\n"+tls))
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	good := with("tls: {certificates: [{cert_file: good.pem, key_file: good.key}]}")
	bad := with("tls: {certificates: [{cert_file: bad.pem, key_file: good.key}]}")
	for name, c := range map[string]struct {
		former, next *definitions.Definitions
		refused      bool
	}{
		"the start":             {nil, bad, false},
		"HTTPS before":          {good, bad, true},
		"HTTP alone before":     {with(""), bad, true},
		"nothing served before": {bad, bad, false},
		"one of two":            {good, with("tls: {certificates: [{cert_file: bad.pem, key_file: good.key}, {cert_file: good.pem, key_file: good.key}]}"), false},
		"no TLS any more":       {good, with(""), false},
	} {
		one := &certificates{g: &Gateway{}, set: certs.NewSet(func() {}), files: new(certs.Files)}
		if c.former != nil {
			one.files.Load(one.filesOf(c.former))
			one.current = c.former
		}
		if _, err := one.load(c.next); (err != nil) != c.refused || c.refused && !strings.Contains(err.Error(), "bad.pem: no such file") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestWarningsOfExpiryAreLoggedOnceEach(t *testing.T) {
	t.Parallel()
	var log bytes.Buffer
	c := &certificates{set: certs.NewSet(func() {}), logger: slog.New(slog.NewTextHandler(&log, nil)), reminded: map[string]int{}}
	c.files = &certs.Files{Logger: c.logger}
	now := time.Now()
	renew := func() {
		cert, key := testcert.New(t).Sign(&x509.Certificate{DNSNames: []string{"a"}, NotAfter: now.AddDate(0, 0, 90)})
		pair, err := certs.Parse(cert, key, now)
		if err != nil {
			t.Fatal(err)
		}
		c.set.Put("a.pem", pair)
	}
	renew()
	c.current = &definitions.Definitions{Gateway: &definitions.Gateway{TLS: &definitions.TLS{Certificates: []definitions.Certificate{{CertFile: "a.pem"}}}}}
	for day, want := range map[int]bool{60: false, 68: false, 70: true, 95: true} {
		if one := c.status(now.AddDate(0, 0, day))[0]; one.GetExpiresSoon() != want {
			t.Errorf("on day %d with %d days left: expires soon %t, want %t", day, one.GetDaysLeft(), one.GetExpiresSoon(), want)
		}
	}
	for day, want := range map[int]int{60: 0, 70: 1, 75: 1, 82: 1, 84: 2, 89: 2, 95: 2} {
		log.Reset()
		c.reminded = map[string]int{}
		for at := range day + 1 {
			c.remind(now.AddDate(0, 0, at))
			c.remind(now.AddDate(0, 0, at).Add(time.Hour))
		}
		if got := strings.Count(log.String(), "a certificate expires soon"); got != want {
			t.Errorf("%d warnings until day %d, want %d: %s", got, day, want, &log)
		}
	}
}
