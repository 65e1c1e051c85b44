package certs_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"log/slog"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gatepost/certs"
	"gatepost/testcert"
)

func shop() *x509.Certificate {
	return &x509.Certificate{DNSNames: []string{"Shop.example", "*.shop.example"}}
}

func TestACertificateThatClientsAcceptIsAccepted(t *testing.T) {
	t.Parallel()
	ca := testcert.New(t)
	middle := ca.Intermediate()
	cert, key := middle.Sign(shop())
	text := bytes.Join([][]byte{[]byte("a comment\n"), cert, key, middle.PEM()}, nil) // one file for both
	p, err := certs.Parse(text, text, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(p.Names); got != "[shop.example *.shop.example]" {
		t.Errorf("the names are %s", got)
	}
	if bytes.Contains(p.Chain, []byte("PRIVATE")) || bytes.Count(p.Chain, []byte("BEGIN")) != 2 || !bytes.Equal(p.Key.PEM(), key) {
		t.Errorf("the chain is %s", p.Chain)
	}
	at := p.NotAfter.AddDate(0, 0, -certs.Soon)
	for now, want := range map[time.Time]string{
		at: "21 false", at.Add(time.Second): "20 true", p.NotAfter: "0 true", p.NotAfter.Add(time.Second): "-1 true",
	} {
		if days, soon := certs.DaysLeft(p.NotAfter, now); fmt.Sprint(days, soon) != want {
			t.Errorf("%v before it expires: %d days left, soon %t, want %s", p.NotAfter.Sub(now), days, soon, want)
		}
	}
}

// What Envoy refuses, or serves although no client accepts it, is refused with a remedy.
func TestABadCertificateIsRefused(t *testing.T) {
	t.Parallel()
	ca, now := testcert.New(t), time.Now()
	middle := ca.Intermediate()
	cert, key := middle.Sign(shop())
	_, otherKey := ca.Sign(shop())
	expired, expiredKey := ca.Sign(&x509.Certificate{DNSNames: []string{"a"}, NotBefore: now.Add(-2 * time.Hour), NotAfter: now.Add(-time.Hour)})
	future, futureKey := ca.Sign(&x509.Certificate{DNSNames: []string{"a"}, NotBefore: now.Add(time.Hour)})
	nameless, namelessKey := ca.Sign(&x509.Certificate{})
	wild, wildKey := ca.Sign(&x509.Certificate{DNSNames: []string{"a", "shop*.example"}})
	client, clientKey := ca.Sign(&x509.Certificate{DNSNames: []string{"a"}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	weak, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	weakCert, weakKey := selfSigned(t, weak.Public(), weak)
	odd, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	oddCert, oddKey := selfSigned(t, odd.Public(), odd)
	for name, c := range map[string]struct {
		cert, key []byte
		want      string
	}{
		"no certificate":          {nil, key, "there is no certificate in PEM"},
		"a damaged certificate":   {pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte("x")}), key, "certificate 1 cannot be read"},
		"no key":                  {cert, cert, "there is no private key in PEM"},
		"another key":             {cert, otherKey, "the key is not that of the certificate"},
		"an encrypted key":        {cert, pem.EncodeToMemory(&pem.Block{Type: "ENCRYPTED PRIVATE KEY", Bytes: []byte("x")}), "openssl pkey"},
		"an encrypted key of old": {cert, pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Headers: map[string]string{"Proc-Type": "4,ENCRYPTED"}, Bytes: []byte("x")}), "openssl pkey"},
		"the issuer first":        {bytes.Join([][]byte{middle.PEM(), cert}, nil), key, "the key is that of certificate 2"},
		"a foreign intermediate":  {bytes.Join([][]byte{cert, ca.PEM()}, nil), key, "certificate 2 has not signed certificate 1"},
		"expired":                 {expired, expiredKey, "expired on"},
		"not valid yet":           {future, futureKey, "compare the clock"},
		"no names":                {nameless, namelessKey, "has no names"},
		"part of a label":         {wild, wildKey, `served by Envoy: ["a" "shop*.example"]`},
		"for clients":             {client, clientKey, "not for servers"},
		"a short RSA key":         {weakCert, weakKey, "1024 bits"},
		"a curve of few":          {oddCert, oddKey, "of a kind that Envoy does not take"},
	} {
		if _, err := certs.Parse(c.cert, c.key, now); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: the error is %v, want %q", name, err, c.want)
		}
	}
	if _, err := certs.ParseClient(client, clientKey, now); err != nil {
		t.Errorf("a client's certificate: %v", err)
	}
	server, serverKey := ca.Sign(&x509.Certificate{DNSNames: []string{"a"}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}})
	if _, err := certs.ParseClient(server, serverKey, now); err == nil || !strings.Contains(err.Error(), "not for clients") {
		t.Errorf("a server's certificate for a client: %v", err)
	}
}

func selfSigned(t *testing.T, public, key any) (certPEM, keyPEM []byte) {
	t.Helper()
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{"a"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, public, key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})
}

func TestRootsAreCAsAlone(t *testing.T) {
	t.Parallel()
	ca, now := testcert.New(t), time.Now()
	leaf, _ := ca.Sign(shop())
	if r, err := certs.ParseRoots(append([]byte("text\n"), ca.PEM()...), now); err != nil || !bytes.Equal(r.PEM, ca.PEM()) {
		t.Errorf("%v %s", err, r.PEM)
	}
	for want, text := range map[string][]byte{"certificate 2 is not that of a CA": append(ca.PEM(), leaf...), "no certificate": []byte("x")} {
		if _, err := certs.ParseRoots(text, now); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("the error is %v, want %q", err, want)
		}
	}
	if _, err := certs.ParseRoots(ca.PEM(), now.AddDate(1, 0, 0)); err == nil || !strings.Contains(err.Error(), "every certificate expired") {
		t.Error(err)
	}
}

func TestAKeyCannotBePrinted(t *testing.T) {
	t.Parallel()
	p, err := certs.SelfSigned([]string{"shop.example"}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	slog.New(slog.NewJSONHandler(&out, nil)).Info("x", "pair", p, "key", p.Key)
	asJSON, err := json.Marshal(p.Key)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(&out, "%v %+v %#v %s %s %s", p, p, p.Key, p.Key, p.Key, asJSON)
	secret := strings.Split(string(p.Key.PEM()), "\n")[1]
	if strings.Contains(out.String(), secret) || strings.Contains(out.String(), fmt.Sprint(p.Key.PEM()[:20])[1:40]) {
		t.Errorf("printed: %s", &out)
	}
}

// folder is a folder with a certificate that is followed.
type folder struct {
	t         *testing.T
	dir       string
	ca        *testcert.CA
	set       *certs.Set
	files     *certs.Files
	log       bytes.Buffer
	changes   int
	cert, key string
}

func follow(t *testing.T) *folder {
	t.Helper()
	f := &folder{t: t, dir: t.TempDir(), ca: testcert.New(t)}
	f.cert, f.key = filepath.Join(f.dir, "shop.pem"), filepath.Join(f.dir, "shop.key")
	f.ca.IssueAs(f.cert, f.key, shop())
	f.set = certs.NewSet(func() { f.changes++ })
	f.files = &certs.Files{Logger: slog.New(slog.NewTextHandler(&f.log, nil))}
	files := []certs.File{certs.ServerPair(f.set, "shop", f.cert, f.key)}
	f.files.Load(files)
	f.files.Follow(files)
	f.has("at first", 1)
	return f
}

// has checks that the set has what is in the files, after a number of changes.
func (f *folder) has(when string, changes int) {
	f.t.Helper()
	f.files.Poll()
	text, err := os.ReadFile(f.cert)
	if err != nil {
		f.t.Fatal(err)
	}
	if p, _ := f.set.Pair("shop"); !bytes.Equal(p.Chain, text) || f.changes != changes || len(f.files.Problems()) > 0 {
		f.t.Errorf("%s: the set has another certificate, or there were %d changes, want %d; %v", when, f.changes, changes, f.files.Problems())
	}
}

func TestAChangedFileIsTakenHoweverItChanges(t *testing.T) {
	t.Parallel()
	f := follow(t)
	f.has("without a change", 1)
	f.ca.IssueAs(f.cert, f.key, shop())
	f.has("written in place", 2)
	newCert, newKey := filepath.Join(f.dir, "new.pem"), filepath.Join(f.dir, "new.key")
	f.ca.IssueAs(newCert, newKey, shop())
	rename := func(from, to string) {
		if err := os.Rename(from, to); err != nil {
			t.Fatal(err)
		}
	}
	rename(newKey, f.key)
	f.files.Poll() // between the two
	rename(newCert, f.cert)
	f.has("renamed", 3)
	if strings.Contains(f.log.String(), "ERROR") {
		t.Errorf("a certificate that was half replaced is an error: %s", &f.log)
	}
	// As Kubernetes does: the folder of the files is a link that is replaced.
	for i := range 2 {
		data := filepath.Join(f.dir, fmt.Sprint("data", i))
		if err := os.Mkdir(data, 0o755); err != nil {
			t.Fatal(err)
		}
		f.ca.IssueAs(filepath.Join(data, "shop.pem"), filepath.Join(data, "shop.key"), shop())
		if err := os.Symlink(data, f.dir+"/..new"); err != nil {
			t.Fatal(err)
		}
		rename(f.dir+"/..new", f.dir+"/..data")
		if i == 0 {
			for _, path := range []string{f.cert, f.key} {
				if err := os.Remove(path); err != nil {
					t.Fatal(err)
				}
				if err := os.Symlink(filepath.Join("..data", filepath.Base(path)), path); err != nil {
					t.Fatal(err)
				}
			}
		}
		f.has("another folder behind the link", 4+i)
	}
}

func TestABadFileChangesNothingAndIsReportedOnce(t *testing.T) {
	t.Parallel()
	f := follow(t)
	before, _ := f.set.Pair("shop")
	for i, spoil := range []func() error{
		func() error { return os.WriteFile(f.cert, []byte("nothing"), 0o600) },
		func() error { return os.Remove(f.cert) },
		func() error { return os.Mkdir(f.cert, 0o755) },
	} {
		if err := spoil(); err != nil {
			t.Fatal(err)
		}
		for range 3 {
			f.files.Poll()
		}
		now, _ := f.set.Pair("shop")
		if !bytes.Equal(now.Chain, before.Chain) || f.changes != 1 {
			t.Error("a bad file changed the set")
		}
		if err := f.files.Problems()["shop"]; err == nil || !strings.Contains(err.Error(), f.cert) {
			t.Errorf("the problem is %v", err)
		}
		if n := strings.Count(f.log.String(), "level=ERROR"); n != i+1 {
			t.Errorf("%d errors are logged, want %d: %s", n, i+1, &f.log)
		}
	}
	if err := os.Remove(f.cert); err != nil {
		t.Fatal(err)
	}
	f.ca.IssueAs(f.cert, f.key, shop())
	f.has("repaired", 2)
	f.files.Follow(nil)
	if err := os.Remove(f.cert); err != nil {
		t.Fatal(err)
	}
	f.files.Poll()
	f.files.Poll()
	if n := strings.Count(f.log.String(), "level=ERROR"); n != 3 || len(f.files.Problems()) > 0 {
		t.Error("a file is followed that is not in the list any more")
	}
}

func FuzzParse(f *testing.F) {
	ca := testcert.New(f)
	cert, key := ca.Sign(shop())
	f.Add(append(cert, ca.PEM()...), key)
	f.Add(key, cert)
	f.Fuzz(func(_ *testing.T, cert, key []byte) {
		if p, err := certs.Parse(cert, key, time.Now()); err == nil && len(p.Names)+len(p.Addresses) == 0 {
			panic("a certificate without names is accepted")
		}
		_, _ = certs.ParseRoots(cert, time.Now())
	})
}
