package definitions

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"gatepost/atomicfile"
)

// ErrDamaged is the error for kept definitions whose checksum is wrong. They must not be served.
var ErrDamaged = errors.New("the kept definitions are damaged")

// LastGood keeps the last active definitions in a file, so that a gateway can start while their source is
// unreachable. Only the owner can read the file. It is replaced atomically, also if the machine stops.
type LastGood struct {
	// Dir is the data directory. Save creates it.
	Dir string
}

const (
	lastGoodFile = "definitions.last-good.yaml"
	// The first line of the file: what is below it, and where that came from. Its words are part of the format.
	lastGoodHeader = "# Written by gatepost: the definitions that were last proven. sha256=%s name=%q\n"
)

// Save replaces the kept definitions by d.
func (l LastGood) Save(d *Definitions) error {
	if err := os.MkdirAll(l.Dir, 0o700); err != nil {
		return fmt.Errorf("keeping definitions: %w", err)
	}
	var b bytes.Buffer
	b.Grow(len(d.Text) + len(lastGoodHeader) + sha256.Size*2 + len(d.Name))
	fmt.Fprintf(&b, lastGoodHeader, lastGoodSum(d.Name, d.Text), d.Name)
	b.Write(d.Text)
	if err := atomicfile.Write(l.path(), b.Bytes(), 0o600); err != nil {
		return fmt.Errorf("keeping definitions: %w", err)
	}
	return nil
}

// Load returns the kept definitions. An error is fs.ErrNotExist if nothing was kept yet, [ErrDamaged] if the file is
// not what Save wrote, and [Problems] if the definitions break a newer rule.
func (l LastGood) Load() (*Definitions, error) {
	kept, err := os.ReadFile(l.path())
	if err != nil {
		return nil, fmt.Errorf("reading kept definitions: %w", err)
	}
	header, text, _ := bytes.Cut(kept, []byte("\n"))
	var sum, name string
	if _, err := fmt.Sscanf(string(header)+"\n", lastGoodHeader, &sum, &name); err != nil || sum != lastGoodSum(name, text) {
		return nil, fmt.Errorf("reading %s: %w; remove it", l.path(), ErrDamaged)
	}
	d, err := Parse(name, text)
	if err != nil {
		return nil, fmt.Errorf("reading kept definitions: %w", err)
	}
	return d, nil
}

func (l LastGood) path() string { return filepath.Join(l.Dir, lastGoodFile) }

func lastGoodSum(name string, text []byte) string {
	h := sha256.New()
	h.Write([]byte(name + "\x00"))
	h.Write(text)
	return hex.EncodeToString(h.Sum(nil))
}
