package certs

import (
	"bytes"
	"errors"
	"fmt"
	"time"
)

// Roots are the certificates of CAs that were checked. They are immutable.
type Roots struct {
	// PEM has the certificates alone.
	PEM []byte
	// NotAfter is when the last of them expires.
	NotAfter time.Time
}

// ParseRoots returns the CAs against which certificates are verified. Expired ones may be among them, but not alone.
func ParseRoots(text []byte, now time.Time) (Roots, error) {
	all, clean, err := certificates(text)
	if err != nil {
		return Roots{}, err
	}
	r := Roots{PEM: clean}
	for i, cert := range all {
		if !cert.IsCA && !bytes.Equal(cert.RawSubject, cert.RawIssuer) {
			return Roots{}, fmt.Errorf("certificate %d is not that of a CA (write the certificates of CAs alone)", i+1)
		}
		if cert.NotAfter.After(r.NotAfter) {
			r.NotAfter = cert.NotAfter
		}
	}
	if now.After(r.NotAfter) {
		return Roots{}, errors.New("every certificate expired, the last one on " + r.NotAfter.UTC().Format(time.RFC3339))
	}
	return r, nil
}
