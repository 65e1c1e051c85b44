// Package devcert decides which certificates a developer's machine serves: those of a local CA, which is made once and
// kept in a folder. Nobody else should trust that CA.
package devcert

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"gatepost/atomicfile"
)

const (
	caName       = "Gatepost development CA"
	caLifetime   = 10 * 365 * 24 * time.Hour
	leafLifetime = 397 * 24 * time.Hour // what browsers accept
)

// Issued names the files of a certificate and of its CA.
type Issued struct {
	Cert, Key, Root string
	// NotAfter is the end of the certificate.
	NotAfter time.Time
	// NewCA is whether the CA was made now.
	NewCA bool
}

// Issue writes a certificate for DNS names and IP addresses into dir, signed by the CA in dir at the time now. If there
// is no CA yet, it makes one. It replaces certificates of this CA, and no other file.
func Issue(dir string, names []string, now time.Time) (*Issued, error) {
	template, err := leaf(names, now)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("making the folder: %w", err)
	}
	base := filepath.Join(dir, strings.NewReplacer("*", "_wildcard", ":", "_").Replace(names[0]))
	issued := &Issued{Cert: base + ".pem", Key: base + ".key", Root: filepath.Join(dir, "ca.pem")}
	ca, err := openCA(issued.Root, filepath.Join(dir, "ca.key"), now)
	if errors.Is(err, os.ErrNotExist) {
		issued.NewCA = true
		ca, err = makeCA(issued.Root, filepath.Join(dir, "ca.key"), now)
	}
	if err != nil {
		return nil, fmt.Errorf("opening the CA: %w", err)
	}
	if err := ca.mayReplace(issued); err != nil {
		return nil, err
	}
	made, err := sign(template, ca)
	if err != nil {
		return nil, fmt.Errorf("making the certificate: %w", err)
	}
	issued.NotAfter = made.cert.NotAfter
	return issued, errors.Join(atomicfile.Write(issued.Key, made.keyPEM(), 0o600), atomicfile.Write(issued.Cert, made.certPEM(), 0o600))
}

// dnsName matches a host name, also a wildcard, in ASCII and lower case.
var dnsName = regexp.MustCompile(`^(\*\.)?([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)*[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

func leaf(names []string, now time.Time) (*x509.Certificate, error) {
	template := &x509.Certificate{
		Subject:     pkix.Name{Organization: []string{"Gatepost development certificate"}},
		NotBefore:   now.Add(-time.Hour),
		NotAfter:    now.Add(leafLifetime),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	for _, name := range names {
		addr, err := netip.ParseAddr(name)
		switch {
		case err == nil && addr.Zone() == "":
			template.IPAddresses = append(template.IPAddresses, addr.AsSlice())
		case len(name) > 253 || !dnsName.MatchString(name) || name == "ca": // ca.pem is the root
			return nil, fmt.Errorf("%q is not a host name or IP address (write it in ASCII and lower case,"+
				" such as shop.example or *.shop.example)", name)
		default:
			template.DNSNames = append(template.DNSNames, name)
		}
	}
	return template, nil
}

func makeCA(certFile, keyFile string, now time.Time) (*pair, error) {
	ca, err := sign(&x509.Certificate{
		Subject:               pkix.Name{CommonName: caName},
		NotBefore:             now.Add(-time.Hour),
		NotAfter:              now.Add(caLifetime),
		KeyUsage:              x509.KeyUsageCertSign,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, // signs servers alone
		IsCA:                  true,
		BasicConstraintsValid: true,
		MaxPathLenZero:        true, // signs no other CA
	}, nil)
	if err != nil {
		return nil, err
	}
	if err := create(keyFile, ca.keyPEM(), 0o600); err != nil {
		return nil, err
	}
	return ca, create(certFile, ca.certPEM(), 0o644)
}

// openCA reads the CA. The error is os.ErrNotExist if both files are missing.
func openCA(certFile, keyFile string, now time.Time) (*pair, error) {
	_, noCert := os.Lstat(certFile)
	info, noKey := os.Lstat(keyFile)
	switch {
	case errors.Is(noCert, os.ErrNotExist) && errors.Is(noKey, os.ErrNotExist):
		return nil, os.ErrNotExist
	case noCert != nil || noKey != nil:
		return nil, fmt.Errorf("only one of %s and %s can be read (choose another --out, or remove it): %v", certFile, keyFile, errors.Join(noCert, noKey))
	case info.Mode().Perm()&0o077 != 0:
		return nil, fmt.Errorf("other users can read %s (remove the CA and what trusts it, or chmod 600 if nobody has)", keyFile)
	}
	ca, err := readPair(certFile, keyFile)
	switch {
	case err != nil:
		return nil, fmt.Errorf("%w (choose another --out)", err)
	case !ca.cert.IsCA || ca.cert.Subject.CommonName != caName:
		return nil, fmt.Errorf("%s is not a CA that gatepost has made (choose another --out)", certFile)
	case now.After(ca.cert.NotAfter):
		return nil, fmt.Errorf("%s has expired (remove it and %s)", certFile, keyFile)
	}
	return ca, nil
}

// mayReplace returns an error if the files exist and are not of a certificate of this CA.
func (p *pair) mayReplace(issued *Issued) error {
	_, noCert := os.Lstat(issued.Cert)
	_, noKey := os.Lstat(issued.Key)
	if errors.Is(noCert, os.ErrNotExist) && errors.Is(noKey, os.ErrNotExist) {
		return nil
	}
	old, err := readPair(issued.Cert, issued.Key)
	if err == nil {
		err = old.cert.CheckSignatureFrom(p.cert)
	}
	if err != nil {
		return fmt.Errorf("%s or %s is not of this CA, and is not overwritten (choose another --out, or remove it): %w", issued.Cert, issued.Key, err)
	}
	return nil
}

// sign makes a key and a certificate for it, signed by ca. If ca is nil, it is signed by itself.
func sign(template *x509.Certificate, ca *pair) (*pair, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	if ca == nil {
		ca = &pair{cert: template, key: key}
	} else if template.NotAfter.After(ca.cert.NotAfter) {
		template.NotAfter = ca.cert.NotAfter
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca.cert, &key.PublicKey, ca.key)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	return &pair{cert: cert, key: key}, err
}

// create writes a new file.
func create(path string, text []byte, mode os.FileMode) error {
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	_, err = file.Write(text)
	return errors.Join(err, file.Close())
}
